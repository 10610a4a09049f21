//! Controllers and the scheduler as pure functions: `(key, world, now) -> plan`. No async, no clock, no randomness, no IO: the
//! shell (`kontiki-agents`) fills the [`World`] from watches, asks [`controllers::CONTROLLERS`] what to do, and does it.
//!
//! | module | what it holds |
//! |---|---|
//! | [`kind`] | the kinds that are watched, one row each |
//! | [`store`], [`world`] | what controllers may look at |
//! | [`plan`] | what they may ask for |
//! | [`meta`], [`selector`], [`quantity`], [`name`] | the small words: owners, conditions, selectors, amounts, names |
//! | [`controllers`] | one file per controller, and the table of them |
//! | [`schedule`] | the scheduler: snapshot, filters, scores, explanation |

pub mod controllers;
pub mod kind;
pub mod meta;
pub mod name;
pub mod plan;
pub mod quantity;
pub mod schedule;
pub mod selector;
pub mod store;
pub mod world;

pub use kind::Kind;
pub use plan::{Action, Plan};
pub use world::World;
