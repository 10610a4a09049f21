//! Every node gets a block of pod addresses of its own, once (Kubernetes `pkg/controller/nodeipam`, range allocator). One key for
//! the whole cluster, so that no two nodes are given a block at once.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use serde_json::json;

use super::Input;
use crate::kind::Kind;
use crate::meta;
use crate::plan::{Action, EventType, PatchType, Plan, Regarding};
use crate::world::Settings;

/// At most so many nodes are served by one plan.
const BURST: usize = 200;

/// One look at all nodes.
pub fn reconcile(input: &Input<'_>) -> Plan {
    let mut plan = Plan { independent: true, ..Plan::default() };
    let nodes = &input.world.nodes;
    let cidr = |n: &k8s_openapi::api::core::v1::Node| n.spec.as_ref().and_then(|s| s.pod_cidr.clone()).filter(|c| !c.is_empty());
    let needy: Vec<_> = nodes.all().filter(|n| cidr(n).is_none() && !meta::deleting(&n.metadata)).collect();
    if needy.is_empty() {
        return Plan::nothing();
    }
    let taken: BTreeSet<u32> = nodes.all().filter_map(|n| block_of(&cidr(n)?, &input.world.settings)).collect();
    let mut free = (0..blocks(&input.world.settings)).filter(|b| !taken.contains(b));
    for node in needy.into_iter().take(BURST) {
        let Some(block) = free.next() else {
            let regarding = Regarding { kind: Kind::Node, key: meta::key(&node.metadata), uid: meta::uid(&node.metadata) };
            let message = format!("Node {} status is now: CIDRNotAvailable", meta::name(&node.metadata));
            plan.push(Action::Event { regarding, event_type: EventType::Normal, reason: "CIDRNotAvailable", message });
            continue;
        };
        let cidr = format!("{}/{}", address(block, &input.world.settings), input.world.settings.node_prefix);
        plan.push(Action::Patch {
            kind: Kind::Node,
            key: meta::key(&node.metadata),
            patch_type: PatchType::Merge,
            patch: json!({ "metadata": { "uid": node.metadata.uid }, "spec": { "podCIDR": cidr, "podCIDRs": [cidr] } }),
            subresource: "",
            guards: Vec::new(),
        });
    }
    plan
}

/// How many blocks there are.
fn blocks(settings: &Settings) -> u32 {
    let bits = settings.node_prefix.saturating_sub(settings.pod_network.1);
    1u32.checked_shl(u32::from(bits)).unwrap_or(0)
}

fn host_bits(settings: &Settings) -> u32 {
    32 - u32::from(settings.node_prefix.min(32))
}

fn address(block: u32, settings: &Settings) -> Ipv4Addr {
    let offset = block.checked_shl(host_bits(settings)).unwrap_or(0);
    Ipv4Addr::from(u32::from(settings.pod_network.0).wrapping_add(offset))
}

/// The number of a block that was given out; `None` if it lies outside the network.
fn block_of(cidr: &str, settings: &Settings) -> Option<u32> {
    let ip: Ipv4Addr = cidr.split('/').next()?.parse().ok()?;
    let offset = u32::from(ip).checked_sub(u32::from(settings.pod_network.0))?;
    let block = offset.checked_shr(host_bits(settings)).unwrap_or(0);
    (block < blocks(settings)).then_some(block)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::{Change, World};
    use kontiki_base::env::WallMs;
    use kontiki_base::object::ObjectKey;

    fn node(world: &mut World, name: &str, cidr: Option<&str>) {
        let object = json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": name, "uid": name }, "spec": { "podCIDR": cidr } });
        world.apply(Kind::Node, Change::Upsert(object.to_string().as_bytes())).unwrap();
    }

    fn given(world: &World) -> Vec<String> {
        let key = ObjectKey::default();
        let plan = reconcile(&Input { key: &key, world, now: WallMs(0), failure: None });
        plan.actions
            .iter()
            .map(|a| match a {
                Action::Patch { key, patch, .. } => format!("{} {}", key.name, patch["spec"]["podCIDR"].as_str().unwrap()),
                Action::Event { reason, .. } => (*reason).to_owned(),
                other => panic!("{other:?}"),
            })
            .collect()
    }

    #[test]
    fn first_free_block_once() {
        let mut world = World::default();
        node(&mut world, "a", Some("10.244.1.0/24"));
        node(&mut world, "b", None);
        node(&mut world, "c", None);
        node(&mut world, "d", Some("192.168.0.0/24"));
        assert_eq!(given(&world), ["b 10.244.0.0/24", "c 10.244.2.0/24"]);
        world.settings.pod_network.1 = 23;
        assert_eq!(given(&world), ["b 10.244.0.0/24", "CIDRNotAvailable"]);
    }
}
