//! Hashes of parts of the store: what members compare with each other all the time, a little at a time.
//!
//! Both kinds of part are hashed as of a revision, so members need not stand at the same place in the log: only at it or behind it, and
//! at the same compact revision. How far a member's [`sweep`](crate::compact::sweep) has come makes no difference.
//!
//! | part | costs | finds |
//! |---|---|---|
//! | [`hash_changes`]: revisions in a row | as much as was written | members that apply the same command differently |
//! | [`hash_keys`]: keys in a row | as much as is stored | records that have changed where they lie; also spaces of one member that disagree |

use std::ops::Bound;

use bytes::Bytes;
use kontiki_base::ids::Revision;

use crate::compact::Keep;
use crate::hash::Hash64;
use crate::keys::{self, Meta, Stamp, Version};
use crate::state;
use crate::view::{Space, View, ViewError};

/// Where a part of about `records` versions ends that begins at the key `from`: the key before which it ends, or `None` for the end of the
/// store. All versions of a key belong to one part.
///
/// # Errors
/// The state cannot be read.
pub fn end_of_keys(view: &dyn View, from: &[u8], records: usize) -> Result<Option<Bytes>, ViewError> {
    let start = keys::versions_prefix(from);
    let mut last = Vec::new();
    for (count, record) in view.scan(Space::Kv, Bound::Included(&start), Bound::Unbounded, false).enumerate() {
        let (kv_key, _) = record?;
        let (prefix, _) = keys::split_version_key(&kv_key)?;
        if prefix == last {
            continue;
        }
        if count >= records {
            return keys::user_key(&kv_key).map(Some);
        }
        last.clear();
        last.extend_from_slice(prefix);
    }
    Ok(None)
}

/// The hash of the versions up to revision `at`, as far as compaction keeps them, of the keys from `from` up to and without `to`. On the way
/// it is checked that the spaces agree about these keys, as they are now.
///
/// # Errors
/// The state cannot be read, or contradicts itself.
pub fn hash_keys(view: &dyn View, from: &[u8], to: Option<&[u8]>, at: Revision) -> Result<u64, ViewError> {
    let compact = state::compact_revision(view)?;
    let (start, end) = (keys::versions_prefix(from), to.map(keys::versions_prefix));
    let before = |end: Option<&'_ [u8]>| end.map_or(Bound::Unbounded, |end| Bound::Excluded(end.to_vec()));
    let (kv_end, meta_end) = (before(end.as_deref()), before(to));
    let mut living = view.scan(Space::Meta, Bound::Included(from), meta_end.as_ref().map(Vec::as_slice), false);
    let (mut hash, mut prefix, mut keep) = (Hash64::default(), Bytes::new(), Keep::new(compact));
    for record in view.scan(Space::Kv, Bound::Included(&start), kv_end.as_ref().map(Vec::as_slice), false) {
        let (kv_key, bytes) = record?;
        let (this, stamp) = keys::split_version_key(&kv_key)?;
        let (version, key) = (Version::decode(&bytes)?, keys::user_key(&kv_key)?);
        let tombstone = version == Version::Tombstone;
        if this != prefix {
            prefix = kv_key.slice(..this.len());
            keep = Keep::new(compact);
            if let Version::Put { create, version, lease, .. } = version {
                let expected = Meta { create, at: stamp, version, lease };
                match living.next().transpose()? {
                    Some((found, meta)) if found == key && Meta::decode(&meta)? == expected => {}
                    _ => return Err(keys::bad(Space::Meta, "life: it is not the newest version")),
                }
            }
        }
        if !keep.keeps(stamp.main, tombstone) {
            continue;
        }
        let change = view.get(Space::Rev, &stamp.encode())?.map(|rev| keys::decode_rev(&rev)).transpose()?;
        if change != Some((tombstone, key)) {
            return Err(keys::bad(Space::Rev, "history: a version has no change"));
        }
        if stamp.main <= at {
            hash.bytes(&kv_key);
            hash.bytes(&bytes);
        }
    }
    match living.next() {
        None => Ok(hash.finish()),
        Some(Err(error)) => Err(error),
        Some(Ok(_)) => Err(keys::bad(Space::Meta, "life: no version has begun it")),
    }
}

/// The hash of the changes after a revision up to and with another, with their values. Changes before the compact revision are left out.
///
/// # Errors
/// The state cannot be read, or contradicts itself.
pub fn hash_changes(view: &dyn View, after: Revision, upto: Revision) -> Result<u64, ViewError> {
    let first = after.next().max(state::compact_revision(view)?).max(Revision(1));
    let (start, end) = (Stamp::first(first).encode(), Stamp::first(upto.next()).encode());
    let mut hash = Hash64::default();
    for record in view.scan(Space::Rev, Bound::Included(&start), Bound::Excluded(&end), false) {
        let (rev_key, rev) = record?;
        let (_, key) = keys::decode_rev(&rev)?;
        let version = view.get(Space::Kv, &keys::version_key(&key, Stamp::decode(Space::Rev, &rev_key)?))?;
        let version = version.ok_or_else(|| keys::bad(Space::Kv, "history: a change has no version"))?;
        for part in [&rev_key, &rev, &version] {
            hash.bytes(part);
        }
    }
    Ok(hash.finish())
}

