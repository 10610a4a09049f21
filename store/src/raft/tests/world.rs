//! A cluster in one process: a network in memory that can be cut and slowed, disks that lose power, a clock that jumps.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use kontiki_base::BoxFuture;
use kontiki_base::env::{Abort, Env, Mono, Task, WallMs};
use kontiki_base::ids::{LeaseId, MemberId, Revision};
use kontiki_base::kv::{KvError, PutReq};
use kontiki_base::net::{Halves, NetError, PeerHandler, PeerNet, PeerReceiver, PeerRpc, PeerSender, PeerStream};
use kontiki_mvcc::{Command, Outcome};
use tokio::sync::mpsc;

use super::super::*;
use crate::engine::Engine;
use crate::engine::sim::SimEngine;
use crate::log::LogOptions;
use crate::log::sim::SimDisk;

/// SplitMix64.
pub(super) fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb) >> 11
}

/// Simulated time and seeded randomness, on tokio's paused clock.
pub(in crate::raft) struct TestEnv {
    origin: tokio::time::Instant,
    seed: Mutex<u64>,
}

impl TestEnv {
    pub(in crate::raft) fn new(seed: u64) -> Arc<Self> {
        Arc::new(Self { origin: tokio::time::Instant::now(), seed: Mutex::new(seed) })
    }
}

struct Spawned(tokio::task::AbortHandle);

impl Abort for Spawned {
    fn abort(&self) {
        self.0.abort();
    }
}

impl Env for TestEnv {
    fn spawn(&self, _name: &'static str, task: BoxFuture<'static, ()>) -> Task {
        Task(Box::new(Spawned(tokio::spawn(task).abort_handle())))
    }

    fn sleep(&self, d: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(d))
    }

    fn now_mono(&self) -> Mono {
        Mono(self.origin.elapsed())
    }

    fn now_wall(&self) -> WallMs {
        WallMs(self.origin.elapsed().as_millis() as i64)
    }

    fn random_u64(&self) -> u64 {
        let mut seed = self.seed.lock().unwrap();
        random(&mut seed) ^ (random(&mut seed) << 32)
    }
}

/// Everything that the network knows.
pub(super) struct Wires {
    handlers: BTreeMap<MemberId, Arc<dyn PeerHandler>>,
    /// Counts a member's lives: what was open in an earlier one is broken.
    lives: BTreeMap<MemberId, u64>,
    cut: BTreeSet<(MemberId, MemberId)>,
    max_delay_us: u64,
    seed: u64,
    /// Messages by kind.
    pub(super) sent: BTreeMap<PeerRpc, u64>,
    /// Bytes of messages of streams by kind.
    pub(super) carried: BTreeMap<PeerRpc, u64>,
    /// After so many more messages of streams of a kind, the stream breaks.
    pub(super) fuse: Option<(PeerRpc, u64)>,
}

pub(super) struct MemNet {
    me: MemberId,
    wires: Arc<Mutex<Wires>>,
}

fn lock(wires: &Mutex<Wires>) -> MutexGuard<'_, Wires> {
    wires.lock().unwrap()
}

impl Wires {
    fn delay(&mut self) -> Duration {
        let max = self.max_delay_us;
        Duration::from_micros(random(&mut self.seed) % (max + 1))
    }

    fn life(&self, id: MemberId) -> u64 {
        self.lives.get(&id).copied().unwrap_or(0)
    }

    fn open(&self, from: MemberId, to: MemberId) -> bool {
        !self.cut.contains(&(from, to))
    }
}

const PATIENCE: Duration = Duration::from_millis(400);

