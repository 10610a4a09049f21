//! Flags as a [`StoreConfig`], and what is to be said about those that do nothing.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kontiki_base::env::Env;

use super::table::{Effect, Kind};
use super::{FlagError, Given, value};
use crate::auth::AuthOptions;
use crate::compactor::CompactionMode;
use crate::config::{Bounds, Connections, HttpGuard, Listen, PeerTls, Pem, StoreConfig, TlsOptions, TlsVersions};
use crate::raft::node::Timings;

/// Levels that etcd knows, and what they are here.
const LEVELS: &[(&str, &str)] = &[
    ("debug", "debug"),
    ("info", "info"),
    ("warn", "warn"),
    ("error", "error"),
    ("dpanic", "error"),
    ("panic", "error"),
    ("fatal", "error"),
];

/// etcd's bound.
const LONGEST_ELECTION: u64 = 50_000;

/// What came of flags.
pub struct Applied {
    /// A member.
    pub config: StoreConfig,
    /// For the log: flags that were given and do nothing, with the reason.
    pub notes: Vec<String>,
}

/// The log level that the flags ask for, in this program's words.
///
/// # Errors
/// [`FlagError::Value`].
pub fn level(given: &Given) -> Result<&'static str, FlagError> {
    let asked = given.get("log-level");
    let found = LEVELS.iter().find(|(etcds, _)| *etcds == asked).map(|(_, ours)| *ours);
    found.ok_or_else(|| given.wrong("log-level", "write debug, info, warn or error"))
}

/// Makes a member's configuration of flags. Touches nothing.
///
/// # Errors
/// [`FlagError`], with the flag and what would do.
pub fn apply(given: &Given, env: Arc<dyn Env>) -> Result<Applied, FlagError> {
    let notes = notes(given)?;
    level(given)?;
    let name = text(given, "name")?;
    let data = given.get("data-dir");
    let data_dir = if data.is_empty() { PathBuf::from(format!("{name}.etcd")) } else { PathBuf::from(data) };
    let listen_peers = listens(given, "listen-peer-urls")?;
    let Some(listen_peer) = listen_peers.first() else { return Err(given.wrong("listen-peer-urls", "name one address at least")) };
    let initial_cluster = cluster(given, name, &listen_peers)?;
    let join = match given.get("initial-cluster-state") {
        "new" => false,
        "existing" => true,
        _ => return Err(given.wrong("initial-cluster-state", "write new or existing")),
    };
    let config = StoreConfig {
        name: name.to_owned(),
        // A folder of its own, as `kontiki server` has it.
        data_dir: data_dir.join("store"),
        listen_clients: listens(given, "listen-client-urls")?,
        listen_metrics: listens(given, "listen-metrics-urls")?,
        advertise_client_urls: advertised(given)?,
        listen_peer: listen_peer.addr,
        listen_peer_too: listen_peers.iter().skip(1).map(|listen| listen.addr).collect(),
        cluster_token: text(given, "initial-cluster-token")?.to_owned(),
        join,
        client_tls: client_tls(given)?,
        peer_tls: peer_tls(given, &initial_cluster, &listen_peers)?,
        initial_cluster,
        connections: Connections {
            ping_every: positive_duration(given, "grpc-keepalive-interval")?,
            ping_timeout: positive_duration(given, "grpc-keepalive-timeout")?,
            streams: u32::try_from(number(given, "max-concurrent-streams")?).unwrap_or(u32::MAX),
        },
        bounds: Bounds {
            request_bytes: usize::try_from(number(given, "max-request-bytes")?).unwrap_or(usize::MAX),
            txn_ops: usize::try_from(number(given, "max-txn-ops")?).unwrap_or(usize::MAX),
        },
        guard: guard(given),
        extensive_metrics: match given.get("metrics") {
            "basic" => false,
            "extensive" => true,
            _ => return Err(given.wrong("metrics", "write basic or extensive")),
        },
        timings: timings(given)?,
        progress_every: duration(given, "watch-progress-notify-interval")?,
        quota_backend_bytes: given
            .get("quota-backend-bytes")
            .parse()
            .map_err(|_| given.wrong("quota-backend-bytes", "write a whole number"))?,
        auto_compaction_mode: match given.get("auto-compaction-mode") {
            "periodic" => CompactionMode::Periodic,
            "revision" => CompactionMode::Revision,
            _ => return Err(given.wrong("auto-compaction-mode", "write periodic or revision")),
        },
        auto_compaction_retention: given.get("auto-compaction-retention").to_owned(),
        heal_after: if given.get("auto-heal").is_empty() { None } else { Some(positive_duration(given, "auto-heal")?) },
        auth: AuthOptions {
            token: given.get("auth-token").to_owned(),
            token_ttl: Duration::from_secs(number(given, "auth-token-ttl")?),
            bcrypt_cost: u32::try_from(number(given, "bcrypt-cost")?).unwrap_or(u32::MAX),
        },
        ..StoreConfig::single(name, data_dir, env)
    };
    config.check().map_err(|error| FlagError::Contradiction(error.to_string()))?;
    Ok(Applied { config, notes })
}

