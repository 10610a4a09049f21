//! The store's state at any revision, rebuilt from the changes that the observer saw.

use std::collections::BTreeMap;
use std::ops::Bound;

use crate::history::{Change, Seen};

use super::Violation;

/// A key after one of its changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version<'a> {
    /// When.
    pub revision: i64,
    /// Its value; `None`: it was deleted.
    pub value: Option<&'a str>,
    /// When its life began.
    pub create: i64,
    /// Number of writes in it.
    pub version: i64,
    /// Its lease, or 0.
    pub lease: i64,
}

impl Version<'_> {
    /// As an answer shows it.
    pub fn seen(&self, key: &str) -> Option<Seen> {
        let value = self.value?.to_owned();
        Some(Seen { key: key.into(), value, create: self.create, modified: self.revision, version: self.version, lease: self.lease })
    }
}

/// All changes, by revision and by key.
#[derive(Debug, Default)]
pub struct Log<'a> {
    revisions: BTreeMap<i64, Vec<&'a Change>>,
    keys: BTreeMap<&'a str, Vec<Version<'a>>>,
    /// What is wrong with the changes themselves.
    pub broken: Vec<Violation>,
}

/// Whether a key lies in a range, as on the wire: an empty end is one key, "\0" is no end.
pub fn in_range(key: &str, start: &str, end: &str) -> bool {
    match end {
        "" => key == start,
        "\0" => key >= start,
        _ => key >= start && key < end,
    }
}

impl<'a> Log<'a> {
    /// From changes in the order in which the observer saw them.
    pub fn new(changes: impl IntoIterator<Item = &'a Change>) -> Self {
        let mut log = Self::default();
        let mut last = 0;
        for change in changes {
            if change.revision < last {
                let detail = format!("a change of {:?} at {} follows one at {last}", change.key, change.revision);
                log.broken.push(Violation::new("revision-order", detail).revision(last).revision(change.revision));
            }
            last = last.max(change.revision);
            log.add(change);
        }
        log
    }

    fn add(&mut self, change: &'a Change) {
        let same = self.revisions.entry(change.revision).or_default();
        if same.iter().any(|c| c.key == change.key) {
            let detail = format!("{:?} is changed twice at {}", change.key, change.revision);
            self.broken.push(Violation::new("revision-order", detail).revision(change.revision));
            return;
        }
        same.push(change);
        let versions = self.keys.entry(&change.key).or_default();
        let living = versions.last().filter(|v| v.value.is_some());
        let (create, version) = living.map_or((change.revision, 1), |v| (v.create, v.version + 1));
        if change.value.is_none() && living.is_none() && !change.is_registry() {
            let detail = format!("{:?} is deleted at {}, but there was none", change.key, change.revision);
            self.broken.push(Violation::new("wrong-version", detail).revision(change.revision));
        }
        let told = (change.create, change.version);
        if change.value.is_some() && change.create != 0 && told != (create, version) {
            let detail = format!(
                "{:?} at {} says create {} and version {}, but its changes make {create} and {version}",
                change.key, change.revision, told.0, told.1
            );
            self.broken.push(Violation::new("wrong-version", detail).revision(change.revision));
        }
        // They come in order, unless something is wrong with them.
        let at = versions.partition_point(|v| v.revision <= change.revision);
        let version = Version { revision: change.revision, value: change.value.as_deref(), create, version, lease: change.lease };
        versions.insert(at, version);
    }

    /// The last revision with a change; 1 if there is none.
    pub fn last(&self) -> i64 {
        self.revisions.last_key_value().map_or(1, |(revision, _)| *revision)
    }

    /// The changes of a revision.
    pub fn at(&self, revision: i64) -> &[&'a Change] {
        self.revisions.get(&revision).map_or(&[], Vec::as_slice)
    }

