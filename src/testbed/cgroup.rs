//! A node is one subtree of every cgroup hierarchy: it can be frozen, killed and removed as a whole.
//!
//! The cgroup2 tree does the freezing and killing, on pure cgroup2 machines and on hybrid ones alike; the runtime makes the same path
//! in the v1 hierarchies, where only empty directories are left to remove.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::exec::{TestbedError, at};
use super::plan::NodePlan;

/// Where cgroup2 is mounted.
pub(super) fn unified_mount() -> Option<PathBuf> {
    mounts_of("cgroup2").into_iter().next()
}

/// Mount points of this filesystem type.
fn mounts_of(kind: &str) -> Vec<PathBuf> {
    let info = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    parse_mounts(&info, kind)
}

/// Whether something is mounted exactly here.
pub(super) fn is_mount_point(path: &str) -> bool {
    let info = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    info.lines().any(|line| line.split(' ').nth(4) == Some(path))
}

/// From mountinfo: the fifth word is the mount point; the type follows the lone dash.
fn parse_mounts(info: &str, kind: &str) -> Vec<PathBuf> {
    let of_kind = info.lines().filter(|line| line.split_once(" - ").is_some_and(|(_, tail)| tail.split(' ').next() == Some(kind)));
    of_kind.filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from).collect()
}

/// The node's directory in the cgroup2 tree.
fn unified(node: &NodePlan) -> Result<PathBuf, TestbedError> {
    Ok(unified_mount().ok_or(TestbedError::NoCgroup)?.join(&node.cgroup))
}

/// Makes the cgroup for the node's own processes; gives the file that takes a pid.
pub(super) fn make(node: &NodePlan) -> Result<PathBuf, TestbedError> {
    let dir = unified(node)?.join("sys");
    at(&dir, std::fs::create_dir_all(&dir))?;
    Ok(dir.join("cgroup.procs"))
}

/// Whether a process belongs to the node: a pid from a file may have been taken by a stranger since.
pub(super) fn has(node: &NodePlan, pid: u32) -> bool {
    let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let here = format!("/{}/sys", node.cgroup);
    text.lines().any(|line| line.splitn(3, ':').nth(2).is_some_and(|path| path == here))
}

/// Stops or continues all processes of the node.
pub(super) fn freeze(node: &NodePlan, frozen: bool) -> Result<(), TestbedError> {
    let file = unified(node)?.join("cgroup.freeze");
    at(&file, std::fs::write(&file, if frozen { "1" } else { "0" }))
}

/// Kills every process of the node and removes its cgroups everywhere. Fine if there is nothing.
pub(super) fn destroy(node: &NodePlan) -> Result<(), TestbedError> {
    let dir = unified(node)?;
    if dir.exists() {
        freeze(node, false)?;
        let kill = dir.join("cgroup.kill");
        at(&kill, std::fs::write(&kill, "1"))?;
        wait_empty(&dir)?;
    }
    let mut left = None;
    for mount in mounts_of("cgroup").into_iter().chain(mounts_of("cgroup2")) {
        let dir = mount.join(&node.cgroup);
        if dir.exists() && !remove_tree(&dir) {
            left = Some(dir);
        }
    }
    left.map_or(Ok(()), |dir| Err(TestbedError::Leftover(dir.display().to_string())))
}

fn wait_empty(dir: &Path) -> Result<(), TestbedError> {
    for _ in 0..1_000 {
        let events = std::fs::read_to_string(dir.join("cgroup.events")).unwrap_or_default();
        if !events.contains("populated 1") {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Err(TestbedError::Leftover(format!("processes in {}", dir.display())))
}

/// Removes a directory of cgroups, children first. A cgroup stays busy for a moment after its last process, so this tries a few times.
fn remove_tree(dir: &Path) -> bool {
    for _ in 0..50 {
        remove_children_first(dir);
        if !dir.exists() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    false
}

fn remove_children_first(dir: &Path) {
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    for entry in entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())) {
        remove_children_first(&entry.path());
    }
    // Busy ones are tried again by the caller.
    let _ = std::fs::remove_dir(dir);
}

/// Indices of nodes with this prefix that have a cgroup.
pub(super) fn node_indices(prefix: &str) -> Vec<usize> {
    let Some(mount) = unified_mount() else { return Vec::new() };
    let entries = std::fs::read_dir(mount).into_iter().flatten().flatten();
    entries.filter_map(|e| e.file_name().to_str()?.strip_prefix(prefix)?.strip_prefix("-n")?.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_is_read_by_type() {
        let info = "30 24 0:26 / /sys/fs/cgroup/cpu rw,relatime shared:9 - cgroup cgroup rw,cpu\n\
                    31 24 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
                    32 24 0:28 / / rw - ext4 /dev/vda rw\n";
        assert_eq!(parse_mounts(info, "cgroup2"), [PathBuf::from("/sys/fs/cgroup/unified")]);
        assert_eq!(parse_mounts(info, "cgroup"), [PathBuf::from("/sys/fs/cgroup/cpu")]);
        assert!(parse_mounts(info, "btrfs").is_empty());
    }
}
