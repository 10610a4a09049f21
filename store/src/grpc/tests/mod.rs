//! The services over a real channel, on a real port; consensus alone is not real.

mod auth;
mod errors;
mod kv;
mod lease;
mod others;
mod watch;

use std::net::SocketAddr;
use std::time::Duration;

use kontiki_proto::etcd::etcdserverpb as pb;
use pb::cluster_client::ClusterClient;
use pb::kv_client::KvClient;
use pb::lease_client::LeaseClient;
use pb::maintenance_client::MaintenanceClient;
use pb::watch_client::WatchClient;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use crate::http::{Bound, Door};
use crate::testing::{Bench, bench_as, bench_with};
use crate::watch::hub::HubLimits;

/// A member with its port open, and a channel to it.
struct Served {
    bench: Bench,
    #[allow(dead_code, reason = "keeps the port open")]
    door: Door,
    channel: Channel,
}

async fn served() -> Served {
    served_with(HubLimits::default(), Duration::from_secs(600)).await
}

async fn served_with(limits: HubLimits, progress_every: Duration) -> Served {
    open(bench_with(limits, progress_every)).await
}

/// A member with another kind of tokens.
async fn served_as(provider: crate::auth::Provider) -> Served {
    open(bench_as(provider)).await
}

async fn open(bench: Bench) -> Served {
    let short = super::short::Calls::new(&bench.service);
    let router = crate::http::Served::new(crate::http::router(&bench.service), short);
    let any = crate::listen::Listen::plain(SocketAddr::from(([127, 0, 0, 1], 0)));
    let door = Bound::new(any, None).await.unwrap().open(router, &bench.service.env, crate::http::Connections::default());
    let channel = Endpoint::try_from(format!("http://{}", door.addr)).unwrap().connect().await.unwrap();
    Served { bench, door, channel }
}

impl Served {
    fn kv(&self) -> KvClient<Channel> {
        KvClient::new(self.channel.clone())
    }

    fn watch(&self) -> WatchClient<Channel> {
        WatchClient::new(self.channel.clone())
    }

    fn lease(&self) -> LeaseClient<Channel> {
        LeaseClient::new(self.channel.clone())
    }

    fn cluster(&self) -> ClusterClient<Channel> {
        ClusterClient::new(self.channel.clone())
    }

    fn maintenance(&self) -> MaintenanceClient<Channel> {
        MaintenanceClient::new(self.channel.clone())
    }

    async fn put(&self, key: &str, value: &str) -> i64 {
        let req = pb::PutRequest { key: key.to_owned().into(), value: value.to_owned().into(), ..Default::default() };
        self.kv().put(req).await.unwrap().into_inner().header.unwrap().revision
    }

    async fn get(&self, key: &str, range_end: &str) -> pb::RangeResponse {
        self.kv().range(range(key, range_end)).await.unwrap().into_inner()
    }
}

fn range(key: &str, range_end: &str) -> pb::RangeRequest {
    pb::RangeRequest { key: key.to_owned().into(), range_end: range_end.to_owned().into(), ..Default::default() }
}

/// A status as clients compare it.
fn said<T: std::fmt::Debug>(result: Result<T, Status>) -> (Code, String) {
    let status = result.unwrap_err();
    (status.code(), status.message().to_owned())
}
