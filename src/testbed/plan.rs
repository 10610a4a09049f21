//! Names, addresses and directories of a testbed: a pure function of the data directory and the number of nodes.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::exec::TestbedError;

/// Addresses .1 (bridge), .254 (machine) and ten spare ones are left out.
const MAX_NODES: usize = 200;
/// `sun_path` holds 108 bytes with the final zero.
const MAX_SOCKET_PATH: usize = 107;

/// All decisions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Begins the name of everything that is visible outside the data directory.
    pub(crate) prefix: String,
    /// The data directory of the cluster.
    pub(crate) data_dir: PathBuf,
    /// The network namespace with the bridge.
    pub(crate) fabric: String,
    /// The device in the root namespace that leads to the bridge.
    pub(crate) uplink: String,
    /// The machine's address on the bridge.
    pub(crate) host_address: Ipv4Addr,
    /// The bridge's own address: the nodes' default route.
    pub(crate) bridge_address: Ipv4Addr,
    /// The nodes, from index 1.
    pub(crate) nodes: Vec<NodePlan>,
    third_octet: u8,
}

/// One node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NodePlan {
    /// From 1.
    pub(crate) index: usize,
    /// `node-1`; also its host name.
    pub(crate) name: String,
    /// Its network namespace, as in `ip netns`.
    pub(crate) netns: String,
    /// Its address on the bridge.
    pub(crate) ip: IpAddr,
    /// Its directory; the agent's files are here too.
    pub(crate) dir: PathBuf,
    /// The socket of its containerd: a file that is visible on the machine too.
    pub(crate) cri_socket: PathBuf,
    /// Its cgroup, in every hierarchy, without a leading slash.
    pub(crate) cgroup: String,
    /// The parent of the cgroups of all its pods, as the runtime wants it.
    pub(crate) cgroup_parent: String,
}

impl Plan {
    pub(super) fn new(data_dir: &Path, nodes: usize) -> Result<Self, TestbedError> {
        if nodes > MAX_NODES {
            return Err(TestbedError::Plan(format!("at most {MAX_NODES} nodes, not {nodes}")));
        }
        let data_dir = std::path::absolute(data_dir).map_err(|e| TestbedError::Plan(format!("{}: {e}", data_dir.display())))?;
        let hash = Sha256::digest(data_dir.as_os_str().as_encoded_bytes());
        let prefix = format!("kt{:02x}{:02x}{:02x}", hash[0], hash[1], hash[2]);
        let third_octet = hash[3];
        let mut plan = Self {
            fabric: format!("{prefix}-fab"),
            uplink: format!("{prefix}-up"),
            host_address: Ipv4Addr::new(10, 240, third_octet, 254),
            bridge_address: Ipv4Addr::new(10, 240, third_octet, 1),
            nodes: Vec::new(),
            prefix,
            data_dir,
            third_octet,
        };
        plan.nodes = (1..=nodes).map(|index| plan.node(index)).collect();
        let socket = plan.nodes.last().map(|node| &node.cri_socket).filter(|socket| socket.as_os_str().len() > MAX_SOCKET_PATH);
        if let Some(socket) = socket {
            let text = format!("the path of a socket would be too long ({}): choose a shorter data directory", socket.display());
            return Err(TestbedError::Plan(text));
        }
        Ok(plan)
    }

    /// The node with this index, whether or not it is one of `nodes`.
    pub(super) fn node(&self, index: usize) -> NodePlan {
        let last = u8::try_from(10 + index).unwrap_or(u8::MAX - 2);
        let name = format!("node-{index}");
        let dir = self.data_dir.join(&name);
        let cgroup = format!("{}-n{index}", self.prefix);
        NodePlan {
            index,
            netns: cgroup.clone(),
            ip: Ipv4Addr::new(10, 240, self.third_octet, last).into(),
            cri_socket: dir.join("containerd/cri.sock"),
            cgroup_parent: format!("/{cgroup}/kubepods"),
            name,
            dir,
            cgroup,
        }
    }
}

impl NodePlan {
    /// Where containerd keeps images, state and configuration.
    pub(super) fn runtime_dir(&self) -> PathBuf {
        self.dir.join("containerd")
    }

    /// Where the agent keeps the volumes of pods.
    pub(super) fn pods_dir(&self) -> PathBuf {
        self.dir.join("pods")
    }

    /// Where the agent writes the network configuration that containerd reads.
    pub(super) fn cni_conf_dir(&self) -> PathBuf {
        self.runtime_dir().join("cni.d")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_directory_same_plan_other_directory_other_names() {
        let a = Plan::new(Path::new("/var/lib/a"), 3).unwrap();
        assert_eq!(a, Plan::new(Path::new("/var/lib/a"), 3).unwrap());
        let b = Plan::new(Path::new("/var/lib/b"), 3).unwrap();
        assert_ne!(a.prefix, b.prefix);
        assert!(a.nodes.iter().all(|n| n.netns.starts_with(&a.prefix) && n.cgroup.starts_with(&a.prefix)));
        assert!(a.uplink.len() <= 15, "the kernel's limit for device names");
        assert!(a.nodes[2].ip.to_string().ends_with(".13"));
    }

    #[test]
    fn impossible_plans_are_refused() {
        assert!(Plan::new(Path::new("/a"), MAX_NODES + 1).is_err());
        let deep = format!("/{}", "d".repeat(120));
        assert!(Plan::new(Path::new(&deep), 1).is_err());
        assert!(Plan::new(Path::new(&deep), 0).is_ok(), "without nodes there is no socket");
    }
}
