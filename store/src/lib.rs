//! One replicated, watchable, revisioned map, with etcd v3 on the wire.

pub mod engine;
pub mod log;
pub mod net;
pub mod raft;
