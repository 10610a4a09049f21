//! `kontiki server`: one control-plane member. Store, API server, controllers and scheduler in one process.
//!
//! The API server reaches its store in process. Controllers run warm on every member, and act where the Raft leader is: leadership is the
//! term that the store tells.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use kontiki_agents::metrics::Metrics;
use kontiki_agents::session::{self, Caller as SessionCaller, Liveness, SessionConfig};
use kontiki_agents::{ApiConfig as ClientConfig, Caches, Controllers, ControllersConfig};
use kontiki_apiserver::{ApiConfig, ClientIdentity, ExtraMetrics, ServiceCidr, TlsConfig};
use kontiki_apiserver::{ApiHandle, ApiServer, Caller};
use kontiki_base::Term;
use kontiki_base::env::Env;
use kontiki_control::world::Settings;
use kontiki_proto::env::SystemEnv;
use kontiki_store::raft::RaftStatus;
use tokio::sync::watch;

use crate::cli::{ServerArgs, TlsArgs};
use crate::store::{Threads, config, failed, read, reload_on_hangup, terminated};

/// Keys that are reconciled at once.
const WORKERS: usize = 8;

/// The client port serves as long as the store does; controllers are told to end first, and have this long.
const GOODBYE: Duration = Duration::from_secs(3);

/// So much of the past can be read and watched, unless the store is larger than this: then less.
const HISTORY: Duration = Duration::from_secs(3600);
const HISTORY_BYTES: u64 = 16 << 30;

/// Runs the command until it is told to end.
pub(crate) async fn run(args: ServerArgs) -> Result<()> {
    let env: Arc<dyn Env> = Arc::new(SystemEnv::new());
    let mut store_config = config(&args.member, &args.tls, env.clone())?;
    // The disk is the limit, and the past can be read: nobody else compacts here.
    store_config.quota_backend_bytes = -1;
    (store_config.history_keep, store_config.history_max_bytes) = (HISTORY, HISTORY_BYTES);
    let (_threads, store) = Threads::start(store_config).await?;
    let leadership = leadership(store.status());
    let liveness = Arc::new(Liveness::new(env.clone()));
    let client = client(&args)?;
    let root_ca = String::from_utf8(read(&args.tls.ca)?).context("the certificate authority is not PEM")?;
    let settings = Settings { root_ca_pem: root_ca, ..Settings::default() };
    let metrics = Arc::new(Metrics::default());
    let extra_metrics: ExtraMetrics = Arc::new(metrics.writer());
    let caches = Caches::new(&client, env.clone(), metrics, settings)?;
    let sessions = session::service(SessionConfig {
        caches: caches.clone(),
        leadership: leadership.clone(),
        liveness: liveness.clone(),
        peers: client,
        server: args.member.name.clone(),
        authorize: Arc::new(authorize),
    })?;
    let sessions = tonic::service::Routes::new(sessions).into_axum_router().reset_fallback();
    let api = ApiConfig { extra_metrics: Some(extra_metrics), ..api_config(&args, store.kv(), env.clone(), sessions)? };
    let api: ApiHandle = ApiServer::start(api).await.context("the API server did not start")?;
    let (stop, stopped) = watch::channel(false);
    let following = tokio::spawn(caches.clone().run(until(stopped.clone())));
    let controllers = ControllersConfig { caches, leadership, liveness, workers: WORKERS };
    let mut controllers = tokio::spawn(Controllers::run(controllers, until(stopped)));
    let outcome = tokio::select! {
        () = terminated() => Ok(()),
        () = reload_on_hangup(&store) => Ok(()),
        why = failed(&store) => Err(anyhow::anyhow!("the store stopped: {why}")),
        ended = &mut controllers => match ended.context("the controllers panicked")? {
            Ok(()) => bail!("the controllers ended by themselves"),
            Err(e) => Err(e).context("the controllers did not start"),
        },
    };
    // Whoever leads next begins while this member still ends its work.
    store.hand_over().await;
    let _ = stop.send(true);
    if !controllers.is_finished() {
        let _ = tokio::time::timeout(GOODBYE, controllers).await;
    }
    let _ = tokio::time::timeout(GOODBYE, following).await;
    api.shutdown().await;
    store.shutdown().await;
    outcome
}

/// Who may open a node session or relay heartbeats: the node itself, and servers.
fn authorize(extensions: &tonic::Extensions, claimed: SessionCaller<'_>) -> Result<(), String> {
    let Some(Caller(user)) = extensions.get::<Caller>() else { return Err("nobody said who they are".into()) };
    claimed.may_be(&user.name, &user.groups)
}

async fn until(mut stopped: watch::Receiver<bool>) {
    let _ = stopped.wait_for(|stop| *stop).await;
}

/// `Some(term)` while this member leads in `term`.
fn leadership(mut status: watch::Receiver<RaftStatus>) -> watch::Receiver<Option<Term>> {
    let (sender, receiver) = watch::channel(status.borrow().led());
    tokio::spawn(async move {
        while status.changed().await.is_ok() {
            let now = status.borrow_and_update().led();
            sender.send_if_modified(|known| std::mem::replace(known, now) != now);
        }
        let _ = sender.send(None);
    });
    receiver
}

/// How the controllers of this process reach the API: this server first, the others if it does not answer.
fn client(args: &ServerArgs) -> Result<ClientConfig> {
    let own = format!(":{}", args.listen_api.port());
    let mut endpoints = args.api_servers.clone();
    if endpoints.is_empty() {
        endpoints.push(format!("https://127.0.0.1{own}"));
    }
    endpoints.sort_by_key(|url| !url.ends_with(&own));
    let TlsArgs { ca, cert, key } = &args.tls;
    Ok(ClientConfig { endpoints, ca_pem: read(ca)?, cert_pem: read(cert)?, key_pem: read(key)?, transport: None })
}

fn api_config(args: &ServerArgs, kv: Arc<dyn kontiki_base::kv::Kv>, env: Arc<dyn Env>, sessions: axum::Router) -> Result<ApiConfig> {
    let TlsArgs { ca, cert, key } = &args.tls;
    let (ca_pem, cert_pem, key_pem) = (read(ca)?, read(cert)?, read(key)?);
    Ok(ApiConfig {
        kv,
        env,
        listen: args.listen_api,
        tls: TlsConfig { cert_pem: cert_pem.clone(), key_pem: key_pem.clone(), client_ca_pem: ca_pem.clone() },
        node_client: Some(ClientIdentity { cert_pem, key_pem, ca_pem }),
        service_cidr: ServiceCidr::default(),
        advertise: args.api_endpoints.clone(),
        tokens: Vec::new(),
        extra_routes: Some(sessions),
        extra_metrics: None,
        server_name: args.member.name.clone(),
    })
}
