//! Operations on the store: what clients asked, with times, and what they were answered.

use serde::{Deserialize, Serialize};

use super::At;

/// What a client asked for. Every value that is written in a run is unique: an outcome that the client was not told is found by it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ask {
    /// Write. The short form of [`Ask::Do`] with a [`Step::Put`].
    Put {
        /// Which key.
        key: String,
        /// What.
        value: String,
    },
    /// Linearizable read of one key.
    Get {
        /// Which key.
        key: String,
    },
    /// Write if the key was last written at this revision (0: if it does not exist).
    Cas {
        /// Which key.
        key: String,
        /// The revision that is compared.
        expect: i64,
        /// What.
        value: String,
    },
    /// Delete one key.
    Delete {
        /// Which key.
        key: String,
    },
    /// One step of any kind, alone.
    Do(Step),
    /// A transaction.
    Txn {
        /// The conditions: all must hold for `success`.
        compare: Vec<Compare>,
        /// Done if they hold.
        success: Vec<Step>,
        /// Done otherwise.
        failure: Vec<Step>,
    },
    /// About a lease.
    Lease(LeaseAsk),
    /// Forget history before a revision.
    Compact {
        /// The revision.
        revision: i64,
    },
}

/// A step: alone, or in a transaction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// Write a key.
    Put {
        /// Which key.
        key: String,
        /// What; unique in the run.
        value: String,
        /// The lease it dies with, or 0.
        #[serde(default, skip_serializing_if = "is_zero")]
        lease: i64,
        /// Answer with what was there before.
        #[serde(default, skip_serializing_if = "is_false")]
        prev: bool,
    },
    /// Read a range.
    Range(RangeAsk),
    /// Delete a range.
    Delete {
        /// First key.
        key: String,
        /// End, as on the wire: empty is one key, "\0" is no end.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        end: String,
        /// Answer with what was there before.
        #[serde(default, skip_serializing_if = "is_false")]
        prev: bool,
    },
}

/// A read of a range, in key order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RangeAsk {
    /// First key.
    pub key: String,
    /// End, as on the wire: empty is one key, "\0" is no end.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub end: String,
    /// As of which revision; 0: the latest.
    #[serde(skip_serializing_if = "is_zero")]
    pub at: i64,
    /// At most so many results; 0: all.
    #[serde(skip_serializing_if = "is_zero")]
    pub limit: i64,
    /// From what the member has, without asking others.
    #[serde(skip_serializing_if = "is_false")]
    pub serializable: bool,
    /// Only how many.
    #[serde(skip_serializing_if = "is_false")]
    pub count_only: bool,
    /// Without values: they come as empty strings.
    #[serde(skip_serializing_if = "is_false")]
    pub keys_only: bool,
}

/// A condition on one key. A key that does not exist has 0 everywhere; no comparison with its value holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compare {
    /// Which key.
    pub key: String,
    /// What is compared, with what.
    pub target: CompareTarget,
    /// How.
    pub op: CompareOp,
}

/// What a [`Compare`] looks at, with the operand.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CompareTarget {
    /// Number of writes in this life of the key.
    Version(i64),
    /// Revision at which this life began.
    Create(i64),
    /// Revision of the last write.
    Mod(i64),
    /// The value.
    Value(String),
    /// The lease.
    Lease(i64),
}

/// How what is there is compared with the operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CompareOp {
    /// Equal.
    #[serde(rename = "=")]
    Equal,
    /// Greater than the operand.
    #[serde(rename = ">")]
    Greater,
    /// Less than the operand.
    #[serde(rename = "<")]
    Less,
    /// Not equal.
    #[serde(rename = "!=")]
    NotEqual,
}

/// About a lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LeaseAsk {
    /// Create.
    Grant {
        /// Its id.
        id: i64,
        /// Seconds to live.
        ttl: i64,
    },
    /// Live on.
    KeepAlive {
        /// Which.
        id: i64,
    },
    /// End, with all its keys.
    Revoke {
        /// Which.
        id: i64,
    },
    /// How long it has.
    Remaining {
        /// Which.
        id: i64,
    },
}

impl LeaseAsk {
    /// Which lease.
    pub const fn id(&self) -> i64 {
        match self {
            Self::Grant { id, .. } | Self::KeepAlive { id } | Self::Revoke { id } | Self::Remaining { id } => *id,
        }
    }
}

impl Ask {
    /// The key that it is about, the first one of a range; empty for transactions, leases and compactions.
    pub fn key(&self) -> &str {
        match self {
            Self::Put { key, .. } | Self::Get { key } | Self::Cas { key, .. } | Self::Delete { key } => key,
            Self::Do(Step::Put { key, .. } | Step::Delete { key, .. }) => key,
            Self::Do(Step::Range(range)) => &range.key,
            Self::Txn { .. } | Self::Lease(_) | Self::Compact { .. } => "",
        }
    }

    /// The value that it writes, if it writes exactly one whatever happens.
    pub fn value(&self) -> Option<&str> {
        match self {
            Self::Put { value, .. } | Self::Cas { value, .. } | Self::Do(Step::Put { value, .. }) => Some(value),
            _ => None,
        }
    }

