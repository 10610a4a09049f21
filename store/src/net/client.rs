//! The calling side: one connection per peer and lane, made when first used, made anew when it breaks.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, OnceLock};
use std::task::{Context, Poll};

use bytes::Bytes;
use kontiki_base::BoxFuture;
use kontiki_base::ids::MemberId;
use kontiki_base::limits;
use kontiki_base::net::{Halves, NetError, PeerNet, PeerReceiver, PeerRpc, PeerSender, PeerStream};
use kontiki_proto::peer::Frame;
use kontiki_proto::peer::peer_client::PeerClient;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Streaming};

use super::connect::Connector;
use super::{CALLED, CALLER, CONNECT, CONNECTION_WINDOW, Lane, PING_EVERY, PING_TIMEOUT, STREAM_WINDOW, row};
use crate::tls::CallerTls;

/// Where a client was connected to, and the client.
type Connection = (String, PeerClient<Channel>);

/// [`PeerNet`] over gRPC.
#[derive(Debug)]
pub struct TonicPeerNet {
    tls: Option<Arc<CallerTls>>,
    /// This member, if the others are told who calls.
    me: Arc<OnceLock<MemberId>>,
    /// By peer and lane; the address is kept to notice that a member has moved.
    connections: Mutex<BTreeMap<(MemberId, Lane), Connection>>,
}

impl TonicPeerNet {
    /// A net without connections.
    pub(crate) fn new(tls: Option<Arc<CallerTls>>) -> Self {
        Self { tls, me: Arc::default(), connections: Mutex::new(BTreeMap::new()) }
    }

    /// Who calls, once it is known: the others are told, for their counts.
    pub(crate) fn name(&self) -> Arc<OnceLock<MemberId>> {
        Arc::clone(&self.me)
    }

    fn request<T>(&self, to: MemberId, rpc: PeerRpc, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let mut head = |name: &'static str, id: Option<MemberId>| {
            if let Some(id) = id.and_then(|id| id.get().to_string().parse().ok()) {
                request.metadata_mut().insert(name, id);
            }
        };
        head(CALLER, self.me.get().copied());
        head(CALLED, speaks_for_itself(rpc).then_some(to));
        request
    }

    fn client(&self, to: MemberId, addr: &str, lane: Lane) -> Result<PeerClient<Channel>, NetError> {
        let mut connections = self.connections.lock().expect("no holder of this lock panics");
        if let Some((known, client)) = connections.get(&(to, lane))
            && known == addr
        {
            return Ok(client.clone());
        }
        let channel = self.dial(addr).map_err(|why| NetError::Unreachable { to, why })?;
        let client = PeerClient::new(channel)
            .max_decoding_message_size(limits::PEER_MESSAGE_BYTES)
            .max_encoding_message_size(limits::PEER_MESSAGE_BYTES);
        connections.insert((to, lane), (addr.to_owned(), client.clone()));
        Ok(client)
    }

    /// A channel that connects when it is first used.
    fn dial(&self, addr: &str) -> Result<Channel, String> {
        let (connector, plain) = Connector::to(addr, self.tls.clone())?;
        let endpoint = Endpoint::from_shared(plain)
            .map_err(|e| format!("{addr:?} is not a URL: {e}"))?
            .connect_timeout(CONNECT)
            .http2_keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_TIMEOUT)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW);
        Ok(endpoint.connect_with_connector_lazy(connector))
    }
}

/// Whether only the member that is meant may answer: everything of Raft that is bound to a member. The rest is bound to a leader and its term,
/// or asked by who does not know yet who is there.
const fn speaks_for_itself(rpc: PeerRpc) -> bool {
    !matches!(rpc, PeerRpc::ReadIndex | PeerRpc::Propose | PeerRpc::Ask)
}

fn failure(to: MemberId, status: &tonic::Status) -> NetError {
    if is_refused(status) {
        return NetError::Closed { to };
    }
    match status.code() {
        tonic::Code::FailedPrecondition => NetError::Refused { to, why: status.message().to_owned() },
        tonic::Code::DeadlineExceeded => NetError::Timeout { to },
        _ => NetError::Unreachable { to, why: status.message().to_owned() },
    }
}

