//! Randomness of plans: streams that depend on a seed and a name, and on nothing else.
//!
//! Each use has a stream of its own, so taking one fault out of a plan does not change what the others do: shrinking needs that. The
//! generator is SplitMix64 (Steele, Lea, Flood 2014), written out here because a recorded seed must mean the same for ever.

use std::time::Duration;

/// A stream of random numbers.
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    /// The stream called `name` of this seed.
    pub fn new(seed: u64, name: &str) -> Self {
        // FNV-1a over the name, then mixed with the seed by one step of the generator each.
        let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
        let mut dice = Self(seed);
        let start = dice.next_u64() ^ hash;
        Self(start)
    }

    /// 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`; 0 if that is 0. The bias is below 2^-32 for bounds below 2^32.
    pub fn below(&mut self, bound: u64) -> u64 {
        if bound == 0 { 0 } else { self.next_u64() % bound }
    }

    /// A length of time between two, to the microsecond.
    pub fn between(&mut self, min: Duration, max: Duration) -> Duration {
        let width = u64::try_from(max.saturating_sub(min).as_micros()).unwrap_or(u64::MAX - 1);
        min + Duration::from_micros(self.below(width.saturating_add(1)))
    }

    /// True in this share of cases (0 to 1).
    pub fn chance(&mut self, share: f64) -> bool {
        // 53 bits are what an f64 holds exactly.
        ((self.next_u64() >> 11) as f64) < share * (1_u64 << 53) as f64
    }

    /// One of these; `None` if there are none.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> Option<&'a T> {
        items.get(usize::try_from(self.below(items.len() as u64)).unwrap_or(0))
    }

    /// `count` different ones of these, or all of them, in random order.
    pub fn choose<T: Clone>(&mut self, items: &[T], count: usize) -> Vec<T> {
        let mut left = items.to_vec();
        let mut chosen = Vec::new();
        while chosen.len() < count && !left.is_empty() {
            chosen.push(left.swap_remove(usize::try_from(self.below(left.len() as u64)).unwrap_or(0)));
        }
        chosen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_fixed_for_ever_and_independent() {
        // Recorded values: a change here makes every recorded seed mean something else.
        let mut dice = Dice(0);
        assert_eq!(dice.next_u64(), 0xe220_a839_7b1d_cdaf, "the first output of SplitMix64 from 0, as published");
        assert_ne!(Dice::new(1, "a").next_u64(), Dice::new(1, "b").next_u64());
        assert_ne!(Dice::new(1, "a").next_u64(), Dice::new(2, "a").next_u64());
        assert_eq!(Dice::new(7, "net").next_u64(), Dice::new(7, "net").next_u64());
    }

    #[test]
    fn draws_stay_in_bounds() {
        let mut dice = Dice::new(5, "t");
        assert_eq!((dice.below(0), dice.below(1)), (0, 0));
        let hits = (0..10_000).filter(|_| dice.chance(0.2)).count();
        assert!((1_800..2_200).contains(&hits), "{hits}");
        assert!(!dice.chance(0.0) && dice.chance(1.0));
        let mut chosen = dice.choose(&[1, 2, 3], 2);
        chosen.sort_unstable();
        chosen.dedup();
        assert_eq!(chosen.len(), 2);
        assert_eq!(dice.choose(&[1, 2], 9).len(), 2);
        assert_eq!(dice.pick::<u8>(&[]), None);
    }
}
