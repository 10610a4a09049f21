//! Errors of the server as a whole. A request that fails is answered with [`kontiki_registry::status::Status`] instead.

use std::net::SocketAddr;

/// Why an API server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A certificate, key or authority cannot be used.
    #[error("invalid TLS material: {0}")]
    Tls(String),
    /// The address cannot be listened on.
    #[error("cannot listen on {addr}")]
    Listen {
        /// The address.
        addr: SocketAddr,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

/// What a request comes to: its result, or the Status that its client is told.
pub(crate) type Result<T> = std::result::Result<T, kontiki_registry::status::Status>;
