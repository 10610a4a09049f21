//! Pod sets on their way down to an agent: all of a node's pods at first, then what changed.

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use kontiki_base::object::ObjectKey;
use kontiki_base::{Revision, Uid};
use kontiki_control::{Kind, meta};
use kontiki_proto::node::PodSet;

use crate::api::Scope;
use crate::error::ApiError;
use crate::informer::Caches;

/// All pods of a node, from the API itself and not from the caches: an agent that was served by another server a moment ago must not
/// be told to stop what was bound since these caches last moved.
pub(super) async fn full(caches: &Caches, node: &str) -> Result<PodSet, ApiError> {
    let scope = Scope { field_selector: format!("spec.nodeName={node}"), ..Scope::default() };
    let (revision, pods) = caches.client.list(Kind::Pod, &scope).await?;
    Ok(PodSet { revision: revision.get(), full: true, pods: pods.into_iter().map(|p| p.raw).collect(), removed: Vec::new() })
}

/// The pods among `dirty` that are still the node's, and those that no longer are; `None` if there is nothing to tell. What is not newer
/// than the full set (of revision `full`) is in it.
pub(super) fn change(caches: &Caches, node: &str, full: Revision, dirty: BTreeSet<(ObjectKey, Uid)>) -> Option<PodSet> {
    let revision = caches.reached(Kind::Pod).max(full).get();
    let (mut pods, mut removed, mut sent) = (Vec::new(), Vec::new(), BTreeSet::new());
    for (key, uid) in dirty {
        let view = |p: &Arc<Pod>| (meta::uid(&p.metadata), meta::node_of(p) == node, meta::revision(&p.metadata));
        let present = caches.world().pods.get(&key).map(view);
        match present {
            Some((now, true, revision)) if now == uid => {
                if revision > full && sent.insert(key.clone()) {
                    pods.extend(caches.raw_pod(&key));
                }
            }
            _ => removed.push(format!("{}/{}/{uid}", key.namespace, key.name)),
        }
    }
    (!pods.is_empty() || !removed.is_empty()).then_some(PodSet { revision, full: false, pods, removed })
}
