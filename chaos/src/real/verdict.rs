//! What a run proved, and the exit code that says so.

use std::time::Duration;

use crate::check::{self, Outcome, Violation};
use crate::history::{Answer, FaultOutcome, History};
use crate::measure::{self, Row, Spread};
use crate::plan::{Mode, Plan};

/// What a run proved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// Everything held, and enough happened for that to mean something.
    Pass,
    /// Too little happened: a check saw nothing, or no fault took effect.
    Vacuous,
    /// A fault did not prove that it took effect, or the run could not be carried out.
    Invalid,
    /// Something was violated.
    Violation,
}

impl Verdict {
    /// The exit code.
    pub const fn code(self) -> u8 {
        match self {
            Self::Pass => 0,
            Self::Violation => 1,
            Self::Invalid => 2,
            Self::Vacuous => 3,
        }
    }

    /// In a word.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Violation => "VIOLATION",
            Self::Invalid => "INVALID",
            Self::Vacuous => "VACUOUS",
        }
    }
}

/// What was found, by weight.
#[derive(Debug, Default)]
pub struct Findings {
    /// What must not happen, and did.
    pub violations: Vec<Violation>,
    /// Faults without a proof.
    pub unproved: Vec<String>,
    /// What did not happen often enough.
    pub vacuous: Vec<String>,
    /// Faults that were not done, and why.
    pub skipped: Vec<String>,
    /// Checks that passed, and how often each saw what.
    pub passed: Vec<String>,
    /// Checks that saw nothing, and need not in this plan.
    pub idle: Vec<&'static str>,
    /// Checks that failed, as the plan says they may: how often, and the first counterexample.
    pub broken: Vec<String>,
}

impl Findings {
    /// The verdict.
    pub fn verdict(&self) -> Verdict {
        if !self.violations.is_empty() {
            Verdict::Violation
        } else if !self.unproved.is_empty() {
            Verdict::Invalid
        } else if !self.vacuous.is_empty() {
            Verdict::Vacuous
        } else {
            Verdict::Pass
        }
    }

    /// Takes what the checks found. A check that saw nothing counts as vacuous if the plan names it, or has a workload that is for it.
    pub fn take(&mut self, plan: &Plan, outcomes: Vec<Outcome>) {
        let load = &plan.workload;
        let fed = [("linearizable", load.kv.clients), ("watch", load.watches), ("lease", load.leases)];
        for outcome in outcomes {
            let wanted = plan.expect.checks.is_empty() || plan.expect.checks.iter().any(|name| name == outcome.check);
            if !wanted {
                continue;
            }
            match outcome.verdict {
                check::Verdict::Fail(found) if may_break(plan, outcome.check) => {
                    let first = found.first().map(ToString::to_string).unwrap_or_default();
                    self.broken.push(format!("{}: {} times, first: {first}", outcome.check, found.len()));
                }
                check::Verdict::Fail(found) => self.violations.extend(found),
                check::Verdict::Pass => {
                    let counts: Vec<String> = outcome.counts.iter().map(|(what, n)| format!("{n} {what}")).collect();
                    self.passed.push(format!("{} ({})", outcome.check, counts.join(", ")));
                }
                check::Verdict::Vacuous(missing) => {
                    let needed = !plan.expect.checks.is_empty() || fed.iter().any(|(name, n)| *name == outcome.check && *n > 0);
                    if needed {
                        self.vacuous.push(format!("{} saw no {}", outcome.check, missing.join(", no ")));
                    } else {
                        self.idle.push(outcome.check);
                    }
                }
            }
        }
    }

    /// Judges faults, coverage and availability; what clients saw is judged by the checks.
    pub fn judge(&mut self, plan: &Plan, history: &History, rows: &[Row], elections: usize, converged: Option<Duration>) {
        for fault in &history.faults {
            let what = format!("{} at {:.1} s", fault.detail, fault.at as f64 / 1e9);
            match &fault.outcome {
                FaultOutcome::Installed { .. } => {}
                FaultOutcome::Skipped { why } => self.skipped.push(format!("{what}: {why}")),
                FaultOutcome::Indeterminate { why } => self.unproved.push(format!("{what}: {why}")),
            }
        }
        self.coverage(plan, history, rows.len(), elections);
        self.availability(plan, rows, converged);
    }

    fn coverage(&mut self, plan: &Plan, history: &History, faults: usize, elections: usize) {
        let wanted = &plan.expect.coverage;
        let count = |test: fn(&Answer) -> bool| history.ops.iter().filter(|op| test(&op.answer)).count() as u64;
        let writes = count(|a| matches!(a, Answer::Written { .. }));
        let reads = count(|a| matches!(a, Answer::Read { .. }));
        let clients = plan.workload.kv.clients > 0;
        let faults_wanted = if plan.schedule.is_empty() { 0 } else { wanted.faults };
        for (what, saw, least) in [
            ("acknowledged writes", writes, if clients { wanted.writes } else { 0 }),
            ("answered reads", reads, if clients { wanted.reads } else { 0 }),
            ("faults that took effect", faults as u64, u64::from(faults_wanted)),
            ("changes of leader", elections as u64, u64::from(wanted.elections)),
        ] {
            if saw < least {
                self.vacuous.push(format!("{saw} {what}, and the plan asks for {least}"));
            }
        }
    }

