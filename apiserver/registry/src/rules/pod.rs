//! Rules of Pods.

use serde_json::{Value, json};

use super::{Generation, PLAIN, Rules, SelectableField, StatusMeta};
use crate::defaults;
use crate::field::{Errors, Path};
use crate::quantity::Quantity;
use crate::val::{at, bool_at, copy, int_at, is_empty, list_at, list_mut, map_at, put, same, str_at};
use crate::validate;

/// The rules of Pods.
pub const RULES: Rules = Rules {
    generation: Generation::Spec,
    status_meta: StatusMeta::KeepsOwners,
    defaults: defaults::pod::pod,
    prepare_create,
    prepare_update,
    prepare_status: keep_qos,
    validate: check,
    validate_create: check_create,
    validate_update: check_update,
    validate_sub: check_sub,
    grace: Some(grace),
    delete_returns_object: true,
    fields: FIELDS,
    ..PLAIN
};

const FIELDS: &[SelectableField] = &[
    ("spec.nodeName", |p| str_at(p, &["spec", "nodeName"]).into()),
    ("spec.restartPolicy", |p| str_at(p, &["spec", "restartPolicy"]).into()),
    ("spec.schedulerName", |p| str_at(p, &["spec", "schedulerName"]).into()),
    ("spec.serviceAccountName", |p| str_at(p, &["spec", "serviceAccountName"]).into()),
    ("spec.hostNetwork", |p| bool_at(p, &["spec", "hostNetwork"]).to_string()),
    ("status.phase", |p| str_at(p, &["status", "phase"]).into()),
    ("status.podIP", |p| str_at(p, &["status", "podIP"]).into()),
    ("status.podIPs", |p| str_at(p, &["status", "podIP"]).into()),
    ("status.nominatedNodeName", |p| str_at(p, &["status", "nominatedNodeName"]).into()),
];

/// Seconds of grace: what was asked for, or what the pod says; none for a pod that runs nowhere or has ended.
fn grace(pod: &Value, asked: Option<i64>) -> i64 {
    let nowhere = str_at(pod, &["spec", "nodeName"]).is_empty();
    if nowhere || matches!(str_at(pod, &["status", "phase"]), "Succeeded" | "Failed") {
        return 0;
    }
    let period = asked.or(int_at(pod, &["spec", "terminationGracePeriodSeconds"])).unwrap_or(0);
    if period < 0 { 1 } else { period }
}

fn prepare_create(pod: &mut Value) {
    let mut status = json!({"phase": "Pending", "qosClass": qos_class(pod)});
    if !is_empty(&pod["spec"]["schedulingGates"]) {
        let now = pod["metadata"]["creationTimestamp"].clone();
        status["conditions"] = json!([{
            "type": "PodScheduled", "status": "False", "reason": "SchedulingGated",
            "message": "Scheduling is blocked due to non-empty scheduling gates", "lastProbeTime": null, "lastTransitionTime": now,
        }]);
    }
    put(pod, &["status"], status);
}

fn prepare_update(pod: &mut Value, old: &Value) {
    // A grace period below zero is taken for 1.
    if int_at(pod, &["spec", "terminationGracePeriodSeconds"]).is_some_and(|s| s < 0) {
        put(pod, &["spec", "terminationGracePeriodSeconds"], json!(1));
    }
    keep_qos(pod, old);
}

fn keep_qos(pod: &mut Value, old: &Value) {
    if str_at(pod, &["status", "qosClass"]).is_empty() {
        copy(pod, old, &["status", "qosClass"]);
    }
}

