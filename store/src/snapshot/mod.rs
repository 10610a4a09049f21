//! Snapshots as files, in etcd's own format: made, looked at, and made a cluster again.
//!
//! | module | what it holds |
//! |---|---|
//! | [`bbolt`] | the file format |
//! | [`records`] | what etcd keeps in which bucket |
//! | [`export`] | a state as a file: what `Maintenance.Snapshot` streams |
//! | [`file`](mod@file) | a file on disk: its hash, what it holds |
//! | [`fetch`] | a snapshot of a running member, saved |
//! | [`generate`](mod@generate) | such a directory with keys that are made up: for measurements of large stores |
//! | [`restore`] | the data directory of a member of a new cluster, made from a file |

pub mod bbolt;
pub mod export;
pub mod fetch;
pub mod file;
pub mod generate;
pub mod records;
pub mod restore;
#[cfg(test)]
mod tests;
mod users;

use std::path::{Path, PathBuf};

use kontiki_mvcc::ViewError;

use crate::engine::EngineError;
use crate::log::LogError;
pub use bbolt::BoltError;

/// What can go wrong with a snapshot.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The file's format.
    #[error(transparent)]
    Bolt(#[from] BoltError),
    /// The operating system failed.
    #[error("cannot {what} {path}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// What came back.
        source: std::io::Error,
    },
    /// The file is not what it should be.
    #[error("{path}: {why}")]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What was found.
        why: String,
    },
    /// A record of the state, or of the file, makes no sense.
    #[error("{bucket}: {why}")]
    Record {
        /// In which bucket.
        bucket: &'static str,
        /// What was found.
        why: String,
    },
    /// What was asked for cannot be done; nothing was changed.
    #[error("{0}")]
    Refused(String),
    /// No member gave a snapshot.
    #[error("no endpoint gave a snapshot: {0}")]
    Unavailable(String),
    /// The state could not be read.
    #[error(transparent)]
    View(#[from] ViewError),
    /// The engine failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The log failed.
    #[error(transparent)]
    Log(#[from] LogError),
}

fn io<'p>(what: &'static str, path: &'p Path) -> impl FnOnce(std::io::Error) -> SnapshotError + 'p {
    move |source| SnapshotError::Io { what, path: path.to_owned(), source }
}

/// How far something is that takes long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// What is being done, as a word for a progress bar.
    pub what: &'static str,
    /// How much of it.
    pub done: u64,
    /// Of how much; 0 if that is not known.
    pub total: u64,
}

/// Is told how far something is. Called often: must be cheap.
pub type OnProgress<'a> = &'a (dyn Fn(Progress) + Send + Sync);
