//! The scheduler: kube-scheduler's words with numbers, vectors, and a property: whatever is bound fits.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod};
use kontiki_base::env::WallMs;
use kontiki_control::Action;
use kontiki_control::schedule::{Decision, Snapshot, enough_nodes, explain, is_pending, schedule, unscheduled_condition};
use proptest::prelude::*;
use serde_json::{Value, json};

fn node(name: &str, cpu: &str, more: Value) -> Arc<Node> {
    let mut n = json!({
        "metadata": { "name": name, "labels": { "kubernetes.io/hostname": name } },
        "status": { "allocatable": { "cpu": cpu, "memory": "8Gi", "pods": "110" } },
    });
    merge(&mut n, more);
    Arc::new(serde_json::from_value(n).unwrap())
}

fn pod(name: &str, cpu: &str, more: Value) -> Arc<Pod> {
    let mut p = json!({
        "metadata": { "name": name, "namespace": "d", "uid": name },
        "spec": { "containers": [{ "name": "c", "resources": { "requests": { "cpu": cpu, "memory": "1Gi" } } }] },
    });
    merge(&mut p, more);
    Arc::new(serde_json::from_value(p).unwrap())
}

fn merge(a: &mut Value, b: Value) {
    match b {
        Value::Object(b) if a.is_object() => b.into_iter().for_each(|(k, v)| merge(&mut a[k], v)),
        Value::Null => {}
        b => *a = b,
    }
}

fn on(p: Arc<Pod>, node: &str) -> Arc<Pod> {
    let mut p = (*p).clone();
    p.spec.as_mut().unwrap().node_name = Some(node.into());
    Arc::new(p)
}

fn snapshot(nodes: &[Arc<Node>], pods: &[Arc<Pod>]) -> Snapshot {
    let mut s = Snapshot::new();
    nodes.iter().for_each(|n| s.upsert_node(n.clone()));
    pods.iter().for_each(|p| s.upsert_pod(p.clone()));
    s
}

fn why(s: &mut Snapshot, p: &Pod) -> String {
    match schedule(p, s, &BTreeMap::new()) {
        Decision::Unschedulable(why) => why.message(),
        Decision::Bind { node, .. } => panic!("bound to {node}"),
    }
}

fn place(s: &mut Snapshot, p: &Pod) -> String {
    match schedule(p, s, &BTreeMap::new()) {
        Decision::Bind { node, .. } => node,
        Decision::Unschedulable(why) => panic!("{}", why.message()),
    }
}

#[test]
fn the_words_are_kube_schedulers_and_the_numbers_are_ours() {
    let mut s = snapshot(&[node("n1", "2", Value::Null), node("n2", "2", Value::Null)], &[on(pod("a", "800m", Value::Null), "n1")]);
    assert_eq!(
        why(&mut s, &pod("p", "3", Value::Null)),
        "0/2 nodes are available: 2 Insufficient cpu. n1: cpu requested 3000m, free 1200m of 2000m; n2: cpu requested 3000m, free 2000m of 2000m."
    );
    let tainted = json!({ "spec": { "taints": [{ "key": "k", "value": "v", "effect": "NoSchedule" }] } });
    s.upsert_node(node("n2", "2", tainted));
    s.upsert_node(node("n3", "2", json!({ "spec": { "unschedulable": true } })));
    let message = why(&mut s, &pod("p", "3", Value::Null));
    assert!(
        message.starts_with(
            "0/3 nodes are available: 1 Insufficient cpu, 1 node(s) had untolerated taint {k: v}, 1 node(s) were unschedulable."
        ),
        "{message}"
    );
    assert_eq!(why(&mut Snapshot::new(), &pod("p", "1", Value::Null)), "no nodes available to schedule pods");
}

#[test]
fn the_smallest_change_is_named() {
    let s = snapshot(&[node("n1", "2", Value::Null), node("n2", "2500m", Value::Null)], &[on(pod("a", "800m", Value::Null), "n1")]);
    let e = explain(&pod("p", "3", Value::Null), &s, &BTreeMap::new());
    assert_eq!(e.nodes.len(), 2);
    assert_eq!(e.smallest_change.as_deref(), Some("on n2: 500m cpu more free, or that much less requested"));
    assert_eq!(explain(&pod("p", "1", Value::Null), &s, &BTreeMap::new()).smallest_change, None);
}

