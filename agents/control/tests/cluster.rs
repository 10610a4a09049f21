//! The other controllers in the closed loop: garbage, namespaces, endpoints, lost nodes.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::collections::BTreeMap;

use common::{Cluster, deployment, is_active, is_ready};
use kontiki_base::Uid;
use kontiki_base::object::ObjectKey;
use kontiki_control::controllers::ControllerId;
use kontiki_control::plan::Propagation;
use kontiki_control::world::{Dirty, NodeLiveness};
use kontiki_control::{Action, Kind};
use serde_json::{Value, json};

fn key(name: &str) -> ObjectKey {
    ObjectKey::new("d", name)
}

fn web(c: &mut Cluster, replicas: u32) {
    c.apply(deployment(replicas, json!(1), json!(1), "v1"));
    c.settle(|_| true, |_| {});
}

fn count(c: &Cluster, kind: Kind) -> usize {
    c.objects.keys().filter(|(k, _)| *k == kind).count()
}

fn owners(object: &Value) -> usize {
    object["metadata"]["ownerReferences"].as_array().map_or(0, Vec::len)
}

#[test]
fn what_nobody_owns_goes_in_the_background() {
    let mut c = Cluster::new(1);
    web(&mut c, 3);
    c.delete(Kind::Deployment, &key("web"), None, None);
    assert_eq!(count(&c, Kind::Deployment), 0);
    c.settle(|_| true, |_| {});
    assert_eq!((count(&c, Kind::ReplicaSet), c.pods().count()), (0, 0));
}

#[test]
fn the_owner_goes_last_in_the_foreground() {
    let mut c = Cluster::new(2);
    web(&mut c, 3);
    c.delete(Kind::Deployment, &key("web"), None, Some(Propagation::Foreground));
    c.settle(
        |_| true,
        |c| {
            let (deployments, sets) = (count(c, Kind::Deployment), count(c, Kind::ReplicaSet));
            assert!(deployments >= sets, "the deployment went before its set");
            assert!(sets > 0 || c.pods().count() == 0, "the set went before its pods");
        },
    );
    assert_eq!((count(&c, Kind::Deployment), count(&c, Kind::ReplicaSet), c.pods().count()), (0, 0, 0));
}

#[test]
fn orphans_stay_and_are_adopted_again() {
    let mut c = Cluster::new(3);
    web(&mut c, 2);
    c.delete(Kind::Deployment, &key("web"), None, Some(Propagation::Orphan));
    c.settle(|_| true, |_| {});
    let set = c.objects.values().find(|o| o["kind"] == "ReplicaSet").unwrap().clone();
    assert_eq!((count(&c, Kind::Deployment), owners(&set), c.pods().count()), (0, 0, 2));
    let pods: Vec<Value> = c.pods().map(|p| p["metadata"]["uid"].clone()).collect();
    web(&mut c, 2);
    assert_eq!(count(&c, Kind::ReplicaSet), 1, "the orphan is adopted, no second set is made");
    assert_eq!(c.pods().map(|p| p["metadata"]["uid"].clone()).collect::<Vec<_>>(), pods);
    c.assert_idle();
}

#[test]
fn a_live_owner_of_the_same_name_is_not_the_owner() {
    let mut c = Cluster::new(4);
    let owned = |uid: &str| {
        let owner = json!([{ "apiVersion": "v1", "kind": "ConfigMap", "name": "o", "uid": uid }]);
        json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": format!("s-{uid}"), "ownerReferences": owner } })
    };
    c.apply(json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "o" } }));
    let uid = c.get(Kind::ConfigMap, "o").unwrap()["metadata"]["uid"].as_str().unwrap().to_owned();
    c.apply(owned(&uid));
    c.apply(owned("earlier"));
    // A kind that nobody follows cannot be said to be absent.
    let mut foreign = owned("x");
    foreign["metadata"]["ownerReferences"][0]["apiVersion"] = json!("example.com/v1");
    c.apply(foreign);
    c.settle(|_| true, |_| {});
    assert!(c.get(Kind::Secret, &format!("s-{uid}")).is_some());
    assert!(c.get(Kind::Secret, "s-earlier").is_none());
    assert!(c.get(Kind::Secret, "s-x").is_some());
}

