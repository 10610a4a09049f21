//! Pods that want to be near other pods, or far from them, or spread evenly (kube-scheduler's plugins InterPodAffinity and
//! PodTopologySpread). What depends on the pod alone is computed once per pod, not once per node.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Node, Pod, PodAffinityTerm, TopologySpreadConstraint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use super::filter;
use super::snapshot::{Placed, Snapshot};
use crate::meta::{self, Labels};
use crate::selector;

/// A node's value of a topology key.
fn domain<'a>(node: &'a Node, key: &str) -> Option<&'a str> {
    meta::label(&node.metadata, key)
}

/// Namespaces and their labels, as far as terms with a namespace selector need them.
pub type NamespaceLabels = BTreeMap<String, Labels>;

/// Whether a term of `owner` selects `pod`.
fn term_selects(term: &PodAffinityTerm, owner: &Pod, pod: &Pod, namespaces: &NamespaceLabels) -> bool {
    let namespace = meta::namespace(&pod.metadata);
    let listed = term.namespaces.as_deref().unwrap_or_default();
    let in_namespace = match &term.namespace_selector {
        None if listed.is_empty() => namespace == meta::namespace(&owner.metadata),
        None => listed.iter().any(|n| n == namespace),
        Some(selector) => listed.iter().any(|n| n == namespace) || selector::matches(selector, namespaces.get(namespace)),
    };
    in_namespace && selects_labels(term.label_selector.as_ref(), term.match_label_keys.as_deref(), owner, pod)
}

/// A missing selector selects nothing; `matchLabelKeys` demand the owner's own values.
fn selects_labels(label_selector: Option<&LabelSelector>, keys: Option<&[String]>, owner: &Pod, pod: &Pod) -> bool {
    let Some(label_selector) = label_selector else { return false };
    let same = |key: &String| match meta::label(&owner.metadata, key) {
        Some(value) => meta::label(&pod.metadata, key) == Some(value),
        None => true,
    };
    selector::matches(label_selector, pod.metadata.labels.as_ref()) && keys.unwrap_or_default().iter().all(same)
}

fn required_affinity(pod: &Pod) -> &[PodAffinityTerm] {
    let affinity = pod.spec.as_ref().and_then(|s| s.affinity.as_ref()).and_then(|a| a.pod_affinity.as_ref());
    affinity.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_deref()).unwrap_or_default()
}

fn required_anti_affinity(pod: &Pod) -> &[PodAffinityTerm] {
    let affinity = pod.spec.as_ref().and_then(|s| s.affinity.as_ref()).and_then(|a| a.pod_anti_affinity.as_ref());
    affinity.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_deref()).unwrap_or_default()
}

fn preferred(pod: &Pod) -> impl Iterator<Item = (i64, &PodAffinityTerm)> {
    let affinity = pod.spec.as_ref().and_then(|s| s.affinity.as_ref());
    let near = affinity.and_then(|a| a.pod_affinity.as_ref()?.preferred_during_scheduling_ignored_during_execution.as_ref());
    let far = affinity.and_then(|a| a.pod_anti_affinity.as_ref()?.preferred_during_scheduling_ignored_during_execution.as_ref());
    let near = near.into_iter().flatten().map(|w| (i64::from(w.weight), &w.pod_affinity_term));
    near.chain(far.into_iter().flatten().map(|w| (-i64::from(w.weight), &w.pod_affinity_term)))
}

/// A topology key and one of its values.
type Domain = (String, String);

/// What the required terms come to for one pod.
#[derive(Debug, Default)]
pub struct Required {
    /// For each affinity term of the pod: the domains that have a pod that it selects.
    near: Vec<(String, BTreeSet<String>)>,
    /// No pod anywhere satisfies the terms, but the pod satisfies them itself: it may be the first.
    first_of_its_kind: bool,
    /// Domains that the pod's own anti-affinity forbids.
    far: BTreeSet<Domain>,
    /// Domains that placed pods forbid to this pod.
    forbidden: BTreeSet<Domain>,
}

