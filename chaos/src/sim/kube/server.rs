//! What runs in a member's process beside its store: API server, session service, caches, controllers and scheduler, composed as by
//! `kontiki server`.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use kontiki_agents::metrics::Metrics;
use kontiki_agents::session::{self, Caller as SessionCaller, Liveness, SessionConfig};
use kontiki_agents::{Caches, Controllers, ControllersConfig};
use kontiki_apiserver::{ApiConfig, ApiInside, ApiServer, Caller, ServiceCidr, TlsConfig};
use kontiki_base::Term;
use kontiki_control::world::Settings;
use kontiki_store::inside::Member;
use kontiki_store::raft::RaftStatus;
use tokio::sync::watch;

use super::super::net::Net;
use super::super::rt::Proc;
use super::door;

/// Keys that are reconciled at once.
const WORKERS: usize = 4;

/// A running control plane. It ends with the process that it runs in.
pub struct ControlPlane {
    api: ApiInside,
    address: SocketAddr,
}

impl ControlPlane {
    /// What answers on the API's port.
    pub fn router(&self) -> axum::Router {
        self.api.router(self.address)
    }

    /// Starts all of it on a member.
    ///
    /// # Errors
    /// Its parts do not fit together.
    pub fn start(member: &Member, own: &Arc<Proc>, net: &Arc<Net>, members: u8, nodes: &[String]) -> Result<Self> {
        let number = own.node();
        let env = own.env();
        let name = format!("m{number}");
        let leadership = leadership(member.consensus().status(), own);
        let liveness = Arc::new(Liveness::new(env.clone()));
        let client = door::config(own, net, members, usize::from(number), None);
        let caches = Caches::new(&client, env.clone(), Arc::new(Metrics::default()), Settings::default())?;
        let sessions = session::service(SessionConfig {
            caches: caches.clone(),
            leadership: leadership.clone(),
            liveness: liveness.clone(),
            peers: client,
            server: name.clone(),
            authorize: Arc::new(authorize),
        })?;
        let address = SocketAddr::from(([10, 0, 0, u8::try_from(number + 1).unwrap_or(u8::MAX)], 6443));
        let api = ApiServer::inside(ApiConfig {
            kv: member.kv(),
            env,
            listen: address,
            tls: TlsConfig::default(),
            node_client: None,
            service_cidr: ServiceCidr::default(),
            advertise: vec![address],
            tokens: door::tokens(nodes),
            extra_routes: Some(tonic::service::Routes::new(sessions).into_axum_router().reset_fallback()),
            extra_metrics: None,
            server_name: name,
        })
        .context("the API server did not start")?;
        own.run(caches.clone().run(std::future::pending()));
        let controllers = ControllersConfig { caches, leadership, liveness, workers: WORKERS };
        own.run(async move { drop(Controllers::run(controllers, std::future::pending()).await) });
        Ok(Self { api, address })
    }
}

/// Who may open a node session or relay heartbeats: the node itself, and servers.
fn authorize(extensions: &tonic::Extensions, claimed: SessionCaller<'_>) -> Result<(), String> {
    let Some(Caller(user)) = extensions.get::<Caller>() else { return Err("nobody said who they are".into()) };
    claimed.may_be(&user.name, &user.groups)
}

/// `Some(term)` while the member leads in `term`.
fn leadership(mut status: watch::Receiver<RaftStatus>, own: &Arc<Proc>) -> watch::Receiver<Option<Term>> {
    let (sender, receiver) = watch::channel(status.borrow().led());
    own.run(async move {
        while status.changed().await.is_ok() {
            let now = status.borrow_and_update().led();
            sender.send_if_modified(|known| std::mem::replace(known, now) != now);
        }
        let _ = sender.send(None);
    });
    receiver
}
