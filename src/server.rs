//! `kontiki server`: one control-plane member. Store, API server, controllers and scheduler in one process.
//!
//! The API server reaches its store in process. Controllers run warm on every member, and act where the Raft leader is: leadership is the
//! term that the store tells.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use kontiki_agents::metrics::Metrics;
use kontiki_agents::session::{self, Liveness, SessionConfig};
use kontiki_agents::{ApiConfig as ClientConfig, Controllers, ControllersConfig};
use kontiki_apiserver::config::{ApiConfig, ClientIdentity, ServiceCidr, TlsConfig};
use kontiki_apiserver::{ApiHandle, ApiServer};
use kontiki_base::Term;
use kontiki_base::env::Env;
use kontiki_proto::env::SystemEnv;
use kontiki_store::raft::{RaftStatus, Role};
use kontiki_store::server::Store;
use tokio::sync::watch;

use crate::cli::{ServerArgs, TlsArgs};
use crate::store::{config, failed, read, terminated};

/// Keys that are reconciled at once.
const WORKERS: usize = 8;

/// The client port serves as long as the store does; controllers are told to end first, and have this long.
const GOODBYE: Duration = Duration::from_secs(3);

/// Runs the command until it is told to end.
pub(crate) async fn run(args: ServerArgs) -> Result<()> {
    let env: Arc<dyn Env> = Arc::new(SystemEnv::new());
    let store = Store::start(config(&args.member, Some(&args.tls), env.clone())?).await.context("the store did not start")?;
    let leadership = leadership(store.status());
    let liveness = Arc::new(Liveness::default());
    let metrics = Arc::new(Metrics::default());
    let client = client(&args)?;
    let sessions = session::service(SessionConfig {
        api: client.clone(),
        leadership: leadership.clone(),
        liveness: liveness.clone(),
        env: env.clone(),
        metrics: metrics.clone(),
        server_name: args.member.name.clone(),
    })?;
    let api = api_config(&args, store.kv(), env.clone(), tonic::service::Routes::new(sessions).into_axum_router())?;
    let api: ApiHandle = ApiServer::start(api).await.context("the API server did not start")?;
    let controllers = ControllersConfig {
        api: client,
        leadership,
        env,
        metrics,
        liveness,
        root_ca_pem: String::from_utf8(read(&args.tls.ca)?).context("the certificate authority is not PEM")?,
        workers: WORKERS,
    };
    let (stop, stopped) = watch::channel(false);
    let mut controllers = tokio::spawn(Controllers::run(controllers, until(stopped)));
    let outcome = tokio::select! {
        () = terminated() => Ok(()),
        why = failed(&store) => Err(anyhow::anyhow!("the store stopped: {why}")),
        ended = &mut controllers => match ended.context("the controllers panicked")? {
            Ok(()) => bail!("the controllers ended by themselves"),
            Err(e) => Err(e).context("the controllers did not start"),
        },
    };
    let _ = stop.send(true);
    if !controllers.is_finished() {
        let _ = tokio::time::timeout(GOODBYE, controllers).await;
    }
    api.shutdown().await;
    store.shutdown().await;
    outcome
}

async fn until(mut stopped: watch::Receiver<bool>) {
    let _ = stopped.wait_for(|stop| *stop).await;
}

/// `Some(term)` while this member leads in `term`.
fn leadership(mut status: watch::Receiver<RaftStatus>) -> watch::Receiver<Option<Term>> {
    let led = |status: &RaftStatus| (status.role == Role::Leader).then_some(status.term);
    let (sender, receiver) = watch::channel(led(&status.borrow()));
    tokio::spawn(async move {
        while status.changed().await.is_ok() {
            let now = led(&status.borrow_and_update());
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
    Ok(ClientConfig { endpoints, ca_pem: read(ca)?, cert_pem: read(cert)?, key_pem: read(key)? })
}

fn api_config(args: &ServerArgs, kv: Arc<dyn kontiki_base::kv::Kv>, env: Arc<dyn Env>, sessions: tonic::codegen::Router) -> Result<ApiConfig> {
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
        server_name: args.member.name.clone(),
    })
}
