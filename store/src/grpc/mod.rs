//! etcd's services: one file each, all thin over [`Service`].
//!
//! | file | services |
//! |---|---|
//! | `kv` | `etcdserverpb.KV` |
//! | `watch` | `etcdserverpb.Watch` |
//! | `lease` | `etcdserverpb.Lease` |
//! | `cluster` | `etcdserverpb.Cluster` |
//! | `maintenance`, `snapshot` | `etcdserverpb.Maintenance` |
//! | `auth` | `etcdserverpb.Auth` |
//! | `leadership` | `kontiki.store.v1.Leadership`: what members saw of elections |
//! | `gate` | what each call demands of its caller while auth is enabled |
//! | `lock`, `election` | `v3lockpb.Lock`, `v3electionpb.Election`; `turn` is the queue that both stand in |
//! | `short` | the short way of `Range`, `Put` and `Txn` |
//! | `layer`, `count` | what every call goes through: spans, counts, `hasleader`, what learners do not serve |

mod auth;
mod cluster;
mod count;
mod election;
mod gate;
mod kv;
mod layer;
mod leadership;
mod lease;
mod lock;
mod maintenance;
pub(crate) mod short;
mod snapshot;
#[cfg(test)]
mod tests;
mod turn;
mod watch;

use std::sync::Arc;

use kontiki_base::ids::Revision;
use kontiki_proto::convert::error::EtcdError;
use kontiki_proto::etcd::etcdserverpb as pb;
use kontiki_proto::etcd::{v3electionpb, v3lockpb};
use tonic::Status;
use tonic::service::Routes;

use crate::config::Bounds;
use crate::metrics::Rpc;
use crate::raft::Role;
use crate::service::Service;

#[cfg(test)]
pub(crate) use layer::SERVICES;
pub(crate) use layer::are_traced;

/// Beyond the request itself, a message may have this much around it.
const MESSAGE_OVERHEAD: usize = 512 << 10;

/// The largest message that is read.
pub(crate) const fn message_bytes(bounds: Bounds) -> usize {
    bounds.request_bytes + MESSAGE_OVERHEAD
}

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
    let message_bytes = message_bytes(service.bounds);
    macro_rules! serve {
        ($server:path) => {
            <$server>::new(api.clone()).max_decoding_message_size(message_bytes).max_encoding_message_size(usize::MAX)
        };
    }
    let (_, health) = tonic_health::server::health_reporter();
    let routes = Routes::new(serve!(pb::kv_server::KvServer<Api>))
        .add_service(watch::Door { api: api.clone() })
        .add_service(serve!(pb::lease_server::LeaseServer<Api>))
        .add_service(serve!(pb::cluster_server::ClusterServer<Api>))
        .add_service(serve!(pb::maintenance_server::MaintenanceServer<Api>))
        .add_service(serve!(pb::auth_server::AuthServer<Api>))
        .add_service(serve!(v3lockpb::lock_server::LockServer<Api>))
        .add_service(serve!(v3electionpb::election_server::ElectionServer<Api>))
        .add_service(serve!(kontiki_proto::store::leadership_server::LeadershipServer<Api>))
        .add_service(health);
    prime(service);
    let layer = axum::middleware::from_fn_with_state(Arc::clone(service), layer::around);
    routes.prepare().into_axum_router().layer(layer)
}

/// Begins the counts of every call at zero.
fn prime(service: &Service) {
    let codes = || (0..=16).map(|code| layer::go_name(tonic::Code::from_i32(code)));
    for name in layer::SERVICES {
        let Some(found) = kontiki_proto::pool().get_service_by_name(name) else { continue };
        for method in found.methods() {
            let grpc_type = layer::kind_of(name, method.name());
            let rpc = Rpc { grpc_type, grpc_service: (*name).to_owned(), grpc_method: method.name().to_owned() };
            service.metrics.prime(&rpc, codes());
        }
    }
}
