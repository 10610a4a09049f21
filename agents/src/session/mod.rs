//! The server's side of the node session: one stream per node agent, to any server. Registration and pod statuses go to the API like
//! anybody's writes; heartbeats stay in memory and are relayed to the leader; the node's pods come down from the caches of this
//! process. While nothing happens, nothing is written.
//!
//! | file | what it holds |
//! |---|---|
//! | `liveness.rs` | when each node was last heard of |
//! | `register.rs` | from Hello to the Node object, and conditions that are said again |
//! | `pods.rs` | pod sets down |
//! | `statuses.rs` | pod statuses up |
//! | `relay.rs` | beats from followers to the leader |

mod liveness;
mod pods;
mod register;
mod relay;
mod statuses;

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use kontiki_base::{BoxFuture, Revision, Term, limits};
use kontiki_proto::node::agent_message::Message as Up;
use kontiki_proto::node::node_session_server::{NodeSession, NodeSessionServer};
use kontiki_proto::node::server_message::Message as Down;
use kontiki_proto::node::{
    AgentMessage, HeartbeatAck, Hello, LivenessRequest, LivenessResponse, PodStatusBatch, RelayRequest, RelayResponse, ServerMessage,
    StatusAck, Welcome,
};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::config::ApiConfig;
use crate::error::ConfigError;
use crate::informer::{Caches, Owned};

pub use liveness::{Heard, Liveness};
use relay::Relay;

/// How often agents are asked to send a heartbeat.
pub const HEARTBEAT: Duration = Duration::from_secs(1);

/// The largest message of an agent: a full batch of statuses.
const MESSAGE_BYTES: usize = 16 << 20;

/// Who opens a session or relays beats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller<'a> {
    /// The agent of this node.
    Node(&'a str),
    /// Another server.
    Server,
}

impl Caller<'_> {
    /// Whether a user, as the TLS layer knows it, may say that it is this one: a node may for itself, a server for anyone.
    ///
    /// # Errors
    /// Why not, for the caller.
    pub fn may_be(self, user: &str, groups: &[String]) -> Result<(), String> {
        let server = groups.iter().any(|group| group == "system:masters");
        match self {
            Self::Node(name) if server || user.strip_prefix("system:node:") == Some(name) => Ok(()),
            Self::Server if server => Ok(()),
            Self::Node(name) => Err(format!("{user} is not node {name}")),
            Self::Server => Err(format!("{user} is not a server")),
        }
    }
}

/// Decides whether the bearer of a request's extensions (where the TLS layer has put the client's identity) is who it says. The
/// error is for the caller.
pub type Authorize = Arc<dyn Fn(&tonic::Extensions, Caller<'_>) -> Result<(), String> + Send + Sync>;

/// What the service needs.
pub struct SessionConfig {
    /// The caches of this process.
    pub caches: Arc<Caches>,
    /// `Some(term)` while the local member leads.
    pub leadership: watch::Receiver<Option<Term>>,
    /// The table of heartbeats, shared with the controllers.
    pub liveness: Arc<Liveness>,
    /// The other servers, with the credentials of this one; no endpoints: there are none.
    pub peers: ApiConfig,
    /// This server's name, for agents' logs.
    pub server: String,
    /// Who may say that it is whom.
    pub authorize: Authorize,
}

impl std::fmt::Debug for SessionConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SessionConfig").field("server", &self.server).finish_non_exhaustive()
    }
}

struct Shared {
    config: SessionConfig,
    relay: Arc<Relay>,
    sessions: AtomicUsize,
}

/// The service. Clones share everything.
#[derive(Clone)]
pub struct Sessions {
    shared: Arc<Shared>,
    /// Ends with the last clone.
    _relay: Arc<Owned>,
}

/// The service, ready to be mounted. Must be called inside a tokio runtime: it starts the relay to the leader.
pub fn service(config: SessionConfig) -> Result<NodeSessionServer<Sessions>, ConfigError> {
    let relay = Arc::new(Relay::new(&config)?);
    let task = Owned::spawn(&config.caches.env, "beat-relay", relay.clone().run());
    let shared = Arc::new(Shared { config, relay, sessions: AtomicUsize::new(0) });
    let sessions = Sessions { shared, _relay: Arc::new(task) };
    Ok(NodeSessionServer::new(sessions).max_decoding_message_size(MESSAGE_BYTES).max_encoding_message_size(64 << 20))
}

type Replies = Pin<Box<dyn futures::Stream<Item = Result<ServerMessage, Status>> + Send>>;

#[tonic::async_trait]
impl NodeSession for Sessions {
    type SessionStream = Replies;

