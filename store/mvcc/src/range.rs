//! Reading a range of keys, now or as of an old revision.
//!
//! The latest state is read through `Meta`, which has one small record for each living key. An old state is read from `Kv`, where
//! the versions of a key stand together, newest first: the walk takes the first that is not too new, and jumps over the rest.

use std::ops::Bound;

use bytes::Bytes;
use kontiki_base::ids::Revision;
use kontiki_base::key::KeyRange;
use kontiki_base::kv::{KeyValue, KvError, RangeReq, RangeRes, SortOrder, SortTarget};
use kontiki_base::mutant;

use crate::keys::{self, Meta, Stamp, Version};
use crate::state::{self, ReadError, Revisions};
use crate::view::{Space, View, ViewError};

/// So many versions of one key are stepped over before the walk seeks instead: a seek costs about as much as so many steps.
const STEPS_BEFORE_SEEK: usize = 8;

/// Reads a range.
///
/// # Errors
/// [`KvError::EmptyKey`], [`KvError::Compacted`], [`KvError::FutureRevision`].
pub fn range(view: &dyn View, req: &RangeReq) -> Result<RangeRes, ReadError> {
    range_from(view, req, state::current(view)?)
}

/// Reads a range of a store that stands at `now`, which is not looked up: within a transaction it is not yet written down.
pub(crate) fn range_from(view: &dyn View, req: &RangeReq, now: Revisions) -> Result<RangeRes, ReadError> {
    if req.range.start.is_empty() {
        return Err(KvError::EmptyKey.into());
    }
    let at = now.resolve(req.at)?;
    let at_latest = mutant!("M65", at == now.revision, true);
    let mut res = RangeRes { revision: now.revision, ..RangeRes::default() };
    if req.range.is_empty() {
        return Ok(res);
    }
    if req.count_only {
        res.count = if at_latest { count_latest(view, &req.range)? } else { count_at(view, &req.range, at)? };
        return Ok(res);
    }
    let plan = Plan::of(req, at_latest);
    let (mut kvs, count) = match plan.source {
        Source::Meta => collect_latest(view, &req.range, plan.keep, plan.reverse, plan.keys_only)?,
        Source::Versions => collect_at(view, &req.range, at, plan.keep, plan.reverse)?,
    };
    let counted = mutant!("M64", count, if req.limit > 0 { count.min(req.limit) } else { count });
    res.count = i64::try_from(counted).unwrap_or(i64::MAX);
    let mut total = count;
    if plan.whole {
        kvs.retain(|kv| passes(req, kv));
        total = kvs.len();
        sort(req, &mut kvs);
    }
    if req.limit > 0 {
        kvs.truncate(req.limit);
        res.more = total > req.limit;
    }
    if req.keys_only {
        kvs.iter_mut().for_each(|kv| kv.value = Bytes::new());
    }
    res.kvs = kvs;
    Ok(res)
}

/// The first `limit` keys of a range as of a revision, and whether there are more. Unlike [`range`] it does not count them: it costs as much as it
/// returns, so that a large range can be read in pieces.
///
/// # Errors
/// As for [`range`].
pub fn page(view: &dyn View, range: &KeyRange, at: Revision, limit: usize, keys_only: bool) -> Result<(Vec<KeyValue>, bool), ReadError> {
    if range.start.is_empty() {
        return Err(KvError::EmptyKey.into());
    }
    let now = state::current(view)?;
    let at = now.resolve(at)?;
    let mut kvs = Vec::new();
    if range.is_empty() {
        return Ok((kvs, false));
    }
    if range.is_single() {
        let found = if at == now.revision { state::latest(view, &range.start)? } else { state::version_at(view, &range.start, at)? };
        kvs.extend(found);
    } else if keys_only && at == now.revision {
        for record in living(view, range).take(limit.saturating_add(1)) {
            let (key, meta) = record?;
            kvs.push(state::without_value(key, &meta));
        }
    } else {
        walk_at(view, range, at, &mut |kv_key, stamp, record| {
            kvs.extend(state::key_value(keys::user_key(kv_key)?, stamp.main, Version::decode(record)?));
            Ok(if kvs.len() > limit { Walk::Ends } else { Walk::GoesOn })
        })?;
    }
    let more = kvs.len() > limit;
    kvs.truncate(limit);
    if keys_only {
        kvs.iter_mut().for_each(|kv| kv.value = Bytes::new());
    }
    Ok((kvs, more))
}

