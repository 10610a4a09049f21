//! Informers: list, then watch from there, for every kind that the controllers follow. They feed the [`World`] of this process, which
//! controllers, scheduler and node sessions share, and they say how far each kind has come.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kontiki_base::code::Retry;
use kontiki_base::env::{Env, Task};
use kontiki_base::object::ObjectKey;
use kontiki_base::{Code, Revision, Uid};
use kontiki_control::Kind;
use kontiki_control::meta;
use kontiki_control::schedule::Snapshot;
use kontiki_control::world::{Applied, Change, Dirty, ObjectId, Settings, World};
use tokio::sync::Notify;

use crate::api::{Client, Object, Scope, WatchEvent, jittered};
use crate::config::ApiConfig;
use crate::error::{ApiError, ConfigError};
use crate::metrics::{KindLabel, Metrics};
use crate::queue::Queue;

/// How long a kind that the server does not serve is left alone.
const ABSENT_PAUSE: Duration = Duration::from_secs(30);

/// A task that ends with its owner.
#[derive(Debug)]
pub struct Owned(Task);

impl Owned {
    /// Starts it.
    pub fn spawn(env: &Arc<dyn Env>, name: &'static str, task: impl Future<Output = ()> + Send + 'static) -> Self {
        Self(env.spawn(name, Box::pin(task)))
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What a node session is told: which of its node's pods have changed. Latest state wins; the pods themselves are in the world.
#[derive(Debug, Default)]
pub struct NodeFeed {
    dirty: Mutex<BTreeSet<(ObjectKey, Uid)>>,
    /// Something was added.
    pub changed: Notify,
}

impl NodeFeed {
    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeSet<(ObjectKey, Uid)>> {
        self.dirty.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, key: ObjectKey, uid: Uid) {
        self.lock().insert((key, uid));
        self.changed.notify_one();
    }

    /// Takes what has changed.
    pub fn take(&self) -> BTreeSet<(ObjectKey, Uid)> {
        std::mem::take(&mut *self.lock())
    }
}

/// One kind's progress.
#[derive(Default)]
struct Progress {
    reached: AtomicI64,
    synced: AtomicBool,
    relist: Notify,
}

/// The caches of this process.
pub struct Caches {
    /// The client that feeds them.
    pub client: Client,
    /// Clock, tasks, randomness.
    pub env: Arc<dyn Env>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Keys that controllers must look at; fed only while [`Caches::feed`] is on.
    pub queue: Queue<Dirty>,
    world: RwLock<World>,
    snapshot: Mutex<Snapshot>,
    /// Raw pods by name, as they came: what node agents are sent.
    raw_pods: RwLock<BTreeMap<ObjectKey, bytes::Bytes>>,
    progress: Vec<Progress>,
    moved: Notify,
    feeding: AtomicBool,
    /// A pod waits for a node, or something changed that may help one that does.
    pub scheduling: crate::schedule::Inbox,
    feeds: Mutex<BTreeMap<String, Vec<std::sync::Weak<NodeFeed>>>>,
}

impl std::fmt::Debug for Caches {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Caches").field("synced", &self.synced()).finish_non_exhaustive()
    }
}

impl Caches {
    /// Empty caches. [`Caches::run`] fills them.
    pub fn new(api: &ApiConfig, env: Arc<dyn Env>, metrics: Arc<Metrics>, settings: Settings) -> Result<Arc<Self>, ConfigError> {
        let client = Client::new(api, env.clone())?;
        let world = World::new(settings);
        Ok(Arc::new(Self {
            client,
            queue: Queue::new(env.clone()),
            env,
            metrics,
            world: RwLock::new(world),
            snapshot: Mutex::new(Snapshot::new()),
            raw_pods: RwLock::new(BTreeMap::new()),
            progress: Kind::ALL.iter().map(|_| Progress::default()).collect(),
            moved: Notify::new(),
            feeding: AtomicBool::new(false),
            scheduling: crate::schedule::Inbox::default(),
            feeds: Mutex::new(BTreeMap::new()),
        }))
    }

    /// Follows all kinds until `shutdown` completes.
    pub async fn run(self: Arc<Self>, shutdown: impl Future<Output = ()>) {
        let tasks: Vec<Owned> = Kind::watched().map(|kind| Owned::spawn(&self.env, "informer", self.clone().follow(kind))).collect();
        shutdown.await;
        drop(tasks);
    }

    /// What controllers may look at.
    pub fn world(&self) -> RwLockReadGuard<'_, World> {
        // A panic inside a reconcile leaves the world as it was: reconciles only read.
        self.world.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn world_mut(&self) -> RwLockWriteGuard<'_, World> {
        self.world.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The scheduler's view.
    pub fn snapshot(&self) -> std::sync::MutexGuard<'_, Snapshot> {
        self.snapshot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A pod's JSON as the API sent it.
    pub fn raw_pod(&self, key: &ObjectKey) -> Option<bytes::Bytes> {
        self.raw_pods.read().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }

