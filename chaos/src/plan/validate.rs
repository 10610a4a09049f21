//! What a plan must fulfil beyond its types. Every error names the field.

use super::{Entry, Mode, Plan, PlanError, Target, When};
use crate::check::CHECKS;
use crate::fault::{Fault, Shape, Site};

/// Longest run.
const LONGEST: std::time::Duration = std::time::Duration::from_secs(24 * 3600);

fn need(holds: bool, field: impl FnOnce() -> String, why: impl FnOnce() -> String) -> Result<(), PlanError> {
    if holds { Ok(()) } else { Err(PlanError::field(field(), why())) }
}

impl Plan {
    /// Checks everything that types do not.
    ///
    /// # Errors
    /// The first thing that is wrong, with the field's name.
    pub fn validate(&self) -> Result<(), PlanError> {
        let word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let named = !self.name.is_empty() && self.name.len() <= 63 && self.name.chars().all(word);
        need(named, || "name".into(), || format!("{:?} is not made of lower-case letters, digits and dashes (1 to 63)", self.name))?;
        let servers = self.topology.servers;
        need((1..=9).contains(&servers), || "topology.servers".into(), || format!("{servers}: from 1 to 9"))?;
        let nodes = self.topology.nodes;
        need(nodes <= 50, || "topology.nodes".into(), || format!("{nodes}: at most 50"))?;
        let length = self.duration.0;
        need(!length.is_zero() && length <= LONGEST, || "duration".into(), || format!("{}: more than 0, at most 24h", self.duration))?;
        self.validate_workload()?;
        self.validate_budget()?;
        for (index, entry) in self.schedule.iter().enumerate() {
            self.validate_entry(&format!("schedule[{index}]"), entry)?;
        }
        validate_checks("expect.checks", &self.expect.checks)?;
        validate_checks("expect.may-break", &self.expect.may_break)?;
        let beyond = self.expect.may_break.is_empty() || self.budget.mode == Mode::BeyondModel;
        need(beyond, || "expect.may-break".into(), || "within the model every check must hold; say `budget: {mode: beyond-model}`".into())
    }

    fn validate_workload(&self) -> Result<(), PlanError> {
        let kv = &self.workload.kv;
        need(kv.clients <= 512, || "workload.kv.clients".into(), || format!("{}: at most 512", kv.clients))?;
        need((1..=100_000).contains(&kv.keys), || "workload.kv.keys".into(), || format!("{}: from 1 to 100000", kv.keys))?;
        let sum = u64::from(kv.mix.get) + u64::from(kv.mix.put) + u64::from(kv.mix.cas) + u64::from(kv.mix.delete);
        need(sum > 0 && sum <= 1_000_000, || "workload.kv.mix".into(), || "the frequencies add up to 0, or to more than 1000000".into())?;
        let many = |n: u16| n <= 512;
        need(many(self.workload.watches), || "workload.watches".into(), || "at most 512".into())?;
        need(many(self.workload.leases), || "workload.leases".into(), || "at most 512".into())?;
        let Some(deployment) = &self.workload.deployment else { return Ok(()) };
        need(self.topology.nodes > 0, || "workload.deployment".into(), || "pods need nodes: topology.nodes is 0".into())?;
        let replicas = deployment.replicas;
        need((1..=1_000).contains(&replicas), || "workload.deployment.replicas".into(), || format!("{replicas}: from 1 to 1000"))
    }

    fn validate_budget(&self) -> Result<(), PlanError> {
        let (survives, servers) = (self.survives(), self.topology.servers);
        let Some(impaired) = self.budget.impaired else { return Ok(()) };
        let within = impaired <= survives || self.budget.mode == Mode::BeyondModel;
        need(
            within,
            || "budget.impaired".into(),
            || {
                format!(
                    "{impaired} of {servers} servers is more than the {survives} that the cluster survives; say `mode: beyond-model` to mean it"
                )
            },
        )?;
        need(impaired <= servers, || "budget.impaired".into(), || format!("{impaired}: there are only {servers} servers"))
    }

    fn validate_entry(&self, at: &str, entry: &Entry) -> Result<(), PlanError> {
        validate_when(&format!("{at}.when"), &entry.when)?;
        need(!entry.hold.max.is_zero(), || format!("{at}.for"), || "a fault lasts longer than 0".into())?;
        need(
            entry.hold.max <= self.duration.0,
            || format!("{at}.for"),
            || format!("{} is longer than the run ({})", entry.hold, self.duration),
        )?;
        self.validate_target(&format!("{at}.where"), entry)?;
        validate_fault(&format!("{at}.fault"), &entry.fault)?;
        if self.budget.mode == Mode::BeyondModel {
            return Ok(());
        }
        let name = entry.fault.name();
        need(
            !entry.fault.breaks_the_model(),
            || format!("{at}.fault"),
            || format!("{name} breaks what the cluster must assume; say `budget: {{mode: beyond-model}}`"),
        )?;
        let (cost, allowance) = (self.cost(entry), self.allowance());
        let broken = || {
            format!(
                "{name} there impairs {cost} of {} servers, and the budget is {allowance}; say `budget: {{mode: beyond-model}}` to mean it",
                self.topology.servers
            )
        };
        need(cost <= allowance, || format!("{at}.where"), broken)
    }

