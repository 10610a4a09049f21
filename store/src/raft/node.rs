//! A member: openraft with our log, engine and network, behind [`Consensus`].

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use kontiki_base::BoxFuture;
use kontiki_base::env::{Env, Mono, Task};
use kontiki_base::ids::{LogIndex, LogPos, MemberId, Term};
use kontiki_base::kv::KvError;
use kontiki_base::mutant;
use kontiki_base::net::{PeerHandler, PeerNet, PeerRpc};
use kontiki_mvcc::{Alarm, Command, Outcome};
use kontiki_proto::store::{MemberObservations, Replaced, Silent};
use kontiki_proto::trace::TraceContext;
use openraft::LinearizerOption;
use openraft::async_runtime::WatchReceiver as _;
use openraft::errors::{ClientWriteError, LinearizableReadError, RaftError};
use openraft::impls::ProgressResponder;
use tokio::sync::{oneshot, watch};

use super::barrier::Barrier;
use super::chronicle::Chronicle;
pub use super::config::{InitialMember, RaftConfig, StartError, Storage, Timings};
use super::handler::Handler;
use super::machine::{Machine, Reach};
use super::network::within;
use super::pending::{Ended, Pending};
use super::transfers::Transfers;
use super::types::{self, Proposal, TypeConfig};
use super::{Consensus, LeaderDesk, Member, RaftStatus, admin, members, rebuild, scrub, stall, upkeep};
use crate::engine::Engine;
use crate::log::Log;

pub(super) type Raft = openraft::Raft<TypeConfig, Machine>;

/// A pause before asking again, when nothing says that it would help.
const RETRY: Duration = Duration::from_millis(20);

/// A running member. Implements [`Consensus`].
pub struct RaftNode {
    pub(super) inner: Arc<Inner>,
    handler: Arc<dyn PeerHandler>,
    barrier: Barrier,
    tasks: Arc<Vec<Task>>,
}

/// What all parts of a member share.
pub(super) struct Inner {
    pub(super) id: MemberId,
    pub(super) cluster_token: String,
    pub(super) raft: Raft,
    pub(super) net: Arc<dyn PeerNet>,
    pub(super) env: Arc<dyn Env>,
    pub(super) engine: Arc<dyn Engine>,
    pub(super) log: Log,
    pub(super) pending: Arc<Pending>,
    pub(super) applied: watch::Receiver<LogPos>,
    pub(super) status: watch::Sender<RaftStatus>,
    pub(super) desk: OnceLock<Arc<dyn LeaderDesk>>,
    pub(super) timings: Timings,
    pub(super) inline: bool,
    pub(super) closing: watch::Sender<bool>,
    /// The alarms as of the last applied entry.
    pub(super) alarms: watch::Receiver<Arc<[Alarm]>>,
    /// There may be compacted history to remove.
    pub(super) sweeping: watch::Receiver<bool>,
    /// The apply thread, for who has to stop it.
    pub(super) hands: Reach,
    /// What is seen of elections.
    pub(super) chronicle: Arc<Chronicle>,
    /// Snapshots under way.
    pub(super) transfers: Arc<Transfers>,
    /// It has been told to stop, and takes on nothing new.
    pub(super) leaving: AtomicBool,
    /// Held while a member is added, so that no two get the same URLs.
    pub(super) adding: tokio::sync::Mutex<()>,
}

/// A leader and its term.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Lead {
    pub(super) term: Term,
    pub(super) id: MemberId,
    pub(super) addr: String,
}

/// What came of handing a proposal to a leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Handed {
    /// It is in the leader's log, and may come to be applied.
    Accepted,
    /// It is not in any log and never will be.
    Refused,
    /// Nobody knows.
    Unknown,
}

impl RaftNode {
    /// Opens what is stored, or makes a new member, and starts it. Returns before a leader is known.
    ///
    /// Peers' messages must be handed to [`RaftNode::handler`]. Must be called inside a tokio runtime.
    pub async fn start(config: RaftConfig) -> Result<Arc<RaftNode>, StartError> {
        let (inner, network, own, meter) = super::start::open(config).await?;
        let barrier = Barrier::start(inner.clone());
        let handler: Arc<dyn PeerHandler> = Arc::new(Handler::new(inner.clone(), network.clone()));
        let env = inner.env.clone();
        let tasks = Arc::new(vec![
            env.spawn("raft.status", Box::pin(upkeep::publish_status(inner.clone()))),
            env.spawn("raft.upkeep", Box::pin(upkeep::flush_and_purge(inner.clone()))),
            env.spawn("raft.membership", Box::pin(members::stop_when_removed(inner.clone()))),
            env.spawn("raft.unfinished", Box::pin(members::finish_changes(inner.clone()))),
            env.spawn("raft.announce", Box::pin(admin::announce(inner.clone(), own))),
            env.spawn("raft.reclaim", Box::pin(upkeep::reclaim(inner.clone()))),
            env.spawn("raft.scrub", Box::pin(scrub::run(inner.clone()))),
            env.spawn("raft.rebuild", Box::pin(rebuild::run(inner.clone(), network))),
            env.spawn("raft.stall", Box::pin(stall::run(inner.clone(), meter))),
            env.spawn("raft.chronicle", Box::pin(inner.chronicle.clone().keep_on())),
        ]);
        Ok(Arc::new(Self { inner, handler, barrier, tasks }))
    }

