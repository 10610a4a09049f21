//! The scheduler: from a pod and a [`Snapshot`] to a node, or to the reason why there is none.
//!
//! | file | what it holds |
//! |---|---|
//! | `resources.rs` | what pods ask for and what nodes have |
//! | `snapshot.rs` | what the scheduler knows, kept up to date change by change |
//! | `filter.rs` | which nodes are possible, in kube-scheduler's order and words |
//! | `affinity.rs` | pods near, far from, and spread over others |
//! | `score.rs` | which possible node is the best |
//! | `explain.rs` | node by node why not, and the smallest change that would do |
//!
//! Preemption, volumes and image locality are not part of it.

pub mod affinity;
pub mod explain;
pub mod filter;
pub mod resources;
pub mod score;
pub mod snapshot;

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, Pod};
use kontiki_base::env::WallMs;
use serde_json::{Value, json};

pub use affinity::NamespaceLabels;
pub use explain::{Explanation, explain};
pub use snapshot::Snapshot;

use crate::kind::Kind;
use crate::meta;
use crate::plan::{Action, PatchType};
use filter::Prepared;
use snapshot::NodeInfo;

/// The scheduler's name in `spec.schedulerName`.
pub const SCHEDULER: &str = "default-scheduler";

/// The numbers of at most so many nodes stand in the text; [`explain`] has all.
const NODES_IN_TEXT: usize = 5;

/// Where a pod goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// To this node.
    Bind {
        /// Its name.
        node: String,
        /// Its score; 0 when it was the only one.
        score: i64,
        /// Among how many.
        feasible: usize,
    },
    /// Nowhere.
    Unschedulable(Unschedulable),
}

/// Why a pod goes nowhere.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unschedulable {
    /// How many nodes there are.
    pub nodes: usize,
    /// How many nodes gave which reason.
    pub reasons: BTreeMap<String, usize>,
    /// Node by node, with numbers; the first few.
    pub numbers: Vec<(String, String)>,
    /// Nodes whose numbers are not in `numbers`.
    pub more: usize,
}

impl Unschedulable {
    /// kube-scheduler's sentence: `0/2 nodes are available: 2 Insufficient cpu.`
    pub fn sentence(&self) -> String {
        if self.nodes == 0 {
            return "no nodes available to schedule pods".into();
        }
        let mut reasons: Vec<String> = self.reasons.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
        reasons.sort();
        format!("0/{} nodes are available: {}.", self.nodes, reasons.join(", "))
    }

    /// The sentence, and the numbers of the first nodes.
    pub fn message(&self) -> String {
        let mut text = self.sentence();
        if !self.numbers.is_empty() {
            let numbers: Vec<String> = self.numbers.iter().map(|(node, why)| format!("{node}: {why}")).collect();
            text.push(' ');
            text.push_str(&numbers.join("; "));
            if self.more > 0 {
                text.push_str(&format!("; and {} more", self.more));
            }
            text.push('.');
        }
        text
    }
}

/// Whether the pod waits for this scheduler.
pub fn is_pending(pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let ours = spec.scheduler_name.as_deref().is_none_or(|name| name.is_empty() || name == SCHEDULER);
    let gated = spec.scheduling_gates.as_ref().is_some_and(|g| !g.is_empty());
    ours && !gated && meta::node_of(pod).is_empty() && meta::active(pod)
}

/// Who goes first: higher priority, then who has waited longer.
pub fn priority(pod: &Pod) -> i32 {
    pod.spec.as_ref().and_then(|s| s.priority).unwrap_or(0)
}

/// How many feasible nodes are enough (kube-scheduler's `numFeasibleNodesToFind`).
pub fn enough_nodes(nodes: usize) -> usize {
    if nodes < 100 {
        return nodes;
    }
    let percent = 50usize.saturating_sub(nodes / 125).max(5);
    (nodes * percent / 100).max(100)
}

/// Decides where a pod goes. The search starts where the last one ended, so that all nodes get their turn in a large cluster.
pub fn schedule(pod: &Pod, snapshot: &mut Snapshot, namespaces: &NamespaceLabels) -> Decision {
    let start = snapshot.next_start;
    let (decision, looked_at) = decide(pod, snapshot, namespaces, start);
    let count = snapshot.nodes().count().max(1);
    snapshot.next_start = (start + looked_at) % count;
    decision
}

fn decide(pod: &Pod, snapshot: &Snapshot, namespaces: &NamespaceLabels, start: usize) -> (Decision, usize) {
    let prepared = Prepared::of(pod, snapshot, namespaces);
    let nodes: Vec<_> = snapshot.nodes().collect();
    let enough = enough_nodes(nodes.len());
    let mut feasible: Vec<(&str, &NodeInfo, &Node)> = Vec::new();
    let mut why = Unschedulable { nodes: nodes.len(), ..Unschedulable::default() };
    let mut looked_at = 0;
    for i in 0..nodes.len() {
        if feasible.len() >= enough {
            break;
        }
        looked_at += 1;
        let (name, info, node) = nodes[(start + i) % nodes.len()];
        match prepared.refusal(info, node, snapshot) {
            None => feasible.push((name, info, node)),
            Some(refusal) if feasible.is_empty() => {
                for reason in refusal.reasons {
                    *why.reasons.entry(reason).or_default() += 1;
                }
                if why.numbers.len() < NODES_IN_TEXT {
                    why.numbers.push((name.to_owned(), refusal.numbers.join(", ")));
                } else {
                    why.more += 1;
                }
            }
            Some(_) => {}
        }
    }
    let decision = match feasible.as_slice() {
        [] => {
            // By name, wherever the search began: the same refusal reads the same every time.
            why.numbers.sort();
            Decision::Unschedulable(why)
        }
        [(only, _, _)] => Decision::Bind { node: (*only).to_owned(), score: 0, feasible: 1 },
        several => {
            let scores = score::scores(pod, several, snapshot, namespaces);
            let uid = pod.metadata.uid.as_deref().unwrap_or_default();
            match score::best(uid, several, &scores) {
                Some((node, score)) => Decision::Bind { node: node.to_owned(), score, feasible: several.len() },
                None => Decision::Unschedulable(why),
            }
        }
    };
    (decision, looked_at)
}

/// The write that says on the pod why it is not scheduled; `None` if it says so already.
pub fn unscheduled_condition(pod: &Pod, message: &str, now: WallMs) -> Option<Action> {
    let current = meta::pod_condition(pod, "PodScheduled");
    let same = |c: &k8s_openapi::api::core::v1::PodCondition| {
        c.status == "False" && c.reason.as_deref() == Some("Unschedulable") && c.message.as_deref() == Some(message)
    };
    if current.is_some_and(same) {
        return None;
    }
    let since = current.filter(|c| c.status == "False").and_then(|c| c.last_transition_time.as_ref()).map(|t| t.0.to_string());
    let mut conditions: Vec<Value> = pod.status.iter().flat_map(|s| s.conditions.iter().flatten()).map(meta::to_json).collect();
    conditions.retain(|c| c["type"] != "PodScheduled");
    conditions.push(json!({
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": message,
        "lastTransitionTime": since.unwrap_or_else(|| meta::rfc3339(now)),
    }));
    Some(Action::Patch {
        kind: Kind::Pod,
        key: meta::key(&pod.metadata),
        patch_type: PatchType::Merge,
        patch: json!({ "metadata": meta::pin(&pod.metadata), "status": { "conditions": conditions } }),
        subresource: "status",
        guards: Vec::new(),
    })
}
