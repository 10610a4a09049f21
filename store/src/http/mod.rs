//! What the client port serves beside gRPC: health, readiness, version, metrics, the JSON gateway. One port, one router, HTTP/1 and HTTP/2.

mod authority;
mod gateway;
mod guard;
mod hpack;
mod serve;
mod short;

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, RawQuery, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::{HeaderMap, StatusCode, header};
use kontiki_base::key::KeyRange;
use kontiki_base::kv::{Consistency, RangeReq};

pub use serve::Connections;
pub(crate) use serve::{Bound, Door, Served, certificates};

use crate::config::{ETCD_CLUSTER_VERSION, ETCD_VERSION, HttpGuard};
use crate::raft::Role;
use crate::service::Service;

/// Who is at the other end of a connection.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    /// Where it connects from.
    pub(crate) addr: SocketAddr,
    /// The common name of the certificate that it has shown, if it has shown one: etcd takes it for the user.
    pub(crate) common_name: Option<Arc<str>>,
}

/// A key that health checks read; it need not exist.
const HEALTH_KEY: &[u8] = b"health";

/// Everything that the client port serves.
pub(crate) fn router(service: &Arc<Service>) -> Router {
    let http = observed().route("/version", get(version)).with_state(Arc::clone(service));
    let grpc = crate::grpc::router(service);
    let gateway = gateway::router(grpc.clone(), crate::grpc::message_bytes(service.bounds));
    grpc.merge(http).merge(gateway).fallback(nowhere)
}

/// The same behind a guard.
pub(crate) fn guarded(router: Router, rules: &HttpGuard, tls: bool) -> Router {
    if *rules == HttpGuard::default() {
        return router;
    }
    let guard = Arc::new(guard::Guard { rules: rules.clone(), tls });
    router.layer(axum::middleware::from_fn_with_state(guard, guard::around))
}

fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

/// What a port for metrics serves: metrics and health, nothing else.
pub(crate) fn metrics_router(service: &Arc<Service>) -> Router {
    observed().with_state(Arc::clone(service)).fallback(nowhere)
}

fn observed() -> Router<Arc<Service>> {
    Router::new()
        .route("/health", get(health))
        .route("/livez", get(livez))
        .route("/livez/{check}", get(livez_one))
        .route("/readyz", get(readyz))
        .route("/readyz/{check}", get(readyz_one))
        .route("/metrics", get(metrics))
}

/// An unknown path is "unimplemented" to a gRPC client, which finds out in this way what a server has, and "not found" to any other.
async fn nowhere(headers: HeaderMap) -> Response {
    if is_grpc(&headers) {
        tonic::Status::unimplemented("unknown service or method").into_http()
    } else {
        StatusCode::NOT_FOUND.into_response()
    }
}

/// Whether a query has `name=value`, or `name` alone for an empty value. Names and values of ours need no escapes.
fn asks(query: Option<&str>, name: &str, value: &str) -> bool {
    let mut pairs = query.unwrap_or("").split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs.any(|(n, v)| n == name && (v == value || value.is_empty()))
}

async fn read(service: &Service, consistency: Consistency) -> Result<(), String> {
    let req = RangeReq { consistency, limit: 1, ..RangeReq::new(KeyRange::single(HEALTH_KEY)) };
    service.range(req).await.map(drop).map_err(|error| error.to_string())
}

async fn health(State(service): State<Arc<Service>>, RawQuery(query): RawQuery) -> Response {
    let serializable = asks(query.as_deref(), "serializable", "true");
    let has_leader = service.status.borrow().leader.is_some();
    let alarm = service.room.alarms().iter().map(|alarm| alarm.kind.name()).find(|name| !asks(query.as_deref(), "exclude", name));
    let reason = if let Some(alarm) = alarm {
        Some(format!("ALARM {alarm}"))
    } else if !serializable && !has_leader {
        Some("RAFT NO LEADER".to_owned())
    } else {
        let consistency = if serializable { Consistency::Serializable } else { Consistency::Linearizable };
        read(&service, consistency).await.err().map(|text| format!("RANGE ERROR:{text}"))
    };
    let counter = if reason.is_none() { &service.metrics.health_success } else { &service.metrics.health_failures };
    counter.inc();
    let status = if reason.is_none() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = format!("{{\"health\":\"{}\",\"reason\":{}}}", reason.is_none(), quoted(&reason.unwrap_or_default()));
    (status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}

/// A JSON string.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if u32::from(c) < 0x20 => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Check {
    SerializableRead,
    LinearizableRead,
    DataCorruption,
    NonLearner,
}

impl Check {
    const LIVE: &'static [Check] = &[Check::SerializableRead];
    const READY: &'static [Check] = &[Check::DataCorruption, Check::SerializableRead, Check::LinearizableRead, Check::NonLearner];

    const fn name(self) -> &'static str {
        match self {
            Self::SerializableRead => "serializable_read",
            Self::LinearizableRead => "linearizable_read",
            Self::DataCorruption => "data_corruption",
            Self::NonLearner => "non_learner",
        }
    }

    async fn run(self, service: &Service) -> Result<(), String> {
        match self {
            Self::SerializableRead => read(service, Consistency::Serializable).await,
            Self::LinearizableRead => read(service, Consistency::Linearizable).await,
            Self::DataCorruption => service.status.borrow().fatal.clone().map_or(Ok(()), Err),
            Self::NonLearner if service.status.borrow().role == Role::Learner => Err("this member is a learner".into()),
            Self::NonLearner => Ok(()),
        }
    }
}

