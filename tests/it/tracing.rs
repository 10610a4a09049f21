//! One trace shows a write from the door through proposal, replication, sync and apply, on all members.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use kontiki_proto::api;
use kontiki_proto::api::resources_client::ResourcesClient;
use kontiki_proto::etcd::etcdserverpb as etcd;
use kontiki_proto::trace::{TRACEPARENT, TraceContext, names};
use kontiki_tests::Cluster;
use kontiki_tests::collector::{Collector, Span, Trace};
use kontiki_tests::run::have;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};

/// Who leads, and who does not: indexes into the servers of the state file.
async fn leader_and_follower(cluster: &Cluster) -> (usize, usize) {
    for _ in 0..100 {
        let mut status = Vec::new();
        for member in 0..3 {
            let url = format!("http://127.0.0.1:{}", cluster.server(member)["client"]);
            let mut client = etcd::maintenance_client::MaintenanceClient::connect(url).await.expect("a member answers");
            status.push(client.status(etcd::StatusRequest {}).await.expect("a member knows its status").into_inner());
        }
        let own = |s: &etcd::StatusResponse| s.header.as_ref().map_or(0, |h| h.member_id);
        let leads = status.iter().position(|s| s.leader != 0 && s.leader == own(s));
        if let Some(leader) = leads.filter(|at| status.iter().all(|s| s.leader == own(&status[*at]))) {
            return (leader, (leader + 1) % 3);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("the members do not agree on a leader");
}

fn traced<T>(message: T, parent: TraceContext) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.metadata_mut().insert(TRACEPARENT, parent.to_string().parse().expect("hexadecimal digits are ASCII"));
    request
}

/// Creates a ConfigMap through the gRPC door of one server.
async fn create_config_map(cluster: &Cluster, server: usize, name: &str, parent: TraceContext) {
    let file = |name: &str| std::fs::read(cluster.file(name)).expect("up writes certificates");
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(file("pki/ca.crt")))
        .identity(Identity::from_pem(file("pki/admin.crt"), file("pki/admin.key")));
    let url = format!("https://localhost:{}", cluster.server(server)["api"]);
    let channel = Endpoint::from_shared(url).and_then(|e| e.tls_config(tls)).expect("an endpoint").connect().await.expect("a connection");
    let object = serde_json::json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "default"}});
    let request = api::CreateRequest {
        resource: Some(api::Resource { group: String::new(), version: "v1".into(), resource: "configmaps".into() }),
        namespace: "default".into(),
        object: Some(api::Object {
            api_version: "v1".into(),
            kind: "ConfigMap".into(),
            encoding: api::Encoding::Json.into(),
            raw: object.to_string().into_bytes().into(),
            revision: 0,
        }),
        ..Default::default()
    };
    ResourcesClient::new(channel).create(traced(request, parent)).await.expect("the object is created");
}

/// Creates a ConfigMap through the REST door of one server.
fn create_by_rest(cluster: &Cluster, server: usize, name: &str, parent: TraceContext) {
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--show-error", "--fail"]);
    for (flag, file) in [("--cacert", "pki/ca.crt"), ("--cert", "pki/admin.crt"), ("--key", "pki/admin.key")] {
        curl.arg(flag).arg(cluster.file(file));
    }
    curl.args(["--header", "content-type: application/json", "--header", &format!("{TRACEPARENT}: {parent}")]);
    curl.args(["--data", &serde_json::json!({"metadata": {"name": name}}).to_string()]);
    curl.arg(format!("https://localhost:{}/api/v1/namespaces/default/configmaps", cluster.server(server)["api"]));
    kontiki_tests::run(&mut curl, Duration::from_secs(30)).expect_ok();
}

/// Puts a key through the etcd door of one server.
async fn put(cluster: &Cluster, server: usize, parent: TraceContext) {
    let url = format!("http://127.0.0.1:{}", cluster.server(server)["client"]);
    let mut client = etcd::kv_client::KvClient::connect(url).await.expect("a member answers");
    let request = etcd::PutRequest { key: "it/traced".into(), value: "v".into(), ..Default::default() };
    client.put(traced(request, parent)).await.expect("the key is put");
}

