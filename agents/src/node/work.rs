//! Carries out one step of a pod. Owns no state: what it needs comes with the step, what came of it goes back to the loop.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Pod};
use kontiki_base::env::Env;
use kontiki_proto::cri as wire;

use super::container_config::{self, NodeSide, Prepared};
use super::env::{Situation, variables};
use super::events::Events;
use super::lifecycle::decide::Step;
use super::lifecycle::memory::Op;
use super::lifecycle::seen::PodSeen;
use super::lifecycle::{container, spec};
use super::objects::Objects;
use super::probes::{self, Target};
use super::runtime::{PodRuntime, RuntimeError};
use super::volumes;

/// Everything that steps need of the node.
pub struct Workshop {
    /// What runs pods.
    pub runtime: Arc<dyn PodRuntime>,
    /// Clock, tasks, randomness.
    pub env: Arc<dyn Env>,
    /// Objects that pods refer to.
    pub objects: Objects,
    /// Kubernetes events.
    pub events: Events,
    /// The agent's directory.
    pub data_dir: PathBuf,
    /// What of the node goes into configurations.
    pub node: NodeSide,
    /// The node's address.
    pub node_ip: String,
    /// What the node can give away: millicores, bytes.
    pub allocatable: (i64, i64),
}

/// Why a step failed: reason and message as a waiting container shows them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepError {
    /// `ErrImagePull`, `CreateContainerConfigError`…
    pub reason: &'static str,
    /// In the words of whoever refused.
    pub message: String,
}

fn failed(reason: &'static str, error: impl std::fmt::Display) -> StepError {
    StepError { reason, message: error.to_string() }
}

/// What a step is done for.
#[derive(Clone)]
pub struct Job {
    /// The pod.
    pub pod: Arc<Pod>,
    /// How it looked when the step was decided.
    pub seen: Arc<PodSeen>,
}

impl Job {
    fn uid(&self) -> &str {
        self.pod.metadata.uid.as_deref().unwrap_or_default()
    }
}

/// The name under which a step is in flight.
pub fn op_of(step: &Step) -> Option<Op> {
    match step {
        Step::PrepareVolumes => Some(Op::Volumes),
        Step::CreateSandbox { .. } => Some(Op::Sandbox),
        Step::PullImage { name } => Some(Op::Pull(name.clone())),
        Step::StartContainer { name, .. } => Some(Op::Start(name.clone())),
        Step::StopContainer { id, .. } => Some(Op::Stop(id.clone())),
        Step::StopSandbox { id } => Some(Op::StopSandbox(id.clone())),
        Step::Prune { .. } => Some(Op::Prune),
        Step::CleanUp => Some(Op::CleanUp),
        Step::GiveUp(_) => None,
    }
}

impl Workshop {
    /// Carries out a step.
    pub async fn carry_out(&self, job: &Job, step: Step) -> Result<(), StepError> {
        match step {
            Step::PrepareVolumes => self.prepare_volumes(job).await,
            Step::CreateSandbox { attempt } => self.create_sandbox(job, attempt).await,
            Step::PullImage { name } => self.pull(job, &name).await,
            Step::StartContainer { name, attempt, sandbox } => self.start(job, &name, attempt, &sandbox).await,
            Step::StopContainer { id, name, grace, why } => self.stop(job, &id, &name, grace, &why).await,
            Step::StopSandbox { id } => self.runtime.stop_sandbox(&id).await.map_err(|e| failed("FailedKillPod", e)),
            Step::Prune { containers, sandboxes } => self.prune(containers, sandboxes).await,
            Step::CleanUp => self.clean_up(job).await,
            Step::GiveUp(_) => Ok(()),
        }
    }

    fn situation(&self, job: &Job) -> Situation {
        let on_host = spec(&job.pod).host_network == Some(true);
        let pod_ips = if on_host { vec![self.node_ip.clone()] } else { job.seen.sandbox().map(|s| s.ips.clone()).unwrap_or_default() };
        Situation { host_ip: self.node_ip.clone(), pod_ips, allocatable: self.allocatable }
    }

