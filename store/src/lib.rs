//! One replicated, watchable, revisioned map, with etcd v3 on the wire.

pub mod raft;
