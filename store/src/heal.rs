//! Replaces a voter that is gone for good by a learner that waits for it: off, unless it is asked for.
//!
//! The leader watches who answers. Once a voter has not answered for the time that was asked for, and a learner that runs has nearly all of
//! the log, the learner takes the dead member's vote, and that one is removed: in one change, which is carried out whole or not at all, and
//! which a later leader completes. So a member is replaced once, and at no moment can fewer members be lost than before.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use kontiki_base::env::{Mono, Task};
use kontiki_base::ids::MemberId;
use kontiki_proto::store::Replaced;

use crate::raft::{RaftStatus, Role};
use crate::service::Service;

/// How often the leader looks who answers.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Since when members have not answered.
#[derive(Debug, Default)]
struct Silence(BTreeMap<MemberId, Mono>);

impl Silence {
    /// Takes note of who answers now.
    fn see(&mut self, raft: &RaftStatus, answering: &[MemberId], now: Mono) {
        self.0.retain(|id, _| !answering.contains(id) && raft.members.iter().any(|m| m.id == *id));
        for member in raft.members.iter().filter(|m| !answering.contains(&m.id)) {
            self.0.entry(member.id).or_insert(now);
        }
    }

    fn of(&self, id: MemberId, now: Mono) -> Duration {
        self.0.get(&id).map_or(Duration::ZERO, |since| now.since(*since))
    }

    fn longer_than(&self, id: MemberId, patience: Duration, now: Mono) -> bool {
        self.0.contains_key(&id) && self.of(id, now) >= patience
    }
}

/// Who takes whose place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Replacement {
    learner: MemberId,
    dead: MemberId,
}

/// What is to be done now, if anything: one voter at a time, and only while the voters that are left can decide it.
fn plan(raft: &RaftStatus, silence: &Silence, patience: Duration, now: Mono) -> Option<Replacement> {
    let voters = raft.members.iter().filter(|m| !m.learner);
    let dead = voters.clone().find(|m| m.id != raft.id && silence.longer_than(m.id, patience, now))?.id;
    let alive = voters.clone().filter(|m| !silence.0.contains_key(&m.id)).count();
    // They decide it, as they decide everything.
    let enough = alive * 2 > voters.count();
    let learner = raft.members.iter().find(|m| m.learner && !m.name.is_empty() && !silence.0.contains_key(&m.id))?.id;
    enough.then_some(Replacement { learner, dead })
}

/// Watches, and replaces.
pub(crate) fn run(service: Arc<Service>, patience: Duration) -> Task {
    let env = Arc::clone(&service.env);
    env.spawn(
        "store.heal",
        Box::pin(async move {
            let mut silence = Silence::default();
            loop {
                service.env.sleep(LOOK_EVERY).await;
                let raft = service.raft();
                if raft.fatal.is_some() {
                    return;
                }
                if raft.role != Role::Leader {
                    // Somebody else watches; what was seen before says nothing about later.
                    silence = Silence::default();
                    continue;
                }
                let answering = service.roster.reachable().await;
                let now = service.env.now_mono();
                silence.see(&raft, &answering, now);
                if let Some(replacement) = plan(&raft, &silence, patience, now) {
                    replace(&service, replacement, silence.of(replacement.dead, now), patience).await;
                }
            }
        }),
    )
}

async fn replace(service: &Service, Replacement { learner, dead }: Replacement, silent: Duration, patience: Duration) {
    // Refused while it is still catching up: then it is tried again.
    if let Err(error) = service.roster.replace(dead, learner).await {
        tracing::debug!(member = %learner, %error, "a voter is gone, and the learner cannot take its place yet");
        return;
    }
    service.metrics.promote_successes.inc();
    let (silent_ms, patience_ms) = (silent.as_millis(), patience.as_millis());
    tracing::warn!(%dead, %learner, silent_ms, patience_ms, "a voter was gone for too long: the learner has taken its place");
    let millis = |ms: u128| u64::try_from(ms).unwrap_or(u64::MAX);
    service.roster.replaced(Replaced {
        dead: dead.get(),
        learner: learner.get(),
        silent_ms: millis(silent_ms),
        patience_ms: millis(patience_ms),
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::Member;

    fn member(id: u64, learner: bool, started: bool) -> Member {
        let name = if started { id.to_string() } else { String::new() };
        Member { id: MemberId::new(id), name, peer_urls: vec![], client_urls: vec![], learner }
    }

    fn at(seconds: u64) -> Mono {
        Mono(Duration::from_secs(seconds))
    }

    #[test]
    fn a_dead_voter_is_replaced_when_it_is_certain_and_safe() {
        let patience = Duration::from_secs(60);
        let raft = |members: Vec<Member>| RaftStatus { id: MemberId::new(1), members, ..RaftStatus::default() };
        let voters = || vec![member(1, false, true), member(2, false, true), member(3, false, true)];
        let with = |extra: Member| raft(voters().into_iter().chain([extra]).collect());
        let ids = |list: &[u64]| list.iter().map(|id| MemberId::new(*id)).collect::<Vec<_>>();
        let planned = |raft: &RaftStatus, answering: &[u64], seconds: u64| {
            let mut silence = Silence::default();
            silence.see(raft, &ids(answering), at(0));
            silence.see(raft, &ids(answering), at(seconds));
            plan(raft, &silence, patience, at(seconds)).map(|r| (r.learner.get(), r.dead.get()))
        };
        let waiting = with(member(9, true, true));
        assert_eq!(planned(&waiting, &[1, 2, 9], 60), Some((9, 3)));
        assert_eq!(planned(&waiting, &[1, 2, 9], 59), None, "not yet");
        assert_eq!(planned(&waiting, &[1, 2, 3, 9], 99), None, "nobody is gone");
        assert_eq!(planned(&waiting, &[1, 2], 99), None, "the learner is gone, too");
        assert_eq!(planned(&waiting, &[1, 9], 99), None, "there is no quorum to decide it");
        assert_eq!(planned(&with(member(9, true, false)), &[1, 2, 9], 99), None, "the learner was never started");
        assert_eq!(planned(&raft(voters()), &[1, 2], 99), None, "nobody waits");
    }

    #[test]
    fn whoever_answers_again_was_not_gone() {
        let raft = RaftStatus { members: vec![member(1, false, true), member(2, false, true)], ..RaftStatus::default() };
        let mut silence = Silence::default();
        silence.see(&raft, &[MemberId::new(1)], at(0));
        silence.see(&raft, &[MemberId::new(1), MemberId::new(2)], at(50));
        silence.see(&raft, &[MemberId::new(1)], at(60));
        assert!(!silence.longer_than(MemberId::new(2), Duration::from_secs(50), at(100)));
        assert!(silence.longer_than(MemberId::new(2), Duration::from_secs(50), at(110)));
    }
}
