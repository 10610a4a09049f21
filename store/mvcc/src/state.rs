//! The store's two numbers, single versions of keys, and what a read can fail with.

use std::ops::Bound;

use bytes::Bytes;
use kontiki_base::ids::Revision;
use kontiki_base::kv::{KeyValue, KvError};

use crate::keys::{self, Meta, SYS_COMPACT, SYS_REVISION, Stamp, Version};
use crate::view::{Space, View, ViewError};

/// The revision of an empty store.
pub const EMPTY: Revision = Revision(1);

/// The compact revision of a store that was never compacted. It is below 0 so that "compact 0" succeeds once, as in etcd.
pub const NEVER_COMPACTED: Revision = Revision(-1);

/// Where the store stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Revisions {
    /// The latest revision.
    pub revision: Revision,
    /// History can be read from here on; [`NEVER_COMPACTED`] before the first compaction.
    pub compact: Revision,
}

impl Revisions {
    /// The revision to read at when `at` is asked for: 0 and below are the latest.
    pub fn resolve(self, at: Revision) -> Result<Revision, KvError> {
        if at > self.revision {
            return Err(KvError::FutureRevision);
        }
        let at = if at.get() <= 0 { self.revision } else { at };
        if at < self.compact { Err(KvError::Compacted { compact: self.compact }) } else { Ok(at) }
    }
}

/// Why a read failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The request cannot be answered; the store is fine.
    #[error(transparent)]
    Kv(#[from] KvError),
    /// The state cannot be read.
    #[error(transparent)]
    View(#[from] ViewError),
}

impl From<kontiki_base::AuthError> for ReadError {
    fn from(error: kontiki_base::AuthError) -> Self {
        Self::Kv(error.into())
    }
}

impl From<ReadError> for KvError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Kv(error) => error,
            ReadError::View(error) => KvError::Corrupt(error.to_string()),
        }
    }
}

/// Where the store stands.
pub fn current(view: &dyn View) -> Result<Revisions, ViewError> {
    Ok(Revisions { revision: number(view, SYS_REVISION)?.unwrap_or(EMPTY), compact: compact_revision(view)? })
}

/// History can be read from here on.
pub(crate) fn compact_revision(view: &dyn View) -> Result<Revision, ViewError> {
    Ok(number(view, SYS_COMPACT)?.unwrap_or(NEVER_COMPACTED))
}

fn number(view: &dyn View, name: &[u8]) -> Result<Option<Revision>, ViewError> {
    view.get(Space::Sys, name)?.map(|bytes| keys::int(Space::Sys, &bytes).map(Revision)).transpose()
}

/// A key as of a revision (0: the latest); `None` if there was no such key then.
///
/// # Errors
/// [`KvError::Compacted`], [`KvError::FutureRevision`].
pub fn get_at(view: &dyn View, key: &[u8], at: Revision) -> Result<Option<KeyValue>, ReadError> {
    let now = current(view)?;
    let at = now.resolve(at)?;
    let found = if at == now.revision { latest(view, key)? } else { version_at(view, key, at)? };
    Ok(found)
}

/// The present life of a key.
pub(crate) fn meta(view: &dyn View, key: &[u8]) -> Result<Option<Meta>, ViewError> {
    view.get(Space::Meta, key)?.map(|bytes| Meta::decode(&bytes)).transpose()
}

/// A key at the latest revision.
pub(crate) fn latest(view: &dyn View, key: &[u8]) -> Result<Option<KeyValue>, ViewError> {
    let Some(meta) = meta(view, key)? else { return Ok(None) };
    Ok(Some(with_value(view, Bytes::copy_from_slice(key), &meta)?))
}

/// The key whose present life is `meta`, with its value.
pub(crate) fn with_value(view: &dyn View, key: Bytes, meta: &Meta) -> Result<KeyValue, ViewError> {
    let Some(bytes) = view.get(Space::Kv, &keys::version_key(&key, meta.at))? else {
        return Err(keys::bad(Space::Kv, "history: the current version of a key is missing"));
    };
    match key_value(key, meta.at.main, Version::decode(&bytes)?) {
        Some(kv) => Ok(kv),
        None => Err(keys::bad(Space::Kv, "history: the current version of a key is a tombstone")),
    }
}

/// The key whose present life is `meta`, without its value.
pub(crate) fn without_value(key: Bytes, meta: &Meta) -> KeyValue {
    KeyValue {
        key,
        value: Bytes::new(),
        create_revision: meta.create,
        mod_revision: meta.at.main,
        version: meta.version,
        lease: meta.lease,
    }
}

/// A key as of a revision, by one seek. Does not look at the compact revision.
pub(crate) fn version_at(view: &dyn View, key: &[u8], at: Revision) -> Result<Option<KeyValue>, ViewError> {
    let from = keys::version_key(key, Stamp { main: at, sub: u32::MAX });
    let to = keys::after_versions(keys::versions_prefix(key));
    let mut scan = view.scan(Space::Kv, Bound::Included(&from), Bound::Excluded(&to), false);
    let Some(record) = scan.next() else { return Ok(None) };
    let (kv_key, bytes) = record?;
    let stamp = keys::split_version_key(&kv_key)?.1;
    Ok(key_value(Bytes::copy_from_slice(key), stamp.main, Version::decode(&bytes)?))
}

/// A version as clients see it; `None` for a tombstone.
pub(crate) fn key_value(key: Bytes, mod_revision: Revision, version: Version) -> Option<KeyValue> {
    match version {
        Version::Put { create, version, lease, value } => {
            Some(KeyValue { key, value, create_revision: create, mod_revision, version, lease })
        }
        Version::Tombstone => None,
    }
}
