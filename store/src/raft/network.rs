//! How consensus reaches the other members: openraft's network on [`PeerNet`].
//!
//! Entries flow in one long stream per follower with many messages under way; answers come back in order. Heartbeats are calls of their own
//! on a lane of their own. A snapshot is a stream of the files of an engine's checkpoint.

use std::collections::VecDeque;
use std::future::Future;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::future::Either;
use futures::{Stream, StreamExt};
use kontiki_base::env::{Env, Task};
use kontiki_base::ids::MemberId;
use kontiki_base::limits;
use kontiki_base::net::{NetError, PeerNet, PeerReceiver, PeerRpc, PeerSender};
use kontiki_proto::trace::{self, names};
use openraft::RPCTypes;
use openraft::base::{BoxFuture, BoxStream};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable};
use openraft::network::{Backoff, NetBackoff, NetSnapshot, NetStreamAppend, NetTransferLeader, NetVote, RPCOption, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, SnapshotResponse, StreamAppendResult, TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use tokio::sync::Semaphore;

use super::chronicle::Chronicle;
use super::machine::{Snapshot, SnapshotData};
use super::transfers::Transfers;
use super::types::{self, Peer, TypeConfig, Vote};
use super::{snapshot, wire};

type C = TypeConfig;
type RpcResult<T> = Result<T, RPCError<C>>;

/// A stream of entries whose oldest message has no answer after this long is broken.
const APPEND_PATIENCE: Duration = Duration::from_secs(3);

/// Time between two attempts to open a stream to a member that cannot be reached.
const REOPEN: Duration = Duration::from_millis(50);

/// Ends a future after some time; `None` if it had not ended by itself.
pub(super) async fn within<T>(env: &dyn Env, limit: Duration, future: impl Future<Output = T>) -> Option<T> {
    match futures::future::select(pin!(future), env.sleep(limit)).await {
        Either::Left((value, _)) => Some(value),
        Either::Right(_) => None,
    }
}

/// Makes clients for the other members.
#[derive(Clone)]
pub(crate) struct Network {
    pub(crate) me: MemberId,
    pub(crate) net: Arc<dyn PeerNet>,
    pub(crate) env: Arc<dyn Env>,
    /// Where checkpoints are made to be sent.
    pub(crate) scratch: PathBuf,
    pub(crate) inline: bool,
    /// Sees votes and hand-overs.
    pub(crate) chronicle: Arc<Chronicle>,
    /// Snapshots under way.
    pub(crate) transfers: Arc<Transfers>,
}

impl RaftNetworkFactory<C> for Network {
    type Network = Client;

    async fn new_client(&mut self, target: u64, node: &Peer) -> Client {
        Client { network: self.clone(), to: MemberId::new(target), addr: node.address().to_owned(), heartbeats: false }
    }

    async fn new_heartbeat_client(&mut self, target: u64, node: &Peer) -> Client {
        Client { heartbeats: true, ..self.new_client(target, node).await }
    }
}

/// The way to one member.
pub(crate) struct Client {
    network: Network,
    to: MemberId,
    addr: String,
    heartbeats: bool,
}

pub(super) fn rpc_error(error: &NetError) -> RPCError<C> {
    match error {
        NetError::Unreachable { .. } | NetError::Closed { .. } => RPCError::Unreachable(Unreachable::new(error)),
        NetError::Timeout { .. } | NetError::Refused { .. } => RPCError::Network(NetworkError::new(error)),
    }
}

fn garbled(why: String) -> RPCError<C> {
    RPCError::Network(NetworkError::from_string(why))
}

impl Client {
    async fn call<T>(
        &self,
        rpc: PeerRpc,
        action: RPCTypes,
        option: &RPCOption,
        body: Bytes,
        get: impl FnOnce(&mut Bytes) -> Option<T>,
    ) -> RpcResult<T> {
        let call = self.network.net.call(self.to, &self.addr, rpc, body);
        match within(&*self.network.env, option.soft_ttl(), call).await {
            Some(Ok(reply)) => wire::decode(reply, get).map_err(garbled),
            Some(Err(error)) => Err(rpc_error(&error)),
            None => {
                let (id, target) = (self.network.me.get(), self.to.get());
                Err(RPCError::Timeout(Timeout { action, id, target, timeout: option.soft_ttl() }))
            }
        }
    }
}

impl NetBackoff<C> for Client {
    /// A member that comes back is told what it missed at once: the attempts before that are paced by [`REOPEN`], and cost little.
    fn backoff(&self) -> Option<Backoff> {
        Some(Backoff::new(std::iter::repeat(REOPEN)))
    }
}

impl NetVote<C> for Client {
    async fn vote(&mut self, rpc: VoteRequest<C>, option: RPCOption) -> RpcResult<VoteResponse<C>> {
        self.network.chronicle.stands(rpc.vote.leader_id.term);
        let answered = self.call(PeerRpc::Vote, RPCTypes::Vote, &option, wire::vote_request(&rpc), wire::get_vote_response).await?;
        self.network.chronicle.answered(self.to.get(), &rpc, &answered);
        Ok(answered)
    }

    async fn pre_vote(&mut self, rpc: VoteRequest<C>, option: RPCOption) -> RpcResult<VoteResponse<C>> {
        self.call(PeerRpc::PreVote, RPCTypes::Vote, &option, wire::vote_request(&rpc), wire::get_vote_response).await
    }
}

impl NetTransferLeader<C> for Client {
    async fn transfer_leader(&mut self, req: TransferLeaderRequest<C>, option: RPCOption) -> RpcResult<TransferLeaderResponse<C>> {
        let body = wire::transfer_request(&req, self.network.chronicle.handing());
        // The peer's refusal is an error of the call; its reason is in the peer's own log.
        let get = |from: &mut Bytes| from.is_empty().then_some(());
        self.call(PeerRpc::TransferLeader, RPCTypes::TransferLeader, &option, body, get).await.map(Ok)
    }
}

impl NetStreamAppend<C> for Client {
    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<'s, RpcResult<BoxStream<'s, RpcResult<StreamAppendResult<C>>>>>
    where
        S: Stream<Item = AppendEntriesRequest<C>> + Send + Unpin + 'static,
    {
        Box::pin(async move {
            if self.heartbeats {
                return Ok(self.one_by_one(input, option));
            }
            let opened = match self.network.net.open(self.to, &self.addr, PeerRpc::Append).await {
                Ok(opened) => opened,
                Err(error) => {
                    // openraft paces the messages of a stream, not attempts to open one: without this it would try without a pause.
                    self.network.env.sleep(REOPEN).await;
                    return Err(rpc_error(&error));
                }
            };
            let (sender, receiver) = opened.split();
            let window = Arc::new(Window::new(self.to));
            let pump = self.network.env.spawn("raft.append", Box::pin(pump(input, sender, window.clone())));
            let answers = Answers { receiver, window, answered: 0, env: self.network.env.clone(), to: self.to, _pump: AbortOnDrop(pump) };
            let stream = futures::stream::unfold(Some(answers), |state| async move {
                let mut answers = state?;
                let item = answers.next().await?;
                let go_on = matches!(item, Ok(Ok(_)));
                Some((item, go_on.then_some(answers)))
            });
            Ok(Box::pin(stream) as BoxStream<'s, _>)
        })
    }
}

impl Client {
    /// One call per message: for heartbeats, of which there is never more than one under way.
    fn one_by_one<'s, S>(&'s self, input: S, option: RPCOption) -> BoxStream<'s, RpcResult<StreamAppendResult<C>>>
    where
        S: Stream<Item = AppendEntriesRequest<C>> + Send + Unpin + 'static,
    {
        Box::pin(input.then(move |request| {
            let option = option.clone();
            async move {
                let body = wire::append_request(request);
                self.call(PeerRpc::Heartbeat, RPCTypes::AppendEntries, &option, body, wire::get_append_result).await
            }
        }))
    }
}

struct Window {
    to: MemberId,
    free: Semaphore,
    /// Messages without an answer.
    waiting: AtomicUsize,
    /// Spans of the entries of messages without an answer, with the message's number. The window bounds them.
    spans: Mutex<VecDeque<(u64, tracing::Span)>>,
}

impl Window {
    fn new(to: MemberId) -> Self {
        Self { to, free: Semaphore::new(limits::RAFT_APPEND_QUEUE), waiting: AtomicUsize::new(0), spans: Mutex::default() }
    }

    fn spans(&self) -> MutexGuard<'_, VecDeque<(u64, tracing::Span)>> {
        self.spans.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a span for each entry of a message that belongs to a trace.
    fn begin_spans(&self, message: u64, request: &AppendEntriesRequest<C>) {
        for entry in &request.entries {
            let Some(parent) = types::trace_of(entry) else { continue };
            let (to, index) = (self.to.get(), types::pos(entry.log_id).index.get());
            let span = tracing::debug_span!(parent: None, names::RAFT_APPEND, to, index, entries = request.entries.len());
            trace::adopt(&span, parent);
            self.spans().push_back((message, span));
        }
    }

    /// Ends the spans of all messages up to this one: answers come in order.
    fn end_spans(&self, message: u64) {
        let mut spans = self.spans();
        while spans.pop_front_if(|(number, _)| *number <= message).is_some() {}
    }
}

struct AbortOnDrop(Task);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn pump<S>(mut input: S, mut sender: Box<dyn PeerSender>, window: Arc<Window>)
where
    S: Stream<Item = AppendEntriesRequest<C>> + Send + Unpin + 'static,
{
    let mut sent: u64 = 0;
    while let Some(request) = input.next().await {
        let Ok(permit) = window.free.acquire().await else { return };
        permit.forget();
        window.waiting.fetch_add(1, Ordering::AcqRel);
        window.begin_spans(sent, &request);
        sent += 1;
        // The receiver sees the broken stream, too, and reports it.
        if sender.send(wire::append_request(request)).await.is_err() {
            return;
        }
    }
}

struct Answers {
    receiver: Box<dyn PeerReceiver>,
    window: Arc<Window>,
    /// How many messages have their answer.
    answered: u64,
    env: Arc<dyn Env>,
    to: MemberId,
    _pump: AbortOnDrop,
}

impl Answers {
    async fn next(&mut self) -> Option<RpcResult<StreamAppendResult<C>>> {
        let mut waited = false;
        loop {
            match within(&*self.env, APPEND_PATIENCE, self.receiver.recv()).await {
                Some(Some(Ok(body))) => {
                    self.window.free.add_permits(1);
                    self.window.waiting.fetch_sub(1, Ordering::AcqRel);
                    self.window.end_spans(self.answered);
                    self.answered += 1;
                    return Some(wire::decode(body, wire::get_append_result).map_err(garbled));
                }
                Some(Some(Err(error))) => return Some(Err(rpc_error(&error))),
                Some(None) => return None,
                // A message may have been sent just before; so a whole period without an answer has to follow.
                None if self.window.waiting.load(Ordering::Acquire) == 0 => waited = false,
                None if waited => return Some(Err(rpc_error(&NetError::Timeout { to: self.to }))),
                None => waited = true,
            }
        }
    }
}

impl NetSnapshot<C> for Client {
    type SnapshotData = SnapshotData;

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<C>, StreamingError<C>> {
        let SnapshotData::Engine(engine) = snapshot.snapshot else {
            return Err(NetworkError::from_string("a snapshot that was received is not sent on").into());
        };
        let described = (vote, snapshot.meta.last_log_id);
        let send = snapshot::send(&self.network, self.to, &self.addr, described, engine);
        match futures::future::select(pin!(send), pin!(cancel)).await {
            // Consensus tries again, and says nothing.
            Either::Left((result, _)) => {
                result.inspect_err(|error| tracing::info!(to = %self.to, %error, "a snapshot did not reach its receiver"))
            }
            Either::Right((closed, _)) => Err(closed.into()),
        }
    }
}