    async fn session(&self, request: Request<Streaming<AgentMessage>>) -> Result<Response<Replies>, Status> {
        let (_, extensions, mut inbound) = request.into_parts();
        let Some(AgentMessage { message: Some(Up::Hello(hello)) }) = inbound.message().await? else {
            return Err(Status::invalid_argument("the first message of a session must be Hello"));
        };
        if hello.node_name.is_empty() {
            return Err(Status::invalid_argument("Hello names no node"));
        }
        (self.shared.config.authorize)(&extensions, Caller::Node(&hello.node_name)).map_err(Status::permission_denied)?;
        let open = Open::new(self.shared.clone())?;
        let (outbound, replies) = mpsc::channel(limits::NODE_SESSION_QUEUE);
        let session = Session { shared: self.shared.clone(), hello, outbound };
        let env = self.shared.config.caches.env.clone();
        // The task ends by itself when the agent hangs up: its stream ends, or its replies cannot be sent.
        let _runs_on = env.spawn(
            "node-session",
            Box::pin(async move {
                let _open = open;
                let end = session.outbound.clone();
                let node = session.hello.node_name.clone();
                if let Err(status) = session.run(inbound).await {
                    tracing::info!(node, %status, "node session ends");
                    // The agent may be gone, or its queue full: then it learns of the end from the end itself.
                    let _ = end.try_send(Err(status));
                }
            }),
        );
        Ok(Response::new(Box::pin(ReceiverStream::new(replies))))
    }

    async fn liveness(&self, request: Request<LivenessRequest>) -> Result<Response<LivenessResponse>, Status> {
        let name = request.into_inner().node_name;
        let age = self.shared.config.liveness.age(&name);
        let pod_cidr = register::pod_cidr(&self.shared.config.caches, &name);
        let last_heartbeat_age_ms = age.map_or(0, |a| u64::try_from(a.as_millis()).unwrap_or(u64::MAX));
        Ok(Response::new(LivenessResponse { known: age.is_some(), last_heartbeat_age_ms, pod_cidr }))
    }

    async fn relay(&self, request: Request<RelayRequest>) -> Result<Response<RelayResponse>, Status> {
        let (_, extensions, relayed) = request.into_parts();
        (self.shared.config.authorize)(&extensions, Caller::Server).map_err(Status::permission_denied)?;
        let Some(term) = *self.shared.config.leadership.borrow() else {
            return Ok(Response::new(RelayResponse { leader: false, term: 0 }));
        };
        for beat in relayed.beats {
            let age = Duration::from_millis(beat.age_ms);
            self.shared.config.liveness.record(&beat.node_name, beat.boot, age, beat.usage);
        }
        Ok(Response::new(RelayResponse { leader: true, term: term.get() }))
    }
}

/// Counts an open session.
struct Open(Arc<Shared>);

impl Open {
    fn new(shared: Arc<Shared>) -> Result<Self, Status> {
        if shared.sessions.fetch_add(1, Ordering::AcqRel) >= limits::NODE_SESSIONS {
            shared.sessions.fetch_sub(1, Ordering::AcqRel);
            return Err(Status::resource_exhausted("this server has as many node sessions as it can hold"));
        }
        shared.config.caches.metrics.sessions.inc();
        Ok(Self(shared))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.sessions.fetch_sub(1, Ordering::AcqRel);
        self.0.config.caches.metrics.sessions.dec();
    }
}

/// What an agent has sent and has yet to be written, one after the other.
enum Work {
    Statuses(PodStatusBatch),
    Conditions(Vec<serde_json::Value>),
}

/// Completes when the work under way does; never if there is none.
async fn poll_work(work: &mut Option<BoxFuture<'_, Result<(), Status>>>) -> Result<(), Status> {
    match work {
        Some(work) => work.await,
        None => std::future::pending().await,
    }
}

/// One agent's session.
struct Session {
    shared: Arc<Shared>,
    hello: Hello,
    outbound: mpsc::Sender<Result<ServerMessage, Status>>,
}