impl Required {
    /// Computes them.
    pub fn of(pod: &Pod, snapshot: &Snapshot, namespaces: &NamespaceLabels) -> Self {
        let mut out = Required::default();
        let domain_of = |placed: &Placed, key: &str| {
            let node = snapshot.node(&placed.node)?.node.as_ref()?;
            domain(node, key).map(str::to_owned)
        };
        for term in required_affinity(pod) {
            let selected = snapshot.all_placed().filter(|p| term_selects(term, pod, &p.pod, namespaces));
            out.near.push((term.topology_key.clone(), selected.filter_map(|p| domain_of(p, &term.topology_key)).collect()));
        }
        let nobody = out.near.iter().all(|(_, domains)| domains.is_empty());
        out.first_of_its_kind = nobody && required_affinity(pod).iter().all(|t| term_selects(t, pod, pod, namespaces));
        for term in required_anti_affinity(pod) {
            for placed in snapshot.all_placed().filter(|p| term_selects(term, pod, &p.pod, namespaces)) {
                out.far.extend(domain_of(placed, &term.topology_key).map(|d| (term.topology_key.clone(), d)));
            }
        }
        for placed in snapshot.with_affinity() {
            for term in required_anti_affinity(&placed.pod).iter().filter(|t| term_selects(t, &placed.pod, pod, namespaces)) {
                out.forbidden.extend(domain_of(placed, &term.topology_key).map(|d| (term.topology_key.clone(), d)));
            }
        }
        out
    }

    /// Why the pod cannot go to a node, in kube-scheduler's words.
    pub fn refuses(&self, node: &Node) -> Option<&'static str> {
        let in_domain = |(key, value): &Domain| domain(node, key) == Some(value);
        let near = |(key, domains): &(String, BTreeSet<String>)| match domain(node, key) {
            Some(value) => self.first_of_its_kind || domains.contains(value),
            None => false,
        };
        if !self.near.iter().all(near) {
            Some("node(s) didn't match pod affinity rules")
        } else if self.far.iter().any(in_domain) {
            Some("node(s) didn't match pod anti-affinity rules")
        } else if self.forbidden.iter().any(in_domain) {
            Some("node(s) didn't satisfy existing pods anti-affinity rules")
        } else {
            None
        }
    }
}

/// Weights by domain from preferred terms, in both directions; a placed pod's required affinity counts 1.
pub fn preferences(pod: &Pod, snapshot: &Snapshot, namespaces: &NamespaceLabels) -> BTreeMap<Domain, i64> {
    let mut weights: BTreeMap<Domain, i64> = BTreeMap::new();
    let mut add = |placed: &Placed, key: &str, weight: i64| {
        let node = snapshot.node(&placed.node).and_then(|i| i.node.as_ref());
        if let Some(value) = node.and_then(|n| domain(n, key)) {
            *weights.entry((key.to_owned(), value.to_owned())).or_default() += weight;
        }
    };
    let own: Vec<_> = preferred(pod).collect();
    if !own.is_empty() {
        for placed in snapshot.all_placed() {
            for (weight, term) in own.iter().filter(|(_, t)| term_selects(t, pod, &placed.pod, namespaces)) {
                add(placed, &term.topology_key, *weight);
            }
        }
    }
    for placed in snapshot.with_affinity() {
        let theirs = preferred(&placed.pod).chain(required_affinity(&placed.pod).iter().map(|t| (1, t)));
        for (weight, term) in theirs.filter(|(_, t)| term_selects(t, &placed.pod, pod, namespaces)) {
            add(placed, &term.topology_key, weight);
        }
    }
    weights
}

/// The sum of the weights of a node's domains.
pub fn preference(weights: &BTreeMap<Domain, i64>, node: &Node) -> i64 {
    weights.iter().filter(|((key, value), _)| domain(node, key) == Some(value)).map(|(_, w)| w).sum()
}

/// A spread constraint with the counts of its domains.
#[derive(Debug)]
pub struct Spread {
    key: String,
    max_skew: i64,
    /// Matching pods by domain, over the nodes that take part.
    counts: BTreeMap<String, i64>,
    /// Whether the pod itself matches.
    own: i64,
    min_domains: usize,
}

impl Spread {
    /// The fewest pods in any domain; none while there are too few domains.
    fn minimum(&self) -> i64 {
        if self.counts.len() < self.min_domains { 0 } else { self.counts.values().copied().min().unwrap_or(0) }
    }

