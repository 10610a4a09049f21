//! From Hello to the Node object: created when it is missing, brought up to date where the agent knows better, and left alone where
//! it says the same already.

use kontiki_base::Code;
use kontiki_base::object::ObjectKey;
use kontiki_control::Kind;
use kontiki_control::plan::PatchType;
use kontiki_proto::node::Hello;
use serde_json::{Map, Value, json};

use crate::error::ApiError;
use crate::informer::Caches;

/// Parts of the status that are the agent's. Conditions and addresses are handled apart.
const OWN_STATUS: &[&str] =
    &["capacity", "allocatable", "addresses", "daemonEndpoints", "nodeInfo", "images", "runtimeHandlers", "features"];

/// The pod addresses of a node, once assigned.
pub(super) fn pod_cidr(caches: &Caches, node: &str) -> String {
    caches.world().node(node).and_then(|n| n.spec.as_ref()?.pod_cidr.clone()).unwrap_or_default()
}

/// Whether the cluster takes the node for lost.
pub(super) fn is_given_up(caches: &Caches, node: &str) -> bool {
    caches.world().node(node).is_some_and(|n| kontiki_control::meta::node_condition(n, "Ready") == "Unknown")
}

/// Reads conditions as an agent sends them.
pub(super) fn parse_conditions(json: &[u8]) -> Result<Vec<Value>, String> {
    let list: Vec<Value> = serde_json::from_slice(json).map_err(|e| format!("conditions: {e}"))?;
    if list.iter().all(|c| c["type"].is_string() && c["status"].is_string()) {
        Ok(list)
    } else {
        Err("conditions: a condition lacks type or status".into())
    }
}

/// Registers the node; the conditions that it came with.
pub(super) async fn register(caches: &Caches, hello: &Hello) -> Result<Vec<Value>, ApiError> {
    let op = format!("register node {}", hello.node_name);
    let bad = |why: String| ApiError::new(op.as_str(), Code::Invalid, why);
    let mut node: Value = serde_json::from_slice(&hello.node_json).map_err(|e| bad(format!("node: {e}")))?;
    if node["metadata"]["name"].as_str() != Some(hello.node_name.as_str()) {
        return Err(bad("the node object has another name than Hello says".into()));
    }
    let conditions = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let client = caches.client.as_manager("kubelet");
    let key = ObjectKey::new("", hello.node_name.clone());
    for _ in 0..3 {
        let present: Value = match client.get(Kind::Node, &key).await {
            Ok(object) => object.parse()?,
            Err(e) if e.code == Code::NotFound => {
                node["apiVersion"] = json!("v1");
                node["kind"] = json!("Node");
                match client.create(Kind::Node, &node).await {
                    Ok(created) => created.parse()?,
                    Err(e) if e.code == Code::AlreadyExists => continue,
                    Err(e) => return Err(e),
                }
            }
            Err(e) => return Err(e),
        };
        match update(caches, &key, &present, &node).await {
            Err(e) if e.code == Code::Conflict => {}
            other => return other.map(|()| conditions),
        }
    }
    Err(ApiError::new(op, Code::Conflict, "the node keeps changing"))
}

