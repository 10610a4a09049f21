//! The bridge that joins the nodes, and the machine's leg on it.

use std::process::Command;

use super::exec::{TestbedError, ip, output};
use super::plan::{NodePlan, Plan};

/// Where `ip netns` keeps its names.
const NETNS_DIR: &str = "/run/netns";

pub(super) fn netns_exists(name: &str) -> bool {
    std::path::Path::new(NETNS_DIR).join(name).exists()
}

/// Indices of nodes with this prefix that have a network namespace.
pub(super) fn node_indices(prefix: &str) -> Vec<usize> {
    let names = std::fs::read_dir(NETNS_DIR).into_iter().flatten().flatten().filter_map(|e| e.file_name().into_string().ok());
    names.filter_map(|name| name.strip_prefix(prefix)?.strip_prefix("-n")?.parse().ok()).collect()
}

/// Makes the bridge and the machine's leg, unless both are there.
pub(super) fn ensure_fabric(plan: &Plan) -> Result<(), TestbedError> {
    let Plan { fabric, uplink, bridge_address, host_address, .. } = plan;
    if fabric_is_whole(plan) {
        return Ok(());
    }
    remove_fabric(plan)?;
    refuse_taken_network(plan)?;
    ip(&format!("netns add {fabric}"))?;
    ip(&format!("-n {fabric} link set lo up"))?;
    ip(&format!("-n {fabric} link add br0 type bridge"))?;
    ip(&format!("-n {fabric} addr add {bridge_address}/24 dev br0"))?;
    ip(&format!("-n {fabric} link set br0 up"))?;
    ip(&format!("link add {uplink} type veth peer name host netns {fabric}"))?;
    ip(&format!("-n {fabric} link set dev host master br0 up"))?;
    ip(&format!("addr add {host_address}/24 dev {uplink}"))?;
    ip(&format!("link set {uplink} up"))?;
    for node in &plan.nodes {
        // Nodes that outlived a broken fabric lost their link with it.
        if netns_exists(&node.netns) {
            connect(plan, node)?;
        }
    }
    Ok(())
}

fn fabric_is_whole(plan: &Plan) -> bool {
    netns_exists(&plan.fabric)
        && ip(&format!("-n {} link show br0", plan.fabric)).is_ok()
        && ip(&format!("-4 -o addr show dev {}", plan.uplink)).is_ok_and(|text| text.contains(&plan.host_address.to_string()))
}

/// Another cluster, or the machine's own network, may already be where this one would be.
fn refuse_taken_network(plan: &Plan) -> Result<(), TestbedError> {
    let mut octets = plan.host_address.octets();
    octets[3] = 0;
    let network = std::net::Ipv4Addr::from(octets);
    let taken = ip(&format!("-4 route show root {network}/24"))?;
    if taken.trim().is_empty() {
        return Ok(());
    }
    Err(TestbedError::Plan(format!("the network {network}/24 is in use on this machine ({}): choose another data directory", taken.trim())))
}

/// Removes bridge and leg. Fine if they are gone.
pub(super) fn remove_fabric(plan: &Plan) -> Result<(), TestbedError> {
    if std::path::Path::new("/sys/class/net").join(&plan.uplink).exists() {
        ip(&format!("link del {}", plan.uplink))?;
    }
    if netns_exists(&plan.fabric) {
        ip(&format!("netns del {}", plan.fabric))?;
    }
    forget_netns_mount();
    Ok(())
}

/// `ip netns add` mounts its directory onto itself when it is first used on a machine, and never unmounts it. If no name is left in it
/// the mount has no purpose; if somebody else uses it at this moment the kernel refuses, and that is fine.
fn forget_netns_mount() {
    let empty = std::fs::read_dir(NETNS_DIR).is_ok_and(|mut entries| entries.next().is_none());
    if empty && super::cgroup::is_mount_point(NETNS_DIR) {
        let _ = output(Command::new("umount").arg(NETNS_DIR));
    }
}

/// Makes the node's network namespace and its link to the bridge.
pub(super) fn make_node(plan: &Plan, node: &NodePlan) -> Result<(), TestbedError> {
    ip(&format!("netns add {}", node.netns))?;
    ip(&format!("-n {} link set lo up", node.netns))?;
    // A new namespace does not forward. The file is that of whoever opens it.
    let forward = "echo 1 > /proc/sys/net/ipv4/ip_forward; [ ! -e /proc/sys/net/ipv6/conf/all/forwarding ] || echo 1 > /proc/sys/net/ipv6/conf/all/forwarding";
    output(Command::new("nsenter").arg(format!("--net={NETNS_DIR}/{}", node.netns)).args(["sh", "-c", forward]))?;
    connect(plan, node)
}

/// The link of a node to the bridge; made inside both namespaces, so the root namespace never sees it.
fn connect(plan: &Plan, node: &NodePlan) -> Result<(), TestbedError> {
    let NodePlan { netns, ip: address, .. } = node;
    let port = port(node);
    ip(&format!("link add eth0 netns {netns} type veth peer name {port} netns {}", plan.fabric))?;
    ip(&format!("-n {} link set dev {port} master br0 up", plan.fabric))?;
    ip(&format!("-n {netns} addr add {address}/24 dev eth0"))?;
    ip(&format!("-n {netns} link set eth0 up"))?;
    ip(&format!("-n {netns} route add default via {}", plan.bridge_address))?;
    Ok(())
}

fn port(node: &NodePlan) -> String {
    format!("vn{}", node.index)
}

/// Plugs the node's cable in or out.
#[cfg(test)]
pub(super) fn set_link(plan: &Plan, node: &NodePlan, up: bool) -> Result<(), TestbedError> {
    let state = if up { "up" } else { "down" };
    ip(&format!("-n {} link set dev {} {state}", plan.fabric, port(node))).map(drop)
}

/// Removes the node's network namespace; the other end of its link vanishes with it.
pub(super) fn remove_node(node: &NodePlan) -> Result<(), TestbedError> {
    if netns_exists(&node.netns) {
        ip(&format!("netns del {}", node.netns))?;
    }
    Ok(())
}
