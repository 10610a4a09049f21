//! A whole store member, composed: consensus below, services above, one port for clients and one for the other members.

use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use kontiki_base::BoxFuture;
use kontiki_base::env::{Env, Task};
use kontiki_base::ids::{MemberId, Revision};
use kontiki_base::kv::{Kv, KvError};
use kontiki_base::net::PeerNet;
use kontiki_mvcc::{Alarm, View};
use kontiki_proto::store::{MemberObservations, Replaced, Silent};

use crate::auth::{Auth, Ground, Keeper, Provider};
use crate::compactor;
use crate::config::StoreConfig;
use crate::engine::Engine;
use crate::error::StoreError;
use crate::expiry::LeaseClock;
use crate::grpc::short::Calls;
use crate::http::{Bound, Door, Served};
use crate::kv::LocalStoreKv;
use crate::lease::{Desk, Leases};
use crate::meter::Meter;
use crate::metrics::Metrics;
use crate::net::{PeerServerHandle, TonicPeerNet};
use crate::propose::Proposer;
use crate::raft::node::{InitialMember, RaftConfig, RaftNode, Storage};
use crate::raft::{AppliedBatch, ApplySink, Consensus, LeaderDesk, Member, RaftStatus};
use crate::read::{Reader, Views, Workers};
use crate::room::{Board, Room};
use crate::service::{Roster, Service};
use crate::tls::{self, CallerTls, ServerTls};
use crate::watch::Hub;
use crate::watch::hub::{HubLimits, Tip};

/// When a member stops, clients that are in the middle of something have so long to finish it.
const GOODBYE: Duration = Duration::from_secs(2);

/// Where applied batches go.
pub(crate) struct Sinks {
    pub(crate) hub: Arc<Hub>,
    pub(crate) clock: Arc<LeaseClock>,
    pub(crate) auth: Arc<Keeper>,
    pub(crate) env: Arc<dyn Env>,
    pub(crate) board: Arc<Board>,
    /// Sees everything first.
    pub(crate) observer: Option<Arc<dyn ApplySink>>,
}

impl ApplySink for Sinks {
    fn applied(&self, batch: AppliedBatch) {
        if let Some(observer) = &self.observer {
            observer.applied(batch.clone());
        }
        self.clock.applied(&batch.leases, self.env.now_mono());
        self.auth.applied(&batch.auth, self.env.now_mono());
        self.hub.applied(batch);
    }

    fn replaced(&self, revision: Revision, compact: Revision) {
        if let Some(observer) = &self.observer {
            observer.replaced(revision, compact);
        }
        // A leader never receives a snapshot, so the clocks are not concerned.
        self.auth.replaced();
        self.hub.replaced(Tip { revision, compact });
    }

    fn alarms(&self, now: &[Alarm]) {
        self.board.set(now);
    }

    fn swept(&self, compact: Revision) {
        self.board.swept_to(compact);
    }
}

/// The engine as a source of views.
pub(crate) struct EngineViews(pub(crate) Arc<dyn Engine>);

impl Views for EngineViews {
    fn view(&self) -> Box<dyn View + Send> {
        self.0.snapshot()
    }

    fn size(&self) -> u64 {
        self.0.size()
    }

    fn in_use(&self) -> u64 {
        self.0.in_use()
    }

    fn reclaim(&self) {
        let engine = Arc::clone(&self.0);
        let reclaim = move || {
            if let Err(error) = engine.reclaim() {
                tracing::warn!(%error, "space was not given back");
            }
        };
        if kontiki_proto::process::current().is_some() {
            // A simulated process has no threads.
            reclaim();
        } else {
            // Nobody waits for it; what goes wrong is said where it stops.
            drop(tokio::task::spawn_blocking(reclaim));
        }
    }
}

/// Makes store members.
pub struct Store;

/// A running store member.
pub struct StoreHandle {
    service: Arc<Service>,
    env: Arc<dyn Env>,
    doors: Vec<Door>,
    peers: Vec<PeerServerHandle>,
    certificates: Certificates,
    tasks: Vec<Task>,
    engine: Weak<dyn Engine>,
}

