//! Judges a history. One file for each check, its exact predicate in the table [`CHECKS`] and above the code.
//!
//! A check passes, fails with a counterexample, or was *vacuous*: it saw none of the situations that it is about, and says which. A
//! vacuous check proves nothing, and a run whose plan expects it is incomplete.
//!
//! No check imports the state machine: what is right is written down a second time here, naively ([`log`], and [`model`] for the search
//! that tests the certificate).

pub mod backwards;
pub mod cli;
pub mod durable;
pub mod hashes;
pub mod kube;
pub mod lease;
pub mod linear;
pub mod log;
pub mod model;
pub mod raft;
#[cfg(test)]
mod random;
pub mod serial;
mod table;
pub mod times;
pub mod watch;
pub mod wgl;

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use crate::history::{At, History, Op};

pub use table::{CHECKS, Check, Judge};

/// Something that must not happen, and did: the counterexample.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Violation {
    /// Which rule was broken: one of [`Violation::CHECKS`] or the name of a check.
    pub check: &'static str,
    /// What was seen, in words.
    pub detail: String,
    /// The operations involved, the accused one first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ops: Vec<Op>,
    /// The revisions involved.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub revisions: Vec<i64>,
    /// Times involved.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub times: Vec<At>,
    /// Facts of the state before and after, each in a line.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub state: Vec<String>,
}

impl Violation {
    /// The rules that are finer than the checks that own them, and those that a world judges itself.
    pub const CHECKS: &'static [(&'static str, &'static str)] = table::RULES;

    /// A violation of a rule.
    pub fn new(check: &'static str, detail: impl Into<String>) -> Self {
        debug_assert!(
            Self::CHECKS.iter().any(|(name, _)| *name == check) || CHECKS.iter().any(|c| c.name == check),
            "{check} is in the table"
        );
        Self { check, detail: detail.into(), ops: Vec::new(), revisions: Vec::new(), times: Vec::new(), state: Vec::new() }
    }

    /// With an operation.
    #[must_use]
    pub fn op(mut self, op: &Op) -> Self {
        self.ops.push(op.clone());
        self
    }

    /// With a revision.
    #[must_use]
    pub fn revision(mut self, revision: i64) -> Self {
        self.revisions.push(revision);
        self
    }

    /// With a time.
    #[must_use]
    pub fn at(mut self, at: At) -> Self {
        self.times.push(at);
        self
    }

    /// With a line about the state.
    #[must_use]
    pub fn state(mut self, line: impl Into<String>) -> Self {
        self.state.push(line.into());
        self
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.check, self.detail)
    }
}

/// What came of a check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It saw what it is about, and all was well.
    Pass,
    /// It found these.
    Fail(Vec<Violation>),
    /// It saw nothing of these, which it needs to say anything.
    Vacuous(Vec<&'static str>),
}

/// The judgement of one check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Outcome {
    /// Which check.
    pub check: &'static str,
    /// What came of it.
    pub verdict: Verdict,
    /// How often it saw what.
    pub counts: BTreeMap<&'static str, u64>,
}

impl Outcome {
    /// What it found.
    pub fn violations(&self) -> &[Violation] {
        match &self.verdict {
            Verdict::Fail(found) => found,
            Verdict::Pass | Verdict::Vacuous(_) => &[],
        }
    }
}

/// Counts what a check sees while it works.
#[derive(Debug, Default)]
pub struct Tally {
    counts: BTreeMap<&'static str, u64>,
    found: Vec<Violation>,
}

/// More violations of one check than this are not kept: the first ones explain the rest.
const KEEP: usize = 200;

impl Tally {
    /// Saw one of these.
    pub fn saw(&mut self, what: &'static str) {
        self.add(what, 1);
    }

    /// Saw so many of these.
    pub fn add(&mut self, what: &'static str, count: usize) {
        *self.counts.entry(what).or_default() += count as u64;
    }

    /// Found this.
    pub fn fail(&mut self, violation: Violation) {
        if self.found.len() < KEEP {
            self.found.push(violation);
        }
    }

    /// How many violations were found so far.
    pub fn failures(&self) -> usize {
        self.found.len()
    }

    /// The judgement. `needs`: what must have been seen at least once.
    pub fn finish(mut self, check: &'static str, needs: &[&'static str]) -> Outcome {
        let missing: Vec<_> = needs.iter().copied().filter(|what| self.counts.get(what).is_none_or(|count| *count == 0)).collect();
        for what in &missing {
            self.counts.insert(what, 0);
        }
        let verdict = match (self.found.is_empty(), missing.is_empty()) {
            (false, _) => Verdict::Fail(self.found),
            (true, true) => Verdict::Pass,
            (true, false) => Verdict::Vacuous(missing),
        };
        Outcome { check, verdict, counts: self.counts }
    }
}

/// Runs every check that a history can be judged by, in the order of the table.
pub fn judge(history: &History) -> Vec<Outcome> {
    CHECKS
        .iter()
        .filter_map(|check| match check.judge {
            Judge::History(judge) => {
                let outcome = judge(history);
                debug_assert_eq!(outcome.check, check.name);
                Some(outcome)
            }
            Judge::World => {
                let found: Vec<Violation> = history
                    .alarms
                    .iter()
                    .filter(|(name, _)| name == check.name)
                    .map(|(_, detail)| Violation::new(check.name, detail.clone()))
                    .collect();
                let verdict = if found.is_empty() { Verdict::Pass } else { Verdict::Fail(found) };
                Some(Outcome { check: check.name, verdict, counts: BTreeMap::new() })
            }
            Judge::NotYet(_) => None,
        })
        .collect()
}

/// A number of nanoseconds, as people read it.
pub fn clock(at: At) -> String {
    format!("{:.3} s", at as f64 / 1e9)
}
