//! Consensus, behind one trait: the rest of the store does not know openraft.
//!
//! | file | what |
//! |---|---|
//! | [`node`] | the member: proposals, leaders, read indexes |
//! | `config`, `start` | how a member is made, and opened: identity, lost logs, the first membership |
//! | `barrier` | reads in batches: one confirmation serves all that wait |
//! | `pending` | proposals of this member until they are applied, or known to be lost |
//! | `machine` | the apply thread: commit, then watchers, then proposers |
//! | `storage` | openraft's log on [`crate::log`] |
//! | `network`, `handler`, `wire`, `snapshot` | the other members: out, in, as bytes, and whole states |
//! | `transfers` | what is kept of snapshots whose transfer broke |
//! | `admin` | what only the leader can do, asked from anywhere |
//! | `members` | changes of the membership one after the other; what a removed member does |
//! | `upkeep` | status, flushes, purges, space |
//! | `scrub`, `rebuild` | members compare what they have; who differs is rebuilt |
//! | `identity`, `removed` | who a member is, and who never comes back |
//! | `stall` | a leader with a slow disk hands over |
//! | `chronicle` | what a member sees of elections, and why it stood |
//! | [`probe`] | what consensus knows at an instant, for those who check it |
//! | [`types`], [`runtime`] | what openraft is instantiated with |
//!
//! What holds: nothing is acknowledged before a quorum has synced it; a proposal is bound to the term of the leader that it was given to,
//! so it is carried out once or never, however often it is tried; an idle cluster appends nothing; the log goes only behind what the
//! engine has flushed; a member that has lost its vote is refused.

mod admin;
mod barrier;
mod chronicle;
mod config;
pub mod found;
mod handler;
mod identity;
mod machine;
mod members;
mod network;
pub mod node;
mod pending;
pub mod probe;
mod rebuild;
mod removed;
pub mod runtime;
mod scrub;
mod snapshot;
mod stall;
mod start;
mod storage;
mod suspect;
#[cfg(test)]
mod tests;
mod transfers;
pub mod types;
mod upkeep;
mod wire;

pub use config::{InitialMember, RaftConfig, StartError, Storage, Timings};
pub use identity::{cluster_id, member_id};
pub use node::RaftNode;

use kontiki_base::BoxFuture;
use kontiki_base::ids::{LogIndex, MemberId, Revision, Term};
use kontiki_base::kv::{Event, KvError};
use kontiki_mvcc::{Alarm, Command, Outcome};
use kontiki_proto::trace::TraceContext;
use tokio::sync::watch;

/// The part a member plays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// Follows a leader, or waits for one.
    #[default]
    Follower,
    /// Asks to be leader.
    Candidate,
    /// Leads.
    Leader,
    /// Receives the log, has no vote.
    Learner,
}

/// A member as the cluster's membership lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its id.
    pub id: MemberId,
    /// Its name.
    pub name: String,
    /// Where peers reach it: `http(s)://host:port`.
    pub peer_urls: Vec<String>,
    /// Where clients reach it.
    pub client_urls: Vec<String>,
    /// Whether it has no vote.
    pub learner: bool,
}

/// What consensus says of itself. Latest wins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RaftStatus {
    /// This member.
    pub id: MemberId,
    /// Identifies the cluster.
    pub cluster_id: u64,
    /// Its term.
    pub term: Term,
    /// Its part.
    pub role: Role,
    /// The leader, if known.
    pub leader: Option<MemberId>,
    /// The last entry of its log.
    pub last_index: LogIndex,
    /// The last entry that a quorum has.
    pub committed: LogIndex,
    /// The last entry applied here.
    pub applied: LogIndex,
    /// The cluster.
    pub members: Vec<Member>,
    /// For a leader: how far each follower's log matches, by member.
    pub matched: Vec<(MemberId, LogIndex)>,
    /// Why the member has stopped, if it has.
    pub fatal: Option<String>,
}

impl RaftStatus {
    /// The term in which this member leads, if it does.
    pub fn led(&self) -> Option<Term> {
        (self.role == Role::Leader).then_some(self.term)
    }
}

/// What one write batch of `apply` did; goes to the watch hub in order, once.
#[derive(Clone, Debug)]
pub struct AppliedBatch {
    /// The last entry of the batch.
    pub index: LogIndex,
    /// The store's revision after it.
    pub revision: Revision,
    /// The compact revision after it.
    pub compact: Revision,
    /// All events, in order; `events[i].kv.mod_revision` says at which revision.
    pub events: Vec<Event>,
    /// Leases that the batch granted (with seconds to live) or revoked (`None`).
    pub leases: Vec<(kontiki_base::LeaseId, Option<i64>)>,
    /// What the batch did to users and tokens.
    pub auth: Vec<kontiki_mvcc::auth::AuthReply>,
}

/// Is told of every applied batch, on the apply thread: must not block.
pub trait ApplySink: Send + Sync + 'static {
    /// Called after the batch is readable, before its proposers are answered.
    fn applied(&self, batch: AppliedBatch);

    /// The whole state was replaced (a snapshot came in): revision and compact revision now.
    fn replaced(&self, revision: Revision, compact: Revision);

    /// The alarms are these now. Called before who raised one, or took one back, is answered.
    fn alarms(&self, _now: &[Alarm]) {}

    /// The records that a compaction at this revision frees have been removed here.
    fn swept(&self, _compact: Revision) {}
}

/// What the rest of the store may ask of consensus. Every future ends within the request timeout.
pub trait Consensus: Send + Sync + 'static {
    /// Appends the commands as one entry, on this member or through the leader, and answers with their outcomes once this member has
    /// applied them. A lost leader gives [`KvError::LeaderChanged`] or [`KvError::Timeout`]: then they may have been carried out.
    ///
    /// The entry carries `trace` to all members: what they do for it are children of that span.
    fn propose(&self, commands: Vec<Command>, trace: Option<TraceContext>) -> BoxFuture<'static, Result<Vec<Outcome>, KvError>>;

    /// Completes when this member has applied everything that was acknowledged before the call (read index).
    fn read_barrier(&self) -> BoxFuture<'static, Result<(), KvError>>;

    /// The latest status.
    fn status(&self) -> watch::Receiver<RaftStatus>;

    /// Asks the leader's [`LeaderDesk`] a question; on the leader itself that is a local call.
    fn ask_leader(&self, question: bytes::Bytes) -> BoxFuture<'static, Result<bytes::Bytes, KvError>>;

    /// Hands leadership to a voter.
    fn transfer_leader(&self, to: MemberId) -> BoxFuture<'static, Result<(), KvError>>;

    /// If this member leads, hands leadership to the voter that has the most of its log, and waits a little until it has it.
    fn hand_over(&self) -> BoxFuture<'static, ()> {
        Box::pin(async {})
    }

    /// Adds a member as learner. With id 0 the leader gives it a new one, which it learns by its peer URLs when it starts.
    fn add_learner(&self, member: Member) -> BoxFuture<'static, Result<(), KvError>>;

    /// Makes the voters exactly these.
    fn set_voters(&self, voters: Vec<MemberId>) -> BoxFuture<'static, Result<(), KvError>>;

    /// Stops the member: waits for what is under way, then flushes and closes.
    fn shutdown(&self) -> BoxFuture<'static, ()>;
}

/// Answers questions that only the leader can answer, such as lease keep-alives.
pub trait LeaderDesk: Send + Sync + 'static {
    /// Answers one question. Is called only while this member leads.
    fn answer(&self, question: bytes::Bytes) -> BoxFuture<'static, Result<bytes::Bytes, KvError>>;
}
