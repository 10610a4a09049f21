//! The way from a simulated process to an API server: the seam of the real clients on the simulated network. Who asks is said by a token,
//! where the real world has a certificate.

use std::sync::Arc;
use std::time::Duration;

use ::http as http_types;
use kontiki_agents::transport::{ApiTransport, Channel};
use kontiki_agents::{ApiConfig, transport};
use kontiki_apiserver::StaticToken;
use tower::ServiceExt as _;

use super::super::http::{self, Door};
use super::super::net::Net;
use super::super::rt::Proc;
use super::super::trace::Node;

/// A request to a silent server fails after this long, unless its caller gave up before.
const PATIENCE: Duration = Duration::from_secs(10);

/// The token of servers and of people.
const SERVER: &str = "server";

/// The host name of the API server on a node of the world.
fn host(node: Node) -> String {
    format!("http://m{node}:6443")
}

fn node_of(url: &str) -> Option<Node> {
    url.strip_prefix("http://m")?.strip_suffix(":6443")?.parse().ok()
}

/// Everybody whom API servers know: servers, and the nodes of these names.
pub fn tokens(nodes: &[String]) -> Vec<StaticToken> {
    let token = |token: &str, user: String, group: &str| StaticToken { token: token.into(), user, groups: vec![group.into()] };
    let server = token(SERVER, "kontiki-server".into(), "system:masters");
    nodes.iter().map(|name| token(name, format!("system:node:{name}"), "system:nodes")).chain([server]).collect()
}

struct Transport {
    process: Arc<Proc>,
    net: Arc<Net>,
    token: http_types::HeaderValue,
}

impl ApiTransport for Transport {
    fn channel(&self, url: &str) -> Option<Channel> {
        let channel = http::Channel::new(Arc::clone(&self.process), Arc::clone(&self.net), node_of(url)?, PATIENCE).to(Door::Api);
        let token = self.token.clone();
        let with_token = move |mut request: http_types::Request<tonic::body::Body>| {
            request.headers_mut().insert(http_types::header::AUTHORIZATION, token.clone());
            request
        };
        let answered = |response: http_types::Response<http::Pieces>| response.map(tonic::body::Body::new);
        Some(Channel::new(channel.map_request(with_token).map_response(answered).map_err(transport::ChannelError::new)))
    }
}

/// How a process reaches API servers, `first` before the others; as a node, or as a server.
pub fn config(process: &Arc<Proc>, net: &Arc<Net>, members: u8, first: usize, node: Option<&str>) -> ApiConfig {
    let members = usize::from(members);
    let order = (0..members).map(|n| (first + n) % members).filter_map(|n| Node::try_from(n).ok());
    let bearer = format!("Bearer {}", node.unwrap_or(SERVER));
    let token = http_types::HeaderValue::from_str(&bearer).expect("names of nodes are of letters and digits");
    let transport = Transport { process: Arc::clone(process), net: Arc::clone(net), token };
    ApiConfig { endpoints: order.map(host).collect(), transport: Some(Arc::new(transport)), ..ApiConfig::default() }
}
