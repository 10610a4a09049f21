//! `etcdserverpb.Lease`.

use std::pin::Pin;

use futures::{Stream, StreamExt as _};
use kontiki_base::ids::LeaseId;
use kontiki_proto::convert::error::kv_status;
use kontiki_proto::etcd::etcdserverpb as pb;
use tonic::{Request, Response, Status, Streaming};

use super::Api;
use crate::auth::Caller;

#[tonic::async_trait]
impl pb::lease_server::Lease for Api {
    async fn lease_grant(&self, req: Request<pb::LeaseGrantRequest>) -> Result<Response<pb::LeaseGrantResponse>, Status> {
        self.not_learner()?;
        let caller = Caller::of(&req);
        let req = req.into_inner();
        let (id, ttl) = self.service.by(&caller).grant(LeaseId::new(req.id), req.ttl).await.map_err(|e| kv_status(&e))?;
        Ok(Response::new(pb::LeaseGrantResponse { header: self.header_now(), id: id.get(), ttl, error: String::new() }))
    }

    async fn lease_revoke(&self, req: Request<pb::LeaseRevokeRequest>) -> Result<Response<pb::LeaseRevokeResponse>, Status> {
        self.not_learner()?;
        let caller = Caller::of(&req);
        self.service.by(&caller).revoke(LeaseId::new(req.into_inner().id)).await.map_err(|e| kv_status(&e))?;
        Ok(Response::new(pb::LeaseRevokeResponse { header: self.header_now() }))
    }

    type LeaseKeepAliveStream = Pin<Box<dyn Stream<Item = Result<pb::LeaseKeepAliveResponse, Status>> + Send>>;

    async fn lease_keep_alive(
        &self,
        req: Request<Streaming<pb::LeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        self.not_learner()?;
        let (api, caller) = (self.clone(), Caller::of(&req));
        let answers = req.into_inner().then(move |asked| {
            let (api, caller) = (api.clone(), caller.clone());
            async move {
                let id = asked?.id;
                // Before the renewal, as in etcd: a revision of that moment, not of a later one.
                let header = api.header_now();
                let ttl = api.service.by(&caller).keep_alive(LeaseId::new(id)).await.map_err(|e| kv_status(&e))?;
                // A lease that is gone is answered, with no time left.
                Ok(pb::LeaseKeepAliveResponse { header, id, ttl: ttl.unwrap_or(0) })
            }
        });
        Ok(Response::new(Box::pin(until_error(answers))))
    }

    async fn lease_time_to_live(&self, req: Request<pb::LeaseTimeToLiveRequest>) -> Result<Response<pb::LeaseTimeToLiveResponse>, Status> {
        self.not_learner()?;
        let caller = Caller::of(&req);
        let req = req.into_inner();
        let found = self.service.by(&caller).time_to_live(LeaseId::new(req.id), req.keys).await.map_err(|e| kv_status(&e))?;
        let (ttl, granted_ttl) = found.time.map_or((-1, 0), |time| (time.ttl, time.granted));
        Ok(Response::new(pb::LeaseTimeToLiveResponse { header: self.header_now(), id: req.id, ttl, granted_ttl, keys: found.keys }))
    }

    async fn lease_leases(&self, _req: Request<pb::LeaseLeasesRequest>) -> Result<Response<pb::LeaseLeasesResponse>, Status> {
        self.not_learner()?;
        let leases = self.service.leases.list().await.map_err(|e| kv_status(&e))?;
        let leases = leases.into_iter().map(|id| pb::LeaseStatus { id: id.get() }).collect();
        Ok(Response::new(pb::LeaseLeasesResponse { header: self.header_now(), leases }))
    }
}

/// The stream up to and including its first error: a gRPC stream ends with its status.
fn until_error<T: Send + 'static>(
    answers: impl Stream<Item = Result<T, Status>> + Send + 'static,
) -> impl Stream<Item = Result<T, Status>> + Send {
    answers.scan(false, |failed, answer| {
        let go_on = !*failed;
        *failed |= answer.is_err();
        std::future::ready(go_on.then_some(answer))
    })
}
