//! Whether the spaces of a state agree, in one pass over each and with bounded memory: for states of any size.
//!
//! | law | how it is looked at |
//! |---|---|
//! | every version has its change in history, and the reverse | sums of hashes over both spaces; only if they differ, one by one |
//! | versions of a key follow each other | neighbours in `Kv` |
//! | the newest version of a key is its present life | `Kv` and `Meta` side by side: both are in the order of keys |
//! | keys and leases know each other | sums; only if they differ, one by one |
//! | users have roles that exist, and root can act where it must | all of them: there are few |
//! | nothing is beyond the store's revision | each record |

use std::ops::Bound;

use bytes::Bytes;
use kontiki_base::ids::{LeaseId, Revision};

use crate::hash::Hash64;
use crate::keys::{self, Meta, Stamp, Version, bad};
use crate::state;
use crate::view::{Scan, Space, View, ViewError};

/// What a state that agrees with itself holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// The store's revision.
    pub revision: Revision,
    /// Where its history begins; below 0 if it is whole.
    pub compact: Revision,
    /// Versions of keys, and deletions.
    pub versions: u64,
    /// Keys that live.
    pub keys: u64,
    /// Leases.
    pub leases: u64,
}

/// A sum of hashes: the same for the same records in any order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sum {
    count: u64,
    hash: u64,
}

impl Sum {
    fn add(&mut self, parts: &[&[u8]]) {
        let mut hash = Hash64::default();
        for part in parts {
            hash.bytes(part);
        }
        self.hash = self.hash.wrapping_add(hash.finish());
        self.count += 1;
    }
}

/// Is told how many records of a space were looked at.
pub type Visit<'v> = &'v mut dyn FnMut(Space, u64);

/// Checks a state.
///
/// # Errors
/// The first disagreement, with the key or the revision that it is about.
pub fn check(view: &dyn View, visit: Visit<'_>) -> Result<Summary, ViewError> {
    let now = state::current(view)?;
    if now.compact > now.revision {
        return Err(bad(Space::Sys, "compact revision: it lies in the future"));
    }
    let mut summary = Summary { revision: now.revision, compact: now.compact, ..Summary::default() };
    let mut versions = Versions { view, now: now.revision, changes: Sum::default(), attached: Sum::default(), lives: Lives::new(view) };
    versions.check(&mut summary, visit)?;
    let (changes, attached) = (versions.changes, versions.attached);
    if history(view, now.revision, visit)? != changes {
        return Err(odd_change(view)?);
    }
    if leases(view, &mut summary, visit)? != attached {
        return Err(odd_attachment(view)?);
    }
    crate::auth::verify(view)?;
    Ok(summary)
}

/// As [`check`], for those who want to know only whether the state agrees with itself.
///
/// # Errors
/// As [`check`].
pub fn verify(view: &dyn View) -> Result<(), ViewError> {
    check(view, &mut |_, _| {}).map(drop)
}

/// A key as people read it.
fn shown(key: &[u8]) -> String {
    format!("key \"{}\"", key.escape_ascii())
}

fn wrong(space: Space, key: &[u8], at: Stamp, what: &str) -> ViewError {
    ViewError { space, why: format!("{} at revision {}.{}: {what}", shown(key), at.main, at.sub) }
}

/// The records of `Meta`, to be taken one by one.
struct Lives<'v> {
    scan: std::iter::Peekable<Scan<'v>>,
}

impl<'v> Lives<'v> {
    fn new(view: &'v dyn View) -> Self {
        Self { scan: view.scan(Space::Meta, Bound::Unbounded, Bound::Unbounded, false).peekable() }
    }

    /// The life of `key`, which must be the next in order if it is there. One of a key before it belongs to no version.
    fn of(&mut self, key: &[u8]) -> Result<Option<Meta>, ViewError> {
        match self.scan.peek() {
            Some(Ok((next, _))) if next.as_ref() > key => Ok(None),
            None => Ok(None),
            Some(_) => {
                let (next, value) = self.scan.next().expect("it was peeked at")?;
                if next != key {
                    return Err(ViewError {
                        space: Space::Meta,
                        why: format!("{}: it lives, and no version of it is there", shown(&next)),
                    });
                }
                Meta::decode(&value).map(Some)
            }
        }
    }
}

struct Versions<'v> {
    view: &'v dyn View,
    now: Revision,
    changes: Sum,
    attached: Sum,
    lives: Lives<'v>,
}