    async fn prepare_volumes(&self, job: &Job) -> Result<(), StepError> {
        if self.runtime.simulated() {
            return Ok(());
        }
        let made = volumes::prepare(&job.pod, &self.data_dir, &self.situation(job), &self.objects).await;
        made.map_err(|e| {
            self.events.about(&job.pod, None, "Warning", "FailedMount", &e.to_string());
            failed("ContainerCreating", e)
        })
    }

    async fn create_sandbox(&self, job: &Job, attempt: u32) -> Result<(), StepError> {
        let config = container_config::sandbox(&job.pod, attempt, &self.data_dir, &self.node);
        let handler = spec(&job.pod).runtime_class_name.clone().unwrap_or_default();
        match self.runtime.run_sandbox(config, handler).await {
            // A sandbox of this attempt is there already: the agent died while it was being made, and the next look finds it.
            Ok(_) | Err(RuntimeError::AlreadyExists(_)) => Ok(()),
            Err(e) => {
                let message = format!("Failed to create pod sandbox: {e}");
                self.events.about(&job.pod, None, "Warning", "FailedCreatePodSandBox", &message);
                Err(failed("ContainerCreating", message))
            }
        }
    }

    async fn pull(&self, job: &Job, name: &str) -> Result<(), StepError> {
        let Some(c) = container(&job.pod, name) else { return Ok(()) };
        let image = c.image.as_deref().unwrap_or_default();
        if image.is_empty() || image.contains(char::is_whitespace) || image.contains("//") {
            return Err(failed("InvalidImageName", format!("Failed to apply default image tag {image:?}: couldn't parse image name")));
        }
        let present = self.runtime.image_status(image).await.map_err(|e| failed("ImageInspectError", e))?.is_some();
        let policy = c.image_pull_policy.as_deref().unwrap_or(default_policy(image));
        match (policy, present) {
            ("Never", false) => {
                return Err(failed("ErrImageNeverPull", format!("Container image {image:?} is not present with pull policy of Never")));
            }
            ("Never" | "IfNotPresent", true) => {
                let message = format!("Container image {image:?} already present on machine");
                self.events.about(&job.pod, Some(name), "Normal", "Pulled", &message);
                return Ok(());
            }
            _ => {}
        }
        self.events.about(&job.pod, Some(name), "Normal", "Pulling", &format!("Pulling image {image:?}"));
        let auth = self.pull_secret(&job.pod, image).await;
        let from = self.env.now_mono();
        match self.runtime.pull_image(image, auth).await {
            Ok(_) => {
                let took = self.env.now_mono().since(from);
                self.events.about(&job.pod, Some(name), "Normal", "Pulled", &format!("Successfully pulled image {image:?} in {took:.1?}"));
                Ok(())
            }
            Err(e) => {
                let message = format!("failed to pull image {image:?}: {e}");
                self.events.about(&job.pod, Some(name), "Warning", "Failed", &message);
                Err(failed("ErrImagePull", message))
            }
        }
    }

    /// The credentials for an image's registry from the pod's pull secrets.
    async fn pull_secret(&self, pod: &Pod, image: &str) -> Option<wire::AuthConfig> {
        use base64::Engine as _;
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        for reference in spec(pod).image_pull_secrets.iter().flatten() {
            let key = kontiki_base::object::ObjectKey::new(namespace, &reference.name);
            let Ok(Some(secret)) = self.objects.get(kontiki_control::Kind::Secret, &key).await else { continue };
            let entries = super::env::entries(kontiki_control::Kind::Secret, &secret);
            let Some(config) = entries.get(".dockerconfigjson").and_then(|b| serde_json::from_slice::<serde_json::Value>(b).ok()) else {
                continue;
            };
            let found = config["auths"].as_object().into_iter().flatten().find(|(server, _)| {
                let server = server.trim_start_matches("https://").trim_end_matches('/');
                image.starts_with(server)
            });
            let Some((server, auth)) = found else { continue };
            let word = |field: &str| auth[field].as_str().unwrap_or_default().to_owned();
            let mut credentials = wire::AuthConfig {
                username: word("username"),
                password: word("password"),
                server_address: server.clone(),
                ..Default::default()
            };
            if credentials.username.is_empty() {
                let decoded = base64::engine::general_purpose::STANDARD.decode(word("auth")).ok().and_then(|b| String::from_utf8(b).ok());
                if let Some((user, password)) = decoded.as_deref().and_then(|d| d.split_once(':')) {
                    (credentials.username, credentials.password) = (user.to_owned(), password.to_owned());
                }
            }
            return Some(credentials);
        }
        None
    }