    /// What peers' messages are handed to.
    pub fn handler(&self) -> Arc<dyn PeerHandler> {
        self.handler.clone()
    }

    /// Who answers questions to the leader while this member leads. Until it is set they are refused; it can be set once.
    pub fn set_desk(&self, desk: Arc<dyn LeaderDesk>) {
        if self.inner.desk.set(desk).is_err() {
            tracing::warn!("the leader's desk was set twice; the first stays");
        }
    }

    /// The state machine's records, to read from.
    pub fn engine(&self) -> Arc<dyn Engine> {
        self.inner.engine.clone()
    }

    /// This member.
    pub fn id(&self) -> MemberId {
        self.inner.id
    }

    /// Removes a member that has no vote.
    pub fn remove_learner(&self, id: MemberId) -> BoxFuture<'static, Result<(), KvError>> {
        let inner = self.inner.clone();
        Box::pin(async move { admin::ask(&inner, &admin::Request::RemoveLearner(id)).await })
    }

    /// Removes a member that has a vote.
    pub fn remove_voter(&self, id: MemberId) -> BoxFuture<'static, Result<(), KvError>> {
        let inner = self.inner.clone();
        Box::pin(async move { admin::ask(&inner, &admin::Request::RemoveVoter(id)).await })
    }

    /// Gives a learner a vote; `ready`: only if it has nearly all of the log.
    pub fn promote(&self, id: MemberId, ready: bool) -> BoxFuture<'static, Result<(), KvError>> {
        let inner = self.inner.clone();
        Box::pin(async move { admin::ask(&inner, &admin::Request::Promote(id, ready)).await })
    }

    /// Gives the vote of a member that is gone to a learner that has nearly all of the log, and removes that member, in one change.
    pub fn replace(&self, dead: MemberId, learner: MemberId) -> BoxFuture<'static, Result<(), KvError>> {
        let inner = self.inner.clone();
        Box::pin(async move { admin::ask(&inner, &admin::Request::Replace { dead, learner }).await })
    }

    /// Remembers that a member was replaced.
    pub fn replaced(&self, what: Replaced) {
        self.inner.chronicle.replaced(what);
    }

    /// The members that answer this one right now, itself included.
    pub fn reachable(&self) -> BoxFuture<'static, Vec<MemberId>> {
        let inner = self.inner.clone();
        Box::pin(async move { members::reachable(&inner).await })
    }

    /// What this member saw of elections; with `everyone`, the others, too. Second: whom it could not ask.
    pub fn observations(&self, everyone: bool) -> BoxFuture<'static, (Vec<MemberObservations>, Vec<Silent>)> {
        let inner = self.inner.clone();
        Box::pin(async move { members::observations(&inner, everyone).await })
    }

    /// Changes the names and URLs of a member.
    pub fn update_member(&self, member: Member) -> BoxFuture<'static, Result<(), KvError>> {
        let inner = self.inner.clone();
        Box::pin(async move { admin::ask(&inner, &admin::Request::Update(member)).await })
    }

    /// Ends the member at once, as a crash does: nothing is flushed, nobody is told.
    pub async fn kill(&self) {
        self.inner.closing.send_replace(true);
        self.inner.engine.stop_waiting();
        self.inner.log.stop_waiting();
        self.tasks.iter().for_each(Task::abort);
        self.barrier.stop();
        drop(self.inner.raft.shutdown().await);
        self.inner.log.close().await;
    }
}

impl Drop for RaftNode {
    fn drop(&mut self) {
        self.tasks.iter().for_each(Task::abort);
        self.barrier.stop();
    }
}

impl Inner {
    pub(super) fn now(&self) -> Mono {
        self.env.now_mono()
    }

    pub(super) fn deadline(&self) -> Mono {
        self.now().plus(self.timings.request)
    }

    /// Time until `deadline`; `None` if it has passed.
    pub(super) fn left(&self, deadline: Mono) -> Option<Duration> {
        let left = deadline.since(self.now());
        (!left.is_zero()).then_some(left)
    }

    pub(super) fn stopped(&self) -> bool {
        *self.closing.borrow() || self.status.borrow().fatal.is_some()
    }