    /// Why the pod cannot go to a node.
    pub fn refuses(&self, node: &Node) -> Option<&'static str> {
        let Some(value) = domain(node, &self.key) else {
            return Some("node(s) didn't match pod topology spread constraints (missing required label)");
        };
        let skew = self.counts.get(value).copied().unwrap_or(0) + self.own - self.minimum();
        (skew > self.max_skew).then_some("node(s) didn't match pod topology spread constraints")
    }

    /// How full the node's domain is, weighted as kube-scheduler does; `None`: the node has no such domain.
    pub fn fullness(&self, node: &Node) -> Option<f64> {
        let count = self.counts.get(domain(node, &self.key)?).copied().unwrap_or(0);
        #[allow(clippy::cast_precision_loss, reason = "counts of pods and domains are far below 2^52")]
        Some(count as f64 * ((self.counts.len() + 2) as f64).ln() + (self.max_skew - 1) as f64)
    }
}

/// The pod's spread constraints: the hard ones, or the soft ones.
pub fn spreads(pod: &Pod, snapshot: &Snapshot, hard: bool) -> Vec<Spread> {
    let constraints = pod.spec.as_ref().and_then(|s| s.topology_spread_constraints.as_deref()).unwrap_or_default();
    let wanted = if hard { "DoNotSchedule" } else { "ScheduleAnyway" };
    let chosen: Vec<_> = constraints.iter().filter(|c| c.when_unsatisfiable == wanted).collect();
    let has_all_keys = |node: &Node| chosen.iter().all(|c| domain(node, &c.topology_key).is_some());
    chosen.iter().map(|c| spread(c, pod, snapshot, has_all_keys)).collect()
}

fn spread(c: &TopologySpreadConstraint, pod: &Pod, snapshot: &Snapshot, takes_part: impl Fn(&Node) -> bool) -> Spread {
    let by_affinity = c.node_affinity_policy.as_deref() != Some("Ignore");
    let by_taints = c.node_taints_policy.as_deref() == Some("Honor");
    let selects = |p: &Pod| selects_labels(c.label_selector.as_ref(), c.match_label_keys.as_deref(), pod, p);
    let mut counts: BTreeMap<String, i64> = BTreeMap::new();
    for (_, info, node) in snapshot.nodes() {
        let excluded = (by_affinity && !filter::matches_affinity(pod, node)) || (by_taints && filter::untolerated(pod, node).is_some());
        let Some(value) = domain(node, &c.topology_key).filter(|_| !excluded && takes_part(node)) else { continue };
        let same = |p: &Placed| {
            meta::namespace(&p.pod.metadata) == meta::namespace(&pod.metadata) && !meta::deleting(&p.pod.metadata) && selects(&p.pod)
        };
        let here = info.pods.iter().filter_map(|k| snapshot.placed(k)).filter(|p| same(p)).count();
        *counts.entry(value.to_owned()).or_default() += i64::try_from(here).unwrap_or(i64::MAX);
    }
    Spread {
        key: c.topology_key.clone(),
        max_skew: i64::from(c.max_skew),
        counts,
        own: i64::from(selects(pod)),
        min_domains: c.min_domains.and_then(|m| usize::try_from(m).ok()).unwrap_or(1),
    }
}

/// The spreading that a pod of a controller gets without asking: over hosts (skew 3) and zones (skew 5), counted by controller.
pub fn default_spreads(pod: &Pod, snapshot: &Snapshot) -> Vec<Spread> {
    let constraints = pod.spec.as_ref().and_then(|s| s.topology_spread_constraints.as_deref()).unwrap_or_default();
    let Some(siblings) = meta::controller_uid(&pod.metadata).and_then(|owner| snapshot.siblings(&owner)) else { return Vec::new() };
    if !constraints.is_empty() {
        return Vec::new();
    }
    let keys = [("kubernetes.io/hostname", 3), ("topology.kubernetes.io/zone", 5)];
    let count = |(key, max_skew): (&str, i64)| {
        let mut counts: BTreeMap<String, i64> = BTreeMap::new();
        for (name, _, node) in snapshot.nodes() {
            if let Some(value) = domain(node, key) {
                let here = siblings.get(name).copied().unwrap_or(0);
                *counts.entry(value.to_owned()).or_default() += i64::try_from(here).unwrap_or(i64::MAX);
            }
        }
        Spread { key: key.to_owned(), max_skew, counts, own: 1, min_domains: 1 }
    };
    keys.into_iter().map(count).filter(|s| !s.counts.is_empty()).collect()
}
