//! Comparing the states of members, and of a member with itself.
//!
//! Two members at the same applied position must have the same [`state_hash`], and at the same revision and compact revision the same
//! [`hash_kv`]: both cover what can be read, however far each member's [`sweep`](crate::compact::sweep) has come. Whether the spaces of one state
//! agree with each other is what [`check`](mod@crate::check) looks at.

use std::ops::Bound;

use bytes::Bytes;
use kontiki_base::ids::Revision;

use crate::compact::Keep;
use crate::keys::{self, Stamp, Version};
use crate::state::{self, ReadError};
use crate::view::{Space, View, ViewError};

/// A 64-bit hash of a sequence of byte strings. Each 8-byte word is xored in and spread by a multiplication and a shift, which loses
/// nothing; lengths are hashed, so that strings do not run together. It finds accidents, not attacks.
#[derive(Clone, Debug)]
pub struct Hash64(u64);

impl Default for Hash64 {
    fn default() -> Self {
        Self(0x243f_6a88_85a3_08d3)
    }
}

impl Hash64 {
    /// Adds a byte string.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.word(bytes.len() as u64);
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self.word(u64::from_le_bytes(*word));
        }
        if !rest.is_empty() {
            let mut last = [0; 8];
            last[..rest.len()].copy_from_slice(rest);
            self.word(u64::from_le_bytes(last));
        }
    }

    /// Adds a number.
    pub fn word(&mut self, word: u64) {
        self.0 = (self.0 ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 ^= self.0 >> 29;
    }

    /// Adds what is the same at the same place in the log and has no history: all records of these spaces, and the alarms.
    pub(crate) fn rest(&mut self, view: &dyn View, spaces: &[Space]) -> Result<(), ViewError> {
        for space in spaces {
            self.word(u64::from(*space as u8));
            for record in view.scan(*space, Bound::Unbounded, Bound::Unbounded, false) {
                let (key, value) = record?;
                self.bytes(&key);
                self.bytes(&value);
            }
        }
        self.bytes(&view.get(Space::Sys, crate::alarm::SYS_ALARMS)?.unwrap_or_default());
        Ok(())
    }

    /// The hash; the last words are spread over all bits (the finish of SplitMix64).
    pub fn finish(&self) -> u64 {
        let mut hash = self.0;
        hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        hash ^ (hash >> 31)
    }
}

/// A hash of everything that can be read: both revisions, keys with the history that is kept, leases, users, alarms. Members and the other single
/// facts belong to consensus and may differ while it is under way.
pub fn state_hash(view: &dyn View) -> Result<u64, ViewError> {
    let mut hash = Hash64::default();
    let now = state::current(view)?;
    hash.word(now.revision.get().cast_unsigned());
    hash.word(now.compact.get().cast_unsigned());
    kept(view, now.compact, &mut |kv_key, _, record| {
        hash.bytes(kv_key);
        hash.bytes(record);
    })?;
    hash.rest(view, &[Space::Meta, Space::Lease, Space::Auth])?;
    Ok(hash.finish())
}

/// What [`hash_kv`] answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvHash {
    /// The hash. Not etcd's function: only members of one cluster are compared.
    pub hash: u32,
    /// The revision up to which it goes.
    pub revision: Revision,
    /// The compact revision: hashes are comparable only where it is equal.
    pub compact: Revision,
}

/// A hash of the keys' versions up to a revision (0: the latest), as far as compaction keeps them: etcd's `HashKV`.
///
/// # Errors
/// [`Compacted`](kontiki_base::KvError::Compacted), [`FutureRevision`](kontiki_base::KvError::FutureRevision).
pub fn hash_kv(view: &dyn View, at: Revision) -> Result<KvHash, ReadError> {
    let now = state::current(view)?;
    let revision = now.resolve(at)?;
    let mut hash = Hash64::default();
    kept(view, now.compact, &mut |kv_key, stamp, record| {
        if stamp.main <= revision {
            hash.bytes(kv_key);
            hash.bytes(record);
        }
    })?;
    let [a, b, c, d, e, f, g, h] = hash.finish().to_be_bytes();
    let hash = u32::from_be_bytes([a, b, c, d]) ^ u32::from_be_bytes([e, f, g, h]);
    Ok(KvHash { hash, revision, compact: now.compact })
}

