//! What a report shows, computed from a history and its judgements: the same for the page, for JSON and for tests.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::check::{CHECKS, Judge, Outcome, Verdict, Violation};
use crate::history::{Answer, At, FaultOutcome, Header, History, Op, Role};

/// More operations than this are thinned out in the drawing; those that failed, have an unknown outcome or are accused stay.
const DRAWN: usize = 12_000;

/// Everything that a report shows. Times are milliseconds since the run began.
#[derive(Clone, Debug, Serialize)]
pub struct Data {
    /// Which run.
    pub header: Header,
    /// `pass`, `fail` or `incomplete`: no check failed, but one that matters saw nothing, or the harness was killed.
    pub verdict: &'static str,
    /// The first violation, in a line.
    pub first: Option<String>,
    /// How long it was.
    pub length: f64,
    /// Whether it ended in good order.
    pub ended: bool,
    /// All checks of the table.
    pub checks: Vec<CheckRow>,
    /// What each member was when.
    pub members: Vec<Lane>,
    /// Faults, in order.
    pub faults: Vec<FaultRow>,
    /// Operations: call, return, client, kind (`w`, `r`), outcome (`ok`, `no`, `?`).
    pub ops: Vec<(f64, f64, u16, char, &'static str)>,
    /// How many operations there were in all.
    pub total: usize,
    /// Per slice of time: when, acknowledged, not acknowledged, the 99th percentile of latency.
    pub rate: Vec<(f64, usize, usize, f64)>,
    /// Operations by outcome.
    pub outcomes: BTreeMap<&'static str, usize>,
}

/// A check.
#[derive(Clone, Debug, Serialize)]
pub struct CheckRow {
    /// Its name.
    pub name: &'static str,
    /// What must hold.
    pub predicate: &'static str,
    /// `pass`, `fail`, `vacuous` or `none`.
    pub verdict: &'static str,
    /// Why it judged nothing.
    pub why: String,
    /// What it saw.
    pub counts: BTreeMap<&'static str, u64>,
    /// What it found.
    pub violations: Vec<Violation>,
}

/// What a member was when.
#[derive(Clone, Debug, Serialize)]
pub struct Lane {
    /// Its name.
    pub name: String,
    /// From, to, role, term.
    pub spans: Vec<(f64, f64, Role, u64)>,
}

/// A fault and what it cost.
#[derive(Clone, Debug, Serialize)]
pub struct FaultRow {
    /// Which.
    pub kind: String,
    /// From.
    pub from: f64,
    /// To.
    pub to: f64,
    /// The members that it hit.
    pub members: Vec<usize>,
    /// `installed`, `skipped` or `indeterminate`.
    pub outcome: &'static str,
    /// Proof, reason, details.
    pub detail: String,
    /// The longest time without an acknowledged write that touches it, from and to.
    pub gap: Option<(f64, f64)>,
}

fn ms(at: At) -> f64 {
    // A tenth of a microsecond is more than a drawing can show.
    (at as f64 / 100.0).round() / 10_000.0
}

fn name(answer: &Answer) -> &'static str {
    match answer {
        Answer::Written { .. } => "written",
        Answer::Read { .. } => "read",
        Answer::CompareFailed { .. } => "compare false",
        Answer::NothingDeleted { .. } => "nothing deleted",
        Answer::Did { .. } => "done",
        Answer::Txn { .. } => "transaction",
        Answer::Lease { .. } => "lease",
        Answer::Compacted { .. } => "compacted",
        Answer::Unknown { .. } => "unknown",
        Answer::Refused { .. } => "refused",
    }
}

fn outcome(op: &Op) -> &'static str {
    match op.answer {
        Answer::Unknown { .. } => "?",
        Answer::Refused { .. } => "no",
        _ => "ok",
    }
}

/// The longest time without an acknowledgement that touches `from..until`: from the last one before it, to the first one after it.
pub fn longest_gap(acks: &[At], from: At, until: At) -> Option<(At, At)> {
    let begin = acks.partition_point(|at| *at < from);
    let mut last = if begin > 0 { acks[begin - 1] } else { from };
    let mut longest: Option<(At, At)> = None;
    for at in acks[begin..].iter().copied() {
        if longest.is_none_or(|(a, b)| b - a < at - last) {
            longest = Some((last, at));
        }
        last = at;
        if at >= until {
            return longest;
        }
    }
    if until > last && longest.is_none_or(|(a, b)| b - a < until - last) {
        longest = Some((last, until));
    }
    longest
}

impl Data {
    /// Computes what a report shows.
    pub fn new(history: &History, outcomes: &[Outcome]) -> Self {
        let checks: Vec<CheckRow> = CHECKS.iter().map(|check| row(check.name, check.predicate, &check.judge, outcomes)).collect();
        let failed = checks.iter().find_map(|row| row.violations.first());
        let vacuous = checks.iter().any(|row| row.name == "linearizable" && row.verdict == "vacuous");
        let verdict = match (failed, vacuous || history.ended.is_none()) {
            (Some(_), _) => "fail",
            (None, true) => "incomplete",
            (None, false) => "pass",
        };
        let mut counts: BTreeMap<&'static str, usize> = BTreeMap::new();
        for op in &history.ops {
            *counts.entry(name(&op.answer)).or_default() += 1;
        }
        Self {
            header: history.header.clone(),
            verdict,
            first: failed.map(ToString::to_string),
            length: ms(history.end()),
            ended: history.ended.is_some(),
            members: lanes(history),
            faults: faults(history),
            ops: drawn(history, &checks),
            total: history.ops.len(),
            rate: rate(history),
            outcomes: counts,
            checks,
        }
    }
}

