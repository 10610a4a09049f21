//! Clients that record what they see.

pub mod informer;
pub mod kv;
pub mod lease;
pub mod observer;
pub mod pods;
pub mod watch;
