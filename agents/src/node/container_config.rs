//! From a pod's specification to what the runtime wants: sandbox and container configurations. Pure.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use k8s_openapi::api::core::v1::{Container, Pod, PodSecurityContext, SeccompProfile, SecurityContext};
use kontiki_proto::cri as wire;

use super::env::{ConfigProblem, expand};
use super::lifecycle::{container_hash, grace_seconds, init_containers, resources, spec};
use super::runtime::label;

/// What of the node goes into configurations.
#[derive(Clone, Debug, Default)]
pub struct NodeSide {
    /// `/kubepods`.
    pub cgroup_parent: String,
    /// The cluster's name server; empty: the node's own.
    pub cluster_dns: String,
    /// The node's name.
    pub node_name: String,
    /// The node's memory, for the kernel's victim score.
    pub memory_bytes: i64,
}

/// Parts of `/proc` and `/sys` that a container does not get to see, and those that it cannot write.
const MASKED: [&str; 10] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
];
const READONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

fn int64(value: Option<i64>) -> Option<wire::Int64Value> {
    value.map(|value| wire::Int64Value { value })
}

fn text(value: Option<&String>) -> String {
    value.cloned().unwrap_or_default()
}

/// Labels that tie a sandbox or container to its pod.
fn pod_labels(pod: &Pod) -> HashMap<String, String> {
    let meta = &pod.metadata;
    HashMap::from([
        (label::POD_NAME.to_owned(), text(meta.name.as_ref())),
        (label::POD_NAMESPACE.to_owned(), text(meta.namespace.as_ref())),
        (label::POD_UID.to_owned(), text(meta.uid.as_ref())),
    ])
}

/// Where a pod's logs are, below the agent's directory.
pub fn log_directory(data_dir: &Path, pod: &Pod) -> std::path::PathBuf {
    let meta = &pod.metadata;
    data_dir.join("logs").join(format!("{}_{}_{}", text(meta.namespace.as_ref()), text(meta.name.as_ref()), text(meta.uid.as_ref())))
}

fn namespaces(pod: &Pod) -> wire::NamespaceOption {
    let spec = spec(pod);
    let node =
        |on: Option<bool>, otherwise: wire::NamespaceMode| i32::from(if on == Some(true) { wire::NamespaceMode::Node } else { otherwise });
    let shared = if spec.share_process_namespace == Some(true) { wire::NamespaceMode::Pod } else { wire::NamespaceMode::Container };
    wire::NamespaceOption {
        network: node(spec.host_network, wire::NamespaceMode::Pod),
        pid: node(spec.host_pid, shared),
        ipc: node(spec.host_ipc, wire::NamespaceMode::Pod),
        ..Default::default()
    }
}

fn seccomp(profile: Option<&SeccompProfile>, privileged: bool) -> Option<wire::SecurityProfile> {
    use wire::security_profile::ProfileType;
    let (kind, file) = match profile.map(|p| (p.type_.as_str(), p)) {
        Some(("RuntimeDefault", _)) if !privileged => (ProfileType::RuntimeDefault, String::new()),
        Some(("Localhost", p)) if !privileged => (ProfileType::Localhost, text(p.localhost_profile.as_ref())),
        _ => (ProfileType::Unconfined, String::new()),
    };
    Some(wire::SecurityProfile { profile_type: kind.into(), localhost_ref: file })
}

fn dns(pod: &Pod, node: &NodeSide) -> Option<wire::DnsConfig> {
    let spec = spec(pod);
    let namespace = text(pod.metadata.namespace.as_ref());
    let policy = spec.dns_policy.as_deref().unwrap_or("ClusterFirst");
    let cluster = policy == "ClusterFirstWithHostNet" || (policy == "ClusterFirst" && spec.host_network != Some(true));
    let mut config = wire::DnsConfig::default();
    if cluster && !node.cluster_dns.is_empty() {
        config.servers.push(node.cluster_dns.clone());
        config.searches = vec![format!("{namespace}.svc.cluster.local"), "svc.cluster.local".into(), "cluster.local".into()];
        config.options = vec!["ndots:5".into()];
    }
    if let Some(own) = &spec.dns_config {
        config.servers.extend(own.nameservers.iter().flatten().cloned());
        config.searches.extend(own.searches.iter().flatten().cloned());
        config.options.extend(own.options.iter().flatten().map(|o| match &o.value {
            Some(value) => format!("{}:{value}", text(o.name.as_ref())),
            None => text(o.name.as_ref()),
        }));
    }
    (config != wire::DnsConfig::default()).then_some(config)
}

