//! The log in memory: its newest entries, and where the older ones are. Shared by the writer and all readers.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use kontiki_base::ids::{LogIndex, LogPos};

use super::record::{self, LogEntry, Record, Vote};
use super::{LogError, LogFile, LogStatus};

/// Why the log has stopped; the first error wins.
#[derive(Clone, Debug)]
pub(super) struct Failure(Arc<str>);

impl Failure {
    pub(super) fn new(why: &str) -> Self {
        Self(why.into())
    }

    pub(super) fn error(&self) -> LogError {
        LogError::Stopped(self.0.to_string())
    }
}

/// Where a written entry is: segment, offset and length of its record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Location {
    pub(super) segment: u32,
    pub(super) offset: u32,
    pub(super) length: u32,
}

/// A segment that can be read.
#[derive(Clone)]
pub(super) struct Readable {
    pub(super) file: Arc<dyn LogFile>,
    pub(super) name: Arc<str>,
    pub(super) seed: u32,
}

struct Cached {
    entry: LogEntry,
    /// The job that writes it. It may leave memory once that job is done.
    job: u64,
}

#[derive(Default)]
struct State {
    status: LogStatus,
    /// The newest entries without a gap, up to `status.last`. Whatever is not written is here.
    tail: VecDeque<Cached>,
    tail_bytes: usize,
    /// Where entries are, without a gap from `locations_from`, as far as the writer has come.
    locations: VecDeque<Location>,
    locations_from: u64,
    segments: BTreeMap<u32, Readable>,
    submitted: u64,
    completed: u64,
    failure: Option<Failure>,
}

pub(super) struct Shared {
    /// The member stops: a full disk is not waited for.
    gives_up: AtomicBool,
    state: Mutex<State>,
    tail_limit: usize,
}

/// A read that may have to go to the files.
pub enum Cold {
    /// Everything was in memory.
    Ready(Vec<LogEntry>),
    /// Call [`ColdRead::run`] where blocking is allowed.
    Files(ColdRead),
}

/// The part of a read that blocks.
pub struct ColdRead {
    shared_first: Box<dyn Fn() -> LogIndex + Send>,
    from: LogIndex,
    wanted: Vec<(Location, Readable)>,
    /// What was in memory and follows.
    rest: Vec<LogEntry>,
}

impl ColdRead {
    /// Reads from the files. Entries that are purged meanwhile are left out.
    pub fn run(self) -> Result<Vec<LogEntry>, LogError> {
        let mut entries = Vec::with_capacity(self.wanted.len() + self.rest.len());
        for (index, (location, segment)) in (self.from.get()..).zip(&self.wanted) {
            match read_entry(*location, segment) {
                Ok(entry) if entry.pos.index.get() == index => entries.push(entry),
                // A segment that was purged and recycled under our hands: then the entry is no longer asked for.
                _ if index < (self.shared_first)().get() => entries.clear(),
                Ok(entry) => {
                    let why = format!("found entry {:?} where {index} belongs", entry.pos);
                    return Err(LogError::Corrupt { file: segment.name.to_string(), offset: location.offset.into(), why });
                }
                Err(e) => return Err(e),
            }
        }
        entries.extend(self.rest);
        Ok(entries)
    }
}

fn read_entry(location: Location, segment: &Readable) -> Result<LogEntry, LogError> {
    let mut buffer = vec![0; location.length as usize];
    let file = || segment.name.to_string();
    segment.file.read_at(location.offset.into(), &mut buffer).map_err(|source| LogError::Io { what: "read", file: file(), source })?;
    match record::read(&Bytes::from(buffer), 0, segment.seed).map(|r| r.record) {
        Some(Record::Entry(entry)) => Ok(entry),
        _ => {
            Err(LogError::Corrupt { file: file(), offset: location.offset.into(), why: "an entry that was written cannot be read".into() })
        }
    }
}

impl Shared {
    pub(super) fn new(tail_limit: usize) -> Self {
        Self { gives_up: AtomicBool::new(false), state: Mutex::new(State { locations_from: 1, ..State::default() }), tail_limit }
    }

    pub(super) fn stop_waiting(&self) {
        self.gives_up.store(true, Ordering::Release);
    }

