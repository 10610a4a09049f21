//! Simulated pods: a [`PodRuntime`] without processes, for thousands of nodes in one process and for tests of everything above it.
//!
//! Nothing runs between calls: the state of a container is a function of its plan and of the clock, so an idle hollow pod costs a few
//! hundred bytes and no CPU. How a pod behaves is said by annotations on it; see [`behaviour`]. Beside that the runtime knows the
//! words of the demo program (`exit 3`, `sleep 5`), so that one test suite fits this runtime and real ones.
//!
//! With a file ([`HollowRuntime::open`]) pods outlive the agent, as real ones do.

mod ledger;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use kontiki_base::BoxFuture;
use kontiki_base::env::Env;
use kontiki_proto::cri as wire;

use self::ledger::{Ledger, Line};
use super::{Answer, ExecOutput, LogSource, NetProbe, PodRuntime, Readiness, RuntimeError, label};
use crate::node::time::rfc3339_nanos;

/// Annotations of a pod that steer its simulation. A suffix `.NAME` aims at one container.
pub mod behaviour {
    /// Prefix of all of them.
    pub const PREFIX: &str = "hollow.kontiki.dev/";
    /// Milliseconds that a container takes to start.
    pub const START_MS: &str = "start-ms";
    /// Milliseconds after which a container exits by itself; absent: it runs on.
    pub const EXIT_AFTER_MS: &str = "exit-after-ms";
    /// The exit code then; absent: 0.
    pub const EXIT_CODE: &str = "exit-code";
    /// Milliseconds that a container takes to end after the stop signal; more than the grace means it is killed.
    pub const STOP_MS: &str = "stop-ms";
    /// `false`: network probes of the pod fail.
    pub const READY: &str = "ready";
    /// Millicores that a container appears to use.
    pub const CPU_MILLIS: &str = "cpu-millis";
    /// Mebibytes that a container appears to use.
    pub const MEMORY_MIB: &str = "memory-mib";
}

/// The file in a node's data directory that its simulated pods are written to; see [`HollowRuntime::open`]. One small line for each change
/// of a pod, appended where the change is made.
pub const LEDGER: &str = "hollow.jsonl";

/// How a hollow node behaves where a pod does not say otherwise.
#[derive(Clone, Debug)]
pub struct HollowOptions {
    /// Time that a pull takes.
    pub pull: Duration,
    /// Time that a sandbox with its network takes.
    pub sandbox: Duration,
    /// Time that a container takes to start.
    pub start: Duration,
    /// Time that a container takes to end after the stop signal.
    pub stop: Duration,
    /// Images that are there from the beginning.
    pub images: Vec<String>,
}

impl Default for HollowOptions {
    fn default() -> Self {
        Self {
            pull: Duration::from_millis(300),
            sandbox: Duration::from_millis(150),
            start: Duration::from_millis(90),
            stop: Duration::from_millis(50),
            images: Vec::new(),
        }
    }
}

#[derive(Debug)]
struct Sandbox {
    config: wire::PodSandboxConfig,
    created_ms: i64,
    ready: bool,
    ip: Option<Ipv4Addr>,
    handler: String,
}

#[derive(Debug)]
struct Container {
    sandbox: String,
    config: wire::ContainerConfig,
    created_ms: i64,
    started_ms: Option<i64>,
    /// When it ends and how; may lie in the future. Not set: it runs on.
    end: Option<(i64, i32)>,
}

#[derive(Debug, Default)]
struct State {
    sandboxes: BTreeMap<String, Sandbox>,
    containers: BTreeMap<String, Container>,
    images: BTreeMap<String, u64>,
    cidr: Option<(Ipv4Addr, u32)>,
    /// The address that was given last.
    last_ip: Option<Ipv4Addr>,
    serial: u64,
    /// What outlives this process, if anything does.
    ledger: Option<Ledger>,
}

/// A node's worth of simulated pods.
pub struct HollowRuntime {
    env: Arc<dyn Env>,
    options: HollowOptions,
    state: Mutex<State>,
}