/// What a trace of one write lacks; empty when it is whole.
fn missing(trace: &Trace, parent: TraceContext, root_name: &str, leader: &str, follower: &str) -> Vec<String> {
    let all: BTreeSet<String> = (1..=3).map(|n| format!("server-{n}")).collect();
    let mut missing = Vec::new();
    let mut must = |holds: bool, what: &str| {
        if !holds {
            missing.push(what.to_owned());
        }
    };
    let root = trace.named(root_name).find(|span| span.parent == parent.span_id());
    let propose = root.and_then(|root| trace.named(names::PROPOSE).find(|span| trace.is_below(span, root)));
    must(root.is_some_and(|root| root.instance == follower), "a root at the follower that was asked, whose parent is the client's span");
    let Some(propose) = propose else { return [missing, vec!["a proposal below the root".into()]].concat() };
    must(propose.instance == follower, "the proposal begins where the request came in");
    let below: Vec<&Span> = trace.spans.iter().filter(|span| span.parent == propose.id).collect();
    let instances = |name: &str| below.iter().filter(|s| s.name == name).map(|s| s.instance.clone()).collect::<BTreeSet<_>>();
    must(instances(names::LOG_SYNC) == all, "a sync of the log on every member");
    must(instances(names::RAFT_APPLY) == all, "the application on every member");
    must(instances(names::RAFT_APPEND) == BTreeSet::from([leader.to_owned()]), "replication by the leader, and by nobody else");
    let to: BTreeSet<&String> = below.iter().filter(|s| s.name == names::RAFT_APPEND).filter_map(|s| s.fields.get("to")).collect();
    must(to.len() == 2, "replication to both followers");
    let applied: BTreeSet<&String> =
        below.iter().filter(|s| s.name == names::RAFT_APPLY).filter_map(|s| s.fields.get("revision")).collect();
    must(applied.len() == 1, "the same revision on every member");
    let synced = below.iter().filter(|s| s.name == names::LOG_SYNC && s.end <= propose.end).count();
    must(synced >= 2, "a quorum had synced before the proposal was answered");
    missing
}

#[track_caller]
fn expect_whole(collector: &Collector, parent: TraceContext, root: &str, leader: &str, follower: &str) -> Trace {
    let mut lacks = Vec::new();
    for _ in 0..150 {
        let trace = collector.trace(parent.trace_id());
        lacks = missing(&trace, parent, root, leader, follower);
        if lacks.is_empty() {
            eprintln!("whole: {trace}");
            return trace;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    panic!("the trace lacks: {lacks:#?}\nit has {}", collector.trace(parent.trace_id()));
}

#[test]
fn one_trace_shows_a_write_on_all_members() {
    let collector = Collector::start();
    let cluster = Cluster::start_with(3, 1, &["--otlp-endpoint", &collector.endpoint()]);
    let runtime = tokio::runtime::Runtime::new().expect("threads can be started");
    let (leader, follower) = runtime.block_on(leader_and_follower(&cluster));
    let name = |index: usize| format!("server-{}", index + 1);
    let parent = |n: u8| TraceContext::new([n; 16], [n; 8], 1).expect("ids are not zero");

    runtime.block_on(create_config_map(&cluster, follower, "traced", parent(0xa1)));
    let trace = expect_whole(&collector, parent(0xa1), names::REQUEST, &name(leader), &name(follower));
    let request = trace.named(names::REQUEST).next().expect("it is whole");
    for (field, value) in [("door", "grpc"), ("verb", "create"), ("resource", "configmaps"), ("namespace", "default"), ("code", "0")] {
        assert_eq!(request.fields.get(field).map(String::as_str), Some(value), "{field} of {trace}");
    }

    if have("curl") {
        create_by_rest(&cluster, follower, "by-rest", parent(0xa5));
        let trace = expect_whole(&collector, parent(0xa5), names::REQUEST, &name(leader), &name(follower));
        let request = trace.named(names::REQUEST).next().expect("it is whole");
        for (field, value) in [("door", "rest"), ("verb", "create"), ("resource", "configmaps"), ("namespace", "default"), ("code", "201")]
        {
            assert_eq!(request.fields.get(field).map(String::as_str), Some(value), "{field} of {trace}");
        }
    }

    runtime.block_on(put(&cluster, follower, parent(0xa2)));
    let trace = expect_whole(&collector, parent(0xa2), names::RPC, &name(leader), &name(follower));
    let rpc = trace.named(names::RPC).next().expect("it is whole");
    assert_eq!(rpc.fields.get("method").map(String::as_str), Some("/etcdserverpb.KV/Put"), "{trace}");

    // Who says that it is not recorded is not; and the last spans go out when a process is told to end.
    let unsampled = TraceContext::new([0xa3; 16], [0xa3; 8], 0).expect("ids are not zero");
    runtime.block_on(create_config_map(&cluster, follower, "untraced", unsampled));
    runtime.block_on(create_config_map(&cluster, follower, "last", parent(0xa4)));
    cluster.kontiki(&["down"]).expect_ok();
    expect_whole(&collector, parent(0xa4), names::REQUEST, &name(leader), &name(follower));
    assert_eq!(collector.trace([0xa3; 16]).spans.len(), 0, "{}", collector.trace([0xa3; 16]));
}
