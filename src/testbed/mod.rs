//! Several real nodes on one machine: a network namespace and a containerd for each, joined by a bridge.
//!
//! What is made here outlives the process that made it: `kontiki up` may be killed and started again, and finds its nodes with their
//! pods still running. [`Testbed::down`] removes everything; [`Testbed::up`] first removes what a run that was killed half-way left.
//! Everything that is visible outside the data directory (namespaces, cgroups, one network device) carries a prefix that is derived
//! from the data directory, so that clusters on one machine do not meet.
//!
//! ```text
//!   root namespace            <prefix>-fab              <prefix>-n1                <prefix>-n2
//!   servers, .254 ───────────── bridge br0 .1 ───────── eth0 .11, containerd ──── eth0 .12, containerd …
//! ```

mod cgroup;
mod containerd;
mod exec;
mod network;
mod node;
mod plan;
mod preflight;
#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::path::Path;
use std::process::Command;

pub(crate) use exec::TestbedError;
pub(crate) use plan::{NodePlan, Plan};
pub(crate) use preflight::preflight;

/// A running or planned set of nodes.
#[derive(Clone, Debug)]
pub(crate) struct Testbed {
    plan: Plan,
}

impl Testbed {
    /// Decides names, addresses and directories. Touches nothing; the same arguments give the same plan.
    ///
    /// # Errors
    /// If there are more nodes than addresses, or the data directory is so deep that a socket in it could not be bound.
    pub(crate) fn plan(data_dir: &Path, nodes: usize) -> Result<Self, TestbedError> {
        Ok(Self { plan: Plan::new(data_dir, nodes)? })
    }

    /// The decisions.
    #[cfg(test)]
    pub(crate) fn layout(&self) -> &Plan {
        &self.plan
    }

    /// The address of the machine on the nodes' network: where nodes reach servers that run in the root namespace.
    pub(crate) fn host_ip(&self) -> IpAddr {
        IpAddr::V4(self.plan.host_address)
    }

    /// Brings everything up. Nodes that run already are left alone, with all their pods; what is broken or half-made is removed and
    /// made again. Blocks for about half a second per new node.
    ///
    /// # Errors
    /// The first step that failed, with the words of the tool that it used. What was made until then stays, for `down` or the next `up`.
    pub(crate) fn up(&self) -> Result<(), TestbedError> {
        network::ensure_fabric(&self.plan)?;
        for node in &self.plan.nodes {
            node::ensure(&self.plan, node)?;
        }
        self.remove_surplus_nodes()
    }

    /// Nodes of an earlier run that had more of them.
    fn remove_surplus_nodes(&self) -> Result<(), TestbedError> {
        for index in network::node_indices(&self.plan.prefix) {
            if index > self.plan.nodes.len() {
                node::remove(&self.plan.node(index))?;
            }
        }
        Ok(())
    }

    /// Stops and removes everything: processes, pods, namespaces, mounts, cgroups, devices. Images and logs stay in the data directory.
    /// Does not fail for what is gone already.
    ///
    /// # Errors
    /// The last thing that could not be removed; everything else has been tried.
    pub(crate) fn down(&self) -> Result<(), TestbedError> {
        let mut outcome = Ok(());
        let mut indices = network::node_indices(&self.plan.prefix);
        indices.extend(cgroup::node_indices(&self.plan.prefix));
        indices.extend(1..=self.plan.nodes.len());
        for index in indices {
            outcome = node::remove(&self.plan.node(index)).and(outcome);
        }
        network::remove_fabric(&self.plan).and(outcome)
    }

    /// [`Testbed::down`] for whatever a data directory's testbed left, without knowing how many nodes it had.
    ///
    /// # Errors
    /// As [`Testbed::down`].
    pub(crate) fn clean(data_dir: &Path) -> Result<(), TestbedError> {
        Self::plan(data_dir, 0)?.down()
    }

    /// The node with this index, counted from 0.
    ///
    /// # Panics
    /// If the plan has fewer nodes.
    pub(crate) fn node(&self, index: usize) -> &NodePlan {
        &self.plan.nodes[index]
    }

    /// Loads an image archive (OCI or docker) into the containerd of every node.
    ///
    /// # Errors
    /// If a node does not run, or containerd refuses the archive.
    pub(crate) fn import_image(&self, archive: &Path) -> Result<(), TestbedError> {
        for node in &self.plan.nodes {
            let line = import_line(node, archive)?;
            exec::output(Command::new(&line[0]).args(&line[1..]))?;
        }
        Ok(())
    }

    /// Kills a node as a power failure would: every process on it at once. Its disk stays. `up` starts it again.
    ///
    /// # Errors
    /// As [`Testbed::down`], for this node.
    #[cfg(test)]
    pub(crate) fn crash_node(&self, index: usize) -> Result<(), TestbedError> {
        node::remove(self.node(index))
    }

    /// Stops (`true`) or continues every process of a node, pods included: the node hangs.
    ///
    /// # Errors
    /// If the node's cgroup cannot be written.
    #[cfg(test)]
    pub(crate) fn freeze_node(&self, index: usize, frozen: bool) -> Result<(), TestbedError> {
        cgroup::freeze(self.node(index), frozen)
    }

    /// Cuts (`true`) or restores a node's only link.
    ///
    /// # Errors
    /// If the link is not there.
    #[cfg(test)]
    pub(crate) fn isolate_node(&self, index: usize, cut: bool) -> Result<(), TestbedError> {
        network::set_link(&self.plan, self.node(index), !cut)
    }
}

/// The command that imports an archive on a node. It runs in the node's own view of the file system, where this process's current folder
/// means nothing.
fn import_line(node: &NodePlan, archive: &Path) -> Result<Vec<String>, TestbedError> {
    let archive = exec::at(archive, std::path::absolute(archive))?;
    let words = ["ctr", "-a", &node.cri_socket.to_string_lossy(), "-n", "k8s.io", "images", "import", &archive.to_string_lossy()];
    Ok(node.enter(words.map(str::to_owned).to_vec()))
}
