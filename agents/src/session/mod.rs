//! The server's side of the node session: registration, heartbeats, pod statuses up, pod sets down.

mod liveness;

pub use liveness::Liveness;
