//! The table of flags. It drives the parser, `--help`, the log's lines about flags that do nothing, and a test.

/// What a flag takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `--flag` or `--flag=true`.
    Bool,
    /// Text; this stands for it in `--help`.
    Text(&'static str),
}

/// What a flag does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// What its help says.
    Works,
    /// Is taken and does nothing; this says why.
    Idle(&'static str),
    /// Is taken with its default alone: anything else asks for what is not built, and is refused with this.
    Refused(&'static str),
}

/// A flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flag {
    /// Its name, without dashes.
    pub name: &'static str,
    /// Another name, of this program.
    pub also: Option<&'static str>,
    /// What it takes.
    pub kind: Kind,
    /// What it is if nobody says; as text. Empty: not set.
    pub default: &'static str,
    /// What it does.
    pub effect: Effect,
    /// For `--help`. Empty for those that do nothing: why they do nothing is their help.
    pub help: &'static str,
}

impl Flag {
    /// The environment variable that sets it.
    pub fn variable(&self) -> String {
        format!("ETCD_{}", self.name.to_uppercase().replace('-', "_"))
    }
}

const fn works(name: &'static str, kind: Kind, default: &'static str, help: &'static str) -> Flag {
    Flag { name, also: None, kind, default, effect: Effect::Works, help }
}

const fn idle(name: &'static str, kind: Kind, default: &'static str, why: &'static str) -> Flag {
    Flag { name, also: None, kind, default, effect: Effect::Idle(why), help: "" }
}

const fn refused(name: &'static str, kind: Kind, default: &'static str, why: &'static str) -> Flag {
    Flag { name, also: None, kind, default, effect: Effect::Refused(why), help: "" }
}

const fn also(name: &'static str, flag: Flag) -> Flag {
    Flag { also: Some(name), ..flag }
}

use Kind::{Bool, Text};

const URLS: Kind = Text("URLS");
const FILE: Kind = Text("FILE");
const NUMBER: Kind = Text("N");
const TIME: Kind = Text("DURATION");

const BY_BYTES: &str = "the log is kept and snapshots are made by bytes, not by entries; no tuning is needed";
const NO_BACKEND: &str = "the storage engine has no such knob: it writes in groups by itself";
const CHECKED: &str = "members are compared when asked (`etcdctl endpoint hashkv`)";
const LOGS: &str = "logs go to standard error; the program that starts this one decides where that ends";
const NO_DISCOVERY: &str = "members are named in --initial-cluster; there is no discovery";

