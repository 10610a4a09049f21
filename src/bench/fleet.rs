//! Members that the benchmark starts itself: of the store, and of a real etcd. All are ended with it, however it ends.

use std::collections::BTreeSet;
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use kontiki_proto::etcd::etcdserverpb as pb;
use pb::kv_client::KvClient;
use pb::maintenance_client::MaintenanceClient;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};
use tonic::transport::{Channel, Endpoint};

use super::cage::Cage;
use super::procs;

/// How long a cluster may take until it serves.
const READY: Duration = Duration::from_secs(60);

/// How long a member may take to end by itself.
const GRACE: Duration = Duration::from_secs(20);

/// Between two looks.
const POLL: Duration = Duration::from_millis(5);

/// What runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// `kontiki store`.
    Kontiki,
    /// A real etcd.
    Etcd,
}

/// A store under load: somebody's, or our own.
pub(super) struct Target {
    /// What it is called in reports.
    pub(super) name: String,
    /// Where clients reach its members.
    pub(super) endpoints: Vec<SocketAddr>,
    fleet: Option<Fleet>,
}

struct Fleet {
    kind: Kind,
    binary: PathBuf,
    dir: tempfile::TempDir,
    client: Vec<u16>,
    peer: Vec<u16>,
    members: Vec<Child>,
    special: Special,
}

/// What members are started with beside what all have.
#[derive(Default)]
pub(super) struct Special {
    /// More arguments.
    pub(super) args: Vec<String>,
    /// The memory that each process is allowed, page cache included.
    pub(super) cage: Option<Cage>,
}

fn free_ports(count: usize) -> Result<Vec<u16>> {
    // All are held until all are picked, so that none is picked twice.
    let held: Vec<TcpListener> = (0..count).map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).collect::<Result<_, _>>()?;
    held.iter().map(|socket| Ok(socket.local_addr()?.port())).collect()
}

/// Where etcd is, or what to do about it.
pub(super) fn find_etcd(given: Option<&Path>) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let candidates =
        given.map_or_else(|| std::env::split_paths(&path).map(|dir| dir.join("etcd")).collect(), |given| vec![given.to_owned()]);
    let found = candidates.into_iter().find(|candidate| candidate.is_file());
    found.context("there is no etcd to compare with: `apt-get install etcd-server`, or name one with --etcd")
}

impl Target {
    /// A store that runs already.
    pub(super) fn running(name: &str, endpoints: Vec<SocketAddr>) -> Self {
        Self { name: name.to_owned(), endpoints, fleet: None }
    }

    /// Starts a cluster of so many members in a folder of its own under `under`, and waits until it serves.
    pub(super) async fn start(kind: Kind, binary: PathBuf, members: u8, under: &Path) -> Result<Self> {
        let mut target = Self::prepared(kind, binary, members, under, Special::default())?;
        target.begin().await?;
        Ok(target)
    }

    /// One that does not run yet, with a folder of its own: [`Target::home`] says where data may be put for a member before it begins.
    pub(super) fn prepared(kind: Kind, binary: PathBuf, members: u8, under: &Path, special: Special) -> Result<Self> {
        let name = if kind == Kind::Kontiki { "kontiki" } else { "etcd" };
        let dir = tempfile::Builder::new().prefix(&format!("bench-{name}-")).tempdir_in(under);
        let dir = dir.with_context(|| format!("cannot make a folder in {}", under.display()))?;
        let mut ports = free_ports(2 * usize::from(members))?;
        let peer = ports.split_off(usize::from(members));
        let endpoints = ports.iter().map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, *port))).collect();
        let fleet = Fleet { kind, binary, dir, client: ports, peer, members: Vec::new(), special };
        Ok(Self { name: name.to_owned(), endpoints, fleet: Some(fleet) })
    }

    /// Starts the members; how long it took until all of them answered a linearizable read.
    pub(super) async fn begin(&mut self) -> Result<Duration> {
        let fleet = self.fleet.as_mut().context("only members that the benchmark started can be started")?;
        let began = Instant::now();
        fleet.spawn().await?;
        self.ready().await?;
        Ok(began.elapsed())
    }

    /// Where a member of ours keeps its data, and its URL for peers.
    pub(super) fn home(&self, member: usize) -> Option<(PathBuf, String)> {
        let fleet = self.fleet.as_ref()?;
        Some((fleet.data(member), format!("http://127.0.0.1:{}", fleet.peer[member])))
    }

    /// Waits until every member answers a linearizable read.
    async fn ready(&self) -> Result<()> {
        let deadline = Instant::now() + READY;
        for endpoint in &self.endpoints {
            while let Err(why) = read(*endpoint).await {
                if Instant::now() > deadline {
                    bail!("{} at {endpoint} does not serve: {why:#}", self.name);
                }
                sleep(POLL).await;
            }
        }
        Ok(())
    }

    /// Ends all members, starts them again on their data, and tells how long it took until one answered a linearizable read.
    pub(super) async fn restart(&mut self) -> Result<Duration> {
        let fleet = self.fleet.as_mut().context("only members that the benchmark started can be restarted")?;
        fleet.end().await?;
        let began = Instant::now();
        fleet.spawn().await?;
        self.ready().await?;
        Ok(began.elapsed())
    }

    /// Ends the members and removes their data.
    pub(super) async fn stop(mut self) -> Result<()> {
        if let Some(fleet) = &mut self.fleet {
            fleet.end().await?;
        }
        Ok(())
    }

    /// The processes of the members, as far as they run on this machine.
    pub(super) fn pids(&self) -> BTreeSet<u32> {
        self.endpoints.iter().filter_map(|endpoint| procs::listener(*endpoint)).collect()
    }

    /// The folder that its disk is known by.
    pub(super) fn folder(&self) -> PathBuf {
        self.fleet.as_ref().map_or_else(std::env::temp_dir, |fleet| fleet.dir.path().to_owned())
    }

    /// The member that leads, and its version.
    pub(super) async fn leader(&self) -> Result<(SocketAddr, String)> {
        let mut why = anyhow::anyhow!("none of them leads");
        for endpoint in &self.endpoints {
            match status(*endpoint).await {
                Ok(status) if status.header.is_some_and(|header| header.member_id == status.leader) => {
                    return Ok((*endpoint, status.version));
                }
                Ok(_) => {}
                Err(error) => why = error,
            }
        }
        Err(why.context(format!("{}: no leader among {:?}", self.name, self.endpoints)))
    }
}

