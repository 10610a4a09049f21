//! What a hollow node knows beyond the life of its agent: a file of changes, one a line, in JSON. Real containers go on running when the
//! agent is killed, so simulated ones do, too. It also says what ran when, which is how a test knows it without asking the agent.
//!
//! Lines are appended when the change is made and never synced: what a kill of the process leaves is enough. A line that was cut off is
//! passed over. A machine that was started anew since (another boot id) has stopped everything that ran on it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write as _};
use std::net::Ipv4Addr;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kontiki_proto::cri as wire;
use serde::{Deserialize, Serialize};

use super::{Container, Sandbox, State};

/// A ledger that is larger than this when it is opened is written anew, without what is gone.
const COMPACT_BYTES: u64 = 64 << 20;

/// The exit code of what ran when its machine went down.
const MACHINE_GONE: i32 = 255;

/// One change. Times are milliseconds since the Unix epoch.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub(super) enum Line {
    /// The machine runs: its kernel's boot id. Everything before that has another one has ended.
    Boot { id: String, at_ms: i64 },
    /// What came before in an earlier file is not here: it was written anew.
    Compacted {},
    /// A pod's sandbox runs.
    Sandbox { id: String, config: String, handler: String, created_ms: i64, ip: Option<Ipv4Addr> },
    /// It runs no more, nor do its containers, at this time.
    Stopped { id: String, at_ms: i64 },
    /// A container was created. `uid`, `pod` (namespace and name) and `name` are for readers; the configuration has them, too.
    Container { id: String, sandbox: String, config: String, created_ms: i64, uid: String, pod: String, name: String },
    /// It runs; `end`: when it will end by itself, and how.
    Started { id: String, at_ms: i64, end: Option<(i64, i32)> },
    /// It was told to stop, and ends then, with this exit code. The earliest end counts.
    Ends { id: String, at_ms: i64, code: i32 },
    /// A sandbox, with its containers, or a container was removed.
    Gone { id: String, at_ms: i64 },
    /// An image is there.
    Image { name: String, size: u64 },
    /// An image was removed.
    ImageGone { name: String },
}

/// The open file.
#[derive(Debug)]
pub(super) struct Ledger {
    file: File,
    /// An error was seen and logged: nothing is written any more.
    broken: bool,
}

impl Ledger {
    /// Reads what is there into `state`, and goes on writing behind it. `boot` is the machine's boot id, `now` the time in milliseconds.
    pub(super) fn open(path: &Path, state: &mut State, boot: &str, now: i64) -> io::Result<Self> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => String::new(),
            Err(e) => return Err(e),
        };
        let mut last_boot = None;
        for line in text.lines().filter_map(|line| serde_json::from_str::<Line>(line).ok()) {
            if let Line::Boot { id, .. } = &line {
                last_boot = Some(id.clone());
            }
            state.replay(line);
        }
        let file = File::options().create(true).append(true).open(path)?;
        let mut ledger = Self { file, broken: false };
        if text.len() as u64 > COMPACT_BYTES {
            ledger.file = rewrite(path, state)?;
        } else if !text.is_empty() && !text.ends_with('\n') {
            // A line that was cut off must not swallow the next one.
            ledger.file.write_all(b"\n")?;
        }
        if last_boot.is_some_and(|last| last != boot) {
            for line in state.machine_went_down(now) {
                ledger.write(&line);
            }
        }
        ledger.write(&Line::Boot { id: boot.to_owned(), at_ms: now });
        Ok(ledger)
    }

    /// Appends a line. A disk that takes none costs the memory of the past, not the pods.
    pub(super) fn write(&mut self, line: &Line) {
        if self.broken {
            return;
        }
        if let Err(e) = append(&mut self.file, line) {
            self.broken = true;
            tracing::error!(error = %e, "the ledger of simulated pods cannot be written: they will not outlive this agent");
        }
    }
}

fn append(file: &mut File, line: &Line) -> io::Result<()> {
    let mut text = serde_json::to_vec(line)?;
    text.push(b'\n');
    file.write_all(&text)
}

fn rewrite(path: &Path, state: &State) -> io::Result<File> {
    let fresh = path.with_extension("new");
    let mut file = File::create(&fresh)?;
    append(&mut file, &Line::Compacted {})?;
    for line in state.lines() {
        append(&mut file, &line)?;
    }
    std::fs::rename(&fresh, path)?;
    File::options().append(true).open(path)
}

/// What identifies this start of the machine; empty where the kernel does not say.
pub(super) fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| id.trim().to_owned()).unwrap_or_default()
}

