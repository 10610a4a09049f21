//! Counters of everything that acts. One registry per process is given in; names start with `kontiki_agents_`.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

/// Labels of a reconcile.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ReconcileLabels {
    /// Name of the controller.
    pub controller: &'static str,
    /// `quiet`, `done`, `retry`, `fenced`.
    pub outcome: &'static str,
}

/// Labels of a write.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct WriteLabels {
    /// `create`, `update`, `patch`, `delete`, `bind`.
    pub verb: &'static str,
    /// Plural of the kind.
    pub kind: &'static str,
    /// `ok` or the outcome code's reason.
    pub outcome: &'static str,
}

/// Label of what is counted per kind.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct KindLabel {
    /// Plural of the kind.
    pub kind: &'static str,
}

/// Label of what is counted per controller.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ControllerLabel {
    /// Name of the controller.
    pub controller: &'static str,
}

/// All counters of the controllers and of the node session service.
#[derive(Debug)]
pub struct Metrics {
    /// Reconciles by controller and outcome.
    pub reconciles: Family<ReconcileLabels, Counter>,
    /// Writes by verb, kind and outcome.
    pub writes: Family<WriteLabels, Counter>,
    /// Keys that wait, by controller.
    pub queue_depth: Family<ControllerLabel, Gauge>,
    /// Lists that informers had to do, the first included.
    pub lists: Family<KindLabel, Counter>,
    /// Objects in the caches.
    pub objects: Family<KindLabel, Gauge>,
    /// Objects that could not be read; they are left out of the cache.
    pub unreadable: Family<KindLabel, Counter>,
    /// Pods that were bound.
    pub binds: Counter,
    /// From the moment a pod could first be seen to its binding, seconds.
    pub bind_seconds: Histogram,
    /// Events that were dropped because too many were waiting.
    pub events_dropped: Counter,
    /// Open node sessions.
    pub sessions: Gauge,
    /// Heartbeats of nodes.
    pub beats: Counter,
    /// Pod statuses that node agents sent.
    pub pod_statuses: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            reconciles: Family::default(),
            writes: Family::default(),
            queue_depth: Family::default(),
            lists: Family::default(),
            objects: Family::default(),
            unreadable: Family::default(),
            binds: Counter::default(),
            bind_seconds: Histogram::new(exponential_buckets(0.001, 2.0, 16)),
            events_dropped: Counter::default(),
            sessions: Gauge::default(),
            beats: Counter::default(),
            pod_statuses: Counter::default(),
        }
    }
}

impl Metrics {
    /// Makes the counters visible in `registry`.
    pub fn register(&self, registry: &mut Registry) {
        let r = registry.sub_registry_with_prefix("kontiki_agents");
        r.register("reconciles", "Reconciles by controller and outcome", self.reconciles.clone());
        r.register("writes", "Writes by verb, kind and outcome", self.writes.clone());
        r.register("queue_depth", "Keys that wait, by controller", self.queue_depth.clone());
        r.register("lists", "Lists that informers had to do", self.lists.clone());
        r.register("objects", "Objects in the caches", self.objects.clone());
        r.register("unreadable", "Objects that could not be read", self.unreadable.clone());
        r.register("binds", "Pods that were bound", self.binds.clone());
        r.register_with_unit("bind", "From first sight of a pod to its binding", Unit::Seconds, self.bind_seconds.clone());
        r.register("events_dropped", "Events dropped because too many were waiting", self.events_dropped.clone());
        r.register("node_sessions", "Open node sessions", self.sessions.clone());
        r.register("node_beats", "Heartbeats of nodes", self.beats.clone());
        r.register("pod_statuses", "Pod statuses that node agents sent", self.pod_statuses.clone());
    }
    /// What writes all counters as text, in the OpenMetrics format without its end: for the metrics of a whole process.
    pub fn writer(&self) -> impl Fn(&mut String) + Send + Sync + use<> {
        let mut registry = Registry::default();
        self.register(&mut registry);
        // Writing to a String cannot fail.
        move |text| {
            let _ = prometheus_client::encoding::text::encode_registry(text, &registry);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_show_up_by_name() {
        let metrics = Metrics::default();
        let write = metrics.writer();
        metrics.reconciles.get_or_create(&ReconcileLabels { controller: "gc", outcome: "done" }).inc();
        let mut text = String::new();
        write(&mut text);
        assert!(text.contains("kontiki_agents_reconciles_total{controller=\"gc\",outcome=\"done\"} 1"), "{text}");
    }
}
