//! A run against a cluster that is not ours: workload, probes and checks, and only those faults that its operator allows.
//!
//! Everything that is written lies in one namespace of the run, which is deleted at the end. What is done to nodes is held by leases: if this
//! process dies, its keeper undoes it and deletes the namespace.

mod api;
mod faults;
mod load;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use kontiki_base::env::Env;
use kontiki_proto::env::SystemEnv;

pub(crate) use api::Cluster;

use super::args::RealArgs;
use super::keeper::Keeper;
use super::scene::Scene;
use super::verdict::{Findings, Verdict};
use super::{measure, progress};
use crate::history::{Header, Recorder};
use crate::load::kv::Run;
use crate::load::pods::Pods;
use crate::plan::{KvLoad, Plan, Span};

/// A namespace of a run begins with this.
const NAMESPACE: &str = "kontiki-chaos-";

/// Our Deployment must be complete within this.
const CONVERGE: Duration = Duration::from_secs(120);

/// The pods of our Deployment.
const REPLICAS: u32 = 6;

/// Longer than any run: such a lease ends only with the harness.
const FOR_EVER: Duration = Duration::from_secs(7 * 24 * 3_600);

/// Pause from one fault to the next, if the flags say nothing else.
const EVERY: Duration = Duration::from_secs(15);

/// Runs against the cluster of a kubeconfig.
///
/// # Errors
/// The run could not be carried out.
pub(crate) async fn run(args: &RealArgs, kubeconfig: &Path) -> Result<Verdict> {
    let env: Arc<dyn Env> = Arc::new(SystemEnv::new());
    let cluster = Cluster::open(kubeconfig)?;
    super::collect_garbage(true).await?;
    let scene = Scene::new(env.random_u64()).context("cannot make a folder for the run")?;
    let keeper = Keeper::start(&scene).context("cannot start the keeper")?;
    let namespace = format!("{NAMESPACE}{}", scene.id);
    let undo = ["chaos", "undo", "namespace", &kubeconfig.display().to_string(), &namespace].map(str::to_owned);
    let lease = keeper.arm("namespace", FOR_EVER, &own(&undo)?.iter().map(String::as_str).collect::<Vec<_>>());
    let worked = tokio::select! {
        worked = work(args, &cluster, &keeper, &namespace, &env, kubeconfig) => worked,
        () = super::interrupted() => Err(anyhow::anyhow!("interrupted")),
    };
    progress::quiet();
    let cleaned = cluster.delete_namespace(&namespace).await;
    if cleaned.is_ok() {
        keeper.disarm(lease);
    }
    // Whatever is still armed is undone by the keeper when the pipe ends without a word.
    if worked.is_ok() && cleaned.is_ok() {
        keeper.done();
        let removed = tokio::task::spawn_blocking(move || scene.remove(false)).await.context("cleaning up panicked")?;
        removed.map_err(|left| anyhow::anyhow!("this is left on the machine: {left}"))?;
    }
    cleaned.with_context(|| format!("cannot delete the namespace {namespace}"))?;
    worked
}

/// This program with these words.
fn own(words: &[String]) -> Result<Vec<String>> {
    let program = std::env::current_exe().context("cannot find this program")?.display().to_string();
    Ok([program].into_iter().chain(words.iter().cloned()).collect())
}

async fn work(
    args: &RealArgs,
    cluster: &Cluster,
    keeper: &Keeper,
    namespace: &str,
    env: &Arc<dyn Env>,
    kubeconfig: &Path,
) -> Result<Verdict> {
    let nodes = cluster.nodes().await.context("the cluster does not answer")?;
    progress::say(&format!(
        "{} API endpoints, {} nodes; allowed: {:?}; namespace {namespace}",
        cluster.endpoints(),
        nodes.len(),
        args.allow
    ));
    cluster.create_namespace(namespace).await?;
    let plan = plan(args)?;
    let header = Header {
        world: "real".into(),
        plan: plan.name.clone(),
        seed: plan.seed,
        members: cluster.names(),
        started_ms: env.now_wall().0,
        ..Header::default()
    };
    let recorder = match &args.out {
        Some(out) => Recorder::file(out, header).with_context(|| format!("cannot write into {}", out.display()))?,
        None => Recorder::memory(header),
    };
    let (origin, load) = (env.now_mono(), plan.workload.kv);
    let run =
        Arc::new(Run { env: env.clone(), origin, stop: AtomicBool::new(false), members: cluster.names(), seed: plan.seed, load, recorder });
    let mut pods = Pods::create(cluster.any()?, namespace, REPLICAS).await?;
    let took = pods.complete(env.as_ref(), CONVERGE).await.context("before any fault")?;
    progress::say(&format!("Deployment of {REPLICAS} complete after {:.1} s", took.as_secs_f64()));
    let begin = cluster.revision(namespace).await?;
    let mut clients = tokio::task::JoinSet::new();
    for id in 0..load.clients {
        clients.spawn(load::client(run.clone(), cluster.clone(), namespace.to_owned(), id));
    }
    let ground = faults::Ground { run: &run, cluster, keeper, kubeconfig, namespace, pods: pods.clone(), nodes };
    ground.inject(&plan, &args.allow, args.every.map_or(EVERY, |e| e.0)).await;
    let converged = pods.complete(env.as_ref(), CONVERGE).await.ok();
    run.stop.store(true, Ordering::Relaxed);
    while let Some(client) = clients.join_next().await {
        client.context("a client panicked")?;
    }
    load::changes(&run, cluster, namespace, begin).await.context("cannot read the changes of our namespace")?;
    let history = run.recorder.finish(run.now()).context("the history is not complete on disk")?;
    let rows = measure::rows(&history);
    let mut findings = Findings::default();
    findings.take(&plan, load::judge(&history));
    findings.judge(&plan, &history, &rows, 0, converged);
    findings.print(&plan, &history, &rows);
    Ok(findings.verdict())
}

/// What is judged. Faults come by the clock, not by a schedule: which ones is what the operator allows.
fn plan(args: &RealArgs) -> Result<Plan> {
    let mut plan = Plan::find("calm")?;
    plan.name = "target".into();
    plan.seed = args.seed.unwrap_or(1);
    plan.duration = args.duration.unwrap_or(Span::secs(60));
    plan.workload.kv = KvLoad { clients: args.clients.unwrap_or(8), keys: 4, ..KvLoad::default() };
    plan.workload.kv.mix.delete = 0;
    // A cluster that is not ours may have a busy day: writes that are slow are measured, and judged only by what the operator asks for.
    plan.budget.mode = crate::plan::Mode::BeyondModel;
    plan.expect.coverage.faults = u32::from(!args.allow.is_empty());
    plan.validate()?;
    Ok(plan)
}

/// Undoes one thing on a target: what the keeper runs.
///
/// # Errors
/// The cluster does not answer.
pub(crate) async fn undo(what: &str, kubeconfig: &Path, name: &str) -> Result<()> {
    let cluster = Cluster::open(kubeconfig)?;
    match what {
        "namespace" => cluster.delete_namespace(name).await,
        "cordon" => cluster.cordon(name, false).await,
        other => anyhow::bail!("{other:?} cannot be undone"),
    }
}
