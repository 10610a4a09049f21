//! `etcdserverpb.KV`.

use std::pin::Pin;

use bytes::{BufMut as _, BytesMut};
use futures::Stream;
use kontiki_base::ids::Revision;
use kontiki_base::key::{KeyRange, RangeEnd};
use kontiki_base::kv::{Consistency, KvError, RangeReq, RangeRes, SortOrder, SortTarget};
use kontiki_mvcc::{Command, validate};
use kontiki_proto::convert::error::{EtcdError, kv_status};
use kontiki_proto::convert::request::BadTxn;
use kontiki_proto::convert::{request, response};
use kontiki_proto::etcd::etcdserverpb as pb;
use prost::Message;
use tonic::{Request, Response, Status};

use super::Api;
use crate::auth::Caller;
use crate::config::Bounds;

/// The first piece of a streamed range has so many keys; later ones grow or shrink towards the size of a message.
const FIRST_CHUNK: usize = 10;

fn small_enough(message: &impl Message, bounds: Bounds) -> Result<(), Status> {
    if message.encoded_len() > bounds.request_bytes { Err(EtcdError::RequestTooLarge.status()) } else { Ok(()) }
}

/// What is wrong first: with a step before the bad one, or with that. Keys that clash are looked for last, and so do not count here.
fn first_error(bad: BadTxn, bounds: Bounds) -> Status {
    match validate(&Command::Txn { txn: *bad.before, fence: None }, bounds.txn_ops) {
        Ok(()) | Err(KvError::DuplicateKey) => bad.error.status(),
        Err(earlier) => kv_status(&earlier),
    }
}

/// The calls that are served in two ways: as any other, and the [short](super::short) one.
impl Api {
    pub(super) async fn range_for(&self, caller: &Caller, req: pb::RangeRequest) -> Result<pb::RangeResponse, Status> {
        if req.key.is_empty() {
            return Err(EtcdError::EmptyKey.status());
        }
        if !req.serializable {
            self.not_learner()?;
        }
        let res = self.service.by(caller).range(request::range_from_wire(req)?).await.map_err(|e| kv_status(&e))?;
        let header = self.header(res.revision);
        Ok(response::range_to_wire(res, header))
    }

    pub(super) async fn put_for(&self, caller: &Caller, req: pb::PutRequest) -> Result<pb::PutResponse, Status> {
        self.not_learner()?;
        small_enough(&req, self.service.bounds)?;
        let res = self.service.by(caller).put(request::put_from_wire(req)).await.map_err(|e| kv_status(&e))?;
        let header = self.header(res.revision);
        Ok(response::put_to_wire(res, header))
    }

    pub(super) async fn txn_for(&self, caller: &Caller, req: pb::TxnRequest) -> Result<pb::TxnResponse, Status> {
        self.not_learner()?;
        // Before the steps are looked at one by one, as in etcd.
        if [req.compare.len(), req.success.len(), req.failure.len()].iter().any(|len| *len > self.service.bounds.txn_ops) {
            return Err(EtcdError::TooManyOps.status());
        }
        small_enough(&req, self.service.bounds)?;
        let txn = request::txn_from_wire(req).map_err(|bad| first_error(bad, self.service.bounds))?;
        let res = self.service.by(caller).txn(txn, self.service.bounds.txn_ops).await.map_err(|e| kv_status(&e))?;
        let header = self.header(res.revision);
        Ok(response::txn_to_wire(res, header))
    }
}

#[tonic::async_trait]
impl pb::kv_server::Kv for Api {
    async fn range(&self, req: Request<pb::RangeRequest>) -> Result<Response<pb::RangeResponse>, Status> {
        let caller = Caller::of(&req);
        self.range_for(&caller, req.into_inner()).await.map(Response::new)
    }

    type RangeStreamStream = Pin<Box<dyn Stream<Item = Result<pb::RangeStreamResponse, Status>> + Send>>;

