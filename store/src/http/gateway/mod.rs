//! The JSON gateway: `POST /v3/…` with a request's JSON. One transcoder for all calls: [`routes`] says which path is which call, and the
//! descriptors say what its messages look like. Each request goes through the gRPC services as any other, so that what they check and
//! count is checked and counted once.
//!
//! A stream of answers is one JSON object per line, `{"result":{…}}`. A stream of requests is JSON objects one after the other.

mod frames;
mod json;
mod routes;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse as _, Response};
use axum::routing::post;
use bytes::Bytes;
use futures::StreamExt as _;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use prost_reflect::MethodDescriptor;
use serde_json::{Value, json};
use tonic::Status;
use tonic::codegen::Service as _;

use super::Peer;

/// Headers with this in front become metadata of the call.
const METADATA: &str = "grpc-metadata-";

/// Tells the services that a request came this way: then a client's certificate does not say who its user is.
const ACCEPT: HeaderName = HeaderName::from_static("grpcgateway-accept");

/// A body of JSON may be so much longer than its message: base64, names, quotes.
const JSON_OVERHEAD: usize = 2;

struct Gateway {
    /// The gRPC services.
    services: Router,
    /// Bytes of a message in a body.
    limit: usize,
}

/// The gateway before these services, whose messages have at most so many bytes.
pub(super) fn router(services: Router, message_bytes: usize) -> Router {
    let gateway = Arc::new(Gateway { services, limit: message_bytes.saturating_mul(JSON_OVERHEAD) });
    // The first is for clients of etcd 3.3 and 3.4.
    Router::new().route("/v3beta/{*path}", post(serve)).route("/v3/{*path}", post(serve)).with_state(gateway)
}

async fn serve(State(gateway): State<Arc<Gateway>>, Path(path): Path<String>, request: Request) -> Response {
    let Some((call, method)) = routes::call(&path).and_then(|call| Some((call, json::method(call)?))) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    match gateway.transcode(call, method, request).await {
        Ok(response) => response,
        Err(status) => json::refusal(&status, &json::error(&status)),
    }
}

impl Gateway {
    async fn transcode(&self, call: &str, method: MethodDescriptor, request: Request) -> Result<Response, Status> {
        let (parts, body) = request.into_parts();
        let body = if method.is_client_streaming() {
            Body::from_stream(frames::Requests::new(body, method.input(), self.limit))
        } else {
            Body::from(frames::frame(&self.message(body, &method).await?))
        };
        let mut inner = http::Request::new(body);
        *inner.method_mut() = http::Method::POST;
        *inner.uri_mut() = format!("/{call}").parse().map_err(|e| Status::internal(format!("{call}: {e}")))?;
        *inner.headers_mut() = metadata(&parts.headers);
        if let Some(peer) = parts.extensions.get::<Peer>() {
            inner.extensions_mut().insert(peer.clone());
        }
        let Ok(answer) = self.services.clone().call(inner).await;
        let said = Status::from_header_map(answer.headers());
        let replies = frames::Replies::new(answer.into_body(), said);
        if method.is_server_streaming() { stream(replies, method).await } else { single(replies, &method).await }
    }

    /// The one message of a request. A body without anything is a message without anything.
    async fn message(&self, body: Body, method: &MethodDescriptor) -> Result<Vec<u8>, Status> {
        let body = axum::body::to_bytes(body, self.limit).await.map_err(|_| json::too_large(self.limit))?;
        if body.iter().all(u8::is_ascii_whitespace) {
            return Ok(Vec::new());
        }
        json::encode(serde_json::from_slice(&body).map_err(json::unreadable)?, &method.input())
    }
}

/// Headers of the call: the token, and what was given as metadata.
fn metadata(headers: &HeaderMap) -> HeaderMap {
    let mut out = HeaderMap::new();
    out.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    out.insert(header::TE, HeaderValue::from_static("trailers"));
    out.insert(ACCEPT, HeaderValue::from_static("application/json"));
    if let Some(token) = headers.get(header::AUTHORIZATION) {
        out.insert(header::AUTHORIZATION, token.clone());
    }
    for (name, value) in headers {
        let plain = name.as_str().strip_prefix(METADATA).and_then(|plain| plain.parse::<HeaderName>().ok());
        // What HTTP/2 and gRPC say for themselves is not for others to say.
        if let Some(plain) = plain.filter(|plain| !out.contains_key(plain) && !plain.as_str().starts_with("grpc-")) {
            out.append(plain, value.clone());
        }
    }
    out
}

async fn single(mut replies: frames::Replies, method: &MethodDescriptor) -> Result<Response, Status> {
    let message = replies.next().await?.ok_or_else(|| Status::internal("an answer without a message"))?;
    // A good answer has a status behind it, too.
    replies.next().await?;
    Ok(answer(json::decode(message, &method.output())?.to_string().into()))
}

async fn stream(mut replies: frames::Replies, method: MethodDescriptor) -> Result<Response, Status> {
    // Until something is there, the answer can still be an error with its own status.
    let first = match replies.next().await {
        Ok(first) => first,
        Err(status) => return Ok(json::refusal(&status, &json::error_in_stream(&status))),
    };
    let descriptor = method.output();
    let rest = futures::stream::unfold(Some(replies), |replies| async move {
        let mut replies = replies?;
        match replies.next().await {
            Ok(Some(message)) => Some((Ok(message), Some(replies))),
            Ok(None) => None,
            Err(status) => Some((Err(status), None)),
        }
    });
    let all = futures::stream::iter(first.map(Ok)).chain(rest);
    let lines = all.map(move |message: Result<Bytes, Status>| {
        let line: Value = match message.and_then(|message| json::decode(message, &descriptor)) {
            Ok(result) => json!({ "result": result }),
            Err(status) => json::error_in_stream(&status),
        };
        Ok::<_, std::convert::Infallible>(Bytes::from(format!("{line}\n")))
    });
    Ok(answer(Body::from_stream(lines)))
}

fn answer(body: Body) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
}
