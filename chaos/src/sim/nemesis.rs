//! Carries out a schedule: begins and ends faults in order of time, and never impairs more members at once than the cluster can bear,
//! unless the schedule says so.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::kube;
use super::load::{self, FIRST_CLIENT};
use super::rng::Stream;
use super::schedule::{Entry, Fault, Schedule, Shape, Torn, Trigger, Who};
use super::trace::{Event, Node, WORLD};
use super::world::{Cue, Slot, World};
use crate::history::{self, Answer, Ask, FaultOutcome, Heal, Record, Recorder};

/// An entry that waits for its cue is given up after this long.
const WAIT_FOR_CUE: Duration = Duration::from_secs(5);

/// A member that was told to stop has so long.
const STOP_WITHIN: Duration = Duration::from_secs(8);

/// How often consensus is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// How often each kind of fault was carried out, and left out.
pub type Tally = BTreeMap<&'static str, (u32, u32)>;

/// A fault that is on.
struct Active {
    entry: Entry,
    until: Instant,
    /// Members that it impairs.
    members: BTreeSet<usize>,
    /// For flapping: when the links change next, and whether they are cut.
    turn: Option<(Instant, bool)>,
    cuts: Vec<(Node, Node)>,
    /// Its number in the history.
    id: u32,
}

/// Carries out one schedule.
pub struct Nemesis<'a> {
    world: &'a mut World,
    schedule: &'a Schedule,
    cues: mpsc::Receiver<Cue>,
    active: Vec<Active>,
    armed: Vec<(Entry, Instant)>,
    random: Stream,
    tally: Tally,
    recorder: Recorder,
    next_id: u32,
}

impl<'a> Nemesis<'a> {
    /// A nemesis that has done nothing yet.
    pub fn new(world: &'a mut World, schedule: &'a Schedule, cues: mpsc::Receiver<Cue>, recorder: Recorder) -> Self {
        let random = Stream::new(schedule.seed, "nemesis", 1);
        Self { world, schedule, cues, active: Vec::new(), armed: Vec::new(), random, tally: Tally::new(), recorder, next_id: 0 }
    }

    /// Runs the schedule to its end and mends everything.
    pub async fn run(mut self) -> Tally {
        let begun = Instant::now();
        let end = begun + Duration::from_millis(self.schedule.run_ms);
        let mut next = 0;
        while Instant::now() < end {
            let now = Instant::now();
            while let Some(entry) = self.schedule.faults.get(next).filter(|entry| begun + Duration::from_millis(entry.at_ms) <= now) {
                next += 1;
                match entry.on {
                    Trigger::Now => self.strike(*entry, None).await,
                    Trigger::VoteGranted | Trigger::Elected => self.armed.push((*entry, now + WAIT_FOR_CUE)),
                }
            }
            self.end_what_is_over(now).await;
            self.bury_the_lost().await;
            self.look();
            self.cue(now).await;
        }
        let active = std::mem::take(&mut self.active);
        for fault in active {
            self.end(fault).await;
        }
        self.mend().await;
        self.tally
    }

    fn look(&self) {
        for n in 0..self.world.hosts.len() {
            if let Some(member) = self.world.member(n) {
                self.world.oracle.look(self.world.hosts[n].node, &member);
            }
        }
    }

    /// A member that finds its log damaged says so and stays down: for ever, since nobody gives it a new disk.
    async fn bury_the_lost(&mut self) {
        for n in 0..self.world.hosts.len() {
            if matches!(self.world.slot(n), Slot::Refused(why) if why.contains("corrupt")) {
                self.world.kill(&[n], None).await;
                self.world.hosts[n].lost = true;
            }
        }
    }

    /// Waits for a cue, but not longer than until the next look.
    async fn cue(&mut self, now: Instant) {
        let expired = self.armed.iter().filter(|(_, until)| *until <= now).map(|(entry, _)| entry.fault.kind()).collect::<Vec<_>>();
        expired.into_iter().for_each(|kind| self.tally.entry(kind).or_default().1 += 1);
        self.armed.retain(|(_, until)| *until > now);
        let Ok(Some(cue)) = tokio::time::timeout(LOOK_EVERY, self.cues.recv()).await else { return };
        let (wanted, node) = match cue {
            Cue::VoteGranted(node) => (Trigger::VoteGranted, node),
            Cue::Elected(node) => (Trigger::Elected, node),
        };
        if let Some(at) = self.armed.iter().position(|(entry, _)| entry.on == wanted) {
            let (entry, _) = self.armed.remove(at);
            let victim = self.world.hosts.iter().position(|host| host.node == node);
            self.strike(entry, victim).await;
        }
    }

