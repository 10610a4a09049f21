//! The life of a pod as pure functions: what is seen and what is remembered go in, what to do and what to report come out. No clock,
//! no IO; the shell is `node::sync`.
//!
//! | module | decides |
//! |---|---|
//! | [`seen`] | what the runtime shows of a pod, as plain values |
//! | [`memory`] | what the agent remembers of a pod beside that |
//! | [`decide`] | the next steps: start, restart, stop, clean up |
//! | [`backoff`] | how long a crashing container or a failing pull waits |
//! | [`probe`] | when a probe is due and what its results add up to |
//! | [`status`] | the PodStatus to report |
//! | [`resources`] | quality of service, cgroup limits, the kernel's victim score |
//!
//! The rules are those of Kubernetes' kubelet (pkg/kubelet/kubelet_pods.go, pkg/kubelet/kuberuntime).

pub mod backoff;
pub mod decide;
pub mod memory;
pub mod probe;
pub mod resources;
pub mod seen;
pub mod status;
#[cfg(test)]
mod tests;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};

/// A pod's restart policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestartPolicy {
    /// Whatever the exit code.
    Always,
    /// After a non-zero exit code.
    OnFailure,
    /// Not at all.
    Never,
}

impl RestartPolicy {
    /// Of a pod; absent means `Always`.
    pub fn of(spec: &PodSpec) -> Self {
        match spec.restart_policy.as_deref() {
            Some("OnFailure") => Self::OnFailure,
            Some("Never") => Self::Never,
            _ => Self::Always,
        }
    }

    /// Whether a container that ended with this code is started again.
    pub fn restarts(self, exit_code: i32) -> bool {
        match self {
            Self::Always => true,
            Self::OnFailure => exit_code != 0,
            Self::Never => false,
        }
    }
}

/// An init container that stays: `restartPolicy: Always` on it.
pub fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// The pod's specification; a pod without one (which the API does not admit) has no containers.
pub fn spec(pod: &Pod) -> &PodSpec {
    static EMPTY: std::sync::OnceLock<PodSpec> = std::sync::OnceLock::new();
    pod.spec.as_ref().unwrap_or_else(|| EMPTY.get_or_init(PodSpec::default))
}

/// The init containers, sidecars among them, in order.
pub fn init_containers(pod: &Pod) -> &[Container] {
    spec(pod).init_containers.as_deref().unwrap_or_default()
}

/// The containers proper.
pub fn containers(pod: &Pod) -> &[Container] {
    &spec(pod).containers
}

/// A container of the pod by name, of either sort.
pub fn container<'a>(pod: &'a Pod, name: &str) -> Option<&'a Container> {
    init_containers(pod).iter().chain(containers(pod)).find(|c| c.name == name)
}

/// Whether somebody has asked for the pod to end.
pub fn is_deleted(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

/// Seconds that the pod's containers get to end.
pub fn grace_seconds(pod: &Pod) -> i64 {
    let own = spec(pod).termination_grace_period_seconds.unwrap_or(30);
    pod.metadata.deletion_grace_period_seconds.unwrap_or(own).max(0)
}

/// A hash of the parts of a container that cannot change in place: another hash means that the container has to be started anew.
/// Only the image of a running pod can be changed, so that is all that counts.
pub fn container_hash(container: &Container) -> String {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in container.name.bytes().chain([0]).chain(container.image.as_deref().unwrap_or_default().bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    format!("{hash:016x}")
}
