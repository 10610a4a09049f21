//! A cluster of real processes on one machine: servers and nodes, each in a network namespace of its own if this machine lets us.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use kontiki_agents::node::runtime::hollow::LEDGER;
use kontiki_base::env::Env;
use nix::sys::signal::Signal;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use super::disk::Disk;
use super::facts::{self, Clocks};
use super::keeper::Keeper;
use super::native::{self, ClockPage};
use super::net::{self, Net};
use super::procs::{Proc, Spec};
use super::scene::Scene;
use super::{delayer, tool};
use crate::Tools;
use crate::fault::{Fault, Unsynced};
use crate::history::NodeRecord;
use crate::plan::{self, Plan, Topology};

/// Ports in a namespace of one's own.
const CLIENT_PORT: u16 = 2379;
const PEER_PORT: u16 = 2380;
const API_PORT: u16 = 6443;
const AGENT_PORT: u16 = 10_250;

/// How long processes may take to end by themselves when the run is over.
const GOODBYE: Duration = Duration::from_secs(3);

/// A server.
pub(crate) struct Server {
    /// `s1`…: the name of its namespace.
    pub(crate) short: String,
    /// `server-1`…
    pub(crate) name: String,
    /// etcd v3.
    pub(crate) client: SocketAddr,
    /// Raft.
    pub(crate) peer: SocketAddr,
    /// Kubernetes.
    pub(crate) api: SocketAddr,
    /// Its process.
    pub(crate) proc: Proc,
    /// What its data is on.
    pub(crate) disk: Disk,
    /// Its clock, if it can be shifted.
    pub(crate) clock: Option<ClockPage>,
}

impl Server {
    /// Its Raft URL now.
    pub(crate) fn peer_url(&self) -> String {
        format!("https://{}", self.peer)
    }

    /// Gives it the flags of a member that joins: it learns from the others who it is. The address stays.
    pub(crate) fn become_another(&self) -> String {
        self.proc.change(|spec| {
            if !spec.command.iter().any(|w| w.starts_with("--initial-cluster-state")) {
                spec.command.push("--initial-cluster-state=existing".into());
            }
        });
        self.peer_url()
    }
}

/// A node with simulated pods.
pub(crate) struct Node {
    /// `n1`…
    pub(crate) short: String,
    /// `node-1`…
    pub(crate) name: String,
    /// Its agent.
    pub(crate) proc: Proc,
}

/// What this machine does not let us do, and why.
#[derive(Clone, Debug, Default)]
pub(crate) struct Lacks {
    /// Why there are no network namespaces.
    pub(crate) netns: Option<String>,
    /// Why packets cannot be delayed.
    pub(crate) queue: Option<String>,
    /// Why clocks cannot be shifted.
    pub(crate) clock: Option<String>,
    /// Why disks are plain folders though the plan needs more.
    pub(crate) disk: Option<String>,
}

/// A running cluster.
pub(crate) struct World {
    /// Its place.
    pub(crate) scene: Scene,
    /// Who undoes what we leave.
    pub(crate) keeper: Keeper,
    /// Its network, if it has one of its own.
    pub(crate) net: Option<Net>,
    /// Its servers, in order of their numbers.
    pub(crate) servers: Vec<Server>,
    /// Its nodes.
    pub(crate) nodes: Vec<Node>,
    /// What this machine does not let us do.
    pub(crate) lacks: Lacks,
    /// Time.
    pub(crate) env: Arc<dyn Env>,
    certificates: Certificates,
    ports: Vec<Ports>,
}

#[derive(Clone, Debug)]
struct Certificates {
    dir: PathBuf,
}

#[derive(Clone, Copy, Debug)]
struct Ports {
    client: SocketAddr,
    peer: SocketAddr,
    api: SocketAddr,
}

/// The disk that a plan needs.
pub(crate) fn disk_for(plan: &Plan) -> plan::Disk {
    if plan.topology.disk != plan::Disk::Auto {
        return plan.topology.disk;
    }
    let any = |test: fn(&Fault) -> bool| plan.schedule.iter().any(|e| test(&e.fault));
    let lossy = |f: &Fault| {
        let by_disk =
            matches!(f, Fault::FsyncEio {} | Fault::LyingFsync {} | Fault::DiskFull {} | Fault::DiskSlow { .. } | Fault::DiskStall {});
        by_disk || matches!(f, Fault::PowerLoss { unsynced: Unsynced::Torn })
    };
    if any(lossy) {
        plan::Disk::Fuse
    } else if any(|f| matches!(f, Fault::PowerLoss { .. })) {
        plan::Disk::Ext4
    } else {
        plan::Disk::Plain
    }
}

