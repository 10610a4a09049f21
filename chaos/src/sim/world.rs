//! The members of a simulated cluster: real members on simulated machines, which are started, killed, cut off from power and mended.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kontiki_base::ids::MemberId;
use kontiki_store::config::StoreConfig;
use kontiki_store::engine::Engine as _;
use kontiki_store::engine::sim::SimEngine;
use kontiki_store::inside::{Ground, Member};
use kontiki_store::log::LogOptions;
use kontiki_store::log::sim::SimDisk;
use kontiki_store::raft::{Storage, Timings, member_id};
use tokio::sync::mpsc;

use super::kube::node::{self, Machine};
use super::kube::server::ControlPlane;
use super::net::Net;
use super::oracle::Oracle;
use super::peers::{SimPeers, VoteSink};
use super::rng::Stream;
use super::rt::Proc;
use super::schedule::{Knobs, Torn, Who};
use super::trace::{Event, Node, Trace, WORLD};

const TOKEN: &str = "sim";

/// What has become of a member's process.
#[derive(Clone)]
pub enum Slot {
    /// It is on its way up.
    Starting,
    /// It serves.
    Running(Arc<Member>),
    /// It did not come up, and says why.
    Refused(String),
    /// There is none.
    Down,
}

/// A machine with a member on it.
pub struct Host {
    /// Where it is.
    pub node: Node,
    /// The member on it.
    pub id: MemberId,
    engine: SimEngine,
    disk: SimDisk,
    scratch: PathBuf,
    process: Option<Arc<Proc>>,
    slot: Arc<Mutex<Slot>>,
    lives: u64,
    /// Its disk is damaged for good, and it says so: it takes no part any more.
    pub lost: bool,
}

/// Something that a nemesis may wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cue {
    /// A member granted its vote.
    VoteGranted(Node),
    /// A member has become leader.
    Elected(Node),
}

/// Everything.
pub struct World {
    /// Decides what is left open.
    pub seed: u64,
    /// How it is made.
    pub knobs: Knobs,
    /// What happened.
    pub trace: Arc<Trace>,
    /// The network.
    pub net: Arc<Net>,
    /// The machines of members.
    pub hosts: Vec<Host>,
    /// The machines of nodes: they are looked at by a task of the world's own.
    pub machines: Arc<tokio::sync::Mutex<Vec<Machine>>>,
    /// Watches the invariants of consensus.
    pub oracle: Arc<Oracle>,
    votes: VoteSink,
    disks: Stream,
    scratch: PathBuf,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn name(n: Node) -> String {
    format!("m{n}")
}

fn url(n: Node) -> String {
    format!("http://m{n}:2380")
}

impl World {
    /// A world whose members are not started yet. Cues come out of the channel; those that nobody takes are dropped.
    pub fn new(seed: u64, knobs: Knobs, trace: Arc<Trace>, scratch: PathBuf) -> (Self, mpsc::Receiver<Cue>) {
        let net = Net::new(seed, Arc::clone(&trace));
        let (cues, heard) = mpsc::channel(64);
        let oracle = Arc::new(Oracle::new(Arc::clone(&trace), cues.clone()));
        let judge = Arc::clone(&oracle);
        let votes: VoteSink = Arc::new(move |voter, term, candidate, granted| {
            judge.voted(voter, term, candidate, granted);
            if granted {
                // A nemesis that does not listen has missed it.
                let _ = cues.try_send(Cue::VoteGranted(voter));
            }
        });
        let machines = (0..Node::from(knobs.nodes)).map(|n| Machine::new(seed, n, knobs.shuffle, &trace)).collect();
        let machines = Arc::new(tokio::sync::Mutex::new(machines));
        let disks = Stream::new(seed, "disk", 0);
        let mut world = Self { seed, knobs, trace, net, hosts: Vec::new(), machines, oracle, votes, disks, scratch };
        for n in 0..Node::from(knobs.members) {
            let id = member_id(&[url(n)], TOKEN);
            let host = Host {
                node: n,
                id,
                engine: SimEngine::new(),
                disk: SimDisk::new(),
                scratch: world.scratch.join(name(n)),
                process: None,
                slot: Arc::new(Mutex::new(Slot::Down)),
                lives: 0,
                lost: false,
            };
            world.oracle.knows(n, id);
            world.hosts.push(host);
        }
        (world, heard)
    }