    /// The leader as far as this member knows, right now.
    pub(super) fn lead(&self) -> Option<Lead> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let id = metrics.current_leader?;
        let vote = &metrics.vote;
        if !vote.committed || vote.leader_id.voted_for != id {
            return None;
        }
        let addr = metrics.membership_config.membership().get_node(&id).map(|peer| peer.address().to_owned());
        Some(Lead { term: Term::new(vote.leader_id.term), id: MemberId::new(id), addr: addr.unwrap_or_default() })
    }

    /// Waits for a leader, but not longer than an election should take.
    pub(super) async fn wait_lead(&self, deadline: Mono) -> Result<Lead, KvError> {
        let patience = self.now().plus(self.timings.election.1 * 4);
        let mut metrics = self.raft.metrics();
        loop {
            if self.stopped() {
                return Err(KvError::Stopped);
            }
            if let Some(lead) = self.lead() {
                return Ok(lead);
            }
            let Some(left) = self.left(deadline.min(patience)) else {
                return Err(KvError::NoLeader);
            };
            if let Some(Err(_)) = within(&*self.env, left, metrics.changed()).await {
                return Err(KvError::Stopped);
            }
        }
    }

    /// Waits until this member has applied `index`.
    pub(super) async fn wait_applied(&self, index: LogIndex, deadline: Mono) -> Result<(), KvError> {
        let mut applied = self.applied.clone();
        let reached = applied.wait_for(|pos| pos.index >= index);
        let Some(left) = self.left(deadline) else { return Err(KvError::Timeout) };
        match within(&*self.env, left, reached).await {
            Some(Ok(_)) => Ok(()),
            Some(Err(_)) => Err(KvError::Stopped),
            None => Err(KvError::Timeout),
        }
    }

    /// Appends a proposal here, if this member leads in `term`, and waits until it is applied or lost.
    pub(super) async fn append(&self, term: Term, proposal: Proposal) -> Result<Handed, KvError> {
        let (responder, result) = ProgressResponder::complete_only();
        let written = self.raft.write(proposal).with_leader(term.get()).responder(responder).await;
        written.map_err(|_| KvError::Stopped)?;
        match result.await {
            Ok(Ok(_)) => Ok(Handed::Accepted),
            Ok(Err(ClientWriteError::ForwardToLeader(_))) => Ok(Handed::Refused),
            Ok(Err(_)) => Ok(Handed::Unknown),
            Err(_) => Err(KvError::Stopped),
        }
    }

    async fn hand_over(&self, lead: &Lead, proposal: Proposal) -> Result<Handed, KvError> {
        if lead.id == self.id {
            return self.append(lead.term, proposal).await;
        }
        let mut body = BytesMut::with_capacity(8 + proposal.0.len());
        body.put_u64(lead.term.get());
        body.put_slice(&proposal.0);
        match self.net.call(lead.id, &lead.addr, PeerRpc::Propose, body.freeze()).await {
            Ok(mut reply) => Ok(match reply.try_get_u8() {
                Ok(0) => Handed::Accepted,
                Ok(1) => Handed::Refused,
                _ => Handed::Unknown,
            }),
            // It may have arrived. If not, a later term will tell.
            Err(_) => Ok(Handed::Unknown),
        }
    }

    pub(super) async fn propose(&self, commands: Vec<Command>, trace: Option<TraceContext>) -> Result<Vec<Outcome>, KvError> {
        let body = Command::encode_batch(&commands);
        if !self.log.fits(types::HEAD + body.len()) {
            return Err(KvError::TooLarge);
        }
        let deadline = self.deadline();
        loop {
            let lead = self.wait_lead(deadline).await?;
            let (origin, mut outcome) = self.pending.register(lead.term);
            let _forget = Forget { pending: &self.pending, origin };
            let handed = self.hand_over(&lead, Proposal::new(origin, trace, &body));
            let both = async {
                tokio::select! {
                    biased;
                    ended = &mut outcome => return Step::Ended(ended),
                    handed = handed => match handed {
                        Ok(Handed::Refused) => return Step::Again,
                        Err(error) => return Step::Failed(error),
                        Ok(Handed::Accepted | Handed::Unknown) => {}
                    }
                }
                Step::Ended((&mut outcome).await)
            };
            let Some(left) = self.left(deadline) else { return Err(KvError::Timeout) };
            match within(&*self.env, left, both).await {
                Some(Step::Ended(Ok(Ok(outcomes)))) => return Ok(outcomes),
                // It is certain that it was not carried out: it may be tried again.
                Some(Step::Again | Step::Ended(Ok(Err(Ended::NeverApplied)))) => {}
                Some(Step::Ended(Ok(Err(Ended::Unknown)))) => mutant!("M20", return Err(KvError::LeaderChanged), ()),
                Some(Step::Ended(Err(_))) => return Err(KvError::Stopped),
                Some(Step::Failed(error)) => return Err(error),
                None => return Err(KvError::Timeout),
            }
            if self.left(deadline).is_none() {
                // Refused to the end: nobody had a quorum.
                return Err(KvError::NoLeader);
            }
            self.env.sleep(RETRY).await;
        }
    }

    /// The read index of this member, if it leads: everything that was acknowledged so far is at or before it.
    pub(super) async fn read_index(&self) -> Result<LogIndex, KvError> {
        // No age of an acknowledgement is young enough: a round of heartbeats confirms that nobody else leads.
        mutant!("M08", return Ok(self.applied.borrow().index));
        let age = mutant!("M10", Duration::ZERO, Duration::from_secs(3600));
        let option = LinearizerOption::new(Some(age), true).with_wait_timeout(self.timings.election.0);
        match self.raft.get_read_linearizer(option).await {
            Ok(linearizer) => Ok(LogIndex::new(linearizer.read_log_id().index() + 1)),
            Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(_) | LinearizableReadError::QuorumNotEnough(_))) => {
                Err(KvError::NoLeader)
            }
            Err(RaftError::Fatal(_)) => Err(KvError::Stopped),
        }
    }

    /// A read index, from here or from the leader.
    pub(super) async fn confirm(&self, deadline: Mono) -> Result<LogIndex, KvError> {
        loop {
            let lead = self.wait_lead(deadline).await?;
            let asked = if lead.id == self.id {
                self.read_index().await
            } else {
                let reply = self.net.call(lead.id, &lead.addr, PeerRpc::ReadIndex, Bytes::new()).await;
                reply.map_err(|_| KvError::NoLeader).and_then(|mut r| r.try_get_u64().map(LogIndex::new).map_err(|_| KvError::NoLeader))
            };
            match asked {
                Err(KvError::NoLeader) if self.left(deadline).is_some() => self.env.sleep(RETRY).await,
                other => return other,
            }
        }
    }
}

