//! etcd's own command line against one of our members.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Child, Command, Output, Stdio};

use super::cluster::{leader, start_three};
use super::etcd::Etcd;
use super::member::{endpoint, start};

const ETCDCTL: &str = "/usr/bin/etcdctl";

/// Whether the client is on this machine; says so if not.
pub(crate) fn present() -> bool {
    let there = std::path::Path::new(ETCDCTL).exists();
    if !there {
        eprintln!("skipped: {ETCDCTL} is not on this machine");
    }
    there
}

/// The client, at one endpoint.
pub(crate) struct Ctl {
    pub(crate) endpoint: String,
}

impl Ctl {
    fn command(&self, args: &str) -> Command {
        let mut command = Command::new(ETCDCTL);
        // With the scheme, this release writes the whole URL as the authority of calls to one endpoint.
        command.env("ETCDCTL_API", "3").arg("--endpoints").arg(format!("http://{}", self.endpoint)).args(args.split(' '));
        command
    }

    fn output(&self, args: &str) -> Output {
        self.command(args).output().unwrap()
    }

    /// Runs a command that must succeed.
    pub(crate) fn run(&self, args: &str) -> String {
        let output = self.output(args);
        assert!(output.status.success(), "etcdctl {args}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs a command that must fail; what it says.
    pub(crate) fn fail(&self, args: &str) -> String {
        let output = self.output(args);
        assert!(!output.status.success(), "etcdctl {args} succeeded");
        String::from_utf8(output.stderr).unwrap()
    }

    /// Runs a command that reads from its standard input.
    pub(crate) fn feed(&self, args: &str, input: &str) -> String {
        let mut child = self.command(args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "etcdctl {args}");
        String::from_utf8(output.stdout).unwrap()
    }
}

fn keys_and_values(ctl: &Ctl) {
    assert_eq!(ctl.run("put a 1"), "OK\n");
    assert_eq!(ctl.run("put b 2 --prev-kv"), "OK\n");
    assert_eq!(ctl.run("put a 3 --prev-kv"), "OK\na\n1\n");
    assert_eq!(ctl.run("get a"), "a\n3\n");
    assert_eq!(ctl.run("get a --rev=2"), "a\n1\n");
    assert_eq!(ctl.run("get --prefix --keys-only a"), "a\n\n");
    assert_eq!(ctl.run("get a z --limit=1 --order=DESCEND"), "b\n2\n");
    assert_eq!(ctl.run("del b"), "1\n");
    assert_eq!(ctl.run("del b"), "0\n");
    assert_eq!(ctl.feed("txn", "value(\"a\") = \"3\"\n\nput c 4\nget c\n\nget a\n\n"), "SUCCESS\n\nOK\n\nc\n4\n");
    assert_eq!(ctl.feed("txn", "mod(\"a\") = \"1\"\n\nput c 5\n\nget a\n\n"), "FAILURE\n\na\n3\n");
    assert!(ctl.fail("put a x --lease=77").contains("etcdserver: requested lease not found"));
    assert!(ctl.fail("get a --rev=99").contains("etcdserver: mvcc: required revision is a future revision"));
    assert_eq!(ctl.run("compaction 4"), "compacted revision 4\n");
    assert!(ctl.fail("get a --rev=2").contains("etcdserver: mvcc: required revision has been compacted"));
    assert!(ctl.fail("compaction 4").contains("etcdserver: mvcc: required revision has been compacted"));
}

fn leases(ctl: &Ctl) {
    let granted = ctl.run("lease grant 100");
    let id = granted.split(' ').nth(1).unwrap().to_owned();
    assert!(granted.ends_with("granted with TTL(100s)\n"), "{granted}");
    ctl.run(&format!("put under lease --lease={id}"));
    let time = ctl.run(&format!("lease timetolive {id} --keys"));
    assert!(time.contains("granted with TTL(100s)") && time.contains("attached keys([under])"), "{time}");
    assert!(ctl.run("lease list").contains(&id));
    assert!(ctl.run(&format!("lease keep-alive {id} --once")).contains("keepalived with TTL(100)"));
    assert_eq!(ctl.run(&format!("lease revoke {id}")), format!("lease {id} revoked\n"));
    assert_eq!(ctl.run("get under"), "");
    assert!(ctl.run(&format!("lease timetolive {id}")).contains("already expired"));
    assert!(ctl.fail(&format!("lease revoke {id}")).contains("etcdserver: requested lease not found"));
}

fn watching(ctl: &Ctl) {
    for n in 0..3 {
        ctl.run(&format!("put w {n}"));
    }
    let revision: u64 = ctl.run("get w -w fields").lines().find_map(|l| l.strip_prefix("\"Revision\" : ")?.parse().ok()).unwrap();
    let mut child = ctl.command(&format!("watch w --rev={} --prev-kv", revision - 1)).stdout(Stdio::piped()).spawn().unwrap();
    ctl.run("put w live");
    ctl.run("del w");
    let all = "PUT\nw\n0\nw\n1\nPUT\nw\n1\nw\n2\nPUT\nw\n2\nw\nlive\nDELETE\nw\nlive\nw\n\n";
    assert_eq!(read(&mut child, all.len()), all);
}

/// So many bytes of what a command says that goes on until it is ended; then it is ended.
fn read(child: &mut Child, bytes: usize) -> String {
    let mut seen = vec![0; bytes];
    let read = child.stdout.as_mut().unwrap().read_exact(&mut seen);
    child.kill().unwrap();
    child.wait().unwrap();
    read.unwrap();
    String::from_utf8(seen).unwrap()
}

fn administration(ctl: &Ctl) {
    let members = ctl.run("member list -w simple");
    assert!(members.contains(", started, solo, ") && members.trim_end().ends_with(", false"), "{members}");
    let status = ctl.run("endpoint status -w json");
    for part in ["\"version\":\"3.6.", "\"dbSize\":", "\"leader\":", "\"raftTerm\":", "\"raftAppliedIndex\":"] {
        assert!(status.contains(part), "{part} is not in {status}");
    }
    assert!(ctl.run("endpoint status -w table").contains("|      true |"), "it leads");
    let health = ctl.output("endpoint health");
    let said = [health.stdout, health.stderr].concat();
    assert!(String::from_utf8_lossy(&said).contains("is healthy"));
    assert!(ctl.run("endpoint hashkv").contains(&ctl.endpoint));
    assert!(ctl.run("alarm list").is_empty());
    assert!(ctl.run("defrag").starts_with("Finished defragmenting"));
    assert!(ctl.fail("member add x --peer-urls=nonsense").contains("URL"));
    assert!(ctl.fail("move-leader 1").contains("bad leader transferee"));
}

fn locks(ctl: &Ctl) {
    assert!(ctl.run("lock l echo held").contains("held"));
    let mut leader = ctl.command("elect e me").stdout(Stdio::piped()).spawn().unwrap();
    let mut listener = ctl.command("elect -l e").stdout(Stdio::piped()).spawn().unwrap();
    // The key of who leads, and what it says of itself.
    let said = BufReader::new(listener.stdout.take().unwrap()).lines().map_while(Result::ok).find(|line| line == "me");
    for child in [&mut leader, &mut listener] {
        child.kill().unwrap();
        child.wait().unwrap();
    }
    assert_eq!(said.as_deref(), Some("me"));
}

fn tour(ctl: &Ctl) {
    keys_and_values(ctl);
    leases(ctl);
    watching(ctl);
    locks(ctl);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcds_own_client_finds_nothing_missing() {
    if !present() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let store = start(dir.path()).await;
    let ctl = Ctl { endpoint: endpoint(&store) };
    tokio::task::spawn_blocking(move || {
        tour(&ctl);
        administration(&ctl);
    })
    .await
    .unwrap();
    store.shutdown().await;
}

/// The tour demands of our member what it demands of etcd: here is the proof that etcd does that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_itself_passes_the_tour() {
    let Some(etcd) = Etcd::start().await else { return };
    let ctl = Ctl { endpoint: etcd.endpoint.clone() };
    tokio::task::spawn_blocking(move || tour(&ctl)).await.unwrap();
}

/// The same through a member that does not lead, with all three there and with one of them down.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_member_of_three_serves_etcds_own_client() {
    if !present() {
        return;
    }
    for down in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let mut stores = start_three(dir.path()).await;
        let lead = leader(&stores).await;
        let id = |store: &kontiki_store::server::StoreHandle| store.status().borrow().id.get();
        let (leading, follower, third) = (id(&stores[lead]), id(&stores[(lead + 1) % 3]), id(&stores[(lead + 2) % 3]));
        if down {
            stores.remove((lead + 2) % 3).shutdown().await;
        }
        let at = |member: u64| endpoint(stores.iter().find(|store| id(store) == member).unwrap());
        let (ctl, all) = (Ctl { endpoint: at(follower) }, Ctl { endpoint: format!("{},http://{}", at(follower), at(leading)) });
        tokio::task::spawn_blocking(move || {
            tour(&ctl);
            assert_eq!(ctl.run("member list -w simple").lines().filter(|line| line.contains(", started, m")).count(), 3);
            let status = all.run("endpoint status -w simple");
            assert_eq!(status.lines().filter(|line| line.contains(", true, ")).count(), 1, "one of them leads: {status}");
            if down {
                assert!(ctl.fail("member add m9 --peer-urls=http://127.0.0.1:9").contains("etcdserver: unhealthy cluster"));
            } else {
                let hashes = ctl.run("endpoint hashkv --cluster");
                let distinct: std::collections::BTreeSet<&str> = hashes.lines().filter_map(|line| line.rsplit(", ").next()).collect();
                assert_eq!((hashes.lines().count(), distinct.len()), (3, 1), "{hashes}");
            }
            assert!(ctl.fail(&format!("move-leader {third:x}")).contains("no leader endpoint given"));
            let moved = all.run(&format!("move-leader {follower:x}"));
            assert!(moved.starts_with("Leadership transferred from"), "{moved}");
        })
        .await
        .unwrap();
        for store in stores {
            store.shutdown().await;
        }
    }
}
