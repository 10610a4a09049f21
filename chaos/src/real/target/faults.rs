//! What an operator may allow on a running cluster. Each lapses by itself: pods are replaced, and nodes are held by a lease of the keeper.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::api::Cluster;
use super::own;
use crate::history::{Fault, FaultOutcome, Heal, Record};
use crate::load::kv::Run;
use crate::load::pods::Pods;
use crate::plan::{Dice, Plan};
use crate::real::args::Allow;
use crate::real::keeper::Keeper;
use crate::real::progress;

/// How long a node is closed, or an agent stopped.
const HOLD: Duration = Duration::from_secs(8);

/// The keeper undoes it this much later, if the harness did not.
const LEASE: Duration = Duration::from_secs(10);

/// What faults on a target need.
pub(super) struct Ground<'a> {
    pub(super) run: &'a Arc<Run>,
    pub(super) cluster: &'a Cluster,
    pub(super) keeper: &'a Keeper,
    pub(super) kubeconfig: &'a Path,
    pub(super) namespace: &'a str,
    pub(super) pods: Pods,
    pub(super) nodes: Vec<String>,
}

/// Agents that run on this machine: node and pid.
pub(super) fn agents() -> Vec<(String, i32)> {
    let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = all.filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
    pids.filter_map(|pid| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let words: Vec<String> = line.split(|b| *b == 0).map(|w| String::from_utf8_lossy(w).into_owned()).collect();
        let agent = words.first()?.ends_with("kontiki") && words.iter().any(|w| w == "agent");
        let name = words.iter().find_map(|w| w.strip_prefix("--name="))?;
        agent.then(|| (name.to_owned(), pid))
    })
    .collect()
}

impl Ground<'_> {
    /// One of the allowed faults after the other, until the time is over.
    pub(super) async fn inject(&self, plan: &Plan, allowed: &[Allow], every: Duration) {
        let env = self.run.env.as_ref();
        let mut dice = Dice::new(plan.seed, "target");
        let mut id = 0;
        while Duration::from_nanos(self.run.now()) < plan.duration.0 {
            let left = plan.duration.0.saturating_sub(Duration::from_nanos(self.run.now()));
            progress::live(format!("{} s left, {id} faults", left.as_secs()));
            env.sleep(every.min(left)).await;
            let Some(fault) = allowed.get(id as usize % allowed.len().max(1)).filter(|_| left > every) else { continue };
            id += 1;
            self.one(id, *fault, &mut dice).await;
        }
    }

    async fn one(&self, id: u32, fault: Allow, dice: &mut Dice) {
        let at = self.run.now();
        let (kind, outcome) = match fault {
            Allow::DeletePods => ("delete-pods", self.delete_pods().await),
            Allow::Drain => ("drain", self.drain(id, dice).await),
            Allow::StopAgents => ("stop-agents", self.stop_agent(id, dice).await),
        };
        let outcome = match outcome {
            Ok(proof) => FaultOutcome::Installed { proof },
            Err(e) => FaultOutcome::Skipped { why: format!("{e:#}") },
        };
        progress::say(&format!("{:>7.1} s  {kind}: {outcome:?}", at as f64 / 1e9));
        self.run.recorder.record(Record::Fault(Fault { id, at, kind: kind.into(), detail: kind.into(), outcome, ..Fault::default() }));
        self.run.recorder.record(Record::Heal(Heal { id, at: self.run.now(), detail: String::new() }));
    }

    async fn delete_pods(&self) -> Result<String> {
        let mut pods = self.pods.clone();
        let before = pods.running().await?;
        let deleted = pods.disturb(2).await;
        if deleted == 0 {
            bail!("none of our pods could be deleted");
        }
        let deadline = self.run.now() + 30_000_000_000;
        while self.run.now() < deadline {
            let now = pods.running().await.unwrap_or_default();
            if before.iter().filter(|name| !now.contains(name)).count() >= deleted {
                return Ok(format!("{deleted} pods were deleted, and are gone"));
            }
            self.run.env.sleep(Duration::from_millis(100)).await;
        }
        bail!("pods that were deleted are still Ready after 30 s")
    }

    async fn drain(&self, id: u32, dice: &mut Dice) -> Result<String> {
        let node = dice.pick(&self.nodes).context("the cluster has no node")?.clone();
        if self.cluster.node_state(&node).await?.0 {
            bail!("{node} is closed already, by somebody else");
        }
        let words = ["chaos", "undo", "cordon", &self.kubeconfig.display().to_string(), &node].map(str::to_owned);
        let words = own(&words)?;
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let lease = self.keeper.arm(&format!("cordon-{id}"), HOLD + LEASE, &words);
        self.cluster.cordon(&node, true).await?;
        let closed = self.cluster.node_state(&node).await.map(|(closed, _)| closed);
        let ours = self.pods.clone().on_node(&node).await.unwrap_or_default();
        let mut evicted = 0;
        for pod in &ours {
            evicted += usize::from(self.cluster.evict(self.namespace, pod).await.is_ok());
        }
        self.run.env.sleep(HOLD).await;
        self.cluster.cordon(&node, false).await?;
        self.keeper.disarm(lease);
        if closed? {
            Ok(format!("{node} was closed, {evicted} of our {} pods on it evicted", ours.len()))
        } else {
            bail!("{node} was not closed")
        }
    }

    async fn stop_agent(&self, id: u32, dice: &mut Dice) -> Result<String> {
        let here: Vec<(String, i32)> = agents().into_iter().filter(|(name, _)| self.nodes.contains(name)).collect();
        let (node, pid) = dice.pick(&here).context("no agent of the cluster runs on this machine")?.clone();
        let lease = self.keeper.arm(&format!("agent-{id}"), HOLD + LEASE, &["kill", "-CONT", &pid.to_string()]);
        kill(Pid::from_raw(pid), Signal::SIGSTOP).with_context(|| format!("cannot stop pid {pid}"))?;
        let mut silent = false;
        let until = self.run.now() + u64::try_from(HOLD.as_nanos()).unwrap_or(u64::MAX);
        while self.run.now() < until {
            silent |= self.cluster.node_state(&node).await.is_ok_and(|(_, ready)| !ready);
            self.run.env.sleep(Duration::from_millis(100)).await;
        }
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let stopped = stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('T'));
        kill(Pid::from_raw(pid), Signal::SIGCONT).with_context(|| format!("cannot continue pid {pid}"))?;
        self.keeper.disarm(lease);
        let noticed = if silent { "the cluster took it for dead" } else { "the cluster had not yet taken it for dead" };
        if stopped { Ok(format!("the agent of {node} (pid {pid}) was in state T; {noticed}")) } else { bail!("pid {pid} was not stopped") }
    }
}
