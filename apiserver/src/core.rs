//! What every request needs: the store, the table of kinds, the caches.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use kontiki_base::env::Env;
use kontiki_base::kv::{Kv, RangeReq};
use kontiki_base::{KeyRange, Revision};
use kontiki_registry::meta::SUFFIX_ALPHABET;
use kontiki_registry::row::Row;
use kontiki_registry::table::Registry;
use tokio::sync::watch;

use crate::auth::Tokens;
use crate::cache::Hub;
use crate::cache::row::RowCache;
use crate::config::{ExtraMetrics, ServiceCidr};
use crate::crd::{Custom, Kinds};
use crate::error::Result;
use crate::metrics::Metrics;

/// How long a read waits for the caches to become as new as it asks for.
pub(crate) const FRESHNESS_PATIENCE: Duration = Duration::from_secs(3);

/// The parts that requests share.
pub(crate) struct Core {
    pub(crate) kv: Arc<dyn Kv>,
    pub(crate) env: Arc<dyn Env>,
    pub(crate) hub: Arc<Hub>,
    pub(crate) metrics: Metrics,
    pub(crate) tokens: Tokens,
    pub(crate) service_cidr: ServiceCidr,
    pub(crate) advertise: Vec<std::net::SocketAddr>,
    pub(crate) server_name: String,
    pub(crate) extra_metrics: Option<ExtraMetrics>,
    /// TLS to node agents, with the server's own certificate.
    pub(crate) node_tls: Option<tokio_rustls::TlsConnector>,
    /// Becomes true when the server begins to stop.
    pub(crate) stopping: watch::Sender<bool>,
    kinds: RwLock<Arc<Kinds>>,
}

impl std::fmt::Debug for Core {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Core").field("server_name", &self.server_name).finish_non_exhaustive()
    }
}

/// What [`Core`] is made of, besides what it makes itself.
pub(crate) struct Parts {
    pub(crate) kv: Arc<dyn Kv>,
    pub(crate) env: Arc<dyn Env>,
    pub(crate) tokens: Tokens,
    pub(crate) service_cidr: ServiceCidr,
    pub(crate) advertise: Vec<std::net::SocketAddr>,
    pub(crate) server_name: String,
    pub(crate) extra_metrics: Option<ExtraMetrics>,
    pub(crate) node_tls: Option<tokio_rustls::TlsConnector>,
}

impl Core {
    pub(crate) fn new(parts: Parts) -> Self {
        let hub = Hub::new(parts.kv.clone(), parts.env.clone());
        Self {
            hub,
            kv: parts.kv,
            env: parts.env,
            metrics: Metrics::new(),
            tokens: parts.tokens,
            service_cidr: parts.service_cidr,
            advertise: parts.advertise,
            server_name: parts.server_name,
            extra_metrics: parts.extra_metrics,
            node_tls: parts.node_tls,
            stopping: watch::Sender::new(false),
            kinds: RwLock::new(Arc::new(Kinds::builtin())),
        }
    }

    /// The kinds that are served now.
    pub(crate) fn registry(&self) -> Arc<Registry> {
        self.kinds().registry.clone()
    }

    fn kinds(&self) -> Arc<Kinds> {
        self.kinds.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Replaces the kinds that are served.
    pub(crate) fn set_kinds(&self, kinds: Kinds) {
        *self.kinds.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(kinds);
    }

    /// What a custom resource brings along; `None` for a built-in kind.
    pub(crate) fn custom(&self, row: &Row) -> Option<Arc<Custom>> {
        self.kinds().custom(row)
    }

    /// The row of a built-in kind.
    pub(crate) fn builtin(&self, group: &str, version: &str, plural: &str) -> Arc<Row> {
        self.registry().resource(group, version, plural).expect("the built-in table has every kind that the server itself needs")
    }

    /// The store's revision, confirmed by a quorum: whatever was acknowledged before is at or below it.
    pub(crate) async fn quorum_revision(&self) -> Result<Revision> {
        let request = RangeReq { count_only: true, ..RangeReq::new(KeyRange::single(Bytes::from_static(b"/registry/"))) };
        Ok(self.kv.range(request).await?.revision)
    }

    /// The cache of a kind, loaded if need be.
    pub(crate) async fn cache(&self, row: &Arc<Row>) -> Option<Arc<RowCache>> {
        self.hub.ensure(row, FRESHNESS_PATIENCE).await
    }

    /// Lets the caches see what a lost race was lost to, so that the next attempt does not decide on the same old state.
    pub(crate) async fn catch_up(&self) -> Result<()> {
        let now = self.quorum_revision().await?;
        self.hub.reach(now, FRESHNESS_PATIENCE).await;
        Ok(())
    }

    /// Now, RFC 3339 in UTC, whole seconds.
    pub(crate) fn now(&self) -> String {
        rfc3339(self.now_seconds())
    }

    /// Now, in seconds since the epoch.
    pub(crate) fn now_seconds(&self) -> i64 {
        self.env.now_wall().0.div_euclid(1_000)
    }

    /// A random uid, version 4.
    pub(crate) fn uid(&self) -> String {
        let (hi, lo) = (self.env.random_u64(), self.env.random_u64());
        let hi = (hi & !0xf000) | 0x4000;
        let lo = (lo & !(0b11 << 62)) | (0b10 << 62);
        let (a, b, c) = (hi >> 32, (hi >> 16) & 0xffff, hi & 0xffff);
        format!("{a:08x}-{b:04x}-{c:04x}-{:04x}-{:012x}", lo >> 48, lo & 0xffff_ffff_ffff)
    }

    /// Five characters for a generated name.
    pub(crate) fn suffix(&self) -> String {
        let mut random = self.env.random_u64();
        let base = SUFFIX_ALPHABET.len() as u64;
        let mut pick = || {
            let letter = SUFFIX_ALPHABET[usize::try_from(random % base).unwrap_or(0)];
            random /= base;
            char::from(letter)
        };
        (0..5).map(|_| pick()).collect()
    }

    /// Completes when the server begins to stop.
    pub(crate) async fn stopped(&self) {
        // The sender lives as long as `self`: an error cannot come before the wait is over.
        let _ = self.stopping.subscribe().wait_for(|stop| *stop).await;
    }
}

/// Seconds since the epoch as RFC 3339 in UTC.
pub(crate) fn rfc3339(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds).unwrap_or_default().to_string()
}

#[cfg(test)]
mod tests {
    #[test]
    fn times_are_rfc3339() {
        assert_eq!(super::rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(super::rfc3339(1_795_510_862), "2026-11-24T09:01:02Z");
    }
}
