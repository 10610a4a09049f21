//! Users and roles go where the keys go: from etcd to ours, and from ours to etcd.

use std::process::Command;

use kontiki_proto::env::SystemEnv;
use kontiki_store::snapshot::fetch::{Remote, save};

use super::etcd::{Etcd, free_port, present};
use super::etcdctl::Ctl;
use super::member::{endpoint, start};
use super::snapshot::{exact, restored};

/// Users with and without passwords, roles over keys, prefixes and everything after a key; and auth on.
fn set_up(ctl: &Ctl) {
    for args in [
        "role add some",
        "role grant-permission some readwrite a b",
        "role grant-permission some read r",
        "role add rest",
        "role grant-permission rest write x --from-key",
        "user add root:toor",
        "user grant-role root root",
        "user add alice:secret",
        "user grant-role alice some",
        "user grant-role alice rest",
        "user add bob --no-password",
        "put r seen",
        "auth enable",
    ] {
        ctl.run(args);
    }
}

/// What all of that means, at a store that has it.
fn holds(ctl: &Ctl) {
    assert_eq!(ctl.run("--user alice:secret put a1 1"), "OK\n");
    assert_eq!(ctl.run("--user alice:secret get r"), "r\nseen\n");
    assert_eq!(ctl.run("--user alice:secret put zz 1"), "OK\n");
    for args in ["put b 1", "put r 1", "get zz", "get c", "user list"] {
        let said = ctl.fail(&format!("--user alice:secret {args}"));
        assert!(said.contains("permission denied"), "{args}: {said}");
    }
    let said = ctl.fail("get r");
    assert!(said.contains("user name is empty"), "auth is on: {said}");
    let said = ctl.fail("--user alice:wrong get r");
    assert!(said.contains("invalid user ID or password"), "{said}");
    assert_eq!(ctl.run("--user root:toor user list"), "alice\nbob\nroot\n");
    assert_eq!(ctl.run("--user root:toor role list"), "rest\nsome\n");
    let alice = ctl.run("--user root:toor user get alice");
    assert!(alice.contains("rest") && alice.contains("some"), "{alice}");
}

fn roles(ctl: &Ctl) -> String {
    ["some", "rest"].map(|role| ctl.run(&format!("--user root:toor role get {role}"))).concat()
}

async fn saved(endpoint: &str, file: &std::path::Path) {
    let remote = Remote { endpoints: vec![format!("http://{endpoint}")], user: Some(("root".into(), "toor".into())), ..Remote::default() };
    save(&remote, file, &SystemEnv::new(), &|_| ()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcds_users_become_ours() {
    let Some(etcd) = Etcd::start().await else { return };
    let theirs = Ctl { endpoint: etcd.endpoint.clone() };
    set_up(&theirs);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("etcd.db");
    saved(&etcd.endpoint, &file).await;
    let done = restored(&file, exact(dir.path())).await;
    assert_eq!((done.users, done.auth_enabled), (3, true));
    let store = start(dir.path()).await;
    let ours = Ctl { endpoint: endpoint(&store) };
    holds(&ours);
    assert_eq!(roles(&ours), roles(&theirs));
    // A change made there goes on counting: the number of changes came along, too.
    ours.run("--user root:toor user revoke-role alice rest");
    assert!(ours.fail("--user alice:secret put zz 2").contains("permission denied"));
    store.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_users_become_etcds() {
    if !present() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let store = start(dir.path()).await;
    let ours = Ctl { endpoint: endpoint(&store) };
    set_up(&ours);
    let file = dir.path().join("ours.db");
    saved(&endpoint(&store), &file).await;
    let peer = format!("http://127.0.0.1:{}", free_port());
    let data = dir.path().join("etcd");
    let done = Command::new("/usr/bin/etcdctl")
        .env("ETCDCTL_API", "3")
        .args(["snapshot", "restore", file.to_str().unwrap(), "--data-dir", data.to_str().unwrap()])
        .args(["--initial-cluster", &format!("default={peer}"), "--initial-advertise-peer-urls", &peer])
        .output()
        .unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let etcd = Etcd::start_on(&data, &peer, None).await;
    let theirs = Ctl { endpoint: etcd.endpoint.clone() };
    holds(&theirs);
    assert_eq!(roles(&ours), roles(&theirs));
    // And back: what was changed there is what counts.
    theirs.run("--user root:toor user delete bob");
    let back = dir.path().join("back.db");
    saved(&etcd.endpoint, &back).await;
    let again = tempfile::tempdir().unwrap();
    let done = restored(&back, exact(again.path())).await;
    assert_eq!((done.users, done.auth_enabled), (2, true));
    store.shutdown().await;
}