    fn validate_target(&self, at: &str, entry: &Entry) -> Result<(), PlanError> {
        let (servers, nodes) = (self.topology.servers, self.topology.nodes);
        let site = match entry.target {
            Target::Leader | Target::AnyServer | Target::AllServers => Site::Server,
            Target::Follower => {
                need(servers > 1, || at.to_owned(), || "a cluster of one has no follower".into())?;
                Site::Server
            }
            Target::Servers(n) | Target::Server(n) => {
                need((1..=servers).contains(&n), || at.to_owned(), || format!("{n}: from 1 to {servers}"))?;
                Site::Server
            }
            Target::AnyNode => {
                need(nodes > 0, || at.to_owned(), || "topology.nodes is 0".into())?;
                Site::Node
            }
            Target::Node(n) => {
                need((1..=nodes).contains(&n), || at.to_owned(), || format!("{n}: from 1 to {nodes}"))?;
                Site::Node
            }
            Target::Cluster => Site::Cluster,
        };
        let wanted = entry.fault.site();
        let fits = site == wanted || (matches!(entry.fault, Fault::Overload { .. }) && entry.target == Target::AnyServer);
        let word = match wanted {
            Site::Server => "a server",
            Site::Node => "a node: any-node, or {node: 1}",
            Site::Cluster => "the cluster",
        };
        need(fits, || at.to_owned(), || format!("{} is done to {word}", entry.fault.name()))
    }

    /// How many servers an entry impairs at once.
    pub fn cost(&self, entry: &Entry) -> u8 {
        if !entry.fault.impairs() {
            return 0;
        }
        // One after another is one at a time.
        if matches!(entry.fault, Fault::RollingRestart {}) {
            return 1;
        }
        if let Fault::Partition { shape: Shape::Halves, .. } = entry.fault {
            return self.survives().max(1);
        }
        match entry.target {
            Target::Servers(n) => n,
            Target::AllServers => self.topology.servers,
            Target::AnyNode | Target::Node(_) | Target::Cluster => 0,
            Target::Leader | Target::Follower | Target::AnyServer | Target::Server(_) => 1,
        }
    }
}

fn validate_checks(at: &str, names: &[String]) -> Result<(), PlanError> {
    for (index, check) in names.iter().enumerate() {
        let known = CHECKS.iter().any(|known| known.name == check);
        need(known, || format!("{at}[{index}]"), || format!("there is no check {check:?}; `kontiki chaos list` names them"))?;
    }
    Ok(())
}

fn validate_when(at: &str, when: &When) -> Result<(), PlanError> {
    let ways = u8::from(when.at.is_some()) + u8::from(when.every.is_some()) + u8::from(when.event.is_some());
    need(ways == 1, || at.to_owned(), || "exactly one of `at`, `every` and `event` says when".into())?;
    if let Some(every) = when.every {
        need(every.min >= std::time::Duration::from_millis(100), || format!("{at}.every"), || format!("{every}: at least 100ms"))?;
    }
    need(when.first.is_none() || when.every.is_some(), || format!("{at}.first"), || "goes with `every`".into())?;
    need(when.after.is_none() || when.event.is_some(), || format!("{at}.after"), || "goes with `event`".into())?;
    need(when.p.is_none() || when.event.is_some(), || format!("{at}.p"), || "goes with `event`".into())?;
    need(when.p.is_none_or(|p| p > 0.0 && p <= 1.0), || format!("{at}.p"), || "a share: more than 0, at most 1".into())
}

fn validate_fault(at: &str, fault: &Fault) -> Result<(), PlanError> {
    let field = |name: &str| format!("{at}.{}.{name}", fault.name());
    match fault {
        Fault::Loss { percent } | Fault::Duplicate { percent } => {
            need((1..=99).contains(percent), || field("percent"), || format!("{percent}: from 1 to 99; all of it is a partition"))
        }
        Fault::Bandwidth { kbytes } => need(*kbytes > 0, || field("kbytes"), || "0 is a partition".into()),
        Fault::Delay { by, jitter } => {
            need(!by.0.is_zero() || !jitter.0.is_zero(), || field("by"), || "no delay at all".into())?;
            let longest = std::time::Duration::from_secs(10);
            need(by.0 + jitter.0 <= longest, || field("by"), || "with its jitter at most 10s".into())
        }
        Fault::DiskSlow { by } => need(!by.0.is_zero(), || field("by"), || "not slow at all".into()),
        Fault::ClockJump { ms } => need(*ms != 0, || field("ms"), || "no jump at all".into()),
        Fault::ClockDrift { ppm } => need(*ppm != 0 && ppm.abs() <= 500_000, || field("ppm"), || "not 0, at most 500000 either way".into()),
        Fault::Overload { clients, bytes } => {
            need((1..=2_000).contains(clients), || field("clients"), || format!("{clients}: from 1 to 2000"))?;
            need((1..=1_000_000).contains(bytes), || field("bytes"), || format!("{bytes}: from 1 to 1000000"))
        }
        _ => Ok(()),
    }
}
