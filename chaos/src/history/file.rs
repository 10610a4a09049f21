//! Writing a history while it happens, and reading it back.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::ops::{Answer, Ask, Op};
use super::record::{Header, Record};
use super::{At, History};

/// The file in a run's folder.
pub const FILE: &str = "history.jsonl";

/// Lines are handed to the system when so much has gathered, …
const BUFFER_BYTES: usize = 64 << 10;

/// … or when the oldest is so old, in nanoseconds of the records' own times. A killed harness loses this much at most.
const BUFFER_AGE: At = 100_000_000;

/// A history could not be read.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The file cannot be read.
    #[error("cannot read {path}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A line is not a record. The last line may be cut off, no other.
    #[error("{path}:{line}: not a record of a history")]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// Which line, from 1.
        line: usize,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

/// Takes down what happens. All clients of a run share one; cloning it is cheap.
#[derive(Clone, Debug)]
pub struct Recorder(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    next: AtomicU64,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    gather: Gather,
    out: Option<Out>,
}

#[derive(Debug)]
struct Out {
    file: File,
    path: PathBuf,
    lines: Vec<u8>,
    oldest: At,
    /// The first failure; nothing is written after it.
    broken: Option<io::Error>,
}

impl Out {
    fn write(&mut self, record: &Record) {
        if self.lines.is_empty() {
            self.oldest = at(record).unwrap_or(self.oldest);
        }
        serde_json::to_writer(&mut self.lines, record).expect("records are plain data, a vector takes all");
        self.lines.push(b'\n');
        let urgent = matches!(record, Record::Header(_) | Record::Fault(_) | Record::Heal(_) | Record::Alarm { .. } | Record::End { .. });
        let old = at(record).is_some_and(|at| at > self.oldest + BUFFER_AGE);
        if urgent || old || self.lines.len() >= BUFFER_BYTES {
            self.flush();
        }
    }

    fn flush(&mut self) {
        if self.broken.is_none()
            && let Err(e) = self.file.write_all(&self.lines)
        {
            self.broken = Some(e);
        }
        self.lines.clear();
    }
}

fn at(record: &Record) -> Option<At> {
    match record {
        Record::Invoke { at, .. } | Record::Return { at, .. } | Record::End { at } => Some(*at),
        Record::Op(op) => Some(op.ret),
        Record::Watch(w) => Some(w.at),
        Record::Sample(s) => Some(s.at),
        Record::Fault(f) => Some(f.at),
        Record::Heal(h) => Some(h.at),
        Record::Node(n) => Some(n.at),
        Record::Api(a) => Some(a.at),
        Record::Header(_) | Record::Change(_) | Record::Final(_) | Record::Alarm { .. } => None,
    }
}

impl Recorder {
    /// Keeps everything in memory only: for simulations, which can be run again.
    pub fn memory(header: Header) -> Self {
        Self::new(header, None)
    }

    /// Writes everything to [`FILE`] in `dir`, too, which is created.
    ///
    /// # Errors
    /// Folder or file cannot be created.
    pub fn file(dir: &Path, header: Header) -> io::Result<Self> {
        std::fs::create_dir_all(dir)?;
        let path = dir.join(FILE);
        let file = File::create(&path)?;
        Ok(Self::new(header, Some(Out { file, path, lines: Vec::new(), oldest: 0, broken: None })))
    }

