//! A real etcd, if there is one on this machine.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

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
        let etcd = Self { child, _dir: keep, endpoint };
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        while tonic::transport::Endpoint::try_from(client.clone()).unwrap().connect().await.is_err() {
            assert!(tokio::time::Instant::now() < deadline, "etcd did not start");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        etcd
    }
}
