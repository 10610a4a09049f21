//! The client of the API: gRPC over TLS to any of several servers. Reads and writes go on to the next server when one cannot
//! serve, and are tried again where the outcome's code says that it makes sense.
//!
//! Writes are safe to try again because they are bound to a name, a uid or a revision: a second attempt of a write that was carried
//! out answers `AlreadyExists`, `Conflict` or `NotFound`, never twice the effect.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use kontiki_base::code::Retry;
use kontiki_base::env::Env;
use kontiki_base::object::ObjectKey;
use kontiki_base::{Code, Revision, Term, Uid};
use kontiki_control::Kind;
use kontiki_control::plan::PatchType;
use kontiki_proto::api::{self as pb, resources_client::ResourcesClient};
use kontiki_proto::trace;
use serde_json::Value;
use tonic::service::interceptor::InterceptedService;

use crate::config::{ATTEMPT_TIMEOUT, ApiConfig, REQUEST_TIMEOUT};
use crate::error::{ApiError, ConfigError};
use crate::transport::{Channel, channels};

/// The largest message that is accepted: a page of a list.
const MESSAGE_BYTES: usize = 64 << 20;

/// An object as it travels: its JSON bytes and its revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// JSON.
    pub raw: Bytes,
    /// `metadata.resourceVersion`.
    pub revision: Revision,
}

impl Object {
    /// Reads it.
    pub fn parse<T: serde::de::DeserializeOwned>(&self) -> Result<T, ApiError> {
        serde_json::from_slice(&self.raw).map_err(|e| ApiError::new("decode", Code::Internal, e.to_string()))
    }
}

impl From<pb::Object> for Object {
    fn from(wire: pb::Object) -> Self {
        Self { raw: wire.raw, revision: Revision::new(wire.revision) }
    }
}

/// What a watch says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchEvent {
    /// The object is new, or has changed, or is there (at the start of a watch from nothing).
    Upsert(Object),
    /// The object is gone; this is how it was last.
    Removed(Object),
    /// Everything up to this revision has been delivered.
    Bookmark(Revision),
}

/// Which objects of a kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    /// Empty: all namespaces.
    pub namespace: String,
    /// Empty: all.
    pub label_selector: String,
    /// Empty: all. `spec.nodeName=n1`.
    pub field_selector: String,
}

/// What came of a deletion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deleted {
    /// The object as it is while it goes, or was.
    pub object: Option<Object>,
    /// Whether it is gone already.
    pub gone: bool,
}

/// A deletion's conditions and manners.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeleteOptions {
    /// The object must have this uid.
    pub uid: Option<Uid>,
    /// The object must be at this revision.
    pub expect: Option<Revision>,
    /// Seconds; `None` is the object's own.
    pub grace: Option<i64>,
    /// `Background`, `Foreground`, `Orphan`; empty is the kind's default.
    pub propagation: &'static str,
}

/// A channel whose requests say whose child their work is.
type Traced = InterceptedService<Channel, trace::Inject>;

struct Server {
    url: String,
    client: ResourcesClient<Traced>,
}

/// A client of the API. Cheap to clone; clones share connections and the choice of the server.
#[derive(Clone)]
pub struct Client {
    servers: Arc<Vec<Server>>,
    /// Index of the server that answered last.
    current: Arc<AtomicUsize>,
    env: Arc<dyn Env>,
    fence: Option<Term>,
    manager: &'static str,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("servers", &self.servers.len()).field("fence", &self.fence).finish_non_exhaustive()
    }
}

/// A stream of changes.
#[derive(Debug)]
pub struct Watch {
    op: String,
    stream: tonic::Streaming<pb::WatchResponse>,
    reached: Revision,
}

impl Watch {
    /// The revision from which a new watch would miss nothing and repeat as little as possible. The revision of the last object is not
    /// that: others may have changed at the same revision and be still to come.
    pub fn reached(&self) -> Revision {
        self.reached
    }

    /// The next event; `None` when the server ended the stream.
    pub async fn next(&mut self) -> Result<Option<WatchEvent>, ApiError> {
        loop {
            let Some(message) = self.stream.message().await.map_err(|s| ApiError::from_status(self.op.as_str(), &s))? else {
                return Ok(None);
            };
            let revision = Revision::new(message.revision);
            self.reached = self.reached.max(revision);
            let event = match (message.r#type(), message.object) {
                (pb::EventType::Added | pb::EventType::Modified, Some(object)) => WatchEvent::Upsert(object.into()),
                (pb::EventType::Deleted, Some(object)) => WatchEvent::Removed(object.into()),
                (pb::EventType::Bookmark, _) => WatchEvent::Bookmark(revision),
                (pb::EventType::Unspecified, _) => continue,
                (_, None) => return Err(ApiError::new(self.op.as_str(), Code::Internal, "event without an object")),
            };
            return Ok(Some(event));
        }
    }
}

