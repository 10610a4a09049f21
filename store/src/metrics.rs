//! What the store counts, under the names that etcd's dashboards and alerts read.
//!
//! Only what is measured is exposed: a name that would be a guess is left out.

use std::fmt::Write as _;

use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeLabel as _, EncodeLabelSet, LabelSetEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// A gRPC method, as go-grpc-prometheus labels it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Rpc {
    /// `unary`, `server_stream`, `client_stream` or `bidi_stream`.
    pub grpc_type: &'static str,
    /// Such as `etcdserverpb.KV`.
    pub grpc_service: String,
    /// Such as `Range`.
    pub grpc_method: String,
}

/// A finished gRPC call.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Handled {
    /// Its status, spelt as Go does.
    pub grpc_code: &'static str,
    /// `unary`, `server_stream`, `client_stream` or `bidi_stream`.
    pub grpc_type: &'static str,
    /// Such as `etcdserverpb.KV`.
    pub grpc_service: String,
    /// Such as `Range`.
    pub grpc_method: String,
}

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Client {
    /// `unary` or `stream`.
    pub r#type: &'static str,
    /// What it speaks, such as `3.5`, or `unknown`.
    pub client_api_version: String,
}

/// A member that is spoken to. etcd's label begins with a capital.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct To(pub u64);

/// A member that speaks.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct From(pub u64);

impl EncodeLabelSet for To {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), std::fmt::Error> {
        ("To", format!("{:x}", self.0)).encode(encoder.encode_label())
    }
}

impl EncodeLabelSet for From {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), std::fmt::Error> {
        ("From", format!("{:x}", self.0)).encode(encoder.encode_label())
    }
}

/// etcd's buckets for disks: from a millisecond to eight seconds.
fn disk() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 14))
}

/// etcd's buckets for the way to another member and back.
fn round_trip() -> Histogram {
    Histogram::new(exponential_buckets(0.0001, 2.0, 16))
}

/// Prometheus' own buckets.
fn call() -> Histogram {
    Histogram::new([0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0])
}

type Histograms<L> = Family<L, Histogram, fn() -> Histogram>;

/// What is looked up when metrics are read, rather than counted all the time.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    /// Whether a leader is known.
    pub has_leader: bool,
    /// Whether it is this member.
    pub is_leader: bool,
    /// Whether this member has no vote.
    pub is_learner: bool,
    /// This member's id.
    pub member_id: u64,
    /// Last committed entry.
    pub committed: u64,
    /// Last applied entry.
    pub applied: u64,
    /// Bytes on disk.
    pub size: u64,
    /// Bytes of them that hold what can be read.
    pub in_use: u64,
    /// Bytes that the store may have; 0 if there is no such limit.
    pub quota: u64,
    /// The store's revision.
    pub revision: i64,
    /// The compact revision.
    pub compact: i64,
    /// History before this revision has been removed from the disk.
    pub swept: i64,
}

