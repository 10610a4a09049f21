//! The scheduler's loop: pods that wait are decided on one after the other against the snapshot, and bound in batches, each batch one
//! transaction. A batch that fails is bound pod by pod. A binding whose answer got lost stays assumed until the API says what became
//! of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kontiki_base::env::Mono;
use kontiki_base::object::ObjectKey;
use kontiki_base::{Code, Term, Uid, limits};
use kontiki_control::plan::{EventType, Plan, Regarding};
use kontiki_control::schedule::{self, Decision, NamespaceLabels};
use kontiki_control::{Kind, meta};
use kontiki_proto::trace::names;
use tokio::sync::Notify;
use tracing::Instrument as _;

use crate::act::Hands;
use crate::api::Client;
use crate::error::ApiError;
use crate::events::Recorder;
use crate::informer::Caches;
use crate::leader::Alive;

/// A pod that did not fit is tried again after this long although nothing seems to have changed.
const FLUSH: Duration = Duration::from_secs(300);

/// What the informers tell the scheduler. Latest state wins.
#[derive(Default)]
pub struct Inbox {
    inner: Mutex<Letters>,
    arrived: Notify,
}

#[derive(Default)]
struct Letters {
    /// Pods that may be pending, and pods that no longer are.
    pods: BTreeSet<ObjectKey>,
    /// Counts changes that may let a waiting pod fit.
    changes: u64,
}

impl Inbox {
    fn lock(&self) -> MutexGuard<'_, Letters> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A pod has changed; `None`: it is gone.
    pub fn pod(&self, key: &ObjectKey, pod: Option<&Pod>) {
        let mut letters = self.lock();
        letters.pods.insert(key.clone());
        // Room appears when a pod ends or goes, affinity may be satisfied when one is placed.
        if pod.is_none_or(|p| meta::terminal(p) || !meta::node_of(p).is_empty()) {
            letters.changes += 1;
        }
        drop(letters);
        self.arrived.notify_one();
    }

    /// A node has changed.
    pub fn cluster_changed(&self) {
        self.lock().changes += 1;
        self.arrived.notify_one();
    }

    fn take(&self) -> (BTreeSet<ObjectKey>, u64) {
        let mut letters = self.lock();
        (std::mem::take(&mut letters.pods), letters.changes)
    }

    fn changes(&self) -> u64 {
        self.lock().changes
    }
}

/// A pod that waits.
#[derive(Clone, Debug)]
struct Waiting {
    uid: Uid,
    priority: i32,
    /// Order of arrival.
    seq: u64,
    attempts: u32,
    seen: Mono,
    /// Not before this.
    not_before: Mono,
    /// It did not fit when the cluster had seen so many changes: it waits for more. `None`: it may be tried.
    rejected_at: Option<u64>,
    flush_at: Mono,
}

struct Scheduler {
    caches: Arc<Caches>,
    client: Client,
    recorder: Recorder,
    waiting: BTreeMap<ObjectKey, Waiting>,
    next_seq: u64,
}

/// A pod that has been given a node.
struct Bound {
    key: ObjectKey,
    uid: Uid,
    node: String,
    seen: Mono,
}

/// Schedules under `term` until dropped.
pub(crate) async fn run(caches: Arc<Caches>, term: Term, recorder: Recorder, _alive: Alive) {
    let client = caches.client.under(term).as_manager(schedule::SCHEDULER);
    forget_assumed(&caches);
    let mut me = Scheduler { client, recorder, waiting: BTreeMap::new(), next_seq: 0, caches };
    let pending: Vec<ObjectKey> = {
        let world = me.caches.world();
        world.pods.all().filter(|p| schedule::is_pending(p)).map(|p| meta::key(&p.metadata)).collect()
    };
    pending.iter().for_each(|key| me.look(key));
    loop {
        let (pods, changes) = me.caches.scheduling.take();
        pods.iter().for_each(|key| me.look(key));
        let batch = me.batch(changes);
        if batch.is_empty() {
            me.rest().await;
            continue;
        }
        let bound = me.decide(batch).await;
        me.bind(bound).await;
    }
}

/// What an earlier reign assumed has been seen by now, or has failed: the caches are caught up, and nothing more can be written
/// under its term.
fn forget_assumed(caches: &Caches) {
    let mut snapshot = caches.snapshot();
    let assumed: Vec<_> = snapshot.assumed().map(|(key, placed)| (key.clone(), meta::uid(&placed.pod.metadata))).collect();
    assumed.iter().for_each(|(key, uid)| snapshot.forget(key, uid));
}

