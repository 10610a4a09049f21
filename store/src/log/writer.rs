//! The one writer of the log: takes what is queued, writes it as one batch, syncs once, and tells everybody.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::BytesMut;
use kontiki_base::ids::{LogIndex, LogPos};
use kontiki_base::mutant;
use kontiki_proto::trace::{self, names};

use super::record::{self, FRAME, Header, LogEntry, RECORDS_AT, Record, Vote};
use super::state::{Failure, Location, Placed, Readable, Shared};
use super::{Done, LogDisk, LogError, LogFile, LogOptions, Traced};

/// Bytes that every batch leaves free for its own end, and for the seal of the segment.
const RESERVE: usize = 2 * (FRAME + 16) + FRAME;

/// Whether an entry with a body of so many bytes fits a segment.
pub(super) fn fits(body: usize, segment_bytes: u32) -> bool {
    RECORDS_AT as usize + record::entry_size(body) + RESERVE <= segment_bytes as usize
}

/// What is to be written.
pub(super) enum What {
    Append {
        entries: Vec<LogEntry>,
        traced: Vec<Traced>,
    },
    Vote(Vote),
    Truncate(LogPos),
    Purge(LogPos),
    /// It has been written already, when there was no room for what followed it.
    Written,
    /// Nothing comes after this.
    Close,
}

/// How far the writer has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ran {
    /// Everything is answered.
    All,
    /// The log was closed.
    Closed,
    /// There is no room for what is left.
    DiskFull,
}

/// A write that is queued.
pub(super) struct Job {
    pub(super) what: What,
    pub(super) number: u64,
    pub(super) done: Done,
}

impl Job {
    pub(super) fn fail(self, failure: &Failure) {
        (self.done)(Err(failure.error()));
    }
}

/// A segment that is full.
pub(super) struct Sealed {
    pub(super) number: u64,
    /// The highest index that was ever appended in it or before it.
    pub(super) highest: LogIndex,
}

/// The segment that is written.
pub(super) struct Active {
    pub(super) number: u64,
    pub(super) file: Arc<dyn LogFile>,
    pub(super) seed: u32,
    pub(super) size: u64,
    pub(super) offset: u64,
}

/// Everything that the writer knows; recovery makes it.
pub(super) struct Writer {
    pub(super) disk: Arc<dyn LogDisk>,
    pub(super) options: LogOptions,
    pub(super) shared: Arc<Shared>,
    pub(super) active: Active,
    pub(super) sealed: VecDeque<Sealed>,
    /// The highest index appended in the active segment or before it.
    pub(super) highest: LogIndex,
    pub(super) epoch: u64,
    pub(super) vote: Option<Vote>,
    pub(super) last: LogPos,
    pub(super) purged: LogPos,
    pub(super) spares: Arc<Mutex<Vec<String>>>,
    pub(super) in_background: bool,
    /// State of a small generator of segment seeds.
    pub(super) random: u64,
    pub(super) buffer: BytesMut,
    pub(super) placed: Vec<Placed>,
    pub(super) hinted: LogPos,
    /// There was no room for a segment the last time.
    pub(super) waits_for_room: bool,
}

impl Writer {
    /// Writes all of `jobs` and answers them. If there is no room on the disk, those that are left stay there to be tried again.
    pub(super) fn run(&mut self, jobs: &mut Vec<Job>) -> Ran {
        let closed = jobs.iter().position(|job| matches!(job.what, What::Close));
        let late = closed.map(|at| jobs.split_off(at)).unwrap_or_default();
        let full = !self.run_open(jobs);
        if full && self.shared.gives_up() {
            let failure = self.shared.fail(Failure::new("the disk is full, and the member stops"));
            jobs.drain(..).for_each(|job| job.fail(&failure));
        }
        let full = full && !jobs.is_empty();
        if closed.is_none() {
            return if full { Ran::DiskFull } else { Ran::All };
        }
        if !full {
            self.close();
        }
        let failure = self.shared.fail(Failure::new("the log is closed"));
        jobs.drain(..).chain(late).for_each(|job| job.fail(&failure));
        Ran::Closed
    }

    /// Whether there was room for it.
    fn run_open(&mut self, jobs: &mut Vec<Job>) -> bool {
        if let Some(failure) = self.shared.failure() {
            jobs.drain(..).for_each(|job| job.fail(&failure));
            return true;
        }
        let spans = sync_spans(jobs);
        let written = self.write(jobs);
        drop(spans);
        match written {
            Err(LogError::Full { file }) => {
                if !std::mem::replace(&mut self.waits_for_room, true) {
                    tracing::error!(%file, "the disk is full: the raft log waits for room");
                }
                return false;
            }
            Ok(()) => {
                if std::mem::take(&mut self.waits_for_room) {
                    tracing::info!("the raft log has room again");
                }
                if let Some(last) = jobs.last() {
                    self.shared.completed(last.number);
                }
                jobs.drain(..).for_each(|job| (job.done)(Ok(())));
            }
            Err(error) => {
                // What is on disk now is not known, and asking again does not tell: the member must stop.
                let failure = self.shared.fail(Failure::new(&error.to_string()));
                jobs.drain(..).for_each(|job| job.fail(&failure));
                return true;
            }
        }
        if let Err(error) = self.retire() {
            self.shared.fail(Failure::new(&error.to_string()));
        }
        true
    }

