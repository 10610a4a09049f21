//! Watches: initial state, order, selectors, bookmarks, what happens when history is gone.

use serde_json::{Value, json};

use crate::common::{Server, rv};

const CM: &str = "/api/v1/namespaces/default/configmaps";

async fn create(s: &Server, name: &str, label: &str) -> i64 {
    let (code, object) = s.post(CM, &json!({"metadata": {"name": name, "labels": {"w": label}}})).await;
    assert_eq!(code, 201);
    rv(&object)
}

#[tokio::test]
async fn changes_come_in_order_after_the_list() {
    let s = Server::start().await;
    create(&s, "before", "1").await;
    let (_, list) = s.get(CM).await;
    let mut watch = s.watch(&format!("{CM}?watch=1&resourceVersion={}", rv(&list))).await;
    assert_eq!(watch.code, 200);
    let made = create(&s, "a", "1").await;
    let (_, patched) = s.merge(&format!("{CM}/a"), &json!({"data": {"k": "v"}})).await;
    s.delete(&format!("{CM}/a"), &Value::Null).await;
    assert_eq!(watch.event().await, ("ADDED".into(), "a".into(), made));
    assert_eq!(watch.event().await, ("MODIFIED".into(), "a".into(), rv(&patched)));
    let (kind, name, revision) = watch.event().await;
    assert_eq!((kind.as_str(), name.as_str()), ("DELETED", "a"));
    assert!(revision > rv(&patched), "a deletion carries its own revision");
}

#[tokio::test]
async fn selectors_turn_changes_into_comings_and_goings() {
    let s = Server::start().await;
    let (_, list) = s.get(CM).await;
    let mut watch = s.watch(&format!("{CM}?watch=1&labelSelector=w%3D1&resourceVersion={}", rv(&list))).await;
    create(&s, "a", "1").await;
    for label in ["2", "1"] {
        s.merge(&format!("{CM}/a"), &json!({"metadata": {"labels": {"w": label}}})).await;
    }
    create(&s, "other", "9").await;
    s.delete(&format!("{CM}/a"), &Value::Null).await;
    let mut seen = Vec::new();
    for _ in 0..4 {
        let event = watch.next().await.unwrap();
        seen.push((event["type"].as_str().unwrap().to_owned(), event["object"]["metadata"]["labels"]["w"].as_str().unwrap().to_owned()));
    }
    let expected = [("ADDED", "1"), ("DELETED", "1"), ("ADDED", "1"), ("DELETED", "1")];
    assert_eq!(seen, expected.map(|(a, b)| (a.to_owned(), b.to_owned())));
}

#[tokio::test]
async fn a_watch_without_revision_begins_with_the_state() {
    let s = Server::start().await;
    create(&s, "a", "1").await;
    create(&s, "b", "1").await;
    for rv in ["", "&resourceVersion=0"] {
        let mut watch = s.watch(&format!("{CM}?watch=1{rv}&allowWatchBookmarks=true")).await;
        assert_eq!(watch.event().await.1, "a");
        assert_eq!(watch.event().await.1, "b");
        let end = watch.next().await.unwrap();
        assert_eq!(
            (&end["type"], &end["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"]),
            (&json!("BOOKMARK"), &json!("true"))
        );
    }
    let stream = "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&timeoutSeconds=1";
    let mut watch = s.watch(&format!("{CM}?watch=1&{stream}")).await;
    let mut kinds = Vec::new();
    while let Some(event) = watch.next().await {
        kinds.push(event["type"].as_str().unwrap().to_owned());
    }
    assert_eq!(kinds, ["ADDED", "ADDED", "BOOKMARK"]);
}

#[tokio::test]
async fn bookmarks_move_though_nothing_of_the_kind_happens() {
    let s = Server::start().await;
    let (_, list) = s.get(CM).await;
    let mut watch = s.watch(&format!("{CM}?watch=1&resourceVersion={}&allowWatchBookmarks=true&timeoutSeconds=4", rv(&list))).await;
    let (_, other) = s.post("/api/v1/namespaces", &json!({"metadata": {"name": "elsewhere"}})).await;
    let (kind, _, revision) = watch.event().await;
    assert_eq!(kind, "BOOKMARK");
    assert!(revision >= rv(&other) && rv(&other) > rv(&list));
    while let Some(event) = watch.next().await {
        assert_eq!(event["type"], "BOOKMARK");
    }
}

