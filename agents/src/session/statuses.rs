//! Pod statuses on their way up: a batch is one transaction where possible. A status that says what the API says already is not
//! written; a pod that has been terminated on its node is then removed, that very one and no other of its name.

use futures::future::join_all;
use kontiki_base::object::ObjectKey;
use kontiki_base::{Code, Uid, limits};
use kontiki_control::plan::PatchType;
use kontiki_control::{Kind, meta};
use kontiki_proto::node::PodStatus;
use serde_json::{Value, json};

use crate::api::{Client, DeleteOptions};
use crate::error::ApiError;
use crate::informer::Caches;

/// Finished pods are removed from the API so many at a time.
const REMOVALS_AT_ONCE: usize = 32;

/// A status to be written.
struct Write {
    key: ObjectKey,
    patch: Value,
}

/// Stores a batch. On an error the agent sends it again; what was stored already is then found to be so.
pub(super) async fn store(caches: &Caches, node: &str, statuses: &[PodStatus]) -> Result<(), ApiError> {
    let client = caches.client.as_manager("kubelet");
    caches.metrics.pod_statuses.inc_by(statuses.len() as u64);
    let writes: Vec<Write> = statuses.iter().filter_map(|s| write_of(caches, node, s)).collect();
    for batch in writes.chunks(limits::STATUS_BATCH) {
        let all = batch.iter().map(|w| client.patch_write(Kind::Pod, &w.key, "status", PatchType::Strategic, &w.patch)).collect();
        let Err(error) = client.transact(all).await else { continue };
        // One that cannot be written must not hold the others up.
        tracing::debug!(node, %error, pods = batch.len(), "statuses are written one by one");
        for write in batch {
            settle(client.patch(Kind::Pod, &write.key, "status", PatchType::Strategic, &write.patch).await)?;
        }
    }
    let finished: Vec<&PodStatus> = statuses.iter().filter(|s| s.finished_deleting).collect();
    for batch in finished.chunks(REMOVALS_AT_ONCE) {
        for removed in join_all(batch.iter().map(|status| remove(caches, &client, node, status))).await {
            removed?;
        }
    }
    Ok(())
}

/// The write that a status needs; `None`: it is not this node's pod, or the API says the same already.
fn write_of(caches: &Caches, node: &str, status: &PodStatus) -> Option<Write> {
    let key = ObjectKey::new(status.namespace.clone(), status.name.clone());
    let said: Value = match serde_json::from_slice(&status.status_json) {
        Ok(said @ Value::Object(_)) => said,
        Ok(_) => return None,
        Err(error) => {
            tracing::warn!(node, pod = %key, %error, "unreadable pod status");
            return None;
        }
    };
    let world = caches.world();
    if let Some(pod) = world.pods.get(&key) {
        if meta::uid(&pod.metadata).0 != status.uid || meta::node_of(pod) != node {
            return None;
        }
        let raw = caches.raw_pod(&key).and_then(|raw| serde_json::from_slice::<Value>(&raw).ok());
        if raw.is_some_and(|present| says_the_same(&present["status"], &said)) {
            return None;
        }
    }
    Some(Write { key, patch: json!({ "metadata": { "uid": status.uid }, "status": said }) })
}

/// Whether all that is said stands in the present status. Conditions compare one by one: others may have some of their own.
fn says_the_same(present: &Value, said: &Value) -> bool {
    let Some(said) = said.as_object() else { return true };
    said.iter().all(|(field, value)| {
        if field != "conditions" {
            return present.get(field).unwrap_or(&Value::Null) == value;
        }
        let has = |c: &Value| present["conditions"].as_array().into_iter().flatten().any(|p| p["type"] == c["type"] && covers(p, c));
        value.as_array().into_iter().flatten().all(has)
    })
}

fn covers(present: &Value, said: &Value) -> bool {
    said.as_object().into_iter().flatten().all(|(k, v)| present.get(k) == Some(v))
}

/// A pod that is gone, or another one by now, needs no status.
fn settle<T>(result: Result<T, ApiError>) -> Result<(), ApiError> {
    match result {
        Ok(_) => Ok(()),
        Err(e) if matches!(e.code, Code::NotFound | Code::Conflict | Code::FailedPrecondition | Code::Invalid | Code::Forbidden) => {
            tracing::debug!(error = %e, "status is dropped");
            Ok(())
        }
        Err(e) => Err(e),
    }
}

async fn remove(caches: &Caches, client: &Client, node: &str, status: &PodStatus) -> Result<(), ApiError> {
    let key = ObjectKey::new(status.namespace.clone(), status.name.clone());
    let foreign = caches.world().pods.get(&key).is_some_and(|p| meta::uid(&p.metadata).0 == status.uid && meta::node_of(p) != node);
    if foreign {
        return Ok(());
    }
    let options = DeleteOptions { uid: Some(Uid(status.uid.clone())), grace: Some(0), ..DeleteOptions::default() };
    settle(client.delete(Kind::Pod, &key, &options).await)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_news_is_written() {
        let present = json!({
            "phase": "Running",
            "podIP": "10.0.0.1",
            "conditions": [{ "type": "Ready", "status": "True", "lastTransitionTime": "t" }, { "type": "PodScheduled", "status": "True" }],
        });
        let ready = |status: &str| json!([{ "type": "Ready", "status": status }]);
        assert!(says_the_same(&present, &json!({ "phase": "Running", "conditions": ready("True") })));
        assert!(!says_the_same(&present, &json!({ "phase": "Running", "conditions": ready("False") })));
        assert!(!says_the_same(&present, &json!({ "phase": "Failed" })));
        assert!(!says_the_same(&present, &json!({ "startTime": "t" })));
    }
}
