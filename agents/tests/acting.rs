//! Client, caches, runner, scheduler and node sessions against an API server that can misbehave.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use common::{Fake, config, eventually};
use kontiki_agents::api::Scope;
use kontiki_agents::metrics::Metrics;
use kontiki_agents::session::{self, Liveness, SessionConfig};
use kontiki_agents::{Caches, Client, Controllers, ControllersConfig};
use kontiki_base::env::Env;
use kontiki_base::object::ObjectKey;
use kontiki_base::{Code, Revision, Term};
use kontiki_control::Kind;
use kontiki_control::world::Settings;
use kontiki_proto::env::SystemEnv;
use kontiki_proto::node::agent_message::Message as Up;
use kontiki_proto::node::node_session_client::NodeSessionClient;
use kontiki_proto::node::server_message::Message as Down;
use kontiki_proto::node::{AgentMessage, Heartbeat, Hello, PodStatus, PodStatusBatch};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};

/// One server: caches, controllers, sessions.
struct Server {
    caches: Arc<Caches>,
    leadership: watch::Sender<Option<Term>>,
    url: String,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.tasks.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

fn settings() -> Settings {
    let second = Duration::from_secs(1);
    Settings { node_grace: second * 2, node_startup_grace: second * 4, gone_node_quarantine: second, ..Settings::default() }
}

async fn server(api: &str, peers: &[&str], lead: Option<u64>) -> Server {
    let env: Arc<dyn Env> = Arc::new(SystemEnv::new());
    let caches = Caches::new(&config(&[api]), env.clone(), Arc::new(Metrics::default()), settings()).unwrap();
    let (leadership, receiver) = watch::channel(lead.map(Term::new));
    let liveness = Arc::new(Liveness::new(env));
    let service = session::service(SessionConfig {
        caches: caches.clone(),
        leadership: receiver.clone(),
        liveness: liveness.clone(),
        peers: config(peers),
        server: "s1".into(),
        authorize: Arc::new(|_, _| Ok(())),
    })
    .unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    let serve = tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming);
    let controllers = ControllersConfig { caches: caches.clone(), leadership: receiver, liveness, workers: 4 };
    let tasks = vec![
        tokio::spawn(caches.clone().run(std::future::pending())),
        tokio::spawn(async move { serve.await.unwrap() }),
        tokio::spawn(async move { Controllers::run(controllers, std::future::pending()).await.unwrap() }),
    ];
    Server { caches, leadership, url, tasks }
}

/// An agent that makes every pod ready and ends those that are deleted.
fn agent(url: String, name: &'static str) -> tokio::task::JoinHandle<()> {
    agent_with(url, name, "4")
}

fn agent_with(url: String, name: &'static str, cpu: &'static str) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        let mut client = NodeSessionClient::connect(url).await.unwrap();
        let (out, messages) = mpsc::channel(64);
        let node = json!({
            "metadata": { "name": name, "labels": { "kubernetes.io/hostname": name } },
            "status": {
                "capacity": { "cpu": cpu, "memory": "8Gi", "pods": "20" },
                "allocatable": { "cpu": cpu, "memory": "8Gi", "pods": "20" },
                "conditions": [{ "type": "Ready", "status": "True", "reason": "KubeletReady", "message": "ready" }],
            },
        });
        let hello =
            Hello { node_name: name.into(), boot: 1, node_json: node.to_string().into_bytes().into(), agent_address: String::new() };
        let up = |message| AgentMessage { message: Some(message) };
        out.send(up(Up::Hello(hello))).await.unwrap();
        let mut down = client.session(tokio_stream::wrappers::ReceiverStream::new(messages)).await.unwrap().into_inner();
        let mut beat = tokio::time::interval(Duration::from_millis(300));
        let mut seq = 0;
        loop {
            seq += 1;
            tokio::select! {
                _ = beat.tick() => {
                    let beat = Heartbeat { seq, conditions_json: bytes::Bytes::new(), usage: None };
                    if out.send(up(Up::Heartbeat(beat))).await.is_err() { return }
                }
                message = down.message() => {
                    let Ok(Some(message)) = message else { return };
                    if let Some(Down::Pods(set)) = message.message {
                        let statuses: Vec<PodStatus> = set.pods.iter().map(|raw| status_of(raw)).collect();
                        if !statuses.is_empty() {
                            out.send(up(Up::Statuses(PodStatusBatch { seq, statuses }))).await.unwrap();
                        }
                    }
                }
            }
        }
    })
}