    /// Writes the commit hint if it is not on disk yet: the next start replays more by itself.
    pub(super) fn close(&mut self) {
        let Some(vote) = self.vote else { return };
        if self.shared.failure().is_some() || self.shared.committed() == self.hinted {
            return;
        }
        let last = Record::Vote(vote);
        if let Err(error) = self.make_room(last.size()).map(|()| self.stage(&last)).and_then(|()| self.commit_batch()) {
            tracing::warn!(%error, "commit position was not written when the log closed");
        }
    }

    fn write(&mut self, jobs: &mut [Job]) -> Result<(), LogError> {
        for job in jobs {
            let record = match &mut job.what {
                What::Append { entries, .. } => {
                    self.write_entries(entries)?;
                    continue;
                }
                What::Vote(vote) => Record::Vote(*vote),
                What::Truncate(after) => mutant!("M56", Record::Truncate(*after), continue),
                What::Purge(upto) => Record::Purge(*upto),
                What::Written | What::Close => continue,
            };
            self.make_room(record.size())?;
            self.stage(&record);
            job.what = What::Written;
        }
        self.commit_batch()
    }

    /// Stages entries; those for which there is no room stay.
    fn write_entries(&mut self, entries: &mut Vec<LogEntry>) -> Result<(), LogError> {
        let (mut staged, mut room) = (0, Ok(()));
        for entry in &*entries {
            let record = Record::Entry(entry.clone());
            room = self.make_room(record.size());
            if room.is_err() {
                break;
            }
            self.stage(&record);
            staged += 1;
        }
        entries.drain(..staged);
        room
    }

    /// Rolls over to a new segment if a record does not fit the present one. If that fails for want of room, nothing has changed but that the batch
    /// so far is written.
    fn make_room(&mut self, size: usize) -> Result<(), LogError> {
        if self.active.offset as usize + self.buffer.len() + size + RESERVE > self.active.size as usize {
            self.commit_batch()?;
            self.roll()?;
        }
        Ok(())
    }

    /// Adds a record to the batch. There is [room](Self::make_room) for it.
    fn stage(&mut self, record: &Record) {
        let size = record.size();
        let offset = self.active.offset as usize + self.buffer.len();
        record.put(&mut self.buffer, self.active.seed, self.epoch + 1);
        match record {
            Record::Entry(entry) => {
                let to_u32 = |n: usize| u32::try_from(n).expect("a segment is smaller than 4 GiB");
                let segment = self.active.number as u32;
                let location = Location { segment, offset: to_u32(offset), length: to_u32(size) };
                self.placed.push(Placed::Entry(entry.pos.index, location));
                self.last = entry.pos;
                self.highest = self.highest.max(entry.pos.index);
            }
            Record::Vote(vote) => self.vote = Some(*vote),
            Record::Truncate(after) => {
                self.placed.push(Placed::Truncated(after.index));
                if after.index < self.last.index {
                    self.last = *after;
                }
            }
            Record::Purge(upto) => {
                self.placed.push(Placed::Purged(upto.index));
                if upto.index > self.purged.index {
                    self.purged = *upto;
                }
                if upto.index > self.last.index {
                    self.last = *upto;
                }
            }
            Record::End(_) | Record::Seal => {}
        }
    }

