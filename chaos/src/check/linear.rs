//! Linearizability by certificate.
//!
//! Every answer of the store carries the revision at which it claims to have happened, so the order need not be searched for: it is given.
//! What is left is to check that the order explains every answer, and that it does not contradict real time. Both are one pass.
//!
//! An operation's *point* is where it claims to stand: a write that made revision r at `2r`, a read of the state at R at `2R + 1`. The
//! history is linearizable if replaying the changes explains every answer at its point, and if no operation that had ended before another
//! began has the larger point (a write's must be strictly larger).

use std::collections::BTreeMap;

use super::Violation;
use crate::history::{Answer, Ask, Change, History, Op};

/// The points of operations, in the order that they claim.
type Point = i64;

/// A key's value and mod revision, over time: revision to state.
type Timeline<'a> = BTreeMap<i64, Option<&'a str>>;

/// Everything that is wrong with a history; empty if it is linearizable and nothing acknowledged was lost.
pub fn check(history: &History) -> Vec<Violation> {
    let mut found = Vec::new();
    let timelines = replay(&history.changes, &mut found);
    explain_changes(history, &mut found);
    for op in &history.ops {
        explain(op, &timelines, &mut found);
    }
    real_time(history, &mut found);
    found
}

fn replay<'a>(changes: &'a [Change], found: &mut Vec<Violation>) -> BTreeMap<&'a str, Timeline<'a>> {
    let mut timelines: BTreeMap<&str, Timeline<'_>> = BTreeMap::new();
    let mut last = 0;
    for change in changes {
        if change.revision <= last {
            found.push(Violation::new("revision-order", format!("{} follows {last}", change.revision)));
        }
        last = change.revision;
        timelines.entry(&change.key).or_default().insert(change.revision, change.value.as_deref());
    }
    timelines
}

/// The state of a key after the change at `revision`: value and mod revision.
fn state_at<'a>(timelines: &BTreeMap<&str, Timeline<'a>>, key: &str, revision: i64) -> Option<(&'a str, i64)> {
    let (at, value) = timelines.get(key)?.range(..=revision).next_back()?;
    value.map(|value| (value, *at))
}

/// Every change has exactly one operation that can have made it.
fn explain_changes(history: &History, found: &mut Vec<Violation>) {
    let mut by_value: BTreeMap<&str, &Op> = BTreeMap::new();
    let mut deletes: BTreeMap<&str, usize> = BTreeMap::new();
    for op in &history.ops {
        match (&op.ask, &op.answer) {
            (_, Answer::Refused { .. } | Answer::CompareFailed { .. }) => {}
            (Ask::Delete { key }, Answer::Written { .. } | Answer::Unknown { .. }) => *deletes.entry(key).or_default() += 1,
            (ask, _) => {
                if let Some(value) = ask.value() {
                    by_value.insert(value, op);
                }
            }
        }
    }
    let mut written: BTreeMap<&str, i64> = BTreeMap::new();
    for change in &history.changes {
        let Some(value) = &change.value else {
            match deletes.get_mut(change.key.as_str()).filter(|left| **left > 0) {
                Some(left) => *left -= 1,
                None => found.push(Violation::new("phantom", format!("{change:?}: nobody asked for this deletion"))),
            }
            continue;
        };
        match by_value.get(value.as_str()) {
            Some(op) if op.ask.key() == change.key => {}
            _ => found.push(Violation::new("phantom", format!("{change:?}: nobody wrote this, or it was refused"))),
        }
        if let Some(before) = written.insert(value, change.revision) {
            found.push(Violation::new("twice", format!("{value:?} was written at {before} and at {}", change.revision)));
        }
    }
}

