//! Seeds of chaos: power cuts, partitions, slow links, shutdowns and transfers under concurrent writes and reads.
//!
//! What is checked: a write that was acknowledged is there in the end, at every member, carried out exactly once; a write that was
//! reported as not carried out is not; a read barrier shows everything that was acknowledged before it; all states are equal.
//! `KONTIKI_SEEDS=n` runs n seeds, `KONTIKI_SEED=s` runs one. Workload, faults, delays and elections follow from the seed. What remains
//! is the order in which tokio wakes several waiters of one watch channel: two runs of a seed are alike, not identical.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use kontiki_base::ids::Revision;
use kontiki_base::kv::KvError;

use super::world::{World, put, random, read, write};
use crate::raft::{Consensus, RaftNode};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Acked,
    /// It may or may not have been carried out.
    Unknown,
}

/// What the clients know.
#[derive(Default)]
struct History {
    writes: BTreeMap<String, Fate>,
    acked: Vec<String>,
    reads: u64,
    failed_reads: u64,
}

struct Shared {
    /// The members that run, as clients see them.
    nodes: Mutex<Vec<Option<Arc<RaftNode>>>>,
    history: Mutex<History>,
    stop: tokio::sync::watch::Sender<bool>,
}

impl Shared {
    fn pick(&self, seed: &mut u64) -> Option<Arc<RaftNode>> {
        let nodes = self.nodes.lock().unwrap();
        nodes[(random(seed) % nodes.len() as u64) as usize].clone()
    }

    fn stopped(&self) -> bool {
        *self.stop.borrow()
    }
}

async fn writer(shared: Arc<Shared>, name: u64, mut seed: u64) {
    let mut n = 0;
    while !shared.stopped() {
        tokio::time::sleep(Duration::from_millis(random(&mut seed) % 60)).await;
        let Some(node) = shared.pick(&mut seed) else { continue };
        n += 1;
        let keys: Vec<String> = (0..random(&mut seed) % 3 + 1).map(|i| format!("w{name}-{n}-{i}")).collect();
        shared.history.lock().unwrap().writes.extend(keys.iter().map(|k| (k.clone(), Fate::Unknown)));
        let value = "v".repeat((random(&mut seed) % 900) as usize);
        let outcome = node.propose(keys.iter().map(|k| put(k, &value)).collect(), None).await;
        if let Ok(outcomes) = outcome {
            assert_eq!(outcomes.len(), keys.len());
            let mut history = shared.history.lock().unwrap();
            for key in keys {
                history.writes.insert(key.clone(), Fate::Acked);
                history.acked.push(key);
            }
        }
    }
}

async fn reader(shared: Arc<Shared>, mut seed: u64) {
    while !shared.stopped() {
        tokio::time::sleep(Duration::from_millis(random(&mut seed) % 80)).await;
        let Some(node) = shared.pick(&mut seed) else { continue };
        let acked: Vec<String> = {
            let history = shared.history.lock().unwrap();
            let last = history.acked.iter().rev().take(10);
            let any = (0..5).filter_map(|_| history.acked.get((random(&mut seed) % history.acked.len().max(1) as u64) as usize));
            last.chain(any).cloned().collect()
        };
        let passed = node.read_barrier().await;
        // From here to the end without an await: nobody can cut the power meanwhile.
        let runs = shared.nodes.lock().unwrap().iter().flatten().any(|n| Arc::ptr_eq(n, &node));
        if passed.is_err() || !runs {
            shared.history.lock().unwrap().failed_reads += 1;
            continue;
        }
        let view = node.engine().snapshot();
        for key in acked {
            let found = kontiki_mvcc::get_at(&*view, key.as_bytes(), Revision::ZERO).unwrap();
            assert!(found.is_some(), "{key} was acknowledged before the read began, and member {} does not show it", node.id());
        }
        shared.history.lock().unwrap().reads += 1;
    }
}

