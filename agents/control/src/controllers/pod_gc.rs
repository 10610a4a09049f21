//! Pods that no node will ever finish: their node is gone, or they were deleted before they had one; and the oldest of too many
//! that have run to their end (Kubernetes `pkg/controller/podgc`).

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kontiki_base::Uid;
use kontiki_base::object::ObjectKey;
use serde_json::{Value, json};

use super::Input;
use crate::kind::Kind;
use crate::meta;
use crate::plan::{Action, Guard, PatchType, Plan};

/// An administrator's word that a node is down for good.
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";
/// At most so many pods go by one plan.
const BURST: usize = 200;

/// One look at one pod; under the empty key, at all pods that have run to their end.
pub fn reconcile(input: &Input<'_>) -> Plan {
    let mut plan = Plan::nothing();
    if input.key.name.is_empty() {
        surplus(input, &mut plan);
        return plan;
    }
    let Some(pod) = input.world.pods.get(input.key) else { return plan };
    let node_name = meta::node_of(pod);
    if node_name.is_empty() {
        if meta::deleting(&pod.metadata) {
            plan.push(remove(pod, Vec::new()));
        }
        return plan;
    }
    match input.world.node(node_name) {
        None => lost(pod, node_name, input, &mut plan),
        Some(node) => {
            let down = node.spec.iter().flat_map(|s| s.taints.iter().flatten()).any(|t| t.key == OUT_OF_SERVICE);
            if down && !meta::node_ready(node) && meta::deleting(&pod.metadata) {
                fail(pod, "PodGC: node is out of service", input, &mut plan);
                plan.push(remove(pod, Vec::new()));
            }
        }
    }
    plan
}

fn lost(pod: &Pod, node_name: &str, input: &Input<'_>, plan: &mut Plan) {
    let Some(since) = input.world.missing_since(node_name) else {
        // The clock starts at the next tick.
        return plan.recheck_in(Duration::from_secs(1));
    };
    let quarantine = i64::try_from(input.world.settings.gone_node_quarantine.as_millis()).unwrap_or(i64::MAX);
    let left = since.0.saturating_add(quarantine) - input.now.0;
    if left > 0 {
        return plan.recheck_in(Duration::from_millis(u64::try_from(left).unwrap_or(0)));
    }
    fail(pod, "PodGC: node no longer exists", input, plan);
    let guard = Guard::Absent { kind: Kind::Node, key: ObjectKey::new("", node_name), uid: Uid::default() };
    if let Some(Action::Patch { guards, .. }) = plan.actions.last_mut() {
        guards.push(guard.clone());
    }
    plan.push(remove(pod, vec![guard]));
}

/// A pod that did not end by itself says so before it goes.
fn fail(pod: &Pod, message: &str, input: &Input<'_>, plan: &mut Plan) {
    if meta::terminal(pod) {
        return;
    }
    let conditions = with_condition(pod, "DisruptionTarget", "DeletionByPodGC", message, input);
    plan.push(status_patch(pod, json!({ "phase": "Failed", "conditions": conditions })));
}

/// The pod's conditions with one more that is True.
pub(crate) fn with_condition(pod: &Pod, type_: &str, reason: &str, message: &str, input: &Input<'_>) -> Value {
    let mut conditions = pod.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default();
    conditions.retain(|c| c.type_ != type_);
    let mut list = json!(conditions);
    if let Some(list) = list.as_array_mut() {
        list.push(json!({
            "type": type_,
            "status": "True",
            "reason": reason,
            "message": message,
            "lastTransitionTime": meta::rfc3339(input.now),
        }));
    }
    list
}

/// A patch of the pod's status that hits this version of this pod only.
pub(crate) fn status_patch(pod: &Pod, status: Value) -> Action {
    Action::Patch {
        kind: Kind::Pod,
        key: meta::key(&pod.metadata),
        patch_type: PatchType::Merge,
        patch: json!({ "metadata": meta::pin(&pod.metadata), "status": status }),
        subresource: "status",
        guards: Vec::new(),
    }
}

fn remove(pod: &Pod, guards: Vec<Guard>) -> Action {
    Action::Delete {
        kind: Kind::Pod,
        key: meta::key(&pod.metadata),
        uid: meta::uid(&pod.metadata),
        expect: None,
        grace: Some(0),
        propagation: None,
        guards,
    }
}

fn surplus(input: &Input<'_>, plan: &mut Plan) {
    plan.independent = true;
    let kept = input.world.settings.terminated_pods_kept;
    if input.world.pods.len() <= kept {
        plan.independent = false;
        return;
    }
    let mut done: Vec<_> = input.world.pods.all().filter(|p| meta::terminal(p) && !meta::deleting(&p.metadata)).collect();
    let surplus = done.len().saturating_sub(kept);
    done.sort_by_key(|p| (p.metadata.creation_timestamp.as_ref().map(meta::millis), meta::key(&p.metadata)));
    done.truncate(surplus.min(BURST));
    plan.actions.extend(done.into_iter().map(|p| remove(p, Vec::new())));
    if surplus > BURST {
        plan.recheck_in(Duration::from_secs(1));
    }
}