    /// Changes the world by something that is not an object: heartbeats.
    pub fn tick(&self, liveness: BTreeMap<String, kontiki_control::world::NodeLiveness>) -> Vec<Dirty> {
        let now = self.env.now_wall();
        self.world_mut().tick(now, liveness)
    }

    /// Up to which revision everything of a kind has been seen.
    pub fn reached(&self, kind: Kind) -> Revision {
        Revision::new(self.progress[kind.index()].reached.load(Ordering::Acquire))
    }

    /// Whether every kind has been listed once.
    pub fn synced(&self) -> bool {
        Kind::watched().all(|kind| self.progress[kind.index()].synced.load(Ordering::Acquire))
    }

    /// Whether changes go into the queue. Switching it off empties the queue.
    pub fn feed(&self, on: bool) {
        self.feeding.store(on, Ordering::Release);
        if !on {
            self.queue.reset();
        }
    }

    /// Completes when `done` holds; it is asked after every step that an informer makes.
    pub async fn until(&self, done: impl Fn(&Self) -> bool) {
        loop {
            let moved = self.moved.notified();
            tokio::pin!(moved);
            // Registered before the question, so that no step falls between the two.
            moved.as_mut().enable();
            if done(self) {
                return;
            }
            moved.await;
        }
    }

    /// Brings `kinds` at least to what the store holds right now. A kind that does not get there by itself soon is listed again.
    pub async fn catch_up(&self, kinds: &[Kind]) -> Result<Revision, ApiError> {
        let now = self.client.revision(Kind::Namespace).await?;
        let behind = |me: &Self| kinds.iter().copied().filter(|k| me.reached(*k) < now).collect::<Vec<_>>();
        tokio::select! {
            () = self.until(|me| behind(me).is_empty()) => return Ok(now),
            () = self.env.sleep(Duration::from_millis(200)) => {}
        }
        for kind in behind(self) {
            self.progress[kind.index()].relist.notify_one();
        }
        self.until(|me| behind(me).is_empty()).await;
        Ok(now)
    }

    /// Tells a session of the changes of its node's pods for as long as it keeps what this returns.
    pub fn subscribe(&self, node: &str) -> Arc<NodeFeed> {
        let feed = Arc::new(NodeFeed::default());
        let mut feeds = self.feeds.lock().unwrap_or_else(PoisonError::into_inner);
        let list = feeds.entry(node.to_owned()).or_default();
        list.retain(|f| f.strong_count() > 0);
        list.push(Arc::downgrade(&feed));
        feed
    }

    async fn follow(self: Arc<Self>, kind: Kind) {
        let mut pause = Duration::from_millis(20);
        loop {
            let error = match self.list(kind).await {
                Ok(from) => {
                    pause = Duration::from_millis(20);
                    self.watch(kind, from).await
                }
                Err(error) => error,
            };
            let absent = matches!(error.code, Code::NotFound | Code::MethodNotAllowed | Code::Unimplemented);
            if absent {
                tracing::info!(%kind, %error, "kind is not served");
                self.progress[kind.index()].reached.store(i64::MAX, Ordering::Release);
                self.step(kind);
                self.env.sleep(ABSENT_PAUSE).await;
                continue;
            }
            if error.code.retry() != Retry::AfterRelist {
                tracing::warn!(%kind, %error, "informer starts over");
            }
            self.env.sleep(jittered(pause, self.env.random_u64())).await;
            pause = (pause * 2).min(Duration::from_secs(5));
        }
    }

    async fn list(&self, kind: Kind) -> Result<Revision, ApiError> {
        self.metrics.lists.get_or_create(&KindLabel { kind: kind.plural() }).inc();
        let (revision, objects) = self.client.list(kind, &Scope::default()).await?;
        let mut gone: BTreeSet<ObjectKey> = self.world().keys(kind).into_iter().collect();
        for object in &objects {
            if let Some(key) = self.apply(kind, object) {
                gone.remove(&key);
            }
            self.queue.room().await;
        }
        for key in gone {
            self.remove(kind, &key);
        }
        self.progress[kind.index()].reached.store(revision.get(), Ordering::Release);
        self.step(kind);
        Ok(revision)
    }

    fn step(&self, kind: Kind) {
        self.progress[kind.index()].synced.store(true, Ordering::Release);
        self.moved.notify_waiters();
    }

    /// Follows changes after `from`; what ended it. The watch is resumed by itself as long as the history is there.
    async fn watch(&self, kind: Kind, from: Revision) -> ApiError {
        let progress = &self.progress[kind.index()];
        let mut pause = Duration::from_millis(20);
        loop {
            let after = Revision::new(progress.reached.load(Ordering::Acquire)).max(from);
            let mut watch = match self.client.watch(kind, &Scope::default(), after).await {
                Ok(watch) => watch,
                Err(error) => return error,
            };
            let ended = loop {
                let next = tokio::select! {
                    next = watch.next() => next,
                    () = progress.relist.notified() => return ApiError::new("watch", Code::Compacted, "a fresh list was asked for"),
                };
                match next {
                    Ok(Some(event)) => {
                        pause = Duration::from_millis(20);
                        self.take_in(kind, event, watch.reached());
                        self.queue.room().await;
                    }
                    Ok(None) => break None,
                    Err(error) => break Some(error),
                }
            };
            if let Some(error) = ended {
                if !matches!(error.code.retry(), Retry::OtherNode | Retry::Backoff) {
                    return error;
                }
                tracing::debug!(%kind, %error, after = progress.reached.load(Ordering::Relaxed), "watch is resumed");
            }
            self.env.sleep(jittered(pause, self.env.random_u64())).await;
            pause = (pause * 2).min(Duration::from_secs(2));
        }
    }