impl Client {
    /// A client of the servers in `config`. Connects when first used; must be called inside a tokio runtime.
    pub fn new(config: &ApiConfig, env: Arc<dyn Env>) -> Result<Self, ConfigError> {
        let servers = channels(config)?
            .into_iter()
            .map(|(url, channel)| {
                let channel = Traced::new(channel, trace::inject);
                let client =
                    ResourcesClient::new(channel).max_decoding_message_size(MESSAGE_BYTES).max_encoding_message_size(MESSAGE_BYTES);
                Server { url, client }
            })
            .collect::<Vec<_>>();
        Ok(Self { servers: Arc::new(servers), current: Arc::new(AtomicUsize::new(0)), env, fence: None, manager: "kontiki" })
    }

    /// The same client, writing as `manager` (the `fieldManager` of its writes).
    #[must_use]
    pub fn as_manager(&self, manager: &'static str) -> Self {
        Self { manager, ..self.clone() }
    }

    /// The same client, whose writes are carried out only while `term` is the term of the store.
    #[must_use]
    pub fn under(&self, term: Term) -> Self {
        Self { fence: Some(term), ..self.clone() }
    }

    /// The URL of the server that is asked first.
    pub fn server(&self) -> &str {
        &self.servers[self.current.load(Ordering::Relaxed) % self.servers.len()].url
    }

