//! RocksDB, real files, threads and the real clock.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kontiki_base::ids::Revision;
use kontiki_base::net::{NetError, PeerNet, PeerRpc, PeerStream};
use kontiki_base::{BoxFuture, MemberId};
use kontiki_proto::env::SystemEnv;

use super::world::{Sink, write};
use crate::engine::rocks::RocksOptions;
use crate::log::LogOptions;
use crate::raft::{Consensus, InitialMember, RaftConfig, RaftNode, StartError, Storage, Timings};

struct Nobody;

impl PeerNet for Nobody {
    fn call(&self, to: MemberId, _addr: &str, _rpc: PeerRpc, _body: Bytes) -> BoxFuture<'static, Result<Bytes, NetError>> {
        Box::pin(async move { Err(NetError::Unreachable { to, why: "alone".into() }) })
    }

    fn open(&self, to: MemberId, _addr: &str, _rpc: PeerRpc) -> BoxFuture<'static, Result<Box<dyn PeerStream>, NetError>> {
        Box::pin(async move { Err(NetError::Unreachable { to, why: "alone".into() }) })
    }
}

fn config(dir: &Path, token: &str) -> RaftConfig {
    RaftConfig {
        name: "m0".into(),
        initial_cluster: vec![InitialMember { name: "m0".into(), peer_urls: vec!["http://m0:1".into()], client_urls: vec![] }],
        cluster_token: token.into(),
        join: false,
        storage: Storage::Dir {
            path: dir.join("data"),
            engine: RocksOptions {
                cache_bytes: 8 << 20,
                write_buffer_bytes: 1 << 20,
                all_write_buffers_bytes: 8 << 20,
                background_jobs: 2,
            },
            log: LogOptions { segment_bytes: 1 << 20, tail_bytes: 64 << 10, spares: 2 },
        },
        net: Arc::new(Nobody),
        env: Arc::new(SystemEnv::new()),
        sink: Arc::new(Sink::default()),
        timings: Timings { flush_bytes: 1 << 20, keep_log_bytes: 256 << 10, ..Timings::default() },
    }
}

fn value(node: &RaftNode, key: &str) -> Option<(Bytes, i64)> {
    let view = node.engine().snapshot();
    kontiki_mvcc::get_at(&*view, key.as_bytes(), Revision::ZERO).unwrap().map(|kv| (kv.value, kv.version))
}

/// Shuts a member down and waits until nothing of it holds the database.
async fn close(node: Arc<RaftNode>) {
    let engine = node.engine();
    node.shutdown().await;
    drop(node);
    for _ in 0..500 {
        if Arc::strong_count(&engine) == 1 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{} holders of the engine are left", Arc::strong_count(&engine) - 1);
}

fn copy_all(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_all(&path, &target);
        } else if let Err(e) = std::fs::copy(&path, &target) {
            assert_eq!(e.kind(), std::io::ErrorKind::NotFound);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_on_real_files_restarts_purges_and_survives_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    let node = RaftNode::start(config(dir.path(), "t")).await.unwrap();
    let body = "x".repeat(4_000);
    for round in 0..8 {
        let writes = (0..100).map(|i| {
            let (node, body) = (node.clone(), body.clone());
            async move { write(&node, &format!("k{round}-{i}"), &body).await.unwrap() }
        });
        futures::future::join_all(writes).await;
        tokio::time::sleep(Duration::from_millis(700)).await;
    }
    node.read_barrier().await.unwrap();
    // 3 MB of log: flushed and purged by itself.
    let mut purged = 0;
    for _ in 0..100 {
        purged = node.inner.log.status().purged.index.get();
        if purged > 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(purged > 0);
    assert!(purged <= node.engine().flushed().index.get());
    // What a power cut would leave: the files as they are.
    let crashed = tempfile::tempdir().unwrap();
    copy_all(&dir.path().join("data"), &crashed.path().join("data"));
    close(node).await;

    for place in [dir.path(), crashed.path()] {
        let node = RaftNode::start(config(place, "t")).await.unwrap();
        node.read_barrier().await.unwrap();
        for round in 0..8 {
            for i in 0..100 {
                assert_eq!(value(&node, &format!("k{round}-{i}")), Some((Bytes::from(body.clone()), 1)));
            }
        }
        write(&node, "again", "v").await.unwrap();
        close(node).await;
    }
    let refused = RaftNode::start(config(dir.path(), "another")).await.err().unwrap();
    assert!(matches!(refused, StartError::DataDir(_)), "{refused}");
}
