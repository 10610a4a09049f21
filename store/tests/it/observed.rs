//! What dashboards and alert rules read: every name that etcd's own rules use is there, with what happened in it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use kontiki_base::kv::{Op, PutReq, Txn};
use kontiki_proto::env::SystemEnv;
use kontiki_store::config::{Listen, StoreConfig};
use kontiki_store::server::Store;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::cluster::{leader, start_three};

/// The expressions of the alert rules that etcd ships (`contrib/mixin`), and the queries of its dashboard.
const RULES: &[&str] = &[
    "max without (endpoint) (sum without (instance) (up{job=~\".*etcd.*\"} == bool 0) or count without (To) (sum without (instance) (rate(etcd_network_peer_sent_failures_total[120s])) > 0.01)) > 0",
    "etcd_server_has_leader == 0",
    "increase((max without (instance) (etcd_server_leader_changes_seen_total) or 0*absent(etcd_server_leader_changes_seen_total))[15m:1m]) >= 4",
    "100 * sum(rate(grpc_server_handled_total{grpc_code=~\"Unknown|FailedPrecondition|ResourceExhausted|Internal|Unavailable|DataLoss|DeadlineExceeded\"}[5m])) without (grpc_type, grpc_code) / sum(rate(grpc_server_handled_total[5m])) without (grpc_type, grpc_code) > 1",
    "histogram_quantile(0.99, sum(rate(grpc_server_handling_seconds_bucket{grpc_method!=\"Defragment\", grpc_type=\"unary\"}[5m])) without(grpc_type)) > 0.15",
    "histogram_quantile(0.99, rate(etcd_network_peer_round_trip_time_seconds_bucket[5m])) > 0.15",
    "rate(etcd_server_proposals_failed_total[15m]) > 5",
    "histogram_quantile(0.99, rate(etcd_disk_wal_fsync_duration_seconds_bucket[5m])) > 0.5",
    "histogram_quantile(0.99, rate(etcd_disk_backend_commit_duration_seconds_bucket[5m])) > 0.25",
    "(last_over_time(etcd_mvcc_db_total_size_in_use_in_bytes[5m]) / last_over_time(etcd_mvcc_db_total_size_in_bytes[5m])) < 0.5",
    "sum(rate(grpc_server_started_total{grpc_type=\"unary\"}[5m]))",
    "sum(grpc_server_started_total{grpc_service=\"etcdserverpb.Watch\",grpc_type=\"bidi_stream\"}) - sum(grpc_server_handled_total{grpc_service=\"etcdserverpb.Watch\",grpc_type=\"bidi_stream\"})",
    "process_resident_memory_bytes + process_open_fds + process_max_fds + process_cpu_seconds_total + process_start_time_seconds",
    "rate(etcd_network_client_grpc_received_bytes_total[5m]) + rate(etcd_network_client_grpc_sent_bytes_total[5m])",
    "sum(rate(etcd_network_peer_received_bytes_total[5m])) by (instance) + sum(rate(etcd_network_peer_sent_bytes_total[5m])) by (instance)",
    "etcd_server_proposals_pending + etcd_server_proposals_committed_total + etcd_server_proposals_applied_total",
    "etcd_debugging_mvcc_watcher_total + etcd_debugging_mvcc_watch_stream_total + etcd_mvcc_put_total + etcd_mvcc_range_total + etcd_mvcc_delete_total + etcd_mvcc_txn_total",
];

/// Rules over what only happens when something fails: they have no samples until then.
const UNTIL_IT_FAILS: &[&str] = &["etcd_network_peer_sent_failures_total", "grpc_server_handling_seconds_bucket"];

/// The metrics that an expression names.
fn names(expression: &str) -> Vec<&str> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words = expression.split(|c: char| !word(c));
    words.filter(|word| ["etcd_", "grpc_server_", "process_"].iter().any(|head| word.starts_with(head))).collect()
}

async fn get(addr: SocketAddr, path: &str) -> (u16, String) {
    let mut stream = tokio::net::TcpStream::connect(addr).await.unwrap();
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    (status, answer.split_once("\r\n\r\n").unwrap().1.to_owned())
}

