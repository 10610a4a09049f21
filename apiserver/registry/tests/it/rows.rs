//! A walk over every row: what must hold of each kind, so that none can be forgotten.

use kontiki_registry::delete::{DeleteDecision, DeleteOptions, Propagation, decide_delete};
use kontiki_registry::meta::{self, CreateCtx};
use kontiki_registry::row::{Row, Stage, Verb};
use kontiki_registry::rules::Generation;
use kontiki_registry::schema::{self, conform, unknown_fields};
use kontiki_registry::table::Registry;
use kontiki_registry::{columns, discovery};
use serde_json::{Value, json};

const NOW: &str = "2026-01-01T00:00:00Z";

#[test]
fn every_row_is_whole() {
    let registry = Registry::builtin();
    let mut seen = 0;
    for row in registry.rows() {
        let gvk = row.gvk();
        assert!(schema::schema_of(&gvk).is_some(), "{gvk} has a schema");
        assert_eq!(row.is_stored(), row.stage == Stage::Stable, "{gvk}");
        if row.is_stored() {
            let key = row.storage_key("ns", "name");
            assert!(key.starts_with("/registry/"), "{key}");
            let back = row.key_of(key.as_bytes()).unwrap();
            assert_eq!((back.namespace.as_str(), back.name.as_str()), (if row.namespaced { "ns" } else { "" }, "name"));
            assert!(key.starts_with(&row.storage_prefix(Some("ns"))));
            assert_eq!(registry.row_of_key(key.as_bytes()).unwrap().gvk(), row.stored_as, "{key}");
            for verb in [Verb::Create, Verb::Get, Verb::List, Verb::Watch, Verb::Update, Verb::Patch, Verb::Delete] {
                assert!(row.has_verb(verb), "{gvk} {verb}");
            }
            assert!(!columns::columns(&gvk).is_empty(), "{gvk} has columns");
        }
        assert_eq!(registry.resource(&row.group, &row.version, &row.plural).unwrap().gvk(), gvk);
        let list = discovery::resource_list(&registry, &row.group, &row.version).unwrap();
        assert!(list["resources"].as_array().unwrap().iter().any(|r| r["name"] == row.plural.as_str()));
        seen += 1;
    }
    assert!(seen > 60, "{seen}");
}

#[test]
fn storage_prefixes_do_not_contain_each_other() {
    let registry = Registry::builtin();
    let prefixes: Vec<String> = registry.stored().map(|r| r.storage_prefix(None)).collect();
    for (i, a) in prefixes.iter().enumerate() {
        for (j, b) in prefixes.iter().enumerate() {
            assert!(i == j || !a.starts_with(b.as_str()), "{a} lies in {b}");
        }
    }
}

