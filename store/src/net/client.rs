//! The calling side: one connection per peer and lane, made when first used, made anew when it breaks.

use std::collections::BTreeMap;
use std::sync::Mutex;

use bytes::Bytes;
use hyper_util::client::legacy::connect::HttpConnector;
use kontiki_base::BoxFuture;
use kontiki_base::ids::MemberId;
use kontiki_base::limits;
use kontiki_base::net::{Halves, NetError, PeerNet, PeerReceiver, PeerRpc, PeerSender, PeerStream};
use kontiki_proto::peer::Frame;
use kontiki_proto::peer::peer_client::PeerClient;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use super::{CONNECT, CONNECTION_WINDOW, Lane, PING_EVERY, PING_TIMEOUT, PeerTls, STREAM_WINDOW, row};

/// Where a client was connected to, and the client.
type Connection = (String, PeerClient<Channel>);

/// [`PeerNet`] over gRPC.
#[derive(Debug)]
pub struct TonicPeerNet {
    tls: Option<PeerTls>,
    /// By peer and lane; the address is kept to notice that a member has moved.
    connections: Mutex<BTreeMap<(MemberId, Lane), Connection>>,
}

impl TonicPeerNet {
    /// A net without connections.
    pub fn new(tls: Option<PeerTls>) -> Self {
        Self { tls, connections: Mutex::new(BTreeMap::new()) }
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
        let mut endpoint = Endpoint::from_shared(addr.to_owned())
            .map_err(|e| format!("{addr:?} is not a URL: {e}"))?
            .connect_timeout(CONNECT)
            .http2_keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_TIMEOUT)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW);
        if let Some(tls) = self.tls.as_ref().filter(|_| addr.starts_with("https://")) {
            let config = ClientTlsConfig::new()
                .ca_certificate(Certificate::from_pem(&tls.ca_pem))
                .identity(Identity::from_pem(&tls.cert_pem, &tls.key_pem));
            endpoint = endpoint.tls_config(config).map_err(|e| format!("peer certificates cannot be used: {e}"))?;
        }
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(CONNECT));
        connector.set_tcp_user_timeout(Some(PING_TIMEOUT));
        Ok(endpoint.connect_with_connector_lazy(connector))
    }
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
        Box::pin(async move {
            let mut client = client?;
            match timeout(limit, client.call(Frame { rpc: number, body })).await {
                Ok(Ok(response)) => Ok(response.into_inner().body),
                Ok(Err(status)) => Err(failure(to, &status)),
                Err(_) => Err(NetError::Timeout { to }),
            }
        })
    }

    fn open(&self, to: MemberId, addr: &str, rpc: PeerRpc) -> BoxFuture<'static, Result<Box<dyn PeerStream>, NetError>> {
        let (number, lane, limit) = row(rpc);
        let client = self.client(to, addr, lane);
        Box::pin(async move {
            let mut client = client?;
            let (sender, requests) = mpsc::channel(limits::RAFT_APPEND_QUEUE);
            let opening = Frame { rpc: number, body: Bytes::new() };
            sender.try_send(opening).map_err(|e| NetError::Unreachable { to, why: e.to_string() })?;
            match timeout(limit, client.stream(ReceiverStream::new(requests))).await {
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
