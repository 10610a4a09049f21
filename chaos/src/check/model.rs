//! A store of a few keys, written as naively as possible: the model that the search and the generator of histories run on.
//!
//! It shares nothing with the certificate's way of computing answers (which looks into the log): each is the other's test.

use std::collections::BTreeMap;

use super::log::in_range;
use crate::history::{Answer, Ask, Change, Compare, CompareOp, CompareTarget, RangeAsk, Seen, Step, StepAnswer};

/// The state of the store.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Model {
    /// The revision: 1 when empty.
    pub revision: i64,
    keys: BTreeMap<String, (String, i64, i64, i64, i64)>,
}

impl Default for Model {
    fn default() -> Self {
        Self { revision: 1, keys: BTreeMap::new() }
    }
}

impl Model {
    fn seen(&self, key: &str) -> Option<Seen> {
        let (value, create, modified, version, lease) = self.keys.get(key)?.clone();
        Some(Seen { key: key.into(), value, create, modified, version, lease })
    }

    fn living(&self, start: &str, end: &str) -> Vec<Seen> {
        self.keys.keys().filter(|key| in_range(key, start, end)).filter_map(|key| self.seen(key)).collect()
    }

    fn put(&mut self, key: &str, value: &str, lease: i64, changes: &mut Vec<Change>) {
        let at = self.revision + 1;
        let (create, version) = self.keys.get(key).map_or((at, 1), |old| (old.1, old.3 + 1));
        self.keys.insert(key.into(), (value.into(), create, at, version, lease));
        changes.push(Change { revision: at, key: key.into(), value: Some(value.into()), create, version, lease });
    }

    fn delete(&mut self, key: &str, changes: &mut Vec<Change>) {
        self.keys.remove(key);
        changes.push(Change::delete(self.revision + 1, key));
    }

    fn step(&mut self, step: &Step, changes: &mut Vec<Change>) -> StepAnswer {
        match step {
            Step::Put { key, value, lease, prev } => {
                let before = if *prev { self.seen(key) } else { None };
                self.put(key, value, *lease, changes);
                StepAnswer::Put { prev: before }
            }
            Step::Delete { key, end, prev } => {
                let doomed = self.living(key, end);
                doomed.iter().for_each(|kv| self.delete(&kv.key, changes));
                StepAnswer::Delete { deleted: doomed.len() as i64, prevs: if *prev { doomed } else { vec![] } }
            }
            Step::Range(ask) => self.range(ask),
        }
    }

    fn range(&self, ask: &RangeAsk) -> StepAnswer {
        let mut kvs = self.living(&ask.key, &ask.end);
        let count = kvs.len() as i64;
        if ask.count_only {
            return StepAnswer::Range { kvs: vec![], more: false, count };
        }
        let more = ask.limit > 0 && count > ask.limit;
        if more {
            kvs.truncate(ask.limit as usize);
        }
        if ask.keys_only {
            kvs.iter_mut().for_each(|kv| kv.value = String::new());
        }
        StepAnswer::Range { kvs, more, count }
    }

    fn holds(&self, compare: &Compare) -> bool {
        let there = self.keys.get(&compare.key);
        let number = |n: i64, operand: i64| match compare.op {
            CompareOp::Equal => n == operand,
            CompareOp::Greater => n > operand,
            CompareOp::Less => n < operand,
            CompareOp::NotEqual => n != operand,
        };
        match &compare.target {
            CompareTarget::Create(operand) => number(there.map_or(0, |kv| kv.1), *operand),
            CompareTarget::Mod(operand) => number(there.map_or(0, |kv| kv.2), *operand),
            CompareTarget::Version(operand) => number(there.map_or(0, |kv| kv.3), *operand),
            CompareTarget::Lease(operand) => number(there.map_or(0, |kv| kv.4), *operand),
            CompareTarget::Value(operand) => there.is_some_and(|(value, ..)| match compare.op {
                CompareOp::Equal => value == operand,
                CompareOp::Greater => value > operand,
                CompareOp::Less => value < operand,
                CompareOp::NotEqual => value != operand,
            }),
        }
    }

    /// Carries an operation out: its answer, and what it changed. Reads as of an old revision, leases and compactions are not its business.
    pub fn run(&mut self, ask: &Ask) -> (Answer, Vec<Change>) {
        let mut changes = Vec::new();
        let mut answer = match ask {
            Ask::Get { key } => Answer::Read { revision: 0, found: self.keys.get(key).map(|kv| (kv.0.clone(), kv.2)) },
            Ask::Put { key, value } => {
                self.put(key, value, 0, &mut changes);
                Answer::Written { revision: 0 }
            }
            Ask::Cas { key, expect, value } => {
                if self.keys.get(key).map_or(0, |kv| kv.2) == *expect {
                    self.put(key, value, 0, &mut changes);
                    Answer::Written { revision: 0 }
                } else {
                    Answer::CompareFailed { revision: 0 }
                }
            }
            Ask::Delete { key } => {
                if self.keys.contains_key(key) {
                    self.delete(key, &mut changes);
                    Answer::Written { revision: 0 }
                } else {
                    Answer::NothingDeleted { revision: 0 }
                }
            }
            Ask::Do(step) => Answer::Did { revision: 0, step: self.step(step, &mut changes) },
            Ask::Txn { compare, success, failure } => {
                let succeeded = compare.iter().all(|c| self.holds(c));
                let branch = if succeeded { success } else { failure };
                let steps = branch.iter().map(|step| self.step(step, &mut changes)).collect();
                Answer::Txn { revision: 0, succeeded, steps }
            }
            Ask::Lease(_) | Ask::Compact { .. } => Answer::Refused { why: "not of this model".into() },
        };
        self.revision += i64::from(!changes.is_empty());
        match &mut answer {
            Answer::Written { revision }
            | Answer::Read { revision, .. }
            | Answer::CompareFailed { revision }
            | Answer::NothingDeleted { revision }
            | Answer::Did { revision, .. }
            | Answer::Txn { revision, .. } => *revision = self.revision,
            _ => {}
        }
        (answer, changes)
    }
}
