//! What this member sees of elections, and why it stood in them: the answer to "why did the leader change?".
//!
//! Everything that an election turns on passes here: signs of life of the leader, refused connections, votes asked for and given, hand-overs,
//! and, while this member leads, the state of its disk and of its contacts. An observation is made where something changes, so an idle cluster
//! makes none. They are bounded, and [`keep`] writes them to the data directory, so that they are there after a restart, too.
//!
//! Nothing here decides anything: consensus goes its own way and does not wait for this.

mod cause;
mod keep;

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kontiki_base::env::{Env, Mono};
use kontiki_base::ids::MemberId;
use kontiki_base::limits;
use kontiki_proto::store as pb;
use openraft::raft::{VoteRequest, VoteResponse};
use pb::observation::What;

use self::cause::{Evidence, cause};
use super::types::TypeConfig;

/// What happened when this member was asked to lead by the leader.
type Asked = (u64, pb::HandOver);

/// Remembers.
pub(crate) struct Chronicle {
    me: u64,
    name: String,
    env: Arc<dyn Env>,
    /// The shortest silence of a leader after which a member stands.
    timeout: Duration,
    state: Mutex<State>,
    keeper: Option<keep::Keeper>,
}

struct State {
    seen: VecDeque<pb::Observation>,
    /// So many of the newest are not in the file yet.
    unkept: usize,
    began: Mono,
    /// The term of the log when the process began.
    base: u64,
    blank: bool,
    term: u64,
    leads: bool,
    /// The last leader of this life of the process, and its term.
    leader: Option<(u64, u64)>,
    /// When there was a sign of it.
    alive: Option<Mono>,
    /// The leader's port refused a connection: whose, and how long after its stream had ended.
    closed: Option<(u64, Duration)>,
    handed: Option<Asked>,
    /// The last term in which this member stood.
    stood: u64,
    /// The last term in which anybody stood.
    tried: u64,
    /// Why leadership is being handed over right now.
    handing: pb::HandOver,
    health: pb::Health,
    /// When that was.
    looked: Mono,
}

/// What a voter's answer says.
fn ballot(asked: &VoteRequest<TypeConfig>, answered: &VoteResponse<TypeConfig>) -> pb::Answer {
    let (candidate, voter) = (&asked.vote.leader_id, &answered.vote.leader_id);
    if answered.vote_granted {
        pb::Answer::Granted
    } else if answered.last_log_id > asked.last_log_id {
        pb::Answer::LongerLog
    } else if (voter.term, voter.voted_for) != (candidate.term, candidate.voted_for) && voter.term >= candidate.term {
        pb::Answer::OtherVote
    } else {
        pb::Answer::HasLeader
    }
}

fn millis(d: Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}

impl Chronicle {
    /// Goes on with what is kept at `file`; without one, nothing outlives the process.
    pub(crate) fn open(me: MemberId, name: &str, env: Arc<dyn Env>, timeout: Duration, file: Option<PathBuf>) -> Arc<Self> {
        let (keeper, seen) = match file.map(keep::Keeper::open) {
            Some((keeper, seen)) => (Some(keeper), seen),
            None => (None, VecDeque::new()),
        };
        let state = State {
            seen,
            unkept: 0,
            began: env.now_mono(),
            base: 0,
            blank: false,
            term: 0,
            leads: false,
            leader: None,
            alive: None,
            closed: None,
            handed: None,
            stood: 0,
            tried: 0,
            handing: pb::HandOver::Unknown,
            health: pb::Health::default(),
            looked: env.now_mono(),
        };
        Arc::new(Self { me: me.get(), name: name.to_owned(), env, timeout, state: Mutex::new(state), keeper })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, state: &mut State, term: u64, what: What) {
        state.seen.push_back(pb::Observation { at_ms: self.env.now_wall().0, term, what: Some(what) });
        state.unkept += 1;
        while state.seen.len() > limits::LEADERSHIP_OBSERVATIONS {
            state.seen.pop_front();
        }
        state.unkept = state.unkept.min(state.seen.len());
        if let Some(keeper) = &self.keeper {
            keeper.wake();
        }
    }

    /// The member has been opened, with this log.
    pub(crate) fn started(&self, term: u64, last_index: u64, blank: bool) {
        let mut state = self.state();
        (state.term, state.base, state.blank) = (term, term, blank);
        self.note(&mut state, term, What::Started(pb::Started { last_index, blank }));
    }

    /// The member stops because it is told to.
    pub(crate) fn stopped(&self) {
        let mut state = self.state();
        let term = state.term;
        self.note(&mut state, term, What::Stopped(pb::Stopped {}));
    }

    /// The leader of a term is there. What a new one says counts once it is known to lead: until then the one before is missed.
    pub(crate) fn heard(&self, term: u64) {
        let mut state = self.state();
        if state.leader.is_some_and(|(_, led_in)| led_in == term) {
            state.alive = Some(self.env.now_mono());
        }
    }

    /// The port of the leader refused a connection, this long after its stream had ended.
    pub(crate) fn port_closed(&self, leader: u64, after: Duration) {
        let mut state = self.state();
        state.closed = Some((leader, after));
        // It was there when the stream ended, or just before.
        state.alive = state.alive.max(Some(Mono(self.env.now_mono().0.saturating_sub(after))));
    }

    /// The leader asked this member to take over.
    pub(crate) fn asked_to_lead(&self, leader: u64, why: pb::HandOver) {
        let mut state = self.state();
        state.handed = Some((leader, why));
        state.alive = Some(self.env.now_mono());
    }

    /// This member asks for votes.
    pub(crate) fn stands(&self, term: u64) {
        let mut state = self.state();
        if term > state.stood {
            self.stand(&mut state, term, false);
        }
    }

