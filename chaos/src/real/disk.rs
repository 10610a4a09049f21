//! What lies under a server's data folder: a folder, an image that can lose power, or the lossy file system.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::lossy::LossyFs;
use super::native;
use super::scene::Scene;
use super::tool::{self, ToolError};
use crate::fault::Unsynced;
use crate::plan::{self, Dice};

/// Room on an image. It is sparse: what is not used is not there.
const IMAGE_BYTES: u64 = 4 << 30;

/// The sentinel that survives a loss of power.
const SYNCED: &str = "sentinel-synced";

/// A mounted disk.
#[derive(Clone)]
pub(crate) enum Disk {
    /// A folder of the machine's own disk.
    Plain {
        /// Where.
        at: PathBuf,
    },
    /// An ext4 image, loop-mounted.
    Ext4 {
        /// Where it is mounted.
        at: PathBuf,
        /// The image.
        image: PathBuf,
        /// The program that shuts it down.
        fsdown: PathBuf,
    },
    /// The lossy file system.
    Fuse(Arc<LossyFs>),
}

/// Two files that prove a loss of power: one that was synced, and one that was not.
#[derive(Clone, Debug)]
pub(crate) struct Sentinels {
    synced: PathBuf,
    unsynced: PathBuf,
}

impl Disk {
    /// A disk for one server.
    ///
    /// # Errors
    /// It cannot be made here.
    pub(crate) fn make(scene: &Scene, name: &str, kind: plan::Disk) -> Result<Self, ToolError> {
        let at = scene.dir.join(format!("disk-{name}"));
        tool::at(&at, std::fs::create_dir_all(&at))?;
        match kind {
            plan::Disk::Auto | plan::Disk::Plain => Ok(Self::Plain { at }),
            plan::Disk::Fuse => {
                let disk = Self::Fuse(Arc::new(tool::at(&at, LossyFs::mount(&at))?));
                disk.mark()?;
                Ok(disk)
            }
            plan::Disk::Ext4 => {
                let fsdown = scene.dir.join("fsdown");
                if !fsdown.exists() {
                    native::fsdown(&scene.dir)?;
                }
                let image = scene.dir.join(format!("{name}.img"));
                let file = tool::at(&image, std::fs::File::create(&image))?;
                tool::at(&image, file.set_len(IMAGE_BYTES))?;
                let path = image.display().to_string();
                // Inode tables are written when they are needed; without that making the image takes seconds.
                let options = "lazy_itable_init=1,lazy_journal_init=1,nodiscard";
                tool::run(&["mkfs.ext4", "-q", "-F", "-m", "0", "-E", options, &path])?;
                let disk = Self::Ext4 { at, image, fsdown };
                disk.mount()?;
                disk.mark()?;
                Ok(disk)
            }
        }
    }

    /// Where it is mounted.
    pub(crate) fn path(&self) -> &Path {
        match self {
            Self::Plain { at } | Self::Ext4 { at, .. } => at,
            Self::Fuse(fs) => fs.path(),
        }
    }

    /// The lossy file system, if it is one.
    pub(crate) fn lossy(&self) -> Option<&Arc<LossyFs>> {
        if let Self::Fuse(fs) = self { Some(fs) } else { None }
    }

    /// Whether it can lose power.
    pub(crate) fn can_lose_power(&self) -> bool {
        !matches!(self, Self::Plain { .. })
    }

    fn mount(&self) -> Result<(), ToolError> {
        let Self::Ext4 { at, image, .. } = self else { return Ok(()) };
        let (image, at) = (image.display().to_string(), at.display().to_string());
        tool::run(&["mount", "-o", "loop,noatime", &image, &at]).map(drop)
    }

    /// Writes the sentinel that stays: synced long before the power goes, because syncing it then would sync others' bytes, too.
    ///
    /// # Errors
    /// The disk does not take it.
    pub(crate) fn mark(&self) -> Result<(), ToolError> {
        let path = self.path().join(SYNCED);
        let mut file = tool::at(&path, std::fs::File::create(&path))?;
        tool::at(&path, file.write_all(b"synced").and_then(|()| file.sync_all()))?;
        tool::at(&path, std::fs::File::open(self.path()).and_then(|d| d.sync_all()))
    }

    /// Writes the sentinel that goes, just before the power does.
    ///
    /// # Errors
    /// The disk does not take it.
    pub(crate) fn write_sentinel(&self, mark: &str) -> Result<Sentinels, ToolError> {
        let (synced, unsynced) = (self.path().join(SYNCED), self.path().join(format!("sentinel-{mark}")));
        tool::at(&unsynced, std::fs::write(&unsynced, b"not synced"))?;
        Ok(Sentinels { synced, unsynced })
    }

