//! Members have the same state.
//!
//! Predicate: two hashes of member states at the same revision and compact revision are equal, whoever computed them and when: a state that
//! was built from a snapshot is the one that was built from the log.

use std::collections::BTreeMap;

use super::{Outcome, Tally, Violation};
use crate::history::{History, Sample};

/// The check `equal-hashes`.
pub fn judge(history: &History) -> Outcome {
    let mut tally = Tally::default();
    let mut known: BTreeMap<(i64, i64), &Sample> = BTreeMap::new();
    for sample in &history.samples {
        let Some(hash) = sample.hash else { continue };
        tally.saw("hashes");
        let other = known.entry((sample.hash_revision, sample.hash_compact)).or_insert(sample);
        if other.member != sample.member || other.life != sample.life {
            tally.saw("hashes of several members compared");
        }
        if other.hash != Some(hash) {
            let detail = format!(
                "at revision {} (compacted {}): member {} has hash {:016x} at {}, member {} has {hash:016x} at {}",
                sample.hash_revision,
                sample.hash_compact,
                other.member,
                other.hash.unwrap_or_default(),
                super::clock(other.at),
                sample.member,
                super::clock(sample.at)
            );
            tally.fail(Violation::new("equal-hashes", detail).revision(sample.hash_revision).at(other.at).at(sample.at));
        }
    }
    tally.finish("equal-hashes", &["hashes of several members compared"])
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    fn verdict(samples: &[(usize, i64, i64, u64)]) -> Verdict {
        let sample = |(member, hash_revision, hash_compact, hash): &(usize, i64, i64, u64)| Sample {
            member: *member,
            hash: Some(*hash),
            hash_revision: *hash_revision,
            hash_compact: *hash_compact,
            ..Sample::default()
        };
        judge(&History { samples: samples.iter().map(sample).collect(), ..History::default() }).verdict
    }

    #[test]
    fn states_are_compared_where_they_can_be() {
        assert_eq!(verdict(&[(0, 5, 1, 7), (1, 5, 1, 7), (1, 6, 1, 8), (2, 6, 3, 9)]), Verdict::Pass);
        assert!(matches!(verdict(&[(0, 5, 1, 7), (1, 5, 1, 8)]), Verdict::Fail(_)));
        assert!(matches!(verdict(&[(0, 5, 1, 7), (0, 6, 1, 8)]), Verdict::Vacuous(_)));
    }
}
