//! A server for tests of the node agent: it holds the session, keeps pods and objects in memory, and remembers what it was told.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};

use futures::Stream;
use kontiki_proto::api::resources_server::{Resources, ResourcesServer};
use kontiki_proto::api::{self as api};
use kontiki_proto::node::node_session_server::{NodeSession, NodeSessionServer};
use kontiki_proto::node::{self as pb, agent_message::Message as Up, server_message::Message as Down};
use serde_json::Value;
use tokio::sync::watch;
use tokio_stream::StreamExt as _;
use tonic::{Request, Response, Status, Streaming};

/// What the server knows.
#[derive(Default)]
pub(super) struct State {
    /// Pods by uid.
    pub(super) pods: BTreeMap<String, Value>,
    /// Other objects by "resource/namespace/name".
    pub(super) objects: BTreeMap<String, Value>,
    /// Every status that arrived, by uid.
    pub(super) told: BTreeMap<String, Vec<Value>>,
    /// Registrations.
    pub(super) hellos: Vec<pb::Hello>,
    /// Reasons of events.
    pub(super) events: Vec<String>,
    /// Latest usage.
    pub(super) usage: Option<pb::NodeUsage>,
}

/// The server. Clones share everything.
#[derive(Clone)]
pub(super) struct FakeServer {
    state: Arc<Mutex<State>>,
    changed: Arc<watch::Sender<u64>>,
    kick: Arc<watch::Sender<u64>>,
    /// The range that it assigns.
    pub(super) pod_cidr: String,
}

impl FakeServer {
    /// An empty server.
    pub(super) fn new(pod_cidr: &str) -> Self {
        let (changed, kick) = (Arc::new(watch::Sender::new(0)), Arc::new(watch::Sender::new(0)));
        Self { state: Arc::default(), changed, kick, pod_cidr: pod_cidr.to_owned() }
    }

    /// What it knows.
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Changes pods and tells the agents.
    pub(super) fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.changed.send_modify(|n| *n += 1);
    }

    /// Ends all sessions.
    pub(super) fn drop_sessions(&self) {
        self.kick.send_modify(|n| *n += 1);
    }

    /// Begins to delete a pod.
    pub(super) fn delete(&self, uid: &str, grace: i64) {
        self.change(|s| {
            let meta = &mut s.pods.get_mut(uid).unwrap()["metadata"];
            meta["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
            meta["deletionGracePeriodSeconds"] = grace.into();
        });
    }

    /// Serves on this address; gives the URL.
    pub(super) async fn serve(&self, listen: SocketAddr) -> (String, tokio::task::JoinHandle<()>) {
        let listener = tokio::net::TcpListener::bind(listen).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        let router = tonic::transport::Server::builder()
            .add_service(NodeSessionServer::new(self.clone()))
            .add_service(ResourcesServer::new(self.clone()));
        let task = tokio::spawn(async move { router.serve_with_incoming(incoming).await.unwrap() });
        (url, task)
    }

    fn take_statuses(&self, batch: pb::PodStatusBatch) {
        self.change(|s| {
            for status in batch.statuses {
                let value: Value = serde_json::from_slice(&status.status_json).unwrap();
                s.told.entry(status.uid.clone()).or_default().push(value.clone());
                if status.finished_deleting {
                    s.pods.remove(&status.uid);
                } else if let Some(pod) = s.pods.get_mut(&status.uid) {
                    pod["status"] = value;
                }
            }
        });
    }

    fn pod_set(&self) -> pb::ServerMessage {
        let pods = self.state().pods.values().map(|p| p.to_string().into_bytes().into()).collect();
        pb::ServerMessage { message: Some(Down::Pods(pb::PodSet { revision: 1, full: true, pods, removed: Vec::new() })) }
    }
}

