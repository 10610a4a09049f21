//! What a member does by itself: it publishes its status, flushes the engine now and then, and lets go of the log behind that.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use kontiki_base::ids::{LogIndex, LogPos, MemberId, Term};
use kontiki_base::invariant::Inv;
use kontiki_base::mutant;
use openraft::ServerState;
use openraft::async_runtime::WatchReceiver as _;

use super::node::Inner;
use super::types;
use super::{RaftStatus, Role};

/// How often the log is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// How often [`RaftStatus`] follows numbers that grow with every write. What it is read for in a hurry (who leads, in which term, who is a
/// member) is there at once.
const NUMBERS_EVERY: Duration = Duration::from_millis(20);

/// Keeps [`RaftStatus`] up to date.
pub(super) async fn publish_status(inner: Arc<Inner>) {
    let mut metrics = inner.raft.metrics();
    let mut applied = inner.applied.clone();
    loop {
        let now = metrics.borrow_watched().clone();
        let fatal = now.running_state.as_ref().err().map(ToString::to_string);
        let ended = fatal.is_some();
        let applied_index = applied.borrow_and_update().index;
        inner.status.send_if_modified(|status| {
            // What has stopped a member stays said.
            let next = describe(&now, status.cluster_id, applied_index, status.fatal.clone().or(fatal));
            let modified = *status != next;
            if (status.term, status.role, status.leader) != (next.term, next.role, next.leader) {
                inner.chronicle.saw(next.term.get(), next.role == Role::Leader, next.leader.map(MemberId::get));
            }
            *status = next;
            modified
        });
        if ended {
            return;
        }
        let mut pause = Some(inner.env.sleep(NUMBERS_EVERY));
        let mut grown = false;
        while pause.is_some() || !grown {
            tokio::select! {
                biased;
                changed = metrics.changed() => match changed {
                    Ok(()) if differs(&metrics.borrow_watched(), &now) => break,
                    Ok(()) => grown = true,
                    Err(_) => return,
                },
                changed = applied.changed() => match changed {
                    Ok(()) => grown = true,
                    Err(_) => return,
                },
                () = async { if let Some(pause) = &mut pause { pause.await } else { std::future::pending().await } } => pause = None,
            }
        }
    }
}

/// Whether more has changed than numbers that grow.
fn differs(a: &openraft::RaftMetrics<types::TypeConfig>, b: &openraft::RaftMetrics<types::TypeConfig>) -> bool {
    let key = |m: &openraft::RaftMetrics<types::TypeConfig>| (m.current_term, m.state, m.current_leader, m.running_state.is_ok());
    key(a) != key(b) || a.membership_config != b.membership_config
}

fn describe(metrics: &openraft::RaftMetrics<types::TypeConfig>, cluster_id: u64, applied: LogIndex, fatal: Option<String>) -> RaftStatus {
    let role = match metrics.state {
        ServerState::Leader => Role::Leader,
        ServerState::Candidate => Role::Candidate,
        ServerState::Learner => Role::Learner,
        ServerState::Follower | ServerState::Shutdown => Role::Follower,
    };
    let matched = metrics.replication.iter().flatten();
    RaftStatus {
        id: MemberId::new(metrics.id),
        cluster_id,
        term: Term::new(metrics.current_term),
        role,
        leader: metrics.current_leader.map(MemberId::new),
        last_index: LogIndex::new(metrics.last_log_index.map_or(0, |i| i + 1)),
        committed: types::pos_or_zero(metrics.local_committed).index,
        applied,
        members: types::members(metrics.membership_config.membership()),
        matched: matched.map(|(id, at)| (MemberId::new(*id), types::pos_or_zero(*at).index)).collect(),
        fatal,
    }
}

/// What decides when to flush and how far to purge.
struct Upkeep {
    flushed_at: kontiki_base::env::Mono,
    flushed_bytes: u64,
    /// How long the log was when: (last index, bytes written).
    samples: VecDeque<(LogIndex, u64)>,
    purged: LogIndex,
}

/// Samples of the log's length that are kept; when there are more, every second one goes.
const SAMPLES: usize = 1024;

