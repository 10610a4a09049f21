//! The answer of an operation, computed again from the log at the revision that it names.

use std::collections::BTreeMap;

use super::super::log::{Log, Version};
use super::super::{Tally, Violation};
use super::{brief, brief_changes};
use crate::history::{Answer, Ask, Change, Compare, CompareOp, CompareTarget, History, LeaseAsk, Op, RangeAsk, Seen, Step, StepAnswer};

/// What an operation does on a state.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in super::super) struct Done<'a> {
    /// Which branch a transaction takes; `true` for single steps.
    pub(in super::super) succeeded: bool,
    /// What its steps answer.
    pub(in super::super) steps: Vec<StepAnswer>,
    /// What it changes: value (`None`: deleted) and lease, by key.
    pub(in super::super) changes: BTreeMap<&'a str, (Option<&'a str>, i64)>,
}

/// A key on top of the log: as the steps so far left it.
struct Top<'a, 'l> {
    log: &'l Log<'a>,
    /// The state that it starts on.
    base: i64,
    changes: BTreeMap<&'a str, (Option<&'a str>, i64)>,
}

impl<'a> Top<'a, '_> {
    fn get(&self, key: &str, at: i64) -> Option<Seen> {
        let before = self.log.get(key, if at == 0 { self.base } else { at });
        match self.changes.get(key).filter(|_| at == 0) {
            None => before.and_then(|v| v.seen(key)),
            Some((value, lease)) => {
                let revision = self.base + 1;
                let (create, version) = before.map_or((revision, 1), |v| (v.create, v.version + 1));
                Version { revision, value: *value, create, version, lease: *lease }.seen(key)
            }
        }
    }

    fn range(&self, ask: &RangeAsk) -> Vec<Seen> {
        let base = if ask.at == 0 { self.base } else { ask.at };
        let mut keys: Vec<&str> = self.log.range(&ask.key, &ask.end, base).into_iter().map(|(key, _)| key).collect();
        if ask.at == 0 {
            keys.extend(self.changes.keys().filter(|key| super::super::log::in_range(key, &ask.key, &ask.end)));
            keys.sort_unstable();
            keys.dedup();
        }
        keys.into_iter().filter_map(|key| self.get(key, ask.at)).collect()
    }

    fn step(&mut self, step: &'a Step) -> StepAnswer {
        match step {
            Step::Put { key, value, lease, prev } => {
                let before = self.get(key, 0).filter(|_| *prev);
                self.changes.insert(key, (Some(value), *lease));
                StepAnswer::Put { prev: before }
            }
            Step::Range(ask) => range_answer(ask, self.range(ask)),
            Step::Delete { key, end, prev } => {
                let ask = RangeAsk { key: key.clone(), end: end.clone(), ..RangeAsk::default() };
                let doomed = self.range(&ask);
                for seen in &doomed {
                    // The key's text lives in the log or in the steps before: both outlive this.
                    let known = self.changes.get_key_value(seen.key.as_str()).map(|(key, _)| *key);
                    let key = known.or_else(|| self.log.range(&seen.key, "", self.base).first().map(|(key, _)| *key));
                    self.changes.insert(key.expect("a key that was found is known"), (None, 0));
                }
                let deleted = i64::try_from(doomed.len()).unwrap_or(i64::MAX);
                StepAnswer::Delete { deleted, prevs: if *prev { doomed } else { Vec::new() } }
            }
        }
    }

    fn holds(&self, compare: &Compare) -> bool {
        let found = self.get(&compare.key, 0);
        let there = found.clone().unwrap_or_default();
        let order = match &compare.target {
            CompareTarget::Version(n) => there.version.cmp(n),
            CompareTarget::Create(n) => there.create.cmp(n),
            CompareTarget::Mod(n) => there.modified.cmp(n),
            CompareTarget::Lease(n) => there.lease.cmp(n),
            CompareTarget::Value(value) => match found {
                Some(found) => found.value.as_str().cmp(value),
                None => return false,
            },
        };
        match compare.op {
            CompareOp::Equal => order.is_eq(),
            CompareOp::Greater => order.is_gt(),
            CompareOp::Less => order.is_lt(),
            CompareOp::NotEqual => order.is_ne(),
        }
    }
}

/// What a range answers that found these, as the asker wants them.
pub(in super::super) fn range_answer(ask: &RangeAsk, mut kvs: Vec<Seen>) -> StepAnswer {
    let count = i64::try_from(kvs.len()).unwrap_or(i64::MAX);
    let limit = usize::try_from(ask.limit).unwrap_or(0);
    let more = !ask.count_only && limit > 0 && kvs.len() > limit;
    if more {
        kvs.truncate(limit);
    }
    if ask.count_only {
        kvs.clear();
    }
    if ask.keys_only {
        kvs.iter_mut().for_each(|kv| kv.value.clear());
    }
    StepAnswer::Range { kvs, more, count }
}