/// How a range is read.
struct Plan {
    source: Source,
    /// The whole range must be there before the first result is known: it is filtered, or ordered by something else than the key.
    whole: bool,
    /// From the end of the range.
    reverse: bool,
    /// No more results than this are needed.
    keep: usize,
    /// The answer does not depend on values.
    keys_only: bool,
}

/// Where a range is read.
enum Source {
    /// Living keys, and a lookup for each value.
    Meta,
    /// All versions, with their values.
    Versions,
}

impl Plan {
    fn of(req: &RangeReq, at_latest: bool) -> Self {
        let filtered = [req.min_mod, req.max_mod, req.min_create, req.max_create].iter().any(|r| *r != Revision::ZERO);
        let by_key = req.target == SortTarget::Key;
        let whole = filtered || !by_key;
        let keys_only = req.keys_only && req.target != SortTarget::Value;
        let keep = if whole || req.limit == 0 { usize::MAX } else { req.limit };
        // Many values are cheaper to walk to than to look up one by one.
        let source = if at_latest && (keys_only || keep < usize::MAX || req.range.is_single()) { Source::Meta } else { Source::Versions };
        Self { source, whole, reverse: !whole && req.order == SortOrder::Descend, keep, keys_only }
    }
}

fn passes(req: &RangeReq, kv: &KeyValue) -> bool {
    let on = |bound: Revision| bound != Revision::ZERO;
    !(on(req.max_mod) && kv.mod_revision > req.max_mod
        || on(req.min_mod) && kv.mod_revision < req.min_mod
        || on(req.max_create) && kv.create_revision > req.max_create
        || on(req.min_create) && kv.create_revision < req.min_create)
}

/// Stable: equals stay in key order, whatever the direction.
fn sort(req: &RangeReq, kvs: &mut [KeyValue]) {
    let compare = |a: &KeyValue, b: &KeyValue| match req.target {
        SortTarget::Key => a.key.cmp(&b.key),
        SortTarget::Version => a.version.cmp(&b.version),
        SortTarget::Create => a.create_revision.cmp(&b.create_revision),
        SortTarget::Mod => a.mod_revision.cmp(&b.mod_revision),
        SortTarget::Value => a.value.cmp(&b.value),
    };
    match req.order {
        SortOrder::Descend => kvs.sort_by(|a, b| compare(b, a)),
        SortOrder::None | SortOrder::Ascend => kvs.sort_by(compare),
    }
}

/// The living keys of a range of many, in order, without their values.
pub(crate) fn living<'a>(view: &'a dyn View, range: &KeyRange) -> impl Iterator<Item = Result<(Bytes, Meta), ViewError>> + use<'a> {
    let (from, to) = keys::meta_bounds(range);
    view.scan(Space::Meta, from, to, false).map(|record| record.and_then(|(key, bytes)| Ok((key, Meta::decode(&bytes)?))))
}

fn count_latest(view: &dyn View, range: &KeyRange) -> Result<i64, ViewError> {
    if range.is_single() {
        return Ok(i64::from(view.get(Space::Meta, &range.start)?.is_some()));
    }
    let (from, to) = keys::meta_bounds(range);
    view.scan(Space::Meta, from, to, false).try_fold(0, |count, record| record.map(|_| count + 1))
}

fn count_at(view: &dyn View, range: &KeyRange, at: Revision) -> Result<i64, ViewError> {
    let mut count = 0;
    walk_at(view, range, at, &mut |_, _, _| {
        count += 1;
        Ok(Walk::GoesOn)
    })?;
    Ok(count)
}

