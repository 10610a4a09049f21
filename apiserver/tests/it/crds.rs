//! Kinds that definitions add: they are served like every other kind, and go with their definition.

use std::time::Duration;

use http::Method;
use serde_json::{Value, json};

use crate::common::{Server, rv};

const CRDS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const FOOS: &str = "/apis/ex.com/v1/namespaces/default/foos";

fn definition() -> Value {
    let schema = json!({"type": "object", "properties": {
        "spec": {"type": "object", "required": ["replicas"], "properties": {
            "replicas": {"type": "integer", "minimum": 1, "maximum": 10},
            "mode": {"type": "string", "enum": ["a", "b"], "default": "a"},
            "items": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
                      "items": {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}, "v": {"type": "integer"}}}},
        }},
        "status": {"type": "object", "properties": {"replicas": {"type": "integer"}, "selector": {"type": "string"}}},
    }});
    let scale =
        json!({"specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas", "labelSelectorPath": ".status.selector"});
    let version = |name: &str, storage: bool| {
        json!({"name": name, "served": true, "storage": storage, "subresources": {"status": {}, "scale": scale}, "schema": {"openAPIV3Schema": schema},
               "additionalPrinterColumns": [{"name": "Rep", "type": "integer", "jsonPath": ".spec.replicas"}]})
    };
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "foos.ex.com"},
        "spec": {"group": "ex.com", "scope": "Namespaced", "names": {"plural": "foos", "kind": "Foo", "shortNames": ["fo"]},
                 "versions": [version("v1", true), version("v2", false)]},
    })
}

async fn until(s: &Server, path: &str, done: impl Fn(u16, &Value) -> bool) -> Value {
    for _ in 0..300 {
        let (code, value) = s.get(path).await;
        if done(code, &value) {
            return value;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{path} did not come to what was waited for");
}

fn established(code: u16, value: &Value) -> bool {
    let conditions = value["status"]["conditions"].as_array().cloned().unwrap_or_default();
    code == 200 && conditions.iter().any(|c| c["type"] == "Established" && c["status"] == "True")
}

async fn start() -> Server {
    let s = Server::start().await;
    let (code, made) = s.post(CRDS, &definition()).await;
    assert_eq!(code, 201, "{made}");
    until(&s, &format!("{CRDS}/foos.ex.com"), established).await;
    s
}

fn foo(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "ex.com/v1", "kind": "Foo", "metadata": {"name": name}, "spec": spec})
}

#[tokio::test]
async fn a_custom_resource_is_a_kind_like_the_others() {
    let s = start().await;
    let (code, list) = s.get("/apis/ex.com/v1").await;
    assert_eq!((code, &list["resources"][0]["name"]), (200, &json!("foos")));
    let (code, made) = s.post(FOOS, &foo("f", json!({"replicas": 2, "unknown": 1}))).await;
    assert_eq!(code, 201, "{made}");
    assert_eq!((&made["spec"], &made["metadata"]["generation"]), (&json!({"replicas": 2, "mode": "a"}), &json!(1)));
    let (code, invalid) = s.post(FOOS, &foo("g", json!({"replicas": 11, "mode": "z"}))).await;
    let expected = "Foo.ex.com \"g\" is invalid: [spec.mode: Unsupported value: \"z\": supported values: \"a\", \"b\", spec.replicas: Invalid value: 11: spec.replicas in body should be less than or equal to 10]";
    assert_eq!((code, invalid["message"].as_str().unwrap()), (422, expected));
    assert_eq!(s.post(&format!("{FOOS}?fieldValidation=Strict"), &foo("g", json!({"replicas": 1, "nope": 1}))).await.0, 400);

    let (_, patched) = s.merge(&format!("{FOOS}/f"), &json!({"spec": {"replicas": 4}, "status": {"replicas": 9}})).await;
    assert_eq!((&patched["metadata"]["generation"], &patched["status"]), (&json!(2), &Value::Null));
    let (_, with_status) =
        s.merge(&format!("{FOOS}/f/status"), &json!({"status": {"replicas": 4, "selector": "a=b"}, "spec": {"replicas": 9}})).await;
    assert_eq!((&with_status["spec"]["replicas"], &with_status["status"]["replicas"]), (&json!(4), &json!(4)));
    let (code, scale) = s.merge(&format!("{FOOS}/f/scale"), &json!({"spec": {"replicas": 6}})).await;
    assert_eq!((code, &scale["spec"]["replicas"], &scale["status"]["selector"]), (200, &json!(6), &json!("a=b")));
    assert_eq!(s.patch(&format!("{FOOS}/f"), "application/strategic-merge-patch+json", &json!({})).await.0, 415);
    assert_eq!(s.put(&format!("{FOOS}/f"), &foo("f", json!({"replicas": 1}))).await.0, 422, "a resource version is needed");

    let accept = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")];
    let (_, _, table) = s.send(Method::GET, FOOS, &accept, "").await;
    let table: Value = serde_json::from_slice(&table).unwrap();
    assert_eq!((&table["columnDefinitions"][1]["name"], &table["rows"][0]["cells"]), (&json!("Rep"), &json!(["f", 6])));
}