impl PeerNet for MemNet {
    fn call(&self, to: MemberId, _addr: &str, rpc: PeerRpc, body: Bytes) -> BoxFuture<'static, Result<Bytes, NetError>> {
        let (me, wires) = (self.me, self.wires.clone());
        Box::pin(async move {
            let (there, back, handler) = {
                let mut w = lock(&wires);
                *w.sent.entry(rpc).or_default() += 1;
                (w.delay(), w.delay(), w.handlers.get(&to).cloned())
            };
            let Some(handler) = handler else {
                return Err(NetError::Closed { to });
            };
            tokio::time::sleep(there).await;
            if !lock(&wires).open(me, to) {
                tokio::time::sleep(PATIENCE).await;
                return Err(NetError::Timeout { to });
            }
            let limit = if rpc == PeerRpc::Propose { Duration::from_secs(7) } else { Duration::from_secs(2) };
            let handled = tokio::spawn(handler.handle(rpc, body));
            let Ok(reply) = tokio::time::timeout(limit, handled).await else {
                return Err(NetError::Timeout { to });
            };
            tokio::time::sleep(back).await;
            if !lock(&wires).open(to, me) {
                tokio::time::sleep(PATIENCE).await;
                return Err(NetError::Timeout { to });
            }
            match reply {
                Ok(reply) => reply.map_err(|why| NetError::Refused { to, why }),
                Err(_) => Err(NetError::Unreachable { to, why: "the peer died".into() }),
            }
        })
    }

    fn open(&self, to: MemberId, _addr: &str, rpc: PeerRpc) -> BoxFuture<'static, Result<Box<dyn PeerStream>, NetError>> {
        let (me, wires) = (self.me, self.wires.clone());
        Box::pin(async move {
            let (handler, open, delay) = {
                let mut w = lock(&wires);
                (w.handlers.get(&to).cloned(), w.open(me, to), w.delay())
            };
            tokio::time::sleep(delay).await;
            let Some(handler) = handler else {
                return Err(NetError::Closed { to });
            };
            if !open {
                tokio::time::sleep(PATIENCE).await;
                return Err(NetError::Timeout { to });
            }
            let (near_tx, far_rx) = pipe(me, to, rpc, &wires);
            let (far_tx, near_rx) = pipe(to, me, rpc, &wires);
            let far = Halves { sender: Tx(me, far_tx), receiver: Rx(far_rx) };
            tokio::spawn(async move { drop(handler.serve(rpc, Box::new(far)).await) });
            Ok(Box::new(Halves { sender: Tx(to, near_tx), receiver: Rx(near_rx) }) as Box<dyn PeerStream>)
        })
    }
}

/// One direction of a stream. Messages take their time; a cut, or the death of an end, breaks it for good.
fn pipe(from: MemberId, to: MemberId, rpc: PeerRpc, wires: &Arc<Mutex<Wires>>) -> (mpsc::Sender<Bytes>, mpsc::Receiver<Bytes>) {
    let (tx, mut inside) = mpsc::channel::<Bytes>(8);
    let (outside, rx) = mpsc::channel(8);
    let wires = wires.clone();
    let lives = {
        let w = lock(&wires);
        (w.life(from), w.life(to))
    };
    tokio::spawn(async move {
        while let Some(message) = inside.recv().await {
            let delay = lock(&wires).delay();
            tokio::time::sleep(delay).await;
            {
                let mut w = lock(&wires);
                *w.sent.entry(rpc).or_default() += 1;
                if let Some((kind, left)) = &mut w.fuse
                    && *kind == rpc
                {
                    if *left == 0 {
                        w.fuse = None;
                        return;
                    }
                    *left -= 1;
                }
                *w.carried.entry(rpc).or_default() += message.len() as u64;
                if !w.open(from, to) || (w.life(from), w.life(to)) != lives {
                    return;
                }
            }
            if outside.send(message).await.is_err() {
                return;
            }
        }
    });
    (tx, rx)
}

struct Tx(MemberId, mpsc::Sender<Bytes>);
struct Rx(mpsc::Receiver<Bytes>);

impl PeerSender for Tx {
    fn send(&mut self, body: Bytes) -> BoxFuture<'_, Result<(), NetError>> {
        Box::pin(async { self.1.send(body).await.map_err(|_| NetError::Unreachable { to: self.0, why: "broken".into() }) })
    }
}

impl PeerReceiver for Rx {
    fn recv(&mut self) -> BoxFuture<'_, Option<Result<Bytes, NetError>>> {
        Box::pin(async { self.0.recv().await.map(Ok) })
    }
}

/// Remembers what it was told, and checks the order.
#[derive(Default)]
pub(super) struct Sink {
    pub(super) last: Mutex<(LogIndex, Revision)>,
}

impl ApplySink for Sink {
    fn applied(&self, batch: AppliedBatch) {
        let mut last = self.last.lock().unwrap();
        assert!(batch.index > last.0 && batch.revision >= last.1, "{:?} after {last:?}", batch.index);
        for event in &batch.events {
            assert!(event.kv.mod_revision > last.1 && event.kv.mod_revision <= batch.revision);
        }
        *last = (batch.index, batch.revision);
    }

    fn replaced(&self, revision: Revision, _compact: Revision) {
        self.last.lock().unwrap().1 = revision;
    }
}