impl HollowRuntime {
    /// An empty node.
    pub fn new(env: Arc<dyn Env>, options: HollowOptions) -> Self {
        let images = options.images.iter().map(|name| (name.clone(), 1 << 20)).collect();
        Self { env, options, state: Mutex::new(State { images, ..State::default() }) }
    }

    /// A node that has what an earlier process of it left in this file, and goes on writing there what changes.
    ///
    /// # Errors
    /// The file cannot be read or written.
    pub fn open(env: Arc<dyn Env>, options: HollowOptions, path: &Path) -> std::io::Result<Self> {
        let node = Self::new(env, options);
        let now = node.now();
        {
            let mut state = node.lock();
            let ledger = Ledger::open(path, &mut state, &ledger::boot_id(), now)?;
            state.ledger = Some(ledger);
        }
        Ok(node)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock can panic")
    }

    fn now(&self) -> i64 {
        self.env.now_wall().0
    }

    /// What the pod's annotations say about `key`, for one container of it.
    fn setting<T: std::str::FromStr>(config: &wire::PodSandboxConfig, container: &str, key: &str) -> Option<T> {
        let own = config.annotations.get(&format!("{}{key}.{container}", behaviour::PREFIX));
        own.or_else(|| config.annotations.get(&format!("{}{key}", behaviour::PREFIX)))?.parse().ok()
    }
}

/// How long the container's command runs and how it ends, if it is one of the demo program's words.
fn plan_of_command(config: &wire::ContainerConfig) -> Option<(i64, i32)> {
    let mut words = config.command.iter().chain(&config.args).skip_while(|w| w.starts_with('/'));
    match (words.next()?.as_str(), words.next()) {
        ("exit", code) => Some((0, code.and_then(|c| c.parse().ok()).unwrap_or(0))),
        ("sleep", Some(seconds)) => Some((seconds.parse::<i64>().ok()?.saturating_mul(1_000), 0)),
        _ => None,
    }
}

impl Container {
    fn state(&self, now: i64) -> wire::ContainerState {
        match (self.started_ms, self.end) {
            (_, Some((at, _))) if at <= now => wire::ContainerState::ContainerExited,
            (Some(_), _) => wire::ContainerState::ContainerRunning,
            (None, _) => wire::ContainerState::ContainerCreated,
        }
    }

    /// Ends at this time, if it does not end before. Says whether that changed anything.
    fn end_by(&mut self, at: i64, code: i32) -> bool {
        let sooner = self.end.is_none_or(|(end, _)| end > at);
        if sooner {
            self.end = Some((at, code));
        }
        sooner
    }

    fn name(&self) -> &str {
        self.config.metadata.as_ref().map_or("", |m| &m.name)
    }

    fn to_wire(&self, id: &str, now: i64) -> wire::Container {
        wire::Container {
            id: id.to_owned(),
            pod_sandbox_id: self.sandbox.clone(),
            metadata: self.config.metadata.clone(),
            image: self.config.image.clone(),
            image_ref: image_id(self.image()),
            state: self.state(now).into(),
            created_at: self.created_ms * 1_000_000,
            labels: self.config.labels.clone(),
            annotations: self.config.annotations.clone(),
            image_id: image_id(self.image()),
        }
    }

    fn image(&self) -> &str {
        self.config.image.as_ref().map_or("", |i| &i.image)
    }

    fn to_status(&self, id: &str, log_directory: &str, now: i64) -> wire::ContainerStatus {
        let state = self.state(now);
        let exited = state == wire::ContainerState::ContainerExited;
        let (finished, code) = if exited { self.end.unwrap_or((0, 0)) } else { (0, 0) };
        let reason = match (exited, code) {
            (false, _) => "",
            (true, 0) => "Completed",
            (true, _) => "Error",
        };
        wire::ContainerStatus {
            id: id.to_owned(),
            metadata: self.config.metadata.clone(),
            state: state.into(),
            created_at: self.created_ms * 1_000_000,
            started_at: self.started_ms.unwrap_or(0) * 1_000_000,
            finished_at: finished * 1_000_000,
            exit_code: code,
            image: self.config.image.clone(),
            image_ref: image_id(self.image()),
            image_id: image_id(self.image()),
            reason: reason.to_owned(),
            labels: self.config.labels.clone(),
            annotations: self.config.annotations.clone(),
            log_path: format!("{log_directory}/{}", self.config.log_path),
            ..Default::default()
        }
    }
}