#[tokio::test]
async fn too_old_is_told_within_the_stream() {
    let s = Server::start().await;
    create(&s, "a", "1").await;
    use kontiki_base::kv::Kv as _;
    s.kv.compact(s.kv.revisions().revision).await.unwrap();
    // A kind that nobody asked for before: its cache begins now, and its history is gone.
    let mut watch = s.watch("/apis/batch/v1/namespaces/default/jobs?watch=1&resourceVersion=1").await;
    assert_eq!(watch.code, 200);
    let error = watch.next().await.unwrap();
    assert_eq!((&error["type"], &error["object"]["code"], &error["object"]["reason"]), (&json!("ERROR"), &json!(410), &json!("Expired")));
    assert_eq!(watch.next().await, None);
}

#[tokio::test]
async fn what_the_cache_does_not_know_comes_from_history() {
    let s = Server::start().await;
    let (_, before) = s.get("/api/v1/namespaces").await;
    let roles = "/apis/rbac.authorization.k8s.io/v1/namespaces/default/roles";
    let (code, made) = s.post(roles, &json!({"metadata": {"name": "r", "labels": {"l": "1"}}, "rules": []})).await;
    assert_eq!(code, 201);
    let (_, changed) = s.merge(&format!("{roles}/r"), &json!({"metadata": {"labels": {"l": "2"}}})).await;
    s.delete(&format!("{roles}/r"), &Value::Null).await;
    // Nobody has listed roles so far: their cache begins here, after all of this.
    let mut all = s.watch(&format!("{roles}?watch=1&resourceVersion={}", rv(&before))).await;
    assert_eq!(all.event().await, ("ADDED".into(), "r".into(), rv(&made)));
    assert_eq!(all.event().await, ("MODIFIED".into(), "r".into(), rv(&changed)));
    assert_eq!(all.event().await.0, "DELETED");
    let mut some = s.watch(&format!("{roles}?watch=1&labelSelector=l%3D1&resourceVersion={}", rv(&before))).await;
    assert_eq!(some.event().await.0, "ADDED");
    assert_eq!(some.event().await, ("DELETED".into(), "r".into(), rv(&changed)));
    let (_, live) = s.post(roles, &json!({"metadata": {"name": "q"}, "rules": []})).await;
    assert_eq!(all.event().await, ("ADDED".into(), "q".into(), rv(&live)), "and then it goes on");
}

#[tokio::test]
async fn one_object_alone_is_watched_by_name() {
    let s = Server::start().await;
    let at = create(&s, "a", "1").await;
    let mut watch = s.watch(&format!("{CM}?watch=1&fieldSelector=metadata.name%3Da&resourceVersion={at}")).await;
    create(&s, "b", "1").await;
    s.delete(&format!("{CM}/a"), &Value::Null).await;
    let (kind, name, _) = watch.event().await;
    assert_eq!((kind.as_str(), name.as_str()), ("DELETED", "a"));
    let mut legacy = s.watch("/api/v1/watch/namespaces/default/configmaps?timeoutSeconds=1").await;
    assert_eq!(legacy.event().await.1, "b");
    assert_eq!(legacy.next().await, None);
}

#[tokio::test]
async fn a_revision_that_writes_several_objects_is_seen_whole() {
    use kontiki_proto::api::{self, resources_client::ResourcesClient};
    let s = Server::start().await;
    let (_, list) = s.get(CM).await;
    let mut watch = s.watch(&format!("{CM}?watch=1&resourceVersion={}", rv(&list))).await;
    let mut client = ResourcesClient::new(s.channel(s.admin()).await);
    let resource = Some(api::Resource { group: String::new(), version: "v1".into(), resource: "configmaps".into() });
    let create = |name: &str| api::Write {
        write: Some(api::write::Write::Create(api::CreateRequest {
            resource: resource.clone(),
            namespace: "default".into(),
            object: Some(api::Object { raw: json!({"metadata": {"name": name}}).to_string().into(), ..Default::default() }),
            ..Default::default()
        })),
    };
    let writes = vec![create("x"), create("y"), create("z")];
    let done = client.transact(api::TransactRequest { writes, options: None }).await.unwrap().into_inner();
    for name in ["x", "y", "z"] {
        assert_eq!(watch.event().await, ("ADDED".into(), name.into(), done.revision));
    }
}
