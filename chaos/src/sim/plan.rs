//! A plan in the simulated world: the same file that real processes run becomes a schedule. What this world does not have is refused with
//! the place in the file, never left out in silence.

use std::time::Duration;

use super::schedule::{Entry, Fault, Knobs, Schedule, Shape, Torn, Trigger, Who};
use crate::fault::table::{self, In};
use crate::fault::{Direction, Fault as Planned, Plane, Shape as PlannedShape, Unsynced};
use crate::plan::{Dice, Event, Mode, Plan, PlanError, Target};

/// An entry that waits for an event is armed again this often.
const ARMED_EVERY: Duration = Duration::from_secs(5);

/// A rolling restart goes on to the next member after the fault's time and this.
const ROLL_PAUSE: Duration = Duration::from_secs(3);

/// The most clients of the store that a simulated world has.
const CLIENTS: u16 = 64;

fn millis(d: Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}

fn micros(d: Duration) -> u32 {
    u32::try_from(d.as_micros()).unwrap_or(u32::MAX)
}

/// One line of the plan, and what it becomes.
struct Line<'a> {
    plan: &'a Plan,
    number: usize,
    members: u8,
}

impl Line<'_> {
    fn bad(&self, field: &str, why: impl Into<String>) -> PlanError {
        PlanError::field(format!("schedule[{}].{field}", self.number), why)
    }

    /// Whom it strikes, drawn by the plan's own dice.
    fn who(&self, target: Target, dice: &mut Dice) -> Result<Vec<Who>, PlanError> {
        let any = |dice: &mut Dice| u8::try_from(dice.below(self.members.into())).unwrap_or(0);
        Ok(match target {
            Target::Leader => vec![Who::Leader],
            Target::Follower => vec![Who::Follower(any(dice))],
            Target::AnyServer => vec![Who::Member(any(dice))],
            Target::Server(n) => vec![Who::Member(n.saturating_sub(1))],
            Target::Servers(count) => {
                let all: Vec<u8> = (0..self.members).collect();
                dice.choose(&all, count.into()).into_iter().map(Who::Member).collect()
            }
            Target::AllServers => (0..self.members).map(Who::Member).collect(),
            Target::Cluster => vec![Who::Leader],
            Target::AnyNode | Target::Node(_) => return Err(self.bad("where", "this fault strikes servers")),
        })
    }

    fn node(&self, target: Target, dice: &mut Dice) -> Result<u8, PlanError> {
        match target {
            Target::Node(n) => Ok(n.saturating_sub(1)),
            Target::AnyNode | Target::AnyServer => Ok(u8::try_from(dice.below(self.plan.topology.nodes.into())).unwrap_or(0)),
            _ => Err(self.bad("where", "this fault strikes nodes")),
        }
    }

    fn partition(&self, shape: PlannedShape, direction: Direction, plane: Plane, who: Who) -> Result<Vec<Fault>, PlanError> {
        let peers = match (shape, direction) {
            (PlannedShape::Isolate, Direction::Both) => Shape::Alone(who),
            (PlannedShape::Isolate, Direction::In) => Shape::Deaf(who),
            (PlannedShape::Isolate, Direction::Out) => Shape::Mute(who),
            (PlannedShape::Bridge, Direction::Both) => Shape::Bridge,
            (PlannedShape::Halves, Direction::Both) if who == Who::Leader => Shape::LeaderInMinority,
            (PlannedShape::Halves, Direction::Both) => {
                return Err(self.bad("where", "the simulated world cuts halves around the leader: `where: leader`"));
            }
            (PlannedShape::Bridge | PlannedShape::Halves, _) => {
                return Err(self.bad("fault.partition.direction", "only `isolate` can go one way in the simulated world"));
            }
        };
        if plane != Plane::Peers && direction != Direction::Both {
            return Err(self.bad("fault.partition.plane", "the simulated world cuts one way between members only: `plane: peers`"));
        }
        Ok(match plane {
            Plane::Peers => vec![Fault::Partition(peers)],
            Plane::Clients => vec![Fault::Partition(Shape::ClientsOf(who))],
            Plane::All => vec![Fault::Partition(peers), Fault::Partition(Shape::ClientsOf(who))],
        })
    }

    /// What a fault is here, with the delay at which each part of it begins.
    fn faults(&self, fault: &Planned, target: Target, hold: Duration, dice: &mut Dice) -> Result<Vec<(Duration, Fault)>, PlanError> {
        if let Some(In::No(why)) = table::row(fault.name()).map(|row| row.sim) {
            return Err(self.bad("fault", format!("the simulated world has no {}: {why}", fault.name())));
        }
        if let Planned::NodeFreeze {} | Planned::AgentCrash {} = fault {
            let n = self.node(target, dice)?;
            let fault = if matches!(fault, Planned::NodeFreeze {}) { Fault::NodeFreeze(n) } else { Fault::AgentKill(n) };
            return Ok(vec![(Duration::ZERO, fault)]);
        }
        let torn = |unsynced| if unsynced == Unsynced::Drop { Torn::Nothing } else { Torn::Sectors };
        if let (Planned::PowerLoss { unsynced }, Target::AllServers) = (fault, target) {
            return Ok(vec![(Duration::ZERO, Fault::PowerAll { torn: torn(*unsynced) })]);
        }
        let percent = |percent: u8| u32::from(percent) * 10_000;
        let mut all = Vec::new();
        for (turn, who) in self.who(target, dice)?.into_iter().enumerate() {
            let mut at = Duration::ZERO;
            let parts = match *fault {
                Planned::Crash {} => vec![Fault::Kill(who)],
                Planned::Pause {} => vec![Fault::Pause(who)],
                Planned::Stop {} => vec![Fault::Stop(who)],
                Planned::RollingRestart {} => {
                    at = (hold + ROLL_PAUSE) * u32::try_from(turn).unwrap_or(0);
                    vec![Fault::Stop(who)]
                }
                Planned::Partition { shape, direction, plane } => self.partition(shape, direction, plane, who)?,
                Planned::Loss { percent: share } => vec![Fault::LossyMember { who, loss: percent(share), duplicate: 0 }],
                Planned::Duplicate { percent: share } => vec![Fault::LossyMember { who, loss: 0, duplicate: percent(share) }],
                Planned::Delay { by, jitter } => {
                    vec![Fault::DelayedMember { who, least_us: micros(by.0), most_us: micros(by.0 + jitter.0) }]
                }
                Planned::PowerLoss { unsynced } => vec![Fault::Power { who, torn: torn(unsynced) }],
                Planned::FsyncEio {} => vec![Fault::SyncError(who)],
                Planned::LyingFsync {} => vec![Fault::LyingDisk { who, torn: Torn::Nothing }],
                Planned::DiskFull {} => vec![Fault::DiskFull(who)],
                Planned::DiskSlow { by } => vec![Fault::SlowDisk { who, by_us: micros(by.0) }],
                Planned::BitRot {} => vec![Fault::BitRot(who)],
                Planned::ClockJump { ms } => vec![Fault::WallJump { who, by_ms: ms }],
                Planned::ClockDrift { ppm } => vec![Fault::Drift { who, ppm }],
                Planned::DiskStall {} | Planned::Bandwidth { .. } | Planned::Overload { .. } | Planned::ReplaceMember {} => Vec::new(),
                Planned::NodeFreeze {} | Planned::AgentCrash {} => Vec::new(),
            };
            all.extend(parts.into_iter().map(|part| (at, part)));
        }
        Ok(all)
    }
}

