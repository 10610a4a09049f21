//! The seam to the other members of the store: messages in, messages out. Bodies are encoded messages of `proto/peer`.

use bytes::Bytes;

use crate::BoxFuture;
use crate::ids::MemberId;

/// Which of the peer's services a message is for. The names are those of `proto/peer/peer.proto`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PeerRpc {
    /// Raft RequestVote.
    Vote,
    /// Raft pre-vote: would you vote for me?
    PreVote,
    /// Raft AppendEntries, as a pipelined stream.
    Append,
    /// Raft AppendEntries without entries: the leader is there. Small and urgent.
    Heartbeat,
    /// A snapshot: files in chunks, as a stream.
    Snapshot,
    /// A member whose state is corrupt asks the leader for its own: an index, then files in chunks, as a stream.
    Fetch,
    /// The leader tells a member to take over.
    TransferLeader,
    /// A follower asks the leader for a read index.
    ReadIndex,
    /// A follower forwards proposals.
    Propose,
    /// A follower forwards lease keep-alives and other questions that only the leader can answer.
    Ask,
}

/// Why a message did not make it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NetError {
    /// Nobody there, or the connection broke.
    #[error("member {to} is unreachable: {why}")]
    Unreachable {
        /// Who was called.
        to: MemberId,
        /// What the transport said.
        why: String,
    },
    /// The peer's machine answers, and nothing listens there: the peer's process is not running.
    #[error("member {to} is not running: its port is closed")]
    Closed {
        /// Who was called.
        to: MemberId,
    },
    /// The peer took too long.
    #[error("member {to} did not answer in time")]
    Timeout {
        /// Who was called.
        to: MemberId,
    },
    /// The peer answered with an error.
    #[error("member {to} refused: {why}")]
    Refused {
        /// Who was called.
        to: MemberId,
        /// The peer's own words.
        why: String,
    },
}

/// Two directions of one open stream to a peer.
pub trait PeerStream: Send {
    /// Sends a message; waits while the peer's window is full.
    fn send(&mut self, body: Bytes) -> BoxFuture<'_, Result<(), NetError>>;

    /// The next message from the peer; `None` at a clean end.
    fn recv(&mut self) -> BoxFuture<'_, Option<Result<Bytes, NetError>>>;

    /// Splits into a sender and a receiver that can be used by two tasks.
    fn split(self: Box<Self>) -> (Box<dyn PeerSender>, Box<dyn PeerReceiver>);
}

/// The sending half of a [`PeerStream`].
pub trait PeerSender: Send {
    /// Sends a message; waits while the peer's window is full.
    fn send(&mut self, body: Bytes) -> BoxFuture<'_, Result<(), NetError>>;
}

/// The receiving half of a [`PeerStream`].
pub trait PeerReceiver: Send {
    /// The next message from the peer; `None` at a clean end.
    fn recv(&mut self) -> BoxFuture<'_, Option<Result<Bytes, NetError>>>;
}

/// A [`PeerStream`] of two halves that know nothing of each other, as most transports have it.
pub struct Halves<S, R> {
    /// Where messages go.
    pub sender: S,
    /// Where they come from.
    pub receiver: R,
}

impl<S: PeerSender + 'static, R: PeerReceiver + 'static> PeerStream for Halves<S, R> {
    fn send(&mut self, body: Bytes) -> BoxFuture<'_, Result<(), NetError>> {
        self.sender.send(body)
    }

    fn recv(&mut self) -> BoxFuture<'_, Option<Result<Bytes, NetError>>> {
        self.receiver.recv()
    }

    fn split(self: Box<Self>) -> (Box<dyn PeerSender>, Box<dyn PeerReceiver>) {
        (Box::new(self.sender), Box::new(self.receiver))
    }
}

/// How a member reaches the others. Deadlines are the implementation's: a call always ends.
pub trait PeerNet: Send + Sync + 'static {
    /// One message there, one back.
    fn call(&self, to: MemberId, addr: &str, rpc: PeerRpc, body: Bytes) -> BoxFuture<'static, Result<Bytes, NetError>>;

    /// Opens a stream.
    fn open(&self, to: MemberId, addr: &str, rpc: PeerRpc) -> BoxFuture<'static, Result<Box<dyn PeerStream>, NetError>>;
}

/// What a member does with messages that come in.
pub trait PeerHandler: Send + Sync + 'static {
    /// Whether this is that member. Another may have had its address before: what is meant for that one is refused.
    fn is(&self, _to: MemberId) -> bool {
        true
    }

    /// Answers one message. An `Err` is text for the caller: [`NetError::Refused`].
    fn handle(&self, rpc: PeerRpc, body: Bytes) -> BoxFuture<'static, Result<Bytes, String>>;

    /// Serves a stream until either side ends it.
    fn serve(&self, rpc: PeerRpc, stream: Box<dyn PeerStream>) -> BoxFuture<'static, Result<(), String>>;
}
