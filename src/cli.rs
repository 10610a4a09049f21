//! The command line: every command with its flags, and nothing else.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

pub(crate) use crate::store::args::StoreArgs;

/// What is logged if nobody says.
pub(crate) const LOG: &str = "info,openraft=error,openraft::raft::api::management=off,fuser=error";

/// Kubernetes on a Raft: a highly available control plane in one binary.
#[derive(Debug, Parser)]
#[command(version, propagate_version = true, arg_required_else_help = true)]
pub(crate) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,

    /// Send traces to this OTLP/gRPC endpoint, such as http://127.0.0.1:4317
    ///
    /// `up` hands it to all its processes. Nodes that are network namespaces (--runtime cri) reach no collector at a loopback address.
    #[arg(long, global = true, value_name = "URL", env = "KONTIKI_OTLP_ENDPOINT")]
    pub(crate) otlp_endpoint: Option<String>,

    /// What to log: a level, or `target=level` pairs as in RUST_LOG
    #[arg(
        long,
        global = true,
        value_name = "FILTER",
        default_value = LOG,
        env = "KONTIKI_LOG"
    )]
    pub(crate) log: String,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start a highly available cluster on this machine, for development
    ///
    /// Servers and node agents run as child processes and are restarted when they die. Ctrl-C ends everything; the data folder is kept,
    /// and the next `up` on it goes on where this one stopped.
    Up(UpArgs),
    /// End a cluster that `up` started: no process, mount, namespace or link is left
    Down(DownArgs),
    /// Show members, nodes, and what is wrong, if anything
    Status(StatusArgs),
    /// Run one control-plane member: store, API server, controllers and scheduler
    Server(Box<ServerArgs>),
    /// Run one node: starts pods and reports on them
    Agent(Box<AgentArgs>),
    /// Run the store alone: speaks etcd v3, and takes etcd's flags; or verify its data directory
    Store(Box<StoreLine>),
    /// Show and change who belongs to a store's cluster
    Member(crate::member::MemberCommand),
    /// Explain, with evidence: why the store's leader changed
    Why(crate::why::WhyArgs),
    /// Break a cluster, and prove what held
    Chaos(kontiki_chaos::cli::ChaosArgs),
    /// Measure a store that speaks etcd v3, alone or against another
    Bench(crate::bench::BenchArgs),
    /// Images that come with this binary
    Image(ImageArgs),
    /// Save, inspect, restore and import the store's state
    Snapshot(Box<crate::snapshot::cli::SnapshotArgs>),
}

/// What a member without data takes part in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ClusterState {
    /// The birth of the cluster that --initial-cluster lists
    New,
    /// A cluster that runs, and has this member in its list
    Existing,
}

/// How nodes run pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Runtime {
    /// containerd if this machine can, else simulated pods
    Auto,
    /// containerd: each node is a network namespace with its own containerd (needs root)
    Cri,
    /// Simulated pods: no container is started
    Hollow,
}

/// `kontiki up`.
#[derive(Debug, Args)]
pub(crate) struct UpArgs {
    /// Control-plane members
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=9))]
    pub(crate) servers: u8,

    /// Nodes
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(0..=50))]
    pub(crate) nodes: u8,

    /// How nodes run pods
    #[arg(long, value_enum, default_value_t = Runtime::Auto)]
    pub(crate) runtime: Runtime,

    /// Where everything is kept
    #[arg(long, value_name = "DIR", default_value = default_data_dir(), env = "KONTIKI_DATA_DIR")]
    pub(crate) data_dir: PathBuf,

    /// Return when the cluster is ready, and leave it running
    #[arg(long)]
    pub(crate) detach: bool,

    /// Give up if the cluster is not ready in this time
    #[arg(long, value_name = "SECONDS", default_value = "120", value_parser = seconds)]
    pub(crate) timeout: Duration,

    /// End the cluster when this process ends: for harnesses, which may be killed
    #[arg(long, value_name = "PID", hide = true)]
    pub(crate) while_process: Option<i32>,
}

