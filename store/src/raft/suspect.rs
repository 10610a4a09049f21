//! Notices within milliseconds that the leader's process has died, instead of waiting until its lease has run out.
//!
//! When a process dies its system closes its connections, and from then on refuses new ones: while a machine that is only slow, or cut off,
//! refuses nothing. So a follower whose stream of entries ends asks the leader's port, and takes one answer only for a death: refused. Then
//! it forgets the leader's lease, and the surviving voters stand for election in turn, the one with the smallest id first. This costs no
//! safety: votes are given by the usual rules, and a false alarm is an election that was not needed. Everything else (a silent machine, a
//! partition) is left to the election timeout.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kontiki_base::ids::MemberId;
use kontiki_base::net::{NetError, PeerRpc};
use openraft::async_runtime::WatchReceiver as _;
use openraft::raft::TransferLeaderRequest;

use super::network::within;
use super::node::Inner;
use super::types::Vote;

/// A port that has not answered in this time has not refused.
const PROBE: Duration = Duration::from_millis(500);

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
    let seen = inner.raft.metrics().borrow_watched().clone();
    let me = inner.id.get();
    let Some(leader) = seen.current_leader.filter(|leader| *leader != me) else { return };
    let membership = seen.membership_config.membership();
    let Some(peer) = membership.get_node(&leader) else { return };
    if within(&*inner.env, PROBE, port_is_closed(&inner, leader, peer.address())).await != Some(true) {
        return;
    }
    let heirs = heirs(membership.voter_ids(), leader);
    if !heirs.contains(&me) {
        return;
    }
    tracing::info!(leader, term = seen.current_term, "the leader's process has died");
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

/// The voters that may follow `leader`, in turn.
fn heirs(voters: impl Iterator<Item = u64>, leader: u64) -> Vec<u64> {
    let mut heirs: Vec<u64> = voters.filter(|voter| *voter != leader).collect();
    heirs.sort_unstable();
    heirs
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
    fn every_survivor_has_the_same_turn_everywhere() {
        assert_eq!(heirs([3, 1, 2].into_iter(), 1), [2, 3]);
        assert_eq!(heirs([5].into_iter(), 5), [0; 0]);
    }
}
