//! A cluster as its users start it: `kontiki up --detach`. It ends with the test, however the test ends.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::run::{Output, run};

/// Starting and ending may take this long on a busy machine.
const LIMIT: Duration = Duration::from_secs(150);

/// A running cluster.
#[derive(Debug)]
pub struct Cluster {
    dir: tempfile::TempDir,
}

/// The program under test: built by `cargo verify` before the tests run.
///
/// # Panics
/// It is not there.
pub fn program() -> PathBuf {
    let me = std::env::current_exe().expect("this test is a program");
    let profile = me.parent().and_then(Path::parent).expect("tests lie in target/PROFILE/deps");
    let program = profile.join("kontiki");
    assert!(program.is_file(), "{} is not built: run `cargo build` first", program.display());
    program
}

impl Cluster {
    /// Starts one with simulated nodes, and waits until it serves.
    ///
    /// # Panics
    /// It does not start.
    pub fn start(servers: u8, nodes: u8) -> Self {
        Self::start_with(servers, nodes, &[])
    }

    /// The same, with more arguments of `kontiki up`.
    ///
    /// # Panics
    /// It does not start.
    pub fn start_with(servers: u8, nodes: u8, more: &[&str]) -> Self {
        let cluster = Self { dir: tempfile::tempdir().expect("a temporary folder") };
        cluster.up_with(servers, nodes, more);
        cluster
    }

    /// Starts it again on the same data.
    ///
    /// # Panics
    /// It does not start.
    pub fn up(&self, servers: u8, nodes: u8) -> String {
        self.up_with(servers, nodes, &[])
    }

    fn up_with(&self, servers: u8, nodes: u8, more: &[&str]) -> String {
        let (servers, nodes, me) = (servers.to_string(), nodes.to_string(), std::process::id().to_string());
        let args = ["up", "--runtime", "hollow", "--detach", "--servers", &servers, "--nodes", &nodes, "--while-process", &me];
        let output = self.kontiki(&[&args, more].concat());
        if !output.ok {
            self.print_logs();
        }
        output.expect_ok()
    }

    /// Runs `kontiki` on this cluster's data folder.
    pub fn kontiki(&self, args: &[&str]) -> Output {
        run(Command::new(program()).args(args).arg("--data-dir").arg(self.dir.path()), LIMIT)
    }

    /// Runs `kubectl` as the administrator.
    pub fn kubectl(&self, args: &[&str]) -> Output {
        let home = self.dir.path().join("kubectl-home");
        run(Command::new("kubectl").env("HOME", home).arg("--kubeconfig").arg(self.file("kubeconfig")).args(args), LIMIT)
    }

    /// Runs `etcdctl` against one member.
    pub fn etcdctl(&self, member: usize, args: &[&str]) -> Output {
        let endpoint = format!("http://127.0.0.1:{}", self.server(member)["client"]);
        run(Command::new("etcdctl").env("ETCDCTL_API", "3").arg("--endpoints").arg(endpoint).args(args), LIMIT)
    }

    /// The state file of `up`.
    ///
    /// # Panics
    /// It is not there, or damaged.
    pub fn state(&self) -> Value {
        let text = std::fs::read(self.file("up.json")).expect("up writes its state");
        serde_json::from_slice(&text).expect("the state is JSON")
    }

    /// One server of the state file.
    pub fn server(&self, index: usize) -> Value {
        self.state()["servers"][index].clone()
    }

    /// A file of the data folder.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn print_logs(&self) {
        for entry in std::fs::read_dir(self.file("log")).into_iter().flatten().flatten() {
            let text = std::fs::read_to_string(entry.path()).unwrap_or_default();
            let tail: Vec<&str> = text.lines().rev().take(30).collect();
            eprintln!("--- {}", entry.path().display());
            tail.iter().rev().for_each(|line| eprintln!("{line}"));
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.print_logs();
        }
        let output = self.kontiki(&["down"]);
        if !output.ok && !std::thread::panicking() {
            panic!("`kontiki down` failed: {}", output.err);
        }
    }
}
