//! The state machine seen from outside: etcd's rules as tables, random commands against a naive model, the in-memory `Kv`.

mod local;
mod rules;
mod txns;
mod util;
