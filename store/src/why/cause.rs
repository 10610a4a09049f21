//! From what a candidate knew, and what the old leader says of itself, to one cause: the old leader's word makes of a silence what it was.

use kontiki_proto::store as pb;
use pb::cause::Why;
use serde::Serialize;

/// A pause of a process that is worth a word.
pub(super) const PAUSE_MS: u64 = 250;

/// Why there had to be an election.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Code {
    /// The cluster had never had a leader.
    Founded,
    /// All who might have led had just started.
    Restarted,
    /// The leader was told to stop, and handed over.
    Stopping,
    /// The disk of the leader's log stalled, and it handed over.
    DiskStalled,
    /// Somebody called MoveLeader.
    Asked,
    /// The leader's data was corrupt, and it handed over.
    Corrupt,
    /// The leader's process was gone.
    Died,
    /// The leader's process did not run.
    Paused,
    /// The leader ran, and heard of the others no more.
    CutOff,
    /// The leader was not heard, and does not say why.
    Silent,
    /// Nobody who stood says why.
    Unknown,
}

/// What the old leader says of its end.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Known {
    /// It was stopped.
    pub(super) stopped: bool,
    /// Its process began again; whether without having been stopped.
    pub(super) restarted: Option<bool>,
    /// It noticed that it led no more, and was like this then.
    pub(super) stepped_down: Option<pb::Health>,
}

/// The cause, from the reason of the first who stood.
pub(super) fn code(why: Option<&Why>, known: &Known) -> Code {
    match why {
        Some(Why::Founded(_)) => Code::Founded,
        Some(Why::Alone(_) | Why::Restarted(_)) => Code::Restarted,
        Some(Why::PortClosed(_)) if known.stopped => Code::Stopping,
        Some(Why::PortClosed(_)) => Code::Died,
        Some(Why::Handed(handed)) => match handed.why() {
            pb::HandOver::Asked => Code::Asked,
            pb::HandOver::Stopping => Code::Stopping,
            pb::HandOver::StallingDisk => Code::DiskStalled,
            pb::HandOver::Corrupt => Code::Corrupt,
            pb::HandOver::Unknown => Code::Unknown,
        },
        Some(Why::Silence(silence)) => match &known.stepped_down {
            Some(health) if health.paused_ms >= silence.timeout_ms / 2 => Code::Paused,
            Some(health) if cut_off(health, silence.timeout_ms) => Code::CutOff,
            Some(_) => Code::Silent,
            None if known.stopped => Code::Stopping,
            None if known.restarted == Some(true) => Code::Died,
            None => Code::Silent,
        },
        // The first who stood in the terms that are known: those before are forgotten.
        Some(Why::Undecided(_)) | None => Code::Unknown,
    }
}

/// Most of the others had not answered for half of the time after which they stand.
fn cut_off(health: &pb::Health, timeout_ms: u64) -> bool {
    let lost = health.contacts.iter().filter(|contact| contact.ago_ms.is_none_or(|ago| ago >= timeout_ms / 2)).count();
    lost * 2 > health.contacts.len()
}

/// Why a member stood, as it knew it.
pub(super) fn because(why: Option<&Why>, by: u64, called: &dyn Fn(u64) -> String) -> String {
    match why {
        Some(Why::Founded(_)) => "the cluster had never had a leader".into(),
        Some(Why::Alone(_)) => format!("{} is the only voter, and had just started", called(by)),
        Some(Why::Restarted(restarted)) => {
            format!("nobody had led since its process began {} ms before", restarted.waited_ms)
        }
        Some(Why::PortClosed(closed)) => {
            let leader = called(closed.leader);
            format!("the port of {leader} refused connections {} ms after its stream had ended: its process was gone", closed.after_ms)
        }
        Some(Why::Silence(silence)) => {
            let leader = called(silence.leader);
            format!("{leader} had not been heard for {} ms; members stand after {} ms or more", silence.silent_ms, silence.timeout_ms)
        }
        Some(Why::Handed(handed)) => format!("{} asked it to take over, {}", called(handed.leader), reason(handed.why())),
        Some(Why::Undecided(undecided)) => format!("nobody had won in term {}", undecided.term),
        None => "it is not known why".into(),
    }
}

fn reason(why: pb::HandOver) -> &'static str {
    match why {
        pb::HandOver::Asked => "because somebody had asked for that (MoveLeader)",
        pb::HandOver::Stopping => "because it was told to stop",
        pb::HandOver::StallingDisk => "because the disk of its log stalled",
        pb::HandOver::Corrupt => "because its data was corrupt",
        pb::HandOver::Unknown => "and did not say why",
    }
}

