//! The verbs, once for all kinds and both doors: get, list, watch, create, update, patch, delete, and several writes as one.
//!
//! A write is first prepared: a pure-looking decision against the current state, with the revision that it was based on. Then it is
//! committed: one store transaction that compares those revisions. Whoever lost a race prepares again on what the store answered.

pub(crate) mod admit;
pub(crate) mod commit;
pub(crate) mod create;
pub(crate) mod delete;
pub(crate) mod list;
pub(crate) mod managed;
mod replay;
pub(crate) mod transact;
pub(crate) mod update;
pub(crate) mod watch;

use std::sync::Arc;

use bytes::Bytes;
use kontiki_base::kv::{Consistency, KeyValue, RangeReq};
use kontiki_base::{KeyRange, Revision, Term};
use kontiki_registry::row::Row;
use kontiki_registry::schema::decode::FieldValidation;
use kontiki_registry::status::Status;
use serde_json::Value;

use crate::cache::change::Cached;
use crate::codec;
use crate::core::{Core, FRESHNESS_PATIENCE};
use crate::error::Result;

/// How often a write that keeps losing races is tried before the client is told.
pub(crate) const WRITE_TRIES: usize = 16;

/// One object by name.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    /// Its kind.
    pub(crate) row: Arc<Row>,
    /// Its namespace; empty for kinds without.
    pub(crate) namespace: String,
    /// Its name.
    pub(crate) name: String,
}

impl Target {
    /// Its storage key.
    pub(crate) fn key(&self) -> Bytes {
        self.row.storage_key(&self.namespace, &self.name).into()
    }

    /// Of the same name in the same namespace.
    pub(crate) fn of(row: &Arc<Row>, namespace: &str, name: &str) -> Self {
        let namespace = if row.namespaced { namespace } else { "" };
        Self { row: row.clone(), namespace: namespace.into(), name: name.into() }
    }
}

/// What comes with every write.
#[derive(Clone, Debug, Default)]
pub(crate) struct WriteOptions {
    /// Decide everything, write nothing.
    pub(crate) dry_run: bool,
    /// Who is named in `managedFields`.
    pub(crate) manager: String,
    /// Unknown and duplicate fields.
    pub(crate) validation: FieldValidation,
    /// Carry it out only under this term.
    pub(crate) fence: Option<Term>,
}

/// An object as a write finds it.
#[derive(Clone, Debug)]
pub(crate) struct Current {
    /// The tree in the version of the row, with its resource version; `None` if there is no such object.
    pub(crate) value: Option<Value>,
    /// Revision of its last write; zero if there is no such object.
    pub(crate) revision: Revision,
    /// It was read from the store, not from a cache that may lag.
    pub(crate) fresh: bool,
}

impl Current {
    /// From what the store answered.
    pub(crate) fn fresh(row: &Row, kv: Option<KeyValue>) -> Result<Self> {
        let Some(kv) = kv else {
            return Ok(Self { value: None, revision: Revision::ZERO, fresh: true });
        };
        let value = codec::decode(&kv.value, kv.mod_revision).map_err(|e| unreadable(&kv.key, &e))?;
        Ok(Self { value: Some(served(row, value)), revision: kv.mod_revision, fresh: true })
    }
}

fn unreadable(key: &[u8], error: &serde_json::Error) -> Status {
    tracing::error!(key = %String::from_utf8_lossy(key), %error, "stored object cannot be read");
    Status::internal(&format!("stored object {} cannot be read", String::from_utf8_lossy(key)))
}

/// Whether objects of the row are stored in its own version.
pub(crate) fn as_stored(row: &Row) -> bool {
    row.rules.from_stored.is_none() && row.version == row.stored_as.version
}

/// From the version in storage to that of the row. Versions of a custom resource differ in nothing but their name.
pub(crate) fn served(row: &Row, value: Value) -> Value {
    match row.rules.from_stored {
        Some(convert) => convert(value),
        None if row.version != row.stored_as.version => renamed(value, row.api_version()),
        None => value,
    }
}

fn renamed(mut value: Value, api_version: String) -> Value {
    value["apiVersion"] = Value::String(api_version);
    value
}

/// From the version of the row to that in storage.
pub(crate) fn stored(row: &Row, value: Value) -> Value {
    match row.rules.to_stored {
        Some(convert) => convert(value),
        None if row.version != row.stored_as.version => renamed(value, row.stored_as.api_version()),
        None => value,
    }
}

/// The bytes of a cached object in the version of the row.
pub(crate) fn bytes_of(row: &Row, object: &Cached) -> Bytes {
    if as_stored(row) {
        return object.bytes.clone();
    }
    serde_json::to_vec(&served(row, object.value())).map(Bytes::from).unwrap_or_default()
}

impl Core {
    /// The object as the store has it now.
    pub(crate) async fn read_fresh(&self, target: &Target) -> Result<Current> {
        let mut answer = self.kv.range(RangeReq::new(KeyRange::single(target.key()))).await?;
        Current::fresh(&target.row, answer.kvs.pop())
    }

    /// The object as a write may take it for a first try: from the cache if there is one.
    pub(crate) async fn read_for_write(&self, target: &Target) -> Result<Current> {
        let cached = self.hub.ready(&target.row).and_then(|c| c.get(&target.key()));
        let Some(object) = cached else { return self.read_fresh(target).await };
        let value = Some(served(&target.row, object.value()));
        Ok(Current { value, revision: object.revision, fresh: false })
    }

    /// GET. `revision`: `None` is the latest; zero is any; otherwise not older than that.
    pub(crate) async fn get(&self, target: &Target, revision: Option<Revision>) -> Result<Arc<Cached>> {
        if let Some(revision) = revision {
            self.not_older(revision).await?;
            if let Some(cache) = self.hub.ready(&target.row) {
                return cache.get(&target.key()).ok_or_else(|| Status::not_found(&target.row, &target.name));
            }
        }
        let consistency = if revision.is_some() { Consistency::Serializable } else { Consistency::Linearizable };
        self.get_from_store(target, Revision::ZERO, consistency).await
    }

    /// The object as it was at a revision.
    pub(crate) async fn get_at(&self, target: &Target, revision: Revision) -> Result<Arc<Cached>> {
        self.get_from_store(target, revision, Consistency::Linearizable).await
    }

    async fn get_from_store(&self, target: &Target, at: Revision, consistency: Consistency) -> Result<Arc<Cached>> {
        let request = RangeReq { at, consistency, ..RangeReq::new(KeyRange::single(target.key())) };
        let kv = self.kv.range(request).await?.kvs.pop().ok_or_else(|| Status::not_found(&target.row, &target.name))?;
        let object = Cached::new(kv.key.clone(), &kv.value, kv.mod_revision);
        object.map(Arc::new).ok_or_else(|| Status::internal(&format!("stored object {} cannot be read", String::from_utf8_lossy(&kv.key))))
    }

    /// Waits until the caches are not older than `revision`, which a client got from somewhere.
    pub(crate) async fn not_older(&self, revision: Revision) -> Result<()> {
        if self.hub.applied() >= revision || self.hub.reach(revision, FRESHNESS_PATIENCE).await {
            return Ok(());
        }
        let current = self.kv.status().revision;
        Err(Status::too_large_resource_version(revision.get().unsigned_abs(), current.get().unsigned_abs()))
    }
}
