//! The one loop that owns the state of a node: events come in, decisions are made by `node::lifecycle`, steps go out as tasks whose ends
//! come back as events. Nothing else changes this state, so there are no locks and no order of events that it must fear.

mod entry;
mod observe;
mod start;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kontiki_proto::node as pb;
use tokio::sync::mpsc;

use super::lifecycle::backoff::Backoff;
use super::lifecycle::decide::{self, Step};
use super::lifecycle::memory::Blocked;
use super::lifecycle::probe::{ProbeKind, Timing};
use super::lifecycle::seen::PodSeen;
use super::lifecycle::status::{NodeFacts, same, status};
use super::lifecycle::{container, is_deleted};
use super::probes::{self, Target};
use super::server::Board;
use super::session::Outbox;
use super::work::{Job, StepError, Workshop, op_of};
use super::{NodeConfig, NodeError, volumes};
use entry::Entry;
use observe::{Listed, Print};

/// How often the runtime's lists are looked at: for real pods, and for simulated ones, of which a process holds thousands.
const LIST_EVERY_MS: (i64, i64) = (700, 2_000);
/// The files of config maps and secrets are brought up to date this often.
const FILES_EVERY_MS: i64 = 60_000;
/// A pod whose volumes or sandbox cannot be made is tried again after this, then after twice that, and so on up to the second.
const POD_RETRY_MS: (i64, i64) = (250, 8_000);
/// For so long `ErrImagePull` is shown before it becomes `ImagePullBackOff`.
const PULL_ERROR_SHOWN_MS: i64 = 2_000;
/// The API may lag behind what was reported; after this the status is reported again.
const DIFFERS_MS: i64 = 3_000;
/// "Done with" is said again this often until the API has removed the pod.
const FINISHED_EVERY_MS: i64 = 5_000;

/// What happens to a node.
pub enum Input {
    /// A session begins; the range of pod addresses, if it is known.
    Welcome {
        /// Empty if it is not assigned yet.
        pod_cidr: String,
    },
    /// The node's pods.
    Pods(pb::PodSet),
    /// The runtime was asked about one pod.
    Looked(LookedAt),
    /// A step has ended.
    Done {
        /// The pod.
        uid: String,
        /// The step.
        step: Step,
        /// What came of it.
        result: Result<(), StepError>,
    },
    /// A probe has ended.
    Probed {
        /// The pod.
        uid: String,
        /// The container's id.
        id: String,
        /// Its name.
        name: String,
        /// Which probe.
        kind: ProbeKind,
        /// What came of it.
        outcome: Result<(), String>,
    },
    /// The runtime's lists; `None` if it did not answer.
    Listed(RuntimeList),
    /// The files of a pod's volumes have been brought up to date.
    FilesDone(String),
}

/// The runtime's lists.
pub struct RuntimeList(Option<BTreeMap<String, Listed>>);

/// The runtime's answer about one pod.
pub struct LookedAt {
    uid: String,
    look: u64,
    seen: Option<(PodSeen, Print)>,
}

/// The loop's state.
struct Node {
    shop: Arc<Workshop>,
    outbox: Arc<Outbox>,
    inputs: mpsc::Sender<Input>,
    pods: BTreeMap<String, Entry>,
    /// Whether the runtime has been listed once: before that nothing can be said to be absent.
    listed: bool,
    /// Whether the API's full set of pods is known: before that nothing is an orphan.
    complete: bool,
    listing: bool,
    next_list_ms: i64,
    list_every_ms: i64,
    pod_cidr: tokio::sync::watch::Sender<String>,
    runtime_name: String,
    /// What the agent's own port shows.
    board: Arc<Board>,
}

/// Runs a node until `shutdown`.
pub(super) async fn run(config: NodeConfig, shutdown: impl Future<Output = ()> + Send) -> Result<(), NodeError> {
    let (mut node, mut rx, tasks) = start::start(config).await?;
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let wait = node.until_next();
        tokio::select! {
            biased;
            () = &mut shutdown => break,
            Some(input) = rx.recv() => node.take(input),
            () = node.shop.env.sleep(wait) => {}
        }
        // Whatever else has come in belongs to the same turn.
        while let Ok(input) = rx.try_recv() {
            node.take(input);
        }
        node.turn();
    }
    for task in tasks {
        task.abort();
    }
    Ok(())
}