impl Scheduler {
    /// Takes notice of a pod's present state.
    fn look(&mut self, key: &ObjectKey) {
        let pod = self.caches.world().pods.get(key).cloned();
        let Some(pod) = pod.filter(|p| schedule::is_pending(p) && !self.caches.snapshot().is_assumed(key)) else {
            self.waiting.remove(key);
            return;
        };
        let uid = meta::uid(&pod.metadata);
        if self.waiting.get(key).is_some_and(|w| w.uid == uid) {
            return;
        }
        let now = self.caches.env.now_mono();
        self.next_seq += 1;
        let waiting = Waiting {
            uid,
            priority: schedule::priority(&pod),
            seq: self.next_seq,
            attempts: 0,
            seen: now,
            not_before: now,
            rejected_at: None,
            flush_at: now.plus(FLUSH),
        };
        self.waiting.insert(key.clone(), waiting);
    }

    /// The pods to be tried now: highest priority first, then in order of arrival.
    fn batch(&mut self, changes: u64) -> Vec<ObjectKey> {
        let now = self.caches.env.now_mono();
        let may = |w: &Waiting| w.not_before <= now && (w.rejected_at.is_none_or(|at| at < changes) || w.flush_at <= now);
        let mut ready: Vec<(i64, u64, &ObjectKey)> =
            self.waiting.iter().filter(|(_, w)| may(w)).map(|(key, w)| (-i64::from(w.priority), w.seq, key)).collect();
        ready.sort_unstable();
        ready.into_iter().take(limits::BIND_BATCH).map(|(_, _, key)| key.clone()).collect()
    }

    /// Waits for news, or for the next pod whose pause ends.
    async fn rest(&self) {
        let now = self.caches.env.now_mono();
        let changes = self.caches.scheduling.changes();
        let due = |w: &Waiting| if w.rejected_at.is_none_or(|at| at < changes) { w.not_before } else { w.flush_at.max(w.not_before) };
        let next = self.waiting.values().map(due).min();
        let wait = next.map_or(FLUSH, |at| at.since(now)).max(Duration::from_millis(1));
        tokio::select! {
            () = self.caches.scheduling.arrived.notified() => {}
            () = self.caches.env.sleep(wait) => {}
        }
    }

    async fn decide(&mut self, batch: Vec<ObjectKey>) -> Vec<Bound> {
        let namespaces = self.namespaces();
        let mut bound = Vec::new();
        for key in batch {
            let Some(waiting) = self.waiting.get(&key).cloned() else { continue };
            // Counted before the look: what changes during the decision counts as news.
            let changes = self.caches.scheduling.changes();
            let pod = self.caches.world().pods.get(&key).cloned();
            let Some(pod) = pod.filter(|p| meta::uid(&p.metadata) == waiting.uid && schedule::is_pending(p)) else {
                self.waiting.remove(&key);
                continue;
            };
            let decision = {
                let mut snapshot = self.caches.snapshot();
                let decision = schedule::schedule(&pod, &mut snapshot, &namespaces);
                if let Decision::Bind { node, .. } = &decision {
                    snapshot.assume(pod.clone(), node);
                }
                decision
            };
            match decision {
                Decision::Bind { node, .. } => {
                    self.waiting.remove(&key);
                    bound.push(Bound { key, uid: waiting.uid, node, seen: waiting.seen });
                }
                Decision::Unschedulable(why) => {
                    self.reject(&key, changes);
                    self.say_why(&pod, &why.message()).await;
                }
            }
        }
        bound
    }

    fn namespaces(&self) -> NamespaceLabels {
        let world = self.caches.world();
        let labels = |ns: &Arc<k8s_openapi::api::core::v1::Namespace>| {
            (meta::name(&ns.metadata).to_owned(), ns.metadata.labels.clone().unwrap_or_default())
        };
        world.namespaces.all().map(labels).collect()
    }

    /// The pod waits for a change of the cluster, and for a pause of 1, 2, 4, 8, 10 seconds.
    fn reject(&mut self, key: &ObjectKey, changes: u64) {
        let now = self.caches.env.now_mono();
        if let Some(waiting) = self.waiting.get_mut(key) {
            let pause = Duration::from_secs(1u64 << waiting.attempts.min(4)).min(Duration::from_secs(10));
            waiting.attempts += 1;
            waiting.not_before = now.plus(pause);
            waiting.rejected_at = Some(changes);
            waiting.flush_at = now.plus(FLUSH);
        }
    }