/// One fault, or the repair of one.
async fn nemesis(world: &mut World, shared: &Shared, seed: &mut u64) {
    let members = world.hosts.len();
    let n = (random(seed) % members as u64) as usize;
    let m = (n + 1 + (random(seed) % (members as u64 - 1)) as usize) % members;
    let runs = world.hosts[n].node.is_some();
    match random(seed) % 14 {
        0..=2 if runs => {
            shared.nodes.lock().unwrap()[n] = None;
            world.crash(n).await;
        }
        3 if runs => {
            shared.nodes.lock().unwrap()[n] = None;
            world.stop(n).await;
        }
        0..=5 if !runs => {
            world.start(n).await;
            shared.nodes.lock().unwrap()[n] = world.hosts[n].node.clone();
        }
        4 => world.isolate(n),
        5 => world.cut(n, m),
        6 => world.cut_one_way(n, m),
        7 => world.slow(1_000 << (random(seed) % 8)),
        8 if runs => {
            if let Some(leader) = world.leader() {
                // Whether it works out is not the point here.
                drop(world.node(n).transfer_leader(world.hosts[m].id).await);
                let _ = leader;
            }
        }
        _ => world.heal(),
    }
}

async fn run(seed: u64) {
    let mut chance = seed;
    let members = if seed.is_multiple_of(3) { 5 } else { 3 };
    let mut world = World::new(members, seed);
    world.start_all().await;
    let nodes = world.hosts.iter().map(|h| h.node.clone()).collect();
    let shared = Arc::new(Shared { nodes: Mutex::new(nodes), history: Mutex::default(), stop: tokio::sync::watch::channel(false).0 });
    let mut clients = tokio::task::JoinSet::new();
    for name in 0..4 {
        clients.spawn(writer(shared.clone(), name, random(&mut chance)));
    }
    for _ in 0..2 {
        clients.spawn(reader(shared.clone(), random(&mut chance)));
    }
    for _ in 0..30 {
        tokio::time::sleep(Duration::from_millis(random(&mut chance) % 1_500)).await;
        nemesis(&mut world, &shared, &mut chance).await;
    }
    world.heal();
    world.start_all().await;
    *shared.nodes.lock().unwrap() = world.hosts.iter().map(|h| h.node.clone()).collect();
    tokio::time::sleep(Duration::from_secs(3)).await;
    shared.stop.send_replace(true);
    while let Some(ended) = clients.join_next().await {
        ended.unwrap_or_else(|e| panic!("seed {seed}: {e}"));
    }
    let last = world.wait_leader().await;
    let served = write(&world.node(last), "after all", "v").await;
    assert!(matches!(served, Ok(_) | Err(KvError::LeaderChanged)), "seed {seed}: the healed cluster does not serve: {served:?}");
    world.converge().await;
    check(&world, &shared.history.lock().unwrap(), seed);
}

fn check(world: &World, history: &History, seed: u64) {
    let count = |fate| history.writes.values().filter(|f| **f == fate).count();
    for (key, fate) in &history.writes {
        for host in &world.hosts {
            match (read(&host.engine, key), fate) {
                (None, Fate::Acked) => panic!("seed {seed}: {key} was acknowledged and is lost at {}", host.name),
                (Some((_, version)), _) => assert_eq!(version, 1, "seed {seed}: {key} was carried out {version} times"),
                (None, Fate::Unknown) => {}
            }
        }
    }
    let (acked, unknown) = (count(Fate::Acked), count(Fate::Unknown));
    println!("seed {seed}: {acked} acknowledged, {unknown} unknown, {} reads, {} reads failed", history.reads, history.failed_reads);
    assert!(acked > 20 && history.reads > 5, "seed {seed} saw next to nothing: {acked} writes, {} reads", history.reads);
    assert_eq!(read(&world.hosts[0].engine, "after all").map(|(v, _)| v), Some(Bytes::from_static(b"v")));
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

#[test]
fn sim_seeds() {
    let seeds = match number("KONTIKI_SEED") {
        Some(one) => one..one + 1,
        None => 0..number("KONTIKI_SEEDS").unwrap_or(5),
    };
    for seed in seeds {
        run_seed(seed);
    }
}

fn run_seed(seed: u64) {
    crate::raft::runtime::seed_thread(seed);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runtime.block_on(run(seed));
}
