//! Founding a cluster on a state that is given, instead of on nothing: what a member finds in its directory then.
//!
//! Every member of the new cluster is given the same state. They take it for the result of one entry, the first, of term 1, by which
//! the membership was set, and they have given up that entry: so a member that is added later, or comes with an empty directory, cannot be
//! brought up to date by entries and is sent the state. An empty log of a member that was forgotten never reaches term 1 at that place.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use bytes::BytesMut;
use kontiki_base::ids::{LogIndex, LogPos, MemberId, Term};

use super::config::{InitialMember, StartError};
use super::types::{self, Membership, StoredMembership};
use super::{identity, start, wire};
use crate::engine::AppliedMark;
use crate::log::{FsDisk, Log, LogError, LogOptions, Runner, Vote};

/// The position of a founding state.
const POSITION: LogPos = LogPos { term: Term::new(1), index: LogIndex::new(1) };

/// A member at the birth of its cluster.
pub struct Founding {
    /// Who it is.
    pub member: MemberId,
    /// The cluster.
    pub cluster: u64,
    /// What its state is to be marked with.
    pub mark: AppliedMark,
}

impl Founding {
    /// The member of this name in a new cluster.
    ///
    /// # Errors
    /// [`StartError::Config`]: the list contradicts itself, or lacks the member.
    pub fn new(name: &str, initial_cluster: &[InitialMember], cluster_token: &str) -> Result<Self, StartError> {
        let members = start::members(initial_cluster, cluster_token)?;
        let (member, _) = start::own_row(name, &members)?;
        let voters: BTreeSet<u64> = members.iter().map(|(id, _)| id.get()).collect();
        let nodes: BTreeMap<u64, _> = members.into_iter().map(|(id, peer)| (id.get(), peer)).collect();
        let membership = Membership::new(vec![voters], nodes).map_err(|e| StartError::Config(e.to_string()))?;
        let mut encoded = BytesMut::new();
        wire::put_stored(&mut encoded, &StoredMembership::new(types::log_id(POSITION), membership));
        let mark = AppliedMark { pos: POSITION, membership: encoded.freeze() };
        Ok(Self { member, cluster: identity::cluster_id(cluster_token), mark })
    }

    /// Writes everything of the member's directory but the state: to whom it belongs, and a log that begins behind the state.
    ///
    /// # Errors
    /// The disk fails.
    pub async fn write(&self, dir: &Path, random: u64) -> Result<(), StartError> {
        let failed = |e: std::io::Error| StartError::DataDir(format!("{}: {e}", dir.display()));
        identity::claim(dir, self.cluster, self.member, false)?;
        let disk = Arc::new(FsDisk::open(&dir.join("log")).map_err(failed)?);
        let open = move || Log::open(disk, LogOptions::default(), Runner::Thread, random);
        let log = super::machine::blocking(false, open).await.map_err(failed)??;
        // In term 2 it votes for itself, which is nobody's business: the first election is that of term 3.
        let vote = Vote { term: Term::new(2), member: self.member, committed: false };
        durable(|done| log.vote(vote, done)).await?;
        durable(|done| log.purge(POSITION, done)).await?;
        log.close().await;
        Ok(())
    }
}

async fn durable<F: Future<Output = ()>>(write: impl FnOnce(crate::log::Done) -> F) -> Result<(), StartError> {
    let (done, result) = tokio::sync::oneshot::channel::<Result<(), LogError>>();
    write(Box::new(move |r| drop(done.send(r)))).await;
    Ok(result.await.map_err(|_| StartError::Raft("the log has ended".into()))??)
}
