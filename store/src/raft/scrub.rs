//! Members compare what they have, all the time and a little at a time, led by the leader.
//!
//! Two things are compared. What was written since the last round, in the order of revisions: that finds members that apply the same entry
//! differently, within a second, and costs nothing while nothing is written. And, in cycles, everything that is stored, a stretch of keys
//! per round: that finds records which have changed where they lie. Both are hashed as of a revision, so no member has to stop or to stand
//! at the same place; a member that is behind, or compacted further, is simply not compared in that round.
//!
//! Who differs from a majority of the voters is wrong: it is fenced by an alarm of its own, which it takes back when it has been rebuilt
//! from the others (`rebuild`). Where there is no majority nobody can tell who is right, and the alarm stops the whole cluster, as in etcd.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use kontiki_base::env::Mono;
use kontiki_base::ids::{LogIndex, MemberId, Revision, Term};
use kontiki_base::net::PeerRpc;
use kontiki_mvcc::{Alarm, AlarmKind, Command, Space, View, span};

use super::machine::blocking;
use super::network::within;
use super::node::Inner;
use super::{Role, admin, wire};
use crate::engine::mark::{AppliedMark, MARK_KEY};

/// Revisions and versions that one round looks at. What is written faster than that is sampled; the cycles look at all of it.
const PER_ROUND: usize = 1_000;

/// What is compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// The changes after a revision, up to and with another.
    Changes { after: Revision, upto: Revision },
    /// The versions up to `at` of the keys from one up to and without another.
    Keys { from: Bytes, to: Option<Bytes>, at: Revision },
    /// Leases, users and alarms, at one place in the log.
    Rest { at: LogIndex },
}

/// A part, as of a state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Question {
    pub(super) part: Part,
    /// The compact revision of who asks.
    pub(super) compact: Revision,
    /// Who asks has applied up to here: who answers waits a little until it has, too.
    pub(super) applied: LogIndex,
}

/// What a member found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Finding {
    Hash(u64),
    /// The member's own records disagree with each other, or cannot be read.
    Contradiction(String),
    /// It stands elsewhere in history: nothing is known.
    Elsewhere,
}

impl Question {
    pub(super) fn encode(&self, out: &mut BytesMut) {
        out.put_i64(self.compact.get());
        out.put_u64(self.applied.get());
        match &self.part {
            Part::Changes { after, upto } => {
                out.put_u8(0);
                out.put_i64(after.get());
                out.put_i64(upto.get());
            }
            Part::Keys { from, to, at } => {
                out.put_u8(if to.is_some() { 1 } else { 2 });
                out.put_i64(at.get());
                wire::put_bytes(out, from);
                out.put_slice(to.as_deref().unwrap_or_default());
            }
            Part::Rest { at } => {
                out.put_u8(3);
                out.put_u64(at.get());
            }
        }
    }

    pub(super) fn decode(mut from: Bytes) -> Option<Self> {
        let number = |from: &mut Bytes| from.try_get_i64().ok().map(Revision::new);
        let (compact, applied) = (number(&mut from)?, LogIndex::new(from.try_get_u64().ok()?));
        let part = match from.try_get_u8().ok()? {
            0 => Part::Changes { after: number(&mut from)?, upto: number(&mut from)? },
            kind @ (1 | 2) => {
                let at = number(&mut from)?;
                let first = wire::get_bytes(&mut from)?;
                Part::Keys { from: first, to: (kind == 1).then(|| std::mem::take(&mut from)), at }
            }
            3 => Part::Rest { at: LogIndex::new(from.try_get_u64().ok()?) },
            _ => return None,
        };
        from.is_empty().then_some(Self { part, compact, applied })
    }
}