    /// All revisions with their changes, in order.
    pub fn revisions(&self) -> impl Iterator<Item = (i64, &[&'a Change])> {
        self.revisions.iter().map(|(revision, changes)| (*revision, changes.as_slice()))
    }

    /// Revisions with their changes, from one on.
    pub fn from(&self, revision: i64) -> impl Iterator<Item = (i64, &[&'a Change])> {
        self.revisions.range(revision..).map(|(revision, changes)| (*revision, changes.as_slice()))
    }

    /// The version of a key that counts as of a revision, if the key lives then.
    pub fn get(&self, key: &str, revision: i64) -> Option<&Version<'a>> {
        let versions = self.keys.get(key)?;
        let after = versions.partition_point(|v| v.revision <= revision);
        versions[..after].last().filter(|v| v.value.is_some())
    }

    /// All versions of a key.
    pub fn versions(&self, key: &str) -> &[Version<'a>] {
        self.keys.get(key).map_or(&[], Vec::as_slice)
    }

    /// The living keys of a range as of a revision, in order.
    pub fn range<'s>(&'s self, start: &str, end: &str, revision: i64) -> Vec<(&'a str, &'s Version<'a>)> {
        if end.is_empty() {
            return self.keys.get_key_value(start).and_then(|(key, _)| Some((*key, self.get(key, revision)?))).into_iter().collect();
        }
        let keys = self
            .keys
            .range::<str, _>((Bound::Included(start), Bound::Unbounded))
            .map(|(key, _)| *key)
            .take_while(|key| in_range(key, start, end));
        keys.filter_map(|key| Some((key, self.get(key, revision)?))).collect()
    }

    /// The living keys of a lease as of a revision.
    pub fn attached(&self, lease: i64, revision: i64) -> Vec<&'a str> {
        let keys = self.keys.keys().copied();
        keys.filter(|key| self.get(key, revision).is_some_and(|v| v.lease == lease)).collect()
    }

    /// The lease that ended at a revision: all its changes are deletions of exactly the keys that were attached to it.
    pub fn lease_end(&self, revision: i64) -> Option<i64> {
        let changes = self.at(revision);
        let first = changes.first().filter(|_| changes.iter().all(|c| c.value.is_none()))?;
        let lease = self.get(&first.key, revision - 1)?.lease;
        let all = changes.iter().all(|c| self.get(&c.key, revision - 1).is_some_and(|v| v.lease == lease));
        (lease != 0 && all && self.attached(lease, revision - 1).len() == changes.len()).then_some(lease)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_those_of_their_revisions() {
        let leased = |revision, key: &str| Change { lease: 9, ..Change::put(revision, key, "x") };
        let changes = [
            Change::put(2, "a", "1"),
            leased(3, "b"),
            leased(3, "c"),
            Change::put(4, "a", "2"),
            Change::delete(5, "b"),
            Change::delete(5, "c"),
            Change::put(6, "b", "3"),
        ];
        let log = Log::new(&changes);
        assert_eq!(log.broken, []);
        assert_eq!(log.get("a", 3).and_then(|v| v.value), Some("1"));
        assert_eq!(log.get("a", 9).map(|v| (v.create, v.revision, v.version)), Some((2, 4, 2)));
        assert_eq!(log.get("a", 1), None);
        assert_eq!(log.range("a", "c", 4).iter().map(|(k, _)| *k).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(log.range("a", "\0", 5).len(), 1);
        assert_eq!(log.get("b", 6).map(|v| (v.create, v.version)), Some((6, 1)), "a new life");
        assert_eq!((log.lease_end(5), log.lease_end(4)), (Some(9), None));
    }

    #[test]
    fn changes_that_contradict_themselves_are_found() {
        let rules = |changes: &[Change]| Log::new(changes).broken.iter().map(|v| v.check).collect::<Vec<_>>();
        assert_eq!(rules(&[Change::put(3, "a", "1"), Change::put(2, "b", "2")]), ["revision-order"]);
        assert_eq!(rules(&[Change::put(3, "a", "1"), Change::put(3, "a", "2")]), ["revision-order"]);
        assert_eq!(rules(&[Change::delete(3, "a")]), ["wrong-version"]);
        assert_eq!(rules(&[Change { create: 3, version: 2, ..Change::put(3, "a", "1") }]), ["wrong-version"]);
    }
}