    /// How many members may be impaired at once.
    fn bearable(&self) -> usize {
        // A cluster of one bears nothing, and then the only question is what it kept.
        ((self.world.hosts.len() - 1) / 2).max(1)
    }

    fn impaired(&self) -> BTreeSet<usize> {
        let serves = |n: usize| self.world.member(n).is_some_and(|member| member.probe().fatal.is_none());
        let lost = (0..self.world.hosts.len()).filter(|n| self.world.hosts[*n].lost || !serves(*n));
        self.active.iter().flat_map(|active| active.members.iter().copied()).chain(lost).collect()
    }

    /// The members that a fault would impair.
    fn victims(&self, fault: &Fault, named: Option<usize>) -> BTreeSet<usize> {
        let one = |who: Who| BTreeSet::from([named.unwrap_or_else(|| self.world.find(who))]);
        let all = || (0..self.world.hosts.len()).collect();
        let cut = |shape: &Shape| match shape {
            Shape::Alone(who) | Shape::Deaf(who) | Shape::Mute(who) => one(*who),
            Shape::ClientsOf(_) => BTreeSet::new(),
            Shape::LeaderInMinority => self.minority().into_iter().collect(),
            Shape::Bridge | Shape::Ring | Shape::Random => all(),
        };
        match fault {
            Fault::Kill(who) | Fault::Stop(who) | Fault::Pause(who) | Fault::SyncError(who) | Fault::DiskFull(who) | Fault::BitRot(who) => {
                one(*who)
            }
            Fault::Power { who, .. } | Fault::LyingDisk { who, .. } | Fault::SlowDisk { who, .. } | Fault::SlowMember { who, .. } => {
                one(*who)
            }
            Fault::LossyMember { who, .. } | Fault::DelayedMember { who, .. } => one(*who),
            Fault::Partition(shape) | Fault::Flapping { shape, .. } => cut(shape),
            // Short, or hard on everybody but not on anybody's state.
            Fault::PowerAll { .. } | Fault::Slow { .. } | Fault::Lossy { .. } | Fault::Reset(_) | Fault::Flush(_) => BTreeSet::new(),
            Fault::WallJump { .. } | Fault::Drift { .. } | Fault::Transfer(_) | Fault::Compact => BTreeSet::new(),
            Fault::AgentKill(_) | Fault::NodeFreeze(_) | Fault::NodeLoss(_) | Fault::NodeCut(_) => BTreeSet::new(),
        }
    }

    /// Whether a fault would be more than the cluster can bear. Partitions that leave nobody alone strike all, and are borne.
    fn too_much(&self, fault: &Fault, victims: &BTreeSet<usize>) -> bool {
        let everybody = victims.len() == self.world.hosts.len() && !matches!(fault, Fault::BitRot(_));
        let impaired = self.impaired();
        let busy = impaired.union(victims).count() > self.bearable();
        // A damaged log is one copy less of what was acknowledged: no other may be lost meanwhile, whatever the schedule says.
        let rot = matches!(fault, Fault::BitRot(_)) && (!impaired.is_empty() || self.world.hosts.len() == 1);
        rot || (!self.schedule.beyond_model && !everybody && !victims.is_empty() && busy)
    }