impl Finding {
    pub(super) fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        match self {
            Self::Hash(hash) => {
                out.put_u8(0);
                out.put_u64(*hash);
            }
            Self::Contradiction(why) => {
                out.put_u8(1);
                out.put_slice(why.as_bytes());
            }
            Self::Elsewhere => out.put_u8(2),
        }
        out.freeze()
    }

    fn decode(mut from: Bytes) -> Option<Self> {
        Some(match from.try_get_u8().ok()? {
            0 => Self::Hash(from.try_get_u64().ok()?),
            1 => Self::Contradiction(String::from_utf8_lossy(&from).into_owned()),
            2 => Self::Elsewhere,
            _ => return None,
        })
    }
}

/// What a state says to a question.
fn examine(view: &dyn View, question: &Question) -> Finding {
    let looked = || {
        let now = kontiki_mvcc::current(view)?;
        let (here, hash) = match &question.part {
            Part::Changes { after, upto } if now.revision >= *upto => (true, span::hash_changes(view, *after, *upto)?),
            Part::Keys { from, to, at } if now.revision >= *at => (true, span::hash_keys(view, from, to.as_deref(), *at)?),
            Part::Rest { at } if applied(view) == Some(*at) => (true, span::hash_rest(view)?),
            _ => (false, 0),
        };
        Ok((here && now.compact == question.compact).then_some(hash))
    };
    match looked() {
        Ok(Some(hash)) => Finding::Hash(hash),
        Ok(None) => Finding::Elsewhere,
        Err(error @ kontiki_mvcc::ViewError { .. }) => Finding::Contradiction(error.to_string()),
    }
}

/// The place in the log that a state is the result of.
fn applied(view: &dyn View) -> Option<LogIndex> {
    let mark = view.get(Space::Sys, MARK_KEY).ok()??;
    AppliedMark::decode(mark).map(|mark| mark.pos.index)
}

/// Answers another member.
pub(super) async fn answer(inner: &Inner, question: Question) -> Finding {
    let patience = inner.now().plus(inner.timings.election.0);
    if inner.wait_applied(question.applied, patience).await.is_err() {
        return Finding::Elsewhere;
    }
    let engine = inner.engine.clone();
    blocking(inner.inline, move || examine(&*engine.snapshot(), &question)).await.unwrap_or(Finding::Elsewhere)
}

/// Who is wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Verdict {
    /// These differ from a majority, or from themselves.
    wrong: BTreeSet<MemberId>,
    /// These differ from the leader, and there is no majority.
    doubtful: BTreeSet<MemberId>,
}

fn judge(leader: MemberId, voters: &BTreeSet<MemberId>, findings: &BTreeMap<MemberId, Finding>) -> Verdict {
    let mut verdict = Verdict::default();
    let mut counts: BTreeMap<u64, usize> = BTreeMap::new();
    for (_, finding) in findings.iter().filter(|(id, _)| voters.contains(id)) {
        if let Finding::Hash(hash) = finding {
            *counts.entry(*hash).or_default() += 1;
        }
    }
    let differs = |from: u64| {
        let others = findings.iter().filter(move |(_, finding)| matches!(finding, Finding::Hash(hash) if *hash != from));
        others.map(|(id, _)| *id).collect::<BTreeSet<_>>()
    };
    let contradicts = findings.iter().filter(|(_, finding)| matches!(finding, Finding::Contradiction(_))).map(|(id, _)| *id);
    match counts.iter().find(|(_, count)| **count * 2 > voters.len()) {
        Some((hash, _)) => verdict.wrong.extend(differs(*hash).into_iter().chain(contradicts)),
        None => {
            // Fewer than a majority agree. If some could not be asked, a later round may tell.
            let heard: usize = counts.values().sum::<usize>() + contradicts.clone().filter(|id| voters.contains(id)).count();
            if heard == voters.len() {
                verdict.doubtful.extend(contradicts);
                if let Some(Finding::Hash(hash)) = findings.get(&leader) {
                    verdict.doubtful.extend(differs(*hash));
                }
            }
        }
    }
    verdict
}

/// Where the leader's comparison stands.
struct Cycle {
    term: Term,
    /// Changes up to here were compared.
    compared: Revision,
    /// The next stretch of keys; `None` between two cycles.
    next: Option<Bytes>,
    began: Mono,
}

