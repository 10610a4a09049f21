//! The state machine seen from outside: etcd's rules as tables, random commands against a naive model, the in-memory `Kv`.

mod local;
mod util;