/// Up to `keep` living keys from one end of the range, and how many there are in all.
fn collect_latest(
    view: &dyn View,
    range: &KeyRange,
    keep: usize,
    reverse: bool,
    keys_only: bool,
) -> Result<(Vec<KeyValue>, usize), ViewError> {
    let take = |key: Bytes, meta: &Meta| {
        if keys_only { Ok(state::without_value(key, meta)) } else { state::with_value(view, key, meta) }
    };
    if range.is_single() {
        let found = state::meta(view, &range.start)?;
        let kvs = found.map(|meta| take(range.start.clone(), &meta)).transpose()?.map_or_else(Vec::new, |kv| vec![kv]);
        let count = kvs.len();
        return Ok((kvs, count));
    }
    let (mut kvs, mut count) = (Vec::new(), 0);
    let (from, to) = keys::meta_bounds(range);
    for record in view.scan(Space::Meta, from, to, reverse) {
        let (key, bytes) = record?;
        if count < keep {
            kvs.push(take(key, &Meta::decode(&bytes)?)?);
        }
        count += 1;
    }
    Ok((kvs, count))
}

/// Up to `keep` keys that lived at a revision, from one end of the range, and how many there were in all.
fn collect_at(view: &dyn View, range: &KeyRange, at: Revision, keep: usize, reverse: bool) -> Result<(Vec<KeyValue>, usize), ViewError> {
    // The walk goes forwards only: versions stand newest first. From the end, all are needed to know the last ones.
    let collect = if reverse { usize::MAX } else { keep };
    let (mut kvs, mut count) = (Vec::new(), 0);
    walk_at(view, range, at, &mut |kv_key, stamp, record| {
        if count < collect {
            let version = Version::decode(record)?;
            kvs.extend(state::key_value(keys::user_key(kv_key)?, stamp.main, version));
        }
        count += 1;
        Ok(Walk::GoesOn)
    })?;
    if reverse {
        kvs.reverse();
        kvs.truncate(keep);
    }
    Ok((kvs, count))
}

/// What is called for every key that lived: its key in `Kv`, the stamp of its version, the record.
type Found<'a> = dyn FnMut(&Bytes, Stamp, &Bytes) -> Result<Walk, ViewError> + 'a;

/// Whether a walk goes on after a key.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Walk {
    GoesOn,
    Ends,
}

/// Visits the keys of a range that lived at a revision, in key order.
fn walk_at(view: &dyn View, range: &KeyRange, at: Revision, found: &mut Found<'_>) -> Result<(), ViewError> {
    let (mut from, to) = keys::kv_bounds(range);
    let to = to.as_ref().map(Vec::as_slice);
    let mut prefix: Vec<u8> = Vec::new();
    loop {
        let mut resolved = false;
        let mut steps = 0;
        let mut seek = None;
        // A walk that begins within a key's versions goes on with that key.
        for record in view.scan(Space::Kv, from.as_ref().map(Vec::as_slice), to, false) {
            let (kv_key, bytes) = record?;
            let (this, stamp) = keys::split_version_key(&kv_key)?;
            if this != prefix {
                prefix.clear();
                prefix.extend_from_slice(this);
                resolved = false;
                steps = 0;
            }
            if !resolved && stamp.main <= at {
                resolved = true;
                steps = 0;
                if !Version::is_tombstone(&bytes) && found(&kv_key, stamp, &bytes)? == Walk::Ends {
                    return Ok(());
                }
                continue;
            }
            steps += 1;
            if steps >= STEPS_BEFORE_SEEK {
                seek = Some(if resolved { keys::after_versions(prefix.clone()) } else { keys::newest_at(&prefix, at) });
                break;
            }
        }
        match seek {
            Some(place) => from = Bound::Included(place),
            None => return Ok(()),
        }
    }
}
