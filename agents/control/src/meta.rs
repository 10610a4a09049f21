//! The small words of object metadata and pod status that every controller needs.

use std::collections::BTreeMap;

use k8s_openapi::Metadata;
use k8s_openapi::api::core::v1::{Node, Pod, PodCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use k8s_openapi::jiff::Timestamp;
use kontiki_base::env::WallMs;
use kontiki_base::object::ObjectKey;
use kontiki_base::{Revision, Uid};
use serde_json::{Value, json};

use crate::kind::Kind;

/// Labels or annotations.
pub type Labels = BTreeMap<String, String>;

/// Namespace and name.
pub fn key(meta: &ObjectMeta) -> ObjectKey {
    ObjectKey::new(meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
}

/// The uid; empty where there is none.
pub fn uid(meta: &ObjectMeta) -> Uid {
    Uid(meta.uid.clone().unwrap_or_default())
}

/// The revision; zero where there is none.
pub fn revision(meta: &ObjectMeta) -> Revision {
    let text = meta.resource_version.as_deref().unwrap_or_default();
    Revision::parse_resource_version(text).ok().flatten().unwrap_or_default()
}

/// The name.
pub fn name(meta: &ObjectMeta) -> &str {
    meta.name.as_deref().unwrap_or_default()
}

/// The namespace; empty for cluster-scoped objects.
pub fn namespace(meta: &ObjectMeta) -> &str {
    meta.namespace.as_deref().unwrap_or_default()
}

/// The owner reference that says `controller: true`.
pub fn controller_of(meta: &ObjectMeta) -> Option<&OwnerReference> {
    meta.owner_references.iter().flatten().find(|r| r.controller == Some(true))
}

/// The uid of the controller owner.
pub fn controller_uid(meta: &ObjectMeta) -> Option<Uid> {
    controller_of(meta).map(|r| Uid(r.uid.clone()))
}

/// Whether the object is on its way out.
pub fn deleting(meta: &ObjectMeta) -> bool {
    meta.deletion_timestamp.is_some()
}

/// A label's value.
pub fn label<'a>(meta: &'a ObjectMeta, name: &str) -> Option<&'a str> {
    meta.labels.as_ref()?.get(name).map(String::as_str)
}

/// An annotation's value.
pub fn annotation<'a>(meta: &'a ObjectMeta, name: &str) -> Option<&'a str> {
    meta.annotations.as_ref()?.get(name).map(String::as_str)
}

/// The reference with which a controller owns what it makes.
pub fn owner_ref(kind: Kind, owner: &ObjectMeta) -> OwnerReference {
    OwnerReference {
        api_version: kind.api_version(),
        kind: kind.word().to_owned(),
        name: name(owner).to_owned(),
        uid: uid(owner).0,
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// An object as JSON, with its `apiVersion` and `kind`.
pub fn to_json<T: serde::Serialize>(object: &T) -> Value {
    // Kubernetes' own types have no key that is not a string and no number that is not JSON's.
    serde_json::to_value(object).unwrap_or(Value::Null)
}

/// Wall-clock milliseconds as Kubernetes' time, to the second, as it is written.
pub fn time(now: WallMs) -> Time {
    Time(Timestamp::from_second(now.0.div_euclid(1000)).unwrap_or(Timestamp::UNIX_EPOCH))
}

/// Milliseconds since the epoch of a time.
pub fn millis(time: &Time) -> i64 {
    time.0.as_millisecond()
}

/// RFC 3339, to the second.
pub fn rfc3339(now: WallMs) -> String {
    time(now).0.to_string()
}

/// The part of a patch that makes sure that it hits the very object that was read.
pub fn pin(meta: &ObjectMeta) -> Value {
    json!({ "uid": meta.uid, "resourceVersion": meta.resource_version })
}

/// The pod's condition of this type.
pub fn pod_condition<'a>(pod: &'a Pod, type_: &str) -> Option<&'a PodCondition> {
    pod.status.as_ref()?.conditions.as_ref()?.iter().find(|c| c.type_ == type_)
}

/// Whether the pod is ready.
pub fn pod_ready(pod: &Pod) -> bool {
    pod_condition(pod, "Ready").is_some_and(|c| c.status == "True")
}

/// The pod's phase; empty before anybody wrote one.
pub fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default()
}

/// Whether the pod has run to its end.
pub fn terminal(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// Whether the pod counts as one of its controller's replicas.
pub fn active(pod: &Pod) -> bool {
    !terminal(pod) && !deleting(pod.metadata())
}

/// The node that the pod is bound to; empty if none.
pub fn node_of(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).unwrap_or_default()
}

/// Since when the pod is ready.
pub fn ready_since(pod: &Pod) -> Option<i64> {
    let condition = pod_condition(pod, "Ready").filter(|c| c.status == "True")?;
    condition.last_transition_time.as_ref().map(millis)
}

/// Whether the pod has been ready for `min_ready` seconds; if not yet, in how many milliseconds it will have been.
pub fn available(pod: &Pod, min_ready: i32, now: WallMs) -> Result<(), Option<i64>> {
    if !pod_ready(pod) {
        return Err(None);
    }
    if min_ready <= 0 {
        return Ok(());
    }
    let Some(since) = ready_since(pod) else { return Err(None) };
    let left = since + i64::from(min_ready) * 1000 - now.0;
    if left <= 0 { Ok(()) } else { Err(Some(left)) }
}

/// Status of the node's condition of this type; empty where it has none.
pub fn node_condition<'a>(node: &'a Node, type_: &str) -> &'a str {
    let conditions = node.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    conditions.iter().find(|c| c.type_ == type_).map_or("", |c| c.status.as_str())
}

/// Whether the node says that it can run pods.
pub fn node_ready(node: &Node) -> bool {
    node_condition(node, "Ready") == "True"
}

/// Removes nulls and empty containers: two objects that differ in nothing else mean the same.
pub fn normalized(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let kept = map.into_iter().map(|(k, v)| (k, normalized(v)));
            Value::Object(kept.filter(|(_, v)| !is_void(v)).collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(normalized).collect()),
        other => other,
    }
}

fn is_void(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(map) => map.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_to_the_second() {
        assert_eq!(rfc3339(WallMs(1_700_000_000_999)), "2023-11-14T22:13:20Z");
        assert_eq!(rfc3339(WallMs(-1)), "1969-12-31T23:59:59Z");
    }

    #[test]
    fn emptiness_is_not_a_difference() {
        let a = normalized(json!({ "a": null, "b": {}, "c": [{ "d": [] }], "e": 0 }));
        assert_eq!(a, json!({ "c": [{}], "e": 0 }));
    }
}