/// The answer of one operation is explained by the changes.
fn explain(op: &Op, timelines: &BTreeMap<&str, Timeline<'_>>, found: &mut Vec<Violation>) {
    let key = op.ask.key();
    match &op.answer {
        Answer::Written { revision } => {
            let change = timelines.get(key).and_then(|t| t.get(revision));
            if change.map(|value| value.as_deref()) != Some(op.ask.value()) {
                found.push(Violation::new("lost-write", format!("acknowledged, but the store has {change:?} there: {op:?}")));
            }
            if let Ask::Cas { expect, .. } = &op.ask {
                let before = state_at(timelines, key, revision - 1).map_or(0, |(_, at)| at);
                if before != *expect {
                    found.push(Violation::new("wrong-compare", format!("succeeded, though the key was at {before}: {op:?}")));
                }
            }
        }
        Answer::Read { revision, found: seen } => {
            let state = state_at(timelines, key, *revision);
            if state != seen.as_ref().map(|(value, at)| (value.as_str(), *at)) {
                found.push(Violation::new("stale-read", format!("the state was {state:?}: {op:?}")));
            }
        }
        Answer::CompareFailed { revision } => {
            let state = state_at(timelines, key, *revision).map_or(0, |(_, at)| at);
            if matches!(&op.ask, Ask::Cas { expect, .. } if *expect == state) {
                found.push(Violation::new("wrong-compare", format!("failed, though the key was at {state}: {op:?}")));
            }
        }
        Answer::NothingDeleted { revision } => {
            if let Some(state) = state_at(timelines, key, *revision) {
                found.push(Violation::new("stale-read", format!("deleted nothing, though there was {state:?}: {op:?}")));
            }
        }
        _ => {}
    }
}

/// The point of an operation, and whether it is a write. `None`: it has none, or never happened.
fn point(op: &Op, revisions: &BTreeMap<&str, i64>) -> Option<(Point, bool)> {
    match &op.answer {
        Answer::Written { revision } => Some((2 * revision, true)),
        Answer::Read { revision, .. } | Answer::CompareFailed { revision } | Answer::NothingDeleted { revision } => {
            Some((2 * revision + 1, false))
        }
        // If it happened, then somewhere: its unique value says where.
        Answer::Unknown { .. } => op.ask.value().and_then(|v| revisions.get(v)).map(|r| (2 * r, true)),
        _ => None,
    }
}