async fn livez(State(service): State<Arc<Service>>, RawQuery(query): RawQuery) -> Response {
    checks(&service, Check::LIVE, query.as_deref()).await
}

async fn readyz(State(service): State<Arc<Service>>, RawQuery(query): RawQuery) -> Response {
    checks(&service, Check::READY, query.as_deref()).await
}

async fn livez_one(State(service): State<Arc<Service>>, Path(name): Path<String>, RawQuery(query): RawQuery) -> Response {
    one(&service, Check::LIVE, &name, query.as_deref()).await
}

async fn readyz_one(State(service): State<Arc<Service>>, Path(name): Path<String>, RawQuery(query): RawQuery) -> Response {
    one(&service, Check::READY, &name, query.as_deref()).await
}

async fn one(service: &Service, all: &[Check], name: &str, query: Option<&str>) -> Response {
    match all.iter().find(|check| check.name() == name) {
        Some(check) => checks(service, &[*check], query).await,
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

/// Runs checks; says `ok`, or line by line what is wrong.
async fn checks(service: &Service, all: &[Check], query: Option<&str>) -> Response {
    let mut lines = String::new();
    let mut failed = false;
    for check in all.iter().filter(|check| !asks(query, "exclude", check.name())) {
        match check.run(service).await {
            Ok(()) => lines.push_str(&format!("[+]{} ok\n", check.name())),
            Err(why) => {
                failed = true;
                lines.push_str(&format!("[-]{} failed: {why}\n", check.name()));
            }
        }
    }
    match (failed, asks(query, "verbose", "")) {
        (true, _) => (StatusCode::SERVICE_UNAVAILABLE, lines).into_response(),
        (false, true) => lines.into_response(),
        (false, false) => "ok".into_response(),
    }
}

async fn version() -> Response {
    let body =
        format!("{{\"etcdserver\":\"{ETCD_VERSION}\",\"etcdcluster\":\"{ETCD_CLUSTER_VERSION}\",\"storage\":\"{ETCD_CLUSTER_VERSION}\"}}");
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
}

async fn metrics(State(service): State<Arc<Service>>) -> Response {
    let text = service.metrics.text(&service.sample());
    ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::bench;

    async fn body(response: Response) -> (StatusCode, String) {
        let status = response.status();
        let bytes = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
        (status, String::from_utf8(bytes.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn health_says_what_etcds_says() {
        let bench = bench();
        let ask = |query: Option<&str>| health(State(Arc::clone(&bench.service)), RawQuery(query.map(Into::into)));
        assert_eq!(body(ask(None).await).await, (StatusCode::OK, "{\"health\":\"true\",\"reason\":\"\"}".into()));
        let alarm =
            kontiki_mvcc::Alarm { kind: kontiki_mvcc::alarm::AlarmKind::NoSpace, member: kontiki_base::MemberId::new(1), automatic: false };
        bench.service.alarm(true, alarm).await.unwrap();
        let text = "{\"health\":\"false\",\"reason\":\"ALARM NOSPACE\"}";
        assert_eq!(body(ask(None).await).await, (StatusCode::SERVICE_UNAVAILABLE, text.into()));
        assert_eq!(body(ask(Some("exclude=CORRUPT&exclude=NOSPACE")).await).await.0, StatusCode::OK);
        bench.service.alarm(false, alarm).await.unwrap();
        bench.solo.cut_off.store(true, std::sync::atomic::Ordering::Relaxed);
        let text = "{\"health\":\"false\",\"reason\":\"RANGE ERROR:etcdserver: request timed out\"}";
        assert_eq!(body(ask(None).await).await, (StatusCode::SERVICE_UNAVAILABLE, text.into()));
        bench.solo.become_(|s| s.leader = None);
        let text = "{\"health\":\"false\",\"reason\":\"RAFT NO LEADER\"}";
        assert_eq!(body(ask(None).await).await, (StatusCode::SERVICE_UNAVAILABLE, text.into()));
        assert_eq!(body(ask(Some("serializable=true")).await).await.0, StatusCode::OK);
    }

    #[tokio::test]
    async fn readiness_needs_a_quorum_and_liveness_does_not() {
        let bench = bench();
        let ready = |query: Option<&str>| readyz(State(Arc::clone(&bench.service)), RawQuery(query.map(Into::into)));
        assert_eq!(body(ready(None).await).await, (StatusCode::OK, "ok".into()));
        assert!(body(ready(Some("verbose")).await).await.1.contains("[+]linearizable_read ok\n"));
        bench.solo.cut_off.store(true, std::sync::atomic::Ordering::Relaxed);
        let (status, text) = body(ready(None).await).await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(text.contains("[-]linearizable_read failed: etcdserver: request timed out\n"), "{text}");
        assert_eq!(body(ready(Some("exclude=linearizable_read")).await).await.0, StatusCode::OK);
        let live = livez(State(Arc::clone(&bench.service)), RawQuery(None)).await;
        assert_eq!(body(live).await, (StatusCode::OK, "ok".into()));
        let one = livez_one(State(Arc::clone(&bench.service)), Path("nonsense".into()), RawQuery(None)).await;
        assert_eq!(one.status(), StatusCode::NOT_FOUND);
    }

    #[test]
    fn json_strings_are_escaped() {
        assert_eq!(quoted("a\"b\\c\n"), "\"a\\\"b\\\\c\\u000a\"");
    }
}
