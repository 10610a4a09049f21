//! What clients saw: every operation with its times, and what it answered.

use serde::Serialize;

/// Nanoseconds on the machine's monotonic clock since the run began: one clock for all clients.
pub type At = u64;

/// What a client asked for. Every value that is written in a run is unique.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ask {
    /// Write.
    Put {
        /// Which key.
        key: String,
        /// What.
        value: String,
    },
    /// Linearizable read.
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
    /// Delete.
    Delete {
        /// Which key.
        key: String,
    },
}

impl Ask {
    /// The key.
    pub fn key(&self) -> &str {
        match self {
            Self::Put { key, .. } | Self::Get { key } | Self::Cas { key, .. } | Self::Delete { key } => key,
        }
    }

    /// The value that it writes, if it writes one.
    pub fn value(&self) -> Option<&str> {
        match self {
            Self::Put { value, .. } | Self::Cas { value, .. } => Some(value),
            Self::Get { .. } | Self::Delete { .. } => None,
        }
    }
}

/// What came back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// The write was done, at this revision.
    Written {
        /// The revision it made.
        revision: i64,
    },
    /// A read, or a write that by its own rule changed nothing, at this revision.
    Read {
        /// The store's revision then.
        revision: i64,
        /// The key's value and mod revision, if it existed. For a failed compare: what was not compared equal is not known, so `None`.
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

/// One operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Op {
    /// Who asked.
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

/// One change of the store, as the store itself tells it at the end: the authority on the order of writes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Change {
    /// When, in the store's count.
    pub revision: i64,
    /// Which key.
    pub key: String,
    /// The value; `None`: deleted.
    pub value: Option<String>,
}

/// Everything that a run recorded.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// All operations, in any order.
    pub ops: Vec<Op>,
    /// All changes of the watched keys, from the first revision of the run on.
    pub changes: Vec<Change>,
}
