//! The raft log: segments of records that are synced in groups, and recycled.
//!
//! The log is the truth: votes and entries are on it before anybody is told. Everything else is a cache of it.

pub mod disk;

pub use disk::{LogDisk, LogFile};

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

/// What can go wrong in the log. All of them stop the member.
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
    /// Records that had been synced are damaged: the medium failed. Nothing was changed; the member must be restored from the others.
    #[error("raft log is corrupt: {file} at byte {offset}: {why}")]
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

impl From<LogError> for std::io::Error {
    fn from(e: LogError) -> Self {
        match e {
            LogError::Io { ref source, .. } => Self::new(source.kind(), e.to_string()),
            other => Self::other(other),
        }
    }
}
