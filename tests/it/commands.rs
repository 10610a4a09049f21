//! `kontiki store`, `kontiki member`, `kontiki snapshot` and `kontiki bench` as processes: what they say of wrong arguments and of a world that is not
//! as they need it, and with which exit code; then what they do when all is well.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails here")]

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use kontiki_tests::cluster::program;
use kontiki_tests::stores::{Kind, Stores};
use kontiki_tests::{Output, run};

/// No command of these has much to do.
const LIMIT: Duration = Duration::from_secs(60);

fn kontiki(args: &[&str]) -> Output {
    run(Command::new(program()).args(args), LIMIT)
}

/// The exit code, and what was said on either stream.
fn ends(args: &[&str]) -> (i32, String) {
    let output = Command::new(program()).args(args).stdin(std::process::Stdio::null()).output().unwrap();
    (output.status.code().unwrap_or(-1), format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)))
}

/// Arguments, the exit code (2: the command line makes no sense; 1: it does, and cannot be done), and words that must be said.
const WRONG: &[(&[&str], i32, &[&str])] = &[
    (&["store", "--no-such-flag"], 2, &["no-such-flag", "--help"]),
    (&["store", "--quota-backend-bytes", "many"], 1, &["quota-backend-bytes", "many"]),
    (&["store", "--election-timeout", "100", "--heartbeat-interval", "100"], 1, &["election-timeout"]),
    (&["store", "--initial-cluster", "a=nonsense"], 1, &["initial-cluster"]),
    (&["store", "--auto-tls"], 1, &["auto-tls"]),
    (&["store", "--auto-compaction-mode", "sometimes"], 1, &["auto-compaction-mode", "periodic", "revision"]),
    (&["store", "--config-file", "/nonexistent/etcd.yaml"], 1, &["/nonexistent/etcd.yaml"]),
    (&["store", "verify"], 2, &["DIR"]),
    (&["store", "verify", "/nonexistent/data"], 1, &["/nonexistent/data"]),
    (&["member"], 2, &["Usage"]),
    (&["member", "remove"], 2, &["Usage"]),
    (&["member", "list", "--endpoints", "http://127.0.0.1:1"], 1, &["127.0.0.1:1"]),
    (&["snapshot"], 2, &["Usage"]),
    (&["snapshot", "save"], 2, &["Usage"]),
    (&["snapshot", "status", "/nonexistent/snapshot.db"], 1, &["/nonexistent/snapshot.db"]),
    (&["snapshot", "restore", "/nonexistent/snapshot.db", "--data-dir", "/nonexistent/new"], 1, &["/nonexistent/snapshot.db"]),
    (&["snapshot", "import", "--from-etcd", "http://127.0.0.1:1", "--data-dir", "/nonexistent/new"], 1, &["127.0.0.1:1"]),
    (&["bench", "etcd"], 2, &["--endpoints"]),
    (&["bench", "etcd", "--start", "--run", "nonsense"], 2, &["nonsense"]),
    (&["bench", "history", "--puts", "0"], 2, &["--puts"]),
    (&["bench", "large", "--large", "900000000"], 1, &["--dir", "--large"]),
];