/// Every flag, in the order of `--help`.
pub const FLAGS: &[Flag] = &[
    // Member.
    works("name", Text("NAME"), "default", "This member's name; one of --initial-cluster"),
    works("data-dir", Text("DIR"), "", "Where the member keeps its data [default: <name>.etcd]"),
    also(
        "listen-client",
        works(
            "listen-client-urls",
            URLS,
            "http://localhost:2379",
            "Where clients are served: http://ip:port or https://ip:port, separated by commas",
        ),
    ),
    also(
        "advertise-client-url",
        works("advertise-client-urls", URLS, "", "What clients are told to connect to [default: where they are served]"),
    ),
    also("listen-peer", works("listen-peer-urls", URLS, "http://localhost:2380", "Where the other members are served")),
    works(
        "initial-advertise-peer-urls",
        URLS,
        "",
        "Where the other members reach this one [default: its row of --initial-cluster, else where they are served]",
    ),
    works(
        "initial-cluster",
        Text("LIST"),
        "",
        "All members at the cluster's birth, or at the moment of joining it: name=peer-url,… [default: this one alone]",
    ),
    works("initial-cluster-state", Text("new|existing"), "new", "`existing` joins a cluster that this member was added to"),
    works("initial-cluster-token", Text("TOKEN"), "etcd-cluster", "Members with another token are of another cluster, and are refused"),
    works("listen-metrics-urls", URLS, "", "More addresses that serve /metrics, /health, /livez and /readyz alone"),
    works("config-file", FILE, "", "Take all flags from this YAML file, and none from the command line or the environment"),
    // Consensus.
    works("heartbeat-interval", Text("MS"), "100", "Milliseconds between the leader's heartbeats"),
    works(
        "election-timeout",
        Text("MS"),
        "1000",
        "Milliseconds without a leader within which a member stands for election: it waits at least seven tenths of this",
    ),
    works(
        "auto-heal",
        TIME,
        "",
        "Not etcd's: a voter that has not answered for so long is replaced by a learner that waits and has caught up [default: never]",
    ),
    idle("pre-vote", Bool, "true", "a member always asks whether it would be elected before it disturbs anybody"),
    idle("strict-reconfig-check", Bool, "true", "a change of members that would cost the quorum is always refused"),
    idle("initial-election-tick-advance", Bool, "true", "a member that starts waits for a leader's heartbeat in any case"),
    idle("snapshot-count", NUMBER, "10000", BY_BYTES),
    idle("snapshot-catchup-entries", NUMBER, "5000", BY_BYTES),
    idle("max-snapshots", NUMBER, "5", "there is one state, and no files of old ones"),
    idle("max-wals", NUMBER, "5", "segments of the log are used again"),
    idle("wal-dir", Text("DIR"), "", "the log lies in the data directory; mount a disk at its `log` folder to have it elsewhere"),
    refused("unsafe-no-fsync", Bool, "false", "every write is synced before it is acknowledged"),
    refused("force-new-cluster", Bool, "false", "a cluster is restored from a snapshot instead"),
    // Requests.
    works("max-request-bytes", Text("BYTES"), "1572864", "Bytes of the largest request"),
    works("max-txn-ops", NUMBER, "128", "Steps, and conditions, of the largest transaction"),
    works("max-concurrent-streams", NUMBER, "16384", "Streams at once on one connection: watches count, too"),
    works(
        "watch-progress-notify-interval",
        TIME,
        "10m",
        "A watch that asked for it hears this often that nothing happened; 100ms at least",
    ),
    works("grpc-keepalive-interval", TIME, "30s", "The server asks a silent connection this often whether it is still there"),
    works("grpc-keepalive-timeout", TIME, "20s", "…and closes it after so long without an answer"),
    idle(
        "grpc-keepalive-min-time",
        TIME,
        "5s",
        "clients may ask as often as they like whether the server is there: HTTP/2 floods are bounded in another way",
    ),
    idle("warning-apply-duration", TIME, "100ms", "slow applies are counted in /metrics"),
    idle("warning-unary-request-duration", TIME, "300ms", "how long requests take is in /metrics"),
    idle("compaction-batch-limit", NUMBER, "1000", "old revisions are removed in pieces that need no tuning"),
    idle("compaction-sleep-interval", TIME, "10ms", "old revisions are removed in pieces that need no tuning"),
    idle("backend-batch-interval", TIME, "100ms", NO_BACKEND),
    idle("backend-batch-limit", NUMBER, "10000", NO_BACKEND),
    idle("backend-bbolt-freelist-type", Text("TYPE"), "map", NO_BACKEND),
    idle("bootstrap-defrag-threshold-megabytes", NUMBER, "0", "space returns by itself, in the background"),
    idle("enable-lease-checkpoint", Bool, "false", "a lease may live longer after a change of leaders, never shorter"),
    idle("enable-lease-checkpoint-persist", Bool, "false", "a lease may live longer after a change of leaders, never shorter"),
    idle("initial-corrupt-check", Bool, "false", CHECKED),
    idle("corrupt-check-time", TIME, "0s", CHECKED),
    idle("compact-hash-check-enabled", Bool, "false", CHECKED),
    idle("compact-hash-check-time", TIME, "1m", CHECKED),
    idle("feature-gates", Text("LIST"), "", "what etcd's gates stand for is either always on here or not there"),
    idle("max-learners", NUMBER, "1", "one member without a vote at a time, as in etcd"),
    idle("memory-mlock", Bool, "false", "memory is a cache here: it is bounded, and need not be locked"),
    idle("txn-mode-write-with-shared-buffer", Bool, "true", "transactions read one state, whatever is written meanwhile"),
    idle("stop-grpc-service-on-defrag", Bool, "false", "nothing stands still while space is given back"),
    idle("downgrade-check-time", TIME, "5s", "the cluster cannot be downgraded"),
    // Space.
    works("quota-backend-bytes", Text("BYTES"), "0", "Bytes that the store may have; 0 is 2 GiB, below 0 is no quota"),
    works("auto-compaction-mode", Text("periodic|revision"), "periodic", "What --auto-compaction-retention means"),
    works("auto-compaction-retention", Text("N"), "0", "How much history is kept: hours, a duration, or revisions; 0 keeps all"),
    // TLS.
    works("cert-file", FILE, "", "Certificate of the client port (PEM). Read anew when it changes, as all of these are"),
    works("key-file", FILE, "", "Its key (PEM)"),
    works("trusted-ca-file", FILE, "", "Clients must show a certificate of these authorities (PEM)"),
    works("client-cert-auth", Bool, "false", "Clients must show a certificate; needs --trusted-ca-file"),
    works("peer-cert-file", FILE, "", "Certificate among the members (PEM)"),
    works("peer-key-file", FILE, "", "Its key (PEM)"),
    works("peer-trusted-ca-file", FILE, "", "Members must show a certificate of these authorities (PEM)"),
    idle("peer-client-cert-auth", Bool, "false", "members with https URLs always show certificates to each other"),
    works("tls-min-version", Text("TLS1.2|TLS1.3"), "TLS1.2", "The oldest version that ports for clients speak"),
    works("tls-max-version", Text("TLS1.2|TLS1.3"), "", "The latest version; TLS1.2 is refused, since 1.3 is always spoken"),
    works("cipher-suites", Text("LIST"), "", "Cipher suites of TLS 1.2, by name [default: all that are safe]"),
    refused(
        "auto-tls",
        Bool,
        "false",
        "certificates are not made here; `kontiki up` makes its own, and so does any tool that etcd's operators use",
    ),
    refused(
        "peer-auto-tls",
        Bool,
        "false",
        "certificates are not made here; `kontiki up` makes its own, and so does any tool that etcd's operators use",
    ),
    idle("self-signed-cert-validity", Text("YEARS"), "1", "certificates are not made here"),
    refused("client-crl-file", FILE, "", "lists of revoked certificates are not read"),
    refused("peer-crl-file", FILE, "", "lists of revoked certificates are not read"),
    refused("client-cert-allowed-hostname", Text("NAME"), "", "whoever the authority knows is let in"),
    refused(
        "peer-cert-allowed-cn",
        Text("NAME"),
        "",
        "whoever the peers' authority knows is a member: give the peers an authority of their own",
    ),
    refused(
        "peer-cert-allowed-hostname",
        Text("NAME"),
        "",
        "whoever the peers' authority knows is a member: give the peers an authority of their own",
    ),
    refused("client-cert-file", FILE, "", "the client port's certificate is shown"),
    refused("client-key-file", FILE, "", "the client port's certificate is shown"),
    refused("peer-client-cert-file", FILE, "", "members show --peer-cert-file in both directions"),
    refused("peer-client-key-file", FILE, "", "members show --peer-cert-file in both directions"),
    idle("peer-skip-client-san-verification", Bool, "false", "a member that calls is not asked for its address"),
    // Users.
    works("auth-token", Text("SPEC"), "simple", "Tokens: simple, or jwt,sign-method=EdDSA,pub-key=FILE,priv-key=FILE,ttl=10m"),
    works("auth-token-ttl", NUMBER, "300", "Seconds after its last use when a simple token ends"),
    works("bcrypt-cost", NUMBER, "10", "The cost of hashing a password, from 4 to 31: each step doubles it"),
    // HTTP.
    works("cors", Text("ORIGINS"), "", "Origins whose pages a browser may let use the HTTP API; * for all"),
    works("host-whitelist", Text("NAMES"), "*", "Names under which a plaintext port may be addressed over HTTP; * for any"),
    works("metrics", Text("basic|extensive"), "basic", "`extensive` measures how long each call takes, by method"),
    idle("listen-client-http-urls", URLS, "", "one port serves gRPC and HTTP"),
    idle("enable-grpc-gateway", Bool, "true", "the JSON gateway is always there"),
    idle("enable-pprof", Bool, "false", "profiles are taken from outside, with perf"),
    idle("enable-v2", Bool, "false", "etcd's version 2 is not spoken"),
    refused("proxy", Text("off"), "off", "every member forwards what it cannot answer; there are no proxies"),
    idle("socket-reuse-port", Bool, "false", "a port belongs to one process"),
    idle("socket-reuse-address", Bool, "false", "addresses are always used again"),
    // Logs and traces.
    works("log-level", Text("LEVEL"), "info", "debug, info, warn or error; KONTIKI_LOG and --log say it in more detail"),
    idle("logger", Text("zap"), "zap", LOGS),
    idle("log-outputs", Text("LIST"), "default", LOGS),
    idle("log-format", Text("FORMAT"), "json", LOGS),
    idle("enable-log-rotation", Bool, "false", LOGS),
    idle("log-rotation-config-json", Text("JSON"), "", LOGS),
    idle("log-package-levels", Text("LIST"), "", LOGS),
    idle("debug", Bool, "false", "see --log-level"),
    idle("enable-distributed-tracing", Bool, "false", "see --otlp-endpoint"),
    idle("distributed-tracing-address", Text("ADDR"), "", "see --otlp-endpoint"),
    idle("distributed-tracing-service-name", Text("NAME"), "", "see --otlp-endpoint"),
    idle("distributed-tracing-instance-id", Text("ID"), "", "see --otlp-endpoint"),
    idle("distributed-tracing-sampling-rate", NUMBER, "0", "see --otlp-endpoint"),
    // Discovery.
    refused("discovery", Text("URL"), "", NO_DISCOVERY),
    refused("discovery-srv", Text("DOMAIN"), "", NO_DISCOVERY),
    refused("discovery-srv-name", Text("NAME"), "", NO_DISCOVERY),
    refused("discovery-token", Text("TOKEN"), "", NO_DISCOVERY),
    refused("discovery-endpoints", URLS, "", NO_DISCOVERY),
    idle("discovery-fallback", Text("exit|proxy"), "proxy", NO_DISCOVERY),
    idle("discovery-proxy", Text("URL"), "", NO_DISCOVERY),
];

