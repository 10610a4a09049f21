//! Deletion of namespaces: pods first, then everything else, and when nothing is left the namespace itself (Kubernetes
//! `pkg/controller/namespace/deletion`).

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Namespace, NamespaceCondition};
use kontiki_base::env::WallMs;
use serde_json::json;

use super::Input;
use crate::kind::Kind;
use crate::meta;
use crate::plan::{Action, Plan};
use crate::world::{Graph, World};

/// The finalizer in `spec.finalizers` that keeps a namespace until it is empty.
const FINALIZER: &str = "kubernetes";

/// How often a namespace that waits for its content is looked at, if nothing happens in it. Whatever leaves it wakes it earlier.
const PATIENCE: Duration = Duration::from_secs(300);

/// One look at one namespace.
pub fn reconcile(input: &Input<'_>) -> Plan {
    let mut plan = Plan::nothing();
    let Some(ns) = input.world.namespaces.get(input.key).filter(|ns| meta::deleting(&ns.metadata)) else { return plan };
    let finalizers = ns.spec.as_ref().and_then(|s| s.finalizers.clone()).unwrap_or_default();
    if !finalizers.iter().any(|f| f == FINALIZER) {
        return plan;
    }
    let namespace = &input.key.name;
    let content: BTreeMap<Kind, u64> = input.world.graph.content_of(namespace).collect();
    write_status(ns, input.world, &content, input.now, &mut plan);
    if content.is_empty() {
        finalize(ns, finalizers, &mut plan);
        return plan;
    }
    plan.recheck_in(PATIENCE);
    // Pods may still need what the other objects hold while they end.
    let pods = content.contains_key(&Kind::Pod);
    for kind in content.into_keys().filter(|k| !pods || *k == Kind::Pod) {
        if has_undeleted(&input.world.graph, kind, namespace) {
            plan.push(Action::DeleteAll { kind, namespace: namespace.clone() });
        }
    }
    plan
}

fn has_undeleted(graph: &Graph, kind: Kind, namespace: &str) -> bool {
    graph.of_kind(kind).any(|(key, row)| key.namespace == namespace && !row.deleting)
}

/// Nothing is left that was seen. What was not seen is asked for once more, kind by kind, before the last finalizer goes.
fn finalize(ns: &Namespace, finalizers: Vec<String>, plan: &mut Plan) {
    let namespace = meta::name(&ns.metadata);
    for kind in Kind::ALL.iter().copied().filter(|k| k.namespaced()) {
        plan.push(Action::DeleteAll { kind, namespace: namespace.to_owned() });
    }
    let mut object = meta::to_json(ns);
    let left: Vec<String> = finalizers.into_iter().filter(|f| f != FINALIZER).collect();
    object["spec"]["finalizers"] = json!(left);
    // The status that the same plan may have written has moved the version on: finalizing needs the uid only.
    if let Some(metadata) = object["metadata"].as_object_mut() {
        metadata.remove("resourceVersion");
    }
    plan.push(Action::Update { kind: Kind::Namespace, object, expect: kontiki_base::Revision::ZERO, subresource: "finalize" });
}

fn write_status(ns: &Namespace, world: &World, content: &BTreeMap<Kind, u64>, now: WallMs, plan: &mut Plan) {
    let old = ns.status.clone().unwrap_or_default();
    let mut conditions = old.conditions.clone().unwrap_or_default();
    let mut set = |type_: &str, bad: bool, reason: (&str, &str), message: String| {
        let status = if bad { "True" } else { "False" };
        let reason = if bad { reason.0 } else { reason.1 };
        let same = |c: &NamespaceCondition| {
            c.type_ == type_ && c.status == status && c.reason.as_deref() == Some(reason) && c.message.as_deref() == Some(&message)
        };
        if !conditions.iter().any(same) {
            let kept = conditions.iter().find(|c| c.type_ == type_ && c.status == status).and_then(|c| c.last_transition_time.clone());
            conditions.retain(|c| c.type_ != type_);
            conditions.push(NamespaceCondition {
                type_: type_.into(),
                status: status.into(),
                reason: Some(reason.into()),
                message: Some(message),
                last_transition_time: Some(kept.unwrap_or_else(|| meta::time(now))),
            });
        }
    };
    set("NamespaceDeletionDiscoveryFailure", false, ("", "ResourcesDiscovered"), "All resources successfully discovered".into());
    set(
        "NamespaceDeletionGroupVersionParsingFailure",
        false,
        ("", "ParsedGroupVersions"),
        "All legacy kube types successfully parsed".into(),
    );
    let done = "All content successfully deleted, may be waiting on finalization";
    set("NamespaceDeletionContentFailure", false, ("", "ContentDeleted"), done.into());
    let remaining: Vec<String> = content.iter().map(|(kind, n)| format!("{kind}. has {n} resource instances")).collect();
    let message = if remaining.is_empty() {
        "All content successfully removed".into()
    } else {
        format!("Some resources are remaining: {}", remaining.join(", "))
    };
    set("NamespaceContentRemaining", !remaining.is_empty(), ("SomeResourcesRemain", "ContentRemoved"), message);
    let waiting = finalizers_in(world, content, meta::name(&ns.metadata));
    let message = if waiting.is_empty() {
        "All content-preserving finalizers finished".into()
    } else {
        let list: Vec<String> = waiting.iter().map(|(name, n)| format!("{name} in {n} resource instances")).collect();
        format!("Some content in the namespace has finalizers remaining: {}", list.join(", "))
    };
    set("NamespaceFinalizersRemaining", !waiting.is_empty(), ("SomeFinalizersRemain", "ContentHasNoFinalizers"), message);
    let status = json!({ "phase": "Terminating", "conditions": conditions });
    if old.phase.as_deref() == Some("Terminating") && old.conditions.as_ref() == Some(&conditions) {
        return;
    }
    let mut object = meta::to_json(ns);
    object["status"] = status;
    plan.push(Action::Update { kind: Kind::Namespace, object, expect: meta::revision(&ns.metadata), subresource: "status" });
}

fn finalizers_in(world: &World, content: &BTreeMap<Kind, u64>, namespace: &str) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for kind in content.keys() {
        for (_, row) in world.graph.of_kind(*kind).filter(|(key, _)| key.namespace == namespace) {
            for finalizer in &row.finalizers {
                *counts.entry(finalizer.clone()).or_default() += 1;
            }
        }
    }
    counts
}
