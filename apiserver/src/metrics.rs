//! What the server counts, as Prometheus text.

use std::fmt::Write as _;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use kontiki_base::invariant;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::core::Core;

/// A kind of request.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    door: &'static str,
    verb: String,
    resource: String,
    code: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResourceLabels {
    resource: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LatencyLabels {
    door: &'static str,
    verb: String,
}

/// The counters.
pub(crate) struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    latency: Family<LatencyLabels, Histogram, fn() -> Histogram>,
    objects: Family<ResourceLabels, Gauge>,
    revision: Gauge,
    /// Watches that run now.
    pub(crate) watchers: Gauge,
    /// Requests that were refused because too many were under way.
    pub(crate) refused: Counter,
    /// Handlers that panicked.
    pub(crate) panics: Counter<u64, AtomicU64>,
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Metrics")
    }
}

fn latency() -> Histogram {
    // 0.5 ms to 33 s.
    Histogram::new(exponential_buckets(0.0005, 2.0, 17))
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let metrics = Self {
            registry: Registry::default(),
            requests: Family::default(),
            latency: Family::new_with_constructor(latency),
            objects: Family::default(),
            revision: Gauge::default(),
            watchers: Gauge::default(),
            refused: Counter::default(),
            panics: Counter::default(),
        };
        metrics.registered()
    }

    fn registered(mut self) -> Self {
        let r = &mut self.registry;
        r.register("apiserver_request", "Requests by door, verb, resource and HTTP or gRPC code", self.requests.clone());
        r.register("apiserver_request_duration_seconds", "Time until the answer began", self.latency.clone());
        r.register("apiserver_storage_objects", "Objects in the watch cache", self.objects.clone());
        r.register("apiserver_watch_cache_revision", "Revision that every cache has reached", self.revision.clone());
        r.register("apiserver_watchers", "Watches that run now", self.watchers.clone());
        r.register("apiserver_requests_refused", "Requests refused because too many were under way", self.refused.clone());
        r.register("apiserver_panics", "Handlers that panicked", self.panics.clone());
        self
    }

    /// Counts a request.
    pub(crate) fn request(&self, door: &'static str, verb: &str, resource: &str, code: u32, took: Duration) {
        let labels = RequestLabels { door, verb: verb.into(), resource: resource.into(), code };
        self.requests.get_or_create(&labels).inc();
        self.latency.get_or_create(&LatencyLabels { door, verb: verb.into() }).observe(took.as_secs_f64());
    }
}

/// The text of `/metrics`.
pub(crate) fn text(core: &Core) -> String {
    for (resource, count) in core.hub.sizes() {
        core.metrics.objects.get_or_create(&ResourceLabels { resource }).set(i64::try_from(count).unwrap_or(i64::MAX));
    }
    core.metrics.revision.set(core.hub.applied().get());
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = encode_registry(&mut out, &core.metrics.registry);
    let _ = invariants(&mut out);
    if let Some(extra) = &core.extra_metrics {
        extra(&mut out);
    }
    let _ = encode_eof(&mut out);
    out
}

/// Invariants that were found broken, by name. A healthy process shows nothing but zeros.
fn invariants(out: &mut String) -> std::fmt::Result {
    writeln!(out, "# HELP kontiki_invariants_broken How often an invariant was found broken.\n# TYPE kontiki_invariants_broken counter")?;
    invariant::counts().try_for_each(|(inv, count)| writeln!(out, "kontiki_invariants_broken_total{{invariant=\"{}\"}} {count}", inv.id()))
}