/// Looks at the flags that have no field: says of each that was given why it does nothing, and refuses what nobody may believe to be there.
fn notes(given: &Given) -> Result<Vec<String>, FlagError> {
    let mut notes = Vec::new();
    for (flag, got, from) in given.all() {
        if flag.kind == Kind::Bool {
            value::truth(got).map_err(|why| given.wrong(flag.name, why))?;
        }
        let asks = got != flag.default && (flag.kind != Kind::Bool || value::truth(got) != value::truth(flag.default));
        match flag.effect {
            Effect::Idle(why) if asks => notes.push(format!("--{}={got} does nothing here: {why}", flag.name)),
            Effect::Refused(why) if asks => {
                return Err(FlagError::NotBuilt { name: flag.name.into(), value: got.into(), from: from.clone(), why });
            }
            Effect::Works | Effect::Idle(_) | Effect::Refused(_) => {}
        }
    }
    if !given.stray_variables.is_empty() {
        notes.push(format!("these variables name no flag and do nothing: {}", given.stray_variables.join(", ")));
    }
    Ok(notes)
}

fn text<'a>(given: &'a Given, name: &'static str) -> Result<&'a str, FlagError> {
    let got = given.get(name);
    if got.is_empty() { Err(given.wrong(name, "it must not be empty")) } else { Ok(got) }
}

fn number(given: &Given, name: &'static str) -> Result<u64, FlagError> {
    given.get(name).parse().map_err(|_| given.wrong(name, "write a whole number"))
}

fn truth(given: &Given, name: &'static str) -> Result<bool, FlagError> {
    value::truth(given.get(name)).map_err(|why| given.wrong(name, why))
}

fn duration(given: &Given, name: &'static str) -> Result<Duration, FlagError> {
    value::duration(given.get(name)).map_err(|why| given.wrong(name, why))
}

fn positive_duration(given: &Given, name: &'static str) -> Result<Duration, FlagError> {
    let got = duration(given, name)?;
    if got.is_zero() { Err(given.wrong(name, "it must be longer than nothing")) } else { Ok(got) }
}

/// Addresses to listen on. `host:port` alone, which this program's own flags take, has no TLS.
fn listens(given: &Given, name: &'static str) -> Result<Vec<Listen>, FlagError> {
    let mut seen = BTreeSet::new();
    let mut all = Vec::new();
    for item in value::list(given.get(name)) {
        let url = if item.contains("://") { item.to_owned() } else { format!("http://{item}") };
        let listen: Listen = url.parse().map_err(|e: crate::config::ListenError| given.wrong(name, e.to_string()))?;
        if listen.addr.port() != 0 && !seen.insert(listen.addr) {
            return Err(given.wrong(name, format!("{} is named twice", listen.addr)));
        }
        all.push(listen);
    }
    Ok(all)
}

fn advertised(given: &Given) -> Result<Vec<String>, FlagError> {
    let urls = value::list(given.get("advertise-client-urls"));
    if let Some(bad) = urls.iter().find(|url| !url.starts_with("http://") && !url.starts_with("https://")) {
        return Err(given.wrong("advertise-client-urls", format!("{bad:?} is not an http or https URL")));
    }
    Ok(urls.into_iter().map(|url| url.trim_end_matches('/').to_owned()).collect())
}

