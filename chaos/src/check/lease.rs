//! Leases.
//!
//! Predicates. *Granted*: the TTL is at least what was asked for. *Not early*: a lease with a renewal that was acknowledged does not end
//! before the time at which that renewal was sent, plus the TTL that it was told, unless somebody asked to revoke it; across changes of
//! leader and jumps of the wall clock. A leader measures the TTL on its own clock: while a fault makes a clock run up to a fifth too fast,
//! a sixth of the TTL may be missing. *Whole*: its keys go at one revision (a deletion of only some of them is a change that nobody asked
//! for, see `linearizable`). *For ever*: after its end no renewal or question finds it, and no key is attached to it. *Not late*: it ends at
//! the latest its TTL plus 5 s after its last possible renewal, faults not counted. *Falling*: the remaining time does not grow without a
//! renewal or a new leader.
//!
//! The end of a lease is seen at the revision that deletes its keys; when that was is bounded by what clients were told before and after.

use std::collections::BTreeMap;

use super::linear::{brief, is_linearizable};
use super::log::Log;
use super::times::Times;
use super::{Outcome, Tally, Violation, clock};
use crate::history::{Answer, Ask, At, History, LeaseAsk, Op};

/// A lease may live on for this long: an election, and 2 s.
const LATE: At = 5_000_000_000;

const SECOND: At = 1_000_000_000;

/// What part of a TTL is missing on a clock that runs a fifth too fast, which is the most that the simulation's drift does.
const DRIFT: At = 6;

/// What happened to a lease.
#[derive(Default)]
struct Life<'a> {
    grants: Vec<&'a Op>,
    /// Grants, keepalives and questions that found it.
    found: Vec<(&'a Op, i64)>,
    /// Renewals of unknown outcome, or refused.
    attempts: Vec<&'a Op>,
    /// Attempts to revoke it that may have succeeded.
    revoked: Vec<&'a Op>,
}

impl Life<'_> {
    /// Acknowledged renewals with the TTL that they told: the grant is one.
    fn renewals(&self) -> impl Iterator<Item = (&Op, i64)> {
        self.found.iter().filter(|(op, _)| !matches!(op.ask, Ask::Lease(LeaseAsk::Remaining { .. }))).map(|(op, ttl)| (*op, *ttl))
    }
}

fn lives(history: &History) -> BTreeMap<i64, Life<'_>> {
    let mut lives: BTreeMap<i64, Life<'_>> = BTreeMap::new();
    for op in &history.ops {
        let Ask::Lease(ask) = &op.ask else { continue };
        let life = lives.entry(ask.id()).or_default();
        match (ask, &op.answer) {
            (LeaseAsk::Revoke { .. }, Answer::Refused { .. }) => {}
            (LeaseAsk::Revoke { .. }, _) => life.revoked.push(op),
            (_, Answer::Lease { ttl, .. }) if *ttl > 0 => {
                if matches!(ask, LeaseAsk::Grant { .. }) {
                    life.grants.push(op);
                }
                life.found.push((op, *ttl));
            }
            (LeaseAsk::KeepAlive { .. } | LeaseAsk::Grant { .. }, _) => life.attempts.push(op),
            _ => {}
        }
    }
    lives
}

/// The check `lease`.
pub fn judge(history: &History) -> Outcome {
    let mut tally = Tally::default();
    let log = Log::new(&history.changes);
    let times = Times::new(history);
    let mut ends: BTreeMap<i64, i64> = BTreeMap::new();
    for (revision, _) in log.revisions() {
        if let Some(lease) = log.lease_end(revision) {
            ends.entry(lease).or_insert(revision);
        }
    }
    for (id, life) in lives(history) {
        tally.add("leases granted", life.grants.len());
        for op in &life.grants {
            if let (Ask::Lease(LeaseAsk::Grant { ttl: asked, .. }), Answer::Lease { ttl, .. }) = (&op.ask, &op.answer)
                && ttl < asked
            {
                tally.fail(Violation::new("lease", format!("granted for less than was asked: {}", brief(op))).op(op));
            }
        }
        // An id that was granted twice has two lives that cannot be told apart.
        if life.grants.len() > 1 {
            continue;
        }
        if let Some(end) = ends.get(&id) {
            tally.saw("leases that ended");
            early(id, &life, *end, history, &times, &mut tally);
            attached_later(id, *end, &log, &mut tally);
        }
        after_revocation(id, &life, &mut tally);
        late(id, &life, ends.get(&id).copied(), history, &log, &mut tally);
        growing(id, &life, history, &mut tally);
    }
    tally.finish("lease", &["leases granted", "leases that ended"])
}

