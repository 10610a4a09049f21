//! openraft's state machine: entries go to the apply thread in chunks, one engine commit each.
//!
//! The order within a chunk never changes: commit, then the watch hub, then the proposers. Whoever is answered can read what it wrote,
//! and no watcher learns of a write that a reader cannot see.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bytes::BytesMut;
use futures::{Stream, StreamExt};
use kontiki_base::LeaseId;
use kontiki_base::env::Env;
use kontiki_base::ids::{LogIndex, LogPos};
use kontiki_base::kv::Event;
use kontiki_base::limits;
use kontiki_base::mutant;
use kontiki_mvcc::auth::AuthReply;
use kontiki_mvcc::{Alarm, Batch, Command, Outcome, Overlay, Reply, View};
use kontiki_proto::trace::{self, names};
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use tokio::sync::{mpsc, oneshot, watch};

use super::pending::Pending;
use super::transfers::Transfers;
use super::types::{self, Applied, Entry, LogId, Origin, Payload, SnapshotMeta, StoredMembership, TypeConfig};
use super::{AppliedBatch, ApplySink, removed, wire};
use crate::engine::memo::{Memo, Remembered};
use crate::engine::{AppliedMark, Engine, EngineError, FULL_PAUSE};

pub(crate) type Snapshot = openraft::alias::SnapshotOf<TypeConfig, SnapshotData>;

/// What openraft passes around as a snapshot.
pub(crate) enum SnapshotData {
    /// To be sent: the engine makes a checkpoint when it is. That may be newer than the snapshot's description, never older.
    Engine(Arc<dyn Engine>),
    /// Received: files of a checkpoint.
    Files(PathBuf),
}

/// Carries out entries. Lives on one thread.
pub(crate) struct Applier {
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) sink: Arc<dyn ApplySink>,
    pub(crate) pending: Arc<Pending>,
    pub(crate) applied: watch::Sender<LogPos>,
    pub(crate) membership: StoredMembership,
    /// The alarms as of the last applied entry.
    pub(crate) alarms: watch::Sender<Arc<[Alarm]>>,
    /// There may be records that nobody can read any more.
    pub(crate) sweeping: watch::Sender<bool>,
    /// Changes that one slice of a sweep may look at.
    pub(crate) sweep_batch: usize,
    /// Entries wait until the state has been replaced.
    pub(crate) frozen: bool,
    /// What came meanwhile. openraft hands over one job and waits for its end, so there is one at most.
    pub(crate) held: VecDeque<Job>,
    /// What is known of the state by heart.
    pub(crate) memo: Memo,
}

/// Whose proposal an entry was, and what came of it.
type Answer = (Origin, Vec<Outcome>);

/// What a chunk collects before it is committed.
#[derive(Default)]
struct Chunk {
    batch: Batch,
    events: Vec<Event>,
    leases: Vec<(LeaseId, Option<i64>)>,
    auth: Vec<AuthReply>,
    answers: Vec<(LogPos, Option<Answer>)>,
    /// An alarm was raised or taken back.
    alarmed: bool,
}

/// The membership that a mark carries.
pub(crate) fn membership_of(mark: &AppliedMark) -> io::Result<StoredMembership> {
    if mark.membership.is_empty() {
        return Ok(StoredMembership::default());
    }
    wire::decode(mark.membership.clone(), wire::get_stored).map_err(|_| invalid("the stored membership cannot be read"))
}

/// The span of an entry that belongs to a trace.
fn apply_span(entry: &Entry) -> Option<tracing::Span> {
    let parent = types::trace_of(entry)?;
    let index = types::pos(entry.log_id).index.get();
    let span = tracing::debug_span!(parent: None, names::RAFT_APPLY, index, revision = tracing::field::Empty);
    trace::adopt(&span, parent);
    Some(span)
}

fn invalid(why: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.into())
}