impl Session {
    async fn run(&self, mut inbound: Streaming<AgentMessage>) -> Result<(), Status> {
        let config = &self.shared.config;
        let caches = &config.caches;
        self.beat(None)?;
        let mut conditions = register::register(caches, &self.hello).await.map_err(|e| unavailable(&e))?;
        let feed = caches.subscribe(&self.hello.node_name);
        let pod_cidr = register::pod_cidr(caches, &self.hello.node_name);
        let heartbeat_ms = u32::try_from(HEARTBEAT.as_millis()).unwrap_or(1000);
        self.send(Down::Welcome(Welcome { server: config.server.clone(), heartbeat_ms, pod_cidr }))?;
        caches.until(Caches::synced).await;
        let full = pods::full(caches, &self.hello.node_name).await.map_err(|e| unavailable(&e))?;
        let from = Revision::new(full.revision);
        self.send(Down::Pods(full))?;
        tracing::info!(node = self.hello.node_name, boot = self.hello.boot, "node session begins");
        // Heartbeats are answered while a write is under way: a slow store must not look like a dead node.
        let mut waiting: VecDeque<Work> = VecDeque::new();
        let mut at_work: Option<BoxFuture<'_, Result<(), Status>>> = None;
        loop {
            if at_work.is_none() {
                at_work = waiting.pop_front().map(|work| Box::pin(self.do_work(work)) as BoxFuture<'_, _>);
            }
            tokio::select! {
                message = inbound.message() => match message? {
                    None => return Ok(()),
                    Some(AgentMessage { message: Some(Up::Heartbeat(beat)) }) => {
                        self.beat(beat.usage)?;
                        let changed = !beat.conditions_json.is_empty();
                        if changed {
                            conditions = register::parse_conditions(&beat.conditions_json).map_err(Status::invalid_argument)?;
                        }
                        let leader_knows = self.shared.relay.leader_knows();
                        // Said again when the cluster has given the node up although it lives: only once the leader has heard of
                        // it, or it would be given up again.
                        let given_up = leader_knows && register::is_given_up(caches, &self.hello.node_name);
                        let in_line = waiting.iter().any(|w| matches!(w, Work::Conditions(_)));
                        if changed || (given_up && !in_line) {
                            waiting.retain(|w| !matches!(w, Work::Conditions(_)));
                            waiting.push_back(Work::Conditions(conditions.clone()));
                        }
                        self.send(Down::Ack(HeartbeatAck { seq: beat.seq, leader_knows }))?;
                    }
                    Some(AgentMessage { message: Some(Up::Statuses(batch)) }) => {
                        if waiting.len() >= limits::NODE_SESSION_QUEUE {
                            return Err(Status::resource_exhausted("too many statuses are waiting"));
                        }
                        waiting.push_back(Work::Statuses(batch));
                    }
                    Some(AgentMessage { message: Some(Up::Hello(_)) }) => return Err(Status::invalid_argument("a second Hello")),
                    Some(AgentMessage { message: None }) => {}
                },
                done = poll_work(&mut at_work) => {
                    at_work = None;
                    done?;
                }
                () = feed.changed.notified() => {
                    if let Some(change) = pods::change(caches, &self.hello.node_name, from, feed.take()) {
                        self.send(Down::Pods(change))?;
                    }
                }
            }
        }
    }

    async fn do_work(&self, work: Work) -> Result<(), Status> {
        let (caches, node) = (&self.shared.config.caches, &self.hello.node_name);
        match work {
            Work::Statuses(batch) => {
                statuses::store(caches, node, &batch.statuses).await.map_err(|e| unavailable(&e))?;
                self.send(Down::StatusAck(StatusAck { seq: batch.seq }))
            }
            Work::Conditions(conditions) => {
                if let Err(error) = register::write_conditions(caches, node, &conditions).await {
                    // The agent comes back with its full state, and says it again.
                    tracing::warn!(node, %error, "conditions not written");
                    return Err(unavailable(&error));
                }
                Ok(())
            }
        }
    }

    /// The node is alive.
    fn beat(&self, usage: Option<kontiki_proto::node::NodeUsage>) -> Result<(), Status> {
        let config = &self.shared.config;
        config.caches.metrics.beats.inc();
        if !config.liveness.record(&self.hello.node_name, self.hello.boot, Duration::ZERO, usage) {
            return Err(Status::resource_exhausted("this server follows as many nodes as it can"));
        }
        self.shared.relay.heard(&self.hello.node_name);
        Ok(())
    }

    /// Queues a message for the agent. An agent that does not keep up is sent away and comes back with its full state.
    fn send(&self, message: Down) -> Result<(), Status> {
        self.outbound.try_send(Ok(ServerMessage { message: Some(message) })).map_err(|e| match e {
            mpsc::error::TrySendError::Full(_) => Status::resource_exhausted("the agent does not keep up"),
            mpsc::error::TrySendError::Closed(_) => Status::cancelled("the agent has gone"),
        })
    }
}

fn unavailable(error: &crate::error::ApiError) -> Status {
    Status::unavailable(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::Caller;

    #[test]
    fn a_node_speaks_for_itself_and_a_server_for_anyone() {
        let (masters, nodes) = (["system:masters".to_owned()], ["system:nodes".to_owned()]);
        assert_eq!(Caller::Node("n1").may_be("system:node:n1", &nodes), Ok(()));
        assert_eq!(Caller::Node("n1").may_be("kontiki:server-1", &masters), Ok(()));
        assert_eq!(Caller::Server.may_be("kontiki:server-1", &masters), Ok(()));
        assert!(Caller::Node("n2").may_be("system:node:n1", &nodes).is_err(), "another node");
        assert!(Caller::Node("n1").may_be("n1", &nodes).is_err(), "a user of the same name");
        assert!(Caller::Server.may_be("system:node:n1", &nodes).is_err());
    }
}
