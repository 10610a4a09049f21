//! Pod sets on their way down to an agent: all of a node's pods at first, then what changed.

use std::collections::BTreeSet;

use kontiki_base::Uid;
use kontiki_base::object::ObjectKey;
use kontiki_control::{Kind, meta};
use kontiki_proto::node::PodSet;

use crate::error::ApiError;
use crate::informer::Caches;

/// All pods of a node, as of at least now: an agent must not be told to stop what was bound a moment ago.
pub(super) async fn full(caches: &Caches, node: &str) -> Result<PodSet, ApiError> {
    caches.until(Caches::synced).await;
    caches.catch_up(&[Kind::Pod]).await?;
    // Read before the pods: they may be newer than the set says, never older.
    let revision = caches.reached(Kind::Pod).get();
    let keys: Vec<ObjectKey> = caches.world().pods_on(node).map(|p| meta::key(&p.metadata)).collect();
    let pods = keys.iter().filter_map(|key| caches.raw_pod(key)).collect();
    Ok(PodSet { revision, full: true, pods, removed: Vec::new() })
}

/// The pods among `dirty` that are still the node's, and those that no longer are; `None` if there is nothing to tell.
pub(super) fn change(caches: &Caches, node: &str, dirty: BTreeSet<(ObjectKey, Uid)>) -> Option<PodSet> {
    let revision = caches.reached(Kind::Pod).get();
    let (mut pods, mut removed, mut sent) = (Vec::new(), Vec::new(), BTreeSet::new());
    for (key, uid) in dirty {
        let present = caches.world().pods.get(&key).map(|p| (meta::uid(&p.metadata), meta::node_of(p) == node));
        match present {
            Some((now, true)) if now == uid => {
                if sent.insert(key.clone()) {
                    pods.extend(caches.raw_pod(&key));
                }
            }
            _ => removed.push(format!("{}/{}/{uid}", key.namespace, key.name)),
        }
    }
    (!pods.is_empty() || !removed.is_empty()).then_some(PodSet { revision, full: false, pods, removed })
}