/// The cause in a sentence.
pub(super) fn sentence(cause: Code, why: Option<&Why>, by: u64, known: &Known, called: &dyn Fn(u64) -> String) -> String {
    let basis = because(why, by, called);
    match (cause, why) {
        (Code::Stopping | Code::DiskStalled | Code::Asked | Code::Corrupt, Some(Why::Handed(handed))) => {
            format!("{} handed leadership over {}", called(handed.leader), reason(handed.why()))
        }
        (Code::Stopping, _) => format!("the leader was stopped: {basis}"),
        (Code::Died, Some(Why::Silence(silence))) => {
            format!("the process of {} was gone: it began again without having been stopped; {basis}", called(silence.leader))
        }
        (Code::Paused, Some(Why::Silence(silence))) => {
            let paused = known.stepped_down.as_ref().map_or(0, |health| health.paused_ms);
            format!("the process of {} did not run for {paused} ms: {basis}", called(silence.leader))
        }
        (Code::CutOff, Some(Why::Silence(silence))) => {
            format!(
                "{} ran, and most of the others did not answer it: the network between them was broken; {basis}",
                called(silence.leader)
            )
        }
        _ => basis,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn health(paused_ms: u64, ago: &[Option<u64>]) -> pb::Health {
        let contact = |(n, ago_ms): (usize, &Option<u64>)| pb::Contact { member_id: n as u64 + 2, ago_ms: *ago_ms };
        pb::Health { paused_ms, contacts: ago.iter().enumerate().map(contact).collect(), ..pb::Health::default() }
    }

    #[test]
    fn the_old_leaders_word_makes_of_a_silence_what_it_was() {
        let silence = Why::Silence(pb::Silence { leader: 1, silent_ms: 800, timeout_ms: 700 });
        let closed = Why::PortClosed(pb::PortClosed { leader: 1, after_ms: 2 });
        let handed = |why: pb::HandOver| Why::Handed(pb::Handed { leader: 1, why: why.into() });
        let nothing = Known::default();
        let down = |health| Known { stepped_down: Some(health), ..Known::default() };
        let stopped = Known { stopped: true, ..Known::default() };
        let table = [
            (silence, nothing.clone(), Code::Silent, "m1 had not been heard for 800 ms"),
            (silence, down(health(2_000, &[Some(2_100), Some(2_100)])), Code::Paused, "did not run for 2000 ms"),
            (silence, down(health(0, &[Some(900), None])), Code::CutOff, "the network between them was broken"),
            (silence, down(health(0, &[Some(90), Some(900)])), Code::Silent, "m1 had not been heard"),
            (silence, Known { restarted: Some(true), ..nothing.clone() }, Code::Died, "without having been stopped"),
            (silence, stopped.clone(), Code::Stopping, "the leader was stopped"),
            (closed, nothing.clone(), Code::Died, "refused connections 2 ms after"),
            (closed, stopped, Code::Stopping, "the leader was stopped"),
            (handed(pb::HandOver::Asked), nothing.clone(), Code::Asked, "m1 handed leadership over because somebody had asked"),
            (handed(pb::HandOver::Stopping), nothing.clone(), Code::Stopping, "m1 handed leadership over because it was told to stop"),
            (handed(pb::HandOver::StallingDisk), nothing.clone(), Code::DiskStalled, "because the disk of its log stalled"),
            (handed(pb::HandOver::Corrupt), nothing.clone(), Code::Corrupt, "because its data was corrupt"),
            (Why::Founded(pb::Founded {}), nothing.clone(), Code::Founded, "never had a leader"),
            (Why::Restarted(pb::Restarted { waited_ms: 900 }), nothing.clone(), Code::Restarted, "900 ms before"),
            (Why::Alone(pb::Alone {}), nothing.clone(), Code::Restarted, "the only voter"),
            (Why::Undecided(pb::Undecided { term: 4 }), nothing, Code::Unknown, "nobody had won in term 4"),
        ];
        let called = |id: u64| format!("m{id}");
        for (why, known, expected, words) in table {
            assert_eq!(code(Some(&why), &known), expected, "{why:?} {known:?}");
            let said = sentence(expected, Some(&why), 2, &known, &called);
            assert!(said.contains(words), "{said:?} lacks {words:?}");
        }
        assert_eq!(code(None, &Known::default()), Code::Unknown);
    }
}
