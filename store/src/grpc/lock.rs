//! `v3lockpb.Lock`: a mutex whose holder is alive for as long as its lease.

use kontiki_base::ids::LeaseId;
use kontiki_base::key::KeyRange;
use kontiki_base::kv::DeleteReq;
use kontiki_proto::convert::error::{EtcdError, kv_status};
use kontiki_proto::etcd::v3lockpb as pb;
use tonic::{Request, Response, Status};

use super::Api;
use super::turn::Turn;
use crate::auth::Caller;

#[tonic::async_trait]
impl pb::lock_server::Lock for Api {
    async fn lock(&self, req: Request<pb::LockRequest>) -> Result<Response<pb::LockResponse>, Status> {
        self.not_learner()?;
        let caller = Caller::of(&req);
        let req = req.into_inner();
        let turn =
            Turn::take(&self.service, caller, &req.name, LeaseId::new(req.lease), bytes::Bytes::new()).await.map_err(|e| kv_status(&e))?;
        let revision = turn.wait().await.map_err(|e| kv_status(&e))?.ok_or(EtcdError::MutexExpired)?;
        let (key, _, _) = turn.keep();
        Ok(Response::new(pb::LockResponse { header: self.header(revision), key }))
    }

    async fn unlock(&self, req: Request<pb::UnlockRequest>) -> Result<Response<pb::UnlockResponse>, Status> {
        self.not_learner()?;
        let caller = Caller::of(&req);
        let key = req.into_inner().key;
        let delete = DeleteReq { range: KeyRange::single(key), prev_kv: false };
        let res = self.service.by(&caller).delete(delete).await.map_err(|e| kv_status(&e))?;
        Ok(Response::new(pb::UnlockResponse { header: self.header(res.revision) }))
    }
}
