//! Serializable reads, and reads as of an old revision.
//!
//! Predicate: the answer names a revision R (or was asked for one); what it shows is the state after the changes up to R exactly, and R was
//! there when the read ended: no write of R or before was asked for only later.

use super::linear::{brief, evaluate};
use super::log::Log;
use super::times::{Times, definite};
use super::{Outcome, Tally, Violation};
use crate::history::{Answer, Ask, History, Step};

/// The check `serializable`.
pub fn judge(history: &History) -> Outcome {
    let mut tally = Tally::default();
    let log = Log::new(history.changes.iter().filter(|c| !c.is_registry()));
    let times = Times::new(history);
    for op in history.ops.iter().filter(|op| definite(&op.answer)) {
        let (Ask::Do(Step::Range(range)), Answer::Did { revision, step }) = (&op.ask, &op.answer) else { continue };
        if range.at != 0 {
            tally.saw("reads of old revisions");
        }
        if !range.serializable {
            continue;
        }
        tally.saw("serializable reads");
        let expected = evaluate(&op.ask, &log, *revision).map(|done| done.steps);
        if expected.as_deref() != Some(std::slice::from_ref(step)) {
            let detail = format!("the state at {revision} answers {expected:?}: {}", brief(op));
            tally.fail(Violation::new("serializable", detail).op(op).revision(*revision));
        }
        if let Some(asked) = times.not_yet((*revision).max(range.at), op.ret) {
            let detail = format!("shows revision {revision}, part of which was asked for only at {}: {}", super::clock(asked), brief(op));
            tally.fail(Violation::new("serializable", detail).op(op).revision(*revision).at(asked));
        }
    }
    tally.finish("serializable", &["serializable reads"])
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;
    use crate::history::{Change, Op, RangeAsk, Seen, StepAnswer};

    fn read(call: u64, revision: i64, at: i64, kvs: Vec<Seen>) -> Op {
        let ask = Ask::Do(Step::Range(RangeAsk { key: "k".into(), at, serializable: true, ..RangeAsk::default() }));
        let count = kvs.len() as i64;
        let answer = Answer::Did { revision, step: StepAnswer::Range { kvs, more: false, count } };
        Op { client: 0, member: 0, call, ret: call + 1, ask, answer }
    }

    fn seen(value: &str, modified: i64, version: i64) -> Seen {
        Seen { key: "k".into(), value: value.into(), create: 2, modified, version, lease: 0 }
    }

    fn verdict(read: Op) -> Verdict {
        let put = |call, value: &str, revision| Op {
            client: 1,
            member: 0,
            call,
            ret: call + 1,
            ask: Ask::Put { key: "k".into(), value: value.into() },
            answer: Answer::Written { revision },
        };
        let changes = vec![Change::put(2, "k", "a"), Change::put(3, "k", "b")];
        judge(&History { ops: vec![put(0, "a", 2), put(10, "b", 3), read], changes, ..History::default() }).verdict
    }

    #[test]
    fn an_old_state_is_fine_and_a_mixed_or_future_one_is_not() {
        assert_eq!(verdict(read(20, 2, 0, vec![seen("a", 2, 1)])), Verdict::Pass);
        assert_eq!(verdict(read(20, 3, 2, vec![seen("a", 2, 1)])), Verdict::Pass, "as of revision 2");
        assert!(matches!(verdict(read(20, 2, 0, vec![seen("b", 3, 2)])), Verdict::Fail(_)));
        assert!(matches!(verdict(read(20, 3, 0, vec![])), Verdict::Fail(_)));
        assert!(matches!(verdict(read(5, 3, 0, vec![seen("b", 3, 2)])), Verdict::Fail(_)), "it was not there yet");
    }
}