/// All members; this one's row must be what it says of itself.
fn cluster(given: &Given, name: &str, listen_peers: &[Listen]) -> Result<Vec<(String, Vec<String>)>, FlagError> {
    let own: Vec<String> =
        value::list(given.get("initial-advertise-peer-urls")).into_iter().map(|url| url.trim_end_matches('/').into()).collect();
    let members = value::members(given.get("initial-cluster")).map_err(|why| given.wrong("initial-cluster", why))?;
    if members.is_empty() {
        let own = if own.is_empty() {
            listen_peers.iter().map(|listen| listen.to_string().replace("127.0.0.1", "localhost")).collect()
        } else {
            own
        };
        return Ok(vec![(name.to_owned(), own)]);
    }
    let Some((_, urls)) = members.iter().find(|(member, _)| member == name) else {
        return Err(given.wrong("initial-cluster", format!("this member, --name={name}, is not in it")));
    };
    let set = |urls: &[String]| urls.iter().cloned().collect::<BTreeSet<_>>();
    if !own.is_empty() && set(&own) != set(urls) {
        let why = format!("--initial-cluster has {} for this member: the two must be the same", urls.join(","));
        return Err(given.wrong("initial-advertise-peer-urls", why));
    }
    Ok(members)
}

fn file(given: &Given, name: &'static str) -> Option<Pem> {
    let path = given.get(name);
    (!path.is_empty()).then(|| Pem::File(PathBuf::from(path)))
}

fn client_tls(given: &Given) -> Result<Option<TlsOptions>, FlagError> {
    let authorities = file(given, "trusted-ca-file");
    if truth(given, "client-cert-auth")? && authorities.is_none() {
        return Err(given.wrong("client-cert-auth", "it needs --trusted-ca-file, the authorities whose certificates are accepted"));
    }
    let versions = match given.get("tls-min-version") {
        "TLS1.2" | "" => TlsVersions::Tls12AndUp,
        "TLS1.3" => TlsVersions::Tls13Only,
        _ => return Err(given.wrong("tls-min-version", "write TLS1.2 or TLS1.3: what is older is not safe")),
    };
    if !matches!(given.get("tls-max-version"), "" | "TLS1.3") {
        return Err(given.wrong("tls-max-version", "1.3 is always spoken"));
    }
    let ciphers = value::list(given.get("cipher-suites")).into_iter().map(str::to_owned).collect();
    match (file(given, "cert-file"), file(given, "key-file")) {
        (None, None) if authorities.is_some() => Err(given.wrong("trusted-ca-file", "it needs --cert-file and --key-file")),
        (None, None) => Ok(None),
        (Some(cert), Some(key)) => Ok(Some(TlsOptions { client_ca: authorities, versions, ciphers, ..TlsOptions::new(cert, key) })),
        (Some(_), None) => Err(given.wrong("cert-file", "it needs --key-file")),
        (None, Some(_)) => Err(given.wrong("key-file", "it needs --cert-file")),
    }
}

/// Certificates among the members, if any of their URLs asks for them.
fn peer_tls(given: &Given, cluster: &[(String, Vec<String>)], listen: &[Listen]) -> Result<Option<PeerTls>, FlagError> {
    let urls = cluster.iter().flat_map(|(_, urls)| urls);
    let secure = listen.iter().any(|listen| listen.tls) || urls.clone().any(|url| url.starts_with("https://"));
    let plain = listen.iter().any(|listen| {
        !listen.tls && given.has("listen-peer-urls") && listen.addr.port() != 0 && !given.get("listen-peer-urls").contains("://")
    });
    if !secure {
        return Ok(None);
    }
    if !plain && (listen.iter().any(|listen| !listen.tls) || urls.clone().any(|url| url.starts_with("http://"))) {
        let why = "some peer URLs are https and some are http: members speak TLS all or not at all";
        return Err(FlagError::Contradiction(format!(
            "--listen-peer-urls={}, --initial-cluster={}: {why}",
            given.get("listen-peer-urls"),
            given.get("initial-cluster")
        )));
    }
    match (file(given, "peer-trusted-ca-file"), file(given, "peer-cert-file"), file(given, "peer-key-file")) {
        (Some(ca), Some(cert), Some(key)) => Ok(Some(PeerTls { ca, cert, key })),
        _ => Err(FlagError::Contradiction("https peer URLs need --peer-trusted-ca-file, --peer-cert-file and --peer-key-file".into())),
    }
}

fn guard(given: &Given) -> HttpGuard {
    let items = |name| value::list(given.get(name)).into_iter().map(str::to_owned).collect::<Vec<String>>();
    let hosts = items("host-whitelist");
    HttpGuard { cors: items("cors"), hosts: if hosts.iter().any(|host| host == "*") { Vec::new() } else { hosts } }
}