/// Labels, annotations and status of a present node, where they differ from what the agent says.
async fn update(caches: &Caches, key: &ObjectKey, present: &Value, wanted: &Value) -> Result<(), ApiError> {
    let client = caches.client.as_manager("kubelet");
    let mut metadata = Map::new();
    for part in ["labels", "annotations"] {
        let missing = differing(&present["metadata"][part], &wanted["metadata"][part]);
        if !missing.is_empty() {
            metadata.insert(part.into(), Value::Object(missing));
        }
    }
    if !metadata.is_empty() {
        client.patch(Kind::Node, key, "", PatchType::Merge, &json!({ "metadata": metadata })).await?;
    }
    let mut status = Map::new();
    for part in OWN_STATUS {
        let value = &wanted["status"][*part];
        if !value.is_null() && *value != present["status"][*part] {
            status.insert((*part).into(), value.clone());
        }
    }
    let said = wanted["status"]["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let now = kontiki_control::meta::rfc3339(caches.env.now_wall());
    if let Some(conditions) = merged_conditions(&present["status"]["conditions"], said, &now) {
        status.insert("conditions".into(), conditions);
    }
    if !status.is_empty() {
        // Against the version that was read only if a part was merged from it; metadata may just have moved it on.
        let pin = if metadata.is_empty() { present["metadata"]["resourceVersion"].clone() } else { Value::Null };
        let mut patch = json!({ "metadata": { "uid": present["metadata"]["uid"] }, "status": status });
        if !pin.is_null() {
            patch["metadata"]["resourceVersion"] = pin;
        }
        client.patch(Kind::Node, key, "status", PatchType::Merge, &patch).await?;
    }
    Ok(())
}

fn differing(present: &Value, wanted: &Value) -> Map<String, Value> {
    let wanted = wanted.as_object().cloned().unwrap_or_default();
    wanted.into_iter().filter(|(k, v)| present.get(k) != Some(v)).collect()
}

/// Whether two conditions say the same: times do not count.
fn same_words(a: &Value, b: &Value) -> bool {
    ["status", "reason", "message"].iter().all(|k| a[*k].as_str().unwrap_or_default() == b[*k].as_str().unwrap_or_default())
}

/// The present conditions with those that are `said` in their place; `None` if they all say the same already.
fn merged_conditions(present: &Value, said: &[Value], now: &str) -> Option<Value> {
    let mut list = present.as_array().cloned().unwrap_or_default();
    let mut changed = false;
    for condition in said {
        match list.iter_mut().find(|c| c["type"] == condition["type"]) {
            Some(old) if same_words(old, condition) => {}
            Some(old) => {
                changed = true;
                let since = if old["status"] == condition["status"] { old["lastTransitionTime"].clone() } else { json!(now) };
                *old = condition.clone();
                old["lastTransitionTime"] = since;
                old["lastHeartbeatTime"] = json!(now);
            }
            None => {
                changed = true;
                let mut new = condition.clone();
                if new["lastTransitionTime"].is_null() {
                    new["lastTransitionTime"] = json!(now);
                }
                new["lastHeartbeatTime"] = json!(now);
                list.push(new);
            }
        }
    }
    changed.then_some(Value::Array(list))
}

/// Writes the node's conditions if the API says something else.
pub(super) async fn write_conditions(caches: &Caches, node: &str, said: &[Value]) -> Result<(), ApiError> {
    let client = caches.client.as_manager("kubelet");
    let key = ObjectKey::new("", node);
    for _ in 0..3 {
        let present: Value = client.get(Kind::Node, &key).await?.parse()?;
        let now = kontiki_control::meta::rfc3339(caches.env.now_wall());
        let Some(conditions) = merged_conditions(&present["status"]["conditions"], said, &now) else { return Ok(()) };
        let metadata = json!({ "uid": present["metadata"]["uid"], "resourceVersion": present["metadata"]["resourceVersion"] });
        let patch = json!({ "metadata": metadata, "status": { "conditions": conditions } });
        match client.patch(Kind::Node, &key, "status", PatchType::Merge, &patch).await {
            Err(e) if e.code == Code::Conflict => {}
            other => return other.map(|_| ()),
        }
    }
    Err(ApiError::new(format!("conditions of {node}"), Code::Conflict, "the node keeps changing"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_that_say_the_same_are_not_written() {
        let present = json!([
            { "type": "Ready", "status": "True", "reason": "KubeletReady", "lastTransitionTime": "t0" },
            { "type": "Custom", "status": "True" },
        ]);
        let ready = |status: &str, reason: &str| json!({ "type": "Ready", "status": status, "reason": reason, "lastTransitionTime": "x" });
        assert_eq!(merged_conditions(&present, &[ready("True", "KubeletReady")], "now"), None);
        let other_reason = merged_conditions(&present, &[ready("True", "Other")], "now").unwrap();
        assert_eq!((&other_reason[0]["lastTransitionTime"], &other_reason[1]["type"]), (&json!("t0"), &json!("Custom")));
        let flipped = merged_conditions(&present, &[ready("False", "Other")], "now").unwrap();
        assert_eq!(flipped[0]["lastTransitionTime"], json!("now"));
        assert!(parse_conditions(b"[{\"type\":\"Ready\"}]").is_err() && parse_conditions(b"{}").is_err());
    }
}
