//! What every request goes through before a verb sees it, in this order, whichever door it came by:
//!
//! 1. a panic is answered with 500, and the connection lives on;
//! 2. a span, a metric, an audit id;
//! 3. who asks: certificate, token, nobody;
//! 4. a place among the requests in flight, system and people apart;
//! 5. a deadline;
//! 6. may they: impersonation, authorization;
//! 7. the verb.

use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body;
use futures::FutureExt as _;
use http::{HeaderMap, HeaderValue, Request, Response, header};
use kontiki_base::{Code, limits};
use kontiki_proto::api::resources_server::SERVICE_NAME;
use kontiki_proto::trace::{self, names};
use kontiki_registry::rbac::{self, Decision, User};
use kontiki_registry::status::{Details, Status};
use tokio::sync::Semaphore;
use tower::ServiceExt as _;
use tracing::Instrument as _;

use crate::auth::{self, Caller};
use crate::core::Core;
use crate::endpoints;
use crate::error::Result;
use crate::path::{self, Path, ResourcePath};
use crate::query::Query;
use crate::rest::respond::failure;
use crate::rest::{self, Call};

/// A request that does not wait on purpose is answered within this time.
const DEADLINE: Duration = Duration::from_secs(60);

/// The other end of a connection.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    /// Its address.
    pub(crate) addr: SocketAddr,
    /// Who its certificate says it is.
    pub(crate) user: Option<User>,
}

/// Requests in flight. The system's own (nodes, controllers, administrators) never wait behind other people's.
pub(crate) struct Lanes {
    system: Semaphore,
    people: Semaphore,
}

impl Lanes {
    pub(crate) fn new() -> Self {
        let half = limits::REQUESTS_IN_FLIGHT / 2;
        Self { system: Semaphore::new(half), people: Semaphore::new(half) }
    }

    fn of(&self, user: &User) -> &Semaphore {
        let system = user.in_group("system:masters") || user.in_group("system:nodes") || user.name.starts_with("system:kube-");
        if system { &self.system } else { &self.people }
    }
}

/// The shared parts of the stack.
pub(crate) struct Stack {
    pub(crate) core: Arc<Core>,
    pub(crate) lanes: Lanes,
    /// The gRPC door.
    pub(crate) grpc: axum::Router,
}

impl Stack {
    /// Answers a request.
    pub(crate) async fn serve(self: Arc<Self>, peer: Arc<Peer>, request: Request<Body>) -> Response<Body> {
        let core = self.core.clone();
        match AssertUnwindSafe(self.traced(peer, request)).catch_unwind().await {
            Ok(response) => response,
            Err(panic) => {
                let what = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
                tracing::error!(panic = what.unwrap_or("?"), "a handler panicked");
                core.metrics.panics.inc();
                failure(&Status::internal("This request caused apiserver to panic. Look in the logs for details."))
            }
        }
    }

    async fn traced(self: Arc<Self>, peer: Arc<Peer>, request: Request<Body>) -> Response<Body> {
        let began = self.core.env.now_mono();
        let facts = Facts::of(&request);
        let span = facts.span(&peer);
        trace::adopt_headers(&span, request.headers());
        let core = self.core.clone();
        let audit = audit_id(&core, request.headers());
        let (door, verb, resource) = (facts.door, facts.verb().to_owned(), facts.resource().to_owned());
        let mut response = self.identified(&peer, facts, request).instrument(span.clone()).await;
        let code = code_of(door, &response);
        span.record("code", code);
        core.metrics.request(door, &verb, &resource, code, core.env.now_mono().since(began));
        let headers = response.headers_mut();
        if let Some(audit) = audit {
            headers.insert("audit-id", audit);
        }
        headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-cache, private"));
        response
    }

    async fn identified(self: Arc<Self>, peer: &Peer, facts: Facts, mut request: Request<Body>) -> Response<Body> {
        let user = match auth::identify(peer.user.as_ref(), request.headers(), &self.core.tokens) {
            Ok(user) => user,
            Err(status) => return facts.refusal(&status),
        };
        request.headers_mut().remove(header::AUTHORIZATION);
        let Ok(_place) = self.lanes.of(&user).try_acquire() else {
            self.core.metrics.refused.inc();
            return facts.refusal(&Status::too_many_requests("Too many requests, please try again later.", 1));
        };
        if facts.door == "grpc" {
            request.extensions_mut().insert(Caller(user));
            return self.grpc.clone().oneshot(request).await.unwrap_or_else(|never| match never {});
        }
        let deadline = match facts.deadline() {
            Ok(deadline) => deadline,
            Err(status) => return failure(&status),
        };
        let env = self.core.env.clone();
        let answer = self.allowed(user, facts, request);
        match deadline {
            None => answer.await,
            Some(limit) => tokio::select! {
                answer = answer => answer,
                () = env.sleep(limit) => {
                    let details = Details { retry_after_seconds: 1, ..Details::default() };
                    failure(&Status::new(Code::Timeout, "Timeout: request did not complete within the allotted timeout").with_details(details))
                }
            },
        }
    }

