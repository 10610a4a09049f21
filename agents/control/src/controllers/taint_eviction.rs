//! Eviction from tainted nodes: a pod that does not tolerate a NoExecute taint of its node goes now, one that tolerates it for a
//! while goes when that while is over (Kubernetes `pkg/controller/tainteviction`).

use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod, Taint, Toleration};
use kontiki_base::env::WallMs;
use serde_json::json;

use super::Input;
use super::pod_gc::{status_patch, with_condition};
use crate::kind::Kind;
use crate::meta;
use crate::plan::{Action, EventType, Plan, Regarding};

/// When a pod must leave its node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leave {
    /// It may stay.
    Never,
    /// At this time.
    At(WallMs),
}

/// Whether a toleration tolerates a taint (Kubernetes `Toleration.ToleratesTaint`).
pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let effect = toleration.effect.as_deref().unwrap_or_default();
    let key = toleration.key.as_deref().unwrap_or_default();
    if (!effect.is_empty() && effect != taint.effect) || (!key.is_empty() && key != taint.key) {
        return false;
    }
    match toleration.operator.as_deref().unwrap_or_default() {
        "Exists" => true,
        "" | "Equal" => !key.is_empty() && toleration.value.as_deref().unwrap_or_default() == taint.value.as_deref().unwrap_or_default(),
        _ => false,
    }
}

/// When a pod must leave a node because of its NoExecute taints. Taints that do not say since when they are there start now.
pub fn leave(pod: &Pod, node: &Node, now: WallMs) -> Leave {
    let tolerations = pod.spec.as_ref().and_then(|s| s.tolerations.as_deref()).unwrap_or_default();
    let taints = node.spec.as_ref().and_then(|s| s.taints.as_deref()).unwrap_or_default();
    let mut at: Option<i64> = None;
    for taint in taints.iter().filter(|t| t.effect == "NoExecute") {
        let since = taint.time_added.as_ref().map_or(now.0, meta::millis);
        let Some(toleration) = tolerations.iter().find(|t| tolerates(t, taint)) else { return Leave::At(WallMs(since.min(now.0))) };
        if let Some(seconds) = toleration.toleration_seconds {
            let end = since.saturating_add(seconds.max(0).saturating_mul(1000));
            at = Some(at.map_or(end, |a| a.min(end)));
        }
    }
    at.map_or(Leave::Never, |at| Leave::At(WallMs(at)))
}

/// One look at one pod.
pub fn reconcile(input: &Input<'_>) -> Plan {
    let mut plan = Plan::nothing();
    let Some(pod) = input.world.pods.get(input.key).filter(|p| !meta::deleting(&p.metadata) && !meta::terminal(p)) else { return plan };
    let Some(node) = input.world.node(meta::node_of(pod)) else { return plan };
    let Leave::At(at) = leave(pod, node, input.now) else { return plan };
    let left = at.0 - input.now.0;
    if left > 0 {
        plan.recheck_in(Duration::from_millis(u64::try_from(left).unwrap_or(0)));
        return plan;
    }
    let message = "Taint manager: deleting due to NoExecute taint";
    let conditions = with_condition(pod, "DisruptionTarget", "DeletionByTaintManager", message, input);
    plan.push(status_patch(pod, json!({ "conditions": conditions })));
    let (key, uid) = (meta::key(&pod.metadata), meta::uid(&pod.metadata));
    let regarding = Regarding { kind: Kind::Pod, key: key.clone(), uid: uid.clone() };
    let message = format!("Marking for deletion Pod {key}");
    plan.push(Action::Event { regarding, event_type: EventType::Normal, reason: "TaintManagerEviction", message });
    plan.push(Action::Delete { kind: Kind::Pod, key, uid, expect: None, grace: None, propagation: None, guards: Vec::new() });
    plan
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn at(taints: Value, tolerations: Value) -> Leave {
        let node = serde_json::from_value(json!({ "metadata": { "name": "n" }, "spec": { "taints": taints } })).unwrap();
        let pod = serde_json::from_value(json!({ "metadata": {}, "spec": { "containers": [], "tolerations": tolerations } })).unwrap();
        leave(&pod, &node, WallMs(100_000))
    }

    #[test]
    fn the_table_of_leaving() {
        let taint = json!([{ "key": "k", "effect": "NoExecute", "timeAdded": "1970-01-01T00:01:00Z" }]);
        let never = Leave::Never;
        let table = [
            (json!([]), json!([]), never),
            (json!([{ "key": "k", "effect": "NoSchedule" }]), json!([]), never),
            (taint.clone(), json!([]), Leave::At(WallMs(60_000))),
            (taint.clone(), json!([{ "key": "k", "operator": "Exists" }]), never),
            (taint.clone(), json!([{ "operator": "Exists" }]), never),
            (taint.clone(), json!([{ "key": "k", "value": "other" }]), Leave::At(WallMs(60_000))),
            (taint.clone(), json!([{ "key": "k", "operator": "Exists", "effect": "NoSchedule" }]), Leave::At(WallMs(60_000))),
            (taint.clone(), json!([{ "key": "k", "operator": "Exists", "tolerationSeconds": 300 }]), Leave::At(WallMs(360_000))),
            (taint.clone(), json!([{ "key": "k", "operator": "Exists", "tolerationSeconds": -5 }]), Leave::At(WallMs(60_000))),
            // A taint without a time starts now; the earliest end counts.
            (
                json!([{ "key": "k", "effect": "NoExecute" }, { "key": "l", "effect": "NoExecute" }]),
                json!([{ "key": "k", "operator": "Exists", "tolerationSeconds": 30 }, { "operator": "Exists", "tolerationSeconds": 10 }]),
                Leave::At(WallMs(110_000)),
            ),
        ];
        for (i, (taints, tolerations, want)) in table.into_iter().enumerate() {
            assert_eq!(at(taints, tolerations), want, "row {i}");
        }
    }
}
