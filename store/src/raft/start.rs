//! Opening a member: who it is, what it has stored, and whether the two fit together.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use kontiki_base::env::Env;
use kontiki_base::ids::{LogPos, MemberId};
use openraft::{Config, SnapshotPolicy};
use tokio::sync::watch;

use super::chronicle::Chronicle;
use super::config::{InitialMember, RaftConfig, StartError, Storage, Timings};
use super::identity::Asking;
use super::machine::{Applier, Machine, blocking, membership_of};
use super::network::Network;
use super::node::{Inner, Raft};
use super::pending::Pending;
use super::storage::LogStore;
use super::types::{Peer, StoredMembership};
use super::{RaftStatus, identity};
use crate::engine::Engine;
use crate::engine::memo::Memo;
use crate::engine::rocks::RocksEngine;
use crate::log::disk::make_dir;
use crate::log::{Cold, FsDisk, Log, LogDisk, LogError, LogOptions, Runner, SyncMeter};

/// A follower that lacks more entries than this is sent a snapshot even if the log still has them.
const LAG_FOR_SNAPSHOT: u64 = 1_000_000;

struct Opened {
    engine: Arc<dyn Engine>,
    disk: Arc<dyn LogDisk>,
    log: LogOptions,
    scratch: PathBuf,
    inline: bool,
    /// The data directory, if there is one…
    dir: Option<PathBuf>,
    /// …and whose it is, if anybody's.
    stored: Option<MemberId>,
}

/// What a member has stored, and who it is.
struct Found {
    opened: Opened,
    log: Log,
    meter: Arc<SyncMeter>,
    membership: StoredMembership,
    id: MemberId,
    /// It has stored nothing so far.
    blank: bool,
    own: Peer,
    /// The founding members.
    members: Vec<(MemberId, Peer)>,
}

/// Opens what is stored, and finds out who this member is. Nothing is written that a member would be known by before that is certain.
async fn find(config: &mut RaftConfig, cluster: u64) -> Result<Found, StartError> {
    let members = members(&config.initial_cluster, &config.cluster_token)?;
    let (founder, own) = own_row(&config.name, &members)?;
    let storage = config.storage.take().ok_or_else(|| StartError::Config("there is nothing to store in".into()))?;
    let inline = matches!(storage, Storage::Parts { inline: true, .. });
    let opened = blocking(inline, move || open_storage(storage, cluster)).await.map_err(|e| StartError::DataDir(e.to_string()))??;
    let opened = match &config.meter {
        Some(meter) => Opened { disk: meter.disk(opened.disk), engine: meter.engine(opened.engine), ..opened },
        None => opened,
    };
    // Half the shortest time without a heartbeat after which a follower stands for election.
    let meter = SyncMeter::new(config.env.clone(), config.timings.election.0 / 2);
    let log = open_log(&opened, &config.env, meter.clone()).await?;
    refuse_lost_log(&log, &opened)?;
    let applied = opened.engine.applied();
    fit_log_to_engine(&log, applied.pos).await?;
    let blank = log.status() == crate::log::LogStatus::default() && applied.pos == LogPos::default();
    let others: Vec<_> = members.iter().filter(|(other, _)| *other != founder).cloned().collect();
    let asking = Asking { env: &*config.env, net: &config.net, own: &own, others: &others, cluster };
    let id = asking.who(config.id, opened.stored, founder, blank, config.join).await?;
    let membership = membership_of(&applied).map_err(|e| StartError::DataDir(e.to_string()))?;
    identity::same_name(&membership, id, &config.name)?;
    if let Some(dir) = &opened.dir {
        identity::claim(dir, cluster, id, blank)?;
    }
    Ok(Found { opened, log, meter, membership, id, blank, own, members })
}