    fn config(&self, n: usize, process: &Arc<Proc>) -> StoreConfig {
        let any = SocketAddr::from(([10, 0, 0, u8::try_from(n + 1).unwrap_or(u8::MAX)], 2380));
        let mut config = StoreConfig::single(&name(self.hosts[n].node), PathBuf::new(), process.env());
        config.listen_clients = Vec::new();
        config.listen_peer = any;
        // How much room this machine has is no business of the simulated one.
        config.data_dir = self.scratch.clone();
        config.disk_reserve_bytes = 0;
        config.initial_cluster = (0..Node::from(self.knobs.members)).map(|n| (name(n), vec![url(n)])).collect();
        config.cluster_token = TOKEN.into();
        config.progress_every = Duration::from_secs(2);
        config.timings = Timings {
            request: Duration::from_secs(5),
            flush_every: Duration::from_millis(self.knobs.flush_every_ms.into()),
            flush_bytes: self.knobs.flush_bytes.into(),
            keep_log_bytes: self.knobs.keep_log_bytes.into(),
            ..Timings::default()
        };
        config
    }

    fn ground(&self, n: usize) -> Ground {
        let host = &self.hosts[n];
        let ids: Vec<(MemberId, Node)> = self.hosts.iter().map(|host| (host.id, host.node)).collect();
        let nodes = Arc::new(move |id| ids.iter().find(|(known, _)| *known == id).map(|(_, node)| *node));
        Ground {
            storage: Storage::Parts {
                engine: Arc::new(host.engine.clone()),
                disk: Arc::new(host.disk.clone()),
                log: LogOptions {
                    segment_bytes: self.knobs.segment_bytes,
                    tail_bytes: usize::try_from(self.knobs.tail_bytes).unwrap_or(usize::MAX),
                    spares: 2,
                },
                scratch: host.scratch.clone(),
                inline: true,
            },
            net: Arc::new(SimPeers::new(host.node, Arc::clone(&self.net), nodes, Arc::clone(&self.votes))),
            observer: Some(self.oracle.observer(host.node)),
        }
    }

    /// Starts a member that does not run; returns at once.
    pub fn start(&mut self, n: usize) {
        if self.hosts[n].process.is_some() || self.hosts[n].lost {
            return;
        }
        self.hosts[n].lives += 1;
        let process = Proc::new(self.seed, self.hosts[n].node, self.hosts[n].lives, self.knobs.shuffle, Arc::clone(&self.trace));
        self.net.join(&process);
        self.oracle.begins(self.hosts[n].node);
        let (config, ground) = (self.config(n, &process), self.ground(n));
        let slot = Arc::new(Mutex::new(Slot::Starting));
        let (net, trace, into, own) = (Arc::clone(&self.net), Arc::clone(&self.trace), Arc::clone(&slot), Arc::clone(&process));
        let knobs = self.knobs;
        process.run(async move {
            match Member::start(config, ground).await {
                Ok(member) => {
                    let member = Arc::new(member);
                    net.listen(&own, Some(member.peer_handler()), Some(member.router()));
                    if knobs.nodes > 0 {
                        match ControlPlane::start(&member, &own, &net, knobs.members, &node::names(knobs.nodes)) {
                            Ok(plane) => net.open_api(&own, plane.router()),
                            Err(why) => trace.say(own.node(), Event::Process, 6, 0, format_args!("no control plane: {why:#}")),
                        }
                    }
                    trace.say(own.node(), Event::Process, 4, 0, format_args!("serves"));
                    *lock(&into) = Slot::Running(member);
                }
                Err(error) => {
                    trace.say(own.node(), Event::Process, 5, 0, format_args!("does not start: {error}"));
                    *lock(&into) = Slot::Refused(error.to_string());
                }
            }
        });
        let host = &mut self.hosts[n];
        host.process = Some(process);
        host.slot = slot;
    }

    /// What has become of a member.
    pub fn slot(&self, n: usize) -> Slot {
        lock(&self.hosts[n].slot).clone()
    }

    /// The member, if it serves.
    pub fn member(&self, n: usize) -> Option<Arc<Member>> {
        match self.slot(n) {
            Slot::Running(member) => Some(member),
            Slot::Starting | Slot::Refused(_) | Slot::Down => None,
        }
    }