impl Applier {
    fn apply(&mut self, mut entries: Vec<Entry>) -> io::Result<()> {
        // A state that was replaced may contain some of them.
        let contained = self.applied.borrow().index;
        entries.retain(|entry| types::pos(entry.log_id).index > contained);
        let Some(last) = entries.last().map(|e| types::pos(e.log_id)) else {
            return Ok(());
        };
        let snapshot = self.engine.snapshot();
        let memo = RefCell::new(std::mem::take(&mut self.memo));
        let view = Remembered { base: &*snapshot, memo: &memo };
        let mut chunk = Chunk::default();
        // Each ends when its entry has been answered.
        let spans: Vec<tracing::Span> = entries.iter().filter_map(apply_span).collect();
        for entry in entries {
            let at = types::pos(entry.log_id);
            let answer = match entry.payload {
                Payload::Blank => None,
                Payload::Membership(membership) => {
                    removed::note(self.membership.membership(), &membership, &mut chunk.batch);
                    self.membership = StoredMembership::new(Some(entry.log_id), membership);
                    None
                }
                Payload::Normal(proposal) => {
                    let commands = proposal.commands().map_err(|e| invalid(format!("entry {at:?}: {e}")))?;
                    Some((proposal.origin(), self.carry_out(&view, at, &commands, &mut chunk)?))
                }
            };
            chunk.answers.push((at, answer));
        }
        let now = kontiki_mvcc::current(&Overlay { base: &view, batch: &chunk.batch }).map_err(io::Error::other)?;
        drop(snapshot);
        self.memo = memo.into_inner();
        self.memo.note(&chunk.batch);
        let mark = mutant!("M11", self.mark(last), self.mark(self.engine.applied().pos));
        self.engine.commit(std::mem::take(&mut chunk.batch), mark).map_err(io::Error::other)?;
        let Chunk { events, leases, auth, answers, .. } = chunk;
        let batch = AppliedBatch { index: last.index, revision: now.revision, compact: now.compact, events, leases, auth };
        self.sink.applied(batch);
        for span in &spans {
            span.record("revision", now.revision.get());
        }
        if chunk.alarmed {
            self.tell_alarms()?;
        }
        self.applied.send_replace(last);
        for (at, answer) in answers {
            self.pending.applied(at, answer);
        }
        Ok(())
    }

    fn carry_out(&mut self, view: &dyn View, at: LogPos, commands: &[Command], chunk: &mut Chunk) -> io::Result<Vec<Outcome>> {
        let mut outcomes = Vec::with_capacity(commands.len());
        for command in commands {
            let mut outcome = kontiki_mvcc::apply(view, at, command, &mut chunk.batch).map_err(io::Error::other)?;
            // Watchers get them from the hub: who proposed wants only the reply.
            chunk.events.append(&mut outcome.events);
            match (command.inner(), &outcome.reply) {
                (_, Ok(Reply::LeaseGrant { id, ttl })) => chunk.leases.push((*id, Some(*ttl))),
                (Command::LeaseRevoke { id } | Command::LeaseExpire { id, .. }, Ok(_)) => chunk.leases.push((*id, None)),
                (Command::Compact { .. }, Ok(_)) => self.note_sweeping(true),
                (Command::Alarm { .. }, Ok(_)) => chunk.alarmed = true,
                (_, Ok(Reply::Auth(reply))) => chunk.auth.push(reply.clone()),
                _ => {}
            }
            outcomes.push(outcome);
        }
        Ok(outcomes)
    }

    fn mark(&self, pos: LogPos) -> AppliedMark {
        let mut membership = BytesMut::new();
        wire::put_stored(&mut membership, &self.membership);
        AppliedMark { pos, membership: membership.freeze() }
    }

    fn install(&mut self, meta: &SnapshotMeta, dir: &std::path::Path) -> io::Result<()> {
        let mark = self.engine.replace_from(dir).map_err(io::Error::other)?;
        if mark.pos != types::pos_or_zero(meta.last_log_id) {
            return Err(invalid(format!("a snapshot of {:?} was announced, and one of {:?} came", meta.last_log_id, mark.pos)));
        }
        self.replaced(&mark)
    }

