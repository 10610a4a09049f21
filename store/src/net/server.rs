//! The answering side: one port, every message handed to the member's [`PeerHandler`].

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use kontiki_base::BoxFuture;
use kontiki_base::ids::MemberId;
use kontiki_base::limits;
use kontiki_base::net::{Halves, NetError, PeerHandler, PeerReceiver, PeerSender};
use kontiki_proto::peer::Frame;
use kontiki_proto::peer::peer_server::{Peer, PeerServer};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status, Streaming};

use super::{CONNECTION_WINDOW, PING_EVERY, PING_TIMEOUT, PeerTls, STREAM_WINDOW, WireError, rpc_of};

/// A port that serves peers. Dropping this closes it, and every connection on it.
#[derive(Debug)]
pub struct PeerServerHandle {
    /// Where it listens.
    pub addr: SocketAddr,
    stop: watch::Sender<bool>,
    task: tokio::task::JoinHandle<()>,
}

impl PeerServerHandle {
    /// Closes the port at once.
    pub async fn stop(self) {
        let _ = self.stop.send(true);
        self.task.abort();
    }
}

impl Drop for PeerServerHandle {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Serves peers on `listen` (port 0: any free one).
///
/// # Errors
/// The address is taken, or the certificates are unusable.
pub async fn serve(listen: SocketAddr, tls: Option<&PeerTls>, handler: Arc<dyn PeerHandler>) -> Result<PeerServerHandle, WireError> {
    let listener = TcpListener::bind(listen).await.map_err(|source| WireError::Listen { addr: listen, source })?;
    let addr = listener.local_addr().map_err(|source| WireError::Listen { addr: listen, source })?;
    let mut server = Server::builder()
        .http2_keepalive_interval(Some(PING_EVERY))
        .http2_keepalive_timeout(Some(PING_TIMEOUT))
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW);
    if let Some(tls) = tls {
        let config = ServerTlsConfig::new()
            .identity(Identity::from_pem(&tls.cert_pem, &tls.key_pem))
            .client_ca_root(Certificate::from_pem(&tls.ca_pem));
        server = server.tls_config(config).map_err(WireError::Tls)?;
    }
    let service = PeerServer::new(Service { handler })
        .max_decoding_message_size(limits::PEER_MESSAGE_BYTES)
        .max_encoding_message_size(limits::PEER_MESSAGE_BYTES);
    let (stop, mut stopped) = watch::channel(false);
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let task = tokio::spawn(async move {
        let stopped = async move {
            let _ = stopped.wait_for(|stop| *stop).await;
        };
        if let Err(error) = server.add_service(service).serve_with_incoming_shutdown(incoming, stopped).await {
            tracing::error!(%error, %addr, "the peer port failed");
        }
    });
    Ok(PeerServerHandle { addr, stop, task })
}

struct Service {
    handler: Arc<dyn PeerHandler>,
}

#[tonic::async_trait]
impl Peer for Service {
    async fn call(&self, request: Request<Frame>) -> Result<Response<Frame>, Status> {
        let frame = request.into_inner();
        let rpc = rpc_of(frame.rpc).ok_or_else(|| Status::unimplemented(format!("no message of kind {}", frame.rpc)))?;
        match self.handler.handle(rpc, frame.body).await {
            Ok(body) => Ok(Response::new(Frame { rpc: frame.rpc, body })),
            Err(why) => Err(Status::failed_precondition(why)),
        }
    }

    type StreamStream = ReceiverStream<Result<Frame, Status>>;

    async fn stream(&self, request: Request<Streaming<Frame>>) -> Result<Response<Self::StreamStream>, Status> {
        let mut frames = request.into_inner();
        let (replies, outgoing) = mpsc::channel(limits::RAFT_APPEND_QUEUE);
        let handler = self.handler.clone();
        // The caller waits for the answer's header before it goes on: the rest is for a task.
        tokio::spawn(async move {
            let Ok(Some(opening)) = frames.message().await else { return };
            let Some(rpc) = rpc_of(opening.rpc) else {
                let _ = replies.send(Err(Status::unimplemented(format!("no stream of kind {}", opening.rpc)))).await;
                return;
            };
            let sender = Sender { rpc: opening.rpc, replies: replies.clone() };
            let stream = Halves { sender, receiver: Receiver { frames } };
            if let Err(why) = handler.serve(rpc, Box::new(stream)).await {
                let _ = replies.send(Err(Status::failed_precondition(why))).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(outgoing)))
    }
}

struct Sender {
    rpc: u32,
    replies: mpsc::Sender<Result<Frame, Status>>,
}

struct Receiver {
    frames: Streaming<Frame>,
}

/// The caller's id is not known on this side, and not needed: its messages say who it is.
const CALLER: MemberId = MemberId::ZERO;

impl PeerSender for Sender {
    fn send(&mut self, body: Bytes) -> BoxFuture<'_, Result<(), NetError>> {
        Box::pin(async move {
            let sent = self.replies.send(Ok(Frame { rpc: self.rpc, body })).await;
            sent.map_err(|_| NetError::Unreachable { to: CALLER, why: "the stream has ended".into() })
        })
    }
}

impl PeerReceiver for Receiver {
    fn recv(&mut self) -> BoxFuture<'_, Option<Result<Bytes, NetError>>> {
        Box::pin(async move {
            match self.frames.message().await {
                Ok(frame) => frame.map(|f| Ok(f.body)),
                Err(status) => Some(Err(NetError::Unreachable { to: CALLER, why: status.message().to_owned() })),
            }
        })
    }
}
