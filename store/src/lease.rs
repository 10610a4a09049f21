//! Leases as clients use them, on any member: grants and revocations go through the log, keep-alives and remaining times to the leader.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use kontiki_base::BoxFuture;
use kontiki_base::env::{Env, Task};
use kontiki_base::ids::{LeaseId, Term};
use kontiki_base::kv::KvError;
use kontiki_base::mutant;
use kontiki_mvcc::auth::Who;
use kontiki_mvcc::lease as state;
use kontiki_mvcc::{Command, Reply};
use kontiki_proto::etcd::etcdserverpb as pb;
use prost::Message as _;

use crate::expiry::{LeaseClock, Remaining, Renewal};
use crate::metrics::Metrics;
use crate::propose::Proposer;
use crate::raft::{Consensus, LeaderDesk, Role};
use crate::read::Reader;

/// The leader looks for leases that have run out this often, and whenever the next one does.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// So many revocations at most are under way at once.
const REVOKING: usize = 1_000;

/// A lease's time and keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimeToLive {
    /// Its time; `None` if there is no such lease.
    pub time: Option<Remaining>,
    /// The keys that die with it, in order, if asked for.
    pub keys: Vec<Bytes>,
}

/// Leases.
pub struct Leases {
    clock: Arc<LeaseClock>,
    consensus: Arc<dyn Consensus>,
    proposer: Proposer,
    reader: Reader,
    env: Arc<dyn Env>,
    metrics: Arc<Metrics>,
    election: Duration,
    timeout: Duration,
}

/// Questions to the leader: a byte that says which, then etcd's own message.
mod question {
    pub(super) const KEEP_ALIVE: u8 = 1;
    pub(super) const TIME_TO_LIVE: u8 = 2;
}

fn encode(kind: u8, message: &impl prost::Message) -> Bytes {
    let mut bytes = Vec::with_capacity(1 + message.encoded_len());
    bytes.push(kind);
    bytes.extend_from_slice(&message.encode_to_vec());
    bytes.into()
}

fn garbled(error: &prost::DecodeError) -> KvError {
    KvError::Internal(format!("lease message between members: {error}"))
}

impl Leases {
    /// Leases over a member's parts. `election` is the longest election timeout, `timeout` that of a request.
    #[allow(clippy::too_many_arguments, reason = "called once, by the composition")]
    pub fn new(
        clock: Arc<LeaseClock>,
        consensus: Arc<dyn Consensus>,
        proposer: Proposer,
        reader: Reader,
        env: Arc<dyn Env>,
        metrics: Arc<Metrics>,
        election: Duration,
        timeout: Duration,
    ) -> Arc<Self> {
        Arc::new(Self { clock, consensus, proposer, reader, env, metrics, election, timeout })
    }

    /// The shortest time that a lease is given: one and a half election timeouts, in whole seconds, as in etcd.
    pub fn min_ttl(&self) -> i64 {
        let ms = self.election.as_millis() * 3 / 2;
        i64::try_from(ms.div_ceil(1000)).unwrap_or(i64::MAX).max(1)
    }

    /// Grants a lease; id 0 lets the store choose. Answers with its id and the seconds that it really has.
    ///
    /// # Errors
    /// [`KvError::LeaseExists`], [`KvError::LeaseTtlTooLarge`], what proposing says.
    pub async fn grant(&self, id: LeaseId, ttl: i64) -> Result<(LeaseId, i64), KvError> {
        self.grant_by(id, ttl, None).await
    }

    /// As [`Leases::grant`], for somebody who must be allowed to.
    ///
    /// # Errors
    /// As [`Leases::grant`]; [`KvError::Auth`].
    pub async fn grant_by(&self, id: LeaseId, ttl: i64, who: Option<&Who>) -> Result<(LeaseId, i64), KvError> {
        let ttl = mutant!("M67", ttl.max(self.min_ttl()), ttl.min(self.min_ttl()));
        loop {
            let chosen = if id == LeaseId::ZERO { self.random_id() } else { id };
            let command = Command::LeaseGrant { id: chosen, ttl };
            let command = who.cloned().map_or(command.clone(), |who| command.by(who));
            match self.proposer.propose(command, 0).await {
                Ok(Reply::LeaseGrant { id, ttl }) => {
                    self.metrics.leases_granted.inc();
                    return Ok((id, ttl));
                }
                Err(KvError::LeaseExists) if id == LeaseId::ZERO => {}
                Ok(other) => return Err(KvError::Internal(format!("{other:?} in answer to a grant"))),
                Err(error) => return Err(error),
            }
        }
    }

    fn random_id(&self) -> LeaseId {
        loop {
            // 63 bits, so that it is positive.
            let id = i64::try_from(self.env.random_u64() >> 1).unwrap_or(i64::MAX);
            if id != 0 {
                return LeaseId::new(id);
            }
        }
    }

