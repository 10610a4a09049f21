//! What is remembered, from the calls that consensus makes.

use std::sync::Arc;
use std::time::Duration;

use kontiki_proto::store as pb;
use openraft::raft::{VoteRequest, VoteResponse};
use pb::cause::Why;
use pb::observation::What;

use super::super::tests::world::TestEnv;
use super::super::types;
use super::{Chronicle, ballot};

const TIMEOUT: Duration = Duration::from_millis(700);

fn chronicle() -> Arc<Chronicle> {
    Chronicle::open(kontiki_base::MemberId::new(2), "m2", TestEnv::new(1), TIMEOUT, None)
}

async fn pass(ms: u64) {
    tokio::time::sleep(Duration::from_millis(ms)).await;
}

fn last(chronicle: &Chronicle) -> (u64, What) {
    let seen = chronicle.told().observations.pop().unwrap();
    (seen.term, seen.what.unwrap())
}

fn cause(chronicle: &Chronicle) -> Why {
    let stood = chronicle.told().observations.into_iter().rev().find_map(|seen| match seen.what {
        Some(What::Stood(stood)) => stood.cause,
        _ => None,
    });
    stood.unwrap().why.unwrap()
}

#[tokio::test(start_paused = true)]
async fn silence_is_measured_from_the_last_sign_of_the_leader() {
    let chronicle = chronicle();
    chronicle.started(3, 10, false);
    pass(950).await;
    chronicle.stands(4);
    assert_eq!(cause(&chronicle), Why::Restarted(pb::Restarted { waited_ms: 950 }));
    chronicle.saw(4, false, Some(1));
    assert_eq!(last(&chronicle), (4, What::Followed(pb::Followed { leader: 1, leaderless_ms: None })));
    pass(300).await;
    chronicle.heard(4);
    pass(800).await;
    // A member that has an old vote is no sign of the leader, nor is one that leads in a term that is not known yet.
    chronicle.heard(3);
    chronicle.heard(5);
    chronicle.stands(5);
    assert_eq!(cause(&chronicle), Why::Silence(pb::Silence { leader: 1, silent_ms: 800, timeout_ms: 700 }));
    pass(200).await;
    chronicle.stands(6);
    assert_eq!(cause(&chronicle), Why::Undecided(pb::Undecided { term: 5 }));
    pass(10).await;
    chronicle.saw(6, true, Some(2));
    assert_eq!(last(&chronicle), (6, What::Led(pb::Led { leaderless_ms: Some(1_010) })));
}

#[tokio::test(start_paused = true)]
async fn a_hand_over_and_a_closed_port_are_known_for_what_they_are_and_only_once() {
    let chronicle = chronicle();
    chronicle.started(1, 10, false);
    chronicle.saw(1, false, Some(1));
    pass(500).await;
    chronicle.asked_to_lead(1, pb::HandOver::Stopping);
    chronicle.stands(2);
    assert_eq!(cause(&chronicle), Why::Handed(pb::Handed { leader: 1, why: pb::HandOver::Stopping.into() }));
    pass(5).await;
    chronicle.saw(2, true, Some(2));
    assert_eq!(last(&chronicle), (2, What::Led(pb::Led { leaderless_ms: Some(5) })));
    let contacts = vec![pb::Contact { member_id: 1, ago_ms: Some(12) }];
    chronicle.health(pb::Health { slow_syncs: 3, stalled_ms: 400, paused_ms: 1, contacts: contacts.clone() });
    chronicle.hands_over(2, 1, pb::HandOver::StallingDisk);
    assert_eq!(chronicle.handing(), pb::HandOver::StallingDisk);
    let health = pb::Health { slow_syncs: 3, stalled_ms: 400, paused_ms: 1, contacts };
    let over = pb::HandedOver { to: 1, why: pb::HandOver::StallingDisk.into(), health: Some(health) };
    assert_eq!(last(&chronicle), (2, What::HandedOver(over)));
    // It did not look for two seconds: it was not let run.
    pass(2_000).await;
    chronicle.saw(3, false, Some(1));
    let seen = chronicle.told().observations;
    let Some(What::SteppedDown(down)) = &seen[seen.len() - 2].what else { panic!("{seen:#?}") };
    assert_eq!(down.health.as_ref().unwrap().paused_ms, 2_000);
    assert_eq!(chronicle.handing(), pb::HandOver::Unknown, "that is over");
    pass(100).await;
    chronicle.port_closed(1, Duration::from_millis(4));
    chronicle.stands(4);
    assert_eq!(cause(&chronicle), Why::PortClosed(pb::PortClosed { leader: 1, after_ms: 4 }));
    chronicle.saw(4, true, Some(2));
    chronicle.saw(4, false, None);
    pass(900).await;
    chronicle.stands(5);
    assert_eq!(cause(&chronicle), Why::Silence(pb::Silence { leader: 2, silent_ms: 900, timeout_ms: 700 }), "a new story");
}

#[tokio::test(start_paused = true)]
async fn a_new_cluster_is_founded_and_a_single_member_needs_nobody() {
    let founder = chronicle();
    founder.started(0, 0, true);
    founder.stands(1);
    assert_eq!(cause(&founder), Why::Founded(pb::Founded {}));
    let alone = chronicle();
    alone.started(4, 9, false);
    alone.saw(5, true, Some(2));
    assert_eq!(cause(&alone), Why::Alone(pb::Alone {}));
    let before = alone.told().observations.len();
    alone.saw(5, true, Some(2));
    assert_eq!(alone.told().observations.len(), before, "nothing changed");
}

#[tokio::test(start_paused = true)]
async fn what_is_remembered_is_bounded() {
    let chronicle = chronicle();
    for term in 0..2_000 {
        chronicle.saw(term, false, Some(1));
    }
    let seen = chronicle.told().observations;
    assert_eq!((seen.len(), seen.last().unwrap().term), (kontiki_base::limits::LEADERSHIP_OBSERVATIONS, 1_999));
}

#[test]
fn an_answer_says_why() {
    let vote = |term, member| {
        let member = kontiki_base::MemberId::new(member);
        types::vote_from_log(crate::log::Vote { term: kontiki_base::ids::Term::new(term), member, committed: false })
    };
    let log = |index| Some(types::LogId::new_term_index(1, index));
    let asked = VoteRequest::new(vote(5, 2), log(10));
    let table = [
        (VoteResponse::new(vote(5, 2), log(10), true), pb::Answer::Granted),
        (VoteResponse::new(vote(4, 1), log(11), false), pb::Answer::LongerLog),
        (VoteResponse::new(vote(5, 3), log(10), false), pb::Answer::OtherVote),
        (VoteResponse::new(vote(6, 3), log(9), false), pb::Answer::OtherVote),
        (VoteResponse::new(vote(4, 1), log(10), false), pb::Answer::HasLeader),
    ];
    for (answered, expected) in table {
        assert_eq!(ballot(&asked, &answered), expected, "{answered:?}");
    }
}
