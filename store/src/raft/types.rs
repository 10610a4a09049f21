//! The types that openraft is instantiated with, and how they map to ours.
//!
//! openraft numbers entries from 0 and says "no entry" with `None`; we number them from 1 and 0 is "no entry". The mapping is here and
//! nowhere else.

use std::fmt;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use kontiki_base::ids::{LogIndex, LogPos, MemberId, Term};
use kontiki_mvcc::{Command, DecodeError};
use kontiki_proto::trace::TraceContext;
use openraft::impls::leader_id_std::LeaderId;

use super::Member;
use crate::log::LogEntry;

openraft::declare_raft_types!(
    /// Our instance of openraft.
    pub TypeConfig:
        D = Proposal,
        R = Applied,
        NodeId = u64,
        Node = Peer,
        LeaderId = LeaderId<u64, u64>,
        AsyncRuntime = super::runtime::Runtime,
);

pub(crate) type LogId = openraft::alias::LogIdOf<TypeConfig>;
pub(crate) type Entry = openraft::alias::EntryOf<TypeConfig>;
pub(crate) type Vote = openraft::alias::VoteOf<TypeConfig>;
pub(crate) type Payload = openraft::EntryPayload<Proposal, u64, Peer>;
pub(crate) type Membership = openraft::Membership<u64, Peer>;
pub(crate) type StoredMembership = openraft::alias::StoredMembershipOf<TypeConfig>;
pub(crate) type SnapshotMeta = openraft::alias::SnapshotMetaOf<TypeConfig>;

/// Who proposed an entry, and which of its proposals it is: what it is answered by once it is applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The member.
    pub member: MemberId,
    /// Drawn anew at every start of the member.
    pub boot: u64,
    /// Counts up.
    pub seq: u64,
}

/// Commands with their origin, encoded: the same bytes are sent, logged and applied.
///
/// The origin; then, if somebody records the trace that the commands belong to, [`TRACED`] and the context of the span that proposed
/// them; then the commands, which begin with the version of their own format. That is a number below 128: so the byte after the origin
/// tells whether there is a trace, and a proposal without one has no byte for it.
#[derive(Clone, PartialEq, Eq)]
pub struct Proposal(pub(crate) Bytes);

/// Bytes of an encoded [`Origin`].
const ORIGIN: usize = 24;

/// Says that a trace context follows. Numbers from 128 on are parts of the head: this is the first, on disk, and never reused.
const TRACED: u8 = 0x80;

/// The most bytes that stand before the commands.
pub(crate) const HEAD: usize = ORIGIN + 1 + TraceContext::BYTES;

impl Proposal {
    /// Encodes commands.
    pub fn new(origin: Origin, trace: Option<TraceContext>, commands: &Bytes) -> Self {
        let mut out = BytesMut::with_capacity(HEAD + commands.len());
        out.put_u64(origin.member.get());
        out.put_u64(origin.boot);
        out.put_u64(origin.seq);
        if let Some(trace) = trace {
            out.put_u8(TRACED);
            out.put_slice(&trace.encode());
        }
        out.put_slice(commands);
        Self(out.freeze())
    }

    /// From bytes; `None` if they are no head of a proposal.
    pub fn from_bytes(bytes: Bytes) -> Option<Self> {
        let proposal = (bytes.len() >= ORIGIN).then_some(Self(bytes))?;
        (!proposal.is_traced() || proposal.trace().is_some()).then_some(proposal)
    }

    fn is_traced(&self) -> bool {
        self.0.get(ORIGIN) == Some(&TRACED)
    }

    /// The span that proposed it, if somebody records it.
    pub fn trace(&self) -> Option<TraceContext> {
        if !self.is_traced() {
            return None;
        }
        TraceContext::decode(self.0.get(ORIGIN + 1..HEAD)?.try_into().ok()?)
    }

    /// Who proposed it.
    pub fn origin(&self) -> Origin {
        let mut head = &self.0[..ORIGIN];
        Origin { member: MemberId::new(head.get_u64()), boot: head.get_u64(), seq: head.get_u64() }
    }

    /// What is proposed.
    pub fn commands(&self) -> Result<Vec<Command>, DecodeError> {
        let head = if self.is_traced() { HEAD } else { ORIGIN };
        Command::decode_batch(self.0.slice(head..))
    }
}

impl fmt::Debug for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proposal({:?}, {} bytes)", self.origin(), self.0.len())
    }
}

impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What openraft is told when an entry was applied. The outcome itself goes to the proposer directly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Applied;

/// A member, as the membership stores it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    /// Its name.
    pub name: String,
    /// Where peers reach it.
    pub peer_urls: Vec<String>,
    /// Where clients reach it.
    pub client_urls: Vec<String>,
    /// Whether it has ever run as a member. One that has, and comes back with nothing, has lost its vote and must not take part.
    pub started: bool,
}