    /// Replaces the state by one that contains as much at least, while entries wait.
    fn replace(&mut self, dir: &std::path::Path) -> io::Result<LogIndex> {
        let mark = self.engine.replace_from(dir).map_err(io::Error::other)?;
        self.replaced(&mark)?;
        Ok(mark.pos.index)
    }

    fn replaced(&mut self, mark: &AppliedMark) -> io::Result<()> {
        self.membership = mutant!("M07", membership_of(mark)?, self.membership.clone());
        self.memo.forget();
        let now = kontiki_mvcc::current(&*self.engine.snapshot()).map_err(io::Error::other)?;
        mutant!("M57", self.sink.replaced(now.revision, now.compact), ());
        self.tell_alarms()?;
        self.applied.send_replace(mark.pos);
        self.pending.jumped(mark.pos);
        self.note_sweeping(true);
        Ok(())
    }

    /// Tells whom it concerns which alarms there are.
    pub(crate) fn tell_alarms(&self) -> io::Result<()> {
        let alarms = kontiki_mvcc::alarm::list(&*self.engine.snapshot()).map_err(io::Error::other)?;
        self.sink.alarms(&alarms);
        self.alarms.send_replace(alarms.into());
        Ok(())
    }

    fn note_sweeping(&self, sweeping: bool) {
        self.sweeping.send_if_modified(|known| std::mem::replace(known, sweeping) != sweeping);
    }

    /// Removes some records that nobody can read any more. What is removed when is each member's own business.
    fn sweep(&mut self) -> io::Result<()> {
        let mut batch = Batch::default();
        let view = self.engine.snapshot();
        let progress = kontiki_mvcc::sweep(&*view, self.sweep_batch, &mut batch).map_err(io::Error::other)?;
        let compact = kontiki_mvcc::current(&*view).map_err(io::Error::other)?.compact;
        drop(view);
        if !batch.writes.is_empty() {
            self.memo.note(&batch);
            self.engine.commit(batch, self.engine.applied()).map_err(io::Error::other)?;
        }
        if progress.done {
            self.note_sweeping(false);
            self.sink.swept(compact);
        }
        Ok(())
    }

    fn job(&mut self, job: Job) {
        match job {
            Job::Apply { .. } | Job::Install { .. } if self.frozen => self.held.push_back(job),
            Job::Apply { entries, done } => drop(done.send(self.apply(entries))),
            Job::Install { meta, dir, done } => drop(done.send(self.install(&meta, &dir))),
            Job::Sweep => self.sweep_slice(),
            Job::Freeze { done } => {
                self.frozen = true;
                drop(done.send(Ok(self.applied.borrow().index)));
            }
            Job::Replace { dir, done } => drop(done.send(self.replace(&dir))),
            Job::Thaw { done } => {
                self.frozen = false;
                for held in std::mem::take(&mut self.held) {
                    self.job(held);
                }
                drop(done.send(Ok(self.applied.borrow().index)));
            }
        }
    }

    fn sweep_slice(&mut self) {
        if *self.sweeping.borrow()
            && let Err(error) = self.sweep()
        {
            self.note_sweeping(false);
            tracing::error!(%error, "removal of compacted history has stopped");
        }
    }

    fn run(mut self, mut jobs: mpsc::Receiver<Job>) {
        while let Some(job) = jobs.blocking_recv() {
            self.job(job);
        }
    }
}

/// Work for the apply thread.
pub(crate) enum Job {
    Apply {
        entries: Vec<Entry>,
        done: oneshot::Sender<io::Result<()>>,
    },
    Install {
        meta: Box<SnapshotMeta>,
        dir: PathBuf,
        done: oneshot::Sender<io::Result<()>>,
    },
    /// One slice of removing compacted history.
    Sweep,
    /// Entries and snapshots wait from now on; the last entry that was applied.
    Freeze {
        done: oneshot::Sender<io::Result<LogIndex>>,
    },
    /// Replaces the state while they wait; the last entry that the new one contains.
    Replace {
        dir: PathBuf,
        done: oneshot::Sender<io::Result<LogIndex>>,
    },
    /// They go on.
    Thaw {
        done: oneshot::Sender<io::Result<LogIndex>>,
    },
}

