//! The client port: accepts connections, plaintext or TLS, and serves HTTP/1 and HTTP/2 on each.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use kontiki_base::env::{Env, Task};
use kontiki_base::limits;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;

use super::Peer;
use super::authority::Lenient;
use crate::config::TlsOptions;
use crate::error::StoreError;

/// The server asks a silent connection this often whether it is still there…
const PING_EVERY: Duration = Duration::from_secs(30);

/// …and gives up on it after this long without an answer.
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// A TLS handshake that takes longer is given up.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Windows of flow control, per stream and per connection, and the largest frame.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 8 << 20;
const FRAME: u32 = 64 << 10;

/// Streams at once on one connection: watches count, too.
const STREAMS: u32 = 16_384;

/// The client port, taken, but not served yet.
pub(crate) struct Bound {
    listener: TcpListener,
    acceptor: Option<TlsAcceptor>,
    /// Where it listens.
    pub(crate) addr: SocketAddr,
}

impl Bound {
    /// Takes the port; 0 takes a free one.
    ///
    /// # Errors
    /// [`StoreError::Listen`], [`StoreError::Tls`].
    pub(crate) async fn new(listen: SocketAddr, tls: Option<&TlsOptions>) -> Result<Self, StoreError> {
        let fail = |error: io::Error| StoreError::Listen { addr: listen.to_string(), why: error.to_string() };
        let acceptor = tls.map(acceptor).transpose()?;
        let listener = TcpListener::bind(listen).await.map_err(fail)?;
        let addr = listener.local_addr().map_err(fail)?;
        Ok(Self { listener, acceptor, addr })
    }

    /// Serves `router` until closed.
    pub(crate) fn open(self, router: axum::Router, env: &Arc<dyn Env>) -> Door {
        let Self { listener, acceptor, addr } = self;
        let (closing, closed) = watch::channel(false);
        let connections = Arc::new(Semaphore::new(limits::CLIENT_CONNECTIONS));
        let accept = Accept { listener, acceptor, router, env: Arc::clone(env), closed, connections: Arc::clone(&connections) };
        let accepting = env.spawn("client.accept", Box::pin(accept.run()));
        Door { addr, closing, accepting, connections }
    }
}

/// The client port, open.
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
    acceptor: Option<TlsAcceptor>,
    router: axum::Router,
    env: Arc<dyn Env>,
    closed: watch::Receiver<bool>,
    connections: Arc<Semaphore>,
}

impl Accept {
    async fn run(self) {
        loop {
            // A client beyond the limit waits in the system's own queue.
            let Ok(place) = Arc::clone(&self.connections).acquire_owned().await else { return };
            let (stream, peer) = match self.listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of file descriptors, most likely: it passes.
                    tracing::warn!(%error, "cannot accept a client");
                    self.env.sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let (acceptor, router, env, closed) = (self.acceptor.clone(), self.router.clone(), Arc::clone(&self.env), self.closed.clone());
            let connection = async move {
                let _place = place;
                if let Err(error) = connect(stream, peer, acceptor, router, &*env, closed).await {
                    tracing::debug!(%peer, %error, "client connection ended");
                }
            };
            self.env.spawn("client.connection", Box::pin(connection));
        }
    }
}

async fn connect(
    stream: TcpStream,
    peer: SocketAddr,
    acceptor: Option<TlsAcceptor>,
    router: axum::Router,
    env: &dyn Env,
    closed: watch::Receiver<bool>,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    stream.set_nodelay(true)?;
    let Some(acceptor) = acceptor else { return serve(stream, peer, router, closed).await };
    let encrypted = tokio::select! {
        biased;
        encrypted = acceptor.accept(stream) => encrypted?,
        () = env.sleep(HANDSHAKE) => return Err("the TLS handshake took too long".into()),
    };
    serve(encrypted, peer, router, closed).await
}

async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    peer: SocketAddr,
    router: axum::Router,
    mut closed: watch::Receiver<bool>,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new());
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIMEOUT)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME)
        .max_concurrent_streams(STREAMS);
    let service = TowerToHyperService::new(router.layer(axum::Extension(Peer(peer))));
    let connection = builder.serve_connection(TokioIo::new(Lenient::new(stream)), service);
    tokio::pin!(connection);
    tokio::select! {
        biased;
        done = connection.as_mut() => return done,
        _ = closed.wait_for(|closed| *closed) => connection.as_mut().graceful_shutdown(),
    }
    connection.await
}

fn acceptor(tls: &TlsOptions) -> Result<TlsAcceptor, StoreError> {
    let fail = |text: String| StoreError::Tls(text);
    let certs = CertificateDer::pem_slice_iter(&tls.cert).collect::<Result<Vec<_>, _>>().map_err(|e| fail(format!("certificate: {e}")))?;
    let key = PrivateKeyDer::from_pem_slice(&tls.key).map_err(|e| fail(format!("key: {e}")))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|e| fail(e.to_string()))?;
    let builder = match &tls.client_ca {
        None => builder.with_no_client_auth(),
        Some(pem) => {
            let mut roots = rustls::RootCertStore::empty();
            for cert in CertificateDer::pem_slice_iter(pem) {
                let cert = cert.map_err(|e| fail(format!("client authority: {e}")))?;
                roots.add(cert).map_err(|e| fail(format!("client authority: {e}")))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            builder.with_client_cert_verifier(verifier.build().map_err(|e| fail(format!("client authority: {e}")))?)
        }
    };
    let mut config = builder.with_single_cert(certs, key).map_err(|e| fail(e.to_string()))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}
