//! The single steps: put, delete, compact. The first two are the same within a transaction and alone.

use bytes::Bytes;
use kontiki_base::ids::{LeaseId, Revision};
use kontiki_base::kv::{DeleteReq, DeleteRes, KvError, PutReq, PutRes};

use crate::keys::{Meta, SYS_COMPACT};
use crate::lease;
use crate::range;
use crate::state::{self, ReadError};
use crate::view::Space;
use crate::write::Writer;

/// Writes one key. Reads the old value only if it is asked for or kept. All that can fail does so before the first change.
pub(crate) fn put(writer: &mut Writer<'_>, req: &PutReq) -> Result<PutRes, ReadError> {
    let view = writer.view();
    if req.lease != LeaseId::ZERO && !lease::exists(&view, req.lease)? {
        return Err(KvError::LeaseNotFound.into());
    }
    let before = state::meta(&view, &req.key)?;
    if before.is_none() && (req.ignore_value || req.ignore_lease) {
        return Err(KvError::KeyNotFound.into());
    }
    let old = match &before {
        Some(meta) if req.prev_kv || req.ignore_value => Some(state::with_value(&view, req.key.clone(), meta)?),
        _ => None,
    };
    let value = match &old {
        Some(old) if req.ignore_value => old.value.clone(),
        _ => req.value.clone(),
    };
    let lease = match &before {
        Some(before) if req.ignore_lease => before.lease,
        _ => req.lease,
    };
    writer.put_key(&req.key, &value, lease, before.as_ref());
    Ok(PutRes { revision: writer.now().revision, prev: old.filter(|_| req.prev_kv) })
}

/// Deletes the keys of a range, in key order.
pub(crate) fn delete(writer: &mut Writer<'_>, req: &DeleteReq) -> Result<DeleteRes, ReadError> {
    let view = writer.view();
    let doomed: Vec<(Bytes, Meta)> = if req.range.is_single() {
        state::meta(&view, &req.range.start)?.map(|meta| (req.range.start.clone(), meta)).into_iter().collect()
    } else {
        range::living(&view, &req.range).collect::<Result<_, _>>()?
    };
    let prevs = if req.prev_kv {
        doomed.iter().map(|(key, meta)| state::with_value(&view, key.clone(), meta)).collect::<Result<_, _>>()?
    } else {
        Vec::new()
    };
    let deleted = i64::try_from(doomed.len()).unwrap_or(i64::MAX);
    for (key, meta) in doomed {
        writer.delete_key(key, &meta);
    }
    Ok(DeleteRes { revision: writer.now().revision, deleted, prevs })
}

/// Forgets history before a revision, for every reader from now on. The records go later, at each member's own pace:
/// [`sweep`](crate::compact::sweep).
pub(crate) fn compact(writer: &mut Writer<'_>, revision: Revision) -> Result<(), ReadError> {
    let now = writer.begin();
    if revision <= now.compact {
        return Err(KvError::Compacted { compact: now.compact }.into());
    }
    if revision > now.revision {
        return Err(KvError::FutureRevision.into());
    }
    writer.set(Space::Sys, Bytes::from_static(SYS_COMPACT), Bytes::copy_from_slice(&revision.get().to_be_bytes()));
    Ok(())
}