impl Peer {
    pub(crate) fn member(&self, id: u64, learner: bool) -> Member {
        Member {
            id: MemberId::new(id),
            name: self.name.clone(),
            peer_urls: self.peer_urls.clone(),
            client_urls: self.client_urls.clone(),
            learner,
        }
    }

    /// The address that peers call.
    pub(crate) fn address(&self) -> &str {
        self.peer_urls.first().map_or("", String::as_str)
    }
}

/// All members of a membership.
pub(crate) fn members(membership: &Membership) -> Vec<Member> {
    let voters: std::collections::BTreeSet<u64> = membership.voter_ids().collect();
    membership.nodes().map(|(id, peer)| peer.member(*id, !voters.contains(id))).collect()
}

/// Our position of an openraft log id.
pub(crate) fn pos(id: LogId) -> LogPos {
    LogPos { term: Term::new(id.leader_id.term), index: LogIndex::new(id.index + 1) }
}

/// Our position of an optional log id: zero for none.
pub(crate) fn pos_or_zero(id: Option<LogId>) -> LogPos {
    id.map(pos).unwrap_or_default()
}

/// openraft's log id of our position.
pub(crate) fn log_id(pos: LogPos) -> Option<LogId> {
    let index = pos.index.get().checked_sub(1)?;
    Some(LogId::new_term_index(pos.term.get(), index))
}

/// The span that proposed an entry, if somebody records it.
pub(crate) fn trace_of(entry: &Entry) -> Option<TraceContext> {
    match &entry.payload {
        Payload::Normal(proposal) => proposal.trace(),
        Payload::Blank | Payload::Membership(_) => None,
    }
}

const BLANK: u8 = 0;
const PROPOSAL: u8 = 1;
const MEMBERSHIP: u8 = 2;

/// An entry as the log and the wire have it.
pub(crate) fn to_log(entry: Entry) -> LogEntry {
    let pos = pos(entry.log_id);
    match entry.payload {
        Payload::Blank => LogEntry { pos, kind: BLANK, body: Bytes::new() },
        Payload::Normal(proposal) => LogEntry { pos, kind: PROPOSAL, body: proposal.0 },
        Payload::Membership(membership) => {
            let mut body = BytesMut::new();
            super::wire::put_membership(&mut body, &membership);
            LogEntry { pos, kind: MEMBERSHIP, body: body.freeze() }
        }
    }
}

/// The entry of a log record; `None` if it makes no sense.
pub(crate) fn from_log(entry: LogEntry) -> Option<Entry> {
    let payload = match entry.kind {
        BLANK => Payload::Blank,
        PROPOSAL => Payload::Normal(Proposal::from_bytes(entry.body)?),
        MEMBERSHIP => Payload::Membership(super::wire::get_membership(&mut entry.body.clone())?),
        _ => return None,
    };
    Some(Entry { log_id: log_id(entry.pos)?, payload })
}

pub(crate) fn vote_to_log(vote: &Vote) -> crate::log::Vote {
    crate::log::Vote { term: Term::new(vote.leader_id.term), member: MemberId::new(vote.leader_id.voted_for), committed: vote.committed }
}

pub(crate) fn vote_from_log(vote: crate::log::Vote) -> Vote {
    let leader_id = LeaderId { term: vote.term.get(), voted_for: vote.member.get() };
    Vote { leader_id, committed: vote.committed }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proposal_has_a_trace_or_not_a_byte_for_it() {
        let origin = Origin { member: MemberId::new(1), boot: 2, seq: 3 };
        let commands = Command::encode_batch(&[Command::LeaseRevoke { id: kontiki_base::LeaseId::new(7) }]);
        let decoded = Command::decode_batch(commands.clone()).unwrap();
        let trace = TraceContext::new([0xab; 16], [0xcd; 8], 1).unwrap();
        for (trace, head) in [(None, ORIGIN), (Some(trace), HEAD)] {
            let proposal = Proposal::new(origin, trace, &commands);
            assert_eq!(proposal.0.len(), head + commands.len());
            let back = Proposal::from_bytes(proposal.0.clone()).unwrap();
            assert_eq!((back.origin(), back.trace(), back.commands().unwrap()), (origin, trace, decoded.clone()));
        }
        assert!(commands[0] < TRACED, "the format of commands has come to mean something else here");
    }

    #[test]
    fn a_damaged_head_is_refused() {
        let whole =
            Proposal::new(Origin { member: MemberId::new(1), boot: 2, seq: 3 }, TraceContext::new([1; 16], [2; 8], 1), &Bytes::new());
        assert!(Proposal::from_bytes(whole.0.clone()).is_some());
        for len in (0..ORIGIN).chain(ORIGIN + 1..HEAD) {
            assert_eq!(Proposal::from_bytes(whole.0.slice(..len)), None, "{len} bytes");
        }
        let mut zero = BytesMut::from(&whole.0[..]);
        zero[ORIGIN + 1..ORIGIN + 17].fill(0);
        assert_eq!(Proposal::from_bytes(zero.freeze()), None, "a trace id of zeros");
    }
}
