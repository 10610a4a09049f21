//! A member's data directory, looked at while nobody runs on it: whether a member could trust it, and what is in it.
//!
//! Nothing is changed. What a member would refuse at its start is refused here, in the same words; and what it would not notice for long,
//! such as a damaged block of a key that nobody reads, is found, too.

use std::path::{Path, PathBuf};

use kontiki_base::ids::LogPos;
use kontiki_mvcc::check::{Summary, check};

use crate::engine::EngineError;
use crate::engine::inspect::Inspected;
use crate::log::inspect::{Inspection, inspect};
use crate::log::{LogError, LogStatus};
use crate::snapshot::{OnProgress, Progress};

/// What to do about a directory that is not sound.
pub const ADVICE: &str = "do not start a member on it, and do not repair it by hand. If the other members are sound, remove this one from \
the cluster and add it again with an empty directory: it is sent the state. If it was the only one, restore the latest snapshot into a \
new directory (`kontiki snapshot restore`); keep this directory until that is done";

/// Why a directory cannot be looked at.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// It is no member's.
    #[error("{0}")]
    NotADirectory(String),
    /// The log's files cannot be read.
    #[error(transparent)]
    Log(#[from] LogError),
}

/// What was found.
#[derive(Clone, Debug, Default)]
pub struct Findings {
    /// The directory that was looked at.
    pub dir: PathBuf,
    /// What is in it, in lines for people.
    pub facts: Vec<String>,
    /// What is not as it might be, and is no harm.
    pub notes: Vec<String>,
    /// What is wrong.
    pub problems: Vec<String>,
    /// The state, if it is sound.
    pub state: Option<Summary>,
}

/// The store's directory: the given one, or its folder `store` as `kontiki server --data-dir` makes it.
///
/// # Errors
/// It is neither.
pub fn store_dir(dir: &Path) -> Result<PathBuf, VerifyError> {
    let inner = dir.join("store");
    for candidate in [dir, &inner] {
        if candidate.join("identity").is_file() {
            return Ok(candidate.to_owned());
        }
    }
    Err(VerifyError::NotADirectory(format!(
        "{} holds no store: there is no file `identity` in it, nor in its folder `store`",
        dir.display()
    )))
}

/// Looks at everything in a member's directory.
///
/// # Errors
/// It is no member's directory, or its files cannot be read. What is damaged stands in the findings.
pub fn verify(dir: &Path, progress: OnProgress<'_>) -> Result<Findings, VerifyError> {
    let dir = store_dir(dir)?;
    let mut found = Findings { dir: dir.clone(), ..Findings::default() };
    identity(&dir, &mut found);
    let log = inspect(&dir.join("log"), &mut |done, total| progress(Progress { what: "log", done, total }))?;
    log_facts(&log, &mut found);
    match crate::engine::inspect::open(&dir.join("engine")) {
        Ok(Some(engine)) => engine_facts(&engine, &log, &dir, &mut found, progress),
        Ok(None) if log.status.purged != LogPos::default() => {
            found.problems.push(format!("the state is gone, and the log gave its entries up to {} up", log.status.purged.index));
        }
        Ok(None) => found.notes.push("there is no state yet: the member replays its log from the beginning".into()),
        Err(error) => found.problems.push(error.to_string()),
    }
    Ok(found)
}

fn identity(dir: &Path, found: &mut Findings) {
    match std::fs::read_to_string(dir.join("identity")) {
        Ok(text) if text.starts_with("kontiki-store 1\n") => {
            found.facts.push(text.lines().skip(1).collect::<Vec<_>>().join(", "));
        }
        Ok(text) => found.problems.push(format!("identity: this is a directory of another format: {:?}", text.lines().next())),
        Err(error) => found.problems.push(format!("identity: {error}")),
    }
}

fn log_facts(log: &Inspection, found: &mut Findings) {
    let (records, entries) = log.segments.iter().fold((0, 0), |sum, s| (sum.0 + s.records, sum.1 + s.entries));
    found.facts.push(format!("log: {} segments, {records} records, {entries} entries", log.segments.len()));
    for segment in log.segments.iter().filter(|segment| segment.torn > 0) {
        found.notes.push(format!(
            "log: {} ends with {} bytes of a batch that a crash cut off: they were never acknowledged, and the next start removes them",
            segment.file, segment.torn
        ));
    }
    if log.damage.is_empty() {
        let LogStatus { purged, last, committed, .. } = log.status;
        found.facts.push(format!(
            "log: entries {} to {} (term {}), known to be committed up to {}",
            purged.index.next(),
            last.index,
            last.term,
            committed.index
        ));
    }
    found.problems.extend(log.damage.iter().cloned());
}

fn engine_facts(engine: &Inspected, log: &Inspection, dir: &Path, found: &mut Findings, progress: OnProgress<'_>) {
    progress(Progress { what: "checksums", done: 0, total: 0 });
    if let Err(error) = engine.verify_checksums() {
        found.problems.push(error.to_string());
        return;
    }
    let applied = engine.mark.pos;
    found.facts.push(format!("state: result of the log up to entry {} (term {})", applied.index, applied.term));
    if log.damage.is_empty() {
        found.problems.extend(fits(log.status, applied, dir).err());
        if applied.index > log.status.last.index {
            let why =
                "a leader applies what a quorum has before its own disk has it, so after a crash the log begins anew behind the state";
            found.notes.push(format!("the state contains entry {}, the log ends with {}: {why}", applied.index, log.status.last.index));
        }
    }
    let mut seen = 0;
    let view = engine.view();
    let checked = check(&*view, &mut |_, _| {
        seen += 1;
        progress(Progress { what: "records", done: seen, total: 0 });
    });
    match checked {
        Ok(state) => {
            let Summary { revision, compact, versions, keys, leases } = state;
            found.facts.push(format!("state: revision {revision}, {keys} keys, {versions} versions and deletions, {leases} leases"));
            if compact.get() >= 0 {
                found.facts.push(format!("state: history before revision {compact} was compacted"));
            }
            found.state = Some(state);
        }
        Err(error) => found.problems.push(EngineError::Corrupt { path: engine.dir.clone(), why: error.to_string() }.to_string()),
    }
}

/// Whether a state can be brought up to date by a log.
fn fits(log: LogStatus, applied: LogPos, dir: &Path) -> Result<(), String> {
    if log.vote.is_none() && applied != LogPos::default() {
        return Err("the log is gone: the state is the result of one, and the member has forgotten whom it voted for".into());
    }
    if applied.index < log.purged.index {
        return Err(format!(
            "entries {} to {} are in neither: the state does not contain them, and the log gave them up",
            applied.index.next(),
            log.purged.index
        ));
    }
    if applied.index == log.purged.index || applied.index > log.last.index {
        return Ok(());
    }
    match crate::log::inspect::entry(&dir.join("log"), applied.index) {
        Ok(Some(entry)) if entry.pos == applied => Ok(()),
        Ok(other) => {
            let there = other.map_or("nothing".to_owned(), |entry| format!("an entry of term {}", entry.pos.term));
            Err(format!("the state is the result of entry {} of term {}, and the log has {there} there", applied.index, applied.term))
        }
        Err(error) => Err(error.to_string()),
    }
}
