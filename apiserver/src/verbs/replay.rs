//! Changes from before the window, out of the store's own history: a client that comes from another server, or from before a
//! restart, goes on where it was instead of listing everything again.

use std::sync::Arc;
use std::time::Duration;

use kontiki_base::kv::{Event, EventKind, KeyValue, KvError, WatchMsg, WatchReq};
use kontiki_base::{KeyRange, Revision, limits};

use super::list::Selection;
use crate::cache::change::{Cached, Change};
use crate::core::Core;

/// How long reading history may take.
const PATIENCE: Duration = Duration::from_secs(3);

impl Core {
    /// The changes of a kind after `from`, up to and including `to`. `None` if they cannot be had: compacted away, too many, too slow.
    pub(super) async fn replay(&self, selection: &Selection, from: Revision, to: Revision) -> Option<Vec<Arc<Change>>> {
        let reading = self.read_history(selection, from, to);
        let read = tokio::select! {
            read = reading => read,
            () = self.env.sleep(PATIENCE) => Ok(None),
        };
        read.unwrap_or_else(|error| {
            tracing::debug!(%error, %from, "history cannot be replayed");
            None
        })
    }

    async fn read_history(&self, selection: &Selection, from: Revision, to: Revision) -> Result<Option<Vec<Arc<Change>>>, KvError> {
        let request = WatchReq { range: KeyRange::prefix(selection.prefix()), from: from.next(), prev_kv: true };
        let mut stream = self.kv.watch(request).await?;
        let mut changes = Vec::new();
        while let Some(message) = stream.next().await {
            let reached = match message? {
                WatchMsg::Created { .. } => Revision::ZERO,
                WatchMsg::Progress { revision } => revision,
                WatchMsg::Events { revision, events } => {
                    changes.extend(events.iter().filter(|e| e.kv.mod_revision <= to).map(|e| Arc::new(change(e))));
                    revision
                }
            };
            if changes.len() > limits::CACHE_EVENTS {
                return Ok(None);
            }
            if reached >= to {
                return Ok(Some(changes));
            }
        }
        Ok(None)
    }
}

fn change(event: &Event) -> Change {
    let object = |kv: &KeyValue| Cached::new(kv.key.clone(), &kv.value, kv.mod_revision).map(Arc::new);
    let new = if event.kind == EventKind::Put { object(&event.kv) } else { None };
    Change::new(event.kv.mod_revision, event.prev.as_ref().and_then(object), new)
}
