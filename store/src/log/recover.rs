//! Opening a log: what is on the disk, in order, and whether it can be trusted.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use bytes::{Bytes, BytesMut};
use kontiki_base::ids::{LogIndex, LogPos};

use super::record::{self, Header, RECORDS_AT, Record, Tail, Vote};
use super::state::{Location, Placed, Readable, Shared};
use super::writer::{Active, Sealed, Writer, activate, next_seed, segment_name, spare_name};
use super::{LogDisk, LogError, LogFile, LogOptions, LogStatus};

/// What the records say, in order.
#[derive(Default)]
struct Replay {
    epoch: u64,
    vote: Option<Vote>,
    committed: LogPos,
    purged: LogPos,
    last: LogPos,
    highest: LogIndex,
    bytes: u64,
    /// The last entry before the first segment that is there: it must have been purged.
    base: LogPos,
}

/// A segment that is open for reading.
struct Segment {
    number: u64,
    file: Arc<dyn LogFile>,
    bytes: Bytes,
    /// `None` if the head is not that of this segment.
    header: Option<Header>,
}

fn io(what: &'static str, file: &str) -> impl FnOnce(std::io::Error) -> LogError {
    let file = file.to_owned();
    move |source| LogError::Io { what, file, source }
}

fn corrupt(number: u64, offset: usize, why: impl Into<String>) -> LogError {
    LogError::Corrupt { file: segment_name(number), offset: offset as u64, why: why.into() }
}

/// Opens the log and makes its writer.
pub(super) fn open(
    disk: Arc<dyn LogDisk>,
    options: LogOptions,
    shared: Arc<Shared>,
    mut random: u64,
    in_background: bool,
) -> Result<Writer, LogError> {
    let (numbers, spares) = inventory(&*disk, &options)?;
    let spares = Arc::new(Mutex::new(spares));
    let mut replay = Replay::default();
    let mut sealed = VecDeque::new();
    let mut active = None;
    let mut unsure = Vec::new();
    let mut numbers = numbers.into_iter().peekable();
    while let Some(number) = numbers.next() {
        let segment = load(&*disk, number)?;
        let is_last = numbers.peek().is_none();
        if segment.header.is_none() && is_last && (active.is_some() || is_blank_first(&segment)) {
            // A segment that a crash kept from being born: its head was not synced, so nothing was ever written into it.
            discard(&*disk, &options, &spares, number)?;
            break;
        }
        if let Some(Active { number: open, offset, .. }) = active {
            if is_last && has_no_batches(&segment) {
                discard(&*disk, &options, &spares, number)?;
                break;
            }
            return Err(corrupt(open, offset as usize, format!("the segment is not sealed, but {} was written", segment_name(number))));
        }
        let (open, last_batch) = replay_segment(&segment, &shared, &mut replay, sealed.is_empty())?;
        match &last_batch {
            Some(_) => unsure = vec![Unsure::new(&segment, last_batch)],
            None => unsure.push(Unsure::new(&segment, None)),
        }
        match open {
            None if is_last => return Err(corrupt(number + 1, 0, "the segment is missing, but the one before it is sealed")),
            None => sealed.push_back(Sealed { number, highest: replay.highest }),
            Some(open) => active = Some(open),
        }
    }
    if replay.base.index > replay.purged.index {
        let why = format!("entries up to {:?} are missing, and only those up to {:?} were purged", replay.base, replay.purged);
        return Err(corrupt(sealed.front().map_or(0, |s| s.number), 0, why));
    }
    unsure.iter().try_for_each(Unsure::settle)?;
    let active = match active {
        Some(active) => active,
        None => first_segment(&*disk, &options, &spares, &shared, next_seed(&mut random))?,
    };
    shared.recovered(LogStatus {
        purged: replay.purged,
        last: replay.last,
        vote: replay.vote,
        committed: replay.committed,
        written_bytes: replay.bytes,
    });
    let mut writer = Writer {
        disk,
        options,
        shared,
        active,
        sealed,
        highest: replay.highest,
        epoch: replay.epoch,
        vote: replay.vote,
        last: replay.last,
        purged: replay.purged,
        spares,
        in_background,
        random,
        buffer: BytesMut::new(),
        placed: Vec::new(),
        hinted: replay.committed,
        waits_for_room: false,
    };
    writer.retire()?;
    writer.prepare_spare();
    Ok(writer)
}

