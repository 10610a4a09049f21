//! Compaction by itself: etcd's two modes, and history that is kept for a time and up to a size.
//!
//! Every member samples, and only the leader acts: a new leader goes on where the old one was, without anything being replicated for it.

use std::collections::VecDeque;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use kontiki_base::env::{Env, Mono, Task};
use kontiki_base::ids::Revision;
use kontiki_base::kv::KvError;
use kontiki_mvcc::Command;

use crate::propose::Proposer;
use crate::raft::{Consensus, Role};
use crate::read::Views;
use crate::watch::Hub;

/// etcd's flag `auto-compaction-mode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CompactionMode {
    /// Keep so much time.
    #[default]
    Periodic,
    /// Keep so many revisions.
    Revision,
}

impl FromStr for CompactionMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            // Empty is etcd's word for the default.
            "periodic" | "" => Ok(Self::Periodic),
            "revision" => Ok(Self::Revision),
            other => Err(format!("auto compaction mode {other:?} is neither \"periodic\" nor \"revision\"")),
        }
    }
}

/// What of history goes by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Retention {
    /// Nothing.
    Everything,
    /// What is older than this, as etcd does it: once in each period, or each hour if that is longer.
    Periodic(Duration),
    /// What is more than so many revisions old, looked at every five minutes.
    Revisions(i64),
    /// What is older than this, without a pause; and older halves of it while the store is larger than so many bytes (0: however large).
    History {
        /// So much time can be read and watched.
        keep: Duration,
        /// Unless the store has more bytes than this.
        max_bytes: u64,
    },
}

impl Retention {
    /// What etcd's flags `auto-compaction-mode` and `auto-compaction-retention` mean: a bare number is hours, or revisions; 0 is off.
    ///
    /// # Errors
    /// The text is no duration in Go's form, and no number.
    pub fn parse(mode: CompactionMode, retention: &str) -> Result<Self, String> {
        let retention = retention.trim();
        let number = if retention.is_empty() { Some(0) } else { retention.parse::<i64>().ok() };
        match (mode, number) {
            (_, Some(0)) => Ok(Self::Everything),
            (_, Some(number)) if number < 0 => Err(format!("auto compaction retention {retention} is negative")),
            (CompactionMode::Periodic, Some(hours)) => Ok(Self::Periodic(Duration::from_secs(hours.unsigned_abs().saturating_mul(3600)))),
            (CompactionMode::Revision, Some(revisions)) => Ok(Self::Revisions(revisions)),
            (CompactionMode::Periodic, None) => match go_duration(retention) {
                Some(period) if period.is_zero() => Ok(Self::Everything),
                Some(period) => Ok(Self::Periodic(period)),
                None => Err(format!("auto compaction retention {retention:?} is neither a number of hours nor a duration such as 30m")),
            },
            (CompactionMode::Revision, None) => Err(format!("auto compaction retention {retention:?} is no number of revisions")),
        }
    }
}

/// A duration as Go writes it: `1h30m`, `5m`, `90s`, `1.5h`, `100ms`.
fn go_duration(text: &str) -> Option<Duration> {
    const UNITS: [(&str, f64); 6] = [("ms", 1e-3), ("us", 1e-6), ("ns", 1e-9), ("h", 3600.0), ("m", 60.0), ("s", 1.0)];
    let (mut rest, mut seconds) = (text, 0.0);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        let (unit, factor) = UNITS.iter().find(|(unit, _)| rest[digits..].starts_with(unit))?;
        seconds += number * factor;
        rest = &rest[digits + unit.len()..];
    }
    Duration::try_from_secs_f64(seconds).ok()
}

/// etcd's longest time between two compactions in periodic mode, and the part of it that lies between two samples
/// (`server/etcdserver/api/v3compactor/periodic.go`).
const PERIODIC_AT_MOST: Duration = Duration::from_secs(3600);
const SAMPLES_PER_COMPACTION: u32 = 10;

/// Time between two looks in revision mode (`revision.go`, there).
const REVISION_EVERY: Duration = Duration::from_secs(300);

/// History by time is sampled so often in the time that is kept: it lives at most so much longer than it must.
const SAMPLES_OF_HISTORY: u32 = 60;