    async fn allowed(&self, user: User, facts: Facts, request: Request<Body>) -> Response<Body> {
        let (parts, body) = request.into_parts();
        let user = match self.authorize(user, &facts, &parts.headers) {
            Ok(user) => user,
            Err(status) => return failure(&status),
        };
        let Facts { path, query, .. } = facts;
        match path {
            Path::Other(path) => match endpoints::serve(&self.core, &parts.method, &path, &query, &parts.headers) {
                Ok(response) => response,
                Err(status) => failure(&status),
            },
            Path::Resource(path) => {
                let registry = self.core.registry();
                let Some(row) = registry.resource(&path.group, &path.version, &path.plural) else {
                    let known = registry.has_group(&path.group);
                    return if known { failure(&Status::no_such_resource()) } else { endpoints::page_not_found() };
                };
                let core = self.core.clone();
                let (method, headers) = (parts.method, parts.headers);
                let mut call = Call { core, user, row, path, method, query, headers, body: Mutex::new(body), warnings: Vec::new() };
                let mut response = rest::serve(&mut call).await.unwrap_or_else(|status| failure(&status));
                add_warnings(&mut response, &call.warnings);
                response
            }
        }
    }

    /// The user to act as, if they may do what they ask for.
    fn authorize(&self, user: User, facts: &Facts, headers: &HeaderMap) -> Result<User> {
        let user = match auth::impersonated(headers)? {
            None => user,
            Some(other) => {
                let target = rbac::Target::Resource { group: "", resource: "users", subresource: "", namespace: "", name: &other.name };
                if let Decision::Deny(why) = rbac::authorize(&user, "impersonate", target) {
                    let verb = format!("impersonate-on:user-info:{}", facts.verb());
                    return Err(rbac::forbidden(&user, &verb, facts.target(), &why));
                }
                other
            }
        };
        match rbac::authorize(&user, facts.verb(), facts.target()) {
            Decision::Allow => Ok(user),
            Decision::Deny(why) => Err(rbac::forbidden(&user, facts.verb(), facts.target(), &why)),
        }
    }
}

/// What method, path and query say.
struct Facts {
    door: &'static str,
    path: Path,
    query: Query,
    verb: String,
}

impl Facts {
    fn of(request: &Request<Body>) -> Self {
        let content = request.headers().get(header::CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
        let query = Query::parse(request.uri().query().unwrap_or_default());
        if content.starts_with(b"application/grpc") {
            let path = request.uri().path();
            let (service, method) = path.trim_start_matches('/').split_once('/').unwrap_or(("", path));
            return Self { door: "grpc", path: Path::Other(service.into()), query, verb: method.to_owned() };
        }
        let path = path::parse(request.uri().path());
        let verb = match &path {
            Path::Resource(path) => path::verb(request.method(), path, query.flag("watch")).to_owned(),
            Path::Other(_) => request.method().as_str().to_ascii_lowercase(),
        };
        Self { door: "rest", path, query, verb }
    }

    fn resource_path(&self) -> Option<&ResourcePath> {
        match &self.path {
            Path::Resource(path) => Some(path),
            Path::Other(_) => None,
        }
    }

    fn verb(&self) -> &str {
        &self.verb
    }

    fn resource(&self) -> &str {
        match &self.path {
            Path::Resource(path) => &path.plural,
            Path::Other(_) if self.door == "rest" => "",
            Path::Other(service) => service,
        }
    }

    /// The request's span. What a gRPC request is about is in its body: its handler adds it.
    fn span(&self, peer: &Peer) -> tracing::Span {
        let span = tracing::debug_span!(
            parent: None,
            names::REQUEST,
            otel.kind = "server",
            door = self.door,
            verb = tracing::field::Empty,
            resource = tracing::field::Empty,
            namespace = tracing::field::Empty,
            name = tracing::field::Empty,
            peer = %peer.addr,
            code = tracing::field::Empty,
        );
        if span.is_disabled() {
            return span;
        }
        // The methods of the gRPC door are the verbs.
        span.record("verb", self.verb.to_ascii_lowercase());
        match &self.path {
            Path::Resource(path) => tell(&span, &path.plural, &path.namespace, &path.name),
            Path::Other(service) if service == SERVICE_NAME => {}
            Path::Other(path) => tell(&span, path, "", ""),
        }
        span
    }

    fn target(&self) -> rbac::Target<'_> {
        match &self.path {
            Path::Other(path) => rbac::Target::Path(path),
            Path::Resource(p) => {
                rbac::Target::Resource { group: &p.group, resource: &p.plural, subresource: &p.sub, namespace: &p.namespace, name: &p.name }
            }
        }
    }

