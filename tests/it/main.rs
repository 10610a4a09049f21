//! One binary for all tests from outside: it is linked once.

mod cluster;
mod tidy;
mod tracing;