fn encode(message: &impl prost::Message) -> String {
    STANDARD.encode(message.encode_to_vec())
}

fn decode<M: prost::Message + Default>(text: &str) -> M {
    // What this program wrote can be read; anything else is an empty configuration, which matches no pod and is removed as unknown.
    STANDARD.decode(text).ok().and_then(|bytes| M::decode(bytes.as_slice()).ok()).unwrap_or_default()
}

impl Sandbox {
    pub(super) fn line(&self, id: &str) -> Line {
        Line::Sandbox {
            id: id.to_owned(),
            config: encode(&self.config),
            handler: self.handler.clone(),
            created_ms: self.created_ms,
            ip: self.ip,
        }
    }
}

impl Container {
    pub(super) fn line(&self, id: &str, pod: &wire::PodSandboxConfig) -> Line {
        let metadata = pod.metadata.clone().unwrap_or_default();
        Line::Container {
            id: id.to_owned(),
            sandbox: self.sandbox.clone(),
            config: encode(&self.config),
            created_ms: self.created_ms,
            uid: metadata.uid,
            pod: format!("{}/{}", metadata.namespace, metadata.name),
            name: self.name().to_owned(),
        }
    }
}

impl State {
    /// Takes back what was written.
    fn replay(&mut self, line: Line) {
        match line {
            Line::Boot { .. } | Line::Compacted {} => {}
            Line::Sandbox { id, config, handler, created_ms, ip } => {
                self.count(&id);
                self.last_ip = ip.or(self.last_ip);
                self.sandboxes.insert(id, Sandbox { config: decode(&config), created_ms, ready: true, ip, handler });
            }
            Line::Stopped { id, at_ms } => self.stop_sandbox(&id, at_ms),
            Line::Container { id, sandbox, config, created_ms, .. } => {
                self.count(&id);
                self.containers.insert(id, Container { sandbox, config: decode(&config), created_ms, started_ms: None, end: None });
            }
            Line::Started { id, at_ms, end } => {
                if let Some(container) = self.containers.get_mut(&id) {
                    (container.started_ms, container.end) = (Some(at_ms), end);
                }
            }
            Line::Ends { id, at_ms, code } => {
                if let Some(container) = self.containers.get_mut(&id) {
                    container.end_by(at_ms, code);
                }
            }
            Line::Gone { id, .. } => self.remove(&id),
            Line::Image { name, size } => drop(self.images.insert(name, size)),
            Line::ImageGone { name } => drop(self.images.remove(&name)),
        }
    }

    /// Ids go on behind the largest one that was given.
    fn count(&mut self, id: &str) {
        let number = id.get(1..).and_then(|digits| u64::from_str_radix(digits, 16).ok()).unwrap_or(0);
        self.serial = self.serial.max(number);
    }

    /// Everything that ran has ended with its machine.
    fn machine_went_down(&mut self, now: i64) -> Vec<Line> {
        let mut lines = Vec::new();
        for (id, container) in &mut self.containers {
            if container.end_by(now, MACHINE_GONE) {
                lines.push(Line::Ends { id: id.clone(), at_ms: now, code: MACHINE_GONE });
            }
        }
        let ready: Vec<String> = self.sandboxes.iter().filter(|(_, s)| s.ready).map(|(id, _)| id.clone()).collect();
        for id in ready {
            self.stop_sandbox(&id, now);
            lines.push(Line::Stopped { id, at_ms: now });
        }
        lines
    }

