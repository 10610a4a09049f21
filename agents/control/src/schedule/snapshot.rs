//! What the scheduler knows, kept up to date change by change: nodes with what is taken on them, the placed pods, and the pods that
//! it has bound in its mind and not yet seen bound. An assumption never expires: it ends when the pod is seen (bound, or gone), or when
//! the binding has failed for certain.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod};
use kontiki_base::Uid;
use kontiki_base::object::ObjectKey;

use super::resources::{Resources, allocatable, requests, requests_for_scoring};
use crate::meta;

/// A port that a pod takes on its node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostPort {
    /// `TCP`, `UDP`, `SCTP`.
    pub protocol: String,
    /// Empty or `0.0.0.0`: all addresses.
    pub ip: String,
    /// The port.
    pub port: i32,
}

impl HostPort {
    /// The ports that a pod takes.
    pub fn of(pod: &Pod) -> Vec<HostPort> {
        let Some(spec) = &pod.spec else { return Vec::new() };
        let sidecars = spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
        let host_network = spec.host_network == Some(true);
        let ports = spec.containers.iter().chain(sidecars).flat_map(|c| c.ports.iter().flatten());
        ports
            .filter_map(|p| {
                let port = p.host_port.or(host_network.then_some(p.container_port)).filter(|p| *p > 0)?;
                let protocol = p.protocol.clone().unwrap_or_else(|| "TCP".into());
                Some(HostPort { protocol, ip: p.host_ip.clone().unwrap_or_default(), port })
            })
            .collect()
    }

    /// Whether two pods cannot both have it.
    pub fn clashes(&self, other: &HostPort) -> bool {
        let any = |ip: &str| ip.is_empty() || ip == "0.0.0.0" || ip == "::";
        self.port == other.port && self.protocol == other.protocol && (any(&self.ip) || any(&other.ip) || self.ip == other.ip)
    }
}

/// A pod that has a node.
#[derive(Clone, Debug)]
pub struct Placed {
    /// The pod.
    pub pod: Arc<Pod>,
    /// Its node.
    pub node: String,
    /// What it takes.
    pub requests: Resources,
    /// The same as scores count it.
    pub scoring: Resources,
    /// Ports that it takes on the node.
    pub ports: Vec<HostPort>,
    /// Bound in the scheduler's mind only.
    pub assumed: bool,
}

/// A node and what is taken on it.
#[derive(Clone, Debug, Default)]
pub struct NodeInfo {
    /// The node; `None` while only its pods are known.
    pub node: Option<Arc<Node>>,
    /// What it has for pods.
    pub allocatable: Resources,
    /// What its pods take.
    pub requested: Resources,
    /// The same as scores count it.
    pub scoring: Resources,
    /// Its pods.
    pub pods: BTreeSet<ObjectKey>,
}

impl NodeInfo {
    /// What is free of a resource. Pods count themselves.
    pub fn free(&self, name: &str) -> i64 {
        self.allocatable.get(name).saturating_sub(self.taken(name))
    }

    /// What is taken of a resource.
    pub fn taken(&self, name: &str) -> i64 {
        if name == "pods" { i64::try_from(self.pods.len()).unwrap_or(i64::MAX) } else { self.requested.get(name) }
    }
}

/// The scheduler's world.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    nodes: BTreeMap<String, NodeInfo>,
    placed: BTreeMap<ObjectKey, Placed>,
    /// Pods that keep others away from where they are, or pull them there.
    with_affinity: BTreeSet<ObjectKey>,
    /// How many pods of one controller are on each node.
    siblings: BTreeMap<Uid, BTreeMap<String, usize>>,
    /// Where the next search for feasible nodes starts.
    pub(super) next_start: usize,
}

impl Snapshot {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// A node is there, or has changed.
    pub fn upsert_node(&mut self, node: Arc<Node>) {
        let info = self.nodes.entry(meta::name(&node.metadata).to_owned()).or_default();
        info.allocatable = allocatable(&node);
        info.node = Some(node);
    }

    /// A node is gone. Its pods are still accounted for, until they are gone too.
    pub fn remove_node(&mut self, name: &str) {
        if let Some(info) = self.nodes.get_mut(name) {
            info.node = None;
            info.allocatable = Resources::default();
            if info.pods.is_empty() {
                self.nodes.remove(name);
            }
        }
    }

    /// A pod is there, or has changed: what the API says replaces any assumption, except that a pod that is not yet seen bound
    /// stays assumed.
    pub fn upsert_pod(&mut self, pod: Arc<Pod>) {
        let key = meta::key(&pod.metadata);
        let node = meta::node_of(&pod).to_owned();
        if node.is_empty() {
            let other_pod = self.placed.get(&key).is_some_and(|p| meta::uid(&p.pod.metadata) != meta::uid(&pod.metadata));
            if other_pod {
                self.remove_pod(&key);
            }
            return;
        }
        self.remove_pod(&key);
        if !meta::terminal(&pod) {
            self.place(key, pod, node, false);
        }
    }

    /// A pod is gone.
    pub fn remove_pod(&mut self, key: &ObjectKey) {
        let Some(old) = self.placed.remove(key) else { return };
        self.with_affinity.remove(key);
        if let Some(owner) = meta::controller_uid(&old.pod.metadata)
            && let Some(counts) = self.siblings.get_mut(&owner)
        {
            if let Some(count) = counts.get_mut(&old.node) {
                *count -= 1;
            }
            counts.retain(|_, count| *count > 0);
            if counts.is_empty() {
                self.siblings.remove(&owner);
            }
        }
        if let Some(info) = self.nodes.get_mut(&old.node) {
            info.pods.remove(key);
            info.requested.subtract(&old.requests);
            info.scoring.subtract(&old.scoring);
            if info.pods.is_empty() && info.node.is_none() {
                self.nodes.remove(&old.node);
            }
        }
    }