    async fn start(&self, job: &Job, name: &str, attempt: u32, sandbox: &str) -> Result<(), StepError> {
        let Some(c) = container(&job.pod, name) else { return Ok(()) };
        let prepared = self.prepare_container(job, c, attempt).await?;
        let config = container_config::container(&job.pod, c, attempt, &self.node, prepared);
        let sandbox_attempt = job.seen.sandbox().map_or(0, |s| s.attempt);
        let sandbox_config = container_config::sandbox(&job.pod, sandbox_attempt, &self.data_dir, &self.node);
        let created = self.runtime.create_container(sandbox, config, sandbox_config).await;
        let id = match created {
            Ok(id) => id,
            Err(RuntimeError::AlreadyExists(_)) => return Err(failed("CreateContainerError", "a container of this name is being made")),
            Err(e) => {
                self.events.about(&job.pod, Some(name), "Warning", "Failed", &format!("Error: {e}"));
                return Err(failed("CreateContainerError", e));
            }
        };
        self.events.about(&job.pod, Some(name), "Normal", "Created", &format!("Created container {name}"));
        if let Err(e) = self.runtime.start_container(&id).await {
            self.events.about(&job.pod, Some(name), "Warning", "Failed", &format!("Error: {e}"));
            return Err(failed("RunContainerError", e));
        }
        self.events.about(&job.pod, Some(name), "Normal", "Started", &format!("Started container {name}"));
        self.post_start(job, c, &id, sandbox).await
    }

    async fn post_start(&self, job: &Job, c: &Container, id: &str, sandbox: &str) -> Result<(), StepError> {
        let Some(handler) = c.lifecycle.as_ref().and_then(|l| l.post_start.as_ref()) else { return Ok(()) };
        let target = self.target(job, id, sandbox);
        let grace = Duration::from_secs(u64::try_from(spec(&job.pod).termination_grace_period_seconds.unwrap_or(30)).unwrap_or(30));
        // A hook may take as long as it likes; one that hangs would hang the container, so there is an end to patience.
        let outcome = probes::hook(self.runtime.as_ref(), &self.env, c, handler, &target, Duration::from_secs(600)).await;
        let Err(said) = outcome else { return Ok(()) };
        self.events.about(&job.pod, Some(&c.name), "Warning", "FailedPostStartHook", &format!("PostStartHook failed: {said}"));
        self.runtime.stop_container(id, grace).await.map_err(|e| failed("PostStartHookError", e))?;
        Err(failed("PostStartHookError", said))
    }

    fn target(&self, job: &Job, id: &str, sandbox: &str) -> Target {
        let ip = self.situation(job).pod_ips.first().cloned().unwrap_or_default();
        Target { container_id: id.to_owned(), sandbox: sandbox.to_owned(), ip }
    }

