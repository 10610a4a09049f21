//! Watch: what a client sees on its stream, message by message.

use kontiki_proto::etcd::mvccpb;
use mvccpb::event::EventType;
use pb::watch_request::RequestUnion;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::*;
use crate::watch::ring::RingLimits;

struct Stream {
    tx: mpsc::Sender<pb::WatchRequest>,
    rx: Streaming<pb::WatchResponse>,
}

impl Stream {
    async fn open(served: &Served) -> Self {
        let (tx, requests) = mpsc::channel(64);
        let rx = served.watch().watch(ReceiverStream::new(requests)).await.unwrap().into_inner();
        Self { tx, rx }
    }

    async fn ask(&self, union: RequestUnion) {
        self.tx.send(pb::WatchRequest { request_union: Some(union) }).await.unwrap();
    }

    async fn create(&self, create: pb::WatchCreateRequest) {
        self.ask(RequestUnion::CreateRequest(create)).await;
    }

    async fn next(&mut self) -> pb::WatchResponse {
        tokio::time::timeout(Duration::from_secs(5), self.rx.message()).await.expect("a message in time").unwrap().unwrap()
    }

    async fn silent(&mut self) {
        let more = tokio::time::timeout(Duration::from_millis(150), self.rx.message()).await;
        assert!(more.is_err(), "unexpected: {more:?}");
    }

    /// The next `count` events, however they are packed, as (kind, key, revision).
    async fn events(&mut self, count: usize) -> Vec<(EventType, String, i64)> {
        let mut seen = Vec::new();
        while seen.len() < count {
            seen.extend(self.next().await.events.iter().map(brief));
        }
        seen
    }
}

fn brief(event: &mvccpb::Event) -> (EventType, String, i64) {
    let kv = event.kv.clone().unwrap();
    (event.r#type(), String::from_utf8(kv.key.to_vec()).unwrap(), kv.mod_revision)
}

fn on(key: &str, range_end: &str) -> pb::WatchCreateRequest {
    pb::WatchCreateRequest { key: key.to_owned().into(), range_end: range_end.to_owned().into(), ..Default::default() }
}

#[tokio::test]
async fn live_events_come_after_the_created_message() {
    let served = &served().await;
    served.put("before", "0").await;
    let mut stream = Stream::open(served).await;
    stream.create(pb::WatchCreateRequest { prev_kv: true, ..on("a", "b") }).await;
    let created = stream.next().await;
    assert!(created.created && !created.canceled && created.events.is_empty());
    assert_eq!((created.watch_id, created.header.unwrap().revision), (0, 2));
    served.put("z", "not watched").await;
    served.put("a1", "1").await;
    served.put("a1", "2").await;
    served.kv().delete_range(pb::DeleteRangeRequest { key: "a1".into(), ..Default::default() }).await.unwrap();
    let mut events = Vec::new();
    while events.len() < 3 {
        let message = stream.next().await;
        assert!(message.header.unwrap().revision >= message.events.last().unwrap().kv.as_ref().unwrap().mod_revision);
        events.extend(message.events);
    }
    let seen: Vec<_> = events.iter().map(brief).collect();
    assert_eq!(seen, [(EventType::Put, "a1".into(), 4), (EventType::Put, "a1".into(), 5), (EventType::Delete, "a1".into(), 6)]);
    assert_eq!(events[0].prev_kv, None);
    assert_eq!(events[1].prev_kv.as_ref().unwrap().value, "1");
    assert_eq!(events[2].prev_kv.as_ref().unwrap().value, "2");
    let gone = events[2].kv.as_ref().unwrap();
    assert_eq!((gone.create_revision, gone.version, gone.value.len()), (0, 0, 0), "a deletion has key and revision only");
}

#[tokio::test]
async fn history_is_replayed_with_and_without_memory_of_it() {
    let tiny = HubLimits { ring: RingLimits { revisions: 2, bytes: usize::MAX }, stream_queue: 64 };
    for limits in [HubLimits::default(), tiny] {
        let served = &served_with(limits, Duration::from_secs(600)).await;
        for n in 0..20 {
            served.put(&format!("k{}", n % 3), &n.to_string()).await;
        }
        let mut stream = Stream::open(served).await;
        stream.create(pb::WatchCreateRequest { start_revision: 4, prev_kv: true, ..on("k1", "") }).await;
        assert!(stream.next().await.created);
        let mut events = Vec::new();
        while events.len() < 6 {
            events.extend(stream.next().await.events);
        }
        let revisions: Vec<_> = events.iter().map(|e| brief(e).2).collect();
        assert_eq!(revisions, [6, 9, 12, 15, 18, 21]);
        assert!(events.iter().all(|e| e.prev_kv.is_some()), "each had a version before");
        served.put("k1", "live").await;
        assert_eq!(stream.events(1).await, [(EventType::Put, "k1".into(), 22)]);
    }
}

#[tokio::test]
async fn a_transaction_arrives_in_one_piece() {
    let served = &served().await;
    let mut stream = Stream::open(served).await;
    stream.create(on("\0", "\0")).await;
    stream.next().await;
    let put = |key: &'static str| pb::RequestOp {
        request: Some(pb::request_op::Request::RequestPut(pb::PutRequest { key: key.into(), ..Default::default() })),
    };
    served.kv().txn(pb::TxnRequest { success: vec![put("c"), put("a"), put("b")], ..Default::default() }).await.unwrap();
    let message = stream.next().await;
    let seen: Vec<_> = message.events.iter().map(|e| (brief(e).1, brief(e).2)).collect();
    assert_eq!(seen, [("c".into(), 2), ("a".into(), 2), ("b".into(), 2)], "in the order of the steps");
}

