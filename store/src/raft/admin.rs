//! What only the leader can do, asked from any member: questions to its desk, changes of the membership, handing leadership over.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use kontiki_base::ids::MemberId;
use kontiki_base::kv::KvError;
use kontiki_base::net::PeerRpc;
use kontiki_proto::convert::error::EtcdError;
use kontiki_proto::store::HandOver;
use openraft::ChangeMembers;
use openraft::async_runtime::WatchReceiver as _;
use prost::Message as _;

use super::network::within;
use super::node::Inner;
use super::types::Peer;
use super::{Member, identity, members, removed, scrub, wire};

/// A question to the leader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// For the desk.
    Desk(Bytes),
    AddLearner(Member),
    SetVoters(Vec<MemberId>),
    RemoveLearner(MemberId),
    Update(Member),
    Transfer(MemberId),
    /// A learner gets a vote; `true`: if it has nearly all of the log.
    Promote(MemberId, bool),
    RemoveVoter(MemberId),
    /// A learner that has nearly all of the log gets the vote of a member that is gone.
    Replace {
        dead: MemberId,
        learner: MemberId,
    },
    /// Any member answers this one: what it takes for the membership, and how much of the log is committed.
    Belongs,
    /// Any member answers this one: its cluster, and what [`Request::Belongs`] is answered with. Asked by who does not know yet who it is.
    WhoAmI,
    /// Any member answers this one, too: what it finds in a part of its state.
    Compare(scrub::Question),
    /// And this one: what it saw of elections.
    Observations,
}

impl Request {
    pub(super) fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        match self {
            Self::Desk(question) => {
                out.put_u8(0);
                out.put_slice(question);
            }
            Self::AddLearner(member) => put_member(&mut out, 1, member),
            Self::SetVoters(voters) => {
                out.put_u8(2);
                voters.iter().for_each(|id| out.put_u64(id.get()));
            }
            Self::RemoveLearner(id) => put_id(&mut out, 3, *id),
            Self::Update(member) => put_member(&mut out, 4, member),
            Self::Transfer(id) => put_id(&mut out, 5, *id),
            Self::WhoAmI => out.put_u8(6),
            Self::Compare(question) => {
                out.put_u8(7);
                question.encode(&mut out);
            }
            Self::Promote(id, false) => put_id(&mut out, 8, *id),
            Self::Promote(id, true) => put_id(&mut out, 9, *id),
            Self::RemoveVoter(id) => put_id(&mut out, 10, *id),
            Self::Belongs => out.put_u8(11),
            Self::Replace { dead, learner } => {
                put_id(&mut out, 13, *dead);
                out.put_u64(learner.get());
            }
            Self::Observations => out.put_u8(12),
        }
        out.freeze()
    }

    fn decode(mut from: Bytes) -> Option<Self> {
        Some(match from.try_get_u8().ok()? {
            0 => Self::Desk(from),
            1 => Self::AddLearner(get_member(from)?),
            2 if from.len().is_multiple_of(8) => Self::SetVoters(from.chunks(8).map(|mut id| MemberId::new(id.get_u64())).collect()),
            3 => Self::RemoveLearner(MemberId::new(wire::decode(from, wire::get_u64).ok()?)),
            4 => Self::Update(get_member(from)?),
            5 => Self::Transfer(MemberId::new(wire::decode(from, wire::get_u64).ok()?)),
            6 if from.is_empty() => Self::WhoAmI,
            7 => Self::Compare(scrub::Question::decode(from)?),
            8 => Self::Promote(MemberId::new(wire::decode(from, wire::get_u64).ok()?), false),
            9 => Self::Promote(MemberId::new(wire::decode(from, wire::get_u64).ok()?), true),
            10 => Self::RemoveVoter(MemberId::new(wire::decode(from, wire::get_u64).ok()?)),
            11 if from.is_empty() => Self::Belongs,
            12 if from.is_empty() => Self::Observations,
            13 => {
                let (dead, learner) = wire::decode(from, |from: &mut Bytes| Some((wire::get_u64(from)?, wire::get_u64(from)?))).ok()?;
                Self::Replace { dead: MemberId::new(dead), learner: MemberId::new(learner) }
            }
            _ => return None,
        })
    }
}

fn put_id(out: &mut BytesMut, kind: u8, id: MemberId) {
    out.put_u8(kind);
    out.put_u64(id.get());
}

fn put_member(out: &mut BytesMut, kind: u8, member: &Member) {
    put_id(out, kind, member.id);
    wire::put_peer(out, &peer_of(member, false));
}

fn get_member(from: Bytes) -> Option<Member> {
    let get = |from: &mut Bytes| Some((wire::get_u64(from)?, wire::get_peer(from)?));
    let (id, peer) = wire::decode(from, get).ok()?;
    Some(peer.member(id, true))
}