    /// The pod is being bound to a node: from now on it counts there.
    pub fn assume(&mut self, pod: Arc<Pod>, node: &str) {
        let key = meta::key(&pod.metadata);
        self.remove_pod(&key);
        self.place(key, pod, node.to_owned(), true);
    }

    /// The binding has failed for certain. A pod that was seen bound in the meantime stays.
    pub fn forget(&mut self, key: &ObjectKey, uid: &Uid) {
        if self.placed.get(key).is_some_and(|p| p.assumed && meta::uid(&p.pod.metadata) == *uid) {
            self.remove_pod(key);
        }
    }

    fn place(&mut self, key: ObjectKey, pod: Arc<Pod>, node: String, assumed: bool) {
        let (requests, scoring) = (requests(&pod), requests_for_scoring(&pod));
        let info = self.nodes.entry(node.clone()).or_default();
        info.pods.insert(key.clone());
        info.requested.add(&requests);
        info.scoring.add(&scoring);
        if let Some(owner) = meta::controller_uid(&pod.metadata) {
            *self.siblings.entry(owner).or_default().entry(node.clone()).or_default() += 1;
        }
        let affinity = pod.spec.as_ref().and_then(|s| s.affinity.as_ref());
        if affinity.is_some_and(|a| a.pod_affinity.is_some() || a.pod_anti_affinity.is_some()) {
            self.with_affinity.insert(key.clone());
        }
        let ports = HostPort::of(&pod);
        self.placed.insert(key, Placed { pod, node, requests, scoring, ports, assumed });
    }

    /// The nodes that exist, by name.
    pub fn nodes(&self) -> impl Iterator<Item = (&str, &NodeInfo, &Arc<Node>)> {
        self.nodes.iter().filter_map(|(name, info)| info.node.as_ref().map(|node| (name.as_str(), info, node)))
    }

    /// A node by name.
    pub fn node(&self, name: &str) -> Option<&NodeInfo> {
        self.nodes.get(name)
    }

    /// A pod that has a node.
    pub fn placed(&self, key: &ObjectKey) -> Option<&Placed> {
        self.placed.get(key)
    }

    /// All pods that have a node.
    pub fn all_placed(&self) -> impl Iterator<Item = &Placed> {
        self.placed.values()
    }

    /// The pods with affinity or anti-affinity terms.
    pub fn with_affinity(&self) -> impl Iterator<Item = &Placed> {
        self.with_affinity.iter().filter_map(|key| self.placed.get(key))
    }

    /// How many pods of a controller are on each node.
    pub fn siblings(&self, owner: &Uid) -> Option<&BTreeMap<String, usize>> {
        self.siblings.get(owner)
    }

    /// Whether the pod is bound in the scheduler's mind only.
    pub fn is_assumed(&self, key: &ObjectKey) -> bool {
        self.placed.get(key).is_some_and(|p| p.assumed)
    }

    /// The pods whose binding is under way, for a look at those that never came back.
    pub fn assumed(&self) -> impl Iterator<Item = (&ObjectKey, &Placed)> {
        self.placed.iter().filter(|(_, p)| p.assumed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(name: &str, uid: &str, node: Option<&str>, cpu: &str) -> Arc<Pod> {
        let container = json!({ "name": "c", "resources": { "requests": { "cpu": cpu } } });
        let owner = json!([{ "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "r", "controller": true }]);
        let meta = json!({ "name": name, "namespace": "d", "uid": uid, "ownerReferences": owner });
        Arc::new(serde_json::from_value(json!({ "metadata": meta, "spec": { "nodeName": node, "containers": [container] } })).unwrap())
    }

    #[test]
    fn sums_follow_the_pods_and_come_back_to_nothing() {
        let mut s = Snapshot::new();
        s.upsert_node(Arc::new(
            serde_json::from_value(json!({ "metadata": { "name": "n" }, "status": { "allocatable": { "cpu": "4", "pods": "10" } } }))
                .unwrap(),
        ));
        s.assume(pod("a", "1", None, "1"), "n");
        assert_eq!((s.node("n").unwrap().free("cpu"), s.node("n").unwrap().free("pods")), (3000, 9));
        // The unbound pod is seen again (its condition was written): the assumption stays.
        s.upsert_pod(pod("a", "1", None, "1"));
        assert!(s.is_assumed(&ObjectKey::new("d", "a")));
        s.upsert_pod(pod("a", "1", Some("n"), "1"));
        assert!(!s.is_assumed(&ObjectKey::new("d", "a")));
        s.forget(&ObjectKey::new("d", "a"), &Uid("1".into()));
        assert_eq!(s.node("n").unwrap().free("cpu"), 3000, "a pod that was seen bound is not forgotten");
        // Another pod under the same name that has no node ends what was assumed of the first.
        s.upsert_pod(pod("a", "2", None, "1"));
        assert_eq!(s.node("n").unwrap().free("cpu"), 4000);
        assert_eq!((s.siblings.len(), s.placed.len()), (0, 0));
        s.upsert_pod(pod("b", "3", Some("m"), "2"));
        assert_eq!(s.nodes().count(), 1, "a node that nobody has seen is no candidate");
        s.remove_pod(&ObjectKey::new("d", "b"));
        assert!(s.node("m").is_none());
    }

    #[test]
    fn host_ports_clash_by_address() {
        let p = |ip: &str, port: i32| HostPort { protocol: "TCP".into(), ip: ip.into(), port };
        assert!(p("", 80).clashes(&p("127.0.0.1", 80)));
        assert!(!p("10.0.0.1", 80).clashes(&p("127.0.0.1", 80)));
        assert!(!p("", 80).clashes(&p("", 81)));
    }
}