enum Step {
    Ended(Result<Result<Vec<Outcome>, Ended>, oneshot::error::RecvError>),
    Again,
    Failed(KvError),
}

struct Forget<'a> {
    pending: &'a Pending,
    origin: types::Origin,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.pending.forget(self.origin);
    }
}

impl Consensus for RaftNode {
    fn propose(&self, commands: Vec<Command>, trace: Option<TraceContext>) -> BoxFuture<'static, Result<Vec<Outcome>, KvError>> {
        let inner = self.inner.clone();
        Box::pin(async move { inner.propose(commands, trace).await })
    }

    fn read_barrier(&self) -> BoxFuture<'static, Result<(), KvError>> {
        self.barrier.wait()
    }

    fn status(&self) -> watch::Receiver<RaftStatus> {
        self.inner.status.subscribe()
    }

    fn ask_leader(&self, question: Bytes) -> BoxFuture<'static, Result<Bytes, KvError>> {
        let inner = self.inner.clone();
        Box::pin(async move { admin::ask_desk(&inner, question).await })
    }

    fn transfer_leader(&self, to: MemberId) -> BoxFuture<'static, Result<(), KvError>> {
        let inner = self.inner.clone();
        Box::pin(async move { admin::ask(&inner, &admin::Request::Transfer(to)).await })
    }

    fn hand_over(&self) -> BoxFuture<'static, ()> {
        let inner = self.inner.clone();
        Box::pin(async move { admin::leave(&inner).await })
    }

    fn add_learner(&self, member: Member) -> BoxFuture<'static, Result<(), KvError>> {
        let inner = self.inner.clone();
        Box::pin(async move { admin::ask(&inner, &admin::Request::AddLearner(member)).await })
    }

    fn set_voters(&self, voters: Vec<MemberId>) -> BoxFuture<'static, Result<(), KvError>> {
        let inner = self.inner.clone();
        Box::pin(async move { admin::ask(&inner, &admin::Request::SetVoters(voters)).await })
    }

    fn shutdown(&self) -> BoxFuture<'static, ()> {
        let (inner, barrier, tasks) = (self.inner.clone(), self.barrier.clone(), self.tasks.clone());
        Box::pin(async move {
            admin::leave(&inner).await;
            inner.closing.send_replace(true);
            inner.engine.stop_waiting();
            inner.log.stop_waiting();
            barrier.stop();
            tasks.iter().for_each(Task::abort);
            inner.chronicle.stopped();
            inner.chronicle.keep_now().await;
            if let Err(error) = inner.raft.shutdown().await {
                tracing::warn!(%error, "consensus did not stop cleanly");
            }
            if let Err(error) = super::machine::flush(inner.engine.clone(), inner.inline).await {
                tracing::warn!(%error, "the last flush failed; the next start replays the log");
            }
            inner.log.close().await;
        })
    }
}
