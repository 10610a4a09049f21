//! `pods/log`: the output of a container, streamed from its node's agent.

use std::time::Duration;

use axum::body::Body;
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::TokioIo;
use kontiki_base::Code;
use kontiki_registry::status::Status;
use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::net::TcpStream;

use crate::error::Result;
use crate::rest::Call;
use crate::verbs::Target;

/// What a client may say about the log that it wants; passed on as it is.
const PASSED_ON: &[&str] = &["follow", "previous", "sinceSeconds", "sinceTime", "timestamps", "tailLines", "limitBytes", "stream"];
/// How long connecting to an agent may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// An error body of an agent is cut to this.
const ERROR_BYTES: usize = 4 << 10;

/// GET pods/{name}/log.
pub(super) async fn serve(call: &Call) -> Result<Response<Body>> {
    let pod = call.core.get(&call.target(), None).await?.value();
    let container = container(&pod, call.query.get("container"))?;
    let node = pod["spec"]["nodeName"].as_str().unwrap_or_default();
    if node.is_empty() {
        let mut empty = Response::new(Body::empty());
        *empty.status_mut() = StatusCode::NO_CONTENT;
        return Ok(empty);
    }
    let (host, port) = address(call, node).await?;
    let Some(connector) = &call.core.node_tls else {
        return Err(Status::unimplemented("pods/log: this server has no certificate for node agents"));
    };
    let unreachable = |why: String| Status::new(Code::Unavailable, format!("node {node} cannot be reached at {host}:{port}: {why}"));
    let connecting = async {
        let tcp = TcpStream::connect((host.as_str(), port)).await.map_err(|e| unreachable(e.to_string()))?;
        let name = ServerName::try_from(host.clone()).map_err(|e| unreachable(e.to_string()))?;
        let tls = connector.connect(name, tcp).await.map_err(|e| unreachable(e.to_string()))?;
        hyper::client::conn::http1::handshake(TokioIo::new(tls)).await.map_err(|e| unreachable(e.to_string()))
    };
    let (mut sender, connection) = tokio::select! {
        connected = connecting => connected?,
        () = call.core.env.sleep(PATIENCE) => return Err(unreachable("no answer in time".into())),
    };
    call.core.env.spawn(
        "node-log",
        Box::pin(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection to a node agent ended");
            }
        }),
    );
    let uri = format!("/containerLogs/{}/{}/{container}?{}", call.path.object_namespace(), call.path.name, query(call));
    let request = Request::get(uri).header(header::HOST, format!("{host}:{port}")).body(Empty::<bytes::Bytes>::new());
    let request = request.map_err(|e| Status::bad_request(e.to_string()))?;
    let answer = sender.send_request(request).await.map_err(|e| unreachable(e.to_string()))?;
    pass_on(answer).await
}

async fn pass_on(answer: Response<hyper::body::Incoming>) -> Result<Response<Body>> {
    let status = answer.status();
    if status.is_success() {
        let mut response = Response::new(Body::new(answer.into_body()));
        response.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static("text/plain"));
        return Ok(response);
    }
    let body = http_body_util::Limited::new(answer.into_body(), ERROR_BYTES).collect().await;
    let text = body.map(|b| String::from_utf8_lossy(&b.to_bytes()).trim().to_owned()).unwrap_or_default();
    Err(match status.as_u16() {
        404 => Status::new(Code::NotFound, text),
        400..500 => Status::bad_request(text),
        code => Status::new(Code::Internal, format!("the node agent answered {code}: {text}")),
    })
}

fn query(call: &Call) -> String {
    let pairs = call.query.pairs().filter(|(k, _)| PASSED_ON.contains(k));
    let escape = |v: &str| {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~:".contains(&b);
        v.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect::<String>()
    };
    pairs.map(|(k, v)| format!("{k}={}", escape(v))).collect::<Vec<_>>().join("&")
}

/// The container that is meant: the one that is named, or the only one.
fn container(pod: &Value, asked: &str) -> Result<String> {
    let name = pod["metadata"]["name"].as_str().unwrap_or_default();
    let names = |field: &str| {
        let list = pod["spec"][field].as_array().into_iter().flatten();
        list.filter_map(|c| c["name"].as_str()).map(str::to_owned).collect::<Vec<_>>()
    };
    let containers = names("containers");
    if asked.is_empty() {
        return match containers.as_slice() {
            [one] => Ok(one.clone()),
            _ => Err(Status::bad_request(format!(
                "a container name must be specified for pod {name}, choose one of: [{}]",
                containers.join(" ")
            ))),
        };
    }
    let known = ["containers", "initContainers", "ephemeralContainers"].iter().any(|f| names(f).iter().any(|n| n == asked));
    if known { Ok(asked.to_owned()) } else { Err(Status::bad_request(format!("container {asked} is not valid for pod {name}"))) }
}

/// Where the agent of a node listens.
async fn address(call: &Call, node: &str) -> Result<(String, u16)> {
    let target = Target::of(&call.core.builtin("", "v1", "nodes"), "", node);
    let missing = |s: Status| if s.code == Code::NotFound { Status::not_found(&call.row, node) } else { s };
    let object = call.core.get(&target, None).await.map_err(missing)?.value();
    let addresses = object["status"]["addresses"].as_array().cloned().unwrap_or_default();
    let of = |kind: &str| addresses.iter().find(|a| a["type"] == kind).and_then(|a| a["address"].as_str()).map(str::to_owned);
    let port =
        object["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"].as_u64().and_then(|p| u16::try_from(p).ok()).unwrap_or(10_250);
    let host = of("InternalIP").or_else(|| of("Hostname")).or_else(|| of("ExternalIP"));
    host.map(|h| (h, port)).ok_or_else(|| Status::new(Code::Unavailable, format!("node {node} has no address yet")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_container_is_named_or_the_only_one() {
        let one = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "a"}], "initContainers": [{"name": "i"}]}});
        let two = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "a"}, {"name": "b"}]}});
        assert_eq!(container(&one, "").unwrap(), "a");
        assert_eq!(container(&one, "i").unwrap(), "i");
        assert_eq!(container(&two, "").unwrap_err().message, "a container name must be specified for pod p, choose one of: [a b]");
        assert_eq!(container(&two, "zz").unwrap_err().message, "container zz is not valid for pod p");
    }
}
