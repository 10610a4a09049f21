//! Leases: which there are, how long they live, which keys die with them.
//!
//! Time is not known here. The leader keeps a clock for each lease, in memory; it builds them from [`list`] when it is elected and
//! proposes to revoke those that run out.

use bytes::Bytes;
use kontiki_base::ids::LeaseId;
use kontiki_base::kv::KvError;
use kontiki_base::mutant;

use crate::keys;
use crate::state::{self, ReadError};
use crate::view::{Space, View, ViewError};
use crate::write::Writer;

/// A lease that was granted and not revoked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Its id.
    pub id: LeaseId,
    /// Seconds that it lives without being kept alive.
    pub ttl: i64,
}

/// All leases, by id.
pub fn list(view: &dyn View) -> Result<Vec<Lease>, ViewError> {
    let (from, to) = keys::LEASES;
    view.scan(Space::Lease, from, to, false)
        .map(|record| {
            let (key, value) = record?;
            Ok(Lease { id: keys::decode_lease_key(&key)?, ttl: keys::int(Space::Lease, &value)? })
        })
        .collect()
}

/// The seconds that a lease lives without being kept alive; `None` if there is no such lease.
pub fn ttl(view: &dyn View, id: LeaseId) -> Result<Option<i64>, ViewError> {
    view.get(Space::Lease, &keys::lease_key(id))?.map(|value| keys::int(Space::Lease, &value)).transpose()
}

/// The keys attached to a lease, in order; none if there is no such lease.
pub fn attached(view: &dyn View, id: LeaseId) -> Result<Vec<Bytes>, ViewError> {
    let (from, to) = keys::attach_bounds(id);
    view.scan(Space::Lease, from.as_ref().map(Vec::as_slice), to.as_ref().map(Vec::as_slice), false)
        .map(|record| record.map(|(key, _)| key.slice(keys::ATTACH_HEAD..)))
        .collect()
}

pub(crate) fn exists(view: &dyn View, id: LeaseId) -> Result<bool, ViewError> {
    Ok(view.get(Space::Lease, &keys::lease_key(id))?.is_some())
}

/// Grants a lease; returns its seconds to live. The proposer has raised them to the minimum of its cluster, which depends on
/// settings; here they are only kept positive.
pub(crate) fn grant(writer: &mut Writer<'_>, id: LeaseId, ttl: i64) -> Result<i64, ReadError> {
    if exists(&writer.view(), id)? {
        return Err(KvError::LeaseExists.into());
    }
    let ttl = ttl.max(1);
    writer.set(Space::Lease, Bytes::copy_from_slice(&keys::lease_key(id)), Bytes::copy_from_slice(&ttl.to_be_bytes()));
    Ok(ttl)
}

/// Revokes a lease: its keys are deleted, in order, in one revision.
pub(crate) fn revoke(writer: &mut Writer<'_>, id: LeaseId) -> Result<(), ReadError> {
    let view = writer.view();
    if !exists(&view, id)? {
        return Err(KvError::LeaseNotFound.into());
    }
    let mut doomed = Vec::new();
    for key in attached(&view, id)? {
        let Some(meta) = state::meta(&view, &key)? else {
            return Err(keys::bad(Space::Lease, "attachment: its key does not exist").into());
        };
        doomed.push((key, meta));
    }
    mutant!("M61", drop(doomed.pop()));
    for (key, meta) in doomed {
        writer.delete_key(key, &meta);
    }
    writer.unset(Space::Lease, Bytes::copy_from_slice(&keys::lease_key(id)));
    Ok(())
}
