//! Create, get, update, patch, delete: preconditions, subresources, who may.

use http::Method;
use kontiki_base::Term;
use kontiki_mvcc::LocalKv;
use serde_json::{Value, json};

use crate::common::{BOB, Pki, Server, config, rv};

const CM: &str = "/api/v1/namespaces/default/configmaps";

fn cm(name: &str, value: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"k": value}})
}

#[tokio::test]
async fn an_object_lives_from_create_to_delete() {
    let s = Server::start().await;
    let (code, created) = s.post(CM, &cm("a", "1")).await;
    assert_eq!((code, &created["kind"]), (201, &json!("ConfigMap")));
    assert!(rv(&created) > 0 && created["metadata"]["uid"].as_str().unwrap().len() == 36);
    assert_eq!(s.get(&format!("{CM}/a")).await, (200, created.clone()));
    assert_eq!(s.post(CM, &cm("a", "1")).await.0, 409);

    let (code, updated) = s.put(&format!("{CM}/a"), &cm("a", "2")).await;
    assert_eq!((code, &updated["data"]["k"]), (200, &json!("2")));
    assert!(rv(&updated) > rv(&created));
    assert_eq!(updated["metadata"]["uid"], created["metadata"]["uid"]);
    let (_, same) = s.put(&format!("{CM}/a"), &cm("a", "2")).await;
    assert_eq!(rv(&same), rv(&updated), "a write that changes nothing writes nothing");

    let (code, status) = s.delete(&format!("{CM}/a"), &Value::Null).await;
    assert_eq!((code, &status["status"]), (200, &json!("Success")));
    assert_eq!(status["details"]["uid"], created["metadata"]["uid"]);
    let (code, gone) = s.get(&format!("{CM}/a")).await;
    assert_eq!((code, gone["message"].as_str().unwrap()), (404, "configmaps \"a\" not found"));
}

#[tokio::test]
async fn stale_writes_are_refused() {
    let s = Server::start().await;
    let (_, first) = s.post(CM, &cm("a", "1")).await;
    let (_, second) = s.merge(&format!("{CM}/a"), &json!({"data": {"k": "2"}})).await;
    let mut stale = first.clone();
    stale["data"]["k"] = json!("3");
    let (code, refused) = s.put(&format!("{CM}/a"), &stale).await;
    assert_eq!((code, &refused["reason"]), (409, &json!("Conflict")));
    let patch = json!({"metadata": {"resourceVersion": first["metadata"]["resourceVersion"]}, "data": {"k": "3"}});
    assert_eq!(s.merge(&format!("{CM}/a"), &patch).await.0, 409);
    let wrong = json!({"preconditions": {"resourceVersion": first["metadata"]["resourceVersion"]}});
    assert_eq!(s.delete(&format!("{CM}/a"), &wrong).await.0, 409);
    let (_, now) = s.get(&format!("{CM}/a")).await;
    assert_eq!(now, second, "none of them wrote");
}

#[tokio::test]
async fn concurrent_patches_all_count() {
    let s = std::sync::Arc::new(Server::start().await);
    s.post(CM, &cm("a", "1")).await;
    let patches = (0..8).map(|i| {
        let s = s.clone();
        tokio::spawn(async move { s.merge(&format!("{CM}/a"), &json!({"data": {format!("k{i}"): "x"}})).await.0 })
    });
    for patch in futures::future::join_all(patches).await {
        assert_eq!(patch.unwrap(), 200);
    }
    let (_, object) = s.get(&format!("{CM}/a")).await;
    assert_eq!(object["data"].as_object().unwrap().len(), 9);
}

#[tokio::test]
async fn patches_of_every_type() {
    let s = Server::start().await;
    s.post(CM, &cm("a", "1")).await;
    let ops = json!([{"op": "test", "path": "/data/k", "value": "1"}, {"op": "add", "path": "/data/n", "value": "2"}]);
    let (code, object) = s.patch(&format!("{CM}/a"), "application/json-patch+json", &ops).await;
    assert_eq!((code, &object["data"]), (200, &json!({"k": "1", "n": "2"})));
    let (code, object) = s.patch(&format!("{CM}/a"), "application/strategic-merge-patch+json", &json!({"data": {"k": null}})).await;
    assert_eq!((code, &object["data"]), (200, &json!({"n": "2"})));
    let failing = json!([{"op": "test", "path": "/data/n", "value": "9"}]);
    assert_eq!(s.patch(&format!("{CM}/a"), "application/json-patch+json", &failing).await.0, 422);
    assert_eq!(s.patch(&format!("{CM}/a"), "application/json", &json!({})).await.0, 415);
    assert_eq!(s.merge(&format!("{CM}/zz"), &json!({})).await.0, 404);
}