    /// The moment the power goes: nothing that is not on the platter gets there any more. The processes on it must be stopped.
    ///
    /// # Errors
    /// The disk cannot do that.
    pub(crate) fn shut_down(&self) -> Result<(), ToolError> {
        match self {
            Self::Ext4 { at, fsdown, .. } => tool::run(&[&fsdown.display().to_string(), &at.display().to_string()]).map(drop),
            Self::Fuse(_) => Ok(()),
            Self::Plain { at } => tool::at(at, Err(std::io::Error::other("a plain folder cannot lose power"))),
        }
    }

    /// The power comes back: the disk as a machine finds it that starts. The processes on it must be dead. Says what was lost, if known.
    ///
    /// # Errors
    /// It cannot be mounted.
    pub(crate) fn power_on(&self, unsynced: Unsynced, dice: &mut Dice) -> Result<Option<(u64, u64)>, ToolError> {
        match self {
            Self::Plain { .. } => Ok(None),
            Self::Fuse(fs) => Ok(Some(fs.lose_power(unsynced, dice))),
            Self::Ext4 { at, .. } => {
                tool::run(&["umount", &at.display().to_string()])?;
                self.mount()?;
                Ok(None)
            }
        }
    }

    /// Empties it.
    ///
    /// # Errors
    /// Something in it cannot be removed.
    pub(crate) fn wipe(&self) -> Result<(), ToolError> {
        let path = self.path();
        for entry in tool::at(path, std::fs::read_dir(path))?.flatten() {
            let child = entry.path();
            if entry.file_name() == SYNCED || entry.file_name() == "lost+found" {
                continue;
            }
            let directory = entry.file_type().is_ok_and(|t| t.is_dir());
            tool::at(&child, if directory { std::fs::remove_dir_all(&child) } else { std::fs::remove_file(&child) })?;
        }
        Ok(())
    }

    /// How long a small write and its sync take. `None`: longer than `limit`, in which case a thread stays behind until it is done.
    ///
    /// # Errors
    /// The write or the sync fails.
    pub(crate) async fn probe(&self, env: &dyn kontiki_base::env::Env, limit: Duration) -> std::io::Result<Option<Duration>> {
        static NUMBER: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        let path = self.path().join(format!("probe-{}", NUMBER.fetch_add(1, Ordering::Relaxed)));
        let start = env.now_mono();
        let done = Arc::new(AtomicBool::new(false));
        let write = move || {
            let mut file = std::fs::File::create(&path)?;
            let outcome = file.write_all(b"probe").and_then(|()| file.sync_all());
            let _ = std::fs::remove_file(&path);
            done.store(true, Ordering::Relaxed);
            outcome
        };
        match tokio::time::timeout(limit, tokio::task::spawn_blocking(write)).await {
            Ok(joined) => joined.map_err(std::io::Error::other)?.map(|()| Some(env.now_mono().since(start))),
            Err(_) => Ok(None),
        }
    }
}

impl Sentinels {
    /// Whether the power was really gone: the synced one is there, the other is not.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub(crate) fn prove(&self) -> Result<String, String> {
        let (synced, unsynced) =
            (std::fs::read(&self.synced).ok(), self.unsynced.exists() && std::fs::read(&self.unsynced).is_ok_and(|b| !b.is_empty()));
        let _ = std::fs::remove_file(&self.unsynced);
        match (synced.as_deref(), unsynced) {
            (Some(b"synced"), false) => Ok("the synced sentinel is there, the unsynced one is gone".into()),
            (Some(b"synced"), true) => Err("the unsynced sentinel survived: the power was not gone".into()),
            _ => Err("the synced sentinel is gone: the disk lost more than a loss of power does".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_that_loses_power_keeps_what_was_synced() {
        if !tool::root() || !tool::has("mkfs.ext4") || !tool::has("cc") {
            return;
        }
        let scene = Scene::new(u64::from(std::process::id()).wrapping_mul(0x5bd1)).unwrap();
        let outcome = Disk::make(&scene, "t", plan::Disk::Ext4).and_then(|disk| {
            let sentinel = disk.write_sentinel("t")?;
            disk.shut_down()?;
            disk.power_on(Unsynced::Drop, &mut Dice::new(1, "t"))?;
            Ok(sentinel.prove())
        });
        scene.remove(false).unwrap();
        match outcome {
            Ok(proof) => assert!(proof.is_ok(), "{proof:?}"),
            // Containers often have no loop devices.
            Err(e) => assert!(e.to_string().contains("loop"), "{e}"),
        }
    }

    #[test]
    fn a_plain_folder_cannot_lose_power_and_can_be_wiped() {
        let scene = Scene::new(u64::from(std::process::id()).wrapping_mul(0x1f35)).unwrap();
        let disk = Disk::make(&scene, "t", plan::Disk::Plain).unwrap();
        assert!(!disk.can_lose_power() && disk.shut_down().is_err());
        std::fs::create_dir_all(disk.path().join("a/b")).unwrap();
        std::fs::write(disk.path().join("f"), b"x").unwrap();
        disk.wipe().unwrap();
        assert_eq!(std::fs::read_dir(disk.path()).unwrap().count(), 0);
        scene.remove(false).unwrap();
    }
}
