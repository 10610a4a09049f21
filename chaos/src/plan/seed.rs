//! Plans from a seed: a random few of the faults with random strength. Each seed is a different kind of weather ("swarm testing", Groce et
//! al. 2012: leaving faults out finds what having them all hides).

use std::time::Duration;

use super::{Budget, Coverage, Deployment, Dice, Entry, Event, Expect, KvLoad, Plan, Span, Spread, Target, Topology, When, Workload};
use crate::fault::table::{FAULTS, Row};
use crate::fault::{Direction, Fault, Plane, Shape, Site, Unsynced};

/// A share of the entries waits for an event instead of a time.
const BY_EVENT: f64 = 0.25;

impl Plan {
    /// The plan of a seed, made of faults that `allowed` accepts. It is within the model, and valid.
    pub fn from_seed(seed: u64, allowed: impl Fn(&Row) -> bool) -> Self {
        let mut dice = Dice::new(seed, "plan");
        let servers = if dice.chance(0.25) { 5 } else { 3 };
        let mut plan = Self {
            name: format!("seed-{seed}"),
            about: "drawn from a seed".into(),
            seed,
            topology: Topology { servers, nodes: 2 + u8::try_from(dice.below(4)).unwrap_or(0), ..Topology::default() },
            workload: workload(&mut dice),
            schedule: Vec::new(),
            duration: Span(dice.between(Duration::from_secs(20), Duration::from_secs(60))),
            budget: Budget::default(),
            expect: Expect { coverage: Coverage { faults: 0, ..Coverage::default() }, ..Expect::default() },
        };
        let rows: Vec<&Row> = FAULTS.iter().filter(|row| allowed(row)).collect();
        let count = 1 + usize::try_from(dice.below(5)).unwrap_or(0);
        for row in dice.choose(&rows, count) {
            let entry = draw(&mut dice, row);
            if let Some(entry) = entry.filter(|entry| !entry.fault.breaks_the_model() && plan.cost(entry) <= plan.allowance()) {
                plan.schedule.push(entry);
            }
        }
        debug_assert_eq!(plan.validate().map_err(|e| e.to_string()), Ok(()));
        plan
    }
}

fn workload(dice: &mut Dice) -> Workload {
    let small = |dice: &mut Dice, bound: u64| u16::try_from(dice.below(bound)).unwrap_or(0);
    Workload {
        kv: KvLoad { clients: 4 + small(dice, 20), keys: 1 + u32::from(small(dice, 40)), ..KvLoad::default() },
        watches: small(dice, 6),
        leases: small(dice, 4),
        deployment: dice.chance(0.7).then(|| Deployment { replicas: 4 + u32::from(small(dice, 30)), disturb: u32::from(small(dice, 4)) }),
    }
}

fn draw(dice: &mut Dice, row: &Row) -> Option<Entry> {
    let fault = harden(dice, Fault::named(row.name)?);
    let target = match fault.site() {
        Site::Node => Target::AnyNode,
        Site::Cluster => Target::Cluster,
        Site::Server => *dice.pick(&[Target::Leader, Target::Follower, Target::AnyServer])?,
    };
    let target = if matches!(fault, Fault::RollingRestart {}) { Target::AllServers } else { target };
    let when = if dice.chance(BY_EVENT) {
        let event = *dice.pick(&[Event::Elected, Event::LeaseGranted, Event::WatchOpened])?;
        let after = Spread { min: Duration::ZERO, max: dice.between(Duration::ZERO, Duration::from_secs(2)) };
        When { event: Some(event), after: Some(after), p: Some(0.1), ..When::default() }
    } else {
        let every = dice.between(Duration::from_secs(4), Duration::from_secs(15));
        When { every: Some(Spread { min: every / 2, max: every }), ..When::default() }
    };
    let longest = dice.between(Duration::from_millis(200), Duration::from_secs(6));
    Some(Entry { id: String::new(), when: round(when), target, fault, hold: whole(Spread { min: longest / 4, max: longest }) })
}

/// Random strength for faults that have one.
fn harden(dice: &mut Dice, fault: Fault) -> Fault {
    match fault {
        Fault::Partition { .. } => Fault::Partition {
            shape: *dice.pick(&[Shape::Isolate, Shape::Halves, Shape::Bridge]).unwrap_or(&Shape::Isolate),
            direction: *dice.pick(&[Direction::Both, Direction::In, Direction::Out]).unwrap_or(&Direction::Both),
            plane: *dice.pick(&[Plane::All, Plane::Peers, Plane::Clients]).unwrap_or(&Plane::All),
        },
        Fault::Loss { .. } => Fault::Loss { percent: 1 + u8::try_from(dice.below(60)).unwrap_or(0) },
        Fault::Duplicate { .. } => Fault::Duplicate { percent: 1 + u8::try_from(dice.below(60)).unwrap_or(0) },
        Fault::Delay { .. } => Fault::Delay { by: Span::millis(1 + dice.below(200)), jitter: Span::millis(dice.below(200)) },
        Fault::PowerLoss { .. } => Fault::PowerLoss { unsynced: *dice.pick(&[Unsynced::Drop, Unsynced::Torn]).unwrap_or(&Unsynced::Drop) },
        Fault::DiskSlow { .. } => Fault::DiskSlow { by: Span::millis(20 + dice.below(800)) },
        Fault::ClockJump { .. } => {
            let ms = i64::try_from(1 + dice.below(3_600_000)).unwrap_or(1);
            Fault::ClockJump { ms: if dice.chance(0.5) { ms } else { -ms } }
        }
        Fault::ClockDrift { .. } => {
            let ppm = i32::try_from(1 + dice.below(50_000)).unwrap_or(1);
            Fault::ClockDrift { ppm: if dice.chance(0.5) { ppm } else { -ppm } }
        }
        other => other,
    }
}

/// Whole milliseconds: what a file can hold.
fn whole(spread: Spread) -> Spread {
    let ms = |d: Duration| Duration::from_millis(u64::try_from(d.as_millis()).unwrap_or(u64::MAX).max(1));
    Spread { min: ms(spread.min), max: ms(spread.max) }
}

fn round(when: When) -> When {
    When { every: when.every.map(whole), after: when.after.map(whole), ..when }
}