pub(super) struct Host {
    pub(super) name: String,
    pub(super) id: MemberId,
    pub(super) engine: SimEngine,
    pub(super) disk: SimDisk,
    pub(super) node: Option<Arc<RaftNode>>,
    scratch: tempfile::TempDir,
}

pub(super) struct World {
    pub(super) env: Arc<TestEnv>,
    pub(super) wires: Arc<Mutex<Wires>>,
    pub(super) hosts: Vec<Host>,
    pub(super) timings: Timings,
    initial: Vec<InitialMember>,
}

const TOKEN: &str = "test";

fn row(n: usize) -> InitialMember {
    InitialMember { name: format!("m{n}"), peer_urls: vec![format!("http://m{n}:2380")], client_urls: vec![] }
}

impl World {
    pub(super) fn new(members: usize, seed: u64) -> Self {
        let wires = Wires {
            handlers: BTreeMap::new(),
            lives: BTreeMap::new(),
            cut: BTreeSet::new(),
            max_delay_us: 2_000,
            seed,
            sent: BTreeMap::new(),
            carried: BTreeMap::new(),
            fuse: None,
        };
        let timings = Timings {
            request: Duration::from_secs(5),
            flush_every: Duration::from_secs(4),
            flush_bytes: 64 << 10,
            keep_log_bytes: 16 << 10,
            ..Timings::default()
        };
        let initial = (0..members).map(row).collect();
        let mut world = Self { env: TestEnv::new(seed), wires: Arc::new(Mutex::new(wires)), hosts: Vec::new(), timings, initial };
        (0..members).for_each(|n| world.add_host(n));
        world
    }

    fn add_host(&mut self, n: usize) {
        let InitialMember { name, peer_urls, .. } = row(n);
        let id = member_id(&peer_urls, TOKEN);
        let scratch = tempfile::tempdir().unwrap();
        self.hosts.push(Host { name, id, engine: SimEngine::new(), disk: SimDisk::new(), node: None, scratch });
    }

    fn config(&self, n: usize) -> RaftConfig {
        let host = &self.hosts[n];
        let mut initial_cluster = self.initial.clone();
        let join = n >= initial_cluster.len();
        if join {
            initial_cluster.push(row(n));
        }
        RaftConfig {
            name: host.name.clone(),
            initial_cluster,
            cluster_token: TOKEN.into(),
            join,
            id: join.then_some(host.id),
            storage: Some(Storage::Parts {
                engine: Arc::new(host.engine.clone()),
                disk: Arc::new(host.disk.clone()),
                log: LogOptions { segment_bytes: 64 << 10, tail_bytes: 16 << 10, spares: 2 },
                scratch: host.scratch.path().join("snapshots"),
                inline: true,
            }),
            net: Arc::new(MemNet { me: host.id, wires: self.wires.clone() }),
            env: self.env.clone(),
            sink: Arc::new(Sink::default()),
            timings: self.timings.clone(),
            meter: None,
        }
    }

    pub(super) async fn try_start(&mut self, n: usize) -> Result<(), StartError> {
        let node = RaftNode::start(self.config(n)).await?;
        lock(&self.wires).handlers.insert(self.hosts[n].id, node.handler());
        self.hosts[n].node = Some(node);
        Ok(())
    }

    pub(super) async fn start(&mut self, n: usize) {
        self.try_start(n).await.unwrap_or_else(|e| panic!("member {n} does not start: {e}"));
    }

    pub(super) async fn start_all(&mut self) {
        for n in 0..self.hosts.len() {
            if self.hosts[n].node.is_none() {
                self.start(n).await;
            }
        }
    }

    /// A host that is not in the initial cluster.
    pub(super) async fn start_joiner(&mut self) -> usize {
        let n = self.hosts.len();
        self.add_host(n);
        self.start(n).await;
        n
    }

    fn unplug(&mut self, n: usize) -> Option<Arc<RaftNode>> {
        let id = self.hosts[n].id;
        let mut w = lock(&self.wires);
        w.handlers.remove(&id);
        *w.lives.entry(id).or_default() += 1;
        self.hosts[n].node.take()
    }

    /// Cuts the power of a member.
    pub(super) async fn crash(&mut self, n: usize) {
        self.hosts[n].disk.fail_after(0);
        let Some(node) = self.unplug(n) else { return };
        node.kill().await;
        drop(node);
        // It goes back to its last flush, which may be ahead of what the log has.
        self.hosts[n].engine.crash();
        let env = self.env.clone();
        self.hosts[n].disk.crash(move || env.random_u64());
    }

