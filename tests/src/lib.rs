//! Helpers for tests that see the project from outside: a cluster as its users start it, and their clients.

pub mod cluster;
pub mod python;
pub mod run;

pub use cluster::Cluster;
pub use run::{Output, run};
