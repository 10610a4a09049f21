//! The answering side: one port, every message handed to the member's [`PeerHandler`].

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::StreamExt as _;
use kontiki_base::BoxFuture;
use kontiki_base::ids::MemberId;
use kontiki_base::limits;
use kontiki_base::net::{Halves, NetError, PeerHandler, PeerReceiver, PeerSender, PeerStream};
use kontiki_proto::peer::Frame;
use kontiki_proto::peer::peer_server::{Peer, PeerServer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use tonic::transport::server::{Connected, TcpIncoming};
use tonic::{Request, Response, Status, Streaming};

use super::{CONNECT, CONNECTION_WINDOW, PING_EVERY, PING_TIMEOUT, STREAM_WINDOW, WireError, rpc_of};
use crate::meter::Meter;
use crate::tls::ServerTls;

/// A port that serves peers. Dropping this closes it, and every connection on it.
#[derive(Debug)]
pub struct PeerServerHandle {
    /// Where it listens.
    pub addr: SocketAddr,
    stop: watch::Sender<bool>,
    task: tokio::task::JoinHandle<()>,
    accepting: Option<tokio::task::JoinHandle<()>>,
}

impl PeerServerHandle {
    /// Closes the port at once.
    pub async fn stop(self) {
        let _ = self.stop.send(true);
        // The rest happens when this is dropped.
    }
}

impl Drop for PeerServerHandle {
    fn drop(&mut self) {
        self.task.abort();
        if let Some(accepting) = &self.accepting {
            accepting.abort();
        }
    }
}

/// Serves peers on `listen` (port 0: any free one).
///
/// # Errors
/// The address is taken.
pub(crate) async fn serve(
    listen: SocketAddr,
    tls: Option<Arc<ServerTls>>,
    handler: Arc<dyn PeerHandler>,
    meter: Option<Meter>,
) -> Result<PeerServerHandle, WireError> {
    let listener = TcpListener::bind(listen).await.map_err(|source| WireError::Listen { addr: listen, source })?;
    let addr = listener.local_addr().map_err(|source| WireError::Listen { addr: listen, source })?;
    let mut server = Server::builder()
        .http2_keepalive_interval(Some(PING_EVERY))
        .http2_keepalive_timeout(Some(PING_TIMEOUT))
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW);
    let service = PeerServer::new(Service { handler, meter })
        .max_decoding_message_size(limits::PEER_MESSAGE_BYTES)
        .max_encoding_message_size(limits::PEER_MESSAGE_BYTES);
    let (stop, mut stopped) = watch::channel(false);
    let stopped = async move {
        let _ = stopped.wait_for(|stop| *stop).await;
    };
    let server = server.add_service(service);
    let (task, accepting) = match tls {
        None => {
            let incoming =
                TcpIncoming::from(listener).map(|stream| stream.and_then(|stream| kontiki_proto::socket::tune(&stream).map(|()| stream)));
            (tokio::spawn(report(addr, server.serve_with_incoming_shutdown(incoming, stopped))), None)
        }
        Some(tls) => {
            let (ready, incoming) = mpsc::channel(limits::PEER_HANDSHAKES);
            let accepting = tokio::spawn(accept(listener, tls, ready));
            let incoming = ReceiverStream::new(incoming);
            (tokio::spawn(report(addr, server.serve_with_incoming_shutdown(incoming, stopped))), Some(accepting))
        }
    };
    Ok(PeerServerHandle { addr, stop, task, accepting })
}

async fn report(addr: SocketAddr, serving: impl Future<Output = Result<(), tonic::transport::Error>>) {
    if let Err(error) = serving.await {
        tracing::error!(%error, %addr, "the peer port failed");
    }
}

/// Accepts connections and shakes hands, side by side: one that is slow at it holds up nobody.
async fn accept(listener: TcpListener, tls: Arc<ServerTls>, ready: mpsc::Sender<std::io::Result<Secure>>) {
    let places = Arc::new(tokio::sync::Semaphore::new(limits::PEER_HANDSHAKES));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a peer");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                continue;
            }
        };
        let (acceptor, ready) = (TlsAcceptor::from(tls.current()), ready.clone());
        tokio::spawn(async move {
            let _place = place;
            let shaken = async {
                kontiki_proto::socket::tune(&stream)?;
                acceptor.accept(stream).await
            };
            match tokio::time::timeout(CONNECT * 5, shaken).await {
                Ok(Ok(stream)) => drop(ready.send(Ok(Secure(Box::new(stream)))).await),
                Ok(Err(error)) => tracing::warn!(%error, "a peer was turned away: no TLS connection came about"),
                Err(_) => tracing::debug!("a peer was too slow to shake hands"),
            }
        });
    }
}

