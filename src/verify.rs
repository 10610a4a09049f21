//! `kontiki store verify`: whether a data directory can be trusted.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use kontiki_store::verify::{ADVICE, Findings, store_dir, verify};
use nix::fcntl::{FcntlArg, fcntl};

use crate::snapshot::show::Bar;

/// `kontiki store verify`.
#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// The data directory of a server or a store that is not running
    pub(crate) dir: PathBuf,
}

/// Runs the command. `false` if something is wrong.
pub(crate) fn run(args: &VerifyArgs) -> Result<bool> {
    let dir = store_dir(&args.dir)?;
    if let Some(process) = holder(&dir)? {
        bail!("{} is in use by process {process}: stop it first, or verify a copy", dir.display());
    }
    let bar = Bar::new();
    let findings = verify(&dir, &|progress| bar.show(progress))?;
    drop(bar);
    Ok(report(&findings))
}

fn report(findings: &Findings) -> bool {
    println!("{}", findings.dir.display());
    for fact in &findings.facts {
        println!("  {fact}");
    }
    for note in &findings.notes {
        println!("note   {note}");
    }
    for problem in &findings.problems {
        println!("WRONG  {problem}");
    }
    if findings.problems.is_empty() {
        println!("the directory is sound");
    } else {
        println!("What to do: {ADVICE}.");
    }
    findings.problems.is_empty()
}

/// The process that has a database of the directory open.
fn holder(dir: &Path) -> Result<Option<i32>> {
    let engine = dir.join("engine");
    let Ok(entries) = std::fs::read_dir(&engine) else { return Ok(None) };
    for entry in entries {
        let lock = entry?.path().join("LOCK");
        let Ok(file) = std::fs::File::open(&lock) else { continue };
        let mut found =
            nix::libc::flock { l_type: nix::libc::F_WRLCK as i16, l_whence: nix::libc::SEEK_SET as i16, l_start: 0, l_len: 0, l_pid: 0 };
        fcntl(&file, FcntlArg::F_GETLK(&mut found)).with_context(|| format!("cannot ask for the lock of {}", lock.display()))?;
        if i32::from(found.l_type) != nix::libc::F_UNLCK {
            return Ok(Some(found.l_pid));
        }
    }
    Ok(None)
}