    async fn say_why(&self, pod: &Pod, message: &str) {
        let Some(action) = schedule::unscheduled_condition(pod, message, self.caches.env.now_wall()) else { return };
        let plan = Plan { actions: vec![action], ..Plan::default() };
        let hands =
            Hands { client: self.client.clone(), recorder: &self.recorder, source: schedule::SCHEDULER, metrics: &self.caches.metrics };
        if let Some(stopped) = hands.carry_out(&plan).await.stopped {
            tracing::debug!(pod = %meta::key(&pod.metadata), ?stopped, "condition not written");
        }
        let regarding = Regarding { kind: Kind::Pod, key: meta::key(&pod.metadata), uid: meta::uid(&pod.metadata) };
        self.recorder.record(schedule::SCHEDULER, regarding, EventType::Warning, "FailedScheduling", message.to_owned());
    }

    async fn bind(&mut self, bound: Vec<Bound>) {
        if bound.is_empty() {
            return;
        }
        let writes = bound.iter().map(|b| self.client.bind_write(&b.key, &b.uid, &b.node)).collect();
        let span = tracing::debug_span!(parent: None, names::BIND, pods = bound.len());
        match self.client.transact(writes).instrument(span).await {
            Ok(_) => bound.iter().for_each(|b| self.tell(b)),
            Err(error) => {
                tracing::debug!(%error, pods = bound.len(), "batch is bound pod by pod");
                for b in bound {
                    self.bind_one(b).await;
                }
            }
        }
    }

    async fn bind_one(&mut self, b: Bound) {
        loop {
            let error = match self.client.transact(vec![self.client.bind_write(&b.key, &b.uid, &b.node)]).await {
                Ok(_) => return self.tell(&b),
                Err(error) => error,
            };
            match self.fate(&b).await {
                Ok(Fate::Bound) => return self.tell(&b),
                Ok(Fate::Elsewhere) => return self.caches.snapshot().forget(&b.key, &b.uid),
                Ok(Fate::Pending) if error.is_ambiguous() => {}
                Ok(Fate::Pending) => {
                    tracing::warn!(pod = %b.key, node = b.node, %error, "binding failed");
                    self.caches.snapshot().forget(&b.key, &b.uid);
                    self.look(&b.key);
                    let changes = self.caches.scheduling.changes();
                    self.reject(&b.key, changes);
                    // An error is not a lack of room: it is tried again after the pause, whatever happens meanwhile.
                    if let Some(waiting) = self.waiting.get_mut(&b.key) {
                        waiting.rejected_at = None;
                    }
                    return;
                }
                Err(unknown) => tracing::warn!(pod = %b.key, error = %unknown, "fate of a binding is unknown"),
            }
            self.caches.env.sleep(Duration::from_millis(200)).await;
        }
    }

    /// What has become of a binding, from the API itself.
    async fn fate(&self, b: &Bound) -> Result<Fate, ApiError> {
        let pod: Pod = match self.client.get(Kind::Pod, &b.key).await {
            Ok(object) => object.parse()?,
            Err(error) if error.code == Code::NotFound => return Ok(Fate::Elsewhere),
            Err(error) => return Err(error),
        };
        let node = meta::node_of(&pod);
        Ok(if meta::uid(&pod.metadata) != b.uid || meta::deleting(&pod.metadata) && node.is_empty() {
            Fate::Elsewhere
        } else if node == b.node {
            Fate::Bound
        } else if node.is_empty() {
            Fate::Pending
        } else {
            Fate::Elsewhere
        })
    }

    fn tell(&self, b: &Bound) {
        let metrics = &self.caches.metrics;
        metrics.binds.inc();
        metrics.bind_seconds.observe(self.caches.env.now_mono().since(b.seen).as_secs_f64());
        let regarding = Regarding { kind: Kind::Pod, key: b.key.clone(), uid: b.uid.clone() };
        let message = format!("Successfully assigned {} to {}", b.key, b.node);
        self.recorder.record(schedule::SCHEDULER, regarding, EventType::Normal, "Scheduled", message);
    }
}

/// What has become of a binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// It is there.
    Bound,
    /// It is not there.
    Pending,
    /// The pod is gone, going, or on another node.
    Elsewhere,
}