fn early(id: i64, life: &Life<'_>, end: i64, history: &History, times: &Times, tally: &mut Tally) {
    let Some(ended_by) = times.there_by(end) else { return };
    let revoked = life.revoked.iter().any(|op| op.call <= ended_by);
    if !revoked {
        tally.saw("leases that expired");
    }
    for (op, ttl) in &life.found {
        if op.call > ended_by {
            let detail = format!("lease {id} had ended at revision {end}, by {}; still {}", clock(ended_by), brief(op));
            tally.fail(Violation::new("lease", detail).op(op).revision(end).at(ended_by));
        }
        let drifting = history.faults.iter().any(|f| f.kind.ends_with("drift") && f.at < ended_by && history.healed(f) > op.call);
        let told = u64::try_from(*ttl).unwrap_or(0).saturating_mul(SECOND);
        let until = op.call.saturating_add(if drifting { told - told / DRIFT } else { told });
        let renewal = !matches!(op.ask, Ask::Lease(LeaseAsk::Remaining { .. }));
        if renewal && !revoked && ended_by < until {
            let detail =
                format!("lease {id} ended at revision {end}, by {}, though it had until {}: {}", clock(ended_by), clock(until), brief(op));
            tally.fail(Violation::new("lease", detail).op(op).revision(end).at(ended_by).at(until));
        }
    }
}

fn attached_later(id: i64, end: i64, log: &Log<'_>, tally: &mut Tally) {
    for (revision, changes) in log.from(end + 1) {
        if let Some(change) = changes.iter().find(|c| c.lease == id) {
            let detail = format!("{:?} is attached at {revision} to lease {id}, which ended at {end}", change.key);
            tally.fail(Violation::new("lease", detail).revision(end).revision(revision));
        }
    }
}

fn after_revocation(id: i64, life: &Life<'_>, tally: &mut Tally) {
    let revoked = life.revoked.iter().filter(|op| matches!(op.answer, Answer::Lease { .. })).min_by_key(|op| op.ret);
    let Some(revoked) = revoked else { return };
    tally.saw("leases revoked");
    for (op, _) in life.found.iter().filter(|(op, _)| op.call > revoked.ret) {
        let detail = format!("lease {id} had been revoked: {}; still {}", brief(revoked), brief(op));
        tally.fail(Violation::new("lease", detail).op(op).op(revoked));
    }
}

/// A lease lives on although nobody renews it.
fn late(id: i64, life: &Life<'_>, end: Option<i64>, history: &History, log: &Log<'_>, tally: &mut Tally) {
    let Some(ttl) = life.renewals().map(|(_, ttl)| ttl).max() else { return };
    let renewed = life.renewals().map(|(op, _)| op.ret).chain(life.attempts.iter().map(|op| op.ret)).max().unwrap_or(0);
    let until = renewed.saturating_add(u64::try_from(ttl).unwrap_or(0).saturating_mul(SECOND)).saturating_add(LATE);
    let disturbed = history.faults.iter().any(|f| f.installed() && history.healed(f).saturating_add(LATE) > renewed && f.at < until);
    if disturbed {
        return;
    }
    // The state as an operation that was asked for after the deadline found it.
    let witness = history.ops.iter().filter(|op| op.call > until && is_linearizable(op));
    for op in witness {
        let Some(revision) = op.answer.revision() else { continue };
        if end.is_some_and(|end| end <= revision) {
            return;
        }
        if let Some(key) = log.attached(id, revision).first() {
            let detail =
                format!("lease {id} had until {}, but its key {key:?} is still there at revision {revision}: {}", clock(until), brief(op));
            tally.fail(Violation::new("lease", detail).op(op).revision(revision).at(until));
        }
        return;
    }
}

