//! Why the leader changed: what members saw of elections, joined. Pure.
//!
//! Each member saw a part: the candidate why it stood and who answered it, the voters whom they voted for, the old leader what its disk and its
//! contacts were like. [`join`] puts the parts of one term together. Times are those of the clocks of the members that saw a thing; how long there
//! was no leader is measured by one member on its own monotonic clock.

mod cause;

use std::collections::{BTreeMap, BTreeSet};

use kontiki_proto::store as pb;
use pb::observation::What;
use serde::Serialize;

pub use cause::Code;
use cause::{Known, because, code};

/// A member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Who {
    /// Its id in hexadecimal, as etcdctl has it.
    pub id: String,
    /// Its name; empty if nobody knew it.
    pub name: String,
}

/// Something that supports a cause, as one member saw it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Evidence {
    /// When, in milliseconds since the Unix epoch.
    pub at_ms: i64,
    /// What.
    pub text: String,
}

/// A voter's answer to who was elected.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Vote {
    /// Who.
    pub voter: Who,
    /// Whether it voted for it.
    pub granted: bool,
    /// In words.
    pub text: &'static str,
}

/// Somebody stood and did not win.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Try {
    /// In which term.
    pub term: u64,
    /// When it stood.
    pub at_ms: i64,
    /// Who.
    pub candidate: Who,
    /// Why.
    pub because: String,
}

/// A change of the leader.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Election {
    /// The term that began.
    pub term: u64,
    /// When it was decided.
    pub at_ms: i64,
    /// Who leads.
    pub leader: Who,
    /// Who led before, and in which term, if anybody saw one.
    pub before: Option<(u64, Who)>,
    /// Why there had to be an election.
    pub cause: Code,
    /// The same in a sentence.
    pub because: String,
    /// What supports it, in the order in which it was seen.
    pub evidence: Vec<Evidence>,
    /// Who answered.
    pub votes: Vec<Vote>,
    /// Who stood before and did not win.
    pub tries: Vec<Try>,
    /// From the last sign of the old leader to the new one, in milliseconds. The last sign may be a heartbeat interval old when a leader ends.
    pub leaderless_ms: Option<u64>,
}

/// A member that was gone was replaced by a learner (`--auto-heal`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Replacement {
    /// When.
    pub at_ms: i64,
    /// The leader that did it.
    pub by: Who,
    /// Who was gone.
    pub dead: Who,
    /// Who has its vote.
    pub learner: Who,
    /// How long it had not answered, in milliseconds.
    pub silent_ms: u64,
    /// The same in a sentence.
    pub because: String,
}

/// Everything that is known of elections.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct History {
    /// Oldest first.
    pub elections: Vec<Election>,
    /// Members that were replaced, oldest first.
    pub replacements: Vec<Replacement>,
    /// Who has stood since, and has not won so far.
    pub undecided: Vec<Try>,
    /// Members that did not say what they saw.
    pub silent: Vec<Who>,
}

/// What members said, looked up by term.
struct Book<'a> {
    members: BTreeMap<u64, &'a pb::MemberObservations>,
    names: BTreeMap<u64, &'a str>,
}

/// An observation and who made it.
type Seen<'a> = (u64, &'a pb::Observation);

impl<'a> Book<'a> {
    fn new(told: &'a [pb::MemberObservations], silent: &'a [pb::Silent]) -> Self {
        let mut book = Self { members: BTreeMap::new(), names: BTreeMap::new() };
        for member in told {
            book.members.insert(member.member_id, member);
            book.names.insert(member.member_id, &member.name);
        }
        for silent in silent.iter().filter(|silent| !silent.name.is_empty()) {
            book.names.entry(silent.member_id).or_insert(&silent.name);
        }
        book
    }

    fn who(&self, id: u64) -> Who {
        Who { id: format!("{id:x}"), name: self.names.get(&id).map_or_else(String::new, |name| (*name).to_owned()) }
    }

    fn called(&self, id: u64) -> String {
        self.names.get(&id).filter(|name| !name.is_empty()).map_or_else(|| format!("member {id:x}"), |name| (*name).to_owned())
    }

    fn all(&self) -> impl Iterator<Item = Seen<'a>> + '_ {
        self.members.iter().flat_map(|(id, member)| member.observations.iter().map(|seen| (*id, seen)))
    }