fn peer_of(member: &Member, started: bool) -> Peer {
    Peer { name: member.name.clone(), peer_urls: member.peer_urls.clone(), client_urls: member.client_urls.clone(), started }
}

/// Errors that keep their identity on the way from the leader to a client's member: number and error.
fn errors() -> [(u8, KvError); 12] {
    [
        (1, KvError::NoLeader),
        (2, KvError::LeaderChanged),
        (3, KvError::Timeout),
        (4, KvError::Stopped),
        (5, KvError::LeaseNotFound),
        (6, KvError::LeaseExists),
        (7, KvError::LeaseTtlTooLarge),
        (8, KvError::TooManyRequests),
        (9, KvError::NoSpace),
        (10, KvError::TooLarge),
        (11, KvError::KeyNotFound),
        (12, KvError::EmptyKey),
    ]
}

const UNAVAILABLE: u8 = 100;
const INTERNAL: u8 = 101;
const UNIMPLEMENTED: u8 = 102;

fn encode_reply(reply: &Result<Bytes, KvError>) -> Bytes {
    let mut out = BytesMut::new();
    match reply {
        Ok(body) => {
            out.put_u8(0);
            out.put_slice(body);
        }
        Err(error) => {
            let (number, text) = match error {
                KvError::Unavailable(why) => (UNAVAILABLE, why.clone()),
                KvError::Unimplemented(what) => (UNIMPLEMENTED, what.clone()),
                other => errors().into_iter().find(|(_, e)| e == other).map_or((INTERNAL, other.to_string()), |(n, _)| (n, String::new())),
            };
            out.put_u8(number);
            out.put_slice(text.as_bytes());
        }
    }
    out.freeze()
}

pub(super) fn decode_reply(mut from: Bytes) -> Result<Bytes, KvError> {
    let number = from.try_get_u8().map_err(|_| KvError::Internal("an empty reply of the leader".into()))?;
    let text = || String::from_utf8_lossy(&from).into_owned();
    match number {
        0 => Ok(from),
        UNAVAILABLE => Err(KvError::Unavailable(text())),
        UNIMPLEMENTED => Err(KvError::Unimplemented(text())),
        _ => Err(errors().into_iter().find(|(n, _)| *n == number).map_or_else(|| KvError::Internal(text()), |(_, e)| e)),
    }
}

/// Asks the leader's desk.
pub(super) async fn ask_desk(inner: &Arc<Inner>, question: Bytes) -> Result<Bytes, KvError> {
    ask_bytes(inner, &Request::Desk(question)).await
}

/// Asks the leader to do something.
pub(super) async fn ask(inner: &Arc<Inner>, request: &Request) -> Result<(), KvError> {
    ask_bytes(inner, request).await.map(drop)
}

async fn ask_bytes(inner: &Arc<Inner>, request: &Request) -> Result<Bytes, KvError> {
    let deadline = inner.deadline();
    let lead = inner.wait_lead(deadline).await?;
    let left = inner.left(deadline).ok_or(KvError::Timeout)?;
    if lead.id == inner.id {
        return within(&*inner.env, left, answer(inner, request.clone())).await.unwrap_or(Err(KvError::Timeout));
    }
    let call = inner.net.call(lead.id, &lead.addr, PeerRpc::Ask, request.encode());
    match within(&*inner.env, left, call).await {
        Some(Ok(reply)) => decode_reply(reply),
        // The question may have been answered; who asks decides whether to ask again.
        Some(Err(_)) => Err(KvError::LeaderChanged),
        None => Err(KvError::Timeout),
    }
}

/// Serves a question of another member.
pub(super) async fn serve(inner: &Arc<Inner>, body: Bytes) -> Result<Bytes, String> {
    let request = Request::decode(body).ok_or("a question of a peer cannot be read")?;
    Ok(encode_reply(&answer(inner, request).await))
}

