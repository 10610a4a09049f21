//! What a fault cost, fault by fault: the window without a write, the time to a new leader, the time to full service, requests that
//! failed, events that were lost. All of it from the history, so that a recorded run can be measured again.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use serde::Serialize;

use crate::history::{Answer, At, FaultOutcome, Frame, History, Role};
use crate::load::kv::PREFIX;

/// What is seen later than this after a fault has ended is not counted as its consequence.
const AFTERMATH: At = 5_000_000_000;

/// One fault, and what it cost. Times in milliseconds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// The entry's name in the plan.
    pub label: String,
    /// The fault's name.
    pub kind: String,
    /// When, in seconds since the clients began.
    pub at_s: f64,
    /// The longest time without an acknowledged write, from the last one before the fault on.
    pub write_gap_ms: f64,
    /// Until another leader was seen; `None`: the leader stayed.
    pub leader_ms: Option<f64>,
    /// From the fault's end until every server was seen to follow or lead again; `None`: not before the run ended.
    pub service_ms: Option<f64>,
    /// Requests that were answered with an error, or not at all.
    pub failed: usize,
    /// Events that a watcher should have got and did not.
    pub lost: usize,
}

/// Several values of one figure.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Spread {
    /// How many.
    pub n: usize,
    /// Half were not larger.
    pub p50: f64,
    /// Ninety-nine of a hundred were not larger.
    pub p99: f64,
    /// None was larger.
    pub max: f64,
}

/// All faults of one kind.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// The entry's name in the plan.
    pub label: String,
    /// How many took effect.
    pub n: usize,
    /// Milliseconds without an acknowledged write.
    pub write_gap_ms: Spread,
    /// Milliseconds until another leader, where the leader changed.
    pub leader_ms: Spread,
    /// Milliseconds from the fault's end to full service.
    pub service_ms: Spread,
    /// Requests that failed.
    pub failed: usize,
    /// Events that were lost.
    pub lost: usize,
}

impl Spread {
    /// Of these values, by nearest rank.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut all: Vec<f64> = values.into_iter().collect();
        all.sort_by(f64::total_cmp);
        let rank = |share: f64| {
            let index = (share * all.len() as f64).ceil() as usize;
            all.get(index.saturating_sub(1)).copied().unwrap_or(0.0)
        };
        Self { n: all.len(), p50: rank(0.5), p99: rank(0.99), max: rank(1.0) }
    }

    fn cell(&self) -> String {
        if self.n == 0 { "—".into() } else { format!("{:.0} / {:.0} / {:.0}", self.p50, self.p99, self.max) }
    }
}

fn ms(ns: At) -> f64 {
    ns as f64 / 1e6
}

/// The longest time without an acknowledgement that touches `from..until`.
pub fn longest_gap(acks: &[At], from: At, until: At) -> At {
    let before = acks[..acks.partition_point(|at| *at <= from)].last().copied().unwrap_or(from);
    let inside = acks[acks.partition_point(|at| *at <= from)..].iter().copied();
    let mut last = before;
    let mut longest = 0;
    for at in inside {
        longest = longest.max(at - last);
        last = at;
        // A gap that begins in the window counts whole; the first acknowledgement after the window ends it.
        if at >= until {
            return longest;
        }
    }
    longest.max(until.saturating_sub(last))
}

/// The cost of every fault that took effect.
pub fn rows(history: &History) -> Vec<Row> {
    let mut acks: Vec<At> = history.ops.iter().filter(|op| is_write(&op.answer)).map(|op| op.ret).collect();
    acks.sort_unstable();
    let installed: Vec<_> = history.faults.iter().filter(|f| matches!(f.outcome, FaultOutcome::Installed { .. })).collect();
    let end = history.end();
    let missing = missing_events(history);
    let mut rows = Vec::new();
    for (index, fault) in installed.iter().enumerate() {
        let healed = history.healed(fault);
        let next = installed.get(index + 1).map_or(end, |f| f.at);
        let until = next.min(healed.saturating_add(AFTERMATH)).min(end).max(fault.at);
        let within = |at: At| at >= fault.at && at <= until;
        rows.push(Row {
            label: if fault.detail.is_empty() { fault.kind.clone() } else { fault.detail.clone() },
            kind: fault.kind.clone(),
            at_s: fault.at as f64 / 1e9,
            write_gap_ms: ms(longest_gap(&acks, fault.at, until)),
            leader_ms: new_leader(history, fault.at, until).map(|at| ms(at - fault.at)),
            service_ms: all_back(history, healed).map(|at| ms(at - healed)),
            failed: history.ops.iter().filter(|op| within(op.call) && is_failure(&op.answer)).count(),
            lost: missing.iter().filter(|at| within(**at)).count(),
        });
    }
    rows
}

