//! What the controllers are started with, checked once.

use std::sync::Arc;
use std::time::Duration;

use kontiki_base::Term;
use tokio::sync::watch;

use crate::error::ConfigError;
use crate::informer::Caches;
use crate::session::Liveness;
use crate::transport::SharedTransport;

/// How to reach the API, and as whom.
#[derive(Clone, Default)]
pub struct ApiConfig {
    /// `https://host:port` of every server. Plain `http://` is for tests.
    pub endpoints: Vec<String>,
    /// Certificate authority that signed the servers' certificates.
    pub ca_pem: Vec<u8>,
    /// The client's certificate.
    pub cert_pem: Vec<u8>,
    /// Its private key.
    pub key_pem: Vec<u8>,
    /// Reaches the servers in another way than by TLS; the certificates are of no use then.
    pub transport: Option<SharedTransport>,
}

impl std::fmt::Debug for ApiConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApiConfig").field("endpoints", &self.endpoints).finish_non_exhaustive()
    }
}

/// What the controllers need to run.
pub struct ControllersConfig {
    /// The caches of this process, shared with the node session service.
    pub caches: Arc<Caches>,
    /// `Some(term)` while the local member leads the store in `term`.
    pub leadership: watch::Receiver<Option<Term>>,
    /// Heartbeats of the nodes, shared with the node session service.
    pub liveness: Arc<Liveness>,
    /// How many keys are reconciled at once.
    pub workers: usize,
}

impl std::fmt::Debug for ControllersConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ControllersConfig").field("workers", &self.workers).finish_non_exhaustive()
    }
}

impl ControllersConfig {
    /// Refuses what cannot work.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.workers == 0 {
            return Err(ConfigError::Invalid("workers must be at least 1".into()));
        }
        Ok(())
    }
}

/// One call to one server gives up after this long.
pub const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(5);

/// A request, with all its attempts, gives up after this long.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);
