//! Numbers of a run: latencies in a histogram, medians and ranges over repetitions.

use std::fmt;

/// Bits of a latency that are kept: values are exact to 1/64.
const PRECISION: u32 = 6;

/// Buckets in all: one for each value below 64 ns, then 64 for each power of two.
const BUCKETS: usize = (64 - PRECISION as usize + 1) << PRECISION;

/// Latencies in nanoseconds, exact to 1.6 %, from 1 ns to centuries, in 30 KiB.
#[derive(Clone)]
pub(super) struct Histogram {
    buckets: Vec<u64>,
    count: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: vec![0; BUCKETS], count: 0 }
    }
}

impl fmt::Debug for Histogram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Histogram({} values)", self.count)
    }
}

/// The bucket of a value.
const fn bucket(value: u64) -> usize {
    let octave = (64 - value.leading_zeros()).saturating_sub(PRECISION + 1);
    ((octave as usize) << PRECISION) + (value >> octave) as usize
}

/// The largest value of a bucket.
const fn upper(bucket: usize) -> u64 {
    let octave = (bucket >> PRECISION).saturating_sub(1);
    let first = ((bucket - (octave << PRECISION)) as u64) << octave;
    first + ((1 << octave) - 1)
}

impl Histogram {
    /// Counts a value.
    pub(super) fn record(&mut self, nanos: u64) {
        self.buckets[bucket(nanos)] += 1;
        self.count += 1;
    }

    /// Adds all values of another histogram.
    pub(super) fn merge(&mut self, other: &Self) {
        self.buckets.iter_mut().zip(&other.buckets).for_each(|(mine, theirs)| *mine += theirs);
        self.count += other.count;
    }

    /// The value that this share of all values does not exceed, in nanoseconds; 0 if there are none.
    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rank among fewer than 2^52")]
    pub(super) fn quantile(&self, share: f64) -> u64 {
        let rank = ((self.count as f64) * share).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (bucket, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return upper(bucket);
            }
        }
        0
    }
}

/// A figure that was measured several times.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Spread {
    /// The middle one; of an even number, the mean of the two in the middle.
    pub(super) median: f64,
    /// The smallest.
    pub(super) low: f64,
    /// The largest.
    pub(super) high: f64,
}

impl Spread {
    /// Of these figures; `None` if there are none.
    pub(super) fn of(mut figures: Vec<f64>) -> Option<Self> {
        figures.retain(|figure| figure.is_finite());
        figures.sort_by(f64::total_cmp);
        let (low, high) = (*figures.first()?, *figures.last()?);
        let middle = figures.len() / 2;
        let median = if figures.len() % 2 == 1 { figures[middle] } else { f64::midpoint(figures[middle - 1], figures[middle]) };
        Some(Self { median, low, high })
    }
}

/// How many times as much; `None` when there is nothing to compare with.
pub(super) fn ratio(ours: Option<Spread>, theirs: Option<Spread>) -> Option<f64> {
    let (ours, theirs) = (ours?.median, theirs?.median);
    (theirs > 0.0).then(|| ours / theirs)
}

/// A small generator of numbers that need not be good, only fast and the same for the same seed (SplitMix64).
#[derive(Clone, Debug)]
pub(super) struct Dice(pub(super) u64);

impl Dice {
    /// The next 64 bits.
    pub(super) const fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`.
    pub(super) const fn below(&mut self, end: u64) -> u64 {
        ((self.roll() as u128 * end as u128) >> 64) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_lies_in_a_bucket_that_is_exact_to_a_sixtyfourth() {
        let mut last = 0;
        for value in (0..5_000).chain((5..64).flat_map(|bit| [(1 << bit) - 1, 1 << bit, (1 << bit) + (1 << (bit - 2))])).chain([u64::MAX]) {
            let end = upper(bucket(value));
            assert!(end >= value && end - value <= value / 64, "{value} in a bucket that ends at {end}");
            if value >= last {
                assert!(bucket(value) >= bucket(last), "{value}");
                last = value;
            }
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn quantiles_are_ranks() {
        let mut all = Histogram::default();
        assert_eq!((all.quantile(0.5), all.count), (0, 0));
        let mut other = Histogram::default();
        (1..=50).for_each(|n| all.record(n));
        (51..=100).for_each(|n| other.record(n));
        all.merge(&other);
        for (share, value) in [(0.0, 1), (0.01, 1), (0.5, 50), (0.63, 63)] {
            assert_eq!(all.quantile(share), value, "{share}");
        }
        assert_eq!(all.count, 100);
        assert!((99..=100).contains(&all.quantile(0.99)) && all.quantile(1.0) >= 100);
    }

    #[test]
    fn medians_and_ranges() {
        assert_eq!(Spread::of(vec![]), None);
        assert_eq!(Spread::of(vec![f64::NAN]), None);
        assert_eq!(Spread::of(vec![3.0, 1.0, 2.0]), Some(Spread { median: 2.0, low: 1.0, high: 3.0 }));
        assert_eq!(Spread::of(vec![4.0, 1.0]), Some(Spread { median: 2.5, low: 1.0, high: 4.0 }));
        let of = |figure| Spread::of(vec![figure]);
        assert_eq!(ratio(of(3.0), of(2.0)), Some(1.5));
        assert_eq!((ratio(of(3.0), of(0.0)), ratio(None, of(1.0))), (None, None));
    }

    #[test]
    fn dice_stay_below() {
        let mut dice = Dice(7);
        let rolled: Vec<u64> = (0..1_000).map(|_| dice.below(10)).collect();
        assert!((0..10).all(|n| rolled.iter().filter(|r| **r == n).count() > 50), "all sides come up");
        assert_eq!(Dice(7).roll(), Dice(7).roll());
    }
}
