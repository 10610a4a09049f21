//! Saving again and again into a directory, and removing what is too old.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use kontiki_base::env::{Env, WallMs};
use kontiki_store::snapshot::fetch::Remote;

const PREFIX: &str = "snapshot-";
const SUFFIX: &str = ".db";

/// Saves at every interval, the first at once, until the process is ended.
pub(super) async fn run(remote: &Remote, dir: &Path, every: Duration, keep: Option<u32>, env: &dyn Env) -> Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let mut next = env.now_mono();
    loop {
        let file = dir.join(name_at(env.now_wall())?);
        // One that fails is followed by others: a member that is down must not end the backups.
        match super::save_once(remote, &file, env).await {
            Ok(line) => {
                println!("{line}");
                for old in keep.map(|keep| too_old(dir, keep as usize)).transpose()?.unwrap_or_default() {
                    std::fs::remove_file(&old).with_context(|| format!("cannot remove {}", old.display()))?;
                    println!("removed {}", old.display());
                }
            }
            Err(error) => eprintln!("error: no snapshot at {}: {error:#}", file.display()),
        }
        next = next.plus(every);
        env.sleep(next.since(env.now_mono())).await;
    }
}

/// The name of a file, such that names sort by time.
fn name_at(now: WallMs) -> Result<String> {
    let time = jiff::Timestamp::from_millisecond(now.0).context("the clock is out of range")?;
    Ok(format!("{PREFIX}{}{SUFFIX}", time.strftime("%Y%m%dT%H%M%SZ")))
}

/// All snapshots of a directory but the newest.
fn too_old(dir: &Path, keep: usize) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let time = name.strip_prefix(PREFIX).and_then(|rest| rest.strip_suffix(SUFFIX));
        // Nothing else is touched, whatever else is in the directory.
        if time.is_some_and(|time| time.len() == 16 && time.ends_with('Z')) {
            found.push(path);
        }
    }
    found.sort();
    found.truncate(found.len().saturating_sub(keep));
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_times_and_the_oldest_go() {
        let dir = tempfile::tempdir().unwrap();
        let day = 86_400_000;
        for n in [3, 1, 2, 0] {
            std::fs::write(dir.path().join(name_at(WallMs(n * day)).unwrap()), "").unwrap();
        }
        for other in ["snapshot-mine.db", "snapshot-19700102T000000Z.db.part", "else.db"] {
            std::fs::write(dir.path().join(other), "").unwrap();
        }
        let old = too_old(dir.path(), 3).unwrap();
        assert_eq!(old, [dir.path().join("snapshot-19700101T000000Z.db")]);
        assert_eq!(too_old(dir.path(), 4).unwrap(), Vec::<PathBuf>::new());
    }
}
