//! The listener: TLS, HTTP/1.1 and HTTP/2, both doors on one port, an end in good order.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use kontiki_base::env::Task;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::config::ApiConfig;
use crate::core::{Core, Parts};
use crate::error::StartError;
use crate::stack::{Lanes, Peer, Stack};
use crate::{auth, bootstrap, crd, grpc, health, tls};

/// HTTP/2 streams per connection: controllers keep all their watches on one.
const STREAMS: u32 = 1_000;
/// HTTP/2 window per stream and largest frame.
const WINDOW: u32 = 256 << 10;
/// A client that does not finish its TLS handshake within this time is dropped.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long a stop waits for answers under way.
const DRAIN: Duration = Duration::from_secs(5);
/// HTTP/2 pings find connections whose other end is gone.
const PING_EVERY: Duration = Duration::from_secs(30);
const PING_PATIENCE: Duration = Duration::from_secs(15);

/// An API server. Start one with [`ApiServer::start`].
#[derive(Debug)]
pub struct ApiServer;

/// A running API server. Dropping this leaves it running; [`ApiHandle::shutdown`] stops it.
#[derive(Debug)]
pub struct ApiHandle {
    addr: SocketAddr,
    core: Arc<Core>,
    done: tokio::sync::watch::Receiver<bool>,
    tasks: Vec<Task>,
}

impl ApiHandle {
    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Whether it can answer everything: caches loaded, a leader in the store.
    pub fn is_ready(&self) -> bool {
        health::serve(&self.core, "/readyz", false).is_some_and(|r| r.status().is_success())
    }

    /// Stops: not ready first, then watches end, answers under way are finished, connections are closed.
    pub async fn shutdown(mut self) {
        self.core.stopping.send_replace(true);
        // An error means that the listener is gone already.
        let _ = self.done.wait_for(|done| *done).await;
        for task in self.tasks.drain(..) {
            task.abort();
        }
    }
}

/// An API server without a port of its own: in a simulation, which has a network of its own.
pub struct ApiInside {
    stack: Arc<Stack>,
    tasks: Vec<Task>,
}

impl std::fmt::Debug for ApiInside {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApiInside").finish_non_exhaustive()
    }
}

impl ApiInside {
    /// What answers requests from `addr`. Callers are known by their tokens only.
    pub fn router(&self, addr: SocketAddr) -> axum::Router {
        let (stack, peer) = (Arc::clone(&self.stack), Arc::new(Peer { addr, user: None }));
        axum::Router::new().fallback(move |request: axum::extract::Request| Arc::clone(&stack).serve(Arc::clone(&peer), request))
    }

    /// Whether it can answer everything: caches loaded, a leader in the store.
    pub fn is_ready(&self) -> bool {
        health::serve(&self.stack.core, "/readyz", false).is_some_and(|r| r.status().is_success())
    }

    /// Stops: watches end, and its tasks.
    pub fn shutdown(mut self) {
        self.stack.core.stopping.send_replace(true);
        self.tasks.drain(..).for_each(|task| task.abort());
    }
}

/// All of a server but its port.
fn compose(config: ApiConfig, advertise: Vec<SocketAddr>) -> Result<(Arc<Stack>, Vec<Task>), StartError> {
    let node_tls = config.node_client.as_ref().map(tls::client).transpose()?;
    let core = Arc::new(Core::new(Parts {
        kv: config.kv,
        env: config.env,
        tokens: auth::Tokens::new(config.tokens),
        service_cidr: config.service_cidr,
        advertise,
        server_name: config.server_name,
        extra_metrics: config.extra_metrics,
        node_tls,
    }));
    let stack = Arc::new(Stack { core: core.clone(), lanes: Lanes::new(), grpc: grpc::router(&core, config.extra_routes) });
    let tasks = vec![
        core.env.spawn("watch-cache", Box::pin(core.hub.clone().run())),
        core.env.spawn("warm-caches", Box::pin(warm(core.clone()))),
        core.env.spawn("custom-resources", Box::pin(crd::run(core.clone()))),
        core.env.spawn("bootstrap", Box::pin(bootstrap::run(core.clone()))),
    ];
    Ok((stack, tasks))
}

