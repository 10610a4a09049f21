//! Revisions that go back: at a member, and for a client that has written.

use std::collections::BTreeMap;

use super::linear::{brief, is_linearizable, is_write};
use super::{Outcome, Tally, Violation};
use crate::history::{At, History, Op};

/// When members began a new life: by the faults that hit them and by what they said of themselves.
fn lives(history: &History) -> BTreeMap<usize, Vec<At>> {
    let mut lives: BTreeMap<usize, Vec<At>> = BTreeMap::new();
    for fault in history.faults.iter().filter(|f| f.restarts()) {
        for member in &fault.members {
            lives.entry(*member).or_default().extend([fault.at, history.healed(fault)]);
        }
    }
    let mut last: BTreeMap<usize, u32> = BTreeMap::new();
    for sample in &history.samples {
        if last.insert(sample.member, sample.life).is_some_and(|before| before != sample.life) {
            lives.entry(sample.member).or_default().push(sample.at);
        }
    }
    lives.values_mut().for_each(|times| times.sort_unstable());
    lives
}

fn life(lives: &BTreeMap<usize, Vec<At>>, member: usize, at: At) -> usize {
    lives.get(&member).map_or(0, |times| times.partition_point(|t| *t <= at))
}

/// The check `revisions-forward`: of two answers of a member in one life, the second asked for after the first was given, the second does
/// not have the smaller revision.
pub fn judge(history: &History) -> Outcome {
    let mut tally = Tally::default();
    let lives = lives(history);
    let mut of: BTreeMap<(usize, usize), Vec<&Op>> = BTreeMap::new();
    for op in history.ops.iter().filter(|op| op.answer.revision().is_some()) {
        let (begin, end) = (life(&lives, op.member, op.call), life(&lives, op.member, op.ret));
        if begin == end {
            of.entry((op.member, begin)).or_default().push(op);
        }
    }
    for ops in of.values_mut() {
        let mut returns = ops.clone();
        returns.sort_by_key(|op| op.ret);
        ops.sort_by_key(|op| op.call);
        let mut returned = returns.into_iter().peekable();
        let mut best: Option<&Op> = None;
        for op in ops {
            while let Some(done) = returned.next_if(|done| done.ret < op.call) {
                if best.is_none_or(|b| b.answer.revision() < done.answer.revision()) {
                    best = Some(done);
                }
            }
            let Some(before) = best else { continue };
            tally.saw("answers of a member that had answered");
            if op.answer.revision() < before.answer.revision() {
                let detail = format!("{}; this member had answered {}", brief(op), brief(before));
                tally.fail(Violation::new("revisions-forward", detail).op(op).op(before));
            }
        }
    }
    tally.finish("revisions-forward", &["answers of a member that had answered"])
}

/// The check `read-your-writes`.
pub fn read_your_writes(history: &History) -> Outcome {
    let mut tally = Tally::default();
    let lives = lives(history);
    let mut of: BTreeMap<u16, Vec<&Op>> = BTreeMap::new();
    history.ops.iter().for_each(|op| of.entry(op.client).or_default().push(op));
    for ops in of.values() {
        let mut written: Option<&Op> = None;
        // The largest revision that each member has shown this client in its present life.
        let mut shown: BTreeMap<(usize, usize), i64> = BTreeMap::new();
        for op in ops {
            let Some(revision) = op.answer.revision() else { continue };
            let place = (op.member, life(&lives, op.member, op.call));
            if let Some(write) = written.filter(|write| write.ret < op.call) {
                let own = write.answer.revision().unwrap_or_default();
                if is_linearizable(op) || shown.get(&place).is_some_and(|seen| *seen >= own) {
                    tally.saw("reads after a client's own write");
                    if revision < own {
                        let detail = format!("{}; the client had written {}", brief(op), brief(write));
                        tally.fail(Violation::new("read-your-writes", detail).op(op).op(write));
                    }
                }
            }
            let best = shown.entry(place).or_default();
            *best = (*best).max(revision);
            if is_write(&op.answer) {
                written = Some(op);
            }
        }
    }
    tally.finish("read-your-writes", &["reads after a client's own write"])
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;
    use crate::history::{Answer, Ask, Fault, RangeAsk, Step, StepAnswer};

    fn write(at: At, member: usize, revision: i64) -> Op {
        let ask = Ask::Put { key: "k".into(), value: format!("{revision}") };
        Op { client: 0, member, call: at, ret: at + 1, ask, answer: Answer::Written { revision } }
    }

    fn stale(at: At, member: usize, revision: i64) -> Op {
        let ask = Ask::Do(Step::Range(RangeAsk { serializable: true, ..RangeAsk::default() }));
        let step = StepAnswer::Range { kvs: vec![], more: false, count: 0 };
        Op { client: 0, member, call: at, ret: at + 1, ask, answer: Answer::Did { revision, step } }
    }

    fn history(ops: Vec<Op>) -> History {
        History { ops, ..History::default() }
    }

    #[test]
    fn a_member_does_not_go_back_unless_it_began_anew() {
        let back = vec![write(0, 1, 5), stale(10, 1, 4)];
        assert!(matches!(judge(&history(back.clone())).verdict, Verdict::Fail(_)));
        assert_eq!(judge(&history(vec![write(0, 1, 5), stale(10, 1, 5), stale(20, 2, 4)])).verdict, Verdict::Pass);
        let fault = Fault { at: 5, kind: "power-loss".into(), members: vec![1], ..Fault::default() };
        let restarted = History { faults: vec![fault], ..history(back) };
        assert!(matches!(judge(&restarted).verdict, Verdict::Vacuous(_)));
    }

    #[test]
    fn a_client_sees_what_it_wrote() {
        let linear = |at, revision| Op {
            ask: Ask::Get { key: "k".into() },
            answer: Answer::Read { revision, found: None },
            ..write(at, 2, revision)
        };
        assert!(matches!(read_your_writes(&history(vec![write(0, 1, 5), linear(10, 4)])).verdict, Verdict::Fail(_)));
        assert!(matches!(read_your_writes(&history(vec![write(0, 1, 5), stale(10, 1, 4)])).verdict, Verdict::Fail(_)));
        assert!(
            matches!(read_your_writes(&history(vec![write(0, 1, 5), stale(10, 2, 4)])).verdict, Verdict::Vacuous(_)),
            "it asked another"
        );
        assert_eq!(read_your_writes(&history(vec![write(0, 1, 5), linear(10, 5)])).verdict, Verdict::Pass);
    }
}