/// The smallest object of a kind that passes its own validation.
fn minimal(row: &Row) -> Value {
    let pod = json!({"containers": [{"name": "c", "image": "i"}]});
    let labels = json!({"a": "b"});
    let template = json!({"metadata": {"labels": labels}, "spec": pod});
    let workload = json!({"selector": {"matchLabels": labels}, "template": template});
    let mut once = template.clone();
    once["spec"]["restartPolicy"] = json!("Never");
    let rest = match row.kind.as_str() {
        "Pod" => json!({"spec": pod}),
        "PodTemplate" => json!({"template": template}),
        "Deployment" | "ReplicaSet" | "StatefulSet" | "DaemonSet" => json!({"spec": workload}),
        "ReplicationController" => json!({"spec": {"selector": labels, "template": template}}),
        "Job" => json!({"spec": {"template": once}}),
        "CronJob" => json!({"spec": {"schedule": "* * * * *", "jobTemplate": {"spec": {"template": once}}}}),
        "Service" => json!({"spec": {"ports": [{"port": 80}]}}),
        "PersistentVolumeClaim" => {
            json!({"spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}})
        }
        "PersistentVolume" => {
            json!({"spec": {"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}, "hostPath": {"path": "/x"}}})
        }
        "StorageClass" => json!({"provisioner": "p"}),
        "ControllerRevision" => json!({"data": {"x": 1}, "revision": 1}),
        "EndpointSlice" => json!({"addressType": "IPv4", "endpoints": []}),
        "RoleBinding" => json!({"roleRef": {"kind": "Role", "name": "r"}}),
        "ClusterRoleBinding" => json!({"roleRef": {"kind": "ClusterRole", "name": "r"}}),
        "HorizontalPodAutoscaler" => json!({"spec": {"maxReplicas": 2, "scaleTargetRef": {"kind": "Deployment", "name": "d"}}}),
        "Event" if row.group.is_empty() => json!({"involvedObject": {"namespace": "ns"}}),
        "Event" => json!({"regarding": {"namespace": "ns"}, "eventTime": "2026-01-01T00:00:00Z", "type": "Normal",
            "reason": "r", "action": "a", "reportingController": "c", "reportingInstance": "i"}),
        "CustomResourceDefinition" => json!({"spec": {"group": "x.io", "names": {"plural": "names", "kind": "Name"}}}),
        _ => json!({}),
    };
    let name = if row.kind == "CustomResourceDefinition" { "names.x.io" } else { "name" };
    let mut obj = json!({"apiVersion": row.api_version(), "kind": row.kind, "metadata": {"name": name}});
    obj.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
    obj
}

fn create(row: &Row) -> Value {
    let mut obj = minimal(row);
    assert!(unknown_fields(row, &obj).is_empty(), "{}", row.gvk());
    conform(&row.gvk(), &mut obj).unwrap();
    let ns = if row.namespaced { "ns" } else { "" };
    let ctx = CreateCtx { uid: "u".into(), now: NOW, user: "me", suffix: "abcde", namespace: ns, field_manager: "test" };
    meta::prepare_create(row, &mut obj, &ctx).unwrap_or_else(|e| panic!("{}: {e}", row.gvk()));
    obj
}

#[test]
fn every_kind_can_be_created_and_stored_again_unchanged() {
    let registry = Registry::builtin();
    for row in registry.rows().filter(|r| r.is_stored()) {
        let obj = create(row);
        let generation = obj["metadata"]["generation"].as_i64();
        assert_eq!(generation, (row.rules.generation != Generation::Untracked).then_some(1), "{}", row.gvk());
        assert!(unknown_fields(row, &obj).is_empty(), "{}: defaults are fields of the kind: {:?}", row.gvk(), unknown_fields(row, &obj));
        let mut same = obj.clone();
        meta::prepare_update(row, &mut same, &obj, None, NOW).unwrap_or_else(|e| panic!("{}: {e}", row.gvk()));
        assert_eq!(same, obj, "{}: a PUT of what is there changes nothing", row.gvk());
        if let Some(sub) = row.subresource("status") {
            let mut same = obj.clone();
            meta::prepare_update(row, &mut same, &obj, Some(sub), NOW).unwrap();
            assert_eq!(same, obj, "{}: nor does one of the status", row.gvk());
        }
        if let Some(convert) = row.rules.to_stored {
            let stored = convert(obj.clone());
            let target = registry.kind(&row.stored_as).unwrap();
            assert_eq!(stored["apiVersion"], target.api_version().as_str());
            assert!(unknown_fields(&target, &stored).is_empty(), "{}", row.gvk());
            assert_eq!((row.rules.from_stored.unwrap())(stored), obj, "{}", row.gvk());
        }
    }
}

#[test]
fn status_and_spec_are_written_apart() {
    let registry = Registry::builtin();
    for row in registry.rows().filter(|r| r.is_stored() && r.has_status()) {
        let old = create(row);
        let sub = row.subresource("status").unwrap();
        let mut new = old.clone();
        new["metadata"]["finalizers"] = json!(["example.com/x"]);
        new["spec"]["paused"] = json!(true);
        meta::prepare_update(row, &mut new, &old, Some(sub), NOW).unwrap_or_else(|e| panic!("{}: {e}", row.gvk()));
        assert_eq!(new["spec"], old["spec"], "{}: a status write keeps the spec", row.gvk());
        assert_eq!(new["metadata"]["generation"], old["metadata"]["generation"], "{}", row.gvk());
        let mut new = old.clone();
        new["status"] = json!({"phase": "Odd"});
        meta::prepare_update(row, &mut new, &old, None, NOW).unwrap();
        assert_eq!(new["status"], old["status"], "{}: a write of the object keeps the status", row.gvk());
    }
}

#[test]
fn every_kind_can_be_deleted() {
    let registry = Registry::builtin();
    for row in registry.rows().filter(|r| r.is_stored()) {
        let obj = create(row);
        let background = DeleteOptions { propagation: Some(Propagation::Background), ..DeleteOptions::default() };
        match decide_delete(row, &obj, &background, NOW) {
            DeleteDecision::Remove(_) => assert_ne!(row.kind, "Namespace"),
            DeleteDecision::MarkAndKeep(kept) => {
                assert_eq!(row.kind, "Namespace");
                assert_eq!(kept["status"]["phase"], "Terminating");
            }
            other => panic!("{}: {other:?}", row.gvk()),
        }
        // A finalizer holds it, whatever it is; and a second request changes nothing.
        let mut held = obj.clone();
        held["metadata"]["finalizers"] = json!(["example.com/x"]);
        let DeleteDecision::MarkAndKeep(kept) = decide_delete(row, &held, &background, NOW) else { panic!("{}", row.gvk()) };
        assert_eq!(kept["metadata"]["deletionTimestamp"], NOW);
        assert_eq!(decide_delete(row, &kept, &background, NOW), DeleteDecision::AlreadyDeleting, "{}", row.gvk());
    }
}
