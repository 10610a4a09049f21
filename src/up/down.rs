//! Ends a cluster: through its supervisor, or without it when that has been killed.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::time::{Instant, sleep};

use super::layout::{Layout, State};
use super::supervise::GRACE;
use crate::cli::DownArgs;
use crate::testbed::Testbed;

/// The supervisor first waits for agents, then for servers, and then cleans up the nodes.
const SUPERVISOR_GRACE: Duration = Duration::from_secs(40);

/// Runs the command.
pub(crate) async fn run(args: &DownArgs) -> Result<()> {
    if !args.data_dir.exists() {
        println!("nothing to end: {} does not exist", args.data_dir.display());
        return Ok(());
    }
    let layout = Layout::open(&args.data_dir)?;
    if let Some(state) = layout.load()? {
        if is_ours(state.supervisor, &layout, "up") {
            signal(state.supervisor, Signal::SIGTERM);
            wait_gone(&[state.supervisor], SUPERVISOR_GRACE).await;
        }
        // What is left if the supervisor was killed, or did not manage.
        end_children(&layout, &layout.load()?.unwrap_or(state)).await?;
        layout.forget_processes()?;
    }
    let dir = layout.dir.clone();
    tokio::task::spawn_blocking(move || Testbed::clean(&dir)).await.context("cleaning up panicked")??;
    if args.purge {
        std::fs::remove_dir_all(&layout.dir).with_context(|| format!("cannot remove {}", layout.dir.display()))?;
        println!("ended, and {} removed", layout.dir.display());
    } else {
        println!("ended; data is kept in {}", layout.dir.display());
    }
    Ok(())
}

/// Ends the children that a state file names, if they still run and are what the file says.
pub(crate) async fn end_children(layout: &Layout, state: &State) -> Result<()> {
    let living: Vec<i32> = state.children().map(|(_, pid)| pid).filter(|pid| is_ours(*pid, layout, "--data-dir=")).collect();
    for pid in &living {
        signal(*pid, Signal::SIGTERM);
    }
    let stubborn = wait_gone(&living, GRACE).await;
    for pid in &stubborn {
        signal(*pid, Signal::SIGKILL);
    }
    let left = wait_gone(&stubborn, GRACE).await;
    if !left.is_empty() {
        bail!("processes {left:?} do not end, even when killed");
    }
    Ok(())
}

fn signal(pid: i32, signal: Signal) {
    // It may have ended by itself meanwhile: that is what we want.
    let _ = kill(Pid::from_raw(pid), signal);
}

/// Waits until the processes are gone; returns those that are not after `limit`.
async fn wait_gone(pids: &[i32], limit: Duration) -> Vec<i32> {
    let deadline = Instant::now() + limit;
    loop {
        let left: Vec<i32> = pids.iter().copied().filter(|pid| lives(*pid)).collect();
        if left.is_empty() || Instant::now() >= deadline {
            return left;
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// Whether a process runs: a zombie does not.
pub(super) fn lives(pid: i32) -> bool {
    if pid <= 0 || kill(Pid::from_raw(pid), None) == Err(Errno::ESRCH) {
        return false;
    }
    // A zombie has ended; its parent has just not asked yet.
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| !rest.starts_with('Z') && !rest.is_empty())
}

/// Whether a pid from the state file is still the process that was meant: pids are used again.
fn is_ours(pid: i32, layout: &Layout, word: &str) -> bool {
    if !lives(pid) {
        return false;
    }
    let cmdline = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let cmdline = String::from_utf8_lossy(&cmdline);
    let folder = layout.dir.to_string_lossy();
    cmdline.contains("kontiki") && cmdline.contains(word) && (word == "up" || cmdline.contains(folder.as_ref()))
}
