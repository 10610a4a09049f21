//! One node: a process that holds its namespaces, and its containerd.
//!
//! The holder is the first process. It makes the mount and UTS namespaces, with a private `/run`, and then sleeps; containerd and the
//! agent enter its namespaces, so either may die and be started again without the node's pods noticing.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

#[cfg(test)]
use super::exec::output;
use super::exec::{TestbedError, at};
use super::plan::{NodePlan, Plan};
use super::{cgroup, containerd, network};

/// A ready containerd answers within a fifth of a second; on a machine that is busy compiling it may take a hundred times as long.
const READY_TRIES: u32 = 600;
/// A containerd that ends at once several times has a reason, which is in its log.
const MAX_STARTS: u32 = 3;
const READY_PAUSE: Duration = Duration::from_millis(50);

/// Runs as the holder. `$1` cgroup.procs, `$2` netns file, `$3` host name, `$4` the agent's directory, `$5` file that says it is done.
/// The agent's directory becomes a shared mount, so that volumes mounted later can be propagated into containers.
const HOLDER: &str = r#"
echo $$ > "$1"
exec nsenter --net="$2" unshare --mount --propagation private --uts setsid sh -c '
  set -e
  hostname "$1"
  mount -t tmpfs -o mode=755 tmpfs /run
  mkdir -p /run/netns /run/containerd /run/lock
  mkdir -p /var/lib/cni && mount -t tmpfs tmpfs /var/lib/cni
  mount --bind "$2" "$2" && mount --make-rshared "$2"
  : > "$3"
  exec sleep infinity' holder "$3" "$4" "$5"
"#;

/// Runs a program in the node's cgroup and namespaces, as this very process. `$1` cgroup.procs, `$2` file with the holder's pid, then
/// the program and its arguments.
const ENTER: &str = r#"echo $$ > "$1" && pid=$(cat "$2") && shift 2 && exec nsenter -t "$pid" -m -n -u -- "$@""#;

fn holder_file(node: &NodePlan) -> PathBuf {
    node.runtime_dir().join("holder.pid")
}

fn containerd_file(node: &NodePlan) -> PathBuf {
    node.runtime_dir().join("containerd.pid")
}

/// The pid in this file, if that process lives and belongs to the node.
fn living(node: &NodePlan, file: &Path) -> Option<u32> {
    let pid = std::fs::read_to_string(file).ok()?.trim().parse().ok()?;
    cgroup::has(node, pid).then_some(pid)
}

/// The process that holds the node's namespaces.
pub(super) fn holder_pid(node: &NodePlan) -> Option<u32> {
    living(node, &holder_file(node))
}

/// Makes the node run, whatever state it is in.
pub(super) fn ensure(plan: &Plan, node: &NodePlan) -> Result<(), TestbedError> {
    if holder_pid(node).is_none() || !network::netns_exists(&node.netns) {
        remove(node)?;
        make_directories(node)?;
        network::make_node(plan, node)?;
        start_holder(node)?;
    }
    cgroup::freeze(node, false)?;
    ensure_containerd(node)
}

/// Makes containerd answer. One that was killed a moment ago may still look alive, so this looks again until there is an answer.
fn ensure_containerd(node: &NodePlan) -> Result<(), TestbedError> {
    let mut starts = 0;
    let answers = || {
        if UnixStream::connect(&node.cri_socket).is_ok() {
            return Ok(true);
        }
        if starts < MAX_STARTS && living(node, &containerd_file(node)).is_none() {
            starts += 1;
            start_containerd(node)?;
        }
        Ok(false)
    };
    wait_for(node, "containerd", answers)
}

fn make_directories(node: &NodePlan) -> Result<(), TestbedError> {
    for dir in [node.runtime_dir().join("log"), node.runtime_dir().join("certs.d"), node.pods_dir(), node.cni_conf_dir()] {
        at(&dir, std::fs::create_dir_all(&dir))?;
    }
    Ok(())
}