/// The class of a pod by its requests and limits of CPU and memory (`pkg/apis/core/v1/helper/qos`).
pub fn qos_class(pod: &Value) -> &'static str {
    let containers = ["initContainers", "containers"].into_iter().flat_map(|l| list_at(pod, &["spec", l]));
    let pod_level = &pod["spec"]["resources"];
    let holders: Vec<&Value> = if is_empty(pod_level) { containers.map(|c| &c["resources"]).collect() } else { vec![pod_level] };
    let amount =
        |r: &Value, list: &str, name: &str| at(r, &[list, name]).as_str().and_then(|s| Quantity::parse(s).ok()).filter(|q| !q.is_zero());
    let (mut any, mut guaranteed) = (false, true);
    for r in &holders {
        for name in ["cpu", "memory"] {
            let (request, limit) = (amount(r, "requests", name), amount(r, "limits", name));
            any |= request.is_some() || limit.is_some();
            guaranteed &= limit.is_some() && (request.is_none() || request == limit);
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

fn check(pod: &Value, e: &mut Errors) {
    let path = Path::new("spec");
    validate::pod::spec(&pod["spec"], &path, e);
    if !is_empty(&pod["spec"]["schedulingGates"]) && !str_at(pod, &["spec", "nodeName"]).is_empty() {
        e.forbidden(&path.child("nodeName"), "cannot be set until all schedulingGates have been cleared");
    }
}

/// Ephemeral containers come through their own subresource.
fn check_create(pod: &Value, e: &mut Errors) {
    if !is_empty(&pod["spec"]["ephemeralContainers"]) {
        e.forbidden(&Path::new("spec.ephemeralContainers"), "cannot be set on create");
    }
}

const MAY_CHANGE: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,\
                          `spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),\
                          `spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

fn check_update(new: &Value, old: &Value, e: &mut Errors) {
    let path = Path::new("spec");
    let mut rest = new["spec"].clone();
    let was = &old["spec"];
    for list in ["containers", "initContainers"] {
        images(&mut rest, was, list, &path, e);
    }
    deadline(&new["spec"], was, &path, e);
    copy(&mut rest, was, &["activeDeadlineSeconds"]);
    tolerations(&new["spec"], was, &path, e);
    copy(&mut rest, was, &["tolerations"]);
    if int_at(was, &["terminationGracePeriodSeconds"]).is_some_and(|s| s < 0)
        && int_at(&rest, &["terminationGracePeriodSeconds"]) == Some(1)
    {
        copy(&mut rest, was, &["terminationGracePeriodSeconds"]);
    }
    gates(&new["spec"], was, &path, e);
    let gated = !is_empty(&was["schedulingGates"]);
    copy(&mut rest, was, &["schedulingGates"]);
    if gated {
        // A pod that is held back may still be narrowed.
        let had = map_at(was, &["nodeSelector"]);
        let kept = had.into_iter().flatten().all(|(k, v)| new["spec"]["nodeSelector"].get(k) == Some(v));
        if kept {
            copy(&mut rest, was, &["nodeSelector"]);
        }
        if narrows(at(&new["spec"], AFFINITY), at(was, AFFINITY)) {
            copy(&mut rest, was, &["affinity"]);
        }
    }
    if !same(&rest, was) {
        let mut text = String::from(MAY_CHANGE);
        text.push('\n');
        validate::pod::diff("spec", &rest, was, &mut text);
        e.forbidden(&path, text);
    }
}

const AFFINITY: &[&str] = &["affinity", "nodeAffinity", "requiredDuringSchedulingIgnoredDuringExecution"];

/// A gated pod may get a node affinity where it had none, or one with further expressions in each term.
fn narrows(new: &Value, old: &Value) -> bool {
    if is_empty(old) {
        return true;
    }
    let (n, o) = (list_at(new, &["nodeSelectorTerms"]), list_at(old, &["nodeSelectorTerms"]));
    let adds = |n: &Value, o: &Value, list: &str| list_at(n, &[list]).starts_with(list_at(o, &[list]));
    n.len() == o.len() && n.iter().zip(o).all(|(n, o)| adds(n, o, "matchExpressions") && adds(n, o, "matchFields"))
}

fn images(rest: &mut Value, was: &Value, list: &str, path: &Path, e: &mut Errors) {
    let old = list_at(was, &[list]);
    if list_at(rest, &[list]).len() != old.len() {
        e.forbidden(&path.child(list), "pod updates may not add or remove containers");
        copy(rest, was, &[list]);
        return;
    }
    for (c, o) in list_mut(rest, &[list]).iter_mut().zip(old) {
        copy(c, o, &["image"]);
    }
}

fn deadline(new: &Value, was: &Value, path: &Path, e: &mut Errors) {
    let path = path.child("activeDeadlineSeconds");
    match (int_at(new, &["activeDeadlineSeconds"]), int_at(was, &["activeDeadlineSeconds"])) {
        (Some(n), Some(o)) if n > o => e.invalid(&path, n, "must be less than or equal to previous value"),
        (None, Some(_)) => e.invalid(&path, Value::Null, "must not update from a positive integer to nil value"),
        _ => {}
    }
}

fn tolerations(new: &Value, was: &Value, path: &Path, e: &mut Errors) {
    let path = path.child("tolerations");
    // The seconds of a toleration may change; everything else of it stays.
    let core = |t: &Value| {
        let mut t = t.clone();
        put(&mut t, &["tolerationSeconds"], Value::Null);
        t
    };
    let have: Vec<Value> = list_at(new, &["tolerations"]).iter().map(core).collect();
    if list_at(was, &["tolerations"]).iter().any(|t| !have.contains(&core(t))) {
        e.forbidden(&path, "existing toleration can not be modified except its tolerationSeconds");
    }
}

fn gates(new: &Value, was: &Value, path: &Path, e: &mut Errors) {
    let had = list_at(was, &["schedulingGates"]);
    for (i, g) in list_at(new, &["schedulingGates"]).iter().enumerate().filter(|(_, g)| !had.contains(g)) {
        let name = str_at(g, &["name"]);
        let why = format!("only deletion is allowed, but found new scheduling gate '{name}'");
        e.forbidden(&path.child("schedulingGates").index(i).child("name"), why);
    }
}

fn check_sub(sub: &str, new: &Value, old: &Value, e: &mut Errors) {
    let path = Path::new("spec");
    match sub {
        "ephemeralcontainers" => {
            let path = path.child("ephemeralContainers");
            let now = list_at(new, &["spec", "ephemeralContainers"]);
            for o in list_at(old, &["spec", "ephemeralContainers"]) {
                let name = str_at(o, &["name"]);
                match now.iter().position(|n| n["name"] == name) {
                    None => e.forbidden(&path, format!("existing ephemeral containers \"{name}\" may not be removed\n")),
                    Some(i) if !same(&now[i], o) => {
                        e.forbidden(&path.index(i), format!("existing ephemeral containers \"{name}\" may not be changed\n"));
                    }
                    Some(_) => {}
                }
            }
        }
        "resize" => {
            let class = qos_class(new);
            if class != qos_class(old) {
                e.invalid(&path, class, "Pod QOS Class may not change as a result of resizing");
            }
        }
        _ => check_update(new, old, e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(resources: Value) -> Value {
        json!({"spec": {"containers": [{"name": "c", "image": "i", "resources": resources}]}})
    }

    #[test]
    fn quality_of_service() {
        for (resources, class) in [
            (json!({}), "BestEffort"),
            (json!({"requests": {"cpu": "1"}}), "Burstable"),
            (json!({"limits": {"cpu": "1", "memory": "1Gi"}}), "Guaranteed"),
            (json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1000m", "memory": "1Gi"}}), "Guaranteed"),
            (json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}}), "Burstable"),
            (json!({"limits": {"cpu": "0", "memory": "0"}}), "BestEffort"),
        ] {
            assert_eq!(qos_class(&pod(resources.clone())), class, "{resources}");
        }
    }

    #[test]
    fn grace_is_for_running_pods_only() {
        let running = json!({"spec": {"nodeName": "n", "terminationGracePeriodSeconds": 30}, "status": {"phase": "Running"}});
        let mut done = running.clone();
        done["status"]["phase"] = json!("Failed");
        let nowhere = json!({"spec": {"terminationGracePeriodSeconds": 30}});
        assert_eq!((grace(&running, None), grace(&running, Some(5)), grace(&running, Some(0)), grace(&running, Some(-3))), (30, 5, 0, 1));
        assert_eq!((grace(&done, Some(5)), grace(&nowhere, None)), (0, 0));
    }

    #[test]
    fn what_may_change_in_a_pod() {
        let old = json!({"spec": {"containers": [{"name": "c", "image": "a"}], "activeDeadlineSeconds": 10,
            "tolerations": [{"key": "k", "operator": "Exists"}], "schedulingGates": [{"name": "g"}]}});
        let errors = |change: fn(&mut Value)| {
            let mut new = old.clone();
            change(&mut new["spec"]);
            let mut e = Errors::default();
            check_update(&new, &old, &mut e);
            e.0.iter().map(|e| e.path.to_string()).collect::<Vec<_>>()
        };
        assert!(errors(|s| s["containers"][0]["image"] = json!("b")).is_empty());
        assert!(errors(|s| s["activeDeadlineSeconds"] = json!(5)).is_empty());
        assert!(errors(|s| s["tolerations"].as_array_mut().unwrap().push(json!({"key": "x", "operator": "Exists"}))).is_empty());
        assert!(errors(|s| s["schedulingGates"] = json!([])).is_empty());
        assert!(errors(|s| s["nodeSelector"] = json!({"a": "b"})).is_empty());
        assert_eq!(errors(|s| s["activeDeadlineSeconds"] = json!(50)), ["spec.activeDeadlineSeconds"]);
        assert_eq!(errors(|s| s["tolerations"] = json!([])), ["spec.tolerations"]);
        assert_eq!(errors(|s| s["schedulingGates"] = json!([{"name": "h"}])), ["spec.schedulingGates[0].name"]);
        assert_eq!(errors(|s| s["containers"] = json!([])), ["spec.containers"]);
        assert_eq!(errors(|s| s["hostNetwork"] = json!(true)), ["spec"]);
    }
}