async fn answer(inner: &Arc<Inner>, request: Request) -> Result<Bytes, KvError> {
    if request == Request::WhoAmI {
        return Ok(identity::introduce(inner));
    }
    if let Request::Compare(question) = request {
        return Ok(scrub::answer(inner, question).await.encode());
    }
    if request == Request::Observations {
        return Ok(inner.chronicle.told().encode_to_vec().into());
    }
    if request == Request::Belongs {
        if inner.leaving.load(Ordering::Acquire) {
            return Err(KvError::Stopped);
        }
        return Ok(members::belonging(inner));
    }
    if inner.lead().is_none_or(|lead| lead.id != inner.id) {
        return Err(KvError::NoLeader);
    }
    match request {
        Request::Desk(question) => match inner.desk.get() {
            Some(desk) => return desk.answer(question).await,
            None => return Err(KvError::Unavailable("the leader is still starting".into())),
        },
        Request::AddLearner(member) => add_learner(inner, &member).await?,
        Request::SetVoters(voters) => {
            let voters: BTreeSet<u64> = voters.iter().map(|id| id.get()).collect();
            members::change(inner, ChangeMembers::ReplaceAllVoters(voters)).await?;
        }
        Request::RemoveLearner(id) => members::change(inner, ChangeMembers::RemoveNodes([id.get()].into())).await?,
        Request::Update(member) => members::update(inner, member.id, peer_of(&member, true)).await?,
        Request::Transfer(to) => transfer(inner, to, HandOver::Asked).await?,
        Request::Promote(id, ready) => members::promote(inner, id, ready).await?,
        Request::Replace { dead, learner } => members::replace(inner, dead, learner).await?,
        Request::RemoveVoter(id) => members::change(inner, ChangeMembers::RemoveVoters([id.get()].into())).await?,
        Request::WhoAmI | Request::Belongs | Request::Compare(_) | Request::Observations => {}
    }
    Ok(Bytes::new())
}

pub(super) fn membership(inner: &Inner) -> Arc<super::types::StoredMembership> {
    inner.raft.metrics().borrow_watched().membership_config.clone()
}

/// Adds a member without a vote. Who is added without an id gets one that nobody has had.
async fn add_learner(inner: &Inner, member: &Member) -> Result<(), KvError> {
    let _one = inner.adding.lock().await;
    // What was decided before is applied here: a new leader may not know yet who was removed.
    let at = inner.read_index().await?;
    inner.wait_applied(at, inner.deadline()).await?;
    let known = membership(inner);
    let taken = |(id, peer): (&u64, &Peer)| *id != member.id.get() && peer.peer_urls.iter().any(|url| member.peer_urls.contains(url));
    if known.membership().nodes().any(taken) {
        return Err(KvError::Unavailable(EtcdError::PeerUrlExists.text().into()));
    }
    let view = inner.engine.snapshot();
    let id = if member.id == MemberId::ZERO {
        free_id(member, &inner.cluster_token, inner.env.now_wall().0 / 1_000, |id| {
            Ok(known.membership().get_node(&id.get()).is_none() && !removed::contains(&*view, id)?)
        })?
    } else if removed::contains(&*view, member.id)? {
        return Err(KvError::Unavailable(EtcdError::MemberExists.text().into()));
    } else {
        member.id
    };
    drop(view);
    members::change(inner, ChangeMembers::AddNodes(BTreeMap::from([(id.get(), peer_of(member, false))]))).await
}

/// The first id from this second on that is free. Ids of two seconds are as good as random to each other.
fn free_id(member: &Member, token: &str, second: i64, is_free: impl Fn(MemberId) -> Result<bool, KvError>) -> Result<MemberId, KvError> {
    let mut second = second;
    loop {
        let id = identity::added_id(&member.peer_urls, token, second);
        if is_free(id)? {
            return Ok(id);
        }
        second = second.wrapping_add(1);
    }
}

/// Hands leadership to `to`, and waits until somebody else leads.
async fn transfer(inner: &Inner, to: MemberId, why: HandOver) -> Result<(), KvError> {
    if to == inner.id {
        return Ok(());
    }
    let voters: BTreeSet<u64> = membership(inner).voter_ids().collect();
    if !voters.contains(&to.get()) {
        return Err(KvError::Unavailable(format!("member {to} has no vote")));
    }
    let term = inner.raft.metrics().borrow_watched().current_term;
    inner.chronicle.hands_over(term, to.get(), why);
    inner.raft.trigger().transfer_leader(to.get()).await.map_err(|_| KvError::Stopped)?;
    let mut metrics = inner.raft.metrics();
    let moved = async {
        while metrics.borrow_watched().current_leader == Some(inner.id.get()) || metrics.borrow_watched().current_leader.is_none() {
            if metrics.changed().await.is_err() {
                return;
            }
        }
    };
    within(&*inner.env, inner.timings.election.1 * 2, moved).await.ok_or(KvError::Timeout)
}

/// Before a member stops it gives its leadership, if it has it, to the member that has the most of its log, so that writes go on at once. It is
/// told twice, before and after its clients have gone: what did not work the first time in a term is not tried again.
pub(super) async fn leave(inner: &Inner) {
    let first = !inner.leaving.swap(true, Ordering::AcqRel);
    if first || inner.lead().is_some_and(|lead| lead.id == inner.id && inner.chronicle.handing() == HandOver::Unknown) {
        leave_leadership(inner, HandOver::Stopping).await;
    }
}

