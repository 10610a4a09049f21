//! The raft log: segments of records that are synced in groups, and recycled.
//!
//! The log is the truth: votes and entries are on it before anybody is told. Everything else is a cache of it.

mod direct;
pub mod disk;
pub mod inspect;
mod meter;
mod record;
mod recover;
pub mod sim;
mod state;
#[cfg(test)]
mod suite;
mod writer;

use std::sync::Arc;

use kontiki_base::env::Env;
use kontiki_base::ids::{LogIndex, LogPos};
use kontiki_base::limits;
use kontiki_proto::trace::TraceContext;
use tokio::sync::mpsc;

pub use disk::{FsDisk, LogDisk, LogFile};
pub use meter::SyncMeter;
pub use record::{LogEntry, Vote};
pub use state::{Cold, ColdRead};
use state::{Failure, Shared};
use writer::{Job, Ran, What, Writer};

/// How the log uses the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogOptions {
    /// Bytes of a segment file. A record never spans two, so this bounds the size of an entry, too.
    pub segment_bytes: u32,
    /// Bytes of entries kept in memory; older ones are read from the files.
    pub tail_bytes: usize,
    /// Purged segments that are kept to be used again.
    pub spares: usize,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self { segment_bytes: 64 << 20, tail_bytes: kontiki_base::limits::RAFT_TAIL_BYTES, spares: 2 }
    }
}

/// A writer that finds no room on the disk looks again after this long.
const FULL_PAUSE: std::time::Duration = std::time::Duration::from_millis(200);

/// What can go wrong in the log. All of them stop the member, except that it waits while the disk is full.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The operating system failed.
    #[error("raft log: {what} {file}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which file.
        file: String,
        /// What came back.
        source: std::io::Error,
    },
    /// There is no room for another segment. Nothing is lost: what is queued is written once there is room.
    #[error("raft log: no room for {file}")]
    Full {
        /// Which file could not be made.
        file: String,
    },
    /// Records that had been synced are damaged: the medium failed. Nothing was changed; the member must be restored from the others.
    #[error("raft log is corrupt: {file} at byte {offset}: {why}. What to do: {}", crate::verify::ADVICE)]
    Corrupt {
        /// In which file.
        file: String,
        /// Where.
        offset: u64,
        /// What was found.
        why: String,
    },
    /// An entry is larger than a segment.
    #[error("an entry of {bytes} bytes does not fit a log segment of {segment} bytes")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The segment's.
        segment: u32,
    },
    /// The log has stopped because of an earlier error.
    #[error("raft log has stopped: {0}")]
    Stopped(String),
}

/// Is called when a write is durable, or has failed. Runs on the log's thread: must not block.
pub type Done = Box<dyn FnOnce(Result<(), LogError>) + Send>;

/// The index of an entry, and the span that its sync is a child of.
pub type Traced = (LogIndex, TraceContext);

/// What runs the log's writes.
#[derive(Clone)]
pub enum Runner {
    /// A thread of the operating system, so that a slow disk never holds up a worker of the async runtime.
    Thread,
    /// A task, for runtimes whose clock is simulated; every group of writes takes up to this many simulated microseconds.
    Task {
        /// The simulated world.
        env: Arc<dyn Env>,
        /// Upper bound of a sync, in microseconds.
        sync_us: u64,
    },
}

/// What the log knows of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogStatus {
    /// Everything up to here was given up.
    pub purged: LogPos,
    /// The last entry, or `purged`.
    pub last: LogPos,
    /// The vote, if there was one.
    pub vote: Option<Vote>,
    /// What is known to be committed.
    pub committed: LogPos,
    /// Bytes of records since the log began; only differences mean something.
    pub written_bytes: u64,
}

/// A handle to the log. Writes are queued in the order of the calls and readable at once; they are durable when their [`Done`] is called.
#[derive(Clone)]
pub struct Log {
    shared: Arc<Shared>,
    jobs: mpsc::Sender<Job>,
    segment_bytes: u32,
}

impl Log {
    /// Opens the log: reads all segments, cuts off a torn tail, refuses a damaged log. Blocks.
    pub fn open(disk: Arc<dyn LogDisk>, options: LogOptions, runner: Runner, random: u64) -> Result<Self, LogError> {
        Self::open_metered(disk, options, runner, random, None)
    }

    /// As [`Log::open`], with a meter for its writes.
    pub fn open_metered(
        disk: Arc<dyn LogDisk>,
        options: LogOptions,
        runner: Runner,
        random: u64,
        meter: Option<Arc<SyncMeter>>,
    ) -> Result<Self, LogError> {
        let latency = Arc::clone(&disk);
        let shared = Arc::new(Shared::new(options.tail_bytes));
        let in_background = matches!(runner, Runner::Thread);
        let writer = recover::open(disk, options.clone(), shared.clone(), random, in_background)?;
        let (jobs, queue) = mpsc::channel(limits::RAFT_LOG_QUEUE);
        match runner {
            Runner::Thread => {
                let run = move || run_thread(meter.as_deref(), writer, queue);
                let spawned = std::thread::Builder::new().name("raft-log".into()).spawn(run);
                spawned.map_err(|source| LogError::Io { what: "start the thread of", file: "the log".into(), source })?;
            }
            Runner::Task { env, sync_us } => {
                let clock = env.clone();
                env.spawn("raft.log", Box::pin(run_task(clock, sync_us, latency, meter, writer, queue)));
            }
        }
        Ok(Self { shared, jobs, segment_bytes: options.segment_bytes })
    }

