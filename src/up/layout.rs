//! What `kontiki up` keeps in its data folder: paths, ports and the state file that `down`, `status` and `chaos` read.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

/// The data folder of one cluster.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    /// Absolute path.
    pub(crate) dir: PathBuf,
}

/// The cluster as it was started: enough to find, judge and end it. Written whole, by rename.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct State {
    /// Format of this file.
    pub(crate) version: u32,
    /// The process that restarts the others when they die.
    pub(crate) supervisor: i32,
    /// `cri` or `hollow`.
    pub(crate) runtime: String,
    /// The one local address that is forwarded to any living server.
    pub(crate) forward: SocketAddr,
    /// Control-plane members.
    pub(crate) servers: Vec<Server>,
    /// Nodes.
    pub(crate) nodes: Vec<Node>,
}

/// One control-plane member.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Server {
    /// `server-1`…
    pub(crate) name: String,
    /// Its process; 0 while it is not running.
    pub(crate) pid: i32,
    /// Kubernetes REST and gRPC, TLS.
    pub(crate) api: u16,
    /// etcd v3.
    pub(crate) client: u16,
    /// Raft.
    pub(crate) peer: u16,
}

/// One node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Node {
    /// `node-1`…
    pub(crate) name: String,
    /// Its agent's process; 0 while it is not running.
    pub(crate) pid: i32,
    /// The agent's own TLS port, for logs.
    pub(crate) port: u16,
}

/// The format that this program writes.
const STATE_VERSION: u32 = 1;

/// First choices for ports: what people type from memory. A taken one is replaced by a free one.
const FORWARD_PORT: u16 = 6443;
const API_PORT: u16 = 7443;
const CLIENT_PORT: u16 = 2379;
const PEER_PORT: u16 = 2380;
const AGENT_PORT: u16 = 10250;
const PORT_STEP: u16 = 10_000;

impl Layout {
    /// The layout in `dir`, which is created if it is not there.
    pub(crate) fn open(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        for sub in ["pki", "log"] {
            fs::create_dir_all(dir.join(sub)).with_context(|| format!("cannot create {}/{sub}", dir.display()))?;
        }
        let dir = dir.canonicalize().with_context(|| format!("cannot open {}", dir.display()))?;
        Ok(Self { dir })
    }

    /// Where the authority and its certificates are.
    pub(crate) fn pki(&self) -> PathBuf {
        self.dir.join("pki")
    }

    /// Where processes write what they have to say.
    pub(crate) fn log(&self, name: &str) -> PathBuf {
        self.dir.join("log").join(format!("{name}.log"))
    }

    /// The kubeconfig.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.dir.join("kubeconfig")
    }

    /// Data of one process.
    pub(crate) fn of(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn state_file(&self) -> PathBuf {
        self.dir.join("up.json")
    }

    /// The state of the cluster that was last started here, if any.
    pub(crate) fn load(&self) -> Result<Option<State>> {
        let path = self.state_file();
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e).with_context(|| format!("cannot read {}", path.display())),
        };
        let state: State =
            serde_json::from_str(&text).with_context(|| format!("{} is damaged; remove it to start afresh", path.display()))?;
        if state.version != STATE_VERSION {
            bail!(
                "{} was written by another version of kontiki (format {}, this one knows {STATE_VERSION})",
                path.display(),
                state.version
            );
        }
        Ok(Some(state))
    }

    /// Held while an `up` runs here: a second one is refused. The system releases it when the process ends, however it ends.
    pub(crate) fn lock(&self) -> Result<Flock<fs::File>> {
        let path = self.dir.join("up.lock");
        let file = fs::File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        Flock::lock(file, FlockArg::LockExclusiveNonblock)
            .map_err(|(_, e)| anyhow::anyhow!("another `kontiki up` holds {} ({e})", self.dir.display()))
    }

    /// Writes down that nothing of the cluster runs.
    pub(crate) fn forget_processes(&self) -> Result<()> {
        let Some(mut state) = self.load()? else { return Ok(()) };
        state.supervisor = 0;
        for pid in state.servers.iter_mut().map(|s| &mut s.pid).chain(state.nodes.iter_mut().map(|n| &mut n.pid)) {
            *pid = 0;
        }
        self.save(&state)
    }

    /// Writes the state.
    pub(crate) fn save(&self, state: &State) -> Result<()> {
        let path = self.state_file();
        let fresh = path.with_extension("json.new");
        fs::write(&fresh, serde_json::to_vec_pretty(state)?).with_context(|| format!("cannot write {}", fresh.display()))?;
        fs::rename(&fresh, &path).with_context(|| format!("cannot write {}", path.display()))
    }
}

