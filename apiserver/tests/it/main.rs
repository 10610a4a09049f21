//! The API server from outside: real TLS, both doors, the real state machine in memory.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod breaks;
mod common;
mod crds;
mod grpc;
mod kubectl;
mod lists;
mod logs;
mod verbs;
mod watches;
