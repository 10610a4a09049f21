//! Sets up a node: its parts, and the tasks that run beside the loop.

use std::sync::Arc;
use std::time::Duration;

use kontiki_base::env::Task;
use kontiki_base::limits;
use tokio::sync::{mpsc, watch};

use super::{Input, LIST_EVERY_MS, Node};
use crate::api::Client;
use crate::node::container_config::NodeSide;
use crate::node::events::Events;
use crate::node::info::{self, Facts};
use crate::node::objects::Objects;
use crate::node::server::Board;
use crate::node::session::{Outbox, Pulse, Session};
use crate::node::work::Workshop;
use crate::node::{NodeConfig, NodeError, logs, network, server};
use crate::transport::channels;

/// Usage and conditions of the node are taken this often.
const PULSE_EVERY: Duration = Duration::from_secs(5);

/// Makes all parts and starts the tasks. They end when they are aborted.
pub(super) async fn start(config: NodeConfig) -> Result<(Node, mpsc::Receiver<Input>, Vec<Task>), NodeError> {
    let io = |what: String| move |source| NodeError::Io { what, source };
    if !config.runtime.simulated() {
        let dir = config.data_dir.clone();
        std::fs::create_dir_all(dir.join("pods")).map_err(io(format!("cannot make {}", dir.display())))?;
    }
    let env = Arc::clone(&config.env);
    let client = Client::new(&config.api, Arc::clone(&env))?.as_manager("kubelet");
    let servers = channels(&config.api)?;
    let facts = Facts::gather(&config);
    let (inputs, rx) = mpsc::channel(limits::NODE_INPUTS);
    let (pod_cidr, range) = watch::channel(String::new());
    let outbox = Arc::new(Outbox::default());
    let board = Arc::new(Board::default());
    let shop = Arc::new(workshop(&config, &client, &facts));
    let mut tasks = Vec::new();
    let mut address = String::new();
    if let Some(listen) = config.listen {
        let listener = tokio::net::TcpListener::bind(listen).await.map_err(io(format!("cannot listen on {listen}")))?;
        let port = listener.local_addr().map_err(io(format!("cannot listen on {listen}")))?.port();
        address = format!("{}:{port}", config.node_ip);
        let serve = server::serve(listener, &config.api, Arc::clone(&shop), Arc::clone(&board))?;
        tasks.push(env.spawn("node server", Box::pin(serve)));
    }
    let (pulse_tx, pulse) = watch::channel(Pulse::default());
    let (node_tx, node_json) = watch::channel(Vec::new());
    let port = address.rsplit(':').next().and_then(|p| p.parse().ok()).unwrap_or(0);
    tasks.push(env.spawn("node pulse", Box::pin(beat(Arc::clone(&shop), facts, config.clone(), port, (node_tx, pulse_tx)))));
    let session = Session {
        name: config.name.clone(),
        boot: env.random_u64(),
        address,
        servers,
        node_json,
        pulse,
        outbox: Arc::clone(&outbox),
        env: Arc::clone(&env),
        inputs: inputs.clone(),
    };
    tasks.push(env.spawn("node session", Box::pin(begin_session(session))));
    tasks.push(env.spawn("node network", Box::pin(network::run(config.clone(), client, range))));
    if !config.runtime.simulated() {
        tasks.push(env.spawn("node logs", Box::pin(logs::rotate_forever(Arc::clone(&shop)))));
    }
    let runtime_name = config.runtime.name().to_owned();
    let node = Node {
        shop,
        outbox,
        inputs,
        pods: std::collections::BTreeMap::new(),
        listed: false,
        complete: false,
        listing: false,
        next_list_ms: 0,
        list_every_ms: if config.runtime.simulated() { LIST_EVERY_MS.1 } else { LIST_EVERY_MS.0 },
        pod_cidr,
        runtime_name,
        board,
    };
    Ok((node, rx, tasks))
}

fn workshop(config: &NodeConfig, client: &Client, facts: &Facts) -> Workshop {
    Workshop {
        runtime: Arc::clone(&config.runtime),
        env: Arc::clone(&config.env),
        objects: Objects::new(client.clone(), Arc::clone(&config.env)),
        events: Events::start(client.clone(), Arc::clone(&config.env), &config.name),
        data_dir: config.data_dir.clone(),
        node: NodeSide {
            cgroup_parent: config.cgroup_parent.clone(),
            cluster_dns: config.cluster_dns.map(|ip| ip.to_string()).unwrap_or_default(),
            node_name: config.name.clone(),
            memory_bytes: facts.memory_bytes,
        },
        node_ip: config.node_ip.to_string(),
        allocatable: (facts.cpu_milli, facts.memory_bytes),
    }
}

/// The session begins when the Node object is known, which is when the runtime has answered once.
async fn begin_session(mut session: Session) {
    if session.node_json.wait_for(|json| !json.is_empty()).await.is_ok() {
        session.run().await;
    }
}

/// Takes usage and conditions of the node, for ever.
async fn beat(shop: Arc<Workshop>, facts: Facts, config: NodeConfig, port: u16, out: (watch::Sender<Vec<u8>>, watch::Sender<Pulse>)) {
    let (node_json, pulse) = out;
    let mut before: Option<(kontiki_base::env::Mono, u64)> = None;
    let mut conditions = info::Conditions::default();
    loop {
        let readiness = shop.runtime.readiness().await;
        conditions.update(&readiness, shop.env.now_wall());
        let unknown = node_json.borrow().is_empty();
        if unknown && let Ok(version) = shop.runtime.version().await {
            let node = info::node_object(&config, &facts, &version, &conditions, port);
            node_json.send_replace(node.to_string().into_bytes());
        }
        let stats = shop.runtime.list_stats().await.unwrap_or_default();
        let now = shop.env.now_mono();
        let (total_ns, mut usage) = info::usage_of(&stats);
        if let Some((at, then)) = before {
            let nanos = u64::try_from(now.since(at).as_nanos()).unwrap_or(u64::MAX).max(1);
            let spent = u128::from(total_ns.saturating_sub(then));
            usage.cpu_nano_cores = u64::try_from(spent * 1_000_000_000 / u128::from(nanos)).unwrap_or(u64::MAX);
        }
        before = Some((now, total_ns));
        pulse.send_replace(Pulse { usage, conditions: conditions.to_json() });
        // Until the runtime answers, look more often: the node cannot show itself before.
        let pause = if node_json.borrow().is_empty() { Duration::from_millis(300) } else { PULSE_EVERY };
        shop.env.sleep(pause).await;
    }
}