    pub(super) async fn stop(&mut self, n: usize) {
        let Some(node) = self.hosts[n].node.take() else { return };
        node.shutdown().await;
        self.unplug(n);
    }

    /// Loses everything that a member has stored.
    pub(super) fn wipe(&mut self, n: usize) {
        self.hosts[n].engine = SimEngine::new();
        self.hosts[n].disk = SimDisk::new();
    }

    pub(super) fn cut(&self, a: usize, b: usize) {
        let (a, b) = (self.hosts[a].id, self.hosts[b].id);
        lock(&self.wires).cut.extend([(a, b), (b, a)]);
    }

    /// Nothing arrives at `to` from `from`; the other way it does.
    pub(super) fn cut_one_way(&self, from: usize, to: usize) {
        let (from, to) = (self.hosts[from].id, self.hosts[to].id);
        lock(&self.wires).cut.insert((from, to));
    }

    pub(super) fn isolate(&self, n: usize) {
        (0..self.hosts.len()).filter(|other| *other != n).for_each(|other| self.cut(n, other));
    }

    pub(super) fn heal(&self) {
        let mut w = lock(&self.wires);
        w.cut.clear();
        w.max_delay_us = 2_000;
    }

    pub(super) fn slow(&self, max_delay_us: u64) {
        lock(&self.wires).max_delay_us = max_delay_us;
    }

    pub(super) fn node(&self, n: usize) -> Arc<RaftNode> {
        self.hosts[n].node.clone().unwrap()
    }

    pub(super) fn status(&self, n: usize) -> RaftStatus {
        self.node(n).status().borrow().clone()
    }

    /// The running member that leads with the highest term.
    pub(super) fn leader(&self) -> Option<usize> {
        let running = (0..self.hosts.len()).filter(|n| self.hosts[*n].node.is_some());
        running.filter(|n| self.status(*n).role == Role::Leader).max_by_key(|n| self.status(*n).term)
    }

    pub(super) async fn wait_leader(&self) -> usize {
        for _ in 0..3_000 {
            if let Some(leader) = self.leader() {
                return leader;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!(
            "no leader: {:#?}",
            (0..self.hosts.len()).filter(|n| self.hosts[*n].node.is_some()).map(|n| self.status(n)).collect::<Vec<_>>()
        );
    }

    /// Waits until all running members have applied the same, and compares what they have.
    pub(super) async fn converge(&self) -> Vec<((kontiki_mvcc::Space, Bytes), Bytes)> {
        let leader = self.wait_leader().await;
        self.node(leader).read_barrier().await.unwrap();
        let mut last = Vec::new();
        for _ in 0..3_000 {
            last = (0..self.hosts.len()).filter(|n| self.hosts[*n].node.is_some()).map(|n| self.status(n)).collect();
            if last.iter().all(|s| s.applied == last[0].last_index && s.last_index == last[0].last_index) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(last.iter().all(|s| s.applied == last[0].last_index && s.fatal.is_none()), "no convergence: {last:#?}");
        let running = self.hosts.iter().filter(|h| h.node.is_some());
        let hashes: BTreeSet<u64> = running.map(|h| kontiki_mvcc::state_hash(&*h.engine.snapshot()).unwrap()).collect();
        assert_eq!(hashes.len(), 1, "the members' states differ");
        self.hosts.iter().find(|h| h.node.is_some()).unwrap().engine.dump()
    }
}

pub(super) fn put(key: &str, value: &str) -> Command {
    Command::Put(PutReq {
        key: Bytes::copy_from_slice(key.as_bytes()),
        value: Bytes::copy_from_slice(value.as_bytes()),
        lease: LeaseId::ZERO,
        ..PutReq::default()
    })
}

pub(super) async fn write(node: &RaftNode, key: &str, value: &str) -> Result<Vec<Outcome>, KvError> {
    node.propose(vec![put(key, value)], None).await
}

/// The value of a key and how often it was written, at one member.
pub(super) fn read(engine: &SimEngine, key: &str) -> Option<(Bytes, i64)> {
    let found = kontiki_mvcc::get_at(&*engine.snapshot(), key.as_bytes(), Revision::ZERO).unwrap();
    found.map(|kv| (kv.value, kv.version))
}
