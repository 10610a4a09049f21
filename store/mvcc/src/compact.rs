//! Removing the records that nobody can read any more.
//!
//! `apply` makes a compaction count at once, by writing down the compact revision C. The records go later, in slices, when each
//! member finds the time: [`sweep`]. It never changes what can be read.
//!
//! Of each key stay: all versions at C and after it, so that a watch from C is complete; and the newest before C unless it is a
//! tombstone, or unless there is one at C.
//!
//! The sweep is driven by `Rev`. A version can only go because of a later change of its key, or because it is a tombstone itself, so
//! it is enough to visit the keys of the changes between the last compaction, inclusive, and this one. When C moves on during a sweep,
//! the sweep goes on with the new C where it stands, but not after the older C: what it has passed was done for the older C, and every
//! version that the newer C frees in addition either has a change ahead of the cursor, or was at the older C and kept for that reason.

use std::ops::Bound;

use bytes::{BufMut, Bytes};
use kontiki_base::ids::Revision;
use kontiki_base::mutant;

use crate::keys::{self, SYS_SWEEP, Stamp, Version};
use crate::state;
use crate::view::{Batch, Overlay, Space, View, ViewError};

/// What a slice of a sweep did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Nothing is left to do until the next compaction.
    pub done: bool,
    /// Changes that were looked at.
    pub visited: usize,
    /// Versions that were removed.
    pub removed: usize,
}

/// Removes records that nobody can read any more, as far as `budget` goes: the number of changes looked at and versions removed (a few more
/// if it is tiny: each call gets on). Where to go on is in the batch, too.
///
/// # Errors
/// The state could not be read; the batch is then of no use.
pub fn sweep(view: &dyn View, budget: usize, out: &mut Batch) -> Result<Progress, ViewError> {
    let above = Overlay { base: view, batch: out };
    let compact = state::compact_revision(&above)?;
    let mut cursor = Cursor::load(&above, compact)?;
    if cursor.at.main > compact {
        return Ok(Progress { done: true, ..Progress::default() });
    }
    let from = cursor.at.encode();
    let to = Stamp::first(compact.next()).encode();
    let mut left = budget.max(2);
    // One more than can be looked at: whether it is there says whether this is the end.
    let changes: Vec<_> =
        above.scan(Space::Rev, Bound::Included(&from), Bound::Excluded(&to), false).take(left + 1).collect::<Result<_, _>>()?;
    let mut progress = Progress { done: true, ..Progress::default() };
    for (rev_key, rev) in changes {
        cursor.at = Stamp::decode(Space::Rev, &rev_key)?;
        if left < 2 {
            progress.done = false;
            break;
        }
        if out.get(Space::Rev, &rev_key) == Some(None) {
            continue;
        }
        left -= 1;
        progress.visited += 1;
        let (_, key) = keys::decode_rev(&rev)?;
        let removed = remove(view, &key, compact, left, out)?;
        progress.removed += removed;
        left -= removed;
        if left == 0 {
            // Perhaps more of this key can go: the next call begins with it.
            progress.done = false;
            break;
        }
    }
    if progress.done {
        cursor.at = Stamp::first(compact.next());
    }
    cursor.store(out);
    Ok(progress)
}

/// Removes up to `max` versions of a key that cannot be read any more; how many. The oldest go first: a tombstone must not go before what
/// it hides.
fn remove(view: &dyn View, key: &[u8], compact: Revision, max: usize, out: &mut Batch) -> Result<usize, ViewError> {
    let prefix = keys::versions_prefix(key);
    let from = keys::newest_at(&prefix, compact);
    let to = keys::after_versions(prefix);
    let mut doomed = Vec::new();
    let above = Overlay { base: view, batch: out };
    let mut versions = above.scan(Space::Kv, Bound::Included(&from), Bound::Excluded(&to), true).peekable();
    while doomed.len() < max {
        let Some(record) = versions.next() else { break };
        let (kv_key, bytes) = record?;
        let (_, stamp) = keys::split_version_key(&kv_key)?;
        let superseded = versions.peek().is_some();
        let at_compact = stamp.main == compact;
        if mutant!("M14", at_compact, at_compact && !Version::is_tombstone(&bytes)) || !superseded && !Version::is_tombstone(&bytes) {
            break;
        }
        doomed.push((kv_key, stamp));
    }
    drop(versions);
    let removed = doomed.len();
    for (kv_key, stamp) in doomed {
        out.delete(Space::Kv, kv_key);
        out.delete(Space::Rev, Bytes::copy_from_slice(&stamp.encode()));
    }
    Ok(removed)
}

/// Says of the versions of one key, asked from the newest to the oldest, which can still be read.
pub(crate) struct Keep {
    compact: Revision,
    /// A version at the compact revision or before it has been seen.
    superseded: bool,
}

impl Keep {
    pub(crate) fn new(compact: Revision) -> Self {
        Self { compact, superseded: false }
    }

    pub(crate) fn keeps(&mut self, at: Revision, tombstone: bool) -> bool {
        if at > self.compact {
            return true;
        }
        let newest = !std::mem::replace(&mut self.superseded, true);
        at == self.compact || newest && !tombstone
    }
}

/// Where the sweep stands.
struct Cursor {
    /// The first change that it has not passed; beyond `compact` when it has finished.
    at: Stamp,
    /// The compact revision for which it works.
    compact: Revision,
}

impl Cursor {
    fn load(view: &dyn View, compact: Revision) -> Result<Self, ViewError> {
        let Some(bytes) = view.get(Space::Sys, SYS_SWEEP)? else {
            return Ok(Self { at: Stamp::default(), compact });
        };
        let (at, before) = bytes.split_at_checked(keys::STAMP_LEN).ok_or_else(|| keys::bad(Space::Sys, "sweep"))?;
        let (at, before) = (Stamp::decode(Space::Sys, at)?, Revision(keys::int(Space::Sys, before)?));
        // What was kept because it was at the compact revision has to be looked at again for the next.
        let at = if before == compact { at } else { at.min(Stamp::first(before)) };
        Ok(Self { at, compact })
    }

    fn store(&self, out: &mut Batch) {
        let mut bytes = Vec::with_capacity(keys::STAMP_LEN + 8);
        bytes.put_slice(&self.at.encode());
        bytes.put_i64(self.compact.get());
        out.put(Space::Sys, Bytes::from_static(SYS_SWEEP), bytes);
    }
}