    fn availability(&mut self, plan: &Plan, rows: &[Row], converged: Option<Duration>) {
        let wanted = &plan.expect.availability;
        let mut late = |what: &str, took: f64, bound: Option<crate::plan::Span>| {
            if let Some(bound) = bound.filter(|b| took > b.0.as_secs_f64() * 1e3) {
                self.violations.push(Violation::new("availability", format!("{what}: {took:.0} ms, and the plan allows {bound}")));
            }
        };
        if plan.budget.mode == Mode::WithinModel {
            let gaps = Spread::of(rows.iter().map(|r| r.write_gap_ms));
            late("without an acknowledged write, p50", gaps.p50, wanted.write_gap_p50);
            late("without an acknowledged write, p99", gaps.p99, wanted.write_gap_p99);
            let leaders = Spread::of(rows.iter().filter_map(|r| r.leader_ms));
            late("until another leader, p99", leaders.p99, wanted.leader_p99);
        }
        match converged {
            Some(took) => late("until everything was whole again", took.as_secs_f64() * 1e3, wanted.converge),
            None if may_break(plan, "converge") => self.broken.push("converge: the cluster was not whole again in time".into()),
            None => self.violations.push(Violation::new("converge", "the cluster was not whole again in time")),
        }
        // Within the model the cluster must serve during faults, whatever the plan says of how soon.
        let longest = rows.iter().map(|r| r.write_gap_ms).fold(0.0, f64::max);
        if plan.budget.mode == Mode::WithinModel && plan.workload.kv.clients > 0 && longest > LIVENESS.as_secs_f64() * 1e3 {
            let detail = format!("{longest:.0} ms without an acknowledged write, though no more was broken than the cluster survives");
            self.violations.push(Violation::new("availability", detail));
        }
    }

    /// Prints everything for people.
    pub fn print(&self, plan: &Plan, history: &History, rows: &[Row]) {
        if !rows.is_empty() {
            print!("{}", measure::markdown(&measure::summarize(rows)));
        }
        let count = |test: fn(&Answer) -> bool| history.ops.iter().filter(|op| test(&op.answer)).count();
        println!(
            "{} operations: {} writes, {} reads, {} refused, {} of unknown outcome; {} changes of the store",
            history.ops.len(),
            count(|a| matches!(a, Answer::Written { .. })),
            count(|a| matches!(a, Answer::Read { .. })),
            count(|a| matches!(a, Answer::Refused { .. })),
            count(|a| matches!(a, Answer::Unknown { .. })),
            history.changes.len()
        );
        let show = |word: &str, all: &[String]| {
            all.iter().take(SHOWN).for_each(|line| println!("{word} {line}"));
            if all.len() > SHOWN {
                println!("{word} … and {} more", all.len() - SHOWN);
            }
        };
        println!("held: {}", self.passed.join("; "));
        if !self.idle.is_empty() {
            println!("saw nothing of what they are about: {}", self.idle.join(", "));
        }
        show("skipped", &self.skipped);
        show("broken, as this plan expects:", &self.broken);
        show("VIOLATION", &self.violations.iter().map(ToString::to_string).collect::<Vec<_>>());
        show("NOT PROVED", &self.unproved);
        show("VACUOUS", &self.vacuous);
        println!("plan {} seed {}: {}", plan.name, plan.seed, self.verdict().word());
    }
}

fn may_break(plan: &Plan, check: &str) -> bool {
    plan.expect.may_break.iter().any(|name| name == check)
}

/// Within the model writes must flow again within this, whatever is broken.
const LIVENESS: Duration = Duration::from_secs(10);

/// Lines of each kind that are shown.
const SHOWN: usize = 20;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Fault;
    use crate::plan::builtin;

    #[test]
    fn the_worst_finding_decides() {
        let mut findings = Findings::default();
        assert_eq!((findings.verdict(), findings.verdict().code()), (Verdict::Pass, 0));
        findings.vacuous.push("x".into());
        assert_eq!(findings.verdict().code(), 3);
        findings.unproved.push("x".into());
        assert_eq!(findings.verdict().code(), 2);
        findings.violations.push(Violation::new("converge", "x"));
        assert_eq!(findings.verdict().code(), 1);
    }

    #[test]
    fn what_a_plan_expects_to_break_does_not_decide_and_is_shown() {
        let plan = builtin::plan("lying-fsync").unwrap();
        let fails = |check| Outcome { check, verdict: check::Verdict::Fail(vec![Violation::new(check, "x")]), counts: Default::default() };
        let mut findings = Findings::default();
        findings.take(&plan, vec![fails("durable"), fails("linearizable")]);
        assert_eq!((findings.verdict(), findings.broken.len()), (Verdict::Pass, 2));
        findings.take(&plan, vec![fails("panic")]);
        assert_eq!(findings.verdict(), Verdict::Violation, "no disk excuses a panic");
        let mut findings = Findings::default();
        findings.take(&builtin::plan("power-loss").unwrap(), vec![fails("durable")]);
        assert_eq!(findings.verdict(), Verdict::Violation);
    }

    #[test]
    fn a_run_in_which_nothing_happened_is_vacuous_and_one_without_proof_invalid() {
        let plan = builtin::plan("crash").unwrap();
        let mut history = History::default();
        let mut findings = Findings::default();
        findings.judge(&plan, &history, &[], 0, Some(Duration::ZERO));
        assert_eq!((findings.verdict(), findings.vacuous.len()), (Verdict::Vacuous, 3));
        history.faults.push(Fault::default());
        let mut findings = Findings::default();
        findings.judge(&plan, &history, &[], 0, Some(Duration::ZERO));
        assert_eq!(findings.verdict(), Verdict::Invalid);
        findings.judge(&plan, &history, &[], 0, None);
        assert_eq!(findings.verdict(), Verdict::Violation);
    }
}
