//! `kontiki agent`: one node.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use kontiki_agents::ApiConfig;
use kontiki_agents::node::runtime::PodRuntime;
use kontiki_agents::node::runtime::cri::CriRuntime;
use kontiki_agents::node::runtime::hollow::{HollowOptions, HollowRuntime, LEDGER};
use kontiki_agents::node::{NodeAgent, NodeConfig};
use kontiki_base::env::Env;
use kontiki_proto::env::SystemEnv;

use crate::cli::AgentArgs;
use crate::store::{read, terminated};

/// The range that all pods' addresses come from.
const CLUSTER_CIDR: &str = "10.244.0.0/16";

fn hollow(data_dir: &Path, env: Arc<dyn Env>) -> Result<HollowRuntime> {
    std::fs::create_dir_all(data_dir).with_context(|| format!("cannot make {}", data_dir.display()))?;
    let ledger = data_dir.join(LEDGER);
    let options = HollowOptions::default();
    HollowRuntime::open(env, options, &ledger).with_context(|| format!("cannot open {}", ledger.display()))
}

/// Runs the command until it is told to end. Pods go on running.
pub(crate) async fn run(args: AgentArgs) -> Result<()> {
    let env: Arc<dyn Env> = Arc::new(SystemEnv::new());
    let runtime: Arc<dyn PodRuntime> = match &args.cri_socket {
        Some(socket) => Arc::new(CriRuntime::new(socket)),
        None => Arc::new(hollow(&args.data_dir, env.clone())?),
    };
    let config = NodeConfig {
        name: args.name,
        api: ApiConfig {
            endpoints: args.servers,
            ca_pem: read(&args.tls.ca)?,
            cert_pem: read(&args.tls.cert)?,
            key_pem: read(&args.tls.key)?,
            transport: None,
        },
        runtime,
        listen: Some(args.listen),
        node_ip: args.node_ip,
        data_dir: args.data_dir,
        cgroup_parent: args.cgroup_parent,
        cluster_cidr: CLUSTER_CIDR.into(),
        cluster_dns: None,
        labels: BTreeMap::new(),
        capacity: None,
        env,
    };
    NodeAgent::run(config, terminated()).await.context("the agent did not start")
}
