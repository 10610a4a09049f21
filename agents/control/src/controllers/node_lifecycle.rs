//! Nodes that are no longer heard of: their conditions become Unknown, they are tainted, and their pods stop being ready (Kubernetes
//! `pkg/controller/nodelifecycle`). One key for the whole cluster, because how fast nodes may be given up depends on how many
//! others are lost: at most so many in ten seconds, none while everything seems lost.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, NodeCondition, Pod, Taint};
use kontiki_base::env::WallMs;
use serde_json::json;

use super::Input;
use super::pod_gc::status_patch;
use crate::kind::Kind;
use crate::meta;
use crate::plan::{Action, EventType, PatchType, Plan, Regarding};
use crate::world::World;

/// Taint of a node that says itself that it is not ready.
pub const NOT_READY: &str = "node.kubernetes.io/not-ready";
/// Taint of a node that is not heard of.
pub const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
/// Taint of a node that an administrator has closed.
pub const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// The conditions that become Unknown with the node.
const KNOWN_BY_NODE: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];

/// Conditions that close a node to new pods while they are True.
const PRESSURE: [(&str, &str); 4] = [
    ("MemoryPressure", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "node.kubernetes.io/pid-pressure"),
    ("NetworkUnavailable", "node.kubernetes.io/network-unavailable"),
];

/// Nodes are given up per zone at this rate: one, or a tenth of the zone, in this time.
const EVICTION_WINDOW: Duration = Duration::from_secs(10);
/// The same while more than half of a large zone is lost.
const PARTIAL_WINDOW: Duration = Duration::from_secs(100);
/// A zone smaller than this gives nobody up while more than half of it is lost.
const LARGE_ZONE: usize = 50;
/// At most so many writes by one plan.
const BURST: usize = 200;

/// How much of a zone is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ZoneState {
    /// Most of it is well.
    Normal,
    /// More than two nodes and at least 55 % are not ready.
    Partial,
    /// All of it.
    Full,
}

/// From counts of ready and other nodes.
pub fn zone_state(ready: usize, not_ready: usize) -> ZoneState {
    if ready == 0 && not_ready > 0 {
        ZoneState::Full
    } else if not_ready > 2 && not_ready * 100 >= (ready + not_ready) * 55 {
        ZoneState::Partial
    } else {
        ZoneState::Normal
    }
}

#[derive(Default)]
struct Zone {
    ready: usize,
    not_ready: usize,
    /// When its nodes were given up.
    given_up: Vec<i64>,
}

/// Whether the node has been silent for longer than it may.
fn is_silent(world: &World, node: &Node) -> bool {
    let Some(liveness) = world.liveness.get(meta::name(&node.metadata)) else { return false };
    let never = liveness.last_beat_age_ms.is_none() && meta::node_condition(node, "Ready").is_empty();
    let grace = if never { world.settings.node_startup_grace } else { world.settings.node_grace };
    u128::from(liveness.silent_ms()) > grace.as_millis()
}

/// Whether a node's silence is not yet written in its conditions.
pub fn verdicts_changed(world: &World, _now: WallMs) -> bool {
    world.nodes.all().any(|node| is_silent(world, node) && meta::node_condition(node, "Ready") != "Unknown")
}

/// One look at all nodes.
pub fn reconcile(input: &Input<'_>) -> Plan {
    let mut plan = Plan { independent: true, ..Plan::default() };
    let zones = zones(input.world);
    let all_lost = !zones.is_empty() && zones.values().all(|z| zone_state(z.ready, z.not_ready) == ZoneState::Full);
    let mut zones = zones;
    for node in input.world.nodes.all() {
        if plan.actions.len() >= BURST {
            plan.recheck_in(Duration::from_millis(100));
            break;
        }
        let silent = is_silent(input.world, node);
        if silent && mark_unknown(node, input.now, &mut plan) {
            // The taints are decided on the conditions that this write makes.
            continue;
        }
        if let Some(zone) = zones.get_mut(&zone_of(node)) {
            taint(node, zone, if all_lost || heard_again(node, silent) { Hold::Evictions } else { Hold::Nothing }, input.now, &mut plan);
        }
        if silent && meta::node_condition(node, "Ready") == "Unknown" {
            unready_pods(input.world, node, input.now, &mut plan);
        }
    }
    if plan.actions.is_empty() && plan.recheck.is_none() { Plan::nothing() } else { plan }
}

