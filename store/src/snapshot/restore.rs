//! The data directory of a member of a new cluster, made from a snapshot file: ours or etcd's.
//!
//! Everything is built in a directory beside the final one, which it becomes by one rename at the end: a restore that is interrupted
//! leaves nothing that a member would open. The file's hash is checked while the records are loaded.
//!
//! A restored cluster lives again at an older revision than clients have seen. If it went on from there, it would give revisions out a
//! second time, and a client that watches "from 1000 on" would wait for changes that it never gets. So the revision is raised, far
//! beyond any that can have been given out, and history before it is said to be compacted: every watch is told so, and lists anew.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use kontiki_base::ids::{LeaseId, Revision};
use kontiki_mvcc::keys::{self, Meta, Stamp};
use kontiki_mvcc::{Batch, EMPTY, MemView, NEVER_COMPACTED, Space};
use kontiki_proto::etcd::mvccpb::KeyValue;
use prost::Message as _;

use super::bbolt::{Bucket, Db};
use super::file::SnapshotFile;
use super::records::{self, bucket, meta};
use super::users::Users;
use super::{OnProgress, Progress, SnapshotError, io};
use crate::engine::bulk::{BulkLoad, Facts, Leases, Loaded};
use crate::engine::rocks::RocksOptions;
use crate::log::disk::{make_dir, sync_dir};
use crate::raft::found::Founding;
use crate::raft::node::{InitialMember, StartError};

/// By how much the revision is raised if nothing else is said: more than a busy store counts in a year.
pub const BUMP: u64 = 1_000_000_000;

/// What is to be made.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The member's directory. It must not exist.
    pub dir: PathBuf,
    /// The member's name, one of `initial_cluster`.
    pub name: String,
    /// All members of the new cluster. Each is restored from the same file.
    pub initial_cluster: Vec<InitialMember>,
    /// The new cluster's token.
    pub cluster_token: String,
    /// The revision is raised by so much.
    pub bump_revision: u64,
    /// History up to the raised revision is said to be compacted.
    pub mark_compacted: bool,
    /// The file is trusted.
    pub skip_hash_check: bool,
}

/// What was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    /// The revision in the file.
    pub was: Revision,
    /// The revision that the cluster begins at.
    pub revision: Revision,
    /// Where its history begins; below 0 if it is whole.
    pub compact: Revision,
    /// Keys that live.
    pub keys: u64,
    /// Versions and deletions.
    pub changes: u64,
    /// Leases. Each has its whole time again from the first election on.
    pub leases: u64,
    /// Users.
    pub users: u64,
    /// Whether clients must say who they are.
    pub auth_enabled: bool,
}

/// Makes the directory.
///
/// # Errors
/// [`SnapshotError`]; nothing is left behind then but, after a crash, a directory whose name ends in `.restoring`.
pub async fn restore(file: SnapshotFile, plan: Plan, random: u64, progress: OnProgress<'_>) -> Result<Restored, SnapshotError> {
    let founding = Founding::new(&plan.name, &plan.initial_cluster, &plan.cluster_token)?;
    if plan.bump_revision > 0 && !plan.mark_compacted || i64::try_from(plan.bump_revision).is_err() {
        let why = "a revision can only be raised if the history before it is marked compacted, and by less than 2^63";
        return Err(SnapshotError::Refused(why.into()));
    }
    if plan.dir.exists() {
        return Err(SnapshotError::Refused(format!("{} exists: restore into a directory that does not", plan.dir.display())));
    }
    let building = Building::new(&plan.dir)?;
    let restored = tokio::task::block_in_place(|| build(&file, &plan, &founding, &building.0, progress))?;
    founding.write(&building.0, random).await?;
    building.commit(&plan.dir)?;
    Ok(restored)
}

/// The directory before it has its name; removed if it does not get one.
pub(super) struct Building(pub(super) PathBuf);

impl Building {
    pub(super) fn new(dir: &Path) -> Result<Self, SnapshotError> {
        let mut name = dir.file_name().unwrap_or_default().to_owned();
        name.push(".restoring");
        let path = dir.with_file_name(name);
        if path.exists() {
            // Of a restore that was killed, or of one that is under way: that one fails, and says so.
            std::fs::remove_dir_all(&path).map_err(io("remove", &path))?;
        }
        make_dir(&path).map_err(io("create", &path))?;
        Ok(Self(path))
    }

