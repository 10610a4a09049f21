//! One run, from the first process to the last record.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use kontiki_base::env::Env;
use kontiki_proto::etcd::etcdserverpb::kv_client::KvClient;
use kontiki_proto::etcd::etcdserverpb::maintenance_client::MaintenanceClient;
use kontiki_proto::etcd::etcdserverpb::{HashKvRequest, RangeRequest, StatusRequest};
use tokio::task::JoinSet;

use super::facts::Clocks;
use super::inject::Stage;
use super::keeper::Keeper;
use super::net::Net;
use super::progress;
use super::scene::Scene;
use super::views::{self, Views};
use super::world::{Lacks, World};
use crate::Tools;
use crate::check::{self, Outcome};
use crate::fault::Fault;
use crate::history::{At, FaultOutcome, Final, Header, History, Record, Recorder, Sample};
use crate::load::informer;
use crate::load::kv::{self, Run};
use crate::load::observer::Observer;
use crate::load::pods::Pods;
use crate::load::{lease, watch};
use crate::plan::{Event, Plan};

/// A cluster must serve within this after its start.
const START: Duration = Duration::from_secs(90);

/// After the faults the cluster has this long to be whole again.
const CONVERGE: Duration = Duration::from_secs(60);

/// Clients go on for a moment after the last fault: what it broke for good shows then.
const LULL: Duration = Duration::from_secs(2);

/// Where there are pods it is a longer one: only after it those checks judge that ask whether everything has come to rest.
const REST: Duration = Duration::from_millis(10_500);

/// Clients that follow the pods as a controller does.
const INFORMERS: usize = 2;

/// Clients that were told to stop do so within this.
const STOP: Duration = Duration::from_secs(15);

/// What a session saw.
pub(crate) struct Seen {
    /// Everything that was recorded.
    pub(crate) history: History,
    /// What the checks found.
    pub(crate) outcomes: Vec<Outcome>,
    /// Changes of leader.
    pub(crate) elections: usize,
    /// How long it took until everything was whole again.
    pub(crate) converged: Option<Duration>,
}

/// Runs a plan from beginning to end; the cluster is gone afterwards if this returns a session.
///
/// # Errors
/// The run could not be carried out: what is left goes with the scene.
pub(crate) async fn run(
    plan: Plan,
    tools: Tools,
    env: Arc<dyn Env>,
    prepared: (Scene, Keeper, Option<Net>, Lacks),
    out: Option<PathBuf>,
    keep: bool,
) -> Result<Seen> {
    let (servers, nodes) = (plan.topology.servers, plan.topology.nodes);
    let place = if prepared.2.is_some() { "each in a network namespace" } else { "on loopback" };
    progress::say(&format!("run {}: starting {servers} servers and {nodes} simulated nodes, {place}", prepared.0.id));
    let folder = out.unwrap_or_else(|| prepared.0.dir.join("run"));
    let world = World::start(&plan, &tools, env.clone(), prepared)?;
    let header = Header {
        world: "real".into(),
        plan: plan.name.clone(),
        seed: plan.seed,
        commit: tools.version.to_owned(),
        replay: format!("kontiki chaos real --plan {} --seed {}", plan.name, plan.seed),
        members: world.servers.iter().map(|s| s.name.clone()).collect(),
        started_ms: env.now_wall().0,
        // The observer leaves out what overload writes.
        observes_all: !plan.schedule.iter().any(|e| matches!(e.fault, Fault::Overload { .. })),
        ..Header::default()
    };
    let recorder = Recorder::file(&folder, header).with_context(|| format!("cannot write into {}", folder.display()))?;
    let run = Arc::new(Run {
        env: env.clone(),
        origin: env.now_mono(),
        stop: AtomicBool::new(false),
        members: world.client_urls(),
        seed: plan.seed,
        load: plan.workload.kv,
        recorder,
    });
    let views = Arc::new(Views::default());
    let watchers = watch_members(&run, &views, &world);
    let outcome = attack(&plan, &run, &views, world, keep).await;
    run.stop.store(true, Ordering::Relaxed);
    drop(watchers);
    outcome
}

fn watch_members(run: &Arc<Run>, views: &Arc<Views>, world: &World) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    for (member, (server, url)) in world.servers.iter().zip(world.client_urls()).enumerate() {
        let proc = server.proc.clone();
        let life = Arc::new(move || proc.state().starts);
        tasks.spawn(views::watch(run.clone(), views.clone(), member, url, life));
    }
    tasks
}