    fn new(header: Header, out: Option<Out>) -> Self {
        let inner = Mutex::new(Inner { gather: Gather::default(), out });
        let recorder = Self(Arc::new(Shared { next: AtomicU64::new(1), inner }));
        recorder.record(Record::Header(header));
        recorder
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // A panic of a client is no reason to lose the history that explains it.
        self.0.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a record down.
    pub fn record(&self, record: Record) {
        let mut inner = self.inner();
        if let Some(out) = &mut inner.out {
            out.write(&record);
        }
        inner.gather.take(record);
    }

    /// A number that no other operation, watch or session of this run has.
    pub fn id(&self) -> u64 {
        self.0.next.fetch_add(1, Ordering::Relaxed)
    }

    /// A client asks.
    pub fn invoke(&self, client: u16, member: usize, at: At, ask: Ask) -> u64 {
        let id = self.id();
        self.record(Record::Invoke { id, client, member, at, ask });
        id
    }

    /// A client was answered, or gave up.
    pub fn answer(&self, id: u64, at: At, answer: Answer) {
        self.record(Record::Return { id, at, answer });
    }

    /// Ends the recording; what was recorded. Records that come later are lost.
    ///
    /// # Errors
    /// The file could not be written: what is in it is not the whole history.
    pub fn finish(&self, at: At) -> io::Result<History> {
        self.record(Record::End { at });
        let mut inner = self.inner();
        if let Some(out) = inner.out.take()
            && let Some(e) = &out.broken
        {
            return Err(io::Error::new(e.kind(), format!("cannot write {}: {e}", out.path.display())));
        }
        Ok(std::mem::take(&mut inner.gather).finish())
    }
}

impl Drop for Out {
    fn drop(&mut self) {
        self.flush();
    }
}

/// Sorts records by kind, and puts operations together.
#[derive(Debug, Default)]
pub(super) struct Gather {
    history: History,
    open: BTreeMap<u64, Op>,
}

impl Gather {
    pub(super) fn take(&mut self, record: Record) {
        let history = &mut self.history;
        match record {
            Record::Header(header) => history.header = header,
            Record::Invoke { id, client, member, at, ask } => {
                let answer = Answer::Unknown { why: "the history ends before the answer".into() };
                self.open.insert(id, Op { client, member, call: at, ret: at, ask, answer });
            }
            Record::Return { id, at, answer } => {
                if let Some(op) = self.open.remove(&id) {
                    history.ops.push(Op { ret: at, answer, ..op });
                }
            }
            Record::Op(op) => history.ops.push(op),
            Record::Change(change) => history.changes.push(change),
            Record::Watch(watch) => history.watches.push(watch),
            Record::Sample(sample) => history.samples.push(sample),
            Record::Fault(fault) => history.faults.push(fault),
            Record::Heal(heal) => history.heals.push(heal),
            Record::Final(end) => history.finals.push(end),
            Record::Node(node) => history.nodes.push(node),
            Record::Api(api) => history.api.push(api),
            Record::Alarm { check, detail } => history.alarms.push((check, detail)),
            Record::End { at } => history.ended = Some(at),
        }
    }

    pub(super) fn finish(self) -> History {
        let mut history = self.history;
        history.ops.extend(self.open.into_values());
        history.ops.sort_by_key(|op| op.call);
        history.watches.sort_by_key(|w| (w.watch, w.at));
        history.samples.sort_by_key(|s| s.at);
        history.faults.sort_by_key(|f| f.at);
        history.heals.sort_by_key(|h| h.at);
        history.nodes.sort_by_key(|n| n.at);
        history.api.sort_by_key(|a| a.at);
        history
    }
}

impl History {
    /// Reads a history: a file, or the folder of a run.
    ///
    /// # Errors
    /// There is no such file, or it is damaged before its last line.
    pub fn read(path: &Path) -> Result<Self, FileError> {
        let path = if path.is_dir() { path.join(FILE) } else { path.to_path_buf() };
        let io = |source| FileError::Io { path: path.clone(), source };
        let mut input = BufReader::with_capacity(1 << 20, File::open(&path).map_err(io)?);
        let mut gather = Gather::default();
        let mut text = Vec::new();
        let mut line = 0;
        while input.read_until(b'\n', &mut text).map_err(io)? > 0 {
            line += 1;
            match serde_json::from_slice(&text) {
                Ok(record) => gather.take(record),
                // The harness was killed while it wrote this.
                Err(_) if text.last() != Some(&b'\n') => break,
                Err(source) => return Err(FileError::Damaged { path, line, source }),
            }
            text.clear();
        }
        Ok(gather.finish())
    }