/// Compares while this member leads.
pub(super) async fn run(inner: Arc<Inner>) {
    let mut cycle: Option<Cycle> = None;
    loop {
        inner.env.sleep(inner.timings.compare_every).await;
        if inner.stopped() {
            return;
        }
        let status = inner.status.borrow().clone();
        if status.role != Role::Leader {
            cycle = None;
            continue;
        }
        let now = inner.now();
        let state = match cycle.take() {
            Some(state) if state.term == status.term => state,
            _ => Cycle { term: status.term, compared: Revision::ZERO, next: Some(Bytes::new()), began: now },
        };
        cycle = Some(round(&inner, state).await);
    }
}

async fn round(inner: &Arc<Inner>, mut cycle: Cycle) -> Cycle {
    let engine = inner.engine.clone();
    let from = cycle.next.clone();
    let look = move || {
        let view = engine.snapshot();
        let now = kontiki_mvcc::current(&*view)?;
        let to = from.as_deref().map(|from| span::end_of_keys(&*view, from, PER_ROUND)).transpose()?;
        Ok::<_, kontiki_mvcc::ViewError>((now, to, applied(&*view).unwrap_or_default()))
    };
    let (now, to, at) = match blocking(inner.inline, look).await {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => {
            tracing::error!(%error, "the state cannot be read to be compared");
            return cycle;
        }
        Err(_) => return cycle,
    };
    if now.revision > cycle.compared {
        let after = cycle.compared.max(Revision::new(now.revision.get() - PER_ROUND as i64));
        compare(inner, Part::Changes { after, upto: now.revision }, now.compact, at).await;
        cycle.compared = now.revision;
    }
    match (cycle.next.take(), to) {
        (Some(from), Some(to)) => {
            compare(inner, Part::Keys { from, to: to.clone(), at: now.revision }, now.compact, at).await;
            if to.is_none() {
                compare(inner, Part::Rest { at }, now.compact, at).await;
            }
            cycle.next = to;
        }
        _ if inner.now().since(cycle.began) >= inner.timings.scrub_every => {
            cycle.next = Some(Bytes::new());
            cycle.began = inner.now();
        }
        _ => {}
    }
    cycle
}

/// Compares a part, and acts if a second look confirms what the first found.
async fn compare(inner: &Arc<Inner>, part: Part, compact: Revision, applied: LogIndex) {
    let question = Question { part, compact, applied };
    let verdict = ask_all(inner, &question).await;
    if verdict == Verdict::default() {
        return;
    }
    inner.env.sleep(inner.timings.heartbeat).await;
    if ask_all(inner, &question).await == verdict && inner.status.borrow().role == Role::Leader {
        act(inner, &question.part, verdict).await;
    }
}

async fn ask_all(inner: &Arc<Inner>, question: &Question) -> Verdict {
    let status = inner.status.borrow().clone();
    let voters: BTreeSet<MemberId> = status.members.iter().filter(|m| !m.learner).map(|m| m.id).collect();
    let others = status.members.iter().filter(|m| m.id != inner.id);
    let calls = others.map(|member| async move {
        let addr = member.peer_urls.first().map_or("", String::as_str);
        let call = inner.net.call(member.id, addr, PeerRpc::Ask, admin::Request::Compare(question.clone()).encode());
        let reply = within(&*inner.env, inner.timings.election.1 * 2, call).await?.ok()?;
        Some((member.id, Finding::decode(admin::decode_reply(reply).ok()?)?))
    });
    let (mine, theirs) = futures::join!(answer(inner, question.clone()), futures::future::join_all(calls));
    let mut findings: BTreeMap<MemberId, Finding> = theirs.into_iter().flatten().collect();
    findings.insert(inner.id, mine);
    let verdict = judge(inner.id, &voters, &findings);
    if verdict != Verdict::default() {
        tracing::error!(part = ?question.part, ?findings, "members hold different data");
    }
    verdict
}