#[test]
fn the_condition_is_written_once() {
    let p = pod("p", "3", Value::Null);
    let Some(Action::Patch { patch, subresource: "status", .. }) = unscheduled_condition(&p, "m", WallMs(0)) else { panic!() };
    let mut said = json!(&*p);
    merge(&mut said, json!({ "status": patch["status"] }));
    let said: Pod = serde_json::from_value(said).unwrap();
    assert_eq!(unscheduled_condition(&said, "m", WallMs(5_000)), None);
    let Some(Action::Patch { patch, .. }) = unscheduled_condition(&said, "other", WallMs(5_000)) else { panic!() };
    assert_eq!(patch["status"]["conditions"][0]["lastTransitionTime"], "1970-01-01T00:00:00Z", "still the same state");
    assert_eq!(patch["status"]["conditions"].as_array().unwrap().len(), 1);
}

#[test]
fn only_pods_that_wait_for_us_are_pending() {
    assert!(is_pending(&pod("p", "1", Value::Null)));
    for more in [
        json!({ "spec": { "schedulerName": "other" } }),
        json!({ "spec": { "schedulingGates": [{ "name": "g" }] } }),
        json!({ "spec": { "nodeName": "n" } }),
        json!({ "metadata": { "deletionTimestamp": "2024-01-01T00:00:00Z" } }),
        json!({ "status": { "phase": "Failed" } }),
    ] {
        assert!(!is_pending(&pod("p", "1", more.clone())), "{more}");
    }
}

#[test]
fn sampling_vectors() {
    for (nodes, want) in [(5, 5), (99, 99), (100, 100), (1000, 420), (5000, 500), (6000, 300), (10_000, 500)] {
        assert_eq!(enough_nodes(nodes), want, "{nodes}");
    }
}

