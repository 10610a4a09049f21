//! The simulated log disk: keeps what was synced, and of the rest, after a crash, whichever sectors chance leaves.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::disk::{LogDisk, LogFile};

/// What a disk writes as a whole or not at all.
const SECTOR: u64 = 512;

#[derive(Default)]
struct File {
    durable: Vec<u8>,
    live: Vec<u8>,
    /// Writes since the last sync: offset and length.
    unsynced: Vec<(u64, u64)>,
}

#[derive(Default)]
struct Inner {
    files: BTreeMap<String, Arc<Mutex<File>>>,
    /// Operations left until the power goes; `None`: it does not.
    fuse: Option<u64>,
    operations: u64,
    /// Counts power cuts; files opened before one are dead.
    life: u64,
    syncs: u64,
    /// Syncs left that fail.
    failing_syncs: u64,
    lies: bool,
    /// No file can be made.
    full: bool,
    latency: std::time::Duration,
}

/// A disk in memory. A clone is another handle to the same disk, so it outlives the member that runs on it.
#[derive(Clone, Default)]
pub struct SimDisk {
    inner: Arc<Mutex<Inner>>,
}

impl SimDisk {
    /// An empty disk.
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets the power go during the `operations`-th change from now on: that one and all later ones fail until [`SimDisk::crash`].
    pub fn fail_after(&self, operations: u64) {
        self.lock().fuse = Some(operations);
    }

    /// Changes that were made so far.
    pub fn operations(&self) -> u64 {
        self.lock().operations
    }

    /// Syncs that were made so far.
    pub fn syncs(&self) -> u64 {
        self.lock().syncs
    }

    /// Lets the next `count` syncs fail, as on Linux: the error is told once, and what was not written counts as written from then on. It can be
    /// read, and is gone after a power cut.
    pub fn fail_syncs(&self, count: u64) {
        self.lock().failing_syncs = count;
    }

    /// From now on the disk says that it has synced and does nothing, or is honest again.
    pub fn set_lying(&self, lies: bool) {
        self.lock().lies = lies;
    }

    /// Fills the disk, or makes room on it: files that are there can be written all the same.
    pub fn set_full(&self, full: bool) {
        self.lock().full = full;
    }

    /// Makes every sync take this much longer.
    pub fn set_latency(&self, latency: std::time::Duration) {
        self.lock().latency = latency;
    }

    /// What a power cut leaves: all that was synced, and each sector of the rest or not, as `random` says. The disk works again after.
    pub fn crash(&self, mut random: impl FnMut() -> u64) {
        let mut inner = self.lock();
        inner.fuse = None;
        inner.life += 1;
        for file in inner.files.values_mut() {
            let mut old = lock(file);
            let mut durable = std::mem::take(&mut old.durable);
            for (offset, length) in std::mem::take(&mut old.unsynced) {
                let mut at = offset;
                while at < offset + length {
                    let end = ((at / SECTOR + 1) * SECTOR).min(offset + length);
                    if random().is_multiple_of(2) {
                        durable[at as usize..end as usize].copy_from_slice(&old.live[at as usize..end as usize]);
                    }
                    at = end;
                }
            }
            drop(old);
            // A new identity: whoever still holds the old file writes into nothing.
            *file = Arc::new(Mutex::new(File { live: durable.clone(), durable, unsynced: Vec::new() }));
        }
    }

    /// What the end of a process leaves: everything that it wrote, synced or not, is there for the next one to read, and may still be lost
    /// in a power cut. The disk works again after.
    pub fn restart(&self) {
        let mut inner = self.lock();
        inner.fuse = None;
        inner.life += 1;
    }

    /// Changes one stored byte, as a failing medium does.
    pub fn damage(&self, name: &str, offset: usize) {
        let inner = self.lock();
        let mut file = lock(&inner.files[name]);
        file.live[offset] ^= 0x40;
        file.durable[offset] ^= 0x40;
    }

    /// The content of a file as a reader sees it.
    pub fn content(&self, name: &str) -> Option<Vec<u8>> {
        self.lock().files.get(name).map(|f| lock(f).live.clone())
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        lock(&self.inner)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn missing(name: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("no file {name}"))
}

impl Inner {
    /// Counts a change; fails once the power is gone.
    fn change(&mut self) -> io::Result<()> {
        match &mut self.fuse {
            Some(0) => return Err(io::Error::other("the power is off")),
            Some(left) => *left -= 1,
            None => {}
        }
        self.operations += 1;
        Ok(())
    }
}

impl LogDisk for SimDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.lock().files.keys().cloned().collect())
    }

    fn create(&self, name: &str, len: u64) -> io::Result<()> {
        let mut inner = self.lock();
        inner.change()?;
        if inner.full {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let zeros = vec![0; len as usize];
        let file = File { durable: zeros.clone(), live: zeros, unsynced: Vec::new() };
        inner.files.insert(name.into(), Arc::new(Mutex::new(file)));
        Ok(())
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn LogFile>> {
        let inner = self.lock();
        let file = inner.files.get(name).ok_or_else(|| missing(name))?.clone();
        Ok(Arc::new(SimFile { disk: self.clone(), file, life: inner.life }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut inner = self.lock();
        inner.change()?;
        let file = inner.files.remove(from).ok_or_else(|| missing(from))?;
        inner.files.insert(to.into(), file);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut inner = self.lock();
        inner.change()?;
        inner.files.remove(name).map(drop).ok_or_else(|| missing(name))
    }

    fn latency(&self) -> std::time::Duration {
        self.lock().latency
    }
}

struct SimFile {
    disk: SimDisk,
    file: Arc<Mutex<File>>,
    life: u64,
}

impl SimFile {
    fn change(&self, inner: &mut Inner) -> io::Result<()> {
        if inner.life != self.life {
            return Err(io::Error::other("the file was open when the power went"));
        }
        inner.change()
    }
}

impl LogFile for SimFile {
    fn len(&self) -> io::Result<u64> {
        Ok(lock(&self.file).live.len() as u64)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let file = lock(&self.file);
        let from = file.live.get(offset as usize..offset as usize + buf.len());
        buf.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut inner = self.disk.lock();
        let failed = self.change(&mut inner);
        let mut file = lock(&self.file);
        let to = file.live.get_mut(offset as usize..offset as usize + data.len());
        to.ok_or(io::ErrorKind::UnexpectedEof)?.copy_from_slice(data);
        // Even a write that failed may have reached the medium in part.
        file.unsynced.push((offset, data.len() as u64));
        failed
    }

    fn sync(&self) -> io::Result<()> {
        let mut inner = self.disk.lock();
        self.change(&mut inner)?;
        inner.syncs += 1;
        if inner.lies {
            return Ok(());
        }
        let mut file = lock(&self.file);
        let unsynced = std::mem::take(&mut file.unsynced);
        if let Some(left) = inner.failing_syncs.checked_sub(1) {
            inner.failing_syncs = left;
            return Err(io::Error::other("input/output error"));
        }
        let File { durable, live, .. } = &mut *file;
        for (offset, length) in unsynced {
            let range = offset as usize..(offset + length) as usize;
            durable[range.clone()].copy_from_slice(&live[range]);
        }
        Ok(())
    }
}
