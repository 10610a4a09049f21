//! How a store is made: one struct, checked once.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kontiki_base::env::Env;
use kontiki_base::limits;

use crate::auth::AuthOptions;
use crate::compactor::{CompactionMode, Retention};
use crate::error::StoreError;
pub use crate::http::Connections;
pub use crate::listen::{Listen, ListenError};
use crate::raft::node::Timings;
use crate::room::{DISK_RESERVE, FsSpace, RoomLimits};
pub use crate::tls::{PeerTls, Pem, TlsOptions, TlsVersions, cipher_suites};

/// What `Maintenance.Status` reports as its version. Clients gate features by it, so it names the etcd release whose behaviour this is.
pub const ETCD_VERSION: &str = "3.6.11";

/// The version of the cluster and of the storage, as etcd 3.6 has them.
pub const ETCD_CLUSTER_VERSION: &str = "3.6.0";

/// What clients may ask for at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Bytes of a request.
    pub request_bytes: usize,
    /// Steps, and conditions, of a transaction.
    pub txn_ops: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { request_bytes: limits::REQUEST_BYTES, txn_ops: limits::TXN_OPS }
    }
}

/// Who may use the HTTP side of the client port from a browser, or under another name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HttpGuard {
    /// Origins that browsers are told to trust; `*` for all. Empty: nothing is said to browsers.
    pub cors: Vec<String>,
    /// Names under which the plaintext port may be addressed; `*` for any. Empty: any.
    pub hosts: Vec<String>,
}

/// How a store is made.
pub struct StoreConfig {
    /// This member's name; one of `initial_cluster`.
    pub name: String,
    /// Where it keeps its data. Created if missing; its parent must exist.
    pub data_dir: PathBuf,
    /// Where it listens for clients; empty for a store that is only used in process. Port 0 takes a free one.
    pub listen_clients: Vec<Listen>,
    /// Where it serves metrics and health, and nothing else.
    pub listen_metrics: Vec<Listen>,
    /// What clients are told to connect to; empty for the address that is listened on.
    pub advertise_client_urls: Vec<String>,
    /// Where it listens for the other members. Port 0 takes a free one, which only makes sense for a cluster of one.
    pub listen_peer: SocketAddr,
    /// More addresses for the other members.
    pub listen_peer_too: Vec<SocketAddr>,
    /// All members of a new cluster with their peer URLs, this one included; empty for a cluster of one.
    pub initial_cluster: Vec<(String, Vec<String>)>,
    /// Distinguishes clusters that have members with the same URLs.
    pub cluster_token: String,
    /// The cluster exists already: wait to be added.
    pub join: bool,
    /// Certificates of the client and metrics ports that speak TLS.
    pub client_tls: Option<TlsOptions>,
    /// How connections of clients are kept.
    pub connections: Connections,
    /// What clients may ask for at once.
    pub bounds: Bounds,
    /// Who may use HTTP.
    pub guard: HttpGuard,
    /// Measure how long every call takes, by method. etcd's `--metrics=extensive`.
    pub extensive_metrics: bool,
    /// TLS between members, both ways; plaintext without.
    pub peer_tls: Option<PeerTls>,
    /// How fast things happen.
    pub timings: Timings,
    /// A watch that asked for it hears this often that nothing happened. etcd's default is ten minutes; kubeadm sets five seconds.
    pub progress_every: Duration,
    /// Bytes that the store may have, as etcd's flag of that name: 0 is etcd's default of 2 GiB, below 0 is no quota.
    pub quota_backend_bytes: i64,
    /// While the disk has less free bytes than this, writes are refused; they go on by themselves when there is room again.
    pub disk_reserve_bytes: u64,
    /// What `auto_compaction_retention` means, as etcd's flag of that name.
    pub auto_compaction_mode: CompactionMode,
    /// How much history is kept, as etcd's flag of that name: hours, a duration, or revisions; "0" keeps all.
    pub auto_compaction_retention: String,
    /// Keep so much time of history, finely, instead of what etcd's flags say; zero for what they say.
    pub history_keep: Duration,
    /// History by time gives way while the store has more bytes than this; 0 for never.
    pub history_max_bytes: u64,
    /// A voter that has not answered for so long is replaced by a learner that waits; `None`: never.
    pub heal_after: Option<Duration>,
    /// Tokens and passwords of the users that clients log in as.
    pub auth: AuthOptions,
    /// Clock, timers, tasks, randomness.
    pub env: Arc<dyn Env>,
}

