//! The observer: one watch over the whole store from its first revision on, resumed until it is complete. What it saw is the authority on the
//! order of writes, because it can miss nothing: revisions follow each other, and it asks for the one after the last.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use kontiki_proto::etcd::etcdserverpb::RangeRequest;
use kontiki_proto::etcd::etcdserverpb::kv_client::KvClient;
use kontiki_proto::etcd::mvccpb::event::EventType;

use super::kv::{PREFIX, Run, channel};
use super::watch;
use crate::history::{Change, REGISTRY, Record, WatchAsk};

/// A member that says nothing for so long is left.
const SILENCE: Duration = Duration::from_secs(3);

/// After a failure the observer waits so long.
const RETRY: Duration = Duration::from_millis(100);

/// Watches, and knows how far it is.
pub struct Observer {
    run: Arc<Run>,
    /// The next revision that it has not seen.
    next: AtomicI64,
}

impl Observer {
    /// An observer that has seen nothing yet.
    pub fn new(run: Arc<Run>) -> Self {
        Self { run, next: AtomicI64::new(1) }
    }

    /// Watches until the future is dropped: unlike clients it does not stop with the load.
    ///
    /// # Errors
    /// History was compacted away before it was seen: nothing can be judged.
    pub async fn watch(&self) -> Result<()> {
        let mut member = 0;
        loop {
            let start = self.next.load(Ordering::Relaxed);
            let ask = WatchAsk { key: "\0".into(), end: "\0".into(), start, ..WatchAsk::default() };
            if let Ok(mut stream) = watch::open(&self.run.members[member], &ask).await {
                while let Ok(Ok(Some(response))) = tokio::time::timeout(SILENCE, stream.message()).await {
                    if response.canceled && response.compact_revision > 0 {
                        bail!("the store forgot its history up to {} before the observer saw it", response.compact_revision);
                    }
                    if response.canceled {
                        break;
                    }
                    for event in &response.events {
                        let Some(kv) = &event.kv else { continue };
                        self.record(kv, event.r#type() == EventType::Put);
                    }
                    let revision = response.header.as_ref().map_or(0, |h| h.revision);
                    if response.events.is_empty() && !response.created {
                        self.next.fetch_max(revision + 1, Ordering::Relaxed);
                    }
                    let last = response.events.iter().filter_map(|e| e.kv.as_ref()).map(|kv| kv.mod_revision + 1).max();
                    self.next.fetch_max(last.unwrap_or(0), Ordering::Relaxed);
                }
            }
            member = (member + 1) % self.run.members.len();
            self.run.env.sleep(RETRY).await;
        }
    }

    fn record(&self, kv: &kontiki_proto::etcd::mvccpb::KeyValue, put: bool) {
        let key = String::from_utf8_lossy(&kv.key).into_owned();
        // What nobody judges is not kept: overload writes much, and large values.
        if !key.starts_with(PREFIX) && !key.starts_with(REGISTRY) {
            return;
        }
        let value = put.then(|| String::from_utf8_lossy(&kv.value).into_owned());
        let (create, version, lease) = (kv.create_revision, kv.version, kv.lease);
        self.run.recorder.record(Record::Change(Change { revision: kv.mod_revision, key, value, create, version, lease }));
    }

    /// Waits until it has seen everything up to what a linearizable read shows now.
    ///
    /// # Errors
    /// The store does not answer, or the observer does not get there within `limit`.
    pub async fn catch_up(&self, limit: Duration) -> Result<i64> {
        let mut until = None;
        let start = self.run.now();
        loop {
            for url in &self.run.members {
                if until.is_none()
                    && let Ok(channel) = channel(url)
                {
                    let range = RangeRequest { key: PREFIX.into(), count_only: true, ..RangeRequest::default() };
                    until = KvClient::new(channel).range(range).await.ok().and_then(|r| r.into_inner().header).map(|h| h.revision);
                }
            }
            let next = self.next.load(Ordering::Relaxed);
            if let Some(until) = until.filter(|until| next > *until) {
                return Ok(until);
            }
            if Duration::from_nanos(self.run.now() - start) > limit {
                until.context("no member answers a read")?;
                bail!("the observer saw revisions up to {} and no more for {} s, of {}", next - 1, limit.as_secs(), until.unwrap_or(0));
            }
            self.run.env.sleep(RETRY).await;
        }
    }
}