/// Everything of a member but the tasks that run beside consensus.
pub(super) async fn open(mut config: RaftConfig) -> Result<(Arc<Inner>, Network, Peer, Arc<SyncMeter>), StartError> {
    let cluster = identity::cluster_id(&config.cluster_token);
    let Found { opened, log, meter, membership, id, blank, own, members } = find(&mut config, cluster).await?;
    let kept = opened.dir.as_ref().map(|dir| dir.join(CHRONICLE));
    let chronicle = Chronicle::open(id, &config.name, config.env.clone(), config.timings.election.0, kept);
    let status = log.status();
    chronicle.started(status.vote.map_or(0, |vote| vote.term.get()), status.last.index.get(), blank);
    let network = Network {
        me: id,
        net: config.net.clone(),
        env: config.env.clone(),
        scratch: opened.scratch.clone(),
        inline: opened.inline,
        chronicle: chronicle.clone(),
        transfers: Arc::default(),
    };
    let (applied_tx, applied) = watch::channel(opened.engine.applied().pos);
    let pending = Arc::new(Pending::new(id, config.env.random_u64()));
    let applier = Applier {
        engine: opened.engine.clone(),
        sink: config.sink,
        pending: pending.clone(),
        applied: applied_tx,
        membership,
        alarms: watch::channel(Arc::from([])).0,
        sweeping: watch::channel(true).0,
        sweep_batch: config.timings.sweep_batch,
        frozen: false,
        held: VecDeque::new(),
        memo: Memo::default(),
    };
    applier.tell_alarms().map_err(|e| StartError::DataDir(e.to_string()))?;
    let (alarms, sweeping) = (applier.alarms.subscribe(), applier.sweeping.subscribe());
    let started = Machine::start(applier, opened.inline, &config.env, config.timings.sweep_pause, network.transfers.clone());
    let (machine, hands) = started.map_err(|e| StartError::Raft(e.to_string()))?;
    let store = LogStore::new(log.clone(), opened.inline);
    let tuned = Arc::new(tune(&config.timings, &config.cluster_token)?);
    let raft = Raft::new(id.get(), tuned, network.clone(), store, machine).await.map_err(|e| StartError::Raft(e.to_string()))?;
    // A member that joined has an id that is not its founder's.
    if blank && !config.join && members.iter().any(|(founder, _)| *founder == id) {
        raft.initialize(founders(members)).await.map_err(|e| StartError::Raft(e.to_string()))?;
    }
    let inner = Inner {
        id,
        cluster_token: config.cluster_token,
        raft,
        net: config.net,
        env: config.env,
        engine: opened.engine,
        log,
        pending,
        applied,
        status: watch::channel(RaftStatus { id, cluster_id: cluster, ..RaftStatus::default() }).0,
        desk: OnceLock::new(),
        timings: config.timings,
        inline: opened.inline,
        closing: watch::channel(false).0,
        alarms,
        sweeping,
        hands,
        chronicle,
        transfers: network.transfers.clone(),
        leaving: AtomicBool::new(false),
        adding: tokio::sync::Mutex::new(()),
    };
    Ok((Arc::new(inner), network, own, meter))
}

pub(super) fn members(initial_cluster: &[InitialMember], cluster_token: &str) -> Result<Vec<(MemberId, Peer)>, StartError> {
    let mut names = BTreeSet::new();
    let mut urls = BTreeSet::new();
    for member in initial_cluster {
        if member.peer_urls.is_empty() {
            return Err(StartError::Config(format!("member {} has no peer URL", member.name)));
        }
        if !names.insert(&member.name) {
            return Err(StartError::Config(format!("two members are named {}", member.name)));
        }
        if let Some(twice) = member.peer_urls.iter().find(|url| !urls.insert(*url)) {
            return Err(StartError::Config(format!("two members have the peer URL {twice}")));
        }
    }
    let row = |m: &InitialMember| {
        let peer = Peer { name: m.name.clone(), peer_urls: m.peer_urls.clone(), client_urls: m.client_urls.clone(), started: false };
        (identity::member_id(&m.peer_urls, cluster_token), peer)
    };
    Ok(initial_cluster.iter().map(row).collect())
}

