//! What is kept of snapshots under way, so that a transfer that breaks goes on where it ended: by the sender the checkpoint, by the receiver the
//! files that it has. Both for a while only, since they take space on the disk; a restart begins anew.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use kontiki_base::env::{Env, Mono};
use kontiki_base::ids::{LogIndex, MemberId};

use super::network::Network;
use super::types::{LogId, SnapshotMeta};
use super::wire;

/// How long what is there of a broken transfer is kept.
const KEEP: Duration = Duration::from_secs(120);

/// Removes a directory when it is no longer needed, whatever happens.
pub(super) struct Scratch(pub(super) PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        if self.0.exists()
            && let Err(error) = std::fs::remove_dir_all(&self.0)
        {
            tracing::warn!(dir = %self.0.display(), %error, "a snapshot's directory was not removed; the next start does it");
        }
    }
}

/// A checkpoint that is sent.
#[derive(Clone)]
pub(super) struct Outgoing {
    pub(super) transfer: u64,
    pub(super) scratch: Arc<Scratch>,
    pub(super) meta: SnapshotMeta,
    pub(super) files: Arc<[(String, u64)]>,
}

/// Where a receiver is: so many files, and so many bytes of the next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) file: u64,
    pub(super) offset: u64,
}

impl Place {
    pub(super) fn encode(self) -> Bytes {
        let mut out = BytesMut::with_capacity(16);
        out.put_u64(self.file);
        out.put_u64(self.offset);
        out.freeze()
    }

    pub(super) fn get(from: &mut Bytes) -> Option<Self> {
        Some(Self { file: wire::get_u64(from)?, offset: wire::get_u64(from)? })
    }
}

/// Files of a snapshot that have come.
struct Partial {
    transfer: u64,
    files: Vec<(String, u64)>,
    dir: Scratch,
    place: Place,
}

/// What is kept of transfers that broke.
#[derive(Default)]
pub(crate) struct Transfers {
    /// By receiver: what is sent to it, and when that was last begun.
    out: Mutex<BTreeMap<MemberId, (Outgoing, Mono)>>,
    /// The last that came in, if it broke, and when.
    partial: Mutex<Option<(Partial, Mono)>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Transfers {
    /// What was being sent to a member, if it contains as much.
    pub(super) fn outgoing(&self, to: MemberId, at_least: Option<LogId>) -> Option<Outgoing> {
        let mut out = lock(&self.out);
        match out.get(&to) {
            Some((kept, _)) if kept.meta.last_log_id >= at_least => Some(kept.clone()),
            Some(_) => {
                out.remove(&to);
                None
            }
            None => None,
        }
    }

    /// Keeps what is sent to a member, until it is there, or nobody has asked for it for a while.
    pub(super) fn keep(&self, to: MemberId, what: Outgoing, now: Mono) {
        lock(&self.out).insert(to, (what, now));
    }

    /// The description of the oldest checkpoint that is kept to be sent.
    pub(crate) fn oldest(&self) -> Option<SnapshotMeta> {
        lock(&self.out).values().map(|(what, _)| &what.meta).min_by_key(|meta| meta.last_log_id).cloned()
    }

    /// The log is gone up to here: what does not reach as far can no longer be followed up from the log, and would be sent again and again.
    pub(super) fn let_go_behind(&self, purged: LogIndex) {
        lock(&self.out).retain(|_, (what, _)| what.meta.last_log_id.is_some_and(|last| last.index + 1 >= purged.get()));
    }

    /// A member has what was sent to it.
    pub(super) fn done(&self, to: MemberId) {
        lock(&self.out).remove(&to);
    }

    /// A transfer that comes in: a new one, or the one that broke.
    pub(super) fn incoming(self: &Arc<Self>, network: &Network, transfer: u64, files: &[(String, u64)]) -> Result<Incoming, String> {
        let kept = lock(&self.partial).take();
        let partial = match kept {
            Some((partial, _)) if partial.transfer == transfer && partial.files == files => partial,
            other => {
                drop(other);
                let dir = Scratch(network.scratch.join(format!("in-{:016x}", network.env.random_u64())));
                std::fs::create_dir(&dir.0).map_err(|e| format!("cannot make room for a snapshot: {e}"))?;
                Partial { transfer, files: files.to_vec(), dir, place: Place::default() }
            }
        };
        Ok(Incoming { partial: Some(partial), transfers: Arc::clone(self), env: network.env.clone() })
    }

    /// Lets go of what broke a while ago. What is under way is held by who sends or receives it, too.
    pub(super) fn forget(&self, now: Mono) {
        lock(&self.out).retain(|_, (what, since)| {
            if Arc::strong_count(&what.scratch) > 1 {
                *since = now;
            }
            now.since(*since) < KEEP
        });
        let mut partial = lock(&self.partial);
        if partial.as_ref().is_some_and(|(_, since)| now.since(*since) >= KEEP) {
            *partial = None;
        }
    }
}

/// A transfer that comes in. If it is dropped before its end, what has come is kept.
pub(super) struct Incoming {
    partial: Option<Partial>,
    transfers: Arc<Transfers>,
    env: Arc<dyn Env>,
}

impl Incoming {
    fn partial(&self) -> &Partial {
        self.partial.as_ref().expect("it is there until it is finished, which consumes this")
    }

