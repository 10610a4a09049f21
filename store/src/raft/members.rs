//! Changes of the membership as the leader carries them out, and what a member does that belongs to it no more.
//!
//! One change is carried out at a time. Those that come meanwhile (members announce themselves, operators change them) wait for it here,
//! instead of being told to try again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use futures::StreamExt as _;
use kontiki_base::ids::MemberId;
use kontiki_base::kv::KvError;
use kontiki_base::net::PeerRpc;
use kontiki_proto::convert::error::EtcdError;
use kontiki_proto::store::{MemberObservations, Silent};
use openraft::ChangeMembers;
use openraft::async_runtime::WatchReceiver as _;
use openraft::errors::{ChangeMembershipError, ClientWriteError, RaftError};
use openraft::raft::Precondition;
use prost::Message as _;

use super::admin::{Request, decode_reply, membership};
use super::machine::membership_of;
use super::network::within;
use super::node::Inner;
use super::types::{Membership, Peer, StoredMembership};
use super::wire;

/// How long a change waits for its turn: less than the time limit of the message that brought it.
const PATIENCE: Duration = Duration::from_secs(4);

/// A pause before it is looked whether the change before has been carried out.
const RETRY: Duration = Duration::from_millis(20);

/// How long the others have to say that they are there.
const HELLO: Duration = Duration::from_millis(1_000);

/// A learner may be promoted when its log reaches this share of the leader's, in hundredths. etcd's number.
const IN_SYNC_PERCENT: u64 = 90;

/// What a member says of itself once it has been removed.
pub(super) const REMOVED: &str = "this member has been removed from the cluster";

/// Carries out a change, after those that are under way. Only the leader can.
pub(super) async fn change(inner: &Inner, changes: ChangeMembers<u64, Peer>) -> Result<(), KvError> {
    change_when(inner, changes, |_| Ok(())).await
}

/// Changes what is known of a member. Whoever was removed while this waited for its turn is not brought back by it.
pub(super) async fn update(inner: &Inner, id: MemberId, peer: Peer) -> Result<(), KvError> {
    let changes = ChangeMembers::SetNodes(BTreeMap::from([(id.get(), peer)]));
    change_when(inner, changes, |now| match now.get_node(&id.get()) {
        Some(_) => Ok(()),
        None => Err(KvError::Unavailable(EtcdError::MemberNotFound.text().into())),
    })
    .await
}

/// Carries out a change of the membership that was looked at, and no other: what comes between is waited for, and looked at again.
async fn change_when(
    inner: &Inner,
    changes: ChangeMembers<u64, Peer>,
    may: impl Fn(&Membership) -> Result<(), KvError>,
) -> Result<(), KvError> {
    let until = inner.now().plus(PATIENCE);
    loop {
        let now = membership(inner);
        may(now.membership())?;
        let seen = Precondition::LastMembershipLogId { last_membership_log_id: *now.log_id() };
        match inner.raft.change_membership_if(changes.clone(), false, [seen]).await {
            Ok(_) => return Ok(()),
            // Another one is under way, or came between this one's two steps. What was done of it stays, and is not done twice.
            Err(RaftError::APIError(
                ClientWriteError::ChangeMembershipError(ChangeMembershipError::InProgress(_)) | ClientWriteError::PreconditionFailed(_),
            )) if inner.now() < until => inner.env.sleep(RETRY).await,
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_))) => return Err(KvError::NoLeader),
            Err(RaftError::APIError(ClientWriteError::LogEntryDiscarded(_))) => return Err(KvError::LeaderChanged),
            Err(RaftError::APIError(other)) => return Err(KvError::Unavailable(other.to_string())),
            Err(RaftError::Fatal(_)) => return Err(KvError::Stopped),
        }
    }
}

/// Whether a member has nearly all of the log.
fn in_sync(inner: &Inner, id: MemberId) -> bool {
    let metrics = inner.raft.metrics();
    let metrics = metrics.borrow_watched();
    let matched = metrics.replication.iter().flatten().find(|(other, _)| **other == id.get());
    let matched = matched.and_then(|(_, at)| at.as_ref().map(|at| at.index() + 1)).unwrap_or(0);
    let last = metrics.last_log_index.map_or(0, |index| index + 1);
    matched * 100 >= last * IN_SYNC_PERCENT
}