#[test]
fn a_cache_that_is_behind_deletes_nothing() {
    let mut c = Cluster::new(5);
    c.apply(json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "o" } }));
    let map = c.get(Kind::ConfigMap, "o").unwrap().clone();
    let uid = map["metadata"]["uid"].clone();
    c.settle(|_| true, |_| {});
    // The world has not seen the owner, the API has it.
    c.world.apply(Kind::ConfigMap, kontiki_control::world::Change::Remove(&key("o"))).unwrap();
    let owner = json!([{ "apiVersion": "v1", "kind": "ConfigMap", "name": "o", "uid": uid }]);
    c.apply(json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "s", "ownerReferences": owner } }));
    let plan = c.run(ControllerId::Gc, &key("secrets/s"));
    let [Action::Delete { guards, uid, .. }] = plan.actions.as_slice() else { panic!("{plan:?}") };
    assert_eq!((guards.len(), uid.0.is_empty()), (1, false));
    for _ in 0..20 {
        c.step();
    }
    assert!(c.get(Kind::Secret, "s").is_some(), "the guard holds it back");
}

#[test]
fn a_namespace_goes_when_it_is_empty_and_pods_go_first() {
    let mut c = Cluster::new(6);
    web(&mut c, 3);
    assert!(c.get(Kind::ServiceAccount, "default").is_some());
    c.apply(json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "held", "finalizers": ["example.com/hold"] } }));
    c.delete(Kind::Namespace, &ObjectKey::new("", "d"), None, None);
    c.settle(
        |_| true,
        |c| {
            let pods = c.pods().filter(|p| is_active(p)).count();
            assert!(pods == 0 || c.get(Kind::ServiceAccount, "default").is_some(), "pods go first");
        },
    );
    let ns = &c.objects[&(Kind::Namespace, ObjectKey::new("", "d"))];
    let condition = ns["status"]["conditions"].as_array().unwrap().iter().find(|c| c["type"] == "NamespaceFinalizersRemaining").unwrap();
    assert_eq!((&ns["status"]["phase"], &condition["status"]), (&json!("Terminating"), &json!("True")));
    assert_eq!(c.objects.keys().filter(|(_, k)| k.namespace == "d").count(), 1, "only what is held is left");
    let mut held = c.get(Kind::ConfigMap, "held").unwrap().clone();
    held["metadata"]["finalizers"] = json!([]);
    c.apply(held);
    c.settle(|_| true, |_| {});
    assert!(!c.objects.contains_key(&(Kind::Namespace, ObjectKey::new("", "d"))));
}

#[test]
fn pods_are_released_and_taken_in_by_their_labels() {
    let mut c = Cluster::new(7);
    web(&mut c, 2);
    let mut pod = c.pods().next().unwrap().clone();
    pod["metadata"]["labels"]["app"] = json!("debug");
    c.apply(pod.clone());
    c.settle(|_| true, |_| {});
    let released = c.get(Kind::Pod, pod["metadata"]["name"].as_str().unwrap()).unwrap().clone();
    assert_eq!((owners(&released), c.pods().count()), (0, 3));
    let mut back = released;
    back["metadata"]["labels"]["app"] = json!("web");
    c.apply(back);
    c.settle(|_| true, |_| {});
    assert_eq!(c.pods().filter(|p| owners(p) == 1).count(), 2, "taken in again, and one too many removed");
    c.assert_idle();
}

fn service(selector: Value) -> Value {
    let ports = json!([{ "name": "http", "port": 80, "targetPort": 8080, "protocol": "TCP" }]);
    json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": "svc", "labels": { "l": "1" } },
            "spec": { "clusterIP": "10.96.0.9", "selector": selector, "ports": ports } })
}

fn slices(c: &Cluster) -> Vec<&Value> {
    c.objects.iter().filter(|((k, _), _)| *k == Kind::EndpointSlice).map(|(_, o)| o).collect()
}

fn endpoints(c: &Cluster) -> Vec<Value> {
    slices(c).iter().flat_map(|s| s["endpoints"].as_array().cloned().unwrap_or_default()).collect()
}