macro_rules! metrics {
    ($(#[doc = $doc:literal] $field:ident: $kind:ident = $name:literal;)*) => {
        /// Counters and gauges of one member.
        #[derive(Debug)]
        pub struct Metrics {
            registry: Registry,
            $(#[doc = $doc] pub $field: $kind,)*
            /// Calls begun.
            pub started: Family<Rpc, Counter>,
            /// Calls ended.
            pub handled: Family<Handled, Counter>,
            /// Messages of clients.
            pub received: Family<Rpc, Counter>,
            /// Messages to clients.
            pub sent: Family<Rpc, Counter>,
            /// How long calls took, if that is measured.
            pub handling: Option<Histograms<Rpc>>,
            /// Calls by what their clients speak.
            pub client_requests: Family<Client, Counter>,
            /// How long the log's syncs took.
            pub fsync: Histogram,
            /// How long commits to the engine took.
            pub commit: Histogram,
            /// How long heartbeats were under way, there and back.
            pub round_trip: Histograms<To>,
            /// Bytes to other members.
            pub peer_sent: Family<To, Counter>,
            /// Bytes of other members.
            pub peer_received: Family<From, Counter>,
            /// Messages that did not get through.
            pub peer_failures: Family<To, Counter>,
        }

        impl Metrics {
            /// All at zero. `extensive`: measure how long calls take, too.
            pub fn new(extensive: bool) -> Self {
                let mut registry = Registry::default();
                $(
                    let $field = $kind::default();
                    registry.register($name, help($doc), $field.clone());
                )*
                let (started, handled) = (Family::<Rpc, Counter>::default(), Family::<Handled, Counter>::default());
                registry.register("grpc_server_started", "RPCs started on the server", started.clone());
                registry.register("grpc_server_handled", "RPCs completed on the server", handled.clone());
                let (received, sent) = (Family::<Rpc, Counter>::default(), Family::<Rpc, Counter>::default());
                registry.register("grpc_server_msg_received", "RPC stream messages received on the server", received.clone());
                registry.register("grpc_server_msg_sent", "gRPC stream messages sent by the server", sent.clone());
                let handling = extensive.then(|| Histograms::<Rpc>::new_with_constructor(call));
                if let Some(handling) = &handling {
                    registry.register("grpc_server_handling_seconds", "Seconds until calls were handled", handling.clone());
                }
                let client_requests = Family::<Client, Counter>::default();
                registry.register("etcd_server_client_requests", "Client requests per client version", client_requests.clone());
                let (fsync, commit) = (disk(), disk());
                registry.register("etcd_disk_wal_fsync_duration_seconds", "Syncs of the log", fsync.clone());
                registry.register("etcd_disk_backend_commit_duration_seconds", "Commits to the engine", commit.clone());
                let round_trip = Histograms::<To>::new_with_constructor(round_trip);
                registry.register("etcd_network_peer_round_trip_time_seconds", "Round trips between members", round_trip.clone());
                let (peer_sent, peer_failures) = (Family::<To, Counter>::default(), Family::<To, Counter>::default());
                let peer_received = Family::<From, Counter>::default();
                registry.register("etcd_network_peer_sent_bytes", "Bytes sent to peers", peer_sent.clone());
                registry.register("etcd_network_peer_received_bytes", "Bytes received from peers", peer_received.clone());
                registry.register("etcd_network_peer_sent_failures", "Messages to peers that failed", peer_failures.clone());
                Self {
                    registry,
                    $($field,)*
                    started,
                    handled,
                    received,
                    sent,
                    handling,
                    client_requests,
                    fsync,
                    commit,
                    round_trip,
                    peer_sent,
                    peer_received,
                    peer_failures,
                }
            }
        }
    };
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new(false)
    }
}

/// The registry ends every help text with a full stop of its own.
fn help(text: &str) -> &str {
    text.trim().trim_end_matches('.')
}

metrics! {
    /// Whether a leader exists: 1 is existence, 0 is not.
    has_leader: Gauge = "etcd_server_has_leader";
    /// Whether this member is a leader.
    is_leader: Gauge = "etcd_server_is_leader";
    /// Whether this member is a learner.
    is_learner: Gauge = "etcd_server_is_learner";
    /// Leader changes seen.
    leader_changes: Counter = "etcd_server_leader_changes_seen";
    /// Entries committed.
    committed: Gauge = "etcd_server_proposals_committed_total";
    /// Entries applied.
    applied: Gauge = "etcd_server_proposals_applied_total";
    /// Proposals waiting to be committed.
    proposals_pending: Gauge = "etcd_server_proposals_pending";
    /// Proposals that failed.
    proposals_failed: Counter = "etcd_server_proposals_failed";
    /// Read indexes that failed.
    reads_failed: Counter = "etcd_server_read_indexes_failed";
    /// The state's size on disk.
    size: Gauge = "etcd_mvcc_db_total_size_in_bytes";
    /// The state's size on disk that is in use.
    size_in_use: Gauge = "etcd_mvcc_db_total_size_in_use_in_bytes";
    /// Current backend storage quota size in bytes.
    quota: Gauge = "etcd_server_quota_backend_bytes";
    /// Ranges served by this member.
    ranges: Counter = "etcd_mvcc_range";
    /// Puts served by this member.
    puts: Counter = "etcd_mvcc_put";
    /// Deletions served by this member.
    deletes: Counter = "etcd_mvcc_delete";
    /// Transactions served by this member.
    txns: Counter = "etcd_mvcc_txn";
    /// The store's revision.
    revision: Gauge = "etcd_debugging_mvcc_current_revision";
    /// The compact revision.
    compact: Gauge = "etcd_debugging_mvcc_compact_revision";
    /// History before this revision has been removed: behind the compact revision while that goes on.
    swept: Gauge = "kontiki_store_swept_revision";
    /// Events brought to watchers.
    events: Counter = "etcd_debugging_mvcc_events";
    /// Watchers.
    watchers: Gauge = "etcd_debugging_mvcc_watcher_total";
    /// Watch streams.
    watch_streams: Gauge = "etcd_debugging_mvcc_watch_stream_total";
    /// Times that a watcher fell back to reading history.
    slow_watchers: Counter = "kontiki_store_watchers_lagged";
    /// Times that a watch stream's queue was full.
    overflows: Counter = "kontiki_store_watch_queue_overflows";
    /// Leases granted.
    leases_granted: Counter = "etcd_debugging_lease_granted";
    /// Leases revoked.
    leases_revoked: Counter = "etcd_debugging_lease_revoked";
    /// Leases kept alive.
    leases_renewed: Counter = "etcd_debugging_lease_renewed";
    /// Leases expired.
    leases_expired: Counter = "etcd_debugging_server_lease_expired";
    /// Bytes received from clients.
    client_received_bytes: Counter = "etcd_network_client_grpc_received_bytes";
    /// Bytes sent to clients.
    client_sent_bytes: Counter = "etcd_network_client_grpc_sent_bytes";
    /// Heartbeats that did not get through.
    heartbeat_failures: Counter = "etcd_server_heartbeat_send_failures";
    /// Learners promoted.
    promote_successes: Counter = "etcd_server_learner_promote_successes";
    /// Health checks passed.
    health_success: Counter = "etcd_server_health_success";
    /// Health checks failed.
    health_failures: Counter = "etcd_server_health_failures";
}

impl Metrics {
    /// Begins a call's counts at zero, so that rates over them are there before the first call.
    pub fn prime(&self, rpc: &Rpc, codes: impl Iterator<Item = &'static str>) {
        for family in [&self.started, &self.received, &self.sent] {
            drop(family.get_or_create(rpc));
        }
        for grpc_code in codes {
            let Rpc { grpc_type, grpc_service, grpc_method } = rpc.clone();
            drop(self.handled.get_or_create(&Handled { grpc_code, grpc_type, grpc_service, grpc_method }));
        }
    }

    /// All of it as text, in the OpenMetrics format.
    pub fn text(&self, sample: &Sample) -> String {
        let gauge = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        self.has_leader.set(sample.has_leader.into());
        self.is_leader.set(sample.is_leader.into());
        self.is_learner.set(sample.is_learner.into());
        self.committed.set(gauge(sample.committed));
        self.applied.set(gauge(sample.applied));
        self.size.set(gauge(sample.size));
        self.size_in_use.set(gauge(sample.in_use));
        self.quota.set(gauge(sample.quota));
        self.revision.set(sample.revision);
        self.compact.set(sample.compact);
        self.swept.set(sample.swept);
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = encode(&mut text, &self.registry);
        let end = text.trim_end().strip_suffix("# EOF").map_or(text.len(), str::len);
        text.truncate(end);
        let _ = writeln!(text, "# HELP etcd_server_id Server or member ID in hexadecimal format.\n# TYPE etcd_server_id gauge");
        let _ = writeln!(text, "etcd_server_id{{server_id=\"{:x}\"}} 1", sample.member_id);
        let _ = writeln!(text, "# HELP etcd_server_version Which version is running.\n# TYPE etcd_server_version gauge");
        let _ = writeln!(text, "etcd_server_version{{server_version=\"{}\"}} 1", crate::config::ETCD_VERSION);
        let _ = writeln!(text, "# HELP etcd_cluster_version Which version is running.\n# TYPE etcd_cluster_version gauge");
        let cluster = crate::config::ETCD_CLUSTER_VERSION.rsplit_once('.').map_or("", |(minor, _)| minor);
        let _ = writeln!(text, "etcd_cluster_version{{cluster_version=\"{cluster}\"}} 1");
        crate::process::describe(&mut text);
        for (inv, count) in kontiki_base::invariant::counts().filter(|(_, count)| *count > 0) {
            let _ = writeln!(text, "kontiki_invariant_broken{{invariant=\"{}\"}} {count}", inv.id());
        }
        text.push_str("# EOF\n");
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_alerts_read() {
        let metrics = Metrics::default();
        metrics.leader_changes.inc();
        metrics.puts.inc_by(3);
        let rpc = Rpc { grpc_type: "unary", grpc_service: "etcdserverpb.KV".into(), grpc_method: "Put".into() };
        metrics.started.get_or_create(&rpc).inc();
        let text = metrics.text(&Sample { has_leader: true, applied: 7, member_id: 255, swept: 5, ..Sample::default() });
        for line in [
            "etcd_server_has_leader 1",
            "etcd_server_leader_changes_seen_total 1",
            "etcd_server_proposals_applied_total 7",
            "etcd_mvcc_put_total 3",
            "kontiki_store_swept_revision 5",
            "etcd_server_id{server_id=\"ff\"} 1",
            "grpc_server_started_total{grpc_type=\"unary\",grpc_service=\"etcdserverpb.KV\",grpc_method=\"Put\"} 1",
        ] {
            assert!(text.lines().any(|l| l == line), "{line:?} is not in\n{text}");
        }
        assert!(text.ends_with("# EOF\n") && text.matches("# EOF").count() == 1);
    }
}
