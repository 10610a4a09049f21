//! `kontiki store`: the store alone, speaking etcd v3. And what `kontiki server` shares with it.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use kontiki_base::env::Env;
use kontiki_proto::env::SystemEnv;
use kontiki_store::compactor::CompactionMode;
use kontiki_store::config::StoreConfig;
use kontiki_store::net::PeerTls;
use kontiki_store::raft::node::Timings;
use kontiki_store::room::DISK_RESERVE;
use kontiki_store::server::{Store, StoreHandle};
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::{ClusterState, MemberArgs, StoreArgs, TlsArgs};

/// Threads that consensus and the etcd services run on.
const THREADS: usize = 2;

/// Threads of the store's own: a burst of other work in the process must not delay a heartbeat, or the member is taken for dead.
pub(crate) struct Threads(Option<Runtime>);

impl Threads {
    /// Starts a member on threads of its own.
    pub(crate) async fn start(config: StoreConfig) -> Result<(Self, StoreHandle)> {
        let runtime = Builder::new_multi_thread().worker_threads(THREADS).thread_name("store").enable_all().build();
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
pub(crate) async fn run(args: StoreArgs) -> Result<()> {
    let env: Arc<dyn Env> = Arc::new(SystemEnv::new());
    let (_threads, store) = Threads::start(config(&args.member, None, env)?).await?;
    tracing::info!(name = args.member.name, client = ?store.client_addr(), "serving etcd v3");
    tokio::select! {
        () = terminated() => {}
        why = failed(&store) => bail!("the store stopped: {why}"),
    }
    store.shutdown().await;
    Ok(())
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

/// What the member's flags say, checked.
pub(crate) fn config(args: &MemberArgs, tls: Option<&TlsArgs>, env: Arc<dyn Env>) -> Result<StoreConfig> {
    let mut initial_cluster: Vec<(String, Vec<String>)> = Vec::new();
    for item in &args.initial_cluster {
        let (name, url) = item.split_once('=').with_context(|| format!("--initial-cluster: {item:?} is not name=url"))?;
        match initial_cluster.iter_mut().find(|(known, _)| known == name) {
            Some((_, urls)) => urls.push(url.to_owned()),
            None => initial_cluster.push((name.to_owned(), vec![url.to_owned()])),
        }
    }
    let https = initial_cluster.iter().flat_map(|(_, urls)| urls).any(|url| url.starts_with("https://"));
    let peer_tls = match (https, tls) {
        (false, _) => None,
        (true, Some(tls)) => Some(peer_tls(tls)?),
        (true, None) => bail!("--initial-cluster has https URLs, and there are no certificates: use http, or `kontiki server` with --cert"),
    };
    let shortest = Duration::from_millis(args.election_timeout);
    Ok(StoreConfig {
        name: args.name.clone(),
        data_dir: args.data_dir.join("store"),
        listen_client: Some(args.listen_client),
        advertise_client_urls: args.advertise_client_url.iter().cloned().collect(),
        listen_peer: args.listen_peer,
        initial_cluster,
        cluster_token: args.initial_cluster_token.clone(),
        join: args.initial_cluster_state == ClusterState::Existing,
        client_tls: None,
        peer_tls,
        timings: Timings {
            heartbeat: Duration::from_millis(args.heartbeat_interval),
            election: (shortest, shortest * 10 / 7),
            ..Timings::default()
        },
        progress_every: Duration::from_secs(600),
        quota_backend_bytes: 0,
        disk_reserve_bytes: DISK_RESERVE,
        auto_compaction_mode: CompactionMode::Periodic,
        auto_compaction_retention: "0".into(),
        history_keep: Duration::ZERO,
        history_max_bytes: 0,
        env,
    })
}

fn peer_tls(tls: &TlsArgs) -> Result<PeerTls> {
    Ok(PeerTls { ca_pem: read(&tls.ca)?, cert_pem: read(&tls.cert)?, key_pem: read(&tls.key)? })
}

/// A file that must be there.
pub(crate) fn read(path: &std::path::Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}
