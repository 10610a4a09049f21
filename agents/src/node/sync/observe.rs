//! From what the runtime answers to the plain values that decisions are made from.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::node::lifecycle::seen::{ContainerSeen, PodSeen, SandboxSeen, SeenState};
use crate::node::runtime::{PodRuntime, RuntimeError, label, wire};
use crate::node::time::to_time;

/// A termination message is cut to this.
const MESSAGE_BYTES: usize = 4_096;
/// So much of the log takes its place.
const MESSAGE_FROM_LOG: usize = 2_048;

/// The state of everything of a pod, short enough to compare every second.
pub(super) type Print = Vec<(String, i32)>;

/// One pod in the runtime's lists.
#[derive(Clone, Debug, Default)]
pub(super) struct Listed {
    pub(super) print: Print,
    pub(super) namespace: String,
    pub(super) name: String,
    /// Seconds of grace that the pod had when its sandbox was made.
    pub(super) grace: i64,
}

/// All pods that the runtime knows, by uid. Sandboxes and containers of others are left alone.
pub(super) async fn list(runtime: &dyn PodRuntime) -> Result<BTreeMap<String, Listed>, RuntimeError> {
    let mut all: BTreeMap<String, Listed> = BTreeMap::new();
    for sandbox in runtime.list_sandboxes(None).await? {
        let Some(uid) = sandbox.labels.get(label::POD_UID) else { continue };
        let listed = all.entry(uid.clone()).or_default();
        listed.print.push((sandbox.id, sandbox.state));
        let word = |key: &str| sandbox.labels.get(key).cloned().unwrap_or_default();
        (listed.namespace, listed.name) = (word(label::POD_NAMESPACE), word(label::POD_NAME));
        listed.grace = sandbox.annotations.get(label::GRACE).and_then(|g| g.parse().ok()).unwrap_or(30);
    }
    for container in runtime.list_containers(None).await? {
        let Some(uid) = container.labels.get(label::POD_UID) else { continue };
        all.entry(uid.clone()).or_default().print.push((container.id, container.state));
    }
    for listed in all.values_mut() {
        listed.print.sort();
    }
    Ok(all)
}

/// A pod object in place of one that the API does not have: the runtime runs it, and it is to end.
pub(super) fn ghost(uid: &str, listed: &Listed, now_ms: i64) -> Pod {
    let metadata = ObjectMeta {
        name: Some(listed.name.clone()),
        namespace: Some(listed.namespace.clone()),
        uid: Some(uid.to_owned()),
        deletion_timestamp: Some(to_time(now_ms)),
        deletion_grace_period_seconds: Some(listed.grace),
        ..ObjectMeta::default()
    };
    Pod { metadata, spec: Some(PodSpec::default()), status: None }
}

/// A close look at one pod. What has ended does not change any more and is taken from the look before.
pub(super) async fn look(runtime: &dyn PodRuntime, uid: &str, before: &Arc<PodSeen>) -> Result<(PodSeen, Print), RuntimeError> {
    let mut seen = PodSeen::default();
    let mut print = Print::new();
    for sandbox in runtime.list_sandboxes(Some(uid)).await? {
        print.push((sandbox.id.clone(), sandbox.state));
        let ready = sandbox.state == i32::from(wire::PodSandboxState::SandboxReady);
        let ips = if ready { sandbox_ips(runtime, &sandbox.id).await? } else { Vec::new() };
        let attempt = sandbox.metadata.map_or(0, |m| m.attempt);
        seen.sandboxes.push(SandboxSeen { id: sandbox.id, attempt, ready, created_ms: sandbox.created_at / 1_000_000, ips });
    }
    for container in runtime.list_containers(Some(uid)).await? {
        print.push((container.id.clone(), container.state));
        if let Some(known) = before.containers.iter().find(|c| c.id == container.id && c.is_exited()) {
            seen.containers.push(known.clone());
            continue;
        }
        match runtime.container_status(&container.id).await {
            Ok(status) => seen.containers.push(container_seen(container, status, runtime.simulated())),
            Err(e) if e.is_not_found() => {}
            Err(e) => return Err(e),
        }
    }
    seen.sort();
    print.sort();
    Ok((seen, print))
}

async fn sandbox_ips(runtime: &dyn PodRuntime, id: &str) -> Result<Vec<String>, RuntimeError> {
    match runtime.sandbox_status(id).await {
        Ok(status) => {
            let network = status.network.unwrap_or_default();
            let more = network.additional_ips.into_iter().map(|ip| ip.ip);
            Ok(std::iter::once(network.ip).chain(more).filter(|ip| !ip.is_empty()).collect())
        }
        Err(e) if e.is_not_found() => Ok(Vec::new()),
        Err(e) => Err(e),
    }
}

fn container_seen(listed: wire::Container, status: wire::ContainerStatus, simulated: bool) -> ContainerSeen {
    let word = |key: &str| status.annotations.get(key).cloned().unwrap_or_default();
    let state = match status.state() {
        wire::ContainerState::ContainerRunning => SeenState::Running { started_ms: status.started_at / 1_000_000 },
        wire::ContainerState::ContainerExited => SeenState::Exited {
            code: status.exit_code,
            reason: status.reason.clone(),
            message: if simulated { status.message.clone() } else { termination_message(&status) },
            started_ms: status.started_at.max(0) / 1_000_000,
            finished_ms: status.finished_at.max(0) / 1_000_000,
        },
        // A runtime that has lost track will say so as an exit, sooner or later.
        wire::ContainerState::ContainerCreated | wire::ContainerState::ContainerUnknown => SeenState::Created,
    };
    let metadata = listed.metadata.unwrap_or_default();
    ContainerSeen {
        id: listed.id,
        sandbox: listed.pod_sandbox_id,
        name: metadata.name,
        attempt: metadata.attempt,
        state,
        image: status.image.as_ref().map(|i| i.image.clone()).unwrap_or_default(),
        image_id: if status.image_ref.is_empty() { status.image_id.clone() } else { status.image_ref.clone() },
        hash: word(label::HASH),
        created_ms: listed.created_at / 1_000_000,
    }
}

/// What the container left as its last words: the runtime's own, the message file, or the end of the log.
fn termination_message(status: &wire::ContainerStatus) -> String {
    let file = status.annotations.get(label::MESSAGE_FILE).filter(|f| !f.is_empty());
    let mut bytes = file.and_then(|f| std::fs::read(f).ok()).unwrap_or_default();
    bytes.truncate(MESSAGE_BYTES);
    let fall_back = status.annotations.get(label::MESSAGE_POLICY).is_some_and(|p| p == "FallbackToLogsOnError");
    if bytes.is_empty() && fall_back && status.exit_code != 0 {
        bytes = crate::node::logs::tail_text(Path::new(&status.log_path), MESSAGE_FROM_LOG);
    }
    let text = String::from_utf8_lossy(&bytes).into_owned();
    if text.is_empty() { status.message.clone() } else { text }
}
