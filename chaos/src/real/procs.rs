//! Processes of a run: started, signalled, and started again when they end though they should not.
//!
//! Each process has a task that keeps it as it is wanted. A fault says "not wanted", kills, and later says "wanted" again. A process that
//! ends while it is wanted is started again after a moment, as an init system does, and its end is noted: for some faults (a full disk) it
//! is the right thing to do, without one it is a bug.

use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kontiki_base::env::{Env, Mono};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::Command;
use tokio::sync::watch;

use super::scene::VARIABLE;

/// A process that ended by itself is started again after this.
const RESTART: Duration = Duration::from_millis(300);

/// Ends that are kept in memory for one process; more are counted and not described.
const ENDS: usize = 64;

/// How to start it.
#[derive(Clone, Debug)]
pub(crate) struct Spec {
    /// `server-1`…
    pub(crate) name: String,
    /// Program and arguments.
    pub(crate) command: Vec<String>,
    /// Added to its environment.
    pub(crate) variables: Vec<(String, String)>,
    /// Where it writes.
    pub(crate) log: PathBuf,
}

/// What is known of a process.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct State {
    /// Its number; `None` while it does not run.
    pub(crate) pid: Option<i32>,
    /// How often it was started.
    pub(crate) starts: u32,
    /// How it ended the last time.
    pub(crate) ended: Option<ExitStatus>,
}

/// An end that nobody asked for.
#[derive(Clone, Debug)]
pub(crate) struct UnexpectedEnd {
    /// Whose.
    pub(crate) name: String,
    /// When, on the system's monotonic clock.
    pub(crate) at: Mono,
    /// How.
    pub(crate) how: String,
}

/// A process that is kept as it is wanted.
#[derive(Clone)]
pub(crate) struct Proc {
    name: Arc<str>,
    spec: Arc<Mutex<Spec>>,
    wanted: watch::Sender<bool>,
    state: watch::Receiver<State>,
    ends: Arc<Mutex<Vec<UnexpectedEnd>>>,
}

impl Proc {
    /// A process that is wanted from now on. `id` is the run's.
    pub(crate) fn start(spec: Spec, id: &str, env: Arc<dyn Env>) -> Self {
        let (wanted, want) = watch::channel(true);
        let (told, state) = watch::channel(State::default());
        let name: Arc<str> = spec.name.as_str().into();
        let spec = Arc::new(Mutex::new(spec));
        let ends = Arc::new(Mutex::new(Vec::new()));
        let keeper = keep(spec.clone(), id.to_owned(), env, want, told, ends.clone());
        tokio::spawn(keeper);
        Self { name, spec, wanted, state, ends }
    }

    /// Its name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// What is known of it now.
    pub(crate) fn state(&self) -> State {
        *self.state.borrow()
    }

    /// Changes how it will be started the next time.
    pub(crate) fn change(&self, change: impl FnOnce(&mut Spec)) {
        change(&mut self.spec.lock().expect("no holder of this lock panics"));
    }

    /// Ends that nobody asked for, so far.
    pub(crate) fn unexpected(&self) -> Vec<UnexpectedEnd> {
        self.ends.lock().expect("no holder of this lock panics").clone()
    }

    /// It is wanted, and will be started if it does not run.
    pub(crate) fn up(&self) {
        let _ = self.wanted.send(true);
    }

    /// It is not wanted: if it ends it stays away.
    pub(crate) fn down(&self) {
        let _ = self.wanted.send(false);
    }

    /// Sends a signal; gives the pid that got it.
    ///
    /// # Errors
    /// It does not run.
    pub(crate) fn signal(&self, signal: Signal) -> Result<i32, String> {
        let pid = self.state().pid.ok_or_else(|| format!("{} does not run", self.name))?;
        kill(Pid::from_raw(pid), signal).map_err(|e| format!("{}: {e}", self.name))?;
        Ok(pid)
    }

    /// Not wanted, and this signal; returns when it is gone, with how it ended.
    ///
    /// # Errors
    /// It does not run, or is not gone within `limit`.
    pub(crate) async fn end(&self, signal: Signal, limit: Duration) -> Result<ExitStatus, String> {
        self.down();
        let pid = self.signal(signal)?;
        self.gone(pid, limit).await
    }

    /// Waits until the process of this pid is gone.
    ///
    /// # Errors
    /// It is not gone within `limit`.
    pub(crate) async fn gone(&self, pid: i32, limit: Duration) -> Result<ExitStatus, String> {
        let mut state = self.state.clone();
        let gone = tokio::time::timeout(limit, state.wait_for(|s| s.pid != Some(pid))).await;
        let state = *gone.map_err(|_| format!("{} is not gone after {} s", self.name, limit.as_secs()))?.map_err(|e| e.to_string())?;
        state.ended.ok_or_else(|| format!("{} is gone, and nobody knows how", self.name))
    }

    /// The kernel's letter for what the process does: R, S, D, T (stopped), Z.
    pub(crate) fn letter(&self) -> Option<char> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.state().pid?)).ok()?;
        stat.rsplit_once(')')?.1.trim_start().chars().next()
    }
}

