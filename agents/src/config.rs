//! What the controllers are started with, checked once.

use std::sync::Arc;
use std::time::Duration;

use kontiki_base::Term;
use kontiki_base::env::Env;
use tokio::sync::watch;

use crate::error::ConfigError;
use crate::metrics::Metrics;

/// How to reach the API, and as whom.
#[derive(Clone)]
pub struct ApiConfig {
    /// `https://host:port` of every server. Plain `http://` is for tests.
    pub endpoints: Vec<String>,
    /// Certificate authority that signed the servers' certificates.
    pub ca_pem: Vec<u8>,
    /// The client's certificate.
    pub cert_pem: Vec<u8>,
    /// Its private key.
    pub key_pem: Vec<u8>,
}

impl std::fmt::Debug for ApiConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApiConfig").field("endpoints", &self.endpoints).finish_non_exhaustive()
    }
}

/// What the controllers need to run.
pub struct ControllersConfig {
    /// The API.
    pub api: ApiConfig,
    /// `Some(term)` while the local member leads the store in `term`.
    pub leadership: watch::Receiver<Option<Term>>,
    /// Clock, tasks, randomness.
    pub env: Arc<dyn Env>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Heartbeats of the nodes, shared with the node session service of this process.
    pub liveness: Arc<crate::session::Liveness>,
    /// PEM bundle for the `kube-root-ca.crt` config maps.
    pub root_ca_pem: String,
    /// How many keys are reconciled at once.
    pub workers: usize,
}

impl ControllersConfig {
    /// Refuses what cannot work.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.api.endpoints.is_empty() {
            return Err(ConfigError::NoEndpoints);
        }
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
