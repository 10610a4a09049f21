//! Golden runs of server-side apply and updates, made with the libraries of Kubernetes 1.36.

use serde_json::{Value, json};

use super::*;
use crate::patch::managed::{decode, encode, record_update, without_managed};

/// The golden runs took less than a second each.
const NOW: &str = "2026-01-01T00:00:00Z";

/// The managed fields of an object without their times.
fn timeless(object: &Value) -> Vec<Value> {
    let list = object.pointer("/metadata/managedFields").and_then(Value::as_array).cloned().unwrap_or_default();
    list.into_iter()
        .map(|mut entry| {
            entry.as_object_mut().unwrap().remove("time");
            entry
        })
        .collect()
}

/// A plain write as the golden runs make it: on untyped objects, with nothing ignored, never capped.
fn write(live: &Value, object: &Value, writer: &Writer<'_>) -> Value {
    let mut managers = decode(live).unwrap();
    record_update(&mut managers, &without_managed(live), &without_managed(object), writer);
    let mut new = object.clone();
    encode(&mut new, &managers);
    new
}

#[test]
fn golden_runs() {
    let mut seen = 0;
    for line in include_str!("../../../tests/golden/patch.jsonl").lines() {
        let run: Value = serde_json::from_str(line).unwrap();
        if run["op"] != "ssa" {
            continue;
        }
        seen += 1;
        let mut live: Option<Value> = None;
        for (i, step) in run["steps"].as_array().unwrap().iter().enumerate() {
            let what = format!("{} step {i}", run["name"]);
            let object = &step["obj"];
            let gvk = Gvk::from_api_version(object["apiVersion"].as_str().unwrap(), object["kind"].as_str().unwrap());
            let writer = Writer { ignored: &[], ..Writer::new(&gvk, step["manager"].as_str().unwrap(), "", NOW) };
            let result = match step["do"].as_str().unwrap() {
                "apply" => apply_as(live.as_ref(), object, &writer, step["force"].as_bool().unwrap()),
                _ => Ok(write(live.as_ref().unwrap_or(&json!({})), object, &writer)),
            };
            match (result, step["error"].as_str()) {
                (Err(e), Some(want)) => {
                    assert_eq!(e.to_string(), want, "{what}");
                    compare_causes(&e, &step["errorObj"]["ErrStatus"]["details"]["causes"]);
                }
                (Ok(new), None) => {
                    let mut bare = without_managed(&new);
                    let want = &step["live"];
                    let wanted_managed: Vec<Value> = step["managedFields"].as_array().cloned().unwrap_or_default();
                    assert_eq!(timeless(&new), wanted_managed, "{what}");
                    bare["metadata"] = want["metadata"].clone();
                    assert_eq!(&bare, want, "{what}");
                    live = Some(new);
                }
                (got, want) => panic!("{what}: got {got:?}, want {want:?}"),
            }
        }
    }
    assert_eq!(seen, 33);
}

fn compare_causes(error: &ApplyError, want: &Value) {
    let ApplyError::Conflicts { causes, .. } = error else { return };
    let mut got: Vec<_> = causes.iter().map(|c| (c.field.clone(), c.message.clone())).collect();
    let text = |c: &Value, f: &str| c[f].as_str().unwrap().to_owned();
    let mut want: Vec<_> = want.as_array().unwrap().iter().map(|c| (text(c, "field"), text(c, "message"))).collect();
    got.sort();
    want.sort();
    assert_eq!(got, want);
}

fn server_runs() -> impl Iterator<Item = Value> {
    include_str!("../../../tests/golden/managed.jsonl").lines().map(|line| serde_json::from_str(line).unwrap())
}

/// What a live kube-apiserver wrote down for created objects.
#[test]
fn creation_is_owned_by_its_manager() {
    let mut seen = 0;
    for case in server_runs().filter(|c| c["op"] == "create") {
        seen += 1;
        let object = &case["object"];
        let gvk = Gvk::from_api_version(object["apiVersion"].as_str().unwrap(), object["kind"].as_str().unwrap());
        let mut new = without_managed(object);
        crate::patch::update_managed(None, &mut new, &gvk, "goldenclient", Operation::Update, "", NOW);
        assert_eq!(timeless(&new), timeless(object), "{}", case["name"]);
    }
    assert_eq!(seen, 9);
}

/// A conversation with a live kube-apiserver about one deployment, with defaults, plain updates, a status subresource and a reset in
/// between.
#[test]
fn a_deployment_applied_to_a_live_server() {
    let mut live: Option<Value> = None;
    for case in server_runs().filter(|c| c["op"] != "create" && c["path"].as_str().unwrap().contains("/deployments/s")) {
        let (name, answer) = (&case["name"], &case["resp"]);
        let subresource = if case["path"].as_str().unwrap().ends_with("/status") { "status" } else { "" };
        let gvk = Gvk::from_api_version("apps/v1", "Deployment");
        let manager = case["manager"].as_str().unwrap();
        let writer = Writer::new(&gvk, manager, subresource, "2026-11-23T18:01:09Z");
        if case["op"] == "update" {
            if case["code"] == 200 {
                let mut new = without_managed(answer);
                new["metadata"]["managedFields"] = case["body"]["metadata"]["managedFields"].clone();
                crate::patch::managed::update(live.as_ref(), &mut new, &writer);
                assert_eq!(timeless(&new), timeless(answer), "{name}");
                live = Some(answer.clone());
            }
            continue;
        }
        match apply_as(live.as_ref(), &case["body"], &writer, case["force"].as_bool().unwrap()) {
            Err(e) => {
                assert_eq!(e.to_string(), answer["message"].as_str().unwrap(), "{name}");
                assert_eq!(u64::from(e.code().http()), case["code"].as_u64().unwrap(), "{name}");
            }
            Ok(new) => {
                assert_eq!(timeless(&new), timeless(answer), "{name}");
                if live.is_some() {
                    assert_eq!(new["spec"], answer["spec"], "{name}");
                    assert_eq!(new["metadata"].get("labels"), answer["metadata"].get("labels"), "{name}");
                }
                live = Some(answer.clone());
            }
        }
    }
    assert!(live.is_some());
}