fn port_mappings(pod: &Pod) -> Vec<wire::PortMapping> {
    let all = init_containers(pod).iter().filter(|c| super::lifecycle::is_sidecar(c)).chain(super::lifecycle::containers(pod));
    let ports = all.flat_map(|c| c.ports.iter().flatten()).filter(|p| p.host_port.is_some_and(|port| port > 0));
    if spec(pod).host_network == Some(true) {
        return Vec::new();
    }
    let protocol = |word: Option<&str>| match word {
        Some("UDP") => wire::Protocol::Udp,
        Some("SCTP") => wire::Protocol::Sctp,
        _ => wire::Protocol::Tcp,
    };
    let mapping = ports.map(|p| wire::PortMapping {
        protocol: protocol(p.protocol.as_deref()).into(),
        container_port: p.container_port,
        host_port: p.host_port.unwrap_or(0),
        host_ip: text(p.host_ip.as_ref()),
    });
    mapping.collect()
}

/// The host name inside the pod.
pub fn hostname(pod: &Pod) -> String {
    let name = spec(pod).hostname.clone().or_else(|| pod.metadata.name.clone()).unwrap_or_default();
    name.chars().take(63).collect::<String>().trim_end_matches(['-', '.']).to_owned()
}

fn is_privileged(c: &Container) -> bool {
    c.security_context.as_ref().and_then(|s| s.privileged) == Some(true)
}

/// The sandbox of a pod.
pub fn sandbox(pod: &Pod, attempt: u32, data_dir: &Path, node: &NodeSide) -> wire::PodSandboxConfig {
    let meta = &pod.metadata;
    let spec = spec(pod);
    let security: Option<&PodSecurityContext> = spec.security_context.as_ref();
    let all = || init_containers(pod).iter().chain(super::lifecycle::containers(pod));
    let on_host = spec.host_network == Some(true);
    let mut annotations: HashMap<String, String> = meta.annotations.iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect();
    annotations.insert(label::GRACE.to_owned(), grace_seconds(pod).to_string());
    wire::PodSandboxConfig {
        metadata: Some(wire::PodSandboxMetadata {
            name: text(meta.name.as_ref()),
            uid: text(meta.uid.as_ref()),
            namespace: text(meta.namespace.as_ref()),
            attempt,
        }),
        hostname: if on_host { String::new() } else { hostname(pod) },
        log_directory: log_directory(data_dir, pod).to_string_lossy().into_owned(),
        dns_config: dns(pod, node),
        port_mappings: port_mappings(pod),
        labels: pod_labels(pod),
        annotations,
        linux: Some(wire::LinuxPodSandboxConfig {
            cgroup_parent: resources::pod_cgroup(&node.cgroup_parent, pod),
            sysctls: security.and_then(|s| s.sysctls.as_ref()).into_iter().flatten().map(|s| (s.name.clone(), s.value.clone())).collect(),
            security_context: Some(wire::LinuxSandboxSecurityContext {
                namespace_options: Some(namespaces(pod)),
                run_as_user: int64(security.and_then(|s| s.run_as_user)),
                run_as_group: int64(security.and_then(|s| s.run_as_group)),
                supplemental_groups: groups(security),
                privileged: all().any(is_privileged),
                seccomp: seccomp(security.and_then(|s| s.seccomp_profile.as_ref()), false),
                ..Default::default()
            }),
            ..Default::default()
        }),
    }
}

fn groups(security: Option<&PodSecurityContext>) -> Vec<i64> {
    let Some(security) = security else { return Vec::new() };
    security.supplemental_groups.iter().flatten().copied().chain(security.fs_group).collect()
}