/// The members of the founding entry. Every member writes it by itself, and all must write the same: of client URLs each knows its own only.
fn founders(members: Vec<(MemberId, Peer)>) -> BTreeMap<u64, Peer> {
    members.into_iter().map(|(id, peer)| (id.get(), Peer { client_urls: Vec::new(), ..peer })).collect()
}

pub(super) fn own_row(name: &str, members: &[(MemberId, Peer)]) -> Result<(MemberId, Peer), StartError> {
    let own = members.iter().find(|(_, peer)| peer.name == name).cloned();
    own.ok_or_else(|| StartError::Config(format!("the initial cluster does not list this member, {name}")))
}

fn tune(timings: &Timings, name: &str) -> Result<Config, StartError> {
    let ms = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
    let config = Config {
        cluster_name: name.to_owned(),
        heartbeat_interval: ms(timings.heartbeat),
        election_timeout_min: ms(timings.election.0),
        election_timeout_max: ms(timings.election.1),
        enable_pre_vote: Some(true),
        // The state machine is durable by itself; when the log may go is decided in `upkeep`.
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: u64::MAX,
        replication_lag_threshold: LAG_FOR_SNAPSHOT,
        max_payload_entries: kontiki_base::limits::RAFT_APPLY_CHUNK as u64,
        install_snapshot_timeout: 600_000,
        // A restarted leader must win an election: its state may be older than what it had acknowledged.
        enable_leader_restore: Some(false),
        broadcast_submitted_on_append: Some(true),
        backoff: "50ms 100ms 200ms ..500ms".into(),
        ..Config::default()
    };
    config.validate().map_err(|e| StartError::Config(e.to_string()))
}

/// Room that is kept so that a member on a full disk can still be opened, and then be compacted or moved.
const RESERVE_BYTES: u64 = 32 << 20;

/// Opens something; if that fails, gives the reserve to it and tries once more. Afterwards the reserve is filled again, if there is room.
fn with_reserve<T>(dir: &Path, open: impl Fn() -> Result<T, StartError>) -> Result<T, StartError> {
    let reserve = dir.join("reserve");
    let opened = match open() {
        Err(error) if reserve.exists() => {
            tracing::warn!(%error, "giving up the disk reserve to open the store");
            std::fs::remove_file(&reserve).map_err(|e| StartError::DataDir(format!("{}: {e}", reserve.display())))?;
            open()?
        }
        other => other?,
    };
    if !reserve.exists()
        && let Err(error) = FsDisk::open(dir).and_then(|disk| disk.create("reserve", RESERVE_BYTES))
    {
        tracing::warn!(%error, "there is no room for the disk reserve");
    }
    Ok(opened)
}

const MARKER: &str = "has-voted";
const CHRONICLE: &str = "leadership";

/// A member that has voted and does not remember must not take part: it could vote twice, and it may have acknowledged entries
/// that it no longer has.
fn refuse_lost_log(log: &Log, opened: &Opened) -> Result<(), StartError> {
    let voted = log.status().vote.is_some();
    let lost = || StartError::DataDir("the raft log is gone: remove the member and add it again with an empty directory".into());
    if !voted && opened.engine.applied().pos != LogPos::default() {
        return Err(lost());
    }
    let Some(marker) = opened.dir.as_ref().map(|dir| dir.join(MARKER)) else { return Ok(()) };
    match (voted, marker.exists()) {
        (false, true) => Err(lost()),
        (true, false) => {
            let io = |e: std::io::Error| StartError::DataDir(format!("{}: {e}", marker.display()));
            std::fs::write(&marker, b"").map_err(io)?;
            crate::log::disk::sync_dir(marker.parent().unwrap_or(Path::new("."))).map_err(io)
        }
        _ => Ok(()),
    }
}

