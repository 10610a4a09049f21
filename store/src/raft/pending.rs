//! Proposals of this member that are under way, until this member applies them.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use kontiki_base::ids::{LogPos, MemberId, Term};
use kontiki_mvcc::Outcome;
use tokio::sync::oneshot;

use super::types::Origin;

/// How a proposal ended without an outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// An entry of a later term was applied: this one is not in the log and never will be.
    NeverApplied,
    /// The state jumped over the place where it could have been: nobody knows here.
    Unknown,
}

type Answer = oneshot::Sender<Result<Vec<Outcome>, Ended>>;

struct Waiting {
    term: Term,
    answer: Answer,
}

#[derive(Default)]
struct Table {
    seq: u64,
    waiting: BTreeMap<u64, Waiting>,
    /// The term of the last applied entry.
    applied: Term,
}

/// The table of proposals under way. Bounded by who calls: the proposer has a bound on what it has in flight.
pub(crate) struct Pending {
    member: MemberId,
    boot: u64,
    table: Mutex<Table>,
}

impl Pending {
    pub(crate) fn new(member: MemberId, boot: u64) -> Self {
        Self { member, boot, table: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers a proposal that can only be appended in `term`.
    pub(crate) fn register(&self, term: Term) -> (Origin, oneshot::Receiver<Result<Vec<Outcome>, Ended>>) {
        let (answer, result) = oneshot::channel();
        let mut table = self.lock();
        table.seq += 1;
        let seq = table.seq;
        if table.applied > term {
            drop(answer.send(Err(Ended::NeverApplied)));
        } else {
            table.waiting.insert(seq, Waiting { term, answer });
        }
        (Origin { member: self.member, boot: self.boot, seq }, result)
    }

    /// Nobody waits any more.
    pub(crate) fn forget(&self, origin: Origin) {
        self.lock().waiting.remove(&origin.seq);
    }

    /// An entry was applied.
    pub(crate) fn applied(&self, at: LogPos, proposal: Option<(Origin, Vec<Outcome>)>) {
        let mut table = self.lock();
        if at.term > table.applied {
            table.applied = at.term;
            let late: Vec<u64> = table.waiting.iter().filter(|(_, w)| w.term < at.term).map(|(seq, _)| *seq).collect();
            for seq in late {
                if let Some(waiting) = table.waiting.remove(&seq) {
                    drop(waiting.answer.send(Err(Ended::NeverApplied)));
                }
            }
        }
        let Some((origin, outcomes)) = proposal else { return };
        if (origin.member, origin.boot) == (self.member, self.boot)
            && let Some(waiting) = table.waiting.remove(&origin.seq)
        {
            drop(waiting.answer.send(Ok(outcomes)));
        }
    }

    /// The state was replaced by one as of `at`.
    pub(crate) fn jumped(&self, at: LogPos) {
        let mut table = self.lock();
        table.applied = table.applied.max(at.term);
        let unknown: Vec<u64> = table.waiting.iter().filter(|(_, w)| w.term <= at.term).map(|(seq, _)| *seq).collect();
        for seq in unknown {
            if let Some(waiting) = table.waiting.remove(&seq) {
                drop(waiting.answer.send(Err(Ended::Unknown)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kontiki_base::ids::LogIndex;

    fn at(term: u64, index: u64) -> LogPos {
        LogPos { term: Term::new(term), index: LogIndex::new(index) }
    }

    #[test]
    fn a_proposal_ends_with_its_outcome_or_with_a_later_term() {
        let pending = Pending::new(MemberId::new(1), 77);
        let (first, mut a) = pending.register(Term::new(2));
        let (_, mut b) = pending.register(Term::new(2));
        let stranger = Origin { boot: 78, ..first };
        pending.applied(at(2, 5), Some((stranger, vec![])));
        assert!(a.try_recv().is_err(), "an earlier life of this member");
        pending.applied(at(2, 6), Some((first, vec![])));
        assert_eq!(a.try_recv().unwrap(), Ok(vec![]));
        pending.applied(at(3, 7), None);
        assert_eq!(b.try_recv().unwrap(), Err(Ended::NeverApplied));
        let (_, mut c) = pending.register(Term::new(2));
        assert_eq!(c.try_recv().unwrap(), Err(Ended::NeverApplied), "its term is over already");
        let (_, mut d) = pending.register(Term::new(3));
        pending.jumped(at(3, 9));
        assert_eq!(d.try_recv().unwrap(), Err(Ended::Unknown));
    }
}