async fn attack(plan: &Plan, run: &Arc<Run>, views: &Arc<Views>, world: World, keep: bool) -> Result<Seen> {
    for member in 0..world.servers.len() {
        if !views::serves(run.env.as_ref(), run, views, member, START).await {
            let log = world.scene.dir.join("log").join(format!("{}.log", world.servers[member].name));
            bail!("{} does not serve after {} s; the end of its log:\n{}", world.servers[member].name, START.as_secs(), tail(&log));
        }
    }
    let mut pods = None;
    if let Some(deployment) = plan.workload.deployment {
        let mut own = deploy(&world, run, deployment.replicas).await?;
        let took = own.complete(run.env.as_ref(), START).await.context("before any fault")?;
        progress::say(&format!("Deployment of {} complete after {:.1} s", deployment.replicas, took.as_secs_f64()));
        pods = Some(own);
    }
    let observer = Arc::new(Observer::new(run.clone()));
    let watching = tokio::spawn({
        let observer = observer.clone();
        async move { observer.watch().await }
    });
    let begin = run.now();
    let stage = Stage::new(world, plan.clone(), (run.clone(), views.clone()), pods.clone());
    let mut clients = clients(plan, run, &stage);
    if pods.is_some() {
        let servers = stage.world.apis()?;
        for first in 0..INFORMERS {
            let informer = informer::informer(run.clone(), servers.clone(), first);
            clients.spawn(async move {
                informer.await;
                Ok(())
            });
        }
    }
    let telling = tokio::spawn(tell(stage.clone(), run.clone(), plan.duration.0 + Duration::from_nanos(begin)));
    progress::say(&format!(
        "{} clients, {} watchers, {} leases; faults for {}",
        plan.workload.kv.clients, plan.workload.watches, plan.workload.leases, plan.duration
    ));
    stage.run_schedule().await;
    let lull = if pods.is_some() { REST } else { LULL };
    let converged = converge(&stage, run, views, pods).await;
    run.env.sleep(lull).await;
    run.stop.store(true, Ordering::Relaxed);
    finish(clients).await?;
    telling.abort();
    let _ = telling.await;
    let caught_up = observer.catch_up(CONVERGE).await;
    if watching.is_finished() {
        watching.await.context("the observer panicked")??;
    } else {
        watching.abort();
    }
    let revision = caught_up.context("the store's own history is not complete")?;
    let lives: Vec<u32> = stage.world.servers.iter().map(|s| s.proc.state().starts).collect();
    hashes(run, revision, &lives).await;
    finals(run).await;
    alarms(&stage, run);
    for fact in stage.world.facts(Clocks { wall_ms: run.env.now_wall().0, at: run.now() })? {
        run.recorder.record(Record::Node(fact));
    }
    let elections = views.elections().iter().filter(|(_, _, at)| *at > begin).count();
    let history = run.recorder.finish(run.now()).context("the history is not complete on disk")?;
    let outcomes = check::judge(&history);
    let world = stage.into_world().context("something still uses the cluster")?;
    world.end(keep).await?;
    Ok(Seen { history, outcomes, elections, converged })
}

/// Creates the Deployment; a cluster that has just been born may not have its namespaces yet.
async fn deploy(world: &World, run: &Run, replicas: u32) -> Result<Pods> {
    let start = run.env.now_mono();
    loop {
        match Pods::create(world.api()?, "default", replicas).await {
            Ok(pods) => return Ok(pods),
            Err(e) if run.env.now_mono().since(start) > START => return Err(e),
            Err(_) => run.env.sleep(Duration::from_millis(200)).await,
        }
    }
}

fn clients(plan: &Plan, run: &Arc<Run>, stage: &Arc<Stage>) -> JoinSet<Result<()>> {
    let mut tasks = JoinSet::new();
    for id in 0..plan.workload.kv.clients {
        tasks.spawn(kv::client(run.clone(), id));
    }
    for id in 0..plan.workload.watches {
        let stage = Arc::downgrade(stage);
        let opened = move || stage.upgrade().into_iter().for_each(|s| s.tell(Event::WatchOpened));
        tasks.spawn(watch::watcher(run.clone(), id, Arc::new(opened)));
    }
    for id in 0..plan.workload.leases {
        let stage = Arc::downgrade(stage);
        let granted = move || stage.upgrade().into_iter().for_each(|s| s.tell(Event::LeaseGranted));
        tasks.spawn(lease::client(run.clone(), id, Arc::new(granted)));
    }
    tasks
}

async fn finish(mut clients: JoinSet<Result<()>>) -> Result<()> {
    let all = async {
        while let Some(client) = clients.join_next().await {
            client.context("a client panicked")??;
        }
        Ok(())
    };
    tokio::time::timeout(STOP, all).await.context("clients do not stop")?
}

/// The live line, and elections as events.
async fn tell(stage: Arc<Stage>, run: Arc<Run>, until: Duration) {
    let mut known = stage.views.leader();
    loop {
        run.env.sleep(Duration::from_millis(50)).await;
        let leader = stage.views.leader();
        if leader != known {
            known = leader;
            stage.tell(Event::Elected);
        }
        let leads =
            known.map_or_else(|| "no leader".to_owned(), |(m, term)| format!("{} leads in term {term}", stage.world.servers[m].name));
        let left = until.saturating_sub(Duration::from_nanos(run.now()));
        progress::live(format!("{} s left, {leads}, {} faults", left.as_secs(), stage.seen().len()));
    }
}

