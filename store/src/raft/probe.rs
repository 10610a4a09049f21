//! What consensus knows at this instant, for those who check its invariants from outside while it runs.

use bytes::Bytes;
use kontiki_base::ids::{LogIndex, LogPos, MemberId, Term};
use openraft::ServerState;
use openraft::async_runtime::WatchReceiver as _;

use super::node::RaftNode;
use super::{types, wire};
use crate::log::{Cold, LogError, LogStatus};

/// A member's state.
#[derive(Clone, Debug)]
pub struct RaftProbe {
    /// Its term.
    pub term: Term,
    /// Whether it leads.
    pub leads: bool,
    /// How far it knows the log to be committed.
    pub committed: LogPos,
    /// How far it has applied the log.
    pub applied: LogPos,
    /// Its log.
    pub log: LogStatus,
    /// Who votes.
    pub voters: Vec<MemberId>,
    /// Why it has stopped, if it has.
    pub fatal: Option<String>,
    /// Its log takes no more writes: it has failed, or the member is being shut down.
    pub stopping: bool,
}

/// An entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogProbe {
    /// Where it is.
    pub pos: LogPos,
    /// Checksum of its kind and body.
    pub sum: u32,
}

impl RaftNode {
    /// What consensus knows of itself at this instant.
    pub fn probe(&self) -> RaftProbe {
        let metrics = self.inner.raft.metrics();
        let metrics = metrics.borrow_watched();
        RaftProbe {
            term: Term::new(metrics.current_term),
            leads: metrics.state == ServerState::Leader,
            committed: types::pos_or_zero(metrics.local_committed),
            applied: *self.inner.applied.borrow(),
            log: self.inner.log.status(),
            voters: metrics.membership_config.membership().voter_ids().map(MemberId::new).collect(),
            fatal: metrics.running_state.as_ref().err().map(ToString::to_string),
            stopping: self.inner.log.has_stopped(),
        }
    }

    /// The entries of the log from `from` on, in order.
    ///
    /// # Errors
    /// The log cannot be read.
    pub fn probe_log(&self, from: LogIndex) -> Result<Vec<LogProbe>, LogError> {
        let status = self.inner.log.status();
        let from = from.max(status.purged.index.next());
        if from > status.last.index {
            return Ok(Vec::new());
        }
        let entries = match self.inner.log.read(from, status.last.index.next(), usize::MAX)? {
            Cold::Ready(entries) => entries,
            Cold::Files(cold) => cold.run()?,
        };
        Ok(entries.iter().map(|e| LogProbe { pos: e.pos, sum: crc32c::crc32c_append(e.kind.into(), &e.body) }).collect())
    }
}

/// See [`crate::inside::granted_vote`].
pub(crate) fn granted_vote(question: Bytes, answer: Bytes) -> Option<(u64, u64, bool)> {
    let question = wire::decode(question, wire::get_vote_request).ok()?;
    let answer = wire::decode(answer, wire::get_vote_response).ok()?;
    Some((question.vote.leader_id.term, question.vote.leader_id.voted_for, answer.vote_granted))
}
