//! The laws of a runtime: what the sync loop takes for granted. Every implementation passes all of them, the simulated one too: a law that
//! it breaks is a bug in the simulation.
//!
//! A law gets a runtime that may hold other pods already, and leaves nothing behind when it holds.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use kontiki_base::BoxFuture;
use kontiki_base::env::Env;

use super::{LogSource, PodRuntime, RuntimeError, label, wire};
use crate::node::time::parse_nanos;

/// What laws are checked on.
#[derive(Clone)]
pub struct Bench {
    /// The runtime.
    pub runtime: Arc<dyn PodRuntime>,
    /// Time.
    pub env: Arc<dyn Env>,
    /// An image that is present, whose entrypoint is the demo program.
    pub image: String,
    /// A directory for logs that the runtime can write.
    pub log_dir: String,
    /// The parent of cgroups.
    pub cgroup_parent: String,
}

/// A law: its name, and what checks it.
pub type Law = (&'static str, fn(Bench) -> BoxFuture<'static, ()>);

/// All laws.
pub const LAWS: &[Law] = &[
    ("a container lives, ends and is forgotten", |b| Box::pin(lives(b))),
    ("exit codes come through", |b| Box::pin(exit_codes(b))),
    ("stopping ends a container within its grace, twice is once", |b| Box::pin(stopping(b))),
    ("a name is taken once", |b| Box::pin(names(b))),
    ("what is not there is not found, and is removed without complaint", |b| Box::pin(absent(b))),
    ("lists can be narrowed to a pod", |b| Box::pin(narrowed(b))),
    ("every pod has an address of its own", |b| Box::pin(addresses(b))),
    ("a stopped sandbox takes its containers along", |b| Box::pin(sandbox_stop(b))),
    ("an absent image is absent, and no container is made of it", |b| Box::pin(images(b))),
    ("commands run in containers", |b| Box::pin(commands(b))),
    ("logs are in the format of the interface", |b| Box::pin(log_format(b))),
];

impl Bench {
    fn pod(&self, name: &str, attempt: u32) -> wire::PodSandboxConfig {
        let uid = format!("uid-{name}");
        wire::PodSandboxConfig {
            metadata: Some(wire::PodSandboxMetadata { name: name.into(), uid: uid.clone(), namespace: "suite".into(), attempt }),
            hostname: name.into(),
            log_directory: format!("{}/{uid}", self.log_dir),
            labels: HashMap::from([(label::POD_UID.to_owned(), uid.clone())]),
            linux: Some(wire::LinuxPodSandboxConfig { cgroup_parent: format!("{}/pod{uid}", self.cgroup_parent), ..Default::default() }),
            ..Default::default()
        }
    }

    fn container(&self, pod: &wire::PodSandboxConfig, name: &str, args: &[&str]) -> wire::ContainerConfig {
        wire::ContainerConfig {
            metadata: Some(wire::ContainerMetadata { name: name.into(), attempt: 0 }),
            image: Some(wire::ImageSpec { image: self.image.clone(), ..Default::default() }),
            args: args.iter().map(|&a| a.to_owned()).collect(),
            labels: pod.labels.clone(),
            log_path: format!("{name}/0.log"),
            linux: Some(wire::LinuxContainerConfig::default()),
            ..Default::default()
        }
    }

    async fn sandbox(&self, pod: &wire::PodSandboxConfig) -> String {
        self.runtime.run_sandbox(pod.clone(), String::new()).await.expect("a sandbox can be made")
    }

    async fn started(&self, sandbox: &str, pod: &wire::PodSandboxConfig, name: &str, args: &[&str]) -> String {
        let config = self.container(pod, name, args);
        let id = self.runtime.create_container(sandbox, config, pod.clone()).await.expect("a container can be made");
        self.runtime.start_container(&id).await.expect("a container can be started");
        id
    }

    async fn gone(&self, sandbox: &str) {
        self.runtime.stop_sandbox(sandbox).await.expect("a sandbox can be stopped");
        self.runtime.remove_sandbox(sandbox).await.expect("a sandbox can be removed");
    }

