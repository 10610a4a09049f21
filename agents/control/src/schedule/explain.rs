//! Why a pod is pending: node by node, with numbers, every filter that refuses, and the smallest change that would make it fit.

use k8s_openapi::api::core::v1::Pod;

use super::affinity::NamespaceLabels;
use super::filter::{Prepared, Refusal};
use super::resources::show;
use super::snapshot::Snapshot;

/// What one node says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeSays {
    /// Its name.
    pub node: String,
    /// Everything that is in the way, with numbers; empty: the pod fits.
    pub because: Vec<String>,
}

/// The whole explanation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// Every node, by name.
    pub nodes: Vec<NodeSays>,
    /// The smallest change that would make the pod fit: `on n1: 1800m less cpu`. `None`: it fits somewhere, or there is no node.
    pub smallest_change: Option<String>,
}

/// A change, and how much of one it is: fewer obstacles first, then the smaller part of the node.
type Ranked = ((usize, bool, i64), String);

/// Explains.
pub fn explain(pod: &Pod, snapshot: &Snapshot, namespaces: &NamespaceLabels) -> Explanation {
    let prepared = Prepared::of(pod, snapshot, namespaces);
    let mut nodes = Vec::new();
    let mut best: Option<Ranked> = None;
    let mut fits = false;
    for (name, info, node) in snapshot.nodes() {
        let refusals: Vec<Refusal> = prepared.all(info, node, snapshot).collect();
        fits |= refusals.is_empty();
        let because = refusals.iter().flat_map(|r| r.numbers.clone()).collect();
        nodes.push(NodeSays { node: name.to_owned(), because });
        if !refusals.is_empty() {
            let share = |(resource, short): &(String, i64)| {
                let all = info.allocatable.get(resource).max(1);
                short.saturating_mul(1000) / all
            };
            let size: i64 = refusals.iter().flat_map(|r| &r.short).map(share).sum();
            let obstacles = refusals.iter().map(|r| r.reasons.len()).sum();
            let hopeless = refusals.iter().any(|r| r.hopeless);
            let rank = (obstacles, hopeless, size);
            if best.as_ref().is_none_or(|(b, _)| rank < *b) {
                best = Some((rank, change(name, &refusals)));
            }
        }
    }
    let smallest_change = if fits { None } else { best.map(|(_, text)| text) };
    Explanation { nodes, smallest_change }
}

fn change(node: &str, refusals: &[Refusal]) -> String {
    let parts: Vec<String> = refusals
        .iter()
        .flat_map(|r| {
            if r.short.is_empty() {
                return r.numbers.iter().map(|n| format!("not: {n}")).collect::<Vec<_>>();
            }
            r.short.iter().map(|(name, short)| format!("{} {name} more free, or that much less requested", show(name, *short))).collect()
        })
        .collect();
    format!("on {node}: {}", parts.join("; "))
}
