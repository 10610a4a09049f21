//! The node agent: takes the node's pods from a session with the servers, makes the runtime run them, and reports what became of them.
//!
//! | module | what it does |
//! |---|---|
//! | [`lifecycle`] | decides, as pure functions |
//! | [`sync`] | the one loop that owns all state: events in, steps out |
//! | [`work`] | carries out one step |
//! | [`session`] | the stream to a server: pods down, statuses and heartbeats up |
//! | [`runtime`] | the seam to what runs pods: CRI, or simulated |
//! | [`container_config`], [`env`], [`volumes`], [`objects`] | from a pod's specification to what the runtime wants |
//! | [`network`] | the runtime's network configuration and routes to the other nodes |
//! | [`probes`], [`logs`], [`events`], [`info`], [`server`] | probes, log files, Kubernetes events, the Node object, the agent's own port |
//!
//! Pods outlive the agent: it may be killed and started again at any moment, looks at what runs, and goes on from there. They also
//! outlive every server: without a session the agent keeps its pods as they are.

pub mod container_config;
pub mod env;
pub mod events;
pub mod info;
pub mod lifecycle;
pub mod logs;
pub mod network;
pub mod objects;
pub mod probes;
pub mod runtime;
pub mod server;
#[cfg(test)]
mod server_tests;
pub mod session;
mod stream;
pub mod sync;
#[cfg(test)]
mod testing;
pub mod time;
pub mod volumes;
pub mod work;

use std::collections::BTreeMap;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use kontiki_base::env::Env;

use crate::config::ApiConfig;
use crate::error::ConfigError;
use runtime::PodRuntime;

/// What a node has, when that is not to be taken from the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Thousandths of a CPU.
    pub cpu_milli: i64,
    /// Memory.
    pub memory_bytes: i64,
    /// How many pods may run.
    pub pods: u32,
}

/// What a node agent is started with.
#[derive(Clone)]
pub struct NodeConfig {
    /// The node's name.
    pub name: String,
    /// The servers, and who the agent is: a certificate for `system:node:NAME` in the group `system:nodes`.
    pub api: ApiConfig,
    /// What runs the pods.
    pub runtime: Arc<dyn PodRuntime>,
    /// The agent's own TLS port, for logs; only clients with a certificate of the cluster's authority are served. `None`: no port.
    pub listen: Option<SocketAddr>,
    /// The node's address.
    pub node_ip: IpAddr,
    /// Volumes, logs and the agent's other files.
    pub data_dir: PathBuf,
    /// The cgroup under which pods are put: `/kubepods`.
    pub cgroup_parent: String,
    /// The range of all pods: traffic that leaves it is sent with the node's address.
    pub cluster_cidr: String,
    /// The cluster's name server, if there is one.
    pub cluster_dns: Option<IpAddr>,
    /// Labels of the Node beside the usual ones.
    pub labels: BTreeMap<String, String>,
    /// Overrides what the machine has.
    pub capacity: Option<Capacity>,
    /// Clock, tasks, randomness.
    pub env: Arc<dyn Env>,
}

impl std::fmt::Debug for NodeConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeConfig").field("name", &self.name).field("node_ip", &self.node_ip).finish_non_exhaustive()
    }
}

/// Why an agent did not start.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The configuration cannot work.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A directory or the port.
    #[error("{what}")]
    Io {
        /// What was attempted.
        what: String,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
}

/// The node agent.
#[derive(Debug)]
pub struct NodeAgent;

impl NodeAgent {
    /// Runs until `shutdown` completes. Pods are left running: another agent of the same node finds them.
    ///
    /// # Errors
    /// If it cannot start: unusable credentials, a data directory that cannot be made, a port that is taken. Once it runs it never ends
    /// by itself: servers and runtime may come and go.
    pub async fn run(config: NodeConfig, shutdown: impl Future<Output = ()> + Send) -> Result<(), NodeError> {
        sync::run(config, shutdown).await
    }
}