/// What is held back.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Hold {
    Nothing,
    /// NoExecute taints are not set, and those that are there are taken away.
    Evictions,
}

/// A node that beats again is about to say so in its conditions.
fn heard_again(node: &Node, silent: bool) -> bool {
    !silent && meta::node_condition(node, "Ready") == "Unknown"
}

fn zone_of(node: &Node) -> (String, String) {
    let label = |name: &str| meta::label(&node.metadata, name).unwrap_or_default().to_owned();
    (label("topology.kubernetes.io/region"), label("topology.kubernetes.io/zone"))
}

fn zones(world: &World) -> BTreeMap<(String, String), Zone> {
    let mut zones: BTreeMap<_, Zone> = BTreeMap::new();
    for node in world.nodes.all() {
        let zone = zones.entry(zone_of(node)).or_default();
        // A silent node counts as lost at once, not only when that is written.
        if meta::node_ready(node) && !is_silent(world, node) {
            zone.ready += 1
        } else {
            zone.not_ready += 1
        }
        let taints = node.spec.iter().flat_map(|s| s.taints.iter().flatten());
        let given_up = taints.filter(|t| is_eviction(t)).filter_map(|t| t.time_added.as_ref()).map(meta::millis);
        zone.given_up.extend(given_up);
    }
    zones
}

fn is_eviction(taint: &Taint) -> bool {
    taint.effect == "NoExecute" && (taint.key == NOT_READY || taint.key == UNREACHABLE)
}

/// Writes Unknown into the conditions; false if that is what they say already.
fn mark_unknown(node: &Node, now: WallMs, plan: &mut Plan) -> bool {
    let mut conditions = node.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default();
    let mut changed = false;
    for type_ in KNOWN_BY_NODE {
        let never = "Kubelet never posted node status.";
        match conditions.iter_mut().find(|c| c.type_ == type_) {
            Some(c) if c.status == "Unknown" => {}
            Some(c) => {
                changed = true;
                c.status = "Unknown".into();
                c.reason = Some("NodeStatusUnknown".into());
                c.message = Some("Kubelet stopped posting node status.".into());
                c.last_transition_time = Some(meta::time(now));
            }
            None => {
                changed = true;
                conditions.push(NodeCondition {
                    type_: type_.into(),
                    status: "Unknown".into(),
                    reason: Some("NodeStatusNeverUpdated".into()),
                    message: Some(never.into()),
                    last_transition_time: Some(meta::time(now)),
                    last_heartbeat_time: node.metadata.creation_timestamp.clone(),
                });
            }
        }
    }
    if changed {
        plan.push(Action::Patch {
            kind: Kind::Node,
            key: meta::key(&node.metadata),
            patch_type: PatchType::Merge,
            patch: json!({ "metadata": meta::pin(&node.metadata), "status": { "conditions": conditions } }),
            subresource: "status",
            guards: Vec::new(),
        });
        plan.push(event(node, format!("Node {} status is now: NodeNotReady", meta::name(&node.metadata))));
    }
    changed
}

fn event(node: &Node, message: String) -> Action {
    // Kubernetes' events about nodes carry the node's name where other events carry a uid.
    let regarding = Regarding { kind: Kind::Node, key: meta::key(&node.metadata), uid: meta::uid(&node.metadata) };
    Action::Event { regarding, event_type: EventType::Normal, reason: "NodeNotReady", message }
}

