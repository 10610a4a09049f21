//! The hub: takes what was applied, finds who watches it, brings it to them.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use kontiki_base::WatchId;
use kontiki_base::env::{Env, Task};
use kontiki_base::ids::Revision;
use kontiki_base::key::KeyRange;
use kontiki_base::kv::{Event, KeyValue, KvError};
use kontiki_base::limits;
use kontiki_base::mutant;
use kontiki_mvcc::View;
use tokio::sync::{Notify, mpsc, watch};

use super::index::{StreamId, Sub, WatchIndex};
use super::replay::{REPLAY_EVENTS, previous_of};
use super::ring::{Feed, Ring, RingLimits};
use super::seen::{Seen, Wired};
use super::session::WatchSpec;
use crate::metrics::Metrics;
use crate::raft::AppliedBatch;

/// What was there before each event of a batch. Looked up when the first watcher wants it, for all that follow; gone with the deliveries.
pub type Prevs = Arc<[OnceLock<Option<KeyValue>>]>;

/// A batch for a stream: which of its events each of the stream's watches sees.
#[derive(Debug)]
pub struct Delivery {
    /// The batch.
    pub feed: Arc<Feed>,
    /// Which watch sees which place in `feed.events`: by watch, then in order.
    pub hits: Vec<(WatchId, u32)>,
    /// What was there before; empty if nobody wants to know.
    pub prevs: Prevs,
    /// The events as they are sent.
    pub wired: Wired,
}

/// The places that one watch sees.
type Hits = [(WatchId, u32)];

impl Delivery {
    /// The events that a watch sees.
    pub fn events(&self, hits: &Hits) -> Seen {
        let all = hits.len() == self.feed.events.len();
        let places = (!all).then(|| hits.iter().map(|(_, place)| *place).collect());
        Seen::Shared { feed: Arc::clone(&self.feed), wired: Arc::clone(&self.wired), places }
    }

    /// The events that a watch sees, with what was there before.
    ///
    /// # Errors
    /// [`KvError::Corrupt`].
    pub fn events_with_prev(&self, hits: &Hits, view: &dyn View) -> Result<Seen, KvError> {
        let mut events = Vec::with_capacity(hits.len());
        for place in hits.iter().filter_map(|(_, place)| usize::try_from(*place).ok()) {
            let Some(event) = self.feed.events.get(place) else { continue };
            let known = self.prevs.get(place);
            let prev = match known.and_then(OnceLock::get) {
                Some(prev) => prev.clone(),
                None => {
                    let prev = previous_of(view, &self.feed.events, place)?;
                    // Two streams may look at once; they find the same.
                    let _ = known.map(|known| known.set(prev.clone()));
                    prev
                }
            };
            events.push(Event { prev, ..event.clone() });
        }
        Ok(events.into())
    }
}

/// Where the store stands, as far as apply has told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tip {
    /// The latest revision that is readable here.
    pub revision: Revision,
    /// History begins here.
    pub compact: Revision,
}

/// A stream's end of its connection to the hub.
#[derive(Debug)]
pub struct Link {
    id: StreamId,
    place: Option<Place>,
}

/// A place in the index.
#[derive(Debug)]
struct Place {
    rx: mpsc::Receiver<Delivery>,
    /// Everything up to here was queued before the stream was thrown out; meaningful once `rx` has ended.
    seen: Arc<AtomicI64>,
}

/// What [`Hub::attach`] found.
#[derive(Debug)]
pub enum Attach {
    /// The watch is in the index. These feeds hold what was dispatched before, from its `next` on.
    Live(Vec<Arc<Feed>>),
    /// There is more to catch up with than one piece, but it is in memory: this is the next piece.
    Behind(Vec<Arc<Feed>>),
    /// The ring does not reach back to there: read the engine.
    Cold,
    /// The stream was thrown out, and has not noticed yet: take what is queued first.
    Overflowed,
    /// What it wants is gone; history begins here.
    Compacted(Revision),
    /// The member is shutting down.
    Closed,
}

#[derive(Debug)]
struct Entry {
    tx: mpsc::Sender<Delivery>,
    seen: Arc<AtomicI64>,
    watches: BTreeMap<WatchId, KeyRange>,
}

#[derive(Debug)]
struct Index {
    watches: WatchIndex,
    streams: BTreeMap<StreamId, Entry>,
    /// The next feed to dispatch.
    next_seq: u64,
    /// Everything up to here has been brought to whoever watches it.
    dispatched: Revision,
    next_stream: StreamId,
    closed: bool,
}

struct Past {
    ring: Ring,
    tip: Tip,
}

/// The hub. Locks are taken in the order `index`, `past`, and never held across an await.
pub struct Hub {
    index: Mutex<Index>,
    past: Mutex<Past>,
    wake: Notify,
    dispatched: watch::Sender<Revision>,
    queue: usize,
    metrics: Arc<Metrics>,
}

/// The hub's bounds; the defaults are those of `base::limits`.
#[derive(Clone, Copy, Debug)]
pub struct HubLimits {
    /// The ring's.
    pub ring: RingLimits,
    /// Deliveries that may wait for one stream.
    pub stream_queue: usize,
}

