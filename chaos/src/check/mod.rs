//! Judges a history.

pub mod linear;

use std::fmt;

/// Something that must not happen, and did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which check found it: a name from [`Violation::CHECKS`].
    pub check: &'static str,
    /// What was seen.
    pub detail: String,
}

impl Violation {
    /// Every check, with its exact predicate.
    pub const CHECKS: &'static [(&'static str, &'static str)] = &[
        ("lost-write", "a write acknowledged at revision r is change r of the store, with that value"),
        ("phantom", "every change was asked for by an operation that may have happened"),
        ("twice", "a value is written at most once: an operation whose outcome was unknown happened once or not at all"),
        ("stale-read", "a read at revision R shows the state after the changes up to R, no more and no less"),
        ("wrong-compare", "a compare succeeds if and only if it holds in the state before it"),
        ("real-time", "an operation that began after another had ended stands after it in the order of revisions"),
        ("revision-order", "revisions of changes only grow"),
        ("coverage", "the run did what it claims: faults took effect, writes succeeded between them"),
        ("converge", "after the faults the cluster serves, and the Deployment is complete"),
    ];

    /// A violation of `check`.
    pub fn new(check: &'static str, detail: impl Into<String>) -> Self {
        debug_assert!(Self::CHECKS.iter().any(|(name, _)| *name == check), "{check} is in the table");
        Self { check, detail: detail.into() }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.check, self.detail)
    }
}
