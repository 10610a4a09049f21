//! The seam between the API server and the store: etcd's data model in plain types, and the trait [`Kv`].
//!
//! The same requests are what `mvcc` applies, what the etcd services translate to and from, and what the API server says.
//! Semantics, including the corner cases, are those of etcd v3.

use std::sync::Arc;

use bytes::Bytes;

use crate::BoxFuture;
use crate::auth::AuthError;
use crate::code::Code;
use crate::ids::{LeaseId, Revision, Term};
use crate::key::KeyRange;
use crate::text;

/// A key with its value and its history in numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyValue {
    /// The key.
    pub key: Bytes,
    /// The value; empty when only keys were asked for.
    pub value: Bytes,
    /// Revision at which this life of the key began.
    pub create_revision: Revision,
    /// Revision of the last write.
    pub mod_revision: Revision,
    /// Number of writes in this life, from 1.
    pub version: i64,
    /// The lease it dies with, or [`LeaseId::ZERO`].
    pub lease: LeaseId,
}

/// What happened to a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// It was written.
    Put,
    /// It was deleted; the event's `kv` has only key and `mod_revision`.
    Delete,
}

/// A change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Which.
    pub kind: EventKind,
    /// The key after the change.
    pub kv: KeyValue,
    /// The key before it; `None` if there was none, or if it is no longer known.
    pub prev: Option<KeyValue>,
}

/// How fresh a read must be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Consistency {
    /// Sees every write that was acknowledged before the read began; needs a quorum.
    #[default]
    Linearizable,
    /// What this member has; needs nobody.
    Serializable,
}

/// Order of a range's results.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SortOrder {
    /// Key order, unless the target is another (then ascending).
    #[default]
    None,
    /// Smallest first.
    Ascend,
    /// Largest first.
    Descend,
}

/// What a range's results are ordered by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SortTarget {
    /// The key.
    #[default]
    Key,
    /// The version.
    Version,
    /// The create revision.
    Create,
    /// The mod revision.
    Mod,
    /// The value, bytewise.
    Value,
}

/// A read of a range of keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeReq {
    /// Which keys.
    pub range: KeyRange,
    /// As of when; [`Revision::ZERO`] is the latest.
    pub at: Revision,
    /// At most so many results; 0 is no limit.
    pub limit: usize,
    /// Order of results.
    pub order: SortOrder,
    /// What they are ordered by.
    pub target: SortTarget,
    /// How fresh.
    pub consistency: Consistency,
    /// Leave the values out.
    pub keys_only: bool,
    /// Only the count.
    pub count_only: bool,
    /// Keep only results with at least this mod revision; 0 keeps all.
    pub min_mod: Revision,
    /// … at most this mod revision.
    pub max_mod: Revision,
    /// … at least this create revision.
    pub min_create: Revision,
    /// … at most this create revision.
    pub max_create: Revision,
}

impl RangeReq {
    /// A linearizable read of the latest state of a range, in key order.
    pub fn new(range: KeyRange) -> Self {
        Self {
            range,
            at: Revision::ZERO,
            limit: 0,
            order: SortOrder::None,
            target: SortTarget::Key,
            consistency: Consistency::Linearizable,
            keys_only: false,
            count_only: false,
            min_mod: Revision::ZERO,
            max_mod: Revision::ZERO,
            min_create: Revision::ZERO,
            max_create: Revision::ZERO,
        }
    }
}

/// Answer to a [`RangeReq`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeRes {
    /// The store's revision when it was read (not the revision that was asked for).
    pub revision: Revision,
    /// The results.
    pub kvs: Vec<KeyValue>,
    /// Whether the limit cut some off.
    pub more: bool,
    /// All keys in the range, whatever limit and filters.
    pub count: i64,
}

/// A write of one key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PutReq {
    /// The key; not empty.
    pub key: Bytes,
    /// The value.
    pub value: Bytes,
    /// The lease it shall die with, or [`LeaseId::ZERO`].
    pub lease: LeaseId,
    /// Answer with the value before.
    pub prev_kv: bool,
    /// Keep the value (which must then be empty here).
    pub ignore_value: bool,
    /// Keep the lease (which must then be zero here).
    pub ignore_lease: bool,
}

/// Answer to a [`PutReq`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PutRes {
    /// The store's revision after it.
    pub revision: Revision,
    /// The value before, if asked for.
    pub prev: Option<KeyValue>,
}

/// A deletion of a range of keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeleteReq {
    /// Which keys.
    pub range: KeyRange,
    /// Answer with what was deleted.
    pub prev_kv: bool,
}

/// Answer to a [`DeleteReq`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeleteRes {
    /// The store's revision after it.
    pub revision: Revision,
    /// How many keys were deleted.
    pub deleted: i64,
    /// What they were, if asked for.
    pub prevs: Vec<KeyValue>,
}