type Boxed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl NodeSession for FakeServer {
    type SessionStream = Boxed<pb::ServerMessage>;

    async fn session(&self, request: Request<Streaming<pb::AgentMessage>>) -> Result<Response<Self::SessionStream>, Status> {
        let mut up = request.into_inner();
        let (tx, rx) = tokio::sync::mpsc::channel(64);
        let server = self.clone();
        tokio::spawn(async move {
            let (mut changed, mut kick) = (server.changed.subscribe(), server.kick.subscribe());
            changed.mark_changed();
            let mut greeted = false;
            loop {
                let answer = tokio::select! {
                    _ = kick.changed() => return,
                    _ = changed.changed(), if greeted => server.pod_set(),
                    message = up.next() => match message {
                        Some(Ok(pb::AgentMessage { message: Some(message) })) => match message {
                            Up::Hello(hello) => {
                                server.state().hellos.push(hello);
                                greeted = true;
                                let welcome = pb::Welcome { server: "fake".into(), heartbeat_ms: 100, pod_cidr: server.pod_cidr.clone() };
                                pb::ServerMessage { message: Some(Down::Welcome(welcome)) }
                            }
                            Up::Heartbeat(beat) => {
                                server.state().usage = beat.usage;
                                pb::ServerMessage { message: Some(Down::Ack(pb::HeartbeatAck { seq: beat.seq, leader_knows: true })) }
                            }
                            Up::Statuses(batch) => {
                                let seq = batch.seq;
                                server.take_statuses(batch);
                                pb::ServerMessage { message: Some(Down::StatusAck(pb::StatusAck { seq })) }
                            }
                        },
                        _ => return,
                    },
                };
                if tx.send(Ok(answer)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(tokio_stream::wrappers::ReceiverStream::new(rx))))
    }

    async fn liveness(&self, _request: Request<pb::LivenessRequest>) -> Result<Response<pb::LivenessResponse>, Status> {
        Err(Status::unimplemented("not in tests"))
    }

    async fn relay(&self, _request: Request<pb::RelayRequest>) -> Result<Response<pb::RelayResponse>, Status> {
        Err(Status::unimplemented("not in tests"))
    }
}

fn unimplemented<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("not in tests"))
}

#[tonic::async_trait]
impl Resources for FakeServer {
    type ListStream = Boxed<api::ListResponse>;
    type WatchStream = Boxed<api::WatchResponse>;

    async fn get(&self, request: Request<api::GetRequest>) -> Result<Response<api::Object>, Status> {
        let reference = request.into_inner().r#ref.unwrap_or_default();
        let resource = reference.resource.unwrap_or_default().resource;
        let key = format!("{resource}/{}/{}", reference.namespace, reference.name);
        let found = self.state().objects.get(&key).cloned();
        let object = found.ok_or_else(|| {
            use tonic_types::StatusExt as _;
            let details = tonic_types::ErrorDetails::with_error_info("NotFound", "kontiki.dev", std::collections::HashMap::new());
            Status::with_error_details(tonic::Code::NotFound, format!("{key} not found"), details)
        })?;
        Ok(Response::new(api::Object { raw: object.to_string().into_bytes().into(), ..Default::default() }))
    }

    async fn list(&self, _request: Request<api::ListRequest>) -> Result<Response<Self::ListStream>, Status> {
        Ok(Response::new(Box::pin(tokio_stream::once(Ok(api::ListResponse { revision: 1, items: Vec::new() })))))
    }

    async fn watch(&self, _request: Request<api::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Ok(Response::new(Box::pin(tokio_stream::pending())))
    }

    async fn create(&self, request: Request<api::CreateRequest>) -> Result<Response<api::Object>, Status> {
        let object = request.into_inner().object.unwrap_or_default();
        let value: Value = serde_json::from_slice(&object.raw).unwrap_or_default();
        self.state().events.push(format!(
            "{}: {}",
            value["reason"].as_str().unwrap_or_default(),
            value["message"].as_str().unwrap_or_default()
        ));
        Ok(Response::new(object))
    }

    async fn update(&self, _: Request<api::UpdateRequest>) -> Result<Response<api::Object>, Status> {
        unimplemented()
    }

    async fn patch(&self, _: Request<api::PatchRequest>) -> Result<Response<api::Object>, Status> {
        unimplemented()
    }

    async fn apply(&self, _: Request<api::ApplyRequest>) -> Result<Response<api::Object>, Status> {
        unimplemented()
    }

    async fn delete(&self, _: Request<api::DeleteRequest>) -> Result<Response<api::DeleteResponse>, Status> {
        unimplemented()
    }

    async fn delete_collection(&self, _: Request<api::DeleteCollectionRequest>) -> Result<Response<api::DeleteCollectionResponse>, Status> {
        unimplemented()
    }

    async fn transact(&self, _: Request<api::TransactRequest>) -> Result<Response<api::TransactResponse>, Status> {
        unimplemented()
    }
}
