//! What the store computes: a pure state machine from commands to outcomes.
//!
//! No clock, no randomness, no IO: the same view and the same command give the same bytes on every member.

pub mod command;
pub mod view;

pub use command::{Command, Outcome, Reply};
pub use view::{Batch, Space, View, ViewError};