    async fn strike(&mut self, entry: Entry, named: Option<usize>) {
        let victims = self.victims(&entry.fault, named);
        let kind = entry.fault.kind();
        if self.too_much(&entry.fault, &victims) {
            self.tally.entry(kind).or_default().1 += 1;
            self.world.trace.say(WORLD, Event::Fault, 0, 0, format_args!("{kind} left out: too much at once"));
            return;
        }
        let mut cuts = Vec::new();
        let struck = self.begin(&entry.fault, victims.iter().next().copied(), &mut cuts).await;
        let tally = self.tally.entry(kind).or_default();
        if !struck {
            tally.1 += 1;
            return;
        }
        tally.0 += 1;
        self.world.trace.say(
            WORLD,
            Event::Fault,
            1,
            entry.for_ms,
            format_args!("{:?} for {} ms on {victims:?}", entry.fault, entry.for_ms),
        );
        let turn = match entry.fault {
            Fault::Flapping { every_ms, .. } => Some((Instant::now() + Duration::from_millis(every_ms.into()), true)),
            _ => None,
        };
        let until = Instant::now() + Duration::from_millis(entry.for_ms);
        self.next_id += 1;
        let id = self.next_id;
        // Whom a fault of everybody strikes is everybody.
        let all = matches!(entry.fault, Fault::PowerAll { .. });
        let members = if all { (0..self.world.hosts.len()).collect() } else { victims.iter().copied().collect() };
        self.recorder.record(Record::Fault(history::Fault {
            id,
            at: self.world.trace.now(),
            kind: kind.into(),
            members,
            nodes: self.nodes_of(&entry.fault),
            detail: format!("{:?}", entry.fault),
            outcome: FaultOutcome::Installed { proof: "simulated".into() },
        }));
        self.active.push(Active { entry, until, members: victims, turn, cuts, id });
    }

    /// Begins a fault; says whether it could.
    async fn begin(&mut self, fault: &Fault, victim: Option<usize>, cuts: &mut Vec<(Node, Node)>) -> bool {
        let n = victim.unwrap_or(0);
        let up = self.world.is_up(n);
        let micros = |us: u32| Some((Duration::from_micros(200), Duration::from_micros(us.into())));
        match *fault {
            Fault::Kill(_) | Fault::Power { .. } | Fault::Stop(_) | Fault::Pause(_) if !up => return false,
            Fault::Kill(_) => self.world.kill(&[n], None).await,
            Fault::Power { torn, .. } => self.world.kill(&[n], Some(torn)).await,
            Fault::PowerAll { torn } => {
                let all: Vec<usize> = (0..self.world.hosts.len()).collect();
                self.world.kill(&all, Some(torn)).await;
            }
            Fault::Stop(_) => self.world.stop(n),
            Fault::Pause(_) => self.each_process(&[n], |process| process.pause()),
            Fault::Partition(shape) | Fault::Flapping { shape, .. } => {
                *cuts = self.cuts(shape, victim);
                self.set_cuts(cuts, true);
            }
            Fault::Slow { most_us } => self.all_links(|net, a, b| net.set_delay(a, b, micros(most_us))),
            Fault::SlowMember { most_us, .. } => self.links_of(n, |net, a, b| net.set_delay(a, b, micros(most_us))),
            Fault::LossyMember { loss, duplicate, .. } => self.links_of(n, |net, a, b| net.set_loss(a, b, loss, duplicate)),
            Fault::DelayedMember { least_us, most_us, .. } => {
                let bounds = Some((Duration::from_micros(least_us.into()), Duration::from_micros(most_us.into())));
                self.links_of(n, |net, a, b| net.set_delay(a, b, bounds));
            }
            Fault::Lossy { loss, duplicate } => self.all_links(|net, a, b| net.set_loss(a, b, loss, duplicate)),
            Fault::Reset(who) => self.world.net.reset(self.world.hosts[self.world.find(who)].node),
            Fault::SlowDisk { by_us, .. } => self.world.disk(n).set_latency(Duration::from_micros(by_us.into())),
            Fault::SyncError(_) => self.world.disk(n).fail_syncs(1),
            Fault::DiskFull(_) => self.world.disk(n).set_full(true),
            Fault::Flush(who) => self.world.flush(self.world.find(who)),
            Fault::WallJump { who, by_ms } => self.each_process(&[self.world.find(who)], |process| process.jump_wall(by_ms)),
            Fault::Drift { who, ppm } => self.each_process(&[self.world.find(who)], |process| process.set_drift(ppm)),
            Fault::Transfer(who) => return self.transfer(who),
            Fault::BitRot(_) => {
                self.world.kill(&[n], Some(Torn::Nothing)).await;
                return self.world.rot(n);
            }
            Fault::Compact => return self.compact(),
            Fault::AgentKill(n) | Fault::NodeFreeze(n) | Fault::NodeLoss(n) | Fault::NodeCut(n) => {
                if self.world.knobs.nodes == 0 {
                    return false;
                }
                self.strike_node(fault, usize::from(n % self.world.knobs.nodes), cuts).await;
            }
            Fault::LyingDisk { .. } => self.world.disk(n).set_lying(true),
        }
        true
    }

