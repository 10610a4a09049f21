//! `kontiki status`: members, nodes, and what is wrong, if anything.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use kontiki_proto::etcd::etcdserverpb::maintenance_client::MaintenanceClient;
use kontiki_proto::etcd::etcdserverpb::{StatusRequest, StatusResponse};
use serde_json::Value;
use tokio::time::timeout;
use tonic::transport::Endpoint;

use crate::cli::StatusArgs;
use crate::up::layout::{Layout, Server, State};
use crate::up::ready;

/// One question may take this long.
const ASK: Duration = Duration::from_secs(2);

/// A member that is this many entries behind the leader is worth a word.
const LAG: u64 = 1_000;

/// Runs the command. Fails if something is wrong, so that scripts can tell.
pub(crate) async fn run(args: &StatusArgs) -> Result<()> {
    if !args.data_dir.exists() {
        bail!("there is no cluster in {}: start one with `kontiki up`", args.data_dir.display());
    }
    let layout = Layout::open(&args.data_dir)?;
    let state = layout.load()?.with_context(|| format!("there is no cluster in {}: start one with `kontiki up`", layout.dir.display()))?;
    let mut problems = Vec::new();
    members(&state, &mut problems).await;
    nodes(&layout, &state, &mut problems).await;
    if problems.is_empty() {
        println!("all is well");
        return Ok(());
    }
    for problem in &problems {
        println!("WRONG  {problem}");
    }
    bail!("{} thing{} wrong", problems.len(), if problems.len() == 1 { "" } else { "s" });
}

async fn ask(server: &Server) -> Result<StatusResponse> {
    let endpoint = Endpoint::from_shared(format!("http://127.0.0.1:{}", server.client))?.connect_timeout(ASK).timeout(ASK);
    Ok(MaintenanceClient::new(endpoint.connect().await?).status(StatusRequest {}).await?.into_inner())
}

async fn members(state: &State, problems: &mut Vec<String>) {
    println!("{:<10} {:>7} {:<9} {:>6} {:>10} {:>6} {:>10}", "MEMBER", "PID", "ROLE", "TERM", "APPLIED", "LAG", "DB");
    let mut answers = Vec::new();
    for server in &state.servers {
        let answer = match timeout(ASK, ask(server)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(e)) => Err(format!("{e:#}")),
            Err(_) => Err("no answer".to_owned()),
        };
        answers.push((server, answer));
    }
    let top = answers.iter().filter_map(|(_, a)| a.as_ref().ok()).map(|a| a.raft_index).max().unwrap_or(0);
    let mut leaders = 0;
    for (server, answer) in &answers {
        match answer {
            Ok(a) => {
                let leads = a.header.as_ref().is_some_and(|h| h.member_id == a.leader) && a.leader != 0;
                leaders += usize::from(leads);
                let role = if leads {
                    "leader"
                } else if a.is_learner {
                    "learner"
                } else {
                    "follower"
                };
                let lag = top.saturating_sub(a.raft_applied_index);
                let size = format!("{:.1} MB", a.db_size as f64 / 1e6);
                println!(
                    "{:<10} {:>7} {role:<9} {:>6} {:>10} {lag:>6} {size:>10}",
                    server.name, server.pid, a.raft_term, a.raft_applied_index
                );
                if lag > LAG {
                    problems.push(format!("{} is {lag} entries behind", server.name));
                }
                problems.extend(a.errors.iter().map(|e| format!("{}: {e}", server.name)));
            }
            Err(why) => {
                println!("{:<10} {:>7} {:<9}", server.name, server.pid, "down");
                problems.push(format!("{} does not answer: {why}", server.name));
            }
        }
    }
    if leaders != 1 {
        problems.push(format!("{leaders} members lead: there should be one"));
    }
}

async fn nodes(layout: &Layout, state: &State, problems: &mut Vec<String>) {
    let mut why = String::from("there is no server");
    for server in &state.servers {
        match timeout(ASK, ready::nodes(layout, server.api)).await {
            Ok(Ok(nodes)) => return print_nodes(state, &nodes, problems),
            Ok(Err(e)) => why = format!("{}: {e:#}", server.name),
            Err(_) => why = format!("{}: no answer", server.name),
        }
    }
    problems.push(format!("nodes are not known: {why}"));
}

fn print_nodes(state: &State, nodes: &[Value], problems: &mut Vec<String>) {
    println!("\n{:<10} {:>7} {:<9} {:<16} {:<10} {:<8}", "NODE", "PID", "READY", "ADDRESS", "CPU", "MEMORY");
    for expected in &state.nodes {
        let Some(node) = nodes.iter().find(|n| n["metadata"]["name"] == expected.name.as_str()) else {
            problems.push(format!("{} has not registered", expected.name));
            continue;
        };
        let ready = ready::is_ready(node);
        let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
        let address = node["status"]["addresses"].as_array().and_then(|all| all.iter().find(|a| a["type"] == "InternalIP"));
        println!(
            "{:<10} {:>7} {:<9} {:<16} {:<10} {:<8}",
            expected.name,
            expected.pid,
            if ready { "yes" } else { "NO" },
            address.map_or_else(|| "?".into(), |a| text(&a["address"])),
            text(&node["status"]["allocatable"]["cpu"]),
            text(&node["status"]["allocatable"]["memory"]),
        );
        if !ready {
            let reason = node["status"]["conditions"].as_array().and_then(|all| all.iter().find(|c| c["type"] == "Ready"));
            let reason = reason.map_or_else(|| "no Ready condition".into(), |c| format!("{}: {}", text(&c["reason"]), text(&c["message"])));
            problems.push(format!("{} is not ready: {reason}", expected.name));
        }
    }
}