#[test]
fn what_is_wrong_with_a_command_is_said_and_its_exit_code_is_not_zero() {
    let mut wrong = Vec::new();
    for (args, code, words) in WRONG {
        let (seen, said) = ends(args);
        let missing: Vec<_> = words.iter().filter(|word| !said.contains(**word)).collect();
        let panicked = said.contains("panicked");
        if seen != *code || !missing.is_empty() || panicked {
            wrong.push(format!("kontiki {}: exit code {seen} (not {code}), without {missing:?}:\n{said}", args.join(" ")));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A directory that another member or a running one has is not opened.
#[test]
fn a_directory_has_one_member() {
    let stores = Stores::start(Kind::Kontiki, 1);
    let data = stores.data(0);
    let data = data.to_str().unwrap();
    let (code, said) = ends(&["store", "verify", data]);
    assert!(code == 1 && said.contains("in use by process"), "a member runs on it: {code}, {said}");
    let urls = ["--listen-client-urls", "http://127.0.0.1:0", "--advertise-client-urls", "http://127.0.0.1:0"];
    let peers = ["--listen-peer-urls", "http://127.0.0.1:0", "--name", "m0", "--data-dir", data];
    let (code, said) = ends(&[&["store"][..], &urls, &peers].concat());
    assert!(code == 1 && said.contains(data), "the directory is named: {code}, {said}");
}

/// Members listed, added, changed, removed; each command says what it did, and a wrong one why not.
#[test]
fn members_come_and_go() {
    let stores = Stores::start(Kind::Kontiki, 3);
    let lead = stores.wait_for_leader();
    let at = format!("http://{}", stores.endpoint((lead + 1) % 3));
    let member = |args: &[&str]| kontiki(&[&["member"], args, &["--endpoints", &at]].concat());
    let listed = member(&["list"]).expect_ok();
    for n in 0..3 {
        assert!(listed.contains(&format!("m{n}")) && listed.contains(&stores.peer(n)), "{listed}");
    }
    let exists = member(&["add", "x", "--peer-urls", &format!("http://{}", stores.peer(0))]);
    assert!(!exists.ok && exists.err.contains("Peer URLs already exists"), "{exists:?}");
    let added = member(&["add", "x", "--peer-urls", "http://127.0.0.1:9", "--learner"]).expect_ok();
    assert!(added.contains("http://127.0.0.1:9"), "it says how to start it: {added}");
    let listed = member(&["list"]).expect_ok();
    let line = listed.lines().find(|line| line.contains("http://127.0.0.1:9")).expect("it is listed");
    let id = line.split(|c: char| !c.is_ascii_hexdigit()).find(|word| word.len() > 10).expect("its id").to_owned();
    let early = member(&["promote", &id]);
    assert!(!early.ok && early.err.contains("in sync with leader"), "{early:?}");
    member(&["update", &id, "--peer-urls", "http://127.0.0.1:7"]).expect_ok();
    assert!(member(&["list"]).expect_ok().contains("http://127.0.0.1:7"));
    member(&["remove", &id]).expect_ok();
    assert!(!member(&["list"]).expect_ok().contains("http://127.0.0.1:7"));
    let gone = member(&["remove", &id]);
    assert!(!gone.ok && gone.err.contains("no member is called"), "{gone:?}");
}

/// Saved, looked at, restored, and served again; never over something that is there.
#[test]
fn a_snapshot_goes_round() {
    if !kontiki_tests::run::have("etcdctl") {
        return;
    }
    let stores = Stores::start(Kind::Kontiki, 1);
    stores.etcdctl(&[0], &["put", "kept", "1"]).expect_ok();
    let file = stores.folder().join("backup.db");
    let (file, at) = (file.to_str().unwrap(), format!("http://{}", stores.endpoint(0)));
    kontiki(&["snapshot", "save", file, "--endpoints", &at]).expect_ok();
    let status = kontiki(&["snapshot", "status", file, "-w", "json"]).expect_ok();
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    assert_eq!(status["revision"], 2);
    let dir = stores.folder().join("restored");
    let restore = ["snapshot", "restore", file, "--data-dir", dir.to_str().unwrap(), "--bump-revision", "0"];
    kontiki(&restore).expect_ok();
    let again = kontiki(&restore);
    assert!(!again.ok && again.err.contains("exists"), "{again:?}");
    kontiki(&["store", "verify", dir.to_str().unwrap()]).expect_ok();
    // A file that was changed is refused, and leaves nothing.
    let mut bytes = std::fs::read(file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0xff;
    std::fs::write(file, bytes).unwrap();
    let other = stores.folder().join("other");
    let damaged = kontiki(&["snapshot", "restore", file, "--data-dir", other.to_str().unwrap()]);
    assert!(!damaged.ok && damaged.err.contains(file), "{damaged:?}");
    assert!(!other.exists() && !Path::new(&format!("{}.restoring", other.display())).exists());
}