/// The numbers of all segments in order, without a gap, and the spare files. Removes what an interrupted `create` left.
fn inventory(disk: &dyn LogDisk, options: &LogOptions) -> Result<(Vec<u64>, Vec<String>), LogError> {
    let (mut numbers, mut spares) = (Vec::new(), Vec::new());
    for name in disk.list().map_err(io("list", "the log"))? {
        if let Some(number) = name.strip_suffix(".seg").and_then(|n| u64::from_str_radix(n, 16).ok()) {
            numbers.push(number);
        } else if name.ends_with(".spare") {
            let len = disk.open(&name).and_then(|f| f.len()).map_err(io("open", &name))?;
            if len == u64::from(options.segment_bytes) && spares.len() < options.spares {
                spares.push(name);
            } else {
                disk.remove(&name).map_err(io("remove", &name))?;
            }
        }
    }
    numbers.sort_unstable();
    for pair in numbers.windows(2) {
        if pair[0] + 1 != pair[1] {
            return Err(corrupt(pair[0] + 1, 0, "the segment is missing"));
        }
    }
    Ok((numbers, spares))
}

fn load(disk: &dyn LogDisk, number: u64) -> Result<Segment, LogError> {
    let name = segment_name(number);
    let file = disk.open(&name).map_err(io("open", &name))?;
    let len = file.len().map_err(io("measure", &name))?;
    let mut bytes = vec![0; len as usize];
    file.read_at(0, &mut bytes).map_err(io("read", &name))?;
    let header = Header::decode(&bytes).filter(|h| h.number == number);
    Ok(Segment { number, file, bytes: bytes.into(), header })
}

/// Whether this is the first segment of a log that was about to be made. The first one is never a recycled file, so it is all zeros then.
fn is_blank_first(segment: &Segment) -> bool {
    segment.number == 1 && segment.bytes.iter().skip(RECORDS_AT as usize).all(|b| *b == 0)
}

fn has_no_batches(segment: &Segment) -> bool {
    segment.header.as_ref().is_none_or(|header| {
        let mut records = 0;
        let (_, _, tail) = record::scan(&segment.bytes, header, |_, _| records += 1);
        records == 0 && matches!(tail, Tail::Open { .. })
    })
}

fn discard(disk: &dyn LogDisk, options: &LogOptions, spares: &Mutex<Vec<String>>, number: u64) -> Result<(), LogError> {
    let name = segment_name(number);
    let mut spares = spares.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let full_size = disk.open(&name).and_then(|f| f.len()).is_ok_and(|len| len == u64::from(options.segment_bytes));
    if full_size && spares.len() < options.spares {
        let spare = spare_name(number);
        disk.rename(&name, &spare).map_err(io("recycle", &name))?;
        spares.push(spare);
        Ok(())
    } else {
        disk.remove(&name).map_err(io("remove", &name))
    }
}

/// What was written last. It can be read, but it need not be on the medium: the process that wrote it may have died before its sync, or the
/// sync failed, after which the system takes the pages for clean. Only writing it again makes sure, before anything is built on it.
/// Everything before it was synced: a batch is not written before the sync of the one before it has succeeded.
struct Unsure {
    number: u64,
    file: Arc<dyn LogFile>,
    offset: usize,
    bytes: Bytes,
}

impl Unsure {
    /// The last batch of a segment; the head of one that has none.
    fn new(segment: &Segment, last_batch: Option<Range<usize>>) -> Self {
        let range = last_batch.unwrap_or(0..RECORDS_AT as usize);
        Self { number: segment.number, file: segment.file.clone(), offset: range.start, bytes: segment.bytes.slice(range) }
    }

    fn settle(&self) -> Result<(), LogError> {
        let name = segment_name(self.number);
        self.file.write_at(self.offset as u64, &self.bytes).map_err(io("write again the end of", &name))?;
        self.file.sync().map_err(io("sync", &name))
    }
}

/// What replaying a segment gives: the segment, if it is the one to go on writing and not sealed; and where its last batch is.
type Replayed = (Option<Active>, Option<Range<usize>>);

