//! Everything that a Raft entry can carry, and what comes of it.

use kontiki_base::ids::{LeaseId, Revision, Term};
use kontiki_base::kv::{DeleteReq, DeleteRes, Event, KvError, PutReq, PutRes, Txn, TxnRes};

/// A command. Encoding on the log and the wire: [`Command::encode`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Write one key.
    Put(PutReq),
    /// Delete a range of keys.
    Delete(DeleteReq),
    /// A transaction; with a fence, only under that very term.
    Txn {
        /// The transaction.
        txn: Txn,
        /// The term under which it must be appended.
        fence: Option<Term>,
    },
    /// Grant a lease. The proposer has chosen the id: randomness never enters `apply`.
    LeaseGrant {
        /// Its id, not 0.
        id: LeaseId,
        /// Seconds to live.
        ttl: i64,
    },
    /// Revoke a lease and delete its keys; also what the leader proposes when one has expired.
    LeaseRevoke {
        /// Which.
        id: LeaseId,
    },
    /// Forget history before a revision.
    Compact {
        /// History is kept from here on.
        revision: Revision,
    },
}

/// What a command answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// To [`Command::Put`].
    Put(PutRes),
    /// To [`Command::Delete`].
    Delete(DeleteRes),
    /// To [`Command::Txn`].
    Txn(TxnRes),
    /// To [`Command::LeaseGrant`].
    LeaseGrant {
        /// The lease.
        id: LeaseId,
        /// Seconds to live.
        ttl: i64,
    },
    /// To [`Command::LeaseRevoke`].
    LeaseRevoke,
    /// To [`Command::Compact`].
    Compact,
}

/// What came of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// What the client is told.
    pub reply: Result<Reply, KvError>,
    /// What the watchers are told, in order of sub-revision. All at `revision`, and without `prev`: see [`previous`](crate::previous).
    pub events: Vec<Event>,
    /// The store's revision after it.
    pub revision: Revision,
}