impl Store {
    /// Opens or makes the member, and starts to serve. Returns before a leader is known. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// [`StoreError`]; nothing is left running then.
    pub async fn start(config: StoreConfig) -> Result<StoreHandle, StoreError> {
        config.check()?;
        let provider = config.auth.provider()?;
        let certificates = Certificates::new(&config)?;
        let ports = Ports::bind(&config, &certificates).await?;
        let metrics = Arc::new(Metrics::new(config.extensive_metrics));
        let meter = Meter::new(Arc::clone(&config.env), Arc::clone(&metrics));
        let empty = Tip { revision: kontiki_mvcc::EMPTY, compact: kontiki_mvcc::NEVER_COMPACTED };
        let hub = Hub::new(HubLimits::default(), empty, Arc::clone(&metrics));
        let clock = Arc::new(LeaseClock::default());
        let board = Arc::new(Board::default());
        let keeper = Arc::new(Keeper::new(config.auth.token_ttl));
        let sink = Arc::new(Sinks {
            hub: Arc::clone(&hub),
            clock: Arc::clone(&clock),
            auth: Arc::clone(&keeper),
            env: Arc::clone(&config.env),
            board: Arc::clone(&board),
            observer: None,
        });
        let net = TonicPeerNet::new(certificates.calling.clone());
        let name = net.name();
        let node = RaftNode::start(raft_config(&config, &ports, Arc::new(net), &meter, sink)).await?;
        name.get_or_init(|| node.id());
        match serve(&config, &node, (ports, certificates, meter), Made { hub, clock, metrics, board, keeper, provider }).await {
            Ok(handle) => Ok(handle),
            Err(error) => {
                node.shutdown().await;
                Err(error)
            }
        }
    }
}

/// The ports for clients and for metrics, taken.
struct Ports {
    clients: Vec<Bound>,
    metrics: Vec<Bound>,
}

impl Ports {
    async fn bind(config: &StoreConfig, certificates: &Certificates) -> Result<Self, StoreError> {
        let mut ports = Self { clients: Vec::new(), metrics: Vec::new() };
        for listen in &config.listen_clients {
            ports.clients.push(Bound::new(*listen, certificates.clients.as_ref()).await?);
        }
        for listen in &config.listen_metrics {
            ports.metrics.push(Bound::new(*listen, certificates.clients.as_ref()).await?);
        }
        Ok(ports)
    }
}

/// The certificates of all ports.
struct Certificates {
    clients: Option<Arc<ServerTls>>,
    peers: Option<Arc<ServerTls>>,
    calling: Option<Arc<CallerTls>>,
}

impl Certificates {
    fn new(config: &StoreConfig) -> Result<Self, StoreError> {
        let clients = config.client_tls.as_ref().map(crate::http::certificates).transpose()?;
        let peers = config.peer_tls.as_ref().map(|tls| tls::serving(&tls.server(), &[b"h2"])).transpose()?;
        let calling = config.peer_tls.as_ref().map(tls::calling).transpose()?;
        Ok(Self { clients, peers, calling })
    }
}

/// What was made before the node, because the node's batches go there.
pub(crate) struct Made {
    pub(crate) hub: Arc<Hub>,
    pub(crate) clock: Arc<LeaseClock>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) board: Arc<Board>,
    pub(crate) keeper: Arc<Keeper>,
    pub(crate) provider: Provider,
}

/// Serves a node that has started.
async fn serve(
    config: &StoreConfig,
    node: &Arc<RaftNode>,
    (ports, certificates, meter): (Ports, Certificates, Meter),
    made: Made,
) -> Result<StoreHandle, StoreError> {
    let views: Arc<dyn Views> = Arc::new(EngineViews(node.engine()));
    made.hub.prime(tip_of(&*views)?);
    let mut peers = Vec::new();
    for listen in std::iter::once(&config.listen_peer).chain(&config.listen_peer_too) {
        let served = crate::net::serve(*listen, certificates.peers.clone(), node.handler(), Some(meter.clone())).await;
        peers.push(served.map_err(|error| StoreError::Listen { addr: listen.to_string(), why: error.to_string() })?);
    }
    let workers = Workers::threads();
    let parts = Parts { consensus: Arc::clone(node) as Arc<dyn Consensus>, roster: Arc::clone(node) as Arc<dyn Roster>, views, workers };
    let (service, desk, mut tasks) = compose(config, parts, made);
    node.set_desk(desk);
    tasks.extend(config.heal_after.map(|patience| crate::heal::run(Arc::clone(&service), patience)));
    let open = |bound: Bound, served: Served| bound.open(served, &config.env, config.connections);
    let short = Calls::new(&service);
    let mut doors: Vec<Door> = ports
        .clients
        .into_iter()
        .map(|bound| {
            let router = crate::http::guarded(crate::http::router(&service), &config.guard, bound.is_secure());
            open(bound, Served::new(router, Arc::clone(&short)))
        })
        .collect();
    let clients: Vec<String> = doors.iter().map(|door| door.addr.to_string()).collect();
    doors.extend(ports.metrics.into_iter().map(|bound| open(bound, crate::http::metrics_router(&service).into())));
    tracing::info!(name = config.name, client = clients.join(","), "ready to serve client requests");
    let engine = Arc::downgrade(&node.engine());
    Ok(StoreHandle { service, env: Arc::clone(&config.env), doors, peers, certificates, tasks, engine })
}