/// The taints that follow from the node's conditions. Taints of others stay as they are.
fn taint(node: &Node, zone: &mut Zone, hold: Hold, now: WallMs, plan: &mut Plan) {
    let present = node.spec.as_ref().and_then(|s| s.taints.clone()).unwrap_or_default();
    let managed = |t: &Taint| {
        t.key == NOT_READY
            || t.key == UNREACHABLE
            || t.key == UNSCHEDULABLE
            || PRESSURE.iter().any(|(_, key)| *key == t.key && t.effect == "NoSchedule")
    };
    let mut wanted: Vec<(&str, &str)> = Vec::new();
    let lost = match meta::node_condition(node, "Ready") {
        "False" => Some(NOT_READY),
        "Unknown" => Some(UNREACHABLE),
        // A node that has said nothing yet is not ready; it is not given up before its time.
        "" => {
            wanted.push((NOT_READY, "NoSchedule"));
            None
        }
        _ => None,
    };
    if let Some(key) = lost {
        wanted.push((key, "NoSchedule"));
        let given_up = present.iter().any(is_eviction);
        if hold == Hold::Nothing && (given_up || may_give_up(zone, now, plan)) {
            wanted.push((key, "NoExecute"));
        }
    }
    for (condition, key) in PRESSURE {
        if meta::node_condition(node, condition) == "True" {
            wanted.push((key, "NoSchedule"));
        }
    }
    if node.spec.as_ref().and_then(|s| s.unschedulable) == Some(true) {
        wanted.push((UNSCHEDULABLE, "NoSchedule"));
    }
    let fresh =
        |key: &str, effect: &str| Taint { key: key.to_owned(), effect: effect.to_owned(), value: None, time_added: Some(meta::time(now)) };
    let is = |t: &Taint, (key, effect): (&str, &str)| t.key == key && t.effect == effect;
    let mut taints: Vec<Taint> = present.iter().filter(|t| !managed(t) || wanted.iter().any(|w| is(t, *w))).cloned().collect();
    for w in wanted {
        if !taints.iter().any(|t| is(t, w)) {
            taints.push(fresh(w.0, w.1));
        }
    }
    if taints == present {
        return;
    }
    plan.push(Action::Patch {
        kind: Kind::Node,
        key: meta::key(&node.metadata),
        patch_type: PatchType::Merge,
        patch: json!({ "metadata": meta::pin(&node.metadata), "spec": { "taints": taints } }),
        subresource: "",
        guards: Vec::new(),
    });
}

/// Whether one more node of the zone may be given up now; if so, it is counted.
fn may_give_up(zone: &mut Zone, now: WallMs, plan: &mut Plan) -> bool {
    let size = zone.ready + zone.not_ready;
    let window = match zone_state(zone.ready, zone.not_ready) {
        ZoneState::Partial if size <= LARGE_ZONE => return false,
        ZoneState::Partial => PARTIAL_WINDOW,
        ZoneState::Normal | ZoneState::Full => EVICTION_WINDOW,
    };
    let window_ms = i64::try_from(window.as_millis()).unwrap_or(i64::MAX);
    let recent = zone.given_up.iter().filter(|t| now.0 - **t < window_ms).count();
    if recent >= (size / 10).max(1) {
        plan.recheck_in(Duration::from_secs(1));
        return false;
    }
    zone.given_up.push(now.0);
    true
}

/// The pods of a node that is not heard of are not known to be ready.
fn unready_pods(world: &World, node: &Node, now: WallMs, plan: &mut Plan) {
    let ready = |pod: &&Arc<Pod>| meta::pod_ready(pod);
    for pod in world.pods_on(meta::name(&node.metadata)).filter(ready) {
        let mut conditions = pod.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default();
        for c in conditions.iter_mut().filter(|c| c.type_ == "Ready") {
            c.status = "False".into();
            c.reason = Some("NodeNotReady".into());
            c.last_transition_time = Some(meta::time(now));
        }
        plan.push(status_patch(pod, json!({ "conditions": conditions })));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zone_states() {
        let table = [
            (5, 0, ZoneState::Normal),
            (0, 1, ZoneState::Full),
            (1, 2, ZoneState::Normal),
            (2, 3, ZoneState::Partial),
            (3, 3, ZoneState::Normal),
            (9, 11, ZoneState::Partial),
            (0, 0, ZoneState::Normal),
        ];
        for (ready, not_ready, want) in table {
            assert_eq!(zone_state(ready, not_ready), want, "{ready} {not_ready}");
        }
    }
}
