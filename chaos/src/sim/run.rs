//! One run: a world, its clients and its nemesis; then healing, and the question whether it all held.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Once};
use std::time::Duration;

use tokio::time::Instant;

use super::ask;
use super::http::Channel;
use super::kube;
use super::load::{self, Load};
use super::nemesis::{Nemesis, Tally};
use super::oracle::Seen;
use super::rt;
use super::schedule::{Schedule, Torn};
use super::trace::{Event, Trace, WORLD};
use super::world::World;
use crate::check::{self, Verdict, Violation};
use crate::history::{Answer, Final, Header, History, RangeAsk, Record, Recorder};

/// After the last fault the cluster must serve within this time, and all members must have the same.
const RECOVER: Duration = Duration::from_secs(20);

/// Clients work on so long after the last fault.
const AFTERWARDS: Duration = Duration::from_secs(4);

/// All leases have ended by then.
const LAST_LEASES: Duration = Duration::from_secs(12);

/// The node of those who read at the end.
const READER: super::trace::Node = 90;

/// What a run proved.
#[derive(Debug)]
pub struct Outcome {
    /// Hash of everything that happened.
    pub hash: u128,
    /// Events in it.
    pub events: u64,
    /// Simulated time.
    pub simulated: Duration,
    /// Operations by outcome.
    pub ops: BTreeMap<&'static str, usize>,
    /// Faults by kind: carried out, left out.
    pub faults: Tally,
    /// What the oracle saw.
    pub seen: Seen,
    /// Messages sent, and lost.
    pub messages: (u64, u64),
    /// Everything that must not have happened, and did.
    pub violations: Vec<Violation>,
    /// What came of every check that judges histories: whether it saw what it is about.
    pub checks: BTreeMap<&'static str, bool>,
    /// The last lines of the trace.
    pub lines: Vec<String>,
}

thread_local! {
    static PANICS: RefCell<Option<Vec<String>>> = const { RefCell::new(None) };
}

/// Panics of simulated processes are findings of the run, and are not printed.
fn catch_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let caught = PANICS.try_with(|panics| match &mut *panics.borrow_mut() {
                Some(list) => {
                    list.push(info.to_string());
                    true
                }
                None => false,
            });
            if !caught.unwrap_or(false) {
                before(info);
            }
        }));
    });
}

/// Runs a schedule on a thread of its own, so that nothing of an earlier run is left in it.
///
/// # Errors
/// The machine does not give what the run needs; nothing was proved.
pub fn run(schedule: &Schedule, print: bool) -> anyhow::Result<Outcome> {
    catch_panics();
    let schedule = schedule.clone();
    let thread = std::thread::Builder::new().name("sim".into()).stack_size(16 << 20).spawn(move || -> anyhow::Result<Outcome> {
        PANICS.set(Some(Vec::new()));
        let scratch = Scratch::new()?;
        let runtime = rt::runtime(schedule.seed)?;
        let mut outcome = runtime.block_on(play(&schedule, print, scratch.0.clone()));
        drop(runtime);
        let panics = PANICS.take().unwrap_or_default();
        outcome.violations.extend(panics.into_iter().map(|text| Violation::new("panic", text)));
        Ok(outcome)
    })?;
    thread.join().map_err(|_| anyhow::anyhow!("the simulation itself panicked"))?
}

/// A directory for snapshots on their way; gone when dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> std::io::Result<Self> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("kontiki-sim-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Nothing of it is needed; what cannot be removed is in the system's folder for such things.
        drop(std::fs::remove_dir_all(&self.0));
    }
}

