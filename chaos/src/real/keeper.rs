//! The keeper: a second process that undoes what the harness did, if the harness does not.
//!
//! It reads lines from a pipe whose other end only the harness holds. When the pipe ends without the word `done`, the harness is dead, and
//! the keeper removes the run from the machine. A line `arm NAME MS WORDS…` is a lease: if it is not disarmed within that time, the keeper
//! runs the words, which undo a fault. So a harness that hangs cannot leave a process stopped or a clock shifted.

use std::collections::BTreeMap;
use std::io::{BufRead as _, Write as _};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kontiki_base::env::{Env, Mono};
use kontiki_proto::env::SystemEnv;

use super::scene::Scene;
use super::tool;

/// Lines that may wait to be read.
const LINES: usize = 64;

/// The harness's end.
#[derive(Clone)]
pub(crate) struct Keeper {
    child: Arc<Mutex<Child>>,
}

/// What is undone if it is not disarmed in time.
#[derive(Debug)]
pub(crate) struct Lease {
    name: String,
}

impl Keeper {
    /// Starts the keeper of a run.
    ///
    /// # Errors
    /// This program cannot be started again.
    pub(crate) fn start(scene: &Scene) -> std::io::Result<Self> {
        use std::os::unix::process::CommandExt as _;
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["chaos", "keeper", &scene.id]).stdin(Stdio::piped()).stdout(Stdio::null());
        // A group of its own: Ctrl-C at the terminal is for the harness.
        let child = command.process_group(0).spawn()?;
        Ok(Self { child: Arc::new(Mutex::new(child)) })
    }

    fn say(&self, line: &str) {
        let mut child = self.child.lock().expect("no holder of this lock panics");
        if let Some(pipe) = child.stdin.as_mut() {
            // A dead keeper is replaced by the next run, which collects what dead runs left.
            let _ = writeln!(pipe, "{line}").and_then(|()| pipe.flush());
        }
    }

    /// From now on `words` are run after `within`, unless the lease is disarmed.
    pub(crate) fn arm(&self, name: &str, within: Duration, words: &[&str]) -> Lease {
        let name: String = name.chars().map(|c| if c.is_whitespace() { '-' } else { c }).collect();
        self.say(&format!("arm {name} {} {}", within.as_millis(), words.join(" ")));
        Lease { name }
    }

    /// The fault was undone.
    pub(crate) fn disarm(&self, lease: Lease) {
        self.say(&format!("disarm {}", lease.name));
    }

    /// Everything was removed: the keeper may go, too.
    pub(crate) fn done(&self) {
        self.say("done");
        let mut child = self.child.lock().expect("no holder of this lock panics");
        drop(child.stdin.take());
        let _ = child.wait();
    }
}

/// The keeper's own process.
pub(crate) fn run(id: &str) {
    let env = SystemEnv::new();
    let (lines, inbox) = sync_channel::<String>(LINES);
    let reader = std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if lines.send(line).is_err() {
                break;
            }
        }
    });
    let mut leases: BTreeMap<String, (Mono, Vec<String>)> = BTreeMap::new();
    let done = loop {
        let now = env.now_mono();
        let next = leases.values().map(|(due, _)| due.since(now)).min().unwrap_or(Duration::from_secs(3600));
        match inbox.recv_timeout(next) {
            Ok(line) if line == "done" => break true,
            Ok(line) => note(&line, env.now_mono(), &mut leases),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break false,
        }
        let now = env.now_mono();
        leases.retain(|_, (due, words)| {
            if *due <= now {
                undo(words);
            }
            *due > now
        });
    };
    if !done {
        leases.values().for_each(|(_, words)| undo(words));
        if let Err(left) = Scene::of(id).remove(false) {
            eprintln!("kontiki chaos: run {id} ended without cleaning up, and this is left: {left}");
        }
    }
    // The reader ends with the pipe; a keeper that was told to go need not wait for it.
    drop(reader);
}

fn note(line: &str, now: Mono, leases: &mut BTreeMap<String, (Mono, Vec<String>)>) {
    let mut words = line.split(' ').map(str::to_owned);
    match (words.next().as_deref(), words.next(), words.next().map(|ms| ms.parse::<u64>())) {
        (Some("arm"), Some(name), Some(Ok(ms))) => {
            leases.insert(name, (now.plus(Duration::from_millis(ms)), words.collect()));
        }
        (Some("disarm"), Some(name), None) => {
            leases.remove(&name);
        }
        _ => {}
    }
}

fn undo(words: &[String]) {
    // What the fault was done to may be gone, and with it the fault.
    let _ = tool::run(&words.iter().map(String::as_str).collect::<Vec<_>>());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases_are_noted_and_forgotten() {
        let mut leases = BTreeMap::new();
        let now = Mono(Duration::from_secs(1));
        note("arm pause-server-1 2000 kill -CONT 17", now, &mut leases);
        note("nonsense", now, &mut leases);
        assert_eq!(leases["pause-server-1"], (Mono(Duration::from_secs(3)), vec!["kill".into(), "-CONT".into(), "17".into()]));
        note("disarm pause-server-1", now, &mut leases);
        assert!(leases.is_empty());
    }
}
