//! Passes `exec`, `attach` and `port-forward` through to the runtime's streaming port.
//!
//! The request comes with an upgrade (SPDY or WebSocket). The runtime is asked for a URL that serves once; the same request goes there, and
//! once both sides have switched protocols the agent copies bytes and understands none of them.

use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::io::copy_bidirectional;

use super::runtime::{RuntimeError, wire};
use super::server::{Body, Shared, plain};

/// Where a stream goes.
pub(super) struct Target {
    /// `exec`, `attach` or `portForward`.
    pub(super) verb: String,
    pub(super) namespace: String,
    pub(super) pod: String,
    /// The container's name; for `portForward` not used.
    pub(super) container: String,
}

/// Headers that the runtime needs to see to switch protocols.
const PASSED: [&str; 6] =
    ["connection", "upgrade", "x-stream-protocol-version", "sec-websocket-key", "sec-websocket-version", "sec-websocket-protocol"];

/// Splices the request with the runtime.
pub(super) async fn proxy(shared: &Arc<Shared>, target: Target, request: Request<Incoming>) -> Response<Body> {
    if !request.headers().contains_key(http::header::UPGRADE) {
        return plain(StatusCode::BAD_REQUEST, "an upgrade to SPDY or WebSocket is needed");
    }
    let url = match runtime_url(shared, &target, request.uri().query().unwrap_or_default()).await {
        Ok(url) => url,
        Err(e) => return plain(StatusCode::from_u16(e.code().http()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), e.to_string()),
    };
    match splice(shared, &url, request).await {
        Ok(response) => response,
        Err(e) => plain(StatusCode::BAD_GATEWAY, format!("the runtime's streaming port: {e}")),
    }
}

async fn runtime_url(shared: &Shared, target: &Target, query: &str) -> Result<String, RuntimeError> {
    let absent = || RuntimeError::NotFound(format!("pod \"{}_{}\"", target.pod, target.namespace));
    let (_, seen) = shared.board.find(&target.namespace, &target.pod).ok_or_else(absent)?;
    let values = |names: [&str; 2]| -> Vec<String> {
        let pairs = query.split('&').filter_map(|p| p.split_once('='));
        pairs.filter(|(name, _)| names.contains(name)).map(|(_, value)| decode(value)).collect()
    };
    let truth = |names: [&str; 2]| values(names).iter().any(|v| v == "1" || v == "true");
    let runtime = &shared.shop.runtime;
    if target.verb == "portForward" {
        let sandbox = seen.live_sandbox().ok_or_else(absent)?;
        let port = values(["port", "ports"]).iter().filter_map(|p| p.parse().ok()).collect();
        return runtime.port_forward_url(wire::PortForwardRequest { pod_sandbox_id: sandbox.id.clone(), port }).await;
    }
    let container = seen.latest(&target.container).filter(|c| c.is_running());
    let id = container.ok_or_else(|| RuntimeError::Invalid(format!("container {:?} does not run", target.container)))?.id.clone();
    let (tty, stdin, stdout) = (truth(["tty", "tty"]), truth(["input", "stdin"]), truth(["output", "stdout"]));
    // On a terminal both outputs are one.
    let stderr = truth(["error", "stderr"]) && !tty;
    match target.verb.as_str() {
        "exec" => {
            runtime.exec_url(wire::ExecRequest { container_id: id, cmd: values(["command", "command"]), tty, stdin, stdout, stderr }).await
        }
        _ => runtime.attach_url(wire::AttachRequest { container_id: id, stdin, tty, stdout, stderr }).await,
    }
}

/// Undoes the percent coding of a query value.
fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let hex = bytes.get(i + 1..i + 3).and_then(|h| std::str::from_utf8(h).ok()).and_then(|h| u8::from_str_radix(h, 16).ok());
        match (bytes[i], hex) {
            (b'%', Some(byte)) => {
                out.push(byte);
                i += 3;
            }
            (b'+', _) => {
                out.push(b' ');
                i += 1;
            }
            (byte, _) => {
                out.push(byte);
                i += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

async fn splice(
    shared: &Shared,
    url: &str,
    mut request: Request<Incoming>,
) -> Result<Response<Body>, Box<dyn std::error::Error + Send + Sync>> {
    let uri: http::Uri = url.parse()?;
    let authority = uri.authority().ok_or("the runtime's URL has no host")?.clone();
    let address = (authority.host().to_owned(), authority.port_u16().unwrap_or(80));
    let stream = tokio::net::TcpStream::connect(address).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    shared.shop.env.spawn(
        "runtime stream",
        Box::pin(async move {
            // Its end shows as an error of the request or of the copy.
            let _ = connection.with_upgrades().await;
        }),
    );
    let path = uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    let mut onward = Request::builder().method(request.method().clone()).uri(path).header(http::header::HOST, authority.as_str());
    for name in PASSED {
        for value in request.headers().get_all(name) {
            onward = onward.header(name, value);
        }
    }
    let mut answer = sender.send_request(onward.body(Empty::<Bytes>::new())?).await?;
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        let (status, bytes) = (answer.status(), answer.collect().await?.to_bytes());
        return Ok(plain(status, String::from_utf8_lossy(&bytes).into_owned()));
    }
    let mut response = plain(StatusCode::SWITCHING_PROTOCOLS, "");
    for (name, value) in answer.headers() {
        response.headers_mut().append(name.clone(), value.clone());
    }
    shared.shop.env.spawn(
        "container stream",
        Box::pin(async move {
            let (Ok(near), Ok(far)) = (hyper::upgrade::on(&mut request).await, hyper::upgrade::on(&mut answer).await) else { return };
            // Either side may hang up at any time.
            let _ = copy_bidirectional(&mut TokioIo::new(near), &mut TokioIo::new(far)).await;
        }),
    );
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn query_values_are_decoded() {
        for (text, plain) in [("sh", "sh"), ("a%20b", "a b"), ("a+b", "a b"), ("100%", "100%"), ("%E2%82%AC", "€")] {
            assert_eq!(decode(text), plain, "{text}");
        }
    }
}