/// Whether the system of the peer's machine refused the connection.
fn is_refused(status: &tonic::Status) -> bool {
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        if error.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::ConnectionRefused) {
            return true;
        }
        cause = error.source();
    }
    false
}

impl PeerNet for TonicPeerNet {
    fn call(&self, to: MemberId, addr: &str, rpc: PeerRpc, body: Bytes) -> BoxFuture<'static, Result<Bytes, NetError>> {
        let (number, lane, limit) = row(rpc);
        let client = self.client(to, addr, lane);
        let request = self.request(to, rpc, Frame { rpc: number, body });
        let call = async move {
            let mut client = client?;
            match timeout(limit, client.call(request)).await {
                Ok(Ok(response)) => Ok(response.into_inner().body),
                Ok(Err(status)) => Err(failure(to, &status)),
                Err(_) => Err(NetError::Timeout { to }),
            }
        };
        Box::pin(ToTheEnd { call: Some(Box::pin(call)), begun: false })
    }

    fn open(&self, to: MemberId, addr: &str, rpc: PeerRpc) -> BoxFuture<'static, Result<Box<dyn PeerStream>, NetError>> {
        let (number, lane, limit) = row(rpc);
        let client = self.client(to, addr, lane);
        let (sender, requests) = mpsc::channel(limits::RAFT_APPEND_QUEUE);
        let request = self.request(to, rpc, ReceiverStream::new(requests));
        Box::pin(async move {
            let mut client = client?;
            let opening = Frame { rpc: number, body: Bytes::new() };
            sender.try_send(opening).map_err(|e| NetError::Unreachable { to, why: e.to_string() })?;
            match timeout(limit, client.stream(request)).await {
                Ok(Ok(response)) => {
                    let (sender, receiver) = (Sender { to, rpc: number, frames: sender }, Receiver { to, frames: response.into_inner() });
                    Ok(Box::new(Halves { sender, receiver }) as Box<dyn PeerStream>)
                }
                Ok(Err(status)) => Err(failure(to, &status)),
                Err(_) => Err(NetError::Timeout { to }),
            }
        })
    }
}

/// A call that goes to its end once it has begun, though nobody may wait for it any more: a follower that has applied what it proposed does not
/// need the leader's answer.
///
/// To give a call up would be to reset its stream. An answer that is on its way then belongs to no stream, which HTTP/2 takes for an error of the
/// peer, and after 1,024 of those it ends the connection, with all that is under way on it.
struct ToTheEnd {
    /// `None` when it has ended.
    call: Option<BoxFuture<'static, Result<Bytes, NetError>>>,
    begun: bool,
}

impl Future for ToTheEnd {
    type Output = Result<Bytes, NetError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.begun = true;
        let Some(call) = &mut self.call else { return Poll::Pending };
        let ended = call.as_mut().poll(cx);
        if ended.is_ready() {
            self.call = None;
        }
        ended
    }
}

impl Drop for ToTheEnd {
    fn drop(&mut self) {
        // It has a limit of its own, so it ends. Where nothing runs any more, there is no connection to save.
        if let Some(call) = self.call.take().filter(|_| self.begun)
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            drop(runtime.spawn(call));
        }
    }
}

struct Sender {
    to: MemberId,
    rpc: u32,
    frames: mpsc::Sender<Frame>,
}

struct Receiver {
    to: MemberId,
    frames: Streaming<Frame>,
}

impl PeerSender for Sender {
    fn send(&mut self, body: Bytes) -> BoxFuture<'_, Result<(), NetError>> {
        Box::pin(async move {
            let sent = self.frames.send(Frame { rpc: self.rpc, body }).await;
            sent.map_err(|_| NetError::Unreachable { to: self.to, why: "the stream has ended".into() })
        })
    }
}

impl PeerReceiver for Receiver {
    fn recv(&mut self) -> BoxFuture<'_, Option<Result<Bytes, NetError>>> {
        Box::pin(async move {
            match self.frames.message().await {
                Ok(frame) => frame.map(|f| Ok(f.body)),
                Err(status) => Some(Err(failure(self.to, &status))),
            }
        })
    }
}
