//! etcdctl's full tour: every command that etcd 3.4's own client has, as scripts (`scripts/etcdctl`), against three members through one that does not
//! lead, and with one member down. What they must say was said by a real etcd, and a test asks it again.
//!
//! `KONTIKI_BLESS=1 cargo nextest run -p kontiki-tests etcdctl etcd_itself` writes down what the etcd of this machine says.

use std::path::{Path, PathBuf};

use kontiki_tests::script::{difference, play};
use kontiki_tests::stores::{Kind, Stores};

/// Which scripts there are, and what they are played on.
macro_rules! scripts {
    ($($name:ident: $($how:ident)+;)+) => {
        const SCRIPTS: &[&str] = &[$(stringify!($name)),+];
        $(mod $name { $(
            #[test]
            fn $how() { super::$how(stringify!($name)); }
        )+ })+
    };
}

scripts! {
    keys: through_a_follower with_one_down etcd_itself;
    txn: through_a_follower with_one_down etcd_itself;
    compaction: through_a_follower with_one_down etcd_itself;
    lease: through_a_follower with_one_down etcd_itself;
    watch: through_a_follower with_one_down etcd_itself;
    locks: through_a_follower with_one_down etcd_itself;
    leader: through_a_follower with_one_down etcd_itself;
    endpoints: through_a_follower with_one_down etcd_itself;
    snapshot: through_a_follower with_one_down etcd_itself;
    auth: through_a_follower with_one_down etcd_itself;
    // Members can be changed only while all are there, or nearly all.
    members: through_a_follower etcd_itself_with_all;
    members_down: with_one_down etcd_itself_with_one_down;
}

fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/etcdctl")
}

/// Whether everything is on this machine that these tests need; says so if not.
fn have(programs: &[&str]) -> bool {
    programs.iter().all(|program| kontiki_tests::run::have(program))
}

/// What was said once: with one member down, that alone which differs has a file of its own.
fn golden(name: &str, down: bool) -> PathBuf {
    let other = scripts().join(format!("{name}.down.out"));
    if down && other.exists() { other } else { scripts().join(format!("{name}.out")) }
}

/// Plays one script on a cluster of its own.
fn say(kind: Kind, name: &str, down: bool) -> String {
    let mut stores = Stores::start(kind, 3);
    let lead = stores.wait_for_leader();
    let (follower, third) = ((lead + 1) % 3, (lead + 2) % 3);
    if down {
        stores.kill(third);
    }
    let mut names = vec![("ALL", stores.endpoints(&stores.running())), ("PEER", format!("http://{}", stores.peer(lead)))];
    for (role, peer, named, member) in [
        ("LEADER", "LEADER-PEER", "M-LEADER", lead),
        ("FOLLOWER", "FOLLOWER-PEER", "M-FOLLOWER", follower),
        ("THIRD", "THIRD-PEER", "M-THIRD", third),
    ] {
        names.extend([(role, stores.endpoint(member)), (peer, stores.peer(member)), (named, format!("m{member}"))]);
    }
    play(&scripts().join(format!("{name}.sh")), &stores.folder().join("script"), &names)
}

/// What is written down must be said.
fn agrees(kind: Kind, name: &str, down: bool) {
    let seen = say(kind, name, down);
    let expected = std::fs::read_to_string(golden(name, down)).unwrap_or_default();
    if let Some(text) = difference(&expected, &seen) {
        panic!("{name}, {text}");
    }
}

fn through_a_follower(name: &str) {
    if have(&["etcdctl", "bash"]) {
        agrees(Kind::Kontiki, name, false);
    }
}

fn with_one_down(name: &str) {
    if have(&["etcdctl", "bash"]) {
        agrees(Kind::Kontiki, name, true);
    }
}

/// What the scripts must say is what etcd says: here is the proof.
fn etcd_itself(name: &str) {
    etcd_says(name, false);
    if golden(name, true) != golden(name, false) || blessing() {
        etcd_says(name, true);
    }
}

fn etcd_itself_with_all(name: &str) {
    etcd_says(name, false);
}

fn etcd_itself_with_one_down(name: &str) {
    etcd_says(name, true);
}

fn etcd_says(name: &str, down: bool) {
    if !have(&["etcdctl", "bash", "etcd"]) {
        return;
    }
    if blessing() {
        write_down(name, down, &say(Kind::Etcd, name, down)).expect("the words can be written down");
    } else {
        agrees(Kind::Etcd, name, down);
    }
}

fn blessing() -> bool {
    std::env::var_os("KONTIKI_BLESS").is_some()
}

fn write_down(name: &str, down: bool, said: &str) -> std::io::Result<()> {
    let (usual, other) = (scripts().join(format!("{name}.out")), scripts().join(format!("{name}.down.out")));
    let differs = down && std::fs::read_to_string(&usual).is_ok_and(|text| text != said);
    std::fs::write(if differs { other } else { usual }, said)
}

/// A script that nobody plays, or that says nothing, tests nothing.
#[test]
fn every_script_is_played_and_says_something() {
    let files = std::fs::read_dir(scripts()).unwrap().map(|entry| entry.unwrap().path());
    for script in files.filter(|path| path.extension().is_some_and(|end| end == "sh") && !path.ends_with("prelude.sh")) {
        let name = script.file_stem().unwrap().to_str().unwrap();
        assert!(SCRIPTS.contains(&name), "{name} is not in the list");
        assert!(std::fs::read_to_string(golden(name, false)).is_ok_and(|text| text.lines().count() >= 5), "{name} has no words");
    }
}

/// Every command of this release is in a script, or below with the reason.
#[test]
fn every_command_of_etcdctl_is_in_a_script() {
    /// What no script of these can hold.
    const NOT_HERE: &[(&str, &str)] = &[
        ("check datascale", "deletes 10,000 keys at once in the end, which takes a debug build longer than a request may: by hand"),
        ("check perf", "takes a minute and measures: `kontiki bench etcd`, README"),
        ("completion bash", "asks no server"),
        ("completion fish", "asks no server"),
        ("completion powershell", "asks no server"),
        ("completion zsh", "asks no server"),
        ("help", "asks no server"),
        ("migrate", "of etcd's v2 store, which is not here"),
    ];
    if !have(&["etcdctl"]) {
        return;
    }
    let help =
        kontiki_tests::run(std::process::Command::new("etcdctl").env("ETCDCTL_API", "3").arg("--help"), std::time::Duration::from_secs(20));
    let commands: Vec<&str> = help
        .out
        .split("COMMANDS:")
        .nth(1)
        .unwrap()
        .split("OPTIONS:")
        .next()
        .unwrap()
        .lines()
        .filter_map(|line| line.trim().split('\t').next())
        .filter(|command| !command.is_empty())
        .collect();
    assert!(commands.len() > 40, "{commands:?}");
    let said: String = SCRIPTS.iter().map(|name| std::fs::read_to_string(scripts().join(format!("{name}.sh"))).unwrap()).collect();
    for command in commands {
        let excused = NOT_HERE.iter().any(|(other, _)| *other == command);
        assert_ne!(excused, said.contains(command), "{command}: in a script, or excused, and not both");
    }
}