    fn take_in(&self, kind: Kind, event: WatchEvent, reached: Revision) {
        match event {
            WatchEvent::Upsert(object) => {
                self.apply(kind, &object);
            }
            WatchEvent::Removed(object) => match serde_json::from_slice::<MetaOnly>(&object.raw) {
                Ok(last) => self.remove(kind, &meta::key(&last.metadata)),
                Err(error) => tracing::warn!(%kind, %error, "a removed object has no name"),
            },
            WatchEvent::Bookmark(_) => {}
        }
        self.progress[kind.index()].reached.fetch_max(reached.get(), Ordering::AcqRel);
        self.step(kind);
    }

    fn apply(&self, kind: Kind, object: &Object) -> Option<ObjectKey> {
        let applied = self.world_mut().apply(kind, Change::Upsert(&object.raw));
        match applied {
            Ok(applied) => {
                if kind == Kind::Pod {
                    let mut raw = self.raw_pods.write().unwrap_or_else(PoisonError::into_inner);
                    raw.insert(applied.key.clone(), object.raw.clone());
                }
                let key = applied.key.clone();
                self.after(kind, applied);
                Some(key)
            }
            Err(error) => {
                self.unreadable(kind, &error);
                // It is there, though: a list that contains it must not end what is known of it.
                serde_json::from_slice::<MetaOnly>(&object.raw).ok().map(|o| meta::key(&o.metadata))
            }
        }
    }

    fn unreadable(&self, kind: Kind, error: &dyn std::fmt::Display) {
        tracing::warn!(%kind, %error, "unreadable object is left out");
        self.metrics.unreadable.get_or_create(&KindLabel { kind: kind.plural() }).inc();
    }

    fn remove(&self, kind: Kind, key: &ObjectKey) {
        if kind == Kind::Pod {
            self.raw_pods.write().unwrap_or_else(PoisonError::into_inner).remove(key);
        }
        let applied = self.world_mut().apply(kind, Change::Remove(key));
        if let Ok(applied) = applied {
            self.after(kind, applied);
        }
    }

    fn after(&self, kind: Kind, applied: Applied) {
        let Applied { key, dirty, old_pod } = applied;
        let key = &key;
        let place = |p: &Arc<Pod>| (meta::node_of(p).to_owned(), meta::uid(&p.metadata));
        match kind {
            Kind::Pod => {
                let pod = self.world().pods.get(key).cloned();
                let mut snapshot = self.snapshot();
                match &pod {
                    Some(pod) => snapshot.upsert_pod(pod.clone()),
                    None => snapshot.remove_pod(key),
                }
                drop(snapshot);
                self.scheduling.pod(key, pod.as_deref());
                self.tell_sessions(key, old_pod.as_ref().map(place), pod.as_ref().map(place));
            }
            Kind::Node => {
                let node = self.world().nodes.get(key).cloned();
                let mut snapshot = self.snapshot();
                match node {
                    Some(node) => snapshot.upsert_node(node),
                    None => snapshot.remove_node(&key.name),
                }
                drop(snapshot);
                self.scheduling.cluster_changed();
            }
            _ => {}
        }
        if self.feeding.load(Ordering::Acquire) {
            dirty.into_iter().for_each(|d| self.queue.add(d));
        }
    }

    fn tell_sessions(&self, key: &ObjectKey, before: Option<(String, Uid)>, now: Option<(String, Uid)>) {
        let feeds = self.feeds.lock().unwrap_or_else(PoisonError::into_inner);
        for (node, uid) in before.into_iter().chain(now) {
            for feed in feeds.get(&node).into_iter().flatten().filter_map(std::sync::Weak::upgrade) {
                feed.add(key.clone(), uid.clone());
            }
        }
    }

    /// Whether a plan's write has been seen.
    pub fn has_seen(&self, written: &Written) -> bool {
        match written {
            Written::Object(kind, revision) => self.reached(*kind) >= *revision,
            Written::Gone(id, uid) => self.world().graph.get(id).is_none_or(|row| row.uid != *uid),
        }
    }
}

#[derive(serde::Deserialize)]
struct MetaOnly {
    metadata: k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
}

/// What a plan has written and its next reconcile must have seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Written {
    /// An object of this kind at this revision.
    Object(Kind, Revision),
    /// This object is gone.
    Gone(ObjectId, Uid),
}