    /// Ends the batch, writes it and syncs it.
    fn commit_batch(&mut self) -> Result<(), LogError> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let committed = self.shared.committed();
        Record::End(committed).put(&mut self.buffer, self.active.seed, self.epoch + 1);
        let io = |what, number| move |source| LogError::Io { what, file: segment_name(number), source };
        let number = self.active.number;
        self.active.file.write_at(self.active.offset, &self.buffer).map_err(io("write", number))?;
        let synced = mutant!("M01", self.active.file.sync(), Ok(()));
        mutant!("M28", synced.map_err(io("sync", number))?, drop(synced));
        self.epoch += 1;
        self.hinted = committed;
        self.active.offset += self.buffer.len() as u64;
        self.shared.written(&self.placed, self.buffer.len() as u64);
        self.placed.clear();
        self.buffer.clear();
        Ok(())
    }

    /// Makes a new segment, then seals the old one: a sealed segment always has a successor that is in order.
    fn roll(&mut self) -> Result<(), LogError> {
        let next = self.active.number + 1;
        let header = Header {
            number: next,
            seed: self.next_seed(),
            // The seal takes one batch.
            epoch: self.epoch + 1,
            vote: self.vote,
            committed: self.shared.committed(),
            purged: self.purged,
            last: self.last,
        };
        let file = activate(&*self.disk, &self.options, &self.spares, &header)?;
        Record::Seal.put(&mut self.buffer, self.active.seed, self.epoch + 1);
        self.commit_batch()?;
        self.sealed.push_back(Sealed { number: self.active.number, highest: self.highest });
        let name = segment_name(next).into();
        self.shared.segment_added(next as u32, Readable { file: file.clone(), name, seed: header.seed });
        let size = u64::from(self.options.segment_bytes);
        self.active = Active { number: next, file, seed: header.seed, size, offset: RECORDS_AT };
        self.prepare_spare();
        Ok(())
    }

    /// Gives up segments that hold nothing but purged entries.
    pub(super) fn retire(&mut self) -> Result<(), LogError> {
        while let Some(oldest) = self.sealed.pop_front_if(|s| s.highest <= self.purged.index) {
            self.shared.segment_gone(oldest.number as u32);
            let name = segment_name(oldest.number);
            let mut spares = self.spares.lock().unwrap_or_else(PoisonError::into_inner);
            let full_size = self.disk.open(&name).and_then(|f| f.len()).is_ok_and(|len| len == u64::from(self.options.segment_bytes));
            if spares.len() < self.options.spares && full_size {
                let spare = spare_name(oldest.number);
                self.disk.rename(&name, &spare).map_err(|source| LogError::Io { what: "recycle", file: name, source })?;
                spares.push(spare);
            } else {
                self.disk.remove(&name).map_err(|source| LogError::Io { what: "remove", file: name, source })?;
            }
        }
        Ok(())
    }

    /// Makes one spare segment ahead of need.
    pub(super) fn prepare_spare(&mut self) {
        if !self.spares.lock().unwrap_or_else(PoisonError::into_inner).is_empty() {
            return;
        }
        let (disk, spares) = (self.disk.clone(), self.spares.clone());
        let (name, bytes) = (format!("{:016x}.new.spare", self.active.number + 1), u64::from(self.options.segment_bytes));
        let make = move || match disk.create(&name, bytes) {
            Ok(()) => spares.lock().unwrap_or_else(PoisonError::into_inner).push(name),
            // Not fatal: the writer will try itself when it needs the file, and will say so.
            Err(error) => tracing::warn!(%error, "could not prepare a log segment ahead of need"),
        };
        if !self.in_background {
            make();
        } else if let Err(error) = std::thread::Builder::new().name("raft-log-spare".into()).spawn(make) {
            tracing::warn!(%error, "could not start the thread that prepares log segments");
        }
    }

    fn next_seed(&mut self) -> u32 {
        mutant!("M55", next_seed(&mut self.random), 7)
    }
}

/// One span for each entry of the group that belongs to a trace; they all tell of the same write and sync.
fn sync_spans(jobs: &[Job]) -> Vec<tracing::Span> {
    let appends = || {
        jobs.iter().filter_map(|job| match &job.what {
            What::Append { entries, traced } => Some((entries, traced)),
            _ => None,
        })
    };
    if appends().all(|(_, traced)| traced.is_empty()) {
        return Vec::new();
    }
    let entries: usize = appends().map(|(entries, _)| entries.len()).sum();
    let bytes: usize = appends().flat_map(|(entries, _)| entries).map(|entry| record::entry_size(entry.body.len())).sum();
    let span = |(index, parent): &Traced| {
        let span = tracing::debug_span!(parent: None, names::LOG_SYNC, index = index.get(), entries, bytes);
        trace::adopt(&span, *parent);
        span
    };
    appends().flat_map(|(_, traced)| traced).map(span).collect()
}

/// SplitMix64 (Steele, Lea, Flood 2014), upper half.
pub(super) fn next_seed(state: &mut u64) -> u32 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 32) as u32
}

/// Turns a spare file, or a new one, into the segment that `header` says, durably.
pub(super) fn activate(
    disk: &dyn LogDisk,
    options: &LogOptions,
    spares: &Mutex<Vec<String>>,
    header: &Header,
) -> Result<Arc<dyn LogFile>, LogError> {
    let name = segment_name(header.number);
    let io = |what| {
        let file = name.clone();
        move |source| LogError::Io { what, file, source }
    };
    match spares.lock().unwrap_or_else(PoisonError::into_inner).pop() {
        Some(spare) => disk.rename(&spare, &name).map_err(io("rename a spare to"))?,
        None => match disk.create(&name, options.segment_bytes.into()) {
            Err(error) if is_full(&error) => return Err(LogError::Full { file: name }),
            created => created.map_err(io("create"))?,
        },
    }
    let file = disk.open(&name).map_err(io("open"))?;
    file.write_at(0, &header.encode()).map_err(io("write the head of"))?;
    file.sync().map_err(io("sync"))?;
    Ok(file)
}

/// Whether there was no room: the one error that passes by itself.
fn is_full(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)
}

pub(super) fn segment_name(number: u64) -> String {
    format!("{number:016x}.seg")
}

pub(super) fn spare_name(number: u64) -> String {
    format!("{number:016x}.spare")
}
