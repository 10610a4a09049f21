//! A whole cluster, seen by its users: kubectl, etcdctl, a Python client, and what is left when it ends.

use std::process::Command;
use std::time::Duration;

use kontiki_tests::run::have;
use kontiki_tests::{Cluster, python};

/// Asks again until it holds.
#[track_caller]
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..300 {
        if holds() {
            return;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    panic!("never: {what}");
}

#[test]
fn kubectl_runs_a_deployment() {
    if !have("kubectl") {
        return;
    }
    let cluster = Cluster::start(3, 2);
    let kubectl = |args: &[&str]| cluster.kubectl(args).expect_ok();
    let nodes = kubectl(&["get", "nodes", "--no-headers"]);
    assert_eq!(nodes.lines().filter(|l| l.contains(" Ready ")).count(), 2, "{nodes}");

    kubectl(&["create", "deployment", "web", "--image=kontiki.dev/demo:1", "--replicas=3", "--port=8080"]);
    kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    let wide = kubectl(&["get", "pods", "-o", "wide", "--no-headers"]);
    assert_eq!(wide.lines().filter(|l| l.contains("Running")).count(), 3, "{wide}");
    assert!(wide.contains("node-1") && wide.contains("node-2"), "spread over both nodes: {wide}");

    kubectl(&["scale", "deployment/web", "--replicas=5"]);
    kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    let victim = kubectl(&["get", "pods", "-o", "name"]).lines().next().expect("there are pods").to_owned();
    kubectl(&["delete", &victim, "--wait=true"]);
    eventually("the deleted pod is replaced", || {
        let pods = kubectl(&["get", "pods", "--no-headers"]);
        !pods.contains(victim.trim_start_matches("pod/")) && pods.lines().filter(|l| l.contains("Running")).count() == 5
    });

    kubectl(&["set", "image", "deployment/web", "demo=kontiki.dev/demo:2"]);
    kubectl(&["rollout", "status", "deployment/web", "--timeout=90s"]);
    let images = kubectl(&["get", "pods", "-o", "jsonpath={.items[*].spec.containers[*].image}"]);
    assert!(images.split(' ').filter(|i| *i == "kontiki.dev/demo:2").count() >= 5, "{images}");

    kubectl(&["delete", "deployment", "web"]);
    eventually("all pods and replica sets are gone", || kubectl(&["get", "pods,replicasets", "-o", "name"]).trim().is_empty());
}

#[test]
fn a_pod_that_fits_nowhere_says_why() {
    if !have("kubectl") {
        return;
    }
    let cluster = Cluster::start(1, 1);
    let pod = r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"huge"},"spec":{"containers":[
        {"name":"c","image":"kontiki.dev/demo:1","resources":{"requests":{"cpu":"900"}}}]}}"#;
    let file = cluster.file("pod.json");
    std::fs::write(&file, pod).unwrap();
    let file = file.to_str().unwrap();
    assert!(cluster.kubectl(&["apply", "-f", file]).expect_ok().contains("created"));
    assert!(cluster.kubectl(&["apply", "-f", file]).expect_ok().contains("unchanged"));
    eventually("the pod says why it is pending", || {
        let text = cluster.kubectl(&["describe", "pod", "huge"]).expect_ok();
        text.contains("FailedScheduling") && text.contains("0/1 nodes are available: 1 Insufficient cpu")
    });
}

#[test]
fn etcdctl_works_against_every_member() {
    if !have("etcdctl") {
        return;
    }
    let cluster = Cluster::start(3, 1);
    for member in 0..3 {
        let etcdctl = |args: &[&str]| cluster.etcdctl(member, args).expect_ok();
        let key = format!("it/{member}");
        assert_eq!(etcdctl(&["put", &key, "one"]).trim(), "OK");
        assert_eq!(etcdctl(&["get", &key, "--print-value-only"]).trim(), "one");
        assert!(etcdctl(&["get", "--prefix", "it/", "--keys-only"]).contains(&key));
        assert_eq!(etcdctl(&["member", "list"]).lines().count(), 3);
        assert_eq!(etcdctl(&["del", &key]).trim(), "1");
        assert!(etcdctl(&["endpoint", "status", "-w", "table"]).contains("RAFT TERM"));
    }
    let keys = cluster.etcdctl(0, &["get", "--prefix", "--keys-only", "/registry/"]).expect_ok();
    for key in ["/registry/namespaces/default", "/registry/minions/node-1"] {
        assert!(keys.lines().any(|line| line == key), "{key} is not among {keys}");
    }
}

#[test]
fn a_python_client_uses_the_grpc_api() {
    let Some(python) = python::interpreter() else { return };
    let cluster = Cluster::start(3, 0);
    let stubs = cluster.file("stubs");
    std::fs::create_dir(&stubs).unwrap();
    python::stubs(&python, &stubs);
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/python/api_client.py");
    let address = format!("localhost:{}", cluster.server(1)["api"]);
    let mut client = Command::new(python);
    client.arg(script).arg(&stubs).arg(address);
    client.args(["pki/ca.crt", "pki/admin.crt", "pki/admin.key"].map(|file| cluster.file(file)));
    let out = kontiki_tests::run(&mut client, Duration::from_secs(60)).expect_ok();
    assert_eq!(out.lines().count(), 5, "{out}");
}

#[test]
fn kill_all_servers_at_once_and_nothing_acknowledged_is_lost() {
    if !have("etcdctl") {
        return;
    }
    let cluster = Cluster::start(3, 1);
    for i in 0..20 {
        let (key, value) = (format!("kept/{i}"), format!("v{i}"));
        cluster.etcdctl(i % 3, &["put", &key, &value]).expect_ok();
    }
    let before = revision(&cluster);
    for server in cluster.state()["servers"].as_array().expect("servers") {
        must_run(&mut Command::new("kill"), &["-9", &server["pid"].to_string()]);
    }
    eventually("the servers are back", || cluster.etcdctl(0, &["get", "kept/0"]).ok && cluster.kontiki(&["status"]).ok);
    for i in 0..20 {
        let value = cluster.etcdctl(i % 3, &["get", &format!("kept/{i}"), "--print-value-only"]).expect_ok();
        assert_eq!(value.trim(), format!("v{i}"));
    }
    assert!(revision(&cluster) >= before, "revisions go on");
}

fn must_run(command: &mut Command, args: &[&str]) {
    kontiki_tests::run(command.args(args), Duration::from_secs(10)).expect_ok();
}

fn revision(cluster: &Cluster) -> i64 {
    let json = cluster.etcdctl(1, &["get", "kept/0", "-w", "json"]).expect_ok();
    let json: serde_json::Value = serde_json::from_str(&json).expect("etcdctl prints JSON");
    json["header"]["revision"].as_i64().expect("a header has a revision")
}

#[test]
fn nothing_is_left_when_it_ends() {
    let cluster = Cluster::start(1, 1);
    let pids: Vec<String> = ["servers", "nodes"]
        .iter()
        .flat_map(|k| cluster.state()[k].as_array().cloned().unwrap_or_default())
        .map(|p| p["pid"].to_string())
        .collect();
    assert_eq!(pids.len(), 2);
    assert!(cluster.kontiki(&["status"]).expect_ok().contains("all is well"));
    assert!(!cluster.kontiki(&["up", "--detach"]).ok, "a second `up` on the same folder is refused");
    cluster.kontiki(&["down"]).expect_ok();
    for pid in pids {
        assert!(!std::path::Path::new("/proc").join(&pid).exists(), "process {pid} is still there");
    }
    assert!(!cluster.kontiki(&["status"]).ok, "status says that it is down");
}