#[tokio::test]
async fn filters_leave_kinds_out() {
    let served = &served().await;
    let mut stream = Stream::open(served).await;
    stream.create(pb::WatchCreateRequest { filters: vec![0], ..on("k", "") }).await;
    stream.create(pb::WatchCreateRequest { filters: vec![1], ..on("k", "") }).await;
    stream.next().await;
    stream.next().await;
    served.put("k", "1").await;
    served.kv().delete_range(pb::DeleteRangeRequest { key: "k".into(), ..Default::default() }).await.unwrap();
    let (first, second) = (stream.next().await, stream.next().await);
    assert_eq!((first.watch_id, brief(&first.events[0]).0), (1, EventType::Put), "id 1 wants no deletions");
    assert_eq!((second.watch_id, brief(&second.events[0]).0), (0, EventType::Delete), "id 0 wants no puts");
    stream.silent().await;
}

#[tokio::test]
async fn refusals_say_why() {
    let served = &served().await;
    let mut stream = Stream::open(served).await;
    stream.create(on("b", "a")).await;
    stream.create(pb::WatchCreateRequest { watch_id: 7, ..on("k", "") }).await;
    stream.create(pb::WatchCreateRequest { watch_id: 7, ..on("k", "") }).await;
    stream.create(pb::WatchCreateRequest { start_revision: -1, ..on("k", "") }).await;
    let refusal = |m: pb::WatchResponse| (m.watch_id, m.created, m.canceled, m.cancel_reason);
    assert_eq!(refusal(stream.next().await), (-1, true, true, "mvcc: watcher range is empty".into()));
    assert_eq!(refusal(stream.next().await), (7, true, false, String::new()));
    let duplicate = "mvcc: duplicate watch ID provided on the WatchStream";
    assert_eq!(refusal(stream.next().await), (-1, true, true, duplicate.into()));
    let negative = "etcdserver: mvcc: required revision has been compacted";
    assert_eq!(refusal(stream.next().await), (-1, true, true, negative.into()));
    stream.create(on("k", "")).await;
    assert_eq!(stream.next().await.watch_id, 0, "ids of the server's choice start at 0");
}