pub(super) async fn connect(endpoint: SocketAddr) -> Result<Channel> {
    let to = Endpoint::try_from(format!("http://{endpoint}"))?.connect_timeout(Duration::from_secs(2)).timeout(Duration::from_secs(5));
    Ok(to.connect().await?)
}

async fn read(endpoint: SocketAddr) -> Result<()> {
    let request = pb::RangeRequest { key: "ready".into(), ..Default::default() };
    KvClient::new(connect(endpoint).await?).range(request).await?;
    Ok(())
}

/// What a member says of itself.
pub(super) async fn status(endpoint: SocketAddr) -> Result<pb::StatusResponse> {
    let answer = MaintenanceClient::new(connect(endpoint).await?).status(pb::StatusRequest::default()).await;
    Ok(answer.with_context(|| format!("{endpoint} does not tell its status"))?.into_inner())
}

/// Grants leases at a member.
pub(super) async fn grant(endpoint: SocketAddr, count: u32) -> Result<Vec<i64>> {
    let mut client = pb::lease_client::LeaseClient::new(connect(endpoint).await?);
    let mut leases = Vec::new();
    for _ in 0..count {
        let request = pb::LeaseGrantRequest { ttl: 600, ..Default::default() };
        leases.push(client.lease_grant(request).await?.into_inner().id);
    }
    Ok(leases)
}

/// One ordinary put: what a refusal says in words.
pub(super) async fn explain(endpoint: SocketAddr) -> String {
    let request = pb::PutRequest { key: "explain".into(), ..Default::default() };
    let asked = async { KvClient::new(connect(endpoint).await?).put(request).await.map_err(anyhow::Error::from) };
    asked.await.map_or_else(|error| format!("{error:#}"), |_| "a single put goes well: the refusals were of the load".into())
}

impl Fleet {
    async fn spawn(&mut self) -> Result<()> {
        for member in 0..self.client.len() {
            let log = File::create(self.dir.path().join(format!("m{member}.log"))).context("cannot write a log")?;
            let mut command = tied_to_us(&self.binary, self.special.cage.as_ref()).await;
            command.args(self.args(member));
            command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).kill_on_drop(true).process_group(0);
            self.members.push(command.spawn().with_context(|| format!("cannot start {}", self.binary.display()))?);
        }
        Ok(())
    }

    fn args(&self, member: usize) -> Vec<String> {
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        let cluster: Vec<String> = self.peer.iter().enumerate().map(|(n, port)| format!("m{n}={}", url(*port))).collect();
        let (client, peer) = (self.client[member], self.peer[member]);
        let data = self.data(member).to_string_lossy().into_owned();
        let mut args = match self.kind {
            Kind::Kontiki => vec!["store".into(), format!("--listen-client=127.0.0.1:{client}"), format!("--listen-peer=127.0.0.1:{peer}")],
            Kind::Etcd => vec![
                format!("--listen-client-urls={}", url(client)),
                format!("--advertise-client-urls={}", url(client)),
                format!("--listen-peer-urls={}", url(peer)),
                format!("--initial-advertise-peer-urls={}", url(peer)),
                // Its default of 2 GiB would end a long run, not slow it down.
                "--quota-backend-bytes=8589934592".into(),
            ],
        };
        args.extend([format!("--name=m{member}"), format!("--data-dir={data}"), format!("--initial-cluster={}", cluster.join(","))]);
        args.extend(self.special.args.iter().cloned());
        args
    }

    fn data(&self, member: usize) -> PathBuf {
        self.dir.path().join(format!("m{member}"))
    }

    async fn end(&mut self) -> Result<()> {
        for member in &self.members {
            let pid = member.id().and_then(|pid| i32::try_from(pid).ok());
            if let Some(pid) = pid {
                let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM);
            }
        }
        for mut member in self.members.drain(..) {
            if timeout(GRACE, member.wait()).await.is_err() {
                member.kill().await.context("cannot end a member")?;
            }
        }
        Ok(())
    }
}

/// A command that is killed by the system when this process ends, in whatever way; without `setpriv` only when it ends in order.
async fn tied_to_us(binary: &Path, cage: Option<&Cage>) -> Command {
    let probe = Command::new("setpriv").args(["--pdeathsig=KILL", "true"]).stdout(Stdio::null()).stderr(Stdio::null()).status().await;
    if probe.is_ok_and(|status| status.success()) {
        let mut command = Command::new("setpriv");
        command.arg("--pdeathsig=KILL");
        if let Some(cage) = cage {
            command.args(cage.enter());
        }
        command.arg(binary);
        command
    } else if let Some([first, rest @ ..]) = cage.map(Cage::enter).as_deref() {
        let mut command = Command::new(first);
        command.args(rest).arg(binary);
        command
    } else {
        Command::new(binary)
    }
}
