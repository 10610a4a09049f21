//! A snapshot file on disk: whether it is whole, and what it holds.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use kontiki_base::ids::Revision;
use sha2::{Digest as _, Sha256};

use super::bbolt::Db;
use super::records::{self, bucket, meta};
use super::{OnProgress, Progress, SnapshotError, io};

/// Bytes of the hash at the end.
pub const HASH: u64 = 32;

const BLOCK: usize = 1 << 20;

/// What a file is, as far as its length tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotFile {
    /// Where it is.
    pub path: PathBuf,
    /// Bytes of the database in it.
    pub payload: u64,
    /// Whether its hash follows: not in a file that was copied out of a data directory.
    pub has_hash: bool,
}

impl SnapshotFile {
    /// Looks at a file's length.
    ///
    /// # Errors
    /// It is not there, or its length is that of no snapshot.
    pub fn open(path: &Path) -> Result<Self, SnapshotError> {
        let data = std::fs::metadata(path).map_err(io("read", path))?;
        let (payload, has_hash) = match data.len() % 512 {
            0 => (data.len(), false),
            HASH => (data.len() - HASH, true),
            _ => {
                let why = format!("{} bytes is the length of no snapshot: it was cut off, or is another kind of file", data.len());
                return Err(SnapshotError::Damaged { path: path.to_owned(), why });
            }
        };
        Ok(Self { path: path.to_owned(), payload, has_hash })
    }

    /// Reads the whole file and compares it with its hash.
    ///
    /// # Errors
    /// The hash is missing or another.
    pub fn check(&self, progress: OnProgress<'_>) -> Result<(), SnapshotError> {
        let damaged = |why: &str| SnapshotError::Damaged { path: self.path.clone(), why: why.into() };
        if !self.has_hash {
            return Err(damaged("has no hash at its end, so it cannot be checked; with --skip-hash-check it is trusted"));
        }
        let mut file = File::open(&self.path).map_err(io("read", &self.path))?;
        let (mut sha, mut block, mut done) = (Sha256::new(), vec![0; BLOCK], 0);
        while done < self.payload {
            let len = (self.payload - done).min(BLOCK as u64) as usize;
            file.read_exact(&mut block[..len]).map_err(io("read", &self.path))?;
            sha.update(&block[..len]);
            done += len as u64;
            progress(Progress { what: "checking", done, total: self.payload });
        }
        let mut expected = [0; HASH as usize];
        file.read_exact(&mut expected).map_err(io("read", &self.path))?;
        if sha.finalize()[..] == expected {
            return Ok(());
        }
        Err(damaged("does not have the hash that stands at its end: it was damaged; take another snapshot"))
    }

    /// Opens the database in it.
    ///
    /// # Errors
    /// It is none.
    pub fn db(&self) -> Result<Db, SnapshotError> {
        Ok(Db::open(&self.path, self.payload)?)
    }
}

/// What a snapshot holds: what `etcdctl snapshot status` tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// CRC-32C of all buckets' names, keys and values.
    pub hash: u32,
    /// The revision of the last write.
    pub revision: Revision,
    /// Before this revision history is gone; 0 if none is.
    pub compact: Revision,
    /// Records in all buckets.
    pub total_keys: u64,
    /// Bytes of the database.
    pub total_size: u64,
    /// The storage version of etcd that it has.
    pub version: String,
}

/// Reads a whole snapshot.
///
/// # Errors
/// It is damaged.
pub fn status(file: &SnapshotFile, progress: OnProgress<'_>) -> Result<Status, SnapshotError> {
    let db = file.db()?;
    let mut status = Status {
        hash: 0,
        revision: Revision::ZERO,
        compact: Revision::ZERO,
        total_keys: 0,
        total_size: db.size(),
        version: records::STORAGE_VERSION.into(),
    };
    let mut done = 0;
    for bucket in db.buckets()? {
        let (is_key, is_meta) = (bucket.name == bucket::KEY, bucket.name == bucket::META);
        status.hash = crc32c::crc32c_append(status.hash, &bucket.name);
        let mut cursor = db.cursor(&bucket)?;
        while let Some((key, value)) = cursor.next()? {
            status.hash = crc32c::crc32c_append(status.hash, &key);
            status.hash = crc32c::crc32c_append(status.hash, &value);
            status.total_keys += 1;
            if is_key && let Some((at, _)) = records::parse_stamp(&key) {
                status.revision = at.main;
            }
            if is_meta && (key == meta::SCHEDULED_COMPACT || key == meta::FINISHED_COMPACT) {
                status.compact = records::parse_revision(&value).unwrap_or_default().max(status.compact);
            }
            if is_meta && key == meta::STORAGE_VERSION {
                status.version = String::from_utf8_lossy(&value).into_owned();
            }
            done += (key.len() + value.len()) as u64;
            progress(Progress { what: "reading", done: done.min(file.payload), total: file.payload });
        }
    }
    Ok(status)
}
