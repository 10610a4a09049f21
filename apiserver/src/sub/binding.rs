//! Bindings: a pod gets its node, once.

use axum::body::Body;
use http::Response;
use kontiki_base::Code;
use kontiki_registry::field::{Errors, Path};
use kontiki_registry::status::{Details, Status};
use kontiki_registry::val;
use serde_json::{Value, json};

use crate::core::Core;
use crate::error::Result;
use crate::rest::{Call, success};
use crate::verbs::Target;
use crate::verbs::update::Update;

/// POST pods/{name}/binding.
pub(super) async fn serve(call: &mut Call) -> Result<Response<Body>> {
    let sub = call.row.subresource("binding").cloned().ok_or_else(Status::no_such_resource)?;
    let (binding, options) = super::read_object(call, &sub, "CreateOptions").await?;
    let update = bind(&call.core, call.path.object_namespace(), &call.path.name, &binding)?;
    call.core.update(&call.user, &update, &options).await?;
    call.answer_tree(201, &success())
}

/// The change that a binding makes to its pod.
pub(crate) fn bind<'a>(core: &Core, namespace: &str, pod: &str, binding: &Value) -> Result<Update<'a>> {
    let named = binding["metadata"]["name"].as_str().unwrap_or_default();
    if !named.is_empty() && named != pod {
        return Err(Status::bad_request("name in URL does not match name in Binding object"));
    }
    let target = Target::of(&core.builtin("", "v1", "pods"), namespace, pod);
    let mut errors = Errors::default();
    let kind = binding["target"]["kind"].as_str().unwrap_or_default();
    if !matches!(kind, "" | "Node") {
        errors.unsupported(&Path::new("target.kind"), kind, &["Node", "<empty>"]);
    }
    if binding["target"]["name"].as_str().unwrap_or_default().is_empty() {
        errors.required(&Path::new("target.name"), "");
    }
    if !errors.is_empty() {
        return Err(Status::invalid_kind("", "Binding", pod, &errors));
    }
    let (binding, now) = (binding.clone(), core.now());
    Ok(Update::own(target, move |live| assign(live, &binding, &now)))
}

fn assign(live: &Value, binding: &Value, now: &str) -> Result<Value> {
    let name = live["metadata"]["name"].as_str().unwrap_or_default();
    let refuse = |why: String| {
        let message = format!("Operation cannot be fulfilled on pods/binding {name:?}: {why}");
        Err(Status::new(Code::Conflict, message).with_details(Details {
            name: name.into(),
            kind: "pods/binding".into(),
            ..Details::default()
        }))
    };
    if live["metadata"]["deletionTimestamp"].is_string() {
        return refuse(format!("pod {name} is being deleted, cannot be assigned to a host"));
    }
    let node = live["spec"]["nodeName"].as_str().unwrap_or_default();
    if !node.is_empty() {
        return refuse(format!("pod {name} is already assigned to node {node:?}"));
    }
    if live["spec"]["schedulingGates"].as_array().is_some_and(|g| !g.is_empty()) {
        return refuse(format!("pod {name} has non-empty .spec.schedulingGates"));
    }
    let mut new = live.clone();
    for field in ["resourceVersion", "uid"] {
        if binding["metadata"][field].as_str().is_some_and(|t| !t.is_empty()) {
            val::copy(&mut new, binding, &["metadata", field]);
        }
    }
    for field in ["annotations", "labels"] {
        for (key, value) in binding["metadata"][field].as_object().into_iter().flatten() {
            val::put(&mut new, &["metadata", field, key], value.clone());
        }
    }
    val::put(&mut new, &["spec", "nodeName"], binding["target"]["name"].clone());
    val::take(&mut new, &["status", "nominatedNodeName"]);
    set_condition(&mut new, json!({"type": "PodScheduled", "status": "True"}), now);
    Ok(new)
}

/// Puts a condition in place of the one of its type; its time moves only if its status does.
pub(crate) fn set_condition(object: &mut Value, mut condition: Value, now: &str) {
    let conditions = val::vec_mut(object, &["status", "conditions"]);
    let old = conditions.iter_mut().find(|c| c["type"] == condition["type"]);
    let unchanged = old.as_ref().filter(|c| c["status"] == condition["status"]).map(|c| c["lastTransitionTime"].clone());
    condition["lastTransitionTime"] = unchanged.filter(Value::is_string).unwrap_or_else(|| json!(now));
    match old {
        Some(old) => *old = condition,
        None => conditions.push(condition),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: &str = "2026-01-01T00:00:00Z";

    #[test]
    fn a_pod_is_bound_once() {
        let pod = json!({"metadata": {"name": "p", "uid": "u", "resourceVersion": "5"}, "spec": {}, "status": {"nominatedNodeName": "n0"}});
        let binding = json!({"metadata": {"annotations": {"a": "b"}, "uid": "u2"}, "target": {"name": "n1"}});
        let bound = assign(&pod, &binding, NOW).unwrap();
        let expected = json!({
            "metadata": {"name": "p", "uid": "u2", "resourceVersion": "5", "annotations": {"a": "b"}},
            "spec": {"nodeName": "n1"},
            "status": {"conditions": [{"type": "PodScheduled", "status": "True", "lastTransitionTime": NOW}]},
        });
        assert_eq!(bound, expected);
        let again = assign(&bound, &binding, NOW).unwrap_err();
        assert_eq!(again.message, "Operation cannot be fulfilled on pods/binding \"p\": pod p is already assigned to node \"n1\"");
        let gated = json!({"metadata": {"name": "p"}, "spec": {"schedulingGates": [{"name": "g"}]}});
        assert_eq!(assign(&gated, &binding, NOW).unwrap_err().http, 409);
    }
}
