//! The disk seam of the log: a handful of files in one directory.

use std::io;
use std::sync::Arc;

/// A directory of files. What has not been synced may be lost, in whole or in part, in a crash.
pub trait LogDisk: Send + Sync + 'static {
    /// The names of all files, sorted.
    fn list(&self) -> io::Result<Vec<String>>;

    /// Makes a file of `len` zero bytes whose blocks are written, not only reserved, so that syncing a write into it later changes no
    /// metadata. Durable on return, name included.
    fn create(&self, name: &str, len: u64) -> io::Result<()>;

    /// Opens a file.
    fn open(&self, name: &str) -> io::Result<Arc<dyn LogFile>>;

    /// Renames a file, atomically; durable on return.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file; durable on return.
    fn remove(&self, name: &str) -> io::Result<()>;
}

/// An open file.
pub trait LogFile: Send + Sync + 'static {
    /// Its length in bytes.
    fn len(&self) -> io::Result<u64>;

    /// Whether it is empty.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Fills `buf` from `offset`; an error if the file ends before.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;

    /// Writes all of `data` at `offset`.
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()>;

    /// Makes what was written durable. After an error nothing is known about what is: it must not be tried again.
    fn sync(&self) -> io::Result<()>;
}

/// Makes the names in a directory durable.
pub(crate) fn sync_dir(dir: &std::path::Path) -> io::Result<()> {
    std::fs::File::open(dir)?.sync_all()
}
