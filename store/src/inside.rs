//! A whole member without ports, disks and networks of its own: what it stands on is handed to it. For simulated worlds, which also look
//! into it where nobody else may.

use std::sync::Arc;

use bytes::Bytes;
use kontiki_base::BoxFuture;
use kontiki_base::env::Task;
use kontiki_base::ids::LogIndex;
use kontiki_base::kv::Kv;
use kontiki_base::net::{PeerHandler, PeerNet};

use crate::auth::Keeper;
use crate::config::StoreConfig;
use crate::engine::Engine;
use crate::error::StoreError;
use crate::expiry::LeaseClock;
use crate::kv::LocalStoreKv;
use crate::metrics::Metrics;
use crate::raft::node::{InitialMember, RaftConfig, RaftNode, Storage};
use crate::raft::probe::{LogProbe, RaftProbe};
use crate::raft::{ApplySink, Consensus};
use crate::read::{Views, Workers};
use crate::room::Board;
use crate::server::{EngineViews, Made, Parts, Sinks, compose, tip_of};
use crate::service::{Roster, Service};
use crate::watch::Hub;
use crate::watch::hub::{HubLimits, Tip};

/// What a member stands on.
pub struct Ground {
    /// Where it keeps what it must not lose: [`Storage::Parts`], inline.
    pub storage: Storage,
    /// How it reaches the others.
    pub net: Arc<dyn PeerNet>,
    /// Is told of everything that it applies, before anybody else is.
    pub observer: Option<Arc<dyn ApplySink>>,
}

/// A running member. Dropping it ends nothing: the world ends the process that it runs in.
pub struct Member {
    node: Arc<RaftNode>,
    service: Arc<Service>,
    tasks: Vec<Task>,
}

impl Member {
    /// Starts a member; returns before a leader is known. The addresses of `config` are not listened on. Must be called inside a tokio
    /// runtime, whose clock may be simulated.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn start(config: StoreConfig, ground: Ground) -> BoxFuture<'static, Result<Self, StoreError>> {
        // Boxed here, and not by whoever awaits it: what is behind it, consensus above all, is compiled in this crate, once and as this crate
        // is, instead of in every crate that starts a member.
        Box::pin(Self::begin(config, ground))
    }

    async fn begin(config: StoreConfig, ground: Ground) -> Result<Self, StoreError> {
        config.check()?;
        let provider = config.auth.provider()?;
        let metrics = Arc::new(Metrics::new(false));
        let empty = Tip { revision: kontiki_mvcc::EMPTY, compact: kontiki_mvcc::NEVER_COMPACTED };
        let made = Made {
            hub: Hub::new(HubLimits::default(), empty, Arc::clone(&metrics)),
            clock: Arc::new(LeaseClock::default()),
            metrics,
            board: Arc::new(Board::default()),
            keeper: Arc::new(Keeper::new(config.auth.token_ttl)),
            provider,
        };
        let sink = Sinks {
            hub: Arc::clone(&made.hub),
            clock: Arc::clone(&made.clock),
            auth: Arc::clone(&made.keeper),
            env: Arc::clone(&config.env),
            board: Arc::clone(&made.board),
            observer: ground.observer,
        };
        let urls = |name: &str| if *name == config.name { config.advertise_client_urls.clone() } else { Vec::new() };
        let initial = |(name, peer_urls): &(String, Vec<String>)| InitialMember {
            name: name.clone(),
            peer_urls: peer_urls.clone(),
            client_urls: urls(name),
        };
        let node = RaftNode::start(RaftConfig {
            name: config.name.clone(),
            initial_cluster: config.initial_cluster.iter().map(initial).collect(),
            cluster_token: config.cluster_token.clone(),
            join: config.join,
            id: None,
            storage: Some(ground.storage),
            net: ground.net,
            env: Arc::clone(&config.env),
            sink: Arc::new(sink),
            timings: config.timings.clone(),
            meter: None,
        })
        .await?;
        let views: Arc<dyn Views> = Arc::new(EngineViews(node.engine()));
        made.hub.prime(tip_of(&*views)?);
        let consensus = Arc::clone(&node) as Arc<dyn Consensus>;
        let parts = Parts { consensus, roster: Arc::clone(&node) as Arc<dyn Roster>, views, workers: Workers::Inline };
        let (service, desk, tasks) = compose(&config, parts, made);
        node.set_desk(desk);
        Ok(Self { node, service, tasks })
    }

    /// What the others' messages are handed to.
    pub fn peer_handler(&self) -> Arc<dyn PeerHandler> {
        self.node.handler()
    }

    /// Everything that the client port of a member serves: etcd's services and what stands beside them.
    pub fn router(&self) -> axum::Router {
        crate::http::router(&self.service)
    }

    /// The store, in process.
    pub fn kv(&self) -> Arc<dyn Kv> {
        Arc::new(LocalStoreKv::new(Arc::clone(&self.service)))
    }

    /// The member's services.
    pub const fn service(&self) -> &Arc<Service> {
        &self.service
    }

    /// Consensus, to ask it for changes of the membership and such.
    pub fn consensus(&self) -> Arc<dyn Consensus> {
        Arc::clone(&self.node) as Arc<dyn Consensus>
    }

    /// The state machine's records.
    pub fn engine(&self) -> Arc<dyn Engine> {
        self.node.engine()
    }

    /// What consensus knows of itself at this instant.
    pub fn probe(&self) -> RaftProbe {
        self.node.probe()
    }

    /// What the log holds from `from` on.
    ///
    /// # Errors
    /// The log cannot be read.
    pub fn probe_log(&self, from: LogIndex) -> Result<Vec<LogProbe>, StoreError> {
        self.node.probe_log(from).map_err(|error| StoreError::State(error.to_string()))
    }

    /// A hash of everything that members agree on: the same at the same applied index.
    ///
    /// # Errors
    /// The state cannot be read.
    pub fn state_hash(&self) -> Result<u64, StoreError> {
        kontiki_mvcc::state_hash(&*self.node.engine().snapshot()).map_err(|error| StoreError::State(error.to_string()))
    }

    /// Stops as a member does that is asked to: hands over leadership, ends watches, flushes, closes.
    pub fn shutdown(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            self.service.hub.close();
            self.tasks.iter().for_each(Task::abort);
            self.service.consensus.shutdown().await;
        })
    }
}

/// Whether a voter granted its vote, and to whom it asked for: (term, candidate, granted). `None` if these are not the question and the
/// answer of a vote.
pub fn granted_vote(question: &Bytes, answer: &Bytes) -> Option<(u64, u64, bool)> {
    crate::raft::probe::granted_vote(question.clone(), answer.clone())
}
