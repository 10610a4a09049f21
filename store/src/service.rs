//! What a member does for its clients, whatever door they come through: the gRPC services and the in-process [`Kv`](kontiki_base::kv::Kv)
//! are both thin over this.

use std::sync::Arc;
use std::time::Duration;

use kontiki_base::BoxFuture;
use kontiki_base::env::Env;
use kontiki_base::ids::{MemberId, Revision, Term};
use kontiki_base::kv::{Consistency, DeleteReq, DeleteRes, KvError, Op, PutReq, PutRes, RangeReq, RangeRes, Txn, TxnRes};
use kontiki_mvcc::{Alarm, Command, Reply, is_read_only, read_txn, validate};
use kontiki_proto::store::{MemberObservations, Replaced, Silent};
use tokio::sync::watch;

use crate::auth::Auth;
use crate::config::Bounds;
use crate::lease::Leases;
use crate::metrics::{Metrics, Sample};
use crate::propose::Proposer;
use crate::raft::{Consensus, Member, RaftStatus, Role};
use crate::read::{Reader, Views};
use crate::room::Room;
use crate::watch::{Hub, Pace, Session};

/// Changes of the membership, one member at a time.
pub trait Roster: Send + Sync + 'static {
    /// Gives a learner a vote; `ready`: only if it has nearly all of the log.
    fn promote(&self, id: MemberId, ready: bool) -> BoxFuture<'static, Result<(), KvError>>;

    /// Gives the vote of a member that is gone to a learner, and removes that member, in one change; only if the learner has nearly all of the log.
    fn replace(&self, dead: MemberId, learner: MemberId) -> BoxFuture<'static, Result<(), KvError>>;

    /// Remembers, for who asks why, that a member was replaced.
    fn replaced(&self, what: Replaced);

    /// Removes a member that has a vote.
    fn remove_voter(&self, id: MemberId) -> BoxFuture<'static, Result<(), KvError>>;

    /// The members that answer right now, this one included.
    fn reachable(&self) -> BoxFuture<'static, Vec<MemberId>>;

    /// What this member saw of elections; with `everyone`, the others, too. Second: whom it could not ask.
    fn observations(&self, everyone: bool) -> BoxFuture<'static, (Vec<MemberObservations>, Vec<Silent>)>;

    /// Removes a member that has no vote.
    fn remove_learner(&self, id: MemberId) -> BoxFuture<'static, Result<(), KvError>>;

    /// Changes a member's name and URLs.
    fn update(&self, member: Member) -> BoxFuture<'static, Result<(), KvError>>;
}

/// A member's parts, as its doors see them.
pub struct Service {
    /// The way into the log.
    pub proposer: Proposer,
    /// The way to the state.
    pub reader: Reader,
    /// Watches.
    pub hub: Arc<Hub>,
    /// Leases.
    pub leases: Arc<Leases>,
    /// Who a client is.
    pub auth: Arc<Auth>,
    /// The other members.
    pub consensus: Arc<dyn Consensus>,
    /// Who they are.
    pub roster: Arc<dyn Roster>,
    /// Consistent states.
    pub views: Arc<dyn Views>,
    /// Clock, timers, tasks, randomness.
    pub env: Arc<dyn Env>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// The longest election timeout.
    pub election: Duration,
    /// See [`StoreConfig::progress_every`](crate::config::StoreConfig::progress_every).
    pub progress_every: Duration,
    /// Quota, free disk, alarms.
    pub room: Arc<Room>,
    /// What clients may ask for at once.
    pub bounds: Bounds,
    /// The latest of `consensus.status()`.
    pub status: watch::Receiver<RaftStatus>,
}

/// Whether a transaction that only reads is content with what this member has. One of conditions alone is read linearizably, too,
/// where etcd answers from what it has.
fn reads_locally(txn: &Txn) -> bool {
    let local = |op: &Op| matches!(op, Op::Range(range) if range.consistency == Consistency::Serializable);
    let mut ops = txn.success.iter().chain(&txn.failure).peekable();
    ops.peek().is_some() && ops.all(local)
}

pub(crate) fn mismatch<T>(reply: &Reply) -> Result<T, KvError> {
    Err(KvError::Internal(format!("the state machine answered {reply:?} to another command")))
}

impl Service {
    /// What consensus says of itself now.
    pub fn raft(&self) -> RaftStatus {
        self.status.borrow().clone()
    }

