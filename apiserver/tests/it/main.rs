//! The API server from outside: real TLS, both doors, the real state machine in memory.

mod common;
mod grpc;
mod kubectl;
mod lists;
mod logs;
mod verbs;
mod watches;
