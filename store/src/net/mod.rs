//! The members among themselves, over gRPC: [`TonicPeerNet`] calls, [`serve`] answers.
//!
//! Two things matter on this wire. A heartbeat must never wait behind a megabyte of entries: so each lane ([`Lane`]) has a connection of
//! its own. And a link that heals must be used again within a second: so the system's own patience with silent connections is bounded
//! (HTTP/2 pings and TCP's user timeout), and a broken connection is replaced at the next call.

mod client;
mod connect;
mod server;
#[cfg(test)]
mod tests;

use std::time::Duration;

use kontiki_base::net::PeerRpc;

pub use client::TonicPeerNet;
pub use server::PeerServerHandle;
pub(crate) use server::serve;

pub use crate::tls::PeerTls;

/// The wire could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The address cannot be listened on.
    #[error("cannot listen for peers on {addr}")]
    Listen {
        /// Which.
        addr: std::net::SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// The header that says which member calls.
const CALLER: &str = "member";

/// The header that says which member is meant: a member at the address of one that was removed must not answer, vote and acknowledge for it.
const CALLED: &str = "to";

/// A ping on a connection this often, also when nothing else moves.
pub const PING_EVERY: Duration = Duration::from_millis(1_000);

/// A peer that does not answer a ping in this time has gone; TCP gives up on unacknowledged bytes just as soon.
pub const PING_TIMEOUT: Duration = Duration::from_millis(1_500);

/// A connection that does not come about in this time will not.
pub const CONNECT: Duration = Duration::from_millis(1_000);

/// What a lane's connection may have in flight unread, per stream and in all.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;

/// Messages that share a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Lane {
    /// Small and urgent: votes, read indexes.
    Urgent,
    /// Entries.
    Entries,
    /// Proposals and questions of clients at followers.
    Clients,
    /// Snapshots.
    Bulk,
}

/// Number on the wire, lane and time limit of each kind of message. Numbers are never reused.
const RPCS: &[(PeerRpc, u32, Lane, Duration)] = &[
    (PeerRpc::Vote, 1, Lane::Urgent, Duration::from_millis(1_000)),
    (PeerRpc::PreVote, 2, Lane::Urgent, Duration::from_millis(1_000)),
    (PeerRpc::Append, 3, Lane::Entries, Duration::from_millis(2_000)),
    (PeerRpc::Snapshot, 4, Lane::Bulk, Duration::from_secs(10)),
    (PeerRpc::TransferLeader, 5, Lane::Urgent, Duration::from_millis(2_000)),
    (PeerRpc::ReadIndex, 6, Lane::Urgent, Duration::from_millis(2_000)),
    (PeerRpc::Propose, 7, Lane::Clients, Duration::from_secs(7)),
    (PeerRpc::Ask, 8, Lane::Clients, Duration::from_secs(5)),
    (PeerRpc::Heartbeat, 9, Lane::Urgent, Duration::from_millis(1_000)),
    (PeerRpc::Fetch, 10, Lane::Bulk, Duration::from_secs(10)),
];

/// A row of [`RPCS`].
fn row(rpc: PeerRpc) -> (u32, Lane, Duration) {
    let found = RPCS.iter().find(|(kind, ..)| *kind == rpc).map(|(_, number, lane, limit)| (*number, *lane, *limit));
    found.expect("a test checks that every kind of message has a row")
}

/// After this long a message of this kind has failed.
pub fn limit(rpc: PeerRpc) -> Duration {
    row(rpc).2
}

fn rpc_of(number: u32) -> Option<PeerRpc> {
    RPCS.iter().find(|(_, n, ..)| *n == number).map(|(kind, ..)| *kind)
}
