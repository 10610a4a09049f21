//! Linearizability by search (Wing and Gong; Lowe's memory of visited states): for small histories, and to test the certificate.
//!
//! Tries every order that real time allows, one operation after the other, on the [`Model`]: an operation may come next if it was called
//! before the first of the remaining ones returned. An operation of unknown outcome may come at any time after its call, or never. Each
//! order must explain every answer and produce exactly the changes of the log. Visited pairs of "done so far" and state are not visited
//! again.

use std::collections::BTreeSet;

use super::model::Model;
use crate::history::{Answer, Ask, Change, History, Op};

/// What the search found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// An order: indices into the operations; those that never happened are missing.
    Order(Vec<usize>),
    /// There is none.
    Nothing,
    /// It gave up after so many steps, or the history is too large: nothing is known.
    GaveUp(u64),
}

/// The largest history: what is done fits a word.
pub const MOST_OPS: usize = 128;

struct Search<'a> {
    ops: Vec<(usize, &'a Op)>,
    log: &'a [Change],
    seen: BTreeSet<(u128, Model)>,
    order: Vec<usize>,
    steps: u64,
    most: u64,
}

/// Searches for an order.
pub fn search(history: &History, most_steps: u64) -> Found {
    let happened = |op: &Op| !matches!(op.answer, Answer::Refused { .. }) && !matches!(op.ask, Ask::Lease(_) | Ask::Compact { .. });
    let ops: Vec<(usize, &Op)> = history.ops.iter().enumerate().filter(|(_, op)| happened(op)).collect();
    if ops.len() > MOST_OPS {
        return Found::GaveUp(0);
    }
    let mut search = Search { ops, log: &history.changes, seen: BTreeSet::new(), order: Vec::new(), steps: 0, most: most_steps };
    match search.go(0, &Model::default(), 0) {
        Some(true) => Found::Order(search.order),
        Some(false) => Found::Nothing,
        None => Found::GaveUp(search.steps),
    }
}

impl Search<'_> {
    /// `done`: a bit for each operation; `logged`: how many changes of the log have been produced. `None`: gave up.
    fn go(&mut self, done: u128, state: &Model, logged: usize) -> Option<bool> {
        let open = |i: usize| done & (1 << i) == 0;
        let definite = |op: &Op| !matches!(op.answer, Answer::Unknown { .. });
        if logged == self.log.len() && (0..self.ops.len()).all(|i| !open(i) || !definite(self.ops[i].1)) {
            return Some(true);
        }
        self.steps += 1;
        if self.steps > self.most {
            return None;
        }
        if !self.seen.insert((done, state.clone())) {
            return Some(false);
        }
        let first_return = (0..self.ops.len()).filter(|i| open(*i) && definite(self.ops[*i].1)).map(|i| self.ops[i].1.ret).min();
        for i in 0..self.ops.len() {
            let (index, op) = self.ops[i];
            if !open(i) || first_return.is_some_and(|ret| ret < op.call) {
                continue;
            }
            let mut next = state.clone();
            let (answer, mut changes) = next.run(&op.ask);
            if definite(op) && answer != op.answer {
                continue;
            }
            changes.sort_by(|a, b| a.key.cmp(&b.key));
            let Some(there) = self.log.get(logged..logged + changes.len()) else { continue };
            let mut there: Vec<Change> = there.to_vec();
            there.sort_by(|a, b| a.key.cmp(&b.key));
            let more = self.log.get(logged + changes.len()).is_some_and(|c| !changes.is_empty() && c.revision == next.revision);
            if there != changes || more {
                continue;
            }
            self.order.push(index);
            if self.go(done | 1 << i, &next, logged + changes.len())? {
                return Some(true);
            }
            self.order.pop();
        }
        Some(false)
    }
}
