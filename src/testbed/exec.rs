//! Running the machine's own tools, with their words in the error.

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

/// Why a step failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TestbedError {
    /// A tool could not be started.
    #[error("cannot run {command}")]
    Spawn {
        /// The command line.
        command: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A tool failed.
    #[error("{command}: {stderr}")]
    Failed {
        /// The command line.
        command: String,
        /// What it said.
        stderr: String,
    },
    /// A file could not be read or written.
    #[error("{path}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Something did not happen in time.
    #[error("{0} did not come up in time; its log is {1}")]
    NotReady(String, PathBuf),
    /// The plan cannot be made.
    #[error("{0}")]
    Plan(String),
    /// The node does not run.
    #[error("node {0} does not run")]
    #[cfg(test)]
    NotRunning(String),
    /// The cgroup2 hierarchy is not mounted.
    #[error("no cgroup2 hierarchy is mounted: nodes could not be cleaned up")]
    NoCgroup,
    /// Something could not be removed.
    #[error("could not remove {0}")]
    Leftover(String),
}

/// Attaches a path to an IO error.
pub(super) fn at<T>(path: impl Into<PathBuf>, result: std::io::Result<T>) -> Result<T, TestbedError> {
    result.map_err(|source| TestbedError::File { path: path.into(), source })
}

fn words(command: &Command) -> String {
    let parts = std::iter::once(command.get_program()).chain(command.get_args());
    parts.map(|p| p.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// Runs to the end; gives standard output, or an error with standard error.
pub(super) fn output(command: &mut Command) -> Result<String, TestbedError> {
    let run = command.stdin(Stdio::null()).output();
    let Output { status, stdout, stderr } = run.map_err(|source| TestbedError::Spawn { command: words(command), source })?;
    if status.success() {
        return Ok(String::from_utf8_lossy(&stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&stderr).trim().to_owned();
    let stderr = if said.is_empty() { status.to_string() } else { said };
    Err(TestbedError::Failed { command: words(command), stderr })
}

/// `ip` with these words.
pub(super) fn ip(line: &str) -> Result<String, TestbedError> {
    output(Command::new("ip").args(line.split_whitespace()))
}