    fn stand(&self, state: &mut State, term: u64, alone: bool) {
        let now = self.env.now_mono();
        let led_in = state.leader.map_or(state.base, |(_, term)| term);
        let why = cause(&Evidence {
            blank: state.blank,
            alone,
            leader: state.leader.map(|(leader, _)| leader),
            handed: state.handed,
            closed: state.closed,
            silent: state.alive.map(|alive| now.since(alive)).unwrap_or_default(),
            timeout: self.timeout,
            waited: now.since(state.began),
            tried: Some(state.tried).filter(|tried| *tried > led_in && *tried < term),
        });
        state.stood = term;
        state.tried = state.tried.max(term);
        self.note(state, term, What::Stood(pb::Stood { cause: Some(pb::Cause { why: Some(why) }) }));
    }

    /// A voter answered this member.
    pub(crate) fn answered(&self, voter: u64, asked: &VoteRequest<TypeConfig>, answered: &VoteResponse<TypeConfig>) {
        let (term, answer) = (asked.vote.leader_id.term, ballot(asked, answered));
        let mut state = self.state();
        self.note(&mut state, term, What::Answered(pb::Answered { voter, answer: answer.into() }));
    }

    /// This member answered a candidate.
    pub(crate) fn voted(&self, asked: &VoteRequest<TypeConfig>, answered: &VoteResponse<TypeConfig>) {
        let (term, candidate, answer) = (asked.vote.leader_id.term, asked.vote.leader_id.voted_for, ballot(asked, answered));
        let mut state = self.state();
        if answer != pb::Answer::OtherVote {
            state.tried = state.tried.max(term);
        }
        self.note(&mut state, term, What::Voted(pb::Voted { candidate, answer: answer.into() }));
    }

    /// What consensus says now; it may have skipped what did not last.
    pub(crate) fn saw(&self, term: u64, leads: bool, leader: Option<u64>) {
        let mut state = self.state();
        let now = self.env.now_mono();
        if state.leads && (!leads || term != state.term) {
            let (before, mut health) = (state.term, std::mem::take(&mut state.health));
            // It looks four times in an election timeout, if it is let run.
            let gap = now.since(state.looked);
            if gap >= self.timeout / 2 && !health.contacts.is_empty() {
                health.paused_ms = health.paused_ms.max(millis(gap));
            }
            state.alive = Some(now);
            self.note(&mut state, before, What::SteppedDown(pb::SteppedDown { health: Some(health) }));
        }
        let new = leader.filter(|leader| state.leader != Some((*leader, term)));
        (state.term, state.leads) = (term, leads);
        let Some(leader) = new else { return };
        let leaderless_ms = state.alive.map(|alive| millis(now.since(alive)));
        if leader == self.me {
            if state.stood < term {
                self.stand(&mut state, term, true);
            }
            state.health = pb::Health::default();
            self.note(&mut state, term, What::Led(pb::Led { leaderless_ms }));
        } else {
            self.note(&mut state, term, What::Followed(pb::Followed { leader, leaderless_ms }));
        }
        state.leader = Some((leader, term));
        (state.alive, state.closed, state.handed) = (Some(now), None, None);
        (state.tried, state.handing) = (state.tried.max(term), pb::HandOver::Unknown);
    }

    /// What a leader's disk and contacts are like.
    pub(crate) fn health(&self, mut health: pb::Health) {
        let mut state = self.state();
        health.paused_ms = health.paused_ms.max(state.health.paused_ms);
        (state.health, state.looked) = (health, self.env.now_mono());
    }

    /// This member, which leads in `term`, hands that to another.
    pub(crate) fn hands_over(&self, term: u64, to: u64, why: pb::HandOver) {
        let mut state = self.state();
        state.handing = why;
        let health = Some(state.health.clone());
        self.note(&mut state, term, What::HandedOver(pb::HandedOver { to, why: why.into(), health }));
    }

    /// A member that was gone has been replaced.
    pub(crate) fn replaced(&self, what: pb::Replaced) {
        let mut state = self.state();
        let term = state.term;
        self.note(&mut state, term, What::Replaced(what));
    }

    /// Why leadership is being handed over.
    pub(crate) fn handing(&self) -> pb::HandOver {
        self.state().handing
    }

    /// Everything that is remembered, oldest first.
    pub(crate) fn told(&self) -> pb::MemberObservations {
        pb::MemberObservations { member_id: self.me, name: self.name.clone(), observations: self.state().seen.iter().cloned().collect() }
    }

    /// Writes what is new to the file whenever there is something.
    pub(crate) async fn keep_on(self: Arc<Self>) {
        let Some(keeper) = &self.keeper else { return };
        loop {
            keeper.wait().await;
            self.keep_now().await;
        }
    }

    /// Writes what is new to the file. What cannot be written stays in memory, and is tried again with the next.
    pub(crate) async fn keep_now(&self) {
        let Some(keeper) = &self.keeper else { return };
        let turn = keeper.turn().await;
        let new: Vec<pb::Observation> = {
            let state = self.state();
            state.seen.iter().skip(state.seen.len() - state.unkept).cloned().collect()
        };
        if new.is_empty() {
            return;
        }
        let all = || self.state().seen.iter().cloned().collect::<Vec<_>>();
        match turn.append(&new, all).await {
            Ok(()) => {
                let mut state = self.state();
                state.unkept = state.unkept.saturating_sub(new.len());
            }
            Err(error) => tracing::warn!(%error, "what this member saw of elections could not be written down"),
        }
    }
}

#[cfg(test)]
mod tests;