/// Limits of a container as the kernel wants them.
pub fn linux_resources(pod: &Pod, c: &Container, memory_bytes: i64) -> wire::LinuxContainerResources {
    wire::LinuxContainerResources {
        cpu_period: resources::CPU_PERIOD,
        cpu_quota: resources::cpu_quota(resources::limit(c, "cpu")),
        cpu_shares: resources::cpu_shares(resources::request(c, "cpu")),
        memory_limit_in_bytes: resources::limit(c, "memory"),
        oom_score_adj: resources::oom_score_adj(pod, c, memory_bytes),
        ..Default::default()
    }
}

/// Whether the image would run as root although the pod forbids it.
///
/// # Errors
/// In the kubelet's words.
pub fn check_user(pod: &Pod, c: &Container, image: &wire::Image) -> Result<(), ConfigProblem> {
    let own = c.security_context.as_ref();
    let shared = spec(pod).security_context.as_ref();
    let must = own.and_then(|s| s.run_as_non_root).or_else(|| shared.and_then(|s| s.run_as_non_root)) == Some(true);
    let user = own.and_then(|s| s.run_as_user).or_else(|| shared.and_then(|s| s.run_as_user));
    if !must {
        return Ok(());
    }
    match (user, image.uid.as_ref().map(|u| u.value), image.username.as_str()) {
        (Some(0), ..) => Err(ConfigProblem("container's runAsUser breaks non-root policy".into())),
        (Some(_), ..) => Ok(()),
        (None, Some(uid), _) if uid > 0 => Ok(()),
        (None, None, name) if !matches!(name, "" | "root") => Err(ConfigProblem(format!(
            "container has runAsNonRoot and image has non-numeric user ({name}), cannot verify user is non-root"
        ))),
        _ => Err(ConfigProblem("container has runAsNonRoot and image will run as root".into())),
    }
}

fn container_security(pod: &Pod, c: &Container) -> wire::LinuxContainerSecurityContext {
    let own: Option<&SecurityContext> = c.security_context.as_ref();
    let shared = spec(pod).security_context.as_ref();
    let privileged = is_privileged(c);
    let caps = own.and_then(|s| s.capabilities.as_ref());
    let profile = own.and_then(|s| s.seccomp_profile.as_ref()).or_else(|| shared.and_then(|s| s.seccomp_profile.as_ref()));
    let unmasked = privileged || own.and_then(|s| s.proc_mount.as_deref()) == Some("Unmasked");
    let paths = |list: &[&str]| if unmasked { Vec::new() } else { list.iter().map(|&p| p.to_owned()).collect() };
    wire::LinuxContainerSecurityContext {
        capabilities: caps.map(|caps| wire::Capability {
            add_capabilities: caps.add.clone().unwrap_or_default(),
            drop_capabilities: caps.drop.clone().unwrap_or_default(),
            add_ambient_capabilities: Vec::new(),
        }),
        privileged,
        namespace_options: Some(namespaces(pod)),
        run_as_user: int64(own.and_then(|s| s.run_as_user).or_else(|| shared.and_then(|s| s.run_as_user))),
        run_as_group: int64(own.and_then(|s| s.run_as_group).or_else(|| shared.and_then(|s| s.run_as_group))),
        readonly_rootfs: own.and_then(|s| s.read_only_root_filesystem) == Some(true),
        supplemental_groups: groups(shared),
        no_new_privs: own.and_then(|s| s.allow_privilege_escalation) == Some(false),
        masked_paths: paths(&MASKED),
        readonly_paths: paths(&READONLY),
        seccomp: seccomp(profile, privileged),
        ..Default::default()
    }
}

/// What a container gets beside its specification.
#[derive(Clone, Debug, Default)]
pub struct Prepared {
    /// Its variables, in order.
    pub env: Vec<(String, String)>,
    /// Its mounts.
    pub mounts: Vec<wire::Mount>,
    /// The file that is mounted as its termination message; empty: none.
    pub message_file: String,
}