fn real_time(history: &History, found: &mut Vec<Violation>) {
    let revisions: BTreeMap<&str, i64> =
        history.changes.iter().filter_map(|c| c.value.as_deref().map(|value| (value, c.revision))).collect();
    let points: Vec<(&Op, Point, bool)> =
        history.ops.iter().filter_map(|op| point(op, &revisions).map(|(point, write)| (op, point, write))).collect();
    let mut calls: Vec<usize> = (0..points.len()).collect();
    calls.sort_by_key(|i| points[*i].0.call);
    // An operation of unknown outcome has no end: it constrains nobody, but is constrained by those that ended before it began.
    let mut returns: Vec<usize> = (0..points.len()).filter(|i| !matches!(points[*i].0.answer, Answer::Unknown { .. })).collect();
    returns.sort_by_key(|i| points[*i].0.ret);
    let mut returned = returns.into_iter().peekable();
    let mut latest: Option<usize> = None;
    for call in calls {
        let (op, at, write) = points[call];
        while let Some(done) = returned.next_if(|i| points[*i].0.ret < op.call) {
            if latest.is_none_or(|l| points[l].1 < points[done].1) {
                latest = Some(done);
            }
        }
        let Some((before, bound, _)) = latest.map(|l| points[l]) else { continue };
        if at < bound || (write && at == bound) {
            found.push(Violation::new("real-time", format!("{op:?} claims to stand before {before:?}, which had ended")));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(call: u64, ret: u64, ask: Ask, answer: Answer) -> Op {
        Op { client: 0, member: 0, call, ret, ask, answer }
    }

    fn put(value: &str) -> Ask {
        Ask::Put { key: "k".into(), value: value.into() }
    }

    fn get() -> Ask {
        Ask::Get { key: "k".into() }
    }

    fn read(revision: i64, found: Option<(&str, i64)>) -> Answer {
        Answer::Read { revision, found: found.map(|(v, at)| (v.into(), at)) }
    }

    fn change(revision: i64, value: Option<&str>) -> Change {
        value.map_or_else(|| Change::delete(revision, "k"), |value| Change::put(revision, "k", value))
    }

    fn unknown() -> Answer {
        Answer::Unknown { why: "timeout".into() }
    }

    fn checks(ops: Vec<Op>, changes: Vec<Change>) -> Vec<&'static str> {
        check(&History { ops, changes, ..History::default() }).into_iter().map(|v| v.check).collect()
    }

    #[test]
    fn a_clean_history_passes() {
        let cas = |expect, value: &str| Ask::Cas { key: "k".into(), expect, value: value.into() };
        let ops = vec![
            op(0, 10, put("a"), Answer::Written { revision: 2 }),
            op(5, 20, get(), read(1, None)),
            op(11, 20, get(), read(2, Some(("a", 2)))),
            op(21, 30, cas(2, "b"), Answer::Written { revision: 3 }),
            op(31, 40, cas(2, "c"), Answer::CompareFailed { revision: 3 }),
            op(41, 50, put("d"), unknown()),
            op(51, 60, Ask::Delete { key: "k".into() }, Answer::Written { revision: 5 }),
            op(61, 70, Ask::Delete { key: "k".into() }, Answer::NothingDeleted { revision: 5 }),
        ];
        let changes = vec![change(2, Some("a")), change(3, Some("b")), change(4, Some("d")), change(5, None)];
        assert_eq!(checks(ops, changes), [""; 0]);
    }

    #[test]
    fn an_unknown_write_may_happen_late_or_never_but_not_early_and_not_twice() {
        let late = vec![op(0, 1, put("a"), unknown()), op(5, 6, get(), read(1, None))];
        assert_eq!(checks(late.clone(), vec![change(2, Some("a"))]), [""; 0]);
        assert_eq!(checks(late.clone(), vec![]), [""; 0]);
        assert_eq!(checks(late, vec![change(2, Some("a")), change(3, Some("a"))]), ["twice"]);
        let early = vec![op(0, 1, get(), read(7, None)), op(5, 6, put("a"), unknown())];
        assert_eq!(checks(early, vec![change(6, Some("a"))]).last(), Some(&"real-time"));
    }

    #[test]
    fn each_violation_is_found() {
        let acked = |revision| op(0, 1, put("a"), Answer::Written { revision });
        assert_eq!(checks(vec![acked(2)], vec![]), ["lost-write"]);
        assert_eq!(checks(vec![], vec![change(2, Some("x"))]), ["phantom"]);
        assert_eq!(checks(vec![], vec![change(2, None)]), ["phantom"]);
        let refused = op(0, 1, put("a"), Answer::Refused { why: "no".into() });
        assert_eq!(checks(vec![refused], vec![change(2, Some("a"))]), ["phantom"]);
        let stale = op(2, 3, get(), read(1, None));
        assert_eq!(checks(vec![acked(2), stale], vec![change(2, Some("a"))]), ["real-time"]);
        let wrong = op(2, 3, get(), read(2, None));
        assert_eq!(checks(vec![acked(2), wrong], vec![change(2, Some("a"))]), ["stale-read"]);
        let reversed = op(2, 3, put("b"), Answer::Written { revision: 2 });
        let changes = vec![change(2, Some("b")), change(3, Some("a"))];
        assert_eq!(checks(vec![acked(3), reversed], changes), ["real-time"]);
        let cas = Ask::Cas { key: "k".into(), expect: 9, value: "a".into() };
        let succeeded = op(0, 1, cas, Answer::Written { revision: 2 });
        assert_eq!(checks(vec![succeeded], vec![change(2, Some("a"))]), ["wrong-compare"]);
        let cas = Ask::Cas { key: "k".into(), expect: 2, value: "b".into() };
        let failed = op(2, 3, cas, Answer::CompareFailed { revision: 2 });
        assert_eq!(checks(vec![acked(2), failed], vec![change(2, Some("a"))]), ["wrong-compare"]);
        let nothing = op(2, 3, Ask::Delete { key: "k".into() }, Answer::NothingDeleted { revision: 2 });
        assert_eq!(checks(vec![acked(2), nothing], vec![change(2, Some("a"))]), ["stale-read"]);
        let backwards = vec![change(3, Some("a")), change(2, None)];
        assert!(checks(vec![acked(3)], backwards).contains(&"revision-order"));
    }

    #[test]
    fn a_hundred_thousand_operations_are_judged() {
        let mut history = History::default();
        for i in 0..100_000_u64 {
            let value = format!("v{i}");
            let revision = i64::try_from(i).unwrap() + 2;
            history.ops.push(op(3 * i, 3 * i + 1, put(&value), Answer::Written { revision }));
            history.changes.push(change(revision, Some(&value)));
        }
        assert_eq!(check(&history), []);
        history.ops[50_000].answer = Answer::Written { revision: 7 };
        assert!(!check(&history).is_empty());
    }
}