#[test]
fn endpoints_in_both_forms_follow_the_pods() {
    let mut c = Cluster::new(8);
    c.apply(service(json!({ "app": "web" })));
    c.settle(|_| true, |_| {});
    assert_eq!((slices(&c).len(), endpoints(&c).len()), (1, 0), "a placeholder");
    web(&mut c, 3);
    let ready = |c: &Cluster| endpoints(c).iter().filter(|e| e["conditions"]["ready"] == true).count();
    assert_eq!((slices(&c).len(), ready(&c)), (1, 3));
    let slice = slices(&c)[0];
    assert_eq!(slice["ports"], json!([{ "name": "http", "port": 8080, "protocol": "TCP" }]));
    assert_eq!(slice["metadata"]["labels"]["kubernetes.io/service-name"], "svc");
    let old = c.get(Kind::Endpoints, "svc").unwrap();
    assert_eq!(old["subsets"][0]["addresses"].as_array().unwrap().len(), 3);
    assert_eq!(old["subsets"][0]["addresses"][0]["targetRef"]["kind"], "Pod");

    // A pod that is on its way out is in the slices, not ready, and no longer in Endpoints.
    let name = c.pods().next().unwrap()["metadata"]["name"].as_str().unwrap().to_owned();
    c.delete(Kind::Pod, &key(&name), None, None);
    while c.step() {}
    let leaving = endpoints(&c).into_iter().find(|e| e["targetRef"]["name"] == name.as_str()).unwrap();
    assert_eq!(leaving["conditions"], json!({ "ready": false, "serving": true, "terminating": true }));
    let subset = &c.get(Kind::Endpoints, "svc").unwrap()["subsets"][0];
    assert_eq!(subset["addresses"].as_array().unwrap().len(), 2);
    c.settle(|_| true, |_| {});
    c.assert_idle();

    c.delete(Kind::Service, &key("svc"), None, None);
    c.settle(|_| true, |_| {});
    assert_eq!((slices(&c).len(), count(&c, Kind::Endpoints)), (0, 0));
}

#[test]
fn two_hundred_and_fifty_endpoints_are_three_slices_and_few_are_rewritten() {
    let mut c = Cluster::new(9);
    c.apply(service(json!({ "app": "p" })));
    let pod = |i: usize| {
        json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": format!("p{i:03}"), "labels": { "app": "p" } },
                "spec": { "nodeName": "n0", "containers": [] },
                "status": { "phase": "Running", "podIP": format!("10.1.{}.{}", i / 250, i % 250),
                            "conditions": [{ "type": "Ready", "status": "True" }] } })
    };
    for i in 0..250 {
        c.apply(pod(i));
    }
    c.settle(|_| false, |_| {});
    let mut sizes: Vec<usize> = slices(&c).iter().map(|s| s["endpoints"].as_array().unwrap().len()).collect();
    sizes.sort_unstable();
    assert_eq!(sizes.iter().sum::<usize>(), 250);
    assert!(sizes.len() == 3 && sizes.iter().all(|n| *n <= 100), "{sizes:?}");
    c.assert_idle();
    c.drop_object(Kind::Pod, &key("p007"));
    c.apply(pod(300));
    c.queue.clear();
    let plan = c.run(ControllerId::EndpointSlice, &key("svc"));
    assert_eq!(plan.actions.len(), 1, "the slice that loses one takes the new one: {plan:?}");
}

fn beat(c: &mut Cluster, ages: &[(&str, u64)]) {
    let liveness: BTreeMap<String, NodeLiveness> =
        ages.iter().map(|(n, age)| ((*n).to_owned(), NodeLiveness { last_beat_age_ms: Some(*age), since_leader_ms: 3_600_000 })).collect();
    let dirty = c.world.tick(c.now, liveness);
    c.queue.extend(dirty);
}

fn taints(c: &Cluster, node: &str) -> Vec<String> {
    let list = c.get(Kind::Node, node).unwrap()["spec"]["taints"].as_array().cloned().unwrap_or_default();
    list.iter().map(|t| format!("{}:{}", t["key"].as_str().unwrap().rsplit('/').next().unwrap(), t["effect"].as_str().unwrap())).collect()
}

fn ready_status(c: &Cluster, node: &str) -> Value {
    let node = c.get(Kind::Node, node).unwrap();
    node["status"]["conditions"].as_array().unwrap().iter().find(|c| c["type"] == "Ready").unwrap()["status"].clone()
}

/// Controllers only, until they rest.
fn controllers(c: &mut Cluster) {
    while c.step() {}
}

