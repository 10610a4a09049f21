//! Helpers for tests that see the project from outside: a cluster as its users start it, their clients, and a collector of its traces.

pub mod cluster;
pub mod collector;
pub mod python;
pub mod run;

pub use cluster::Cluster;
pub use collector::Collector;
pub use run::{Output, run};
