//! Streams of random numbers, one for each thing that draws: so that leaving out one fault does not reshuffle everything else, which is
//! what makes a schedule shrink.
//!
//! The generator is written out here because recorded seeds must mean the same for ever.

/// A stream: SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014).
#[derive(Clone, Debug)]
pub struct Stream(u64);

impl Stream {
    /// The stream of `name` number `n` in the world of `seed`.
    pub fn new(seed: u64, name: &str, n: u64) -> Self {
        // FNV-1a: the name and the number choose the stream.
        let bytes = name.bytes().chain(n.to_le_bytes()).chain(seed.to_le_bytes());
        let key = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
        let mut stream = Self(key);
        stream.next();
        stream
    }

    /// 64 random bits.
    #[allow(clippy::should_implement_trait, reason = "it never ends")]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`; 0 if `n` is 0.
    pub fn below(&mut self, n: u64) -> u64 {
        // The bias is below n / 2^64.
        self.next().checked_rem(n).unwrap_or(0)
    }

    /// A number from `least` to `most`.
    pub fn between(&mut self, least: u64, most: u64) -> u64 {
        least + self.below(most.saturating_sub(least) + 1)
    }

    /// True so often in a million.
    pub fn chance(&mut self, per_million: u32) -> bool {
        per_million > 0 && self.below(1_000_000) < u64::from(per_million)
    }

    /// One of some; they must not be none.
    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[usize::try_from(self.below(of.len() as u64)).unwrap_or(0)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_apart_and_stay_the_same_for_ever() {
        let first = |seed, name: &str, n| Stream::new(seed, name, n).next();
        let all = [first(1, "a", 0), first(2, "a", 0), first(1, "b", 0), first(1, "a", 1)];
        let different: std::collections::BTreeSet<_> = all.iter().collect();
        assert_eq!(different.len(), all.len());
        assert_eq!(Stream::new(7, "nemesis", 3).next(), Stream::new(7, "nemesis", 3).next());
        assert_eq!(first(1, "link", 2), GOLDEN, "every recorded seed means something else now");
    }

    const GOLDEN: u64 = 0x29e3_e478_f43d_bfd9;

    #[test]
    fn bounds_hold() {
        let mut stream = Stream::new(1, "x", 0);
        for _ in 0..1_000 {
            assert!((3..=5).contains(&stream.between(3, 5)));
            assert_eq!(stream.below(0), 0);
            assert!(!stream.chance(0) && stream.chance(1_000_000));
        }
    }
}