/// How a key's number or value is compared with the operand of a [`Compare`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompareOp {
    /// Equal to the operand.
    Equal,
    /// Greater than the operand.
    Greater,
    /// Less than the operand.
    Less,
    /// Not equal to the operand.
    NotEqual,
}

/// What a [`Compare`] looks at, with the operand. A key that does not exist has 0 everywhere and no value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CompareTarget {
    /// The version.
    Version(i64),
    /// The create revision.
    Create(Revision),
    /// The mod revision.
    Mod(Revision),
    /// The value.
    Value(Bytes),
    /// The lease.
    Lease(LeaseId),
}

/// A condition of a transaction. Over a range it must hold for every key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compare {
    /// Which keys.
    pub range: KeyRange,
    /// What is compared, with what.
    pub target: CompareTarget,
    /// How.
    pub op: CompareOp,
}

impl Compare {
    /// Holds if `key` was last written at `revision`; with [`Revision::ZERO`], if there is no such key.
    pub fn mod_equals(key: impl Into<Bytes>, revision: Revision) -> Self {
        Self { range: KeyRange::single(key), target: CompareTarget::Mod(revision), op: CompareOp::Equal }
    }
}

/// A step of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Read.
    Range(RangeReq),
    /// Write.
    Put(PutReq),
    /// Delete.
    Delete(DeleteReq),
    /// Another transaction, within this one and at its revision.
    Txn(Txn),
}

/// If all of `compare` hold then `success`, else `failure`: one step of history, at one revision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Txn {
    /// The conditions.
    pub compare: Vec<Compare>,
    /// What is done if they all hold.
    pub success: Vec<Op>,
    /// What is done otherwise.
    pub failure: Vec<Op>,
}

/// Answer to an [`Op`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OpRes {
    /// Read.
    Range(RangeRes),
    /// Write.
    Put(PutRes),
    /// Delete.
    Delete(DeleteRes),
    /// Nested.
    Txn(TxnRes),
}

/// Answer to a [`Txn`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TxnRes {
    /// The store's revision after it.
    pub revision: Revision,
    /// Which branch was taken.
    pub succeeded: bool,
    /// Answers to that branch's steps.
    pub responses: Vec<OpRes>,
}

/// A watch on a range of keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchReq {
    /// Which keys.
    pub range: KeyRange,
    /// The first revision to deliver; [`Revision::ZERO`] is "from now on".
    pub from: Revision,
    /// Deliver what was there before, too.
    pub prev_kv: bool,
}

/// What a watch delivers.
#[derive(Clone, Debug)]
pub enum WatchMsg {
    /// The watch is in place: every change after this revision will be delivered. Always the first message.
    Created {
        /// The store's revision when it was placed.
        revision: Revision,
    },
    /// All of the watched changes of one or more revisions, in order; a revision is never split.
    Events {
        /// The store is known to be at least here, and nothing watched up to here is missing.
        revision: Revision,
        /// The changes.
        events: Arc<[Event]>,
    },
    /// Nothing watched happened up to here.
    Progress {
        /// Everything up to here has been delivered.
        revision: Revision,
    },
}

/// A running watch. Dropping it ends it.
pub trait WatchStream: Send {
    /// The next message; `None` when the store has shut down. After an `Err` there is nothing more.
    fn next(&mut self) -> BoxFuture<'_, Option<Result<WatchMsg, KvError>>>;
}

/// What the store says of itself, for health, fencing and status pages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KvStatus {
    /// The current term.
    pub term: Term,
    /// Whether the local member leads in that term. Always `false` for a remote store.
    pub is_leader: bool,
    /// Whether a leader is known.
    pub has_leader: bool,
    /// The latest revision that the local member has applied.
    pub revision: Revision,
}

