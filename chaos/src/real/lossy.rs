//! A file system that does what disks do in bad moments (FUSE, in this process, in memory).
//!
//! It keeps two versions of everything: what the kernel was told, and what is on the platter. `fsync` of a file moves its bytes to the
//! platter, `fsync` of a directory its names, as POSIX has it and no more. A loss of power puts everything back to the platter. Beyond that
//! it can fail, lie, be full, be slow, and stall; each is a switch that the harness sets, and counts how often it bit.

mod fs;
mod platter;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use fuser::{BackgroundSession, MountOption, SessionACL};

use crate::fault::Unsynced;
use crate::plan::Dice;
use platter::Platter;

/// Threads that answer the kernel: one that sleeps in a slow sync must not keep the others from answering.
const THREADS: usize = 8;

/// What the disk does wrong now.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Switches {
    /// `fsync` fails with EIO, and the bytes it was about are gone, as Linux does it.
    pub(crate) fsync_eio: bool,
    /// `fsync` says it is done, and nothing reaches the platter.
    pub(crate) lie: bool,
    /// Writes that need room fail with ENOSPC.
    pub(crate) full: bool,
    /// Every `fsync` takes this much longer.
    pub(crate) slow: Duration,
    /// Writes and `fsync` wait until this is false again.
    pub(crate) stall: bool,
}

/// How often each switch bit.
#[derive(Debug, Default)]
pub(crate) struct Bites {
    /// Failed syncs.
    pub(crate) fsync_eio: AtomicU64,
    /// Syncs that were lies.
    pub(crate) lies: AtomicU64,
    /// Writes without room.
    pub(crate) full: AtomicU64,
    /// Syncs that were slowed.
    pub(crate) slow: AtomicU64,
    /// Requests that had to wait.
    pub(crate) stalled: AtomicU64,
}

/// What the threads of the file system share.
pub(super) struct Shared {
    platter: Mutex<Platter>,
    switches: Mutex<Switches>,
    /// Told when a stall ends.
    moved: Condvar,
    bites: Bites,
}

/// A mounted one.
pub(crate) struct LossyFs {
    shared: Arc<Shared>,
    mount: PathBuf,
    session: Mutex<Option<BackgroundSession>>,
}

impl LossyFs {
    /// Mounts an empty one.
    ///
    /// # Errors
    /// `/dev/fuse` is missing, or may not be used.
    pub(crate) fn mount(at: &Path) -> std::io::Result<Self> {
        std::fs::create_dir_all(at)?;
        let switches = Mutex::new(Switches::default());
        let platter = Mutex::new(Platter::new());
        let shared = Arc::new(Shared { platter, switches, moved: Condvar::new(), bites: Bites::default() });
        let mut config = fuser::Config::default();
        config.mount_options = vec![MountOption::FSName("kontiki-chaos".into()), MountOption::NoAtime];
        config.acl = SessionACL::All;
        config.n_threads = Some(THREADS);
        let session = fuser::spawn_mount(fs::Fs { shared: shared.clone() }, at, &config)?;
        Ok(Self { shared, mount: at.to_path_buf(), session: Mutex::new(Some(session)) })
    }

    /// Where it is mounted.
    pub(crate) fn path(&self) -> &Path {
        &self.mount
    }

    /// Sets what it does wrong.
    pub(crate) fn set(&self, change: impl FnOnce(&mut Switches)) {
        change(&mut self.shared.switches.lock().expect("no holder of this lock panics"));
        self.shared.moved.notify_all();
    }

    /// How often each switch bit.
    pub(crate) fn bites(&self) -> &Bites {
        &self.shared.bites
    }

    /// Loses power: back to the platter. The processes that use it must be dead or stopped. Says how many bytes were lost and how many
    /// unsynced ones survived.
    pub(crate) fn lose_power(&self, unsynced: Unsynced, dice: &mut Dice) -> (u64, u64) {
        self.shared.platter.lock().expect("no holder of this lock panics").lose_power(unsynced, dice)
    }

    /// Unmounts it; what it held is gone.
    ///
    /// # Errors
    /// Something still uses it.
    pub(crate) fn unmount(&self) -> std::io::Result<()> {
        self.set(|s| *s = Switches::default());
        match self.session.lock().expect("no holder of this lock panics").take() {
            Some(session) => session.umount_and_join(),
            None => Ok(()),
        }
    }
}

