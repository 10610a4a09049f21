//! Replies between the wire and base: a server writes them, a client reads them.

use kontiki_base::ids::Revision;
use kontiki_base::kv::{DeleteRes, OpRes, PutRes, RangeRes, TxnRes};

use super::{kv_from_wire, kv_to_wire};
use crate::etcd::etcdserverpb as pb;
use pb::response_op::Response;

/// The header of a step inside a transaction: it has a revision and nothing else.
fn inner(revision: Revision) -> Option<pb::ResponseHeader> {
    Some(pb::ResponseHeader { revision: revision.get(), ..Default::default() })
}

fn revision_of(header: Option<&pb::ResponseHeader>) -> Revision {
    Revision::new(header.map_or(0, |h| h.revision))
}

/// A range's answer to the wire, with the header that the server fills.
pub fn range_to_wire(res: RangeRes, header: Option<pb::ResponseHeader>) -> pb::RangeResponse {
    pb::RangeResponse { header, kvs: res.kvs.into_iter().map(kv_to_wire).collect(), more: res.more, count: res.count }
}

/// A range's answer from the wire.
pub fn range_from_wire(res: pb::RangeResponse) -> RangeRes {
    RangeRes {
        revision: revision_of(res.header.as_ref()),
        kvs: res.kvs.into_iter().map(kv_from_wire).collect(),
        more: res.more,
        count: res.count,
    }
}

/// A put's answer to the wire.
pub fn put_to_wire(res: PutRes, header: Option<pb::ResponseHeader>) -> pb::PutResponse {
    pb::PutResponse { header, prev_kv: res.prev.map(kv_to_wire) }
}

/// A put's answer from the wire.
pub fn put_from_wire(res: pb::PutResponse) -> PutRes {
    PutRes { revision: revision_of(res.header.as_ref()), prev: res.prev_kv.map(kv_from_wire) }
}

/// A deletion's answer to the wire.
pub fn delete_to_wire(res: DeleteRes, header: Option<pb::ResponseHeader>) -> pb::DeleteRangeResponse {
    pb::DeleteRangeResponse { header, deleted: res.deleted, prev_kvs: res.prevs.into_iter().map(kv_to_wire).collect() }
}

/// A deletion's answer from the wire.
pub fn delete_from_wire(res: pb::DeleteRangeResponse) -> DeleteRes {
    DeleteRes {
        revision: revision_of(res.header.as_ref()),
        deleted: res.deleted,
        prevs: res.prev_kvs.into_iter().map(kv_from_wire).collect(),
    }
}

/// A transaction's answer to the wire. Steps carry only a revision in their headers; a nested transaction's header is there and empty.
pub fn txn_to_wire(res: TxnRes, header: Option<pb::ResponseHeader>) -> pb::TxnResponse {
    pb::TxnResponse { header, succeeded: res.succeeded, responses: res.responses.into_iter().map(op_to_wire).collect() }
}

fn op_to_wire(res: OpRes) -> pb::ResponseOp {
    let response = match res {
        OpRes::Range(range) => {
            let header = inner(range.revision);
            Response::ResponseRange(range_to_wire(range, header))
        }
        OpRes::Put(put) => {
            let header = inner(put.revision);
            Response::ResponsePut(put_to_wire(put, header))
        }
        OpRes::Delete(delete) => {
            let header = inner(delete.revision);
            Response::ResponseDeleteRange(delete_to_wire(delete, header))
        }
        OpRes::Txn(txn) => Response::ResponseTxn(txn_to_wire(txn, Some(pb::ResponseHeader::default()))),
    };
    pb::ResponseOp { response: Some(response) }
}

/// A transaction's answer from the wire. A nested transaction has no revision of its own there: it is given the outer one's.
pub fn txn_from_wire(res: pb::TxnResponse) -> TxnRes {
    let revision = revision_of(res.header.as_ref());
    nested_from_wire(res, revision)
}

fn nested_from_wire(res: pb::TxnResponse, revision: Revision) -> TxnRes {
    let responses = res.responses.into_iter().filter_map(|op| op.response).map(|op| match op {
        Response::ResponseRange(range) => OpRes::Range(range_from_wire(range)),
        Response::ResponsePut(put) => OpRes::Put(put_from_wire(put)),
        Response::ResponseDeleteRange(delete) => OpRes::Delete(delete_from_wire(delete)),
        Response::ResponseTxn(txn) => OpRes::Txn(nested_from_wire(txn, revision)),
    });
    TxnRes { revision, succeeded: res.succeeded, responses: responses.collect() }
}

#[cfg(test)]
mod tests {
    use kontiki_base::kv::KeyValue;

    use super::*;

    #[test]
    fn a_transactions_answer_survives_the_wire() {
        let kv = KeyValue { key: "k".into(), value: "v".into(), version: 2, ..KeyValue::default() };
        let at = Revision::new(7);
        let res = TxnRes {
            revision: at,
            succeeded: true,
            responses: vec![
                OpRes::Range(RangeRes { revision: Revision::new(6), kvs: vec![kv.clone()], more: true, count: 3 }),
                OpRes::Put(PutRes { revision: at, prev: Some(kv.clone()) }),
                OpRes::Delete(DeleteRes { revision: at, deleted: 1, prevs: vec![kv] }),
                OpRes::Txn(TxnRes { revision: at, succeeded: false, responses: vec![OpRes::Put(PutRes { revision: at, prev: None })] }),
            ],
        };
        let header = pb::ResponseHeader { cluster_id: 1, member_id: 2, revision: 7, raft_term: 3 };
        let wire = txn_to_wire(res.clone(), Some(header));
        let Some(Response::ResponsePut(put)) = &wire.responses[1].response else { panic!("a put") };
        assert_eq!(put.header, Some(pb::ResponseHeader { revision: 7, ..Default::default() }), "only the revision");
        let Some(Response::ResponseTxn(txn)) = &wire.responses[3].response else { panic!("a transaction") };
        assert_eq!(txn.header, Some(pb::ResponseHeader::default()), "present but empty");
        assert_eq!(txn_from_wire(wire), res);
    }
}
