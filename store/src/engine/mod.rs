//! The disk seam of the state machine: an engine holds the records of every [`Space`] and commits batches atomically.
//!
//! An engine is a cache of a prefix of the raft log: it may lose its latest commits in a crash, but what it comes back with is exactly the
//! state after some log position, and [`Engine::applied`] says which one. Everything later is replayed from the log.
//!
//! | file | what |
//! |---|---|
//! | [`bulk`] | RocksDB, filled from nothing with a whole state |
//! | [`inspect`] | RocksDB, looked at without changing it |
//! | [`rocks`] | RocksDB without a write-ahead log of its own |
//! | [`sim`] | a map in memory that loses what was not flushed |
//! | `suite` | the laws, run on both |

pub mod bulk;
pub mod inspect;
pub mod mark;
pub(crate) mod memo;
pub mod rocks;
pub mod sim;
#[cfg(test)]
mod suite;

use std::path::{Path, PathBuf};

use kontiki_base::ids::LogPos;
use kontiki_mvcc::{Batch, Space, View, ViewError};

pub use mark::AppliedMark;

/// Keys of [`Space::Sys`] that start with this byte belong to the engine, never to the state machine.
pub const RESERVED: u8 = 0;

/// What can go wrong in an engine. All of them stop the member.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The operating system or the storage library failed.
    #[error("storage engine at {path}: {what}: {why}")]
    Io {
        /// Where.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// What came back.
        why: String,
    },
    /// The disk is full. Nothing is lost: the log has what could not be written.
    #[error("storage engine at {path}: {what}: the disk is full")]
    Full {
        /// Where.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
    },
    /// What is stored makes no sense.
    #[error("storage engine at {path} is corrupt: {why}")]
    Corrupt {
        /// Where.
        path: PathBuf,
        /// What was found.
        why: String,
    },
    /// The state could not be read.
    #[error(transparent)]
    View(#[from] ViewError),
    /// A batch used a key that belongs to the engine.
    #[error("a batch writes the reserved key {key:?} of {space:?}")]
    Reserved {
        /// Where.
        space: Space,
        /// Which.
        key: Vec<u8>,
    },
}

impl From<EngineError> for std::io::Error {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::Full { .. } => Self::new(std::io::ErrorKind::StorageFull, error.to_string()),
            other => Self::other(other),
        }
    }
}

/// Who finds no room on the disk looks again after this long.
pub(crate) const FULL_PAUSE: std::time::Duration = std::time::Duration::from_millis(200);

/// A state that does not change while it is held.
pub type BoxView = Box<dyn View + Send>;

/// Where the state machine keeps its records.
///
/// `commit` is called from one thread only; everything else from any.
pub trait Engine: Send + Sync + 'static {
    /// The latest committed state. Holding it does not stop commits; it pins disk space.
    fn snapshot(&self) -> BoxView;

    /// Makes the batch and the position readable together. Durable only after a flush that comes later. On a full disk it waits for room.
    ///
    /// The position must not go backwards.
    fn commit(&self, batch: Batch, applied: AppliedMark) -> Result<(), EngineError>;

    /// The position of the latest commit; the default mark for an empty engine.
    fn applied(&self) -> AppliedMark;

    /// A position that a crash cannot take back: the log may be purged up to here.
    fn flushed(&self) -> LogPos;

    /// Makes everything that is committed durable. Blocks.
    fn flush(&self) -> Result<LogPos, EngineError>;

    /// Writes a durable copy of the latest committed state as plain files into `dir`, which must not exist, and says which state it is. Blocks.
    fn checkpoint(&self, dir: &Path) -> Result<AppliedMark, EngineError>;

    /// Replaces the whole state, durably and atomically, with a checkpoint; `dir` is consumed. Snapshots that are held stay valid. Blocks.
    fn replace_from(&self, dir: &Path) -> Result<AppliedMark, EngineError>;

    /// Bytes on disk, roughly.
    fn size(&self) -> u64;

    /// Bytes of [`Engine::size`] that hold what can be read, roughly.
    fn in_use(&self) -> u64 {
        self.size()
    }

    /// The member stops: who waits for room gives up, here and from now on.
    fn stop_waiting(&self) {}

    /// Whether it is worth waiting for room.
    fn waits(&self) -> bool {
        true
    }

    /// Gives space of deleted records back, where the engine has a way to be asked. Blocks.
    fn reclaim(&self) -> Result<(), EngineError> {
        Ok(())
    }
}