/// The apply thread, for those beside openraft that have to reach it. Does not keep it alive.
pub(crate) enum Reach {
    Thread(mpsc::WeakSender<Job>),
    Inline(Weak<Mutex<Applier>>),
}

impl Reach {
    async fn ask(&self, job: impl FnOnce(oneshot::Sender<io::Result<LogIndex>>) -> Job) -> io::Result<LogIndex> {
        let ended = || io::Error::other("the apply thread has ended");
        let (done, answer) = oneshot::channel();
        match self {
            Self::Thread(jobs) => {
                let jobs = jobs.upgrade().ok_or_else(ended)?;
                jobs.send(job(done)).await.map_err(|_| ended())?;
            }
            Self::Inline(applier) => lock(&*applier.upgrade().ok_or_else(ended)?).job(job(done)),
        }
        answer.await.map_err(|_| ended())?
    }

    /// Entries wait from now on; the last one that was applied.
    pub(crate) async fn freeze(&self) -> io::Result<LogIndex> {
        self.ask(|done| Job::Freeze { done }).await
    }

    /// Replaces the state, which must be frozen, by a checkpoint that contains as much at least; the last entry in it.
    pub(crate) async fn replace(&self, dir: PathBuf) -> io::Result<LogIndex> {
        self.ask(|done| Job::Replace { dir, done }).await
    }

    /// Entries go on.
    pub(crate) async fn thaw(&self) -> io::Result<LogIndex> {
        self.ask(|done| Job::Thaw { done }).await
    }
}

fn lock(applier: &Mutex<Applier>) -> MutexGuard<'_, Applier> {
    applier.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Has compacted history removed, a slice and a pause at a time.
async fn pace_sweeps(env: Arc<dyn Env>, mut sweeping: watch::Receiver<bool>, jobs: mpsc::WeakSender<Job>, pause: Duration) {
    while sweeping.wait_for(|sweeping| *sweeping).await.is_ok() {
        let Some(jobs) = jobs.upgrade() else { return };
        if jobs.send(Job::Sweep).await.is_err() {
            return;
        }
        drop(jobs);
        env.sleep(pause).await;
    }
}

enum Hands {
    Thread(mpsc::Sender<Job>),
    /// Inside the calling task, for runtimes whose clock is simulated.
    Inline(Arc<Mutex<Applier>>),
}

/// The state machine as openraft sees it.
pub(crate) struct Machine {
    engine: Arc<dyn Engine>,
    hands: Hands,
    /// Snapshots under way.
    transfers: Arc<Transfers>,
}

impl Machine {
    /// Starts the apply thread, unless everything is to run inline.
    pub(crate) fn start(
        applier: Applier,
        inline: bool,
        env: &Arc<dyn Env>,
        sweep_pause: Duration,
        transfers: Arc<Transfers>,
    ) -> io::Result<(Self, Reach)> {
        let engine = applier.engine.clone();
        if inline {
            let applier = Arc::new(Mutex::new(applier));
            let reach = Reach::Inline(Arc::downgrade(&applier));
            return Ok((Self { engine, hands: Hands::Inline(applier), transfers }, reach));
        }
        let (jobs, queue) = mpsc::channel(limits::RAFT_APPLY_QUEUE);
        let sweeps = pace_sweeps(env.clone(), applier.sweeping.subscribe(), jobs.downgrade(), sweep_pause);
        std::thread::Builder::new().name("raft-apply".into()).spawn(move || applier.run(queue))?;
        env.spawn("raft.sweep", Box::pin(sweeps));
        let reach = Reach::Thread(jobs.downgrade());
        Ok((Self { engine, hands: Hands::Thread(jobs), transfers }, reach))
    }

