//! The state machine seen from outside: etcd's rules as tables, random commands against a naive model, the in-memory `Kv`.

#![allow(clippy::unwrap_used, reason = "a test that unwraps is a test that fails")]

mod auth;
mod broken;
mod codec;
mod generate;
mod local;
mod model;
mod random;
mod rules;
mod txns;
mod util;
