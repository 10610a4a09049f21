//! The quota, compaction and space of a whole member.

use std::sync::Arc;
use std::time::Duration;

use kontiki_base::ids::Revision;
use kontiki_base::key::KeyRange;
use kontiki_base::kv::{DeleteReq, Kv, KvError, Op, PutReq, RangeReq, Txn};
use kontiki_proto::env::SystemEnv;
use kontiki_store::config::StoreConfig;
use kontiki_store::server::{Store, StoreHandle};

use crate::member;

async fn start(dir: &std::path::Path, change: impl FnOnce(&mut StoreConfig)) -> StoreHandle {
    let mut config = StoreConfig::single("solo", dir.join("data"), Arc::new(SystemEnv::new()));
    change(&mut config);
    let store = Store::start(config).await.unwrap();
    let mut status = store.status();
    let leads = status.wait_for(|raft| raft.leader.is_some());
    tokio::time::timeout(Duration::from_secs(20), leads).await.expect("a leader in time").unwrap();
    store
}

async fn write(kv: &dyn Kv, op: Op) -> Result<Revision, KvError> {
    Ok(kv.txn(Txn { success: vec![op], ..Txn::default() }, None).await?.revision)
}

fn put(key: &str, value: Vec<u8>) -> Op {
    Op::Put(PutReq { key: key.to_owned().into(), value: value.into(), ..PutReq::default() })
}

/// Bytes that do not compress (`SplitMix64`).
fn noise(mut seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (seed ^ (seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bytes.extend_from_slice(&(z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb).to_le_bytes());
    }
    bytes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quota_that_is_used_up_raises_an_alarm_that_stays() {
    let dir = tempfile::tempdir().unwrap();
    let store = start(dir.path(), |config| config.quota_backend_bytes = 24 << 20).await;
    let kv = store.kv();
    let mut written = 0;
    let refused = loop {
        match write(&*kv, put(&format!("k{written}"), noise(written, 256 << 10))).await {
            Ok(_) => written += 1,
            Err(error) => break error,
        }
        assert!(written < 400, "100 MB went into 24");
    };
    assert_eq!(refused, KvError::NoSpace);
    assert!(written > 20, "{written}");
    let service = store.service();
    let alarms = service.room.alarms();
    assert_eq!((alarms.len(), alarms[0].automatic, alarms[0].member), (1, false, service.raft().id));
    // Space that is given back does not take the alarm with it: somebody has to.
    let delete = DeleteReq { range: KeyRange::prefix("k"), prev_kv: false };
    let revision = write(&*kv, Op::Delete(delete)).await.unwrap();
    service.compact(revision, true).await.unwrap();
    service.views.reclaim();
    let shrinks = async {
        while service.views.size() > 12 << 20 {
            service.views.reclaim();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), shrinks).await.unwrap_or_else(|_| panic!("{} bytes are left", service.views.size()));
    assert_eq!(write(&*kv, put("k", vec![])).await, Err(KvError::NoSpace));
    service.alarm(false, alarms[0]).await.unwrap();
    write(&*kv, put("k", vec![])).await.unwrap();
    drop(kv);
    store.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_physical_compaction_has_removed_the_records_when_it_answers() {
    let dir = tempfile::tempdir().unwrap();
    let store = member::start(dir.path()).await;
    let kv = store.kv();
    let mut last = Revision::ZERO;
    for n in 0..2_000_u32 {
        last = write(&*kv, put("k", n.to_be_bytes().to_vec())).await.unwrap();
    }
    store.service().compact(last, true).await.unwrap();
    let view = store.service().views.view();
    let left = view.scan(kontiki_mvcc::Space::Kv, std::ops::Bound::Unbounded, std::ops::Bound::Unbounded, false).count();
    assert_eq!(left, 1);
    drop((view, kv));
    store.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn history_goes_by_itself_after_its_time() {
    let dir = tempfile::tempdir().unwrap();
    let store = start(dir.path(), |config| config.auto_compaction_retention = "500ms".into()).await;
    let kv = store.kv();
    let first = write(&*kv, put("k", vec![1])).await.unwrap();
    let at = |revision| RangeReq { at: revision, ..RangeReq::new(KeyRange::single("k")) };
    assert_eq!(kv.range(at(first)).await.unwrap().count, 1);
    let compacted = async {
        loop {
            write(&*kv, put("k", vec![2])).await.unwrap();
            if matches!(kv.range(at(first)).await, Err(KvError::Compacted { .. })) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), compacted).await.expect("history goes");
    drop(kv);
    store.shutdown().await;
}
