//! Time for leases: only the leader has it. It keeps a clock for each lease in memory, answers keep-alives, and proposes to revoke what
//! has run out. A new leader gives every lease its full time again and an election timeout on top: a lease may live longer than it was
//! granted, never shorter.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kontiki_base::env::Mono;
use kontiki_base::ids::{LeaseId, Term};
use kontiki_base::mutant;
use kontiki_mvcc::lease::Lease;
use tokio::sync::Notify;

/// A revocation that did not come to pass is proposed again after this.
const RETRY: Duration = Duration::from_secs(3);

/// What a keep-alive found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// Renewed: it lives for so many seconds again.
    Renewed(i64),
    /// It has run out, and its revocation is on the way.
    Expired,
    /// There is no such lease.
    Missing,
    /// This member does not lead, or has not read the leases yet.
    NotReady,
}

/// What is known of a lease's time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remaining {
    /// Whole seconds left.
    pub ttl: i64,
    /// Seconds that it was granted.
    pub granted: i64,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    ttl: i64,
    expiry: Mono,
    /// When the loop looks at it next: its expiry, or a retry of its revocation.
    look: Mono,
}

/// The clocks of one term.
#[derive(Debug)]
struct Primary {
    term: Term,
    leases: BTreeMap<LeaseId, Entry>,
    order: BTreeSet<(Mono, LeaseId)>,
    /// `Some` until the leases have been read: what was revoked meanwhile, and must not come back.
    reading: Option<BTreeSet<LeaseId>>,
}

/// The clocks of all leases; empty on a follower.
#[derive(Debug, Default)]
pub struct LeaseClock {
    primary: Mutex<Option<Primary>>,
    changed: Notify,
}

impl LeaseClock {
    fn lock(&self) -> MutexGuard<'_, Option<Primary>> {
        // The maps are whole between any two statements that could panic.
        self.primary.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what a batch did to leases: on the apply thread. `None` is a revocation.
    pub fn applied(&self, leases: &[(LeaseId, Option<i64>)], now: Mono) {
        if leases.is_empty() {
            return;
        }
        if let Some(primary) = self.lock().as_mut() {
            for (id, ttl) in leases {
                match ttl {
                    Some(ttl) => primary.set(*id, *ttl, now.plus(seconds(*ttl))),
                    None => primary.revoked(*id),
                }
            }
        }
        self.changed.notify_waiters();
    }

    /// This member leads now. From here on, batches are heeded; [`LeaseClock::fill`] must follow, with leases read after this.
    pub fn begin(&self, term: Term) {
        *self.lock() = Some(Primary { term, leases: BTreeMap::new(), order: BTreeSet::new(), reading: Some(BTreeSet::new()) });
    }

    /// The leases that were there when the term began; each is given its full time and `extra`.
    pub fn fill(&self, term: Term, leases: &[Lease], now: Mono, extra: Duration) {
        if let Some(primary) = self.lock().as_mut().filter(|primary| primary.term == term) {
            let gone = primary.reading.take().unwrap_or_default();
            for lease in leases.iter().filter(|lease| !gone.contains(&lease.id)) {
                if !primary.leases.contains_key(&lease.id) {
                    let left = mutant!("M59", seconds(lease.ttl) + extra, seconds(lease.ttl) / 4);
                    primary.set(lease.id, lease.ttl, now.plus(left));
                }
            }
        }
        self.changed.notify_waiters();
    }

    /// This member does not lead any more.
    pub fn end(&self) {
        *self.lock() = None;
        self.changed.notify_waiters();
    }

    /// The term whose clocks these are.
    pub fn term(&self) -> Option<Term> {
        self.lock().as_ref().map(|primary| primary.term)
    }

    /// Gives a lease its full time again.
    pub fn renew(&self, id: LeaseId, now: Mono) -> Renewal {
        let mut guard = self.lock();
        let Some(primary) = guard.as_mut().filter(|primary| primary.reading.is_none()) else { return Renewal::NotReady };
        match primary.leases.get(&id).copied() {
            None => Renewal::Missing,
            Some(entry) if entry.expiry <= now => Renewal::Expired,
            Some(entry) => {
                mutant!("M60", primary.set(id, entry.ttl, now.plus(seconds(entry.ttl))), ());
                Renewal::Renewed(entry.ttl)
            }
        }
    }

    /// How long a lease still lives. An expired one is gone, even if its revocation is still on the way.
    ///
    /// # Errors
    /// `Err(())` has the meaning of [`Renewal::NotReady`].
    #[allow(clippy::result_unit_err, reason = "there is nothing more to say")]
    pub fn remaining(&self, id: LeaseId, now: Mono) -> Result<Option<Remaining>, ()> {
        let guard = self.lock();
        let primary = guard.as_ref().filter(|primary| primary.reading.is_none()).ok_or(())?;
        Ok(primary.leases.get(&id).filter(|entry| entry.expiry > now).map(|entry| {
            let ttl = i64::try_from(entry.expiry.since(now).as_secs()).unwrap_or(i64::MAX);
            Remaining { ttl, granted: entry.ttl }
        }))
    }

    /// All leases by expiry; `None` if this member keeps no clocks.
    pub fn by_expiry(&self) -> Option<Vec<LeaseId>> {
        let guard = self.lock();
        let primary = guard.as_ref().filter(|primary| primary.reading.is_none())?;
        let mut leases: Vec<_> = primary.leases.iter().map(|(id, entry)| (entry.expiry, *id)).collect();
        leases.sort_unstable();
        Some(leases.into_iter().map(|(_, id)| id).collect())
    }