fn row(name: &'static str, predicate: &'static str, judge: &Judge, outcomes: &[Outcome]) -> CheckRow {
    let mut row = CheckRow { name, predicate, verdict: "none", why: String::new(), counts: BTreeMap::new(), violations: Vec::new() };
    match (judge, outcomes.iter().find(|o| o.check == name)) {
        (Judge::NotYet(why), _) => row.why = (*why).to_owned(),
        (_, None) => row.why = "not run".to_owned(),
        (_, Some(outcome)) => {
            row.counts = outcome.counts.clone();
            row.violations = outcome.violations().to_vec();
            row.verdict = match &outcome.verdict {
                Verdict::Pass => "pass",
                Verdict::Fail(_) => "fail",
                Verdict::Vacuous(missing) => {
                    row.why = format!("saw no {}", missing.join(", no "));
                    "vacuous"
                }
            };
        }
    }
    row
}

fn lanes(history: &History) -> Vec<Lane> {
    let end = ms(history.end());
    let known = history.samples.iter().map(|s| s.member + 1).chain(history.ops.iter().map(|op| op.member + 1)).max().unwrap_or(0);
    let mut lanes: Vec<Lane> = (0..known.max(history.header.members.len()))
        .map(|n| Lane { name: history.header.members.get(n).cloned().unwrap_or_else(|| format!("member {n}")), spans: Vec::new() })
        .collect();
    for sample in &history.samples {
        let Some(lane) = lanes.get_mut(sample.member) else { continue };
        let at = ms(sample.at);
        match lane.spans.last_mut() {
            Some(last) if (last.2, last.3) == (sample.role, sample.term) => last.1 = at,
            last => {
                if let Some(last) = last {
                    last.1 = at;
                }
                lane.spans.push((at, end, sample.role, sample.term));
            }
        }
    }
    for lane in &mut lanes {
        if let Some(last) = lane.spans.last_mut() {
            last.1 = end;
        }
    }
    lanes
}

fn faults(history: &History) -> Vec<FaultRow> {
    let mut acks: Vec<At> = history.ops.iter().filter(|op| crate::check::linear::is_write(&op.answer)).map(|op| op.ret).collect();
    acks.sort_unstable();
    history
        .faults
        .iter()
        .map(|fault| {
            let healed = history.healed(fault);
            let (outcome, more) = match &fault.outcome {
                FaultOutcome::Installed { proof } => ("installed", proof),
                FaultOutcome::Skipped { why } => ("skipped", why),
                FaultOutcome::Indeterminate { why } => ("indeterminate", why),
            };
            let gap = longest_gap(&acks, fault.at, healed).filter(|_| outcome == "installed");
            FaultRow {
                kind: fault.kind.clone(),
                from: ms(fault.at),
                to: ms(healed),
                members: fault.members.clone(),
                outcome,
                detail: [fault.detail.as_str(), more].iter().filter(|t| !t.is_empty()).copied().collect::<Vec<_>>().join("; "),
                gap: gap.map(|(a, b)| (ms(a), ms(b))),
            }
        })
        .collect()
}

fn drawn(history: &History, checks: &[CheckRow]) -> Vec<(f64, f64, u16, char, &'static str)> {
    let accused: BTreeSet<(u16, At)> =
        checks.iter().flat_map(|c| &c.violations).flat_map(|v| &v.ops).map(|op| (op.client, op.call)).collect();
    let every = history.ops.len().div_ceil(DRAWN).max(1);
    let keep = |(i, op): &(usize, &Op)| i % every == 0 || outcome(op) != "ok" || accused.contains(&(op.client, op.call));
    let drawn = history.ops.iter().enumerate().filter(keep).take(4 * DRAWN);
    drawn
        .map(|(_, op)| {
            let kind = if op.ask.is_read_only() { 'r' } else { 'w' };
            (ms(op.call), ms(op.ret), op.client, kind, outcome(op))
        })
        .collect()
}

/// Slices of the run's time, about 240.
fn rate(history: &History) -> Vec<(f64, usize, usize, f64)> {
    let slice = (history.end() / 240).max(1_000_000);
    let mut slices: BTreeMap<At, (Vec<At>, usize)> = BTreeMap::new();
    for op in &history.ops {
        let (latencies, bad) = slices.entry(op.ret / slice).or_default();
        if outcome(op) == "ok" { latencies.push(op.ret - op.call) } else { *bad += 1 }
    }
    let count = history.end() / slice + 1;
    (0..count)
        .map(|n| {
            let (mut latencies, bad) = slices.remove(&n).unwrap_or_default();
            latencies.sort_unstable();
            let p99 = latencies.get(latencies.len().saturating_sub(1) * 99 / 100).copied().unwrap_or(0);
            (ms(n * slice), latencies.len(), bad, ms(p99))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gap_of_a_fault_reaches_over_its_ends() {
        let acks = [10, 20, 90, 95, 300];
        assert_eq!(longest_gap(&acks, 25, 100), Some((95, 300)), "nobody wrote after 95");
        assert_eq!(longest_gap(&acks, 25, 80), Some((20, 90)));
        assert_eq!(longest_gap(&acks, 310, 400), Some((300, 400)));
        assert_eq!(longest_gap(&[], 5, 9), Some((5, 9)));
    }
}
