//! How a member is made.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kontiki_base::env::Env;
use kontiki_base::ids::MemberId;
use kontiki_base::net::PeerNet;

use super::ApplySink;
use crate::engine::{Engine, EngineError};
use crate::log::{LogDisk, LogError, LogOptions};
use crate::meter::Meter;

/// How fast things happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timings {
    /// A leader tells its followers that it is there this often.
    pub heartbeat: Duration,
    /// A follower that has not heard of a leader for a random time between these two asks to be one.
    pub election: (Duration, Duration),
    /// Every request to [`Consensus`](super::Consensus) ends within this time.
    pub request: Duration,
    /// The engine is flushed at least this often while it changes…
    pub flush_every: Duration,
    /// …and whenever the log has grown by so many bytes: this bounds what a restart replays.
    pub flush_bytes: u64,
    /// Bytes of log kept behind the flushed state, so that a follower that was away shortly needs no snapshot.
    pub keep_log_bytes: u64,
    /// Members compare what was written this often…
    pub compare_every: Duration,
    /// …and a cycle through everything that is stored begins this often, unless the one before has not ended.
    pub scrub_every: Duration,
    /// Changes that removal of compacted history looks at in one go…
    pub sweep_batch: usize,
    /// …and how long it pauses then: it never holds up writes for longer than one batch takes.
    pub sweep_pause: Duration,
}

impl Default for Timings {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(100),
            election: (Duration::from_millis(700), Duration::from_millis(1000)),
            request: Duration::from_secs(7),
            flush_every: Duration::from_secs(300),
            flush_bytes: 1 << 30,
            keep_log_bytes: 128 << 20,
            compare_every: Duration::from_secs(1),
            scrub_every: Duration::from_secs(600),
            sweep_batch: 250,
            sweep_pause: Duration::from_millis(5),
        }
    }
}

/// Where a member keeps what it must not lose.
pub enum Storage {
    /// RocksDB and log segments in a directory of their own; created if missing.
    Dir {
        /// The data directory. Its parent must exist.
        path: PathBuf,
        /// How the engine uses memory.
        engine: crate::engine::rocks::RocksOptions,
        /// How the log uses the disk.
        log: LogOptions,
    },
    /// Given parts: tests and the simulator.
    Parts {
        /// The state machine's records.
        engine: Arc<dyn Engine>,
        /// The log's files.
        disk: Arc<dyn LogDisk>,
        /// How the log uses them.
        log: LogOptions,
        /// A directory for snapshots under way.
        scratch: PathBuf,
        /// Run disk work inside the calling task instead of threads of its own: for runtimes whose clock is simulated.
        inline: bool,
    },
}

/// One row of the initial cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InitialMember {
    /// Its name.
    pub name: String,
    /// Where peers reach it: `http(s)://host:port`.
    pub peer_urls: Vec<String>,
    /// Where clients reach it.
    pub client_urls: Vec<String>,
}

/// How a member is made.
pub struct RaftConfig {
    /// This member's name; one of `initial_cluster`.
    pub name: String,
    /// All members as of the first start, this one included. Every member of a new cluster is given the same list. After the first
    /// start the stored membership rules.
    pub initial_cluster: Vec<InitialMember>,
    /// Distinguishes clusters that have members with the same URLs; enters all ids.
    pub cluster_token: String,
    /// The cluster exists already: found nothing, and wait until the others know this member by its peer URLs.
    pub join: bool,
    /// This member's id, for worlds in which somebody else gives them; `None`: see [`super::member_id`].
    pub id: Option<MemberId>,
    /// Where things are kept; taken when the member is opened.
    pub storage: Option<Storage>,
    /// How the others are reached.
    pub net: Arc<dyn PeerNet>,
    /// Clock, timers, randomness.
    pub env: Arc<dyn Env>,
    /// Is told what was applied.
    pub sink: Arc<dyn ApplySink>,
    /// How fast things happen.
    pub timings: Timings,
    /// What measures the disk, if it is measured.
    pub meter: Option<Meter>,
}

/// Why a member did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration contradicts itself.
    #[error("configuration: {0}")]
    Config(String),
    /// The engine does not open.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The log does not open.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The data directory belongs to another member or cluster, or cannot be used.
    #[error("data directory: {0}")]
    DataDir(String),
    /// Consensus does not start.
    #[error("raft: {0}")]
    Raft(String),
}
