//! Certificates that change under running members: who is connected stays, who comes sees the new ones. Among members, too.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use kontiki_base::key::KeyRange;
use kontiki_base::kv::{Kv, KvError, Op, PutReq, RangeReq, Txn};
use kontiki_proto::client::{ClientTls, EtcdKv};
use kontiki_proto::env::SystemEnv;
use kontiki_store::config::{PeerTls, Pem, StoreConfig, TlsOptions};
use kontiki_store::server::{Store, StoreHandle};

use super::cluster::start_three_with;
use super::tls::Authority;

/// Certificate, key and authority as files, which are replaced as tools do it: by renaming.
struct Files {
    dir: tempfile::TempDir,
}

impl Files {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn put(&self, name: &str, pem: &[u8]) {
        let unfinished = self.path("unfinished");
        std::fs::write(&unfinished, pem).unwrap();
        std::fs::rename(unfinished, self.path(name)).unwrap();
    }

    fn issue(&self, name: &str, authority: &Authority) {
        let (cert, key) = authority.issue();
        self.put(&format!("{name}.crt"), &cert);
        self.put(&format!("{name}.key"), &key);
    }

    fn pem(&self, name: &str) -> Pem {
        Pem::File(self.path(name))
    }

    fn peer_tls(&self) -> PeerTls {
        PeerTls { ca: self.pem("ca.crt"), cert: self.pem("peer.crt"), key: self.pem("peer.key") }
    }
}

fn client(endpoint: &str, ca: &[u8], identity: (Vec<u8>, Vec<u8>), timeout: Duration) -> EtcdKv {
    let tls = ClientTls { ca_pem: ca.to_vec(), identity: Some(identity) };
    EtcdKv::new(&[endpoint.to_owned()], Some(&tls), Arc::new(SystemEnv::new()), timeout).unwrap()
}

async fn read(kv: &dyn Kv) -> Result<i64, KvError> {
    Ok(kv.range(RangeReq::new(KeyRange::single("k"))).await?.count)
}

const PATIENT: Duration = Duration::from_secs(30);
const IMPATIENT: Duration = Duration::from_secs(2);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_see_new_certificates_and_old_connections_live_on() {
    let (before, after) = (Authority::new(), Authority::new());
    let (dir, files) = (tempfile::tempdir().unwrap(), Files::new());
    files.put("ca.crt", &before.pem);
    files.issue("server", &before);
    let mut config = StoreConfig::single("solo", dir.path().join("data"), Arc::new(SystemEnv::new()));
    config.client_tls = Some(TlsOptions::new(files.pem("server.crt"), files.pem("server.key")).for_clients_of(files.pem("ca.crt")));
    config.listen_clients[0].tls = true;
    let store = Store::start(config).await.unwrap();
    store.status().wait_for(|raft| raft.leader.is_some()).await.unwrap();
    let endpoint = format!("https://{}", store.client_addr().unwrap());

    let old = client(&endpoint, &before.pem, before.issue(), PATIENT);
    assert_eq!(read(&old).await.unwrap(), 0);
    files.put("ca.crt", &after.pem);
    files.issue("server", &after);
    let new = client(&endpoint, &after.pem, after.issue(), PATIENT);
    assert_eq!(read(&new).await.unwrap(), 0, "the new authority is trusted, and has signed what is shown");
    assert_eq!(read(&old).await.unwrap(), 0, "who was connected stays");
    let late = client(&endpoint, &before.pem, before.issue(), IMPATIENT);
    assert!(read(&late).await.is_err(), "the old authority's time is over");

    files.put("server.crt", b"nonsense");
    assert!(store.reload_certificates().is_err(), "whoever asks is told");
    let still = client(&endpoint, &after.pem, after.issue(), PATIENT);
    assert_eq!(read(&still).await.unwrap(), 0, "what cannot be used changes nothing");
    store.shutdown().await;
}

/// Three members under mutual TLS.
async fn three(dir: &Path, files: &Files) -> Vec<StoreHandle> {
    start_three_with(dir, |config| {
        for url in config.initial_cluster.iter_mut().flat_map(|(_, urls)| urls) {
            *url = url.replacen("http:", "https:", 1);
        }
        config.peer_tls = Some(files.peer_tls());
    })
    .await
}

