//! Requests between the wire and base: a server reads them, a client writes them.

use kontiki_base::ids::{LeaseId, Revision};
use kontiki_base::key::KeyRange;
use kontiki_base::kv::{Compare, CompareOp, CompareTarget, Consistency, DeleteReq, Op, PutReq, RangeReq, SortOrder, SortTarget, Txn};

use super::error::EtcdError;
use crate::etcd::etcdserverpb as pb;
use pb::compare::{CompareResult, CompareTarget as WireTarget, TargetUnion};
use pb::range_request::{SortOrder as WireOrder, SortTarget as WireSort};
use pb::request_op::Request;

/// Transactions may nest; deeper than this is refused as "too many operations", long before a stack is in danger. etcd's own budget
/// (each level costs at least one of 128) ends there, too.
const NESTING: usize = 128;

/// A range request from the wire. A revision of 0 or less is "the latest".
pub fn range_from_wire(req: pb::RangeRequest) -> Result<RangeReq, EtcdError> {
    let mut out = range_of_txn(req)?;
    out.at = out.at.max(Revision::ZERO);
    Ok(out)
}

/// A range request as a step of a transaction: a negative revision stays what it is, since it means "compacted" there.
fn range_of_txn(req: pb::RangeRequest) -> Result<RangeReq, EtcdError> {
    let order = match WireOrder::try_from(req.sort_order) {
        Ok(WireOrder::None) => SortOrder::None,
        Ok(WireOrder::Ascend) => SortOrder::Ascend,
        Ok(WireOrder::Descend) => SortOrder::Descend,
        Err(_) => return Err(EtcdError::InvalidSort),
    };
    let target = match WireSort::try_from(req.sort_target) {
        Ok(WireSort::Key) => SortTarget::Key,
        Ok(WireSort::Version) => SortTarget::Version,
        Ok(WireSort::Create) => SortTarget::Create,
        Ok(WireSort::Mod) => SortTarget::Mod,
        Ok(WireSort::Value) => SortTarget::Value,
        Err(_) => return Err(EtcdError::InvalidSort),
    };
    Ok(RangeReq {
        range: KeyRange::from_wire(req.key, req.range_end),
        at: Revision::new(req.revision),
        limit: usize::try_from(req.limit).unwrap_or(0),
        order,
        target,
        consistency: if req.serializable { Consistency::Serializable } else { Consistency::Linearizable },
        keys_only: req.keys_only,
        count_only: req.count_only,
        min_mod: Revision::new(req.min_mod_revision),
        max_mod: Revision::new(req.max_mod_revision),
        min_create: Revision::new(req.min_create_revision),
        max_create: Revision::new(req.max_create_revision),
    })
}

/// A range request to the wire.
pub fn range_to_wire(req: RangeReq) -> pb::RangeRequest {
    let (key, range_end) = req.range.to_wire();
    let order = match req.order {
        SortOrder::None => WireOrder::None,
        SortOrder::Ascend => WireOrder::Ascend,
        SortOrder::Descend => WireOrder::Descend,
    };
    let target = match req.target {
        SortTarget::Key => WireSort::Key,
        SortTarget::Version => WireSort::Version,
        SortTarget::Create => WireSort::Create,
        SortTarget::Mod => WireSort::Mod,
        SortTarget::Value => WireSort::Value,
    };
    pb::RangeRequest {
        key,
        range_end,
        limit: i64::try_from(req.limit).unwrap_or(i64::MAX),
        revision: req.at.get(),
        sort_order: order.into(),
        sort_target: target.into(),
        serializable: req.consistency == Consistency::Serializable,
        keys_only: req.keys_only,
        count_only: req.count_only,
        min_mod_revision: req.min_mod.get(),
        max_mod_revision: req.max_mod.get(),
        min_create_revision: req.min_create.get(),
        max_create_revision: req.max_create.get(),
    }
}

/// A put from the wire.
pub fn put_from_wire(req: pb::PutRequest) -> PutReq {
    PutReq {
        key: req.key,
        value: req.value,
        lease: LeaseId::new(req.lease),
        prev_kv: req.prev_kv,
        ignore_value: req.ignore_value,
        ignore_lease: req.ignore_lease,
    }
}