/// How a process ended, in words.
pub(crate) fn how(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => status.to_string(),
    }
}

async fn keep(
    spec: Arc<Mutex<Spec>>,
    id: String,
    env: Arc<dyn Env>,
    mut want: watch::Receiver<bool>,
    told: watch::Sender<State>,
    ends: Arc<Mutex<Vec<UnexpectedEnd>>>,
) {
    while want.wait_for(|want| *want).await.is_ok() && want.has_changed().is_ok() {
        let spec = spec.lock().expect("no holder of this lock panics").clone();
        let mut child = match spawn(&spec, &id) {
            Ok(child) => child,
            Err(e) => {
                tracing::error!(name = spec.name, error = %e, "cannot start a process of the cluster");
                env.sleep(RESTART).await;
                continue;
            }
        };
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
        told.send_modify(|s| *s = State { pid, starts: s.starts + 1, ..*s });
        let status = tokio::select! {
            status = child.wait() => status.ok(),
            // Nobody is left to want it: the run is over, in whatever way.
            () = forgotten(&mut want) => {
                let _ = child.kill().await;
                return;
            }
        };
        if *want.borrow() {
            let mut ends = ends.lock().expect("no holder of this lock panics");
            if ends.len() < ENDS {
                let how = status.map_or_else(|| "unknown".into(), how);
                ends.push(UnexpectedEnd { name: spec.name.clone(), at: env.now_mono(), how });
            }
        }
        told.send_modify(|s| *s = State { pid: None, ended: status, ..*s });
        if *want.borrow() {
            env.sleep(RESTART).await;
        }
    }
}

/// Completes when nobody holds the other end.
async fn forgotten(want: &mut watch::Receiver<bool>) {
    while want.changed().await.is_ok() {}
}

fn spawn(spec: &Spec, id: &str) -> std::io::Result<tokio::process::Child> {
    let log = std::fs::OpenOptions::new().create(true).append(true).open(&spec.log)?;
    let (program, args) = spec.command.split_first().ok_or_else(|| std::io::Error::other("a command has a program"))?;
    let mut command = Command::new(program);
    command.args(args).envs(spec.variables.iter().cloned()).env(VARIABLE, id);
    // A group of its own: Ctrl-C at the terminal is for the harness, which ends its processes in order.
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0).kill_on_drop(true).spawn()
}

#[cfg(test)]
mod tests {
    use kontiki_proto::env::SystemEnv;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(60);

    impl Proc {
        /// Waits until it runs; gives its pid.
        ///
        /// # Errors
        /// It does not run within `limit`.
        async fn running(&self, limit: Duration) -> Result<i32, String> {
            let mut state = self.state.clone();
            let up = tokio::time::timeout(limit, state.wait_for(|s| s.pid.is_some())).await;
            let state = *up.map_err(|_| format!("{} does not run after {} s", self.name, limit.as_secs()))?.map_err(|e| e.to_string())?;
            state.pid.ok_or_else(|| format!("{} does not run", self.name))
        }
    }

    fn sleeper(dir: &std::path::Path, script: &str) -> Proc {
        let command = ["sh", "-c", script].map(str::to_owned).to_vec();
        let spec = Spec { name: "p".into(), command, variables: vec![], log: dir.join("log") };
        Proc::start(spec, "000000", Arc::new(SystemEnv::new()))
    }

    #[tokio::test]
    async fn what_is_wanted_comes_back_and_what_is_not_stays_away() {
        let dir = tempfile::tempdir().unwrap();
        let proc = sleeper(dir.path(), "exec sleep 1000");
        let first = proc.running(LIMIT).await.unwrap();
        let status = proc.end(Signal::SIGKILL, LIMIT).await.unwrap();
        assert_eq!(how(status), "signal 9");
        assert_eq!((proc.state().pid, proc.unexpected().len()), (None, 0));
        proc.up();
        let second = proc.running(LIMIT).await.unwrap();
        assert_ne!(first, second);
        // Killed by a stranger: it comes back by itself, and the end is noted.
        kill(Pid::from_raw(second), Signal::SIGTERM).unwrap();
        proc.gone(second, LIMIT).await.unwrap();
        let third = proc.running(LIMIT).await.unwrap();
        assert_ne!(second, third);
        assert_eq!(proc.unexpected()[0].how, "signal 15");
        proc.end(Signal::SIGKILL, LIMIT).await.unwrap();
    }

    #[tokio::test]
    async fn a_process_ends_with_those_who_wanted_it() {
        let dir = tempfile::tempdir().unwrap();
        let proc = sleeper(dir.path(), "exec sleep 1000");
        let pid = proc.running(LIMIT).await.unwrap();
        drop(proc);
        while kill(Pid::from_raw(pid), None).is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn a_stopped_process_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let proc = sleeper(dir.path(), "exec sleep 1000");
        proc.running(LIMIT).await.unwrap();
        proc.signal(Signal::SIGSTOP).unwrap();
        while proc.letter() != Some('T') {
            tokio::task::yield_now().await;
        }
        proc.end(Signal::SIGKILL, LIMIT).await.unwrap();
        assert!(proc.signal(Signal::SIGCONT).is_err());
    }
}
