//! KV: answers, headers, error texts.

use kontiki_base::limits;
use pb::request_op::Request;
use pb::response_op::Response;
use tokio_stream::StreamExt as _;

use super::*;

fn put_op(key: &str, value: &str) -> pb::RequestOp {
    let put = pb::PutRequest { key: key.to_owned().into(), value: value.to_owned().into(), ..Default::default() };
    pb::RequestOp { request: Some(Request::RequestPut(put)) }
}

fn get_op(key: &str) -> pb::RequestOp {
    pb::RequestOp { request: Some(Request::RequestRange(range(key, ""))) }
}

fn delete_op(key: &str, range_end: &str) -> pb::RequestOp {
    let delete = pb::DeleteRangeRequest { key: key.to_owned().into(), range_end: range_end.to_owned().into(), prev_kv: false };
    pb::RequestOp { request: Some(Request::RequestDeleteRange(delete)) }
}

#[tokio::test]
async fn put_get_delete_and_their_headers() {
    let served = &served().await;
    let put = pb::PutRequest { key: "k".into(), value: "1".into(), prev_kv: true, ..Default::default() };
    let first = served.kv().put(put.clone()).await.unwrap().into_inner();
    let header = first.header.unwrap();
    assert_eq!((header.cluster_id, header.member_id, header.revision, header.raft_term), (0xc1, 0xa11, 2, 1));
    assert_eq!(first.prev_kv, None);
    let second = served.kv().put(pb::PutRequest { value: "2".into(), ..put }).await.unwrap().into_inner();
    assert_eq!(second.prev_kv.unwrap().value, "1");
    let got = served.get("k", "").await;
    let kv = &got.kvs[0];
    assert_eq!((got.count, got.more, got.header.unwrap().revision), (1, false, 3));
    assert_eq!((kv.create_revision, kv.mod_revision, kv.version, kv.value.as_ref()), (2, 3, 2, b"2".as_ref()));
    let old = served.kv().range(pb::RangeRequest { revision: 2, ..range("k", "") }).await.unwrap().into_inner();
    assert_eq!((old.kvs[0].value.as_ref(), old.header.unwrap().revision), (b"1".as_ref(), 3), "the header has the present revision");
    let delete = pb::DeleteRangeRequest { key: "a".into(), range_end: "z".into(), prev_kv: true };
    let gone = served.kv().delete_range(delete.clone()).await.unwrap().into_inner();
    assert_eq!((gone.deleted, gone.prev_kvs.len(), gone.header.unwrap().revision), (1, 1, 4));
    let nothing = served.kv().delete_range(delete).await.unwrap().into_inner();
    assert_eq!((nothing.deleted, nothing.header.unwrap().revision), (0, 4), "nothing deleted, no revision");
}

#[tokio::test]
async fn a_page_says_how_much_there_is() {
    let served = &served().await;
    for n in 0..5 {
        served.put(&format!("p{n}"), "v").await;
    }
    let page = served.kv().range(pb::RangeRequest { limit: 2, ..range("p", "q") }).await.unwrap().into_inner();
    assert_eq!((page.kvs.len(), page.count, page.more), (2, 5, true));
    let count = served.kv().range(pb::RangeRequest { count_only: true, ..range("p", "q") }).await.unwrap().into_inner();
    assert_eq!((count.kvs.len(), count.count, count.more), (0, 5, false));
    assert_eq!(served.get("p", "a").await.count, 0, "an end before the start selects nothing");
}