/// Names of namespaces.
fn shorts(topology: &Topology) -> Vec<String> {
    let servers = (1..=topology.servers).map(|i| format!("s{i}"));
    servers.chain((1..=topology.nodes).map(|i| format!("n{i}"))).collect()
}

impl World {
    /// Makes the machine's part of it: place, keeper, network. No process runs yet.
    ///
    /// # Errors
    /// The place cannot be made. What the machine does not allow is no error, but noted.
    pub(crate) fn prepare(plan: &Plan, env: Arc<dyn Env>) -> Result<(Scene, Keeper, Option<Net>, Lacks)> {
        let scene = Scene::new(env.random_u64()).context("cannot make a folder for the run")?;
        let keeper = Keeper::start(&scene).context("cannot start the keeper")?;
        let mut lacks = Lacks::default();
        let net = if !tool::root() {
            lacks.netns = Some("network namespaces need root".into());
            None
        } else {
            match Net::make(&scene, &shorts(&plan.topology)) {
                Ok(net) => Some(net),
                Err(e) => {
                    lacks.netns = Some(e.to_string());
                    let _ = scene.remove_netns();
                    None
                }
            }
        };
        lacks.queue.clone_from(&lacks.netns);
        if let Some(net) = &net
            && plan.schedule.iter().any(|e| matches!(e.fault, Fault::Delay { .. }))
        {
            let made = shorts(&plan.topology).iter().filter(|s| s.starts_with('s')).try_for_each(|s| delayer::prepare(&net.enter(s)));
            lacks.queue = made.err().map(|e| e.to_string());
        }
        Ok((scene, keeper, net, lacks))
    }

    /// Starts servers and nodes. Must be called on the runtime that the clients will use.
    ///
    /// # Errors
    /// A process, disk or certificate cannot be made. What was made goes with the scene.
    pub(crate) fn start(plan: &Plan, tools: &Tools, env: Arc<dyn Env>, prepared: (Scene, Keeper, Option<Net>, Lacks)) -> Result<Self> {
        let (scene, keeper, net, mut lacks) = prepared;
        let certificates = Certificates { dir: scene.dir.join("pki") };
        let ports = ports(&plan.topology, net.is_some())?;
        std::fs::create_dir_all(scene.dir.join("log")).context("cannot make a folder for logs")?;
        let mut world = Self { scene, keeper, net, servers: vec![], nodes: vec![], lacks: Lacks::default(), env, certificates, ports };
        let shim = world.shim(plan, &mut lacks);
        let mut kind = disk_for(plan);
        (tools.certify)(&world.certificates.dir, "admin", "kontiki-admin", "system:masters", &[]).context("cannot make certificates")?;
        for index in 0..plan.topology.servers {
            let name = format!("server-{}", index + 1);
            let disk = match Disk::make(&world.scene, &name, kind) {
                Ok(disk) => disk,
                Err(e) if plan.topology.disk == plan::Disk::Auto => {
                    lacks.disk = Some(e.to_string());
                    kind = plan::Disk::Plain;
                    Disk::make(&world.scene, &name, kind)?
                }
                Err(e) => return Err(e).context("the disk that the plan asks for cannot be made"),
            };
            let server = world.server(usize::from(index), &name, tools, disk, shim.as_deref())?;
            world.servers.push(server);
        }
        for index in 1..=plan.topology.nodes {
            let node = world.node(index, tools)?;
            world.nodes.push(node);
        }
        world.lacks = lacks;
        Ok(world)
    }

    fn shim(&self, plan: &Plan, lacks: &mut Lacks) -> Option<PathBuf> {
        if !plan.schedule.iter().any(|e| matches!(e.fault, Fault::ClockJump { .. })) {
            return None;
        }
        match native::clock_shim(&self.scene.dir) {
            Ok(shim) => Some(shim),
            Err(e) => {
                lacks.clock = Some(e.to_string());
                None
            }
        }
    }

    /// What servers and nodes run: this very program, unless another build of it is under test.
    fn program(tools: &Tools) -> Result<String> {
        let program = match &tools.program {
            Some(program) => program.clone(),
            None => std::env::current_exe().context("cannot find this program")?,
        };
        Ok(program.to_str().context("the path of this program is not UTF-8")?.to_owned())
    }