/// Visits the versions that can still be read, in the order of `Kv`.
fn kept(view: &dyn View, compact: Revision, visit: &mut dyn FnMut(&Bytes, Stamp, &Bytes)) -> Result<(), ViewError> {
    let mut prefix = Bytes::new();
    let mut keep = Keep::new(compact);
    for record in view.scan(Space::Kv, Bound::Unbounded, Bound::Unbounded, false) {
        let (kv_key, bytes) = record?;
        let (this, stamp) = keys::split_version_key(&kv_key)?;
        if this != prefix {
            prefix = kv_key.slice(..this.len());
            keep = Keep::new(compact);
        }
        if keep.keeps(stamp.main, Version::is_tombstone(&bytes)) {
            visit(&kv_key, stamp, &bytes);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use kontiki_base::ids::{LeaseId, LogPos};
    use kontiki_base::kv::PutReq;

    use super::*;
    use crate::check::verify;
    use crate::{Batch, Command, MemView, apply};

    fn small_store() -> MemView {
        let mut batch = Batch::default();
        let lease = LeaseId(3);
        let put = |key: &'static str, lease| Command::Put(PutReq { key: key.into(), value: "v".into(), lease, ..PutReq::default() });
        for command in [Command::LeaseGrant { id: lease, ttl: 9 }, put("a", lease), put("b", LeaseId::ZERO), put("b", LeaseId::ZERO)] {
            assert!(apply(&MemView::new(), LogPos::default(), &command, &mut batch).unwrap().reply.is_ok());
        }
        let mut view = MemView::new();
        view.commit(batch);
        view
    }

    fn records(view: &MemView, space: Space) -> Vec<(Bytes, Bytes)> {
        view.scan(space, Bound::Unbounded, Bound::Unbounded, false).collect::<Result<_, _>>().unwrap()
    }

    /// Every record matters: a state that lacks any one of them, or has another value there, does not pass.
    #[test]
    fn each_lost_or_changed_record_is_noticed() {
        let good = small_store();
        verify(&good).unwrap();
        for space in [Space::Kv, Space::Rev, Space::Meta, Space::Lease] {
            for (key, value) in records(&good, space) {
                let mut batch = Batch::default();
                batch.delete(space, key.clone());
                let mut bad = good.clone();
                bad.commit(batch);
                assert!(verify(&bad).is_err(), "{space:?} {key:?} is missing");
                assert!(space == Space::Rev || state_hash(&bad) != state_hash(&good));
                if value.is_empty() {
                    continue;
                }
                let mut changed = value.to_vec();
                *changed.last_mut().unwrap() ^= 1;
                let mut batch = Batch::default();
                batch.put(space, key.clone(), changed);
                let mut bad = good.clone();
                bad.commit(batch);
                assert!(space == Space::Rev || state_hash(&bad) != state_hash(&good), "{space:?} {key:?} differs");
                // Values and seconds to live stand in one place only.
                assert!(matches!(space, Space::Kv | Space::Lease) || verify(&bad).is_err(), "{space:?} {key:?} differs");
            }
        }
    }

    #[test]
    fn the_hash_is_what_it_was() {
        let hash = |parts: &[&[u8]]| {
            let mut hash = Hash64::default();
            parts.iter().for_each(|part| hash.bytes(part));
            hash.finish()
        };
        assert_ne!(hash(&[b"ab", b"c"]), hash(&[b"a", b"bc"]));
        assert_ne!(hash(&[b"a"]), hash(&[b"a\0"]));
        // Members of different versions are compared with each other.
        assert_eq!(hash(&[b"", b"kontiki", b"twelve bytes"]), 13_400_059_595_049_861_917);
    }
}
