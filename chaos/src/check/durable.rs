//! Nothing that was acknowledged is lost.
//!
//! Predicate: in what each member has at the end (read from itself, after everything was healed), every key is as the changes up to that
//! revision left it; and every write that was acknowledged, in particular before a member lost power, was killed or lost its disk, is there
//! or was superseded by a change with a larger revision.

use std::collections::BTreeMap;

use super::linear::{brief, is_write};
use super::log::Log;
use super::{Outcome, Tally, Violation};
use crate::history::{Final, History, Seen};

/// The check `durable`.
pub fn judge(history: &History) -> Outcome {
    let mut tally = Tally::default();
    let log = Log::new(history.changes.iter().filter(|c| !c.is_registry()));
    let hard: Vec<_> = history.faults.iter().filter(|f| f.installed() && f.restarts()).collect();
    tally.add("losses of power or process", hard.len());
    let last = hard.iter().map(|f| f.at).max().unwrap_or(0);
    tally.add("members read at the end", history.finals.len());
    for end in &history.finals {
        compare(end, &log, &mut tally);
    }
    for op in history.ops.iter().filter(|op| is_write(&op.answer)) {
        let Some(revision) = op.answer.revision() else { continue };
        tally.saw("acknowledged writes");
        if op.ret < last {
            tally.saw("acknowledged before a loss");
        }
        for end in &history.finals {
            if end.revision < revision {
                let detail = format!("member {} is at revision {} at the end, before {}", end.member, end.revision, brief(op));
                tally.fail(Violation::new("durable", detail).op(op).revision(revision));
            }
        }
    }
    tally.finish("durable", &["acknowledged before a loss", "members read at the end"])
}

fn compare(end: &Final, log: &Log<'_>, tally: &mut Tally) {
    let there: BTreeMap<&str, &Seen> = end.kvs.iter().map(|kv| (kv.key.as_str(), kv)).collect();
    let wanted: BTreeMap<&str, Seen> =
        log.range("", "\0", end.revision).into_iter().filter_map(|(key, v)| Some((key, v.seen(key)?))).collect();
    for (key, want) in &wanted {
        if there.get(key).copied() != Some(want) {
            let detail =
                format!("member {} has {:?} at the end, the changes up to {} make {want:?}", end.member, there.get(key), end.revision);
            tally.fail(Violation::new("durable", detail).revision(want.modified).revision(end.revision));
        }
    }
    for (key, kv) in there.into_iter().filter(|(key, _)| !wanted.contains_key(key)) {
        let detail = format!("member {} has {kv:?} at the end, but by the changes up to {} there is no {key:?}", end.member, end.revision);
        tally.fail(Violation::new("durable", detail).revision(kv.modified).revision(end.revision));
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;
    use crate::history::{Answer, Ask, Change, Fault, FaultOutcome, Op};

    fn history(kvs: Vec<Seen>, revision: i64) -> History {
        let ask = Ask::Put { key: "k".into(), value: "a".into() };
        let outcome = FaultOutcome::Installed { proof: "gone".into() };
        History {
            ops: vec![Op { client: 0, member: 0, call: 0, ret: 1, ask, answer: Answer::Written { revision: 2 } }],
            changes: vec![Change::put(2, "k", "a")],
            faults: vec![Fault { at: 5, kind: "power-loss".into(), outcome, ..Fault::default() }],
            finals: vec![Final { member: 0, revision, kvs }],
            ..History::default()
        }
    }

    #[test]
    fn what_was_acknowledged_is_there() {
        let seen = Seen { key: "k".into(), value: "a".into(), create: 2, modified: 2, version: 1, lease: 0 };
        assert_eq!(judge(&history(vec![seen.clone()], 2)).verdict, Verdict::Pass);
        assert!(matches!(judge(&history(vec![], 2)).verdict, Verdict::Fail(_)), "lost");
        assert!(matches!(judge(&history(vec![], 1)).verdict, Verdict::Fail(_)), "the whole revision is lost");
        assert!(matches!(judge(&history(vec![Seen { value: "b".into(), ..seen.clone() }], 2)).verdict, Verdict::Fail(_)), "another");
        let more = Seen { key: "l".into(), ..seen.clone() };
        assert!(matches!(judge(&history(vec![seen, more], 2)).verdict, Verdict::Fail(_)), "too much");
        assert!(matches!(judge(&History::default()).verdict, Verdict::Vacuous(_)));
    }
}
