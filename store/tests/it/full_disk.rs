//! A disk that is really full: a file system in memory of a few hundred megabytes. Needs the right to mount one, and says so without it.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kontiki_base::key::KeyRange;
use kontiki_base::kv::{DeleteReq, Kv, KvError, Op, PutReq, RangeReq, Txn};
use kontiki_proto::env::SystemEnv;
use kontiki_store::config::StoreConfig;
use kontiki_store::engine::rocks::{RocksEngine, RocksOptions};
use kontiki_store::engine::{AppliedMark, Engine};
use kontiki_store::server::{Store, StoreHandle};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

/// A small file system; gone with this.
struct Disk {
    dir: tempfile::TempDir,
}

impl Disk {
    fn new(mib: usize) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        // In a mount namespace of this thread and those that it starts: it goes with them, however they end.
        let alone = unshare(CloneFlags::CLONE_NEWNS)
            .and_then(|()| mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>));
        if let Err(error) = alone {
            eprintln!("skipped: a file system in memory cannot be mounted here: {error}");
            return None;
        }
        let size = format!("size={mib}m");
        match mount(Some("tmpfs"), dir.path(), Some("tmpfs"), MsFlags::empty(), Some(size.as_str())) {
            Ok(()) => Some(Self { dir }),
            Err(error) => {
                eprintln!("skipped: a file system in memory cannot be mounted here: {error}");
                None
            }
        }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn ballast(&self) -> PathBuf {
        self.dir.path().join("ballast")
    }

    fn free(&self) -> u64 {
        let found = nix::sys::statvfs::statvfs(self.path()).unwrap();
        found.blocks_available() * found.fragment_size()
    }

    /// Fills it until so much is left.
    fn fill(&self, leave: u64) {
        let mut file = std::fs::File::options().create(true).append(true).open(self.ballast()).unwrap();
        let chunk = vec![7; 64 << 10];
        while self.free() > leave {
            let n = usize::try_from((self.free() - leave).min(chunk.len() as u64)).unwrap();
            if file.write_all(&chunk[..n]).is_err() {
                return;
            }
        }
    }

    fn make_room(&self) {
        std::fs::remove_file(self.ballast()).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Err(error) = umount2(self.dir.path(), MntFlags::MNT_DETACH) {
            eprintln!("the file system in memory stays mounted: {error}");
        }
    }
}

#[test]
fn the_engine_waits_for_room_and_loses_nothing() {
    let Some(disk) = Disk::new(48) else { return };
    let options = RocksOptions {
        cache_bytes: 1 << 20,
        write_buffer_bytes: 1 << 20,
        all_write_buffers_bytes: 8 << 20,
        background_jobs: 2,
        ..RocksOptions::default()
    };
    let engine = Arc::new(RocksEngine::open(&disk.path().join("engine"), options.clone()).unwrap());
    disk.fill(3 << 20);
    let commits = 400_u64;
    let value = |n: u64| {
        // Not to be compressed.
        let mut state = n;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        };
        (0..40_000).map(|_| next()).collect::<Vec<u8>>()
    };
    let mark = |n: u64| AppliedMark {
        pos: kontiki_base::ids::LogPos { term: kontiki_base::Term::new(1), index: kontiki_base::ids::LogIndex::new(n) },
        membership: bytes::Bytes::new(),
    };
    let writer = {
        let engine = Arc::clone(&engine);
        std::thread::spawn(move || {
            for n in 1..=commits {
                let mut batch = kontiki_mvcc::Batch::default();
                batch.put(kontiki_mvcc::Space::Kv, n.to_be_bytes().to_vec(), value(n));
                engine.commit(batch, mark(n)).unwrap();
            }
        })
    };
    std::thread::sleep(Duration::from_secs(4));
    assert!(!writer.is_finished(), "16 MB went into 3");
    assert!(engine.flush().is_err_and(|error| std::io::Error::from(error).kind() == std::io::ErrorKind::StorageFull));
    disk.make_room();
    writer.join().unwrap();
    engine.flush().unwrap();
    drop(engine);
    let engine = RocksEngine::open(&disk.path().join("engine"), options).unwrap();
    assert_eq!(engine.applied().pos.index.get(), commits);
    let view = engine.snapshot();
    for n in 1..=commits {
        let found = view.get(kontiki_mvcc::Space::Kv, &n.to_be_bytes()).unwrap();
        assert_eq!(found.as_deref(), Some(&value(n)[..]), "{n}");
    }
}

async fn start(dir: &Path) -> StoreHandle {
    let mut config = StoreConfig::single("solo", dir.join("data"), Arc::new(SystemEnv::new()));
    config.disk_reserve_bytes = 24 << 20;
    let store = Store::start(config).await.unwrap();
    let mut status = store.status();
    let leads = status.wait_for(|raft| raft.leader.is_some());
    tokio::time::timeout(Duration::from_secs(20), leads).await.expect("a leader in time").unwrap();
    store
}

async fn put(kv: &dyn Kv, key: &str, bytes: usize) -> Result<(), KvError> {
    let put = PutReq { key: key.to_owned().into(), value: vec![b'v'; bytes].into(), ..PutReq::default() };
    kv.txn(Txn { success: vec![Op::Put(put)], ..Txn::default() }, None).await.map(drop)
}

/// Waits until a put is answered so.
async fn wait_for(kv: &dyn Kv, expected: &Result<(), KvError>) {
    let answered = async {
        while put(kv, "probe", 1).await != *expected {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), answered).await.unwrap_or_else(|_| panic!("never {expected:?}"));
}

#[test]
fn a_member_on_a_full_disk_is_read_only_and_goes_on_by_itself() {
    let Some(disk) = Disk::new(400) else { return };
    // After the disk: its threads have to see it.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(full_and_back(&disk));
}

async fn full_and_back(disk: &Disk) {
    let store = start(disk.path()).await;
    let kv = store.kv();
    for n in 0..20 {
        put(&*kv, &format!("k{n}"), 1_000).await.unwrap();
    }
    // Segments are made ahead of need: not while the disk is being filled.
    tokio::time::sleep(Duration::from_secs(1)).await;
    disk.fill(8 << 20);
    wait_for(&*kv, &Err(KvError::NoSpace)).await;
    let service = store.service();
    assert!(service.room.alarms().iter().any(|alarm| alarm.automatic), "{:?}", service.room.alarms());
    assert_eq!(kv.range(RangeReq::new(KeyRange::prefix("k"))).await.unwrap().count, 20);
    let delete = DeleteReq { range: KeyRange::single("k0"), prev_kv: false };
    let revision = kv.txn(Txn { success: vec![Op::Delete(delete)], ..Txn::default() }, None).await.unwrap().revision;
    service.compact(revision, true).await.unwrap();
    // The last byte goes, too; a member that restarts comes back, and is read-only still.
    disk.fill(0);
    drop(kv);
    store.shutdown().await;
    let store = start(disk.path()).await;
    let kv = store.kv();
    assert_eq!(put(&*kv, "k", 1).await, Err(KvError::NoSpace));
    assert_eq!(kv.range(RangeReq::new(KeyRange::prefix("k"))).await.unwrap().count, 19);
    disk.make_room();
    wait_for(&*kv, &Ok(())).await;
    assert!(store.service().room.alarms().is_empty());
    drop(kv);
    store.shutdown().await;
}