#[tokio::test]
async fn errors_are_etcds_to_the_letter() {
    let served = &served().await;
    served.put("k", "v").await;
    let put = |put: pb::PutRequest| async { said(served.kv().put(put).await) };
    let key = || pb::PutRequest { key: "k".into(), ..Default::default() };
    let invalid = |text: &str| (Code::InvalidArgument, format!("etcdserver: {text}"));
    assert_eq!(put(pb::PutRequest::default()).await, invalid("key is not provided"));
    assert_eq!(put(pb::PutRequest { value: "x".into(), ignore_value: true, ..key() }).await, invalid("value is provided"));
    assert_eq!(put(pb::PutRequest { lease: 3, ignore_lease: true, ..key() }).await, invalid("lease is provided"));
    assert_eq!(put(pb::PutRequest { key: "absent".into(), ignore_value: true, ..Default::default() }).await, invalid("key not found"));
    let no_lease = (Code::NotFound, "etcdserver: requested lease not found".to_owned());
    assert_eq!(put(pb::PutRequest { lease: 77, ..key() }).await, no_lease);
    let huge = pb::PutRequest { value: vec![0; limits::REQUEST_BYTES].into(), ..key() };
    assert_eq!(put(huge).await, invalid("request is too large"));
    let monstrous = put(pb::PutRequest { value: vec![0; 2 << 20].into(), ..key() }).await;
    assert_eq!(monstrous, (Code::ResourceExhausted, "grpc: received message larger than max (2097160 vs. 2097152)".into()));

    let get = |get: pb::RangeRequest| async { said(served.kv().range(get).await) };
    let out_of_range = |text: &str| (Code::OutOfRange, format!("etcdserver: mvcc: required revision {text}"));
    assert_eq!(get(pb::RangeRequest::default()).await, invalid("key is not provided"));
    assert_eq!(get(pb::RangeRequest { sort_order: 7, ..range("k", "") }).await, invalid("invalid sort option"));
    assert_eq!(get(pb::RangeRequest { revision: 9, ..range("k", "") }).await, out_of_range("is a future revision"));
    served.put("k", "w").await;
    let compact = |revision| async move { served.kv().compact(pb::CompactionRequest { revision, physical: false }).await };
    assert_eq!(compact(3).await.unwrap().into_inner().header.unwrap().revision, 3);
    assert_eq!(get(pb::RangeRequest { revision: 2, ..range("k", "") }).await, out_of_range("has been compacted"));
    assert_eq!(said(compact(3).await), out_of_range("has been compacted"));
    assert_eq!(said(compact(9).await), out_of_range("is a future revision"));
    assert_eq!(said(served.kv().delete_range(pb::DeleteRangeRequest::default()).await), invalid("key is not provided"));
}

#[tokio::test]
async fn a_transaction_answers_step_by_step() {
    let served = &served().await;
    served.put("k", "1").await;
    let compare = pb::Compare {
        key: "k".into(),
        target: pb::compare::CompareTarget::Mod.into(),
        target_union: Some(pb::compare::TargetUnion::ModRevision(2)),
        ..Default::default()
    };
    let txn = pb::TxnRequest { compare: vec![compare], success: vec![put_op("k", "2"), get_op("k")], failure: vec![get_op("k")] };
    let done = served.kv().txn(txn.clone()).await.unwrap().into_inner();
    assert_eq!((done.succeeded, done.header.unwrap().revision), (true, 3));
    let Some(Response::ResponsePut(put)) = &done.responses[0].response else { panic!("a put") };
    let inner = put.header.unwrap();
    assert_eq!((inner.revision, inner.cluster_id, inner.member_id, inner.raft_term), (3, 0, 0, 0));
    let Some(Response::ResponseRange(get)) = &done.responses[1].response else { panic!("a range") };
    assert_eq!((get.kvs[0].value.as_ref(), get.kvs[0].mod_revision), (b"2".as_ref(), 3), "later steps see earlier ones");
    let failed = served.kv().txn(txn).await.unwrap().into_inner();
    assert_eq!((failed.succeeded, failed.header.unwrap().revision), (false, 3), "nothing written, no revision");
    let empty = served.kv().txn(pb::TxnRequest::default()).await.unwrap().into_inner();
    assert_eq!((empty.succeeded, empty.responses.len()), (true, 0));
}

