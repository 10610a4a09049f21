//! Members' parts, joined.

use super::*;
use pb::cause::Why;

fn seen(at_ms: i64, term: u64, what: What) -> pb::Observation {
    pb::Observation { at_ms, term, what: Some(what) }
}

fn stood(why: Why) -> What {
    What::Stood(pb::Stood { cause: Some(pb::Cause { why: Some(why) }) })
}

fn answered(voter: u64, answer: pb::Answer) -> What {
    What::Answered(pb::Answered { voter, answer: answer.into() })
}

fn voted(candidate: u64) -> What {
    What::Voted(pb::Voted { candidate, answer: pb::Answer::Granted.into() })
}

fn followed(leader: u64, leaderless_ms: Option<u64>) -> What {
    What::Followed(pb::Followed { leader, leaderless_ms })
}

fn told(id: u64, observations: Vec<pb::Observation>) -> pb::MemberObservations {
    pb::MemberObservations { member_id: id, name: format!("m{id}"), observations }
}

/// m1 led in term 1 and was killed; m2 stood in term 2 and lost, m3 stood in term 3 and won.
fn killed() -> Vec<pb::MemberObservations> {
    let closed = || stood(Why::PortClosed(pb::PortClosed { leader: 1, after_ms: 4 }));
    vec![
        told(
            1,
            vec![
                seen(10, 0, What::Started(pb::Started { last_index: 0, blank: true })),
                seen(20, 1, stood(Why::Founded(pb::Founded {}))),
                seen(21, 1, answered(2, pb::Answer::Granted)),
                seen(22, 1, What::Led(pb::Led { leaderless_ms: None })),
                seen(900, 1, What::Started(pb::Started { last_index: 7, blank: false })),
                seen(950, 3, followed(3, None)),
            ],
        ),
        told(
            2,
            vec![
                seen(23, 1, followed(1, None)),
                seen(500, 2, closed()),
                seen(501, 2, answered(3, pb::Answer::LongerLog)),
                seen(560, 3, voted(3)),
                seen(570, 3, followed(3, Some(90))),
            ],
        ),
        told(
            3,
            vec![
                seen(24, 1, followed(1, None)),
                seen(550, 3, closed()),
                seen(555, 3, answered(2, pb::Answer::Granted)),
                seen(560, 3, What::Led(pb::Led { leaderless_ms: Some(80) })),
            ],
        ),
    ]
}

#[test]
fn the_parts_of_members_make_one_story() {
    let history = join(&killed(), &[]);
    assert_eq!(history.elections.len(), 2, "{history:#?}");
    let (first, second) = (&history.elections[0], &history.elections[1]);
    assert_eq!((first.term, first.leader.name.as_str(), first.cause, first.leaderless_ms), (1, "m1", Code::Founded, None));
    assert_eq!(first.before, None);
    assert_eq!((second.term, second.leader.name.as_str(), second.cause, second.leaderless_ms), (3, "m3", Code::Died, Some(80)));
    assert_eq!(second.before.as_ref().map(|(term, who)| (*term, who.name.as_str())), Some((1, "m1")));
    let votes: Vec<_> = second.votes.iter().map(|vote| (vote.voter.name.as_str(), vote.granted)).collect();
    assert_eq!(votes, [("m2", true), ("m3", true)]);
    assert_eq!(second.tries.iter().map(|t| (t.term, t.candidate.name.as_str())).collect::<Vec<_>>(), [(2, "m2")]);
    let words: Vec<_> = second.evidence.iter().map(|evidence| evidence.text.as_str()).collect();
    assert!(words[0].starts_with("m2 stood for election in term 2: the port of m1"), "{words:#?}");
    assert!(words.last().unwrap().contains("the process of m1 began again, and had not been stopped"), "{words:#?}");
    assert!(history.undecided.is_empty() && history.silent.is_empty());
}

#[test]
fn what_is_missing_is_said_and_who_tells_twice_counts_once() {
    let all = killed();
    let silent = [pb::Silent { member_id: 3, name: "m3".into() }, pb::Silent { member_id: 1, name: "m1".into() }];
    // m3, which won, does not answer: the others know that it did, and that m2 gave it its vote.
    let history = join(&[all[0].clone(), all[1].clone(), all[1].clone()], &silent);
    let last = history.elections.last().unwrap();
    assert_eq!((last.term, last.leader.name.as_str(), last.leaderless_ms), (3, "m3", Some(90)));
    assert_eq!(last.votes.iter().map(|vote| vote.voter.name.as_str()).collect::<Vec<_>>(), ["m2"]);
    assert_eq!(last.cause, Code::Died, "m2 stood first, and knows why");
    assert_eq!(history.silent.iter().map(|who| who.name.as_str()).collect::<Vec<_>>(), ["m3"], "m1 has answered");
}

#[test]
fn an_election_that_nobody_has_won_is_undecided() {
    let mut all = killed();
    let silence = Why::Silence(pb::Silence { leader: 3, silent_ms: 900, timeout_ms: 700 });
    all[1].observations.push(seen(2_000, 4, stood(silence)));
    let history = join(&all, &[]);
    assert_eq!(history.elections.len(), 2);
    assert_eq!(history.undecided.len(), 1);
    assert!(history.undecided[0].because.contains("m3 had not been heard for 900 ms"), "{:?}", history.undecided);
}