#[test]
fn a_silent_node_is_given_up_and_its_pods_are_replaced() {
    let mut c = Cluster::new(10);
    c.apply(service(json!({ "app": "web" })));
    web(&mut c, 6);
    let on = |c: &Cluster, n: &str| c.pods().filter(|p| p["spec"]["nodeName"] == n && is_active(p)).count();
    assert!(on(&c, "n1") > 0);
    beat(&mut c, &[("n0", 100), ("n1", 5_900), ("n2", 100)]);
    controllers(&mut c);
    assert!(taints(&c, "n1").is_empty(), "not before the grace is over");
    beat(&mut c, &[("n0", 100), ("n1", 6_100), ("n2", 100)]);
    controllers(&mut c);
    assert_eq!(ready_status(&c, "n1"), "Unknown");
    assert_eq!(taints(&c, "n1"), ["unreachable:NoSchedule", "unreachable:NoExecute"]);
    assert_eq!(on(&c, "n1"), 0, "pods without a toleration go at once");
    let dead = c.pods().filter(|p| p["spec"]["nodeName"] == "n1").cloned().collect::<Vec<_>>();
    assert!(!dead.is_empty() && dead.iter().all(|p| !is_ready(p)), "not known to be ready, and waiting for their kubelet");
    assert!(endpoints(&c).iter().all(|e| e["nodeName"] != "n1" || e["conditions"]["ready"] == false));
    assert!(dead.iter().all(|p| p["status"]["conditions"].as_array().unwrap().iter().any(|c| c["reason"] == "DeletionByTaintManager")));
    assert_eq!(c.pods().filter(|p| is_active(p)).count(), 6, "replaced");

    // The node is heard again: its own server says so, and the taints go.
    let mut node = c.get(Kind::Node, "n1").unwrap().clone();
    node["status"]["conditions"] = json!([{ "type": "Ready", "status": "True" }]);
    c.set_status(Kind::Node, node);
    beat(&mut c, &[("n0", 100), ("n1", 100), ("n2", 100)]);
    controllers(&mut c);
    assert!(taints(&c, "n1").is_empty());
}

#[test]
fn when_everything_is_silent_nobody_is_evicted() {
    let mut c = Cluster::new(11);
    web(&mut c, 6);
    beat(&mut c, &[("n0", 60_000), ("n1", 60_000), ("n2", 60_000)]);
    controllers(&mut c);
    for node in ["n0", "n1", "n2"] {
        assert_eq!(ready_status(&c, node), "Unknown");
        assert_eq!(taints(&c, node), ["unreachable:NoSchedule"], "closed, not given up");
    }
    assert_eq!(c.pods().filter(|p| is_active(p)).count(), 6);
}

#[test]
fn a_new_leader_gives_full_grace_and_nodes_are_given_up_one_by_one() {
    let mut c = Cluster::new(12);
    web(&mut c, 6);
    let silent = |since_leader_ms| NodeLiveness { last_beat_age_ms: None, since_leader_ms };
    let heard = NodeLiveness { last_beat_age_ms: Some(10), since_leader_ms: 5_000 };
    let dirty = c.world.tick(c.now, BTreeMap::from([("n0".into(), heard), ("n1".into(), silent(5_000)), ("n2".into(), silent(5_000))]));
    assert_eq!(dirty, []);
    let dirty = c.world.tick(c.now, BTreeMap::from([("n0".into(), heard), ("n1".into(), silent(7_000)), ("n2".into(), silent(7_000))]));
    assert_eq!(dirty.len(), 1);
    c.queue.extend(dirty);
    controllers(&mut c);
    let given_up = |c: &Cluster| ["n1", "n2"].iter().filter(|n| taints(c, n).contains(&"unreachable:NoExecute".into())).count();
    assert_eq!(given_up(&c), 1, "one in ten seconds");
    c.now.0 += 5_000;
    controllers(&mut c);
    assert_eq!(given_up(&c), 1);
    c.now.0 += 6_000;
    controllers(&mut c);
    assert_eq!(given_up(&c), 2);
}

#[test]
fn pods_of_a_removed_node_go_after_the_quarantine() {
    let mut c = Cluster::new(13);
    web(&mut c, 6);
    let before: Vec<Uid> =
        c.pods().filter(|p| p["spec"]["nodeName"] == "n2").map(|p| Uid(p["metadata"]["uid"].as_str().unwrap().into())).collect();
    assert!(!before.is_empty());
    c.drop_object(Kind::Node, &ObjectKey::new("", "n2"));
    beat(&mut c, &[("n0", 10), ("n1", 10)]);
    controllers(&mut c);
    let left = |c: &Cluster| c.pods().filter(|p| before.iter().any(|u| p["metadata"]["uid"] == u.0.as_str())).count();
    c.now.0 += 39_000;
    controllers(&mut c);
    assert_eq!(left(&c), before.len());
    c.now.0 += 2_000;
    controllers(&mut c);
    assert_eq!(left(&c), 0);
    assert!(c.log.iter().any(|l| l.contains("DeletionByPodGC")));
}

#[test]
fn pods_that_were_deleted_before_they_had_a_node_go() {
    let mut c = Cluster::new(14);
    let pod = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "p", "finalizers": ["x"] }, "spec": { "containers": [] } });
    c.apply(pod);
    c.delete(Kind::Pod, &key("p"), None, None);
    let plan = c.reconcile(&Dirty { controller: ControllerId::PodGc, key: key("p") });
    assert!(matches!(plan.actions.as_slice(), [Action::Delete { grace: Some(0), .. }]), "{plan:?}");
}
