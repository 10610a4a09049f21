//! One suite for every [`Kv`]: in process, over gRPC to our own member, over gRPC to etcd.

use std::sync::Arc;
use std::time::Duration;

use kontiki_base::ids::Revision;
use kontiki_base::key::KeyRange;
use kontiki_base::kv::{
    Compare, DeleteReq, Event, EventKind, Kv, KvError, Op, OpRes, PutReq, RangeReq, Txn, TxnRes, WatchMsg, WatchReq, WatchStream,
};
use kontiki_proto::client::EtcdKv;
use kontiki_proto::env::SystemEnv;

use super::etcd::Etcd;
use super::member::{endpoint, start};

fn put(key: &str, value: &str) -> Op {
    Op::Put(PutReq { key: key.to_owned().into(), value: value.to_owned().into(), ..PutReq::default() })
}

fn get(key: &str) -> RangeReq {
    RangeReq::new(KeyRange::single(key.to_owned()))
}

/// Writes if the key was last written at `revision`; reads it otherwise.
async fn write_if(kv: &dyn Kv, key: &str, revision: Revision, op: Op) -> TxnRes {
    let compare = vec![Compare::mod_equals(key.to_owned(), revision)];
    kv.txn(Txn { compare, success: vec![op], failure: vec![Op::Range(get(key))] }, None).await.unwrap()
}

async fn next(watch: &mut Box<dyn WatchStream>) -> Result<WatchMsg, KvError> {
    tokio::time::timeout(Duration::from_secs(10), watch.next()).await.expect("in time").expect("the store is up")
}

async fn events(watch: &mut Box<dyn WatchStream>, count: usize) -> Vec<Event> {
    let mut seen = Vec::new();
    while seen.len() < count {
        match next(watch).await.unwrap() {
            WatchMsg::Events { events, .. } => seen.extend(events.iter().cloned()),
            WatchMsg::Created { .. } | WatchMsg::Progress { .. } => {}
        }
    }
    seen
}

async fn suite(kv: &dyn Kv) {
    // Create, refuse to create again, update, refuse a stale update, delete: what the API server does all day.
    let created = write_if(kv, "s/a", Revision::ZERO, put("s/a", "1")).await;
    assert!(created.succeeded);
    let at = created.revision;
    let OpRes::Put(inner) = &created.responses[0] else { panic!("a put") };
    assert_eq!(inner.revision, at);
    let again = write_if(kv, "s/a", Revision::ZERO, put("s/a", "x")).await;
    assert!(!again.succeeded && again.revision == at);
    let OpRes::Range(found) = &again.responses[0] else { panic!("a range") };
    assert_eq!((found.kvs[0].mod_revision, found.kvs[0].value.as_ref()), (at, b"1".as_ref()));
    let updated = write_if(kv, "s/a", at, put("s/a", "2")).await;
    assert!(updated.succeeded && updated.revision == at.next());
    assert!(!write_if(kv, "s/a", at, put("s/a", "3")).await.succeeded);
    write_if(kv, "s/b", Revision::ZERO, put("s/b", "1")).await;
    let delete = Op::Delete(DeleteReq { range: KeyRange::single("s/a"), prev_kv: true });
    let deleted = write_if(kv, "s/a", updated.revision, delete).await;
    let OpRes::Delete(inner) = &deleted.responses[0] else { panic!("a deletion") };
    assert_eq!((inner.deleted, inner.prevs[0].value.as_ref()), (1, b"2".as_ref()));

    // Lists: pages at one revision.
    let list = RangeReq { limit: 1, at: updated.revision.next(), ..RangeReq::new(KeyRange::prefix("s/")) };
    let page = kv.range(list).await.unwrap();
    assert_eq!((page.kvs.len(), page.count, page.more, page.revision), (1, 2, true, deleted.revision));
    assert_eq!(kv.range(get("s/a")).await.unwrap().count, 0);
    assert!(kv.status().revision >= deleted.revision);

    // A watch from the past tells it all, goes on live, and says when nothing happens.
    let mut watch = kv.watch(WatchReq { range: KeyRange::prefix("s/"), from: at, prev_kv: true }).await.unwrap();
    assert!(matches!(next(&mut watch).await, Ok(WatchMsg::Created { revision }) if revision == deleted.revision));
    let seen = events(&mut watch, 4).await;
    let brief: Vec<_> = seen.iter().map(|e| (e.kind, e.prev.as_ref().map(|kv| kv.value.clone()))).collect();
    let expected =
        [(EventKind::Put, None), (EventKind::Put, Some("1".into())), (EventKind::Put, None), (EventKind::Delete, Some("2".into()))];
    assert_eq!(brief, expected);
    let elsewhere = write_if(kv, "elsewhere", Revision::ZERO, put("elsewhere", "")).await.revision;
    loop {
        match next(&mut watch).await.unwrap() {
            WatchMsg::Progress { revision } if revision >= elsewhere => break,
            WatchMsg::Progress { .. } => {}
            other => panic!("nothing watched has happened: {other:?}"),
        }
    }
    let live = write_if(kv, "s/c", Revision::ZERO, put("s/c", "1")).await.revision;
    assert_eq!(events(&mut watch, 1).await[0].kv.mod_revision, live);

    // Compaction: what is gone is gone, and says so.
    kv.compact(live).await.unwrap();
    assert!(matches!(kv.compact(live).await, Err(KvError::Compacted { .. })));
    assert!(matches!(kv.compact(Revision::new(1 << 40)).await, Err(KvError::FutureRevision)));
    assert!(matches!(kv.range(RangeReq { at, ..get("s/b") }).await, Err(KvError::Compacted { .. })));
    let mut old = kv.watch(WatchReq { range: KeyRange::prefix("s/"), from: at, prev_kv: false }).await.unwrap();
    let end = loop {
        match next(&mut old).await {
            Ok(WatchMsg::Created { .. }) => {}
            other => break other,
        }
    };
    assert!(matches!(end, Err(KvError::Compacted { compact }) if compact == live), "{end:?}");
    assert!(old.next().await.is_none());
    let twice = kv.txn(Txn { success: vec![put("d", "1"), put("d", "2")], ..Txn::default() }, None).await;
    assert_eq!(twice, Err(KvError::DuplicateKey));
}

fn remote(endpoint: &str) -> EtcdKv {
    EtcdKv::new(&[format!("http://{endpoint}")], None, Arc::new(SystemEnv::new()), Duration::from_secs(7)).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_process() {
    let dir = tempfile::tempdir().unwrap();
    let store = start(dir.path()).await;
    suite(&*store.kv()).await;
    store.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_grpc_to_our_own_member() {
    let dir = tempfile::tempdir().unwrap();
    let store = start(dir.path()).await;
    let kv = remote(&endpoint(&store));
    suite(&kv).await;
    let fenced = kv.txn(Txn::default(), Some(kontiki_base::Term::new(1))).await;
    assert!(matches!(fenced, Err(KvError::Unimplemented(_))));
    store.shutdown().await;
    let gone = kv.range(get("k")).await;
    assert!(matches!(gone, Err(KvError::Unavailable(_) | KvError::Timeout)), "{gone:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_grpc_to_etcd() {
    let Some(etcd) = Etcd::start().await else { return };
    suite(&remote(&etcd.endpoint)).await;
}
