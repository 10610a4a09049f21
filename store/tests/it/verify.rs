//! A data directory with every kind of damage: what is found, and that a member refuses it in the same words.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kontiki_base::kv::{Op, PutReq, Txn};
use kontiki_proto::env::SystemEnv;
use kontiki_store::config::StoreConfig;
use kontiki_store::server::Store;
use kontiki_store::snapshot::Progress;
use kontiki_store::verify::{Findings, verify};

use super::member::start;

/// A directory of a member that has run, and has ended.
async fn written() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let store = start(dir.path()).await;
    let kv = store.kv();
    for n in 0..50 {
        let put = PutReq { key: format!("k{n}").into(), value: vec![n; 2_000].into(), ..PutReq::default() };
        kv.txn(Txn { success: vec![Op::Put(put)], ..Txn::default() }, None).await.unwrap();
    }
    drop(kv);
    store.shutdown().await;
    dir
}

fn look(dir: &Path) -> Findings {
    verify(&dir.join("data"), &|_: Progress| ()).unwrap()
}

fn files(dir: &Path, into: &mut BTreeMap<PathBuf, Vec<u8>>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, into);
        } else {
            into.insert(path.clone(), std::fs::read(&path).unwrap());
        }
    }
}

fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    files(dir, &mut all);
    all
}

fn flip(path: &Path, at: impl Fn(&[u8]) -> usize) {
    let mut bytes = std::fs::read(path).unwrap();
    let at = at(&bytes);
    bytes[at] ^= 0x40;
    std::fs::write(path, bytes).unwrap();
}

fn segment(dir: &Path) -> PathBuf {
    dir.join("data/log/0000000000000001.seg")
}

async fn refused(dir: &Path) -> String {
    let config = StoreConfig::single("solo", dir.join("data"), Arc::new(SystemEnv::new()));
    match Store::start(config).await {
        Ok(_) => panic!("a member started on it"),
        Err(error) => error.to_string(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sound_directory_is_left_as_it_was() {
    let dir = written().await;
    let before = contents(dir.path());
    let found = look(dir.path());
    assert!(found.problems.is_empty(), "{found:?}");
    let state = found.state.unwrap();
    assert_eq!((state.keys, state.versions, state.revision.get()), (50, 50, 51));
    assert!(contents(dir.path()) == before, "looking changed something");
    // The folder above is fine, too; another is not.
    std::fs::create_dir(dir.path().join("above")).unwrap();
    std::fs::rename(dir.path().join("data"), dir.path().join("above/store")).unwrap();
    assert!(verify(&dir.path().join("above"), &|_| ()).unwrap().problems.is_empty());
    assert!(verify(dir.path(), &|_| ()).unwrap_err().to_string().contains("holds no store"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_torn_tail_is_fine_and_said() {
    let dir = written().await;
    // The last batch did not reach the disk whole.
    flip(&segment(dir.path()), |bytes| bytes.iter().rposition(|byte| *byte != 0).unwrap());
    let found = look(dir.path());
    assert!(found.problems.is_empty(), "{found:?}");
    assert!(found.notes.iter().any(|note| note.contains("cut off")), "{found:?}");
    start(dir.path()).await.shutdown().await;
    assert!(look(dir.path()).notes.iter().all(|note| !note.contains("cut off")), "the start has removed it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_in_the_middle_of_the_log_is_named_and_refused() {
    let dir = written().await;
    flip(&segment(dir.path()), |_| 4096 + 700);
    let before = contents(dir.path());
    let found = look(dir.path());
    let problem = found.problems.first().expect("it is found").clone();
    assert!(problem.starts_with("raft log is corrupt: 0000000000000001.seg at byte 4"), "{problem}");
    let error = refused(dir.path()).await;
    assert!(error.contains(&problem), "{error}\nand\n{problem}");
    assert!(error.contains("add it again with an empty directory"), "{error}");
    let (mut log, mut now) = (before, contents(dir.path()));
    log.retain(|path, _| path.starts_with(dir.path().join("data/log")));
    now.retain(|path, _| path.starts_with(dir.path().join("data/log")));
    assert!(log == now, "a log that is refused is left as evidence");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_of_the_state_is_found_before_somebody_reads_it() {
    let dir = written().await;
    let tables: Vec<PathBuf> = contents(dir.path()).into_keys().filter(|path| path.extension().is_some_and(|e| e == "sst")).collect();
    let largest = tables.iter().max_by_key(|path| std::fs::metadata(path).unwrap().len()).expect("the state was flushed");
    flip(largest, |bytes| bytes.len() / 3);
    let found = look(dir.path());
    let name = largest.file_name().unwrap().to_str().unwrap();
    assert!(found.problems.iter().any(|problem| problem.contains(name)), "{name} is not in {found:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parts_that_do_not_belong_together_are_found() {
    let (older, newer) = (written().await, written().await);
    // The state of another member, and no log at all.
    std::fs::remove_dir_all(newer.path().join("data/engine")).unwrap();
    let found = look(newer.path());
    assert!(found.problems.is_empty() && found.notes.iter().any(|note| note.contains("no state yet")), "{found:?}");
    std::fs::remove_dir_all(older.path().join("data/log")).unwrap();
    std::fs::create_dir(older.path().join("data/log")).unwrap();
    let found = look(older.path());
    assert!(found.problems.iter().any(|problem| problem.contains("the log is gone")), "{found:?}");
    assert!(refused(older.path()).await.contains("the raft log is gone"));
}
