//! What a member does with messages of the other members.

use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures::StreamExt;
use kontiki_base::BoxFuture;
use kontiki_base::ids::{MemberId, Term};
use kontiki_base::net::{PeerHandler, PeerReceiver, PeerRpc, PeerStream};
use openraft::raft::{AppendEntriesRequest, StreamAppendResult};
use tokio::sync::Mutex;

use super::machine::SnapshotData;
use super::network::Network;
use super::node::{Handed, Inner};
use super::types::{Proposal, TypeConfig};
use super::{admin, rebuild, removed, snapshot, suspect, wire};

pub(super) struct Handler {
    inner: Arc<Inner>,
    network: Network,
    /// One snapshot comes in at a time.
    receiving: Arc<Mutex<()>>,
}

impl Handler {
    pub(super) fn new(inner: Arc<Inner>, network: Network) -> Self {
        Self { inner, network, receiving: Arc::default() }
    }
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

impl PeerHandler for Handler {
    fn handle(&self, rpc: PeerRpc, body: Bytes) -> BoxFuture<'static, Result<Bytes, String>> {
        let inner = self.inner.clone();
        Box::pin(async move {
            if inner.stopped() {
                return Err("this member has stopped".into());
            }
            match rpc {
                PeerRpc::Vote => {
                    let request = wire::decode(body, wire::get_vote_request)?;
                    removed::refuse(&inner, request.vote.leader_id.voted_for)?;
                    let answer = inner.raft.vote(request.clone()).await.map_err(text)?;
                    inner.chronicle.voted(&request, &answer);
                    Ok(wire::vote_response(&answer))
                }
                PeerRpc::PreVote => {
                    let request = wire::decode(body, wire::get_vote_request)?;
                    removed::refuse(&inner, request.vote.leader_id.voted_for)?;
                    inner.raft.pre_vote(request).await.map(|r| wire::vote_response(&r)).map_err(text)
                }
                PeerRpc::Append | PeerRpc::Heartbeat => {
                    let request = wire::decode(body, wire::get_append_request)?;
                    inner.chronicle.heard(request.vote.leader_id.term);
                    let result = append_one(&inner, request).await?;
                    Ok(wire::append_result(&result))
                }
                PeerRpc::TransferLeader => {
                    let (request, why) = wire::decode(body, wire::get_transfer_request)?;
                    if *request.to_node_id() == inner.id.get() {
                        inner.chronicle.asked_to_lead(request.from_leader().leader_id.voted_for, why);
                    }
                    inner.raft.handle_transfer_leader(request).await.map_err(text)?.map_err(text)?;
                    Ok(Bytes::new())
                }
                PeerRpc::ReadIndex => {
                    let index = inner.read_index().await.map_err(text)?;
                    Ok(Bytes::copy_from_slice(&index.get().to_be_bytes()))
                }
                PeerRpc::Propose => propose(&inner, body).await,
                PeerRpc::Ask => admin::serve(&inner, body).await,
                PeerRpc::Snapshot | PeerRpc::Fetch => Err("a snapshot comes as a stream".into()),
            }
        })
    }

    fn is(&self, to: MemberId) -> bool {
        self.inner.id == to
    }

    fn serve(&self, rpc: PeerRpc, stream: Box<dyn PeerStream>) -> BoxFuture<'static, Result<(), String>> {
        let (inner, network, receiving) = (self.inner.clone(), self.network.clone(), self.receiving.clone());
        Box::pin(async move {
            if inner.stopped() {
                return Err("this member has stopped".into());
            }
            match rpc {
                PeerRpc::Append => {
                    // A stream on which nothing comes would hold a member that has stopped, and its files, for as long as its peer lives.
                    let mut closing = inner.closing.subscribe();
                    let ended = tokio::select! {
                        biased;
                        ended = append_stream(&inner, stream) => ended,
                        _ = closing.wait_for(|closing| *closing) => return Err("this member has stopped".into()),
                    };
                    suspect::leader_may_have_died(inner).await;
                    ended
                }
                PeerRpc::Snapshot => {
                    let _one = receiving.try_lock().map_err(|_| "another snapshot is coming in")?;
                    receive_snapshot(&inner, &network, stream).await
                }
                PeerRpc::Fetch => rebuild::serve(&inner, &network, stream).await,
                other => Err(format!("{other:?} is not a stream")),
            }
        })
    }
}

async fn append_one(inner: &Inner, request: AppendEntriesRequest<TypeConfig>) -> Result<StreamAppendResult<TypeConfig>, String> {
    let mut results = Box::pin(inner.raft.stream_append(futures::stream::iter([request])));
    results.next().await.ok_or("consensus has stopped")?.map_err(text)
}

async fn append_stream(inner: &Inner, stream: Box<dyn PeerStream>) -> Result<(), String> {
    let (mut sender, receiver) = stream.split();
    let mut results = Box::pin(inner.raft.stream_append(Box::pin(requests(receiver))));
    while let Some(result) = results.next().await {
        let body = wire::append_result(&result.map_err(text)?);
        sender.send(body).await.map_err(text)?;
    }
    Ok(())
}

/// The messages of a stream of entries; ends at the first one that cannot be read.
fn requests(receiver: Box<dyn PeerReceiver>) -> impl futures::Stream<Item = AppendEntriesRequest<TypeConfig>> + Send {
    futures::stream::unfold(receiver, |mut receiver| async move {
        let body = receiver.recv().await?.ok()?;
        match wire::decode(body, wire::get_append_request) {
            Ok(request) => Some((request, receiver)),
            Err(why) => {
                tracing::warn!(%why, "stream of entries ended");
                None
            }
        }
    })
}

async fn receive_snapshot(inner: &Inner, network: &Network, mut stream: Box<dyn PeerStream>) -> Result<(), String> {
    let (vote, snapshot) = snapshot::receive(network, &mut *stream).await?;
    let SnapshotData::Files(dir) = &snapshot.snapshot else { return Err("a snapshot without files came in".into()) };
    let dir = dir.clone();
    let installed = inner.raft.install_full_snapshot(vote, snapshot).await.map_err(text);
    // Consumed if it was installed; it was not if the sender no longer leads, or if we are ahead.
    if dir.exists() {
        std::fs::remove_dir_all(&dir).map_err(text)?;
    }
    stream.send(snapshot::answer(&installed?)).await.map_err(text)
}

async fn propose(inner: &Inner, mut body: Bytes) -> Result<Bytes, String> {
    let term = body.try_get_u64().map_err(text)?;
    let proposal = Proposal::from_bytes(body).ok_or("a proposal without an origin")?;
    let handed = inner.append(Term::new(term), proposal).await.map_err(text)?;
    let mut reply = BytesMut::new();
    reply.put_u8(match handed {
        Handed::Accepted => 0,
        Handed::Refused => 1,
        Handed::Unknown => 2,
    });
    Ok(reply.freeze())
}