/// Rows of the same entry together, in the order of their first appearance.
pub fn summarize(rows: &[Row]) -> Vec<Summary> {
    let mut order: Vec<&str> = Vec::new();
    let mut groups: BTreeMap<&str, Vec<&Row>> = BTreeMap::new();
    for row in rows {
        if !groups.contains_key(row.label.as_str()) {
            order.push(&row.label);
        }
        groups.entry(&row.label).or_default().push(row);
    }
    let summary = |label: &str| {
        let group = &groups[label];
        Summary {
            label: label.to_owned(),
            n: group.len(),
            write_gap_ms: Spread::of(group.iter().map(|r| r.write_gap_ms)),
            leader_ms: Spread::of(group.iter().filter_map(|r| r.leader_ms)),
            service_ms: Spread::of(group.iter().filter_map(|r| r.service_ms)),
            failed: group.iter().map(|r| r.failed).sum(),
            lost: group.iter().map(|r| r.lost).sum(),
        }
    };
    order.into_iter().map(summary).collect()
}

/// The table, in Markdown.
pub fn markdown(summaries: &[Summary]) -> String {
    let mut text = String::from(
        "| fault | n | without a write, ms (p50 / p99 / max) | new leader, ms | full service after heal, ms | failed requests | events lost |\n\
         |---|---|---|---|---|---|---|\n",
    );
    for s in summaries {
        let (write, leader, service) = (s.write_gap_ms.cell(), s.leader_ms.cell(), s.service_ms.cell());
        let _ = writeln!(text, "| {} | {} | {write} | {leader} | {service} | {} | {} |", s.label, s.n, s.failed, s.lost);
    }
    text
}

fn is_write(answer: &Answer) -> bool {
    matches!(answer, Answer::Written { .. })
}

fn is_failure(answer: &Answer) -> bool {
    matches!(answer, Answer::Unknown { .. } | Answer::Refused { .. })
}

/// When a leader of a later term than the last one before `from` was first seen.
fn new_leader(history: &History, from: At, until: At) -> Option<At> {
    let leads = || history.samples.iter().filter(|s| s.role == Role::Leader);
    let before = leads().filter(|s| s.at <= from).map(|s| s.term).max()?;
    leads().find(|s| s.at > from && s.at <= until && s.term > before).map(|s| s.at)
}

/// When every member had been seen to be up after `from`.
fn all_back(history: &History, from: At) -> Option<At> {
    let mut first: BTreeMap<usize, At> = BTreeMap::new();
    for sample in history.samples.iter().filter(|s| s.at >= from && matches!(s.role, Role::Leader | Role::Follower | Role::Learner)) {
        first.entry(sample.member).or_insert(sample.at);
    }
    let members = history.header.members.len();
    (first.len() >= members && members > 0).then(|| first.values().copied().max().unwrap_or(from))
}