    fn server(&self, index: usize, name: &str, tools: &Tools, disk: Disk, shim: Option<&Path>) -> Result<Server> {
        let ports = self.ports[index];
        let names = ["localhost", "127.0.0.1", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "10.96.0.1"];
        let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).chain([name.to_owned(), ports.api.ip().to_string()]).collect();
        let files = (tools.certify)(&self.certificates.dir, name, &format!("kontiki:{name}"), "system:masters", &names)?;
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let mut apis: Vec<String> = self.ports.iter().map(|p| format!("https://{}", p.api)).collect();
        // Its own first: it is asked first.
        apis.rotate_left(index);
        let members = self.ports.iter().enumerate().map(|(i, p)| format!("server-{}=https://{}", i + 1, p.peer)).collect::<Vec<_>>();
        let short = format!("s{}", index + 1);
        let mut command = self.net.as_ref().map_or_else(Vec::new, |net| net.enter(&short));
        command.extend([Self::program(tools)?, "server".into()]);
        let mut flag = |name: &str, value: String| command.push(format!("--{name}={value}"));
        flag("name", name.to_owned());
        flag("data-dir", text(&disk.path().join("data")));
        flag("listen-client", ports.client.to_string());
        flag("advertise-client-url", format!("http://{}", ports.client));
        flag("listen-peer", ports.peer.to_string());
        flag("initial-cluster", members.join(","));
        flag("listen-api", ports.api.to_string());
        flag("api-servers", apis.join(","));
        flag("api-endpoints", self.ports.iter().map(|p| p.api.to_string()).collect::<Vec<_>>().join(","));
        flag("ca", text(&self.certificates.dir.join("ca.crt")));
        flag("cert", text(&files.0));
        flag("key", text(&files.1));
        let mut variables = Vec::new();
        let clock = match shim {
            None => None,
            Some(shim) => {
                let page = ClockPage::make(self.scene.dir.join(format!("clock-{name}")))?;
                variables.push(("LD_PRELOAD".to_owned(), text(shim)));
                variables.push(("KONTIKI_CHAOS_CLOCK".to_owned(), text(page.path())));
                Some(page)
            }
        };
        let spec = Spec { name: name.to_owned(), command, variables, log: self.log(name) };
        let proc = Proc::start(spec, &self.scene.id, self.env.clone());
        let Ports { client, peer, api } = ports;
        Ok(Server { short, name: name.to_owned(), client, peer, api, proc, disk, clock })
    }

    fn node(&self, index: u8, tools: &Tools) -> Result<Node> {
        let (name, short) = (format!("node-{index}"), format!("n{index}"));
        let listen = match &self.net {
            Some(_) => SocketAddr::from((net::address(&short), AGENT_PORT)),
            None => free_port()?.1,
        };
        let names = [name.clone(), listen.ip().to_string()];
        let files = (tools.certify)(&self.certificates.dir, &name, &format!("system:node:{name}"), "system:nodes", &names)?;
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let mut command = self.net.as_ref().map_or_else(Vec::new, |net| net.enter(&short));
        command.extend([Self::program(tools)?, "agent".into()]);
        let mut flag = |name: &str, value: String| command.push(format!("--{name}={value}"));
        flag("name", name.clone());
        flag("data-dir", text(&self.scene.dir.join(&name)));
        flag("servers", self.ports.iter().map(|p| format!("https://{}", p.api)).collect::<Vec<_>>().join(","));
        flag("listen", listen.to_string());
        flag("node-ip", listen.ip().to_string());
        flag("ca", text(&self.certificates.dir.join("ca.crt")));
        flag("cert", text(&files.0));
        flag("key", text(&files.1));
        let spec = Spec { name: name.clone(), command, variables: vec![], log: self.log(&name) };
        let proc = Proc::start(spec, &self.scene.id, self.env.clone());
        Ok(Node { short, name, proc })
    }

    fn log(&self, name: &str) -> PathBuf {
        self.scene.dir.join("log").join(format!("{name}.log"))
    }

    /// The members' etcd URLs.
    pub(crate) fn client_urls(&self) -> Vec<String> {
        self.servers.iter().map(|s| format!("http://{}", s.client)).collect()
    }

    /// A channel to all API ports, as the administrator: a dead server is passed over.
    ///
    /// # Errors
    /// A certificate cannot be read.
    pub(crate) fn api(&self) -> Result<Channel> {
        Ok(Channel::balance_list(self.api_endpoints()?.into_iter()))
    }

    /// A channel to each API port alone. They connect when they are used.
    ///
    /// # Errors
    /// A certificate cannot be read.
    pub(crate) fn apis(&self) -> Result<Vec<Channel>> {
        Ok(self.api_endpoints()?.iter().map(Endpoint::connect_lazy).collect())
    }

    fn api_endpoints(&self) -> Result<Vec<Endpoint>> {
        let read = |name: &str| std::fs::read(self.certificates.dir.join(name)).with_context(|| format!("cannot read {name}"));
        let tls = ClientTlsConfig::new()
            .domain_name("localhost")
            .ca_certificate(Certificate::from_pem(read("ca.crt")?))
            .identity(Identity::from_pem(read("admin.crt")?, read("admin.key")?));
        let endpoints = self.servers.iter().map(|server| {
            let endpoint = Endpoint::from_shared(format!("https://{}", server.api))?;
            let endpoint = endpoint.connect_timeout(Duration::from_secs(1)).timeout(Duration::from_secs(5));
            // A cut link is silent: without these a call would wait for TCP to give up.
            let endpoint = endpoint.http2_keep_alive_interval(Duration::from_secs(1)).keep_alive_timeout(Duration::from_secs(1));
            endpoint.keep_alive_while_idle(true).tls_config(tls.clone())
        });
        Ok(endpoints.collect::<Result<Vec<_>, _>>()?)
    }

    /// What each node ran, by its own ledger.
    ///
    /// # Errors
    /// A ledger cannot be read.
    pub(crate) fn facts(&self, now: Clocks) -> Result<Vec<NodeRecord>> {
        let ledgers = self.nodes.iter().map(|node| {
            let path = self.scene.dir.join(&node.name).join(LEDGER);
            facts::read(&path, &node.name, now).with_context(|| format!("cannot read {}", path.display()))
        });
        Ok(ledgers.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
    }

    /// Ends all processes, unmounts all disks, and removes everything from the machine.
    ///
    /// # Errors
    /// What is left.
    pub(crate) async fn end(self, keep: bool) -> Result<()> {
        let procs: Vec<Proc> = self.nodes.iter().map(|n| n.proc.clone()).chain(self.servers.iter().map(|s| s.proc.clone())).collect();
        for proc in &procs {
            proc.down();
            let _ = proc.signal(Signal::SIGCONT);
        }
        let farewells = procs.iter().map(|proc| async move {
            if proc.end(Signal::SIGTERM, GOODBYE).await.is_err() && proc.state().pid.is_some() {
                let _ = proc.end(Signal::SIGKILL, GOODBYE).await;
            }
            proc.down();
        });
        futures::future::join_all(farewells).await;
        let lossy: Vec<_> = self.servers.iter().filter_map(|s| s.disk.lossy().cloned()).collect();
        let scene = self.scene.clone();
        let removed = tokio::task::spawn_blocking(move || {
            for fs in lossy {
                // What does not unmount now is unmounted by force with the rest.
                let _ = fs.unmount();
            }
            scene.remove(keep)
        });
        let removed = removed.await.context("cleaning up panicked")?;
        self.keeper.done();
        if keep {
            eprintln!("the cluster's folder is kept: {}", self.scene.dir.display());
        }
        removed.map_err(|left| anyhow::anyhow!("this is left on the machine: {left}"))
    }
}

fn free_port() -> Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port on this machine")?;
    let address = listener.local_addr().context("a listener has an address")?;
    Ok((listener, address))
}

/// Addresses of all servers. On loopback ports are held until all are picked, so that none is picked twice.
fn ports(topology: &Topology, own_network: bool) -> Result<Vec<Ports>> {
    if own_network {
        let at = |short: &str, port: u16| SocketAddr::from((net::address(short), port));
        let of = |short: String| Ports { client: at(&short, CLIENT_PORT), peer: at(&short, PEER_PORT), api: at(&short, API_PORT) };
        return Ok((1..=topology.servers).map(|i| of(format!("s{i}"))).collect());
    }
    let mut held = Vec::new();
    let mut pick = || -> Result<SocketAddr> {
        let (listener, address) = free_port()?;
        held.push(listener);
        Ok(address)
    };
    let all: Vec<Ports> =
        (0..topology.servers).map(|_| Ok(Ports { client: pick()?, peer: pick()?, api: pick()? })).collect::<Result<_>>()?;
    if all.is_empty() {
        bail!("a cluster has servers");
    }
    Ok(all)
}
