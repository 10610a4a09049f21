//! A port for clients: accepts connections, plaintext or TLS, and serves HTTP/1 and HTTP/2 on each.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use kontiki_base::env::{Env, Task};
use kontiki_base::limits;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;

use super::Peer;
use super::authority::Lenient;
use super::short::Shortcut;
use crate::error::StoreError;
use crate::grpc::short::Calls;
use crate::listen::Listen;
use crate::tls::{self, ServerTls, TlsOptions};

/// What a port speaks under TLS.
const ALPN: &[&[u8]] = &[b"h2", b"http/1.1"];

/// How connections are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connections {
    /// The server asks a silent connection this often whether it is still there…
    pub ping_every: Duration,
    /// …and gives up on it after this long without an answer.
    pub ping_timeout: Duration,
    /// Streams at once on one connection: watches count, too.
    pub streams: u32,
}

impl Default for Connections {
    fn default() -> Self {
        Self { ping_every: Duration::from_secs(30), ping_timeout: Duration::from_secs(20), streams: 16_384 }
    }
}

/// A TLS handshake that takes longer is given up.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Windows of flow control, per stream and per connection, and the largest frame.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 8 << 20;
pub(super) const FRAME: u32 = 64 << 10;

/// What a port serves.
#[derive(Clone)]
pub(crate) struct Served {
    router: axum::Router,
    /// The calls that need less.
    short: Option<Arc<Calls>>,
}

impl Served {
    /// A router, and calls that are served without it.
    pub(crate) const fn new(router: axum::Router, short: Arc<Calls>) -> Self {
        Self { router, short: Some(short) }
    }
}

impl From<axum::Router> for Served {
    fn from(router: axum::Router) -> Self {
        Self { router, short: None }
    }
}

/// Certificates of a port for clients.
pub(crate) fn certificates(options: &TlsOptions) -> Result<Arc<ServerTls>, StoreError> {
    tls::serving(options, ALPN)
}

/// A port for clients, taken, but not served yet.
pub(crate) struct Bound {
    listener: TcpListener,
    tls: Option<Arc<ServerTls>>,
    /// Where it listens.
    pub(crate) addr: SocketAddr,
}

impl Bound {
    /// Takes the port; 0 takes a free one.
    ///
    /// # Errors
    /// [`StoreError::Listen`]; [`StoreError::Config`] if it shall speak TLS and there is no certificate.
    pub(crate) async fn new(listen: Listen, tls: Option<&Arc<ServerTls>>) -> Result<Self, StoreError> {
        let fail = |error: io::Error| StoreError::Listen { addr: listen.to_string(), why: error.to_string() };
        let tls = match (listen.tls, tls) {
            (false, _) => None,
            (true, Some(tls)) => Some(Arc::clone(tls)),
            (true, None) => return Err(StoreError::Config(format!("{listen} needs a certificate and a key"))),
        };
        let listener = TcpListener::bind(listen.addr).await.map_err(fail)?;
        let addr = listener.local_addr().map_err(fail)?;
        Ok(Self { listener, tls, addr })
    }

    /// Whether it speaks TLS.
    pub(crate) const fn is_secure(&self) -> bool {
        self.tls.is_some()
    }

    /// Where it listens, as a URL.
    pub(crate) fn url(&self) -> String {
        Listen { addr: self.addr, tls: self.tls.is_some() }.to_string()
    }

    /// Serves until closed.
    pub(crate) fn open(self, served: impl Into<Served>, env: &Arc<dyn Env>, keep: Connections) -> Door {
        let Self { listener, tls, addr } = self;
        let (closing, closed) = watch::channel(false);
        let connections = Arc::new(Semaphore::new(limits::CLIENT_CONNECTIONS));
        let served = served.into();
        let accept = Accept { listener, tls, served, env: Arc::clone(env), keep, closed, connections: Arc::clone(&connections) };
        let accepting = env.spawn("client.accept", Box::pin(accept.run()));
        Door { addr, closing, accepting, connections }
    }
}