/// Gives a learner a vote. `ready`: only if it has nearly all of the log.
pub(super) async fn promote(inner: &Inner, id: MemberId, ready: bool) -> Result<(), KvError> {
    if ready && !in_sync(inner, id) {
        // In etcd's words: they are found again in its table when the client is answered.
        return Err(KvError::Unavailable(EtcdError::LearnerNotReady.text().into()));
    }
    change(inner, ChangeMembers::AddVoterIds([id.get()].into())).await
}

/// The voters after a learner has taken the place of one that is gone; `None` if they are not a voter and a learner any more.
fn replaced(membership: &Membership, dead: MemberId, learner: MemberId) -> Option<BTreeSet<u64>> {
    let mut voters: BTreeSet<u64> = membership.voter_ids().collect();
    let known = membership.get_node(&learner.get()).is_some();
    (known && voters.remove(&dead.get()) && voters.insert(learner.get())).then_some(voters)
}

/// Gives a learner the vote of a member that is gone, and removes that one: one change, so that it happens once, and whole.
pub(super) async fn replace(inner: &Inner, dead: MemberId, learner: MemberId) -> Result<(), KvError> {
    if !in_sync(inner, learner) {
        return Err(KvError::Unavailable(EtcdError::LearnerNotReady.text().into()));
    }
    let now = membership(inner);
    if now.membership().get_joint_config().len() > 1 {
        return Err(KvError::Unavailable("another change of the members is under way".into()));
    }
    let other = || KvError::Unavailable(format!("{dead} has no vote any more, or {learner} has one"));
    let voters = replaced(now.membership(), dead, learner).ok_or_else(other)?;
    // What came between must not be undone: these voters are those of the membership that was looked at.
    let still = |now: &Membership| leads_to(now, &voters) || replaced(now, dead, learner).as_ref() == Some(&voters);
    change_when(inner, ChangeMembers::ReplaceAllVoters(voters.clone()), |now| if still(now) { Ok(()) } else { Err(other()) }).await
}

/// Whether a change to these voters is between its two steps.
fn leads_to(membership: &Membership, voters: &BTreeSet<u64>) -> bool {
    matches!(membership.get_joint_config().as_slice(), [_, .., last] if last == voters)
}

/// Completes changes whose leader died between their two steps: the cluster would need a quorum of the voters before, too, for as long as
/// nobody does. Whoever carries a change out completes it much earlier than this looks twice. (etcd does the same: `auto_leave`.)
pub(super) async fn finish_changes(inner: Arc<Inner>) {
    let mut seen = None;
    loop {
        inner.env.sleep(inner.timings.election.1 * 2).await;
        if inner.stopped() {
            return;
        }
        let now = membership(&inner);
        let joint = now.membership().get_joint_config();
        let leads = inner.lead().is_some_and(|lead| lead.id == inner.id);
        let unfinished = (leads && joint.len() > 1).then_some(*now.log_id());
        if let (Some(at), Some(voters)) = (unfinished, joint.last())
            && seen == Some(at)
        {
            tracing::warn!("a change of the members was left unfinished by a leader: it is completed");
            let gone = || KvError::Unavailable("somebody else has completed it".into());
            let may = |now: &Membership| if leads_to(now, voters) { Ok(()) } else { Err(gone()) };
            if let Err(error) = change_when(&inner, ChangeMembers::ReplaceAllVoters(voters.clone()), may).await {
                tracing::info!(%error, "the change was not completed this time");
            }
        }
        seen = unfinished;
    }
}

/// What [`Request::Belongs`] is answered with: the last committed entry's index plus one, and the membership that this member goes by.
pub(super) fn belonging(inner: &Inner) -> Bytes {
    let metrics = inner.raft.metrics();
    let metrics = metrics.borrow_watched();
    let mut out = BytesMut::new();
    out.put_u64(metrics.local_committed.as_ref().map_or(0, |at| at.index() + 1));
    wire::put_stored(&mut out, &metrics.membership_config);
    out.freeze()
}