/// Gives leadership to another, if this member has it.
pub(super) async fn leave_leadership(inner: &Inner, why: HandOver) {
    leave_leadership_to(inner, why, |_| true).await;
}

/// The same, to one of some.
pub(super) async fn leave_leadership_to(inner: &Inner, why: HandOver, suits: impl Fn(MemberId) -> bool) {
    if inner.lead().is_none_or(|lead| lead.id != inner.id) {
        return;
    }
    let voters: BTreeSet<u64> = membership(inner).voter_ids().collect();
    if voters.len() < 2 {
        return;
    }
    // Whoever stops, too, says so or does not answer: nobody can be elected without most of the others, and whoever stops need not try.
    let answering = members::answering(inner, LISTEN).await;
    if (answering.iter().filter(|id| voters.contains(&id.get())).count() + 1) * 2 <= voters.len() {
        tracing::info!("leadership was not handed over: most of the others do not answer, or stop, too");
        return;
    }
    let best = {
        let metrics = inner.raft.metrics();
        let metrics = metrics.borrow_watched();
        let others = metrics.replication.iter().flatten();
        let others =
            others.filter(|(id, _)| voters.contains(*id) && answering.contains(&MemberId::new(**id)) && suits(MemberId::new(**id)));
        others.max_by_key(|(_, matched)| **matched).map(|(id, _)| *id)
    };
    if let Some(best) = best
        && let Err(error) = transfer(inner, MemberId::new(best), why).await
    {
        tracing::info!(to = best, %error, "leadership was not handed over; an election decides");
    }
}

/// How long the others have to answer before a leader decides to whom it hands over.
const LISTEN: Duration = Duration::from_millis(300);

/// Tells the cluster, once in a member's life, that this member has started: from then on it is known to hold votes and entries, and
/// is refused should it ever come back with nothing (etcd does the same by publishing a member's client URLs).
pub(super) async fn announce(inner: Arc<Inner>, own: Peer) {
    loop {
        let known = membership(&inner).membership().get_node(&inner.id.get()).cloned();
        if known.is_some_and(|peer| peer.started) || inner.stopped() {
            return;
        }
        let asked = if membership(&inner).membership().get_node(&inner.id.get()).is_some() {
            ask(&inner, &Request::Update(own.member(inner.id.get(), true))).await
        } else {
            // Not a member yet: wait to be added.
            Err(KvError::NoLeader)
        };
        // Several members announce themselves at once, and one change of the membership is carried out at a time.
        let pause = if asked.is_ok() { 50 } else { 50 + inner.env.random_u64() % 200 };
        inner.env.sleep(Duration::from_millis(pause)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_that_somebody_has_had_is_not_given_again() {
        let member =
            Member { id: MemberId::ZERO, name: "m".into(), peer_urls: vec!["http://a".into()], client_urls: vec![], learner: true };
        let first = free_id(&member, "t", 7, |_| Ok(true)).unwrap();
        assert_eq!(free_id(&member, "t", 7, |id| Ok(id != first)).unwrap(), identity::added_id(&member.peer_urls, "t", 8));
        assert_eq!(free_id(&member, "t", 7, |_| Err(KvError::Stopped)), Err(KvError::Stopped));
    }

    #[test]
    fn questions_and_replies_survive_their_encoding() {
        let member =
            Member { id: MemberId::new(5), name: "m".into(), peer_urls: vec!["http://a".into()], client_urls: vec![], learner: true };
        let requests = [
            Request::Desk(Bytes::from_static(b"who")),
            Request::AddLearner(member.clone()),
            Request::SetVoters(vec![MemberId::new(1), MemberId::new(2)]),
            Request::RemoveLearner(MemberId::new(3)),
            Request::Update(member),
            Request::Transfer(MemberId::new(4)),
            Request::Promote(MemberId::new(5), false),
            Request::Promote(MemberId::new(5), true),
            Request::RemoveVoter(MemberId::new(6)),
            Request::WhoAmI,
            Request::Belongs,
            Request::Observations,
            Request::Replace { dead: MemberId::new(7), learner: MemberId::new(8) },
        ];
        for request in requests {
            assert_eq!(Request::decode(request.encode()), Some(request));
        }
        assert_eq!(Request::decode(Bytes::from_static(&[99])), None);
        let known = errors().into_iter().map(|(_, e)| Err(e));
        for reply in known.chain([Ok(Bytes::from_static(b"me")), Err(KvError::Unavailable("x".into())), Err(KvError::Internal("y".into()))])
        {
            match decode_reply(encode_reply(&reply)) {
                Err(KvError::Internal(text)) => assert!(text.ends_with('y')),
                other => assert_eq!(other, reply),
            }
        }
    }
}