    fn partial_mut(&mut self) -> &mut Partial {
        self.partial.as_mut().expect("it is there until it is finished, which consumes this")
    }

    /// From where on the rest is needed.
    pub(super) fn place(&self) -> Place {
        self.partial().place
    }

    /// Which file comes next.
    pub(super) fn file(&self) -> usize {
        usize::try_from(self.partial().place.file).unwrap_or(usize::MAX)
    }

    /// Where the files are.
    pub(super) fn dir(&self) -> &Path {
        &self.partial().dir.0
    }

    /// So many bytes more of the file are written.
    pub(super) fn wrote(&mut self, bytes: u64) {
        self.partial_mut().place.offset += bytes;
    }

    /// The file is whole.
    pub(super) fn next_file(&mut self) {
        let place = &mut self.partial_mut().place;
        *place = Place { file: place.file + 1, offset: 0 };
    }

    /// All is there: the directory is the caller's.
    pub(super) fn finish(mut self) -> PathBuf {
        let mut partial = self.partial.take().expect("this is called once");
        std::mem::take(&mut partial.dir.0)
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if let Some(partial) = self.partial.take() {
            *lock(&self.transfers.partial) = Some((partial, self.env.now_mono()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outgoing(dir: &Path, index: u64) -> Outgoing {
        std::fs::create_dir_all(dir).unwrap();
        let meta = SnapshotMeta { last_log_id: Some(LogId::new_term_index(1, index)), ..SnapshotMeta::default() };
        Outgoing { transfer: index, scratch: Arc::new(Scratch(dir.to_owned())), meta, files: Arc::from([]) }
    }

    fn at(seconds: u64) -> Mono {
        Mono(Duration::from_secs(seconds))
    }

    #[test]
    fn what_is_sent_is_kept_for_a_while_and_only_if_it_is_enough() {
        let dir = tempfile::tempdir().unwrap();
        let (transfers, to) = (Transfers::default(), MemberId::new(2));
        let path = dir.path().join("out");
        transfers.keep(to, outgoing(&path, 5), at(0));
        assert_eq!(transfers.oldest().unwrap().last_log_id, Some(LogId::new_term_index(1, 5)));
        let sending = transfers.outgoing(to, Some(LogId::new_term_index(1, 5))).expect("it contains as much");
        transfers.forget(at(500));
        drop(sending);
        transfers.forget(at(500 + KEEP.as_secs() - 1));
        assert!(transfers.outgoing(to, None).is_some() && path.exists(), "it was under way until then");
        transfers.forget(at(500 + KEEP.as_secs()));
        assert!(transfers.outgoing(to, None).is_none() && !path.exists());
        assert!(transfers.oldest().is_none());
        transfers.keep(to, outgoing(&path, 5), at(0));
        assert!(transfers.outgoing(to, Some(LogId::new_term_index(1, 6))).is_none(), "consensus would take it for more than it is");
        assert!(!path.exists());
    }

    #[test]
    fn what_the_log_does_not_reach_back_to_is_of_no_use() {
        let dir = tempfile::tempdir().unwrap();
        let (transfers, to) = (Transfers::default(), MemberId::new(2));
        let path = dir.path().join("out");
        transfers.keep(to, outgoing(&path, 5), at(0));
        // Consensus counts entries from 0, the log from 1: its entry 6 is the last that the checkpoint contains.
        transfers.let_go_behind(LogIndex::new(6));
        assert!(transfers.oldest().is_some(), "the next entry is still there");
        transfers.let_go_behind(LogIndex::new(7));
        assert!(transfers.oldest().is_none() && !path.exists());
    }

    #[test]
    fn a_place_survives_its_encoding() {
        let place = Place { file: 7, offset: 1 << 40 };
        assert_eq!(wire::decode(place.encode(), Place::get), Ok(place));
        assert!(wire::decode(Bytes::from_static(b"short"), Place::get).is_err());
    }
}
