//! Machines of nodes: the real agent over hollow pods. The runtime outlives its agent, as a real one does; the machine outlives neither.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kontiki_agents::node::runtime::hollow::{HollowOptions, HollowRuntime};
use kontiki_agents::node::runtime::{PodRuntime as _, label};
use kontiki_agents::node::{Capacity, NodeAgent, NodeConfig};
use kontiki_proto::cri::ContainerState;

use super::super::net::Net;
use super::super::rt::{self, Proc};
use super::super::trace::{Event, Node, Trace};
use super::door;
use crate::history::{NodeFact, NodeRecord, Record, Recorder};

/// Agents are on these nodes of the world…
pub const FIRST_AGENT: Node = 200;

/// …and their runtimes on these, which nobody reaches.
const FIRST_RUNTIME: Node = 400;

/// A container that was seen.
struct Known {
    uid: String,
    name: String,
    running: bool,
}

/// A machine with an agent and hollow pods.
pub struct Machine {
    /// Its number, from 0.
    number: Node,
    name: String,
    seed: u64,
    shuffle: u32,
    lives: u64,
    below: Arc<Proc>,
    runtime: Arc<HollowRuntime>,
    agent: Option<Arc<Proc>>,
    known: BTreeMap<String, Known>,
}

/// The names of so many machines.
pub fn names(count: u8) -> Vec<String> {
    (1..=count).map(|n| format!("n{n}")).collect()
}

fn runtime(seed: u64, number: Node, life: u64, shuffle: u32, trace: &Arc<Trace>) -> (Arc<Proc>, Arc<HollowRuntime>) {
    let below = Proc::new(seed, FIRST_RUNTIME + number, life, shuffle, Arc::clone(trace));
    let runtime = Arc::new(HollowRuntime::new(below.env(), HollowOptions::default()));
    (below, runtime)
}

impl Machine {
    /// A machine that is on, without an agent.
    pub fn new(seed: u64, number: Node, shuffle: u32, trace: &Arc<Trace>) -> Self {
        let (below, runtime) = runtime(seed, number, 0, shuffle, trace);
        let name = format!("n{}", number + 1);
        Self { number, name, seed, shuffle, lives: 0, below, runtime, agent: None, known: BTreeMap::new() }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its agent's node of the world.
    pub const fn node(&self) -> Node {
        FIRST_AGENT + self.number
    }

    /// Starts the agent, if none runs.
    pub fn start_agent(&mut self, net: &Arc<Net>, members: u8) {
        if self.agent.is_some() {
            return;
        }
        self.lives += 1;
        let process = Proc::new(self.seed, self.node(), self.lives, self.shuffle, Arc::clone(net.trace()));
        net.join(&process);
        let last = u8::try_from(self.number + 1).unwrap_or(u8::MAX);
        let config = NodeConfig {
            name: self.name.clone(),
            api: door::config(&process, net, members, usize::from(self.number), Some(&self.name)),
            runtime: Arc::clone(&self.runtime) as _,
            listen: None,
            node_ip: IpAddr::V4(Ipv4Addr::new(10, 1, 0, last)),
            data_dir: PathBuf::from("/nowhere"),
            cgroup_parent: String::new(),
            cluster_cidr: "10.244.0.0/16".into(),
            cluster_dns: None,
            labels: BTreeMap::new(),
            capacity: Some(Capacity { cpu_milli: 1_000, memory_bytes: 4 << 30, pods: 20 }),
            env: process.env(),
        };
        let (trace, node) = (Arc::clone(net.trace()), self.node());
        process.run(async move {
            if let Err(error) = NodeAgent::run(config, std::future::pending()).await {
                trace.say(node, Event::Note, 1, 0, format_args!("the agent does not start: {error}"));
            }
        });
        self.agent = Some(process);
    }

    /// Kills the agent; its pods run on. The error is how many of its tasks could not be ended.
    pub async fn kill_agent(&mut self, net: &Net) -> Result<(), isize> {
        let Some(process) = self.agent.take() else { return Ok(()) };
        process.stop();
        net.leave(self.node(), false);
        process.bury().await
    }

    /// The machine stands still, pods and agent, or goes on.
    pub fn freeze(&self, frozen: bool) {
        for process in self.agent.iter().chain([&self.below]) {
            if frozen { process.pause() } else { process.resume() }
        }
    }

    /// The machine loses power, and everything that ran on it; it comes back empty and without an agent.
    pub async fn lose(&mut self, net: &Net, recorder: &Recorder) -> Result<(), isize> {
        if let Some(process) = self.agent.take() {
            process.stop();
            net.leave(self.node(), true);
            process.bury().await?;
        }
        self.below.stop();
        self.below.bury().await?;
        self.known.clear();
        self.tell(net.trace().now(), NodeFact::Down, recorder);
        (self.below, self.runtime) = runtime(self.seed, self.number, self.lives, self.shuffle, net.trace());
        Ok(())
    }

    fn tell(&self, at: u64, fact: NodeFact, recorder: &Recorder) {
        recorder.record(Record::Node(NodeRecord { at, node: self.name.clone(), fact }));
    }

    /// Takes down what has begun to run and what has ended since the last look.
    pub async fn look(&mut self, trace: &Trace, recorder: &Recorder) {
        let Ok(listed) = self.runtime.list_containers(None).await else { return };
        let now = trace.now();
        let mut present = BTreeMap::new();
        for container in listed {
            let running = container.state() == ContainerState::ContainerRunning;
            present.insert(container.id.clone(), running);
            if self.known.get(&container.id).is_some_and(|known| known.running == running) {
                continue;
            }
            let Ok(status) = self.runtime.container_status(&container.id).await else { continue };
            let of = |key: &str| container.labels.get(key).cloned().unwrap_or_default();
            let (uid, name) = (of(label::POD_UID), of(label::CONTAINER_NAME));
            let known = self.known.entry(container.id.clone()).or_insert(Known { uid: uid.clone(), name: name.clone(), running: false });
            let began = std::mem::replace(&mut known.running, running) != running && running;
            if began {
                let pod = format!("{}/{}", of(label::POD_NAMESPACE), of(label::POD_NAME));
                self.tell(rt::moment(status.started_at).min(now), NodeFact::Start { uid, pod, container: name }, recorder);
            } else if !running && status.finished_at > 0 {
                self.tell(rt::moment(status.finished_at).min(now), NodeFact::Exit { uid, container: name }, recorder);
            }
        }
        let gone: Vec<String> = self.known.keys().filter(|id| !present.contains_key(*id)).cloned().collect();
        for known in gone.iter().filter_map(|id| self.known.remove(id)).filter(|known| known.running).collect::<Vec<_>>() {
            self.tell(now, NodeFact::Exit { uid: known.uid, container: known.name }, recorder);
        }
    }
}

/// How often machines are looked at.
pub const LOOK_EVERY: Duration = Duration::from_millis(20);
