//! A cluster of real processes: `kontiki up` itself, in a folder of its own, with simulated nodes.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;
use tokio::process::Command;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use crate::history::Change;
use crate::load::kv;

/// What the harness reads of the state file that `up` writes.
#[derive(Debug, Deserialize)]
struct State {
    servers: Vec<Server>,
}

/// A server, as the state file tells of it.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Server {
    /// Its name.
    pub(super) name: String,
    /// Its process; 0 while it does not run.
    pub(super) pid: i32,
    /// Its API port.
    pub(super) api: u16,
    /// Its etcd port.
    pub(super) client: u16,
}

/// A running cluster. Ends when this process ends, however it ends: `up` watches it.
pub(super) struct Cluster {
    program: PathBuf,
    dir: PathBuf,
    keep: bool,
}

impl Cluster {
    /// Starts it, and waits until it serves.
    pub(super) async fn start(keep: bool) -> Result<Self> {
        let program = std::env::current_exe().context("cannot find this program")?;
        let dir = std::env::temp_dir().join(format!("kontiki-chaos-{}", std::process::id()));
        let cluster = Self { program, dir, keep };
        let me = std::process::id().to_string();
        let started = cluster.kontiki(&["up", "--runtime", "hollow", "--detach", "--while-process", &me]).await;
        if let Err(e) = started {
            let _ = cluster.end().await;
            return Err(e.context("the cluster did not start"));
        }
        Ok(cluster)
    }

    async fn kontiki(&self, args: &[&str]) -> Result<()> {
        let mut command = Command::new(&self.program);
        command.args(args).arg("--data-dir").arg(&self.dir).stdin(Stdio::null()).stdout(Stdio::null());
        let status = command.status().await.with_context(|| format!("cannot run {}", self.program.display()))?;
        if !status.success() {
            bail!("`kontiki {}` failed ({status}); logs: {}", args.join(" "), self.dir.join("log").display());
        }
        Ok(())
    }

    /// Ends it; nothing is left, unless it was to be kept.
    pub(super) async fn end(&self) -> Result<()> {
        if self.keep {
            self.kontiki(&["down"]).await?;
            eprintln!("the cluster's folder is kept: {}", self.dir.display());
            return Ok(());
        }
        self.kontiki(&["down", "--purge"]).await
    }

    /// The servers as they run now.
    pub(super) fn servers(&self) -> Result<Vec<Server>> {
        let path = self.dir.join("up.json");
        let text = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(serde_json::from_slice::<State>(&text).with_context(|| format!("{} is damaged", path.display()))?.servers)
    }

    /// The members' etcd URLs.
    pub(super) fn client_urls(&self) -> Vec<String> {
        self.servers().unwrap_or_default().iter().map(|s| format!("http://127.0.0.1:{}", s.client)).collect()
    }

    /// A channel to all API ports, as the administrator: a dead server is passed over.
    pub(super) async fn api(&self) -> Result<Channel> {
        let pem = |name: &str| read(&self.dir.join("pki").join(name));
        let tls = ClientTlsConfig::new()
            .domain_name("localhost")
            .ca_certificate(Certificate::from_pem(pem("ca.crt")?))
            .identity(Identity::from_pem(pem("admin.crt")?, pem("admin.key")?));
        let endpoints = self.servers()?.into_iter().map(|server| {
            let endpoint = Endpoint::from_shared(format!("https://127.0.0.1:{}", server.api))?;
            let endpoint = endpoint.connect_timeout(Duration::from_secs(1)).timeout(Duration::from_secs(5));
            endpoint.tls_config(tls.clone())
        });
        Ok(Channel::balance_list(endpoints.collect::<Result<Vec<_>, _>>()?.into_iter()))
    }

    /// The store's own history of the run's keys: from the first member that tells it.
    pub(super) async fn changes(&self) -> Result<Vec<Change>> {
        let mut last = anyhow::anyhow!("there is no member");
        for url in self.client_urls() {
            match kv::changes(&url).await {
                Ok(changes) => return Ok(changes),
                Err(e) => last = e.context(url),
            }
        }
        Err(last)
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}