    async fn submit(&mut self, job: Job, done: oneshot::Receiver<io::Result<()>>) -> io::Result<()> {
        match &mut self.hands {
            Hands::Thread(jobs) => {
                jobs.send(job).await.map_err(|_| io::Error::other("the apply thread has ended"))?;
            }
            Hands::Inline(applier) => {
                let mut applier = lock(applier);
                applier.job(job);
                while *applier.sweeping.borrow() {
                    applier.sweep_slice();
                }
            }
        }
        done.await.map_err(|_| io::Error::other("the apply thread has ended"))?
    }

    fn meta(&self) -> io::Result<SnapshotMeta> {
        meta_of(&self.engine.applied())
    }
}

fn meta_of(mark: &AppliedMark) -> io::Result<SnapshotMeta> {
    Ok(SnapshotMeta { last_log_id: types::log_id(mark.pos), last_membership: membership_of(mark)? })
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        let meta = self.meta()?;
        Ok((meta.last_log_id, meta.last_membership))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + Send,
    {
        loop {
            let (mut chunk, mut responders, mut bytes, mut ended) = (Vec::new(), Vec::new(), 0, true);
            while let Some(next) = entries.next().await {
                let (entry, responder) = next?;
                if let Payload::Normal(proposal) = &entry.payload {
                    bytes += proposal.0.len();
                }
                chunk.push(entry);
                responders.extend(responder);
                if chunk.len() >= limits::RAFT_APPLY_CHUNK || bytes >= limits::RAFT_APPLY_CHUNK_BYTES {
                    ended = false;
                    break;
                }
            }
            if !chunk.is_empty() {
                let (done, result) = oneshot::channel();
                self.submit(Job::Apply { entries: chunk, done }, result).await?;
                responders.into_iter().for_each(|r| r.send(Applied));
            }
            if ended {
                return Ok(());
            }
        }
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder { engine: self.engine.clone(), inline: matches!(self.hands, Hands::Inline(_)) }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: SnapshotData) -> Result<(), io::Error> {
        match snapshot {
            // Our own state: nothing to do.
            SnapshotData::Engine(_) => Ok(()),
            SnapshotData::Files(dir) => {
                let (done, result) = oneshot::channel();
                self.submit(Job::Install { meta: Box::new(meta.clone()), dir, done }, result).await
            }
        }
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        // What is said here is what the receiver is taken to have afterwards. A transfer that broke goes on with the checkpoint of then, so no more
        // than that may be said; the entries behind it follow from the log.
        let meta = self.transfers.oldest().map_or_else(|| self.meta(), Ok)?;
        Ok(meta.last_log_id.is_some().then(|| Snapshot { meta, snapshot: SnapshotData::Engine(self.engine.clone()) }))
    }
}

/// "Builds" a snapshot by making the state durable: the log behind it may go then. Files are made only when somebody needs them.
pub(crate) struct Builder {
    engine: Arc<dyn Engine>,
    inline: bool,
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        let mark = self.engine.applied();
        flush_patiently(self.engine.clone(), self.inline).await?;
        Ok(Snapshot { meta: meta_of(&mark)?, snapshot: SnapshotData::Engine(self.engine.clone()) })
    }
}

/// Flushes the engine without blocking the calling task's thread.
pub(crate) async fn flush(engine: Arc<dyn Engine>, inline: bool) -> io::Result<LogPos> {
    blocking(inline, move || engine.flush()).await?.map_err(io::Error::from)
}

/// The same; on a full disk it waits for room.
async fn flush_patiently(engine: Arc<dyn Engine>, inline: bool) -> io::Result<LogPos> {
    let flush = move || loop {
        match engine.flush() {
            Err(EngineError::Full { .. }) if !inline && engine.waits() => std::thread::sleep(FULL_PAUSE),
            other => return other,
        }
    };
    blocking(inline, flush).await?.map_err(io::Error::from)
}

/// Runs something that blocks where that is allowed.
pub(crate) async fn blocking<T: Send + 'static>(inline: bool, work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    if inline { Ok(work()) } else { tokio::task::spawn_blocking(work).await.map_err(io::Error::other) }
}