/// The sum of all samples of a metric whose labels have this in them.
fn value(text: &str, name: &str, labels: &str) -> f64 {
    let samples = text.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        let (label, value) = rest.rsplit_once(' ')?;
        ((label.is_empty() || label.starts_with('{')) && label.contains(labels)).then(|| value.parse::<f64>().unwrap())
    });
    samples.sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_name_of_the_alert_rules_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let mut stores = start_three(dir.path()).await;
    let lead = leader(&stores).await;
    for n in 0..20 {
        let put = PutReq { key: format!("k{n}").into(), value: "v".into(), ..PutReq::default() };
        stores[(lead + 1) % 3].kv().txn(Txn { success: vec![Op::Put(put)], ..Txn::default() }, None).await.unwrap();
    }
    let others: Vec<String> = stores.iter().map(|s| format!("{:x}", s.status().borrow().id.get())).collect();
    for (place, store) in stores.iter().enumerate() {
        let addr = store.client_addr().unwrap();
        assert_eq!(get(addr, "/health").await, (200, "{\"health\":\"true\",\"reason\":\"\"}".into()));
        let (_, text) = get(addr, "/metrics").await;
        for name in RULES.iter().flat_map(|rule| names(rule)) {
            let there = text.lines().any(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])));
            // Only who leads sends heartbeats, whose way there and back is measured.
            let elsewhere = place != lead && name.starts_with("etcd_network_peer_round_trip");
            assert!(there || elsewhere || UNTIL_IT_FAILS.contains(&name), "{name} is not in\n{text}");
        }
        assert_eq!(value(&text, "etcd_server_has_leader", ""), 1.0);
        assert!(value(&text, "etcd_server_leader_changes_seen_total", "") >= 1.0);
        assert!(value(&text, "etcd_disk_wal_fsync_duration_seconds_count", "") > 0.0, "entries were synced");
        assert!(value(&text, "etcd_disk_backend_commit_duration_seconds_count", "") > 0.0, "and applied");
        assert!(
            value(&text, "etcd_network_peer_sent_bytes_total", "To") + value(&text, "etcd_network_peer_received_bytes_total", "From") > 0.0
        );
        if place == lead {
            for (other, id) in others.iter().enumerate().filter(|(other, _)| *other != lead) {
                let label = format!("To=\"{id}\"");
                assert!(value(&text, "etcd_network_peer_sent_bytes_total", &label) > 0.0, "to {other}: {text}");
            }
            assert!(value(&text, "etcd_network_peer_round_trip_time_seconds_count", "To") > 0.0, "heartbeats go there and back");
        } else {
            let label = format!("From=\"{}\"", others[lead]);
            assert!(value(&text, "etcd_network_peer_received_bytes_total", &label) > 0.0, "of the leader: {text}");
        }
    }
    // A member that is gone shows in the leader's failures, by its name.
    let gone = stores.remove((lead + 1) % 3);
    let label = format!("To=\"{:x}\"", gone.status().borrow().id.get());
    gone.shutdown().await;
    let place = leader(&stores).await;
    let counted = async {
        let addr = stores[place].client_addr().unwrap();
        while value(&get(addr, "/metrics").await.1, "etcd_network_peer_sent_failures_total", &label) < 1.0 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), counted).await.expect("failures are counted");
    for store in stores {
        store.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_for_metrics_serves_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let any = Listen::plain(SocketAddr::from(([127, 0, 0, 1], 0)));
    let mut config = StoreConfig::single("solo", dir.path().join("data"), Arc::new(SystemEnv::new()));
    (config.listen_clients, config.listen_metrics, config.extensive_metrics) = (vec![any, any], vec![any], true);
    let store = Store::start(config).await.unwrap();
    store.status().wait_for(|raft| raft.leader.is_some()).await.unwrap();
    let [first, second, metrics] = store.addrs()[..] else { panic!("three ports") };
    for client in [first, second] {
        assert_eq!(get(client, "/version").await.0, 200);
    }
    tonic::transport::Endpoint::try_from(format!("http://{second}")).unwrap().connect().await.unwrap();
    for (path, status) in
        [("/metrics", 200), ("/health", 200), ("/livez", 200), ("/readyz?verbose", 200), ("/version", 404), ("/v3/kv/range", 404)]
    {
        assert_eq!(get(metrics, path).await.0, status, "{path}");
    }
    let mut kv = kontiki_proto::etcd::etcdserverpb::kv_client::KvClient::connect(format!("http://{first}")).await.unwrap();
    let put = kontiki_proto::etcd::etcdserverpb::PutRequest { key: "k".into(), ..Default::default() };
    kv.put(put).await.unwrap();
    let counted = async {
        // The call is counted when its last frame has gone, which the client may see first.
        while value(&get(metrics, "/metrics").await.1, "grpc_server_handling_seconds_count", "grpc_method=\"Put\"") < 1.0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), counted).await.expect("how long the call took");
    let (_, text) = get(metrics, "/metrics").await;
    let labels = "grpc_type=\"unary\",grpc_service=\"etcdserverpb.KV\",grpc_method=\"Put\"";
    for (name, labels) in [
        ("grpc_server_started_total", labels.to_owned()),
        ("grpc_server_handled_total", format!("grpc_code=\"OK\",{labels}")),
        ("grpc_server_msg_received_total", labels.to_owned()),
        ("grpc_server_msg_sent_total", labels.to_owned()),
        ("etcd_server_client_requests_total", "type=\"unary\",client_api_version=\"unknown\"".to_owned()),
    ] {
        assert!(value(&text, name, &labels) >= 1.0, "{name}{{{labels}}} in\n{text}");
    }
    store.shutdown().await;
}