impl Shared {
    /// Waits while the disk stalls.
    fn wait(&self) {
        let switches = self.switches.lock().expect("no holder of this lock panics");
        if switches.stall {
            self.bites.stalled.fetch_add(1, Ordering::Relaxed);
            drop(self.moved.wait_while(switches, |s| s.stall));
        }
    }

    fn now(&self) -> Switches {
        *self.switches.lock().expect("no holder of this lock panics")
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::*;

    /// `None` where FUSE cannot be used.
    fn mounted() -> Option<(tempfile::TempDir, LossyFs)> {
        let dir = tempfile::tempdir().unwrap();
        let fs = LossyFs::mount(&dir.path().join("mnt")).ok()?;
        Some((dir, fs))
    }

    fn sync_dir(path: &Path) {
        std::fs::File::open(path).unwrap().sync_all().unwrap();
    }

    #[test]
    fn what_was_synced_survives_and_nothing_else() {
        let Some((_dir, fs)) = mounted() else { return };
        let root = fs.path().to_path_buf();
        std::fs::create_dir(root.join("d")).unwrap();
        sync_dir(&root);
        let mut file = std::fs::File::create(root.join("d/f")).unwrap();
        file.write_all(b"synced").unwrap();
        file.sync_all().unwrap();
        sync_dir(&root.join("d"));
        file.write_all(b" and not").unwrap();
        std::fs::write(root.join("d/nameless"), b"x").unwrap();
        // Synced itself, but its name was not.
        std::fs::File::open(root.join("d/nameless")).unwrap().sync_all().unwrap();
        drop(file);
        let (lost, kept) = fs.lose_power(Unsynced::Drop, &mut Dice::new(1, "t"));
        assert_eq!((lost, kept), (8, 0));
        let mut text = String::new();
        std::fs::File::open(root.join("d/f")).unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "synced");
        assert!(!root.join("d/nameless").exists());
        fs.unmount().unwrap();
    }

    #[test]
    fn it_fails_lies_and_fills_up() {
        let Some((_dir, fs)) = mounted() else { return };
        let path = fs.path().join("f");
        let mut file = std::fs::File::create(&path).unwrap();
        sync_dir(fs.path());
        fs.set(|s| s.fsync_eio = true);
        file.write_all(b"a").unwrap();
        assert_eq!(file.sync_all().unwrap_err().raw_os_error(), Some(5), "EIO");
        fs.set(|s| *s = Switches { lie: true, ..Switches::default() });
        file.write_all(b"b").unwrap();
        file.sync_all().unwrap();
        fs.lose_power(Unsynced::Drop, &mut Dice::new(1, "t"));
        assert_eq!(std::fs::read(&path).unwrap(), b"");
        fs.set(|s| *s = Switches { full: true, ..Switches::default() });
        assert_eq!(file.write_all(b"c").unwrap_err().kind(), std::io::ErrorKind::StorageFull);
        let bites = fs.bites();
        let counts = [&bites.fsync_eio, &bites.lies, &bites.full].map(|c| c.load(Ordering::Relaxed) > 0);
        assert_eq!(counts, [true; 3]);
        drop(file);
        fs.unmount().unwrap();
    }

    #[test]
    fn renames_are_as_durable_as_their_directory() {
        let Some((_dir, fs)) = mounted() else { return };
        let root = fs.path().to_path_buf();
        std::fs::write(root.join("old"), b"1").unwrap();
        std::fs::File::open(root.join("old")).unwrap().sync_all().unwrap();
        sync_dir(&root);
        std::fs::rename(root.join("old"), root.join("new")).unwrap();
        fs.lose_power(Unsynced::Drop, &mut Dice::new(1, "t"));
        assert!(root.join("old").exists() && !root.join("new").exists());
        std::fs::rename(root.join("old"), root.join("new")).unwrap();
        sync_dir(&root);
        fs.lose_power(Unsynced::Drop, &mut Dice::new(1, "t"));
        assert!(!root.join("old").exists() && root.join("new").exists());
        fs.unmount().unwrap();
    }
}