/// Decides when to compact, and where.
#[derive(Debug)]
struct Planner {
    retention: Retention,
    samples: VecDeque<Revision>,
    /// The revision of the last compaction, and when that was.
    last: (Revision, Mono),
    /// The first full period has passed.
    begun: bool,
}

impl Planner {
    fn new(retention: Retention, now: Mono) -> Self {
        Self { retention, samples: VecDeque::new(), last: (Revision::ZERO, now), begun: false }
    }

    /// Time between two looks.
    fn pause(&self) -> Option<Duration> {
        let pause = match &self.retention {
            Retention::Everything => return None,
            Retention::Periodic(period) => (*period).min(PERIODIC_AT_MOST) / SAMPLES_PER_COMPACTION,
            Retention::Revisions(_) => REVISION_EVERY,
            Retention::History { keep, .. } => *keep / SAMPLES_OF_HISTORY,
        };
        Some(pause.max(Duration::from_millis(10)))
    }

    /// Notes where the store stands; [`Planner::pause`] later, [`Planner::due`] is asked.
    fn sample(&mut self, revision: Revision) {
        let Some(pause) = self.pause() else { return };
        let window = match &self.retention {
            Retention::Periodic(period) => *period,
            Retention::History { keep, .. } => *keep,
            Retention::Everything | Retention::Revisions(_) => Duration::ZERO,
        };
        let most = usize::try_from(window.as_millis() / pause.as_millis().max(1)).unwrap_or(usize::MAX).saturating_add(1);
        self.samples.push_back(revision);
        while self.samples.len() > most {
            self.samples.pop_front();
        }
    }

    /// The revision to compact at now, if any. `size` is how many bytes the store has.
    fn due(&mut self, now: Mono, revision: Revision, size: u64) -> Option<Revision> {
        let oldest = *self.samples.front()?;
        let at = match self.retention {
            Retention::Everything => return None,
            Retention::Revisions(keep) => Revision(revision.get() - keep),
            Retention::Periodic(period) => {
                let wait = if self.begun { period.min(PERIODIC_AT_MOST) } else { period };
                if now.since(self.last.1) < wait {
                    return None;
                }
                oldest
            }
            Retention::History { max_bytes, .. } if max_bytes > 0 && size > max_bytes => {
                // The older half of what is kept has to go; if that is not enough, the next look takes half of the rest.
                self.samples.drain(..self.samples.len() / 2);
                *self.samples.front()?
            }
            Retention::History { keep, .. } => {
                if !self.begun && now.since(self.last.1) < keep {
                    return None;
                }
                oldest
            }
        };
        (at.get() > 0 && at != self.last.0).then_some(at)
    }

    /// A compaction was carried out, or somebody else was faster.
    fn done(&mut self, at: Revision, now: Mono) {
        self.last = (at, now);
        self.begun = true;
    }
}

