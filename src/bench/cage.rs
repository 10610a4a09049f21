//! A limit on the memory of processes, page cache included: a control group of our own, of either version.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// Where the kernel's control groups are, with the file that holds the limit: version 2, then version 1.
const HIERARCHIES: &[(&str, &str, &str)] =
    &[("/sys/fs/cgroup", "cgroup.controllers", "memory.max"), ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.limit_in_bytes")];

/// A control group with a limit. It is removed when this is dropped, if its processes have ended.
#[derive(Debug)]
pub(super) struct Cage {
    dir: PathBuf,
}

impl Cage {
    /// A group whose processes may have so many bytes together.
    ///
    /// # Errors
    /// The system has no such groups, or does not let us make one.
    pub(super) fn new(bytes: u64) -> Result<Self> {
        let has = |(root, mark, _): &&(&str, &str, &str)| {
            let mark = Path::new(root).join(mark);
            // Of version 2, only if the controller is there.
            mark.exists()
                && (!mark.ends_with("cgroup.controllers") || std::fs::read_to_string(&mark).is_ok_and(|all| all.contains("memory")))
        };
        let (root, _, limit) =
            HIERARCHIES.iter().find(has).context("this system cannot limit the memory of processes (no memory cgroup)")?;
        let dir = Path::new(root).join(format!("kontiki-bench-{}", std::process::id()));
        std::fs::create_dir(&dir).with_context(|| format!("cannot make {}: a limit on memory needs root", dir.display()))?;
        let cage = Self { dir };
        let file = cage.dir.join(limit);
        std::fs::write(&file, bytes.to_string()).with_context(|| format!("cannot write {}", file.display()))?;
        Ok(cage)
    }

    /// What goes before a command so that it begins inside.
    pub(super) fn enter(&self) -> Vec<String> {
        let procs = self.dir.join("cgroup.procs");
        vec!["sh".into(), "-c".into(), format!("echo $$ > {} && exec \"$@\"", procs.display()), "sh".into()]
    }
}

impl Drop for Cage {
    fn drop(&mut self) {
        // Processes that were killed a moment ago may still be in it.
        for _ in 0..50 {
            if std::fs::remove_dir(&self.dir).is_ok() || !self.dir.exists() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        eprintln!("{} is still there: remove it with rmdir", self.dir.display());
    }
}