#[tokio::test]
async fn versions_differ_in_their_name() {
    let s = start().await;
    let (_, made) = s.post(FOOS, &foo("f", json!({"replicas": 2}))).await;
    let second = FOOS.replace("/v1/", "/v2/");
    let (code, other) = s.get(&format!("{second}/f")).await;
    assert_eq!((code, &other["apiVersion"], rv(&other)), (200, &json!("ex.com/v2"), rv(&made)));
    let mut watch = s.watch(&format!("{second}?watch=1&resourceVersion=0")).await;
    assert_eq!(watch.next().await.unwrap()["object"]["apiVersion"], "ex.com/v2");
    let (_, changed) = s.merge(&format!("{second}/f"), &json!({"spec": {"replicas": 3}})).await;
    assert_eq!(watch.next().await.unwrap()["object"]["spec"]["replicas"], 3);
    assert_eq!(s.get(&format!("{FOOS}/f")).await.1["apiVersion"], "ex.com/v1");
    assert_eq!(changed["apiVersion"], "ex.com/v2");
}

#[tokio::test]
async fn appliers_merge_lists_by_the_schema() {
    let s = start().await;
    let apply = |manager: &'static str, items: Value| {
        let s = &s;
        async move {
            let body = foo("h", json!({"replicas": 1, "items": items}));
            s.patch(&format!("{FOOS}/h?fieldManager={manager}&force=true"), "application/apply-patch+yaml", &body).await
        }
    };
    let (code, made) = apply("m1", json!([{"name": "a", "v": 1}])).await;
    assert_eq!(code, 201, "{made}");
    let (code, both) = apply("m2", json!([{"name": "b"}])).await;
    assert_eq!((code, &both["spec"]["items"]), (200, &json!([{"name": "a", "v": 1}, {"name": "b"}])));
}

#[tokio::test]
async fn a_definition_takes_its_objects_along() {
    let s = start().await;
    for i in 0..3 {
        assert_eq!(s.post(FOOS, &foo(&format!("f{i}"), json!({"replicas": 1}))).await.0, 201);
    }
    let (_, list) = s.get(FOOS).await;
    let mut watch = s.watch(&format!("{FOOS}?watch=1&resourceVersion={}", rv(&list))).await;
    let (code, going) = s.delete(&format!("{CRDS}/foos.ex.com"), &Value::Null).await;
    assert_eq!((code, &going["kind"]), (200, &json!("CustomResourceDefinition")));
    until(&s, &format!("{CRDS}/foos.ex.com"), |code, _| code == 404).await;
    until(&s, FOOS, |code, value| code == 404 && value == "404 page not found\n").await;
    for _ in 0..3 {
        assert_eq!(watch.event().await.0, "DELETED");
    }
    let prefix = kontiki_base::kv::RangeReq::new(kontiki_base::KeyRange::prefix("/registry/ex.com/"));
    use kontiki_base::kv::Kv as _;
    assert!(s.kv.range(prefix).await.unwrap().kvs.is_empty());
}