    async fn state(&self, id: &str) -> wire::ContainerStatus {
        self.runtime.container_status(id).await.expect("the container has a status")
    }

    /// Waits until a container has ended. The machine may be slow.
    async fn ended(&self, id: &str) -> wire::ContainerStatus {
        for _ in 0..300 {
            let status = self.state(id).await;
            if status.state() == wire::ContainerState::ContainerExited {
                return status;
            }
            self.env.sleep(Duration::from_millis(100)).await;
        }
        panic!("container {id} does not end");
    }
}

async fn lives(b: Bench) {
    let pod = b.pod("lives", 0);
    let sandbox = b.sandbox(&pod).await;
    let id = b
        .runtime
        .create_container(&sandbox, b.container(&pod, "c", &["sleep", "3600"]), pod.clone())
        .await
        .unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(b.state(&id).await.state(), wire::ContainerState::ContainerCreated);
    b.runtime.start_container(&id).await.expect("it starts");
    let status = b.state(&id).await;
    assert_eq!(status.state(), wire::ContainerState::ContainerRunning);
    assert!(status.started_at >= status.created_at && status.created_at > 0, "{status:?}");
    assert!(b.runtime.start_container(&id).await.is_err(), "it starts once only");
    b.runtime.stop_container(&id, Duration::ZERO).await.expect("it stops");
    let status = b.ended(&id).await;
    assert!(status.finished_at >= status.started_at, "{status:?}");
    b.runtime.remove_container(&id).await.expect("it is removed");
    assert!(b.runtime.container_status(&id).await.is_err_and(|e| e.is_not_found()));
    b.gone(&sandbox).await;
    assert!(b.runtime.sandbox_status(&sandbox).await.is_err_and(|e| e.is_not_found()));
}

async fn exit_codes(b: Bench) {
    let pod = b.pod("codes", 0);
    let sandbox = b.sandbox(&pod).await;
    for (name, code, reason) in [("zero", "0", "Completed"), ("seven", "7", "Error")] {
        let id = b.started(&sandbox, &pod, name, &["exit", code]).await;
        let status = b.ended(&id).await;
        assert_eq!((status.exit_code.to_string().as_str(), status.reason.as_str()), (code, reason));
    }
    b.gone(&sandbox).await;
}

async fn stopping(b: Bench) {
    let pod = b.pod("stopping", 0);
    let sandbox = b.sandbox(&pod).await;
    let id = b.started(&sandbox, &pod, "c", &["sleep", "3600"]).await;
    let (first, second) =
        tokio::join!(b.runtime.stop_container(&id, Duration::from_secs(1)), b.runtime.stop_container(&id, Duration::ZERO));
    first.and(second).expect("both are served");
    let status = b.ended(&id).await;
    assert_ne!(status.exit_code, 0, "{status:?}");
    b.runtime.stop_container(&id, Duration::from_secs(1)).await.expect("an ended container is stopped already");
    assert_eq!(b.state(&id).await.finished_at, status.finished_at, "and stays as it ended");
    b.gone(&sandbox).await;
}

async fn names(b: Bench) {
    let pod = b.pod("names", 0);
    let sandbox = b.sandbox(&pod).await;
    let again = b.runtime.run_sandbox(pod.clone(), String::new()).await;
    assert!(matches!(again, Err(RuntimeError::AlreadyExists(_))), "{again:?}");
    let other = b.sandbox(&b.pod("names", 1)).await;
    assert_ne!(sandbox, other, "another attempt is another sandbox");
    b.started(&sandbox, &pod, "c", &["sleep", "3600"]).await;
    let again = b.runtime.create_container(&sandbox, b.container(&pod, "c", &[]), pod.clone()).await;
    assert!(matches!(again, Err(RuntimeError::AlreadyExists(_))), "{again:?}");
    b.gone(&sandbox).await;
    b.gone(&other).await;
}

