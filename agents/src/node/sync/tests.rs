//! The whole agent against a server in memory and simulated pods.

use std::sync::Arc;
use std::time::Duration;

use kontiki_base::env::Env;
use kontiki_proto::env::SystemEnv;
use serde_json::{Value, json};

use crate::config::ApiConfig;
use crate::node::runtime::hollow::{HollowOptions, HollowRuntime};
use crate::node::runtime::{PodRuntime, wire};
use crate::node::testing::FakeServer;
use crate::node::{NodeAgent, NodeConfig};

struct Rig {
    server: FakeServer,
    url: String,
    runtime: Arc<HollowRuntime>,
    env: Arc<dyn Env>,
    agent: Option<(tokio::sync::oneshot::Sender<()>, tokio::task::JoinHandle<()>)>,
    dir: tempfile::TempDir,
}

impl Rig {
    async fn new() -> Self {
        let env: Arc<dyn Env> = Arc::new(SystemEnv::new());
        let short = Duration::from_millis(5);
        let options = HollowOptions { pull: short, sandbox: short, start: short, stop: short, images: Vec::new() };
        let runtime = Arc::new(HollowRuntime::new(Arc::clone(&env), options));
        let server = FakeServer::new("10.2.0.0/24");
        let (url, _) = server.serve("127.0.0.1:0".parse().unwrap()).await;
        let mut rig = Self { server, url, runtime, env, agent: None, dir: tempfile::tempdir().unwrap() };
        rig.start();
        rig
    }

    fn start(&mut self) {
        let config = NodeConfig {
            name: "n1".into(),
            api: ApiConfig {
                endpoints: vec![self.url.clone()],
                ca_pem: Vec::new(),
                cert_pem: Vec::new(),
                key_pem: Vec::new(),
                transport: None,
            },
            runtime: Arc::clone(&self.runtime) as Arc<dyn PodRuntime>,
            listen: None,
            node_ip: "127.0.0.1".parse().unwrap(),
            data_dir: self.dir.path().to_owned(),
            cgroup_parent: "/kubepods".into(),
            cluster_cidr: "10.2.0.0/16".into(),
            cluster_dns: None,
            labels: Default::default(),
            capacity: None,
            env: Arc::clone(&self.env),
        };
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let task = tokio::spawn(async move {
            NodeAgent::run(config, async { _ = stopped.await }).await.unwrap();
        });
        self.agent = Some((stop, task));
    }

    async fn stop(&mut self) {
        let (stop, task) = self.agent.take().unwrap();
        stop.send(()).unwrap();
        task.await.unwrap();
    }

    fn add(&self, name: &str, spec: Value, annotations: Value) {
        let meta = json!({"name": name, "namespace": "d", "uid": name, "annotations": annotations});
        self.server.change(|s| _ = s.pods.insert(name.into(), json!({"metadata": meta, "spec": spec})));
    }

