//! What every gRPC call goes through: a span, the counters of go-grpc-prometheus, the demand for a leader.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use http::{HeaderMap, HeaderValue};
use http_body::{Body as HttpBody, Frame, SizeHint};
use kontiki_base::env::Mono;
use kontiki_proto::convert::error::{EtcdError, kv_status, message_too_large};
use kontiki_proto::trace::{self, names};
use tonic::Code;
use tracing::Instrument as _;

use super::count::{Inbound, Tally};
use super::{gate, message_bytes};
use crate::auth::Caller;
use crate::http::Peer;
use crate::metrics::{Client, Handled, Rpc};
use crate::raft::Role;
use crate::service::Service;

/// Services whose calls are counted. A client cannot make new label values.
pub(crate) const SERVICES: &[&str] = &[
    "etcdserverpb.KV",
    "etcdserverpb.Watch",
    "etcdserverpb.Lease",
    "etcdserverpb.Cluster",
    "etcdserverpb.Maintenance",
    "etcdserverpb.Auth",
    "v3lockpb.Lock",
    "v3electionpb.Election",
    "kontiki.store.v1.Leadership",
    "grpc.health.v1.Health",
];

/// Serves one call.
pub(super) async fn around(State(service): State<Arc<Service>>, request: Request, next: Next) -> Response {
    let (rpc, span, needs_leader) = look_at(&request);
    let Some(rpc) = rpc else { return next.run(request).instrument(span).await };
    let metrics = &service.metrics;
    metrics.started.get_or_create(&rpc).inc();
    metrics.client_requests.get_or_create(&client_of(&rpc, request.headers())).inc();
    let (limit, begun) = (message_bytes(service.bounds), service.env.now_mono());
    let counted = Counted { rpc: rpc.clone(), service: Arc::clone(&service), begun, done: false };
    let tally = Tally::sent(metrics, &rpc);
    if let Err(refusal) = allowed(&service, &rpc, needs_leader) {
        return finish(refusal.into_http(), counted, tally, limit);
    }
    let admitted = match gate::demand(&service, request.uri().path()) {
        Ok(None) => Ok(()),
        Ok(Some(demand)) => {
            let caller = Caller::of_http(request.headers(), request.extensions().get::<Peer>());
            gate::admit(&service, demand, &caller).await
        }
        Err(status) => Err(status),
    };
    if let Err(status) = admitted {
        return finish(status.into_http(), counted, tally, limit);
    }
    let inbound = Tally::received(metrics, &rpc);
    let request = request.map(|inner| Body::new(Inbound { inner, tally: inbound }));
    let response = next.run(request).instrument(span.clone()).await;
    if let Some(code) = code_in(response.headers()) {
        span.record("code", go_name(code));
    }
    finish(response, counted, tally, limit)
}

/// Whether this member serves such a call now.
fn allowed(service: &Service, rpc: &Rpc, needs_leader: bool) -> Result<(), tonic::Status> {
    if serves_data(rpc) {
        service.room.serves().map_err(|error| kv_status(&error))?;
    }
    let raft = service.status.borrow();
    if needs_leader && raft.leader.is_none() {
        return Err(EtcdError::NoLeader.status());
    }
    if raft.role == Role::Learner && !for_learners(rpc) { Err(EtcdError::NotForLearner.status()) } else { Ok(()) }
}

/// What a member without a vote serves. Of ranges it serves those that are content with what it has: that is checked where they are read.
fn for_learners(rpc: &Rpc) -> bool {
    matches!(
        (rpc.grpc_service.as_str(), rpc.grpc_method.as_str()),
        ("etcdserverpb.Maintenance", "Status" | "Snapshot")
            | ("etcdserverpb.KV", "Range")
            | ("grpc.health.v1.Health" | "kontiki.store.v1.Leadership", _)
    )
}

/// Who asks, as far as a client says. A client cannot make new label values beyond short versions.
pub(super) fn client_of(rpc: &Rpc, headers: &HeaderMap) -> Client {
    let version = headers.get("client-api-version").and_then(|value| value.to_str().ok());
    let sound = |text: &&str| text.len() <= 8 && text.split('.').all(|part| part.len() <= 2 && part.parse::<u8>().is_ok());
    let kind = if rpc.grpc_type == "unary" { "unary" } else { "stream" };
    Client { r#type: kind, client_api_version: version.filter(sound).unwrap_or("unknown").to_owned() }
}

/// Whether a call reads or writes keys or leases: what a corrupt member does not do.
fn serves_data(rpc: &Rpc) -> bool {
    ["etcdserverpb.KV", "etcdserverpb.Watch", "etcdserverpb.Lease", "v3lockpb.Lock", "v3electionpb.Election"].contains(&&*rpc.grpc_service)
}

/// Whether calls have spans that somebody records.
pub(crate) fn are_traced() -> bool {
    !tracing::debug_span!(parent: None, names::RPC).is_disabled()
}

/// Which call it is, if it is a known one; its span; whether it demands a leader.
fn look_at(request: &Request) -> (Option<Rpc>, tracing::Span, bool) {
    let path = request.uri().path();
    let peer = request.extensions().get::<Peer>();
    let (peer, common_name) = (peer.map(|peer| tracing::field::display(peer.addr)), peer.and_then(|peer| peer.common_name.as_deref()));
    let text = |name| request.headers().get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let span = tracing::debug_span!(parent: None, names::RPC, otel.kind = "server", method = path, peer, common_name, code = tracing::field::Empty);
    trace::adopt_headers(&span, request.headers());
    (rpc_of(path), span, text("hasleader") == Some("true"))
}

/// Counts the call when its status is known: at once, or with the trailers.
fn finish(mut response: Response, mut counted: Counted, tally: Tally, limit: usize) -> Response {
    say_it_as_etcd(response.headers_mut(), limit);
    if let Some(code) = code_in(response.headers()) {
        counted.end(code);
        return response;
    }
    response.map(|inner| Body::new(Watched { inner, counted, tally }))
}

/// The kind of a call, as go-grpc-prometheus names it.
pub(super) fn kind_of(service: &str, method: &str) -> &'static str {
    match method {
        "LeaseKeepAlive" => "bidi_stream",
        "Watch" if service == "etcdserverpb.Watch" => "bidi_stream",
        "Watch" | "Snapshot" | "Observe" | "RangeStream" => "server_stream",
        _ => "unary",
    }
}

