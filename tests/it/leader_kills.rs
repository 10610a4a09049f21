//! What clients build on the store, while leaders die: locks that exclude, read-modify-write that loses nothing, a watch that goes on without a gap.
//! The clients are etcdctl's: etcd's own client library, with its own retries.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails here")]

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use kontiki_tests::stores::{Kind, Stores};
use kontiki_tests::{Output, run};

/// Leaders that are killed, and how long each lives.
const KILLS: usize = 4;
const LIFE: Duration = Duration::from_millis(1_500);

/// A call may have to wait for an election; a hung one is noticed.
const LIMIT: Duration = Duration::from_secs(60);

fn etcdctl(endpoints: &str, args: &[&str]) -> Output {
    run(Command::new("etcdctl").env("ETCDCTL_API", "3").arg("--endpoints").arg(endpoints).args(args), LIMIT)
}

/// Adds one to a counter under a lock, and writes down what it made of it, once that is certain.
const UNDER_LOCK: &str = r#"
    value=$(etcdctl get counter --print-value-only --consistency=l) && next=$((value + 1)) &&
    etcdctl put counter $next && echo $next >> "$JOURNAL"
"#;

/// One holder of the lock after another, until it is enough.
fn lock(endpoints: &str, journal: &Path, over: &AtomicBool) {
    while !over.load(Ordering::Relaxed) {
        let mut command = Command::new("etcdctl");
        command.env("ETCDCTL_API", "3").env("ETCDCTL_ENDPOINTS", endpoints).env("JOURNAL", journal);
        // It fails when its lock was lost with a leader, or a call ended without an answer: then the next one tries.
        let _ = run(command.args(["lock", "mutex", "--", "sh", "-c", UNDER_LOCK]), LIMIT);
    }
}

/// Adds one to another counter if nobody has changed it since it was read; how often that went well, and how often nobody knows.
fn compare_and_swap(endpoints: &str, folder: &Path, name: &str, over: &AtomicBool) -> (u64, u64) {
    let (mut done, mut unknown) = (0, 0);
    while !over.load(Ordering::Relaxed) {
        let read = etcdctl(endpoints, &["get", "swapped", "-w", "json"]);
        let Ok(answer) = serde_json::from_str::<serde_json::Value>(&read.out) else { continue };
        let seen = answer["kvs"][0]["mod_revision"].as_i64().unwrap_or(0);
        let count = answer["kvs"][0]["version"].as_i64().unwrap_or(0);
        let script = folder.join(name);
        std::fs::write(&script, format!("mod(\"swapped\") = \"{seen}\"\n\nput swapped {}\n\n\n\n", count + 1)).unwrap();
        let input = std::fs::File::open(&script).unwrap();
        let mut command = Command::new("etcdctl");
        let output = command.env("ETCDCTL_API", "3").arg("--endpoints").arg(endpoints).arg("txn").stdin(input).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        match (output.status.success(), said.starts_with("SUCCESS")) {
            (true, true) => done += 1,
            // Somebody else was first.
            (true, false) => {}
            (false, _) => unknown += 1,
        }
    }
    (done, unknown)
}

fn watch(endpoints: &str, out: &Path) -> Child {
    let file = std::fs::File::create(out).unwrap();
    let mut command = Command::new("etcdctl");
    command.env("ETCDCTL_API", "3").arg("--endpoints").arg(endpoints).args(["watch", "--prefix", "", "--rev=1"]);
    command.stdin(Stdio::null()).stdout(file).stderr(Stdio::null()).spawn().unwrap()
}

/// The values that a key was given, in the order in which the watch told them.
fn told(out: &Path, key: &str) -> Vec<u64> {
    let text = std::fs::read_to_string(out).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    lines.windows(3).filter(|three| three[0] == "PUT" && three[1] == key).map(|three| three[2].parse().unwrap()).collect()
}

/// How often a key was written, and its value.
fn written(endpoints: &str, key: &str) -> (u64, u64) {
    let answer: serde_json::Value = serde_json::from_str(&etcdctl(endpoints, &["get", key, "-w", "json"]).expect_ok()).unwrap();
    let value = etcdctl(endpoints, &["get", key, "--print-value-only"]).expect_ok();
    (answer["kvs"][0]["version"].as_u64().unwrap(), value.trim().parse().unwrap())
}

/// Kills one leader after the other, and starts it again when there is a new one.
fn kill_leaders(stores: &mut Stores) {
    for _ in 0..KILLS {
        std::thread::sleep(LIFE);
        let leader = stores.wait_for_leader();
        stores.kill(leader);
        stores.wait_for_leader();
        stores.start_member(leader);
        stores.wait_for_leader();
    }
    std::thread::sleep(LIFE);
}

#[test]
fn locks_swaps_and_watches_outlive_leaders() {
    if !kontiki_tests::run::have("etcdctl") {
        return;
    }
    let mut stores = Stores::start(Kind::Kontiki, 3);
    let (endpoints, folder) = (stores.endpoints(&[0, 1, 2]), tempfile::tempdir().unwrap());
    let (journal, out) = (folder.path().join("journal"), folder.path().join("watched"));
    let mut watching = watch(&endpoints, &out);
    let over = AtomicBool::new(false);
    let (done, unknown) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for n in 0..2 {
            scope.spawn(|| lock(&endpoints, &journal, &over));
            let (endpoints, folder, over, done, unknown) = (&endpoints, folder.path(), &over, &done, &unknown);
            scope.spawn(move || {
                let (well, maybe) = compare_and_swap(endpoints, folder, &format!("swap-{n}"), over);
                done.fetch_add(well, Ordering::Relaxed);
                unknown.fetch_add(maybe, Ordering::Relaxed);
            });
        }
        let killing = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| kill_leaders(&mut stores)));
        over.store(true, Ordering::Relaxed);
        killing.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });

    // Mutual exclusion: whoever held the lock saw what the one before had made.
    let text = std::fs::read_to_string(&journal).unwrap();
    let held: Vec<u64> = text.lines().map(|line| line.parse().unwrap()).collect();
    assert!(held.len() >= KILLS && held.is_sorted() && held.iter().collect::<BTreeSet<_>>().len() == held.len(), "{held:?}");
    // Nothing acknowledged is lost, and nothing happens twice.
    let (version, swapped) = written(&endpoints, "swapped");
    let (done, unknown) = (done.into_inner(), unknown.into_inner());
    assert_eq!(version, swapped, "each was made of the one before");
    assert!(done > 0 && (done..=done + unknown).contains(&swapped), "{done} acknowledged, {unknown} unknown, {swapped} there");
    // The watch has told all of it, once and in order.
    for key in ["counter", "swapped"] {
        let (version, last) = written(&endpoints, key);
        let all = |told: &[u64]| told.len() as u64 >= version;
        for _ in 0..200 {
            if all(&told(&out, key)) {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let told = told(&out, key);
        assert!(told.len() as u64 == version && told.last() == Some(&last) && told.is_sorted(), "{key}: {version} writes, told {told:?}");
    }
    watching.kill().unwrap();
    watching.wait().unwrap();
    eprintln!("{KILLS} leaders killed: {} holders of the lock, {done} swaps, {unknown} without an answer, no event lost", held.len());
}