/// A stand-in for a digest: stable per name, so that two nodes agree on it.
fn image_id(image: &str) -> String {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in image.bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    format!("sha256:{hash:016x}{:048x}", 0)
}

impl State {
    fn id(&mut self, kind: char) -> String {
        self.serial += 1;
        format!("{kind}{:012x}", self.serial)
    }

    fn write(&mut self, line: &Line) {
        if let Some(ledger) = &mut self.ledger {
            ledger.write(line);
        }
    }

    fn stop_sandbox(&mut self, id: &str, now: i64) {
        if let Some(sandbox) = self.sandboxes.get_mut(id) {
            sandbox.ready = false;
            sandbox.ip = None;
        }
        for container in self.containers.values_mut().filter(|c| c.sandbox == id) {
            container.end_by(now, 137);
        }
    }

    /// Removes a sandbox with its containers, or a container.
    fn remove(&mut self, id: &str) {
        self.sandboxes.remove(id);
        self.containers.retain(|own, c| own != id && c.sandbox != id);
    }

    /// The next address of the pod range, after the one that was given last, that no living sandbox has; network address and gateway are
    /// left out. Like the CNI plugin `host-local`, it goes round: the address of a pod that has just ended rests, because the API may
    /// still show it.
    fn free_ip(&mut self) -> Result<Ipv4Addr, RuntimeError> {
        let (base, bits) = self.cidr.ok_or_else(|| RuntimeError::Other("network is not ready: no pod CIDR".into()))?;
        let used: std::collections::BTreeSet<Ipv4Addr> = self.sandboxes.values().filter_map(|s| s.ip).collect();
        let size = 1_u32.checked_shl(32 - bits).unwrap_or(u32::MAX);
        let at = |n: u32| Ipv4Addr::from(u32::from(base).wrapping_add(n));
        let end = size.saturating_sub(1);
        let last = self.last_ip.map_or(0, |ip| u32::from(ip).wrapping_sub(u32::from(base)));
        let next = if (2..end).contains(&last) { last + 1 } else { 2 };
        let free = (next..end).chain(2..next).map(at).find(|ip| !used.contains(ip));
        self.last_ip = free.or(self.last_ip);
        free.ok_or_else(|| RuntimeError::Other(format!("no IP addresses available in range {base}/{bits}")))
    }

    fn container(&mut self, id: &str) -> Result<&mut Container, RuntimeError> {
        self.containers.get_mut(id).ok_or_else(|| RuntimeError::NotFound(format!("container {id:?}")))
    }

    fn sandbox(&self, id: &str) -> Result<&Sandbox, RuntimeError> {
        self.sandboxes.get(id).ok_or_else(|| RuntimeError::NotFound(format!("sandbox {id:?}")))
    }
}

fn matches(labels: &std::collections::HashMap<String, String>, uid: Option<&str>) -> bool {
    uid.is_none_or(|uid| labels.get(label::POD_UID).is_some_and(|l| l == uid))
}

fn parse_cidr(cidr: &str) -> Option<(Ipv4Addr, u32)> {
    let (base, bits) = cidr.split_once('/')?;
    let bits: u32 = bits.parse().ok().filter(|b| (1..=30).contains(b))?;
    Some((base.parse().ok()?, bits))
}