async fn play(schedule: &Schedule, print: bool, scratch: PathBuf) -> Outcome {
    let trace = Arc::new(Trace::new(print));
    let (mut world, cues) = World::new(schedule.seed, schedule.knobs, Arc::clone(&trace), scratch);
    (0..world.hosts.len()).for_each(|n| world.start(n));
    let header = Header {
        world: "sim".into(),
        seed: schedule.seed,
        members: (0..world.hosts.len()).map(|n| format!("m{n}")).collect(),
        observes_all: true,
        ..Header::default()
    };
    let recorder = Recorder::memory(header);
    let load = Load::new(recorder.clone());
    let clients = load::start(schedule.seed, schedule.knobs, &world.net, &load);
    let control = Control::start(&world, &recorder).await;
    let faults = Nemesis::new(&mut world, schedule, cues, recorder.clone()).run().await;
    watch(&world, AFTERWARDS).await;
    load.stop.store(true, Ordering::Relaxed);
    // A client that panicked is a finding of its own.
    futures::future::join_all(clients.writers).await;
    let control = match control {
        Some(control) => Some(control.settle(&world).await),
        None => None,
    };
    converge(&world, "after the faults").await;
    // Leases that nobody keeps alive end, and watchers hear of it.
    watch(&world, LAST_LEASES).await;
    load.stop_watching.store(true, Ordering::Relaxed);
    futures::future::join_all(clients.watchers).await;
    recorder.record(Record::End { at: trace.now() });
    let live: Vec<usize> = (0..world.hosts.len()).filter(|n| !world.hosts[*n].lost).collect();
    let changes_of_pods = match control {
        Some(control) => control.end(&world).await,
        None => {
            // With a control plane there would be no end to what it does about that.
            world.kill(&live, Some(Torn::Nothing)).await;
            live.iter().for_each(|n| world.start(*n));
            converge(&world, "after all lost power").await;
            (0, 0)
        }
    };
    for n in &live {
        last_words(&world, *n, &recorder).await;
    }
    let mut changes = world.oracle.changes();
    changes.sort_by_key(|change| change.revision);
    changes.into_iter().for_each(|change| recorder.record(Record::Change(change)));
    let mut outcome = judge(&world, &recorder, faults);
    if schedule.knobs.nodes > 0 {
        outcome.ops.insert("answered by the API", usize::try_from(changes_of_pods.0).unwrap_or(usize::MAX));
        outcome.ops.insert("not answered by the API", usize::try_from(changes_of_pods.1).unwrap_or(usize::MAX));
    }
    world.kill(&live, None).await;
    outcome
}

/// The control plane of a world that has one: its clients, and who looks at its nodes.
struct Control {
    load: Arc<kube::load::Load>,
    running: kube::load::Running,
    looking: tokio::task::JoinHandle<()>,
}

/// After the last change everything that controllers have to do is done within this time.
const SETTLE: Duration = Duration::from_secs(16);

impl Control {
    async fn start(world: &World, recorder: &Recorder) -> Option<Self> {
        if world.knobs.nodes == 0 {
            return None;
        }
        for machine in world.machines.lock().await.iter_mut() {
            machine.start_agent(&world.net, world.knobs.members);
        }
        let load = kube::load::Load::new(recorder.clone());
        let running = kube::load::start(world.seed, world.knobs.members, &world.net, &load);
        let (machines, trace, recorder) = (Arc::clone(&world.machines), Arc::clone(&world.trace), recorder.clone());
        // The world's own task: it belongs to no process.
        let looking = tokio::spawn(async move {
            loop {
                for machine in machines.lock().await.iter_mut() {
                    machine.look(&trace, &recorder).await;
                }
                tokio::time::sleep(kube::node::LOOK_EVERY).await;
            }
        });
        Some(Self { load, running, looking })
    }

    /// Nobody changes anything any more; controllers finish what they have to do.
    async fn settle(mut self, world: &World) -> Self {
        self.load.stop.store(true, Ordering::Relaxed);
        futures::future::join_all(std::mem::take(&mut self.running.operators)).await;
        watch(world, SETTLE).await;
        self
    }

    /// Stops the nodes, so that nothing changes while members are compared. Requests that were answered, and that were not.
    async fn end(self, world: &World) -> (u64, u64) {
        self.load.stop_watching.store(true, Ordering::Relaxed);
        futures::future::join_all(self.running.informers).await;
        self.looking.abort();
        for machine in world.machines.lock().await.iter_mut() {
            if let Err(left) = machine.kill_agent(&world.net).await {
                world.oracle.fail("sim", format!("{left} tasks of node {} outlive it", machine.name()));
            }
        }
        self.load.counts()
    }
}

/// What a member has at the end: everything, read from itself.
async fn last_words(world: &World, n: usize, recorder: &Recorder) {
    let node = world.hosts[n].node;
    let reader = rt::Proc::new(world.seed, READER, u64::from(node), 0, Arc::clone(&world.trace));
    world.net.join(&reader);
    let channel = Channel::new(Arc::clone(&reader), Arc::clone(&world.net), node, ask::LIMIT);
    let everything = RangeAsk { key: "\0".into(), end: "\0".into(), serializable: true, ..RangeAsk::default() };
    let read = reader.run(async move {
        let mut kv = kontiki_proto::etcd::etcdserverpb::kv_client::KvClient::new(channel);
        kv.range(ask::range(&everything)).await
    });
    match read.await {
        Ok(Ok(response)) => {
            let response = response.into_inner();
            let revision = ask::revision(response.header.as_ref());
            let kvs = response.kvs.iter().map(ask::seen).filter(|kv| !kv.key.starts_with(crate::history::REGISTRY)).collect();
            recorder.record(Record::Final(Final { member: n, revision, kvs }));
        }
        Ok(Err(status)) => world.oracle.fail("converge", format!("m{n} does not say what it has: {status}")),
        Err(_) => world.oracle.fail("sim", format!("nobody read what m{n} has")),
    }
}