/// The flag of a name, be it etcd's, one of this program, or etcd's with the `experimental-` that it once had.
pub fn flag(name: &str) -> Option<&'static Flag> {
    let plain = name.strip_prefix("experimental-").unwrap_or(name);
    FLAGS.iter().find(|flag| flag.name == plain || flag.also == Some(name))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// What kubeadm, Kubernetes' tests, etcd's own end-to-end tests and the usual charts pass.
    const MUST_BE_TAKEN: &[&str] = &[
        "name",
        "data-dir",
        "wal-dir",
        "listen-client-urls",
        "advertise-client-urls",
        "listen-client-http-urls",
        "listen-peer-urls",
        "initial-advertise-peer-urls",
        "initial-cluster",
        "initial-cluster-state",
        "initial-cluster-token",
        "listen-metrics-urls",
        "metrics",
        "cert-file",
        "key-file",
        "trusted-ca-file",
        "client-cert-auth",
        "peer-cert-file",
        "peer-key-file",
        "peer-trusted-ca-file",
        "peer-client-cert-auth",
        "auto-tls",
        "peer-auto-tls",
        "cipher-suites",
        "tls-min-version",
        "snapshot-count",
        "heartbeat-interval",
        "election-timeout",
        "quota-backend-bytes",
        "auto-compaction-mode",
        "auto-compaction-retention",
        "max-request-bytes",
        "max-txn-ops",
        "max-concurrent-streams",
        "grpc-keepalive-min-time",
        "grpc-keepalive-interval",
        "grpc-keepalive-timeout",
        "log-level",
        "logger",
        "log-outputs",
        "log-format",
        "strict-reconfig-check",
        "pre-vote",
        "auth-token",
        "bcrypt-cost",
        "auth-token-ttl",
        "force-new-cluster",
        "unsafe-no-fsync",
        "enable-pprof",
        "cors",
        "host-whitelist",
        "feature-gates",
        "watch-progress-notify-interval",
        "experimental-watch-progress-notify-interval",
        "experimental-initial-corrupt-check",
        "config-file",
    ];

    #[test]
    fn what_operators_script_against_is_there() {
        for name in MUST_BE_TAKEN {
            assert!(flag(name).is_some(), "--{name}");
        }
        assert_eq!(flag("experimental-watch-progress-notify-interval").map(|f| f.name), Some("watch-progress-notify-interval"));
        assert_eq!(flag("listen-client").map(|f| f.name), Some("listen-client-urls"));
        assert!(flag("no-such-flag").is_none());
    }

    #[test]
    fn every_row_says_what_it_does_once() {
        let mut names = BTreeSet::new();
        for row in FLAGS {
            assert!(names.insert(row.name) && row.also.is_none_or(|also| names.insert(also)), "{} twice", row.name);
            match row.effect {
                Effect::Works => assert!(!row.help.is_empty(), "{}", row.name),
                Effect::Idle(why) | Effect::Refused(why) => assert!(!why.is_empty() && row.help.is_empty(), "{}", row.name),
            }
            assert!(row.kind != Kind::Bool || ["true", "false"].contains(&row.default), "{}", row.name);
        }
    }
}