fn timings(given: &Given) -> Result<Timings, FlagError> {
    let (heartbeat, election) = (number(given, "heartbeat-interval")?, number(given, "election-timeout")?);
    if heartbeat == 0 {
        return Err(given.wrong("heartbeat-interval", "it must be longer than nothing"));
    }
    if election < heartbeat * 5 {
        return Err(given.wrong("election-timeout", format!("it must be five heartbeats at least, and a heartbeat is {heartbeat} ms")));
    }
    if election > LONGEST_ELECTION {
        return Err(given.wrong("election-timeout", format!("it must be {LONGEST_ELECTION} at most")));
    }
    let longest = Duration::from_millis(election);
    let patience = Duration::from_secs(5) + longest * 2;
    Ok(Timings {
        heartbeat: Duration::from_millis(heartbeat),
        election: (longest * 7 / 10, longest),
        request: patience,
        ..Timings::default()
    })
}

#[cfg(test)]
mod tests {
    use kontiki_proto::env::SystemEnv;

    use super::*;

    fn given(line: &str) -> Given {
        let pairs = line.split_whitespace().map(|flag| flag.split_once('=').unwrap_or((flag, "true")));
        Given::collect(pairs.map(|(n, v)| (n.to_owned(), v.to_owned())), [], |_| Err("no".into())).unwrap()
    }

    fn config(line: &str) -> StoreConfig {
        apply(&given(line), Arc::new(SystemEnv::new())).map_err(|e| e.to_string()).unwrap().config
    }

    fn refused(line: &str) -> String {
        apply(&given(line), Arc::new(SystemEnv::new())).err().expect(line).to_string()
    }

    #[test]
    fn nothing_given_is_etcds_default() {
        let config = config("");
        assert_eq!((config.name.as_str(), config.data_dir), ("default", PathBuf::from("default.etcd/store")));
        assert_eq!(config.listen_clients, ["http://127.0.0.1:2379".parse().unwrap()]);
        assert_eq!(config.initial_cluster, [("default".to_owned(), vec!["http://localhost:2380".to_owned()])]);
        assert_eq!(config.timings, Timings::default());
        assert_eq!((config.bounds, config.connections), (Bounds::default(), Connections::default()));
        assert_eq!(config.progress_every, Duration::from_secs(600));
        assert!(!config.join && config.client_tls.is_none() && config.peer_tls.is_none() && config.guard == HttpGuard::default());
    }

    #[test]
    fn what_kubeadm_passes_is_understood() {
        let config = config(
            "name=m1 listen-client-urls=https://127.0.0.1:2379,https://10.0.0.1:2379 advertise-client-urls=https://10.0.0.1:2379 \
             listen-peer-urls=https://10.0.0.1:2380 initial-advertise-peer-urls=https://10.0.0.1:2380 data-dir=/var/lib/etcd cert-file=/c key-file=/k \
             trusted-ca-file=/ca client-cert-auth=true peer-cert-file=/pc peer-key-file=/pk peer-trusted-ca-file=/pca peer-client-cert-auth=true \
             snapshot-count=10000 listen-metrics-urls=http://127.0.0.1:2381 feature-gates=InitialCorruptCheck=true \
             watch-progress-notify-interval=5s initial-cluster=m0=https://10.0.0.2:2380,m1=https://10.0.0.1:2380 initial-cluster-state=existing",
        );
        assert_eq!((config.listen_clients.len(), config.listen_metrics.len(), config.initial_cluster.len()), (2, 1, 2));
        assert!(config.join && config.client_tls.unwrap().client_ca.is_some());
        assert_eq!(config.peer_tls.unwrap().cert, Pem::File("/pc".into()));
        assert_eq!(config.progress_every, Duration::from_secs(5));
    }

