//! The Kubernetes API surface as data and pure functions: no async, no clock, no randomness, no IO.

pub mod columns;
pub mod patch;
pub mod protobuf;
pub mod quantity;