    /// Whether a process is there, whatever it does.
    pub fn is_up(&self, n: usize) -> bool {
        self.hosts[n].process.is_some()
    }

    /// The process on a machine.
    pub fn process(&self, n: usize) -> Option<&Arc<Proc>> {
        self.hosts[n].process.as_ref()
    }

    /// The disk of a machine.
    pub fn disk(&self, n: usize) -> &SimDisk {
        &self.hosts[n].disk
    }

    /// Flushes a member's state at an odd moment, as a storage engine does when it likes.
    pub fn flush(&self, n: usize) {
        if let Err(error) = self.hosts[n].engine.flush() {
            self.trace.say(WORLD, Event::Note, n as u64, 0, format_args!("flush: {error}"));
        }
    }

    /// The running member that leads in the highest term.
    pub fn leader(&self) -> Option<usize> {
        let leads = (0..self.hosts.len()).filter_map(|n| {
            let probe = self.member(n)?.probe();
            (probe.leads && probe.fatal.is_none()).then_some((probe.term, n))
        });
        leads.max().map(|(_, n)| n)
    }

    /// Who is meant.
    pub fn find(&self, who: Who) -> usize {
        let leader = self.leader().unwrap_or(0);
        match who {
            Who::Leader => leader,
            Who::Member(n) => usize::from(n) % self.hosts.len(),
            Who::Follower(n) => {
                let others: Vec<usize> = (0..self.hosts.len()).filter(|other| *other != leader).collect();
                others.get(usize::from(n) % others.len().max(1)).copied().unwrap_or(leader)
            }
        }
    }

    /// Ends processes at once: `power` says what the disks keep if their machines lose power; without it they keep all that was written.
    pub async fn kill(&mut self, victims: &[usize], power: Option<Torn>) {
        // Nothing of any of them runs any more, and nothing of theirs gets out: then they are taken apart.
        for n in victims {
            let host = &self.hosts[*n];
            let Some(process) = &host.process else { continue };
            process.stop();
            host.disk.fail_after(0);
            self.net.leave(host.node, power.is_some());
        }
        for n in victims {
            let host = &mut self.hosts[*n];
            let Some(process) = host.process.take() else { continue };
            *lock(&host.slot) = Slot::Down;
            if let Err(left) = process.bury().await {
                self.trace.say(host.node, Event::Note, 9, 0, format_args!("{left} tasks outlive their process"));
                self.oracle.fail("sim", format!("{left} tasks of n{} outlive it", host.node));
            }
            self.oracle.ends(host.node);
            let host = &mut self.hosts[*n];
            host.engine.crash();
            match power {
                None => host.disk.restart(),
                Some(torn) => {
                    let (disks, mut kept) = (&mut self.disks, 0_u64);
                    let limit = disks.below(12);
                    // The disk keeps a sector for every even number.
                    host.disk.crash(|| match torn {
                        Torn::Nothing => 1,
                        Torn::Sectors => disks.next(),
                        Torn::Prefix => {
                            kept += 1;
                            u64::from(kept > limit)
                        }
                    });
                }
            }
        }
    }

    /// Tells a member to stop; it takes its time.
    pub fn stop(&self, n: usize) {
        if let (Some(process), Some(member)) = (&self.hosts[n].process, self.member(n)) {
            process.run(async move { member.shutdown().await });
        }
    }

    /// Changes a byte of a member's log that it has written long ago; the member must be down. Says whether there was one.
    pub fn rot(&mut self, n: usize) -> bool {
        use kontiki_store::log::LogDisk as _;
        let disk = &self.hosts[n].disk;
        let segments: Vec<String> = disk.list().unwrap_or_default().into_iter().filter(|name| name.ends_with(".seg")).collect();
        if segments.is_empty() {
            return false;
        }
        let name = self.disks.pick(&segments).clone();
        let content = disk.content(&name).unwrap_or_default();
        let used = content.iter().rposition(|byte| *byte != 0).unwrap_or(0) as u64;
        // Not the end of it: what a power cut tore and what the medium lost look the same there.
        let at = self.disks.below(used / 2);
        self.trace.say(self.hosts[n].node, Event::Fault, at, 0, format_args!("byte {at} of {used} in {name} changes"));
        disk.damage(&name, usize::try_from(at).unwrap_or(0));
        used > 1
    }
}