fn rpc_of(path: &str) -> Option<Rpc> {
    let (service, method) = path.strip_prefix('/')?.split_once('/')?;
    let known = SERVICES.contains(&service) && method.len() < 64 && method.bytes().all(|b| b.is_ascii_alphanumeric());
    let grpc_type = kind_of(service, method);
    known.then(|| Rpc { grpc_type, grpc_service: service.into(), grpc_method: method.into() })
}

fn code_in(headers: &HeaderMap) -> Option<Code> {
    headers.get("grpc-status").map(|value| Code::from_bytes(value.as_bytes()))
}

/// A message over the limit is refused by the transport, in its own words; clients know those of gRPC for Go.
fn say_it_as_etcd(headers: &mut HeaderMap, limit: usize) {
    const HEAD: &str = "Error, decoded message length too large: found ";
    if code_in(headers) != Some(Code::OutOfRange) {
        return;
    }
    let Some(text) = headers.get("grpc-message").and_then(|value| value.to_str().ok()) else { return };
    let plain = text.replace("%20", " ").replace("%2C", ",").replace("%3A", ":");
    let Some(found) = plain.strip_prefix(HEAD).and_then(|rest| rest.split(' ').next()).and_then(|n| n.parse::<u64>().ok()) else {
        return;
    };
    let message = message_too_large(found, limit).replace(' ', "%20");
    if let Ok(message) = HeaderValue::try_from(message) {
        headers.insert("grpc-status", HeaderValue::from(Code::ResourceExhausted as i32));
        headers.insert("grpc-message", message);
    }
}

/// A call that has begun.
struct Counted {
    rpc: Rpc,
    service: Arc<Service>,
    begun: Mono,
    done: bool,
}

impl Counted {
    fn end(&mut self, code: Code) {
        if std::mem::replace(&mut self.done, true) {
            return;
        }
        let metrics = &self.service.metrics;
        if let Some(handling) = &metrics.handling {
            let took = self.service.env.now_mono().since(self.begun);
            handling.get_or_create(&self.rpc).observe(took.as_secs_f64());
        }
        let Rpc { grpc_type, grpc_service, grpc_method } = self.rpc.clone();
        metrics.handled.get_or_create(&Handled { grpc_code: go_name(code), grpc_type, grpc_service, grpc_method }).inc();
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        // The client went away before there was a status.
        self.end(Code::Cancelled);
    }
}

pub(super) const fn go_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "Canceled",
        Code::Unknown => "Unknown",
        Code::InvalidArgument => "InvalidArgument",
        Code::DeadlineExceeded => "DeadlineExceeded",
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::PermissionDenied => "PermissionDenied",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Aborted => "Aborted",
        Code::OutOfRange => "OutOfRange",
        Code::Unimplemented => "Unimplemented",
        Code::Internal => "Internal",
        Code::Unavailable => "Unavailable",
        Code::DataLoss => "DataLoss",
        Code::Unauthenticated => "Unauthenticated",
    }
}

/// A body whose trailers are looked at as they pass.
struct Watched {
    inner: Body,
    counted: Counted,
    tally: Tally,
}

impl HttpBody for Watched {
    type Data = bytes::Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let polled = Pin::new(&mut self.inner).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled {
            if let Some(data) = frame.data_ref() {
                self.tally.see(data);
            }
            if let Some(code) = frame.trailers_ref().and_then(code_in) {
                self.counted.end(code);
            }
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_known_calls_are_counted() {
        assert_eq!(rpc_of("/etcdserverpb.Watch/Watch").map(|r| r.grpc_type), Some("bidi_stream"));
        assert_eq!(rpc_of("/etcdserverpb.KV/Put").map(|r| r.grpc_type), Some("unary"));
        assert_eq!(rpc_of("/made.Up/Name"), None);
        assert_eq!(rpc_of("/etcdserverpb.KV/a b"), None);
        assert_eq!(rpc_of("/health"), None);
    }
}