/// Carries out an operation on the state at `base`. `None`: it is not about keys.
pub(in super::super) fn evaluate<'a>(ask: &'a Ask, log: &Log<'a>, base: i64) -> Option<Done<'a>> {
    let mut top = Top { log, base, changes: BTreeMap::new() };
    let (succeeded, steps) = match ask {
        Ask::Do(step) => (true, vec![top.step(step)]),
        Ask::Txn { compare, success, failure } => {
            let succeeded = compare.iter().all(|c| top.holds(c));
            let branch = if succeeded { success } else { failure };
            (succeeded, branch.iter().map(|step| top.step(step)).collect())
        }
        Ask::Put { key, value } => {
            top.changes.insert(key, (Some(value), 0));
            (true, Vec::new())
        }
        Ask::Cas { key, expect, value } => {
            let succeeded = top.get(key, 0).map_or(0, |seen| seen.modified) == *expect;
            if succeeded {
                top.changes.insert(key, (Some(value), 0));
            }
            (succeeded, Vec::new())
        }
        Ask::Delete { key } => {
            if top.get(key, 0).is_some() {
                top.changes.insert(key, (None, 0));
            }
            (true, Vec::new())
        }
        Ask::Get { .. } => (true, Vec::new()),
        Ask::Lease(_) | Ask::Compact { .. } => return None,
    };
    Some(Done { succeeded, steps, changes: top.changes })
}

/// Whether what the store has at a revision is what an operation does.
pub(in super::super) fn matches(done: &Done<'_>, changes: &[&Change]) -> bool {
    done.changes.len() == changes.len()
        && changes
            .iter()
            .all(|c| done.changes.get(c.key.as_str()).is_some_and(|(value, lease)| *value == c.value.as_deref() && *lease == c.lease))
}

/// Whether an answer says that something was changed.
pub(super) fn claims_to_write(answer: &Answer) -> bool {
    let wrote = |step: &StepAnswer| match step {
        StepAnswer::Put { .. } => true,
        StepAnswer::Delete { deleted, .. } => *deleted > 0,
        StepAnswer::Range { .. } => false,
    };
    match answer {
        Answer::Written { .. } => true,
        Answer::Did { step, .. } => wrote(step),
        Answer::Txn { steps, .. } => steps.iter().any(wrote),
        _ => false,
    }
}

/// Whether steps read as of an explicit revision: their answers do not depend on the state that they run on.
fn explains_itself(answer: &Answer) -> bool {
    matches!(answer, Answer::Unknown { .. } | Answer::Refused { .. } | Answer::Lease { .. } | Answer::Compacted { .. })
}

/// The answer of one operation is explained by the changes.
pub(super) fn op(op: &Op, log: &Log<'_>, tally: &mut Tally) {
    if explains_itself(&op.answer) {
        if let Answer::Unknown { .. } = op.answer {
            tally.saw("unknown outcomes");
        }
        return;
    }
    if !super::ordered(op) {
        // Judged by the check `serializable`.
        return;
    }
    let Some(revision) = op.answer.revision() else { return };
    let writes = claims_to_write(&op.answer);
    tally.saw(if writes { "writes" } else { "reads" });
    if simple(op, log, tally) {
        return;
    }
    let base = if writes { revision - 1 } else { revision };
    let Some(done) = evaluate(&op.ask, log, base) else { return };
    if writes && !matches(&done, log.at(revision)) {
        let rule = if log.at(revision).is_empty() || done.changes.is_empty() { "lost-write" } else { "phantom" };
        let rule = if rule == "phantom" && !partly(&done, log.at(revision)) { "lost-write" } else { rule };
        let detail = format!("acknowledged at {revision}, where the store has [{}]: {}", brief_changes(log.at(revision)), brief(op));
        tally.fail(Violation::new(rule, detail).op(op).revision(revision).state(format!("expected: {:?}", done.changes)));
        return;
    }
    if !writes && !done.changes.is_empty() {
        let detail = format!("says that it changed nothing at {revision}, but it would have changed {:?}: {}", done.changes, brief(op));
        tally.fail(Violation::new("stale-read", detail).op(op).revision(revision));
        return;
    }
    answers(op, &done, revision, tally);
}