    /// How long the answer may take to begin; `None` for what waits on purpose.
    fn deadline(&self) -> Result<Option<Duration>> {
        let waits = self.verb == "watch"
            || self.resource_path().is_some_and(|p| matches!(p.sub.as_str(), "log" | "proxy" | "exec" | "attach" | "portforward"));
        if waits {
            return Ok(None);
        }
        let text = self.query.get("timeout");
        if text.is_empty() {
            return Ok(Some(DEADLINE));
        }
        let asked =
            go_duration(text).ok_or_else(|| Status::bad_request(format!("invalid timeout specified in the request URL: {text:?}")))?;
        Ok(Some(if asked.is_zero() { DEADLINE } else { asked.min(DEADLINE) }))
    }

    fn refusal(&self, status: &Status) -> Response<Body> {
        if self.door == "grpc" { crate::grpc::errors::to_tonic(status).into_http() } else { failure(status) }
    }
}

/// Says on a request's span what it is about. Must be called once: an attribute that is there twice is an error in OpenTelemetry.
pub(crate) fn tell(span: &tracing::Span, resource: &str, namespace: &str, name: &str) {
    /// Nothing in the API has a longer name; what a client sends may.
    const LONGEST: usize = 253;
    for (field, value) in [("resource", resource), ("namespace", namespace), ("name", name)] {
        if !value.is_empty() {
            span.record(field, &value[..value.floor_char_boundary(LONGEST)]);
        }
    }
}

/// The HTTP status of a REST answer. At the gRPC door, where that is always 200, the gRPC status, as far as it is known when the answer
/// begins: what goes wrong in the middle of a stream is not.
fn code_of(door: &str, response: &Response<Body>) -> u32 {
    if door == "grpc" {
        let status = response.headers().get("grpc-status");
        return status.map_or(0, |status| tonic::Code::from_bytes(status.as_bytes()) as u32);
    }
    u32::from(response.status().as_u16())
}

/// A duration in Go's notation, of one or more numbers with units: `1m30s`, `500ms`.
fn go_duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').filter(|n| *n > 0)?;
        let number: f64 = rest[..digits].parse().ok()?;
        let tail = &rest[digits..];
        let unit_len = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        total += number
            * match &tail[..unit_len] {
                "h" => 3_600.0,
                "m" => 60.0,
                "s" => 1.0,
                "ms" => 1e-3,
                "us" | "µs" => 1e-6,
                "ns" => 1e-9,
                _ => return None,
            };
        rest = &tail[unit_len..];
    }
    (!text.is_empty()).then(|| Duration::try_from_secs_f64(total).ok())?
}

fn audit_id(core: &Core, headers: &HeaderMap) -> Option<HeaderValue> {
    let given = headers.get("audit-id").and_then(|v| v.to_str().ok()).map(|t| t.chars().take(64).collect::<String>());
    HeaderValue::from_str(&given.unwrap_or_else(|| core.uid())).ok()
}

fn add_warnings(response: &mut Response<Body>, warnings: &[String]) {
    let mut seen: Vec<&String> = Vec::new();
    for warning in warnings {
        if seen.contains(&warning) {
            continue;
        }
        seen.push(warning);
        let escaped = warning.replace('\\', "\\\\").replace('"', "\\\"");
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{escaped}\"")) {
            response.headers_mut().append(header::WARNING, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gos_durations_are_read() {
        for (text, millis) in
            [("32s", Some(32_000)), ("1m30s", Some(90_000)), ("500ms", Some(500)), ("0s", Some(0)), ("1.5h", Some(5_400_000))]
        {
            assert_eq!(go_duration(text).map(|d| d.as_millis()), millis, "{text}");
        }
        for bad in ["", "s", "5", "5x", "-1s"] {
            assert_eq!(go_duration(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_system_has_a_lane_of_its_own() {
        let lanes = Lanes::new();
        let node = User { name: "system:node:a".into(), groups: vec!["system:nodes".into()], uid: String::new() };
        assert!(std::ptr::eq(lanes.of(&node), &lanes.system));
        assert!(std::ptr::eq(lanes.of(&User::anonymous()), &lanes.people));
    }
}