pub(crate) fn tip_of(views: &dyn Views) -> Result<Tip, StoreError> {
    let now = kontiki_mvcc::current(&*views.view()).map_err(|error| StoreError::State(error.to_string()))?;
    Ok(Tip { revision: now.revision, compact: now.compact })
}

fn raft_config(config: &StoreConfig, ports: &Ports, net: Arc<dyn PeerNet>, meter: &Meter, sink: Arc<dyn ApplySink>) -> RaftConfig {
    let client_urls = |name: &str| if name == config.name { advertised(config, ports) } else { Vec::new() };
    let mut initial_cluster: Vec<InitialMember> = config
        .initial_cluster
        .iter()
        .map(|(name, urls)| InitialMember { name: name.clone(), peer_urls: urls.clone(), client_urls: client_urls(name) })
        .collect();
    if initial_cluster.is_empty() {
        let scheme = if config.peer_tls.is_some() { "https" } else { "http" };
        let peer_urls = vec![format!("{scheme}://{}", config.listen_peer)];
        initial_cluster.push(InitialMember { name: config.name.clone(), peer_urls, client_urls: client_urls(&config.name) });
    }
    RaftConfig {
        name: config.name.clone(),
        initial_cluster,
        cluster_token: config.cluster_token.clone(),
        join: config.join,
        storage: Some(Storage::Dir {
            path: config.data_dir.clone(),
            engine: crate::engine::rocks::RocksOptions::default(),
            log: crate::log::LogOptions::default(),
        }),
        id: None,
        net: meter.net(net),
        env: Arc::clone(&config.env),
        sink,
        timings: config.timings.clone(),
        meter: Some(meter.clone()),
    }
}

/// What clients are told to connect to.
fn advertised(config: &StoreConfig, ports: &Ports) -> Vec<String> {
    if config.advertise_client_urls.is_empty() {
        ports.clients.iter().map(Bound::url).collect()
    } else {
        config.advertise_client_urls.clone()
    }
}

/// What a node offers.
pub(crate) struct Parts {
    pub(crate) consensus: Arc<dyn Consensus>,
    pub(crate) roster: Arc<dyn Roster>,
    pub(crate) views: Arc<dyn Views>,
    pub(crate) workers: Workers,
}

impl Roster for RaftNode {
    fn promote(&self, id: MemberId, ready: bool) -> BoxFuture<'static, Result<(), KvError>> {
        Self::promote(self, id, ready)
    }

    fn remove_voter(&self, id: MemberId) -> BoxFuture<'static, Result<(), KvError>> {
        Self::remove_voter(self, id)
    }

    fn reachable(&self) -> BoxFuture<'static, Vec<MemberId>> {
        Self::reachable(self)
    }

    fn replace(&self, dead: MemberId, learner: MemberId) -> BoxFuture<'static, Result<(), KvError>> {
        Self::replace(self, dead, learner)
    }

    fn replaced(&self, what: Replaced) {
        Self::replaced(self, what);
    }

    fn observations(&self, everyone: bool) -> BoxFuture<'static, (Vec<MemberObservations>, Vec<Silent>)> {
        Self::observations(self, everyone)
    }

    fn remove_learner(&self, id: MemberId) -> BoxFuture<'static, Result<(), KvError>> {
        Self::remove_learner(self, id)
    }

    fn update(&self, member: Member) -> BoxFuture<'static, Result<(), KvError>> {
        self.update_member(member)
    }
}