/// Held from the choice of ports until the processes listen on them: two clusters that start at once would choose the same.
/// Waits for its turn, and says so when that takes long.
pub(crate) async fn turn() -> Result<Flock<fs::File>> {
    turn_at(&std::env::temp_dir().join(format!("kontiki-up-{}.lock", nix::unistd::getuid()))).await
}

async fn turn_at(path: &Path) -> Result<Flock<fs::File>> {
    let mut tries = 0_u32;
    loop {
        let file = fs::OpenOptions::new().create(true).truncate(false).write(true).open(path);
        let file = file.with_context(|| format!("cannot write {}", path.display()))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((_, Errno::EWOULDBLOCK)) => {}
            Err((_, errno)) => bail!("cannot lock {}: {errno}", path.display()),
        }
        tries += 1;
        if tries == 40 {
            eprintln!("waiting for another `kontiki up` on this machine to finish starting");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

impl State {
    /// A new cluster: names, and ports that are free now.
    pub(crate) fn plan(servers: usize, nodes: usize, runtime: &str) -> Result<Self> {
        let mut ports = Ports::default();
        let forward = SocketAddr::from((Ipv4Addr::LOCALHOST, ports.pick(FORWARD_PORT)?));
        let servers = (0..servers)
            .map(|i| {
                let shift = |port: u16| port.saturating_add(PORT_STEP.saturating_mul(u16::try_from(i).unwrap_or(u16::MAX)));
                Ok(Server {
                    name: format!("server-{}", i + 1),
                    pid: 0,
                    api: ports.pick(API_PORT + u16::try_from(i)?)?,
                    client: ports.pick(shift(CLIENT_PORT))?,
                    peer: ports.pick(shift(PEER_PORT))?,
                })
            })
            .collect::<Result<_>>()?;
        let nodes = (0..nodes)
            .map(|i| {
                // In a namespace of its own every agent has the usual port; simulated nodes share this machine's.
                let port = if runtime == "cri" { AGENT_PORT } else { ports.pick(AGENT_PORT + 1 + u16::try_from(i)?)? };
                Ok(Node { name: format!("node-{}", i + 1), pid: 0, port })
            })
            .collect::<Result<_>>()?;
        Ok(Self { version: STATE_VERSION, supervisor: 0, runtime: runtime.into(), forward, servers, nodes })
    }

    /// Every child process: name and pid.
    pub(crate) fn children(&self) -> impl Iterator<Item = (&str, i32)> {
        self.servers.iter().map(|s| (s.name.as_str(), s.pid)).chain(self.nodes.iter().map(|n| (n.name.as_str(), n.pid)))
    }

    /// Records the pid of a child.
    pub(crate) fn set_pid(&mut self, name: &str, pid: i32) {
        for server in self.servers.iter_mut().filter(|s| s.name == name) {
            server.pid = pid;
        }
        for node in self.nodes.iter_mut().filter(|n| n.name == name) {
            node.pid = pid;
        }
    }
}

/// Picks ports and holds them until all are picked, so that none is picked twice.
#[derive(Default)]
struct Ports {
    held: Vec<TcpListener>,
}

impl Ports {
    fn pick(&mut self, wanted: u16) -> Result<u16> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, wanted))
            .or_else(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))
            .context("no free port on this machine")?;
        let port = listener.local_addr().context("a listener has an address")?.port();
        self.held.push(listener);
        Ok(port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_differ_even_when_the_usual_ones_are_taken() {
        let _taken = TcpListener::bind((Ipv4Addr::LOCALHOST, FORWARD_PORT));
        let state = State::plan(3, 2, "hollow").unwrap();
        let mut ports = vec![state.forward.port()];
        ports.extend(state.servers.iter().flat_map(|s| [s.api, s.client, s.peer]));
        ports.extend(state.nodes.iter().map(|n| n.port));
        let count = ports.len();
        ports.sort_unstable();
        ports.dedup();
        assert_eq!((ports.len(), count), (12, 12));
    }

    #[tokio::test]
    async fn clusters_start_one_after_the_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("turn");
        let first = turn_at(&path).await.unwrap();
        let second = tokio::spawn(async move { turn_at(&path).await.map(drop) });
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(!second.is_finished());
        drop(first);
        second.await.unwrap().unwrap();
    }

    #[test]
    fn state_survives_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::open(dir.path()).unwrap();
        assert!(layout.load().unwrap().is_none());
        let mut state = State::plan(1, 1, "hollow").unwrap();
        state.set_pid("node-1", 17);
        layout.save(&state).unwrap();
        let back = layout.load().unwrap().unwrap();
        assert_eq!(back.children().collect::<Vec<_>>(), [("server-1", 0), ("node-1", 17)]);
    }
}
