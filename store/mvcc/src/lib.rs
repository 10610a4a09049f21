//! What the store computes: a pure state machine from commands to outcomes.
//!
//! No clock, no randomness, no IO: the same view and the same command give the same bytes on every member.
//!
//! | module | what it holds |
//! |---|---|
//! | [`command`] | what a log entry can carry, and what comes of it; `codec` has the bytes |
//! | [`mod@validate`] | what a proposer refuses |
//! | [`mod@apply`] | command to outcome; `ops`, `txn` and `write` are its parts |
//! | [`mod@range`] | reading, now or as of an old revision |
//! | [`mod@history`] | replaying changes for a watch |
//! | [`auth`] | users, roles, permissions: who may do what |
//! | [`lease`] | which leases there are |
//! | [`alarm`] | what the cluster has agreed to refuse |
//! | [`compact`] | removing what nobody can read any more |
//! | [`hash`] | comparing the states of members |
//! | [`mod@check`] | whether a state agrees with itself |
//! | [`span`] | … a part at a time |
//! | [`view`] | the seam to the disk: what is read, what is written |
//! | [`keys`] | the bytes on disk |
//! | [`local`] | the whole of it in memory, as a `Kv`, for tests |

pub mod alarm;
pub mod apply;
pub mod auth;
pub mod check;
pub mod codec;
pub mod command;
pub mod compact;
pub mod hash;
pub mod history;
pub mod keys;
pub mod lease;
pub mod local;
mod ops;
pub mod range;
pub mod span;
pub mod state;
pub mod txn;
pub mod validate;
pub mod view;
mod write;

pub use alarm::{Alarm, AlarmKind};
pub use apply::apply;
pub use check::verify;
pub use codec::DecodeError;
pub use command::{Command, Outcome, Reply};
pub use compact::{Progress, sweep};
pub use hash::{KvHash, hash_kv, state_hash};
pub use history::{history, previous};
pub use local::LocalKv;
pub use range::{page, range};
pub use state::{EMPTY, NEVER_COMPACTED, ReadError, Revisions, current, get_at};
pub use txn::read_txn;
pub use validate::{is_read_only, validate};
pub use view::{Batch, MemView, Overlay, Space, View, ViewError};
