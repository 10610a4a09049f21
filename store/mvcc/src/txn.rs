//! Transactions: conditions first, all of them; then whatever can fail; then the steps, each seeing those before it.

use bytes::Bytes;
use kontiki_base::ids::{LeaseId, Revision};
use kontiki_base::kv::{Compare, CompareOp, CompareTarget, KeyValue, KvError, Op, OpRes, PutReq, RangeReq, Txn, TxnRes};
use kontiki_base::mutant;

use crate::keys::Meta;
use crate::lease;
use crate::ops;
use crate::range;
use crate::state::{self, ReadError, Revisions};
use crate::validate;
use crate::view::{Batch, View, ViewError};
use crate::write::Writer;

/// The branches that a transaction takes. Nested conditions are decided on the state before the whole transaction, too.
struct Path<'a> {
    succeeded: bool,
    ops: &'a [Op],
    /// One for each nested transaction in `ops`, in order.
    nested: Vec<Path<'a>>,
}

/// Carries out a transaction; if it fails, nothing of it is left in the writer.
pub(crate) fn run(writer: &mut Writer<'_>, txn: &Txn) -> Result<TxnRes, ReadError> {
    let path = choose(&writer.view(), txn)?;
    let keeps = check(&writer.view(), writer.begin(), &path)?;
    if keeps {
        // The one thing that can still fail: a step that keeps the old value or lease, after a step that deletes the key.
        writer.remember();
    }
    let responses = match steps(writer, &path) {
        Ok(responses) => responses,
        Err(ReadError::Kv(error)) => {
            mutant!("M21", writer.roll_back(), ());
            return Err(error.into());
        }
        Err(error) => return Err(error),
    };
    Ok(TxnRes { revision: mutant!("M66", writer.now(), writer.begin()).revision, succeeded: path.succeeded, responses })
}

/// Answers a transaction that [only reads](validate::is_read_only), without the log.
///
/// # Errors
/// As for [`range`](range::range()); [`KvError::Internal`] if it may write.
pub fn read_txn(view: &dyn View, txn: &Txn) -> Result<TxnRes, ReadError> {
    if !validate::is_read_only(txn) {
        return Err(KvError::Internal("a transaction that may write was given to read_txn".to_owned()).into());
    }
    let mut nothing = Batch::default();
    let res = run(&mut Writer::new(view, &mut nothing, state::current(view)?), txn)?;
    assert!(nothing.is_empty(), "a transaction that only reads has written");
    Ok(res)
}

fn choose<'a>(view: &dyn View, txn: &'a Txn) -> Result<Path<'a>, ViewError> {
    let mut succeeded = true;
    for compare in &txn.compare {
        if !holds(view, compare)? {
            succeeded = false;
            break;
        }
    }
    let ops = if succeeded { &txn.success } else { &txn.failure };
    let mut nested = Vec::new();
    for op in ops {
        if let Op::Txn(inner) = op {
            nested.push(choose(view, inner)?);
        }
    }
    Ok(Path { succeeded, ops, nested })
}

/// Whether a condition holds: for every key of its range. An empty range counts as one key that does not exist.
fn holds(view: &dyn View, compare: &Compare) -> Result<bool, ViewError> {
    if compare.range.is_single() {
        return match state::meta(view, &compare.range.start)? {
            Some(meta) => holds_for(view, compare, compare.range.start.clone(), &meta),
            None => Ok(holds_for_nothing(compare)),
        };
    }
    let mut any = false;
    for living in range::living(view, &compare.range) {
        let (key, meta) = living?;
        any = true;
        if !holds_for(view, compare, key, &meta)? {
            return Ok(false);
        }
    }
    Ok(any || holds_for_nothing(compare))
}

/// The value is read only if it is compared.
fn holds_for(view: &dyn View, compare: &Compare, key: Bytes, meta: &Meta) -> Result<bool, ViewError> {
    let kv = match compare.target {
        CompareTarget::Value(_) => state::with_value(view, key, meta)?,
        _ => state::without_value(key, meta),
    };
    Ok(satisfies(compare, &kv))
}

/// A key that does not exist has zeros, but no value: no comparison with its value holds.
fn holds_for_nothing(compare: &Compare) -> bool {
    mutant!("M46", !matches!(compare.target, CompareTarget::Value(_)), true) && satisfies(compare, &KeyValue::default())
}

fn satisfies(compare: &Compare, kv: &KeyValue) -> bool {
    let order = match &compare.target {
        CompareTarget::Version(version) => kv.version.cmp(version),
        CompareTarget::Create(revision) => kv.create_revision.cmp(revision),
        CompareTarget::Mod(revision) => kv.mod_revision.cmp(revision),
        CompareTarget::Value(value) => kv.value.cmp(value),
        CompareTarget::Lease(lease) => kv.lease.cmp(lease),
    };
    match compare.op {
        CompareOp::Equal => order.is_eq(),
        CompareOp::Greater => order.is_gt(),
        CompareOp::Less => order.is_lt(),
        CompareOp::NotEqual => order.is_ne(),
    }
}

/// Checks every step on the path against the state before the transaction. Returns whether one of them keeps an old value or lease.
fn check(view: &dyn View, begin: Revisions, path: &Path<'_>) -> Result<bool, ReadError> {
    let mut keeps = false;
    let mut nested = path.nested.iter();
    for op in path.ops {
        match op {
            Op::Range(req) => check_range(begin, req)?,
            Op::Put(req) => {
                check_put(view, req)?;
                keeps |= req.ignore_value || req.ignore_lease;
            }
            Op::Delete(_) => {}
            Op::Txn(_) => keeps |= check(view, begin, nested.next().expect("each nested transaction has a path"))?,
        }
    }
    Ok(keeps)
}

/// Within a transaction a negative revision is not "the latest" but, as soon as anything was compacted, a compacted one.
fn check_range(begin: Revisions, req: &RangeReq) -> Result<(), KvError> {
    if req.at == Revision::ZERO {
        Ok(())
    } else if req.at > begin.revision {
        Err(KvError::FutureRevision)
    } else if mutant!("M21", req.at < begin.compact, false) {
        Err(KvError::Compacted { compact: begin.compact })
    } else {
        Ok(())
    }
}

fn check_put(view: &dyn View, req: &PutReq) -> Result<(), ReadError> {
    if (req.ignore_value || req.ignore_lease) && state::meta(view, &req.key)?.is_none() {
        return Err(KvError::KeyNotFound.into());
    }
    if req.lease != LeaseId::ZERO && !lease::exists(view, req.lease)? {
        return Err(KvError::LeaseNotFound.into());
    }
    Ok(())
}

fn steps(writer: &mut Writer<'_>, path: &Path<'_>) -> Result<Vec<OpRes>, ReadError> {
    let mut nested = path.nested.iter();
    let mut responses = Vec::with_capacity(path.ops.len());
    for op in path.ops {
        responses.push(match op {
            Op::Range(req) => OpRes::Range(range::range_from(&writer.view(), req, writer.now())?),
            Op::Put(req) => OpRes::Put(ops::put(writer, req)?),
            Op::Delete(req) => OpRes::Delete(ops::delete(writer, req)?),
            Op::Txn(_) => {
                let path = nested.next().expect("each nested transaction has a path");
                let responses = steps(writer, path)?;
                // etcd leaves the header of a nested answer empty.
                OpRes::Txn(TxnRes { revision: Revision::ZERO, succeeded: path.succeeded, responses })
            }
        });
    }
    Ok(responses)
}