/// Whether the store has some of what was written: a transaction in two parts.
fn partly(done: &Done<'_>, changes: &[&Change]) -> bool {
    changes.iter().any(|c| done.changes.get(c.key.as_str()).is_some_and(|(value, _)| value.is_some() && *value == c.value.as_deref()))
}

fn answers(op: &Op, done: &Done<'_>, revision: i64, tally: &mut Tally) {
    let (succeeded, steps): (bool, &[StepAnswer]) = match &op.answer {
        Answer::Did { step, .. } => (true, std::slice::from_ref(step)),
        Answer::Txn { succeeded, steps, .. } => (*succeeded, steps),
        _ => return,
    };
    if matches!(op.ask, Ask::Txn { .. }) {
        tally.saw("transactions");
    }
    if succeeded != done.succeeded {
        let detail =
            format!("its compares {}, but it took the other branch: {}", if done.succeeded { "hold" } else { "do not hold" }, brief(op));
        tally.fail(Violation::new("wrong-compare", detail).op(op).revision(revision));
    } else if steps != done.steps {
        let detail = format!("the state at {revision} answers {:?}: {}", done.steps, brief(op));
        tally.fail(Violation::new("stale-read", detail).op(op).revision(revision).state(format!("state: {:?}", done.steps)));
    }
}

/// The short forms, which make up most of a history, without building answers. `false`: it is none.
fn simple(op: &Op, log: &Log<'_>, tally: &mut Tally) -> bool {
    let key = op.ask.key();
    let state = |revision| log.get(key, revision).map(|v| (v.value.unwrap_or_default(), v.revision));
    match &op.answer {
        Answer::Written { revision } => {
            let wanted = op.ask.value();
            let there = log.at(*revision);
            if !matches!(there, [one] if one.key == key && one.value.as_deref() == wanted) {
                let detail = format!("acknowledged at {revision}, where the store has [{}]: {}", brief_changes(there), brief(op));
                tally.fail(Violation::new("lost-write", detail).op(op).revision(*revision));
            }
            if let Ask::Cas { expect, .. } = &op.ask {
                let before = state(revision - 1).map_or(0, |(_, at)| at);
                if before != *expect {
                    let detail = format!("succeeded, though the key was at {before}: {}", brief(op));
                    tally.fail(Violation::new("wrong-compare", detail).op(op).revision(*revision).revision(before));
                }
            }
        }
        Answer::Read { revision, found } => {
            let state = state(*revision);
            if state != found.as_ref().map(|(value, at)| (value.as_str(), *at)) {
                let detail = format!("the state was {state:?}: {}", brief(op));
                tally.fail(Violation::new("stale-read", detail).op(op).revision(*revision).state(format!("{key}: {state:?}")));
            }
        }
        Answer::CompareFailed { revision } => {
            let state = state(*revision).map_or(0, |(_, at)| at);
            if matches!(&op.ask, Ask::Cas { expect, .. } if *expect == state) {
                let detail = format!("failed, though the key was at {state}: {}", brief(op));
                tally.fail(Violation::new("wrong-compare", detail).op(op).revision(*revision));
            }
        }
        Answer::NothingDeleted { revision } => {
            if let Some(state) = state(*revision) {
                let detail = format!("deleted nothing, though there was {state:?}: {}", brief(op));
                tally.fail(Violation::new("stale-read", detail).op(op).revision(*revision).state(format!("{key}: {state:?}")));
            }
        }
        _ => return false,
    }
    true
}

/// What was refused as compacted had been compacted, at least as far as a client had asked by then.
pub(super) fn refusals(history: &History, tally: &mut Tally) {
    let compactions: Vec<(u64, i64)> =
        history.ops.iter().filter_map(|op| if let Ask::Compact { revision } = op.ask { Some((op.call, revision)) } else { None }).collect();
    for op in &history.ops {
        let (Ask::Do(Step::Range(range)), Answer::Refused { why }) = (&op.ask, &op.answer) else { continue };
        if range.at == 0 || !why.contains("compacted") {
            continue;
        }
        tally.saw("compacted reads");
        if !compactions.iter().any(|(call, revision)| *call < op.ret && *revision > range.at) {
            let detail = format!("nobody had asked to compact beyond {}: {}", range.at, brief(op));
            tally.fail(Violation::new("wrong-refusal", detail).op(op).revision(range.at));
        }
    }
}

/// Whether an operation ends a lease, if it happened.
pub(super) fn revokes(ask: &Ask) -> Option<i64> {
    match ask {
        Ask::Lease(LeaseAsk::Revoke { id }) => Some(*id),
        _ => None,
    }
}
