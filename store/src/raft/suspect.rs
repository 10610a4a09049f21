//! Notices within milliseconds that the leader's process has died, instead of waiting until its lease has run out.
//!
//! When a process dies its system closes its connections, and from then on refuses new ones: while a machine that is only slow, or cut off,
//! refuses nothing. So a follower whose stream of entries ends asks the leader's port, and takes one answer only for a death: refused. Then
//! it forgets the leader's lease, and the surviving voters stand for election in turn, the one with the longest log first. This costs no
//! safety: votes are given by the usual rules, and a false alarm is an election that was not needed. Everything else (a silent machine, a
//! partition) is left to the election timeout.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kontiki_base::ids::MemberId;
use kontiki_base::net::{NetError, PeerRpc};
use openraft::async_runtime::WatchReceiver as _;
use openraft::raft::{TransferLeaderRequest, VoteRequest};

use super::network::within;
use super::node::Inner;
use super::types::Vote;
use super::wire;

/// A port that has not answered in this time has not refused.
const PROBE: Duration = Duration::from_millis(500);

/// A survivor that has not said in this time how long its log is comes last.
const ASK: Duration = Duration::from_millis(100);

/// Between two attempts to connect.
const RETRY: Duration = Duration::from_millis(5);

/// The others need this long to come to the same conclusion: a vote that is asked for earlier is refused.
const AGREE: Duration = Duration::from_millis(30);

/// If the first in turn has not won in this time, the next one stands.
const TURN: Duration = Duration::from_millis(150);

/// After so many rounds without a leader the election timeout takes over.
const ROUNDS: usize = 3;

/// Called when the stream of entries from a leader has ended.
pub(super) async fn leader_may_have_died(inner: Arc<Inner>) {
    let ended = inner.now();
    let seen = inner.raft.metrics().borrow_watched().clone();
    let me = inner.id.get();
    let Some(leader) = seen.current_leader.filter(|leader| *leader != me) else { return };
    let membership = seen.membership_config.membership();
    let Some(peer) = membership.get_node(&leader) else { return };
    if within(&*inner.env, PROBE, port_is_closed(&inner, leader, peer.address())).await != Some(true) {
        return;
    }
    inner.chronicle.port_closed(leader, inner.now().since(ended));
    let survivors: Vec<u64> = membership.voter_ids().filter(|voter| *voter != leader).collect();
    if !survivors.contains(&me) {
        return;
    }
    tracing::info!(leader, term = seen.current_term, "the leader's process has died");
    let question = wire::vote_request(&VoteRequest::new(Vote::new(seen.current_term + 1, me), None));
    let logs = survivors.iter().map(|voter| {
        let addr = membership.get_node(voter).map(|peer| peer.address().to_owned()).unwrap_or_default();
        end_of_log(&inner, *voter, addr, question.clone())
    });
    let heirs = heirs(futures::future::join_all(logs).await);
    for heir in heirs.iter().cycle().take(heirs.len() * ROUNDS) {
        if *heir == me {
            inner.env.sleep(AGREE).await;
        }
        let now = inner.raft.metrics().borrow_watched().clone();
        let succeeded = now.current_leader.is_some() && now.current_term > seen.current_term;
        if inner.stopped() || succeeded {
            return;
        }
        succeed(&inner, now.vote, *heir).await;
        inner.env.sleep(TURN).await;
    }
}

/// Whether the system of the leader's machine refuses connections to its port.
async fn port_is_closed(inner: &Inner, leader: u64, addr: &str) -> bool {
    loop {
        match inner.net.call(MemberId::new(leader), addr, PeerRpc::ReadIndex, Bytes::new()).await {
            Err(NetError::Closed { .. }) => return true,
            // The connection that broke with the stream; the next attempt makes a new one.
            Err(NetError::Unreachable { .. }) => inner.env.sleep(RETRY).await,
            Ok(_) | Err(NetError::Timeout { .. } | NetError::Refused { .. }) => return false,
        }
    }
}

/// A voter and the last entry of its log, by index; `None` if it does not say. Asks by a pre-vote, which changes nothing.
async fn end_of_log(inner: &Inner, voter: u64, addr: String, question: Bytes) -> (u64, Option<u64>) {
    if voter == inner.id.get() {
        return (voter, inner.raft.metrics().borrow_watched().last_log_index);
    }
    let answer = within(&*inner.env, ASK, inner.net.call(MemberId::new(voter), &addr, PeerRpc::PreVote, question)).await;
    let answer = answer.and_then(Result::ok).and_then(|body| wire::decode(body, wire::get_vote_response).ok());
    (voter, answer.and_then(|answer| answer.last_log_id).map(|id| id.index))
}

/// The voters in the order in which they stand: the longest log first, since the others would refuse it nothing; then by id. All survivors
/// come to the same order, because nobody appends while there is no leader.
fn heirs(mut logs: Vec<(u64, Option<u64>)>) -> Vec<u64> {
    logs.sort_unstable_by_key(|(voter, last)| (std::cmp::Reverse(*last), *voter));
    logs.into_iter().map(|(voter, _)| voter).collect()
}

/// Forgets the leader's lease; stands for election if `heir` is this member.
async fn succeed(inner: &Inner, leader: Vote, heir: u64) {
    let request = TransferLeaderRequest::new(leader, heir, None);
    match inner.raft.handle_transfer_leader(request).await {
        Ok(Ok(())) => {}
        Ok(Err(why)) => tracing::debug!(%why, heir, "not standing for election"),
        // The member has stopped; its status says why.
        Err(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_log_stands_first() {
        assert_eq!(heirs(vec![(3, Some(7)), (1, Some(6)), (2, Some(7))]), [2, 3, 1]);
        assert_eq!(heirs(vec![(1, None), (2, Some(0))]), [2, 1], "who does not answer comes last");
    }
}
