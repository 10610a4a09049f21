//! Members of a store as processes: `kontiki store`, or a real etcd, with the same flags. They end with the test, however the test ends.

use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::cluster::program;
use crate::run::{Output, run};

/// A real etcd, where Debian puts it.
pub const ETCD: &str = "/usr/bin/etcd";

/// A cluster may take this long to serve on a busy machine, and a client to answer.
const LIMIT: Duration = Duration::from_secs(60);

/// Whose members they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `kontiki store`.
    Kontiki,
    /// The etcd of this machine.
    Etcd,
}

/// One member: its ports, and its process while it runs.
#[derive(Debug)]
struct Member {
    client: u16,
    peer: u16,
    child: Option<Child>,
}

/// A cluster of its own in a folder of its own.
#[derive(Debug)]
pub struct Stores {
    kind: Kind,
    dir: tempfile::TempDir,
    members: Vec<Member>,
}

/// So many ports that nobody used a moment ago, no two the same.
fn free_ports(count: usize) -> Vec<u16> {
    let held: Vec<TcpListener> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").expect("a port")).collect();
    held.iter().map(|socket| socket.local_addr().expect("it is bound").port()).collect()
}

impl Stores {
    /// Starts so many members and waits until all of them know a leader and have nothing to catch up with.
    ///
    /// # Panics
    /// They do not start.
    pub fn start(kind: Kind, count: usize) -> Self {
        let ports = free_ports(2 * count);
        let members = ports.chunks(2).map(|pair| Member { client: pair[0], peer: pair[1], child: None }).collect();
        let mut stores = Self { kind, dir: tempfile::tempdir().expect("a temporary folder"), members };
        for member in 0..count {
            stores.start_member(member);
        }
        stores.wait_for_leader();
        stores
    }

    /// Starts a member that does not run.
    ///
    /// # Panics
    /// There is no such program.
    pub fn start_member(&mut self, member: usize) {
        let log = File::create(self.log(member)).expect("a log can be written");
        let mut command = match self.kind {
            Kind::Kontiki => Command::new(program()),
            Kind::Etcd => Command::new(ETCD),
        };
        if self.kind == Kind::Kontiki {
            command.arg("store");
        }
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        let (client, peer) = (url(self.members[member].client), url(self.members[member].peer));
        let cluster: Vec<_> = self.members.iter().enumerate().map(|(n, m)| format!("m{n}={}", url(m.peer))).collect();
        command.arg("--name").arg(format!("m{member}")).arg("--data-dir").arg(self.dir.path().join(format!("m{member}")));
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--initial-cluster", &cluster.join(",")]);
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a file has two names")).stderr(log);
        self.members[member].child = Some(command.spawn().expect("the program of a member"));
    }

    /// Kills a member.
    ///
    /// # Panics
    /// It has ended already.
    pub fn kill(&mut self, member: usize) {
        let mut child = self.members[member].child.take().expect("it runs");
        child.kill().expect("it can be killed");
        child.wait().expect("it has ended");
    }

    /// Waits until every member that runs names the same leader; its place.
    ///
    /// # Panics
    /// It takes too long.
    #[allow(clippy::disallowed_methods, reason = "a limit on foreign programs, not a seam of ours")]
    pub fn wait_for_leader(&self) -> usize {
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Some(leader) = self.leader() {
                return leader;
            }
            assert!(Instant::now() < deadline, "no leader: {}", self.logs());
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn leader(&self) -> Option<usize> {
        let running = self.running();
        let status = self.etcdctl(&running, &["endpoint", "status", "-w", "json"]);
        let all: Vec<Value> = serde_json::from_str(status.out.trim()).ok()?;
        let id = |status: &Value| status["Status"]["header"]["member_id"].as_u64();
        let leaders: Vec<_> = all.iter().map(|status| status["Status"]["leader"].as_u64()).collect();
        let leader = (*leaders.first()?)?;
        if all.len() != running.len() || leaders.iter().any(|other| *other != Some(leader)) {
            return None;
        }
        let endpoint = all.iter().find(|status| id(status) == Some(leader))?["Endpoint"].as_str()?.to_owned();
        // It leads and applies what it is given: the first entry of a term included.
        let written = self.etcdctl(&running, &["endpoint", "health"]);
        if !written.ok {
            return None;
        }
        (0..self.members.len()).find(|member| self.endpoint(*member) == endpoint)
    }

    /// The members whose processes run.
    pub fn running(&self) -> Vec<usize> {
        (0..self.members.len()).filter(|member| self.members[*member].child.is_some()).collect()
    }

    /// `host:port` of a member, for clients.
    pub fn endpoint(&self, member: usize) -> String {
        format!("127.0.0.1:{}", self.members[member].client)
    }

    /// `host:port` of a member, for its peers.
    pub fn peer(&self, member: usize) -> String {
        format!("127.0.0.1:{}", self.members[member].peer)
    }

    /// The endpoints of these members, as etcdctl wants them.
    pub fn endpoints(&self, members: &[usize]) -> String {
        members.iter().map(|member| self.endpoint(*member)).collect::<Vec<_>>().join(",")
    }

    /// Runs etcdctl with these members.
    pub fn etcdctl(&self, members: &[usize], args: &[&str]) -> Output {
        run(Command::new("etcdctl").env("ETCDCTL_API", "3").arg("--endpoints").arg(self.endpoints(members)).args(args), LIMIT)
    }

    /// Where a member keeps its data.
    pub fn data(&self, member: usize) -> PathBuf {
        self.dir.path().join(format!("m{member}"))
    }

    /// A folder for whatever a test writes; it goes with the cluster.
    pub fn folder(&self) -> &Path {
        self.dir.path()
    }

    fn log(&self, member: usize) -> PathBuf {
        self.dir.path().join(format!("m{member}.log"))
    }

    fn logs(&self) -> String {
        let read = |member| std::fs::read_to_string(self.log(member)).unwrap_or_default();
        (0..self.members.len()).map(|member| format!("\n--- m{member}\n{}", read(member))).collect()
    }
}

impl Drop for Stores {
    fn drop(&mut self) {
        for member in &mut self.members {
            if let Some(mut child) = member.child.take() {
                // It may have ended by itself; then there is nothing to kill.
                let _ = child.kill();
                let _ = child.wait();
            }
        }
    }
}
