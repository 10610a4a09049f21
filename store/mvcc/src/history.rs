//! History in order of revision: what a watch replays when it begins in the past or has fallen behind.

use std::ops::Bound;

use bytes::Bytes;
use kontiki_base::ids::Revision;
use kontiki_base::key::KeyRange;
use kontiki_base::kv::{Event, EventKind, KeyValue, KvError};
use kontiki_base::mutant;

use crate::keys::{self, Stamp, Version};
use crate::state::{self, ReadError};
use crate::view::{Space, View, ViewError};

/// A call looks at most at this many changes for each event that it may return, and this many more: a watcher of a quiet range gets
/// its turn over in bounded time.
const LOOKED_AT_PER_EVENT: usize = 16;
const LOOKED_AT_MORE: usize = 1_024;

/// The changes of a range of keys from a revision on, in order, and the revision to go on from: one more than the store's when
/// everything was returned. All changes of a revision are returned together: the last one may exceed `max_events`. The list may be empty although
/// more follows; the revision to go on from has then moved. Events have no `prev`: see [`previous`].
///
/// # Errors
/// [`KvError::Compacted`] if `from` lies before the compact revision. A revision that is not there yet is no error.
pub fn history(view: &dyn View, range: &KeyRange, from: Revision, max_events: usize) -> Result<(Vec<Event>, Revision), ReadError> {
    let now = state::current(view)?;
    if mutant!("M50", from < now.compact, false) {
        return Err(KvError::Compacted { compact: now.compact }.into());
    }
    if from > now.revision {
        return Ok((Vec::new(), from));
    }
    if range.is_single() {
        return one_key(view, &range.start, from, max_events, now.revision);
    }
    let look_at = max_events.saturating_mul(LOOKED_AT_PER_EVENT).saturating_add(LOOKED_AT_MORE);
    let start = Stamp::first(from.max(Revision::ZERO)).encode();
    let mut events = Vec::new();
    let mut last = Revision::ZERO;
    for (looked_at, record) in view.scan(Space::Rev, Bound::Included(&start), Bound::Unbounded, false).enumerate() {
        let (key, value) = record?;
        let stamp = Stamp::decode(Space::Rev, &key)?;
        if stamp.main != last && (events.len() >= max_events.max(1) || looked_at >= look_at) {
            return Ok((events, stamp.main));
        }
        last = stamp.main;
        let (deleted, key) = keys::decode_rev(&value)?;
        if range.contains(&key) {
            events.push(event(view, key, stamp, deleted)?);
        }
    }
    Ok((events, now.revision.next()))
}

/// The history of a single key stands together in `Kv`: what the rest of the store did meanwhile costs nothing.
fn one_key(view: &dyn View, key: &Bytes, from: Revision, max_events: usize, now: Revision) -> Result<(Vec<Event>, Revision), ReadError> {
    let newest = keys::versions_prefix(key);
    let oldest = keys::version_key(key, Stamp::first(from.max(Revision::ZERO)));
    let mut events: Vec<Event> = Vec::new();
    for record in view.scan(Space::Kv, Bound::Included(&newest), Bound::Included(&oldest), true) {
        let (kv_key, bytes) = record?;
        let (_, stamp) = keys::split_version_key(&kv_key)?;
        if events.len() >= max_events.max(1) && events.last().is_some_and(|last| last.kv.mod_revision != stamp.main) {
            return Ok((events, stamp.main));
        }
        events.push(match state::key_value(key.clone(), stamp.main, Version::decode(&bytes)?) {
            Some(kv) => Event { kind: EventKind::Put, kv, prev: None },
            None => deletion(key.clone(), stamp),
        });
    }
    Ok((events, now.next()))
}

fn deletion(key: Bytes, stamp: Stamp) -> Event {
    let kv = KeyValue { key, mod_revision: stamp.main, ..KeyValue::default() };
    Event { kind: EventKind::Delete, kv, prev: None }
}

fn event(view: &dyn View, key: Bytes, stamp: Stamp, deleted: bool) -> Result<Event, ViewError> {
    if deleted {
        return Ok(deletion(key, stamp));
    }
    let version = match view.get(Space::Kv, &keys::version_key(&key, stamp))? {
        Some(bytes) => state::key_value(key, stamp.main, Version::decode(&bytes)?),
        None => None,
    };
    let kv = version.ok_or_else(|| keys::bad(Space::Kv, "history: a revision's write is missing"))?;
    Ok(Event { kind: EventKind::Put, kv, prev: None })
}

/// A key as it was just before a revision: the `prev` of an event of that revision. `None` if there was no such key, or if that lies
/// before the compact revision, whether or not the record is still there.
pub fn previous(view: &dyn View, key: &[u8], before: Revision) -> Result<Option<KeyValue>, ViewError> {
    let at = Revision(mutant!("M47", before.get().saturating_sub(1), before.get()));
    if at < state::compact_revision(view)? { Ok(None) } else { state::version_at(view, key, at) }
}