    /// The latest revision that is readable here.
    pub fn revision(&self) -> Revision {
        self.hub.tip().revision
    }

    /// Reads a range.
    ///
    /// # Errors
    /// As [`Reader::range`].
    pub async fn range(&self, req: RangeReq) -> Result<RangeRes, KvError> {
        self.room.serves()?;
        self.reader.range(req).await
    }

    /// Writes a key.
    ///
    /// # Errors
    /// As [`Proposer::propose`], and what `apply` says.
    pub async fn put(&self, req: PutReq) -> Result<PutRes, KvError> {
        self.metrics.puts.inc();
        match self.proposer.propose(Command::Put(req), 0).await? {
            Reply::Put(res) => Ok(res),
            other => mismatch(&other),
        }
    }

    /// Deletes a range.
    ///
    /// # Errors
    /// As [`Proposer::propose`], and what `apply` says.
    pub async fn delete(&self, req: DeleteReq) -> Result<DeleteRes, KvError> {
        self.metrics.deletes.inc();
        match self.proposer.propose(Command::Delete(req), 0).await? {
            Reply::Delete(res) => Ok(res),
            other => mismatch(&other),
        }
    }

    /// Carries out a transaction; one that only reads does not go through the log, unless it is fenced.
    ///
    /// # Errors
    /// As [`Proposer::propose`] and [`Reader::range`], and what `apply` says.
    pub async fn txn(&self, txn: Txn, fence: Option<Term>, max_ops: usize) -> Result<TxnRes, KvError> {
        self.metrics.txns.inc();
        if fence.is_none() && is_read_only(&txn) {
            return self.read_txn(txn, max_ops).await;
        }
        match self.proposer.propose(Command::Txn { txn, fence }, max_ops).await? {
            Reply::Txn(res) => Ok(res),
            other => mismatch(&other),
        }
    }

    async fn read_txn(&self, txn: Txn, max_ops: usize) -> Result<TxnRes, KvError> {
        self.room.serves()?;
        let command = Command::Txn { txn, fence: None };
        validate(&command, max_ops)?;
        let Command::Txn { txn, .. } = command else { return Err(KvError::Internal("a transaction became something else".into())) };
        if !reads_locally(&txn) {
            self.reader.barrier().await?;
        }
        let view = self.reader.view();
        self.reader.workers().run(move || Ok(read_txn(&*view, &txn)?)).await
    }

    /// Forgets history before `revision`. With `physical`, only answers when the records are removed on this member, too.
    ///
    /// # Errors
    /// [`KvError::Compacted`] if that is gone already, [`KvError::FutureRevision`], what proposing says.
    pub async fn compact(&self, revision: Revision, physical: bool) -> Result<(), KvError> {
        match self.proposer.propose(Command::Compact { revision }, 0).await? {
            Reply::Compact if physical => self.room.board().wait_swept(revision).await,
            Reply::Compact => Ok(()),
            other => mismatch(&other),
        }
    }

    /// Raises an alarm or takes it back; the alarm, if there is one now or was one.
    ///
    /// # Errors
    /// As [`Proposer::propose`].
    pub async fn alarm(&self, raise: bool, alarm: Alarm) -> Result<Option<Alarm>, KvError> {
        match self.proposer.propose(Command::Alarm { raise, alarm }, 0).await? {
            Reply::Alarm(alarm) => Ok(alarm),
            other => mismatch(&other),
        }
    }

    /// A stream of watches.
    pub fn watch(&self, pace: Pace) -> Session {
        Session::new(Arc::clone(&self.hub), Arc::clone(&self.views), Arc::clone(&self.env), Arc::clone(&self.metrics), pace)
    }

    /// What metrics look up when they are read.
    pub fn sample(&self) -> Sample {
        let raft = self.status.borrow();
        let tip = self.hub.tip();
        Sample {
            has_leader: raft.leader.is_some(),
            is_leader: raft.role == Role::Leader,
            is_learner: raft.role == Role::Learner,
            member_id: raft.id.get(),
            committed: raft.committed.get(),
            applied: raft.applied.get(),
            size: self.views.size(),
            in_use: self.views.in_use(),
            quota: self.room.quota(),
            revision: tip.revision.get(),
            compact: tip.compact.get(),
            swept: self.room.board().swept().get(),
        }
    }
}