fn unstreamed<'a, T: Send + 'a>(what: &'static str) -> Answer<'a, T> {
    Box::pin(std::future::ready(Err(RuntimeError::Unimplemented(format!("{what}: the pods of this node are simulated")))))
}

impl PodRuntime for HollowRuntime {
    fn name(&self) -> &'static str {
        "hollow"
    }

    fn simulated(&self) -> bool {
        true
    }

    fn version(&self) -> Answer<'_, wire::VersionResponse> {
        Box::pin(std::future::ready(Ok(wire::VersionResponse {
            version: "0.1.0".into(),
            runtime_name: "hollow".into(),
            runtime_version: env!("CARGO_PKG_VERSION").into(),
            runtime_api_version: "v1".into(),
        })))
    }

    fn readiness(&self) -> Answer<'_, Readiness> {
        let network = self.lock().cidr.is_some();
        let message = if network { String::new() } else { "NetworkPluginNotReady: no pod CIDR yet".to_owned() };
        Box::pin(std::future::ready(Ok(Readiness { runtime: true, network, message })))
    }

    fn set_pod_cidr<'a>(&'a self, cidr: &'a str) -> Answer<'a, ()> {
        let parsed = parse_cidr(cidr).ok_or_else(|| RuntimeError::Invalid(format!("pod CIDR {cidr:?}")));
        Box::pin(std::future::ready(parsed.map(|cidr| self.lock().cidr = Some(cidr))))
    }

    fn list_sandboxes<'a>(&'a self, pod_uid: Option<&'a str>) -> Answer<'a, Vec<wire::PodSandbox>> {
        let state = self.lock();
        let chosen = state.sandboxes.iter().filter(|(_, s)| matches(&s.config.labels, pod_uid));
        let list = chosen.map(|(id, s)| wire::PodSandbox {
            id: id.clone(),
            metadata: s.config.metadata.clone(),
            state: sandbox_state(s).into(),
            created_at: s.created_ms * 1_000_000,
            labels: s.config.labels.clone(),
            annotations: s.config.annotations.clone(),
            runtime_handler: s.handler.clone(),
        });
        Box::pin(std::future::ready(Ok(list.collect())))
    }

    fn sandbox_status<'a>(&'a self, id: &'a str) -> Answer<'a, wire::PodSandboxStatus> {
        let state = self.lock();
        let status = state.sandbox(id).map(|s| wire::PodSandboxStatus {
            id: id.to_owned(),
            metadata: s.config.metadata.clone(),
            state: sandbox_state(s).into(),
            created_at: s.created_ms * 1_000_000,
            network: Some(wire::PodSandboxNetworkStatus {
                ip: s.ip.map(|ip| ip.to_string()).unwrap_or_default(),
                additional_ips: Vec::new(),
            }),
            labels: s.config.labels.clone(),
            annotations: s.config.annotations.clone(),
            ..Default::default()
        });
        Box::pin(std::future::ready(status))
    }

    fn run_sandbox(&self, config: wire::PodSandboxConfig, handler: String) -> Answer<'_, String> {
        Box::pin(async move {
            self.env.sleep(self.options.sandbox).await;
            let mut state = self.lock();
            if let Some((id, _)) = state.sandboxes.iter().find(|(_, s)| s.config.metadata == config.metadata) {
                return Err(RuntimeError::AlreadyExists(format!("sandbox name is reserved for {id:?}")));
            }
            let host = config.linux.as_ref().and_then(|l| l.security_context.as_ref()?.namespace_options.as_ref());
            let on_host = host.is_some_and(|o| o.network == i32::from(wire::NamespaceMode::Node));
            let ip = if on_host { None } else { Some(state.free_ip()?) };
            let id = state.id('s');
            let sandbox = Sandbox { config, created_ms: self.now(), ready: true, ip, handler };
            state.write(&sandbox.line(&id));
            state.sandboxes.insert(id.clone(), sandbox);
            Ok(id)
        })
    }

    fn stop_sandbox<'a>(&'a self, id: &'a str) -> Answer<'a, ()> {
        let now = self.now();
        let mut state = self.lock();
        // It is stopped again and again until it is removed: once is enough for the file.
        if state.sandboxes.get(id).is_some_and(|s| s.ready) {
            state.write(&Line::Stopped { id: id.to_owned(), at_ms: now });
        }
        state.stop_sandbox(id, now);
        Box::pin(std::future::ready(Ok(())))
    }

    fn remove_sandbox<'a>(&'a self, id: &'a str) -> Answer<'a, ()> {
        let now = self.now();
        let mut state = self.lock();
        if state.sandboxes.contains_key(id) {
            state.write(&Line::Gone { id: id.to_owned(), at_ms: now });
        }
        state.remove(id);
        Box::pin(std::future::ready(Ok(())))
    }

    fn list_containers<'a>(&'a self, pod_uid: Option<&'a str>) -> Answer<'a, Vec<wire::Container>> {
        let now = self.now();
        let state = self.lock();
        let chosen = state.containers.iter().filter(|(_, c)| matches(&c.config.labels, pod_uid));
        Box::pin(std::future::ready(Ok(chosen.map(|(id, c)| c.to_wire(id, now)).collect())))
    }

    fn container_status<'a>(&'a self, id: &'a str) -> Answer<'a, wire::ContainerStatus> {
        let now = self.now();
        let mut state = self.lock();
        let status = state.container(id).map(|c| (c.to_status(id, "", now), c.sandbox.clone()));
        let status = status.and_then(|(mut status, sandbox)| {
            status.log_path.insert_str(0, &state.sandbox(&sandbox)?.config.log_directory);
            Ok(status)
        });
        Box::pin(std::future::ready(status))
    }

    fn create_container<'a>(
        &'a self,
        sandbox: &'a str,
        config: wire::ContainerConfig,
        _sandbox_config: wire::PodSandboxConfig,
    ) -> Answer<'a, String> {
        let now = self.now();
        let mut state = self.lock();
        let image = config.image.as_ref().map_or("", |i| i.image.as_str());
        let found = state.sandbox(sandbox).and_then(|s| {
            let twin = state.containers.iter().find(|(_, c)| c.sandbox == sandbox && c.config.metadata == config.metadata);
            match twin {
                Some((id, _)) => Err(RuntimeError::AlreadyExists(format!("container name is reserved for {id:?}"))),
                None if !s.ready => Err(RuntimeError::NotFound(format!("sandbox {sandbox:?} is not running"))),
                None if !state.images.contains_key(image) => Err(RuntimeError::NotFound(format!("image {image:?}"))),
                None => Ok(()),
            }
        });
        let made = found.map(|()| {
            let id = state.id('c');
            let container = Container { sandbox: sandbox.to_owned(), config, created_ms: now, started_ms: None, end: None };
            let line = state.sandboxes.get(sandbox).map(|pod| container.line(&id, &pod.config));
            line.iter().for_each(|line| state.write(line));
            state.containers.insert(id.clone(), container);
            id
        });
        Box::pin(std::future::ready(made))
    }

    fn start_container<'a>(&'a self, id: &'a str) -> Answer<'a, ()> {
        Box::pin(async move {
            let delay = {
                let mut state = self.lock();
                let (sandbox, name) = state.container(id).map(|c| (c.sandbox.clone(), c.name().to_owned()))?;
                let config = &state.sandbox(&sandbox)?.config;
                Self::setting(config, &name, behaviour::START_MS).map_or(self.options.start, Duration::from_millis)
            };
            self.env.sleep(delay).await;
            let now = self.now();
            let mut state = self.lock();
            let (sandbox, name) = state.container(id).map(|c| (c.sandbox.clone(), c.name().to_owned()))?;
            let config = state.sandbox(&sandbox)?.config.clone();
            let after: Option<i64> = Self::setting(&config, &name, behaviour::EXIT_AFTER_MS);
            let code = Self::setting(&config, &name, behaviour::EXIT_CODE).unwrap_or(0);
            let container = state.container(id)?;
            if container.started_ms.is_some() || container.end.is_some() {
                return Err(RuntimeError::Other(format!("container {id:?} is not in created state")));
            }
            let plan = after.map(|ms| (ms, code)).or_else(|| plan_of_command(&container.config));
            container.started_ms = Some(now);
            container.end = plan.map(|(ms, code)| (now.saturating_add(ms), code));
            let line = Line::Started { id: id.to_owned(), at_ms: now, end: container.end };
            state.write(&line);
            Ok(())
        })
    }

    fn stop_container<'a>(&'a self, id: &'a str, grace: Duration) -> Answer<'a, ()> {
        Box::pin(async move {
            let wait = {
                let now = self.now();
                let mut state = self.lock();
                let Some(sandbox) = state.containers.get(id).map(|c| c.sandbox.clone()) else { return Ok(()) };
                let config = state.sandbox(&sandbox).map(|s| s.config.clone()).unwrap_or_default();
                let container = state.container(id)?;
                let takes: Option<u64> = Self::setting(&config, container.name(), behaviour::STOP_MS);
                let takes = takes.map_or(self.options.stop, Duration::from_millis);
                let (wait, code) = if takes <= grace { (takes, 143) } else { (grace, 137) };
                let at = now.saturating_add(i64::try_from(wait.as_millis()).unwrap_or(i64::MAX));
                let sooner = container.end_by(at, code);
                let left = container.end.map_or(0, |(end, _)| end.saturating_sub(now));
                if sooner {
                    state.write(&Line::Ends { id: id.to_owned(), at_ms: at, code });
                }
                Duration::from_millis(u64::try_from(left).unwrap_or(0))
            };
            self.env.sleep(wait).await;
            Ok(())
        })
    }

    fn remove_container<'a>(&'a self, id: &'a str) -> Answer<'a, ()> {
        let now = self.now();
        let mut state = self.lock();
        if state.containers.contains_key(id) {
            state.write(&Line::Gone { id: id.to_owned(), at_ms: now });
        }
        state.remove(id);
        Box::pin(std::future::ready(Ok(())))
    }

    fn exec_sync<'a>(&'a self, id: &'a str, command: Vec<String>, timeout: Duration) -> Answer<'a, ExecOutput> {
        let now = self.now();
        let running = self.lock().container(id).map(|c| c.state(now) == wire::ContainerState::ContainerRunning);
        let plan = plan_of_command(&wire::ContainerConfig { command, ..Default::default() }).unwrap_or((0, 0));
        Box::pin(async move {
            if !running? {
                return Err(RuntimeError::Other(format!("container {id:?} is not running")));
            }
            let (ms, exit_code) = plan;
            let takes = Duration::from_millis(u64::try_from(ms).unwrap_or(0));
            self.env.sleep(takes.min(timeout)).await;
            if takes > timeout { Err(RuntimeError::Timeout("command".into())) } else { Ok(ExecOutput { exit_code, ..Default::default() }) }
        })
    }

    fn reopen_log<'a>(&'a self, _id: &'a str) -> Answer<'a, ()> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn log_source<'a>(&'a self, id: &'a str) -> Answer<'a, LogSource> {
        let mut state = self.lock();
        let log = state.container(id).map(|c| match c.started_ms {
            Some(ms) => format!("{} stdout F hollow container {} started\n", rfc3339_nanos(ms * 1_000_000), c.name()),
            None => String::new(),
        });
        Box::pin(std::future::ready(log.map(|text| LogSource::Memory(Bytes::from(text)))))
    }

    fn exec_url(&self, _request: wire::ExecRequest) -> Answer<'_, String> {
        unstreamed("exec")
    }

    fn attach_url(&self, _request: wire::AttachRequest) -> Answer<'_, String> {
        unstreamed("attach")
    }

    fn port_forward_url(&self, _request: wire::PortForwardRequest) -> Answer<'_, String> {
        unstreamed("port-forward")
    }

    fn image_status<'a>(&'a self, image: &'a str) -> Answer<'a, Option<wire::Image>> {
        let size = self.lock().images.get(image).copied();
        Box::pin(std::future::ready(Ok(size.map(|size| image_to_wire(image, size)))))
    }

    fn pull_image<'a>(&'a self, image: &'a str, _auth: Option<wire::AuthConfig>) -> Answer<'a, String> {
        Box::pin(async move {
            self.env.sleep(self.options.pull).await;
            if image.is_empty() || image.contains("invalid.invalid") {
                return Err(RuntimeError::NotFound(format!("failed to resolve reference {image:?}")));
            }
            let mut state = self.lock();
            state.write(&Line::Image { name: image.to_owned(), size: 1 << 20 });
            state.images.insert(image.to_owned(), 1 << 20);
            Ok(image_id(image))
        })
    }

    fn list_images(&self) -> Answer<'_, Vec<wire::Image>> {
        let images = self.lock().images.iter().map(|(name, size)| image_to_wire(name, *size)).collect();
        Box::pin(std::future::ready(Ok(images)))
    }

    fn remove_image<'a>(&'a self, image: &'a str) -> Answer<'a, ()> {
        let mut state = self.lock();
        if state.images.remove(image).is_some() {
            state.write(&Line::ImageGone { name: image.to_owned() });
        }
        Box::pin(std::future::ready(Ok(())))
    }

    fn list_stats(&self) -> Answer<'_, Vec<wire::ContainerStats>> {
        let now = self.now();
        let state = self.lock();
        let running = state.containers.iter().filter(|(_, c)| c.state(now) == wire::ContainerState::ContainerRunning);
        let stats = running.map(|(id, c)| {
            let config = state.sandboxes.get(&c.sandbox).map(|s| &s.config);
            let setting = |key, default| config.and_then(|config| Self::setting::<u64>(config, c.name(), key)).unwrap_or(default);
            stats_to_wire(id, c, setting(behaviour::CPU_MILLIS, 1), setting(behaviour::MEMORY_MIB, 4), now)
        });
        Box::pin(std::future::ready(Ok(stats.collect())))
    }

    fn probe<'a>(&'a self, sandbox: &'a str, _probe: &'a NetProbe) -> BoxFuture<'a, Option<Result<(), String>>> {
        let state = self.lock();
        let ready = state.sandboxes.get(sandbox).is_some_and(|s| s.ready && Self::setting(&s.config, "", behaviour::READY) != Some(false));
        let outcome = if ready { Ok(()) } else { Err("the simulated pod is not ready".to_owned()) };
        Box::pin(std::future::ready(Some(outcome)))
    }
}