    /// At most `limit` leases that have run out, with the term under which that is so. They come again after a while.
    pub fn expired(&self, now: Mono, limit: usize) -> Option<(Term, Vec<LeaseId>)> {
        let mut guard = self.lock();
        let primary = guard.as_mut().filter(|primary| primary.reading.is_none())?;
        let due: Vec<_> = primary.order.iter().take_while(|(look, _)| *look <= now).take(limit).copied().collect();
        for (look, id) in &due {
            primary.order.remove(&(*look, *id));
            if let Some(entry) = primary.leases.get_mut(id) {
                entry.look = now.plus(RETRY);
                primary.order.insert((entry.look, *id));
            }
        }
        Some((primary.term, due.into_iter().map(|(_, id)| id).collect()))
    }

    /// When there is something to do next.
    pub fn next_look(&self) -> Option<Mono> {
        self.lock().as_ref().and_then(|primary| primary.order.first().map(|(look, _)| *look))
    }

    /// Completes at the next change of any lease or of leadership. Must be made before looking.
    pub fn changed(&self) -> impl Future<Output = ()> + '_ {
        self.changed.notified()
    }
}

impl Primary {
    fn set(&mut self, id: LeaseId, ttl: i64, expiry: Mono) {
        if let Some(old) = self.leases.insert(id, Entry { ttl, expiry, look: expiry }) {
            self.order.remove(&(old.look, id));
        }
        self.order.insert((expiry, id));
    }

    fn revoked(&mut self, id: LeaseId) {
        mutant!("M62", return);
        if let Some(old) = self.leases.remove(&id) {
            self.order.remove(&(old.look, id));
        }
        if let Some(gone) = &mut self.reading {
            gone.insert(id);
        }
    }
}

fn seconds(ttl: i64) -> Duration {
    Duration::from_secs(u64::try_from(ttl).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(ms: u64) -> Mono {
        Mono(Duration::from_millis(ms))
    }

    const fn id(n: i64) -> LeaseId {
        LeaseId::new(n)
    }

    fn leading(leases: &[Lease]) -> LeaseClock {
        let clock = LeaseClock::default();
        clock.begin(Term::new(1));
        clock.fill(Term::new(1), leases, at(0), Duration::ZERO);
        clock
    }

    #[test]
    fn a_lease_runs_out_no_earlier_than_its_time_and_is_revoked_until_that_works() {
        let clock = leading(&[Lease { id: id(1), ttl: 2 }]);
        assert_eq!(clock.expired(at(1999), 9), Some((Term::new(1), vec![])));
        assert_eq!(clock.expired(at(2000), 9), Some((Term::new(1), vec![id(1)])));
        assert_eq!(clock.expired(at(2001), 9), Some((Term::new(1), vec![])), "on the way");
        assert_eq!(clock.renew(id(1), at(2001)), Renewal::Expired, "too late, whatever becomes of the revocation");
        assert_eq!(clock.expired(at(5001), 9), Some((Term::new(1), vec![id(1)])), "once more");
        clock.applied(&[(id(1), None)], at(5002));
        assert_eq!(clock.renew(id(1), at(5003)), Renewal::Missing);
        assert_eq!(clock.next_look(), None);
    }

    #[test]
    fn keeping_alive_gives_the_full_time_again() {
        let clock = leading(&[]);
        clock.applied(&[(id(7), Some(10))], at(1000));
        assert_eq!(clock.remaining(id(7), at(1500)), Ok(Some(Remaining { ttl: 9, granted: 10 })), "whole seconds");
        assert_eq!(clock.renew(id(7), at(9000)), Renewal::Renewed(10));
        assert_eq!(clock.expired(at(18_999), 9).unwrap().1, vec![]);
        assert_eq!(clock.expired(at(19_000), 9).unwrap().1, vec![id(7)]);
        assert_eq!(clock.remaining(id(7), at(19_000)), Ok(None), "gone although its revocation is on the way");
    }

    #[test]
    fn what_happens_while_a_new_leader_reads_the_leases_counts() {
        let clock = LeaseClock::default();
        assert_eq!(clock.renew(id(1), at(0)), Renewal::NotReady, "a follower");
        clock.begin(Term::new(4));
        clock.applied(&[(id(1), None), (id(3), Some(30))], at(10));
        assert_eq!(clock.renew(id(3), at(11)), Renewal::NotReady);
        assert_eq!(clock.expired(at(99_999), 9), None);
        clock.fill(
            Term::new(4),
            &[Lease { id: id(1), ttl: 5 }, Lease { id: id(2), ttl: 5 }, Lease { id: id(3), ttl: 5 }],
            at(20),
            Duration::from_secs(1),
        );
        assert_eq!(clock.renew(id(1), at(30)), Renewal::Missing, "revoked meanwhile");
        assert_eq!(clock.remaining(id(3), at(30)).unwrap().map(|r| r.granted), Some(30), "the newer grant");
        assert_eq!(clock.remaining(id(2), at(20)), Ok(Some(Remaining { ttl: 6, granted: 5 })), "an election timeout on top");
        assert_eq!(clock.by_expiry(), Some(vec![id(2), id(3)]));
        clock.end();
        assert_eq!(clock.remaining(id(2), at(30)), Err(()));
    }

    #[test]
    fn a_term_that_has_passed_fills_nothing() {
        let clock = LeaseClock::default();
        clock.begin(Term::new(5));
        clock.fill(Term::new(4), &[Lease { id: id(1), ttl: 5 }], at(0), Duration::ZERO);
        assert_eq!(clock.renew(id(1), at(1)), Renewal::NotReady);
        assert_eq!(clock.term(), Some(Term::new(5)));
    }
}