/// The hash of what has no history and is the same at the same place in the log: leases, users, alarms.
///
/// # Errors
/// The state cannot be read.
pub fn hash_rest(view: &dyn View) -> Result<u64, ViewError> {
    let mut hash = Hash64::default();
    hash.rest(view, &[Space::Lease, Space::Auth])?;
    Ok(hash.finish())
}

#[cfg(test)]
mod tests {
    use kontiki_base::ids::{LeaseId, LogPos};
    use kontiki_base::key::KeyRange;
    use kontiki_base::kv::{DeleteReq, PutReq};

    use super::*;
    use crate::{Batch, Command, MemView, apply, current, sweep};

    fn put(key: &'static str, value: &'static str) -> Command {
        Command::Put(PutReq { key: key.into(), value: value.into(), lease: LeaseId::ZERO, ..PutReq::default() })
    }

    fn run(view: &mut MemView, commands: &[Command]) {
        for command in commands {
            let mut batch = Batch::default();
            apply(view, LogPos::default(), command, &mut batch).unwrap().reply.unwrap();
            view.commit(batch);
        }
    }

    fn store() -> MemView {
        let mut view = MemView::new();
        let delete = Command::Delete(DeleteReq { range: KeyRange::single("b"), prev_kv: false });
        run(&mut view, &[put("a", "1"), put("b", "1"), put("b\0x", "1"), delete, put("c", "1"), put("a", "2")]);
        view
    }

    /// The parts of a store of about two versions each.
    fn parts(view: &MemView) -> Vec<(Bytes, Option<Bytes>)> {
        let (mut parts, mut from) = (Vec::new(), Bytes::new());
        loop {
            let to = end_of_keys(view, &from, 2).unwrap();
            parts.push((from, to.clone()));
            match to {
                Some(next) => from = next,
                None => return parts,
            }
        }
    }

    fn hashes(view: &MemView, at: Revision) -> Vec<Result<u64, ViewError>> {
        parts(&store()).iter().map(|(from, to)| hash_keys(view, from, to.as_deref(), at)).collect()
    }

    #[test]
    fn parts_cover_the_store_and_are_the_same_on_a_member_that_is_ahead() {
        let view = store();
        let at = current(&view).unwrap().revision;
        let parts = parts(&view);
        assert!(parts.len() >= 2 && parts.last().unwrap().1.is_none(), "{parts:?}");
        assert!(parts.windows(2).all(|two| two[0].1.as_ref() == Some(&two[1].0)));
        let mut ahead = view.clone();
        run(&mut ahead, &[put("b", "new"), put("a", "3")]);
        assert_eq!(hashes(&ahead, at), hashes(&view, at));
        assert_eq!(hash_changes(&ahead, Revision(2), at), hash_changes(&view, Revision(2), at));
        assert_ne!(hash_changes(&ahead, Revision(2), Revision(9)), hash_changes(&view, Revision(2), at));
    }

    #[test]
    fn how_far_a_sweep_has_come_makes_no_difference() {
        let mut view = store();
        let at = current(&view).unwrap().revision;
        run(&mut view, &[Command::Compact { revision: Revision(6) }]);
        let before = (hashes(&view, at), hash_changes(&view, Revision(1), at));
        loop {
            let mut batch = Batch::default();
            let done = sweep(&view, 2, &mut batch).unwrap().done;
            view.commit(batch);
            assert_eq!((hashes(&view, at), hash_changes(&view, Revision(1), at)), before);
            if done {
                return;
            }
        }
    }

    /// Whatever record is lost or changed: the hashes differ, or the store is found to contradict itself.
    #[test]
    fn each_lost_or_changed_record_is_noticed() {
        let good = store();
        let at = current(&good).unwrap().revision;
        let expected = hashes(&good, at);
        assert!(expected.iter().all(Result::is_ok));
        for space in [Space::Kv, Space::Rev, Space::Meta] {
            let records: Vec<_> = good.scan(space, Bound::Unbounded, Bound::Unbounded, false).map(Result::unwrap).collect();
            for (key, value) in records {
                let mut changed = value.to_vec();
                *changed.last_mut().unwrap() ^= 1;
                for now in [None, Some(Bytes::from(changed))] {
                    let mut batch = Batch::default();
                    batch.writes.insert((space, key.clone()), now.clone());
                    let mut bad = good.clone();
                    bad.commit(batch);
                    assert_ne!(hashes(&bad, at), expected, "{space:?} {key:?} is {now:?}");
                }
            }
        }
    }
}