/// `kontiki down`.
#[derive(Debug, Args)]
pub(crate) struct DownArgs {
    /// The data folder that was given to `up`
    #[arg(long, value_name = "DIR", default_value = default_data_dir(), env = "KONTIKI_DATA_DIR")]
    pub(crate) data_dir: PathBuf,

    /// Remove the data folder, too
    #[arg(long)]
    pub(crate) purge: bool,
}

/// `kontiki status`.
#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// The data folder that was given to `up`
    #[arg(long, value_name = "DIR", default_value = default_data_dir(), env = "KONTIKI_DATA_DIR")]
    pub(crate) data_dir: PathBuf,
}

/// What a server's own store member needs to know. `kontiki store` takes etcd's flags instead.
#[derive(Debug, Args)]
pub(crate) struct MemberArgs {
    /// This member's name: unique in the cluster, and listed in --initial-cluster
    #[arg(long)]
    pub(crate) name: String,

    /// Where the member keeps its data
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: PathBuf,

    /// Where etcd clients are served
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:2379")]
    pub(crate) listen_client: SocketAddr,

    /// Where other members are served
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:2380")]
    pub(crate) listen_peer: SocketAddr,

    /// The URL that this member tells clients; by default its listening address
    #[arg(long, value_name = "URL")]
    pub(crate) advertise_client_url: Option<String>,

    /// All members at the cluster's birth: name=peer-url,… ; by default this one alone
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub(crate) initial_cluster: Vec<String>,

    /// Members with another token are of another cluster, and are refused
    #[arg(long, value_name = "TOKEN", default_value = "kontiki")]
    pub(crate) initial_cluster_token: String,

    /// `existing`: this member was added to a cluster that runs (etcdctl member add), and begins with an empty data folder
    #[arg(long, value_enum, default_value_t = ClusterState::New)]
    pub(crate) initial_cluster_state: ClusterState,

    /// Milliseconds between the leader's heartbeats
    #[arg(long, value_name = "MS", default_value_t = 100)]
    pub(crate) heartbeat_interval: u64,

    /// Serve etcd clients with TLS and this server's certificate, and let in those alone whom the cluster's authority knows
    #[arg(long)]
    pub(crate) client_tls: bool,

    /// Milliseconds without a leader after which a member stands for election
    #[arg(long, value_name = "MS", default_value_t = 700)]
    pub(crate) election_timeout: u64,

    /// Tokens of etcd clients that log in: simple, or jwt,sign-method=EdDSA,pub-key=FILE,priv-key=FILE,ttl=10m
    #[arg(long, value_name = "KIND", default_value = "simple")]
    pub(crate) auth_token: String,

    /// Seconds after its last use when a simple token ends
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    pub(crate) auth_token_ttl: u64,

    /// The cost of hashing a user's password, from 4 to 31: each step doubles it
    #[arg(long, value_name = "COST", default_value_t = 10)]
    pub(crate) bcrypt_cost: u32,
}

/// Certificate files.
#[derive(Debug, Args)]
pub(crate) struct TlsArgs {
    /// Certificate authority of the cluster (PEM)
    #[arg(long, value_name = "FILE")]
    pub(crate) ca: PathBuf,

    /// This process's certificate (PEM): it serves with it, and is known to others by it
    #[arg(long, value_name = "FILE")]
    pub(crate) cert: PathBuf,

    /// Its key (PEM)
    #[arg(long, value_name = "FILE")]
    pub(crate) key: PathBuf,
}

/// `kontiki server`.
#[derive(Debug, Args)]
pub(crate) struct ServerArgs {
    #[command(flatten)]
    pub(crate) member: MemberArgs,

    #[command(flatten)]
    pub(crate) tls: TlsArgs,

    /// Where the Kubernetes API is served: REST and gRPC on one TLS port
    #[arg(long, value_name = "ADDR", default_value = "0.0.0.0:6443")]
    pub(crate) listen_api: SocketAddr,

    /// API addresses of all servers, this one included: https://host:port,…
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub(crate) api_servers: Vec<String>,

    /// IP addresses under which pods reach the servers' API ports, for the `kubernetes` service: ip:port,…
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub(crate) api_endpoints: Vec<SocketAddr>,
}