/// A port for clients, open.
pub(crate) struct Door {
    /// Where it listens.
    pub(crate) addr: SocketAddr,
    closing: watch::Sender<bool>,
    accepting: Task,
    connections: Arc<Semaphore>,
}

impl Door {
    /// Stops accepting, tells clients to go, and waits for them a while.
    pub(crate) async fn close(&self, env: &dyn Env, patience: Duration) {
        self.closing.send_replace(true);
        self.accepting.abort();
        let all = u32::try_from(limits::CLIENT_CONNECTIONS).unwrap_or(u32::MAX);
        tokio::select! {
            biased;
            _ = self.connections.acquire_many(all) => {}
            () = env.sleep(patience) => {}
        }
    }
}

struct Accept {
    listener: TcpListener,
    tls: Option<Arc<ServerTls>>,
    served: Served,
    env: Arc<dyn Env>,
    keep: Connections,
    closed: watch::Receiver<bool>,
    connections: Arc<Semaphore>,
}

impl Accept {
    async fn run(self) {
        loop {
            // A client beyond the limit waits in the system's own queue.
            let Ok(place) = Arc::clone(&self.connections).acquire_owned().await else { return };
            let (stream, addr) = match self.listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of file descriptors, most likely: it passes.
                    tracing::warn!(%error, "cannot accept a client");
                    self.env.sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            // Looked up for each connection: that is how new certificates come in.
            let acceptor = self.tls.as_ref().map(|tls| TlsAcceptor::from(tls.current()));
            let (served, env, keep, closed) = (self.served.clone(), Arc::clone(&self.env), self.keep, self.closed.clone());
            let connection = async move {
                let _place = place;
                if let Err(error) = connect(stream, addr, acceptor, served, &*env, keep, closed).await {
                    tracing::debug!(peer = %addr, %error, "client connection ended");
                }
            };
            self.env.spawn("client.connection", Box::pin(connection));
        }
    }
}

type Ended = Result<(), Box<dyn std::error::Error + Send + Sync>>;

async fn connect(
    stream: TcpStream,
    addr: SocketAddr,
    acceptor: Option<TlsAcceptor>,
    served: Served,
    env: &dyn Env,
    keep: Connections,
    closed: watch::Receiver<bool>,
) -> Ended {
    kontiki_proto::socket::tune(&stream)?;
    let peer = Peer { addr, common_name: None };
    let Some(acceptor) = acceptor else { return shortened(stream, peer, served, keep, closed).await };
    let encrypted = tokio::select! {
        biased;
        encrypted = acceptor.accept(stream) => encrypted?,
        () = env.sleep(HANDSHAKE) => return Err("the TLS handshake took too long".into()),
    };
    let shown = encrypted.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let common_name = shown.and_then(|cert| tls::common_name(cert)).map(Into::into);
    shortened(encrypted, Peer { addr, common_name }, served, keep, closed).await
}

/// Puts the short way before a connection, unless calls are traced: then each is to be seen in all its parts.
async fn shortened(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    peer: Peer,
    served: Served,
    keep: Connections,
    closed: watch::Receiver<bool>,
) -> Ended {
    match served.short.filter(|_| !crate::grpc::are_traced()) {
        Some(calls) => {
            let stream = Shortcut::new(stream, calls, peer.clone(), keep.streams);
            serve(stream, peer, served.router, keep, closed).await
        }
        None => serve(Lenient::new(stream), peer, served.router, keep, closed).await,
    }
}

async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    peer: Peer,
    router: axum::Router,
    keep: Connections,
    mut closed: watch::Receiver<bool>,
) -> Ended {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new());
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(keep.ping_every)
        .keep_alive_timeout(keep.ping_timeout)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME)
        .max_concurrent_streams(keep.streams);
    let service = TowerToHyperService::new(router.layer(axum::Extension(peer)));
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    tokio::select! {
        biased;
        done = connection.as_mut() => return done,
        _ = closed.wait_for(|closed| *closed) => connection.as_mut().graceful_shutdown(),
    }
    connection.await
}