/// Looks at the members for some time.
async fn watch(world: &World, time: Duration) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(10)).await;
        look(world);
    }
}

fn look(world: &World) {
    for n in 0..world.hosts.len() {
        if let Some(member) = world.member(n) {
            world.oracle.look(world.hosts[n].node, &member);
        }
    }
}

/// Waits until all members that are not lost have applied the same, and compares what they have.
async fn converge(world: &World, when: &str) {
    let live: Vec<usize> = (0..world.hosts.len()).filter(|n| !world.hosts[*n].lost).collect();
    let begun = Instant::now();
    loop {
        watch(world, Duration::from_millis(20)).await;
        let probes: Vec<_> = live.iter().filter_map(|n| world.member(*n)).map(|member| member.probe()).collect();
        let leads = probes.iter().any(|probe| probe.leads);
        let level = probes.iter().all(|probe| probe.applied == probes[0].log.last && probe.log.last == probes[0].log.last);
        if probes.len() == live.len() && leads && level {
            break;
        }
        if begun.elapsed() > RECOVER {
            let states: Vec<String> = live.iter().map(|n| state_of(world, *n)).collect();
            world.oracle.fail("converge", format!("{when}, the members are not level within {RECOVER:?}: {}", states.join("; ")));
            return;
        }
    }
    let hashes: BTreeMap<usize, String> = live
        .iter()
        .filter_map(|n| world.member(*n).map(|member| (*n, member)))
        .map(|(n, member)| (n, member.state_hash().map_or_else(|error| error.to_string(), |hash| format!("{hash:016x}"))))
        .collect();
    let first = hashes.values().next();
    if hashes.values().any(|hash| Some(hash) != first) {
        world.oracle.fail("replicas-equal", format!("{when}, the members' states differ: {hashes:?}"));
    }
    let took = begun.elapsed();
    world.trace.say(WORLD, Event::Note, 3, 0, format_args!("{when}: level after {took:?}"));
}

fn state_of(world: &World, n: usize) -> String {
    match world.slot(n) {
        super::world::Slot::Running(member) => {
            let p = member.probe();
            let leads = if p.leads { ", leads" } else { "" };
            let (applied, last) = (p.applied.index, p.log.last.index);
            format!("m{n}: term {}{leads}, applied {applied} of {last}, {}", p.term, p.fatal.unwrap_or_default())
        }
        super::world::Slot::Starting => format!("m{n} is starting"),
        super::world::Slot::Refused(why) => format!("m{n}: {why}"),
        super::world::Slot::Down => format!("m{n} is down"),
    }
}

fn judge(world: &World, recorder: &Recorder, faults: Tally) -> Outcome {
    let mut violations = world.oracle.violations();
    let history = recorder.finish(world.trace.now()).unwrap_or_else(|error| {
        violations.push(Violation::new("sim", format!("the history is not whole: {error}")));
        History::default()
    });
    let mut counts: BTreeMap<&'static str, usize> = BTreeMap::new();
    for op in &history.ops {
        let name = match op.answer {
            Answer::Unknown { .. } => "unknown",
            Answer::Refused { .. } => "refused",
            _ => "answered",
        };
        *counts.entry(name).or_default() += 1;
    }
    *counts.entry("watch frames").or_default() += history.watches.len();
    let mut checks = BTreeMap::new();
    for outcome in check::judge(&history).into_iter().filter(|outcome| !outcome.counts.is_empty()) {
        checks.insert(outcome.check, !matches!(outcome.verdict, Verdict::Vacuous(_)));
        violations.extend(outcome.violations().iter().cloned());
    }
    let (hash, events) = world.trace.sum();
    Outcome {
        hash,
        events,
        simulated: Duration::from_nanos(world.trace.now()),
        ops: counts,
        faults,
        seen: world.oracle.seen(),
        messages: world.net.counts(),
        violations,
        checks,
        lines: world.trace.lines(),
    }
}
