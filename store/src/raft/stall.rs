//! A leader whose disk stalls hands leadership over: everything that it appends has to be synced by a quorum, which it can slow down as
//! much as stop, and its followers hear its heartbeats all the same and would wait for ever.
//!
//! A sync that takes longer than half an election timeout is slow. Three slow ones within half a minute, or one that has not ended after
//! a whole election timeout, are enough. A cluster in which every disk is slow must not hand leadership round in circles: a member that
//! has just handed it over keeps it the next time, for a while.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use kontiki_base::env::Mono;

use kontiki_proto::store::{Contact, HandOver, Health};
use openraft::Instant as _;
use openraft::async_runtime::WatchReceiver as _;

use super::node::Inner;
use super::{Role, admin};
use crate::log::SyncMeter;

/// Slow syncs that are enough, and the time within which they count.
const SLOW_SYNCS: usize = 3;
const WITHIN: Duration = Duration::from_secs(30);

/// After handing over, a member that leads again keeps on for so long.
const REST: Duration = Duration::from_secs(60);

/// Decides when a disk is too slow to lead.
#[derive(Debug, Default)]
struct Judge {
    /// When syncs were slow.
    slow: VecDeque<Mono>,
    /// Slow syncs that the meter had counted.
    counted: u64,
    rests_until: Mono,
}

impl Judge {
    /// Whether to hand over now. `counted` is the number of slow syncs so far, `stalled` how long the present one has taken.
    fn decide(&mut self, now: Mono, counted: u64, stalled: Duration, budget: Duration) -> bool {
        for _ in self.counted..counted {
            self.slow.push_back(now);
        }
        self.counted = counted;
        while self.slow.pop_front_if(|at| now.since(*at) > WITHIN).is_some() {}
        let enough = self.slow.len() >= SLOW_SYNCS || stalled >= budget * 2;
        if !enough || now < self.rests_until {
            return false;
        }
        self.slow.clear();
        self.rests_until = now.plus(REST);
        true
    }

    /// Forgets what happened while somebody else led.
    fn idle(&mut self, counted: u64) {
        self.slow.clear();
        self.counted = counted;
    }
}

/// Watches the log's syncs while this member leads.
pub(super) async fn run(inner: Arc<Inner>, meter: Arc<SyncMeter>) {
    let budget = meter.budget();
    let mut judge = Judge::default();
    loop {
        let before = inner.now();
        inner.env.sleep(budget / 2).await;
        if inner.stopped() {
            return;
        }
        let (counted, stalled) = meter.read();
        note_health(&inner, counted, stalled, inner.now().since(before).saturating_sub(budget / 2));
        let status = inner.status.borrow().clone();
        if status.role != Role::Leader || status.members.iter().filter(|m| !m.learner).count() < 2 {
            judge.idle(counted);
        } else if judge.decide(inner.now(), counted, stalled, budget) {
            tracing::warn!(slow = counted, stalled_ms = stalled.as_millis(), "the log's disk stalls: leadership is handed over");
            admin::leave_leadership(&inner, HandOver::StallingDisk).await;
        }
    }
}

/// Notes what a leader's disk and contacts are like, for who asks later why it leads no more.
fn note_health(inner: &Inner, slow_syncs: u64, stalled: Duration, paused: Duration) {
    let metrics = inner.raft.metrics();
    let metrics = metrics.borrow_watched();
    let Some(heartbeat) = &metrics.heartbeat else { return };
    let millis = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
    let others = heartbeat.iter().filter(|(id, _)| **id != inner.id.get());
    let contacts = others.map(|(id, at)| Contact { member_id: *id, ago_ms: at.as_ref().map(|at| millis(at.elapsed())) }).collect();
    inner.chronicle.health(Health { slow_syncs, stalled_ms: millis(stalled), paused_ms: millis(paused), contacts });
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUDGET: Duration = Duration::from_millis(350);

    fn at(ms: u64) -> Mono {
        Mono(Duration::from_millis(100_000 + ms))
    }

    #[test]
    fn three_slow_syncs_or_a_long_one_are_enough_and_then_there_is_a_rest() {
        let mut judge = Judge::default();
        assert!(!judge.decide(at(0), 2, Duration::ZERO, BUDGET));
        assert!(!judge.decide(at(31_000), 3, Duration::ZERO, BUDGET), "the first two are long ago");
        assert!(judge.decide(at(32_000), 5, Duration::ZERO, BUDGET));
        assert!(!judge.decide(at(33_000), 9, BUDGET * 3, BUDGET), "it has just handed over");
        assert!(judge.decide(at(93_000), 9, BUDGET * 2, BUDGET), "one that does not end");
        let mut judge = Judge::default();
        judge.decide(at(0), 2, Duration::ZERO, BUDGET);
        judge.idle(7);
        assert!(!judge.decide(at(1), 7, BUDGET, BUDGET), "what was slow while others led does not count");
    }
}