/// A container of a pod.
pub fn container(pod: &Pod, c: &Container, attempt: u32, node: &NodeSide, prepared: Prepared) -> wire::ContainerConfig {
    let known: BTreeMap<String, String> = prepared.env.iter().cloned().collect();
    let expanded = |words: &Option<Vec<String>>| words.iter().flatten().map(|word| expand(word, &known)).collect();
    let mut labels = pod_labels(pod);
    labels.insert(label::CONTAINER_NAME.to_owned(), c.name.clone());
    let policy = c.termination_message_policy.clone().unwrap_or_else(|| "File".to_owned());
    wire::ContainerConfig {
        metadata: Some(wire::ContainerMetadata { name: c.name.clone(), attempt }),
        image: Some(wire::ImageSpec { image: text(c.image.as_ref()), ..Default::default() }),
        command: expanded(&c.command),
        args: expanded(&c.args),
        working_dir: text(c.working_dir.as_ref()),
        envs: prepared.env.into_iter().map(|(key, value)| wire::KeyValue { key, value: value.into() }).collect(),
        mounts: prepared.mounts,
        labels,
        annotations: HashMap::from([
            (label::HASH.to_owned(), container_hash(c)),
            (label::RESTARTS.to_owned(), attempt.to_string()),
            (label::MESSAGE_FILE.to_owned(), prepared.message_file),
            (label::MESSAGE_POLICY.to_owned(), policy),
        ]),
        log_path: format!("{}/{attempt}.log", c.name),
        stdin: c.stdin == Some(true),
        stdin_once: c.stdin_once == Some(true),
        tty: c.tty == Some(true),
        linux: Some(wire::LinuxContainerConfig {
            resources: Some(linux_resources(pod, c, node.memory_bytes)),
            security_context: Some(container_security(pod, c)),
        }),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(json: serde_json::Value) -> Pod {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn a_container_gets_its_limits_words_and_name() {
        let pod = pod(serde_json::json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u"},
            "spec": {"containers": [{"name": "c", "image": "i", "command": ["a", "$(X)"],
                "resources": {"limits": {"cpu": "200m", "memory": "32Mi"}},
                "securityContext": {"capabilities": {"drop": ["ALL"]}, "allowPrivilegeEscalation": false}}]}
        }));
        let node = NodeSide { cgroup_parent: "/kubepods".into(), memory_bytes: 1 << 30, ..NodeSide::default() };
        let prepared = Prepared { env: vec![("X".into(), "1".into())], ..Prepared::default() };
        let config = container(&pod, &spec(&pod).containers[0], 3, &node, prepared);
        assert_eq!(config.command, ["a", "1"]);
        assert_eq!(config.log_path, "c/3.log");
        let linux = config.linux.unwrap();
        let limits = linux.resources.unwrap();
        assert_eq!(
            (limits.cpu_quota, limits.cpu_shares, limits.memory_limit_in_bytes, limits.oom_score_adj),
            (20_000, 204, 32 << 20, -997)
        );
        let security = linux.security_context.unwrap();
        assert!(security.no_new_privs && security.masked_paths.contains(&"/proc/kcore".to_owned()));
        let sandbox = sandbox(&pod, 0, Path::new("/d"), &node);
        assert_eq!(sandbox.log_directory, "/d/logs/n_p_u");
        assert_eq!(sandbox.linux.unwrap().cgroup_parent, "/kubepods/podu");
    }

    #[test]
    fn root_is_refused_where_the_pod_forbids_it() {
        let pod_of = |security: &str| {
            pod(serde_json::from_str(&format!(r#"{{"spec":{{"securityContext":{security},"containers":[{{"name":"c"}}]}}}}"#)).unwrap())
        };
        let image = |uid: Option<i64>, username: &str| wire::Image { uid: int64(uid), username: username.into(), ..Default::default() };
        let table = [
            ("{}", image(None, ""), true),
            (r#"{"runAsNonRoot":true}"#, image(None, ""), false),
            (r#"{"runAsNonRoot":true}"#, image(Some(0), ""), false),
            (r#"{"runAsNonRoot":true}"#, image(Some(7), ""), true),
            (r#"{"runAsNonRoot":true}"#, image(None, "nginx"), false),
            (r#"{"runAsNonRoot":true,"runAsUser":9}"#, image(None, ""), true),
            (r#"{"runAsNonRoot":true,"runAsUser":0}"#, image(Some(7), ""), false),
        ];
        for (security, image, fine) in table {
            let pod = pod_of(security);
            assert_eq!(check_user(&pod, &spec(&pod).containers[0], &image).is_ok(), fine, "{security} {image:?}");
        }
    }
}
