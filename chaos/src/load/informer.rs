//! A client of the Kubernetes API as controllers are: it lists the pods, follows a watch from there, resumes at the next server when the
//! connection breaks, and lists again when the history is gone. It records what it is told, so that it can be compared with the store.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use kontiki_proto::api::resources_client::ResourcesClient;
use kontiki_proto::api::{EventType, ListRequest, Object, Resource, WatchRequest};
use serde_json::Value;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::kv::Run;
use crate::history::{ApiFrame, ApiWatch, Record};

/// What is listed, and the store's keys of it.
const PLURAL: &str = "pods";
const PREFIX: &str = "/registry/pods/";

/// A server that says nothing for so long is left: bookmarks come more often.
const SILENCE: Duration = Duration::from_secs(5);

/// After a failure the client waits so long.
const RETRY: Duration = Duration::from_millis(100);

/// One session: everything that one client is told, across servers.
struct Session {
    run: Arc<Run>,
    id: u64,
    member: usize,
    /// Everything up to here has been seen.
    revision: i64,
}

/// Lists and watches until told to stop. `servers`: a channel to each server's API; it begins at the `first`.
pub async fn informer(run: Arc<Run>, servers: Vec<Channel>, first: usize) {
    let id = run.recorder.id();
    let mut session = Session { run, id, member: first % servers.len().max(1), revision: 0 };
    while !session.over() {
        let mut client = ResourcesClient::new(servers[session.member].clone()).max_decoding_message_size(usize::MAX);
        if let Err(status) = session.follow(&mut client).await {
            if status.code() == Code::OutOfRange {
                session.note(ApiFrame::Gone);
                session.revision = 0;
            } else {
                session.note(ApiFrame::Closed);
            }
        }
        session.member = (session.member + 1) % servers.len();
        session.run.env.sleep(RETRY).await;
    }
}

fn pods() -> Option<Resource> {
    Some(Resource { group: String::new(), version: "v1".into(), resource: PLURAL.into() })
}

/// The store's key of a pod.
fn key(object: &Object) -> String {
    let pod: Value = serde_json::from_slice(&object.raw).unwrap_or_default();
    let text = |field: &str| pod["metadata"][field].as_str().unwrap_or_default().to_owned();
    format!("{PREFIX}{}/{}", text("namespace"), text("name"))
}

impl Session {
    fn over(&self) -> bool {
        self.run.stop.load(Ordering::Relaxed)
    }

    fn note(&self, frame: ApiFrame) {
        self.run.recorder.record(Record::Api(ApiWatch { session: self.id, member: self.member, at: self.run.now(), frame }));
    }

    async fn follow(&mut self, client: &mut ResourcesClient<Channel>) -> Result<(), Status> {
        if self.revision == 0 {
            self.list(client).await?;
        }
        let watch = WatchRequest { resource: pods(), after_revision: self.revision, bookmarks: true, ..WatchRequest::default() };
        let mut stream = client.watch(watch).await?.into_inner();
        while !self.over() {
            let next = tokio::time::timeout(SILENCE, stream.message()).await;
            let message = next.map_err(|_| Status::deadline_exceeded("the watch is silent"))??;
            let Some(message) = message else { return Err(Status::unavailable("the watch ended")) };
            let kind = message.r#type();
            let object = message.object.unwrap_or_default();
            let revision = if object.revision > 0 { object.revision } else { message.revision };
            match kind {
                EventType::Added | EventType::Modified => self.note(ApiFrame::Put { key: key(&object), revision }),
                EventType::Deleted => self.note(ApiFrame::Delete { key: key(&object), revision }),
                EventType::Bookmark => self.note(ApiFrame::Bookmark { revision: message.revision }),
                EventType::Unspecified => continue,
            }
            self.revision = self.revision.max(revision);
        }
        Ok(())
    }

    async fn list(&mut self, client: &mut ResourcesClient<Channel>) -> Result<(), Status> {
        let mut stream = client.list(ListRequest { resource: pods(), ..ListRequest::default() }).await?.into_inner();
        let (mut revision, mut items) = (0, Vec::new());
        while let Some(message) = tokio::time::timeout(SILENCE, stream.message()).await.map_err(|_| Status::deadline_exceeded("list"))?? {
            revision = message.revision;
            items.extend(message.items.iter().map(|object| (key(object), object.revision)));
        }
        self.note(ApiFrame::List { prefix: PREFIX.into(), revision, items });
        self.revision = revision;
        Ok(())
    }
}
