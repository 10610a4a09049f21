//! What a run leaves on the machine, and how all of it is removed again, whoever died before doing so.
//!
//! A run has an id. Everything that it makes carries it: its folder, the names of its network namespaces, and a variable in the environment
//! of each of its processes. So nothing needs to be written down: what belongs to a run is found by its id, and removing it works from any
//! state, half-made ones included.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::tool::{self, ToolError};

/// In the environment of every process of a run.
pub(crate) const VARIABLE: &str = "KONTIKI_CHAOS_RUN";

/// Begins the names of network namespaces.
const PREFIX: &str = "kc";

/// In a folder that its owner asked to keep.
const KEPT: &str = "kept";

const NETNS_DIR: &str = "/run/netns";

/// The place of one run on this machine.
#[derive(Clone, Debug)]
pub(crate) struct Scene {
    /// Six hexadecimal digits.
    pub(crate) id: String,
    /// Its folder.
    pub(crate) dir: PathBuf,
}

/// Where the folders of all runs are.
fn base() -> PathBuf {
    let user = nix::unistd::geteuid();
    let name = if user.is_root() { "kontiki-chaos".to_owned() } else { format!("kontiki-chaos-{user}") };
    std::env::var_os("KONTIKI_CHAOS_DIR").map_or_else(|| Path::new("/var/tmp").join(name), PathBuf::from)
}

/// A process: its number, and when it started, since numbers are used again.
fn stamp(pid: u32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The 22nd word is the start time; the second may contain blanks and ends with the last parenthesis.
    let start = stat.rsplit_once(')')?.1.split_whitespace().nth(19)?;
    Some(format!("{pid} {start}"))
}

impl Scene {
    /// A new place; its folder is made, and says that this process owns it.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub(crate) fn new(random: u64) -> Result<Self, ToolError> {
        let id = format!("{:06x}", random & 0xff_ffff);
        let scene = Self::of(&id);
        tool::at(&scene.dir, std::fs::create_dir_all(&scene.dir))?;
        let owner = scene.dir.join("owner");
        tool::at(&owner, std::fs::write(&owner, stamp(std::process::id()).unwrap_or_default()))?;
        Ok(scene)
    }

    /// The place of a run of this id.
    pub(crate) fn of(id: &str) -> Self {
        Self { id: id.to_owned(), dir: base().join(id) }
    }

    /// All places on this machine, those of dead runs included.
    pub(crate) fn all() -> Vec<Self> {
        let folders = std::fs::read_dir(base()).into_iter().flatten().flatten().filter_map(|e| e.file_name().into_string().ok());
        let spaces = netns_names().into_iter().filter_map(|n| n.strip_prefix(PREFIX).and_then(|n| n.get(..6)).map(str::to_owned));
        let ids: BTreeSet<String> = folders.chain(spaces).filter(|id| id.len() == 6 && u32::from_str_radix(id, 16).is_ok()).collect();
        ids.iter().map(|id| Self::of(id)).collect()
    }

    /// Whether the process that made it still runs.
    pub(crate) fn owned(&self) -> bool {
        let Ok(owner) = std::fs::read_to_string(self.dir.join("owner")) else { return false };
        owner.split(' ').next().and_then(|pid| pid.parse().ok()).and_then(stamp).is_some_and(|now| now == owner)
    }

    /// The full name of a network namespace of this run.
    pub(crate) fn netns(&self, short: &str) -> String {
        format!("{PREFIX}{}-{short}", self.id)
    }

    /// The file of a network namespace of this run.
    pub(crate) fn netns_file(&self, short: &str) -> PathBuf {
        Path::new(NETNS_DIR).join(self.netns(short))
    }

    /// Removes everything of this run: processes, mounts, loop devices, network namespaces, its folder (unless `keep`). Works from any
    /// state; what is gone already is fine.
    ///
    /// # Errors
    /// What is left, in words.
    pub(crate) fn remove(&self, keep: bool) -> Result<(), String> {
        let mut left = Vec::new();
        for _ in 0..50 {
            let alive = self.processes();
            if alive.is_empty() {
                break;
            }
            for pid in alive {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
                // A stopped one dies of SIGKILL, too; one in a frozen cgroup only when that is thawed, which its owner does.
                let _ = kill(Pid::from_raw(pid), Signal::SIGCONT);
            }
            std::thread::sleep(Duration::from_millis(40));
        }
        let alive = self.processes();
        if !alive.is_empty() {
            left.push(format!("processes {alive:?}"));
        }
        for mount in self.mounts() {
            let path = mount.display().to_string();
            if let Err(e) = tool::run(&["umount", &path]).or_else(|_| tool::run(&["umount", "-l", &path])) {
                left.push(e.to_string());
            }
        }
        for (device, _) in self.loops() {
            let _ = tool::run(&["losetup", "-d", &device]);
        }
        left.extend(self.remove_netns());
        if keep {
            // The next run must not take it for garbage.
            let _ = std::fs::write(self.dir.join(KEPT), b"");
        }
        if !keep && self.dir.exists() && self.mounts().is_empty() {
            if let Err(e) = std::fs::remove_dir_all(&self.dir) {
                left.push(format!("{}: {e}", self.dir.display()));
            }
            // The folder of folders goes with the last one.
            let _ = std::fs::remove_dir(base());
        }
        if left.is_empty() { Ok(()) } else { Err(left.join("; ")) }
    }

    /// Removes the run's network namespaces; says what could not be removed.
    pub(crate) fn remove_netns(&self) -> Vec<String> {
        let own = netns_names().into_iter().filter(|name| name.starts_with(&self.netns("")));
        own.filter_map(|name| tool::run(&["ip", "netns", "del", &name]).err().map(|e| e.to_string())).collect()
    }

    /// Living processes of this run.
    pub(crate) fn processes(&self) -> Vec<i32> {
        let mark = format!("{VARIABLE}={}", self.id);
        let me = std::process::id();
        let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = all.filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok()).filter(|pid| *pid != me);
        pids.filter(|pid| {
            let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environment.split(|b| *b == 0).any(|item| item == mark.as_bytes())
        })
        .filter_map(|pid| i32::try_from(pid).ok())
        .collect()
    }

    /// Mount points under the run's folder, deepest first.
    fn mounts(&self) -> Vec<PathBuf> {
        let info = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let mut all: Vec<PathBuf> =
            info.lines().filter_map(|l| l.split(' ').nth(4)).map(PathBuf::from).filter(|p| p.starts_with(&self.dir)).collect();
        all.sort_by_key(|p| std::cmp::Reverse(p.components().count()));
        all
    }

    /// Loop devices on images of the run's folder.
    fn loops(&self) -> Vec<(String, String)> {
        let text = tool::run(&["losetup", "-n", "-l", "-O", "NAME,BACK-FILE"]).unwrap_or_default();
        let rows = text.lines().filter_map(|l| l.split_once(char::is_whitespace)).map(|(d, f)| (d.to_owned(), f.trim().to_owned()));
        rows.filter(|(_, file)| Path::new(file).starts_with(&self.dir)).collect()
    }
}