    /// Revokes a lease; its keys are deleted in one revision.
    ///
    /// # Errors
    /// [`KvError::LeaseNotFound`], what proposing says.
    pub async fn revoke(&self, id: LeaseId) -> Result<(), KvError> {
        self.proposer.propose(Command::LeaseRevoke { id }, 0).await?;
        self.metrics.leases_revoked.inc();
        Ok(())
    }

    /// Gives a lease its full time again; answers with that time, or `None` if there is no such lease.
    ///
    /// # Errors
    /// What asking the leader says.
    pub async fn keep_alive(&self, id: LeaseId) -> Result<Option<i64>, KvError> {
        let question = encode(question::KEEP_ALIVE, &pb::LeaseKeepAliveRequest { id: id.get() });
        let answer = self.consensus.ask_leader(question).await?;
        let answer = pb::LeaseKeepAliveResponse::decode(answer).map_err(|error| garbled(&error))?;
        Ok((answer.ttl > 0).then_some(answer.ttl))
    }

    /// How long a lease still lives, and which keys die with it.
    ///
    /// # Errors
    /// What asking the leader says.
    pub async fn time_to_live(&self, id: LeaseId, keys: bool) -> Result<TimeToLive, KvError> {
        let question = encode(question::TIME_TO_LIVE, &pb::LeaseTimeToLiveRequest { id: id.get(), keys });
        let answer = self.consensus.ask_leader(question).await?;
        let answer = pb::LeaseTimeToLiveResponse::decode(answer).map_err(|error| garbled(&error))?;
        let time = (answer.ttl >= 0).then_some(Remaining { ttl: answer.ttl, granted: answer.granted_ttl });
        Ok(TimeToLive { time, keys: answer.keys })
    }

    /// All leases, as this member knows them: by expiry on the leader, by id elsewhere.
    ///
    /// # Errors
    /// [`KvError::Corrupt`].
    pub async fn list(&self) -> Result<Vec<LeaseId>, KvError> {
        if let Some(leases) = self.clock.by_expiry() {
            return Ok(leases);
        }
        Ok(self.read_all().await?.into_iter().map(|lease| lease.id).collect())
    }

    async fn read_all(&self) -> Result<Vec<state::Lease>, KvError> {
        let view = self.reader.view();
        let read = move || state::list(&*view).map_err(|error| KvError::Corrupt(error.to_string()));
        self.reader.workers().run(read).await
    }

    /// Starts the task that keeps the clocks while this member leads.
    pub fn run(self: &Arc<Self>) -> Task {
        let leases = Arc::clone(self);
        self.env.spawn("lease.clock", Box::pin(async move { leases.keep_time().await }))
    }

    async fn keep_time(&self) {
        let mut status = self.consensus.status();
        let mut revoking: FuturesUnordered<BoxFuture<'_, ()>> = FuturesUnordered::new();
        loop {
            self.follow(&mut status).await;
            let now = self.env.now_mono();
            let room = REVOKING.saturating_sub(revoking.len());
            if room > 0
                && let Some((term, due)) = self.clock.expired(now, room)
            {
                due.into_iter().for_each(|id| revoking.push(Box::pin(self.expire(term, id))));
            }
            let next = self.clock.next_look().map_or(LOOK_EVERY, |look| look.since(now).min(LOOK_EVERY));
            let pause = if room == 0 { LOOK_EVERY } else { next.max(Duration::from_millis(1)) };
            tokio::select! {
                biased;
                changed = status.changed() => if changed.is_err() { return },
                Some(()) = revoking.next() => {}
                () = self.env.sleep(pause) => {}
            }
        }
    }

    /// Begins or ends the clocks when leadership has changed.
    async fn follow(&self, status: &mut tokio::sync::watch::Receiver<crate::raft::RaftStatus>) {
        let (role, term) = {
            let now = status.borrow_and_update();
            (now.role, now.term)
        };
        match (role == Role::Leader, self.clock.term()) {
            (true, Some(known)) if known == term => {}
            (true, _) => {
                self.clock.begin(term);
                // A new leader may not have applied all that its predecessor acknowledged.
                let read = async {
                    self.reader.barrier().await?;
                    self.read_all().await
                };
                match read.await {
                    Ok(leases) => {
                        tracing::info!(term = term.get(), leases = leases.len(), "lease clocks started");
                        self.clock.fill(term, &leases, self.env.now_mono(), self.election);
                    }
                    Err(error) => {
                        tracing::warn!(term = term.get(), %error, "cannot read leases yet");
                        self.clock.end();
                        self.env.sleep(LOOK_EVERY / 10).await;
                    }
                }
            }
            (false, Some(_)) => self.clock.end(),
            (false, None) => {}
        }
    }