impl Versions<'_> {
    fn check(&mut self, summary: &mut Summary, visit: Visit<'_>) -> Result<(), ViewError> {
        let mut newer: Option<(Bytes, Stamp, Option<Meta>)> = None;
        for record in self.view.scan(Space::Kv, Bound::Unbounded, Bound::Unbounded, false) {
            let (kv_key, bytes) = record?;
            let (_, at) = keys::split_version_key(&kv_key)?;
            let key = keys::user_key(&kv_key)?;
            let meta = match Version::decode(&bytes)? {
                Version::Put { create, version, lease, .. } => Some(Meta { create, at, version, lease }),
                Version::Tombstone => None,
            };
            if at.main > self.now {
                return Err(wrong(Space::Kv, &key, at, "it is beyond the store's revision"));
            }
            if meta.is_some_and(|meta| meta.create > at.main || meta.version < 1) {
                return Err(wrong(Space::Kv, &key, at, "its numbers contradict each other"));
            }
            self.changes.add(&[&at.encode(), &[meta.is_none().into()], &key]);
            summary.versions += 1;
            match newer.take() {
                Some((same, newer_at, newer)) if same == key => {
                    if !follows(newer, newer_at, meta) {
                        return Err(wrong(Space::Kv, &key, newer_at, "it does not follow from the version before it"));
                    }
                }
                _ => self.newest(&key, at, meta, summary)?,
            }
            newer = Some((key, at, meta));
            visit(Space::Kv, summary.versions);
        }
        match self.lives.scan.next() {
            Some(Ok((key, _))) => {
                Err(ViewError { space: Space::Meta, why: format!("{}: it lives, and no version of it is there", shown(&key)) })
            }
            Some(Err(error)) => Err(error),
            None => Ok(()),
        }
    }

    /// The newest version of a key is its present life.
    fn newest(&mut self, key: &Bytes, at: Stamp, newest: Option<Meta>, summary: &mut Summary) -> Result<(), ViewError> {
        let life = self.lives.of(key)?;
        if life != newest {
            let what = match (life, newest) {
                (None, _) => "it is the newest version, and the key is not in the index",
                (Some(_), None) => "the key was deleted, and is in the index",
                (Some(_), Some(_)) => "it is the newest version, and the index says another",
            };
            return Err(wrong(Space::Meta, key, at, what));
        }
        let Some(meta) = life else { return Ok(()) };
        summary.keys += 1;
        if meta.lease != LeaseId::ZERO {
            self.attached.add(&[&keys::attach_key(meta.lease, key)]);
        }
        Ok(())
    }
}

/// Whether a version of a key can have come right after another.
fn follows(newer: Option<Meta>, newer_at: Stamp, older: Option<Meta>) -> bool {
    match (newer, older) {
        (Some(newer), Some(older)) => newer.create == older.create && newer.version == older.version + 1,
        (Some(newer), None) => newer.version == 1 && newer.create == newer_at.main,
        (None, older) => older.is_some(),
    }
}

fn history(view: &dyn View, now: Revision, visit: Visit<'_>) -> Result<Sum, ViewError> {
    let mut sum = Sum::default();
    for record in view.scan(Space::Rev, Bound::Unbounded, Bound::Unbounded, false) {
        let (key, value) = record?;
        let at = Stamp::decode(Space::Rev, &key)?;
        let (deleted, key) = keys::decode_rev(&value)?;
        if at.main > now {
            return Err(wrong(Space::Rev, &key, at, "it is beyond the store's revision"));
        }
        sum.add(&[&at.encode(), &[deleted.into()], &key]);
        visit(Space::Rev, sum.count);
    }
    Ok(sum)
}

/// Attachments, each of which must be to a lease that is there.
fn leases(view: &dyn View, summary: &mut Summary, visit: Visit<'_>) -> Result<Sum, ViewError> {
    let (from, to) = keys::LEASES;
    for record in view.scan(Space::Lease, from, to, false) {
        let (key, value) = record?;
        let id = keys::decode_lease_key(&key)?;
        if keys::int(Space::Lease, &value)? < 1 {
            return Err(ViewError { space: Space::Lease, why: format!("lease {:x} has no time to live", id.get()) });
        }
        summary.leases += 1;
    }
    let mut sum = Sum::default();
    let mut known: Option<LeaseId> = None;
    let (from, to) = keys::ATTACHMENTS;
    for record in view.scan(Space::Lease, from, to, false) {
        let (key, _) = record?;
        let id = keys::decode_attach_key(&key)?;
        if known != Some(id) && view.get(Space::Lease, &keys::lease_key(id))?.is_none() {
            let key = key.get(keys::ATTACH_HEAD..).unwrap_or_default();
            return Err(ViewError {
                space: Space::Lease,
                why: format!("{} is attached to lease {:x}, which is not there", shown(key), id.get()),
            });
        }
        known = Some(id);
        sum.add(&[&key]);
        visit(Space::Lease, sum.count);
    }
    Ok(sum)
}

