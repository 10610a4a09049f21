//! The injector: takes faults from the plan, finds whom they hit, keeps within the budget, does them, proves them, and undoes them.

mod disks;
mod links;
mod members;
mod power;
mod processes;
mod traffic;

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::views::{self, Views};
use super::world::World;
use crate::fault::Fault;
use crate::history::{self, At, FaultOutcome, Heal, Record};
use crate::load::kv::Run;
use crate::load::pods::Pods;
use crate::plan::{Dice, Entry, Event, Injection, Mode, Plan, Target};

/// A member that was hit counts as impaired until it serves again, but no longer than this.
const RECOVERY: Duration = Duration::from_secs(60);

/// A fault waits so long for room in the budget before it is skipped.
const ROOM: Duration = Duration::from_secs(30);

/// Events that wait for the injector; more are forgotten, which only makes fewer faults.
const EVENTS: usize = 64;

/// What a fault may use.
pub(crate) struct Stage {
    /// The cluster.
    pub(crate) world: World,
    /// The plan.
    pub(crate) plan: Plan,
    /// Clock and recorder.
    pub(crate) run: Arc<Run>,
    /// Who leads, who serves.
    pub(crate) views: Arc<Views>,
    /// When the clients began, on the run's clock: the schedule counts from here.
    begin: Duration,
    impaired: Mutex<BTreeSet<usize>>,
    seen: Mutex<Vec<Seen>>,
    pods: Mutex<Option<Pods>>,
    /// Told of every event.
    events: tokio::sync::broadcast::Sender<Event>,
}

/// One injection, as it went.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    /// The fault's name.
    pub(crate) kind: &'static str,
    /// When it was installed.
    pub(crate) at: At,
    /// When it was over.
    pub(crate) healed: At,
    /// Members that it hit.
    pub(crate) members: Vec<usize>,
    /// Whether it took effect.
    pub(crate) outcome: FaultOutcome,
}

/// Why a fault did not take effect for certain.
#[derive(Debug)]
pub(crate) enum Miss {
    /// It was not done: this machine, or this moment, does not allow it.
    Skipped(String),
    /// It was done, and nobody knows whether it took effect.
    Unproved(String),
}

impl<E: std::fmt::Display> From<E> for Miss {
    fn from(e: E) -> Self {
        Self::Unproved(e.to_string())
    }
}

/// What a fault says when it is over: how it is known that it took effect.
pub(crate) type Proof = Result<String, Miss>;

/// Whom a fault hits.
#[derive(Clone, Debug, Default)]
pub(crate) struct Victims {
    /// Servers, by index.
    pub(crate) servers: Vec<usize>,
    /// Nodes, by index.
    pub(crate) nodes: Vec<usize>,
}

impl Stage {
    /// Everything is there.
    pub(crate) fn new(world: World, plan: Plan, (run, views): (Arc<Run>, Arc<Views>), pods: Option<Pods>) -> Arc<Self> {
        let begin = Duration::from_nanos(run.now());
        let events = tokio::sync::broadcast::Sender::new(EVENTS);
        Arc::new(Self {
            world,
            plan,
            run,
            views,
            begin,
            impaired: Mutex::default(),
            seen: Mutex::default(),
            pods: Mutex::new(pods),
            events,
        })
    }

    /// Gives the cluster back.
    pub(crate) fn into_world(self: Arc<Self>) -> Option<World> {
        Arc::into_inner(self).map(|stage| stage.world)
    }

