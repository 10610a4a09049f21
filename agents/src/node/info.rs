//! What the node says of itself: the Node object, its conditions, its usage.

use kontiki_base::env::WallMs;
use kontiki_proto::node as pb;
use serde_json::{Value, json};

use super::NodeConfig;
use super::runtime::{Readiness, RuntimeError, wire};
use super::time::to_time;

/// How many pods a node takes, unless it is told otherwise.
const MAX_PODS: u32 = 110;
/// A simulated node has this, unless it is told otherwise.
const HOLLOW_CPU_MILLI: i64 = 8_000;
const HOLLOW_MEMORY: i64 = 32 << 30;

/// What the machine is.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Millicores.
    pub cpu_milli: i64,
    /// Bytes.
    pub memory_bytes: i64,
    /// Pods.
    pub pods: u32,
    kernel: String,
    os_image: String,
    machine_id: String,
    boot_id: String,
}

impl Facts {
    /// Looks at the machine, or at what was configured in its place.
    pub fn gather(config: &NodeConfig) -> Self {
        let file = |path: &str| std::fs::read_to_string(path).map(|t| t.trim().to_owned()).unwrap_or_default();
        if config.runtime.simulated() {
            // Nothing of this machine: a simulation is the same wherever it runs.
            let (cpu_milli, memory_bytes, pods) =
                config.capacity.map_or((HOLLOW_CPU_MILLI, HOLLOW_MEMORY, MAX_PODS), |c| (c.cpu_milli, c.memory_bytes, c.pods));
            let (machine_id, boot_id) = (format!("hollow-{}", config.name), String::new());
            return Self { cpu_milli, memory_bytes, pods, kernel: "hollow".into(), os_image: "hollow".into(), machine_id, boot_id };
        }
        let mut facts = Self {
            pods: MAX_PODS,
            kernel: file("/proc/sys/kernel/osrelease"),
            os_image: os_image(&file("/etc/os-release")),
            machine_id: file("/etc/machine-id"),
            boot_id: file("/proc/sys/kernel/random/boot_id"),
            ..Self::default()
        };
        if let Some(capacity) = config.capacity {
            (facts.cpu_milli, facts.memory_bytes, facts.pods) = (capacity.cpu_milli, capacity.memory_bytes, capacity.pods);
        } else {
            let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
            facts.cpu_milli = i64::try_from(cpus).unwrap_or(1) * 1_000;
            facts.memory_bytes = memory_total(&file("/proc/meminfo")).unwrap_or(1 << 30);
        }
        facts
    }
}

fn os_image(release: &str) -> String {
    let line = release.lines().find_map(|l| l.strip_prefix("PRETTY_NAME="));
    line.map_or_else(|| "Linux".to_owned(), |name| name.trim_matches('"').to_owned())
}

fn memory_total(meminfo: &str) -> Option<i64> {
    let line = meminfo.lines().find_map(|l| l.strip_prefix("MemTotal:"))?;
    Some(line.split_whitespace().next()?.parse::<i64>().ok()? * 1_024)
}

/// The node's conditions, with the times of their last changes.
#[derive(Clone, Debug, Default)]
pub struct Conditions {
    ready: Option<(bool, String, String)>,
    since: WallMs,
}

impl Conditions {
    /// Takes what the runtime says of itself.
    pub fn update(&mut self, readiness: &Result<Readiness, RuntimeError>, now: WallMs) {
        let (holds, reason, message) = match readiness {
            Ok(r) if r.runtime && r.network => (true, "KubeletReady", "kubelet is posting ready status".to_owned()),
            Ok(r) if r.runtime => (false, "KubeletNotReady", format!("container runtime network not ready: {}", r.message)),
            Ok(r) => (false, "KubeletNotReady", format!("container runtime is not ready: {}", r.message)),
            Err(e) => (false, "KubeletNotReady", format!("container runtime is down: {e}")),
        };
        if self.ready.as_ref().is_none_or(|(was, ..)| *was != holds) {
            self.since = now;
        }
        self.ready = Some((holds, reason.to_owned(), message));
    }