    /// One object, as it is now (linearizable).
    pub async fn get(&self, kind: Kind, key: &ObjectKey) -> Result<Object, ApiError> {
        let op = format!("get {kind} {key}");
        let request = pb::GetRequest { r#ref: Some(object_ref(kind, key, "")), revision: 0 };
        self.call(&op, |mut c| {
            let request = request.clone();
            async move { c.get(request).await }
        })
        .await
        .map(Object::from)
    }

    /// All objects of a kind at one revision (linearizable).
    pub async fn list(&self, kind: Kind, scope: &Scope) -> Result<(Revision, Vec<Object>), ApiError> {
        let op = format!("list {kind}");
        let request = pb::ListRequest {
            resource: Some(resource(kind)),
            namespace: scope.namespace.clone(),
            label_selector: scope.label_selector.clone(),
            field_selector: scope.field_selector.clone(),
            revision: 0,
            limit: 0,
        };
        self.call(&op, |mut c| {
            let request = request.clone();
            async move {
                let mut stream = c.list(request).await?.into_inner();
                let (mut revision, mut items) = (Revision::ZERO, Vec::new());
                while let Some(page) = stream.message().await? {
                    revision = Revision::new(page.revision);
                    items.extend(page.items.into_iter().map(Object::from));
                }
                Ok(tonic::Response::new((revision, items)))
            }
        })
        .await
    }

    /// The revision of the store right now (linearizable), without objects.
    pub async fn revision(&self, kind: Kind) -> Result<Revision, ApiError> {
        let op = format!("revision {kind}");
        let request = pb::ListRequest { resource: Some(resource(kind)), limit: 1, ..Default::default() };
        self.call(&op, |mut c| {
            let request = request.clone();
            async move {
                let mut stream = c.list(request).await?.into_inner();
                let mut revision = 0;
                while let Some(page) = stream.message().await? {
                    revision = page.revision;
                }
                Ok(tonic::Response::new(Revision::new(revision)))
            }
        })
        .await
    }

    /// Changes after `after`. The stream ends with [`Code::Compacted`] when that lies too far back: list again.
    pub async fn watch(&self, kind: Kind, scope: &Scope, after: Revision) -> Result<Watch, ApiError> {
        let op = format!("watch {kind}");
        let request = pb::WatchRequest {
            resource: Some(resource(kind)),
            namespace: scope.namespace.clone(),
            label_selector: scope.label_selector.clone(),
            field_selector: scope.field_selector.clone(),
            after_revision: after.get(),
            bookmarks: true,
        };
        let stream = self
            .call(&op, |mut c| {
                let request = request.clone();
                async move { c.watch(request).await }
            })
            .await?;
        Ok(Watch { op, stream, reached: after })
    }

    /// A new object. `AlreadyExists` may mean that an earlier attempt of this very call succeeded: compare the owner.
    pub async fn create(&self, kind: Kind, object: &Value) -> Result<Object, ApiError> {
        let key = key_of(object);
        let op = format!("create {kind} {key}");
        let request = self.create_request(kind, &key.namespace, object, "", "");
        self.call(&op, |mut c| {
            let request = request.clone();
            async move { c.create(request).await }
        })
        .await
        .map(Object::from)
    }

    /// A subresource under an object: `binding`, `eviction`, `token`.
    pub async fn create_sub(&self, kind: Kind, key: &ObjectKey, subresource: &str, object: &Value) -> Result<Object, ApiError> {
        let op = format!("create {kind}/{subresource} {key}");
        let request = self.create_request(kind, &key.namespace, object, subresource, &key.name);
        self.call(&op, |mut c| {
            let request = request.clone();
            async move { c.create(request).await }
        })
        .await
        .map(Object::from)
    }

    /// Replaces an object, or its `subresource`; the revision inside `object` must be the stored one.
    pub async fn update(&self, kind: Kind, subresource: &str, object: &Value) -> Result<Object, ApiError> {
        let key = key_of(object);
        let op = format!("update {kind} {key}");
        let request = self.update_request(kind, &key, subresource, object);
        self.call(&op, |mut c| {
            let request = request.clone();
            async move { c.update(request).await }
        })
        .await
        .map(Object::from)
    }

    /// Changes parts of an object, or of its `subresource`.
    pub async fn patch(
        &self,
        kind: Kind,
        key: &ObjectKey,
        subresource: &str,
        patch_type: PatchType,
        patch: &Value,
    ) -> Result<Object, ApiError> {
        let op = format!("patch {kind} {key}");
        let request = self.patch_request(kind, key, subresource, patch_type, patch);
        self.call(&op, |mut c| {
            let request = request.clone();
            async move { c.patch(request).await }
        })
        .await
        .map(Object::from)
    }

    /// Deletes an object, or begins to.
    pub async fn delete(&self, kind: Kind, key: &ObjectKey, options: &DeleteOptions) -> Result<Deleted, ApiError> {
        let op = format!("delete {kind} {key}");
        let request = self.delete_request(kind, key, options);
        let answer = self
            .call(&op, |mut c| {
                let request = request.clone();
                async move { c.delete(request).await }
            })
            .await?;
        Ok(Deleted { object: answer.object.map(Object::from), gone: answer.gone })
    }

    /// Deletes all objects of a kind in a namespace; how many there were.
    pub async fn delete_collection(&self, kind: Kind, namespace: &str) -> Result<i64, ApiError> {
        let op = format!("deletecollection {kind} {namespace}");
        let list = pb::ListRequest { resource: Some(resource(kind)), namespace: namespace.to_owned(), ..Default::default() };
        let request = pb::DeleteCollectionRequest {
            list: Some(list),
            grace_period_seconds: None,
            propagation_policy: "Background".into(),
            options: Some(self.options()),
        };
        let answer = self
            .call(&op, |mut c| {
                let request = request.clone();
                async move { c.delete_collection(request).await }
            })
            .await?;
        Ok(answer.deleted)
    }

    /// Several writes at one revision, or none of them.
    pub async fn transact(&self, writes: Vec<pb::Write>) -> Result<(Revision, Vec<Object>), ApiError> {
        let op = format!("transact {} writes", writes.len());
        let request = pb::TransactRequest { writes, options: Some(self.options()) };
        let answer = self
            .call(&op, |mut c| {
                let request = request.clone();
                async move { c.transact(request).await }
            })
            .await?;
        Ok((Revision::new(answer.revision), answer.objects.into_iter().map(Object::from).collect()))
    }

    /// The write that binds a pod, for [`Client::transact`] or alone.
    pub fn bind_write(&self, pod: &ObjectKey, uid: &Uid, node: &str) -> pb::Write {
        let request = self.create_request(Kind::Pod, &pod.namespace, &binding(pod, uid, node), "binding", &pod.name);
        pb::Write { write: Some(pb::write::Write::Create(request)) }
    }

    /// The write that patches an object, for [`Client::transact`].
    pub fn patch_write(&self, kind: Kind, key: &ObjectKey, subresource: &str, patch_type: PatchType, patch: &Value) -> pb::Write {
        pb::Write { write: Some(pb::write::Write::Patch(self.patch_request(kind, key, subresource, patch_type, patch))) }
    }

    fn options(&self) -> pb::WriteOptions {
        pb::WriteOptions {
            dry_run: false,
            field_manager: self.manager.into(),
            field_validation: "Ignore".into(),
            fence_term: self.fence.map_or(0, Term::get),
        }
    }

    fn create_request(&self, kind: Kind, namespace: &str, object: &Value, subresource: &str, name: &str) -> pb::CreateRequest {
        pb::CreateRequest {
            resource: Some(resource(kind)),
            namespace: namespace.to_owned(),
            object: Some(wire_object(object)),
            options: Some(self.options()),
            subresource: subresource.to_owned(),
            name: name.to_owned(),
        }
    }

    fn update_request(&self, kind: Kind, key: &ObjectKey, subresource: &str, object: &Value) -> pb::UpdateRequest {
        pb::UpdateRequest {
            r#ref: Some(object_ref(kind, key, subresource)),
            object: Some(wire_object(object)),
            options: Some(self.options()),
        }
    }

    fn patch_request(&self, kind: Kind, key: &ObjectKey, subresource: &str, patch_type: PatchType, patch: &Value) -> pb::PatchRequest {
        let patch_type = match patch_type {
            PatchType::Json => pb::PatchType::JsonPatch,
            PatchType::Merge => pb::PatchType::MergePatch,
            PatchType::Strategic => pb::PatchType::StrategicMergePatch,
        };
        pb::PatchRequest {
            r#ref: Some(object_ref(kind, key, subresource)),
            r#type: patch_type.into(),
            patch: patch.to_string().into_bytes().into(),
            options: Some(self.options()),
        }
    }

    fn delete_request(&self, kind: Kind, key: &ObjectKey, options: &DeleteOptions) -> pb::DeleteRequest {
        let preconditions = (options.uid.is_some() || options.expect.is_some()).then(|| pb::Preconditions {
            uid: options.uid.clone().unwrap_or_default().0,
            revision: options.expect.map_or(0, Revision::get),
        });
        pb::DeleteRequest {
            r#ref: Some(object_ref(kind, key, "")),
            preconditions,
            grace_period_seconds: options.grace,
            propagation_policy: options.propagation.to_owned(),
            options: Some(self.options()),
        }
    }

    /// Calls the current server, then the others, until one answers for good or the time is up.
    async fn call<T, F, Fut>(&self, op: &str, send: F) -> Result<T, ApiError>
    where
        F: Fn(ResourcesClient<Traced>) -> Fut,
        Fut: Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    {
        let started = self.env.now_mono();
        let mut pause = Duration::from_millis(10);
        let mut tries: usize = 0;
        loop {
            let index = self.current.load(Ordering::Relaxed);
            let server = &self.servers[index % self.servers.len()];
            let error = tokio::select! {
                answer = send(server.client.clone()) => match answer {
                    Ok(answer) => return Ok(answer.into_inner()),
                    Err(status) => ApiError::from_status(op, &status),
                },
                () = self.env.sleep(ATTEMPT_TIMEOUT) => ApiError::new(op, Code::Timeout, format!("{} did not answer in time", server.url)),
            };
            tries += 1;
            let retry = error.code.retry();
            let again = matches!(retry, Retry::OtherNode | Retry::Backoff);
            if !again || self.env.now_mono().since(started) >= REQUEST_TIMEOUT {
                return Err(error);
            }
            if retry == Retry::OtherNode || error.code == Code::Timeout {
                // Only the first of several concurrent calls moves on; the others follow it.
                let _ = self.current.compare_exchange(index, index.wrapping_add(1), Ordering::Relaxed, Ordering::Relaxed);
            }
            if retry == Retry::Backoff || tries.is_multiple_of(self.servers.len()) {
                tracing::debug!(op, %error, tries, "trying again");
                self.env.sleep(jittered(pause, self.env.random_u64())).await;
                pause = (pause * 2).min(Duration::from_secs(1));
            }
        }
    }
}

/// Between half of `d` and `d`.
pub(crate) fn jittered(d: Duration, random: u64) -> Duration {
    let half = d / 2;
    let nanos = u64::try_from(half.as_nanos()).unwrap_or(u64::MAX).max(1);
    half + Duration::from_nanos(random % nanos)
}

/// The words of a kind on the wire.
pub(crate) fn resource(kind: Kind) -> pb::Resource {
    pb::Resource { group: kind.group().into(), version: kind.version().into(), resource: kind.plural().into() }
}

fn object_ref(kind: Kind, key: &ObjectKey, subresource: &str) -> pb::ObjectRef {
    pb::ObjectRef {
        resource: Some(resource(kind)),
        namespace: key.namespace.clone(),
        name: key.name.clone(),
        subresource: subresource.to_owned(),
    }
}

fn wire_object(object: &Value) -> pb::Object {
    let text = |field: &str| object[field].as_str().unwrap_or_default().to_owned();
    pb::Object {
        api_version: text("apiVersion"),
        kind: text("kind"),
        encoding: pb::Encoding::Json.into(),
        raw: object.to_string().into_bytes().into(),
        revision: 0,
    }
}

/// Namespace and name of an object.
pub(crate) fn key_of(object: &Value) -> ObjectKey {
    let meta = &object["metadata"];
    ObjectKey::new(meta["namespace"].as_str().unwrap_or_default(), meta["name"].as_str().unwrap_or_default())
}

/// The body that binds a pod.
fn binding(pod: &ObjectKey, uid: &Uid, node: &str) -> Value {
    serde_json::json!({
        "apiVersion": "v1",
        "kind": "Binding",
        "metadata": { "namespace": pod.namespace, "name": pod.name, "uid": uid.0 },
        "target": { "apiVersion": "v1", "kind": "Node", "name": node },
    })
}