#[test]
fn host_ports_affinity_and_names_refuse() {
    let port = json!({ "spec": { "containers": [{ "name": "c", "ports": [{ "containerPort": 80, "hostPort": 80 }] }] } });
    let mut s =
        snapshot(&[node("n1", "4", json!({ "metadata": { "labels": { "zone": "a" } } }))], &[on(pod("a", "1", port.clone()), "n1")]);
    let cases = [
        (port, "node(s) didn't have free ports for the requested pod ports"),
        (json!({ "spec": { "nodeSelector": { "zone": "b" } } }), "node(s) didn't match Pod's node affinity/selector"),
        (
            json!({ "metadata": { "labels": { "x": "y" } }, "spec": { "affinity": { "podAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": [
                { "topologyKey": "zone", "labelSelector": { "matchLabels": { "app": "none" } } }] } } } }),
            "node(s) didn't match pod affinity rules",
        ),
        (
            json!({ "spec": { "topologySpreadConstraints": [{ "maxSkew": 1, "topologyKey": "rack", "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {} }] } }),
            "node(s) didn't match pod topology spread constraints (missing required label)",
        ),
    ];
    for (more, words) in cases {
        let message = why(&mut s, &pod("p", "1", more));
        assert!(message.starts_with(&format!("0/1 nodes are available: 1 {words}.")), "{message}");
    }
}

#[test]
fn anti_affinity_works_both_ways_and_the_first_of_its_kind_may_start() {
    let zone = |z: &str| json!({ "metadata": { "labels": { "zone": z } } });
    let anti = |app: &str, not: &str| {
        let term = json!([{ "topologyKey": "zone", "labelSelector": { "matchLabels": { "app": not } } }]);
        json!({ "metadata": { "labels": { "app": app } },
                "spec": { "affinity": { "podAntiAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": term } } } })
    };
    let mut s = snapshot(&[node("a1", "4", zone("a")), node("a2", "4", zone("a")), node("b1", "4", zone("b"))], &[]);
    s.upsert_pod(on(pod("w", "1", anti("web", "db")), "a1"));
    let db = pod("p", "1", json!({ "metadata": { "labels": { "app": "db" } } }));
    assert_eq!(place(&mut s, &db), "b1", "the placed pod keeps it out of zone a");
    s.upsert_pod(on(db, "b1"));
    assert_eq!(place(&mut s, &pod("q", "1", anti("cache", "web"))), "b1", "its own term keeps it out of zone a");
    let message = why(&mut s, &pod("q", "1", anti("db", "db")));
    let words = "1 node(s) didn't match pod anti-affinity rules, 2 node(s) didn't satisfy existing pods anti-affinity rules";
    assert!(message.contains(words), "{message}");

    let near = json!([{ "topologyKey": "zone", "labelSelector": { "matchLabels": { "app": "flock" } } }]);
    let near = json!({ "spec": { "affinity": { "podAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": near } } } });
    let mut flock = near.clone();
    merge(&mut flock, json!({ "metadata": { "labels": { "app": "flock" } } }));
    let message = why(&mut s, &pod("stranger", "1", near));
    assert!(message.contains("3 node(s) didn't match pod affinity rules"), "{message}");
    let first = pod("first", "1", flock.clone());
    let home = place(&mut s, &first);
    s.assume(first, &home);
    for i in 0..3 {
        assert_eq!(place(&mut s, &pod(&format!("f{i}"), "1", flock.clone()))[..1], home[..1], "the others stay in its zone");
    }
}

#[test]
fn spread_vector_of_three_zones() {
    let labels = |z: &str| json!({ "metadata": { "labels": { "zone": z } } });
    let spread = |min: Option<i32>| {
        json!({ "metadata": { "labels": { "app": "s" } }, "spec": { "topologySpreadConstraints": [{
            "maxSkew": 1, "minDomains": min, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule",
            "labelSelector": { "matchLabels": { "app": "s" } } }] } })
    };
    let nodes = [node("na", "64", labels("A")), node("nb", "64", labels("B")), node("nc", "64", labels("C"))];
    let mut pods = Vec::new();
    for (n, count) in [("na", 3), ("nb", 2), ("nc", 2)] {
        for i in 0..count {
            pods.push(on(pod(&format!("{n}{i}"), "1m", json!({ "metadata": { "labels": { "app": "s" } } })), n));
        }
    }
    let mut s = snapshot(&nodes, &pods);
    assert_ne!(place(&mut s, &pod("p", "1m", spread(None))), "na");
    let message = why(&mut s, &pod("p", "1m", spread(Some(4))));
    assert!(message.starts_with("0/3 nodes are available: 3 node(s) didn't match pod topology spread constraints."), "{message}");
}

#[test]
fn replicas_of_one_set_are_spread_over_hosts() {
    let owner = json!([{ "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "r", "controller": true }]);
    let replica = |i: usize| pod(&format!("r{i}"), "10m", json!({ "metadata": { "ownerReferences": owner } }));
    let mut s = snapshot(&[node("n1", "8", Value::Null), node("n2", "8", Value::Null), node("n3", "8", Value::Null)], &[]);
    let mut counts = BTreeMap::new();
    for i in 0..9 {
        let p = replica(i);
        let n = place(&mut s, &p);
        s.assume(p, &n);
        *counts.entry(n).or_insert(0) += 1;
    }
    assert_eq!(counts.into_values().collect::<Vec<_>>(), [3, 3, 3]);
}

#[test]
fn preferences_decide_between_equals() {
    let disk = json!({ "metadata": { "labels": { "disk": "ssd" } } });
    let mut s = snapshot(&[node("n1", "8", Value::Null), node("n2", "8", disk)], &[]);
    let term = json!([{ "weight": 10, "preference": { "matchExpressions": [{ "key": "disk", "operator": "In", "values": ["ssd"] }] } }]);
    let p =
        pod("p", "1", json!({ "spec": { "affinity": { "nodeAffinity": { "preferredDuringSchedulingIgnoredDuringExecution": term } } } }));
    assert_eq!(place(&mut s, &p), "n2");
    let soft = json!({ "spec": { "taints": [{ "key": "k", "effect": "PreferNoSchedule" }] } });
    let mut s = snapshot(&[node("n1", "8", Value::Null), node("n2", "8", soft)], &[]);
    for i in 0..10 {
        assert_eq!(place(&mut s, &pod(&format!("p{i}"), "1", Value::Null)), "n1");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever is bound fits, whatever does not is told so, and the same input gives the same answer.
    #[test]
    fn nothing_is_overcommitted(
        nodes in prop::collection::vec((500i64..4000, 1i64..6), 1..8),
        pods in prop::collection::vec(1i64..1500, 1..40),
    ) {
        let run = || {
            let mut s = Snapshot::new();
            for (i, (cpu, max)) in nodes.iter().enumerate() {
                let more = json!({ "status": { "allocatable": { "pods": max.to_string() } } });
                s.upsert_node(node(&format!("n{i}"), &format!("{cpu}m"), more));
            }
            let mut placed = Vec::new();
            for (i, cpu) in pods.iter().enumerate() {
                let p = pod(&format!("p{i}"), &format!("{cpu}m"), json!({ "spec": { "containers": [{ "name": "c", "resources": { "requests": { "cpu": format!("{cpu}m") } } }] } }));
                let fits = s.nodes().any(|(_, info, _)| info.free("cpu") >= *cpu && info.free("pods") >= 1);
                match schedule(&p, &mut s, &BTreeMap::new()) {
                    Decision::Bind { node, .. } => {
                        s.assume(p, &node);
                        placed.push(Some(node));
                    }
                    Decision::Unschedulable(why) => {
                        assert!(!fits, "{}", why.message());
                        placed.push(None);
                    }
                }
                for (name, info, _) in s.nodes() {
                    assert!(info.free("cpu") >= 0 && info.free("pods") >= 0, "{name} is overcommitted");
                }
            }
            placed
        };
        prop_assert_eq!(run(), run());
    }
}