fn status_of(raw: &[u8]) -> PodStatus {
    let pod: Value = serde_json::from_slice(raw).unwrap();
    let text = |f: &str| pod["metadata"][f].as_str().unwrap().to_owned();
    let deleting = !pod["metadata"]["deletionTimestamp"].is_null();
    let ready = json!([{ "type": "Ready", "status": if deleting { "False" } else { "True" } }]);
    let status = json!({ "phase": "Running", "podIP": "10.0.0.1", "conditions": ready });
    PodStatus {
        namespace: text("namespace"),
        name: text("name"),
        uid: text("uid"),
        status_json: status.to_string().into_bytes().into(),
        finished_deleting: deleting,
    }
}

fn key(name: &str) -> ObjectKey {
    ObjectKey::new("d", name)
}

fn namespace(fake: &Fake) {
    fake.create(json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "d" } }));
}

fn deployment(replicas: u32) -> Value {
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": { "name": "web", "namespace": "d" },
        "spec": {
            "replicas": replicas,
            "progressDeadlineSeconds": 600,
            "selector": { "matchLabels": { "app": "web" } },
            "template": { "metadata": { "labels": { "app": "web" } }, "spec": { "containers": [{ "name": "c", "image": "i" }] } },
        },
    })
}

fn available(fake: &Fake) -> u64 {
    fake.get(Kind::Deployment, &key("web")).and_then(|d| d["status"]["availableReplicas"].as_u64()).unwrap_or(0)
}

fn settled(fake: &Fake, replicas: u64) -> bool {
    let pods = fake.all(Kind::Pod);
    let ready = pods.iter().filter(|p| p["status"]["phase"] == "Running" && p["metadata"]["deletionTimestamp"].is_null()).count() as u64;
    available(fake) == replicas && ready == replicas && pods.len() as u64 == replicas
}