fn netns_names() -> Vec<String> {
    std::fs::read_dir(NETNS_DIR).into_iter().flatten().flatten().filter_map(|e| e.file_name().into_string().ok()).collect()
}

/// Removes what dead runs left. Says which, and what could not be removed. Folders that somebody asked to keep stay, unless `all`.
pub(crate) fn collect_garbage(all: bool) -> Vec<(String, Result<(), String>)> {
    let dead = Scene::all().into_iter().filter(|scene| !scene.owned() && (all || !scene.dir.join(KEPT).exists()));
    dead.map(|scene| (scene.id.clone(), scene.remove(false))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_belongs_to_a_run_is_found_and_removed() {
        let scene = Scene::new(u64::from(std::process::id()) ^ 0x5a_5a5a).unwrap();
        assert!(scene.owned(), "by this process");
        assert!(Scene::all().iter().any(|s| s.id == scene.id));
        let mut child = std::process::Command::new("sleep").arg("1000").env(VARIABLE, &scene.id).spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        // The environment is there once the program has been loaded.
        while !scene.processes().contains(&pid) {
            std::thread::yield_now();
        }
        // The child must be waited for, or it stays in the table of processes as a zombie without an environment.
        scene.remove(false).unwrap();
        child.wait().unwrap();
        assert!(!scene.dir.exists() && scene.processes().is_empty());
        assert!(!scene.owned());
    }

    #[test]
    fn what_was_kept_is_no_garbage() {
        let scene = Scene::of("00babe");
        std::fs::create_dir_all(&scene.dir).unwrap();
        scene.remove(true).unwrap();
        assert!(!collect_garbage(false).iter().any(|(id, _)| *id == scene.id) && scene.dir.exists());
        scene.remove(false).unwrap();
    }

    #[test]
    fn a_number_that_was_used_again_is_not_the_owner() {
        let scene = Scene::of("00dead");
        std::fs::create_dir_all(&scene.dir).unwrap();
        std::fs::write(scene.dir.join("owner"), format!("{} 1", std::process::id())).unwrap();
        assert!(!scene.owned());
        scene.remove(false).unwrap();
    }
}