async fn put(stores: &[StoreHandle]) {
    let written = async {
        loop {
            let put = PutReq { key: "k".into(), value: "v".into(), ..PutReq::default() };
            match stores[0].kv().txn(Txn { success: vec![Op::Put(put)], ..Txn::default() }, None).await {
                Ok(_) => return,
                Err(error) => assert!(matches!(error, KvError::NoLeader | KvError::LeaderChanged | KvError::Timeout), "{error}"),
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(60), written).await.expect("a quorum");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_go_over_to_a_new_authority() {
    let (before, after) = (Authority::new(), Authority::new());
    let (dir, files) = (tempfile::tempdir().unwrap(), Files::new());
    files.put("ca.crt", &before.pem);
    files.issue("peer", &before);
    let mut stores = three(dir.path(), &files).await;
    put(&stores).await;
    // First both authorities are trusted, then the new one's certificates come, then the old one goes: as operators do it.
    files.put("ca.crt", &[before.pem.clone(), after.pem.clone()].concat());
    files.issue("peer", &after);
    files.put("ca.crt", &after.pem);
    put(&stores).await;
    // A member that comes back has no connection of before: it is let in, and lets in, with the new certificates alone.
    let gone = stores.pop().unwrap();
    let (peer, cluster) = {
        let members = gone.status().borrow().members.clone();
        let own = members.iter().find(|m| m.name == "m2").unwrap().peer_urls[0].trim_start_matches("https://").to_owned();
        (own.parse::<SocketAddr>().unwrap(), members.into_iter().map(|m| (m.name, m.peer_urls)).collect::<Vec<_>>())
    };
    gone.shutdown().await;
    // In one process, the others' streams may hold the files a moment longer than a process would.
    let starting = async {
        loop {
            let mut config = StoreConfig::single("m2", dir.path().join("m2"), Arc::new(SystemEnv::new()));
            (config.listen_peer, config.initial_cluster, config.peer_tls) = (peer, cluster.clone(), Some(files.peer_tls()));
            match Store::start(config).await {
                Ok(store) => return store,
                Err(error) => assert!(error.to_string().contains("LOCK"), "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let back = tokio::time::timeout(Duration::from_secs(60), starting).await.expect("its files are free");
    put(&stores).await;
    let mut status = back.status();
    let knows = status.wait_for(|raft| raft.leader.is_some());
    tokio::time::timeout(Duration::from_secs(60), knows).await.expect("it hears of a leader").unwrap();
    assert_eq!(read(&*back.kv()).await.unwrap(), 1);
    stores.push(back);
    for store in stores {
        store.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcdctl_comes_with_a_certificate() {
    const ETCDCTL: &str = "/usr/bin/etcdctl";
    if !Path::new(ETCDCTL).exists() {
        eprintln!("skipped: {ETCDCTL} is not on this machine");
        return;
    }
    let (ours, strangers) = (Authority::new(), Authority::new());
    let (dir, files) = (tempfile::tempdir().unwrap(), Files::new());
    files.put("ca.crt", &ours.pem);
    for name in ["server", "client"] {
        files.issue(name, &ours);
    }
    files.issue("stranger", &strangers);
    let mut config = StoreConfig::single("solo", dir.path().join("data"), Arc::new(SystemEnv::new()));
    config.client_tls = Some(TlsOptions::new(files.pem("server.crt"), files.pem("server.key")).for_clients_of(files.pem("ca.crt")));
    config.listen_clients[0].tls = true;
    let store = Store::start(config).await.unwrap();
    store.status().wait_for(|raft| raft.leader.is_some()).await.unwrap();
    let endpoint = format!("https://{}", store.client_addr().unwrap());
    let ctl = move |who: &str, args: &[&str]| {
        let file = |name: &str| files.path(name).into_os_string();
        let mut command = Command::new(ETCDCTL);
        command.env("ETCDCTL_API", "3").args(["--endpoints", &endpoint, "--command-timeout=2s", "--dial-timeout=2s"]);
        command
            .arg("--cacert")
            .arg(file("ca.crt"))
            .arg("--cert")
            .arg(file(&format!("{who}.crt")))
            .arg("--key")
            .arg(file(&format!("{who}.key")));
        command.args(args).output().unwrap()
    };
    tokio::task::spawn_blocking(move || {
        let put = ctl("client", &["put", "k", "v"]);
        assert_eq!(String::from_utf8_lossy(&put.stdout), "OK\n", "{}", String::from_utf8_lossy(&put.stderr));
        let health = ctl("client", &["endpoint", "health"]);
        assert!(String::from_utf8_lossy(&[health.stdout, health.stderr].concat()).contains("is healthy"));
        assert!(!ctl("stranger", &["get", "k"]).status.success(), "a certificate of another authority");
    })
    .await
    .unwrap();
    store.shutdown().await;
}
