//! Helpers for tests that see the project from outside: a cluster as its users start it, members of a store as
//! processes, golden scripts for their clients, and a collector of traces.

pub mod cluster;
pub mod collector;
pub mod python;
pub mod run;
pub mod script;
pub mod stores;

pub use cluster::Cluster;
pub use collector::Collector;
pub use run::{Output, run};
pub use stores::{Kind, Stores};