/// Finds the change without a version, or the version without a change. The sums say that there is one.
fn odd_change(view: &dyn View) -> Result<ViewError, ViewError> {
    for record in view.scan(Space::Rev, Bound::Unbounded, Bound::Unbounded, false) {
        let (stamp, value) = record?;
        let at = Stamp::decode(Space::Rev, &stamp)?;
        let (deleted, key) = keys::decode_rev(&value)?;
        let version = view.get(Space::Kv, &keys::version_key(&key, at))?;
        if version.is_none_or(|bytes| Version::is_tombstone(&bytes) != deleted) {
            return Ok(wrong(Space::Rev, &key, at, "history has a change of which there is no version"));
        }
    }
    for record in view.scan(Space::Kv, Bound::Unbounded, Bound::Unbounded, false) {
        let (kv_key, _) = record?;
        let (_, at) = keys::split_version_key(&kv_key)?;
        let key = keys::user_key(&kv_key)?;
        let change = view.get(Space::Rev, &at.encode())?.map(|value| keys::decode_rev(&value)).transpose()?;
        if change.is_none_or(|(_, of)| of != key) {
            return Ok(wrong(Space::Kv, &key, at, "a version is not in history"));
        }
    }
    Ok(bad(Space::Rev, "history: it does not agree with the versions of keys"))
}

fn odd_attachment(view: &dyn View) -> Result<ViewError, ViewError> {
    let (from, to) = keys::ATTACHMENTS;
    for record in view.scan(Space::Lease, from, to, false) {
        let (attached, _) = record?;
        let (id, key) = (keys::decode_attach_key(&attached)?, attached.slice(keys::ATTACH_HEAD..));
        if state::meta(view, &key)?.is_none_or(|meta| meta.lease != id) {
            let why = format!("{} is attached to lease {:x}, and does not know of it", shown(&key), id.get());
            return Ok(ViewError { space: Space::Lease, why });
        }
    }
    for record in view.scan(Space::Meta, Bound::Unbounded, Bound::Unbounded, false) {
        let (key, value) = record?;
        let lease = Meta::decode(&value)?.lease;
        if lease != LeaseId::ZERO && view.get(Space::Lease, &keys::attach_key(lease, &key))?.is_none() {
            return Ok(ViewError { space: Space::Lease, why: format!("{} is not attached to its lease {:x}", shown(&key), lease.get()) });
        }
    }
    Ok(bad(Space::Lease, "attachments: they do not agree with the keys"))
}

#[cfg(test)]
mod tests {
    use kontiki_base::ids::LogPos;
    use kontiki_base::key::KeyRange;
    use kontiki_base::kv::{DeleteReq, PutReq};

    use super::*;
    use crate::{Batch, Command, MemView, apply, verify};

    fn store() -> MemView {
        let mut batch = Batch::default();
        let put = |key: &'static str, lease: i64| {
            Command::Put(PutReq { key: key.into(), value: "v".into(), lease: LeaseId::new(lease), ..PutReq::default() })
        };
        let delete = |key: &'static str| Command::Delete(DeleteReq { range: KeyRange::single(key), prev_kv: false });
        let grant = |id| Command::LeaseGrant { id: LeaseId::new(id), ttl: 9 };
        let commands =
            [grant(3), grant(-4), put("a", 3), put("b\0", 0), put("b\0", -4), delete("b\0"), put("b\0", -4), put("c", 0), delete("c")];
        for command in commands {
            assert!(apply(&MemView::new(), LogPos::default(), &command, &mut batch).unwrap().reply.is_ok());
        }
        let mut view = MemView::new();
        view.commit(batch);
        view
    }

    #[test]
    fn a_sound_state_passes_and_is_counted() {
        let mut visited = 0;
        let summary = check(&store(), &mut |_, _| visited += 1).unwrap();
        assert_eq!((summary.versions, summary.keys, summary.leases), (7, 2, 2));
        assert_eq!((summary.revision, visited), (Revision::new(8), 7 + 7 + 2));
        assert_eq!(check(&MemView::new(), &mut |_, _| ()).unwrap().revision, state::EMPTY);
    }

    /// It finds whatever `verify` finds, which keeps everything in memory.
    #[test]
    fn each_lost_or_changed_record_is_noticed_and_named() {
        let good = store();
        verify(&good).unwrap();
        let mut noticed = 0;
        for space in [Space::Kv, Space::Rev, Space::Meta, Space::Lease] {
            let records: Vec<_> = good.scan(space, Bound::Unbounded, Bound::Unbounded, false).collect::<Result<_, _>>().unwrap();
            for (key, value) in records {
                let mut spoilt = vec![None];
                if let Some(last) = value.last() {
                    spoilt.push(Some([&value[..value.len() - 1], &[last ^ 1]].concat()));
                }
                for value in spoilt {
                    let mut batch = Batch::default();
                    match &value {
                        Some(value) => batch.put(space, key.clone(), value.clone()),
                        None => batch.delete(space, key.clone()),
                    }
                    let mut bad = good.clone();
                    bad.commit(batch);
                    let (slow, fast) = (verify(&bad), check(&bad, &mut |_, _| ()));
                    // A lease without keys is missed by nobody.
                    assert!(slow.is_ok() || fast.is_err(), "{space:?} {key:?} {value:?}: only {slow:?}");
                    noticed += u32::from(fast.is_err());
                    if let Err(error) = fast {
                        assert!(error.why.contains("key") || error.why.contains("lease") || error.why.contains("malformed"), "{error}");
                    }
                }
            }
        }
        assert!(noticed > 30, "{noticed}");
    }
}