/// A put to the wire.
pub fn put_to_wire(req: PutReq) -> pb::PutRequest {
    pb::PutRequest {
        key: req.key,
        value: req.value,
        lease: req.lease.get(),
        prev_kv: req.prev_kv,
        ignore_value: req.ignore_value,
        ignore_lease: req.ignore_lease,
    }
}

/// A deletion from the wire.
pub fn delete_from_wire(req: pb::DeleteRangeRequest) -> DeleteReq {
    DeleteReq { range: KeyRange::from_wire(req.key, req.range_end), prev_kv: req.prev_kv }
}

/// A deletion to the wire.
pub fn delete_to_wire(req: DeleteReq) -> pb::DeleteRangeRequest {
    let (key, range_end) = req.range.to_wire();
    pb::DeleteRangeRequest { key, range_end, prev_kv: req.prev_kv }
}

/// A transaction with a step that has no meaning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadTxn {
    /// What is wrong with that step.
    pub error: EtcdError,
    /// What came before it. etcd checks step by step: if something is wrong with this, then that is the answer.
    pub before: Box<Txn>,
}

/// A transaction from the wire.
///
/// # Errors
/// [`EtcdError::KeyNotFound`] for a step that says nothing, [`EtcdError::InvalidSort`], [`EtcdError::TooManyOps`] if it is nested absurdly.
pub fn txn_from_wire(req: pb::TxnRequest) -> Result<Txn, BadTxn> {
    txn_at_depth(req, 0)
}

fn txn_at_depth(req: pb::TxnRequest, depth: usize) -> Result<Txn, BadTxn> {
    let mut txn = Txn { compare: req.compare.into_iter().map(compare_from_wire).collect(), ..Txn::default() };
    if depth > NESTING {
        return Err(BadTxn { error: EtcdError::TooManyOps, before: Box::default() });
    }
    for op in req.success {
        if let Err(error) = op_from_wire(op, depth, &mut txn.success) {
            return Err(BadTxn { error, before: Box::new(txn) });
        }
    }
    for op in req.failure {
        if let Err(error) = op_from_wire(op, depth, &mut txn.failure) {
            return Err(BadTxn { error, before: Box::new(txn) });
        }
    }
    Ok(txn)
}

/// Appends a step; of a nested transaction that is bad, what is before the bad step.
fn op_from_wire(op: pb::RequestOp, depth: usize, ops: &mut Vec<Op>) -> Result<(), EtcdError> {
    ops.push(match op.request {
        Some(Request::RequestRange(range)) => Op::Range(range_of_txn(range)?),
        Some(Request::RequestPut(put)) => Op::Put(put_from_wire(put)),
        Some(Request::RequestDeleteRange(delete)) => Op::Delete(delete_from_wire(delete)),
        Some(Request::RequestTxn(txn)) => match txn_at_depth(txn, depth + 1) {
            Ok(txn) => Op::Txn(txn),
            Err(bad) => {
                ops.push(Op::Txn(*bad.before));
                return Err(bad.error);
            }
        },
        None => return Err(EtcdError::KeyNotFound),
    });
    Ok(())
}

/// A transaction to the wire.
pub fn txn_to_wire(txn: Txn) -> pb::TxnRequest {
    pb::TxnRequest {
        compare: txn.compare.into_iter().map(compare_to_wire).collect(),
        success: txn.success.into_iter().map(op_to_wire).collect(),
        failure: txn.failure.into_iter().map(op_to_wire).collect(),
    }
}

fn op_to_wire(op: Op) -> pb::RequestOp {
    let request = match op {
        Op::Range(range) => Request::RequestRange(range_to_wire(range)),
        Op::Put(put) => Request::RequestPut(put_to_wire(put)),
        Op::Delete(delete) => Request::RequestDeleteRange(delete_to_wire(delete)),
        Op::Txn(txn) => Request::RequestTxn(txn_to_wire(txn)),
    };
    pb::RequestOp { request: Some(request) }
}