/// A detached process with its output in a log file.
fn start(node: &NodePlan, command: &mut Command, log: &str, pid_file: &Path) -> Result<(), TestbedError> {
    let path = node.runtime_dir().join("log").join(log);
    let file = at(&path, std::fs::OpenOptions::new().create(true).append(true).open(&path))?;
    let copy = at(&path, file.try_clone())?;
    let spawned = command.stdin(Stdio::null()).stdout(file).stderr(copy).spawn();
    let child = spawned.map_err(|source| TestbedError::Spawn { command: log.to_owned(), source })?;
    let pid = child.id();
    // It is to outlive us. While we live, somebody must fetch its exit status, or it would stay a zombie that looks alive.
    std::thread::spawn(move || {
        let mut child = child;
        child.wait()
    });
    at(pid_file, std::fs::write(pid_file, pid.to_string()))
}

fn start_holder(node: &NodePlan) -> Result<(), TestbedError> {
    let procs = cgroup::make(node)?;
    let done = node.runtime_dir().join("holder.ready");
    let _ = std::fs::remove_file(&done);
    let netns = Path::new("/run/netns").join(&node.netns);
    let mut command = Command::new("sh");
    command.args(["-c", HOLDER, "holder"]).arg(procs).arg(netns).arg(&node.name).arg(node.pods_dir()).arg(&done);
    start(node, &mut command, "holder.log", &holder_file(node))?;
    wait_for(node, "holder", || Ok(done.exists() && holder_pid(node).is_some()))
}

fn start_containerd(node: &NodePlan) -> Result<(), TestbedError> {
    let config = containerd::write_config(node)?;
    let _ = std::fs::remove_file(&node.cri_socket);
    // A session of its own: signals to our terminal's process group must not reach it.
    let line = node.enter(["setsid", "containerd", "--config", &config.to_string_lossy()].map(str::to_owned).to_vec());
    start(node, Command::new(&line[0]).args(&line[1..]), "containerd.log", &containerd_file(node))?;
    // Until it has joined the node's cgroup it cannot be told from a stranger.
    wait_for(node, "containerd", || Ok(living(node, &containerd_file(node)).is_some()))
}

fn wait_for(node: &NodePlan, what: &str, mut ready: impl FnMut() -> Result<bool, TestbedError>) -> Result<(), TestbedError> {
    for _ in 0..READY_TRIES {
        if ready()? {
            return Ok(());
        }
        std::thread::sleep(READY_PAUSE);
    }
    Err(TestbedError::NotReady(format!("{what} of {}", node.name), node.runtime_dir().join("log")))
}

impl NodePlan {
    /// The command line that runs `command` on the node: in its mount, network and UTS namespaces, and in its cgroup, so that it dies
    /// with the node. It fails when it runs if the node does not.
    pub(crate) fn enter(&self, command: Vec<String>) -> Vec<String> {
        let mount = cgroup::unified_mount().unwrap_or_else(|| "/sys/fs/cgroup".into());
        let procs = mount.join(&self.cgroup).join("sys/cgroup.procs");
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let mut line: Vec<String> = ["sh", "-c", ENTER, "enter"].map(str::to_owned).to_vec();
        line.extend([text(&procs), text(&holder_file(self))]);
        line.extend(command);
        line
    }
}

/// Kills and removes the node. Images and logs stay. Fine if there is nothing.
pub(super) fn remove(node: &NodePlan) -> Result<(), TestbedError> {
    cgroup::destroy(node)?;
    network::remove_node(node)?;
    for name in ["state", "ipam", "cri.sock", "cri.sock.ttrpc", "holder.pid", "holder.ready", "containerd.pid"] {
        let path = node.runtime_dir().join(name);
        let removed = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
        match removed {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return at(path, Err(e)),
            _ => {}
        }
    }
    Ok(())
}

/// Kills containerd alone, as a crash of it would. `up` starts it again.
#[cfg(test)]
pub(super) fn kill_containerd(node: &NodePlan) -> Result<(), TestbedError> {
    let pid = living(node, &containerd_file(node)).ok_or_else(|| TestbedError::NotRunning(node.name.clone()))?;
    output(Command::new("kill").args(["-9", &pid.to_string()])).map(drop)
}