impl Node {
    fn now(&self) -> i64 {
        self.shop.env.now_wall().0
    }

    /// Time until something is due.
    fn until_next(&self) -> Duration {
        let now = self.now();
        let list = if self.listing { now + self.list_every_ms } else { self.next_list_ms };
        let next = self.pods.values().filter_map(|e| if e.dirty && e.looked { Some(now) } else { e.wake_ms }).fold(list, i64::min);
        Duration::from_millis(u64::try_from(next - now).unwrap_or(0))
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Welcome { pod_cidr } => self.take_range(pod_cidr),
            Input::Pods(set) => self.take_pods(set),
            Input::Looked(looked) => self.take_look(looked),
            Input::Done { uid, step, result } => self.take_done(&uid, step, result),
            Input::Probed { uid, id, name, kind, outcome } => self.take_probe(&uid, &id, &name, kind, outcome),
            Input::Listed(list) => self.take_list(list),
            Input::FilesDone(uid) => {
                let now = self.now();
                if let Some(entry) = self.pods.get_mut(&uid) {
                    entry.files_due_ms = now + FILES_EVERY_MS;
                }
            }
        }
    }

    /// The range of pod addresses. Once known it is never forgotten.
    fn take_range(&self, pod_cidr: String) {
        self.pod_cidr.send_if_modified(|known| {
            let news = !pod_cidr.is_empty() && *known != pod_cidr;
            if news {
                *known = pod_cidr;
            }
            news
        });
    }

    /// What the API says.
    fn take_pods(&mut self, set: pb::PodSet) {
        let now = self.now();
        let mut present = BTreeSet::new();
        for bytes in &set.pods {
            let pod: Pod = match serde_json::from_slice(bytes) {
                Ok(pod) => pod,
                Err(error) => {
                    tracing::warn!(%error, "a pod of this node cannot be read and is left out");
                    continue;
                }
            };
            let Some(uid) = pod.metadata.uid.clone() else { continue };
            present.insert(uid.clone());
            match self.pods.get_mut(&uid) {
                Some(entry) => entry.update(pod, now),
                None => {
                    self.pods.insert(uid.clone(), Entry::new(pod, true, now));
                    self.look_at(&uid);
                }
            }
        }
        let removed: BTreeSet<&str> = set.removed.iter().map(|r| r.rsplit('/').next().unwrap_or(r)).collect();
        for (uid, entry) in &mut self.pods {
            let gone = removed.contains(uid.as_str()) || (set.full && !present.contains(uid));
            if gone && entry.in_api {
                entry.lost(now);
            }
        }
        if set.full && !self.complete {
            self.complete = true;
            self.next_list_ms = now;
        }
    }

    /// Asks the runtime about one pod.
    fn look_at(&mut self, uid: &str) {
        let Some(entry) = self.pods.get_mut(uid) else { return };
        entry.look += 1;
        entry.looked = false;
        let (shop, inputs, before) = (Arc::clone(&self.shop), self.inputs.clone(), Arc::clone(&entry.seen));
        let (uid, look) = (uid.to_owned(), entry.look);
        self.shop.env.spawn(
            "node look",
            Box::pin(async move {
                let seen = observe::look(shop.runtime.as_ref(), &uid, &before).await;
                let seen = seen.inspect_err(|error| tracing::warn!(%error, %uid, "the runtime does not show a pod")).ok();
                if seen.is_none() {
                    // Asked again by the loop; not at once.
                    shop.env.sleep(Duration::from_millis(500)).await;
                }
                let _ = inputs.send(Input::Looked(LookedAt { uid, look, seen })).await;
            }),
        );
    }

    fn take_look(&mut self, looked: LookedAt) {
        let Some(entry) = self.pods.get_mut(&looked.uid).filter(|e| e.look == looked.look) else { return };
        let Some((seen, print)) = looked.seen else {
            self.look_at(&looked.uid);
            return;
        };
        entry.memory.probes.retain(|id, _| seen.containers.iter().any(|c| c.id == *id));
        entry.memory.stopping.retain(|id, _| seen.running().any(|c| c.id == *id));
        entry.seen = Arc::new(seen);
        entry.print = print;
        entry.looked = true;
        entry.dirty = true;
    }

    fn take_list(&mut self, list: RuntimeList) {
        let now = self.now();
        self.listing = false;
        self.next_list_ms = now + self.list_every_ms;
        let Some(all) = list.0 else { return };
        self.listed = true;
        let empty = Print::new();
        let changed = |e: &(&String, &Entry)| e.1.looked && all.get(e.0).map_or(&empty, |l| &l.print) != &e.1.print;
        let changed: Vec<String> = self.pods.iter().filter(changed).map(|(uid, _)| uid.clone()).collect();
        if self.complete {
            let orphans: Vec<_> = all.iter().filter(|(uid, _)| !self.pods.contains_key(*uid)).collect();
            for (uid, listed) in orphans {
                tracing::info!(pod = %listed.name, namespace = %listed.namespace, %uid, "a pod runs that the API does not have: it is ended");
                self.pods.insert(uid.clone(), Entry::new(observe::ghost(uid, listed, now), false, now));
            }
        }
        let unseen: Vec<String> = self.pods.iter().filter(|(_, e)| e.look == 0).map(|(uid, _)| uid.clone()).collect();
        for uid in changed.into_iter().chain(unseen) {
            self.look_at(&uid);
        }
    }

    fn take_done(&mut self, uid: &str, step: Step, result: Result<(), StepError>) {
        let now = self.now();
        let Some(entry) = self.pods.get_mut(uid) else { return };
        if let Some(op) = op_of(&step) {
            entry.memory.in_flight.remove(&op);
        }
        if let Err(error) = &result {
            tracing::info!(pod = %entry.key(), ?step, reason = error.reason, error = %error.message, "step failed");
        }
        let memory = &mut entry.memory;
        match (step, result) {
            (Step::PrepareVolumes, Ok(())) => (memory.volumes_ready, memory.pod_blocked) = (true, None),
            (Step::CreateSandbox { .. }, Ok(())) => memory.pod_blocked = None,
            (Step::PrepareVolumes | Step::CreateSandbox { .. }, Err(e)) => {
                let before = memory.pod_blocked.as_ref().map_or(0, |b| b.backoff.delay_ms);
                let delay_ms = (before * 2).clamp(POD_RETRY_MS.0, POD_RETRY_MS.1);
                let backoff = Backoff { delay_ms, charged_ms: now };
                memory.pod_blocked = Some(Blocked { reason: e.reason.into(), message: e.message, until_ms: now + delay_ms, backoff });
            }
            (Step::PullImage { name }, Ok(())) => {
                memory.image_ready.insert(name);
            }
            (Step::StartContainer { name, .. }, Ok(())) => {
                memory.image_ready.remove(&name);
                memory.blocked.remove(&name);
            }
            (Step::PullImage { name } | Step::StartContainer { name, .. }, Err(e)) => {
                memory.image_ready.remove(&name);
                let charged = memory.blocked.get(&name).map(|b| b.backoff).unwrap_or_default().charge(now, 0);
                let until_ms = now + charged.delay_ms;
                memory.blocked.insert(name, Blocked { reason: e.reason.into(), message: e.message, until_ms, backoff: charged });
            }
            (Step::StopContainer { id, .. }, _) => {
                memory.stopping.remove(&id);
            }
            (Step::CleanUp, Ok(())) => memory.cleaned = true,
            (Step::CleanUp | Step::StopSandbox { .. } | Step::Prune { .. } | Step::GiveUp(_), _) => {}
        }
        self.look_at(uid);
    }

    fn take_probe(&mut self, uid: &str, id: &str, name: &str, kind: ProbeKind, outcome: Result<(), String>) {
        let now = self.now();
        let Some(entry) = self.pods.get_mut(uid) else { return };
        let Some(timing) = container(&entry.pod, name).and_then(|c| kind.of(c)).map(Timing::of) else { return };
        let Some(memory) = entry.memory.probes.get_mut(id) else { return };
        let (ok, said) = (outcome.is_ok(), outcome.err().unwrap_or_default());
        if !ok {
            let message = format!("{} probe failed: {said}", kind.word());
            self.shop.events.about(&entry.pod, Some(name), "Warning", "Unhealthy", &message);
        }
        memory.row_mut(kind).record(&timing, ok, said, now);
        entry.dirty = true;
    }

    /// Decides for every pod that something happened to.
    fn turn(&mut self) {
        let now = self.now();
        if !self.listing && self.next_list_ms <= now {
            self.list();
        }
        if !self.listed {
            return;
        }
        let due = |e: &Entry| e.looked && (e.dirty || e.wake_ms.is_some_and(|at| at <= now));
        let due: Vec<String> = self.pods.iter().filter(|(_, e)| due(e)).map(|(uid, _)| uid.clone()).collect();
        for uid in due {
            self.process(&uid, now);
        }
        let board = &self.board;
        self.pods.retain(|uid, e| {
            let stays = e.in_api || !e.memory.cleaned;
            if !stays {
                board.remove(uid);
            }
            stays
        });
    }

    fn list(&mut self) {
        self.listing = true;
        let (shop, inputs) = (Arc::clone(&self.shop), self.inputs.clone());
        self.shop.env.spawn(
            "node list",
            Box::pin(async move {
                let list = observe::list(shop.runtime.as_ref()).await;
                let list = list.inspect_err(|error| tracing::warn!(%error, "the runtime does not list its pods")).ok();
                let _ = inputs.send(Input::Listed(RuntimeList(list))).await;
            }),
        );
    }

    fn process(&mut self, uid: &str, now: i64) {
        let Some(entry) = self.pods.get_mut(uid) else { return };
        (entry.dirty, entry.wake_ms) = (false, None);
        show_back_off(entry, now);
        let decision = decide::decide(&entry.pod, &entry.seen, &entry.memory, now);
        entry.wake(decision.recheck_ms);
        let mut steps = Vec::new();
        for step in decision.steps {
            if let Step::GiveUp(verdict) = step {
                self.shop.events.about(&entry.pod, None, "Normal", &verdict.reason, &verdict.message);
                entry.memory.verdict = Some(verdict);
                entry.dirty = true;
                continue;
            }
            match &step {
                Step::StartContainer { name, .. } => {
                    let before = entry.seen.latest(name).cloned();
                    decide::charge_restart(&mut entry.memory, before.as_ref(), now);
                }
                Step::StopContainer { id, grace, .. } => {
                    entry.memory.stopping.insert(id.clone(), *grace);
                }
                _ => {}
            }
            entry.memory.in_flight.extend(op_of(&step));
            steps.push(step);
        }
        let (due, next) = decide::due_probes(&entry.pod, &entry.seen, &entry.memory, now);
        entry.wake(next);
        for (id, _, kind) in &due {
            entry.memory.probes.entry(id.clone()).or_default().row_mut(*kind).running = true;
        }
        let job = Job { pod: Arc::clone(&entry.pod), seen: Arc::clone(&entry.seen) };
        for step in steps {
            self.begin(uid, &job, step);
        }
        for (id, name, kind) in due {
            self.begin_probe(uid, &job, id, name, kind);
        }
        self.refresh_files(uid, now);
        self.report(uid, now);
        if let Some(entry) = self.pods.get(uid) {
            self.board.put(uid, &entry.pod, &entry.seen);
        }
    }

    fn begin(&self, uid: &str, job: &Job, step: Step) {
        let (shop, inputs, uid, job) = (Arc::clone(&self.shop), self.inputs.clone(), uid.to_owned(), job.clone());
        self.shop.env.spawn(
            "pod step",
            Box::pin(async move {
                let result = shop.carry_out(&job, step.clone()).await;
                if result.is_err()
                    && matches!(step, Step::CleanUp | Step::StopSandbox { .. } | Step::Prune { .. } | Step::StopContainer { .. })
                {
                    // These are asked for again as soon as they have ended; not in a tight circle.
                    shop.env.sleep(Duration::from_secs(1)).await;
                }
                let _ = inputs.send(Input::Done { uid, step, result }).await;
            }),
        );
    }

    fn begin_probe(&self, uid: &str, job: &Job, id: String, name: String, kind: ProbeKind) {
        let Some(c) = container(&job.pod, &name).cloned() else { return };
        let Some(probe) = kind.of(&c).cloned() else { return };
        let on_host = super::lifecycle::spec(&job.pod).host_network == Some(true);
        let ip =
            if on_host { self.shop.node_ip.clone() } else { job.seen.sandbox().and_then(|s| s.ips.first().cloned()).unwrap_or_default() };
        let sandbox = job.seen.sandbox().map(|s| s.id.clone()).unwrap_or_default();
        let (shop, inputs, uid) = (Arc::clone(&self.shop), self.inputs.clone(), uid.to_owned());
        self.shop.env.spawn(
            "probe",
            Box::pin(async move {
                let timeout = Duration::from_millis(u64::try_from(Timing::of(&probe).timeout_ms).unwrap_or(1_000));
                let target = Target { container_id: id.clone(), sandbox, ip };
                let outcome = probes::run(shop.runtime.as_ref(), &shop.env, &c, &probe, &target, timeout).await;
                let _ = inputs.send(Input::Probed { uid, id, name, kind, outcome }).await;
            }),
        );
    }

    /// Brings the files of config maps and secrets up to date, now and then.
    fn refresh_files(&mut self, uid: &str, now: i64) {
        let Some(entry) = self.pods.get_mut(uid) else { return };
        let wanted =
            entry.memory.volumes_ready && !is_deleted(&entry.pod) && !self.shop.runtime.simulated() && volumes::has_files(&entry.pod);
        if !wanted {
            return;
        }
        if entry.files_due_ms > now {
            entry.wake(Some(entry.files_due_ms));
            return;
        }
        entry.files_due_ms = i64::MAX;
        let job = Job { pod: Arc::clone(&entry.pod), seen: Arc::clone(&entry.seen) };
        let (shop, inputs, uid) = (Arc::clone(&self.shop), self.inputs.clone(), uid.to_owned());
        self.shop.env.spawn(
            "pod files",
            Box::pin(async move {
                // A failure is an event; the files stay as they are.
                let _ = shop.carry_out(&job, Step::PrepareVolumes).await;
                let _ = inputs.send(Input::FilesDone(uid)).await;
            }),
        );
    }

    /// Hands the pod's status to the session, if it says something new.
    fn report(&mut self, uid: &str, now: i64) {
        let Some(entry) = self.pods.get_mut(uid).filter(|e| e.in_api) else { return };
        let facts = NodeFacts { ip: &self.shop.node_ip, runtime: &self.runtime_name };
        let fresh = status(&entry.pod, &entry.seen, &entry.memory, &facts, now);
        let finished = is_deleted(&entry.pod) && entry.memory.cleaned;
        let overwritten = entry.differs_since_ms.is_some_and(|since| now - since >= DIFFERS_MS);
        if overwritten {
            entry.differs_since_ms = None;
        }
        if let Some(since) = entry.differs_since_ms {
            entry.wake(Some(since + DIFFERS_MS));
        }
        let news = match (&entry.sent, &entry.pod.status) {
            (Some(sent), _) => !same(sent, &fresh),
            (None, Some(theirs)) => !same(theirs, &fresh),
            (None, None) => true,
        };
        let say_finished = finished && now - entry.finished_said_ms >= FINISHED_EVERY_MS;
        if finished {
            entry.wake(Some(now + FINISHED_EVERY_MS));
        }
        if !news && !say_finished && !overwritten {
            return;
        }
        if finished {
            entry.finished_said_ms = now;
        }
        let key = entry.key();
        // A status is made of strings and numbers: it cannot fail to be written.
        let json = serde_json::to_vec(&fresh).unwrap_or_default();
        let mut pod = (*entry.pod).clone();
        pod.status = Some(fresh.clone());
        entry.pod = Arc::new(pod);
        entry.sent = Some(fresh);
        self.outbox.put(pb::PodStatus {
            namespace: key.namespace,
            name: key.name,
            uid: uid.to_owned(),
            status_json: json.into(),
            finished_deleting: finished,
        });
    }
}

/// A failed pull is first shown as such, then as waiting for the next attempt.
fn show_back_off(entry: &mut Entry, now: i64) {
    let mut wake = None;
    for (name, blocked) in entry.memory.blocked.iter_mut().filter(|(_, b)| b.reason == "ErrImagePull") {
        let shown_until = blocked.backoff.charged_ms + PULL_ERROR_SHOWN_MS;
        if now < shown_until {
            wake = Some(wake.map_or(shown_until, |at: i64| at.min(shown_until)));
            continue;
        }
        let image = container(&entry.pod, name).and_then(|c| c.image.clone()).unwrap_or_default();
        blocked.reason = "ImagePullBackOff".to_owned();
        blocked.message = format!("Back-off pulling image {image:?}: {}", blocked.message);
    }
    entry.wake(wake);
}