    /// Who led in which term, as far as anybody saw.
    fn leaders(&self) -> BTreeMap<u64, u64> {
        let mut leaders = BTreeMap::new();
        for (by, seen) in self.all() {
            match &seen.what {
                Some(What::Led(_)) => drop(leaders.insert(seen.term, by)),
                Some(What::Followed(followed)) => drop(leaders.insert(seen.term, followed.leader)),
                _ => {}
            }
        }
        leaders
    }

    /// Who stood in the terms between these two, the second included; first come first.
    fn stood(&self, after: u64, upto: u64) -> Vec<(u64, &'a pb::Observation, &'a pb::Stood)> {
        let mut stood: Vec<_> = self
            .all()
            .filter(|(_, seen)| seen.term > after && seen.term <= upto)
            .filter_map(|(by, seen)| match &seen.what {
                Some(What::Stood(stood)) => Some((by, seen, stood)),
                _ => None,
            })
            .collect();
        stood.sort_by_key(|(by, seen, _)| (seen.term, seen.at_ms, *by));
        stood
    }

    fn try_of(&self, by: u64, seen: &pb::Observation, stood: &pb::Stood) -> Try {
        let why = stood.cause.as_ref().and_then(|cause| cause.why);
        Try { term: seen.term, at_ms: seen.at_ms, candidate: self.who(by), because: because(why.as_ref(), by, &|id| self.called(id)) }
    }

    fn votes(&self, term: u64, leader: u64) -> Vec<Vote> {
        let mut answers: BTreeMap<u64, pb::Answer> = BTreeMap::from([(leader, pb::Answer::Granted)]);
        for (by, seen) in self.all().filter(|(_, seen)| seen.term == term) {
            match &seen.what {
                Some(What::Answered(answered)) if by == leader => drop(answers.insert(answered.voter, answered.answer())),
                Some(What::Voted(voted)) if voted.candidate == leader => drop(answers.entry(by).or_insert(voted.answer())),
                _ => {}
            }
        }
        let stood = self.all().any(|(by, seen)| by == leader && seen.term == term && matches!(seen.what, Some(What::Stood(_))));
        if !stood {
            // Nothing of the candidate itself is known: what others say of it is.
            answers.remove(&leader);
        }
        let vote = |(voter, answer): (u64, pb::Answer)| Vote {
            voter: self.who(voter),
            granted: answer == pb::Answer::Granted,
            text: match answer {
                pb::Answer::Granted => "yes",
                pb::Answer::LongerLog => "no: its own log is longer",
                pb::Answer::OtherVote => "no: it has voted for another, or knows a later term",
                pb::Answer::HasLeader => "no: it still had a leader",
                pb::Answer::None => "no",
            },
        };
        answers.into_iter().map(vote).collect()
    }

    /// What the leader of a term says of its end, and what it was like then.
    fn end_of(&self, term: u64, leader: u64) -> (Known, Vec<Evidence>) {
        let mut known = Known::default();
        let mut evidence = Vec::new();
        let name = self.called(leader);
        let Some(member) = self.members.get(&leader) else { return (known, evidence) };
        let mut last = None;
        let mut say = |seen: &pb::Observation, text: String| evidence.push(Evidence { at_ms: seen.at_ms, text });
        for (n, seen) in member.observations.iter().enumerate() {
            let of_term = seen.term == term;
            match &seen.what {
                Some(What::HandedOver(over)) if of_term => {
                    let to = self.called(over.to);
                    say(seen, format!("{name} handed leadership to {to}{}", self.health(over.health.as_ref())));
                }
                Some(What::SteppedDown(down)) if of_term => {
                    say(seen, format!("{name} knew that it led no more{}", self.health(down.health.as_ref())));
                    known.stepped_down = down.health.clone();
                }
                Some(What::Stopped(_)) if of_term => {
                    known.stopped = true;
                    say(seen, format!("{name} was stopped"));
                }
                Some(What::Started(_)) if last.is_some() && known.restarted.is_none() && seen.term <= term => {
                    known.restarted = Some(!known.stopped);
                    let how = if known.stopped { "" } else { ", and had not been stopped: it was killed, or crashed" };
                    say(seen, format!("the process of {name} began again{how}"));
                }
                _ => {}
            }
            if matches!(seen.what, Some(What::Led(_))) && of_term {
                last = Some(n);
            }
        }
        (known, evidence)
    }