/// Starts the task that compacts while this member leads; `None` if nothing is to go by itself.
pub fn run(
    retention: Retention,
    env: &Arc<dyn Env>,
    consensus: Arc<dyn Consensus>,
    proposer: Proposer,
    hub: Arc<Hub>,
    views: Arc<dyn Views>,
) -> Option<Task> {
    let mut planner = Planner::new(retention, env.now_mono());
    let pause = planner.pause()?;
    let clock = Arc::clone(env);
    let compact = async move {
        let status = consensus.status();
        while status.borrow().fatal.is_none() {
            planner.sample(hub.tip().revision);
            clock.sleep(pause).await;
            if status.borrow().role != Role::Leader {
                continue;
            }
            let Some(at) = planner.due(clock.now_mono(), hub.tip().revision, views.size()) else { continue };
            match proposer.propose(Command::Compact { revision: at }, 0).await {
                Ok(_) | Err(KvError::Compacted { .. }) => {
                    tracing::info!(revision = at.get(), "history was compacted");
                    planner.done(at, clock.now_mono());
                }
                Err(error) => tracing::warn!(revision = at.get(), %error, "history could not be compacted yet"),
            }
        }
    };
    Some(env.spawn("store.compactor", Box::pin(compact)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secs(s: u64) -> Mono {
        Mono(Duration::from_secs(s))
    }

    #[test]
    fn flags_mean_what_they_mean_in_etcd() {
        use CompactionMode::{Periodic, Revision as Revisions};
        let hour = Duration::from_secs(3600);
        for (mode, text, expected) in [
            (Periodic, "0", Some(Retention::Everything)),
            (Periodic, "", Some(Retention::Everything)),
            (Periodic, "1", Some(Retention::Periodic(hour))),
            (Periodic, "30m", Some(Retention::Periodic(hour / 2))),
            (Periodic, "1h30m", Some(Retention::Periodic(hour * 3 / 2))),
            (Periodic, "100ms", Some(Retention::Periodic(Duration::from_millis(100)))),
            (Periodic, "0s", Some(Retention::Everything)),
            (Revisions, "1000", Some(Retention::Revisions(1000))),
            (Revisions, "30m", None),
            (Periodic, "soon", None),
            (Periodic, "5", Some(Retention::Periodic(hour * 5))),
            (Periodic, "-1", None),
            (Periodic, "1x", None),
        ] {
            assert_eq!(Retention::parse(mode, text).ok(), expected, "{mode:?} {text:?}");
        }
        assert_eq!("revision".parse(), Ok(Revisions));
        assert_eq!("".parse(), Ok(Periodic));
        assert!("both".parse::<CompactionMode>().is_err());
    }

    /// Runs a planner over `looks` looks, with one revision per second; what it compacts: (second, revision).
    fn run(retention: Retention, looks: u64, size: impl Fn(u64) -> u64) -> Vec<(u64, i64)> {
        let mut planner = Planner::new(retention, secs(0));
        let pause = planner.pause().unwrap().as_secs();
        let mut compacted = Vec::new();
        for look in 0..looks {
            let (before, now) = (look * pause, (look + 1) * pause);
            planner.sample(Revision(before as i64 + 1));
            if let Some(at) = planner.due(secs(now), Revision(now as i64 + 1), size(now)) {
                planner.done(at, secs(now));
                compacted.push((now, at.get()));
            }
        }
        compacted
    }

    #[test]
    fn periodic_mode_waits_a_period_and_then_compacts_to_one_period_ago() {
        let minutes = |m: u64| Retention::Periodic(Duration::from_secs(60 * m));
        // Ten minutes: a sample each minute.
        assert_eq!(run(minutes(10), 25, |_| 0), [(600, 1), (1200, 541)]);
        // Five hours: nothing for five hours, then every hour to what was five hours before.
        let long = run(minutes(300), 75, |_| 0);
        assert_eq!(long[0].0, 5 * 3600);
        assert!(long.windows(2).all(|two| two[1].0 - two[0].0 == 3600), "{long:?}");
        assert!(long.iter().skip(1).all(|(now, at)| (*now as i64 - at - 5 * 3600).abs() <= 360), "{long:?}");
    }

    #[test]
    fn an_idle_store_is_not_compacted_again_and_revision_mode_keeps_so_many() {
        let mut planner = Planner::new(Retention::Revisions(100), secs(0));
        planner.sample(Revision(50));
        assert_eq!(planner.due(secs(300), Revision(50), 0), None);
        planner.sample(Revision(150));
        assert_eq!(planner.due(secs(600), Revision(150), 0), Some(Revision(50)));
        planner.done(Revision(50), secs(600));
        assert_eq!(planner.due(secs(900), Revision(150), 0), None, "nothing was written since");
    }

    #[test]
    fn history_is_kept_for_its_time_unless_the_store_is_too_large() {
        let keep = Retention::History { keep: Duration::from_secs(3600), max_bytes: 1_000 };
        let calm = run(keep.clone(), 180, |_| 0);
        assert_eq!(calm[0].0, 3600, "nothing before the time has passed");
        // A reader of one hour ago is never too late, and history is not kept much longer.
        assert!(calm.iter().all(|(now, at)| (3600..=3720).contains(&(*now as i64 + 1 - at))), "{calm:?}");
        let large = run(keep, 20, |now| if now == 600 { 2_000 } else { 0 });
        assert_eq!(large, [(600, 301)], "the older half");
    }
}