#[tokio::test]
async fn transactions_that_etcd_refuses_are_refused() {
    let served = &served().await;
    let txn = |success: Vec<pb::RequestOp>| async { said(served.kv().txn(pb::TxnRequest { success, ..Default::default() }).await) };
    let invalid = |text: &str| (Code::InvalidArgument, format!("etcdserver: {text}"));
    assert_eq!(txn(vec![put_op("a", "1"); 2]).await, invalid("duplicate key given in txn request"));
    assert_eq!(txn(vec![put_op("b", "1"), delete_op("a", "c")]).await, invalid("duplicate key given in txn request"));
    let many = (0..=limits::TXN_OPS).map(|n| put_op(&format!("{n}"), "")).collect();
    assert_eq!(txn(many).await, invalid("too many operations in txn request"));
    assert_eq!(txn(vec![pb::RequestOp { request: None }]).await, invalid("key not found"));
    assert_eq!(txn(vec![put_op("", "1")]).await, invalid("key is not provided"));
    let wide = (0..limits::TXN_OPS).map(|n| put_op(&format!("{n}"), "")).collect();
    let inner = pb::TxnRequest { success: wide, ..Default::default() };
    let nested = pb::RequestOp { request: Some(Request::RequestTxn(inner)) };
    assert_eq!(txn(vec![nested]).await, invalid("too many operations in txn request"), "the outer step leaves 127");
    assert_eq!(served.get("\0", "\0").await.header.unwrap().revision, 1, "nothing was written");
}

#[tokio::test]
async fn a_streamed_range_is_the_range() {
    let served = &served().await;
    for n in 0..137 {
        served.put(&format!("s{n:03}"), &"x".repeat(n)).await;
    }
    for limit in [0, 1, 10, 25, 137, 500] {
        let req = pb::RangeRequest { limit, ..range("s", "t") };
        let whole = served.kv().range(req.clone()).await.unwrap().into_inner();
        let mut stream = served.kv().range_stream(req).await.unwrap().into_inner();
        let mut kvs = Vec::new();
        let mut last = None;
        while let Some(piece) = stream.next().await {
            let piece = piece.unwrap().range_response.unwrap();
            assert!(last.is_none(), "only the last piece has a header");
            kvs.extend(piece.kvs.clone());
            last = piece.header.is_some().then_some(piece);
        }
        let last = last.unwrap();
        assert_eq!((kvs, last.count, last.more), (whole.kvs, whole.count, whole.more), "limit {limit}");
    }
    let sorted = pb::RangeRequest { sort_order: 2, ..range("s", "t") };
    let text = "RangeStream does not support custom sort orders".to_owned();
    assert_eq!(said(served.kv().range_stream(sorted).await), (Code::Unimplemented, text));
}

#[tokio::test]
async fn without_a_quorum_only_local_reads_are_answered() {
    let served = &served().await;
    served.put("k", "v").await;
    served.bench.solo.cut_off.store(true, std::sync::atomic::Ordering::Relaxed);
    let timed_out = (Code::Unavailable, "etcdserver: request timed out".to_owned());
    assert_eq!(said(served.kv().range(range("k", "")).await), timed_out);
    let local = served.kv().range(pb::RangeRequest { serializable: true, ..range("k", "") }).await.unwrap().into_inner();
    assert_eq!(local.count, 1);
    served.bench.solo.become_(|s| s.leader = None);
    let mut demanding = tonic::Request::new(pb::RangeRequest { serializable: true, ..range("k", "") });
    demanding.metadata_mut().insert("hasleader", "true".parse().unwrap());
    assert_eq!(said(served.kv().range(demanding).await), (Code::Unavailable, "etcdserver: no leader".into()));
    served.bench.solo.become_(|s| s.role = crate::raft::Role::Learner);
    let learner = (Code::FailedPrecondition, "etcdserver: rpc not supported for learner".to_owned());
    assert_eq!(said(served.kv().range(range("k", "")).await), learner);
}

#[tokio::test]
async fn calls_are_counted_by_their_outcome() {
    let served = &served().await;
    served.put("k", "v").await;
    said(served.kv().put(pb::PutRequest::default()).await);
    let text = served.bench.service.metrics.text(&served.bench.service.sample());
    let labels = "grpc_type=\"unary\",grpc_service=\"etcdserverpb.KV\",grpc_method=\"Put\"";
    for line in [
        format!("grpc_server_started_total{{{labels}}} 2"),
        format!("grpc_server_handled_total{{grpc_code=\"OK\",{labels}}} 1"),
        format!("grpc_server_handled_total{{grpc_code=\"InvalidArgument\",{labels}}} 1"),
    ] {
        assert!(text.contains(&line), "{line} is not in\n{text}");
    }
}
