//! The watch cache: one stream from the store feeds the caches of all kinds, so that all of them stand at the same revision.
//!
//! The stream covers the whole keyspace. That makes freshness a question of one number: a cache is as new as the last revision
//! that came through, whichever key it was about, and an idle kind needs no word from the store to know that it missed nothing.
//! (kube-apiserver watches per kind and has to ask etcd for progress; here the store is in the same process.)

pub(crate) mod change;
pub(crate) mod row;

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use kontiki_base::env::Env;
use kontiki_base::kv::{Event, Kv, KvError, RangeReq, WatchMsg, WatchReq};
use kontiki_base::{KeyRange, Revision};
use kontiki_registry::row::Row;
use tokio::sync::watch;

use row::{Phase, RowCache};

/// Objects per page of a cache's first list.
const LOAD_PAGE: usize = 1_000;
/// Wait before the store is asked again.
const RETRY: Duration = Duration::from_millis(100);

/// All caches, and the task that feeds them.
pub(crate) struct Hub {
    kv: Arc<dyn Kv>,
    env: Arc<dyn Env>,
    /// By storage prefix with its final slash.
    rows: RwLock<BTreeMap<Bytes, Arc<RowCache>>>,
    /// Everything up to here has been applied to every cache; zero while there is no stream.
    applied: watch::Sender<Revision>,
}

impl std::fmt::Debug for Hub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hub").field("applied", &*self.applied.borrow()).finish_non_exhaustive()
    }
}

impl Hub {
    /// Without caches; [`Hub::run`] has to be spawned.
    pub(crate) fn new(kv: Arc<dyn Kv>, env: Arc<dyn Env>) -> Arc<Self> {
        Arc::new(Self { kv, env, rows: RwLock::default(), applied: watch::Sender::new(Revision::ZERO) })
    }

    /// Everything up to here has been applied.
    pub(crate) fn applied(&self) -> Revision {
        *self.applied.borrow()
    }

    /// Feeds the caches until the store shuts down.
    pub(crate) async fn run(self: Arc<Self>) {
        loop {
            match self.follow().await {
                Ok(()) => tracing::info!("the store ended the watch stream"),
                Err(KvError::Stopped) => return,
                Err(error @ KvError::Compacted { .. }) => {
                    tracing::warn!(%error, "history broke off; caches are loaded again");
                    self.reset();
                }
                Err(error) => tracing::warn!(%error, "watch stream broke; resuming"),
            }
            self.env.sleep(RETRY).await;
        }
    }

    async fn follow(&self) -> Result<(), KvError> {
        let seen = self.applied();
        let from = if seen == Revision::ZERO { seen } else { seen.next() };
        let mut stream = self.kv.watch(WatchReq { range: KeyRange::prefix(Bytes::new()), from, prev_kv: false }).await?;
        while let Some(message) = stream.next().await {
            match message? {
                WatchMsg::Created { revision } if from == Revision::ZERO => self.advance(revision),
                WatchMsg::Created { .. } => {}
                WatchMsg::Progress { revision } => self.advance(revision),
                WatchMsg::Events { revision, events } => {
                    self.dispatch(&events);
                    self.advance(revision);
                }
            }
        }
        Ok(())
    }

    fn advance(&self, revision: Revision) {
        self.applied.send_if_modified(|now| {
            let later = revision > *now;
            *now = revision.max(*now);
            later
        });
    }

    fn dispatch(&self, events: &[Event]) {
        let mut batches: Vec<(Arc<RowCache>, Vec<Event>)> = Vec::new();
        for event in events {
            let Some(cache) = self.owner(&event.kv.key) else { continue };
            match batches.iter_mut().find(|(c, _)| Arc::ptr_eq(c, &cache)) {
                Some((_, batch)) => batch.push(event.clone()),
                None => batches.push((cache, vec![event.clone()])),
            }
        }
        for (cache, batch) in batches {
            cache.apply(&batch);
        }
    }

    /// The cache that a key belongs to: that of the longest known prefix which ends at a slash.
    fn owner(&self, key: &[u8]) -> Option<Arc<RowCache>> {
        let rows = self.rows.read().unwrap_or_else(PoisonError::into_inner);
        let cuts = (0..key.len()).rev().filter(|i| key[*i] == b'/');
        cuts.map(|i| &key[..=i]).find_map(|prefix| rows.get(prefix).cloned())
    }