    /// What the log knows of itself.
    pub fn status(&self) -> LogStatus {
        self.shared.status()
    }

    /// Whether the log takes no more writes, because one failed or because it was closed.
    pub fn has_stopped(&self) -> bool {
        self.shared.failure().is_some()
    }

    /// Whether an entry with a body of so many bytes can be appended.
    pub fn fits(&self, body: usize) -> bool {
        writer::fits(body, self.segment_bytes)
    }

    /// Appends entries, which must follow the last one. `traced` says which of them belong to a trace: their sync is a span of it.
    pub async fn append(&self, entries: Vec<LogEntry>, traced: Vec<Traced>, done: Done) {
        let too_large = entries.iter().map(|e| e.body.len()).find(|body| !writer::fits(*body, self.segment_bytes));
        if let Some(bytes) = too_large {
            return done(Err(LogError::TooLarge { bytes, segment: self.segment_bytes }));
        }
        let number = self.shared.append(&entries);
        self.submit(What::Append { entries, traced }, number, done).await;
    }

    /// Records a vote.
    pub async fn vote(&self, vote: Vote, done: Done) {
        let number = self.shared.vote(vote);
        self.submit(What::Vote(vote), number, done).await;
    }

    /// Removes all entries after `after`.
    pub async fn truncate(&self, after: LogPos, done: Done) {
        let number = self.shared.truncate(after);
        self.submit(What::Truncate(after), number, done).await;
    }

    /// Gives up all entries up to `upto`; if the log ends before, it continues there.
    pub async fn purge(&self, upto: LogPos, done: Done) {
        let number = self.shared.purge(upto);
        self.submit(What::Purge(upto), number, done).await;
    }

    /// Notes what is known to be committed. Becomes durable with the next write, which costs nothing; may be lost.
    pub fn hint_committed(&self, committed: LogPos) {
        self.shared.hint_committed(committed);
    }

    /// The entries from `from` up to and without `to` that the log has, as far as `max_bytes` reach, but at least one if there is one.
    pub fn read(&self, from: LogIndex, to: LogIndex, max_bytes: usize) -> Result<Cold, LogError> {
        self.shared.read(from, to, max_bytes)
    }

    /// The member stops: from now on writes that find no room fail instead of waiting for it.
    pub fn stop_waiting(&self) {
        self.shared.stop_waiting();
    }

    /// Ends the log once everything that was queued is written; whatever is asked for later fails. The future ends when the files are left alone.
    pub async fn close(&self) {
        let (done, closed) = tokio::sync::oneshot::channel();
        let number = self.shared.close();
        self.submit(What::Close, number, Box::new(move |_| done.send(()).unwrap_or_default())).await;
        // An error means that the writer has ended already.
        drop(closed.await);
    }

    async fn submit(&self, what: What, number: u64, done: Done) {
        let job = Job { what, number, done };
        if let Err(mpsc::error::SendError(job)) = self.jobs.send(job).await {
            job.fail(&self.shared.failure().unwrap_or_else(|| Failure::new("the log is closed")));
        }
    }
}

fn run_thread(meter: Option<&SyncMeter>, mut writer: Writer, mut queue: mpsc::Receiver<Job>) {
    let mut batch = Vec::new();
    while queue.blocking_recv_many(&mut batch, limits::RAFT_LOG_QUEUE) > 0 {
        meter.inspect(|meter| meter.begin());
        loop {
            match writer.run(&mut batch) {
                Ran::All => break,
                Ran::Closed => return,
                Ran::DiskFull => {
                    std::thread::sleep(FULL_PAUSE);
                    take_more(&mut batch, &mut queue);
                }
            }
        }
        meter.inspect(|meter| meter.end());
    }
    writer.close();
}

/// Looks whether the log is to be closed, which ends the wait for room.
fn take_more(batch: &mut Vec<Job>, queue: &mut mpsc::Receiver<Job>) {
    while batch.len() < 2 * limits::RAFT_LOG_QUEUE
        && let Ok(job) = queue.try_recv()
    {
        batch.push(job);
    }
}

async fn run_task(
    env: Arc<dyn Env>,
    sync_us: u64,
    disk: Arc<dyn LogDisk>,
    meter: Option<Arc<SyncMeter>>,
    mut writer: Writer,
    mut queue: mpsc::Receiver<Job>,
) {
    let mut batch = Vec::new();
    while queue.recv_many(&mut batch, limits::RAFT_LOG_QUEUE).await > 0 {
        let meter = meter.as_deref().inspect(|meter| meter.begin());
        let micros = env.random_u64() % (sync_us + 1);
        env.sleep(std::time::Duration::from_micros(micros) + disk.latency()).await;
        loop {
            match writer.run(&mut batch) {
                Ran::All => break,
                Ran::Closed => return,
                Ran::DiskFull => {
                    env.sleep(FULL_PAUSE).await;
                    take_more(&mut batch, &mut queue);
                }
            }
        }
        meter.inspect(|meter| meter.end());
    }
    writer.close();
}

impl From<LogError> for std::io::Error {
    fn from(e: LogError) -> Self {
        match e {
            LogError::Io { ref source, .. } => Self::new(source.kind(), e.to_string()),
            other => Self::other(other),
        }
    }
}
