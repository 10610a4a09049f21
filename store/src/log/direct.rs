//! A log segment that is written past the page cache.
//!
//! The kernel keeps files in large folios and writes a dirty one back whole: a record of 300 bytes in the page cache can become a megabyte
//! on the disk. Here a write takes the blocks that it touches, no more. Blocks are written again until they are full; what stood in the
//! first one before the data is kept in memory for that. Reads go through the page cache, which the kernel drops where it is written past.
//!
//! A sync is asked for in so many words. `O_DSYNC` would save the call and not the time, and not every file system (FUSE among them) is known to
//! keep its promise for direct writes.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use nix::fcntl::OFlag;

use super::LogFile;

/// What direct writes are aligned to, in the file and in memory: enough for every common disk.
const BLOCK: usize = 4096;

/// A file that is written block by block, from its front to its end.
pub(super) struct DirectFile {
    direct: File,
    cached: File,
    writing: Mutex<Writing>,
}

#[derive(Default)]
struct Writing {
    /// Where the block stands that was written last.
    block: u64,
    /// What of it is data.
    data: Vec<u8>,
    /// Room for an aligned copy of what is written.
    room: Vec<u8>,
}

impl DirectFile {
    /// Opens a file; `None` if it cannot be written like this: its length is no number of blocks, or its file system has no such writes.
    pub(super) fn open(path: &Path) -> io::Result<Option<Self>> {
        let cached = File::open(path)?;
        if !cached.metadata()?.len().is_multiple_of(BLOCK as u64) {
            return Ok(None);
        }
        match File::options().write(true).custom_flags(OFlag::O_DIRECT.bits()).open(path) {
            Ok(direct) => Ok(Some(Self { direct, cached, writing: Mutex::default() })),
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Fills a file that is there with zeros, up to `len`, which is a number of blocks; says whether it could be done like this. Past the page cache
/// this costs the processor next to nothing, and displaces nothing that is read.
pub(super) fn fill_with_zeros(path: &Path, len: u64) -> io::Result<bool> {
    const PIECE: usize = 1 << 20;
    if !len.is_multiple_of(BLOCK as u64) {
        return Ok(false);
    }
    let file = match File::options().write(true).custom_flags(OFlag::O_DIRECT.bits()).open(path) {
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => return Ok(false),
        opened => opened?,
    };
    let mut room = Vec::new();
    let zeros = aligned(&mut room, PIECE);
    let mut at = 0;
    while at < len {
        let now = usize::try_from(len - at).unwrap_or(PIECE).min(PIECE);
        file.write_all_at(&zeros[..now], at)?;
        at += now as u64;
    }
    Ok(true)
}

/// A part of `room`, of so many bytes, that begins where direct writes may.
fn aligned(room: &mut Vec<u8>, len: usize) -> &mut [u8] {
    if room.len() < len + BLOCK {
        room.resize(len + BLOCK, 0);
    }
    let skip = room.as_ptr().align_offset(BLOCK);
    &mut room[skip..skip + len]
}

impl LogFile for DirectFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.cached.metadata()?.len())
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.cached.read_exact_at(buf, offset)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let Writing { block, data: before, room } = &mut *writing;
        let head = offset as usize % BLOCK;
        let start = offset - head as u64;
        if head > 0 && (*block != start || before.len() < head) {
            before.resize(head, 0);
            self.cached.read_exact_at(before, start)?;
        }
        let end = head + data.len();
        let blocks = aligned(room, end.next_multiple_of(BLOCK));
        blocks[..head].copy_from_slice(&before[..head]);
        blocks[head..end].copy_from_slice(data);
        blocks[end..].fill(0);
        self.direct.write_all_at(blocks, start)?;
        let last = end - end % BLOCK;
        *block = start + last as u64;
        before.clear();
        before.extend_from_slice(&blocks[last..end]);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.direct.sync_data()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_piece_by_piece_is_read_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("segment");
        std::fs::write(&path, vec![7; 16 * BLOCK]).unwrap();
        let Some(mut file) = DirectFile::open(&path).unwrap() else { return };
        let mut model = vec![7; 16 * BLOCK];
        let mut at = BLOCK;
        for (n, len) in [1, 100, BLOCK - 101, BLOCK, 5, 3 * BLOCK + 1, 0, 4000, 90, 300].into_iter().enumerate() {
            if n % 4 == 3 {
                // Opened anew, as after a crash: what stood before in the block must survive.
                file = DirectFile::open(&path).unwrap().unwrap();
            }
            let data = vec![u8::try_from(n).unwrap(); len];
            file.write_at(at as u64, &data).unwrap();
            file.sync().unwrap();
            model[at..at + len].copy_from_slice(&data);
            at += len;
            let mut seen = vec![0; at];
            file.read_at(0, &mut seen).unwrap();
            assert_eq!(seen, model[..at], "after piece {n}");
        }
        assert_eq!(file.len().unwrap(), 16 * BLOCK as u64, "a segment keeps its length");
        let mut rest = vec![0; BLOCK];
        file.read_at(15 * BLOCK as u64, &mut rest).unwrap();
        assert_eq!(rest, vec![7; BLOCK], "blocks that were not written are left alone");
    }

    #[test]
    fn files_of_odd_lengths_are_left_to_the_page_cache() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("odd");
        std::fs::write(&path, [1; 100]).unwrap();
        assert!(DirectFile::open(&path).unwrap().is_none());
    }
}