pub(super) async fn flush_and_purge(inner: Arc<Inner>) {
    let status = inner.log.status();
    let mut upkeep = Upkeep {
        flushed_at: inner.now(),
        flushed_bytes: 0,
        samples: VecDeque::from([(status.last.index, status.written_bytes)]),
        purged: status.purged.index,
    };
    loop {
        inner.env.sleep(LOOK_EVERY).await;
        if inner.stopped() {
            return;
        }
        inner.transfers.forget(inner.now());
        let status = inner.log.status();
        if upkeep.samples.back().is_none_or(|(index, _)| *index < status.last.index) {
            upkeep.samples.push_back((status.last.index, status.written_bytes));
        }
        upkeep.thin_out();
        let applied = inner.applied.borrow().index;
        let flushed = inner.engine.flushed().index;
        let due = inner.now().since(upkeep.flushed_at) >= inner.timings.flush_every
            || status.written_bytes.saturating_sub(upkeep.flushed_bytes) >= inner.timings.flush_bytes;
        if due {
            upkeep.flushed_at = inner.now();
            upkeep.flushed_bytes = status.written_bytes;
            if flushed < applied {
                match super::machine::flush(inner.engine.clone(), inner.inline).await {
                    // Nothing is lost, the log has it: tried again when it is due again.
                    Err(error) if error.kind() == std::io::ErrorKind::StorageFull => {
                        tracing::warn!(%error, "the state could not be flushed: the disk is full");
                    }
                    // Tells consensus that the log up to there may go.
                    _ => drop(inner.raft.trigger().snapshot().await),
                }
            }
        }
        if let Some(upto) = upkeep.purge_to(flushed, status.written_bytes, inner.timings.keep_log_bytes) {
            purge(&inner, upto).await;
            inner.transfers.let_go_behind(upto);
        }
    }
}

/// Deleted records take so many bytes at least before the engine is asked to give their space back, and this part of all.
const GARBAGE_BYTES: u64 = 64 << 20;
const GARBAGE_PART: u64 = 4;

/// After compacted history has been removed, gives its space back if it is worth it. Writes are not held up: the engine does it on its
/// own threads, at a bounded rate.
pub(super) async fn reclaim(inner: Arc<Inner>) {
    let mut sweeping = inner.sweeping.clone();
    loop {
        let ended = async {
            sweeping.wait_for(|sweeping| *sweeping).await?;
            sweeping.wait_for(|sweeping| !*sweeping).await.map(drop)
        };
        if ended.await.is_err() || inner.stopped() {
            return;
        }
        let engine = inner.engine.clone();
        let worth_it = move || {
            let (size, garbage) = (engine.size(), engine.size().saturating_sub(engine.in_use()));
            if garbage >= GARBAGE_BYTES.max(size / GARBAGE_PART) { engine.reclaim() } else { Ok(()) }
        };
        if let Ok(Err(error)) = super::machine::blocking(inner.inline, worth_it).await {
            tracing::warn!(%error, "space of removed history was not given back");
        }
    }
}

impl Upkeep {
    fn thin_out(&mut self) {
        if self.samples.len() > SAMPLES {
            let mut keep = false;
            self.samples.retain(|_| {
                keep = !keep;
                keep
            });
        }
    }

    /// How far the log may go: it must be flushed, and enough must stay for followers that were away shortly.
    fn purge_to(&mut self, flushed: LogIndex, written: u64, keep: u64) -> Option<LogIndex> {
        let mut upto = None;
        while let Some((index, _)) =
            self.samples.pop_front_if(|(index, bytes)| mutant!("M54", *index <= flushed, true) && written - *bytes >= keep)
        {
            upto = Some(index);
        }
        let upto = upto.filter(|index| *index > self.purged)?;
        self.purged = upto;
        Some(upto)
    }
}

async fn purge(inner: &Inner, upto: LogIndex) {
    let flushed: LogPos = inner.engine.flushed();
    kontiki_base::check!(Inv::PurgeBehindFlush, upto <= flushed.index, "purging up to {upto}, flushed is {flushed:?}");
    drop(inner.raft.trigger().purge_log(upto.get() - 1).await);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn purging_keeps_what_is_not_flushed_and_what_followers_may_need() {
        let samples = (1..=10).map(|i| (LogIndex::new(i * 10), i * 100)).collect();
        let mut upkeep = Upkeep { flushed_at: kontiki_base::env::Mono::default(), flushed_bytes: 0, samples, purged: LogIndex::ZERO };
        assert_eq!(upkeep.purge_to(LogIndex::new(5), 1000, 0), None, "not flushed");
        assert_eq!(upkeep.purge_to(LogIndex::new(1000), 1000, 800), Some(LogIndex::new(20)), "800 bytes stay");
        assert_eq!(upkeep.purge_to(LogIndex::new(45), 1000, 0), Some(LogIndex::new(40)));
        assert_eq!(upkeep.purge_to(LogIndex::new(45), 1000, 0), None, "nothing new");
    }
}