    /// Whether it changes nothing under any circumstances.
    pub fn is_read_only(&self) -> bool {
        let reads = |steps: &[Step]| steps.iter().all(|step| matches!(step, Step::Range(_)));
        match self {
            Self::Get { .. } | Self::Do(Step::Range(_)) | Self::Lease(LeaseAsk::Remaining { .. }) => true,
            Self::Txn { success, failure, .. } => reads(success) && reads(failure),
            _ => false,
        }
    }
}

/// A key as an answer or an event showed it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Seen {
    /// The key.
    pub key: String,
    /// Its value; empty where only keys were asked for.
    pub value: String,
    /// Revision at which its life began.
    pub create: i64,
    /// Revision of the last write.
    pub modified: i64,
    /// Number of writes in its life.
    pub version: i64,
    /// Its lease, or 0.
    #[serde(skip_serializing_if = "is_zero")]
    pub lease: i64,
}

/// What a step answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StepAnswer {
    /// To a [`Step::Put`].
    Put {
        /// What was there before, if asked for.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        prev: Option<Seen>,
    },
    /// To a [`Step::Range`].
    Range {
        /// The results.
        kvs: Vec<Seen>,
        /// Whether the limit cut some off.
        #[serde(default, skip_serializing_if = "is_false")]
        more: bool,
        /// All keys of the range.
        count: i64,
    },
    /// To a [`Step::Delete`].
    Delete {
        /// How many.
        deleted: i64,
        /// What they were, if asked for.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        prevs: Vec<Seen>,
    },
}

/// What came back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// The write of a short form was done, at this revision.
    Written {
        /// The revision it made.
        revision: i64,
    },
    /// To a [`Ask::Get`].
    Read {
        /// The store's revision then.
        revision: i64,
        /// The key's value and mod revision, if it existed.
        found: Option<(String, i64)>,
    },
    /// The compare of a [`Ask::Cas`] was false, at this revision.
    CompareFailed {
        /// The store's revision then.
        revision: i64,
    },
    /// A deletion that found nothing.
    NothingDeleted {
        /// The store's revision then.
        revision: i64,
    },
    /// To an [`Ask::Do`].
    Did {
        /// The store's revision after it (of the answer's header).
        revision: i64,
        /// What it answered.
        step: StepAnswer,
    },
    /// To an [`Ask::Txn`].
    Txn {
        /// The store's revision after it (of the answer's header).
        revision: i64,
        /// Which branch was taken.
        succeeded: bool,
        /// The answers to its steps.
        steps: Vec<StepAnswer>,
    },
    /// To an [`Ask::Lease`]: it was granted, lives on, was revoked, or has this long.
    Lease {
        /// The store's revision then.
        revision: i64,
        /// Seconds: granted, after a keepalive, or remaining. 0 or less: there is no such lease (any more). 0 for a revocation.
        ttl: i64,
    },
    /// To an [`Ask::Compact`].
    Compacted {
        /// The store's revision then.
        revision: i64,
    },
    /// It may have happened, now or later.
    Unknown {
        /// What the client was told.
        why: String,
    },
    /// It did not happen and never will.
    Refused {
        /// What the client was told.
        why: String,
    },
}

impl Answer {
    /// The revision of the answer's header, if there was an answer.
    pub const fn revision(&self) -> Option<i64> {
        match self {
            Self::Written { revision }
            | Self::Read { revision, .. }
            | Self::CompareFailed { revision }
            | Self::NothingDeleted { revision }
            | Self::Did { revision, .. }
            | Self::Txn { revision, .. }
            | Self::Lease { revision, .. }
            | Self::Compacted { revision } => Some(*revision),
            Self::Unknown { .. } | Self::Refused { .. } => None,
        }
    }
}

/// One operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Op {
    /// Who asked. A client has one operation open at a time.
    pub client: u16,
    /// Which member was asked.
    pub member: usize,
    /// When.
    pub call: At,
    /// When the answer came. For [`Answer::Unknown`] this is when the client gave up: the operation itself has no end.
    pub ret: At,
    /// What.
    pub ask: Ask,
    /// The answer.
    pub answer: Answer,
}

/// One change of the store, as an observer saw it: the authority on the order of writes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Change {
    /// When, in the store's count. Changes of one transaction share it.
    pub revision: i64,
    /// Which key.
    pub key: String,
    /// The value; `None`: deleted.
    pub value: Option<String>,
    /// Revision at which the key's life began; 0: not recorded.
    #[serde(skip_serializing_if = "is_zero")]
    pub create: i64,
    /// Number of writes in the key's life; 0: not recorded.
    #[serde(skip_serializing_if = "is_zero")]
    pub version: i64,
    /// The key's lease, or 0.
    #[serde(skip_serializing_if = "is_zero")]
    pub lease: i64,
}

impl Change {
    /// A write of which only key and value were recorded.
    pub fn put(revision: i64, key: impl Into<String>, value: impl Into<String>) -> Self {
        Self { revision, key: key.into(), value: Some(value.into()), ..Self::default() }
    }

    /// A deletion.
    pub fn delete(revision: i64, key: impl Into<String>) -> Self {
        Self { revision, key: key.into(), ..Self::default() }
    }

    /// Whether it belongs to a Kubernetes object.
    pub fn is_registry(&self) -> bool {
        self.key.starts_with(super::REGISTRY)
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(n: &i64) -> bool {
    *n == 0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_false(b: &bool) -> bool {
    !*b
}
