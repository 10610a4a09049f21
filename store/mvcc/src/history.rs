//! History in order of revision: what a watch replays when it begins in the past or has fallen behind.

use std::ops::Bound;

use bytes::Bytes;
use kontiki_base::ids::Revision;
use kontiki_base::key::KeyRange;
use kontiki_base::kv::{Event, EventKind, KeyValue, KvError};

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
    if from < now.compact {
        return Err(KvError::Compacted { compact: now.compact }.into());
    }
    if from > now.revision {
        return Ok((Vec::new(), from));
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

fn event(view: &dyn View, key: Bytes, stamp: Stamp, deleted: bool) -> Result<Event, ViewError> {
    if deleted {
        let kv = KeyValue { key, mod_revision: stamp.main, ..KeyValue::default() };
        return Ok(Event { kind: EventKind::Delete, kv, prev: None });
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
    let at = Revision(before.get().saturating_sub(1));
    if at < state::compact_revision(view)? { Ok(None) } else { state::version_at(view, key, at) }
}
