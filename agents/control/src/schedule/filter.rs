//! Which nodes a pod can go to, and why not, in kube-scheduler's words. The filters stand in kube-scheduler's order; the first that
//! refuses speaks.

use k8s_openapi::api::core::v1::{Node, Pod, Taint};

use super::affinity::{NamespaceLabels, Required, Spread, spreads};
use super::resources::{Resources, requests, show};
use super::snapshot::{HostPort, NodeInfo, Snapshot};
use crate::controllers::node_lifecycle::UNSCHEDULABLE;
use crate::controllers::taint_eviction::tolerates;
use crate::meta;
use crate::selector;

/// A node's refusal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// kube-scheduler's words: `Insufficient cpu`. More than one only for resources.
    pub reasons: Vec<String>,
    /// The same with numbers: `cpu requested 3000m, free 1200m of 2000m`.
    pub numbers: Vec<String>,
    /// By how much resources fall short: (name, short by).
    pub short: Vec<(String, i64)>,
    /// Whether the pod cannot fit there even if the node were empty.
    pub hopeless: bool,
}

impl Refusal {
    fn plain(reason: impl Into<String>, numbers: impl Into<String>) -> Self {
        Self { reasons: vec![reason.into()], numbers: vec![numbers.into()], short: Vec::new(), hopeless: false }
    }
}

/// A pod, with all that its filters need and that does not depend on the node.
#[derive(Debug)]
pub struct Prepared<'a> {
    pub(super) pod: &'a Pod,
    pub(super) requests: Resources,
    ports: Vec<HostPort>,
    required: Required,
    spreads: Vec<Spread>,
}

impl<'a> Prepared<'a> {
    /// Looks at the pod once.
    pub fn of(pod: &'a Pod, snapshot: &Snapshot, namespaces: &NamespaceLabels) -> Self {
        let required = Required::of(pod, snapshot, namespaces);
        Self { pod, requests: requests(pod), ports: HostPort::of(pod), required, spreads: spreads(pod, snapshot, true) }
    }

    /// The first filter that refuses the node.
    pub fn refusal(&self, info: &NodeInfo, node: &Node, snapshot: &Snapshot) -> Option<Refusal> {
        self.all(info, node, snapshot).next()
    }

    /// Every filter that refuses the node.
    pub fn all<'b>(&'b self, info: &'b NodeInfo, node: &'b Node, snapshot: &'b Snapshot) -> impl Iterator<Item = Refusal> + 'b {
        (0..8).filter_map(move |i| match i {
            0 => unschedulable(self.pod, node),
            1 => self.node_name(node),
            2 => untolerated(self.pod, node).map(taint_refusal),
            3 => (!matches_affinity(self.pod, node)).then(|| {
                Refusal::plain("node(s) didn't match Pod's node affinity/selector", "labels do not match the pod's node affinity/selector")
            }),
            4 => self.ports_refusal(info, snapshot),
            5 => self.fit(info),
            6 => self.spreads.iter().find_map(|s| s.refuses(node)).map(|r| Refusal::plain(r, r)),
            _ => self.required.refuses(node).map(|r| Refusal::plain(r, r)),
        })
    }

    fn node_name(&self, node: &Node) -> Option<Refusal> {
        let wanted = meta::node_of(self.pod);
        let reason = "node(s) didn't match the requested node name";
        (!wanted.is_empty() && wanted != meta::name(&node.metadata))
            .then(|| Refusal::plain(reason, format!("the pod asks for node {wanted}")))
    }

    fn ports_refusal(&self, info: &NodeInfo, snapshot: &Snapshot) -> Option<Refusal> {
        if self.ports.is_empty() {
            return None;
        }
        for key in &info.pods {
            let taken = snapshot.placed(key).map(|p| p.ports.as_slice()).unwrap_or_default();
            if let Some(port) = self.ports.iter().find(|p| taken.iter().any(|t| t.clashes(p))) {
                let numbers = format!("host port {}/{} is taken by pod {key}", port.port, port.protocol);
                return Some(Refusal::plain("node(s) didn't have free ports for the requested pod ports", numbers));
            }
        }
        None
    }