    pub(super) fn gives_up(&self) -> bool {
        self.gives_up.load(Ordering::Acquire)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn status(&self) -> LogStatus {
        self.lock().status
    }

    pub(super) fn failure(&self) -> Option<Failure> {
        self.lock().failure.clone()
    }

    pub(super) fn fail(&self, failure: Failure) -> Failure {
        self.lock().failure.get_or_insert(failure).clone()
    }

    // What handles do, in the order of their calls.

    pub(super) fn append(&self, entries: &[LogEntry]) -> u64 {
        let mut state = self.lock();
        state.submitted += 1;
        let job = state.submitted;
        for entry in entries {
            assert_eq!(entry.pos.index.get(), state.status.last.index.get() + 1, "the log has no gaps");
            state.status.last = entry.pos;
            state.tail_bytes += entry.body.len();
            state.tail.push_back(Cached { entry: entry.clone(), job });
        }
        job
    }

    pub(super) fn vote(&self, vote: Vote) -> u64 {
        let mut state = self.lock();
        state.status.vote = Some(vote);
        state.submitted += 1;
        state.submitted
    }

    pub(super) fn truncate(&self, after: LogPos) -> u64 {
        let mut state = self.lock();
        while let Some(cached) = state.tail.pop_back_if(|c| c.entry.pos.index > after.index) {
            state.tail_bytes -= cached.entry.body.len();
        }
        if state.status.last.index > after.index {
            state.status.last = after;
        }
        state.submitted += 1;
        state.submitted
    }

    pub(super) fn purge(&self, upto: LogPos) -> u64 {
        let mut state = self.lock();
        if upto.index > state.status.purged.index {
            state.purge_tail(upto);
            state.status.purged = upto;
            state.status.last = state.status.last.max_by_index(upto);
        }
        state.submitted += 1;
        state.submitted
    }

    pub(super) fn close(&self) -> u64 {
        let mut state = self.lock();
        state.submitted += 1;
        state.submitted
    }

    pub(super) fn hint_committed(&self, committed: LogPos) {
        let mut state = self.lock();
        state.status.committed = state.status.committed.max_by_index(committed);
    }

    pub(super) fn read(self: &Arc<Self>, from: LogIndex, to: LogIndex, max_bytes: usize) -> Result<Cold, LogError> {
        let state = self.lock();
        if let Some(failure) = &state.failure {
            return Err(failure.error());
        }
        let from = from.max(state.status.purged.index.next());
        let to = to.min(state.status.last.index.next());
        let tail_from = state.tail_from();
        let (mut wanted, mut rest, mut bytes) = (Vec::new(), Vec::new(), 0);
        for index in from.get()..to.get() {
            let size = if index >= tail_from {
                let cached = &state.tail[(index - tail_from) as usize];
                if bytes == 0 || bytes + cached.entry.body.len() <= max_bytes {
                    rest.push(cached.entry.clone());
                }
                cached.entry.body.len()
            } else {
                let location = state.locations[(index - state.locations_from) as usize];
                if bytes == 0 || bytes + location.length as usize <= max_bytes {
                    wanted.push((location, state.segments[&location.segment].clone()));
                }
                location.length as usize
            };
            bytes += size.max(1);
            if bytes > max_bytes {
                break;
            }
        }
        if wanted.is_empty() {
            return Ok(Cold::Ready(rest));
        }
        let shared = self.clone();
        let first = move || shared.status().purged.index.next();
        Ok(Cold::Files(ColdRead { shared_first: Box::new(first), from, wanted, rest }))
    }

    // What the writer does, once it is on disk.

    pub(super) fn segment_added(&self, number: u32, segment: Readable) {
        self.lock().segments.insert(number, segment);
    }

    pub(super) fn segment_gone(&self, number: u32) {
        self.lock().segments.remove(&number);
    }

    /// Takes over what a batch of records says about where entries are.
    pub(super) fn written(&self, placed: &[Placed], bytes: u64) {
        let mut state = self.lock();
        for change in placed {
            state.place(change);
        }
        state.status.written_bytes += bytes;
    }

    /// Jobs up to this one are durable: their entries may leave memory.
    pub(super) fn completed(&self, job: u64) {
        let mut state = self.lock();
        state.completed = state.completed.max(job);
        while state.tail_bytes > self.tail_limit && state.tail.len() > 1 {
            let done = state.completed;
            let Some(cached) = state.tail.pop_front_if(|c| c.job <= done) else {
                break;
            };
            state.tail_bytes -= cached.entry.body.len();
        }
    }

    /// Takes over what recovery found. Entries are read from the files as they are needed.
    pub(super) fn recovered(&self, status: LogStatus) {
        self.lock().status = status;
    }

    pub(super) fn committed(&self) -> LogPos {
        self.lock().status.committed
    }
}

/// A change of where entries are.
#[derive(Clone, Copy, Debug)]
pub(super) enum Placed {
    Entry(LogIndex, Location),
    Truncated(LogIndex),
    Purged(LogIndex),
}

impl State {
    /// The index of the first entry in memory.
    fn tail_from(&self) -> u64 {
        self.status.last.index.get() + 1 - self.tail.len() as u64
    }

    fn purge_tail(&mut self, upto: LogPos) {
        while let Some(cached) = self.tail.pop_front_if(|c| c.entry.pos.index <= upto.index) {
            self.tail_bytes -= cached.entry.body.len();
        }
    }

    fn place(&mut self, change: &Placed) {
        match *change {
            Placed::Entry(index, location) => {
                if self.locations.is_empty() {
                    self.locations_from = index.get();
                }
                assert_eq!(index.get(), self.locations_from + self.locations.len() as u64, "the writer places entries in order");
                self.locations.push_back(location);
            }
            Placed::Truncated(after) => {
                let keep = (after.get() + 1).saturating_sub(self.locations_from) as usize;
                self.locations.truncate(keep);
            }
            Placed::Purged(upto) => {
                let gone = (upto.get() + 1).saturating_sub(self.locations_from) as usize;
                self.locations.drain(..gone.min(self.locations.len()));
                self.locations_from = self.locations_from.max(upto.get() + 1);
            }
        }
    }
}

trait MaxByIndex {
    fn max_by_index(self, other: Self) -> Self;
}

impl MaxByIndex for LogPos {
    fn max_by_index(self, other: Self) -> Self {
        if other.index > self.index { other } else { self }
    }
}