#[tokio::test]
async fn dry_runs_write_nothing() {
    let s = Server::start().await;
    let before = s.kv.revisions().revision;
    assert_eq!(s.post(&format!("{CM}?dryRun=All"), &cm("a", "1")).await.0, 201);
    assert_eq!(s.kv.revisions().revision, before);
    s.post(CM, &cm("a", "1")).await;
    let before = s.kv.revisions().revision;
    assert_eq!(s.put(&format!("{CM}/a?dryRun=All"), &cm("a", "2")).await.1["data"]["k"], "2");
    assert_eq!(s.delete(&format!("{CM}/a?dryRun=All"), &Value::Null).await.0, 200);
    assert_eq!(s.post(&format!("{CM}?dryRun=All"), &cm("a", "1")).await.0, 409);
    assert_eq!(s.kv.revisions().revision, before);
}

#[tokio::test]
async fn generated_names_are_distinct() {
    let s = Server::start().await;
    let body = json!({"metadata": {"generateName": "gen-"}});
    let (_, a) = s.post(CM, &body).await;
    let (_, b) = s.post(CM, &body).await;
    let name = |v: &Value| v["metadata"]["name"].as_str().unwrap().to_owned();
    assert!(name(&a).starts_with("gen-") && name(&a).len() == 9);
    assert_ne!(name(&a), name(&b));
}

#[tokio::test]
async fn namespaces_hold_what_is_in_them() {
    let s = Server::start().await;
    let (code, missing) = s.post("/api/v1/namespaces/nope/configmaps", &cm("a", "1")).await;
    assert_eq!((code, missing["message"].as_str().unwrap()), (404, "namespaces \"nope\" not found"));
    s.post("/api/v1/namespaces", &json!({"metadata": {"name": "n1"}})).await;
    assert_eq!(s.post("/api/v1/namespaces/n1/configmaps", &cm("a", "1")).await.0, 201);
    let (code, deleting) = s.delete("/api/v1/namespaces/n1", &Value::Null).await;
    assert_eq!((code, &deleting["status"]["phase"]), (200, &json!("Terminating")));
    let (code, refused) = s.post("/api/v1/namespaces/n1/configmaps", &cm("late", "1")).await;
    assert_eq!((code, &refused["reason"]), (403, &json!("Forbidden")));
    let done = json!({"metadata": {"name": "n1"}, "spec": {"finalizers": []}});
    assert_eq!(s.put("/api/v1/namespaces/n1/finalize", &done).await.0, 200);
    assert_eq!(s.get("/api/v1/namespaces/n1").await.0, 404);
    assert_eq!(s.delete("/api/v1/namespaces/default", &Value::Null).await.0, 403);
}

fn pod(name: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "i"}]}})
}

#[tokio::test]
async fn a_pod_is_bound_and_deleted_gracefully() {
    let s = Server::start().await;
    let pods = "/api/v1/namespaces/default/pods";
    s.post("/api/v1/namespaces/default/serviceaccounts", &json!({"metadata": {"name": "default"}})).await;
    let (code, created) = s.post(pods, &pod("p")).await;
    assert_eq!(code, 201, "{created}");
    let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n1"}});
    assert_eq!(s.post(&format!("{pods}/p/binding"), &binding).await.0, 201);
    assert_eq!(s.post(&format!("{pods}/p/binding"), &binding).await.0, 409);
    let (_, bound) = s.get("/api/v1/pods?fieldSelector=spec.nodeName%3Dn1").await;
    assert_eq!(bound["items"].as_array().unwrap().len(), 1);
    let (code, status) =
        s.patch(&format!("{pods}/p/status"), "application/strategic-merge-patch+json", &json!({"status": {"phase": "Running"}})).await;
    assert_eq!((code, &status["status"]["phase"], &status["spec"]["nodeName"]), (200, &json!("Running"), &json!("n1")));
    let (code, going) = s.delete(&format!("{pods}/p"), &Value::Null).await;
    assert_eq!((code, &going["metadata"]["deletionGracePeriodSeconds"]), (200, &json!(30)));
    let (code, gone) = s.delete(&format!("{pods}/p"), &json!({"gracePeriodSeconds": 0})).await;
    assert_eq!((code, &gone["kind"]), (200, &json!("Pod")));
    assert_eq!(s.get(&format!("{pods}/p")).await.0, 404);
}