    /// Revokes a lease that ran out under `term`. If another leads by now, it keeps the time, and this is refused: see
    /// [`Command::LeaseExpire`].
    async fn expire(&self, term: Term, id: LeaseId) {
        match self.proposer.propose(Command::LeaseExpire { id, term }, 0).await {
            Ok(_) => {
                self.metrics.leases_expired.inc();
                tracing::debug!(lease = id.get(), "lease expired");
            }
            Err(KvError::LeaseNotFound | KvError::Fenced { .. }) => {}
            Err(error) => tracing::warn!(lease = id.get(), %error, "cannot revoke an expired lease yet"),
        }
    }

    /// The leader's side of [`Leases::keep_alive`].
    async fn renew(&self, id: LeaseId) -> Result<i64, KvError> {
        // Somebody else may lead by now, and may have let the lease run out.
        mutant!("M24", self.reader.barrier().await?, ());
        let deadline = self.env.now_mono().plus(self.timeout);
        loop {
            let changed = self.clock.changed();
            let now = self.env.now_mono();
            match self.clock.renew(id, now) {
                Renewal::Renewed(ttl) => {
                    self.metrics.leases_renewed.inc();
                    return Ok(ttl);
                }
                Renewal::Missing => return Ok(0),
                // Either the revocation comes through, and the answer is "missing", or leadership has gone.
                Renewal::Expired | Renewal::NotReady => {}
            }
            self.wait(changed, deadline).await?;
        }
    }

    /// The leader's side of [`Leases::time_to_live`].
    async fn remaining(&self, id: LeaseId) -> Result<Option<Remaining>, KvError> {
        self.reader.barrier().await?;
        let deadline = self.env.now_mono().plus(self.timeout);
        loop {
            let changed = self.clock.changed();
            if let Ok(remaining) = self.clock.remaining(id, self.env.now_mono()) {
                return Ok(remaining);
            }
            self.wait(changed, deadline).await?;
        }
    }

    async fn wait(&self, changed: impl Future<Output = ()>, deadline: kontiki_base::env::Mono) -> Result<(), KvError> {
        let left = deadline.since(self.env.now_mono());
        if self.consensus.status().borrow().role != Role::Leader {
            return Err(KvError::LeaderChanged);
        }
        if left.is_zero() {
            return Err(KvError::Timeout);
        }
        tokio::select! {
            biased;
            () = changed => {}
            () = self.env.sleep(left.min(LOOK_EVERY)) => {}
        }
        Ok(())
    }

    async fn answer(&self, question: Bytes) -> Result<Bytes, KvError> {
        let kind = question.first().copied();
        let body = question.slice(question.len().min(1)..);
        match kind {
            Some(question::KEEP_ALIVE) => {
                let ask = pb::LeaseKeepAliveRequest::decode(body).map_err(|error| garbled(&error))?;
                let ttl = self.renew(LeaseId::new(ask.id)).await?;
                Ok(pb::LeaseKeepAliveResponse { header: None, id: ask.id, ttl }.encode_to_vec().into())
            }
            Some(question::TIME_TO_LIVE) => {
                let ask = pb::LeaseTimeToLiveRequest::decode(body).map_err(|error| garbled(&error))?;
                let id = LeaseId::new(ask.id);
                let remaining = self.remaining(id).await?;
                let (ttl, granted_ttl) = remaining.map_or((-1, 0), |r| (r.ttl, r.granted));
                let keys = match remaining {
                    Some(_) if ask.keys => self.attached(id).await?,
                    _ => Vec::new(),
                };
                Ok(pb::LeaseTimeToLiveResponse { header: None, id: ask.id, ttl, granted_ttl, keys }.encode_to_vec().into())
            }
            _ => Err(KvError::Unimplemented("this question to the leader".into())),
        }
    }

    async fn attached(&self, id: LeaseId) -> Result<Vec<Bytes>, KvError> {
        let view = self.reader.view();
        let read = move || state::attached(&*view, id).map_err(|error| KvError::Corrupt(error.to_string()));
        self.reader.workers().run(read).await
    }
}

/// [`Leases`] at the leader's desk. Empty until the member is composed: then whoever asks is told that there is no leader here yet.
#[derive(Default)]
pub struct Desk(std::sync::OnceLock<std::sync::Weak<Leases>>);

impl Desk {
    /// Opens the desk.
    pub fn open(&self, leases: &Arc<Leases>) {
        // A desk is opened once; a second opening would change nothing.
        let _ = self.0.set(Arc::downgrade(leases));
    }
}

impl LeaderDesk for Desk {
    fn answer(&self, question: Bytes) -> BoxFuture<'static, Result<Bytes, KvError>> {
        let leases = self.0.get().and_then(std::sync::Weak::upgrade);
        Box::pin(async move {
            match leases {
                Some(leases) => leases.answer(question).await,
                None => Err(KvError::NoLeader),
            }
        })
    }
}