    async fn range_stream(&self, req: Request<pb::RangeRequest>) -> Result<Response<Self::RangeStreamStream>, Status> {
        let caller = Caller::of(&req);
        let req = req.into_inner();
        if req.key.is_empty() {
            return Err(EtcdError::EmptyKey.status());
        }
        let req = request::range_from_wire(req)?;
        if req.target != SortTarget::Key || req.order == SortOrder::Descend {
            return Err(EtcdError::StreamSort.status());
        }
        if [req.min_mod, req.max_mod, req.min_create, req.max_create].iter().any(|r| *r != Revision::ZERO) {
            return Err(EtcdError::StreamFilter.status());
        }
        if req.consistency == Consistency::Linearizable {
            self.not_learner()?;
            self.service.reader.barrier().await.map_err(|e| kv_status(&e))?;
        }
        self.service.by(&caller).may_read(&req.range).await.map_err(|e| kv_status(&e))?;
        let state = Some(Chunks { api: self.clone(), left: req.limit, req, size: FIRST_CHUNK, count: None });
        Ok(Response::new(Box::pin(futures::stream::try_unfold(state, |state| async move {
            let Some(chunks) = state else { return Ok(None) };
            chunks.next().await.map(Some)
        }))))
    }

    async fn put(&self, req: Request<pb::PutRequest>) -> Result<Response<pb::PutResponse>, Status> {
        let caller = Caller::of(&req);
        self.put_for(&caller, req.into_inner()).await.map(Response::new)
    }

    async fn delete_range(&self, req: Request<pb::DeleteRangeRequest>) -> Result<Response<pb::DeleteRangeResponse>, Status> {
        self.not_learner()?;
        let caller = Caller::of(&req);
        let req = req.into_inner();
        small_enough(&req, self.service.bounds)?;
        let res = self.service.by(&caller).delete(request::delete_from_wire(req)).await.map_err(|e| kv_status(&e))?;
        let header = self.header(res.revision);
        Ok(Response::new(response::delete_to_wire(res, header)))
    }

    async fn txn(&self, req: Request<pb::TxnRequest>) -> Result<Response<pb::TxnResponse>, Status> {
        let caller = Caller::of(&req);
        self.txn_for(&caller, req.into_inner()).await.map(Response::new)
    }

    async fn compact(&self, req: Request<pb::CompactionRequest>) -> Result<Response<pb::CompactionResponse>, Status> {
        self.not_learner()?;
        let caller = Caller::of(&req);
        let req = req.into_inner();
        self.service.by(&caller).compact(Revision::new(req.revision), req.physical).await.map_err(|e| kv_status(&e))?;
        Ok(Response::new(pb::CompactionResponse { header: self.header_now() }))
    }
}

/// A range that is sent in pieces, all as of one revision.
struct Chunks {
    api: Api,
    /// What is left to read.
    req: RangeReq,
    /// How many keys may still be sent; 0 is no limit.
    left: usize,
    /// How many the next piece has.
    size: usize,
    /// How many keys there are in all, once that is known.
    count: Option<i64>,
}

impl Chunks {
    async fn next(mut self) -> Result<(pb::RangeStreamResponse, Option<Self>), Status> {
        let asked = if self.left == 0 { self.size } else { self.size.min(self.left) };
        let piece = self.api.service.reader.page_here(&self.req, asked, self.count.is_none()).await.map_err(|e| kv_status(&e))?;
        let count = *self.count.get_or_insert(piece.count);
        // The first piece pins the revision.
        self.req.at = if self.req.at == Revision::ZERO { piece.revision } else { self.req.at };
        let full = self.left != 0 && asked == self.left;
        let last_key = piece.kvs.last().map(|kv| kv.key.clone());
        let (true, false, Some(last_key)) = (piece.more, full, last_key) else {
            let header = self.api.header(piece.revision);
            let range_response = Some(response::range_to_wire(RangeRes { count, ..piece }, header));
            return Ok((pb::RangeStreamResponse { range_response }, None));
        };
        if self.left != 0 {
            self.left -= piece.kvs.len();
        }
        self.req.range = after(&self.req.range, &last_key);
        let piece = response::range_to_wire(RangeRes { more: false, count: 0, ..piece }, None);
        let message_bytes = self.api.service.bounds.request_bytes;
        self.size = match piece.encoded_len() {
            len if len * 2 <= message_bytes => self.size.saturating_mul(2),
            len if len > message_bytes => (self.size / 2).max(1),
            _ => self.size,
        };
        Ok((pb::RangeStreamResponse { range_response: Some(piece) }, Some(self)))
    }
}

/// What of a range comes after a key.
fn after(range: &KeyRange, key: &[u8]) -> KeyRange {
    let mut start = BytesMut::with_capacity(key.len() + 1);
    start.put_slice(key);
    start.put_u8(0);
    let start = start.freeze();
    let end = match &range.end {
        // Nothing comes after a single key: an empty range says so.
        RangeEnd::Single => RangeEnd::Before(start.clone()),
        end => end.clone(),
    };
    KeyRange { start, end }
}
