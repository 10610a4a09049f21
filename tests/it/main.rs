//! One binary for all tests from outside: it is linked once.

mod cluster;
mod commands;
mod crash;
mod etcdctl;
mod leader_kills;
mod tidy;
mod tracing;
