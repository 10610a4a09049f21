//! Why a member stands for election, from what it knows at that moment. Pure: rows in order, the first that fits.

use std::time::Duration;

use kontiki_proto::store as pb;
use pb::cause::Why;

use super::{Asked, millis};

/// What a member knows when it stands.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Evidence {
    /// It began with nothing on its disk.
    pub(super) blank: bool,
    /// It needed nobody's vote.
    pub(super) alone: bool,
    /// Who led last in this life of its process.
    pub(super) leader: Option<u64>,
    /// That leader asked it to take over.
    pub(super) handed: Option<Asked>,
    /// That leader's port refused connections.
    pub(super) closed: Option<(u64, Duration)>,
    /// Since the last sign of the leader.
    pub(super) silent: Duration,
    /// The shortest silence after which it stands.
    pub(super) timeout: Duration,
    /// Since its process began.
    pub(super) waited: Duration,
    /// Somebody has stood in this term since there was a leader, and nobody is known to have won.
    pub(super) tried: Option<u64>,
}

/// What is most certain comes first: the leader's own word, then a closed port; silence is what is left.
pub(super) fn cause(known: &Evidence) -> Why {
    if let Some((leader, why)) = known.handed {
        return Why::Handed(pb::Handed { leader, why: why.into() });
    }
    if let Some((leader, after)) = known.closed {
        return Why::PortClosed(pb::PortClosed { leader, after_ms: millis(after) });
    }
    if let Some(term) = known.tried {
        return Why::Undecided(pb::Undecided { term });
    }
    match known.leader {
        Some(leader) => Why::Silence(pb::Silence { leader, silent_ms: millis(known.silent), timeout_ms: millis(known.timeout) }),
        None if known.blank => Why::Founded(pb::Founded {}),
        None if known.alone => Why::Alone(pb::Alone {}),
        None => Why::Restarted(pb::Restarted { waited_ms: millis(known.waited) }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_certain_cause_is_named() {
        let ms = Duration::from_millis;
        let led = Evidence { leader: Some(1), silent: ms(812), timeout: ms(700), waited: ms(9_000), ..Evidence::default() };
        let new = Evidence { waited: ms(950), timeout: ms(700), ..Evidence::default() };
        let asked = |why: pb::HandOver| Why::Handed(pb::Handed { leader: 1, why: why.into() });
        let table = [
            (led, Why::Silence(pb::Silence { leader: 1, silent_ms: 812, timeout_ms: 700 })),
            (Evidence { closed: Some((1, ms(3))), ..led }, Why::PortClosed(pb::PortClosed { leader: 1, after_ms: 3 })),
            (Evidence { tried: Some(4), ..led }, Why::Undecided(pb::Undecided { term: 4 })),
            (Evidence { tried: Some(4), closed: Some((1, ms(3))), ..led }, Why::PortClosed(pb::PortClosed { leader: 1, after_ms: 3 })),
            (Evidence { handed: Some((1, pb::HandOver::Asked)), ..led }, asked(pb::HandOver::Asked)),
            (Evidence { handed: Some((1, pb::HandOver::Stopping)), closed: Some((1, ms(3))), ..led }, asked(pb::HandOver::Stopping)),
            (Evidence { handed: Some((1, pb::HandOver::StallingDisk)), tried: Some(3), ..led }, asked(pb::HandOver::StallingDisk)),
            (Evidence { blank: true, ..new }, Why::Founded(pb::Founded {})),
            (Evidence { blank: true, alone: true, ..new }, Why::Founded(pb::Founded {})),
            (Evidence { blank: true, tried: Some(1), ..new }, Why::Undecided(pb::Undecided { term: 1 })),
            (Evidence { alone: true, ..new }, Why::Alone(pb::Alone {})),
            (new, Why::Restarted(pb::Restarted { waited_ms: 950 })),
        ];
        for (known, expected) in table {
            assert_eq!(cause(&known), expected, "{known:?}");
        }
    }
}