    /// Writes a history as [`History::read`] reads it.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, dir: &Path) -> io::Result<()> {
        let recorder = Recorder::file(dir, self.header.clone())?;
        let ops = self.ops.iter().cloned().map(Record::Op);
        let changes = self.changes.iter().cloned().map(Record::Change);
        let watches = self.watches.iter().cloned().map(Record::Watch);
        let samples = self.samples.iter().cloned().map(Record::Sample);
        let faults = self.faults.iter().cloned().map(Record::Fault).chain(self.heals.iter().cloned().map(Record::Heal));
        let finals = self.finals.iter().cloned().map(Record::Final);
        let nodes = self.nodes.iter().cloned().map(Record::Node).chain(self.api.iter().cloned().map(Record::Api));
        let alarms = self.alarms.iter().cloned().map(|(check, detail)| Record::Alarm { check, detail });
        ops.chain(changes)
            .chain(watches)
            .chain(samples)
            .chain(faults)
            .chain(finals)
            .chain(nodes)
            .chain(alarms)
            .for_each(|r| recorder.record(r));
        match self.ended {
            Some(at) => recorder.finish(at).map(drop),
            None => {
                let out = recorder.inner().out.take();
                drop(out);
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::ops::{Change, RangeAsk, Seen, Step, StepAnswer};
    use super::super::record::{Fault, FaultOutcome, Final, Frame, Heal, NodeFact, NodeRecord, Role, Sample, Watch, WatchAsk};
    use super::*;

    fn records() -> Vec<Record> {
        let ask = Ask::Do(Step::Range(RangeAsk { key: "a".into(), end: "\0".into(), limit: 3, ..RangeAsk::default() }));
        let seen = Seen { key: "a".into(), value: "v".into(), create: 2, modified: 2, version: 1, lease: 0 };
        let answer = Answer::Did { revision: 4, step: StepAnswer::Range { kvs: vec![seen], more: false, count: 1 } };
        let outcome = FaultOutcome::Installed { proof: "40 of 40 probes lost".into() };
        vec![
            Record::Invoke { id: 1, client: 0, member: 1, at: 10, ask },
            Record::Invoke { id: 2, client: 1, member: 1, at: 11, ask: Ask::Put { key: "a".into(), value: "w".into() } },
            Record::Return { id: 1, at: 20, answer },
            Record::Change(Change { create: 2, version: 1, lease: 7, ..Change::put(2, "a", "v") }),
            Record::Watch(Watch { watch: 3, client: 0, member: 0, at: 12, frame: Frame::Asked(WatchAsk::default()) }),
            Record::Sample(Sample { at: 13, role: Role::Leader, hash: Some(u64::MAX), ..Sample::default() }),
            Record::Fault(Fault { id: 1, at: 14, kind: "kill".into(), members: vec![0], outcome, ..Fault::default() }),
            Record::Heal(Heal { id: 1, at: 15, detail: String::new() }),
            Record::Node(NodeRecord { at: 16, node: "n1".into(), fact: NodeFact::Up }),
            Record::Final(Final { member: 1, revision: 9, kvs: vec![Seen::default()] }),
            Record::Alarm { check: "panic".into(), detail: "x".into() },
        ]
    }

    #[test]
    fn what_is_written_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let header = Header { world: "sim".into(), seed: 7, ..Header::default() };
        let recorder = Recorder::file(dir.path(), header).unwrap();
        records().into_iter().for_each(|r| recorder.record(r));
        let history = recorder.finish(99).unwrap();
        assert_eq!(history.ops.len(), 2);
        assert!(matches!(history.ops[1].answer, Answer::Unknown { .. }), "no answer came");
        assert_eq!(History::read(dir.path()).unwrap(), history);
        let copy = tempfile::tempdir().unwrap();
        history.write(copy.path()).unwrap();
        assert_eq!(History::read(copy.path()).unwrap(), history, "and written again");
    }

    #[test]
    fn a_killed_harness_loses_little() {
        let dir = tempfile::tempdir().unwrap();
        let recorder = Recorder::file(dir.path(), Header::default()).unwrap();
        records().into_iter().for_each(|r| recorder.record(r));
        // Nothing is dropped in order: as if it had been killed. Faults are on disk at once, with all before them.
        let history = History::read(dir.path()).unwrap();
        assert_eq!((history.faults.len(), history.heals.len(), history.ops.len(), history.ended), (1, 1, 2, None));
        std::mem::forget(recorder);
    }

    #[test]
    fn a_cut_line_is_the_end_and_a_damaged_one_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        std::fs::write(&path, "{\"end\":{\"at\":5}}\n{\"fau").unwrap();
        assert_eq!(History::read(&path).unwrap().ended, Some(5));
        std::fs::write(&path, "{\"end\":{\"at\":5}}\n{\"fau\n{\"end\":{\"at\":6}}\n").unwrap();
        assert!(matches!(History::read(&path), Err(FileError::Damaged { line: 2, .. })));
        assert!(matches!(History::read(&dir.path().join("no")), Err(FileError::Io { .. })));
    }
}