async fn absent(b: Bench) {
    assert!(b.runtime.sandbox_status("no-such").await.is_err_and(|e| e.is_not_found()));
    assert!(b.runtime.container_status("no-such").await.is_err_and(|e| e.is_not_found()));
    assert!(b.runtime.create_container("no-such", b.container(&b.pod("x", 0), "c", &[]), b.pod("x", 0)).await.is_err());
    assert!(b.runtime.start_container("no-such").await.is_err());
    for idempotent in [
        b.runtime.stop_sandbox("no-such").await,
        b.runtime.remove_sandbox("no-such").await,
        b.runtime.stop_container("no-such", Duration::ZERO).await,
        b.runtime.remove_container("no-such").await,
        b.runtime.remove_image("kontiki.dev/no-such:1").await,
    ] {
        idempotent.expect("what is not there is gone already");
    }
}

async fn narrowed(b: Bench) {
    let (one, two) = (b.pod("one", 0), b.pod("two", 0));
    let (first, second) = (b.sandbox(&one).await, b.sandbox(&two).await);
    let id = b.started(&first, &one, "c", &["sleep", "3600"]).await;
    b.started(&second, &two, "c", &["sleep", "3600"]).await;
    let sandboxes = b.runtime.list_sandboxes(Some("uid-one")).await.expect("a list");
    assert_eq!(sandboxes.iter().map(|s| s.id.as_str()).collect::<Vec<_>>(), [first.as_str()]);
    let containers = b.runtime.list_containers(Some("uid-one")).await.expect("a list");
    assert_eq!(containers.iter().map(|c| (c.id.as_str(), c.pod_sandbox_id.as_str())).collect::<Vec<_>>(), [(id.as_str(), first.as_str())]);
    let all = b.runtime.list_sandboxes(None).await.expect("a list");
    assert!([&first, &second].iter().all(|id| all.iter().any(|s| s.id == **id)));
    b.gone(&first).await;
    b.gone(&second).await;
    assert!(b.runtime.list_containers(Some("uid-one")).await.expect("a list").is_empty());
}

async fn addresses(b: Bench) {
    let mut ips = std::collections::BTreeSet::new();
    let mut sandboxes = Vec::new();
    for name in ["a", "b", "c"] {
        let sandbox = b.sandbox(&b.pod(name, 0)).await;
        let ip = b.runtime.sandbox_status(&sandbox).await.expect("a status").network.expect("a network").ip;
        assert!(ip.parse::<std::net::IpAddr>().is_ok() && ips.insert(ip.clone()), "{ip} in {ips:?}");
        sandboxes.push(sandbox);
    }
    for sandbox in sandboxes {
        b.gone(&sandbox).await;
    }
}

async fn sandbox_stop(b: Bench) {
    let pod = b.pod("stop", 0);
    let sandbox = b.sandbox(&pod).await;
    let id = b.started(&sandbox, &pod, "c", &["sleep", "3600"]).await;
    b.runtime.stop_sandbox(&sandbox).await.expect("it stops");
    b.runtime.stop_sandbox(&sandbox).await.expect("and stops again");
    assert_eq!(b.ended(&id).await.state(), wire::ContainerState::ContainerExited);
    assert_eq!(b.runtime.sandbox_status(&sandbox).await.expect("a status").state(), wire::PodSandboxState::SandboxNotready);
    let late = b.runtime.create_container(&sandbox, b.container(&pod, "late", &[]), pod.clone()).await;
    assert!(late.is_err(), "nothing is made in a stopped sandbox");
    b.runtime.remove_sandbox(&sandbox).await.expect("it is removed");
    assert!(b.runtime.container_status(&id).await.is_err_and(|e| e.is_not_found()), "with its containers");
}

async fn images(b: Bench) {
    let absent = "kontiki.dev/never-built:9";
    assert_eq!(b.runtime.image_status(absent).await.expect("an answer").map(|i| i.id), None);
    let present = b.runtime.image_status(&b.image).await.expect("an answer").expect("the image of the bench");
    assert!(present.repo_tags.contains(&b.image) && present.size > 0, "{present:?}");
    assert!(b.runtime.list_images().await.expect("a list").iter().any(|i| i.id == present.id));
    let pod = b.pod("images", 0);
    let sandbox = b.sandbox(&pod).await;
    let mut config = b.container(&pod, "c", &[]);
    config.image = Some(wire::ImageSpec { image: absent.into(), ..Default::default() });
    let made = b.runtime.create_container(&sandbox, config, pod.clone()).await;
    assert!(made.as_ref().is_err_and(RuntimeError::is_not_found), "{made:?}");
    b.gone(&sandbox).await;
}

