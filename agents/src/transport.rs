//! How clients reach servers: the seam that a simulated world replaces.
//!
//! A [`Channel`] is what generated clients stand on. The usual one is HTTP/2 over TLS; a simulation gives one that carries requests over its
//! own network, and everything above it stays as it is.

use std::sync::Arc;
use std::time::Duration;

use tonic::body::Body;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};
use tower::ServiceExt as _;
use tower::util::BoxCloneSyncService;

use crate::config::ApiConfig;
use crate::error::ConfigError;

/// Why a request did not get an answer. A [`tonic::Status`] inside is what the caller gets.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ChannelError(#[source] Cause);

type Cause = Box<dyn std::error::Error + Send + Sync>;

impl ChannelError {
    /// From what the transport below says.
    pub fn new(why: impl Into<Cause>) -> Self {
        Self(why.into())
    }
}

/// A way to one server. Cheap to clone.
pub type Channel = BoxCloneSyncService<http::Request<Body>, http::Response<Body>, ChannelError>;

/// Makes channels in another way than by TLS: in a simulation.
pub trait ApiTransport: Send + Sync + 'static {
    /// A way to the server at `url`; `None`: there is no such server.
    fn channel(&self, url: &str) -> Option<Channel>;
}

/// Every server with a way to it, connected when first used.
pub(crate) fn channels(config: &ApiConfig) -> Result<Vec<(String, Channel)>, ConfigError> {
    if config.endpoints.is_empty() {
        return Err(ConfigError::NoEndpoints);
    }
    config.endpoints.iter().map(|url| Ok((url.clone(), channel(config, url)?))).collect()
}

fn channel(config: &ApiConfig, url: &str) -> Result<Channel, ConfigError> {
    let bad = |why: String| ConfigError::BadEndpoint { url: url.to_owned(), why };
    if let Some(transport) = &config.transport {
        return transport.channel(url).ok_or_else(|| bad("there is no such server".into()));
    }
    let endpoint = Endpoint::from_shared(url.to_owned()).map_err(|e| bad(e.to_string()))?;
    let endpoint =
        endpoint.http2_keep_alive_interval(Duration::from_secs(2)).keep_alive_timeout(Duration::from_secs(3)).keep_alive_while_idle(true);
    let endpoint = if url.starts_with("https://") {
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(&config.ca_pem))
            .identity(Identity::from_pem(&config.cert_pem, &config.key_pem));
        endpoint.tls_config(tls).map_err(|e| ConfigError::BadCredentials(e.to_string()))?
    } else if url.starts_with("http://") {
        endpoint
    } else {
        return Err(bad("must start with https://".into()));
    };
    let tcp = kontiki_proto::socket::connector(Duration::from_secs(2));
    Ok(Channel::new(endpoint.connect_with_connector_lazy(tcp).map_err(ChannelError::new)))
}

/// A transport that is shared.
pub type SharedTransport = Arc<dyn ApiTransport>;