/// Waits until every server serves and the Deployment is complete.
async fn converge(stage: &Stage, run: &Run, views: &Views, pods: Option<Pods>) -> Option<Duration> {
    let start = run.env.now_mono();
    for member in 0..stage.world.servers.len() {
        if !views::serves(run.env.as_ref(), run, views, member, CONVERGE).await {
            progress::say(&format!("{} does not serve {} s after the last fault", stage.world.servers[member].name, CONVERGE.as_secs()));
            return None;
        }
    }
    if let Some(mut pods) = pods
        && let Err(e) = pods.complete(run.env.as_ref(), CONVERGE).await
    {
        progress::say(&format!("{e:#}"));
        return None;
    }
    Some(run.env.now_mono().since(start))
}

/// Asks every member for the hash of its state as of one revision.
async fn hashes(run: &Run, revision: i64, lives: &[u32]) {
    for (member, url) in run.members.iter().enumerate() {
        let Ok(link) = kv::channel(url) else { continue };
        let mut client = MaintenanceClient::new(link);
        let state = client.status(StatusRequest {}).await.map(tonic::Response::into_inner);
        let hash = client.hash_kv(HashKvRequest { revision }).await.map(tonic::Response::into_inner);
        let sample = match (state, hash) {
            (Ok(state), Ok(hash)) => Sample {
                at: run.now(),
                member,
                id: state.header.as_ref().map_or(0, |h| h.member_id),
                role: crate::history::Role::Follower,
                term: state.raft_term,
                applied: state.raft_applied_index,
                committed: state.raft_index,
                revision: state.header.map_or(0, |h| h.revision),
                life: lives.get(member).copied().unwrap_or(0),
                hash: Some(u64::from(hash.hash)),
                hash_revision: revision,
                hash_compact: hash.compact_revision,
            },
            (Err(status), _) | (_, Err(status)) => {
                progress::say(&format!("member {} gives no hash: {}", member + 1, status.message()));
                continue;
            }
        };
        run.recorder.record(Record::Sample(sample));
    }
}

/// Faults after which a server may, or even should, end by itself.
const FATAL: &[&str] = &["fsync-eio", "disk-full", "disk-stall", "bit-rot", "lying-fsync", "replace-member"];

/// Ends that nobody asked for, and panics.
fn alarms(stage: &Stage, run: &Run) {
    let seen = stage.seen();
    let excused = |name: &str, at: At| {
        seen.iter().any(|s| {
            let hit = s.members.iter().any(|m| stage.world.servers[*m].name == name);
            hit && FATAL.contains(&s.kind)
                && !matches!(s.outcome, FaultOutcome::Skipped { .. })
                && at >= s.at
                && at <= s.healed + 30_000_000_000
        })
    };
    let alarm = |detail: String| run.recorder.record(Record::Alarm { check: "panic".into(), detail });
    for server in &stage.world.servers {
        for end in server.proc.unexpected() {
            let at = u64::try_from(end.at.since(run.origin).as_nanos()).unwrap_or(0);
            if !excused(&end.name, at) {
                alarm(format!("{} ended by itself at {:.1} s: {}", end.name, at as f64 / 1e9, end.how));
            }
        }
    }
    let procs = stage.world.servers.iter().map(|s| s.name.clone()).chain(stage.world.nodes.iter().map(|n| n.name.clone()));
    for name in procs {
        let text = std::fs::read_to_string(stage.world.scene.dir.join("log").join(format!("{name}.log"))).unwrap_or_default();
        for line in text.lines().filter(|l| l.contains("panicked at")).take(3) {
            alarm(format!("{name}: {line}"));
        }
    }
}

/// Reads what every member itself has of the run's keys.
async fn finals(run: &Run) {
    for (member, url) in run.members.iter().enumerate() {
        let Ok(link) = kv::channel(url) else { continue };
        let range =
            RangeRequest { key: kv::PREFIX.into(), range_end: watch::PREFIX_END.into(), serializable: true, ..RangeRequest::default() };
        match KvClient::new(link).range(range).await.map(tonic::Response::into_inner) {
            Ok(answer) => {
                let (revision, kvs) = (answer.header.map_or(0, |h| h.revision), answer.kvs.iter().map(watch::seen).collect());
                run.recorder.record(Record::Final(Final { member, revision, kvs }));
            }
            Err(status) => progress::say(&format!("member {} cannot be read at the end: {}", member + 1, status.message())),
        }
    }
}

/// The last lines of a log.
fn tail(path: &std::path::Path) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}