    async fn until(&self, what: &str, holds: impl Fn(&FakeServer) -> bool) {
        for _ in 0..1_000 {
            if holds(&self.server) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let state = self.server.state();
        panic!("not in time: {what}\n{:#?}\n{:#?}", state.pods, state.events);
    }

    async fn running(&self) -> Vec<String> {
        let all = self.runtime.list_containers(None).await.unwrap();
        all.into_iter().filter(|c| c.state() == wire::ContainerState::ContainerRunning).map(|c| c.id).collect()
    }
}

fn phase(server: &FakeServer, uid: &str) -> String {
    server.state().pods.get(uid).map(|p| p["status"]["phase"].as_str().unwrap_or_default().to_owned()).unwrap_or_default()
}

fn one(image: &str) -> Value {
    json!({"containers": [{"name": "c", "image": image}]})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_come_up_and_go_down_and_the_last_word_comes_before_the_end() {
    let rig = Rig::new().await;
    rig.add("web", one("x:1"), json!({}));
    rig.until("it runs", |s| phase(s, "web") == "Running").await;
    {
        let state = rig.server.state();
        let status = &state.pods["web"]["status"];
        assert_eq!(status["podIP"], "10.2.0.2");
        assert_eq!(status["containerStatuses"][0]["ready"], true);
        assert_eq!(state.hellos[0].node_name, "n1");
        let node: Value = serde_json::from_slice(&state.hellos[0].node_json).unwrap();
        assert_eq!(node["status"]["capacity"]["pods"], "110");
    }
    rig.server.delete("web", 5);
    rig.until("it is gone", |s| !s.state().pods.contains_key("web")).await;
    assert!(rig.runtime.list_sandboxes(None).await.unwrap().is_empty(), "resources are released before the object goes");
    {
        let state = rig.server.state();
        let last = state.told["web"].last().unwrap();
        assert!(last["containerStatuses"][0]["state"]["terminated"]["exitCode"].is_number(), "{last:#}");
    }
    for reason in ["Pulling", "Pulled", "Created", "Started", "Killing"] {
        rig.until(reason, |s| s.state().events.iter().any(|e| e.starts_with(reason))).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_ends_and_a_crash_is_started_again() {
    let rig = Rig::new().await;
    let job = json!({"restartPolicy": "Never", "containers": [{"name": "c", "image": "x:1", "args": ["exit", "0"]}]});
    rig.add("job", job, json!({}));
    rig.add("crash", json!({"containers": [{"name": "c", "image": "x:1", "args": ["exit", "3"]}]}), json!({}));
    rig.until("the job ends", |s| phase(s, "job") == "Succeeded").await;
    let waiting = |s: &FakeServer| s.state().pods["crash"]["status"]["containerStatuses"][0]["state"]["waiting"]["reason"].clone();
    rig.until("the crash loops", |s| waiting(s) == "CrashLoopBackOff").await;
    let state = rig.server.state();
    let c = &state.pods["crash"]["status"]["containerStatuses"][0];
    assert_eq!((c["restartCount"].as_i64(), c["lastState"]["terminated"]["exitCode"].as_i64()), (Some(1), Some(3)), "{c:#}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_agent_adopts_and_ends_orphans() {
    let mut rig = Rig::new().await;
    rig.add("stays", one("x:1"), json!({}));
    rig.add("goes", one("x:1"), json!({}));
    rig.until("both run", |s| phase(s, "stays") == "Running" && phase(s, "goes") == "Running").await;
    rig.stop().await;
    let before = rig.running().await;
    assert_eq!(before.len(), 2, "pods outlive the agent");
    rig.server.change(|s| _ = s.pods.remove("goes"));
    rig.start();
    for _ in 0..500 {
        if rig.running().await.len() == 1 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let after = rig.running().await;
    assert!(after.len() == 1 && before.contains(&after[0]), "the same container runs on: {before:?} {after:?}");
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert_eq!(rig.running().await, after);
    assert_eq!(rig.server.state().pods["stays"]["status"]["containerStatuses"][0]["restartCount"], 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_session_changes_nothing_but_who_is_told() {
    let rig = Rig::new().await;
    rig.add("web", one("x:1"), json!({}));
    rig.until("it runs", |s| phase(s, "web") == "Running").await;
    let before = rig.running().await;
    for n in 2..5 {
        rig.server.drop_sessions();
        rig.until("it comes back", |s| s.state().hellos.len() >= n).await;
    }
    assert_eq!(rig.running().await, before);
    let boots: std::collections::BTreeSet<u64> = rig.server.state().hellos.iter().map(|h| h.boot).collect();
    assert_eq!(boots.len(), 1, "the same incarnation");
    rig.server.change(|s| s.pods.get_mut("web").unwrap()["status"]["phase"] = "Pending".into());
    rig.until("a status that somebody else overwrote is told again", |s| phase(s, "web") == "Running").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readiness_follows_the_probe() {
    let rig = Rig::new().await;
    let spec = json!({"containers": [{"name": "c", "image": "x:1", "readinessProbe": {"tcpSocket": {"port": 80}, "periodSeconds": 1}}]});
    rig.add("good", spec.clone(), json!({}));
    rig.add("bad", spec, json!({"hollow.kontiki.dev/ready": "false"}));
    let ready = |s: &FakeServer, uid: &str| s.state().pods[uid]["status"]["containerStatuses"][0]["ready"] == true;
    rig.until("one is ready", |s| ready(s, "good")).await;
    rig.until("the other is probed", |s| s.state().events.iter().any(|e| e.starts_with("Unhealthy"))).await;
    assert!(!ready(&rig.server, "bad") && phase(&rig.server, "bad") == "Running");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_that_cannot_be_fetched_keeps_the_pod_waiting() {
    let rig = Rig::new().await;
    rig.add("never", json!({"containers": [{"name": "c", "image": "x:1", "imagePullPolicy": "Never"}]}), json!({}));
    rig.add("bad", one("invalid.invalid/x:1"), json!({}));
    let waiting = |s: &FakeServer, uid: &str| s.state().pods[uid]["status"]["containerStatuses"][0]["state"]["waiting"]["reason"].clone();
    rig.until("never", |s| waiting(s, "never") == "ErrImageNeverPull").await;
    rig.until("back off", |s| waiting(s, "bad") == "ImagePullBackOff").await;
    assert_eq!(phase(&rig.server, "bad"), "Pending");
    rig.server.delete("bad", 30);
    rig.until("it can still be deleted", |s| !s.state().pods.contains_key("bad")).await;
}