#[tokio::test(flavor = "multi_thread")]
async fn from_a_deployment_to_running_pods_and_then_silence() {
    let fake = Fake::new();
    let api = fake.serve().await;
    namespace(&fake);
    let server = server(&api, &[], Some(7)).await;
    let agents = [agent(server.url.clone(), "n1"), agent(server.url.clone(), "n2")];
    eventually("nodes have addresses for pods", || fake.all(Kind::Node).iter().filter(|n| n["spec"]["podCIDR"].is_string()).count() == 2)
        .await;
    fake.create(deployment(6));
    eventually("six pods are available", || settled(&fake, 6)).await;
    let nodes: BTreeMap<String, usize> = fake.all(Kind::Pod).iter().fold(BTreeMap::new(), |mut m, p| {
        *m.entry(p["spec"]["nodeName"].as_str().unwrap().to_owned()).or_default() += 1;
        m
    });
    assert_eq!(nodes.values().copied().collect::<Vec<_>>(), [3, 3], "{nodes:?}");
    let created = fake.writes().iter().filter(|w| *w == "create pods").count();
    assert_eq!(created, 6, "not one too many");
    assert!(fake.get(Kind::ServiceAccount, &key("default")).is_some());
    eventually("events tell of it", || fake.all(Kind::Event).iter().any(|e| e["reason"] == "Scheduled")).await;

    // While nothing happens nothing is written, heartbeats or not.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let before = fake.writes().len();
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(fake.writes()[before..], [] as [String; 0]);

    fake.update(Kind::Deployment, &key("web"), |d| d["spec"]["replicas"] = json!(2));
    eventually("scaled down", || settled(&fake, 2)).await;
    agents.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_agent_is_replaced_within_seconds_and_may_come_back() {
    let fake = Fake::new();
    let api = fake.serve().await;
    namespace(&fake);
    let server = server(&api, &[], Some(1)).await;
    let agents: Vec<_> = ["n1", "n2", "n3"].map(|n| agent(server.url.clone(), n)).into();
    eventually("three nodes", || fake.all(Kind::Node).len() == 3).await;
    fake.create(deployment(6));
    eventually("six pods", || settled(&fake, 6)).await;
    agents[2].abort();
    let alive =
        |p: &Value| p["metadata"]["deletionTimestamp"].is_null() && p["spec"]["nodeName"] != "n3" && p["status"]["phase"] == "Running";
    eventually("six pods elsewhere", || fake.all(Kind::Pod).iter().filter(|p| alive(p)).count() == 6).await;
    let ready = |n: &Value| n["status"]["conditions"].as_array().unwrap().iter().find(|c| c["type"] == "Ready").unwrap()["status"].clone();
    let n3 = || fake.get(Kind::Node, &ObjectKey::new("", "n3")).unwrap();
    assert_eq!(ready(&n3()), "Unknown");
    for name in ["n1", "n2"] {
        assert_eq!(ready(&fake.get(Kind::Node, &ObjectKey::new("", name)).unwrap()), "True");
    }
    // It comes back: says that it is ready, ends what was taken from it, and is open again.
    let back = agent(server.url.clone(), "n3");
    eventually("n3 is open again", || ready(&n3()) == "True" && n3()["spec"]["taints"].as_array().is_none_or(Vec::is_empty)).await;
    eventually("no pod is left over", || settled(&fake, 6)).await;
    back.abort();
    agents.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test(flavor = "multi_thread")]
async fn beats_that_a_follower_hears_count_at_the_leader() {
    let fake = Fake::new();
    let api = fake.serve().await;
    let leader = server(&api, &[], Some(3)).await;
    let follower = server(&api, &["http://127.0.0.1:1", &leader.url], None).await;
    let agent = agent(follower.url.clone(), "n1");
    let ready = || {
        let node = fake.get(Kind::Node, &ObjectKey::new("", "n1"));
        node.is_some_and(|n| n["status"]["conditions"].as_array().unwrap().iter().any(|c| c["type"] == "Ready" && c["status"] == "True"))
    };
    eventually("registered", ready).await;
    for _ in 0..40 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(ready(), "given up although it beats");
    }
    agent.abort();
    eventually("given up once it is silent", || !ready()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_watches_do_not_create_twice() {
    let fake = Fake::new();
    let api = fake.serve().await;
    namespace(&fake);
    fake.with(|s| s.lag = Duration::from_millis(150));
    let _server = server(&api, &[], Some(1)).await;
    fake.create(deployment(20));
    eventually("twenty pods", || fake.all(Kind::Pod).len() == 20).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let created = fake.writes().iter().filter(|w| *w == "create pods").count();
    assert_eq!((created, fake.all(Kind::Pod).len(), fake.all(Kind::ReplicaSet).len()), (20, 20, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_leader_acts_and_only_under_its_term() {
    let fake = Fake::new();
    let api = fake.serve().await;
    namespace(&fake);
    fake.with(|s| s.term = 5);
    let server = server(&api, &[], None).await;
    fake.create(deployment(3));
    server.caches.until(Caches::synced).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(fake.writes(), [] as [String; 0], "a follower is silent");
    server.leadership.send_replace(Some(Term::new(4)));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(fake.all(Kind::Pod).len() + fake.all(Kind::ReplicaSet).len(), 0, "a leader of the past writes nothing");
    server.leadership.send_replace(Some(Term::new(5)));
    eventually("the leader acts", || fake.all(Kind::Pod).len() == 3).await;
    server.leadership.send_replace(None);
    tokio::time::sleep(Duration::from_millis(300)).await;
    let before = fake.writes().len();
    fake.update(Kind::Deployment, &key("web"), |d| d["spec"]["replicas"] = json!(9));
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(fake.writes().len(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn caches_survive_broken_watches_and_forgotten_history() {
    let fake = Fake::new();
    let api = fake.serve().await;
    namespace(&fake);
    fake.with(|s| s.refuse.extend([("list", Code::NoLeader), ("list", Code::TooManyRequests)]));
    let server = server(&api, &[], None).await;
    let map = |name: &str| json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name, "namespace": "d" } });
    fake.create(map("a"));
    let names = || server.caches.world().keys(Kind::ConfigMap).into_iter().map(|k| k.name).collect::<Vec<_>>();
    eventually("a is seen", || names() == ["a"]).await;
    fake.cut_watches();
    fake.create(map("b"));
    eventually("the watch is resumed", || names() == ["a", "b"]).await;
    let lists = |k: Kind| server.caches.metrics.lists.get_or_create(&kontiki_agents::metrics::KindLabel { kind: k.plural() }).get();
    let before = lists(Kind::ConfigMap);
    // What happens while nobody watches, and is then forgotten, is found by a new list: also what went.
    fake.with(|s| s.remove(Kind::ConfigMap, &key("a")));
    fake.create(map("c"));
    fake.compact();
    eventually("listed again", || names() == ["b", "c"]).await;
    fake.create(map("d"));
    eventually("and watched again", || names() == ["b", "c", "d"]).await;
    assert!(lists(Kind::ConfigMap) <= before + 1);
    let now = server.caches.catch_up(&[Kind::ConfigMap, Kind::Pod]).await.unwrap();
    assert!(server.caches.reached(Kind::Pod) >= now);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_scheduler_binds_one_by_one_when_a_batch_fails_and_says_why_it_cannot() {
    let fake = Fake::new();
    let api = fake.serve().await;
    namespace(&fake);
    let server = server(&api, &[], Some(1)).await;
    let agent = agent(server.url.clone(), "n1");
    eventually("a node", || !fake.all(Kind::Node).is_empty()).await;
    fake.with(|s| s.refuse.push(("transact", Code::Internal)));
    let pod = |name: &str, cpu: &str| {
        json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name, "namespace": "d" },
                "spec": { "containers": [{ "name": "c", "resources": { "requests": { "cpu": cpu } } }] } })
    };
    fake.create(pod("a", "1"));
    eventually("bound all the same", || fake.get(Kind::Pod, &key("a")).unwrap()["spec"]["nodeName"] == "n1").await;
    fake.create(pod("big", "64"));
    let condition = || {
        let pod = fake.get(Kind::Pod, &key("big")).unwrap();
        pod["status"]["conditions"].as_array().and_then(|c| c.first().cloned()).unwrap_or_default()
    };
    eventually("the pod says why", || condition()["reason"] == "Unschedulable").await;
    assert_eq!(condition()["message"], "0/1 nodes are available: 1 Insufficient cpu. n1: cpu requested 64000m, free 3000m of 4000m.");
    eventually("an event says so too", || fake.all(Kind::Event).iter().any(|e| e["reason"] == "FailedScheduling")).await;
    // Room appears: a second node.
    let huge = agent_with(server.url.clone(), "huge", "128");
    eventually("bound after the change", || fake.get(Kind::Pod, &key("big")).unwrap()["spec"]["nodeName"] == "huge").await;
    huge.abort();
    agent.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_goes_on_to_the_next_server() {
    let fake = Fake::new();
    let api = fake.serve().await;
    namespace(&fake);
    let client = Client::new(&config(&["http://127.0.0.1:1", &api]), Arc::new(SystemEnv::new())).unwrap();
    let (revision, found) = client.list(Kind::Namespace, &Scope::default()).await.unwrap();
    assert_eq!((revision, found.len()), (Revision::new(2), 1));
    assert_eq!(client.server(), api, "and stays there");
    let missing = client.get(Kind::Pod, &key("x")).await.unwrap_err();
    assert_eq!(missing.code, Code::NotFound);
    // A write whose first attempt is refused for the moment is tried again; one that is refused for good is not.
    fake.with(|s| s.refuse.extend([("create", Code::NoLeader), ("create", Code::TooManyRequests)]));
    let map = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "m", "namespace": "d" } });
    client.create(Kind::ConfigMap, &map).await.unwrap();
    assert_eq!(client.create(Kind::ConfigMap, &map).await.unwrap_err().code, Code::AlreadyExists);
    fake.with(|s| s.term = 9);
    let fenced = client.under(Term::new(8)).create(Kind::ConfigMap, &json!({ "metadata": { "name": "f", "namespace": "d" } })).await;
    assert_eq!(fenced.unwrap_err().code, Code::Fenced);
    assert!(Client::new(&config(&[]), Arc::new(SystemEnv::new())).is_err());
    assert!(Client::new(&config(&["ftp://x"]), Arc::new(SystemEnv::new())).is_err());
}