/// For each watcher, the changes between the first and the last event that it saw and that it did not get: the times at which they were
/// acknowledged, or at which the watcher went past them.
fn missing_events(history: &History) -> Vec<At> {
    let mut seen: BTreeMap<u16, BTreeMap<i64, At>> = BTreeMap::new();
    for watch in &history.watches {
        if let Frame::Events { events, .. } = &watch.frame {
            let of = seen.entry(watch.client).or_default();
            for event in events {
                of.entry(event.kv.modified).or_insert(watch.at);
            }
        }
    }
    let all: BTreeSet<i64> = history.changes.iter().filter(|c| c.key.starts_with(PREFIX)).map(|c| c.revision).collect();
    let mut missing = Vec::new();
    for got in seen.values() {
        let (Some((first, _)), Some((last, _))) = (got.first_key_value(), got.last_key_value()) else { continue };
        for revision in all.range(first..=last).filter(|r| !got.contains_key(r)) {
            missing.push(got.range(revision..).next().map_or(0, |(_, at)| *at));
        }
    }
    missing
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{Ask, Change, Fault, Header, Heal, Op, Sample, Seen, SeenEvent, Watch};

    const S: At = 1_000_000_000;

    fn write(ret: At, revision: i64) -> Op {
        let ask = Ask::Put { key: "chaos/k0".into(), value: format!("v{revision}") };
        Op { client: 0, member: 0, call: ret - 1, ret, ask, answer: Answer::Written { revision } }
    }

    #[test]
    fn gaps_are_measured_across_the_fault() {
        let acks = [10, 20, 90, 95, 300];
        assert_eq!(longest_gap(&acks, 25, 100), 205, "the gap that begins in the window counts whole");
        assert_eq!(longest_gap(&acks, 25, 92), 70, "from the last write before the fault");
        assert_eq!(longest_gap(&acks, 96, 400), 205);
        assert_eq!(longest_gap(&[], 5, 9), 4);
    }

    #[test]
    fn ranks_are_nearest_ranks() {
        let spread = Spread::of([3.0, 1.0, 2.0, 4.0]);
        assert_eq!(spread, Spread { n: 4, p50: 2.0, p99: 4.0, max: 4.0 });
        assert_eq!(Spread::of([]), Spread::default());
    }

    #[test]
    fn a_fault_is_measured_from_the_history() {
        let lead = |at, member, term| Sample { at, member, term, role: Role::Leader, ..Sample::default() };
        let follow = |at, member, term| Sample { at, member, term, role: Role::Follower, ..Sample::default() };
        let mut history = History {
            header: Header { members: vec!["a".into(), "b".into()], ..Header::default() },
            ops: vec![write(S, 2), write(3 * S, 3), write(9 * S, 4)],
            changes: (2..=4).map(|r| Change::put(r, "chaos/k0", format!("v{r}"))).collect(),
            samples: vec![lead(S, 0, 1), lead(2 * S + S / 2, 1, 2), follow(4 * S + S / 4, 0, 2), lead(4 * S + S / 8, 1, 2)],
            faults: vec![Fault {
                id: 1,
                at: 2 * S,
                kind: "crash".into(),
                outcome: FaultOutcome::Installed { proof: "p".into() },
                ..Fault::default()
            }],
            heals: vec![Heal { id: 1, at: 4 * S, ..Heal::default() }],
            ended: Some(10 * S),
            ..History::default()
        };
        history.ops.push(Op { answer: Answer::Unknown { why: "x".into() }, ..write(3 * S, 9) });
        let event = |revision| SeenEvent { kv: Seen { modified: revision, ..Seen::default() }, ..SeenEvent::default() };
        let frame = |at, revision| Watch {
            watch: 1,
            client: 7,
            member: 0,
            at,
            frame: Frame::Events { revision, events: vec![event(revision)], fragment: false },
        };
        history.watches = vec![frame(S, 2), frame(9 * S, 4)];
        let row = rows(&history).remove(0);
        assert_eq!((row.write_gap_ms, row.leader_ms, row.service_ms), (6_000.0, Some(500.0), Some(250.0)));
        assert_eq!((row.failed, row.lost), (1, 1));
        assert!(markdown(&summarize(&[row])).contains("| crash | 1 | 6000 / 6000 / 6000 | 500 / 500 / 500 | 250 / 250 / 250 | 1 | 1 |"));
    }

    #[test]
    fn what_did_not_take_effect_is_not_measured() {
        let mut history = History::default();
        history.faults.push(Fault { kind: "crash".into(), ..Fault::default() });
        assert_eq!(rows(&history), []);
    }
}