    async fn prepare_container(&self, job: &Job, c: &Container, attempt: u32) -> Result<Prepared, StepError> {
        if self.runtime.simulated() {
            return Ok(Prepared::default());
        }
        let bad = |e: &dyn std::fmt::Display| {
            self.events.about(&job.pod, Some(&c.name), "Warning", "Failed", &format!("Error: {e}"));
            failed("CreateContainerConfigError", e)
        };
        let image = self.runtime.image_status(c.image.as_deref().unwrap_or_default()).await.map_err(|e| failed("ImageInspectError", e))?;
        container_config::check_user(&job.pod, c, &image.unwrap_or_default()).map_err(|e| bad(&e))?;
        let env = variables(&job.pod, c, &self.situation(job), &self.objects).await.map_err(|e| bad(&e))?;
        let known: BTreeMap<String, String> = env.iter().cloned().collect();
        let mut mounts = volumes::mounts(&job.pod, c, &self.data_dir, &known).map_err(|e| bad(&e))?;
        let own = self.own_files(job, c, attempt, &mut mounts).map_err(|e| bad(&e))?;
        Ok(Prepared { env, mounts, message_file: own.to_string_lossy().into_owned() })
    }

    /// The files that every container gets: `/etc/hosts`, and the termination message. Gives the path of the latter.
    fn own_files(&self, job: &Job, c: &Container, attempt: u32, mounts: &mut Vec<wire::Mount>) -> std::io::Result<PathBuf> {
        let dir = volumes::pod_dir(&self.data_dir, job.uid());
        let message = dir.join("containers").join(&c.name).join(attempt.to_string());
        if let Some(parent) = message.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::write(&message, [])?;
        // Whatever user the container runs as must be able to write it.
        std::fs::set_permissions(&message, std::os::unix::fs::PermissionsExt::from_mode(0o666))?;
        let mut add = |host: &Path, path: &str| {
            let (host_path, container_path) = (host.to_string_lossy().into_owned(), path.to_owned());
            mounts.push(wire::Mount { host_path, container_path, ..Default::default() });
        };
        add(&message, c.termination_message_path.as_deref().unwrap_or("/dev/termination-log"));
        let taken = c.volume_mounts.iter().flatten().any(|m| m.mount_path == "/etc/hosts");
        if spec(&job.pod).host_network != Some(true) && !taken {
            let hosts = dir.join("etc-hosts");
            std::fs::write(&hosts, hosts_file(&job.pod, &self.situation(job).pod_ips))?;
            add(&hosts, "/etc/hosts");
        }
        Ok(message)
    }

    async fn stop(&self, job: &Job, id: &str, name: &str, grace: i64, why: &str) -> Result<(), StepError> {
        let message = if why == "Stopping container" { format!("Stopping container {name}") } else { why.to_owned() };
        self.events.about(&job.pod, Some(name), "Normal", "Killing", &message);
        let started = self.env.now_mono();
        let whole = Duration::from_secs(u64::try_from(grace).unwrap_or(0));
        let hook = container(&job.pod, name).and_then(|c| Some((c, c.lifecycle.as_ref()?.pre_stop.as_ref()?)));
        if let (Some((c, handler)), true) = (hook, grace > 0) {
            let sandbox = job.seen.sandbox().map(|s| s.id.clone()).unwrap_or_default();
            let target = self.target(job, id, &sandbox);
            let outcome = tokio::select! {
                outcome = probes::hook(self.runtime.as_ref(), &self.env, c, handler, &target, whole) => outcome,
                () = self.env.sleep(whole) => Err("it did not end within the grace period".to_owned()),
            };
            if let Err(said) = outcome {
                self.events.about(&job.pod, Some(name), "Warning", "FailedPreStopHook", &format!("PreStopHook failed: {said}"));
            }
        }
        // The hook counts into the grace, but two seconds are always left for the stop signal.
        let least = whole.min(Duration::from_secs(2));
        let left = whole.saturating_sub(self.env.now_mono().since(started)).max(least);
        self.runtime.stop_container(id, left).await.map_err(|e| failed("FailedKillPod", e))
    }

    async fn prune(&self, containers: Vec<String>, sandboxes: Vec<String>) -> Result<(), StepError> {
        for id in containers {
            self.runtime.remove_container(&id).await.map_err(|e| failed("FailedPrune", e))?;
        }
        for id in sandboxes {
            self.runtime.stop_sandbox(&id).await.map_err(|e| failed("FailedPrune", e))?;
            self.runtime.remove_sandbox(&id).await.map_err(|e| failed("FailedPrune", e))?;
        }
        Ok(())
    }

