//! The file in which observations outlive the process: appended and synced, one record each: length (u32), checksum (CRC-32C, u32), message.
//!
//! A crash in the middle of a record costs that record. The file is written anew when it holds twice as many as are kept.

use std::collections::VecDeque;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Buf as _;
use kontiki_base::limits;
use kontiki_proto::store as pb;
use prost::Message as _;
use tokio::sync::{Mutex, MutexGuard, Notify};

use crate::log::disk::sync_dir;

/// Says what the file is, and in which format.
const MAGIC: &[u8] = b"kontiki-leadership 1\n";

/// No observation is longer: what claims to be is damage.
const LONGEST: usize = 64 << 10;

/// The file's writer.
pub(super) struct Keeper {
    path: Arc<PathBuf>,
    /// Records in the file; `None`: it has to be written anew first.
    written: Mutex<Option<usize>>,
    news: Notify,
}

/// The right to write.
pub(super) struct Turn<'a> {
    path: &'a Arc<PathBuf>,
    written: MutexGuard<'a, Option<usize>>,
}

impl Keeper {
    /// Reads what is there. A file that cannot be read is replaced by the next that is written: nothing depends on it.
    pub(super) fn open(path: PathBuf) -> (Self, VecDeque<pb::Observation>) {
        let (seen, whole) = match std::fs::read(&path) {
            Ok(bytes) => decode(&bytes),
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::warn!(path = %path.display(), %error, "what was seen of earlier elections cannot be read");
                }
                (VecDeque::new(), false)
            }
        };
        let written = Mutex::new(whole.then_some(seen.len()));
        let skip = seen.len().saturating_sub(limits::LEADERSHIP_OBSERVATIONS);
        let seen = seen.into_iter().skip(skip).collect();
        (Self { path: Arc::new(path), written, news: Notify::new() }, seen)
    }

    /// There is something to write.
    pub(super) fn wake(&self) {
        self.news.notify_one();
    }

    /// Waits until there is something to write.
    pub(super) async fn wait(&self) {
        self.news.notified().await;
    }

    pub(super) async fn turn(&self) -> Turn<'_> {
        Turn { path: &self.path, written: self.written.lock().await }
    }
}

impl Turn<'_> {
    /// Adds records; `all` are those that the file is to hold if it has to be written anew.
    pub(super) async fn append(mut self, new: &[pb::Observation], all: impl FnOnce() -> Vec<pb::Observation>) -> io::Result<()> {
        let written = self.written.take();
        let path = Arc::clone(self.path);
        let count = match written.filter(|written| written + new.len() <= 2 * limits::LEADERSHIP_OBSERVATIONS) {
            Some(written) => {
                let bytes = encode(new);
                super::super::machine::blocking(false, move || add(&path, &bytes)).await??;
                written + new.len()
            }
            None => {
                let all = all();
                let bytes = [MAGIC.to_vec(), encode(&all)].concat();
                super::super::machine::blocking(false, move || replace(&path, &bytes)).await??;
                all.len()
            }
        };
        *self.written = Some(count);
        Ok(())
    }
}

fn add(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = std::fs::File::options().append(true).open(path)?;
    file.write_all(bytes)?;
    file.sync_data()
}

fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let unfinished = path.with_extension("unfinished");
    let mut file = std::fs::File::create(&unfinished)?;
    file.write_all(bytes)?;
    file.sync_data()?;
    std::fs::rename(&unfinished, path)?;
    sync_dir(path.parent().unwrap_or(Path::new(".")))
}

fn encode(observations: &[pb::Observation]) -> Vec<u8> {
    let mut out = Vec::new();
    for observation in observations {
        let body = observation.encode_to_vec();
        out.extend_from_slice(&u32::try_from(body.len()).expect("an observation is a few hundred bytes").to_be_bytes());
        out.extend_from_slice(&crc32c::crc32c(&body).to_be_bytes());
        out.extend_from_slice(&body);
    }
    out
}

/// What the bytes hold, up to the first damage; whether all of them are sound.
fn decode(bytes: &[u8]) -> (VecDeque<pb::Observation>, bool) {
    let mut seen = VecDeque::new();
    let Some(mut rest) = bytes.strip_prefix(MAGIC) else { return (seen, false) };
    while !rest.is_empty() {
        if rest.len() < 8 {
            return (seen, false);
        }
        let (length, sum) = (rest.get_u32() as usize, rest.get_u32());
        if length > LONGEST || length > rest.len() || crc32c::crc32c(&rest[..length]) != sum {
            return (seen, false);
        }
        let Ok(observation) = pb::Observation::decode(&rest[..length]) else { return (seen, false) };
        seen.push_back(observation);
        rest.advance(length);
    }
    (seen, true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use pb::observation::What;

    fn observation(n: i64) -> pb::Observation {
        pb::Observation { at_ms: n, term: 7, what: Some(What::Stopped(pb::Stopped {})) }
    }

    fn times(seen: &VecDeque<pb::Observation>) -> Vec<i64> {
        seen.iter().map(|seen| seen.at_ms).collect()
    }

    async fn append(keeper: &Keeper, new: &[pb::Observation], all: Vec<pb::Observation>) {
        keeper.turn().await.append(new, || all).await.unwrap();
    }

    #[tokio::test]
    async fn records_are_there_again_and_a_torn_one_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("leadership");
        let (keeper, seen) = Keeper::open(path.clone());
        assert!(seen.is_empty());
        append(&keeper, &[observation(1)], vec![observation(1)]).await;
        append(&keeper, &[observation(2), observation(3)], vec![]).await;
        assert_eq!(times(&Keeper::open(path.clone()).1), [1, 2, 3]);
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() - 1]).unwrap();
        let (keeper, seen) = Keeper::open(path.clone());
        assert_eq!(times(&seen), [1, 2]);
        // What follows is not written behind the damage.
        append(&keeper, &[observation(4)], vec![observation(1), observation(2), observation(4)]).await;
        assert_eq!(times(&Keeper::open(path.clone()).1), [1, 2, 4]);
        let mut flipped = std::fs::read(&path).unwrap();
        flipped[MAGIC.len() + 9] ^= 1;
        std::fs::write(&path, flipped).unwrap();
        assert!(Keeper::open(path).1.is_empty());
    }

    #[tokio::test]
    async fn the_file_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("leadership");
        let (keeper, _) = Keeper::open(path.clone());
        let most = i64::try_from(limits::LEADERSHIP_OBSERVATIONS).unwrap();
        let all = |last: i64| ((last - most + 1).max(0)..=last).map(observation).collect::<Vec<_>>();
        for first in (0..3 * most).step_by(64) {
            let new: Vec<_> = (first..first + 64).map(observation).collect();
            append(&keeper, &new, all(first + 63)).await;
        }
        let records = decode(&std::fs::read(&path).unwrap()).0.len();
        assert!(records <= 2 * limits::LEADERSHIP_OBSERVATIONS, "{records}");
        let seen = times(&Keeper::open(path).1);
        assert_eq!((seen.len() as i64, seen.last()), (most, Some(&(3 * most - 1))));
    }
}
