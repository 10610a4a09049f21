//! The gateway over a real port, spoken to as curl does; and side by side with a real etcd's.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::http::{Bound, Connections, Door, router};
use crate::listen::Listen;
use crate::testing::{Bench, bench};

struct Served {
    bench: Bench,
    door: Door,
}

async fn served() -> Served {
    let bench = bench();
    let any = Listen::plain(SocketAddr::from(([127, 0, 0, 1], 0)));
    let bound = Bound::new(any, None).await.unwrap();
    let door = bound.open(router(&bench.service), &bench.service.env, Connections::default());
    Served { bench, door }
}

/// Sends a request as HTTP/1.1 and reads until the server closes.
async fn post(addr: SocketAddr, path: &str, body: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let head = format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = String::new();
    tokio::time::timeout(Duration::from_secs(10), stream.read_to_string(&mut answer)).await.expect("an answer").unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let chunked = head.to_lowercase().contains("transfer-encoding: chunked");
    (status, if chunked { body.lines().filter(|line| line.starts_with('{')).collect::<Vec<_>>().join("\n") } else { body.to_owned() })
}

async fn ask(addr: SocketAddr, path: &str, body: Value) -> (u16, Value) {
    let (status, text) = post(addr, path, &body.to_string()).await;
    (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
}

/// Reads lines of an answer that does not end until enough have come.
async fn lines(addr: SocketAddr, path: &str, body: &str, count: usize) -> Vec<Value> {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let head = format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    stream.write_all(head.as_bytes()).await.unwrap();
    let (mut seen, mut buffer) = (String::new(), [0; 4096]);
    loop {
        let found: Vec<Value> = seen.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()).filter(Value::is_object).collect();
        if found.len() >= count {
            return found;
        }
        let read = tokio::time::timeout(Duration::from_secs(10), stream.read(&mut buffer)).await.expect("more lines").unwrap();
        assert!(read > 0, "the answer ended: {seen}");
        seen.push_str(std::str::from_utf8(&buffer[..read]).unwrap());
    }
}

#[tokio::test]
async fn a_tour_of_json() {
    let served = served().await;
    let addr = served.door.addr;
    let (status, put) = ask(addr, "/v3/kv/put", json!({ "key": "Zm9v", "value": "YmFy" })).await;
    assert_eq!((status, &put["header"]["revision"], &put["header"]["cluster_id"]), (200, &json!("2"), &json!("193")));
    let (_, got) = ask(addr, "/v3beta/kv/range", json!({ "key": "Zm9v" })).await;
    let kv = json!({ "key": "Zm9v", "create_revision": "2", "mod_revision": "2", "version": "1", "value": "YmFy" });
    assert_eq!((&got["kvs"][0], &got["count"]), (&kv, &json!("1")));
    let txn = json!({ "compare": [{ "result": "EQUAL", "target": "VERSION", "key": "Zm9v", "version": 1 }], "success": [{ "requestRange": { "key": "Zm9v" } }] });
    let (_, done) = ask(addr, "/v3/kv/txn", txn).await;
    assert_eq!((&done["succeeded"], &done["responses"][0]["response_range"]["kvs"][0]), (&json!(true), &kv));
    let (_, lease) = ask(addr, "/v3/lease/grant", json!({ "TTL": "100" })).await;
    let id = lease["ID"].clone();
    let (_, time) = ask(addr, "/v3/kv/lease/timetolive", json!({ "ID": id, "keys": true })).await;
    assert_eq!((&time["grantedTTL"], &time["ID"]), (&json!("100"), &id));
    // Two messages in one body, two answers, and the end.
    let twice = format!("{{\"ID\":{id}}}{{\"ID\":{id}}}");
    let (_, kept) = post(addr, "/v3/lease/keepalive", &twice).await;
    assert_eq!(kept.lines().filter(|line| line.contains("\"result\"") && line.contains("\"TTL\":\"100\"")).count(), 2, "{kept}");
    let (_, members) = ask(addr, "/v3/cluster/member/list", json!({})).await;
    assert_eq!(members["members"][0]["peerURLs"], json!(["http://127.0.0.1:2380"]));
    let (status, _) = post(addr, "/v3/maintenance/status", "").await;
    assert_eq!(status, 200, "a body without anything is a message without anything");
}

#[tokio::test]
async fn errors_have_their_codes() {
    let served = served().await;
    let addr = served.door.addr;
    for (path, body, status, code, text) in [
        ("/v3/kv/put", json!({}), 400, 3, "etcdserver: key is not provided"),
        ("/v3/lease/revoke", json!({ "ID": "77" }), 404, 5, "etcdserver: requested lease not found"),
        ("/v3/kv/range", json!({ "key": "Zm9v", "revision": "99" }), 400, 11, "etcdserver: mvcc: required revision is a future revision"),
        ("/v3/auth/authenticate", json!({}), 400, 9, "etcdserver: authentication is not enabled"),
    ] {
        let (got, error) = ask(addr, path, body).await;
        assert_eq!((got, error), (status, json!({ "error": text, "message": text, "code": code, "details": [] })), "{path}");
    }
    let (status, error) = ask(addr, "/v3/kv/put", json!({ "key": "no base64!" })).await;
    assert_eq!((status, &error["code"]), (400, &json!(3)));
    assert_eq!(post(addr, "/v3/kv/nothing", "{}").await.0, 404);
    served.bench.solo.become_(|s| s.leader = None);
    let (status, error) = ask(addr, "/v3/lease/keepalive", json!({ "ID": "7" })).await;
    assert_eq!((status, &error["error"]["grpc_code"], &error["error"]["http_status"]), (503, &json!(14), &json!("Service Unavailable")));
}