pub(super) fn read_belonging(body: Bytes) -> Option<(u64, StoredMembership)> {
    wire::decode(body, |from: &mut Bytes| Some((wire::get_u64(from)?, wire::get_stored(from)?))).ok()
}

/// Asks all other members something; what those answer that can be reached.
async fn ask_others(inner: &Inner, limit: Duration, request: &Request) -> Vec<(MemberId, Bytes)> {
    let membership = membership(inner);
    let others = membership.membership().nodes().filter(|(id, _)| **id != inner.id.get());
    let calls: futures::stream::FuturesUnordered<_> = others
        .map(|(id, peer)| {
            let id = MemberId::new(*id);
            let call = inner.net.call(id, peer.address(), PeerRpc::Ask, request.encode());
            async move {
                let reply = within(&*inner.env, limit, call).await?.ok()?;
                Some((id, decode_reply(reply).ok()?))
            }
        })
        .collect();
    calls.filter_map(std::future::ready).collect().await
}

/// What this member saw of elections; with `everyone`, the others, too. Second: whom it could not ask.
pub(super) async fn observations(inner: &Inner, everyone: bool) -> (Vec<MemberObservations>, Vec<Silent>) {
    let mut told = vec![inner.chronicle.told()];
    if !everyone {
        return (told, Vec::new());
    }
    let answers = ask_others(inner, HELLO, &Request::Observations).await;
    told.extend(answers.into_iter().filter_map(|(_, body)| MemberObservations::decode(body).ok()));
    let known = membership(inner);
    let silent = known.membership().nodes().filter(|(id, _)| told.iter().all(|told| told.member_id != **id));
    let silent = silent.map(|(id, peer)| Silent { member_id: *id, name: peer.name.clone() }).collect();
    (told, silent)
}

/// The other members that answer within this time, and do not stop.
pub(super) async fn answering(inner: &Inner, limit: Duration) -> Vec<MemberId> {
    ask_others(inner, limit, &Request::Belongs).await.into_iter().map(|(id, _)| id).collect()
}

/// The members that answer right now, this one included.
pub(super) async fn reachable(inner: &Inner) -> Vec<MemberId> {
    let mut ids = answering(inner, HELLO).await;
    ids.push(inner.id);
    ids.sort_unstable();
    ids
}

/// Every so many election timeouts a member that does not lead asks whether it still belongs to the cluster.
const ASK_EVERY: u32 = 10;

/// Stops this member when it learns that it has been removed. The log may not tell it: whoever is removed is sent nothing more, and goes on
/// to take the leader that it knew for one that is silent. So it asks the others now and then, and at once when there is no leader.
pub(super) async fn stop_when_removed(inner: Arc<Inner>) {
    let (mut rounds, mut leaderless) = (0_u32, 0_u32);
    loop {
        inner.env.sleep(inner.timings.election.1).await;
        if inner.stopped() {
            return;
        }
        let own = membership(&inner);
        if own.log_id().is_none() {
            continue; // It has not heard of the cluster yet.
        }
        let lead = inner.lead();
        leaderless = if lead.is_some() { 0 } else { leaderless + 1 };
        rounds = rounds.wrapping_add(1);
        let applied = membership_of(&inner.engine.applied()).unwrap_or_default();
        let missing = applied.log_id().is_some() && applied.membership().get_node(&inner.id.get()).is_none();
        let leads = lead.is_some_and(|lead| lead.id == inner.id);
        let due = missing || leaderless == 3 || (rounds.is_multiple_of(ASK_EVERY) && !leads);
        if due && removed(&inner, &own).await {
            break;
        }
    }
    tracing::error!("{REMOVED}: it stops. Its data can be deleted; to come back it is added anew, with an empty directory");
    inner.status.send_modify(|status| status.fatal = Some(REMOVED.into()));
    drop(inner.raft.shutdown().await);
}

/// Whether most of those who decide agree that this member does not belong to them. What one member says may be old: it may not have heard
/// yet that this one was added.
async fn removed(inner: &Inner, own: &StoredMembership) -> bool {
    let said: Vec<_> =
        ask_others(inner, HELLO, &Request::Belongs).await.into_iter().filter_map(|(id, body)| Some((id, read_belonging(body)?))).collect();
    verdict(inner.id, own, &said)
}