impl Default for HubLimits {
    fn default() -> Self {
        let ring = RingLimits { revisions: limits::WATCH_RING_REVISIONS, bytes: limits::WATCH_RING_BYTES };
        Self { ring, stream_queue: limits::WATCH_STREAM_QUEUE }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic elsewhere cannot leave these maps half-written in a way that matters more than serving on.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Hub {
    /// A hub of a store that stands at `tip`.
    pub fn new(limits: HubLimits, tip: Tip, metrics: Arc<Metrics>) -> Arc<Self> {
        let index = Index {
            watches: WatchIndex::default(),
            streams: BTreeMap::new(),
            next_seq: 0,
            dispatched: tip.revision,
            next_stream: 1,
            closed: false,
        };
        Arc::new(Self {
            index: Mutex::new(index),
            past: Mutex::new(Past { ring: Ring::new(limits.ring, tip.revision), tip }),
            wake: Notify::new(),
            dispatched: watch::Sender::new(tip.revision),
            queue: limits.stream_queue,
            metrics,
        })
    }

    /// Starts the task that brings batches to their watchers.
    pub fn run(self: &Arc<Self>, env: &dyn Env) -> Task {
        let hub = Arc::clone(self);
        env.spawn(
            "watch.dispatch",
            Box::pin(async move {
                loop {
                    let woken = hub.wake.notified();
                    if hub.dispatch_all() {
                        return;
                    }
                    woken.await;
                }
            }),
        )
    }

    /// Where the store stands.
    pub fn tip(&self) -> Tip {
        lock(&self.past).tip
    }

    /// Everything up to here has been brought to whoever watches it; latest wins.
    pub fn dispatched(&self) -> watch::Receiver<Revision> {
        self.dispatched.subscribe()
    }

    /// Takes a batch: on the apply thread, in order. Appends to the ring and returns.
    pub fn applied(&self, batch: AppliedBatch) {
        {
            let mut past = lock(&self.past);
            past.tip = Tip { revision: batch.revision.max(past.tip.revision), compact: batch.compact.max(past.tip.compact) };
            past.ring.push(batch.events, batch.revision);
        }
        self.wake.notify_one();
    }

    /// The whole state was replaced. Everybody is thrown out of the index, and reads on from where they stand in the new history.
    pub fn replaced(&self, tip: Tip) {
        let mut index = lock(&self.index);
        {
            let mut past = lock(&self.past);
            past.tip = tip;
            past.ring.clear(tip.revision);
            index.next_seq = past.ring.next_seq();
        }
        let seen = index.dispatched;
        index.throw_out_all(seen);
        index.dispatched = tip.revision;
        self.dispatched.send_replace(tip.revision);
    }

    /// Tells where the store stands when it was opened: apply tells only what comes after. Does nothing if apply has told more.
    pub fn prime(&self, tip: Tip) {
        let known = self.tip();
        if tip.revision > known.revision {
            self.replaced(tip);
        } else if tip.compact > known.compact {
            lock(&self.past).tip.compact = tip.compact;
        }
    }

    /// Ends all streams.
    pub fn close(&self) {
        let mut index = lock(&self.index);
        index.closed = true;
        let seen = index.dispatched;
        index.throw_out_all(seen);
        drop(index);
        self.wake.notify_one();
    }

    /// A new stream's link.
    pub fn link(&self) -> Link {
        let mut index = lock(&self.index);
        let id = index.next_stream;
        index.next_stream += 1;
        Link { id, place: None }
    }

    /// Dispatches what there is, one batch per lock, so that registrations get through. Returns whether the hub is closed.
    fn dispatch_all(&self) -> bool {
        loop {
            let mut index = lock(&self.index);
            if index.closed {
                return true;
            }
            let (feed, tip) = {
                let past = lock(&self.past);
                (past.ring.at_or_after(index.next_seq).cloned(), past.tip)
            };
            let Some(feed) = feed else {
                // Batches without events still move the revision, and a missing feed means that nothing is left to bring.
                index.dispatched = tip.revision;
                drop(index);
                self.dispatched.send_if_modified(|known| std::mem::replace(known, tip.revision) != tip.revision);
                return false;
            };
            if feed.seq != index.next_seq {
                // The ring has lapped the dispatcher: whoever watches reads the engine instead.
                let seen = index.dispatched;
                index.throw_out_all(seen);
            }
            index.next_seq = feed.seq + 1;
            self.dispatch(&mut index, &feed);
            index.dispatched = feed.revision;
            drop(index);
            self.dispatched.send_replace(feed.revision);
        }
    }

    fn dispatch(&self, index: &mut Index, feed: &Arc<Feed>) {
        let mut hits: BTreeMap<StreamId, Vec<(WatchId, u32)>> = BTreeMap::new();
        let (mut sent, mut prev_kv) = (0, false);
        for (place, event) in (0..).zip(feed.events.iter()) {
            index.watches.matching(&event.kv.key, |sub| {
                if event.kv.mod_revision >= sub.from {
                    hits.entry(sub.stream).or_default().push((sub.watch, place));
                    sent += 1;
                    prev_kv |= sub.prev_kv;
                }
            });
        }
        self.metrics.events.inc_by(sent);
        let prevs: Prevs = if prev_kv { feed.events.iter().map(|_| OnceLock::new()).collect() } else { Arc::default() };
        let wired: Wired = if sent > 0 { feed.events.iter().map(|_| OnceLock::new()).collect() } else { Arc::default() };
        let seen = index.dispatched;
        for (stream, mut hits) in hits {
            // Places of a watch are in order already, and stay so.
            hits.sort_by_key(|(watch, _)| *watch);
            let Some(entry) = index.streams.get(&stream) else { continue };
            let delivery = Delivery { feed: Arc::clone(feed), hits, prevs: Arc::clone(&prevs), wired: Arc::clone(&wired) };
            if entry.tx.try_send(delivery).is_err() {
                self.metrics.overflows.inc();
                index.throw_out(stream, mutant!("M17", seen, feed.revision));
            }
        }
    }

    /// Tries to put a watch into the index so that it sees everything from `next` on.
    pub fn attach(&self, link: &mut Link, watch: WatchId, spec: &WatchSpec, next: Revision) -> Attach {
        let mut index = lock(&self.index);
        if index.closed {
            return Attach::Closed;
        }
        let past = lock(&self.past);
        if mutant!("M50", next < past.tip.compact, false) {
            return Attach::Compacted(past.tip.compact);
        }
        if link.place.is_some() && !index.streams.contains_key(&link.id) {
            return Attach::Overflowed;
        }
        let mut feeds = Vec::new();
        if next <= index.dispatched {
            let Some(found) = past.ring.since(next, index.next_seq, REPLAY_EVENTS) else { return Attach::Cold };
            if found.last().is_some_and(|last| last.seq + 1 < index.next_seq) {
                return Attach::Behind(found);
            }
            feeds = found;
        }
        drop(past);
        let from = mutant!("M18", next.max(index.dispatched.next()), index.dispatched.next());
        let queue = self.queue;
        index.insert(link, queue, &spec.range, Sub { stream: link.id, watch, from, prev_kv: spec.prev_kv });
        Attach::Live(feeds)
    }

    /// Takes a watch out of the index.
    pub fn detach(&self, link: &Link, watch: WatchId) {
        let mut index = lock(&self.index);
        if let Some(range) = index.streams.get_mut(&link.id).and_then(|entry| entry.watches.remove(&watch)) {
            index.watches.remove(&range, link.id, watch);
        }
    }

    /// Takes a whole stream out of the index.
    pub fn drop_link(&self, link: &Link) {
        lock(&self.index).throw_out(link.id, Revision::ZERO);
    }
}

impl Index {
    fn insert(&mut self, link: &mut Link, queue: usize, range: &KeyRange, sub: Sub) {
        let entry = self.streams.entry(link.id).or_insert_with(|| {
            let (tx, rx) = mpsc::channel(queue);
            let seen = Arc::new(AtomicI64::new(0));
            link.place = Some(Place { rx, seen: Arc::clone(&seen) });
            Entry { tx, seen, watches: BTreeMap::new() }
        });
        entry.watches.insert(sub.watch, range.clone());
        self.watches.insert(range, sub);
    }

    /// Removes a stream; dropping its sender is what tells it.
    fn throw_out(&mut self, stream: StreamId, seen: Revision) {
        let Some(entry) = self.streams.remove(&stream) else { return };
        entry.seen.store(seen.get(), Ordering::Release);
        for (watch, range) in &entry.watches {
            self.watches.remove(range, stream, *watch);
        }
    }

    fn throw_out_all(&mut self, seen: Revision) {
        let all: VecDeque<StreamId> = self.streams.keys().copied().collect();
        for stream in all {
            self.throw_out(stream, seen);
        }
    }
}

/// What a stream finds in its queue.
#[derive(Debug)]
pub enum Queued {
    /// A batch.
    Delivery(Delivery),
    /// It was thrown out of the index; everything up to this revision was queued before.
    Overflowed(Revision),
}

impl Link {
    /// Waits for the next batch. A stream that is not in the index waits for ever. Cancel-safe.
    pub async fn recv(&mut self) -> Queued {
        let Some(place) = &mut self.place else { return std::future::pending().await };
        match place.rx.recv().await {
            Some(delivery) => Queued::Delivery(delivery),
            None => self.overflowed(),
        }
    }

    /// What is queued now, without waiting.
    pub fn try_recv(&mut self) -> Option<Queued> {
        match self.place.as_mut()?.rx.try_recv() {
            Ok(delivery) => Some(Queued::Delivery(delivery)),
            Err(mpsc::error::TryRecvError::Empty) => None,
            Err(mpsc::error::TryRecvError::Disconnected) => Some(self.overflowed()),
        }
    }

    fn overflowed(&mut self) -> Queued {
        let seen = self.place.take().map_or(0, |place| place.seen.load(Ordering::Acquire));
        Queued::Overflowed(Revision::new(seen))
    }
}