#[tokio::test]
async fn a_watch_of_the_compacted_past_is_told_where_history_begins() {
    let served = &served().await;
    for n in 0..4 {
        served.put("k", &n.to_string()).await;
    }
    served.kv().compact(pb::CompactionRequest { revision: 4, physical: false }).await.unwrap();
    let mut stream = Stream::open(served).await;
    stream.create(pb::WatchCreateRequest { start_revision: 3, ..on("k", "") }).await;
    assert!(stream.next().await.created);
    let end = stream.next().await;
    assert!(end.canceled && !end.created && end.events.is_empty() && end.cancel_reason.is_empty());
    assert_eq!((end.watch_id, end.compact_revision, end.header.unwrap().revision), (0, 4, 0));
    stream.create(pb::WatchCreateRequest { start_revision: 4, ..on("k", "") }).await;
    assert!(stream.next().await.created);
    assert_eq!(stream.events(2).await.iter().map(|e| e.2).collect::<Vec<_>>(), [4, 5], "the compact revision itself can be watched");
}

#[tokio::test]
async fn a_watch_from_the_future_waits_for_it() {
    let served = &served().await;
    let mut stream = Stream::open(served).await;
    stream.create(pb::WatchCreateRequest { start_revision: 4, progress_notify: true, ..on("k", "") }).await;
    stream.next().await;
    served.put("k", "2").await;
    served.put("k", "3").await;
    stream.ask(RequestUnion::ProgressRequest(pb::WatchProgressRequest {})).await;
    stream.silent().await;
    served.put("k", "4").await;
    assert_eq!(stream.events(1).await[0].2, 4);
}

#[tokio::test]
async fn canceling_is_confirmed_and_final() {
    let served = &served().await;
    let mut stream = Stream::open(served).await;
    stream.create(on("k", "")).await;
    stream.next().await;
    stream.ask(RequestUnion::CancelRequest(pb::WatchCancelRequest { watch_id: 99 })).await;
    stream.ask(RequestUnion::CancelRequest(pb::WatchCancelRequest { watch_id: 0 })).await;
    let end = stream.next().await;
    assert_eq!((end.watch_id, end.canceled, end.created, end.cancel_reason.as_str()), (0, true, false, ""));
    served.put("k", "v").await;
    stream.silent().await;
}

#[tokio::test]
async fn progress_is_told_when_asked_and_when_nothing_happens() {
    let served = &served_with(HubLimits::default(), Duration::from_millis(100)).await;
    let mut stream = Stream::open(served).await;
    stream.create(on("quiet", "")).await;
    stream.next().await;
    served.put("other", "v").await;
    stream.ask(RequestUnion::ProgressRequest(pb::WatchProgressRequest {})).await;
    let progress = stream.next().await;
    assert_eq!((progress.watch_id, progress.events.len(), progress.header.unwrap().revision), (-1, 0, 2));
    stream.silent().await;
    stream.create(pb::WatchCreateRequest { progress_notify: true, ..on("quiet", "") }).await;
    assert!(stream.next().await.created);
    served.put("other", "w").await;
    let progress = stream.next().await;
    assert_eq!((progress.watch_id, progress.events.len()), (1, 0));
    assert!(progress.header.unwrap().revision >= 2);
}

#[tokio::test]
async fn a_stream_that_demands_a_leader_ends_without_one() {
    let served = &served().await;
    let (tx, requests) = mpsc::channel(4);
    let mut req = tonic::Request::new(ReceiverStream::new(requests));
    req.metadata_mut().insert("hasleader", "true".parse().unwrap());
    let mut rx = served.watch().watch(req).await.unwrap().into_inner();
    tx.send(pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(on("k", ""))) }).await.unwrap();
    assert!(rx.message().await.unwrap().unwrap().created);
    served.bench.solo.become_(|s| s.leader = None);
    assert_eq!(said(rx.message().await), (Code::Unavailable, "etcdserver: no leader".into()));
}
