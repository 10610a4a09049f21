//! Quality of service, and what a pod's requests and limits are to the kernel.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kontiki_control::quantity;

use super::{containers, init_containers, is_sidecar, spec};

/// The three classes, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Qos {
    /// Every container has limits for CPU and memory, and requests equal to them.
    Guaranteed,
    /// Something is requested or limited.
    Burstable,
    /// Nothing is.
    BestEffort,
}

impl Qos {
    /// As `status.qosClass` has it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Guaranteed => "Guaranteed",
            Self::Burstable => "Burstable",
            Self::BestEffort => "BestEffort",
        }
    }

    /// Of a pod.
    pub fn of(pod: &Pod) -> Self {
        let all = || init_containers(pod).iter().chain(containers(pod));
        let names = ["cpu", "memory"];
        let any = all().any(|c| names.iter().any(|n| request(c, n) > 0 || limit(c, n) > 0));
        if !any {
            return Self::BestEffort;
        }
        let all_equal = all().all(|c| names.iter().all(|n| limit(c, n) > 0 && request(c, n) == limit(c, n)));
        if all_equal { Self::Guaranteed } else { Self::Burstable }
    }
}

fn amount(map: Option<&BTreeMap<String, Quantity>>, name: &str) -> Option<i64> {
    let text = &map?.get(name)?.0;
    if name == "cpu" { quantity::milli(text) } else { quantity::units(text) }
}

/// A container's limit: millicores for `cpu`, plain units otherwise; 0 is none.
pub fn limit(container: &Container, name: &str) -> i64 {
    amount(container.resources.as_ref().and_then(|r| r.limits.as_ref()), name).unwrap_or(0)
}

/// A container's request, which is its limit if only that is given.
pub fn request(container: &Container, name: &str) -> i64 {
    amount(container.resources.as_ref().and_then(|r| r.requests.as_ref()), name).unwrap_or_else(|| limit(container, name))
}

/// What a pod asks for: the sum of its containers and sidecars, or its largest init container if that is more.
pub fn pod_request(pod: &Pod, name: &str) -> i64 {
    let sidecars: i64 = init_containers(pod).iter().filter(|c| is_sidecar(c)).map(|c| request(c, name)).sum();
    let running: i64 = containers(pod).iter().map(|c| request(c, name)).sum::<i64>() + sidecars;
    let init = init_containers(pod).iter().filter(|c| !is_sidecar(c)).map(|c| request(c, name)).max().unwrap_or(0);
    let overhead = amount(spec(pod).overhead.as_ref(), name).unwrap_or(0);
    running.max(init + sidecars) + overhead
}

/// Length of the kernel's CPU period, microseconds.
pub const CPU_PERIOD: i64 = 100_000;

/// `cpu.shares` of so many millicores.
pub fn cpu_shares(milli: i64) -> i64 {
    (milli.saturating_mul(1_024) / 1_000).clamp(2, 262_144)
}

/// `cpu.cfs_quota_us` of so many millicores; 0 is unlimited.
pub fn cpu_quota(milli: i64) -> i64 {
    if milli <= 0 { 0 } else { (milli.saturating_mul(CPU_PERIOD) / 1_000).max(1_000) }
}

/// How ready the kernel is to kill a container when the node runs out of memory: -997 (last) to 1000 (first).
pub fn oom_score_adj(pod: &Pod, container: &Container, capacity_bytes: i64) -> i64 {
    if spec(pod).priority_class_name.as_deref() == Some("system-node-critical") {
        return -997;
    }
    match Qos::of(pod) {
        Qos::Guaranteed => -997,
        Qos::BestEffort => 1_000,
        Qos::Burstable => {
            let requested = i128::from(request(container, "memory"));
            let score = 1_000 - i64::try_from(1_000 * requested / i128::from(capacity_bytes.max(1))).unwrap_or(1_000);
            score.clamp(3, 999)
        }
    }
}

/// The cgroup of a pod below the agent's root: `kubepods/burstable/podUID`.
pub fn pod_cgroup(root: &str, pod: &Pod) -> String {
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    match Qos::of(pod) {
        Qos::Guaranteed => format!("{root}/pod{uid}"),
        Qos::Burstable => format!("{root}/burstable/pod{uid}"),
        Qos::BestEffort => format!("{root}/besteffort/pod{uid}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(resources: &str) -> Pod {
        let text = format!(r#"{{"metadata":{{"uid":"u"}},"spec":{{"containers":[{{"name":"a","resources":{resources}}}]}}}}"#);
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn classes() {
        let table = [
            ("{}", Qos::BestEffort),
            (r#"{"limits":{"cpu":"1","memory":"1Gi"}}"#, Qos::Guaranteed),
            (r#"{"limits":{"cpu":"1","memory":"1Gi"},"requests":{"cpu":"1000m","memory":"1Gi"}}"#, Qos::Guaranteed),
            (r#"{"limits":{"cpu":"1","memory":"1Gi"},"requests":{"cpu":"500m"}}"#, Qos::Burstable),
            (r#"{"limits":{"cpu":"1"}}"#, Qos::Burstable),
            (r#"{"requests":{"memory":"1Mi"}}"#, Qos::Burstable),
        ];
        for (resources, class) in table {
            assert_eq!(Qos::of(&pod(resources)), class, "{resources}");
        }
    }

    #[test]
    fn numbers_for_the_kernel() {
        assert_eq!([0, 1, 1_000, 500, 1_000_000_000].map(cpu_shares), [2, 2, 1_024, 512, 262_144]);
        assert_eq!([0, 5, 200, 1_500].map(cpu_quota), [0, 1_000, 20_000, 150_000]);
    }

    #[test]
    fn victims() {
        let capacity = 4 << 30;
        let score = |resources: &str| {
            let pod = pod(resources);
            oom_score_adj(&pod, &containers(&pod)[0], capacity)
        };
        assert_eq!(score("{}"), 1_000);
        assert_eq!(score(r#"{"limits":{"cpu":"1","memory":"1Gi"}}"#), -997);
        assert_eq!(score(r#"{"requests":{"memory":"1Gi"}}"#), 750);
        assert_eq!(score(r#"{"requests":{"memory":"4Gi"}}"#), 3);
        assert_eq!(score(r#"{"requests":{"memory":"1"}}"#), 999);
    }
}