/// The remaining time grows by itself.
fn growing(id: i64, life: &Life<'_>, history: &History, tally: &mut Tally) {
    let asked: Vec<_> = life.found.iter().filter(|(op, _)| matches!(op.ask, Ask::Lease(LeaseAsk::Remaining { .. }))).collect();
    let term = |at: At| history.samples.iter().take_while(|s| s.at <= at).map(|s| s.term).max().unwrap_or(0);
    for pair in asked.windows(2) {
        let ((first, before), (second, after)) = (pair[0], pair[1]);
        if second.call < first.ret || after <= before {
            continue;
        }
        let between = |op: &Op| op.ret >= first.call && op.call <= second.ret;
        let renewed = life.renewals().any(|(op, _)| between(op)) || life.attempts.iter().any(|op| between(op));
        let calm = history.faults.iter().all(|f| f.at > second.ret || history.healed(f).saturating_add(LATE) < first.call);
        if !renewed && calm && term(first.call) == term(second.ret) {
            let detail = format!("the time of lease {id} grew from {before} s to {after} s by itself: {}; {}", brief(first), brief(second));
            tally.fail(Violation::new("lease", detail).op(second).op(first));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;
    use crate::history::{Change, Fault};

    fn op(call: u64, ask: LeaseAsk, ttl: i64, revision: i64) -> Op {
        let (call, ret) = (call * SECOND, call * SECOND + 1_000);
        Op { client: 0, member: 0, call, ret, ask: Ask::Lease(ask), answer: Answer::Lease { revision, ttl } }
    }

    fn grant() -> Op {
        op(0, LeaseAsk::Grant { id: 7, ttl: 3 }, 3, 1)
    }

    fn read(call: u64, revision: i64) -> Op {
        let answer = Answer::Read { revision, found: None };
        Op { ask: Ask::Get { key: "q".into() }, answer, ..op(call, LeaseAsk::KeepAlive { id: 0 }, 0, 0) }
    }

    fn verdict(ops: Vec<Op>) -> Verdict {
        let mut changes = vec![Change { lease: 7, ..Change::put(2, "k", "v") }, Change::put(3, "m", "w")];
        if ops.iter().any(|op| op.answer.revision() >= Some(4)) {
            changes.push(Change::delete(4, "k"));
        }
        judge(&History { ops, changes, ..History::default() }).verdict
    }

    fn fails(ops: Vec<Op>) -> bool {
        matches!(verdict(ops), Verdict::Fail(_))
    }

    #[test]
    fn a_lease_ends_in_time() {
        assert_eq!(verdict(vec![grant(), read(4, 4)]), Verdict::Pass);
        assert!(fails(vec![grant(), read(2, 4)]), "early");
        let keep = |at| op(at, LeaseAsk::KeepAlive { id: 7 }, 3, 3);
        assert!(fails(vec![grant(), keep(2), read(4, 4)]), "early: it was renewed");
        assert_eq!(verdict(vec![grant(), keep(2), read(6, 4)]), Verdict::Pass);
        assert!(fails(vec![grant(), read(9, 3)]), "late");
        assert!(matches!(verdict(vec![grant(), read(7, 3)]), Verdict::Vacuous(_)), "not yet late");
    }

    #[test]
    fn a_fast_clock_ends_a_lease_a_sixth_early_and_no_more() {
        let ended_by = |call: At| {
            let outcome = crate::history::FaultOutcome::Installed { proof: "its clock runs ahead".into() };
            let drift = Fault { id: 1, at: 0, kind: "drift".into(), members: vec![0], nodes: Vec::new(), detail: String::new(), outcome };
            let changes = vec![Change { lease: 7, ..Change::put(2, "k", "v") }, Change::put(3, "m", "w"), Change::delete(4, "k")];
            let ops = vec![grant(), Op { call, ret: call + 1_000, ..read(0, 4) }];
            judge(&History { ops, changes, faults: vec![drift], ..History::default() }).verdict
        };
        assert_eq!(ended_by(2_600_000_000), Verdict::Pass);
        assert!(matches!(ended_by(2_400_000_000), Verdict::Fail(_)));
    }

    #[test]
    fn a_dead_lease_stays_dead() {
        let keep = |at| op(at, LeaseAsk::KeepAlive { id: 7 }, 3, 4);
        assert!(fails(vec![grant(), read(4, 4), keep(5)]));
        let revoke = op(1, LeaseAsk::Revoke { id: 7 }, 0, 4);
        assert_eq!(verdict(vec![grant(), revoke.clone(), read(2, 4)]), Verdict::Pass, "somebody asked for it");
        assert!(fails(vec![grant(), revoke, op(2, LeaseAsk::KeepAlive { id: 7 }, 3, 4)]));
    }

    #[test]
    fn less_than_asked_and_growing_by_itself_are_found() {
        assert!(fails(vec![op(0, LeaseAsk::Grant { id: 7, ttl: 3 }, 2, 1)]));
        let left = |at, ttl| op(at, LeaseAsk::Remaining { id: 7 }, ttl, 3);
        assert!(fails(vec![grant(), left(1, 2), left(2, 3)]));
        assert!(!fails(vec![grant(), left(1, 2), op(2, LeaseAsk::KeepAlive { id: 7 }, 3, 3), left(3, 3)]));
    }
}