/// `kontiki store`: a member is run unless a command follows.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct StoreLine {
    /// What else to do
    #[command(subcommand)]
    pub(crate) command: Option<StoreCommand>,

    #[command(flatten)]
    pub(crate) serve: StoreArgs,
}

/// What can be done with a store beside running it.
#[derive(Debug, Subcommand)]
pub(crate) enum StoreCommand {
    /// Look at the data directory of a member that is not running: can it be trusted?
    ///
    /// Every record of the log and every block of the state is read and compared with its checksum; then the state is checked against itself
    /// (each key against its history, leases against their keys) and against the log. Nothing is changed. A batch that a crash cut
    /// off at the end of the log is fine; anything damaged before it is named with its file and offset, with what to do. Exits with 1
    /// if something is wrong.
    Verify(crate::verify::VerifyArgs),
}

/// `kontiki agent`.
#[derive(Debug, Args)]
pub(crate) struct AgentArgs {
    /// The node's name
    #[arg(long)]
    pub(crate) name: String,

    /// API addresses of the servers: https://host:port,…
    #[arg(long, value_name = "LIST", value_delimiter = ',', required = true)]
    pub(crate) servers: Vec<String>,

    #[command(flatten)]
    pub(crate) tls: TlsArgs,

    /// Where the agent keeps volumes and logs
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: PathBuf,

    /// Where servers reach the agent, for logs
    #[arg(long, value_name = "ADDR", default_value = "0.0.0.0:10250")]
    pub(crate) listen: SocketAddr,

    /// The node's own address
    #[arg(long, value_name = "IP", default_value = "127.0.0.1")]
    pub(crate) node_ip: std::net::IpAddr,

    /// Socket of a CRI v1 runtime; without it pods are simulated
    #[arg(long, value_name = "PATH")]
    pub(crate) cri_socket: Option<PathBuf>,

    /// Cgroup under which pods are put
    #[arg(long, value_name = "PATH", default_value = "/kubepods")]
    pub(crate) cgroup_parent: String,
}

/// `kontiki image`.
#[derive(Debug, Args)]
pub(crate) struct ImageArgs {
    /// Which image
    #[command(subcommand)]
    pub(crate) image: ImageCommand,
}

/// The images.
#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    /// Write a tiny image that serves HTTP on port 8080 and prints its name, and import it on the nodes of `up`
    Demo {
        /// Where to write the OCI archive
        #[arg(long, value_name = "FILE", default_value = "kontiki-demo.tar")]
        output: PathBuf,

        /// The data folder that was given to `up`; its nodes get the image
        #[arg(long, value_name = "DIR", default_value = default_data_dir(), env = "KONTIKI_DATA_DIR")]
        data_dir: PathBuf,
    },
}

fn default_data_dir() -> std::ffi::OsString {
    let home = std::env::var_os("HOME").unwrap_or_else(|| "/var/lib".into());
    PathBuf::from(home).join(".kontiki").into_os_string()
}

pub(crate) fn seconds(text: &str) -> Result<Duration, String> {
    let number = text.strip_suffix('s').unwrap_or(text);
    match number.parse::<u64>() {
        Ok(n) if n > 0 => Ok(Duration::from_secs(n)),
        _ => Err(format!("{text:?} is not a positive number of seconds")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_store_is_run_or_verified() {
        let line = |words: &[&str]| match Cli::try_parse_from([&["kontiki", "store"], words].concat()).map(|cli| cli.command) {
            Ok(Command::Store(line)) => Ok((line.command.is_some(), line.serve.given().map_err(|e| e.to_string())?.get("name").to_owned())),
            other => Err(format!("{other:?}")),
        };
        assert_eq!(line(&["--name", "a", "--data-dir", "d"]), Ok((false, "a".into())));
        assert!(line(&["verify", "d"]).is_ok_and(|(verified, _)| verified));
        for bad in [&["verify"][..], &["--name", "a", "verify", "d"]] {
            assert!(line(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn durations_are_seconds() {
        assert_eq!(seconds("60s"), Ok(Duration::from_secs(60)));
        assert_eq!(seconds("7"), Ok(Duration::from_secs(7)));
        assert!(seconds("0").is_err() && seconds("1h").is_err());
    }
}
