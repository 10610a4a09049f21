//! The disk seam of the log: a handful of files in one directory.

use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::direct::DirectFile;

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

    /// How much longer a sync takes than usual: simulated disks have a word in simulated time.
    fn latency(&self) -> std::time::Duration {
        std::time::Duration::ZERO
    }
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

    /// Writes all of `data` at `offset`. What follows it in the same 4 KiB may become zeros: a log is written from its front to its end.
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()>;

    /// Makes what was written durable. After an error nothing is known about what is: it must not be tried again.
    fn sync(&self) -> io::Result<()>;
}

/// Files in a directory of the operating system.
pub struct FsDisk {
    dir: PathBuf,
}

impl FsDisk {
    /// Uses a directory; makes it, durably, if it is missing.
    pub fn open(dir: &Path) -> io::Result<Self> {
        make_dir(dir)?;
        Ok(Self { dir: dir.to_owned() })
    }
}

const UNFINISHED: &str = ".unfinished";

impl LogDisk for FsDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.dir)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            if name.ends_with(UNFINISHED) {
                std::fs::remove_file(entry.path())?;
            } else {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    fn create(&self, name: &str, len: u64) -> io::Result<()> {
        let unfinished = self.dir.join(format!("{name}{UNFINISHED}"));
        if let Err(error) = fill_with_zeros(&unfinished, len) {
            // On a full disk, what could be written of it is needed by others.
            drop(std::fs::remove_file(&unfinished));
            return Err(error);
        }
        std::fs::rename(&unfinished, self.dir.join(name))?;
        sync_dir(&self.dir)
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn LogFile>> {
        let path = self.dir.join(name);
        if let Some(file) = DirectFile::open(&path)? {
            return Ok(Arc::new(file));
        }
        let file = std::fs::File::options().read(true).write(true).open(path)?;
        Ok(Arc::new(FsFile(file)))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.dir.join(from), self.dir.join(to))?;
        sync_dir(&self.dir)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.dir.join(name))?;
        sync_dir(&self.dir)
    }
}

fn fill_with_zeros(path: &Path, len: u64) -> io::Result<()> {
    let file = std::fs::File::create(path)?;
    if super::direct::fill_with_zeros(path, len)? {
        return file.sync_all();
    }
    let zeros = vec![0; 1 << 20];
    let mut at = 0;
    while at < len {
        let n = (len - at).min(zeros.len() as u64);
        file.write_all_at(&zeros[..n as usize], at)?;
        at += n;
    }
    file.sync_all()
}

/// A file that is written through the page cache.
struct FsFile(std::fs::File);

impl LogFile for FsFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(buf, offset)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_all_at(data, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }
}

/// Makes the names in a directory durable.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    std::fs::File::open(dir)?.sync_all()
}

/// Makes a directory and its name durable; the parent must exist or be creatable. One that is there already may have been made a moment
/// before the power went: its name is made durable, too, where its parent may be read.
pub(crate) fn make_dir(dir: &Path) -> io::Result<()> {
    make_dir_with(dir, &mut sync_dir)
}

fn make_dir_with(dir: &Path, sync: &mut dyn FnMut(&Path) -> io::Result<()>) -> io::Result<()> {
    let parent = dir.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if dir.is_dir() {
        return match sync(parent) {
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => Ok(()),
            other => other,
        };
    }
    make_dir_with(parent, sync)?;
    match std::fs::create_dir(dir) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
        _ => {}
    }
    sync(parent)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Makes a directory on a disk that loses, when the power goes, every name whose directory was not synced after it was made.
    fn survives(dir: &Path, below: &Path) -> bool {
        let mut durable = vec![below.to_owned()];
        let mut sync = |synced: &Path| {
            durable.extend(std::fs::read_dir(synced)?.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<Vec<_>>>()?);
            Ok(())
        };
        make_dir_with(dir, &mut sync).unwrap();
        dir.ancestors().take_while(|ancestor| *ancestor != below).all(|ancestor| durable.iter().any(|name| name == ancestor))
    }

    #[test]
    fn the_name_of_a_directory_outlives_a_power_cut() {
        let root = tempfile::tempdir().unwrap();
        assert!(survives(&root.path().join("a/b/c"), root.path()), "all three were missing");
        // Somebody made it a moment before, and was cut off before it was durable: the next who needs it cannot know.
        let made = root.path().join("made");
        std::fs::create_dir(&made).unwrap();
        assert!(survives(&made, root.path()), "it was there already");
    }

    #[test]
    fn a_parent_that_may_not_be_read_is_borne_and_a_disk_that_fails_is_not() {
        let root = tempfile::tempdir().unwrap();
        let fails = |kind: io::ErrorKind, dir: &Path| make_dir_with(dir, &mut |_| Err(kind.into())).map_err(|e| e.kind());
        assert_eq!(fails(io::ErrorKind::PermissionDenied, root.path()), Ok(()));
        assert_eq!(fails(io::ErrorKind::Other, root.path()), Err(io::ErrorKind::Other));
    }
}
