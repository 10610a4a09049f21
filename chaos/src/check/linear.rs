//! Linearizability by certificate.
//!
//! Every answer of the store carries the revision at which it claims to have happened, so the order need not be searched for: it is given.
//! What is left is to check that the order explains every answer, and that it does not contradict real time. Both are one pass.
//!
//! An operation's *point* is where it claims to stand: a write that made revision r at `2r`, a read of the state at R at `2R + 1`. The
//! history is linearizable if replaying the changes explains every answer at its point, and if no operation that had ended before another
//! began has the larger point. A revision that any answer has named exists from then on, so any answer at R counts as a point `2R + 1` for
//! those that begin later.
//!
//! An operation of unknown outcome is looked up in the log: its unique values name it there. A deletion has no value; those that nobody
//! acknowledged are matched with the unknown operations that can have made them, each at most once ([`super::linear::attribute`]).
//! One that is not in the log did not happen.

mod attribute;
mod explain;

use std::collections::BTreeMap;

use super::log::Log;
use super::{Outcome, Tally, Violation};
use crate::history::{Answer, Ask, Change, History, LeaseAsk, Op, Step};

pub(super) use explain::evaluate;

/// Where operations stand in the order that they claim.
type Point = i64;

/// Everything that is wrong with a history; empty if it is linearizable and nothing acknowledged was lost.
pub fn check(history: &History) -> Vec<Violation> {
    judge(history).violations().to_vec()
}

/// The check `linearizable`.
pub fn judge(history: &History) -> Outcome {
    let mut tally = Tally::default();
    let log = Log::new(history.changes.iter().filter(|c| !c.is_registry()));
    log.broken.iter().cloned().for_each(|v| tally.fail(v));
    if history.header.observes_all {
        gaps(history, &mut tally);
    }
    for op in &history.ops {
        explain::op(op, &log, &mut tally);
    }
    explain::refusals(history, &mut tally);
    let bounds = bounds(history);
    let made = attribute::attribute(history, &log, &bounds, &mut tally);
    real_time(history, &log, &bounds, &made, &mut tally);
    tally.finish("linearizable", &["writes", "reads"])
}

/// Every revision is made by a change, so an observer of all keys sees all of them.
fn gaps(history: &History, tally: &mut Tally) {
    let mut last = 1;
    for change in &history.changes {
        if change.revision > last + 1 {
            let detail = format!("revisions {} to {} changed nothing: their changes are lost", last + 1, change.revision - 1);
            tally.fail(Violation::new("revision-gap", detail).revision(last + 1).revision(change.revision));
        }
        last = last.max(change.revision);
    }
}

/// Whether an operation must stand in real time: it is linearizable, and its revision is its own.
fn ordered(op: &Op) -> bool {
    match &op.ask {
        Ask::Do(Step::Range(range)) => !range.serializable,
        Ask::Lease(LeaseAsk::KeepAlive { .. } | LeaseAsk::Remaining { .. }) => false,
        Ask::Txn { success, failure, .. } if op.ask.is_read_only() => {
            // A transaction that only reads serializably is answered locally.
            let serializable = |step: &Step| matches!(step, Step::Range(range) if range.serializable);
            let mut steps = success.iter().chain(failure).peekable();
            steps.peek().is_none() || !steps.all(serializable)
        }
        _ => true,
    }
}

/// Whether an operation is promised to stand in real time.
pub(super) fn is_linearizable(op: &Op) -> bool {
    ordered(op)
}

/// Whether an answer says that something was changed.
pub(crate) fn is_write(answer: &Answer) -> bool {
    explain::claims_to_write(answer)
}

/// For each operation: the operation with the largest revision among those that had ended when it began.
fn bounds(history: &History) -> Vec<Option<(usize, Point)>> {
    let ops = &history.ops;
    let mut calls: Vec<usize> = (0..ops.len()).collect();
    calls.sort_by_key(|i| ops[*i].call);
    // An operation of unknown outcome has no end: it constrains nobody, but is constrained by those that ended before it began.
    let mut returns: Vec<(usize, i64)> = (0..ops.len()).filter_map(|i| Some((i, ops[i].answer.revision()?))).collect();
    returns.sort_by_key(|(i, _)| ops[*i].ret);
    let mut returned = returns.into_iter().peekable();
    let mut latest: Option<(usize, Point)> = None;
    let mut bounds = vec![None; ops.len()];
    for call in calls {
        while let Some((done, revision)) = returned.next_if(|(i, _)| ops[*i].ret < ops[call].call) {
            let point = 2 * revision + 1;
            if latest.is_none_or(|(_, best)| best < point) {
                latest = Some((done, point));
            }
        }
        bounds[call] = latest;
    }
    bounds
}

/// The point of an operation. `None`: it has none, or never happened.
fn point(i: usize, op: &Op, log: &Log<'_>, made: &BTreeMap<usize, i64>) -> Option<Point> {
    if let Some(revision) = made.get(&i) {
        return Some(2 * revision);
    }
    let revision = op.answer.revision()?;
    let writes = match (&op.ask, &op.answer) {
        (Ask::Lease(LeaseAsk::Revoke { id }), _) => log.lease_end(revision) == Some(*id),
        _ => explain::claims_to_write(&op.answer),
    };
    Some(if writes { 2 * revision } else { 2 * revision + 1 })
}

fn real_time(history: &History, log: &Log<'_>, bounds: &[Option<(usize, Point)>], made: &BTreeMap<usize, i64>, tally: &mut Tally) {
    for (i, op) in history.ops.iter().enumerate().filter(|(_, op)| ordered(op)) {
        let (Some(at), Some((before, bound))) = (point(i, op, log, made), bounds[i]) else { continue };
        tally.saw("real-time pairs");
        if at < bound {
            let before = &history.ops[before];
            let detail = format!(
                "stands at revision {}, but began after an operation had ended that was answered at revision {}: {}",
                at / 2,
                bound / 2,
                brief(op)
            );
            tally.fail(Violation::new("real-time", detail).op(op).op(before).revision(at / 2).revision(bound / 2));
        }
    }
}

/// An operation in a line.
pub fn brief(op: &Op) -> String {
    format!(
        "client {} at member {}, {} to {}: {:?} -> {:?}",
        op.client,
        op.member,
        super::clock(op.call),
        super::clock(op.ret),
        op.ask,
        op.answer
    )
}

/// Changes in a line.
fn brief_changes(changes: &[&Change]) -> String {
    let one = |c: &&Change| match &c.value {
        Some(value) => format!("{} = {value:?}", c.key),
        None => format!("{} deleted", c.key),
    };
    changes.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// Whether an answer may hide that something was done.
fn is_unknown(op: &Op) -> bool {
    matches!(op.answer, Answer::Unknown { .. })
}

#[cfg(test)]
mod tests;
