//! When revisions came to be, as far as a history tells: bounds, never guesses.

use crate::history::{Answer, At, History};

use super::linear;

/// Bounds on the time at which each revision was made.
#[derive(Debug)]
pub struct Times {
    /// (time, revision): at this time a revision at least this large existed. Both grow.
    existed: Vec<(At, i64)>,
    /// (time, revision): an acknowledged write of this revision was asked for at this time, and all that were asked for later have larger
    /// ones. Both grow.
    asked: Vec<(At, i64)>,
}

impl Times {
    /// From everything that carries a revision and a time.
    pub fn new(history: &History) -> Self {
        let answers = history.ops.iter().filter_map(|op| Some((op.ret, op.answer.revision()?)));
        let samples = history.samples.iter().map(|s| (s.at, s.revision));
        let mut seen: Vec<(At, i64)> = answers.chain(samples).collect();
        seen.sort_unstable();
        let mut existed: Vec<(At, i64)> = Vec::new();
        for (at, revision) in seen {
            if existed.last().is_none_or(|(_, best)| *best < revision) {
                existed.push((at, revision));
            }
        }
        let mut asked: Vec<(At, i64)> = Vec::new();
        let writes = history.ops.iter().filter(|op| linear::is_write(&op.answer));
        let mut calls: Vec<(At, i64)> = writes.filter_map(|op| Some((op.call, op.answer.revision()?))).collect();
        calls.sort_unstable();
        for (call, revision) in calls.into_iter().rev() {
            if asked.last().is_none_or(|(_, least)| *least > revision) {
                asked.push((call, revision));
            }
        }
        asked.reverse();
        Self { existed, asked }
    }

    /// The earliest time at which a revision is known to have been there.
    pub fn there_by(&self, revision: i64) -> Option<At> {
        let i = self.existed.partition_point(|(_, r)| *r < revision);
        self.existed.get(i).map(|(at, _)| *at)
    }

    /// The largest revision that is known to have been there at a time.
    pub fn at_least(&self, at: At) -> i64 {
        let i = self.existed.partition_point(|(t, _)| *t <= at);
        i.checked_sub(1).map_or(0, |i| self.existed[i].1)
    }

    /// A write of this revision or an earlier one that was asked for only after this time: then the revision was not there yet. Its time.
    pub fn not_yet(&self, revision: i64, at: At) -> Option<At> {
        let i = self.asked.partition_point(|(call, _)| *call <= at);
        self.asked.get(i).filter(|(_, least)| *least <= revision).map(|(call, _)| *call)
    }
}

/// Whether an answer is one that a client can hold the store to.
pub(super) const fn definite(answer: &Answer) -> bool {
    !matches!(answer, Answer::Unknown { .. } | Answer::Refused { .. })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{Ask, Op};

    #[test]
    fn revisions_have_bounds_in_time() {
        let put = |call, ret, revision| Op {
            client: 0,
            member: 0,
            call,
            ret,
            ask: Ask::Put { key: "k".into(), value: String::new() },
            answer: Answer::Written { revision },
        };
        let history = History { ops: vec![put(0, 10, 2), put(5, 30, 4), put(6, 20, 3)], ..History::default() };
        let times = Times::new(&history);
        assert_eq!((times.there_by(3), times.there_by(4), times.there_by(5)), (Some(20), Some(30), None));
        assert_eq!((times.at_least(9), times.at_least(10), times.at_least(29)), (0, 2, 3));
        assert_eq!(times.not_yet(3, 5), Some(6), "revision 3 was asked for at 6");
        assert_eq!(times.not_yet(2, 5), None);
    }
}