    /// The state of a leader's disk and contacts, as a clause.
    fn health(&self, health: Option<&pb::Health>) -> String {
        let Some(health) = health else { return String::new() };
        let mut parts = Vec::new();
        if health.paused_ms >= cause::PAUSE_MS {
            parts.push(format!("its process had not run for {} ms", health.paused_ms));
        }
        if health.stalled_ms > 0 {
            parts.push(format!("a sync of its log had taken {} ms so far", health.stalled_ms));
        }
        if health.slow_syncs > 0 {
            parts.push(format!("{} syncs had been slow", health.slow_syncs));
        }
        let contact = |contact: &pb::Contact| {
            let name = self.called(contact.member_id);
            contact.ago_ms.map_or_else(|| format!("{name} had never answered it"), |ago| format!("{name} had answered it {ago} ms before"))
        };
        parts.extend(health.contacts.iter().map(contact));
        if parts.is_empty() { String::new() } else { format!("; {}", parts.join(", ")) }
    }

    fn replacements(&self) -> Vec<Replacement> {
        let mut found: Vec<Replacement> = self
            .all()
            .filter_map(|(by, seen)| {
                let Some(What::Replaced(what)) = &seen.what else { return None };
                let (dead, learner) = (self.called(what.dead), self.called(what.learner));
                let because = format!(
                    "{dead} had not answered for {} ms, and {} ms are borne: {learner}, which had nearly all of the log, has its vote",
                    what.silent_ms, what.patience_ms
                );
                let (dead, learner) = (self.who(what.dead), self.who(what.learner));
                Some(Replacement { at_ms: seen.at_ms, by: self.who(by), dead, learner, silent_ms: what.silent_ms, because })
            })
            .collect();
        found.sort_by_key(|replacement| replacement.at_ms);
        found
    }

    fn election(&self, term: u64, leader: u64, before: Option<(u64, u64)>) -> Option<Election> {
        let after = before.map_or(0, |(term, _)| term);
        let stood = self.stood(after, term);
        let decided = self.all().filter(|(by, seen)| match &seen.what {
            Some(What::Led(_)) => seen.term == term && *by == leader,
            Some(What::Followed(_)) => seen.term == term,
            _ => false,
        });
        // The leader's own word first: the others hear of it later.
        let (_, seen) = decided.min_by_key(|(by, seen)| (*by != leader, seen.at_ms))?;
        let leaderless_ms = match &seen.what {
            Some(What::Led(led)) => led.leaderless_ms,
            Some(What::Followed(followed)) => followed.leaderless_ms,
            _ => None,
        };
        let (known, mut evidence) = before.map(|(term, leader)| self.end_of(term, leader)).unwrap_or_default();
        let first = stood.first().map(|(by, _, stood)| (*by, stood.cause.as_ref().and_then(|cause| cause.why)));
        let (by, why) = first.map_or((leader, None), |(by, why)| (by, why));
        let cause = code(why.as_ref(), &known);
        for (by, seen, stood) in &stood {
            let why = stood.cause.as_ref().and_then(|cause| cause.why.as_ref());
            let text =
                format!("{} stood for election in term {}: {}", self.called(*by), seen.term, because(why, *by, &|id| self.called(id)));
            evidence.push(Evidence { at_ms: seen.at_ms, text });
        }
        evidence.sort_by_key(|evidence| evidence.at_ms);
        let lost = stood.iter().filter(|(by, seen, _)| (*by, seen.term) != (leader, term));
        Some(Election {
            term,
            at_ms: seen.at_ms,
            leader: self.who(leader),
            before: before.map(|(term, leader)| (term, self.who(leader))),
            cause,
            because: cause::sentence(cause, why.as_ref(), by, &known, &|id| self.called(id)),
            evidence,
            votes: self.votes(term, leader),
            tries: lost.map(|(by, seen, stood)| self.try_of(*by, seen, stood)).collect(),
            leaderless_ms,
        })
    }
}

/// Joins what members saw. Who is asked twice counts once.
pub fn join(told: &[pb::MemberObservations], silent: &[pb::Silent]) -> History {
    let book = Book::new(told, silent);
    let leaders = book.leaders();
    let mut history = History::default();
    let mut before = None;
    for (term, leader) in &leaders {
        history.elections.extend(book.election(*term, *leader, before));
        before = Some((*term, *leader));
    }
    history.replacements = book.replacements();
    let last = before.map_or(0, |(term, _)| term);
    history.undecided = book.stood(last, u64::MAX).into_iter().map(|(by, seen, stood)| book.try_of(by, seen, stood)).collect();
    let quiet: BTreeSet<u64> = silent.iter().map(|silent| silent.member_id).filter(|id| !book.members.contains_key(id)).collect();
    history.silent = quiet.into_iter().map(|id| book.who(id)).collect();
    history
}

#[cfg(test)]
mod tests;