/// A connection under TLS.
struct Secure(Box<TlsStream<TcpStream>>);

impl Connected for Secure {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Secure {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Secure {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

struct Service {
    handler: Arc<dyn PeerHandler>,
    meter: Option<Meter>,
}

/// Who calls, by its own word: for counts, and nothing else.
fn caller<T>(request: &Request<T>) -> Option<MemberId> {
    request.metadata().get(super::CALLER)?.to_str().ok()?.parse().ok().map(MemberId::new)
}

impl Service {
    /// Refuses what is meant for another member.
    fn meant<T>(&self, request: &Request<T>) -> Result<(), Status> {
        let to = request.metadata().get(super::CALLED).and_then(|to| to.to_str().ok()?.parse().ok()).map(MemberId::new);
        match to {
            Some(to) if !self.handler.is(to) => Err(Status::failed_precondition(format!("member {to} is not here any more"))),
            _ => Ok(()),
        }
    }
}

#[tonic::async_trait]
impl Peer for Service {
    async fn call(&self, request: Request<Frame>) -> Result<Response<Frame>, Status> {
        self.meant(&request)?;
        let from = caller(&request);
        let frame = request.into_inner();
        if let Some((meter, from)) = self.meter.as_ref().zip(from) {
            meter.heard(from, frame.body.len());
        }
        let rpc = rpc_of(frame.rpc).ok_or_else(|| Status::unimplemented(format!("no message of kind {}", frame.rpc)))?;
        match self.handler.handle(rpc, frame.body).await {
            Ok(body) => Ok(Response::new(Frame { rpc: frame.rpc, body })),
            Err(why) => Err(Status::failed_precondition(why)),
        }
    }

    type StreamStream = ReceiverStream<Result<Frame, Status>>;

    async fn stream(&self, request: Request<Streaming<Frame>>) -> Result<Response<Self::StreamStream>, Status> {
        self.meant(&request)?;
        let from = caller(&request);
        let mut frames = request.into_inner();
        let (replies, outgoing) = mpsc::channel(limits::RAFT_APPEND_QUEUE);
        let (handler, meter) = (self.handler.clone(), self.meter.clone());
        // The caller waits for the answer's header before it goes on: the rest is for a task.
        tokio::spawn(async move {
            let Ok(Some(opening)) = frames.message().await else { return };
            let Some(rpc) = rpc_of(opening.rpc) else {
                let _ = replies.send(Err(Status::unimplemented(format!("no stream of kind {}", opening.rpc)))).await;
                return;
            };
            let sender = Sender { rpc: opening.rpc, replies: replies.clone() };
            let stream: Box<dyn PeerStream> = Box::new(Halves { sender, receiver: Receiver { frames } });
            let stream = match meter.zip(from) {
                Some((meter, from)) => meter.stream(from, stream),
                None => stream,
            };
            if let Err(why) = handler.serve(rpc, stream).await {
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
const NOBODY: MemberId = MemberId::ZERO;

impl PeerSender for Sender {
    fn send(&mut self, body: Bytes) -> BoxFuture<'_, Result<(), NetError>> {
        Box::pin(async move {
            let sent = self.replies.send(Ok(Frame { rpc: self.rpc, body })).await;
            sent.map_err(|_| NetError::Unreachable { to: NOBODY, why: "the stream has ended".into() })
        })
    }
}

impl PeerReceiver for Receiver {
    fn recv(&mut self) -> BoxFuture<'_, Option<Result<Bytes, NetError>>> {
        Box::pin(async move {
            match self.frames.message().await {
                Ok(frame) => frame.map(|f| Ok(f.body)),
                Err(status) => Some(Err(NetError::Unreachable { to: NOBODY, why: status.message().to_owned() })),
            }
        })
    }
}