    fn fit(&self, info: &NodeInfo) -> Option<Refusal> {
        let mut refusal = Refusal { reasons: Vec::new(), numbers: Vec::new(), short: Vec::new(), hopeless: false };
        if info.free("pods") < 1 {
            refusal.reasons.push("Too many pods".into());
            refusal.numbers.push(format!("pods: {} of {} taken", info.taken("pods"), info.allocatable.get("pods")));
            refusal.short.push(("pods".into(), 1 - info.free("pods")));
            refusal.hopeless |= info.allocatable.get("pods") < 1;
        }
        // What is not asked for always fits.
        for (name, wanted) in self.requests.iter().filter(|(name, wanted)| *wanted > 0 && *name != "pods") {
            let (free, all) = (info.free(name), info.allocatable.get(name));
            if wanted > free {
                refusal.reasons.push(format!("Insufficient {name}"));
                refusal.numbers.push(format!("{name} requested {}, free {} of {}", show(name, wanted), show(name, free), show(name, all)));
                refusal.short.push((name.to_owned(), wanted - free));
                refusal.hopeless |= wanted > all;
            }
        }
        (!refusal.reasons.is_empty()).then_some(refusal)
    }
}

fn unschedulable(pod: &Pod, node: &Node) -> Option<Refusal> {
    if node.spec.as_ref().and_then(|s| s.unschedulable) != Some(true) {
        return None;
    }
    let taint = Taint { key: UNSCHEDULABLE.into(), effect: "NoSchedule".into(), ..Taint::default() };
    let tolerated = tolerations(pod).iter().any(|t| tolerates(t, &taint));
    (!tolerated).then(|| Refusal::plain("node(s) were unschedulable", "the node is cordoned"))
}

fn tolerations(pod: &Pod) -> &[k8s_openapi::api::core::v1::Toleration] {
    pod.spec.as_ref().and_then(|s| s.tolerations.as_deref()).unwrap_or_default()
}

/// The first taint that keeps the pod away.
pub fn untolerated<'a>(pod: &Pod, node: &'a Node) -> Option<&'a Taint> {
    let taints = node.spec.as_ref().and_then(|s| s.taints.as_deref()).unwrap_or_default();
    let keeps_away = |t: &&Taint| t.effect == "NoSchedule" || t.effect == "NoExecute";
    taints.iter().filter(keeps_away).find(|taint| !tolerations(pod).iter().any(|t| tolerates(t, taint)))
}

/// How many PreferNoSchedule taints the pod does not tolerate.
pub(super) fn unpreferred(pod: &Pod, node: &Node) -> i64 {
    let taints = node.spec.as_ref().and_then(|s| s.taints.as_deref()).unwrap_or_default();
    let soft = taints.iter().filter(|t| t.effect == "PreferNoSchedule");
    i64::try_from(soft.filter(|taint| !tolerations(pod).iter().any(|t| tolerates(t, taint))).count()).unwrap_or(i64::MAX)
}

fn taint_refusal(taint: &Taint) -> Refusal {
    let (key, value) = (&taint.key, taint.value.as_deref().unwrap_or_default());
    Refusal::plain(
        format!("node(s) had untolerated taint {{{key}: {value}}}"),
        format!("taint {key}={value}:{} is not tolerated", taint.effect),
    )
}

/// Whether a node satisfies the pod's node selector and its required node affinity.
pub fn matches_affinity(pod: &Pod, node: &Node) -> bool {
    let Some(spec) = &pod.spec else { return true };
    let selected = spec.node_selector.as_ref().is_none_or(|wanted| selector::contains(node.metadata.labels.as_ref(), wanted));
    let affinity = spec.affinity.as_ref().and_then(|a| a.node_affinity.as_ref());
    let required = affinity.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    selected && required.is_none_or(|s| selector::node_selector(s, node))
}