    pub(super) fn commit(mut self, dir: &Path) -> Result<(), SnapshotError> {
        let path = std::mem::take(&mut self.0);
        sync_dir(&path).map_err(io("sync", &path))?;
        std::fs::rename(&path, dir).map_err(io("rename the finished directory to", dir))?;
        let parent = dir.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        sync_dir(parent).map_err(io("sync", parent))
    }
}

impl Drop for Building {
    fn drop(&mut self) {
        if self.0.exists()
            && let Err(error) = std::fs::remove_dir_all(&self.0)
        {
            tracing::warn!(dir = %self.0.display(), %error, "an unfinished restore was not removed; the next one does it");
        }
    }
}

/// Loads the state, and checks the file's hash beside it.
fn build(file: &SnapshotFile, plan: &Plan, founding: &Founding, dir: &Path, progress: OnProgress<'_>) -> Result<Restored, SnapshotError> {
    std::thread::scope(|scope| {
        let check = (!plan.skip_hash_check).then(|| scope.spawn(|| file.check(&|_| ())));
        let loaded = load(file, plan, founding, dir, progress);
        let checked = check.map_or(Ok(()), |check| {
            check.join().unwrap_or_else(|_| Err(SnapshotError::Refused("the check of the file's hash panicked".into())))
        });
        // A damaged file explains whatever went wrong with what was in it.
        checked.and(loaded)
    })
}

/// The leases in a file.
#[derive(Default)]
struct LeaseTable {
    ids: BTreeSet<LeaseId>,
    records: Vec<(Bytes, Bytes)>,
}

impl Leases for LeaseTable {
    fn exists(&self, id: LeaseId) -> bool {
        self.ids.contains(&id)
    }
}

fn bad(bucket: &'static str, why: impl Into<String>) -> SnapshotError {
    SnapshotError::Record { bucket, why: why.into() }
}

fn find<'b>(buckets: &'b [Bucket], name: &str) -> Option<&'b Bucket> {
    buckets.iter().find(|bucket| bucket.name == name)
}

fn load(file: &SnapshotFile, plan: &Plan, founding: &Founding, dir: &Path, progress: OnProgress<'_>) -> Result<Restored, SnapshotError> {
    let db = file.db()?;
    let buckets = db.buckets()?;
    let keys = find(&buckets, bucket::KEY)
        .ok_or_else(|| SnapshotError::Damaged { path: file.path.clone(), why: "is a database without keys: not etcd's".into() })?;
    let leases = leases(&db, &buckets)?;
    let mut load = BulkLoad::create(&dir.join("engine"), RocksOptions::default())?;
    let (was, changes) = versions(&db, keys, &mut load, progress)?;
    let compacted = compacted(&db, &buckets)?;
    // As in etcd: the last write may have been a deletion that compaction has removed since.
    let was = was.max(compacted);
    let (revision, compact) = raise(was, compacted, plan)?;
    load.records(Space::Lease, leases.records.iter().cloned())?;
    let users = users(&db, &buckets)?;
    load.records(Space::Auth, users.iter().flat_map(Users::records))?;
    progress(Progress { what: "sorting", done: 0, total: 0 });
    let facts = Facts { revision, compact, mark: founding.mark.clone() };
    let Loaded { keys, without_lease } = load.finish(&facts, &leases)?;
    if without_lease > 0 {
        tracing::warn!(keys = without_lease, "keys named a lease that is not in the snapshot: they live on without one");
    }
    Ok(Restored {
        was,
        revision,
        compact,
        keys,
        changes,
        leases: leases.ids.len() as u64,
        users: users.as_ref().map_or(0, |users| users.users.len() as u64),
        auth_enabled: users.is_some_and(|users| users.facts.enabled),
    })
}

/// The revision to begin at, and where history begins.
fn raise(was: Revision, compacted: Revision, plan: &Plan) -> Result<(Revision, Revision), SnapshotError> {
    let raised = i64::try_from(plan.bump_revision).ok().and_then(|bump| was.get().checked_add(bump));
    let revision = Revision::new(raised.ok_or_else(|| SnapshotError::Refused("the raised revision would not fit 63 bits".into()))?);
    Ok((revision, if plan.mark_compacted { revision } else { compacted.min(revision) }))
}

