//! The data directory of the only member of a new cluster, full of keys that are made up: how a store behaves that is larger than memory
//! can be measured a minute after the idea, not after a day of puts.
//!
//! It is built as a restored one is, and is one to whoever opens it. Every key has one version, and keys are in order, which is what a store
//! comes to when it is left alone.

use std::path::Path;

use bytes::Bytes;
use kontiki_base::ids::{LeaseId, Revision};
use kontiki_mvcc::keys::{self, Meta, Stamp};
use kontiki_mvcc::{EMPTY, NEVER_COMPACTED};

use super::restore::Building;
use super::{OnProgress, Progress, SnapshotError};
use crate::engine::bulk::{BulkLoad, Facts, Leases};
use crate::engine::rocks::RocksOptions;
use crate::raft::found::Founding;
use crate::raft::node::InitialMember;

/// Nobody has a lease.
struct NoLeases;

impl Leases for NoLeases {
    fn exists(&self, _: LeaseId) -> bool {
        false
    }
}

/// Makes the directory, which must not exist, for this member and these keys, in order; how many there are.
///
/// # Errors
/// [`SnapshotError`]; nothing is left behind then but, after a crash, a directory whose name ends in `.restoring`.
pub async fn generate(
    dir: &Path,
    member: &InitialMember,
    token: &str,
    random: u64,
    keys: &mut (dyn Iterator<Item = (Bytes, Bytes)> + Send),
    progress: OnProgress<'_>,
) -> Result<u64, SnapshotError> {
    let founding = Founding::new(&member.name, std::slice::from_ref(member), token)?;
    if dir.exists() {
        return Err(SnapshotError::Refused(format!("{} exists: name a directory that does not", dir.display())));
    }
    let building = Building::new(dir)?;
    let made = tokio::task::block_in_place(|| fill(&building.0, &founding, keys, progress))?;
    founding.write(&building.0, random).await?;
    building.commit(dir)?;
    Ok(made)
}

fn fill(
    dir: &Path,
    founding: &Founding,
    keys: &mut (dyn Iterator<Item = (Bytes, Bytes)> + Send),
    progress: OnProgress<'_>,
) -> Result<u64, SnapshotError> {
    let mut load = BulkLoad::create(&dir.join("engine"), RocksOptions::default())?;
    let (mut revision, mut made, mut done) = (EMPTY, 0, 0);
    for (key, value) in keys {
        revision = Revision::new(revision.get() + 1);
        let life = Meta { create: revision, at: Stamp { main: revision, sub: 0 }, version: 1, lease: LeaseId::new(0) };
        load.put(keys::put_records(&key, &life, &value))?;
        (made, done) = (made + 1, done + (key.len() + value.len()) as u64);
        progress(Progress { what: "generating", done, total: 0 });
    }
    progress(Progress { what: "sorting", done: 0, total: 0 });
    let facts = Facts { revision, compact: NEVER_COMPACTED, mark: founding.mark.clone() };
    load.finish(&facts, &NoLeases)?;
    Ok(made)
}
