//! The state machine seen from outside: etcd's rules as tables, random commands against a naive model, the in-memory `Kv`.

mod codec;
mod generate;
mod local;
mod model;
mod random;
mod rules;
mod txns;
mod util;