impl ApiServer {
    /// Starts an API server: binds its port, spawns its tasks. It answers at once; it is ready when its caches are loaded.
    pub async fn start(config: ApiConfig) -> Result<ApiHandle, StartError> {
        let acceptor = TlsAcceptor::from(tls::server(&config.tls)?);
        let listen = config.listen;
        let bound = |source| StartError::Listen { addr: listen, source };
        let listener = TcpListener::bind(listen).await.map_err(bound)?;
        let addr = listener.local_addr().map_err(bound)?;
        let advertise = if config.advertise.is_empty() { vec![addr] } else { config.advertise.clone() };
        let (stack, mut tasks) = compose(config, advertise)?;
        let core = stack.core.clone();
        let (done, finished) = tokio::sync::watch::channel(false);
        let serving = core.clone();
        tasks.push(core.env.spawn(
            "api-listener",
            Box::pin(async move {
                accept(listener, acceptor, stack, serving).await;
                done.send_replace(true);
            }),
        ));
        tracing::info!(%addr, "API server listens");
        Ok(ApiHandle { addr, core, done: finished, tasks })
    }

    /// Starts one without a port: neither `listen` nor `tls` of the configuration is used.
    ///
    /// # Errors
    /// The identity towards node agents cannot be used.
    pub fn inside(config: ApiConfig) -> Result<ApiInside, StartError> {
        let advertise = if config.advertise.is_empty() { vec![config.listen] } else { config.advertise.clone() };
        let (stack, tasks) = compose(config, advertise)?;
        Ok(ApiInside { stack, tasks })
    }
}

async fn warm(core: Arc<Core>) {
    for row in health::warm(&core) {
        while core.cache(&row).await.is_none() {
            core.env.sleep(Duration::from_millis(200)).await;
        }
    }
}

async fn accept(listener: TcpListener, acceptor: TlsAcceptor, stack: Arc<Stack>, core: Arc<Core>) {
    let graceful = Arc::new(GracefulShutdown::new());
    let stopped = core.stopped();
    tokio::pin!(stopped);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut stopped => break,
        };
        match accepted {
            Ok((socket, addr)) => {
                let connection = serve_connection(socket, addr, acceptor.clone(), stack.clone(), graceful.watcher());
                core.env.spawn("api-connection", Box::pin(connection));
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                core.env.sleep(Duration::from_millis(50)).await;
            }
        }
    }
    drop(listener);
    let Some(graceful) = Arc::into_inner(graceful) else { return };
    tokio::select! {
        () = graceful.shutdown() => {}
        () = core.env.sleep(DRAIN) => tracing::warn!("connections were still busy when the server stopped"),
    }
}

async fn serve_connection(
    socket: TcpStream,
    addr: SocketAddr,
    acceptor: TlsAcceptor,
    stack: Arc<Stack>,
    watcher: hyper_util::server::graceful::Watcher,
) {
    if let Err(error) = kontiki_proto::socket::tune(&socket) {
        tracing::debug!(%error, "a connection could not be set up to notice a dead end");
    }
    let env = stack.core.env.clone();
    let secured = tokio::select! {
        secured = acceptor.accept(socket) => secured,
        () = env.sleep(HANDSHAKE) => return,
    };
    let stream = match secured {
        Ok(stream) => stream,
        Err(error) => return tracing::debug!(%addr, %error, "TLS handshake failed"),
    };
    let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let peer = Arc::new(Peer { addr, user: certificate.and_then(|der| auth::from_certificate(der)) });
    let service = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        let (stack, peer) = (stack.clone(), peer.clone());
        async move { Ok::<_, std::convert::Infallible>(stack.serve(peer, request.map(Body::new)).await) }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(32));
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .initial_stream_window_size(WINDOW)
        .max_frame_size(WINDOW)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_PATIENCE);
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).into_owned();
    if let Err(error) = watcher.watch(connection).await {
        tracing::debug!(%addr, %error, "connection ended");
    }
}