#[test]
fn old_updaters_become_one() {
    let gvk = Gvk::from_api_version("v1", "ConfigMap");
    let mut live = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {}});
    let mut old = None;
    for i in 0..14 {
        live["data"][format!("k{i:02}")] = "v".into();
        let now = format!("2026-01-01T00:00:{i:02}Z");
        crate::patch::update_managed(old.as_ref(), &mut live, &gvk, &format!("u{i:02}"), Operation::Update, "", &now);
        old = Some(live.clone());
    }
    let managers: Vec<_> = timeless(&live).iter().map(|e| e["manager"].as_str().unwrap().to_owned()).collect();
    assert_eq!(managers[0], "ancient-changes");
    assert_eq!(managers.len(), 10);
    assert_eq!(managers[9], "u13");
    let ancient = &timeless(&live)[0]["fieldsV1"]["f:data"];
    assert!((0..5).all(|i| ancient.get(format!("f:k{i:02}")).is_some()), "{ancient}");
}

#[test]
fn untracked_objects_stay_untracked() {
    let gvk = Gvk::from_api_version("v1", "ConfigMap");
    let old = json!({"metadata": {"name": "c"}, "data": {"a": "1"}});
    let mut new = json!({"metadata": {"name": "c"}, "data": {"a": "2"}});
    crate::patch::update_managed(Some(&old), &mut new, &gvk, "m", Operation::Update, "", NOW);
    assert_eq!(new["metadata"].get("managedFields"), None);
    // Bookkeeping that cannot be read is forgotten; the write goes on.
    let broken = json!({"metadata": {"name": "c", "managedFields": [{"operation": "Nope"}]}, "data": {"a": "1"}});
    crate::patch::update_managed(Some(&broken), &mut new, &gvk, "m", Operation::Update, "", NOW);
    assert_eq!(new, json!({"metadata": {"name": "c"}, "data": {"a": "2"}}));
}

/// kubectl moves from client-side to server-side apply: what it had set itself is no conflict, for nobody else.
#[test]
fn kubectl_takes_over_from_itself() {
    let gvk = Gvk::from_api_version("v1", "ConfigMap");
    let before = r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"c"},"data":{"a":"1"}}"#;
    let mut live = json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"a": "1"}, "metadata": {"name": "c", "annotations": {LAST_APPLIED: before}}});
    crate::patch::update_managed(None, &mut live, &gvk, "kubectl-client-side-apply", Operation::Update, "", NOW);
    let intent = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"a": "2"}});
    let refused = apply(Some(&live), &intent, &gvk, "other", false, NOW).unwrap_err();
    assert_eq!(refused.to_string(), "Apply failed with 1 conflict: conflict with \"kubectl-client-side-apply\" using v1: .data.a");
    let taken = apply(Some(&live), &intent, &gvk, "kubectl", false, NOW).unwrap();
    assert_eq!(taken["data"]["a"], "2");
    let annotation: Value = serde_json::from_str(taken["metadata"]["annotations"][LAST_APPLIED].as_str().unwrap()).unwrap();
    assert_eq!(annotation, intent);
    // What somebody changed since is not kubectl's any more.
    live["data"]["a"] = "9".into();
    assert!(apply(Some(&live), &intent, &gvk, "kubectl", false, NOW).is_err());
}

#[test]
fn custom_resources_merge_by_their_schema() {
    let schema = json!({"type": "object", "properties": {
        "apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": {"type": "object"},
        "spec": {"type": "object", "properties": {
            "items": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
                "items": {"type": "object", "properties": {"name": {"type": "string"}, "v": {"type": "integer"}}}},
            "tags": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
            "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
        }},
    }});
    let gvk = Gvk::from_api_version("ex.com/v1", "Foo");
    let foo =
        |spec: Value| json!({"apiVersion": "ex.com/v1", "kind": "Foo", "metadata": {"name": "h", "labels": {"a": "b"}}, "spec": spec});
    let writer = |manager| Writer::new(&gvk, manager, "", NOW).with_schema(&schema);
    let one = apply_as(None, &foo(json!({"items": [{"name": "a", "v": 1}], "tags": ["t", "u"], "free": {"x": [1]}})), &writer("m"), false)
        .unwrap();
    let two = apply_as(Some(&one), &foo(json!({"items": [{"name": "c"}], "tags": ["w", "u"]})), &writer("m2"), false).unwrap();
    assert_eq!(two["spec"], json!({"items": [{"name": "a", "v": 1}, {"name": "c"}], "tags": ["t", "w", "u"], "free": {"x": [1]}}));
    let fields = &timeless(&two)[1]["fieldsV1"];
    assert_eq!(
        fields["f:spec"],
        json!({"f:items": {"k:{\"name\":\"c\"}": {".": {}, "f:name": {}}}, "f:tags": {"v:\"u\"": {}, "v:\"w\"": {}}})
    );
    assert_eq!(fields["f:metadata"], json!({"f:labels": {"f:a": {}}}));
    let unknown = apply_as(None, &foo(json!({"nope": 1})), &writer("m"), false).unwrap_err();
    assert_eq!(
        unknown.to_string(),
        "failed to create typed patch object (/h; ex.com/v1, Kind=Foo): .spec.nope: field not declared in schema"
    );
    assert_eq!(unknown.code(), Code::Internal);
}
