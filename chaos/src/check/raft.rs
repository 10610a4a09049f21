//! Consensus, as members tell of it.
//!
//! Predicate: at most one member leads in a term; a member's term never decreases, whatever happened to it, unless it lost its disk or
//! became another member; its applied index and its revision never decrease within a life; it has applied nothing that it does not know to be committed.

use std::collections::BTreeMap;

use super::{Outcome, Tally, Violation, clock};
use crate::history::{History, Role, Sample};

/// The check `raft`.
pub fn judge(history: &History) -> Outcome {
    let mut tally = Tally::default();
    let mut leaders: BTreeMap<u64, &Sample> = BTreeMap::new();
    let mut last: BTreeMap<usize, &Sample> = BTreeMap::new();
    for sample in history.samples.iter().filter(|s| s.role != Role::Down) {
        tally.saw("samples of members");
        if sample.role == Role::Leader {
            let first = leaders.entry(sample.term).or_insert(sample);
            if first.member != sample.member {
                let detail = format!(
                    "members {} (at {}) and {} (at {}) both led in term {}",
                    first.member,
                    clock(first.at),
                    sample.member,
                    clock(sample.at),
                    sample.term
                );
                tally.fail(Violation::new("raft", detail).at(first.at).at(sample.at));
            }
        }
        if sample.committed != 0 && sample.applied > sample.committed {
            let detail = format!("member {} applied {} and knows {} to be committed", sample.member, sample.applied, sample.committed);
            tally.fail(Violation::new("raft", detail).at(sample.at));
        }
        if let Some(before) = last.insert(sample.member, sample) {
            forward(history, before, sample, &mut tally);
        }
    }
    tally.add("terms with a leader", leaders.len());
    tally.finish("raft", &["samples of members", "terms with a leader"])
}

fn forward(history: &History, before: &Sample, now: &Sample, tally: &mut Tally) {
    let within = |at| before.at <= at && at <= now.at;
    // What stands in its place is another member.
    let replaced = before.id != 0 && before.id != now.id;
    let wiped = replaced || history.faults.iter().any(|f| f.wipes() && f.members.contains(&now.member) && within(f.at));
    let restarted =
        before.life != now.life || history.faults.iter().any(|f| f.restarts() && f.members.contains(&now.member) && within(f.at));
    let mut back = |what: &str, from: u64, to: u64| {
        if to < from {
            let detail =
                format!("member {}: its {what} went from {from} at {} back to {to} at {}", now.member, clock(before.at), clock(now.at));
            tally.fail(Violation::new("raft", detail).at(before.at).at(now.at));
        }
    };
    if !wiped {
        back("term", before.term, now.term);
    }
    if !wiped && !restarted {
        back("applied index", before.applied, now.applied);
        back("revision", before.revision.max(0).unsigned_abs(), now.revision.max(0).unsigned_abs());
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;
    use crate::history::Fault;

    fn sample(at: u64, member: usize, role: Role, term: u64, applied: u64) -> Sample {
        Sample { at, member, role, term, applied, ..Sample::default() }
    }

    fn verdict(samples: Vec<Sample>, faults: Vec<Fault>) -> Verdict {
        judge(&History { samples, faults, ..History::default() }).verdict
    }

    #[test]
    fn one_leader_a_term_and_nothing_goes_back() {
        let l = |at, member, term| sample(at, member, Role::Leader, term, 9);
        assert_eq!(verdict(vec![l(0, 0, 1), l(5, 1, 2), l(6, 0, 3)], vec![]), Verdict::Pass);
        assert!(matches!(verdict(vec![l(0, 0, 1), l(5, 1, 1)], vec![]), Verdict::Fail(_)), "two in a term");
        let f = |at, term, applied| sample(at, 0, Role::Follower, term, applied);
        let power = Fault { at: 5, kind: "power-loss".into(), members: vec![0], ..Fault::default() };
        let wipe = Fault { kind: "wipe".into(), ..power.clone() };
        assert!(matches!(verdict(vec![l(0, 1, 4), f(1, 4, 9), f(9, 3, 9)], vec![power.clone()]), Verdict::Fail(_)), "the vote was lost");
        assert_eq!(verdict(vec![l(0, 1, 4), f(1, 4, 9), f(9, 3, 9)], vec![wipe]), Verdict::Pass);
        assert!(matches!(verdict(vec![l(0, 1, 4), f(1, 4, 9), f(9, 4, 8)], vec![]), Verdict::Fail(_)), "applied went back");
        assert_eq!(verdict(vec![l(0, 1, 4), f(1, 4, 9), f(9, 4, 8)], vec![power]), Verdict::Pass);
        let named = |id, sample: Sample| Sample { id, ..sample };
        let life = |id| vec![l(0, 1, 4), named(7, f(1, 4, 9)), named(id, f(9, 0, 0))];
        assert_eq!(verdict(life(8), vec![]), Verdict::Pass, "another member is in its place");
        assert!(matches!(verdict(life(7), vec![]), Verdict::Fail(_)), "the same member forgot its term");
        let ahead = Sample { committed: 8, ..f(9, 4, 9) };
        assert!(matches!(verdict(vec![l(0, 1, 4), ahead], vec![]), Verdict::Fail(_)));
    }
}
