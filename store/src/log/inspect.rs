//! Looking at a log that nobody runs on: what opening it would find, without changing a byte.
//!
//! The same code that opens a log is run on a disk that reads the real files and keeps whatever is written to itself. So a log
//! passes here exactly if a member would open it.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use super::record::{self, Header, Record, Tail};
use super::state::Shared;
use super::{LogDisk, LogEntry, LogError, LogFile, LogOptions, LogStatus, recover};

/// What is in a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The file's name.
    pub file: String,
    /// Entries in it.
    pub entries: u64,
    /// Records of all kinds in it.
    pub records: u64,
    /// Bytes behind the last whole batch that a crash left there: they were never acknowledged, and opening the log removes them.
    pub torn: u64,
}

/// What is in a log.
#[derive(Clone, Debug, Default)]
pub struct Inspection {
    /// The segments, the oldest first.
    pub segments: Vec<Segment>,
    /// What opening it would find.
    pub status: LogStatus,
    /// Everything that is damaged. Opening the log fails with the first.
    pub damage: Vec<String>,
}

/// Reads every record of every segment in `dir`. `progress` is told how many segments are read, of how many.
///
/// # Errors
/// The directory cannot be read. Damage is no error here.
pub fn inspect(dir: &Path, progress: &mut dyn FnMut(u64, u64)) -> Result<Inspection, LogError> {
    let disk = Arc::new(ReadOnly::open(dir).map_err(|source| LogError::Io { what: "list", file: dir.display().to_string(), source })?);
    let mut found = Inspection::default();
    let segments: Vec<String> = disk.names.iter().filter(|name| name.ends_with(".seg")).cloned().collect();
    for (at, name) in segments.iter().enumerate() {
        read_segment(&disk, name, &mut found)?;
        progress(at as u64 + 1, segments.len() as u64);
    }
    match open(disk) {
        Ok((status, _)) => found.status = status,
        Err(LogError::Corrupt { file, offset, why }) => {
            let text = place(&file, offset, &why);
            if !found.damage.contains(&text) {
                found.damage.insert(0, text);
            }
        }
        Err(other) => return Err(other),
    }
    Ok(found)
}

/// The entry at an index of a log that is whole, if it has it.
///
/// # Errors
/// The log cannot be opened.
pub fn entry(dir: &Path, index: kontiki_base::ids::LogIndex) -> Result<Option<LogEntry>, LogError> {
    let disk = ReadOnly::open(dir).map_err(|source| LogError::Io { what: "list", file: dir.display().to_string(), source })?;
    let (_, shared) = open(Arc::new(disk))?;
    let entries = match shared.read(index, index.next(), usize::MAX)? {
        super::Cold::Ready(entries) => entries,
        super::Cold::Files(cold) => cold.run()?,
    };
    Ok(entries.into_iter().find(|entry| entry.pos.index == index))
}

/// What a start says of the same damage, without the advice.
fn place(file: &str, offset: u64, why: &str) -> String {
    format!("raft log is corrupt: {file} at byte {offset}: {why}")
}

fn open(disk: Arc<ReadOnly>) -> Result<(LogStatus, Arc<Shared>), LogError> {
    let options = LogOptions { spares: 0, ..LogOptions::default() };
    let shared = Arc::new(Shared::new(options.tail_bytes));
    recover::open(disk, options, shared.clone(), 0, false)?;
    Ok((shared.status(), shared))
}

fn read_segment(disk: &ReadOnly, name: &str, found: &mut Inspection) -> Result<(), LogError> {
    let read = || -> io::Result<Bytes> { Ok(std::fs::read(disk.dir.join(name))?.into()) };
    let bytes = read().map_err(|source| LogError::Io { what: "read", file: name.to_owned(), source })?;
    let mut segment = Segment { file: name.to_owned(), entries: 0, records: 0, torn: 0 };
    // Without a head it may be one that a crash kept from being born: opening the log tells.
    if let Some(header) = Header::decode(&bytes) {
        let (end, _, tail) = record::scan(&bytes, &header, |_, record| {
            segment.records += 1;
            segment.entries += u64::from(matches!(record, Record::Entry(_)));
        });
        match tail {
            Tail::Damaged(why) => {
                found.damage.push(place(name, end as u64, &why));
            }
            Tail::Open { wipe_to } => segment.torn = (wipe_to - end) as u64,
            Tail::Sealed => {}
        }
    }
    found.segments.push(segment);
    Ok(())
}

/// A directory of files that is read, and to which nothing is written: what would be is forgotten.
struct ReadOnly {
    dir: PathBuf,
    names: Vec<String>,
    /// Files that were "created" meanwhile, with their lengths.
    created: Mutex<BTreeMap<String, u64>>,
}

impl ReadOnly {
    fn open(dir: &Path) -> io::Result<Self> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(dir)? {
            names.extend(entry?.file_name().into_string());
        }
        names.retain(|name| name.ends_with(".seg") || name.ends_with(".spare"));
        names.sort_unstable();
        Ok(Self { dir: dir.to_owned(), names, created: Mutex::default() })
    }
}

impl LogDisk for ReadOnly {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.names.clone())
    }

    fn create(&self, name: &str, len: u64) -> io::Result<()> {
        self.created.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), len);
        Ok(())
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn LogFile>> {
        let created = self.created.lock().unwrap_or_else(PoisonError::into_inner).get(name).copied();
        Ok(Arc::new(match created {
            Some(len) => Frozen { file: None, len },
            None => {
                let file = std::fs::File::open(self.dir.join(name))?;
                let len = file.metadata()?.len();
                Frozen { file: Some(file), len }
            }
        }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut created = self.created.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(len) = created.remove(from) {
            created.insert(to.to_owned(), len);
        }
        Ok(())
    }

    fn remove(&self, _name: &str) -> io::Result<()> {
        Ok(())
    }
}

/// A file that does not change; without one, zeros.
struct Frozen {
    file: Option<std::fs::File>,
    len: u64,
}

impl LogFile for Frozen {
    fn len(&self) -> io::Result<u64> {
        Ok(self.len)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        match &self.file {
            Some(file) => file.read_exact_at(buf, offset),
            None => {
                buf.fill(0);
                Ok(())
            }
        }
    }

    fn write_at(&self, _offset: u64, _data: &[u8]) -> io::Result<()> {
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}
