//! The real world: the real binary as processes, each member in a network namespace of its own, and faults on all of it.

pub mod args;
pub mod bench;
mod delayer;
mod disk;
pub mod doctor;
mod facts;
mod inject;
mod keeper;
mod lossy;
mod native;
mod net;
mod procs;
mod progress;
mod scene;
mod session;
mod target;
mod tool;
pub mod verdict;
mod views;
mod world;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use kontiki_base::env::Env;
use kontiki_proto::env::SystemEnv;

use crate::Tools;
use crate::history::History;
use crate::measure::{self, Row};
use crate::plan::Plan;
use args::RealArgs;
use verdict::{Findings, Verdict};

/// What a run gave.
pub struct Outcome {
    /// Everything that was seen.
    pub history: History,
    /// What each fault cost.
    pub rows: Vec<Row>,
    /// What was found.
    pub findings: Findings,
}

/// The plan that the flags mean.
///
/// # Errors
/// There is no such plan, or it is not one.
pub fn plan(args: &RealArgs) -> Result<Plan> {
    let mut plan = Plan::find(&args.plan)?;
    if let Some(every) = args.every {
        for when in plan.schedule.iter_mut().map(|e| &mut e.when).filter(|w| w.every.is_some()) {
            when.every = Some(crate::plan::Spread::just(every.0));
            when.first = None;
        }
    }
    plan.duration = args.duration.unwrap_or(plan.duration);
    plan.workload.kv.clients = args.clients.unwrap_or(plan.workload.kv.clients);
    plan.seed = args.seed.unwrap_or(plan.seed);
    plan.validate()?;
    Ok(plan)
}

/// `kontiki chaos real`.
///
/// # Errors
/// The run could not be carried out.
pub async fn run(args: &RealArgs, tools: &Tools) -> Result<Verdict> {
    if let Some(kubeconfig) = &args.target {
        return target::run(args, kubeconfig).await;
    }
    let plan = plan(args)?;
    let tools = &Tools { program: args.program.clone(), ..tools.clone() };
    let outcome = execute(&plan, tools, args.out.as_deref(), args.keep).await?;
    outcome.findings.print(&plan, &outcome.history, &outcome.rows);
    Ok(outcome.findings.verdict())
}

/// Removes what dead runs left, and says so. A quiet one, before each run, leaves the folders that were to be kept.
pub async fn collect_garbage(quiet: bool) -> Result<bool> {
    let removed = tokio::task::spawn_blocking(move || scene::collect_garbage(!quiet)).await.context("cleaning up panicked")?;
    let mut clean = true;
    for (id, outcome) in &removed {
        match outcome {
            Ok(()) => eprintln!("removed what run {id} left"),
            Err(left) => {
                clean = false;
                eprintln!("of run {id} this is left: {left}");
            }
        }
    }
    if removed.is_empty() && !quiet {
        eprintln!("no dead run left anything on this machine");
    }
    Ok(clean)
}

/// Runs a plan on a cluster of its own, and judges it. The machine is afterwards as it was before, also after Ctrl-C.
///
/// # Errors
/// The run could not be carried out.
pub async fn execute(plan: &Plan, tools: &Tools, out: Option<&Path>, keep: bool) -> Result<Outcome> {
    collect_garbage(true).await?;
    let unseen = plan.schedule.iter().filter_map(|e| e.when.event).find(|e| !e.in_real());
    if let Some(event) = unseen {
        anyhow::bail!("the plan waits for {event:?}, which only the simulated world sees");
    }
    let env: Arc<dyn Env> = Arc::new(SystemEnv::new());
    let (own, planned) = (env.clone(), plan.clone());
    let prepared = tokio::task::spawn_blocking(move || world::World::prepare(&planned, own)).await.context("preparing panicked")??;
    let (scene, keeper) = (prepared.0.clone(), prepared.1.clone());
    // Whatever talks to the cluster runs on threads that are in the clients' namespace.
    let runtime = match &prepared.2 {
        Some(net) => Some(net.runtime().context("cannot start threads in the clients' namespace")?),
        None => None,
    };
    let handle = runtime.as_ref().map_or_else(tokio::runtime::Handle::current, |r| r.handle().clone());
    let session = session::run(plan.clone(), tools.clone(), env, prepared, out.map(Path::to_path_buf), keep);
    let mut session = handle.spawn(session);
    let outcome = tokio::select! {
        ended = &mut session => ended.context("the run panicked").and_then(|outcome| outcome),
        () = interrupted() => {
            progress::say("interrupted: cleaning up");
            session.abort();
            let _ = session.await;
            Err(anyhow::anyhow!("interrupted"))
        }
    };
    progress::quiet();
    if let Some(runtime) = runtime {
        runtime.shutdown_background();
    }
    let outcome = match outcome {
        Ok(outcome) => outcome,
        Err(e) => {
            // The session did not end the cluster itself.
            let removed = tokio::task::spawn_blocking(move || scene.remove(keep)).await.context("cleaning up panicked")?;
            keeper.done();
            if let Err(left) = removed {
                eprintln!("this is left on the machine: {left}");
            }
            return Err(e);
        }
    };
    let rows = measure::rows(&outcome.history);
    let mut findings = Findings::default();
    let told = outcome.outcomes.clone();
    findings.take(plan, outcome.outcomes);
    findings.judge(plan, &outcome.history, &rows, outcome.elections, outcome.converged);
    if let Some(out) = out {
        write(out, "plan.yaml", plan.to_yaml().as_bytes())?;
        write(out, "measurements.json", &serde_json::to_vec_pretty(&rows)?)?;
        crate::report::files::write(out, &outcome.history, &told)
            .with_context(|| format!("cannot write the report into {}", out.display()))?;
    }
    Ok(Outcome { history: outcome.history, rows, findings })
}

/// Writes a file into a run's folder.
fn write(dir: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let path = dir.join(name);
    std::fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))
}

/// Completes at Ctrl-C, or when the process is told to end.
async fn interrupted() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate())) else {
        // Without signals the harness ends by being killed, and the keeper cleans up.
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}

/// The keeper's process: not for people.
pub fn keep(id: &str) {
    keeper::run(id);
}

/// Undoes one thing on a cluster that is not ours: not for people.
///
/// # Errors
/// The cluster does not answer.
pub async fn undo(what: &str, kubeconfig: &Path, name: &str) -> Result<()> {
    target::undo(what, kubeconfig, name).await
}

/// The delaying process: not for people.
///
/// # Errors
/// The kernel's packet queue cannot be opened.
pub fn delay(by_ms: u64, jitter_ms: u64, hold_ms: u64, seed: u64) -> std::io::Result<()> {
    let ms = Duration::from_millis;
    delayer::run(ms(by_ms), ms(jitter_ms), ms(hold_ms), seed, || println!("delaying"))
}