    /// Ends every cache and every watch: their clients list again.
    fn reset(&self) {
        let mut rows = self.rows.write().unwrap_or_else(PoisonError::into_inner);
        for cache in rows.values() {
            cache.kill();
        }
        rows.clear();
        self.applied.send_replace(Revision::ZERO);
    }

    /// The cache of a kind if it is ready.
    pub(crate) fn ready(&self, row: &Row) -> Option<Arc<RowCache>> {
        let rows = self.rows.read().unwrap_or_else(PoisonError::into_inner);
        rows.get(row.storage_prefix(None).as_bytes()).filter(|c| c.phase() == Phase::Ready).cloned()
    }

    /// The cache of a kind, loaded if need be; `None` if it is not ready within `patience`.
    pub(crate) async fn ensure(self: &Arc<Self>, row: &Arc<Row>, patience: Duration) -> Option<Arc<RowCache>> {
        if let Some(cache) = self.ready(row) {
            return Some(cache);
        }
        let cache = self.register(row);
        let mut ticks = cache.subscribe();
        let ready = ticks.wait_for(|(_, phase)| *phase != Phase::Loading);
        let phase = tokio::select! {
            phase = ready => phase.ok()?.1,
            () = self.env.sleep(patience) => return None,
        };
        (phase == Phase::Ready).then_some(cache)
    }

    fn register(self: &Arc<Self>, row: &Arc<Row>) -> Arc<RowCache> {
        let prefix = Bytes::from(row.storage_prefix(None));
        let mut rows = self.rows.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(cache) = rows.get(&prefix).filter(|c| c.phase() != Phase::Dead) {
            return cache.clone();
        }
        let cache = Arc::new(RowCache::new(row.clone()));
        rows.insert(prefix.clone(), cache.clone());
        drop(rows);
        let (hub, loading) = (self.clone(), cache.clone());
        self.env.spawn("cache-load", Box::pin(async move { hub.load(&prefix, &loading).await }));
        cache
    }

    /// Lists a kind at one revision that is not before any change that the stream delivered before the cache was registered.
    async fn load(&self, prefix: &Bytes, cache: &RowCache) {
        let mut applied = self.applied.subscribe();
        if applied.wait_for(|r| *r > Revision::ZERO).await.is_err() {
            return;
        }
        while cache.phase() == Phase::Loading {
            match self.list(prefix).await {
                Ok((revision, kvs)) => {
                    tracing::debug!(prefix = %String::from_utf8_lossy(prefix), objects = kvs.len(), %revision, "cache loaded");
                    return cache.fill(revision, kvs);
                }
                Err(error) => {
                    tracing::warn!(prefix = %String::from_utf8_lossy(prefix), %error, "cannot load a cache yet");
                    self.env.sleep(RETRY).await;
                }
            }
        }
    }

    async fn list(&self, prefix: &Bytes) -> Result<(Revision, Vec<kontiki_base::kv::KeyValue>), KvError> {
        let whole = KeyRange::prefix(prefix.clone());
        let mut request = RangeReq { limit: LOAD_PAGE, ..RangeReq::new(whole.clone()) };
        let mut all = Vec::new();
        loop {
            let page = self.kv.range(request.clone()).await?;
            if request.at == Revision::ZERO {
                request.at = page.revision;
            }
            let last = page.kvs.last().map(|kv| kv.key.clone());
            all.extend(page.kvs);
            match last {
                Some(last) if page.more => request.range.start = after(&last),
                _ => return Ok((request.at, all)),
            }
        }
    }

    /// Waits until the caches are at least at `revision`.
    pub(crate) async fn reach(&self, revision: Revision, patience: Duration) -> bool {
        let mut applied = self.applied.subscribe();
        tokio::select! {
            reached = applied.wait_for(|r| *r >= revision) => reached.is_ok(),
            () = self.env.sleep(patience) => false,
        }
    }

    /// Every cache with its number of objects, for metrics.
    pub(crate) fn sizes(&self) -> Vec<(String, usize)> {
        let rows = self.rows.read().unwrap_or_else(PoisonError::into_inner);
        rows.values().map(|c| (c.row.group_resource(), c.len())).collect()
    }
}

/// The first key after `key`.
pub(crate) fn after(key: &[u8]) -> Bytes {
    let mut next = key.to_vec();
    next.push(0);
    next.into()
}
