//! Exponential waits: 10 s, doubled each time, at most 300 s; forgotten after 600 s of good conduct.

/// The first wait, milliseconds.
pub const FIRST_MS: i64 = 10_000;
/// The longest wait.
pub const LONGEST_MS: i64 = 300_000;
/// A container that ran this long, or a pull that last failed this long ago, starts over.
pub const FORGET_MS: i64 = 2 * LONGEST_MS;

/// How badly something has been failing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backoff {
    /// The wait that applies after the latest failure; 0 before the first.
    pub delay_ms: i64,
    /// When it was last charged.
    pub charged_ms: i64,
}

impl Backoff {
    /// For something that has failed before, how often is unknown: as after the first time.
    pub fn resumed(at_ms: i64) -> Self {
        Self { delay_ms: FIRST_MS, charged_ms: at_ms }
    }

    /// When the next attempt may be made after a failure at `failed_ms`, which followed `good_ms` of good conduct.
    pub fn ready_at(self, failed_ms: i64, good_ms: i64) -> i64 {
        if good_ms >= FORGET_MS { failed_ms } else { failed_ms.saturating_add(self.delay_ms) }
    }

    /// After the next attempt was made, which followed `good_ms` of good conduct.
    #[must_use]
    pub fn charge(self, now_ms: i64, good_ms: i64) -> Self {
        let forgotten = good_ms >= FORGET_MS || now_ms - self.charged_ms >= FORGET_MS;
        let delay_ms = if forgotten || self.delay_ms == 0 { FIRST_MS } else { (self.delay_ms * 2).min(LONGEST_MS) };
        Self { delay_ms, charged_ms: now_ms }
    }
}

/// `10s`, `2m40s`, `5m0s`: as Go prints durations, which is how events and statuses have it.
pub fn go_duration(ms: i64) -> String {
    let s = ms / 1_000;
    if s < 60 { format!("{s}s") } else { format!("{}m{}s", s / 60, s % 60) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_five_minutes() {
        let mut backoff = Backoff::default();
        let mut now = 0;
        let mut waits = Vec::new();
        for _ in 0..8 {
            let ready = backoff.ready_at(now, 0);
            waits.push((ready - now) / 1_000);
            now = ready;
            backoff = backoff.charge(now, 0);
        }
        assert_eq!(waits, [0, 10, 20, 40, 80, 160, 300, 300]);
    }

    #[test]
    fn good_conduct_is_rewarded() {
        let bad = Backoff { delay_ms: LONGEST_MS, charged_ms: 0 };
        assert_eq!(bad.ready_at(1_000_000, FORGET_MS), 1_000_000);
        assert_eq!(bad.charge(1_000_000, FORGET_MS).delay_ms, FIRST_MS);
        assert_eq!(bad.charge(1, 0).delay_ms, LONGEST_MS);
        assert_eq!(bad.charge(FORGET_MS, 0).delay_ms, FIRST_MS);
    }

    #[test]
    fn durations_read_as_go_prints_them() {
        assert_eq!([10_000, 160_000, 300_000].map(go_duration), ["10s", "2m40s", "5m0s"]);
    }
}