async fn commands(b: Bench) {
    let pod = b.pod("commands", 0);
    let sandbox = b.sandbox(&pod).await;
    let id = b.started(&sandbox, &pod, "c", &["sleep", "3600"]).await;
    let run = |words: &[&str], seconds| {
        let words = words.iter().map(|&w| w.to_owned()).collect();
        b.runtime.exec_sync(&id, words, Duration::from_secs(seconds))
    };
    assert_eq!(run(&["/demo", "exit", "0"], 20).await.expect("it runs").exit_code, 0);
    assert_eq!(run(&["/demo", "exit", "5"], 20).await.expect("it runs").exit_code, 5);
    let slow = run(&["/demo", "sleep", "60"], 1).await;
    assert!(matches!(slow, Err(RuntimeError::Timeout(_))), "{slow:?}");
    b.runtime.stop_container(&id, Duration::ZERO).await.expect("it stops");
    assert!(run(&["/demo", "exit", "0"], 20).await.is_err(), "nothing runs in an ended container");
    b.gone(&sandbox).await;
}

async fn log_format(b: Bench) {
    let pod = b.pod("logs", 0);
    let sandbox = b.sandbox(&pod).await;
    let id = b.started(&sandbox, &pod, "c", &["serve"]).await;
    for attempt in 0.. {
        let text = match b.runtime.log_source(&id).await.expect("it has a log") {
            LogSource::Memory(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            LogSource::File(path) => std::fs::read_to_string(path).unwrap_or_default(),
        };
        if let Some(line) = text.lines().next() {
            let parts: Vec<&str> = line.splitn(4, ' ').collect();
            assert!(parse_nanos(parts[0]).is_some(), "{line}");
            assert_eq!((parts[1], parts[2]), ("stdout", "F"), "{line}");
            assert!(!parts[3].is_empty(), "{line}");
            break;
        }
        assert!(attempt < 100, "nothing is in the log");
        b.env.sleep(Duration::from_millis(100)).await;
    }
    b.gone(&sandbox).await;
}

#[cfg(test)]
mod tests {
    use super::super::hollow::{HollowOptions, HollowRuntime};
    use super::*;

    const IMAGE: &str = "kontiki.dev/demo:1";

    fn options() -> HollowOptions {
        let short = Duration::from_millis(1);
        HollowOptions { images: vec![IMAGE.into()], sandbox: short, start: short, stop: short, pull: short }
    }

    #[tokio::test]
    async fn the_simulated_runtime_keeps_all_laws() {
        let env: Arc<dyn Env> = Arc::new(kontiki_proto::env::SystemEnv::new());
        keeps_all_laws(env.clone(), HollowRuntime::new(env, options())).await;
    }

    #[tokio::test]
    async fn the_simulated_runtime_with_a_ledger_keeps_all_laws() {
        let env: Arc<dyn Env> = Arc::new(kontiki_proto::env::SystemEnv::new());
        let dir = tempfile::tempdir().unwrap();
        keeps_all_laws(env.clone(), HollowRuntime::open(env, options(), &dir.path().join("ledger")).unwrap()).await;
    }

    async fn keeps_all_laws(env: Arc<dyn Env>, runtime: HollowRuntime) {
        let (image, runtime) = (IMAGE.to_owned(), Arc::new(runtime));
        runtime.set_pod_cidr("10.1.0.0/24").await.unwrap();
        let bench =
            Bench { runtime: Arc::clone(&runtime) as Arc<dyn PodRuntime>, env, image, log_dir: "/logs".into(), cgroup_parent: "/k".into() };
        for (name, law) in LAWS {
            eprintln!("{name}");
            law(bench.clone()).await;
            assert!(runtime.list_sandboxes(None).await.unwrap().is_empty(), "{name}: leaves something behind");
        }
    }
}
