//! Running the machine's own tools, with their words in the error.

use std::process::{Command, Output, Stdio};

/// Why something could not be done to the machine.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ToolError {
    /// A tool could not be started.
    #[error("cannot run {command}: {source}")]
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
    /// A file could not be used.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// Attaches a path to an IO error.
pub(crate) fn at<T>(path: &std::path::Path, result: std::io::Result<T>) -> Result<T, ToolError> {
    result.map_err(|source| ToolError::File { path: path.display().to_string(), source })
}

/// Runs a command line to its end; gives what it wrote.
///
/// # Errors
/// It could not be started, or failed.
pub(crate) fn run(words: &[&str]) -> Result<String, ToolError> {
    run_with(words, "")
}

/// As [`run`], with this on standard input.
///
/// # Errors
/// As [`run`].
pub(crate) fn run_with(words: &[&str], input: &str) -> Result<String, ToolError> {
    use std::io::Write as _;
    let command = words.join(" ");
    let spawn = |source| ToolError::Spawn { command: command.clone(), source };
    let mut line = Command::new(words.first().copied().unwrap_or_default());
    line.args(words.iter().skip(1)).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = line.spawn().map_err(spawn)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A tool that does not read its input fails by itself, and says why.
        let _ = stdin.write_all(input.as_bytes());
    }
    let Output { status, stdout, stderr } = child.wait_with_output().map_err(spawn)?;
    if status.success() {
        return Ok(String::from_utf8_lossy(&stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&stderr).trim().to_owned();
    Err(ToolError::Failed { command, stderr: if said.is_empty() { status.to_string() } else { said } })
}

/// Runs a command line that is written as one string without quotes.
///
/// # Errors
/// As [`run`].
pub(crate) fn line(text: &str) -> Result<String, ToolError> {
    run(&text.split_whitespace().collect::<Vec<_>>())
}

/// Whether a program is installed.
#[cfg(test)]
pub(crate) fn has(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"].map(std::path::PathBuf::from);
    std::env::split_paths(&path).chain(usual).any(|dir| dir.join(program).is_file())
}

/// Whether this process may do what only root may.
pub(crate) fn root() -> bool {
    nix::unistd::geteuid().is_root()
}
