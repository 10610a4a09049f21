//! Keeps the processes of a cluster running: starts them, restarts those that die, ends them in order.

use std::fs::OpenOptions;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::layout::{Layout, State};

/// A child that dies is restarted after this, doubled each time up to [`RESTART_MAX`].
const RESTART_MIN: Duration = Duration::from_millis(100);
const RESTART_MAX: Duration = Duration::from_secs(5);

/// A child that lived this long starts again without delay.
const HEALTHY: Duration = Duration::from_secs(2);

/// How long a child may take to end before it is killed.
pub(crate) const GRACE: Duration = Duration::from_secs(10);

/// A process to keep running.
#[derive(Clone, Debug)]
pub(crate) struct Spec {
    /// Its name in the state file.
    pub(crate) name: String,
    /// Program and arguments.
    pub(crate) command: Vec<String>,
    /// Where it writes.
    pub(crate) log: PathBuf,
}

/// The state file, shared by the supervisors of all children.
#[derive(Clone)]
pub(crate) struct Book {
    layout: Layout,
    state: Arc<Mutex<State>>,
}

impl Book {
    /// Opens the book on a state.
    pub(crate) fn new(layout: Layout, state: State) -> Self {
        Self { layout, state: Arc::new(Mutex::new(state)) }
    }

    /// The state as it is now.
    #[cfg(test)]
    fn state(&self) -> State {
        self.state.lock().expect("no holder of this lock panics").clone()
    }

    fn record(&self, name: &str, pid: i32) -> Result<()> {
        let mut state = self.state.lock().expect("no holder of this lock panics");
        state.set_pid(name, pid);
        self.layout.save(&state)
    }
}

/// Keeps one process running until `stop` is true; then ends it, and returns when it is gone.
pub(crate) async fn keep(spec: Spec, book: Book, mut stop: watch::Receiver<bool>) -> Result<()> {
    let mut pause = RESTART_MIN;
    while !*stop.borrow() {
        let started = Instant::now();
        let mut child = start(&spec)?;
        let pid = child.id().and_then(|id| i32::try_from(id).ok()).unwrap_or(0);
        book.record(&spec.name, pid)?;
        tokio::select! {
            status = child.wait() => {
                book.record(&spec.name, 0)?;
                let status = status.map_or_else(|e| e.to_string(), |s| s.to_string());
                tracing::warn!(child = spec.name, pid, status, log = %spec.log.display(), "child ended; restarting");
            }
            () = told(&mut stop) => {
                end(&mut child, pid).await;
                book.record(&spec.name, 0)?;
                return Ok(());
            }
        }
        pause = if started.elapsed() > HEALTHY { RESTART_MIN } else { (pause * 2).min(RESTART_MAX) };
        tokio::select! {
            () = sleep(pause) => {}
            () = told(&mut stop) => {}
        }
    }
    Ok(())
}

/// Completes when `stop` is true, or nobody is left to say so.
async fn told(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

fn start(spec: &Spec) -> Result<Child> {
    let log = OpenOptions::new().create(true).append(true).open(&spec.log);
    let log = log.with_context(|| format!("cannot write {}", spec.log.display()))?;
    let (program, args) = spec.command.split_first().context("a command has a program")?;
    Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(log.try_clone().context("cannot share a log file")?)
        .stderr(log)
        // A group of its own: Ctrl-C at the terminal reaches the supervisor alone, which then ends the children in order.
        .process_group(0)
        .spawn()
        .with_context(|| format!("cannot start {}", spec.name))
}

async fn end(child: &mut Child, pid: i32) {
    let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
    if timeout(GRACE, child.wait()).await.is_err() {
        let _ = child.kill().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(dir: &std::path::Path, script: &str) -> Spec {
        Spec { name: "server-1".into(), command: vec!["/bin/sh".into(), "-c".into(), script.into()], log: dir.join("log/server-1.log") }
    }

    #[tokio::test]
    async fn a_child_that_dies_comes_back_and_is_gone_at_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::open(dir.path()).unwrap();
        let book = Book::new(layout, State::plan(1, 0, "hollow").unwrap());
        let (stop, stopped) = watch::channel(false);
        let keeper = tokio::spawn(keep(spec(dir.path(), "exec sleep 1000"), book.clone(), stopped));
        let pid_other_than = async |old: i32| {
            loop {
                let pid = book.state().servers[0].pid;
                if pid != 0 && pid != old {
                    return pid;
                }
                sleep(Duration::from_millis(5)).await;
            }
        };
        let first = pid_other_than(0).await;
        kill(Pid::from_raw(first), Signal::SIGKILL).unwrap();
        let second = pid_other_than(first).await;
        stop.send(true).unwrap();
        keeper.await.unwrap().unwrap();
        assert_eq!(book.state().servers[0].pid, 0);
        assert!(kill(Pid::from_raw(second), None).is_err(), "the child is gone");
    }
}