/// A condition from the wire. Every message has a meaning: an operand of the wrong kind counts as zero, and numbers that are no
/// operator or target of etcd's mean what they come to in etcd's evaluation, written here with operators that we have.
pub fn compare_from_wire(compare: pb::Compare) -> Compare {
    let range = KeyRange::from_wire(compare.key, compare.range_end);
    let number = |arm: fn(&TargetUnion) -> Option<i64>| compare.target_union.as_ref().and_then(arm).unwrap_or(0);
    let target = match WireTarget::try_from(compare.target) {
        Ok(WireTarget::Version) => Some(CompareTarget::Version(number(|u| match u {
            TargetUnion::Version(n) => Some(*n),
            _ => None,
        }))),
        Ok(WireTarget::Create) => Some(CompareTarget::Create(Revision::new(number(|u| match u {
            TargetUnion::CreateRevision(n) => Some(*n),
            _ => None,
        })))),
        Ok(WireTarget::Mod) => Some(CompareTarget::Mod(Revision::new(number(|u| match u {
            TargetUnion::ModRevision(n) => Some(*n),
            _ => None,
        })))),
        Ok(WireTarget::Lease) => Some(CompareTarget::Lease(LeaseId::new(number(|u| match u {
            TargetUnion::Lease(n) => Some(*n),
            _ => None,
        })))),
        Ok(WireTarget::Value) => Some(CompareTarget::Value(match &compare.target_union {
            Some(TargetUnion::Value(value)) => value.clone(),
            _ => bytes::Bytes::new(),
        })),
        Err(_) => None,
    };
    let op = match CompareResult::try_from(compare.result) {
        Ok(CompareResult::Equal) => Some(CompareOp::Equal),
        Ok(CompareResult::Greater) => Some(CompareOp::Greater),
        Ok(CompareResult::Less) => Some(CompareOp::Less),
        Ok(CompareResult::NotEqual) => Some(CompareOp::NotEqual),
        Err(_) => None,
    };
    match (target, op) {
        (Some(target), Some(op)) => Compare { range, target, op },
        // An unknown operator always holds, except that a missing key has no value to compare: then "exists" is what is left of it.
        (Some(CompareTarget::Value(_)), None) => exists(range),
        (_, None) => always(range),
        // An unknown target compares as equal.
        (None, Some(CompareOp::Equal)) => always(range),
        (None, Some(_)) => never(range),
    }
}

fn always(range: KeyRange) -> Compare {
    Compare { range, target: CompareTarget::Version(-1), op: CompareOp::Greater }
}

fn exists(range: KeyRange) -> Compare {
    Compare { range, target: CompareTarget::Version(0), op: CompareOp::Greater }
}

fn never(range: KeyRange) -> Compare {
    Compare { range, target: CompareTarget::Version(0), op: CompareOp::Less }
}

