//! The real binary as processes, and faults on them.

mod cluster;
mod leader;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::{Context as _, Result};
use kontiki_base::env::Env;
use kontiki_proto::env::SystemEnv;

use crate::check::{Violation, linear};
use crate::cli::{Plan, RealArgs};
use crate::history::{Answer, History};
use crate::load::kv::{self, Run};
use crate::load::pods::Pods;
use crate::report::{Fault, Report};
use cluster::Cluster;

/// Replicas of the Deployment that must be complete at the end.
const REPLICAS: u32 = 20;

/// After the faults the cluster has this long to be whole again.
const CONVERGE: Duration = Duration::from_secs(60);

/// Runs a plan. `true`: everything held.
///
/// # Errors
/// The run could not be carried out: nothing was proved.
pub async fn run(args: &RealArgs) -> Result<bool> {
    let env: Arc<dyn Env> = Arc::new(SystemEnv::new());
    eprintln!("starting 3 servers and 2 simulated nodes");
    let cluster = Cluster::start(args.keep).await?;
    let outcome = attack(args, &env, &cluster).await;
    let ended = cluster.end().await;
    let report = outcome?;
    ended.context("the cluster did not end cleanly")?;
    report.print();
    Ok(report.violations.is_empty())
}

async fn attack(args: &RealArgs, env: &Arc<dyn Env>, cluster: &Cluster) -> Result<Report> {
    let mut pods = Pods::create(cluster.api().await?, REPLICAS).await?;
    let took = pods.complete(env.as_ref(), CONVERGE).await.context("before any fault")?;
    eprintln!("Deployment of {REPLICAS} complete after {:.1} s; {} clients begin", took.as_secs_f64(), args.clients);
    let run = Arc::new(Run {
        env: env.clone(),
        origin: env.now_mono(),
        stop: AtomicBool::new(false),
        members: cluster.client_urls(),
        seed: args.seed,
    });
    let clients: Vec<_> = (0..args.clients).map(|id| tokio::spawn(kv::client(run.clone(), id))).collect();
    let faults = inject(args, env, cluster, &run, &mut pods).await;
    run.stop.store(true, std::sync::atomic::Ordering::Relaxed);
    let mut history = History::default();
    for client in clients {
        history.ops.extend(client.await.context("a client panicked")??);
    }
    let faults = faults?;
    let mut violations = Vec::new();
    let converged = match pods.complete(env.as_ref(), CONVERGE).await {
        Ok(took) => Some(took),
        Err(e) => {
            violations.push(Violation::new("converge", format!("{e:#}")));
            None
        }
    };
    history.changes = cluster.changes().await.context("cannot read the store's own history")?;
    violations.extend(linear::check(&history));
    violations.extend(coverage(args, &faults, &history));
    if let Some(path) = &args.history {
        write_history(path, &history)?;
    }
    Ok(Report::new(args, &history, faults, converged, violations))
}

/// Breaks things until the time is over. A fault is over when clients write again.
async fn inject(args: &RealArgs, env: &Arc<dyn Env>, cluster: &Cluster, run: &Arc<Run>, pods: &mut Pods) -> Result<Vec<Fault>> {
    let mut faults = Vec::new();
    while Duration::from_nanos(run.now()) < args.duration {
        env.sleep(args.every.min(args.duration)).await;
        if args.plan == Plan::Calm || Duration::from_nanos(run.now()) >= args.duration {
            continue;
        }
        pods.disturb(2).await;
        match leader::kill(cluster, run).await {
            Ok(fault) => {
                let gap = fault
                    .leader_back
                    .map_or_else(|| "no leader yet".into(), |at| format!("{} ms without leader", (at - fault.at) / 1_000_000));
                eprintln!("{:>6.1} s  {} ({}) killed: {gap}", fault.at as f64 / 1e9, fault.victim, fault.detail);
                faults.push(fault);
            }
            Err(e) => eprintln!("{:>6.1} s  no fault: {e:#}", run.now() as f64 / 1e9),
        }
    }
    Ok(faults)
}

/// A run that saw nothing proves nothing.
fn coverage(args: &RealArgs, faults: &[Fault], history: &History) -> Vec<Violation> {
    let mut found = Vec::new();
    let written = history.ops.iter().filter(|op| matches!(op.answer, Answer::Written { .. })).count();
    let read = history.ops.iter().filter(|op| matches!(op.answer, Answer::Read { .. })).count();
    if written < 100 || read < 100 {
        found.push(Violation::new("coverage", format!("only {written} writes and {read} reads succeeded")));
    }
    if args.plan != Plan::Calm && faults.is_empty() {
        found.push(Violation::new("coverage", "no fault was injected"));
    }
    for fault in faults.iter().filter(|f| f.leader_back.is_none()) {
        found.push(Violation::new("coverage", format!("no new leader was seen after the kill at {:.1} s", fault.at as f64 / 1e9)));
    }
    let acknowledged: std::collections::BTreeSet<u16> =
        history.ops.iter().filter(|op| matches!(op.answer, Answer::Written { .. })).map(|op| op.client).collect();
    if acknowledged.len() < usize::from(args.clients) {
        found.push(Violation::new("coverage", format!("only {} of {} clients ever wrote", acknowledged.len(), args.clients)));
    }
    found
}

fn write_history(path: &std::path::Path, history: &History) -> Result<()> {
    use std::io::Write as _;
    let file = std::fs::File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
    let mut out = std::io::BufWriter::new(file);
    for op in &history.ops {
        serde_json::to_writer(&mut out, op)?;
        out.write_all(b"\n")?;
    }
    for change in &history.changes {
        serde_json::to_writer(&mut out, change)?;
        out.write_all(b"\n")?;
    }
    out.flush().with_context(|| format!("cannot write {}", path.display()))
}