async fn act(inner: &Arc<Inner>, part: &Part, verdict: Verdict) {
    let Verdict { wrong, doubtful } = verdict;
    for (members, automatic) in [(&wrong, true), (&doubtful, false)] {
        for member in members {
            let alarm = Alarm { kind: AlarmKind::Corrupt, member: *member, automatic };
            tracing::error!(%member, ?part, automatic, "alarm: the member's data is corrupt");
            if let Err(error) = inner.propose(vec![Command::Alarm { raise: true, alarm }], None).await {
                tracing::warn!(%member, %error, "the alarm could not be raised yet; the next cycle finds the difference again");
            }
        }
    }
    if wrong.contains(&inner.id) {
        admin::leave_leadership_to(inner, kontiki_proto::store::HandOver::Corrupt, |id| !wrong.contains(&id)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(ids: &[u64]) -> BTreeSet<MemberId> {
        ids.iter().copied().map(MemberId::new).collect()
    }

    #[test]
    fn a_majority_is_right_and_without_one_nobody_is() {
        use Finding::{Contradiction, Elsewhere, Hash};
        let bad = || Contradiction("x".into());
        /// Voters; what members found; who is wrong, who is doubtful.
        type Row<'a> = (&'a [u64], &'a [(u64, Finding)], &'a [u64], &'a [u64]);
        let table: &[Row<'_>] = &[
            (&[1, 2, 3], &[(1, Hash(7)), (2, Hash(7)), (3, Hash(7))], &[], &[]),
            (&[1, 2, 3], &[(1, Hash(7)), (2, Hash(7)), (3, Hash(8))], &[3], &[]),
            // The leader itself is wrong.
            (&[1, 2, 3], &[(1, Hash(8)), (2, Hash(7)), (3, Hash(7))], &[1], &[]),
            (&[1, 2, 3], &[(1, bad()), (2, Hash(7)), (3, Hash(7))], &[1], &[]),
            // One cannot be asked, or stands elsewhere: two that agree are a majority, two that do not are none.
            (&[1, 2, 3], &[(1, Hash(7)), (2, Hash(7))], &[], &[]),
            (&[1, 2, 3], &[(1, Hash(7)), (2, Hash(8)), (3, Elsewhere)], &[], &[]),
            (&[1, 2, 3], &[(1, Hash(7)), (2, Hash(8)), (3, Hash(9))], &[], &[2, 3]),
            (&[1, 2], &[(1, Hash(7)), (2, Hash(8))], &[], &[2]),
            (&[1], &[(1, Hash(7))], &[], &[]),
            (&[1], &[(1, bad())], &[], &[1]),
            // A learner has no say, and can be wrong.
            (&[1, 2], &[(1, Hash(7)), (2, Hash(7)), (9, Hash(8))], &[9], &[]),
        ];
        for (voters, findings, wrong, doubtful) in table {
            let findings: BTreeMap<_, _> = findings.iter().map(|(id, f)| (MemberId::new(*id), f.clone())).collect();
            let expected = Verdict { wrong: ids(wrong), doubtful: ids(doubtful) };
            assert_eq!(judge(MemberId::new(1), &ids(voters), &findings), expected, "{findings:?}");
        }
    }

    #[test]
    fn questions_and_findings_survive_their_encoding() {
        let parts = [
            Part::Changes { after: Revision::new(3), upto: Revision::new(9) },
            Part::Keys { from: Bytes::new(), to: Some(Bytes::from_static(b"k\0")), at: Revision::new(4) },
            Part::Keys { from: Bytes::from_static(b"k"), to: None, at: Revision::new(4) },
            Part::Rest { at: LogIndex::new(8) },
        ];
        for part in parts {
            let question = Question { part, compact: Revision::new(-1), applied: LogIndex::new(5) };
            let mut out = BytesMut::new();
            question.encode(&mut out);
            assert_eq!(Question::decode(out.freeze()), Some(question));
        }
        assert_eq!(Question::decode(Bytes::from_static(&[0; 17])), None);
        for finding in [Finding::Hash(7), Finding::Contradiction("why".into()), Finding::Elsewhere] {
            assert_eq!(Finding::decode(finding.encode()), Some(finding));
        }
    }
}