impl StoreConfig {
    /// A cluster of one on loopback, on free ports, without TLS.
    pub fn single(name: &str, data_dir: PathBuf, env: Arc<dyn Env>) -> Self {
        let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
        Self {
            name: name.into(),
            data_dir,
            listen_clients: vec![Listen::plain(loopback)],
            listen_metrics: Vec::new(),
            advertise_client_urls: Vec::new(),
            listen_peer: loopback,
            listen_peer_too: Vec::new(),
            initial_cluster: Vec::new(),
            cluster_token: "kontiki".into(),
            join: false,
            client_tls: None,
            connections: Connections::default(),
            bounds: Bounds::default(),
            guard: HttpGuard::default(),
            extensive_metrics: false,
            peer_tls: None,
            timings: Timings::default(),
            progress_every: Duration::from_secs(600),
            quota_backend_bytes: 0,
            disk_reserve_bytes: DISK_RESERVE,
            auto_compaction_mode: CompactionMode::Periodic,
            auto_compaction_retention: "0".into(),
            history_keep: Duration::ZERO,
            history_max_bytes: 0,
            heal_after: None,
            auth: AuthOptions::default(),
            env,
        }
    }

    /// What of history goes by itself.
    pub(crate) fn retention(&self) -> Retention {
        if !self.history_keep.is_zero() {
            return Retention::History { keep: self.history_keep, max_bytes: self.history_max_bytes };
        }
        // `check` has refused what cannot be read.
        Retention::parse(self.auto_compaction_mode, &self.auto_compaction_retention).unwrap_or(Retention::Everything)
    }

    /// Quota and disk.
    pub(crate) fn room(&self) -> RoomLimits {
        RoomLimits {
            quota: RoomLimits::quota_of(self.quota_backend_bytes),
            reserve: self.disk_reserve_bytes,
            disk: Arc::new(FsSpace(self.data_dir.clone())),
        }
    }

    /// Checks what can be checked without touching anything.
    ///
    /// # Errors
    /// [`StoreError::Config`] with the first contradiction.
    pub fn check(&self) -> Result<(), StoreError> {
        let fail = |text: String| Err(StoreError::Config(text));
        if self.name.is_empty() {
            return fail("a member needs a name".into());
        }
        if !self.initial_cluster.is_empty() && !self.initial_cluster.iter().any(|(name, _)| *name == self.name) {
            return fail(format!("member {:?} is not in the initial cluster", self.name));
        }
        if let Some((name, _)) = self.initial_cluster.iter().find(|(_, urls)| urls.is_empty()) {
            return fail(format!("member {name:?} of the initial cluster has no peer URL"));
        }
        let others = self.initial_cluster.iter().any(|(name, _)| *name != self.name);
        if others && self.listen_peer.port() == 0 {
            return fail("a member of a cluster needs a fixed peer port".into());
        }
        if let Some(listen) = self.listen_clients.iter().chain(&self.listen_metrics).find(|l| l.tls && self.client_tls.is_none()) {
            return fail(format!("{listen} needs a certificate and a key"));
        }
        if self.bounds.request_bytes > limits::PEER_MESSAGE_BYTES / 2 || self.bounds.request_bytes == 0 {
            return fail(format!("a request has between 1 byte and {} bytes", limits::PEER_MESSAGE_BYTES / 2));
        }
        if self.bounds.txn_ops == 0 {
            return fail("a transaction has room for one step at least".into());
        }
        if self.progress_every < Duration::from_millis(100) {
            return fail("watch progress can be told every 100 ms at most".into());
        }
        Retention::parse(self.auto_compaction_mode, &self.auto_compaction_retention).map_err(StoreError::Config)?;
        let (shortest, longest) = self.timings.election;
        if shortest < self.timings.heartbeat * 3 || longest <= shortest {
            return fail("the election timeout must be a range that begins at three heartbeats or more".into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use kontiki_proto::env::SystemEnv;

    use super::*;

    fn config() -> StoreConfig {
        StoreConfig::single("a", "/nowhere".into(), Arc::new(SystemEnv::new()))
    }

    #[test]
    fn a_cluster_of_one_is_fine() {
        config().check().unwrap();
    }

    #[test]
    fn contradictions_are_found() {
        let cluster = |names: &[&str]| names.iter().map(|n| ((*n).into(), vec!["http://127.0.0.1:1".into()])).collect::<Vec<_>>();
        type Spoil = fn(&mut StoreConfig);
        let table: [(&str, Spoil); 8] = [
            ("auto compaction retention", |c| c.auto_compaction_retention = "soon".into()),
            ("needs a certificate", |c| c.listen_clients[0].tls = true),
            ("between 1 byte", |c| c.bounds.request_bytes = usize::MAX),
            ("needs a name", |c| c.name.clear()),
            ("is not in the initial cluster", |c| c.initial_cluster = vec![("b".into(), vec!["http://127.0.0.1:1".into()])]),
            ("has no peer URL", |c| c.initial_cluster = vec![("a".into(), vec![])]),
            ("every 100 ms", |c| c.progress_every = Duration::ZERO),
            ("election timeout", |c| c.timings.election.1 = Duration::ZERO),
        ];
        for (text, spoil) in table {
            let mut config = config();
            spoil(&mut config);
            let error = config.check().unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
        }
        let mut config = config();
        config.initial_cluster = cluster(&["a", "b"]);
        assert!(config.check().unwrap_err().to_string().contains("fixed peer port"));
    }
}
