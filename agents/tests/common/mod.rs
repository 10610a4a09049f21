//! A small API server in memory, spoken to over real gRPC, that can be told to misbehave: to lag, to refuse, to break watches off, to
//! forget its history.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kontiki_agents::ApiConfig;
use kontiki_base::Code;
use kontiki_base::object::ObjectKey;
use kontiki_control::Kind;
use kontiki_proto::api as pb;
use pb::resources_server::{Resources, ResourcesServer};
use serde_json::{Value, json};
use tokio::sync::watch;
use tonic::{Request, Response, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

#[derive(Default)]
pub struct State {
    pub objects: BTreeMap<(Kind, ObjectKey), Value>,
    history: Vec<(i64, pb::EventType, Kind, Value)>,
    revision: i64,
    compacted: i64,
    /// Writes by "verb plural", events left out.
    pub writes: Vec<String>,
    /// The term of the store; 0: fences are not checked.
    pub term: u64,
    /// The next calls of these verbs fail so.
    pub refuse: Vec<(&'static str, Code)>,
    /// Watches deliver this much later.
    pub lag: Duration,
}

pub struct Fake {
    pub state: Mutex<State>,
    revision: watch::Sender<i64>,
    /// Counts up to break all watches off.
    cut: watch::Sender<u64>,
}

pub fn error(code: Code, message: &str) -> Status {
    let mut details = ErrorDetails::with_error_info(code.reason(), "kontiki.dev", std::collections::HashMap::new());
    if code == Code::Fenced {
        details.add_precondition_failure_violation("FENCE_TERM", "", message);
    }
    Status::with_error_details(tonic::Code::from(code.grpc()), message, details)
}

fn merge(target: &mut Value, patch: &Value, strategic: bool) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (k, v) in patch {
        if v.is_null() {
            target.as_object_mut().unwrap().remove(k);
        } else if strategic && k == "conditions" && target[k].is_array() {
            for c in v.as_array().unwrap() {
                let list = target[k].as_array_mut().unwrap();
                match list.iter_mut().find(|o| o["type"] == c["type"]) {
                    Some(old) => merge(old, c, strategic),
                    None => list.push(c.clone()),
                }
            }
        } else {
            merge(&mut target[k], v, strategic);
        }
    }
}

impl State {
    fn refused(&mut self, verb: &'static str) -> Result<(), Status> {
        match self.refuse.iter().position(|(v, _)| *v == verb) {
            Some(i) => Err(error(self.refuse.remove(i).1, "told to refuse")),
            None => Ok(()),
        }
    }

    fn fence(&self, options: Option<&pb::WriteOptions>) -> Result<(), Status> {
        let given = options.map_or(0, |o| o.fence_term);
        if self.term != 0 && given != 0 && given != self.term {
            return Err(error(Code::Fenced, "fenced: written under an old term"));
        }
        Ok(())
    }

    fn note(&mut self, verb: &str, kind: Kind) {
        if kind != Kind::Event {
            self.writes.push(format!("{verb} {}", kind.plural()));
        }
    }

    fn log(&mut self, event: pb::EventType, kind: Kind, mut object: Value) -> Value {
        self.revision += 1;
        object["metadata"]["resourceVersion"] = json!(self.revision.to_string());
        self.history.push((self.revision, event, kind, object.clone()));
        object
    }

    fn put(&mut self, kind: Kind, object: Value) -> Value {
        let key = key_of(&object);
        let is_new = !self.objects.contains_key(&(kind, key.clone()));
        let object = self.log(if is_new { pb::EventType::Added } else { pb::EventType::Modified }, kind, object);
        let finalizers = object["metadata"]["finalizers"].as_array().is_some_and(|f| !f.is_empty());
        let waits = kind == Kind::Pod && !object["spec"]["nodeName"].is_null();
        if !object["metadata"]["deletionTimestamp"].is_null() && !finalizers && !waits {
            self.remove(kind, &key);
        } else {
            self.objects.insert((kind, key), object.clone());
        }
        object
    }

    pub fn remove(&mut self, kind: Kind, key: &ObjectKey) {
        if let Some(old) = self.objects.remove(&(kind, key.clone())) {
            self.log(pb::EventType::Deleted, kind, old);
        }
    }

    pub fn create(&mut self, kind: Kind, mut object: Value) -> Result<Value, Status> {
        let key = key_of(&object);
        if self.objects.contains_key(&(kind, key.clone())) {
            return Err(error(Code::AlreadyExists, &format!("{kind} {key} already exists")));
        }
        object["metadata"]["uid"] = json!(format!("uid-{}", self.revision + 1));
        object["metadata"]["creationTimestamp"] = json!("2024-01-01T00:00:00Z");
        object["metadata"]["generation"] = json!(1);
        Ok(self.put(kind, object))
    }

    fn replace(&mut self, kind: Kind, key: &ObjectKey, mut object: Value, sub: &str) -> Result<Value, Status> {
        let Some(old) = self.objects.get(&(kind, key.clone())).cloned() else {
            return Err(error(Code::NotFound, &format!("{kind} {key} not found")));
        };
        for field in ["resourceVersion", "uid"] {
            let given = &object["metadata"][field];
            if !given.is_null() && *given != old["metadata"][field] {
                return Err(error(Code::Conflict, &format!("{kind} {key}: stale {field}")));
            }
        }
        if sub == "status" {
            let status = object["status"].take();
            object = old.clone();
            object["status"] = status;
        } else {
            object["metadata"]["uid"] = old["metadata"]["uid"].clone();
            object["status"] = old["status"].clone();
            let bump = i64::from(object["spec"] != old["spec"]);
            object["metadata"]["generation"] = json!(old["metadata"]["generation"].as_i64().unwrap_or(1) + bump);
        }
        object.as_object_mut().unwrap().retain(|_, v| !v.is_null());
        let mut same = object.clone();
        same["metadata"]["resourceVersion"] = old["metadata"]["resourceVersion"].clone();
        if same == old { Ok(old) } else { Ok(self.put(kind, object)) }
    }

    fn patch(&mut self, r: &pb::PatchRequest) -> Result<(Kind, Value), Status> {
        let (kind, key, sub) = target(r.r#ref.as_ref());
        let patch: Value = serde_json::from_slice(&r.patch).unwrap();
        let Some(old) = self.objects.get(&(kind, key.clone())) else { return Err(error(Code::NotFound, "not found")) };
        let mut object = old.clone();
        merge(&mut object, &patch, r.r#type() == pb::PatchType::StrategicMergePatch);
        self.note("patch", kind);
        Ok((kind, self.replace(kind, &key, object, &sub)?))
    }

    fn create_request(&mut self, r: &pb::CreateRequest) -> Result<(Kind, Value), Status> {
        let kind = kind_of(r.resource.as_ref());
        let object: Value = serde_json::from_slice(&r.object.as_ref().unwrap().raw).unwrap();
        if r.subresource == "binding" {
            let key = ObjectKey::new(r.namespace.clone(), r.name.clone());
            let Some(mut pod) = self.objects.get(&(kind, key.clone())).cloned() else { return Err(error(Code::NotFound, "no pod")) };
            if pod["metadata"]["uid"] != object["metadata"]["uid"] || !pod["spec"]["nodeName"].is_null() {
                return Err(error(Code::Conflict, "pod is bound already, or another one"));
            }
            pod["spec"]["nodeName"] = object["target"]["name"].clone();
            self.note("bind", kind);
            return Ok((kind, self.put(kind, pod)));
        }
        let created = self.create(kind, object)?;
        self.note("create", kind);
        Ok((kind, created))
    }

    fn delete(&mut self, r: &pb::DeleteRequest) -> Result<pb::DeleteResponse, Status> {
        let (kind, key, _) = target(r.r#ref.as_ref());
        let Some(mut object) = self.objects.get(&(kind, key.clone())).cloned() else { return Err(error(Code::NotFound, "not found")) };
        if let Some(p) = &r.preconditions {
            let stale = p.revision != 0 && object["metadata"]["resourceVersion"].as_str() != Some(p.revision.to_string().as_str());
            if stale || (!p.uid.is_empty() && object["metadata"]["uid"] != p.uid) {
                return Err(error(Code::Conflict, "precondition"));
            }
        }
        self.note("delete", kind);
        let graceful = kind == Kind::Pod && !object["spec"]["nodeName"].is_null() && r.grace_period_seconds != Some(0);
        if graceful {
            if object["metadata"]["deletionTimestamp"].is_null() {
                object["metadata"]["deletionTimestamp"] = json!("2024-01-01T00:00:00Z");
                object = self.put(kind, object);
            }
            return Ok(pb::DeleteResponse { object: Some(wire(&object)), gone: false });
        }
        self.remove(kind, &key);
        Ok(pb::DeleteResponse { object: Some(wire(&object)), gone: true })
    }
}

fn key_of(object: &Value) -> ObjectKey {
    let m = &object["metadata"];
    ObjectKey::new(m["namespace"].as_str().unwrap_or_default(), m["name"].as_str().unwrap_or_default())
}

fn kind_of(r: Option<&pb::Resource>) -> Kind {
    let r = r.unwrap();
    Kind::ALL.iter().copied().find(|k| k.plural() == r.resource && k.group() == r.group).unwrap()
}

fn target(r: Option<&pb::ObjectRef>) -> (Kind, ObjectKey, String) {
    let r = r.unwrap();
    (kind_of(r.resource.as_ref()), ObjectKey::new(r.namespace.clone(), r.name.clone()), r.subresource.clone())
}

fn wire(object: &Value) -> pb::Object {
    let text = |f: &str| object[f].as_str().unwrap_or_default().to_owned();
    let revision = object["metadata"]["resourceVersion"].as_str().unwrap_or("0").parse().unwrap();
    pb::Object { api_version: text("apiVersion"), kind: text("kind"), encoding: 0, raw: object.to_string().into_bytes().into(), revision }
}

impl Fake {
    pub fn new() -> Arc<Self> {
        let state = State { revision: 1, ..State::default() };
        Arc::new(Self { state: Mutex::new(state), revision: watch::Sender::new(1), cut: watch::Sender::new(0) })
    }

    /// Serves on a free port; the URL. The server ends with the runtime.
    pub async fn serve(self: &Arc<Self>) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let service = ResourcesServer::new(Door(self.clone()));
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        tokio::spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));
        url
    }

    pub fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        let (out, revision) = {
            let mut state = self.state.lock().unwrap();
            let out = f(&mut state);
            (out, state.revision)
        };
        self.revision.send_replace(revision);
        out
    }

    pub fn create(&self, object: Value) -> Value {
        let kind = Kind::of(object["apiVersion"].as_str().unwrap(), object["kind"].as_str().unwrap()).unwrap();
        self.with(|s| s.create(kind, object)).unwrap()
    }

    pub fn update(&self, kind: Kind, key: &ObjectKey, f: impl FnOnce(&mut Value)) {
        self.with(|s| {
            let mut object = s.objects[&(kind, key.clone())].clone();
            f(&mut object);
            s.replace(kind, key, object, "").unwrap();
        });
    }

    pub fn get(&self, kind: Kind, key: &ObjectKey) -> Option<Value> {
        self.state.lock().unwrap().objects.get(&(kind, key.clone())).cloned()
    }

    pub fn all(&self, kind: Kind) -> Vec<Value> {
        self.state.lock().unwrap().objects.iter().filter(|((k, _), _)| *k == kind).map(|(_, o)| o.clone()).collect()
    }

    pub fn writes(&self) -> Vec<String> {
        self.state.lock().unwrap().writes.clone()
    }

    /// Forgets the history and ends all watches.
    pub fn compact(&self) {
        self.with(|s| {
            s.compacted = s.revision;
            s.history.clear();
        });
        self.cut_watches();
    }

    pub fn cut_watches(&self) {
        self.cut.send_modify(|n| *n += 1);
    }

    fn watch_from(self: &Arc<Self>, r: pb::WatchRequest) -> Result<Stream<pb::WatchResponse>, Status> {
        let kind = kind_of(r.resource.as_ref());
        if r.after_revision < self.state.lock().unwrap().compacted {
            return Err(error(Code::Compacted, "too old resource version"));
        }
        let (me, mut at) = (self.clone(), r.after_revision);
        let (mut revision, mut cut) = (self.revision.subscribe(), self.cut.subscribe());
        cut.mark_unchanged();
        let (out, stream) = tokio::sync::mpsc::channel(64);
        tokio::spawn(async move {
            loop {
                let lag = me.state.lock().unwrap().lag;
                tokio::time::sleep(lag).await;
                revision.mark_unchanged();
                let (news, now) = {
                    let s = me.state.lock().unwrap();
                    if at < s.compacted {
                        return;
                    }
                    let news: Vec<_> = s.history.iter().filter(|(rev, _, k, _)| *rev > at && *k == kind).cloned().collect();
                    (news, s.revision)
                };
                for (rev, event, _, object) in news {
                    let response = pb::WatchResponse { r#type: event.into(), object: Some(wire(&object)), revision: rev };
                    if out.send(Ok(response)).await.is_err() {
                        return;
                    }
                }
                if now > at {
                    at = now;
                    let bookmark = pb::WatchResponse { r#type: pb::EventType::Bookmark.into(), object: None, revision: now };
                    if out.send(Ok(bookmark)).await.is_err() {
                        return;
                    }
                }
                tokio::select! {
                    changed = revision.changed() => if changed.is_err() { return },
                    _ = cut.changed() => return,
                    () = out.closed() => return,
                }
            }
        });
        Ok(Box::pin(tokio_stream::wrappers::ReceiverStream::new(stream)))
    }
}

type Stream<T> = Pin<Box<dyn futures::Stream<Item = Result<T, Status>> + Send>>;

struct Door(Arc<Fake>);

#[tonic::async_trait]
impl Resources for Door {
    type ListStream = Stream<pb::ListResponse>;
    type WatchStream = Stream<pb::WatchResponse>;

    async fn get(&self, r: Request<pb::GetRequest>) -> Result<Response<pb::Object>, Status> {
        let (kind, key, _) = target(r.get_ref().r#ref.as_ref());
        self.0.get(kind, &key).map(|o| Response::new(wire(&o))).ok_or_else(|| error(Code::NotFound, "not found"))
    }

    async fn list(&self, r: Request<pb::ListRequest>) -> Result<Response<Self::ListStream>, Status> {
        let kind = kind_of(r.get_ref().resource.as_ref());
        let (revision, items) = self.0.with(|s| {
            s.refused("list")?;
            let node = r.get_ref().field_selector.strip_prefix("spec.nodeName=").map(str::to_owned);
            let selected = |o: &Value| node.as_ref().is_none_or(|n| o["spec"]["nodeName"] == n.as_str());
            let items = s.objects.iter().filter(|((k, _), o)| *k == kind && selected(o)).map(|(_, o)| wire(o)).collect();
            Ok::<_, Status>((s.revision, items))
        })?;
        Ok(Response::new(Box::pin(tokio_stream::iter([Ok(pb::ListResponse { revision, items })]))))
    }

    async fn watch(&self, r: Request<pb::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        self.0.watch_from(r.into_inner()).map(Response::new)
    }

    async fn create(&self, r: Request<pb::CreateRequest>) -> Result<Response<pb::Object>, Status> {
        self.0.with(|s| {
            s.fence(r.get_ref().options.as_ref())?;
            s.refused("create")?;
            s.create_request(r.get_ref()).map(|(_, o)| Response::new(wire(&o)))
        })
    }

    async fn update(&self, r: Request<pb::UpdateRequest>) -> Result<Response<pb::Object>, Status> {
        let (kind, key, sub) = target(r.get_ref().r#ref.as_ref());
        let object: Value = serde_json::from_slice(&r.get_ref().object.as_ref().unwrap().raw).unwrap();
        self.0.with(|s| {
            s.fence(r.get_ref().options.as_ref())?;
            s.refused("update")?;
            s.note("update", kind);
            s.replace(kind, &key, object, &sub).map(|o| Response::new(wire(&o)))
        })
    }

    async fn patch(&self, r: Request<pb::PatchRequest>) -> Result<Response<pb::Object>, Status> {
        self.0.with(|s| {
            s.fence(r.get_ref().options.as_ref())?;
            s.refused("patch")?;
            s.patch(r.get_ref()).map(|(_, o)| Response::new(wire(&o)))
        })
    }

    async fn apply(&self, _: Request<pb::ApplyRequest>) -> Result<Response<pb::Object>, Status> {
        Err(error(Code::Unimplemented, "apply"))
    }

    async fn delete(&self, r: Request<pb::DeleteRequest>) -> Result<Response<pb::DeleteResponse>, Status> {
        self.0.with(|s| {
            s.fence(r.get_ref().options.as_ref())?;
            s.refused("delete")?;
            s.delete(r.get_ref()).map(Response::new)
        })
    }

    async fn delete_collection(&self, _: Request<pb::DeleteCollectionRequest>) -> Result<Response<pb::DeleteCollectionResponse>, Status> {
        Err(error(Code::Unimplemented, "deletecollection"))
    }

    async fn transact(&self, r: Request<pb::TransactRequest>) -> Result<Response<pb::TransactResponse>, Status> {
        self.0.with(|s| {
            s.fence(r.get_ref().options.as_ref())?;
            s.refused("transact")?;
            let before = (s.objects.clone(), s.history.len(), s.revision, s.writes.len());
            let mut objects = Vec::new();
            for write in &r.get_ref().writes {
                let done = match write.write.as_ref().unwrap() {
                    pb::write::Write::Create(c) => s.create_request(c),
                    pb::write::Write::Patch(p) => s.patch(p),
                    _ => Err(error(Code::Unimplemented, "in a transaction")),
                };
                match done {
                    Ok((_, object)) => objects.push(wire(&object)),
                    Err(e) => {
                        s.objects = before.0;
                        s.history.truncate(before.1);
                        s.revision = before.2;
                        s.writes.truncate(before.3);
                        return Err(e);
                    }
                }
            }
            Ok(Response::new(pb::TransactResponse { revision: s.revision, objects }))
        })
    }
}

pub fn config(urls: &[&str]) -> ApiConfig {
    let endpoints = urls.iter().map(|u| (*u).to_owned()).collect();
    ApiConfig { endpoints, ca_pem: Vec::new(), cert_pem: Vec::new(), key_pem: Vec::new(), transport: None }
}

/// Waits until `done` holds.
pub async fn eventually(what: &str, done: impl Fn() -> bool) {
    let wait = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(20), wait).await.is_ok(), "did not happen: {what}");
}
