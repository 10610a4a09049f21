//! The words of Kontiki, and the traits at its seams.
//!
//! Nothing here does IO, knows a clock, or names a runtime: every other crate may import this one, it imports none of ours.
//!
//! | module | what it holds |
//! |---|---|
//! | [`ids`] | newtypes for every number that has a meaning: [`Revision`], [`Term`], [`LogIndex`], [`MemberId`], [`LeaseId`] |
//! | [`key`] | byte keys and ranges of them, with etcd's rules for `range_end` |
//! | [`object`] | names of Kubernetes objects; the only place where `resourceVersion` and [`Revision`] meet |
//! | [`auth`] | what can go wrong with users, roles and permissions |
//! | [`code`] | the outcome table: gRPC code, HTTP status, Kubernetes reason, when to retry |
//! | [`limits`] | every bound and what happens at it |
//! | [`invariant`] | invariants by name, and [`check!`] |
//! | [`mutant`] | planted bugs, in builds that measure the chaos harness |
//! | [`kv`] | the seam between API server and store: requests, replies, [`kv::Kv`] |
//! | [`env`] | the seam to time, tasks and randomness |
//! | [`net`] | the seam to the other members |
//! | [`text`] | texts that etcd's clients compare |
//! | [`trace`] | where work belongs in a distributed trace; the names of all spans |

pub mod auth;
pub mod code;
pub mod env;
pub mod ids;
pub mod invariant;
pub mod key;
pub mod kv;
pub mod limits;
pub mod mutant;
pub mod net;
pub mod object;
pub mod text;
pub mod trace;

pub use auth::AuthError;
pub use code::Code;
pub use ids::{LeaseId, LogIndex, MemberId, Revision, Term, Uid, WatchId};
pub use key::KeyRange;
pub use kv::KvError;

/// A boxed future: what an object-safe seam returns.
pub type BoxFuture<'a, T> = std::pin::Pin<Box<dyn std::future::Future<Output = T> + Send + 'a>>;
