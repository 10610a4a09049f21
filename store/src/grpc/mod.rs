//! etcd's services: one file each, all thin over [`Service`].
//!
//! | file | services |
//! |---|---|
//! | `kv` | `etcdserverpb.KV` |
//! | `watch` | `etcdserverpb.Watch` |
//! | `lease` | `etcdserverpb.Lease` |
//! | `cluster` | `etcdserverpb.Cluster` |
//! | `maintenance` | `etcdserverpb.Maintenance` |
//! | `auth` | `etcdserverpb.Auth` |
//! | `lock`, `election` | `v3lockpb.Lock`, `v3electionpb.Election`; `turn` is the queue that both stand in |
//! | `layer` | what every call goes through: spans, counts, `hasleader` |

mod auth;
mod cluster;
mod election;
mod kv;
mod layer;
mod lease;
mod lock;
mod maintenance;
#[cfg(test)]
mod tests;
mod turn;
mod watch;

use std::sync::Arc;

use kontiki_base::ids::Revision;
use kontiki_base::limits;
use kontiki_proto::convert::error::EtcdError;
use kontiki_proto::etcd::etcdserverpb as pb;
use kontiki_proto::etcd::{v3electionpb, v3lockpb};
use tonic::Status;
use tonic::service::Routes;

use crate::raft::Role;
use crate::service::Service;

/// Beyond the request itself, a message may have this much around it.
const MESSAGE_OVERHEAD: usize = 512 << 10;

/// The largest message that is read.
pub(crate) const MESSAGE_BYTES: usize = limits::REQUEST_BYTES + MESSAGE_OVERHEAD;

/// The services of a member.
#[derive(Clone)]
pub(crate) struct Api {
    service: Arc<Service>,
}

impl Api {
    /// A header with a revision.
    #[allow(clippy::unnecessary_wraps, reason = "what the messages take")]
    fn header(&self, revision: Revision) -> Option<pb::ResponseHeader> {
        let raft = self.service.status.borrow();
        Some(pb::ResponseHeader {
            cluster_id: raft.cluster_id,
            member_id: raft.id.get(),
            revision: revision.get(),
            raft_term: raft.term.get(),
        })
    }

    /// A header with the store's present revision.
    fn header_now(&self) -> Option<pb::ResponseHeader> {
        self.header(self.service.revision())
    }

    /// Refuses if this member is a learner: it serves little.
    fn not_learner(&self) -> Result<(), Status> {
        if self.service.status.borrow().role == Role::Learner { Err(EtcdError::NotForLearner.status()) } else { Ok(()) }
    }
}

/// All services as one router, with the layer around them.
pub(crate) fn router(service: &Arc<Service>) -> axum::Router {
    let api = Api { service: Arc::clone(service) };
    macro_rules! serve {
        ($server:path) => {
            <$server>::new(api.clone()).max_decoding_message_size(MESSAGE_BYTES).max_encoding_message_size(usize::MAX)
        };
    }
    let (_, health) = tonic_health::server::health_reporter();
    let routes = Routes::new(serve!(pb::kv_server::KvServer<Api>))
        .add_service(serve!(pb::watch_server::WatchServer<Api>))
        .add_service(serve!(pb::lease_server::LeaseServer<Api>))
        .add_service(serve!(pb::cluster_server::ClusterServer<Api>))
        .add_service(serve!(pb::maintenance_server::MaintenanceServer<Api>))
        .add_service(serve!(pb::auth_server::AuthServer<Api>))
        .add_service(serve!(v3lockpb::lock_server::LockServer<Api>))
        .add_service(serve!(v3electionpb::election_server::ElectionServer<Api>))
        .add_service(health);
    let layer = axum::middleware::from_fn_with_state(Arc::clone(service), layer::around);
    routes.prepare().into_axum_router().layer(layer)
}
