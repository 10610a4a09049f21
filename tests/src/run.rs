//! Runs a program to its end, with a limit.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// What a program said.
#[derive(Clone, Debug)]
pub struct Output {
    /// Whether it exited with 0.
    pub ok: bool,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Output {
    /// Standard output of a program that must have succeeded.
    ///
    /// # Panics
    /// It failed.
    #[track_caller]
    pub fn expect_ok(self) -> String {
        assert!(self.ok, "it failed\n--- out\n{}\n--- err\n{}", self.out, self.err);
        self.out
    }
}

/// Runs a command to its end; kills it after `limit`.
///
/// # Panics
/// It cannot be started, or takes too long.
#[track_caller]
#[allow(clippy::disallowed_methods, reason = "a limit on a foreign program, not a seam of ours")]
pub fn run(command: &mut Command, limit: Duration) -> Output {
    let shown = format!("{command:?}");
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("cannot start {shown}: {e}"));
    let mut out = child.stdout.take().expect("it was piped");
    let mut err = child.stderr.take().expect("it was piped");
    let out = std::thread::spawn(move || read_all(&mut out));
    let err = std::thread::spawn(move || read_all(&mut err));
    let deadline = Instant::now() + limit;
    let status = loop {
        if let Some(status) = child.try_wait().expect("a child can be waited for") {
            break status;
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            let _ = child.wait();
            panic!("{shown} took longer than {limit:?}");
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    Output { ok: status.success(), out: out.join().expect("reading does not panic"), err: err.join().expect("reading does not panic") }
}

fn read_all(from: &mut impl std::io::Read) -> String {
    let mut bytes = Vec::new();
    // What was read before an error is still worth showing.
    let _ = from.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Whether a program is on this machine. Tests that need one that is not say so and do nothing.
pub fn have(program: &str) -> bool {
    let found = std::env::var_os("PATH").is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).is_file()));
    if !found {
        eprintln!("SKIPPED: {program} is not installed on this machine");
    }
    found
}
