//! Who made each change: every revision of the log belongs to exactly one operation that may have happened, and does all that it does.

use std::collections::{BTreeMap, BTreeSet};

use super::super::log::Log;
use super::super::{Tally, Violation};
use super::{Point, brief, brief_changes, explain, is_unknown};
use crate::history::{Answer, Ask, Change, History, Op, Step};

/// The revisions of operations of unknown outcome that turned out to have happened.
///
/// Values are unique, so a revision that writes one names its operation. A revision that only deletes is that of an acknowledged operation,
/// or the end of a lease, or it is matched with an operation of unknown outcome that would have deleted just that and began early enough:
/// a maximum matching, so that none is accused while another assignment would do.
pub(super) fn attribute(history: &History, log: &Log<'_>, bounds: &[Option<(usize, Point)>], tally: &mut Tally) -> BTreeMap<usize, i64> {
    let mut acknowledged: BTreeMap<i64, usize> = BTreeMap::new();
    let mut by_value: BTreeMap<&str, usize> = BTreeMap::new();
    for (i, op) in history.ops.iter().enumerate() {
        values(&op.ask, |value| {
            by_value.insert(value, i);
        });
        let Some(revision) = op.answer.revision().filter(|_| explain::claims_to_write(&op.answer)) else { continue };
        if let Some(other) = acknowledged.insert(revision, i) {
            let other = &history.ops[other];
            let detail = format!("two operations claim revision {revision}: {}; and {}", brief(op), brief(other));
            tally.fail(Violation::new("phantom", detail).op(op).op(other).revision(revision));
        }
    }
    let mut made: BTreeMap<usize, i64> = BTreeMap::new();
    let mut nameless = Vec::new();
    for (revision, changes) in log.revisions() {
        if acknowledged.contains_key(&revision) {
            repeated(history, changes, revision, &by_value, tally);
            continue;
        }
        match changes.iter().find_map(|c| c.value.as_deref()) {
            Some(value) => {
                let maker = by_value.get(value).copied();
                named(history, log, revision, maker, &mut made, tally);
            }
            None if log.lease_end(revision).is_some() => tally.saw("ends of leases"),
            None => nameless.push(revision),
        }
    }
    match_deletions(history, log, bounds, &nameless, &mut made, tally);
    tally.add("unknown outcomes that happened", made.len());
    made
}

fn values<'a>(ask: &'a Ask, mut each: impl FnMut(&'a str)) {
    match ask {
        Ask::Put { value, .. } | Ask::Cas { value, .. } | Ask::Do(Step::Put { value, .. }) => each(value),
        Ask::Txn { success, failure, .. } => {
            for step in success.iter().chain(failure) {
                if let Step::Put { value, .. } = step {
                    each(value);
                }
            }
        }
        _ => {}
    }
}

/// A revision that an operation acknowledges must not hold values of another operation: that would be a repetition.
fn repeated(history: &History, changes: &[&Change], revision: i64, by_value: &BTreeMap<&str, usize>, tally: &mut Tally) {
    for change in changes {
        let Some(op) = change.value.as_deref().and_then(|v| by_value.get(v)).map(|i| &history.ops[*i]) else { continue };
        if op.answer.revision().is_some_and(|r| r != revision && explain::claims_to_write(&op.answer)) {
            let detail = format!("{:?} is written at {revision} again: {}", change.value, brief(op));
            tally.fail(Violation::new("twice", detail).op(op).revision(revision));
        }
    }
}

fn named(history: &History, log: &Log<'_>, revision: i64, maker: Option<usize>, made: &mut BTreeMap<usize, i64>, tally: &mut Tally) {
    let changes = log.at(revision);
    let Some((i, op)) = maker.map(|i| (i, &history.ops[i])) else {
        let detail = format!("nobody wrote [{}], which the store has at {revision}", brief_changes(changes));
        tally.fail(Violation::new("phantom", detail).revision(revision));
        return;
    };
    if !is_unknown(op) {
        let twice = op.answer.revision().is_some() && explain::claims_to_write(&op.answer);
        let (rule, what) = if twice { ("twice", "is there again") } else { ("phantom", "was refused or changed nothing, but is there") };
        let detail = format!("[{}] at {revision} {what}: {}", brief_changes(changes), brief(op));
        tally.fail(Violation::new(rule, detail).op(op).revision(revision));
    } else if let Some(before) = made.insert(i, revision) {
        let detail = format!("[{}] was written at {before} and at {revision}: {}", brief_changes(changes), brief(op));
        tally.fail(Violation::new("twice", detail).op(op).revision(before).revision(revision));
    } else if !explain::evaluate(&op.ask, log, revision - 1).is_some_and(|done| explain::matches(&done, changes)) {
        let detail = format!("[{}] at {revision} is not what this does there: {}", brief_changes(changes), brief(op));
        tally.fail(Violation::new("phantom", detail).op(op).revision(revision));
    }
}

/// Matches revisions that only delete with operations of unknown outcome.
fn match_deletions(
    history: &History,
    log: &Log<'_>,
    bounds: &[Option<(usize, Point)>],
    revisions: &[i64],
    made: &mut BTreeMap<usize, i64>,
    tally: &mut Tally,
) {
    let unknown: Vec<usize> =
        (0..history.ops.len()).filter(|i| is_unknown(&history.ops[*i]) && !made.contains_key(i) && may_delete(&history.ops[*i])).collect();
    let candidates: Vec<Vec<usize>> = revisions
        .iter()
        .map(|revision| {
            let early = |i: &usize| bounds[*i].is_none_or(|(_, bound)| bound < 2 * revision);
            let fits = |i: &usize| {
                let done = explain::evaluate(&history.ops[*i].ask, log, revision - 1);
                done.is_some_and(|done| explain::matches(&done, log.at(*revision)))
                    || explain::revokes(&history.ops[*i].ask).is_some_and(|id| log.lease_end(*revision) == Some(id))
            };
            unknown.iter().copied().filter(|i| early(i) && fits(i)).collect()
        })
        .collect();
    let mut taken: BTreeMap<usize, usize> = BTreeMap::new();
    for (n, revision) in revisions.iter().enumerate() {
        if augment(n, &candidates, &mut taken, &mut BTreeSet::new()) {
            continue;
        }
        let detail = format!("nobody asked for [{}] at {revision}", brief_changes(log.at(*revision)));
        tally.fail(Violation::new("phantom", detail).revision(*revision));
    }
    made.extend(taken.into_iter().map(|(op, n)| (op, revisions[n])));
}

/// Finds an operation for revision `n`, moving others if needed (Kuhn's algorithm).
fn augment(n: usize, candidates: &[Vec<usize>], taken: &mut BTreeMap<usize, usize>, tried: &mut BTreeSet<usize>) -> bool {
    for op in &candidates[n] {
        if !tried.insert(*op) {
            continue;
        }
        if taken.get(op).copied().is_none_or(|other| augment(other, candidates, taken, tried)) {
            taken.insert(*op, n);
            return true;
        }
    }
    false
}

fn may_delete(op: &Op) -> bool {
    debug_assert!(matches!(op.answer, Answer::Unknown { .. }));
    match &op.ask {
        Ask::Delete { .. } | Ask::Do(Step::Delete { .. }) => true,
        Ask::Txn { success, failure, .. } => success.iter().chain(failure).any(|step| matches!(step, Step::Delete { .. })),
        ask => explain::revokes(ask).is_some(),
    }
}
