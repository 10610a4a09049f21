//! Snapshots in a circle: from a member, through etcd's own tools and a real etcd, and back.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use bytes::Bytes;
use kontiki_base::env::Env as _;
use kontiki_base::ids::Revision;
use kontiki_base::key::KeyRange;
use kontiki_base::kv::{Kv, KvError, Op, PutReq, RangeReq, RangeRes, Txn};
use kontiki_mvcc::NEVER_COMPACTED;
use kontiki_proto::client::EtcdKv;
use kontiki_proto::env::SystemEnv;
use kontiki_proto::etcd::etcdserverpb as pb;
use kontiki_store::engine::Engine as _;
use kontiki_store::engine::rocks::{RocksEngine, RocksOptions};
use kontiki_store::raft::node::InitialMember;
use kontiki_store::snapshot::fetch::{Remote, save};
use kontiki_store::snapshot::file::{SnapshotFile, status};
use kontiki_store::snapshot::restore::{BUMP, Plan, Restored, restore};
use kontiki_store::snapshot::{Progress, SnapshotError};
use pb::kv_client::KvClient;
use pb::lease_client::LeaseClient;

use super::etcd::{Etcd, free_port, present};
use super::member::{endpoint, start};

fn quiet(_: Progress) {}

fn etcdctl(args: &[&str]) -> String {
    let output = Command::new("/usr/bin/etcdctl").env("ETCDCTL_API", "3").args(args).output().unwrap();
    assert!(output.status.success(), "etcdctl {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A remote store, as clients see it.
fn client(endpoint: &str) -> EtcdKv {
    let env = Arc::new(SystemEnv::new());
    EtcdKv::new(&[format!("http://{endpoint}")], None, env, std::time::Duration::from_secs(10)).unwrap()
}

async fn put(kv: &dyn Kv, puts: &[(Bytes, Bytes)]) -> Revision {
    let success = puts.iter().map(|(key, value)| Op::Put(PutReq { key: key.clone(), value: value.clone(), ..PutReq::default() })).collect();
    kv.txn(Txn { success, ..Txn::default() }, None).await.unwrap().revision
}

/// Writes what is worth keeping: many keys, zeros in them, large values, several writes of a transaction, deletions, a lease, history that
/// is compacted and history that is not.
async fn populate(endpoint: &str) {
    let kv = client(endpoint);
    for n in 0..150_u32 {
        put(&kv, &[(format!("k{:03}", n % 100).into(), format!("value {n}").into())]).await;
    }
    put(&kv, &[(Bytes::from_static(b"z\0\0ero"), "a".into()), ("same".into(), "b".into()), ("large".into(), vec![7; 600_000].into())])
        .await;
    let channel = tonic::transport::Endpoint::try_from(format!("http://{endpoint}")).unwrap().connect().await.unwrap();
    let mut leases = LeaseClient::new(channel.clone());
    leases.lease_grant(pb::LeaseGrantRequest { id: 77, ttl: 5_000 }).await.unwrap();
    let mut raw = KvClient::new(channel);
    raw.put(pb::PutRequest { key: "leased".into(), value: "v".into(), lease: 77, ..pb::PutRequest::default() }).await.unwrap();
    raw.delete_range(pb::DeleteRangeRequest { key: "k050".into(), ..pb::DeleteRangeRequest::default() }).await.unwrap();
    raw.compact(pb::CompactionRequest { revision: 60, physical: true }).await.unwrap();
    put(&kv, &[("k050".into(), "again".into())]).await;
    raw.delete_range(pb::DeleteRangeRequest { key: "k051".into(), ..pb::DeleteRangeRequest::default() }).await.unwrap();
}

/// Everything, now or as of a revision.
async fn all(kv: &dyn Kv, at: i64) -> Result<RangeRes, KvError> {
    let everything = KeyRange::from_wire(Bytes::from_static(&[0]), Bytes::from_static(&[0]));
    kv.range(RangeReq { at: Revision::new(at), ..RangeReq::new(everything) }).await
}

/// Both have the same keys with the same numbers, now and before.
async fn same(left: &dyn Kv, right: &dyn Kv) {
    let (one, two) = (all(left, 0).await.unwrap(), all(right, 0).await.unwrap());
    assert_eq!(one.revision, two.revision);
    assert!(one.kvs == two.kvs, "{} keys and {} keys", one.kvs.len(), two.kvs.len());
    assert!(one.kvs.len() > 100);
    for at in [60, 100, one.revision.get() - 2] {
        assert!(all(left, at).await.unwrap().kvs == all(right, at).await.unwrap().kvs, "as of {at}");
    }
    for kv in [left, right] {
        assert!(matches!(all(kv, 59).await, Err(KvError::Compacted { .. })));
    }
}

async fn time_to_live(endpoint: &str, id: i64) -> pb::LeaseTimeToLiveResponse {
    let channel = tonic::transport::Endpoint::try_from(format!("http://{endpoint}")).unwrap().connect().await.unwrap();
    LeaseClient::new(channel).lease_time_to_live(pb::LeaseTimeToLiveRequest { id, keys: true }).await.unwrap().into_inner()
}

/// A plan that keeps every number: as etcd restores.
pub(crate) fn exact(dir: &Path) -> Plan {
    Plan {
        dir: dir.join("data"),
        name: "solo".into(),
        initial_cluster: vec![InitialMember { name: "solo".into(), peer_urls: vec!["http://127.0.0.1:0".into()], client_urls: Vec::new() }],
        cluster_token: "kontiki".into(),
        bump_revision: 0,
        mark_compacted: false,
        skip_hash_check: false,
    }
}

pub(crate) async fn restored(file: &Path, plan: Plan) -> Restored {
    restore(SnapshotFile::open(file).unwrap(), plan, SystemEnv::new().random_u64(), &quiet).await.unwrap()
}

/// The engine of a directory is sound, to the last record.
fn sound(dir: &Path) {
    let engine = RocksEngine::open(&dir.join("data/engine"), RocksOptions::default()).unwrap();
    kontiki_mvcc::verify(&*engine.snapshot()).unwrap();
}

async fn save_from(endpoint: &str, to: &Path) -> PathBuf {
    let file = to.join("snapshot.db");
    let remote = Remote { endpoints: vec!["http://127.0.0.1:1".into(), format!("http://{endpoint}")], ..Remote::default() };
    let saved = save(&remote, &file, &SystemEnv::new(), &quiet).await.unwrap();
    assert_eq!((saved.endpoint.as_str(), saved.bytes), (remote.endpoints[1].as_str(), std::fs::metadata(&file).unwrap().len()));
    file
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_serves_what_our_member_gave_to_its_own_tools() {
    if !present() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let store = start(dir.path()).await;
    populate(&endpoint(&store)).await;

    let file = dir.path().join("snapshot.db");
    let name = file.to_str().unwrap();
    etcdctl(&["--endpoints", &endpoint(&store), "snapshot", "save", name]);
    let seen = status(&SnapshotFile::open(&file).unwrap(), &quiet).unwrap();
    let told = etcdctl(&["snapshot", "status", name, "-w", "fields"]);
    for line in [
        format!("\"Hash\" : {}\n", seen.hash),
        format!("\"Revision\" : {}\n", seen.revision),
        format!("\"Keys\" : {}\n", seen.total_keys),
        format!("\"Size\" : {}\n", seen.total_size),
    ] {
        assert!(told.contains(&line), "{line} is not in {told}");
    }

    let peer = format!("http://127.0.0.1:{}", free_port());
    let data = dir.path().join("etcd");
    let data_name = data.to_str().unwrap();
    let cluster = format!("default={peer}");
    let flags = ["--data-dir", data_name, "--initial-cluster", &cluster, "--initial-advertise-peer-urls", &peer];
    etcdctl(&[&["snapshot", "restore", name][..], &flags].concat());
    let etcd = Etcd::start_on(&data, &peer, None).await;
    let (ours, theirs) = (client(&endpoint(&store)), client(&etcd.endpoint));
    same(&ours, &theirs).await;
    let lease = time_to_live(&etcd.endpoint, 77).await;
    assert_eq!((lease.granted_ttl, lease.keys), (5_000, vec![Bytes::from_static(b"leased")]));
    // It can be written, too: pages of ours are changed and split by bbolt itself.
    for n in 0..200 {
        put(&theirs, &[(format!("k{n:03}-after").into(), vec![1; 900].into())]).await;
    }
    etcdctl(&["--endpoints", &etcd.endpoint, "defrag"]);
    assert_eq!(all(&theirs, 0).await.unwrap().kvs.len(), all(&ours, 0).await.unwrap().kvs.len() + 200);
    store.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_of_etcd_becomes_a_member() {
    let Some(etcd) = Etcd::start().await else { return };
    populate(&etcd.endpoint).await;
    let dir = tempfile::tempdir().unwrap();
    let file = save_from(&etcd.endpoint, dir.path()).await;
    let done = restored(&file, exact(dir.path())).await;
    assert_eq!((done.compact, done.leases, done.revision), (Revision::new(60), 1, done.was));
    sound(dir.path());

    let store = start(dir.path()).await;
    let (ours, theirs) = (client(&endpoint(&store)), client(&etcd.endpoint));
    same(&ours, &theirs).await;
    assert_eq!(time_to_live(&endpoint(&store), 77).await.keys, vec![Bytes::from_static(b"leased")]);
    assert_eq!(put(&ours, &[("new".into(), "n".into())]).await, done.revision.next());
    store.shutdown().await;
    sound(dir.path());
    // It is a member like any other: what it wrote is there after a restart.
    let store = start(dir.path()).await;
    assert_eq!(all(&client(&endpoint(&store)), 0).await.unwrap().revision, done.revision.next());
    store.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restored_cluster_never_gives_a_revision_out_again() {
    let first = tempfile::tempdir().unwrap();
    let store = start(first.path()).await;
    populate(&endpoint(&store)).await;
    let file = save_from(&endpoint(&store), first.path()).await;
    // What is written after the snapshot is lost by the restore, but its revisions have been seen.
    let seen = put(&client(&endpoint(&store)), &[("lost".into(), "x".into())]).await;
    let before = all(&client(&endpoint(&store)), seen.get() - 1).await.unwrap().kvs;
    store.shutdown().await;

    let dir = tempfile::tempdir().unwrap();
    let plan = Plan { bump_revision: BUMP, mark_compacted: true, ..exact(dir.path()) };
    let done = restored(&file, plan.clone()).await;
    assert_eq!((done.revision.get(), done.compact), (seen.get() - 1 + BUMP as i64, done.revision));
    sound(dir.path());
    let store = start(dir.path()).await;
    let kv = client(&endpoint(&store));
    assert!(all(&kv, 0).await.unwrap().kvs == before, "the keys keep the numbers of their last write");
    for at in [seen.get(), done.revision.get() - 1] {
        assert!(matches!(all(&kv, at).await, Err(KvError::Compacted { .. })), "as of {at}");
    }
    assert_eq!(put(&kv, &[("new".into(), "n".into())]).await, done.revision.next());

    // A snapshot of the restored store says the raised revision, too, and can be restored exactly.
    let file = save_from(&endpoint(&store), dir.path()).await;
    store.shutdown().await;
    let again = tempfile::tempdir().unwrap();
    let second = restored(&file, exact(again.path())).await;
    assert_eq!((second.revision, second.compact), (done.revision.next(), done.revision));
    sound(again.path());
    let refused = restore(SnapshotFile::open(&file).unwrap(), exact(again.path()), 1, &quiet).await.unwrap_err();
    assert!(refused.to_string().contains("exists"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_store_goes_round_as_well() {
    let first = tempfile::tempdir().unwrap();
    let store = start(first.path()).await;
    let file = save_from(&endpoint(&store), first.path()).await;
    store.shutdown().await;
    let dir = tempfile::tempdir().unwrap();
    let done = restored(&file, exact(dir.path())).await;
    assert_eq!((done.revision, done.compact, done.keys), (Revision::new(1), NEVER_COMPACTED, 0));
    let store = start(dir.path()).await;
    assert_eq!(put(&client(&endpoint(&store)), &[("a".into(), "b".into())]).await, Revision::new(2));
    store.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_file_leaves_nothing_behind() {
    let first = tempfile::tempdir().unwrap();
    let store = start(first.path()).await;
    populate(&endpoint(&store)).await;
    let file = save_from(&endpoint(&store), first.path()).await;
    store.shutdown().await;
    let good = std::fs::read(&file).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let attempt = |bytes: &[u8], plan: Plan| {
        let path = dir.path().join("damaged.db");
        std::fs::write(&path, bytes).unwrap();
        async move { restore(SnapshotFile::open(&path)?, plan, 1, &quiet).await }
    };
    for at in [10, 4_200, good.len() / 2, good.len() - 1] {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        let error = attempt(&bytes, exact(dir.path())).await.unwrap_err();
        assert!(error.to_string().contains("does not have the hash"), "byte {at}: {error}");
    }
    let cut = attempt(&good[..good.len() - 100], exact(dir.path())).await.unwrap_err();
    assert!(matches!(cut, SnapshotError::Damaged { .. }), "{cut}");
    // Without its hash it is what a data directory of etcd has: good if one says so.
    let bare = &good[..good.len() - 32];
    let error = attempt(bare, exact(dir.path())).await.unwrap_err();
    assert!(error.to_string().contains("--skip-hash-check"), "{error}");
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).filter(|n| n != "damaged.db").collect();
    assert!(left.is_empty(), "{left:?}");
    attempt(bare, Plan { skip_hash_check: true, ..exact(dir.path()) }).await.unwrap();
    sound(dir.path());
}
