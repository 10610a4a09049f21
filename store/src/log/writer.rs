//! The one writer of the log: takes what is queued, writes it as one batch, syncs once, and tells everybody.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::BytesMut;
use kontiki_base::ids::{LogIndex, LogPos};
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
    /// Nothing comes after this.
    Close,
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
}

impl Writer {
    /// Writes all of `jobs` and answers them. Breaks if the log was closed.
    pub(super) fn run(&mut self, jobs: &mut Vec<Job>) -> ControlFlow<()> {
        let closed = jobs.iter().position(|job| matches!(job.what, What::Close));
        let late = closed.map(|at| jobs.split_off(at)).unwrap_or_default();
        self.run_open(jobs);
        if closed.is_none() {
            return ControlFlow::Continue(());
        }
        self.close();
        let failure = self.shared.fail(Failure::new("the log is closed"));
        late.into_iter().for_each(|job| job.fail(&failure));
        ControlFlow::Break(())
    }

    fn run_open(&mut self, jobs: &mut Vec<Job>) {
        if let Some(failure) = self.shared.failure() {
            return jobs.drain(..).for_each(|job| job.fail(&failure));
        }
        let spans = sync_spans(jobs);
        let written = self.write(jobs);
        drop(spans);
        match written {
            Ok(()) => {
                if let Some(last) = jobs.last() {
                    self.shared.completed(last.number);
                }
                jobs.drain(..).for_each(|job| (job.done)(Ok(())));
            }
            Err(error) => {
                // What is on disk now is not known, and asking again does not tell: the member must stop.
                let failure = self.shared.fail(Failure::new(&error.to_string()));
                jobs.drain(..).for_each(|job| job.fail(&failure));
                return;
            }
        }
        if let Err(error) = self.retire() {
            self.shared.fail(Failure::new(&error.to_string()));
        }
    }

    /// Writes the commit hint if it is not on disk yet: the next start replays more by itself.
    pub(super) fn close(&mut self) {
        let Some(vote) = self.vote else { return };
        if self.shared.failure().is_some() || self.shared.committed() == self.hinted {
            return;
        }
        if let Err(error) = self.stage(&Record::Vote(vote)).and_then(|()| self.commit_batch()) {
            tracing::warn!(%error, "commit position was not written when the log closed");
        }
    }

    fn write(&mut self, jobs: &mut [Job]) -> Result<(), LogError> {
        for job in jobs {
            match &mut job.what {
                What::Append { entries, .. } => {
                    for entry in entries.drain(..) {
                        self.stage(&Record::Entry(entry))?;
                    }
                }
                What::Vote(vote) => self.stage(&Record::Vote(*vote))?,
                What::Truncate(after) => self.stage(&Record::Truncate(*after))?,
                What::Purge(upto) => self.stage(&Record::Purge(*upto))?,
                What::Close => {}
            }
        }
        self.commit_batch()
    }

    /// Adds a record to the batch; rolls over to a new segment if it does not fit.
    fn stage(&mut self, record: &Record) -> Result<(), LogError> {
        let size = record.size();
        if self.active.offset as usize + self.buffer.len() + size + RESERVE > self.active.size as usize {
            self.commit_batch()?;
            self.roll()?;
        }
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
        Ok(())
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
        self.active.file.sync().map_err(io("sync", number))?;
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
        next_seed(&mut self.random)
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
        None => disk.create(&name, options.segment_bytes.into()).map_err(io("create"))?,
    }
    let file = disk.open(&name).map_err(io("open"))?;
    file.write_at(0, &header.encode()).map_err(io("write the head of"))?;
    file.sync().map_err(io("sync"))?;
    Ok(file)
}

pub(super) fn segment_name(number: u64) -> String {
    format!("{number:016x}.seg")
}

pub(super) fn spare_name(number: u64) -> String {
    format!("{number:016x}.spare")
}