#[tokio::test]
async fn finalizers_hold_an_object_until_the_last_is_gone() {
    let s = Server::start().await;
    let mut object = cm("a", "1");
    object["metadata"]["finalizers"] = json!(["example.com/x"]);
    s.post(CM, &object).await;
    let (_, held) = s.delete(&format!("{CM}/a"), &Value::Null).await;
    assert!(held["metadata"]["deletionTimestamp"].is_string());
    assert_eq!(s.get(&format!("{CM}/a")).await.0, 200);
    assert_eq!(s.merge(&format!("{CM}/a"), &json!({"metadata": {"finalizers": null}})).await.0, 200);
    assert_eq!(s.get(&format!("{CM}/a")).await.0, 404);
}

#[tokio::test]
async fn scale_changes_replicas_alone() {
    let s = Server::start().await;
    let deployments = "/apis/apps/v1/namespaces/default/deployments";
    let template = json!({"metadata": {"labels": {"app": "d"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let d = json!({"metadata": {"name": "d"}, "spec": {"replicas": 1, "selector": {"matchLabels": {"app": "d"}}, "template": template}});
    let (code, created) = s.post(deployments, &d).await;
    assert_eq!(code, 201, "{created}");
    let (code, scale) = s.merge(&format!("{deployments}/d/scale"), &json!({"spec": {"replicas": 3}})).await;
    assert_eq!((code, &scale["kind"], &scale["spec"]["replicas"]), (200, &json!("Scale"), &json!(3)));
    assert_eq!(scale["status"]["selector"], "app=d");
    let mut stale = scale.clone();
    stale["metadata"]["resourceVersion"] = json!("1");
    assert_eq!(s.put(&format!("{deployments}/d/scale"), &stale).await.0, 409);
    assert_eq!(s.get(&format!("{deployments}/d")).await.1["spec"]["replicas"], 3);
}

#[tokio::test]
async fn service_addresses_are_given_once() {
    let s = std::sync::Arc::new(Server::start().await);
    let services = "/api/v1/namespaces/default/services";
    let creations = (0..6).map(|i| {
        let s = s.clone();
        let service = json!({"metadata": {"name": format!("s{i}")}, "spec": {"ports": [{"port": 80}]}});
        tokio::spawn(async move { s.post(services, &service).await })
    });
    let mut addresses = std::collections::BTreeSet::new();
    for created in futures::future::join_all(creations).await {
        let (code, service) = created.unwrap();
        assert_eq!(code, 201, "{service}");
        assert!(addresses.insert(service["spec"]["clusterIP"].as_str().unwrap().to_owned()), "{service}");
    }
    assert!(!addresses.contains("10.96.0.1"));
}

#[tokio::test]
async fn some_kinds_are_created_by_put() {
    let s = Server::start().await;
    let leases = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
    let lease = json!({"metadata": {"name": "n1"}, "spec": {"holderIdentity": "n1", "leaseDurationSeconds": 40}});
    let (code, made) = s.put(&format!("{leases}/n1"), &lease).await;
    assert_eq!(code, 201, "{made}");
    let (code, refused) = s.put(&format!("{leases}/n1"), &lease).await;
    assert_eq!(code, 422, "a lease that is there wants its resource version: {refused}");
    assert_eq!(s.put(&format!("{CM}/zz"), &cm("zz", "1")).await.0, 404);
}

#[tokio::test]
async fn events_are_one_kind_in_two_versions() {
    let s = Server::start().await;
    let event = json!({
        "metadata": {"name": "e"},
        "involvedObject": {"kind": "Pod", "namespace": "default", "name": "p"},
        "reason": "Started",
        "message": "hello",
        "type": "Normal",
    });
    let (code, made) = s.post("/api/v1/namespaces/default/events", &event).await;
    assert_eq!(code, 201, "{made}");
    let (code, other) = s.get("/apis/events.k8s.io/v1/namespaces/default/events/e").await;
    assert_eq!((code, &other["regarding"]["name"], &other["note"]), (200, &json!("p"), &json!("hello")));
    let (_, list) = s.get("/apis/events.k8s.io/v1/namespaces/default/events?fieldSelector=regarding.name%3Dp").await;
    assert_eq!(list["items"][0]["apiVersion"], "events.k8s.io/v1");
    let (_, none) = s.get("/api/v1/namespaces/default/events?fieldSelector=involvedObject.name%3Dq").await;
    assert_eq!(none["items"], json!([]));
}

#[tokio::test]
async fn a_deposed_leader_cannot_write() {
    let s = Server::start().await;
    s.kv.set_leadership(Term::new(3), true);
    let write = |term: &'static str, name: &'static str| {
        let headers = [("content-type", "application/json"), ("kontiki-fence-term", term)];
        let s = &s;
        async move { s.send(Method::POST, CM, &headers, cm(name, "1").to_string()).await }
    };
    let (code, _, body) = write("2", "a").await;
    let status: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((code, &status["reason"]), (409, &json!("Conflict")), "{status}");
    assert_eq!(s.get(&format!("{CM}/a")).await.0, 404);
    assert_eq!(write("3", "a").await.0, 201);
    assert_eq!(write("x", "b").await.0, 400);
}

#[tokio::test]
async fn who_asks_decides() {
    let s = Server::start().await;
    let code = |header: &'static str| {
        let s = &s;
        async move { s.send(Method::GET, CM, &[("authorization", header)], "").await.0 }
    };
    assert_eq!(code("").await, 403, "anonymous");
    assert_eq!(code("Bearer nonsense").await, 401);
    let bob = format!("Bearer {BOB}");
    let (status, _, body) = s.send(Method::GET, CM, &[("authorization", &bob)], "").await;
    let message = serde_json::from_slice::<Value>(&body).unwrap()["message"].as_str().unwrap().to_owned();
    let expected =
        "configmaps is forbidden: User \"bob\" cannot list resource \"configmaps\" in API group \"\" in the namespace \"default\"";
    assert_eq!((status, message.as_str()), (403, expected));

    let request = http::Request::get(format!("https://localhost{CM}")).body(Default::default()).unwrap();
    assert_eq!(s.open(request, s.admin()).await.status(), 200, "a client certificate");
    let request = http::Request::get("https://localhost/api/v1/nodes").body(Default::default()).unwrap();
    let node = Some(s.pki.issue("system:node:n1", &["system:nodes"]));
    assert_eq!(s.open(request, node).await.status(), 200, "a node's certificate");
}

#[tokio::test]
async fn bodies_too_long_or_strange_are_refused() {
    let s = Server::start().await;
    let long = vec![b'x'; (3 << 20) + 1];
    assert_eq!(s.send(Method::POST, CM, &[("content-type", "application/json")], long).await.0, 413);
    assert_eq!(s.send(Method::POST, CM, &[("content-type", "text/plain")], "x").await.0, 415);
    assert_eq!(s.send(Method::POST, CM, &[("content-type", "application/json")], "{").await.0, 400);
    assert_eq!(s.send(Method::GET, CM, &[("accept", "text/html")], "").await.0, 406);
    let (code, headers, _) = s.send(Method::POST, CM, &[("content-type", "application/yaml")], "metadata: {name: y1}\nnope: 1\n").await;
    assert_eq!((code, headers.get("warning").unwrap().to_str().unwrap()), (201, "299 - \"unknown field \\\"nope\\\"\""));
    let strict = s.post(&format!("{CM}?fieldValidation=Strict"), &json!({"metadata": {"name": "y2"}, "nope": 1})).await;
    assert_eq!(strict.0, 400);
}

#[tokio::test]
async fn metrics_and_health_speak() {
    let (pki, kv) = (Pki::new(), LocalKv::new());
    let mut config = config(&pki, &kv);
    config.extra_metrics = Some(std::sync::Arc::new(|text| text.push_str("others_say_total 7\n")));
    let s = Server::start_with(pki, kv, config).await;
    s.get(CM).await;
    let (_, _, text) = s.send(Method::GET, "/metrics", &[], "").await;
    let text = String::from_utf8(text.to_vec()).unwrap();
    assert!(text.contains("apiserver_request_total{door=\"rest\",verb=\"list\",resource=\"configmaps\",code=\"200\"} 1"), "{text}");
    for line in ["kontiki_invariants_broken_total{invariant=\"watch-in-order\"} 0", "others_say_total 7"] {
        assert!(text.lines().any(|l| l == line), "{line} is not in {text}");
    }
    assert!(text.ends_with("# EOF\n") && text.matches("# EOF").count() == 1, "{text}");
    assert_eq!(s.get("/readyz").await, (200, json!("ok")));
    assert!(s.handle.is_ready());
    let (code, version) = s.get("/version").await;
    assert!(code == 200 && version["gitVersion"].as_str().unwrap().starts_with("v1.36."));
    assert_eq!(s.get("/apis/nope.io/v1/x").await, (404, json!("404 page not found\n")));
}

#[tokio::test]
async fn a_stopped_server_ends_its_watches() {
    let Server { handle, kv, pki } = Server::start().await;
    let s = Server { handle, kv, pki };
    let mut watch = s.watch(&format!("{CM}?watch=1&resourceVersion=0")).await;
    let Server { handle, .. } = s;
    let (ended, ()) = tokio::join!(watch.next(), handle.shutdown());
    assert_eq!(ended, None);
}

#[tokio::test]
async fn appliers_own_what_they_apply() {
    let s = Server::start().await;
    let apply = |manager: &'static str, force: bool, body: Value| {
        let s = &s;
        async move {
            let path = format!("{CM}/a?fieldManager={manager}&force={force}");
            let content = "application/apply-patch+yaml";
            s.patch(&path, content, &json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": body})).await
        }
    };
    let (code, made) = apply("m1", false, json!({"x": "1", "y": "1"})).await;
    assert_eq!(code, 201, "{made}");
    assert_eq!(made["metadata"]["managedFields"][0]["operation"], "Apply");
    let (_, same) = apply("m1", false, json!({"x": "1", "y": "1"})).await;
    assert_eq!(rv(&same), rv(&made));
    let (code, conflict) = apply("m2", false, json!({"x": "2"})).await;
    let message = "Apply failed with 1 conflict: conflict with \"m1\": .data.x";
    assert_eq!((code, conflict["message"].as_str().unwrap()), (409, message));
    assert_eq!(apply("m2", true, json!({"x": "2"})).await.1["data"], json!({"x": "2", "y": "1"}));
    let (_, pruned) = apply("m1", false, json!({})).await;
    assert_eq!(pruned["data"], json!({"x": "2"}), "what its only owner leaves out goes");
    assert_eq!(s.patch(&format!("{CM}/a"), "application/apply-patch+yaml", &json!({})).await.0, 422, "a manager is needed");
}

#[tokio::test]
async fn a_budget_is_charged_with_the_eviction() {
    let s = Server::start().await;
    let pods = "/api/v1/namespaces/default/pods";
    s.post("/api/v1/namespaces/default/serviceaccounts", &json!({"metadata": {"name": "default"}})).await;
    for name in ["p", "q"] {
        let mut pod = pod(name);
        pod["metadata"]["labels"] = json!({"app": "x"});
        assert_eq!(s.post(pods, &pod).await.0, 201);
        let running = json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}});
        assert_eq!(s.merge(&format!("{pods}/{name}/status"), &running).await.0, 200);
    }
    let budgets = "/apis/policy/v1/namespaces/default/poddisruptionbudgets";
    let budget = json!({"metadata": {"name": "b"}, "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "x"}}}});
    assert_eq!(s.post(budgets, &budget).await.0, 201);
    let seen =
        json!({"status": {"observedGeneration": 1, "disruptionsAllowed": 1, "currentHealthy": 2, "desiredHealthy": 1, "expectedPods": 2}});
    assert_eq!(s.merge(&format!("{budgets}/b/status"), &seen).await.0, 200);

    let eviction = |name: &str| json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": "default"}});
    let before = s.kv.revisions().revision;
    assert_eq!(s.post(&format!("{pods}/p/eviction"), &eviction("p")).await.0, 201);
    assert_eq!(s.kv.revisions().revision, before.next(), "one revision charges the budget and deletes the pod");
    let (_, charged) = s.get(&format!("{budgets}/b")).await;
    assert_eq!(charged["status"]["disruptionsAllowed"], 0);
    assert!(charged["status"]["disruptedPods"]["p"].is_string());
    let (code, refused) = s.post(&format!("{pods}/q/eviction"), &eviction("q")).await;
    assert_eq!((code, &refused["details"]["causes"][0]["reason"]), (429, &json!("DisruptionBudget")));
    assert_eq!(s.get(&format!("{pods}/q")).await.0, 200);
}

#[tokio::test]
async fn reviews_are_asked_and_not_stored() {
    let s = Server::start().await;
    let review = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    let ask = json!({"spec": {"resourceAttributes": {"verb": "get", "resource": "pods"}}});
    assert_eq!(s.post(review, &ask).await.1["status"]["allowed"], true);
    let bob = format!("Bearer {BOB}");
    let headers = [("authorization", bob.as_str()), ("content-type", "application/json")];
    let (code, _, body) = s.send(Method::POST, review, &headers, ask.to_string()).await;
    let answer: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((code, &answer["status"]["allowed"]), (201, &json!(false)));
    let (_, who) = s.post("/apis/authentication.k8s.io/v1/selfsubjectreviews", &json!({})).await;
    assert_eq!(who["status"]["userInfo"]["username"], "admin");
    let token = |t: &str| json!({"spec": {"token": t}});
    let reviews = "/apis/authentication.k8s.io/v1/tokenreviews";
    assert_eq!(s.post(reviews, &token(BOB)).await.1["status"]["user"]["username"], "bob");
    assert_eq!(s.post(reviews, &token("nope")).await.1["status"]["error"], "invalid bearer token");
}
