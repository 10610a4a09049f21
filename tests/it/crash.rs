//! A member that is killed, and begins again on what it had written: what a client was promised before holds after.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails here")]

use std::time::Duration;

use kontiki_tests::run::have;
use kontiki_tests::stores::{Kind, Stores};
use serde_json::Value;

/// Of the only member.
fn ctl(stores: &Stores, args: &[&str]) -> String {
    stores.etcdctl(&[0], args).expect_ok()
}

fn json(stores: &Stores, args: &[&str]) -> Value {
    serde_json::from_str(&ctl(stores, &[args, &["-w", "json"]].concat())).unwrap()
}

fn revision(answer: &Value) -> i64 {
    answer["header"]["revision"].as_i64().unwrap()
}

fn kill(stores: &mut Stores) {
    stores.kill(0);
    stores.start_member(0);
    stores.wait_for_leader();
}

#[test]
fn a_killed_member_goes_on_compacting_and_never_goes_back() {
    if !have("etcdctl") {
        return;
    }
    let mut stores = Stores::start(Kind::Kontiki, 1);
    for round in 0..3 {
        for n in 0..20 {
            ctl(&stores, &["put", &format!("k{}", n % 5), &format!("{round} {n}")]);
        }
        let last = revision(&json(&stores, &["get", "k0"]));
        let (before, at) = (ctl(&stores, &["get", "--prefix", "k"]), (last - 1).to_string());
        // Acknowledged, and perhaps not yet carried out: records go in the background.
        ctl(&stores, &["compaction", &at]);
        kill(&mut stores);
        assert_eq!(ctl(&stores, &["get", "--prefix", "k"]), before, "nothing acknowledged is lost");
        assert_eq!(revision(&json(&stores, &["get", "k0"])), last, "and no revision is made up");
        let old = stores.etcdctl(&[0], &["get", "k0", &format!("--rev={}", last - 2)]);
        assert!(!old.ok && old.err.contains("required revision has been compacted"), "what was compacted stays so: {}", old.err);
        assert_eq!(revision(&json(&stores, &["put", "k0", "new"])), last + 1);
        // It answers when the records of this and of the earlier compaction have gone.
        ctl(&stores, &["compaction", "--physical", &last.to_string()]);
    }
    // Its files agree with each other.
    stores.kill(0);
    let verified = kontiki_tests::run(
        std::process::Command::new(kontiki_tests::cluster::program()).args(["store", "verify"]).arg(stores.data(0)),
        Duration::from_secs(60),
    );
    assert!(verified.ok, "{}{}", verified.out, verified.err);
}

#[test]
fn leases_have_their_whole_time_again() {
    if !have("etcdctl") {
        return;
    }
    let mut stores = Stores::start(Kind::Kontiki, 1);
    let lease = format!("{:x}", json(&stores, &["lease", "grant", "5"])["ID"].as_i64().unwrap());
    ctl(&stores, &["put", "leased", "v", &format!("--lease={lease}")]);
    // Most of its time goes by.
    std::thread::sleep(Duration::from_secs(3));
    kill(&mut stores);
    let time = json(&stores, &["lease", "timetolive", &lease, "--keys"]);
    assert!(time["granted-ttl"] == 5 && time["ttl"].as_i64().is_some_and(|ttl| ttl > 2), "more than was left: {time}");
    assert_eq!(time["keys"].as_array().map(Vec::len), Some(1));
    // And it ends after all, with its key.
    for _ in 0..300 {
        if ctl(&stores, &["get", "leased"]).is_empty() {
            return;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    panic!("nobody keeps it alive, and it does not end");
}
