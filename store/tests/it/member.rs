//! A store member of its own in a directory of its own; and what it does across restarts.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use kontiki_base::ids::Revision;
use kontiki_base::key::KeyRange;
use kontiki_base::kv::{Op, PutReq, RangeReq, Txn, WatchMsg, WatchReq};
use kontiki_proto::env::SystemEnv;
use kontiki_store::config::StoreConfig;
use kontiki_store::server::{Store, StoreHandle};

/// Starts a cluster of one and waits until it leads.
pub(crate) async fn start(dir: &Path) -> StoreHandle {
    let store = Store::start(StoreConfig::single("solo", dir.join("data"), Arc::new(SystemEnv::new()))).await.unwrap();
    let mut status = store.status();
    let leads = status.wait_for(|raft| raft.leader.is_some());
    tokio::time::timeout(Duration::from_secs(10), leads).await.expect("a leader in time").unwrap();
    store
}

/// Starts a member again whose files, in this process, somebody may hold a moment longer; or says why it does not start.
pub(crate) async fn start_again(config: impl Fn() -> StoreConfig) -> Result<StoreHandle, String> {
    let starting = async {
        loop {
            match Store::start(config()).await {
                Err(error) if error.to_string().contains("LOCK") => tokio::time::sleep(Duration::from_millis(20)).await,
                other => return other.map_err(|error| error.to_string()),
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(60), starting).await.expect("its files are free")
}

/// Where clients reach it: `host:port`.
pub(crate) fn endpoint(store: &StoreHandle) -> String {
    store.client_addr().unwrap().to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_written_is_there_after_a_restart_and_watches_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let store = start(dir.path()).await;
    let kv = store.kv();
    for n in 0..20 {
        let put = PutReq { key: format!("k{n}").into(), value: n.to_string().into(), ..PutReq::default() };
        let res = kv.txn(Txn { success: vec![Op::Put(put)], ..Txn::default() }, None).await.unwrap();
        assert_eq!(res.revision, Revision::new(2 + n));
    }
    drop(kv);
    store.shutdown().await;

    let store = start(dir.path()).await;
    let kv = store.kv();
    let res = kv.range(RangeReq::new(KeyRange::prefix("k"))).await.unwrap();
    assert_eq!((res.count, res.revision), (20, Revision::new(21)));
    let mut watch = kv.watch(WatchReq { range: KeyRange::prefix("k"), from: Revision::new(15), prev_kv: true }).await.unwrap();
    let Some(Ok(WatchMsg::Created { revision })) = watch.next().await else { panic!("created first") };
    assert_eq!(revision, Revision::new(21));
    let mut seen = Vec::new();
    while seen.len() < 7 {
        if let Some(Ok(WatchMsg::Events { events, .. })) = watch.next().await {
            seen.extend(events.iter().map(|e| e.kv.mod_revision.get()));
        }
    }
    assert_eq!(seen, (15..=21).collect::<Vec<_>>());
    store.shutdown().await;
}
