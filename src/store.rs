//! `kontiki store`: the store alone, speaking etcd v3. And what `kontiki server` shares with it.

pub(crate) mod args;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use kontiki_base::env::Env;
use kontiki_proto::env::SystemEnv;
use kontiki_store::auth::AuthOptions;
use kontiki_store::config::{Listen, PeerTls, Pem, StoreConfig, TlsOptions};
use kontiki_store::flags::apply;
use kontiki_store::raft::node::Timings;
use kontiki_store::server::{Store, StoreHandle};
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::{ClusterState, MemberArgs, StoreArgs, TlsArgs};

/// Threads that consensus and the etcd services run on: half of the processors, but no more than eight. A call is a few microseconds of work on
/// its way through tasks that wait for each other: waking another thread for the next step costs more than the step.
fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, |processors| (processors.get() / 2).clamp(1, 8))
}

/// Threads of the store's own: a burst of other work in the process must not delay a heartbeat, or the member is taken for dead.
pub(crate) struct Threads(Option<Runtime>);

impl Threads {
    /// Starts a member on threads of its own.
    pub(crate) async fn start(config: StoreConfig) -> Result<(Self, StoreHandle)> {
        let runtime = Builder::new_multi_thread().worker_threads(threads()).thread_name("store").enable_all().build();
        let runtime = Self(Some(runtime.context("cannot start threads")?));
        let starting = runtime.0.as_ref().map(|r| r.spawn(Store::start(config))).context("the threads run until they are dropped")?;
        let store = starting.await.context("the store panicked")?.context("the store did not start")?;
        Ok((runtime, store))
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// Runs the command until it is told to end.
pub(crate) async fn run(args: &StoreArgs) -> Result<()> {
    let env: Arc<dyn Env> = Arc::new(SystemEnv::new());
    let applied = apply(&args.given()?, env)?;
    for note in applied.notes {
        tracing::warn!("{note}");
    }
    let (name, data_dir) = (applied.config.name.clone(), applied.config.data_dir.clone());
    let parent = data_dir.parent().unwrap_or(&data_dir);
    std::fs::create_dir_all(parent).with_context(|| format!("--data-dir: cannot create {}", parent.display()))?;
    let (_threads, store) = Threads::start(applied.config).await?;
    tracing::info!(name, clients = ?store.addrs(), data_dir = %data_dir.display(), "serving etcd v3");
    tokio::select! {
        () = terminated() => {}
        () = reload_on_hangup(&store) => {}
        why = failed(&store) => bail!("the store stopped: {why}"),
    }
    store.shutdown().await;
    Ok(())
}

/// Reads certificates anew at each SIGHUP. Never completes.
pub(crate) async fn reload_on_hangup(store: &StoreHandle) {
    // Without signals, certificates are still read anew when their files have changed.
    let Ok(mut hangup) = signal(SignalKind::hangup()) else { return std::future::pending().await };
    while hangup.recv().await.is_some() {
        match store.reload_certificates() {
            Ok(()) => tracing::info!("certificates were read anew"),
            Err(error) => tracing::warn!(%error, "certificates cannot be used: the ones before stay"),
        }
    }
    std::future::pending().await
}

/// Completes with the reason when the member has stopped by itself: a disk that fails, most likely.
pub(crate) async fn failed(store: &StoreHandle) -> String {
    let mut status = store.status();
    match status.wait_for(|s| s.fatal.is_some()).await {
        Ok(status) => status.fatal.clone().unwrap_or_default(),
        Err(_) => "consensus ended".into(),
    }
}

/// Completes on SIGTERM or Ctrl-C.
pub(crate) async fn terminated() {
    let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else {
        // Without signals the process ends by being killed, which it must survive anyway.
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

/// What a server's flags say of its member, checked.
pub(crate) fn config(args: &MemberArgs, tls: &TlsArgs, env: Arc<dyn Env>) -> Result<StoreConfig> {
    let list = args.initial_cluster.join(",");
    let initial_cluster = kontiki_store::flags::value::members(&list).map_err(|why| anyhow::anyhow!("--initial-cluster: {why}"))?;
    let https = initial_cluster.iter().flat_map(|(_, urls)| urls).any(|url| url.starts_with("https://"));
    let file = |path: &std::path::Path| Pem::File(path.to_owned());
    let (ca, cert, key) = (file(&tls.ca), file(&tls.cert), file(&tls.key));
    let shortest = Duration::from_millis(args.election_timeout);
    let timings = Timings {
        heartbeat: Duration::from_millis(args.heartbeat_interval),
        election: (shortest, shortest * 10 / 7),
        ..Timings::default()
    };
    Ok(StoreConfig {
        name: args.name.clone(),
        listen_clients: vec![Listen { addr: args.listen_client, tls: args.client_tls }],
        advertise_client_urls: args.advertise_client_url.iter().cloned().collect(),
        listen_peer: args.listen_peer,
        initial_cluster,
        cluster_token: args.initial_cluster_token.clone(),
        join: args.initial_cluster_state == ClusterState::Existing,
        client_tls: args.client_tls.then(|| TlsOptions::new(cert.clone(), key.clone()).for_clients_of(ca.clone())),
        peer_tls: https.then_some(PeerTls { ca, cert, key }),
        timings,
        auth: AuthOptions {
            token: args.auth_token.clone(),
            token_ttl: Duration::from_secs(args.auth_token_ttl),
            bcrypt_cost: args.bcrypt_cost,
        },
        ..StoreConfig::single(&args.name, args.data_dir.join("store"), env)
    })
}

/// A file that must be there.
pub(crate) fn read(path: &std::path::Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}