    /// The whole state as lines.
    fn lines(&self) -> Vec<Line> {
        let mut lines: Vec<Line> = self.images.iter().map(|(name, size)| Line::Image { name: name.clone(), size: *size }).collect();
        let pods: BTreeMap<&str, &Sandbox> = self.sandboxes.iter().map(|(id, sandbox)| (id.as_str(), sandbox)).collect();
        for (id, sandbox) in &pods {
            lines.push(sandbox.line(id));
            if !sandbox.ready {
                // Before its containers: their own ends follow.
                lines.push(Line::Stopped { id: (*id).to_owned(), at_ms: sandbox.created_ms });
            }
        }
        for (id, container) in &self.containers {
            let Some(sandbox) = pods.get(container.sandbox.as_str()) else { continue };
            lines.push(container.line(id, &sandbox.config));
            match (container.started_ms, container.end) {
                (Some(at_ms), end) => lines.push(Line::Started { id: id.clone(), at_ms, end }),
                (None, Some((at_ms, code))) => lines.push(Line::Ends { id: id.clone(), at_ms, code }),
                (None, None) => {}
            }
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use kontiki_proto::env::SystemEnv;

    use super::super::super::{PodRuntime as _, label};
    use super::super::{HollowOptions, HollowRuntime};
    use super::*;

    const IMAGE: &str = "kontiki.dev/demo:1";

    fn open(path: &Path) -> HollowRuntime {
        let short = Duration::from_millis(1);
        let options = HollowOptions { images: vec![IMAGE.into()], sandbox: short, start: short, stop: short, pull: short };
        HollowRuntime::open(Arc::new(SystemEnv::new()), options, path).unwrap()
    }

    async fn run(node: &HollowRuntime, name: &str) -> (String, String) {
        node.set_pod_cidr("10.1.0.0/24").await.unwrap();
        let metadata = wire::PodSandboxMetadata { name: name.into(), uid: format!("uid-{name}"), namespace: "d".into(), attempt: 0 };
        let labels = [(label::POD_UID.to_owned(), metadata.uid.clone())].into();
        let pod = wire::PodSandboxConfig { metadata: Some(metadata), labels, ..Default::default() };
        let sandbox = node.run_sandbox(pod.clone(), String::new()).await.unwrap();
        let config = wire::ContainerConfig {
            metadata: Some(wire::ContainerMetadata { name: "main".into(), attempt: 0 }),
            image: Some(wire::ImageSpec { image: IMAGE.into(), ..Default::default() }),
            ..Default::default()
        };
        let container = node.create_container(&sandbox, config, pod).await.unwrap();
        node.start_container(&container).await.unwrap();
        (sandbox, container)
    }

    async fn ip(node: &HollowRuntime, sandbox: &str) -> String {
        node.sandbox_status(sandbox).await.unwrap().network.unwrap().ip
    }

    async fn state(node: &HollowRuntime, container: &str) -> (wire::ContainerState, i32) {
        let status = node.container_status(container).await.unwrap();
        (status.state(), status.exit_code)
    }

    #[tokio::test]
    async fn pods_outlive_the_process_with_their_addresses() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger");
        let (first, second, gone) = {
            let node = open(&path);
            let pods = (run(&node, "a").await, run(&node, "b").await, run(&node, "c").await);
            node.stop_container(&pods.1.1, Duration::from_secs(1)).await.unwrap();
            node.remove_sandbox(&pods.2.0).await.unwrap();
            pods
        };
        // The process died in the middle of a line.
        std::fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"what\":\"sandb").unwrap();
        for _ in 0..2 {
            let node = open(&path);
            assert_eq!(state(&node, &first.1).await, (wire::ContainerState::ContainerRunning, 0));
            assert_eq!(state(&node, &second.1).await, (wire::ContainerState::ContainerExited, 143));
            assert!(node.container_status(&gone.1).await.is_err());
            assert_eq!(node.list_sandboxes(Some("uid-a")).await.unwrap().len(), 1);
        }
        let node = open(&path);
        let fresh = run(&node, "d").await;
        assert!(fresh.0 != first.0 && fresh.1 != first.1, "ids are not given again");
        assert_eq!(ip(&node, &first.0).await, "10.1.0.2");
        assert_eq!(ip(&node, &fresh.0).await, "10.1.0.5", "an address belongs to one pod, and rests for a while after it");
    }

    #[tokio::test]
    async fn nothing_outlives_the_machine() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger");
        let (sandbox, container) = run(&open(&path), "a").await;
        let text = std::fs::read_to_string(&path).unwrap().replace(&boot_id(), "another");
        std::fs::write(&path, text).unwrap();
        for _ in 0..2 {
            let node = open(&path);
            assert_eq!(state(&node, &container).await, (wire::ContainerState::ContainerExited, MACHINE_GONE));
            let status = node.sandbox_status(&sandbox).await.unwrap();
            assert_eq!(status.state(), wire::PodSandboxState::SandboxNotready);
        }
    }

    #[tokio::test]
    async fn a_file_that_is_written_anew_says_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger");
        let node = open(&path);
        let (a, b) = (run(&node, "a").await, run(&node, "b").await);
        node.stop_sandbox(&b.0).await.unwrap();
        node.pull_image("another", None).await.unwrap();
        let rewritten = dir.path().join("new");
        rewrite(&rewritten, &node.lock()).unwrap();
        let mut copy = State::default();
        Ledger::open(&rewritten, &mut copy, &boot_id(), node.now()).unwrap();
        let text = |state: &State| state.lines().iter().map(|line| serde_json::to_string(line).unwrap()).collect::<Vec<_>>();
        assert_eq!(text(&copy), text(&node.lock()));
        assert!(copy.containers[&a.1].end.is_none() && copy.containers[&b.1].end.is_some());
    }
}
