//! The gRPC door: the same verbs, typed errors, several writes as one.

use futures::StreamExt as _;
use kontiki_base::Term;
use kontiki_proto::api::{self, resources_client::ResourcesClient};
use serde_json::{Value, json};
use tonic::Code;
use tonic::transport::Channel;
use tonic_types::StatusExt as _;

use crate::common::Server;

type Client = ResourcesClient<Channel>;

fn resource(group: &str, plural: &str) -> Option<api::Resource> {
    Some(api::Resource { group: group.into(), version: "v1".into(), resource: plural.into() })
}

fn reference(plural: &str, name: &str) -> Option<api::ObjectRef> {
    Some(api::ObjectRef { resource: resource("", plural), namespace: "default".into(), name: name.into(), subresource: String::new() })
}

fn object(value: &Value) -> Option<api::Object> {
    Some(api::Object { raw: value.to_string().into(), ..Default::default() })
}

fn create(name: &str) -> api::CreateRequest {
    let object = object(&json!({"metadata": {"name": name}, "data": {"k": "v"}}));
    api::CreateRequest { resource: resource("", "configmaps"), namespace: "default".into(), object, ..Default::default() }
}

fn write(write: api::write::Write) -> api::Write {
    api::Write { write: Some(write) }
}

fn get(name: &str, revision: i64) -> api::GetRequest {
    api::GetRequest { r#ref: reference("configmaps", name), revision }
}

async fn client(s: &Server) -> Client {
    ResourcesClient::new(s.channel(s.admin()).await)
}

fn value(object: &api::Object) -> Value {
    serde_json::from_slice(&object.raw).unwrap()
}

#[tokio::test]
async fn objects_have_their_revision_and_their_past() {
    let s = Server::start().await;
    let mut c = client(&s).await;
    let made = c.create(create("a")).await.unwrap().into_inner();
    assert_eq!((made.kind.as_str(), made.api_version.as_str()), ("ConfigMap", "v1"));
    assert_eq!(value(&made)["metadata"]["resourceVersion"], made.revision.to_string());
    let patch = api::PatchRequest {
        r#ref: reference("configmaps", "a"),
        r#type: api::PatchType::MergePatch.into(),
        patch: json!({"data": {"k": "w"}}).to_string().into(),
        options: None,
    };
    let patched = c.patch(patch).await.unwrap().into_inner();
    assert!(patched.revision > made.revision);
    assert_eq!(value(&c.get(get("a", 0)).await.unwrap().into_inner())["data"]["k"], "w");
    assert_eq!(value(&c.get(get("a", made.revision)).await.unwrap().into_inner())["data"]["k"], "v", "as it was");
    assert_eq!(s.get("/api/v1/namespaces/default/configmaps/a").await.1, value(&patched), "the other door shows the same");
}

#[tokio::test]
async fn a_stale_update_is_aborted() {
    let s = Server::start().await;
    let mut c = client(&s).await;
    let made = c.create(create("a")).await.unwrap().into_inner();
    let mut stale = value(&made);
    stale["metadata"]["resourceVersion"] = json!("1");
    let update = api::UpdateRequest { r#ref: reference("configmaps", "a"), object: object(&stale), options: None };
    let refused = c.update(update).await.unwrap_err();
    assert_eq!(refused.code(), Code::Aborted);
    let details = refused.get_error_details();
    assert_eq!(details.error_info().unwrap().reason, "Conflict");
    assert_eq!(details.precondition_failure().unwrap().violations[0].r#type, "RESOURCE_VERSION");
    assert_eq!(c.get(get("nope", 0)).await.unwrap_err().code(), Code::NotFound);
    let twice = c.create(create("a")).await.unwrap_err();
    assert_eq!(twice.code(), Code::AlreadyExists);
}

#[tokio::test]
async fn a_transaction_is_all_or_nothing() {
    let s = Server::start().await;
    let mut c = client(&s).await;
    let made = c.create(create("a")).await.unwrap().into_inner();
    let delete = api::DeleteRequest { r#ref: reference("configmaps", "a"), ..Default::default() };
    let mut stale = value(&made);
    stale["metadata"]["resourceVersion"] = json!("1");
    let update = api::UpdateRequest { r#ref: reference("configmaps", "a"), object: object(&stale), options: None };
    let before = s.kv.revisions().revision;
    let writes = vec![write(api::write::Write::Create(create("b"))), write(api::write::Write::Update(update))];
    let refused = c.transact(api::TransactRequest { writes, options: None }).await.unwrap_err();
    assert_eq!(refused.code(), Code::Aborted);
    assert_eq!(s.kv.revisions().revision, before, "nothing was written");

    let writes = vec![write(api::write::Write::Create(create("b"))), write(api::write::Write::Delete(delete.clone()))];
    let done = c.transact(api::TransactRequest { writes, options: None }).await.unwrap().into_inner();
    assert_eq!(done.revision, before.get() + 1, "one revision");
    assert!(done.objects.iter().all(|o| o.revision == done.revision));
    assert_eq!(c.get(get("a", 0)).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(c.get(get("b", 0)).await.unwrap().into_inner().revision, done.revision);

    let twice = vec![write(api::write::Write::Create(create("c"))), write(api::write::Write::Create(create("c")))];
    assert_eq!(c.transact(api::TransactRequest { writes: twice, options: None }).await.unwrap_err().code(), Code::InvalidArgument);
    let many = (0..501).map(|i| write(api::write::Write::Create(create(&format!("m{i}"))))).collect();
    assert_eq!(c.transact(api::TransactRequest { writes: many, options: None }).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn many_pods_are_bound_at_one_revision() {
    let s = Server::start().await;
    let mut c = client(&s).await;
    s.post("/api/v1/namespaces/default/serviceaccounts", &json!({"metadata": {"name": "default"}})).await;
    for i in 0..20 {
        let pod = json!({"metadata": {"name": format!("p{i}")}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
        assert_eq!(s.post("/api/v1/namespaces/default/pods", &pod).await.0, 201);
    }
    let bind = |i: usize| {
        write(api::write::Write::Create(api::CreateRequest {
            resource: resource("", "pods"),
            namespace: "default".into(),
            object: object(&json!({"target": {"kind": "Node", "name": "n1"}})),
            options: None,
            subresource: "binding".into(),
            name: format!("p{i}"),
        }))
    };
    let done = c.transact(api::TransactRequest { writes: (0..20).map(bind).collect(), options: None }).await.unwrap().into_inner();
    assert!(done.objects.iter().all(|o| o.revision == done.revision && value(o)["spec"]["nodeName"] == "n1"));
    let again = c.transact(api::TransactRequest { writes: vec![bind(3)], options: None }).await.unwrap_err();
    assert_eq!(again.code(), Code::Aborted);
}

#[tokio::test]
async fn a_passed_term_writes_nothing() {
    let s = Server::start().await;
    let mut c = client(&s).await;
    s.kv.set_leadership(Term::new(5), true);
    let fenced =
        |term: u64| api::CreateRequest { options: Some(api::WriteOptions { fence_term: term, ..Default::default() }), ..create("a") };
    let refused = c.create(fenced(4)).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert_eq!(refused.get_error_details().precondition_failure().unwrap().violations[0].r#type, "FENCE_TERM");
    assert!(c.create(fenced(5)).await.is_ok());
}

#[tokio::test]
async fn lists_and_watches_are_streams() {
    let s = Server::start().await;
    let mut c = client(&s).await;
    for i in 0..300 {
        c.create(create(&format!("c{i:03}"))).await.unwrap();
    }
    let list = api::ListRequest { resource: resource("", "configmaps"), namespace: "default".into(), ..Default::default() };
    let mut stream = c.list(list).await.unwrap().into_inner();
    let head = stream.message().await.unwrap().unwrap();
    assert!(head.items.is_empty() && head.revision > 0);
    let mut count = 0;
    while let Some(batch) = stream.message().await.unwrap() {
        assert_eq!(batch.revision, head.revision);
        count += batch.items.len();
    }
    assert_eq!(count, 300);

    let watch = api::WatchRequest {
        resource: resource("", "configmaps"),
        namespace: "default".into(),
        field_selector: "metadata.name=c007".into(),
        ..Default::default()
    };
    let mut events = c.watch(watch).await.unwrap().into_inner();
    let first = events.next().await.unwrap().unwrap();
    assert_eq!((first.r#type(), first.revision), (api::EventType::Added, 0));
    assert_eq!(events.next().await.unwrap().unwrap().r#type(), api::EventType::Bookmark);
    let gone = c.delete(api::DeleteRequest { r#ref: reference("configmaps", "c007"), ..Default::default() }).await.unwrap().into_inner();
    assert!(gone.gone);
    let last = events.next().await.unwrap().unwrap();
    assert_eq!(last.r#type(), api::EventType::Deleted);
    assert_eq!(last.object.unwrap().revision, last.revision);
}

#[tokio::test]
async fn who_asks_decides_here_as_well() {
    let s = Server::start().await;
    let mut nobody = ResourcesClient::new(s.channel(None).await);
    assert_eq!(nobody.get(get("a", 0)).await.unwrap_err().code(), Code::PermissionDenied);
    let mut node = ResourcesClient::new(s.channel(Some(s.pki.issue("system:node:n1", &["system:nodes"]))).await);
    assert_eq!(node.get(get("a", 0)).await.unwrap_err().code(), Code::NotFound, "a node may read configmaps");
    assert_eq!(node.create(create("a")).await.unwrap_err().code(), Code::PermissionDenied);
}

#[tokio::test]
async fn the_other_writes_work_as_well() {
    let s = Server::start().await;
    let mut c = client(&s).await;
    let apply = |manager: &str, value: &str| api::ApplyRequest {
        r#ref: reference("configmaps", "a"),
        object: object(&json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"k": value}})),
        field_manager: manager.into(),
        force: false,
        options: None,
    };
    let made = c.apply(apply("m1", "1")).await.unwrap().into_inner();
    assert_eq!(value(&made)["data"]["k"], "1");
    assert_eq!(c.apply(apply("m2", "2")).await.unwrap_err().code(), Code::Aborted, "m1 owns it");
    assert_eq!(c.apply(apply("", "2")).await.unwrap_err().code(), Code::InvalidArgument);

    let mut changed = value(&made);
    changed["data"]["k"] = json!("3");
    let update = api::UpdateRequest { r#ref: reference("configmaps", "a"), object: object(&changed), options: None };
    assert!(c.update(update).await.unwrap().into_inner().revision > made.revision);

    let strict = Some(api::WriteOptions { field_validation: "Strict".into(), ..Default::default() });
    let odd = object(&json!({"metadata": {"name": "odd"}, "nope": 1}));
    let refused = c.create(api::CreateRequest { object: odd.clone(), options: strict, ..create("odd") }).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    let warned = c.create(api::CreateRequest { object: odd, ..create("odd") }).await.unwrap();
    assert_eq!(warned.metadata().get("warning").unwrap(), "unknown field \"nope\"");

    let list = Some(api::ListRequest { resource: resource("", "configmaps"), namespace: "default".into(), ..Default::default() });
    let deleted = c.delete_collection(api::DeleteCollectionRequest { list, ..Default::default() }).await.unwrap().into_inner();
    assert_eq!(deleted.deleted, 2);

    let uid = Some(api::Preconditions { uid: "another".into(), revision: 0 });
    c.create(create("b")).await.unwrap();
    let delete = api::DeleteRequest { r#ref: reference("configmaps", "b"), preconditions: uid, ..Default::default() };
    assert_eq!(c.delete(delete).await.unwrap_err().code(), Code::Aborted);
}

#[tokio::test]
async fn invalid_objects_say_which_field() {
    let s = Server::start().await;
    let mut c = client(&s).await;
    let bad = api::CreateRequest {
        resource: resource("", "pods"),
        object: object(&json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "C!", "image": "i"}]}})),
        ..create("p")
    };
    s.post("/api/v1/namespaces/default/serviceaccounts", &json!({"metadata": {"name": "default"}})).await;
    let refused = c.create(bad).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    let details = refused.get_error_details();
    assert_eq!(details.error_info().unwrap().reason, "Invalid");
    assert_eq!(details.bad_request().unwrap().field_violations[0].field, "spec.containers[0].name");
}

#[tokio::test]
async fn evictions_and_finalizers_come_through_this_door_too() {
    let s = Server::start().await;
    let mut c = client(&s).await;
    s.post("/api/v1/namespaces/default/serviceaccounts", &json!({"metadata": {"name": "default"}})).await;
    let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    assert_eq!(s.post("/api/v1/namespaces/default/pods", &pod).await.0, 201);
    let evict = api::CreateRequest {
        resource: resource("", "pods"),
        object: object(&json!({"metadata": {"name": "p"}})),
        subresource: "eviction".into(),
        name: "p".into(),
        ..create("p")
    };
    c.create(evict.clone()).await.unwrap();
    assert_eq!(c.create(evict).await.unwrap_err().code(), Code::NotFound);

    s.post("/api/v1/namespaces", &json!({"metadata": {"name": "n1"}})).await;
    s.delete("/api/v1/namespaces/n1", &Value::Null).await;
    let namespace = api::ObjectRef {
        resource: resource("", "namespaces"),
        namespace: String::new(),
        name: "n1".into(),
        subresource: "finalize".into(),
    };
    let done = object(&json!({"metadata": {"name": "n1"}, "spec": {}}));
    c.update(api::UpdateRequest { r#ref: Some(namespace), object: done, options: None }).await.unwrap();
    assert_eq!(s.get("/api/v1/namespaces/n1").await.0, 404);
}

#[tokio::test]
async fn health_and_reflection_are_on() {
    use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
    use tonic_reflection::pb::v1::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient, server_reflection_request, server_reflection_response,
    };
    let s = Server::start().await;
    let mut health = HealthClient::new(s.channel(None).await);
    let service = "kontiki.api.v1.Resources".to_owned();
    let status = health.check(HealthCheckRequest { service: service.clone() }).await.unwrap().into_inner();
    assert_eq!(status.status, 1, "SERVING");
    let ask = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(server_reflection_request::MessageRequest::ListServices(String::new())),
    };
    let mut reflection = ServerReflectionClient::new(s.channel(None).await);
    let mut answers = reflection.server_reflection_info(tokio_stream::once(ask)).await.unwrap().into_inner();
    let answer = answers.message().await.unwrap().unwrap();
    let Some(server_reflection_response::MessageResponse::ListServicesResponse(list)) = answer.message_response else {
        panic!("{answer:?}")
    };
    assert!(list.service.iter().any(|found| found.name == service), "{list:?}");
}