    async fn clean_up(&self, job: &Job) -> Result<(), StepError> {
        let bad = |e: &dyn std::fmt::Display| failed("FailedCleanUp", e);
        for sandbox in &job.seen.sandboxes {
            self.runtime.stop_sandbox(&sandbox.id).await.map_err(|e| bad(&e))?;
            self.runtime.remove_sandbox(&sandbox.id).await.map_err(|e| bad(&e))?;
        }
        for container in &job.seen.containers {
            self.runtime.remove_container(&container.id).await.map_err(|e| bad(&e))?;
        }
        if self.runtime.simulated() {
            return Ok(());
        }
        volumes::remove(&self.data_dir, job.uid()).await.map_err(|e| bad(&e))?;
        let logs = container_config::log_directory(&self.data_dir, &job.pod);
        match tokio::fs::remove_dir_all(&logs).await {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(bad(&e)),
            _ => {}
        }
        for class in [String::new(), "/burstable".to_owned(), "/besteffort".to_owned()] {
            remove_cgroup(&format!("{}{class}/pod{}", self.node.cgroup_parent, job.uid()));
        }
        Ok(())
    }
}

/// `Always` for images without a tag or tagged `latest`, as the API fills it in.
fn default_policy(image: &str) -> &'static str {
    let last = image.rsplit('/').next().unwrap_or(image);
    let tag = last.split('@').next().and_then(|name| name.split_once(':')).map(|(_, tag)| tag);
    if !last.contains('@') && matches!(tag, None | Some("latest")) { "Always" } else { "IfNotPresent" }
}

fn hosts_file(pod: &Pod, ips: &[String]) -> String {
    let mut text = String::from("# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    let name = container_config::hostname(pod);
    for ip in ips {
        match &spec(pod).subdomain {
            Some(sub) => {
                let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
                text.push_str(&format!("{ip}\t{name}.{sub}.{namespace}.svc.cluster.local\t{name}\n"));
            }
            None => text.push_str(&format!("{ip}\t{name}\n")),
        }
    }
    for alias in spec(pod).host_aliases.iter().flatten() {
        text.push_str(&format!("{}\t{}\n", alias.ip, alias.hostnames.clone().unwrap_or_default().join("\t")));
    }
    text
}

/// Removes a pod's directory from every cgroup hierarchy; the runtime makes it and leaves it behind. Busy ones are left: the next
/// clean-up of the node finds them.
fn remove_cgroup(path: &str) {
    let info = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let is_cgroup = |line: &&str| line.split_once(" - ").is_some_and(|(_, tail)| tail.starts_with("cgroup"));
    for mount in info.lines().filter(is_cgroup).filter_map(|line| line.split(' ').nth(4)) {
        let dir = Path::new(mount).join(path.trim_start_matches('/'));
        let children = std::fs::read_dir(&dir).into_iter().flatten().flatten().filter(|e| e.path().is_dir());
        for child in children {
            let _ = std::fs::remove_dir(child.path());
        }
        let _ = std::fs::remove_dir(&dir);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pull_policy_follows_the_tag() {
        let table = [
            ("x", "Always"),
            ("x:latest", "Always"),
            ("x:1", "IfNotPresent"),
            ("h:5000/x", "Always"),
            ("h:5000/x:1", "IfNotPresent"),
            ("x@sha256:0", "IfNotPresent"),
        ];
        for (image, policy) in table {
            assert_eq!(default_policy(image), policy, "{image}");
        }
    }

    #[test]
    fn hosts_name_the_pod() {
        let pod: Pod = serde_json::from_str(
            r#"{"metadata":{"name":"p"},"spec":{"containers":[],"hostAliases":[{"ip":"9.9.9.9","hostnames":["a","b"]}]}}"#,
        )
        .unwrap();
        let text = hosts_file(&pod, &["10.0.0.2".to_owned()]);
        assert!(text.contains("10.0.0.2\tp\n") && text.contains("9.9.9.9\ta\tb\n"), "{text}");
    }
}