impl Schedule {
    /// The schedule of a plan.
    ///
    /// # Errors
    /// The plan asks for something that the simulated world does not have; the error names the field.
    pub fn from_plan(plan: &Plan) -> Result<Self, PlanError> {
        let run = plan.duration.0;
        let members = plan.topology.servers;
        if plan.workload.kv.clients > CLIENTS {
            return Err(PlanError::field("workload.kv.clients", format!("the simulated world has at most {CLIENTS}")));
        }
        let mut faults = Vec::new();
        let mut add = |number: usize, at: Duration, hold: Duration, on: Trigger, dice: &mut Dice| -> Result<(), PlanError> {
            let line = Line { plan, number, members };
            let planned = &plan.schedule[number];
            for (later, fault) in line.faults(&planned.fault, planned.target, hold, dice)? {
                faults.push(Entry { at_ms: millis(at + later), on, fault, for_ms: millis(hold) });
                // This clock comes back by itself, as it does in the real world.
                if let Fault::WallJump { who, by_ms } = fault {
                    let back = Fault::WallJump { who, by_ms: -by_ms };
                    faults.push(Entry { at_ms: millis(at + later + hold), on: Trigger::Now, fault: back, for_ms: 0 });
                }
            }
            Ok(())
        };
        for injection in plan.injections() {
            add(injection.entry, injection.at, injection.hold, Trigger::Now, &mut plan.dice(&injection))?;
        }
        for (number, entry) in plan.schedule.iter().enumerate() {
            let Some(event) = entry.when.event else { continue };
            let line = Line { plan, number, members };
            let on = match event {
                Event::Elected => Trigger::Elected,
                Event::VoteGranted => Trigger::VoteGranted,
                other => return Err(line.bad("when.event", format!("the simulated world does not wait for {other:?} yet"))),
            };
            if entry.when.after.is_some() {
                return Err(line.bad("when.after", "the simulated world strikes at the event itself: leave it out"));
            }
            let mut dice = Dice::new(plan.seed, &format!("event/{number}"));
            let mut at = Duration::from_millis(500);
            while at < run {
                if entry.when.p.is_none_or(|p| dice.chance(p)) {
                    let hold = entry.hold.draw(&mut dice);
                    add(number, at, hold, on, &mut dice)?;
                }
                at += ARMED_EVERY;
            }
        }
        faults.sort_by_key(|entry| entry.at_ms);
        let kv = plan.workload.kv;
        let clients = u8::try_from(kv.clients).unwrap_or(u8::MAX);
        // Clients pause so long on average that all together ask as often as the plan says; without a rate they hardly pause.
        let think_ms = (2_000 * u32::from(kv.clients)).checked_div(kv.rate).map_or(10, |ms| u16::try_from(ms).unwrap_or(u16::MAX));
        let knobs = Knobs {
            members,
            clients,
            keys: u8::try_from(kv.keys).unwrap_or(u8::MAX),
            think_ms,
            segment_bytes: 64 << 10,
            tail_bytes: 1 << 20,
            keep_log_bytes: 64 << 10,
            flush_bytes: 64 << 10,
            flush_every_ms: 5_000,
            shuffle: 0,
            value_bytes: 200,
            nodes: if plan.workload.deployment.is_some() { plan.topology.nodes } else { 0 },
        };
        let beyond_model = plan.budget.mode == Mode::BeyondModel;
        Ok(Self { seed: plan.seed, knobs, run_ms: millis(run), beyond_model, faults })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::builtin;

    #[test]
    fn built_in_plans_run_here_or_say_why_not() {
        let mut run = 0;
        for name in builtin::names() {
            let plan = builtin::plan(name).unwrap();
            match Schedule::from_plan(&plan) {
                Ok(schedule) => {
                    assert!(schedule.faults.is_sorted_by_key(|entry| entry.at_ms), "{name}");
                    assert_eq!(schedule, Schedule::from_plan(&plan).unwrap(), "{name}");
                    assert!(!schedule.faults.is_empty() || plan.schedule.is_empty(), "{name}: something breaks");
                    run += 1;
                }
                Err(error) => assert!(error.to_string().starts_with("schedule["), "{name}: {error}"),
            }
        }
        assert!(run > 10, "only {run} plans run here");
    }

    fn one(entry: &str) -> Result<Vec<Fault>, String> {
        let plan = Plan::parse(&format!("name: x\ntopology: {{servers: 3, nodes: 2}}\nschedule: [{{{entry}}}]\nduration: 20s")).unwrap();
        Schedule::from_plan(&plan).map(|s| s.faults.iter().map(|e| e.fault).collect()).map_err(|e| e.to_string())
    }

    #[test]
    fn faults_mean_here_what_they_mean_there() {
        let at = "when: {at: 5s}, where: leader, for: 1s";
        assert_eq!(one(&format!("{at}, fault: crash")).unwrap(), [Fault::Kill(Who::Leader)]);
        let cut = one(&format!("{at}, fault: {{partition: {{plane: peers, direction: in}}}}")).unwrap();
        assert_eq!(cut, [Fault::Partition(Shape::Deaf(Who::Leader))]);
        assert_eq!(one(&format!("{at}, fault: {{partition: {{}}}}")).unwrap().len(), 2, "from its peers and from clients");
        let jump = one(&format!("{at}, fault: {{clock-jump: {{ms: -500}}}}")).unwrap();
        let back = |by_ms| Fault::WallJump { who: Who::Leader, by_ms };
        assert_eq!(jump, [back(-500), back(500)]);
        let all = one("when: {at: 5s}, where: all-servers, fault: rolling-restart, for: 1s").unwrap();
        assert_eq!(all, [0, 1, 2].map(|n| Fault::Stop(Who::Member(n))));
        assert_eq!(one("when: {event: elected}, where: leader, fault: crash, for: 1s").unwrap().len(), 4, "armed again and again");
    }

    #[test]
    fn what_only_the_real_world_has_is_refused_by_name() {
        let error = one("when: {at: 5s}, where: cluster, fault: overload, for: 1s").unwrap_err();
        assert!(error.contains("schedule[0].fault") && error.contains("overload"), "{error}");
        let error = one("when: {event: lease-granted}, where: leader, fault: crash, for: 1s").unwrap_err();
        assert!(error.contains("schedule[0].when.event"), "{error}");
    }
}
