//! RocksDB, real files, threads and the real clock.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use kontiki_base::ids::Revision;
use kontiki_base::net::{NetError, PeerHandler, PeerNet, PeerRpc, PeerStream};
use kontiki_base::{BoxFuture, MemberId};
use kontiki_proto::env::SystemEnv;

use super::world::{Sink, write};
use crate::engine::rocks::RocksOptions;
use crate::log::LogOptions;
use crate::net::{PeerServerHandle, TonicPeerNet, serve};
use crate::raft::{Consensus, InitialMember, RaftConfig, RaftNode, Role, StartError, Storage, Timings};

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
    let alone = InitialMember { name: "m0".into(), peer_urls: vec!["http://m0:1".into()], client_urls: vec![] };
    config_of(dir, "m0", vec![alone], token, Arc::new(Nobody))
}

fn config_of(dir: &Path, name: &str, initial_cluster: Vec<InitialMember>, token: &str, net: Arc<dyn PeerNet>) -> RaftConfig {
    RaftConfig {
        name: name.into(),
        initial_cluster,
        cluster_token: token.into(),
        join: false,
        id: None,
        storage: Some(Storage::Dir {
            path: dir.join("data"),
            engine: RocksOptions {
                cache_bytes: 8 << 20,
                write_buffer_bytes: 1 << 20,
                all_write_buffers_bytes: 8 << 20,
                background_jobs: 2,
                ..RocksOptions::default()
            },
            log: LogOptions { segment_bytes: 1 << 20, tail_bytes: 64 << 10, spares: 2 },
        }),
        net,
        env: Arc::new(SystemEnv::new()),
        sink: Arc::new(Sink::default()),
        timings: Timings { flush_bytes: 1 << 20, keep_log_bytes: 256 << 10, ..Timings::default() },
        meter: None,
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
    // A log that has gone is noticed.
    std::fs::remove_dir_all(crashed.path().join("data/log")).unwrap();
    let refused = RaftNode::start(config(crashed.path(), "t")).await.err().unwrap();
    assert!(matches!(&refused, StartError::DataDir(why) if why.contains("log is gone")), "{refused}");
    let refused = RaftNode::start(config(dir.path(), "another")).await.err().unwrap();
    assert!(matches!(refused, StartError::DataDir(_)), "{refused}");
}

/// Takes messages before the member is there to handle them.
#[derive(Default)]
struct Door(Mutex<Option<Arc<dyn PeerHandler>>>);

impl PeerHandler for Door {
    fn handle(&self, rpc: PeerRpc, body: Bytes) -> BoxFuture<'static, Result<Bytes, String>> {
        match &*self.0.lock().unwrap() {
            Some(handler) => handler.handle(rpc, body),
            None => Box::pin(async { Err("still starting".into()) }),
        }
    }

    fn serve(&self, rpc: PeerRpc, stream: Box<dyn PeerStream>) -> BoxFuture<'static, Result<(), String>> {
        match &*self.0.lock().unwrap() {
            Some(handler) => handler.serve(rpc, stream),
            None => Box::pin(async { Err("still starting".into()) }),
        }
    }
}

pub(super) struct Site {
    dir: tempfile::TempDir,
    door: Arc<Door>,
    server: Option<PeerServerHandle>,
    addr: SocketAddr,
    pub(super) node: Option<Arc<RaftNode>>,
}

impl Site {
    pub(super) async fn new() -> Self {
        let door = Arc::new(Door::default());
        let server = serve("127.0.0.1:0".parse().unwrap(), None, door.clone(), None).await.unwrap();
        let addr = server.addr;
        Self { dir: tempfile::tempdir().unwrap(), door, server: Some(server), addr, node: None }
    }

    pub(super) async fn start(&mut self, n: usize, cluster: &[InitialMember]) {
        if self.server.is_none() {
            self.server = Some(serve(self.addr, None, self.door.clone(), None).await.unwrap());
        }
        let config = config_of(self.dir.path(), &format!("m{n}"), cluster.to_vec(), "wire", Arc::new(TonicPeerNet::new(None)));
        let node = RaftNode::start(config).await.unwrap();
        *self.door.0.lock().unwrap() = Some(node.handler());
        self.node = Some(node);
    }

    pub(super) async fn kill(&mut self) {
        self.server.take().unwrap().stop().await;
        *self.door.0.lock().unwrap() = None;
        let node = self.node.take().unwrap();
        let engine = node.engine();
        node.kill().await;
        drop(node);
        while Arc::strong_count(&engine) > 1 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

pub(super) fn cluster_of(sites: &[Site]) -> Vec<InitialMember> {
    let row = |(n, s): (usize, &Site)| InitialMember {
        name: format!("m{n}"),
        peer_urls: vec![format!("http://{}", s.addr)],
        client_urls: vec![],
    };
    sites.iter().enumerate().map(row).collect()
}

pub(super) async fn leader_of(sites: &[Site]) -> usize {
    for _ in 0..1_000 {
        let leads = |s: &Site| s.node.as_ref().is_some_and(|n| n.status().borrow().role == Role::Leader);
        if let Some(found) = sites.iter().position(leads) {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("no leader");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_members_over_the_wire_survive_the_leader_and_send_a_snapshot() {
    let mut sites = vec![Site::new().await, Site::new().await, Site::new().await];
    let cluster = cluster_of(&sites);
    for (n, site) in sites.iter_mut().enumerate() {
        site.start(n, &cluster).await;
    }
    let old = leader_of(&sites).await;
    for (n, site) in sites.iter().enumerate() {
        write(site.node.as_ref().unwrap(), &format!("at{n}"), "v").await.unwrap();
    }
    sites[old].kill().await;
    let survivor = sites[(old + 1) % 3].node.clone().unwrap();
    write(&survivor, "without the leader", "v").await.unwrap();
    let body = "x".repeat(8_000);
    for round in 0..6 {
        let writes = (0..100).map(|i| {
            let (node, body) = (survivor.clone(), body.clone());
            async move { write(&node, &format!("k{round}-{i}"), &body).await.unwrap() }
        });
        futures::future::join_all(writes).await;
        tokio::time::sleep(Duration::from_millis(900)).await;
    }
    let new = leader_of(&sites).await;
    let mut purged = 0;
    for _ in 0..100 {
        purged = sites[new].node.as_ref().unwrap().inner.log.status().purged.index.get();
        if purged > 10 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(purged > 10, "{purged}");
    sites[old].start(old, &cluster).await;
    let back = sites[old].node.clone().unwrap();
    back.read_barrier().await.unwrap();
    assert_eq!(value(&back, "without the leader"), Some((Bytes::from_static(b"v"), 1)));
    for n in 0..3 {
        assert_eq!(value(&back, &format!("at{n}")), Some((Bytes::from_static(b"v"), 1)));
    }
    assert_eq!(value(&back, "k5-99"), Some((Bytes::from(body), 1)));
    // The state is there before the log in front of it is given up.
    let mut gone = 0;
    for _ in 0..100 {
        gone = back.inner.log.status().purged.index.get();
        if gone >= purged {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(gone >= purged, "it got a snapshot: {gone} of {purged}");
    write(&back, "all are here", "v").await.unwrap();
    drop((survivor, back));
    for site in &mut sites {
        site.node.take().unwrap().shutdown().await;
    }
}
