//! Plans that come with the program: one for each fault, `calm`, `leader-kill`, and `all`, which goes through everything.

use std::time::Duration;

use super::{Budget, Deployment, Entry, KvLoad, Mode, Plan, Span, Spread, Target, Topology, When, Workload};
use crate::fault::table::FAULTS;
use crate::fault::{Direction, Fault, Plane, Shape, Site};

/// Pause between two faults of `all`, from one beginning to the next.
const SLOT: Duration = Duration::from_secs(12);

/// What rests on the disk keeping what it has synced: a disk that lies takes that away. That members agree, and that none panics, does not.
const LIES_BREAK: &[&str] = &[
    "linearizable",
    "serializable",
    "durable",
    "read-your-writes",
    "revisions-forward",
    "watch",
    "lease",
    "raft",
    "converge",
    "K1",
    "K2",
    "K4",
    "K5",
    "K8",
    "K9",
    "K10",
    "K11",
    "K13",
    "K15",
    "K17",
];

/// Plans that are not named after a fault.
const OTHERS: &[(&str, &str)] = &[
    ("calm", "no fault: the numbers to compare with"),
    ("leader-kill", "kill -9 the process that leads, every few seconds; it is started again at once"),
    ("leader-isolated", "the leader is cut from the other members, and clients still reach it"),
    ("bridge", "two halves that see one common member, and not each other"),
    ("one-way", "the leader hears its peers, and is not heard"),
    ("blackout", "all members lose power at once: what was acknowledged is there afterwards"),
    ("all", "every fault of this world, one after another"),
];

/// Names of all built-in plans.
pub fn names() -> Vec<&'static str> {
    OTHERS.iter().map(|(name, _)| *name).chain(FAULTS.iter().map(|row| row.name)).collect()
}

/// What a built-in plan does.
pub fn about(name: &str) -> Option<&'static str> {
    let other = OTHERS.iter().find(|(other, _)| *other == name).map(|(_, about)| *about);
    other.or_else(|| FAULTS.iter().find(|row| row.name == name).map(|row| row.about))
}

/// The built-in plan of this name.
pub fn plan(name: &str) -> Option<Plan> {
    let mut plan = base(name, about(name)?);
    match name {
        "calm" => plan.expect.coverage.faults = 0,
        "leader-kill" => plan.schedule.push(entry(Fault::Crash {}, Target::Leader, 6, Spread::just(Duration::from_millis(100)))),
        "leader-isolated" => {
            plan.schedule.push(entry(partition(Shape::Isolate, Direction::Both, Plane::Peers), Target::Leader, 10, Spread::secs(4)))
        }
        "bridge" => {
            plan.schedule.push(entry(partition(Shape::Bridge, Direction::Both, Plane::Peers), Target::Follower, 10, Spread::secs(4)))
        }
        "one-way" => plan.schedule.push(entry(partition(Shape::Isolate, Direction::Out, Plane::All), Target::Leader, 10, Spread::secs(4))),
        "blackout" => {
            plan.schedule.push(entry(Fault::PowerLoss { unsynced: Default::default() }, Target::AllServers, 15, Spread::secs(1)));
            plan.budget = Budget { impaired: None, mode: Mode::BeyondModel };
        }
        "all" => plan.schedule = tour(),
        name => {
            let fault = Fault::named(name)?;
            if fault.breaks_the_model() {
                plan.budget.mode = Mode::BeyondModel;
            }
            if matches!(fault, Fault::LyingFsync {}) {
                plan.expect.may_break = LIES_BREAK.iter().map(|name| (*name).to_owned()).collect();
            }
            plan.schedule.push(usual(fault));
        }
    }
    Some(plan)
}

/// One fault again and again, for measuring it: `n` times.
pub fn bench(fault: Fault, n: u32) -> Plan {
    let mut plan = base(&format!("bench-{}", fault.name()), "one fault, again and again, to measure it");
    if fault.breaks_the_model() {
        plan.budget.mode = Mode::BeyondModel;
    }
    let line = usual(fault);
    let every = line.when.every.unwrap_or(Spread::secs(10));
    plan.duration = Span(every.max * n + every.max / 2);
    plan.expect.coverage.faults = n;
    plan.schedule.push(line);
    plan
}

fn base(name: &str, about: &str) -> Plan {
    Plan {
        name: name.to_owned(),
        about: about.to_owned(),
        seed: 1,
        topology: Topology::default(),
        workload: Workload { kv: KvLoad::default(), watches: 3, leases: 2, deployment: Some(Deployment::default()) },
        schedule: Vec::new(),
        duration: Span::secs(60),
        budget: Budget::default(),
        expect: Default::default(),
    }
}

fn entry(fault: Fault, target: Target, every: u64, hold: Spread) -> Entry {
    Entry { id: String::new(), when: When { every: Some(Spread::secs(every)), ..When::default() }, target, fault, hold }
}

fn partition(shape: Shape, direction: Direction, plane: Plane) -> Fault {
    Fault::Partition { shape, direction, plane }
}

/// Where a fault is most instructive, and for how long.
fn usual(fault: Fault) -> Entry {
    let (target, every, hold) = match &fault {
        Fault::Crash {} | Fault::Pause {} | Fault::Stop {} => (Target::Leader, 8, Spread::secs(2)),
        Fault::RollingRestart {} => (Target::AllServers, 20, Spread::secs(1)),
        Fault::Partition { .. } => (Target::Leader, 10, Spread::secs(4)),
        Fault::PowerLoss { .. } | Fault::LyingFsync {} | Fault::BitRot {} | Fault::ReplaceMember {} => {
            (Target::AnyServer, 12, Spread::secs(2))
        }
        Fault::FsyncEio {} | Fault::DiskFull {} | Fault::DiskSlow { .. } | Fault::DiskStall {} => (Target::Leader, 12, Spread::secs(4)),
        Fault::NodeFreeze {} => (Target::AnyNode, 25, Spread::secs(12)),
        Fault::AgentCrash {} => (Target::AnyNode, 12, Spread::secs(3)),
        Fault::Overload { .. } => (Target::Cluster, 12, Spread::secs(4)),
        _ => (Target::AnyServer, 10, Spread::secs(4)),
    };
    debug_assert!(fault.site() != Site::Node || target == Target::AnyNode);
    entry(fault, target, every, hold)
}

/// Every fault within the model, each once, one after another, again and again.
fn tour() -> Vec<Entry> {
    let shapes = [
        ("isolate", partition(Shape::Isolate, Direction::Both, Plane::All), Target::Leader),
        ("halves", partition(Shape::Halves, Direction::Both, Plane::Peers), Target::Leader),
        ("bridge", partition(Shape::Bridge, Direction::Both, Plane::Peers), Target::Follower),
        ("one-way", partition(Shape::Isolate, Direction::Out, Plane::Peers), Target::Leader),
        ("stale-trap", partition(Shape::Isolate, Direction::Both, Plane::Peers), Target::Leader),
    ];
    let shapes = shapes.map(|(id, fault, target)| Entry { id: id.into(), target, ..usual(fault) });
    let others = FAULTS.iter().filter(|row| row.name != "partition").filter_map(|row| Fault::named(row.name));
    let others = others.filter(|fault| !fault.breaks_the_model()).map(usual);
    let mut all: Vec<Entry> = shapes.into_iter().chain(others).collect();
    let round = SLOT * u32::try_from(all.len()).unwrap_or(u32::MAX);
    let mut first = Duration::from_secs(4);
    for entry in &mut all {
        entry.when = When { every: Some(Spread::just(round)), first: Some(Span(first)), ..When::default() };
        first += SLOT;
    }
    all
}