    fn each_process(&self, which: &[usize], act: impl Fn(&super::rt::Proc)) {
        which.iter().filter_map(|n| self.world.process(*n)).for_each(|process| act(process));
    }

    fn transfer(&self, who: Who) -> bool {
        let Some(leader) = self.world.leader() else { return false };
        let (Some(process), Some(member)) = (self.world.process(leader), self.world.member(leader)) else { return false };
        let to = self.world.hosts[self.world.find(who)].id;
        process.run(async move { drop(member.consensus().transfer_leader(to).await) });
        true
    }

    /// Compacts history up to somewhere in its last part.
    fn compact(&mut self) -> bool {
        let Some(leader) = self.world.leader() else { return false };
        let (Some(process), Some(member)) = (self.world.process(leader), self.world.member(leader)) else { return false };
        let now = member.service().revision().get();
        let revision = now - i64::try_from(self.random.below(50)).unwrap_or(0);
        if revision <= 1 {
            return false;
        }
        // Each is asked by a client of its own.
        self.next_id += 1;
        let client = u16::try_from(self.next_id).unwrap_or(u16::MAX).saturating_add(1_000);
        let (recorder, trace) = (self.recorder.clone(), std::sync::Arc::clone(&self.world.trace));
        let id = recorder.invoke(client, leader, trace.now(), Ask::Compact { revision });
        process.run(async move {
            let done = member.service().compact(kontiki_base::ids::Revision::new(revision), false).await;
            let answer = match done {
                Ok(()) => Answer::Compacted { revision: member.service().revision().get() },
                Err(error) => Answer::Unknown { why: error.to_string() },
            };
            recorder.answer(id, trace.now(), answer);
        });
        true
    }

    async fn end_what_is_over(&mut self, now: Instant) {
        let mut at = 0;
        while at < self.active.len() {
            if self.active[at].until <= now {
                let over = self.active.remove(at);
                self.end(over).await;
                continue;
            }
            self.flap(at, now);
            at += 1;
        }
    }

    fn flap(&mut self, at: usize, now: Instant) {
        let Fault::Flapping { every_ms, .. } = self.active[at].entry.fault else { return };
        let Some((when, cut)) = self.active[at].turn.filter(|(when, _)| *when <= now) else { return };
        self.active[at].turn = Some((when + Duration::from_millis(every_ms.into()), !cut));
        let cuts = self.active[at].cuts.clone();
        self.set_cuts(&cuts, !cut);
        self.restore_cuts();
    }

    async fn end(&mut self, over: Active) {
        self.world.trace.say(WORLD, Event::Fault, 2, 0, format_args!("{} ends", over.entry.fault.kind()));
        let members: Vec<usize> = over.members.iter().copied().collect();
        self.recorder.record(Record::Heal(Heal { id: over.id, at: self.world.trace.now(), detail: String::new() }));
        match over.entry.fault {
            Fault::Kill(_) | Fault::Power { .. } | Fault::BitRot(_) => members.iter().for_each(|n| self.world.start(*n)),
            Fault::PowerAll { .. } => (0..self.world.hosts.len()).for_each(|n| self.world.start(n)),
            Fault::Stop(_) => {
                self.world.kill(&members, None).await;
                members.iter().for_each(|n| self.world.start(*n));
            }
            Fault::Pause(_) => self.each_process(&members, super::rt::Proc::resume),
            Fault::Partition(_) | Fault::Flapping { .. } | Fault::NodeCut(_) => {
                self.set_cuts(&over.cuts, false);
                self.restore_cuts();
            }
            Fault::AgentKill(n) | Fault::NodeFreeze(n) | Fault::NodeLoss(n) => self.mend_node(usize::from(n)).await,
            Fault::Slow { .. } | Fault::SlowMember { .. } | Fault::DelayedMember { .. } => {
                self.all_links(|net, a, b| net.set_delay(a, b, None))
            }
            Fault::Lossy { .. } | Fault::LossyMember { .. } => self.all_links(|net, a, b| net.set_loss(a, b, 0, 0)),
            Fault::SlowDisk { .. } => members.iter().for_each(|n| self.world.disk(*n).set_latency(Duration::ZERO)),
            Fault::SyncError(_) | Fault::DiskFull(_) => {
                for n in &members {
                    self.world.disk(*n).set_full(false);
                    self.world.disk(*n).fail_syncs(0);
                }
                self.restart_stopped().await;
            }
            Fault::Drift { who, .. } => self.each_process(&[self.world.find(who)], |process| process.set_drift(0)),
            Fault::LyingDisk { torn, .. } => {
                self.world.kill(&members, Some(torn)).await;
                for n in &members {
                    self.world.disk(*n).set_lying(false);
                    self.world.start(*n);
                }
            }
            Fault::Reset(_) | Fault::Flush(_) | Fault::WallJump { .. } | Fault::Transfer(_) | Fault::Compact => {}
        }
    }

