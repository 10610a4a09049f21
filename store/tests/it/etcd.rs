//! A real etcd, if there is one on this machine.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use kontiki_proto::etcd::etcdserverpb as pb;
use pb::cluster_client::ClusterClient;

const ETCD: &str = "/usr/bin/etcd";

/// A running etcd with an empty directory of its own. Killed when dropped.
pub(crate) struct Etcd {
    child: Child,
    _dir: Option<tempfile::TempDir>,
    /// Where clients reach it: `host:port`.
    pub(crate) endpoint: String,
}

impl Drop for Etcd {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to kill.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether this machine has one; says so if not.
pub(crate) fn present() -> bool {
    let there = Path::new(ETCD).exists();
    if !there {
        eprintln!("skipped: {ETCD} is not on this machine");
    }
    there
}

/// A port that nobody used a moment ago.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Etcd {
    /// Starts one and waits until it serves; `None`, and a word about it, if this machine has none.
    pub(crate) async fn start() -> Option<Self> {
        if !present() {
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let peer = format!("http://127.0.0.1:{}", free_port());
        let data = dir.path().join("data");
        Some(Self::start_on(&data, &peer, Some(dir)).await)
    }

    /// Starts one on a directory in which there may be something: a cluster of one with this peer URL.
    pub(crate) async fn start_on(data: &Path, peer: &str, keep: Option<tempfile::TempDir>) -> Self {
        let endpoint = format!("127.0.0.1:{}", free_port());
        let client = format!("http://{endpoint}");
        let child = Command::new(ETCD)
            .arg("--data-dir")
            .arg(data)
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer])
            .args(["--initial-cluster", &format!("default={peer}"), "--unsafe-no-fsync"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut etcd = Self { child, _dir: keep, endpoint };
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        while tonic::transport::Endpoint::try_from(client.clone()).unwrap().connect().await.is_err() {
            assert!(tokio::time::Instant::now() < deadline, "etcd did not start");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        if let Err(why) = etcd.is_ours(peer, data).await {
            panic!("this is not the etcd that was started: {why}");
        }
        etcd
    }

    /// Whether it is the etcd that we started that answers, before anything is written to it: the port may have been somebody else's.
    async fn is_ours(&mut self, peer: &str, data: &Path) -> Result<(), String> {
        if let Ok(Some(status)) = self.child.try_wait() {
            return Err(format!("it has ended: {status}"));
        }
        if !data.join("member").is_dir() {
            return Err(format!("it has made nothing in {}", data.display()));
        }
        let channel = tonic::transport::Endpoint::try_from(format!("http://{}", self.endpoint)).map_err(|e| e.to_string())?;
        let channel = channel.connect().await.map_err(|e| e.to_string())?;
        let list = ClusterClient::new(channel).member_list(pb::MemberListRequest::default()).await.map_err(|e| e.to_string())?;
        let urls: Vec<String> = list.into_inner().members.into_iter().flat_map(|member| member.peer_ur_ls).collect();
        if urls == [peer] { Ok(()) } else { Err(format!("its members are at {urls:?}, not at {peer}")) }
    }
}

#[tokio::test]
async fn an_oracle_is_looked_at_before_it_is_written_to() {
    let Some(mut etcd) = Etcd::start().await else { return };
    let dir = tempfile::tempdir().unwrap();
    let folder = etcd.is_ours("http://127.0.0.1:1", dir.path()).await.unwrap_err();
    assert!(folder.contains("has made nothing"), "{folder}");
    std::fs::create_dir(dir.path().join("member")).unwrap();
    let url = etcd.is_ours("http://127.0.0.1:1", dir.path()).await.unwrap_err();
    assert!(url.contains("not at http://127.0.0.1:1"), "{url}");
    etcd.child.kill().unwrap();
    etcd.child.wait().unwrap();
    assert!(etcd.is_ours("", dir.path()).await.unwrap_err().contains("it has ended"));
}
