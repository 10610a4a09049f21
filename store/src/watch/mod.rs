//! Watches: every change of the watched keys, in order, none twice, none missing.
//!
//! ```text
//! apply thread ─ applied() ─> Ring (recent events, bounded) ─> dispatcher ─ one Delivery per stream and batch ─> Session ─> client
//!                                  └──────────── Attach ──────────────────────────────────────────────────────────┘
//!                                                     engine history ─ catching up ─────────────────────────────────┘
//! ```
//!
//! The apply thread only appends to the [`ring`]. The [`hub`]'s dispatcher matches each batch against all watched keys at once and wakes
//! only the streams that watch something in it. A stream that does not keep up loses its place in the index, nothing else: its cursors
//! fall back to reading history, and come back when they have caught up. So a slow watcher slows nobody, and no event is ever dropped.
//!
//! | file | what |
//! |---|---|
//! | [`cursor`] | where a watch stands: a typed state machine |
//! | [`ring`] | the recent past in memory |
//! | [`index`] | which watches see a key |
//! | [`hub`] | the sink of apply, the dispatcher, registration |
//! | [`replay`] | the past from the engine |
//! | [`seen`] | the events that a watch sees, encoded once for all watches |
//! | [`session`] | one stream of watches: what its client is told next |

pub mod cursor;
pub mod hub;
pub mod index;
pub mod replay;
pub mod ring;
pub mod seen;
pub mod session;
#[cfg(test)]
mod tests;

pub use hub::Hub;
pub use seen::Seen;
pub use session::{Canceled, Out, Pace, Session, WatchSpec};
