//! A real etcd, if there is one on this machine.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const ETCD: &str = "/usr/bin/etcd";

/// A running etcd with an empty directory of its own. Killed when dropped.
pub(crate) struct Etcd {
    child: Child,
    _dir: tempfile::TempDir,
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

/// A port that nobody used a moment ago.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Etcd {
    /// Starts one and waits until it serves; `None`, and a word about it, if this machine has none.
    pub(crate) async fn start() -> Option<Self> {
        if !std::path::Path::new(ETCD).exists() {
            eprintln!("skipped: {ETCD} is not on this machine");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let endpoint = format!("127.0.0.1:{}", free_port());
        let (client, peer) = (format!("http://{endpoint}"), format!("http://127.0.0.1:{}", free_port()));
        let child = Command::new(ETCD)
            .arg("--data-dir")
            .arg(dir.path().join("data"))
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("default={peer}"), "--unsafe-no-fsync"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let etcd = Self { child, _dir: dir, endpoint };
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        while tonic::transport::Endpoint::try_from(client.clone()).unwrap().connect().await.is_err() {
            assert!(tokio::time::Instant::now() < deadline, "etcd did not start");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Some(etcd)
    }
}