#[tokio::test]
async fn a_watch_goes_on_after_its_request_has_been_said() {
    let served = served().await;
    let addr = served.door.addr;
    let writer = Arc::clone(&served.bench.service);
    let writing = tokio::spawn(async move {
        loop {
            let put = kontiki_base::kv::PutReq { key: "w".into(), value: "v".into(), ..Default::default() };
            writer.put(put).await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let seen = lines(addr, "/v3/watch", r#"{"create_request":{"key":"dw=="}}"#, 3).await;
    writing.abort();
    assert_eq!(seen[0]["result"]["created"], json!(true));
    let event = &seen[1]["result"]["events"][0];
    assert_eq!(
        (&event["kv"]["key"], &event["kv"]["value"], event.get("type")),
        (&json!("dw=="), &json!("dg=="), None),
        "PUT is the default"
    );
}

/// What differs from server to server, and from run to run.
fn plain(mut value: Value) -> Value {
    match &mut value {
        Value::Object(fields) => {
            for gone in ["header", "cluster_id", "member_id", "raft_term", "details", "message", "error"] {
                fields.remove(gone);
            }
            fields.values_mut().for_each(|value| *value = plain(value.take()));
        }
        Value::Array(items) => items.iter_mut().for_each(|value| *value = plain(value.take())),
        _ => {}
    }
    value
}

/// The same requests to etcd's gateway have the same answers.
#[tokio::test]
async fn etcds_own_gateway_says_the_same() {
    const ETCD: &str = "/usr/bin/etcd";
    if !std::path::Path::new(ETCD).exists() {
        eprintln!("skipped: {ETCD} is not on this machine");
        return;
    }
    let free = || std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (client, peer, dir) = (free(), free(), tempfile::tempdir().unwrap());
    let (client_url, peer_url) = (format!("http://{client}"), format!("http://{peer}"));
    let mut etcd = std::process::Command::new(ETCD)
        .arg("--data-dir")
        .arg(dir.path().join("data"))
        .args(["--listen-client-urls", &client_url, "--advertise-client-urls", &client_url, "--listen-peer-urls", &peer_url])
        .args(["--initial-advertise-peer-urls", &peer_url, "--initial-cluster", &format!("default={peer_url}"), "--unsafe-no-fsync"])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let ready = async {
        while TcpStream::connect(client).await.is_err() || !post(client, "/v3/kv/range", r#"{"key":"eA=="}"#).await.1.contains("header") {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let up = tokio::time::timeout(Duration::from_secs(30), ready).await;
    let served = served().await;
    let mut different = Vec::new();
    for (path, body) in [
        ("kv/put", json!({ "key": "Zm9v", "value": "YmFy" })),
        ("kv/put", json!({ "key": "Zm9v", "value": "YmF6", "prev_kv": true })),
        ("kv/range", json!({ "key": "Zm9v" })),
        ("kv/range", json!({ "key": "AA==", "range_end": "AA==", "sortOrder": "DESCEND", "sort_target": 3, "keys_only": true })),
        ("kv/range", json!({ "key": "bm90aGluZw==" })),
        (
            "kv/txn",
            json!({ "compare": [{ "target": "CREATE", "key": "YQ==", "create_revision": "0" }], "success": [{ "request_put": { "key": "YQ==" } }] }),
        ),
        ("kv/deleterange", json!({ "key": "YQ==", "prev_kv": true })),
        ("kv/put", json!({})),
        ("kv/put", json!({ "key": "YQ==", "lease": "77" })),
        ("kv/range", json!({ "key": "Zm9v", "revision": "99" })),
        ("kv/compaction", json!({ "revision": "3" })),
        ("kv/compaction", json!({ "revision": "3" })),
        ("lease/grant", json!({ "TTL": 100, "ID": "7" })),
        ("lease/grant", json!({ "TTL": 100, "ID": 7 })),
        ("lease/leases", json!({})),
        ("lease/keepalive", json!({ "ID": "7" })),
        ("lease/revoke", json!({ "ID": "7" })),
        ("kv/lease/revoke", json!({ "ID": "7" })),
        ("auth/authenticate", json!({ "name": "a", "password": "b" })),
        ("kv/nothing", json!({})),
    ] {
        let (theirs, ours) =
            (ask(client, &format!("/v3/{path}"), body.clone()).await, ask(served.door.addr, &format!("/v3/{path}"), body.clone()).await);
        // etcd 3.4 has an older gateway, which says 412 for what is 400 since 3.5.
        let status = if theirs.0 == 412 { 400 } else { theirs.0 };
        let (theirs, ours) = ((status, plain(theirs.1)), (ours.0, plain(ours.1)));
        let same_text = theirs.1.is_string() && ours.1.is_string();
        if theirs.0 != ours.0 || !(same_text || theirs.1 == ours.1) {
            different.push(format!("{path} {body}: etcd {theirs:?}, here {ours:?}"));
        }
    }
    etcd.kill().unwrap();
    etcd.wait().unwrap();
    assert!(up.is_ok(), "etcd did not start");
    assert!(different.is_empty(), "{}", different.join("\n"));
}