    /// Starts the members anew that have stopped by themselves, as whoever supervises them does. One that finds its log damaged stays down.
    async fn restart_stopped(&mut self) {
        for n in 0..self.world.hosts.len() {
            match self.world.slot(n) {
                Slot::Running(member) if member.probe().fatal.is_none() => {}
                Slot::Starting => {}
                Slot::Down => self.world.start(n),
                Slot::Running(_) => {
                    self.world.kill(&[n], None).await;
                    self.world.start(n);
                }
                Slot::Refused(_) => {
                    self.world.kill(&[n], None).await;
                    self.world.start(n);
                }
            }
        }
    }

    /// Ends all that is wrong.
    async fn mend(&mut self) {
        self.all_links(|net, a, b| {
            net.set_cut(a, b, false);
            net.set_delay(a, b, None);
            net.set_loss(a, b, 0, 0);
        });
        let all: Vec<usize> = (0..self.world.hosts.len()).collect();
        for n in &all {
            self.world.disk(*n).set_latency(Duration::ZERO);
            self.world.disk(*n).set_full(false);
            self.world.disk(*n).fail_syncs(0);
        }
        self.each_process(&all, |process| {
            process.resume();
            process.set_drift(0);
        });
        for n in 0..usize::from(self.world.knobs.nodes) {
            self.mend_node(n).await;
        }
        // What was on its way up or down gets there first.
        let deadline = Instant::now() + STOP_WITHIN;
        while Instant::now() < deadline && all.iter().any(|n| matches!(self.world.slot(*n), Slot::Starting)) {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        self.bury_the_lost().await;
        self.restart_stopped().await;
        self.world.trace.say(WORLD, Event::Fault, 3, 0, format_args!("everything is mended"));
    }

    fn everybody(&self) -> Vec<Node> {
        let clients = (0..load::nodes(self.world.knobs)).map(|c| FIRST_CLIENT + c);
        let nodes = Node::from(self.world.knobs.nodes);
        let agents = (0..nodes).map(|n| kube::node::FIRST_AGENT + n);
        let operators = (0..if nodes > 0 { kube::load::CLIENTS } else { 0 }).map(|n| kube::load::FIRST_CLIENT + n);
        self.world.hosts.iter().map(|host| host.node).chain(clients).chain(agents).chain(operators).collect()
    }

    /// The names of the nodes that a fault is about.
    fn nodes_of(&self, fault: &Fault) -> Vec<String> {
        match fault {
            Fault::AgentKill(n) | Fault::NodeFreeze(n) | Fault::NodeLoss(n) | Fault::NodeCut(n) => {
                kube::node::names(self.world.knobs.nodes)
                    .into_iter()
                    .nth(usize::from(n % self.world.knobs.nodes.max(1)))
                    .into_iter()
                    .collect()
            }
            _ => Vec::new(),
        }
    }

    async fn strike_node(&mut self, fault: &Fault, n: usize, cuts: &mut Vec<(Node, Node)>) {
        let machines = std::sync::Arc::clone(&self.world.machines);
        let mut machines = machines.lock().await;
        let machine = &mut machines[n];
        let left = match fault {
            Fault::AgentKill(_) => machine.kill_agent(&self.world.net).await,
            Fault::NodeLoss(_) => machine.lose(&self.world.net, &self.recorder).await,
            Fault::NodeFreeze(_) => {
                machine.freeze(true);
                Ok(())
            }
            _ => {
                let agent = machine.node();
                *cuts = self.world.hosts.iter().flat_map(|host| [(agent, host.node), (host.node, agent)]).collect();
                self.set_cuts(cuts, true);
                Ok(())
            }
        };
        if let Err(left) = left {
            self.world.oracle.fail("sim", format!("{left} tasks of node {} outlive it", machine.name()));
        }
    }

    /// Lets a machine of a node go on, with an agent.
    async fn mend_node(&mut self, n: usize) {
        let machines = std::sync::Arc::clone(&self.world.machines);
        let mut machines = machines.lock().await;
        let count = machines.len().max(1);
        if let Some(machine) = machines.get_mut(n % count) {
            machine.freeze(false);
            machine.start_agent(&self.world.net, self.world.knobs.members);
        }
    }

    fn all_links(&self, act: impl Fn(&super::net::Net, Node, Node)) {
        let all = self.everybody();
        all.iter().flat_map(|a| all.iter().map(move |b| (*a, *b))).filter(|(a, b)| a != b).for_each(|(a, b)| act(&self.world.net, a, b));
    }

    fn links_of(&self, n: usize, act: impl Fn(&super::net::Net, Node, Node)) {
        let one = self.world.hosts[n].node;
        self.all_links(|net, a, b| {
            if a == one || b == one {
                act(net, a, b);
            }
        });
    }

    fn set_cuts(&self, cuts: &[(Node, Node)], cut: bool) {
        cuts.iter().for_each(|(a, b)| self.world.net.set_cut(*a, *b, cut));
    }

    /// Links that another fault has cut stay cut.
    fn restore_cuts(&self) {
        for active in self.active.iter().filter(|active| active.turn.is_none_or(|(_, cut)| cut)) {
            self.set_cuts(&active.cuts, true);
        }
    }

    /// The leader and as many others as are not a majority.
    fn minority(&self) -> Vec<usize> {
        let leader = self.world.find(Who::Leader);
        let others = (0..self.world.hosts.len()).filter(|n| *n != leader);
        std::iter::once(leader).chain(others).take((self.world.hosts.len() - 1) / 2).collect()
    }

    /// The links that a partition cuts.
    fn cuts(&mut self, shape: Shape, victim: Option<usize>) -> Vec<(Node, Node)> {
        let members: Vec<Node> = self.world.hosts.iter().map(|host| host.node).collect();
        let count = members.len();
        let node = |n: usize| members[n % count];
        let pairs = || (0..count).flat_map(|a| (0..count).map(move |b| (a, b))).filter(|(a, b)| a != b);
        let one = victim.unwrap_or(0);
        let inside: BTreeSet<usize> = self.minority().into_iter().collect();
        let chosen: Vec<(usize, usize)> = match shape {
            Shape::Alone(_) => pairs().filter(|(a, b)| *a == one || *b == one).collect(),
            Shape::Deaf(_) => pairs().filter(|(_, b)| *b == one).collect(),
            Shape::Mute(_) => pairs().filter(|(a, _)| *a == one).collect(),
            Shape::LeaderInMinority => pairs().filter(|(a, b)| inside.contains(a) != inside.contains(b)).collect(),
            // The one in the middle sees both sides.
            Shape::Bridge => pairs().filter(|(a, b)| (*a < count / 2 && *b > count / 2) || (*a > count / 2 && *b < count / 2)).collect(),
            Shape::Ring => pairs().filter(|(a, b)| count > 3 && a.abs_diff(*b) != 1 && a.abs_diff(*b) != count - 1).collect(),
            Shape::Random => pairs().filter(|_| self.random.chance(300_000)).collect(),
            Shape::ClientsOf(who) => {
                let member = node(self.world.find(who));
                let clients = (0..load::nodes(self.world.knobs)).map(|c| FIRST_CLIENT + c);
                return clients.flat_map(|client| [(client, member), (member, client)]).collect();
            }
        };
        chosen.into_iter().map(|(a, b)| (node(a), node(b))).collect()
    }
}
