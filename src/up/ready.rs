//! Waits until a cluster serves, and says how far it is.

use std::io::IsTerminal as _;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use kontiki_proto::api::resources_client::ResourcesClient;
use kontiki_proto::api::{ListRequest, Resource};
use tokio::time::{Instant, sleep, timeout};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use super::kubeconfig::CONTEXT;
use super::layout::{Layout, State};

/// Between two looks.
const POLL: Duration = Duration::from_millis(100);

/// One question may take this long.
const ASK: Duration = Duration::from_secs(2);

/// A cluster that serves.
pub(crate) struct Report {
    took: Duration,
}

impl Report {
    /// Tells people how to use it.
    pub(crate) fn print(&self, layout: &Layout, state: &State) {
        let took = self.took.as_secs_f64();
        println!("ready in {took:.1} s: {} servers, {} {} nodes", state.servers.len(), state.nodes.len(), state.runtime);
        println!("  Kubernetes  https://{} (forwarded to any living server)", state.forward);
        for server in &state.servers {
            println!(
                "  {:<11} https://127.0.0.1:{}  etcd http://127.0.0.1:{}  context {CONTEXT}-{}",
                server.name, server.api, server.client, server.name
            );
        }
        println!("  try         kubectl --kubeconfig {} get nodes -o wide", layout.kubeconfig().display());
        println!("  end it      kontiki down --data-dir {}", layout.dir.display());
    }
}

/// What has been seen so far.
#[derive(Default)]
struct Seen {
    serving: usize,
    nodes: usize,
    problem: String,
}

/// Completes when every server answers a linearizable read and every node is Ready.
pub(crate) async fn wait(layout: &Layout, state: &State, limit: Duration) -> Result<Report> {
    let started = Instant::now();
    let progress = progress();
    let mut last_line = String::new();
    loop {
        let seen = look(layout, state).await?;
        let line = format!("servers serving {}/{}, nodes ready {}/{}", seen.serving, state.servers.len(), seen.nodes, state.nodes.len());
        progress.set_message(line.clone());
        if progress.is_hidden() && line != last_line {
            eprintln!("{line}");
            last_line = line;
        }
        if seen.serving == state.servers.len() && seen.nodes >= state.nodes.len() {
            progress.finish_and_clear();
            return Ok(Report { took: started.elapsed() });
        }
        if started.elapsed() > limit {
            progress.finish_and_clear();
            bail!(
                "not ready after {} s: {}/{} servers serving, {}/{} nodes ready. {} Logs: {}",
                limit.as_secs(),
                seen.serving,
                state.servers.len(),
                seen.nodes,
                state.nodes.len(),
                seen.problem,
                layout.dir.join("log").display()
            );
        }
        sleep(POLL).await;
    }
}

fn progress() -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new_spinner();
    bar.set_style(ProgressStyle::with_template("{spinner} {elapsed} {msg}").unwrap_or_else(|_| ProgressStyle::default_spinner()));
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

async fn look(layout: &Layout, state: &State) -> Result<Seen> {
    let mut seen = Seen::default();
    for server in &state.servers {
        match timeout(ASK, nodes_ready(layout, server.api)).await {
            Ok(Ok(ready)) => {
                seen.serving += 1;
                seen.nodes = seen.nodes.max(ready);
            }
            Ok(Err(e)) => seen.problem = format!("{}: {e:#}.", server.name),
            Err(_) => seen.problem = format!("{}: no answer.", server.name),
        }
    }
    Ok(seen)
}

/// A channel to a server's API port, as the administrator.
pub(crate) async fn channel(layout: &Layout, port: u16) -> Result<Channel> {
    let read = |name: &str| std::fs::read(layout.pki().join(name)).with_context(|| format!("cannot read pki/{name}"));
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(read("ca.crt")?))
        .identity(Identity::from_pem(read("admin.crt")?, read("admin.key")?));
    let endpoint = Endpoint::from_shared(format!("https://127.0.0.1:{port}"))?.connect_timeout(ASK).timeout(ASK);
    Ok(endpoint.tls_config(tls)?.connect().await?)
}

async fn nodes_ready(layout: &Layout, port: u16) -> Result<usize> {
    Ok(nodes(layout, port).await?.iter().filter(|node| is_ready(node)).count())
}

/// All Node objects, by a linearizable read through one server.
pub(crate) async fn nodes(layout: &Layout, port: u16) -> Result<Vec<serde_json::Value>> {
    let mut client = ResourcesClient::new(channel(layout, port).await?);
    let resource = Resource { group: String::new(), version: "v1".into(), resource: "nodes".into() };
    let mut stream = client.list(ListRequest { resource: Some(resource), ..ListRequest::default() }).await?.into_inner();
    let mut nodes = Vec::new();
    while let Some(message) = stream.message().await? {
        for item in message.items {
            nodes.push(serde_json::from_slice(&item.raw).context("a node is not JSON")?);
        }
    }
    Ok(nodes)
}

/// Whether a node's Ready condition is True.
pub(crate) fn is_ready(node: &serde_json::Value) -> bool {
    let conditions = node["status"]["conditions"].as_array();
    conditions.is_some_and(|all| all.iter().any(|c| c["type"] == "Ready" && c["status"] == "True"))
}
