//! Lists: one revision, pages, exact and not older, selectors, tables.

use http::Method;
use serde_json::{Value, json};

use crate::common::{Server, rv};

const CM: &str = "/api/v1/namespaces/default/configmaps";

async fn fill(s: &Server, count: usize) {
    for i in 0..count {
        let labels = json!({"parity": if i % 2 == 0 { "even" } else { "odd" }});
        let (code, _) = s.post(CM, &json!({"metadata": {"name": format!("c{i:02}"), "labels": labels}})).await;
        assert_eq!(code, 201);
    }
}

fn names(list: &Value) -> Vec<String> {
    list["items"].as_array().unwrap().iter().map(|o| o["metadata"]["name"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn pages_show_one_revision() {
    let s = Server::start().await;
    fill(&s, 7).await;
    let (_, first) = s.get(&format!("{CM}?limit=3")).await;
    assert_eq!(first["metadata"]["remainingItemCount"], 4);
    // What happens between the pages is not seen by them.
    s.delete(&format!("{CM}/c05"), &Value::Null).await;
    s.post(CM, &json!({"metadata": {"name": "c035"}})).await;
    let mut all = names(&first);
    let mut token = first["metadata"]["continue"].as_str().unwrap().to_owned();
    loop {
        let (code, page) = s.get(&format!("{CM}?limit=3&continue={token}")).await;
        assert_eq!((code, rv(&page)), (200, rv(&first)));
        all.extend(names(&page));
        match page["metadata"]["continue"].as_str() {
            Some(next) => token = next.to_owned(),
            None => break,
        }
    }
    assert_eq!(all, ["c00", "c01", "c02", "c03", "c04", "c05", "c06"]);
}

#[tokio::test]
async fn selectors_fill_their_pages() {
    let s = Server::start().await;
    fill(&s, 9).await;
    let (_, first) = s.get(&format!("{CM}?limit=3&labelSelector=parity%3Deven")).await;
    assert_eq!(names(&first), ["c00", "c02", "c04"]);
    assert!(first["metadata"]["remainingItemCount"].is_null());
    let token = first["metadata"]["continue"].as_str().unwrap();
    let (_, rest) = s.get(&format!("{CM}?limit=3&labelSelector=parity%3Deven&continue={token}")).await;
    assert_eq!(names(&rest), ["c06", "c08"]);
    let (_, one) = s.get(&format!("{CM}?fieldSelector=metadata.name%3Dc03")).await;
    assert_eq!(names(&one), ["c03"]);
    let (_, everywhere) = s.get("/api/v1/configmaps?labelSelector=parity").await;
    assert_eq!(names(&everywhere).len(), 9);
    assert_eq!(s.get(&format!("{CM}?fieldSelector=data.k%3Dv")).await.0, 400);
}

#[tokio::test]
async fn a_list_is_exact_or_not_older() {
    let s = Server::start().await;
    fill(&s, 2).await;
    let (_, before) = s.get(CM).await;
    s.delete(&format!("{CM}/c00"), &Value::Null).await;
    let at = rv(&before);
    let (_, exact) = s.get(&format!("{CM}?resourceVersion={at}&resourceVersionMatch=Exact")).await;
    assert_eq!((names(&exact), rv(&exact)), (names(&before), at));
    let (_, newer) = s.get(&format!("{CM}?resourceVersion={at}")).await;
    assert!(rv(&newer) > at && names(&newer) == ["c01"]);
    let (code, future) = s.get(&format!("{CM}?resourceVersion={}", at + 1000)).await;
    assert_eq!((code, &future["details"]["causes"][0]["reason"]), (504, &json!("ResourceVersionTooLarge")));
    assert_eq!(s.get(&format!("{CM}?resourceVersionMatch=Exact")).await.0, 422);
}

#[tokio::test]
async fn compacted_pages_say_how_to_go_on() {
    use kontiki_base::kv::Kv as _;
    let s = Server::start().await;
    fill(&s, 5).await;
    let (_, first) = s.get(&format!("{CM}?limit=2")).await;
    fill_more(&s).await;
    s.kv.compact(s.kv.revisions().revision).await.unwrap();
    let token = first["metadata"]["continue"].as_str().unwrap();
    let (code, expired) = s.get(&format!("{CM}?limit=2&continue={token}")).await;
    assert_eq!((code, &expired["reason"]), (410, &json!("Expired")));
    let next = expired["metadata"]["continue"].as_str().unwrap();
    let (code, rest) = s.get(&format!("{CM}?continue={next}")).await;
    assert_eq!((code, names(&rest)), (200, vec!["c02".to_owned(), "c03".into(), "c04".into(), "z".into()]));
    assert_eq!(s.get(&format!("{CM}?resourceVersion=2&resourceVersionMatch=Exact")).await.0, 410);
}

async fn fill_more(s: &Server) {
    assert_eq!(s.post(CM, &json!({"metadata": {"name": "z"}})).await.0, 201);
}

#[tokio::test]
async fn long_lists_are_streamed_whole() {
    let s = Server::start().await;
    let blob = "x".repeat(40_000);
    for i in 0..6 {
        s.post(CM, &json!({"metadata": {"name": format!("big{i}")}, "data": {"k": blob}})).await;
    }
    let (code, list) = s.get(CM).await;
    assert_eq!((code, names(&list).len(), &list["kind"]), (200, 6, &json!("ConfigMapList")));
    assert!(list["items"].as_array().unwrap().iter().all(|o| o["data"]["k"].as_str().unwrap().len() == 40_000));
}

#[tokio::test]
async fn other_forms_of_a_list() {
    let s = Server::start().await;
    fill(&s, 2).await;
    let get = |accept: &'static str| {
        let s = &s;
        async move {
            let (code, _, body) = s.send(Method::GET, CM, &[("accept", accept)], "").await;
            (code, serde_json::from_slice::<Value>(&body).unwrap_or_default())
        }
    };
    let (code, table) = get("application/json;as=Table;v=v1;g=meta.k8s.io,application/json").await;
    assert_eq!((code, &table["kind"]), (200, &json!("Table")));
    assert_eq!(table["rows"].as_array().unwrap().len(), 2);
    let (code, partial) = get("application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io").await;
    assert_eq!((code, &partial["items"][0]["kind"]), (200, &json!("PartialObjectMetadata")));
    assert!(partial["items"][0]["data"].is_null());
    assert_eq!(get("application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io").await.0, 406);
    let (code, headers, body) = s.send(Method::GET, &format!("{CM}/c00"), &[("accept", "application/yaml")], "").await;
    assert_eq!((code, headers["content-type"].to_str().unwrap()), (200, "application/yaml"));
    assert!(String::from_utf8(body.to_vec()).unwrap().contains("name: c00"));
}

#[tokio::test]
async fn collections_are_deleted_by_selector() {
    let s = Server::start().await;
    fill(&s, 6).await;
    let (code, deleted) = s.delete(&format!("{CM}?labelSelector=parity%3Dodd"), &Value::Null).await;
    assert_eq!((code, names(&deleted)), (200, vec!["c01".to_owned(), "c03".into(), "c05".into()]));
    assert_eq!(names(&s.get(CM).await.1), ["c00", "c02", "c04"]);
    assert_eq!(s.delete("/api/v1/configmaps", &Value::Null).await.0, 405);
}
