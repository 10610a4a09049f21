//! Controllers and the scheduler as pure functions: `(key, world, now) -> plan`. No async, no clock, no randomness, no IO.

pub mod kind;
pub mod name;
pub mod plan;

pub use kind::Kind;
pub use plan::{Action, Plan};
