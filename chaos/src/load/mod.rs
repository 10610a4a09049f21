//! Clients that record what they see.

pub mod kv;
pub mod pods;
