//! What pods ask for and what nodes have: cpu in thousandths of a core, everything else in whole units.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Node, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::quantity;

/// What a container without a request counts as in scores (kube-scheduler's `DefaultMilliCPURequest`).
pub const DEFAULT_CPU_MILLI: i64 = 100;
/// The same for memory: 200 MiB.
pub const DEFAULT_MEMORY: i64 = 200 * 1024 * 1024;

/// Amounts by resource name; what is not there is zero.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources(BTreeMap<String, i64>);

impl Resources {
    /// Reads quantities. One that cannot be read counts as nothing: the API server has refused it.
    pub fn of(list: Option<&BTreeMap<String, Quantity>>) -> Self {
        let read = |(name, q): (&String, &Quantity)| {
            let amount = if name == "cpu" { quantity::milli(&q.0) } else { quantity::units(&q.0) };
            amount.map(|a| (name.clone(), a))
        };
        Self(list.into_iter().flatten().filter_map(read).collect())
    }

    /// The amount of a resource.
    pub fn get(&self, name: &str) -> i64 {
        self.0.get(name).copied().unwrap_or(0)
    }

    /// Sets an amount.
    pub fn set(&mut self, name: &str, amount: i64) {
        self.0.insert(name.to_owned(), amount);
    }

    /// Adds all of `other`.
    pub fn add(&mut self, other: &Self) {
        for (name, amount) in &other.0 {
            let sum = self.0.entry(name.clone()).or_default();
            *sum = sum.saturating_add(*amount);
        }
    }

    /// Takes all of `other` away.
    pub fn subtract(&mut self, other: &Self) {
        for (name, amount) in &other.0 {
            let rest = self.0.entry(name.clone()).or_default();
            *rest = rest.saturating_sub(*amount);
        }
        self.0.retain(|_, amount| *amount != 0);
    }

    /// The larger of each amount.
    pub fn raise_to(&mut self, other: &Self) {
        for (name, amount) in &other.0 {
            let mine = self.0.entry(name.clone()).or_default();
            *mine = (*mine).max(*amount);
        }
    }

    /// Name and amount, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, i64)> {
        self.0.iter().map(|(name, amount)| (name.as_str(), *amount))
    }
}

/// Whether unset requests count as the defaults of scoring.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Unset {
    IsZero,
    IsDefault,
}

fn container(c: &Container, unset: Unset) -> Resources {
    let mut r = Resources::of(c.resources.as_ref().and_then(|r| r.requests.as_ref()));
    if unset == Unset::IsDefault {
        for (name, amount) in [("cpu", DEFAULT_CPU_MILLI), ("memory", DEFAULT_MEMORY)] {
            if r.get(name) == 0 {
                r.set(name, amount);
            }
        }
    }
    r
}

fn effective(pod: &Pod, unset: Unset) -> Resources {
    let Some(spec) = &pod.spec else { return Resources::default() };
    let mut total = Resources::default();
    for c in &spec.containers {
        total.add(&container(c, unset));
    }
    // Init containers run one after the other, beside the sidecars that were started before them.
    let (mut sidecars, mut peak) = (Resources::default(), Resources::default());
    for c in spec.init_containers.iter().flatten() {
        let own = container(c, unset);
        if c.restart_policy.as_deref() == Some("Always") {
            sidecars.add(&own);
            peak.raise_to(&sidecars);
        } else {
            let mut at_once = sidecars.clone();
            at_once.add(&own);
            peak.raise_to(&at_once);
        }
    }
    total.add(&sidecars);
    total.raise_to(&peak);
    total.add(&Resources::of(spec.overhead.as_ref()));
    total
}

/// What a pod needs at its peak: all that is compared with what a node has free.
pub fn requests(pod: &Pod) -> Resources {
    effective(pod, Unset::IsZero)
}

/// The same with defaults for containers that ask for nothing: what scores count with.
pub fn requests_for_scoring(pod: &Pod) -> Resources {
    effective(pod, Unset::IsDefault)
}

/// What a node has for pods.
pub fn allocatable(node: &Node) -> Resources {
    let status = node.status.as_ref();
    Resources::of(status.and_then(|s| s.allocatable.as_ref().or(s.capacity.as_ref())))
}

/// An amount as people write it: `1500m`, `512Mi`, `3`.
pub fn show(name: &str, amount: i64) -> String {
    if name == "cpu" {
        return format!("{amount}m");
    }
    if name == "memory" || name == "ephemeral-storage" || name.starts_with("hugepages-") {
        for (unit, shift) in [("Gi", 30), ("Mi", 20), ("Ki", 10)] {
            if amount != 0 && amount % (1 << shift) == 0 {
                return format!("{}{unit}", amount >> shift);
            }
        }
    }
    amount.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(json!({ "metadata": {}, "spec": spec })).unwrap()
    }

    fn cpu(amount: &str) -> serde_json::Value {
        json!({ "name": "c", "resources": { "requests": { "cpu": amount } } })
    }

    #[test]
    fn init_containers_count_at_their_peak() {
        let always = |amount: &str| {
            let mut c = cpu(amount);
            c["restartPolicy"] = json!("Always");
            c
        };
        let p = pod(json!({ "containers": [cpu("200m"), cpu("300m")], "initContainers": [cpu("1"), always("100m"), cpu("450m")] }));
        // max(1000, 100 + 450, 500 + 100)
        assert_eq!(requests(&p).get("cpu"), 1000);
        let p = pod(json!({ "containers": [cpu("500m")], "initContainers": [always("100m"), cpu("450m")], "overhead": { "cpu": "50m" } }));
        assert_eq!(requests(&p).get("cpu"), 650);
    }

    #[test]
    fn nothing_asked_counts_only_in_scores() {
        let p = pod(json!({ "containers": [{ "name": "a" }] }));
        assert_eq!(requests(&p), Resources::default());
        let s = requests_for_scoring(&p);
        assert_eq!((s.get("cpu"), s.get("memory")), (100, 209_715_200));
    }

    #[test]
    fn amounts_for_people() {
        assert_eq!(show("cpu", 1500), "1500m");
        assert_eq!(show("memory", 512 << 20), "512Mi");
        assert_eq!(show("memory", 1000), "1000");
        assert_eq!(show("pods", 110), "110");
    }
}