    #[test]
    fn every_contradiction_says_what_would_do() {
        for (line, says) in [
            ("client-cert-auth", "--trusted-ca-file"),
            ("cert-file=/c", "--key-file"),
            ("listen-client-urls=https://127.0.0.1:1", "needs a certificate"),
            ("listen-client-urls=127.0.0.1:1,http://127.0.0.1:1", "named twice"),
            ("listen-client-urls=http://example.com:1", "IP address"),
            ("advertise-client-urls=example.com:1", "not an http"),
            ("name=x initial-cluster=a=http://h:1", "--name=x, is not in it"),
            ("name=a initial-cluster=a=http://h:1 initial-advertise-peer-urls=http://h:2", "must be the same"),
            ("initial-cluster-state=old", "new or existing"),
            ("listen-peer-urls=https://127.0.0.1:1", "--peer-trusted-ca-file"),
            ("name=a initial-cluster=a=https://h:1,b=http://h:2", "all or not at all"),
            ("election-timeout=300", "five heartbeats"),
            ("election-timeout=99999", "50000"),
            ("heartbeat-interval=fast", "whole number"),
            ("max-request-bytes=999999999999", "between 1 byte"),
            ("watch-progress-notify-interval=1ms", "100 ms"),
            ("metrics=all", "basic or extensive"),
            ("log-level=loud", "debug, info"),
            ("client-cert-auth=perhaps", "true or false"),
            ("tls-min-version=TLS1.0", "not safe"),
            ("client-crl-file=/crl", "not read"),
            ("auto-tls", "certificates are not made here"),
            ("discovery=http://x", "no discovery"),
            ("unsafe-no-fsync", "synced before"),
        ] {
            let said = refused(line);
            assert!(said.contains(says), "{line}: {said}");
        }
    }

    #[test]
    fn flags_that_do_nothing_are_said_to() {
        let notes = |line| apply(&given(line), Arc::new(SystemEnv::new())).map_err(|e| e.to_string()).unwrap().notes;
        assert!(notes("snapshot-count=10000 logger=zap pre-vote=true auto-tls=false proxy=off").is_empty(), "the defaults ask for nothing");
        let said = notes("snapshot-count=5 enable-pprof");
        assert_eq!(said.len(), 2);
        assert!(said[0].starts_with("--snapshot-count=5 does nothing here: "), "{said:?}");
    }

    /// A row whose value goes nowhere would be a lie in `--help`.
    #[test]
    fn every_flag_that_works_changes_something() {
        let other: &[(&str, &str)] = &[
            ("name", "n"),
            ("data-dir", "/d"),
            ("listen-client-urls", "http://127.0.0.1:1"),
            ("advertise-client-urls", "http://a:1"),
            ("listen-peer-urls", "http://127.0.0.1:1"),
            ("initial-advertise-peer-urls", "http://a:1"),
            ("initial-cluster", "default=http://a:1"),
            ("initial-cluster-state", "existing"),
            ("initial-cluster-token", "t"),
            ("listen-metrics-urls", "http://127.0.0.1:1"),
            ("heartbeat-interval", "50"),
            ("election-timeout", "2000"),
            ("max-request-bytes", "1"),
            ("max-txn-ops", "1"),
            ("max-concurrent-streams", "1"),
            ("watch-progress-notify-interval", "1s"),
            ("grpc-keepalive-interval", "1s"),
            ("grpc-keepalive-timeout", "1s"),
            ("cors", "*"),
            ("host-whitelist", "a"),
            ("metrics", "extensive"),
            ("auto-heal", "1m"),
            ("quota-backend-bytes", "-1"),
            ("auto-compaction-mode", "revision"),
            ("auto-compaction-retention", "1"),
            ("auth-token", "jwt,sign-method=HS256,priv-key=secret"),
            ("auth-token-ttl", "60"),
            ("bcrypt-cost", "12"),
        ];
        let shown = |line: &str| {
            let c = config(line);
            let peers = (&c.listen_peer, &c.listen_peer_too, &c.initial_cluster, &c.cluster_token, c.join);
            let clients = (&c.listen_clients, &c.listen_metrics, &c.advertise_client_urls, &c.connections, &c.bounds, &c.guard);
            let space = (c.quota_backend_bytes, c.auto_compaction_mode, &c.auto_compaction_retention, &c.auth);
            format!("{:?}", (&c.name, &c.data_dir, peers, clients, &c.timings, c.progress_every, c.extensive_metrics, c.heal_after, space))
        };
        for (name, value) in other {
            assert_ne!(shown(&format!("{name}={value}")), shown(""), "--{name}");
        }
        // These show in the tests above, or before there is a configuration.
        let elsewhere = [
            "config-file",
            "log-level",
            "cert-file",
            "key-file",
            "trusted-ca-file",
            "client-cert-auth",
            "peer-cert-file",
            "peer-key-file",
            "peer-trusted-ca-file",
            "tls-min-version",
            "tls-max-version",
            "cipher-suites",
        ];
        for row in super::super::FLAGS.iter().filter(|row| row.effect == Effect::Works) {
            assert!(elsewhere.contains(&row.name) || other.iter().any(|(name, _)| *name == row.name), "--{} is tried nowhere", row.name);
        }
    }
}