    fn list(&self) -> Value {
        let since = to_time(self.since.0);
        let condition = |kind: &str, status: bool, reason: &str, message: &str| {
            let status = if status { "True" } else { "False" };
            json!({"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": since})
        };
        let (ready, reason, message) = self.ready.clone().unwrap_or_default();
        json!([
            condition("MemoryPressure", false, "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
            condition("DiskPressure", false, "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
            condition("PIDPressure", false, "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
            condition("Ready", ready, &reason, &message),
        ])
    }

    /// As heartbeats carry them.
    pub fn to_json(&self) -> Vec<u8> {
        self.list().to_string().into_bytes()
    }
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// The Node object as the agent wants it registered.
pub fn node_object(config: &NodeConfig, facts: &Facts, version: &wire::VersionResponse, conditions: &Conditions, port: u16) -> Value {
    let mut labels = config.labels.clone();
    labels.insert("kubernetes.io/hostname".into(), config.name.clone());
    labels.insert("kubernetes.io/os".into(), "linux".into());
    labels.insert("kubernetes.io/arch".into(), architecture().into());
    let resources = json!({
        "cpu": format!("{}m", facts.cpu_milli), "memory": facts.memory_bytes.to_string(), "pods": facts.pods.to_string(),
        "ephemeral-storage": (100_i64 << 30).to_string(),
    });
    let mut status = json!({
        "capacity": resources, "allocatable": resources, "conditions": conditions.list(),
        "addresses": [
            {"type": "InternalIP", "address": config.node_ip.to_string()},
            {"type": "Hostname", "address": config.name},
        ],
        "nodeInfo": {
            "machineID": facts.machine_id, "systemUUID": facts.machine_id, "bootID": facts.boot_id, "kernelVersion": facts.kernel,
            "osImage": facts.os_image, "containerRuntimeVersion": format!("{}://{}", version.runtime_name, version.runtime_version),
            "kubeletVersion": concat!("v1.36.0+kontiki-", env!("CARGO_PKG_VERSION")), "kubeProxyVersion": "",
            "operatingSystem": "linux", "architecture": architecture(),
        },
    });
    if port > 0 {
        status["daemonEndpoints"] = json!({"kubeletEndpoint": {"Port": port}});
    }
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": config.name, "labels": labels}, "spec": {}, "status": status})
}

/// Usage of a node from that of its containers: all CPU time since they started in nanoseconds, and the rest for a heartbeat.
pub fn usage_of(stats: &[wire::ContainerStats]) -> (u64, pb::NodeUsage) {
    let value = |v: Option<&wire::UInt64Value>| v.map_or(0, |v| v.value);
    let total_ns = stats.iter().filter_map(|s| s.cpu.as_ref()).map(|c| value(c.usage_core_nano_seconds.as_ref())).sum();
    let memory_bytes = stats.iter().filter_map(|s| s.memory.as_ref()).map(|m| value(m.working_set_bytes.as_ref())).sum();
    let pod = |s: &wire::ContainerStats| s.attributes.as_ref().and_then(|a| a.labels.get(super::runtime::label::POD_UID).cloned());
    let pods: std::collections::BTreeSet<String> = stats.iter().filter_map(pod).collect();
    (total_ns, pb::NodeUsage { cpu_nano_cores: 0, memory_bytes, pods: u32::try_from(pods.len()).unwrap_or(u32::MAX) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_the_machine() {
        assert_eq!(memory_total("MemFree: 1 kB\nMemTotal:       24576 kB\n"), Some(24_576 * 1_024));
        assert_eq!(os_image("NAME=\"x\"\nPRETTY_NAME=\"Debian 12\"\n"), "Debian 12");
        assert_eq!(os_image(""), "Linux");
    }

    #[test]
    fn a_change_of_readiness_has_its_time() {
        let mut conditions = Conditions::default();
        let fine = Ok(Readiness { runtime: true, network: true, message: String::new() });
        conditions.update(&fine, WallMs(1_000));
        conditions.update(&fine, WallMs(9_000));
        assert_eq!(conditions.since, WallMs(1_000));
        conditions.update(&Err(RuntimeError::Unreachable("x".into())), WallMs(10_000));
        assert_eq!(conditions.since, WallMs(10_000));
        let list = conditions.list();
        assert_eq!(list[3]["status"], "False");
        assert!(list[3]["message"].as_str().unwrap().contains("down"));
    }
}
