//! Everything that a Raft entry can carry, and what comes of it.

use crate::alarm::Alarm;
use kontiki_base::ids::{LeaseId, Revision, Term};
use kontiki_base::kv::{DeleteReq, DeleteRes, Event, KvError, PutReq, PutRes, Txn, TxnRes};

use crate::auth::{AuthCommand, AuthReply, Who};

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
    /// Revoke a lease and delete its keys: its client says so.
    LeaseRevoke {
        /// Which.
        id: LeaseId,
    },
    /// Revoke a lease because its time is over: the leader says so. Only under that very term, since a later leader may have given the
    /// lease more time.
    LeaseExpire {
        /// Which.
        id: LeaseId,
        /// The term of the leader that kept the time.
        term: Term,
    },
    /// Forget history before a revision.
    Compact {
        /// History is kept from here on.
        revision: Revision,
    },
    /// Raise an alarm, or take it back.
    Alarm {
        /// Raise it; else take it back.
        raise: bool,
        /// Which.
        alarm: Alarm,
    },
    /// Change users or roles.
    Auth(AuthCommand),
    /// A command that somebody from outside asks for: carried out if they may. Never within another.
    As {
        /// Who.
        who: Who,
        /// What.
        command: Box<Command>,
    },
}

impl Command {
    /// This command, asked for by somebody.
    #[must_use]
    pub fn by(self, who: Who) -> Self {
        Self::As { who, command: Box::new(self) }
    }

    /// The command itself, whoever asks for it.
    pub fn inner(&self) -> &Self {
        match self {
            Self::As { command, .. } => command,
            command => command,
        }
    }
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
    /// To [`Command::LeaseRevoke`] and [`Command::LeaseExpire`].
    LeaseRevoke,
    /// To [`Command::Compact`].
    Compact,
    /// To [`Command::Alarm`]: the alarm as it stands, or as it stood before it was taken back; nothing if there was none to take back.
    Alarm(Option<Alarm>),
    /// To [`Command::Auth`].
    Auth(AuthReply),
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