/// Replays one segment.
fn replay_segment(segment: &Segment, shared: &Shared, replay: &mut Replay, is_first: bool) -> Result<Replayed, LogError> {
    let number = segment.number;
    let header = segment.header.as_ref().ok_or_else(|| corrupt(number, 0, "the head of the segment is unreadable"))?;
    if is_first {
        replay.epoch = header.epoch;
        replay.vote = header.vote;
        replay.committed = header.committed;
        replay.purged = header.purged;
        replay.last = header.last;
        replay.highest = header.last.index;
        replay.base = header.last;
        shared.written(&[Placed::Purged(header.last.index)], 0);
    } else if (header.epoch, header.last, header.purged) != (replay.epoch, replay.last, replay.purged) {
        let why = format!(
            "its head says it follows {:?} in batch {}, but {:?} in batch {} came before",
            header.last, header.epoch, replay.last, replay.epoch
        );
        return Err(corrupt(number, 0, why));
    }
    let mut placed = Vec::new();
    let mut wrong = None;
    let (mut batch_at, mut begins) = (None, true);
    let (end, epoch, tail) = record::scan(&segment.bytes, header, |at, record| {
        if std::mem::replace(&mut begins, matches!(record, Record::End(_))) {
            batch_at = Some(at);
        }
        if wrong.is_none()
            && let Err(why) = replay.record(number, at, &record, &mut placed)
        {
            wrong = Some(corrupt(number, at, why));
        }
    });
    if let Some(wrong) = wrong {
        return Err(wrong);
    }
    shared.written(&placed, 0);
    replay.bytes += end as u64 - RECORDS_AT;
    replay.epoch = epoch;
    let readable = Readable { file: segment.file.clone(), name: segment_name(number).into(), seed: header.seed };
    shared.segment_added(number as u32, readable);
    let last_batch = batch_at.map(|at| at..end);
    match tail {
        Tail::Damaged(why) => Err(corrupt(number, end, why)),
        Tail::Sealed => Ok((None, last_batch)),
        Tail::Open { wipe_to } => {
            wipe(segment, end, wipe_to)?;
            let size = segment.bytes.len() as u64;
            let active = Active { number, file: segment.file.clone(), seed: header.seed, size, offset: end as u64 };
            Ok((Some(active), last_batch))
        }
    }
}

impl Replay {
    fn record(&mut self, segment: u64, at: usize, record: &Record, placed: &mut Vec<Placed>) -> Result<(), String> {
        match record {
            Record::Entry(entry) => {
                if entry.pos.index.get() != self.last.index.get() + 1 || entry.pos.term < self.last.term {
                    return Err(format!("entry {:?} follows {:?}", entry.pos, self.last));
                }
                let location = Location { segment: segment as u32, offset: at as u32, length: record.size() as u32 };
                placed.push(Placed::Entry(entry.pos.index, location));
                self.last = entry.pos;
                self.highest = self.highest.max(entry.pos.index);
            }
            Record::Vote(vote) => self.vote = Some(*vote),
            Record::Truncate(after) => {
                if after.index < self.purged.index {
                    return Err(format!("entries after {after:?} are removed, but {:?} was purged", self.purged));
                }
                if after.index < self.last.index {
                    self.last = *after;
                    placed.push(Placed::Truncated(after.index));
                }
            }
            Record::Purge(upto) => {
                if upto.index > self.purged.index {
                    self.purged = *upto;
                }
                if upto.index > self.last.index {
                    self.last = *upto;
                }
                placed.push(Placed::Purged(upto.index));
            }
            Record::End(committed) => {
                if committed.index > self.committed.index {
                    self.committed = *committed;
                }
            }
            Record::Seal => {}
        }
        Ok(())
    }
}

/// Overwrites the remains of a torn batch, so that they can never be taken for records again.
fn wipe(segment: &Segment, from: usize, to: usize) -> Result<(), LogError> {
    if from == to {
        return Ok(());
    }
    let name = segment_name(segment.number);
    tracing::info!(segment = %name, from, to, "cutting off a torn tail of the log");
    segment.file.write_at(from as u64, &vec![0; to - from]).map_err(io("wipe", &name))?;
    segment.file.sync().map_err(io("sync", &name))
}

fn first_segment(
    disk: &dyn LogDisk,
    options: &LogOptions,
    spares: &Mutex<Vec<String>>,
    shared: &Shared,
    seed: u32,
) -> Result<Active, LogError> {
    let header = Header { number: 1, seed, ..Header::default() };
    let file = activate(disk, options, spares, &header)?;
    shared.segment_added(1, Readable { file: file.clone(), name: segment_name(1).into(), seed });
    Ok(Active { number: 1, file, seed, size: options.segment_bytes.into(), offset: RECORDS_AT })
}
