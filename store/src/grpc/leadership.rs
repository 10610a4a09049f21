//! `kontiki.store.v1.Leadership`: what members saw of elections. Needs no leader: it is asked for when there is none, too.

use kontiki_proto::store as pb;
use tonic::{Request, Response, Status};

use super::Api;

#[tonic::async_trait]
impl pb::leadership_server::Leadership for Api {
    async fn observations(&self, req: Request<pb::ObservationsRequest>) -> Result<Response<pb::ObservationsResponse>, Status> {
        let (members, silent) = self.service.roster.observations(req.into_inner().everyone).await;
        Ok(Response::new(pb::ObservationsResponse { cluster_id: self.service.status.borrow().cluster_id, members, silent }))
    }
}