/// Everything that can go wrong at this seam. The texts are etcd's where etcd has one, since its clients compare them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KvError {
    /// The key is empty.
    #[error("{}", text::EMPTY_KEY)]
    EmptyKey,
    /// `ignore_value` with a value.
    #[error("{}", text::VALUE_PROVIDED)]
    ValueProvided,
    /// `ignore_lease` with a lease.
    #[error("{}", text::LEASE_PROVIDED)]
    LeaseProvided,
    /// `ignore_value` or `ignore_lease` on a key that does not exist.
    #[error("{}", text::KEY_NOT_FOUND)]
    KeyNotFound,
    /// Two puts of one key in one transaction, or a put and a delete that covers it.
    #[error("{}", text::DUPLICATE_KEY)]
    DuplicateKey,
    /// The transaction has too many steps.
    #[error("{}", text::TOO_MANY_OPS)]
    TooManyOps,
    /// The revision has been compacted away.
    #[error("{}", text::COMPACTED)]
    Compacted {
        /// History is kept from here on.
        compact: Revision,
    },
    /// The revision does not exist yet.
    #[error("{}", text::FUTURE_REVISION)]
    FutureRevision,
    /// There is no such lease.
    #[error("{}", text::LEASE_NOT_FOUND)]
    LeaseNotFound,
    /// There is such a lease already.
    #[error("{}", text::LEASE_EXISTS)]
    LeaseExists,
    /// The time to live is out of range.
    #[error("{}", text::LEASE_TTL_TOO_LARGE)]
    LeaseTtlTooLarge,
    /// The request is too large.
    #[error("{}", text::TOO_LARGE)]
    TooLarge,
    /// A queue is full.
    #[error("{}", text::TOO_MANY_REQUESTS)]
    TooManyRequests,
    /// The disk or the quota is full.
    #[error("{}", text::NO_SPACE)]
    NoSpace,
    /// There is no leader.
    #[error("{}", text::NO_LEADER)]
    NoLeader,
    /// The leader changed while the request was under way; it may have been carried out.
    #[error("{}", text::LEADER_CHANGED)]
    LeaderChanged,
    /// Time ran out; it may have been carried out.
    #[error("{}", text::TIMEOUT)]
    Timeout,
    /// The process is shutting down.
    #[error("{}", text::STOPPED)]
    Stopped,
    /// Users, roles and permissions.
    #[error(transparent)]
    Auth(#[from] AuthError),
    /// The writer's term has passed: another leader acts now. Nothing was written.
    #[error("fenced: written under term {given}, the log is at term {current}")]
    Fenced {
        /// The term that the writer gave.
        given: Term,
        /// The term of the log entry.
        current: Term,
    },
    /// The store cannot be reached.
    #[error("store unavailable: {0}")]
    Unavailable(String),
    /// Stored data cannot be read.
    #[error("data corruption: {0}")]
    Corrupt(String),
    /// It is not built.
    #[error("not implemented: {0}")]
    Unimplemented(String),
    /// A bug.
    #[error("internal error: {0}")]
    Internal(String),
}

impl KvError {
    /// The outcome code.
    pub const fn code(&self) -> Code {
        match self {
            Self::EmptyKey | Self::ValueProvided | Self::LeaseProvided | Self::KeyNotFound | Self::DuplicateKey | Self::TooManyOps => {
                Code::BadRequest
            }
            Self::Compacted { .. } => Code::Compacted,
            Self::FutureRevision => Code::FutureRevision,
            Self::LeaseNotFound => Code::NotFound,
            Self::LeaseExists => Code::FailedPrecondition,
            Self::LeaseTtlTooLarge => Code::BadRequest,
            Self::TooLarge => Code::TooLarge,
            Self::TooManyRequests => Code::TooManyRequests,
            Self::NoSpace => Code::NoSpace,
            Self::NoLeader | Self::LeaderChanged => Code::NoLeader,
            Self::Timeout => Code::Timeout,
            Self::Stopped | Self::Unavailable(_) => Code::Unavailable,
            Self::Auth(error) => error.code(),
            Self::Fenced { .. } => Code::Fenced,
            Self::Corrupt(_) => Code::DataLoss,
            Self::Unimplemented(_) => Code::Unimplemented,
            Self::Internal(_) => Code::Internal,
        }
    }
}

/// A replicated, revisioned, watchable map, as the API server sees it.
///
/// Implementations: the local store member, etcd v3 over gRPC (`kontiki_proto::client`), and `kontiki_mvcc::LocalKv` for tests.
pub trait Kv: Send + Sync + 'static {
    /// Reads a range.
    fn range(&self, req: RangeReq) -> BoxFuture<'_, Result<RangeRes, KvError>>;

    /// Carries out a transaction. With a `fence`, it is carried out only if the log entry that carries it is of that very term;
    /// otherwise [`KvError::Fenced`], and nothing is written.
    fn txn(&self, txn: Txn, fence: Option<Term>) -> BoxFuture<'_, Result<TxnRes, KvError>>;

    /// Starts a watch.
    fn watch(&self, req: WatchReq) -> BoxFuture<'_, Result<Box<dyn WatchStream>, KvError>>;

    /// Forgets history before `revision`.
    fn compact(&self, revision: Revision) -> BoxFuture<'_, Result<(), KvError>>;

    /// What the store says of itself, from local knowledge: does not wait.
    fn status(&self) -> KvStatus;

    /// Completes when [`Kv::status`] may differ from `seen` in term or leadership.
    fn status_changed(&self, seen: KvStatus) -> BoxFuture<'_, ()>;
}