    /// Everything that was injected so far.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        let mut all = self.seen.lock().expect("no holder of this lock panics").clone();
        all.sort_by_key(|s| s.at);
        all
    }

    /// The clients tell of something that a schedule may wait for.
    pub(crate) fn tell(&self, event: Event) {
        // Nobody listens when no entry waits for events.
        let _ = self.events.send(event);
    }

    fn over(&self) -> bool {
        self.run.stop.load(Ordering::Relaxed)
    }

    /// How much of this time since the clients began is left.
    fn left(&self, at: Duration) -> Duration {
        (self.begin + at).saturating_sub(Duration::from_nanos(self.run.now()))
    }

    async fn sleep_until(&self, at: Duration) {
        self.run.env.sleep(self.left(at)).await;
    }

    /// The leader now, by index.
    pub(crate) fn leader(&self) -> Option<usize> {
        self.views.leader().map(|(member, _)| member)
    }

    fn victims(&self, entry: &Entry, dice: &mut Dice) -> Victims {
        let all: Vec<usize> = (0..self.world.servers.len()).collect();
        let nodes: Vec<usize> = (0..self.world.nodes.len()).collect();
        let leader = self.leader();
        let servers = match entry.target {
            Target::Leader => leader.into_iter().collect(),
            Target::Follower => {
                let others: Vec<usize> = all.iter().copied().filter(|s| Some(*s) != leader).collect();
                dice.choose(&others, 1)
            }
            Target::AnyServer => dice.choose(&all, 1),
            Target::Servers(n) => dice.choose(&all, usize::from(n)),
            Target::Server(n) => vec![usize::from(n) - 1],
            Target::AllServers => all,
            Target::AnyNode | Target::Node(_) | Target::Cluster => vec![],
        };
        let nodes = match entry.target {
            Target::AnyNode => dice.choose(&nodes, 1),
            Target::Node(n) => vec![usize::from(n) - 1],
            _ => vec![],
        };
        Victims { servers, nodes }
    }

    /// Finds whom a fault hits, and marks servers as impaired, if the budget has room for them; waits for a leader and for room a while.
    async fn take_room(&self, entry: &Entry, dice: &mut Dice) -> Result<(Victims, Vec<usize>), Miss> {
        let free = !entry.fault.impairs() || self.plan.budget.mode == Mode::BeyondModel;
        let until = self.run.now() + u64::try_from(ROOM.as_nanos()).unwrap_or(u64::MAX);
        loop {
            // The same draw each time: only the leader may have changed.
            let victims = self.victims(entry, &mut dice.clone());
            let nobody = victims.servers.is_empty() && victims.nodes.is_empty() && entry.target != Target::Cluster;
            if !nobody && free {
                return Ok((victims, vec![]));
            }
            if !nobody && self.mark(entry, &victims) {
                let taken = victims.servers.clone();
                return Ok((victims, taken));
            }
            if self.run.now() > until || self.over() {
                let why =
                    if nobody { "there is nobody to hit: no leader is known" } else { "the budget has no room: others are still impaired" };
                return Err(Miss::Skipped(why.into()));
            }
            self.run.env.sleep(Duration::from_millis(20)).await;
        }
    }

    fn mark(&self, entry: &Entry, victims: &Victims) -> bool {
        // One after another is one at a time; it is the fault that sees to that.
        let cost = if matches!(entry.fault, Fault::RollingRestart {}) { 1 } else { victims.servers.len() };
        let mut impaired = self.impaired.lock().expect("no holder of this lock panics");
        let others = impaired.iter().filter(|s| !victims.servers.contains(s)).count();
        let busy = victims.servers.iter().any(|s| impaired.contains(s));
        if busy || others + cost > usize::from(self.plan.allowance()) {
            return false;
        }
        impaired.extend(victims.servers.iter().copied());
        true
    }

    /// Servers count as impaired until they serve again. One that does not come back counts to the end: no other may be broken then.
    async fn give_room(&self, taken: &[usize]) {
        for server in taken {
            if !views::serves(self.run.env.as_ref(), &self.run, &self.views, *server, RECOVERY).await {
                let name = &self.world.servers[*server].name;
                super::progress::say(&format!("{name} does not serve {} s after its fault", RECOVERY.as_secs()));
                continue;
            }
            self.impaired.lock().expect("no holder of this lock panics").remove(server);
        }
    }

    /// Does one fault, from finding its victims to their recovery.
    async fn one(self: Arc<Self>, entry: usize, hold: Duration, mut dice: Dice, id: u32) {
        let line = &self.plan.schedule[entry];
        let (victims, taken) = match self.take_room(line, &mut dice).await {
            Ok(room) => room,
            Err(miss) => {
                let now = self.run.now();
                return self.note(line, id, (now, now), &Victims::default(), &Err(miss));
            }
        };
        self.disturb().await;
        let at = self.run.now();
        let proof = self.perform(&line.fault, &victims, hold, &mut dice, id).await;
        self.note(line, id, (at, self.run.now()), &victims, &proof);
        self.give_room(&taken).await;
    }

    fn note(&self, line: &Entry, id: u32, (at, healed): (At, At), victims: &Victims, proof: &Proof) {
        let outcome = match proof {
            Ok(proof) => FaultOutcome::Installed { proof: proof.clone() },
            Err(Miss::Skipped(why)) => FaultOutcome::Skipped { why: why.clone() },
            Err(Miss::Unproved(why)) => FaultOutcome::Indeterminate { why: why.clone() },
        };
        let nodes: Vec<String> = victims.nodes.iter().map(|n| self.world.nodes[*n].name.clone()).collect();
        let kind = line.fault.name();
        let fault = history::Fault {
            id,
            at,
            kind: kind.to_owned(),
            members: victims.servers.clone(),
            nodes: nodes.clone(),
            detail: line.label().to_owned(),
            outcome: outcome.clone(),
        };
        self.run.recorder.record(Record::Fault(fault));
        self.run.recorder.record(Record::Heal(Heal { id, at: healed, detail: String::new() }));
        let victim: Vec<&str> = victims.servers.iter().map(|s| self.world.servers[*s].name.as_str()).collect();
        let victim = victim.into_iter().chain(nodes.iter().map(String::as_str)).collect::<Vec<_>>().join(", ");
        let said = match &outcome {
            FaultOutcome::Installed { proof } => proof.clone(),
            FaultOutcome::Skipped { why } => format!("skipped: {why}"),
            FaultOutcome::Indeterminate { why } => format!("NOT PROVED: {why}"),
        };
        let whom = if victim.is_empty() { "cluster" } else { &victim };
        super::progress::say(&format!("{:>7.1} s  {:<16} {whom}: {said}", at as f64 / 1e9, line.label()));
        let members = victims.servers.clone();
        let seen = Seen { kind, at, healed, members, outcome };
        self.seen.lock().expect("no holder of this lock panics").push(seen);
    }

    /// Some pods are deleted with every fault, so that there is something to make complete again.
    async fn disturb(&self) {
        let pods = self.pods.lock().expect("no holder of this lock panics").clone();
        let Some((mut pods, deployment)) = pods.zip(self.plan.workload.deployment) else { return };
        let count = usize::try_from(deployment.disturb).unwrap_or(0);
        tokio::spawn(async move { pods.disturb(count).await });
    }

    async fn perform(&self, fault: &Fault, victims: &Victims, hold: Duration, dice: &mut Dice, id: u32) -> Proof {
        match fault {
            Fault::Crash {} => self.crash(victims, hold).await,
            Fault::Pause {} => self.pause(victims, hold, id).await,
            Fault::Stop {} => self.stop(victims, hold).await,
            Fault::RollingRestart {} => self.rolling_restart(victims, hold).await,
            Fault::AgentCrash {} => self.agent_crash(victims, hold).await,
            Fault::NodeFreeze {} => self.node_freeze(victims, hold, id).await,
            Fault::Partition { shape, direction, plane } => self.partition(victims, (*shape, *direction, *plane), hold, dice).await,
            Fault::Loss { percent } => self.loss(victims, *percent, hold).await,
            Fault::Bandwidth { kbytes } => self.bandwidth(victims, *kbytes, hold).await,
            Fault::Delay { by, jitter } => self.delay(victims, by.0, jitter.0, hold, dice).await,
            Fault::PowerLoss { unsynced } => self.power_loss(victims, *unsynced, hold, dice, id).await,
            Fault::LyingFsync {} => self.lying_fsync(victims, hold, dice).await,
            Fault::FsyncEio {} => self.fsync_eio(victims, hold).await,
            Fault::DiskFull {} => self.disk_full(victims, hold).await,
            Fault::DiskSlow { by } => self.disk_slow(victims, by.0, hold).await,
            Fault::DiskStall {} => self.disk_stall(victims, hold).await,
            Fault::BitRot {} => self.bit_rot(victims, hold, dice).await,
            Fault::ClockJump { ms } => self.clock_jump(victims, *ms, hold, id).await,
            Fault::Overload { clients, bytes } => self.overload(*clients, *bytes, hold, id).await,
            Fault::ReplaceMember {} => self.replace_member(victims).await,
            Fault::Duplicate { .. } | Fault::ClockDrift { .. } => {
                let why = crate::fault::table::row(fault.name()).map(|row| row.real);
                let why = if let Some(crate::fault::table::In::No(why)) = why { why } else { "only the simulated world has it" };
                Err(Miss::Skipped(why.into()))
            }
        }
    }

    /// Runs the whole schedule: entries that go by the clock, and those that wait for events.
    pub(crate) async fn run_schedule(self: &Arc<Self>) {
        let mut tasks = tokio::task::JoinSet::new();
        let mut next_id = 0;
        let mut id = || {
            next_id += 1;
            next_id
        };
        let timed = self.plan.injections();
        let by_event = self.plan.schedule.iter().enumerate().filter(|(_, e)| e.when.event.is_some());
        for (entry, _) in by_event {
            // Ids of faults that wait for events do not meet those of the others.
            let first = 1_000_000 * u32::try_from(entry + 1).unwrap_or(1);
            tasks.spawn(self.clone().on_event(entry, first));
        }
        for injection in timed {
            self.sleep_until(injection.at).await;
            let Injection { entry, hold, .. } = injection;
            let dice = self.plan.dice(&injection);
            let stage = self.clone();
            let id = id();
            tasks.spawn(async move { stage.one(entry, hold, dice, id).await });
        }
        self.sleep_until(self.plan.duration.0).await;
        // Faults that run heal first; entries that wait for events end with the duration.
        while tasks.join_next().await.is_some() {}
    }

    async fn on_event(self: Arc<Self>, entry: usize, first: u32) {
        let line = self.plan.schedule[entry].clone();
        let mut events = self.events.subscribe();
        let mut dice = Dice::new(self.plan.seed, &format!("event/{entry}"));
        let mut number = 0;
        loop {
            let left = self.left(self.plan.duration.0);
            let Ok(received) = tokio::time::timeout(left, events.recv()).await else { return };
            let Ok(event) = received else { continue };
            if Some(event) != line.when.event || !dice.chance(line.when.p.unwrap_or(1.0)) {
                continue;
            }
            let (after, hold) = (line.when.after.map_or(Duration::ZERO, |a| a.draw(&mut dice)), line.hold.draw(&mut dice));
            self.run.env.sleep(after).await;
            let own = Dice::new(self.plan.seed, &format!("event/{entry}/{number}"));
            self.clone().one(entry, hold, own, first + number).await;
            number += 1;
            // What happened meanwhile was caused by this very fault, most likely: it must not feed itself without end.
            while events.try_recv().is_ok() {}
        }
    }
}