fn sandbox_state(sandbox: &Sandbox) -> wire::PodSandboxState {
    if sandbox.ready { wire::PodSandboxState::SandboxReady } else { wire::PodSandboxState::SandboxNotready }
}

fn image_to_wire(name: &str, size: u64) -> wire::Image {
    wire::Image { id: image_id(name), repo_tags: vec![name.to_owned()], size, ..Default::default() }
}

fn stats_to_wire(id: &str, c: &Container, cpu_millis: u64, memory_mib: u64, now: i64) -> wire::ContainerStats {
    let ran_ms = u64::try_from(now - c.started_ms.unwrap_or(now)).unwrap_or(0);
    let value = |value| Some(wire::UInt64Value { value });
    wire::ContainerStats {
        attributes: Some(wire::ContainerAttributes {
            id: id.to_owned(),
            metadata: c.config.metadata.clone(),
            labels: c.config.labels.clone(),
            annotations: c.config.annotations.clone(),
        }),
        cpu: Some(wire::CpuUsage {
            timestamp: now * 1_000_000,
            // A millicore is a thousandth of a second of CPU per second: 1,000 ns per ms.
            usage_core_nano_seconds: value(ran_ms * cpu_millis * 1_000),
            usage_nano_cores: value(cpu_millis * 1_000_000),
            psi: None,
        }),
        memory: Some(wire::MemoryUsage {
            timestamp: now * 1_000_000,
            working_set_bytes: value(memory_mib << 20),
            usage_bytes: value(memory_mib << 20),
            ..Default::default()
        }),
        ..Default::default()
    }
}