/// A condition to the wire.
pub fn compare_to_wire(compare: Compare) -> pb::Compare {
    let (key, range_end) = compare.range.to_wire();
    let result = match compare.op {
        CompareOp::Equal => CompareResult::Equal,
        CompareOp::Greater => CompareResult::Greater,
        CompareOp::Less => CompareResult::Less,
        CompareOp::NotEqual => CompareResult::NotEqual,
    };
    let (target, union) = match compare.target {
        CompareTarget::Version(n) => (WireTarget::Version, TargetUnion::Version(n)),
        CompareTarget::Create(r) => (WireTarget::Create, TargetUnion::CreateRevision(r.get())),
        CompareTarget::Mod(r) => (WireTarget::Mod, TargetUnion::ModRevision(r.get())),
        CompareTarget::Value(v) => (WireTarget::Value, TargetUnion::Value(v)),
        CompareTarget::Lease(l) => (WireTarget::Lease, TargetUnion::Lease(l.get())),
    };
    pb::Compare { result: result.into(), target: target.into(), key, range_end, target_union: Some(union) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nested() -> Txn {
        let range = KeyRange::prefix("a");
        Txn {
            compare: vec![
                Compare::mod_equals("k", Revision::new(3)),
                Compare { range: range.clone(), target: CompareTarget::Value("v".into()), op: CompareOp::NotEqual },
                Compare { range: range.clone(), target: CompareTarget::Lease(LeaseId::new(9)), op: CompareOp::Less },
                Compare { range: range.clone(), target: CompareTarget::Create(Revision::new(1)), op: CompareOp::Greater },
                Compare { range: range.clone(), target: CompareTarget::Version(1), op: CompareOp::Equal },
            ],
            success: vec![
                Op::Put(PutReq { key: "k".into(), lease: LeaseId::new(4), prev_kv: true, ignore_value: true, ..PutReq::default() }),
                Op::Txn(Txn { success: vec![Op::Range(RangeReq::new(range.clone()))], ..Txn::default() }),
            ],
            failure: vec![Op::Delete(DeleteReq { range, prev_kv: true })],
        }
    }

    #[test]
    fn a_transaction_survives_the_wire() {
        assert_eq!(txn_from_wire(txn_to_wire(nested())), Ok(nested()));
    }

    #[test]
    fn a_range_survives_the_wire() {
        let req = RangeReq {
            range: KeyRange::from_wire("a".into(), "\0".into()),
            at: Revision::new(8),
            limit: 5,
            order: SortOrder::Descend,
            target: SortTarget::Value,
            consistency: Consistency::Serializable,
            keys_only: true,
            count_only: true,
            min_mod: Revision::new(1),
            max_mod: Revision::new(2),
            min_create: Revision::new(3),
            max_create: Revision::new(4),
        };
        assert_eq!(range_from_wire(range_to_wire(req.clone())), Ok(req));
    }

    #[test]
    fn negative_numbers_mean_latest_and_unlimited() {
        let req = pb::RangeRequest { key: "a".into(), limit: -5, revision: -1, ..Default::default() };
        let read = range_from_wire(req.clone()).unwrap();
        assert_eq!((read.limit, read.at), (0, Revision::ZERO));
        let txn = pb::TxnRequest { success: vec![pb::RequestOp { request: Some(Request::RequestRange(req)) }], ..Default::default() };
        let Op::Range(inner) = &txn_from_wire(txn).unwrap().success[0] else { panic!("a range") };
        assert_eq!(inner.at, Revision::new(-1), "inside a transaction it is for apply to refuse");
    }

    #[test]
    fn nonsense_gives_etcds_errors() {
        let bad = |order, target| pb::RangeRequest { key: "a".into(), sort_order: order, sort_target: target, ..Default::default() };
        assert_eq!(range_from_wire(bad(3, 0)), Err(EtcdError::InvalidSort));
        assert_eq!(range_from_wire(bad(0, 5)), Err(EtcdError::InvalidSort));
        let empty = pb::TxnRequest { failure: vec![pb::RequestOp { request: None }], ..Default::default() };
        assert_eq!(txn_from_wire(empty).unwrap_err().error, EtcdError::KeyNotFound);
        let mut deep = pb::TxnRequest::default();
        for _ in 0..=NESTING {
            deep = pb::TxnRequest { success: vec![pb::RequestOp { request: Some(Request::RequestTxn(deep)) }], ..Default::default() };
        }
        assert_eq!(txn_from_wire(deep).unwrap_err().error, EtcdError::TooManyOps);
    }

    #[test]
    fn strange_comparisons_mean_what_they_mean_to_etcd() {
        let wire = |result, target, union| pb::Compare { result, target, key: "k".into(), target_union: union, ..Default::default() };
        let range = || KeyRange::single("k");
        // (operator, target, operand) -> meaning
        let table = [
            (wire(9, 0, None), always(range())),
            (wire(9, 3, None), exists(range())),
            (wire(0, 9, None), always(range())),
            (wire(1, 9, None), never(range())),
            (wire(3, 9, None), never(range())),
            (wire(9, 9, None), always(range())),
            (
                wire(0, 2, Some(TargetUnion::Version(7))),
                Compare { range: range(), target: CompareTarget::Mod(Revision::ZERO), op: CompareOp::Equal },
            ),
            (wire(0, 3, None), Compare { range: range(), target: CompareTarget::Value("".into()), op: CompareOp::Equal }),
        ];
        for (compare, meaning) in table {
            assert_eq!(compare_from_wire(compare.clone()), meaning, "{compare:?}");
        }
    }
}
