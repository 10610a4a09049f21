//! What can be said of a command without looking at the store: a proposer refuses it before it costs a log entry, and `apply`
//! looks again, since what is in the log must never corrupt anything.

use std::collections::BTreeSet;

use bytes::Bytes;
use kontiki_base::ids::LeaseId;
use kontiki_base::key::KeyRange;
use kontiki_base::kv::{KvError, Op, PutReq, Txn};

use crate::command::Command;

/// The most seconds that a lease may live, as in etcd.
pub const MAX_LEASE_TTL: i64 = 9_000_000_000;

/// So deep may transactions be nested: bounds the stack of everyone who walks through one. etcd's bound on the number of steps,
/// which shrinks by at least one with each level, is the same number.
pub const MAX_TXN_DEPTH: usize = kontiki_base::limits::TXN_OPS;

/// Checks a command as etcd's API does before it proposes: in its order, with its errors.
///
/// `max_txn_ops` bounds the steps of one level of a transaction ([`kontiki_base::limits::TXN_OPS`] for etcd's clients); the levels below
/// have what is left of it.
///
/// # Errors
/// The first thing that is wrong with it.
pub fn validate(cmd: &Command, max_txn_ops: usize) -> Result<(), KvError> {
    match cmd.inner() {
        Command::Txn { txn, .. } => {
            check_txn(txn, max_txn_ops, MAX_TXN_DEPTH)?;
            check_overlaps(&txn.success)?;
            check_overlaps(&txn.failure)?;
            Ok(())
        }
        other => well_formed(other),
    }
}

/// The part of [`validate`] that does not depend on anybody's settings: what `apply` insists on.
pub(crate) fn well_formed(cmd: &Command) -> Result<(), KvError> {
    match cmd.inner() {
        Command::Put(req) => check_put(req),
        Command::Delete(req) => check_range(&req.range),
        Command::Txn { .. } => validate(cmd.inner(), usize::MAX),
        // etcd's answer to a lease without an id.
        Command::LeaseGrant { id, .. } if *id == LeaseId::ZERO => Err(KvError::LeaseNotFound),
        Command::LeaseGrant { ttl, .. } if *ttl > MAX_LEASE_TTL => Err(KvError::LeaseTtlTooLarge),
        Command::As { .. } => Err(KvError::Internal("a command was asked for twice".to_owned())),
        Command::LeaseGrant { .. }
        | Command::LeaseRevoke { .. }
        | Command::LeaseExpire { .. }
        | Command::Compact { .. }
        | Command::Alarm { .. }
        | Command::Auth(_) => Ok(()),
    }
}

/// Whether a transaction only reads: all steps of both branches are ranges. It can then be answered without the log. A nested
/// transaction never counts as reading, as in etcd.
pub fn is_read_only(txn: &Txn) -> bool {
    txn.success.iter().chain(&txn.failure).all(|op| matches!(op, Op::Range(_)))
}

fn check_put(req: &PutReq) -> Result<(), KvError> {
    if req.key.is_empty() {
        Err(KvError::EmptyKey)
    } else if req.ignore_value && !req.value.is_empty() {
        Err(KvError::ValueProvided)
    } else if req.ignore_lease && req.lease != LeaseId::ZERO {
        Err(KvError::LeaseProvided)
    } else {
        Ok(())
    }
}

fn check_range(range: &KeyRange) -> Result<(), KvError> {
    if range.start.is_empty() { Err(KvError::EmptyKey) } else { Ok(()) }
}

fn check_txn(txn: &Txn, max_ops: usize, depth: usize) -> Result<(), KvError> {
    let ops = txn.compare.len().max(txn.success.len()).max(txn.failure.len());
    if ops > max_ops || depth == 0 {
        return Err(KvError::TooManyOps);
    }
    txn.compare.iter().try_for_each(|compare| check_range(&compare.range))?;
    txn.success.iter().chain(&txn.failure).try_for_each(|op| match op {
        Op::Range(req) => check_range(&req.range),
        Op::Put(req) => check_put(req),
        Op::Delete(req) => check_range(&req.range),
        Op::Txn(inner) => check_txn(inner, max_ops - ops, depth - 1),
    })
}

/// What a list of steps writes, the branches of its nested transactions taken together.
#[derive(Default)]
struct Writes {
    puts: BTreeSet<Bytes>,
    deletes: Vec<KeyRange>,
}

impl Writes {
    fn deletes(&self, key: &[u8]) -> bool {
        self.deletes.iter().any(|range| range.contains(key))
    }

    /// Adds a delete. One without an end is left out: etcd sees it as an empty interval, so that `[put k, delete everything]` passes
    /// there. It does no harm: both changes get the one revision, in the order of the steps.
    fn add_delete(&mut self, range: &KeyRange) {
        if !matches!(range.end, kontiki_base::key::RangeEnd::Unbounded) {
            self.deletes.push(range.clone());
        }
    }

    fn add_put(&mut self, key: &Bytes) -> Result<(), KvError> {
        if self.deletes(key) || !self.puts.insert(key.clone()) { Err(KvError::DuplicateKey) } else { Ok(()) }
    }

    /// Adds a nested transaction, of which one branch runs: the two may write the same keys. Its deletes are looked at by the puts
    /// that are added later, not by those that are there already: etcd accepts `[txn{put k}, txn{delete k}]`, but not the reverse.
    fn add_branches(&mut self, then: Writes, otherwise: Writes) -> Result<(), KvError> {
        for key in &then.puts {
            self.add_put(key)?;
        }
        for key in otherwise.puts {
            if self.deletes(&key) || !self.puts.insert(key.clone()) && !then.puts.contains(&key) {
                return Err(KvError::DuplicateKey);
            }
        }
        self.deletes.extend(then.deletes);
        self.deletes.extend(otherwise.deletes);
        Ok(())
    }
}

/// Finds two writes of one list that may meet in the same key. Deletes may overlap each other.
fn check_overlaps(ops: &[Op]) -> Result<Writes, KvError> {
    let mut writes = Writes::default();
    for op in ops {
        if let Op::Delete(req) = op {
            writes.add_delete(&req.range);
        }
    }
    for op in ops {
        if let Op::Txn(txn) = op {
            writes.add_branches(check_overlaps(&txn.success)?, check_overlaps(&txn.failure)?)?;
        }
    }
    for op in ops {
        if let Op::Put(req) = op {
            writes.add_put(&req.key)?;
        }
    }
    Ok(writes)
}