fn open_storage(storage: Storage, cluster: u64) -> Result<Opened, StartError> {
    match storage {
        Storage::Parts { engine, disk, log, scratch, inline } => {
            clear(&scratch)?;
            Ok(Opened { engine, disk, log, scratch, inline, dir: None, stored: None })
        }
        Storage::Dir { path, engine, log } => {
            let dir = |e: std::io::Error| StartError::DataDir(format!("{}: {e}", path.display()));
            make_dir(&path).map_err(dir)?;
            let stored = identity::stored(&path, cluster)?;
            let scratch = path.join("snapshots");
            clear(&scratch)?;
            let engine = with_reserve(&path, || RocksEngine::open(&path.join("engine"), engine.clone()).map_err(StartError::from))?;
            let disk = FsDisk::open(&path.join("log")).map_err(dir)?;
            Ok(Opened { engine: Arc::new(engine), disk: Arc::new(disk), log, scratch, inline: false, dir: Some(path), stored })
        }
    }
}

/// Makes an empty directory: whatever a crash left in it is of no use.
fn clear(dir: &Path) -> Result<(), StartError> {
    let io = |e: std::io::Error| StartError::DataDir(format!("{}: {e}", dir.display()));
    if dir.exists() {
        std::fs::remove_dir_all(dir).map_err(io)?;
    }
    make_dir(dir).map_err(io)
}

async fn open_log(opened: &Opened, env: &Arc<dyn Env>, meter: Arc<SyncMeter>) -> Result<Log, StartError> {
    let runner = if opened.inline { Runner::Task { env: env.clone(), sync_us: 2_000 } } else { Runner::Thread };
    let (disk, options, seed, inline) = (opened.disk.clone(), opened.log.clone(), env.random_u64(), opened.inline);
    // The task of an inline log must be spawned from here.
    let log = if inline {
        Ok(Log::open_metered(disk, options, runner, seed, Some(meter)))
    } else {
        blocking(false, move || Log::open_metered(disk, options, runner, seed, Some(meter))).await
    };
    Ok(log.map_err(|e| StartError::Raft(e.to_string()))??)
}

/// The engine may have flushed entries that the log lost in the crash: a leader applies what a quorum has, even before its own disk
/// has it. Such entries are committed and contained in the state, so the log is made to begin behind them.
async fn fit_log_to_engine(log: &Log, applied: LogPos) -> Result<(), StartError> {
    let status = log.status();
    if applied.index <= status.purged.index {
        return Ok(());
    }
    let here = match log.read(applied.index, applied.index.next(), usize::MAX)? {
        Cold::Ready(entries) => entries,
        Cold::Files(cold) => cold.run()?,
    };
    if here.first().is_some_and(|entry| entry.pos == applied) {
        return Ok(());
    }
    tracing::info!(?applied, last = ?status.last, "the log ends before the state: it begins again behind it");
    for purge in [false, true] {
        let (done, result) = tokio::sync::oneshot::channel::<Result<(), LogError>>();
        let done = Box::new(move |r| drop(done.send(r)));
        if purge {
            log.purge(applied, done).await;
        } else {
            log.truncate(status.purged, done).await;
        }
        result.await.map_err(|_| StartError::Raft("the log has ended".into()))??;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_gets_the_reserve() {
        let dir = tempfile::tempdir().unwrap();
        let reserve = dir.path().join("reserve");
        with_reserve(dir.path(), || Ok(())).unwrap();
        assert_eq!(std::fs::metadata(&reserve).unwrap().len(), RESERVE_BYTES);
        // Opens only once the reserve has gone, as on a full disk.
        let full = || if reserve.exists() { Err(StartError::DataDir("no space left on device".into())) } else { Ok(7) };
        assert_eq!(with_reserve(dir.path(), full).unwrap(), 7);
        assert!(reserve.exists(), "filled again");
        assert!(with_reserve(dir.path(), || Err::<(), _>(StartError::Config("bad".into()))).is_err());
    }

    #[test]
    fn the_default_timings_are_accepted() {
        tune(&Timings::default(), "x").unwrap();
    }
}