fn leases(db: &Db, buckets: &[Bucket]) -> Result<LeaseTable, SnapshotError> {
    let mut table = LeaseTable::default();
    let Some(bucket) = find(buckets, bucket::LEASE) else { return Ok(table) };
    let mut cursor = db.cursor(bucket)?;
    while let Some((_, value)) = cursor.next()? {
        let lease = records::Lease::decode(value).map_err(|e| bad(bucket::LEASE, e.to_string()))?;
        let id = LeaseId::new(lease.id);
        table.ids.insert(id);
        let ttl = Bytes::copy_from_slice(&lease.ttl.max(1).to_be_bytes());
        table.records.push((Bytes::copy_from_slice(&keys::lease_key(id)), ttl));
    }
    Ok(table)
}

/// Loads all versions; the revision of the last, and how many there are.
fn versions(db: &Db, bucket: &Bucket, load: &mut BulkLoad, progress: OnProgress<'_>) -> Result<(Revision, u64), SnapshotError> {
    let (mut revision, mut changes, mut done) = (EMPTY, 0, 0);
    let mut last: Option<Stamp> = None;
    let mut cursor = db.cursor(bucket)?;
    while let Some((key, value)) = cursor.next()? {
        done += (key.len() + value.len()) as u64;
        let (at, deleted) = records::parse_stamp(&key).ok_or_else(|| bad(bucket::KEY, format!("{key:?} is no revision")))?;
        if last.is_some_and(|last| last >= at) {
            return Err(bad(bucket::KEY, format!("revision {}.{} stands there twice", at.main, at.sub)));
        }
        last = Some(at);
        revision = revision.max(at.main);
        let kv = KeyValue::decode(value).map_err(|e| bad(bucket::KEY, format!("revision {}.{}: {e}", at.main, at.sub)))?;
        // Without a key it only says how far the revision had come: a restore leaves such a record.
        if kv.key.is_empty() {
            continue;
        }
        changes += 1;
        if deleted {
            load.delete(keys::tombstone_records(&kv.key, at))?;
            continue;
        }
        if kv.version < 1 || kv.create_revision < 0 || kv.create_revision > at.main.get() {
            return Err(bad(bucket::KEY, format!("revision {}.{}: its numbers contradict each other", at.main, at.sub)));
        }
        let life = Meta { create: Revision::new(kv.create_revision), at, version: kv.version, lease: LeaseId::new(kv.lease) };
        load.put(keys::put_records(&kv.key, &life, &kv.value))?;
        progress(Progress { what: "loading", done, total: db.size().max(done) });
    }
    Ok((revision, changes))
}

/// Up to where history was given up in the file.
fn compacted(db: &Db, buckets: &[Bucket]) -> Result<Revision, SnapshotError> {
    let mut compact = NEVER_COMPACTED;
    let Some(bucket) = find(buckets, bucket::META) else { return Ok(compact) };
    let mut cursor = db.cursor(bucket)?;
    while let Some((key, value)) = cursor.next()? {
        if key == meta::SCHEDULED_COMPACT || key == meta::FINISHED_COMPACT {
            let at = records::parse_revision(&value).ok_or_else(|| bad(bucket::META, format!("{key:?} holds no revision")))?;
            compact = compact.max(at);
        }
    }
    Ok(compact)
}

/// Users and roles: where etcd has them, or where older versions of ours had them.
fn users(db: &Db, buckets: &[Bucket]) -> Result<Option<Users>, SnapshotError> {
    if let Some(users) = Users::read(db, buckets)? {
        return Ok(Some(users));
    }
    let Some(bucket) = find(buckets, bucket::KONTIKI) else { return Ok(None) };
    let mut records = MemView::new();
    let mut batch = Batch::default();
    let mut cursor = db.cursor(bucket)?;
    while let Some((tagged, value)) = cursor.next()? {
        if tagged.first() != Some(&(Space::Auth as u8)) {
            return Err(bad(bucket::KONTIKI, format!("{tagged:?} is a record of a newer version: restore with that one")));
        }
        batch.put(Space::Auth, tagged.slice(1..), value);
    }
    records.commit(batch);
    Ok(Some(Users::of(&records)?))
}

impl From<StartError> for SnapshotError {
    fn from(error: StartError) -> Self {
        match error {
            StartError::Engine(error) => Self::Engine(error),
            StartError::Log(error) => Self::Log(error),
            other => Self::Refused(other.to_string()),
        }
    }
}