fn verdict(me: MemberId, own: &StoredMembership, said: &[(MemberId, (u64, StoredMembership))]) -> bool {
    let without_me = |membership: &StoredMembership| membership.membership().get_node(&me.get()).is_none();
    let Some((_, (_, latest))) = said.iter().max_by_key(|(_, (_, membership))| *membership.log_id()) else { return false };
    let Some(at) = latest.log_id() else { return false };
    let as_new_as_own = own.log_id().as_ref().is_none_or(|own| at >= own);
    let committed = said.iter().any(|(_, (committed, _))| *committed > at.index());
    let voters: Vec<u64> = latest.voter_ids().collect();
    let agreeing = said.iter().filter(|(id, (_, membership))| voters.contains(&id.get()) && without_me(membership)).count();
    without_me(latest) && as_new_as_own && committed && agreeing > voters.len() / 2
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::types::{LogId, Membership};

    fn stored(index: u64, members: &[u64]) -> StoredMembership {
        let peer = |name: u64| Peer { name: name.to_string(), peer_urls: vec![], client_urls: vec![], started: true };
        let nodes: BTreeMap<u64, Peer> = members.iter().map(|id| (*id, peer(*id))).collect();
        let voters = members.iter().copied().collect();
        StoredMembership::new(Some(LogId::new_term_index(1, index)), Membership::new(vec![voters], nodes).unwrap())
    }

    #[test]
    fn a_learner_takes_the_place_of_a_voter_and_of_nobody_else() {
        let peers: BTreeMap<u64, Peer> = [1, 2, 3, 9].into_iter().map(|id| (id, Peer::default())).collect();
        let membership = Membership::new(vec![[1, 2, 3].into()], peers).unwrap();
        let replaced = |dead, learner| super::replaced(&membership, MemberId::new(dead), MemberId::new(learner));
        assert_eq!(replaced(3, 9), Some([1, 2, 9].into()));
        assert_eq!(replaced(9, 3), None, "the learner is no voter");
        assert_eq!(replaced(3, 2), None, "it has a vote already");
        assert_eq!(replaced(3, 8), None, "nobody knows it");
        let voters = BTreeSet::from([1, 2, 9]);
        assert!(!leads_to(&membership, &voters), "it has not begun");
        let peers: BTreeMap<u64, Peer> = [1, 2, 3, 9].into_iter().map(|id| (id, Peer::default())).collect();
        let half = Membership::new(vec![[1, 2, 3].into(), voters.clone()], peers.clone()).unwrap();
        assert!(leads_to(&half, &voters) && !leads_to(&half, &[1, 2, 3].into()));
        assert!(!leads_to(&Membership::new(vec![voters.clone()], peers).unwrap(), &voters), "it has ended");
    }

    #[test]
    fn a_member_is_out_when_most_of_the_others_say_so() {
        let me = MemberId::new(3);
        let own = stored(5, &[1, 2, 3]);
        let says = |id: u64, committed: u64, membership: StoredMembership| (MemberId::new(id), (committed, membership));
        let out = stored(9, &[1, 2]);
        assert!(verdict(me, &own, &[says(1, 10, out.clone()), says(2, 10, out.clone())]));
        assert!(!verdict(me, &own, &[says(1, 10, out.clone())]), "one of two is not most");
        assert!(!verdict(me, &own, &[says(1, 9, out.clone()), says(2, 9, out.clone())]), "not committed: it may be taken back");
        assert!(!verdict(me, &own, &[says(1, 10, stored(5, &[1, 2, 3])), says(2, 10, out.clone())]), "the two differ");
        assert!(!verdict(me, &own, &[]), "nobody answers");
        let old = stored(2, &[1, 2]);
        assert!(!verdict(me, &own, &[says(1, 10, old.clone()), says(2, 10, old)]), "they have not heard yet that it was added");
        let learning = stored(1, &[1, 2]);
        let all = stored(9, &[1, 2, 3]);
        assert!(!verdict(me, &learning, &[says(1, 10, all.clone()), says(2, 10, all)]), "it has not heard yet that it was added");
    }
}