/// Puts the parts together that stand over consensus.
pub(crate) fn compose(config: &StoreConfig, parts: Parts, made: Made) -> (Arc<Service>, Arc<dyn LeaderDesk>, Vec<Task>) {
    let Parts { consensus, roster, views, workers } = parts;
    let Made { hub, clock, metrics, board, keeper, provider } = made;
    let env = Arc::clone(&config.env);
    let (election, timeout) = (config.timings.election.1, config.timings.request);
    let (proposer, proposing) = Proposer::start(Arc::clone(&consensus), Arc::clone(&env), Arc::clone(&metrics), timeout);
    let reader = Reader::new(Arc::clone(&consensus), Arc::clone(&views), workers, Arc::clone(&metrics));
    let leases = Leases::new(
        clock,
        Arc::clone(&consensus),
        proposer.clone(),
        reader.clone(),
        Arc::clone(&env),
        Arc::clone(&metrics),
        election,
        timeout,
    );
    let desk = Arc::new(Desk::default());
    desk.open(&leases);
    let status = consensus.status();
    let room = Room::new(board, config.room(), Arc::clone(&views), status.clone());
    proposer.keep_within(Arc::clone(&room));
    let mut tasks = vec![proposing, hub.run(&*env), leases.run(), count_leaders(&*env, consensus.status(), Arc::clone(&metrics))];
    tasks.push(room.run(&env, proposer.clone(), Arc::clone(&consensus)));
    let compacting =
        compactor::run(config.retention(), &env, Arc::clone(&consensus), proposer.clone(), Arc::clone(&hub), Arc::clone(&views));
    tasks.extend(compacting);
    let (progress_every, bounds) = (config.progress_every, config.bounds);
    let workers = reader.workers().clone();
    let ground = Ground { keeper, views: Arc::clone(&views), env: Arc::clone(&env), status: status.clone(), workers, timeout };
    let auth = Auth::new(provider, config.auth.bcrypt_cost, ground);
    let service = Service {
        proposer,
        reader,
        hub,
        leases,
        auth,
        consensus,
        roster,
        views,
        env,
        metrics,
        election,
        progress_every,
        bounds,
        room,
        status,
    };
    (Arc::new(service), desk, tasks)
}

/// Counts how often the leader changes.
fn count_leaders(env: &dyn Env, mut status: tokio::sync::watch::Receiver<RaftStatus>, metrics: Arc<Metrics>) -> Task {
    env.spawn(
        "store.leaders",
        Box::pin(async move {
            let mut known = None;
            loop {
                let leader = status.borrow_and_update().leader;
                if leader.is_some() && leader != known {
                    metrics.leader_changes.inc();
                    known = leader;
                }
                if status.changed().await.is_err() {
                    return;
                }
            }
        }),
    )
}

impl StoreHandle {
    /// The store, in process.
    pub fn kv(&self) -> Arc<dyn Kv> {
        Arc::new(LocalStoreKv::new(Arc::clone(&self.service)))
    }

    /// The first address at which clients are listened for, if they are.
    pub fn client_addr(&self) -> Option<SocketAddr> {
        self.doors.first().map(|door| door.addr)
    }

    /// All addresses that are listened at: first those for clients, then those for metrics alone; each in the order of the configuration.
    pub fn addrs(&self) -> Vec<SocketAddr> {
        self.doors.iter().map(|door| door.addr).collect()
    }

    /// Reads all certificates anew, now. Without this they are, too, as soon as a file has changed and somebody connects.
    ///
    /// # Errors
    /// [`StoreError::Tls`]; what was there before stays.
    pub fn reload_certificates(&self) -> Result<(), StoreError> {
        let Certificates { clients, peers, calling } = &self.certificates;
        clients.iter().chain(peers).try_for_each(|tls| tls.reload())?;
        calling.iter().try_for_each(|tls| tls.reload())
    }

    /// What consensus says of itself; latest wins.
    pub fn status(&self) -> tokio::sync::watch::Receiver<RaftStatus> {
        self.service.status.clone()
    }

    /// The member's services, for doors other than the client port.
    pub const fn service(&self) -> &Arc<Service> {
        &self.service
    }

    /// If this member leads, hands leadership to another, and waits a little until it has it.
    pub async fn hand_over(&self) {
        self.service.consensus.hand_over().await;
    }

    /// Stops: hands leadership over while clients are still served, so that their writes go on at the next leader; lets them finish what
    /// is under way, ends watches, then consensus, then the files. Whoever still holds [`StoreHandle::kv`] or a watch keeps the files open.
    pub async fn shutdown(self) {
        let Self { service, env, doors, peers, certificates: _, tasks, engine } = self;
        service.consensus.hand_over().await;
        service.hub.close();
        futures::future::join_all(doors.iter().map(|door| door.close(&*env, GOODBYE))).await;
        tasks.iter().for_each(Task::abort);
        service.consensus.shutdown().await;
        for port in peers {
            port.stop().await;
        }
        drop((service, doors));
        // Tasks that were told to end do so in their own time, and hold the engine until then.
        let deadline = env.now_mono().plus(GOODBYE);
        let Some(engine) = engine.upgrade() else { return };
        while Arc::strong_count(&engine) > 1 {
            if env.now_mono() >= deadline {
                tracing::warn!("the store has stopped, but somebody still holds it: its files stay open");
                return;
            }
            env.sleep(Duration::from_millis(2)).await;
        }
        // Whoever lets go last closes the files, which may take a while: here, so that they are closed when this returns.
        drop(tokio::task::spawn_blocking(move || drop(engine)).await);
    }
}
