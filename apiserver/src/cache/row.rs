//! The watch cache of one kind: its objects, a window of recent changes, and cursors into the window.
//!
//! A watcher owns no queue: it owns a place in the window. A watcher that the window has left behind is told so, and its client
//! lists again. The store's own stream is never slowed by a watcher.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bytes::Bytes;
use kontiki_base::kv::{Event, EventKind, KeyValue};
use kontiki_base::{Revision, limits};
use kontiki_registry::row::Row;
use tokio::sync::watch;

use super::change::{Cached, Change};

/// How far the cache of a kind is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Its first list is under way.
    Loading,
    /// It holds every object.
    Ready,
    /// The store's history broke off: it has to be loaded again, into a new cache.
    Dead,
}

/// A place cannot be watched from: changes after it are no longer in the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TooOld {
    /// Changes after this revision are still there.
    pub(crate) floor: Revision,
}

/// The cache of one kind.
#[derive(Debug)]
pub(crate) struct RowCache {
    /// The kind.
    pub(crate) row: Arc<Row>,
    state: RwLock<State>,
    /// Number of changes so far, and the phase.
    tick: watch::Sender<(u64, Phase)>,
}

#[derive(Debug, Default)]
struct State {
    objects: BTreeMap<Bytes, Arc<Cached>>,
    window: VecDeque<Arc<Change>>,
    /// Number of the first change in the window, from 0 for the first one ever.
    first: u64,
    /// Every change after this revision is in the window.
    floor: Revision,
    /// Revision of the last change, or of the list that the cache began with.
    last: Revision,
    /// Changes that came while the first list was under way; `None` once it is done.
    early: Option<Vec<Event>>,
}

impl RowCache {
    /// An empty cache that waits for its first list.
    pub(crate) fn new(row: Arc<Row>) -> Self {
        let state = State { early: Some(Vec::new()), ..State::default() };
        Self { row, state: RwLock::new(state), tick: watch::Sender::new((0, Phase::Loading)) }
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// How far it is.
    pub(crate) fn phase(&self) -> Phase {
        self.tick.borrow().1
    }

    /// Announces every change and every step of the phase.
    pub(crate) fn subscribe(&self) -> watch::Receiver<(u64, Phase)> {
        self.tick.subscribe()
    }

    /// The first list is complete as of `revision`: whatever came meanwhile is applied on top of it.
    pub(crate) fn fill(&self, revision: Revision, kvs: Vec<KeyValue>) {
        let mut state = self.write();
        for kv in kvs {
            if let Some(object) = parse(&kv) {
                state.objects.insert(kv.key, Arc::new(object));
            }
        }
        state.floor = revision;
        state.last = revision;
        let early: Vec<Event> = state.early.take().into_iter().flatten().filter(|e| e.kv.mod_revision > revision).collect();
        state.apply(&early);
        let count = state.next();
        drop(state);
        self.tick.send_replace((count, Phase::Ready));
    }

    /// The cache cannot go on: its watchers end, its readers go elsewhere.
    pub(crate) fn kill(&self) {
        self.tick.send_modify(|t| t.1 = Phase::Dead);
    }

    /// Applies changes of this kind, in order, whole revisions at a time.
    pub(crate) fn apply(&self, events: &[Event]) {
        let mut state = self.write();
        if let Some(early) = &mut state.early {
            early.extend_from_slice(events);
            if early.len() > limits::CACHE_EVENTS {
                drop(state);
                self.kill();
            }
            return;
        }
        state.apply(events);
        let count = state.next();
        drop(state);
        self.tick.send_modify(|t| t.0 = count);
    }

    /// One object.
    pub(crate) fn get(&self, key: &[u8]) -> Option<Arc<Cached>> {
        self.read().objects.get(key).cloned()
    }

    /// How many objects there are.
    pub(crate) fn len(&self) -> usize {
        self.read().objects.len()
    }

    /// The objects whose keys start with `prefix`, as of the returned revision. `applied` is read under the lock: everything up
    /// to it has been applied to every cache.
    pub(crate) fn snapshot(&self, prefix: &[u8], applied: impl FnOnce() -> Revision) -> (Revision, Vec<Arc<Cached>>) {
        let state = self.read();
        (state.last.max(applied()), state.select(prefix))
    }

    /// The objects of a snapshot, and a cursor that stands right behind it.
    pub(crate) fn snapshot_and_follow(
        self: &Arc<Self>,
        prefix: &[u8],
        applied: impl FnOnce() -> Revision,
    ) -> (Revision, Vec<Arc<Cached>>, Cursor) {
        let state = self.read();
        let cursor = Cursor { row: self.clone(), next: state.next() };
        (state.last.max(applied()), state.select(prefix), cursor)
    }

    /// A cursor that delivers the changes after `revision`.
    pub(crate) fn follow(self: &Arc<Self>, revision: Revision) -> Result<Cursor, TooOld> {
        let state = self.read();
        if revision < state.floor {
            return Err(TooOld { floor: state.floor });
        }
        let skip = state.window.partition_point(|c| c.revision <= revision);
        Ok(Cursor { row: self.clone(), next: state.first + skip as u64 })
    }
}

impl State {
    fn next(&self) -> u64 {
        self.first + self.window.len() as u64
    }

    fn select(&self, prefix: &[u8]) -> Vec<Arc<Cached>> {
        let from = (Bound::Included(Bytes::copy_from_slice(prefix)), Bound::Unbounded);
        self.objects.range(from).take_while(|(k, _)| k.starts_with(prefix)).map(|(_, v)| v.clone()).collect()
    }

    fn apply(&mut self, events: &[Event]) {
        for event in events {
            let new = match event.kind {
                EventKind::Put => parse(&event.kv).map(Arc::new),
                EventKind::Delete => None,
            };
            let old = match &new {
                Some(new) => self.objects.insert(event.kv.key.clone(), new.clone()),
                None => self.objects.remove(&event.kv.key),
            };
            self.last = self.last.max(event.kv.mod_revision);
            if old.is_none() && new.is_none() {
                continue;
            }
            self.window.push_back(Arc::new(Change::new(event.kv.mod_revision, old, new)));
            if self.window.len() > limits::CACHE_EVENTS
                && let Some(gone) = self.window.pop_front()
            {
                self.first += 1;
                self.floor = gone.revision;
            }
        }
    }
}

fn parse(kv: &KeyValue) -> Option<Cached> {
    let object = Cached::new(kv.key.clone(), &kv.value, kv.mod_revision);
    if object.is_none() {
        tracing::error!(key = %String::from_utf8_lossy(&kv.key), revision = %kv.mod_revision, "stored bytes are no object; it is left out of lists");
    }
    object
}

/// A place in the window of a [`RowCache`].
#[derive(Clone, Debug)]
pub(crate) struct Cursor {
    row: Arc<RowCache>,
    next: u64,
}

/// What a cursor found.
#[derive(Debug)]
pub(crate) enum Step {
    /// Changes, oldest first; there may be more.
    Changes(Vec<Arc<Change>>),
    /// Nothing new: everything up to this revision has been delivered.
    Idle(Revision),
    /// The window has moved past the cursor, or the cache is dead.
    Lost,
}

impl Cursor {
    /// The next changes, at most [`limits::WATCHER_QUEUE`] of them. The changes of one revision are never split.
    pub(crate) fn step(&mut self, applied: impl FnOnce() -> Revision) -> Step {
        if self.row.phase() == Phase::Dead {
            return Step::Lost;
        }
        let state = self.row.read();
        let Some(skip) = self.next.checked_sub(state.first).and_then(|n| usize::try_from(n).ok()) else { return Step::Lost };
        let mut changes: Vec<_> = state.window.range(skip.min(state.window.len())..).take(limits::WATCHER_QUEUE).cloned().collect();
        while let (Some(last), Some(more)) = (changes.last(), state.window.get(skip + changes.len())) {
            if last.revision != more.revision {
                break;
            }
            changes.push(more.clone());
        }
        self.next += changes.len() as u64;
        if changes.is_empty() { Step::Idle(state.last.max(applied())) } else { Step::Changes(changes) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(name: &str, revision: i64) -> Event {
        let value = format!("{{\"kind\":\"ConfigMap\",\"metadata\":{{\"name\":\"{name}\"}}}}");
        let kv = KeyValue {
            key: format!("/registry/configmaps/default/{name}").into(),
            value: value.into(),
            mod_revision: Revision::new(revision),
            ..KeyValue::default()
        };
        Event { kind: EventKind::Put, kv, prev: None }
    }

    fn delete(name: &str, revision: i64) -> Event {
        let mut event = put(name, revision);
        event.kind = EventKind::Delete;
        event.kv.value = Bytes::new();
        event
    }

    fn cache() -> Arc<RowCache> {
        let row = kontiki_registry::table::Registry::builtin().resource("", "v1", "configmaps").unwrap();
        Arc::new(RowCache::new(row))
    }

    fn names(cache: &RowCache) -> Vec<String> {
        let (_, objects) = cache.snapshot(b"/registry/configmaps/", || Revision::ZERO);
        objects.iter().map(|o| o.facets["metadata"]["name"].as_str().unwrap().to_owned()).collect()
    }

    fn step(cursor: &mut Cursor) -> Vec<i64> {
        match cursor.step(|| Revision::ZERO) {
            Step::Changes(changes) => changes.iter().map(|c| c.revision.get()).collect(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn changes_during_the_first_list_are_applied_once() {
        let cache = cache();
        cache.apply(&[put("a", 4), put("b", 5)]);
        cache.apply(&[delete("b", 7), put("c", 8)]);
        assert_eq!(cache.phase(), Phase::Loading);
        // The list was read at 5: it has a and b already.
        cache.fill(Revision::new(5), vec![put("a", 4).kv, put("b", 5).kv]);
        assert_eq!((cache.phase(), names(&cache)), (Phase::Ready, vec!["a".to_owned(), "c".into()]));
        let mut cursor = cache.follow(Revision::new(5)).unwrap();
        assert_eq!(step(&mut cursor), [7, 8]);
        assert_eq!(cache.follow(Revision::new(4)).unwrap_err(), TooOld { floor: Revision::new(5) });
    }

    #[test]
    fn too_many_changes_during_the_first_list_end_it() {
        let cache = cache();
        let many: Vec<Event> = (0..=limits::CACHE_EVENTS as i64).map(|i| put("a", i + 2)).collect();
        cache.apply(&many);
        assert_eq!(cache.phase(), Phase::Dead);
    }

    #[test]
    fn a_watcher_that_the_window_leaves_behind_is_told() {
        let cache = cache();
        cache.fill(Revision::new(1), Vec::new());
        let mut slow = cache.follow(Revision::new(1)).unwrap();
        let mut quick = slow.clone();
        let last = limits::CACHE_EVENTS as i64 + 10;
        for i in 0..last {
            cache.apply(&[put("a", i + 2)]);
            if i == last / 2 {
                while let Step::Changes(_) = quick.step(|| Revision::ZERO) {}
            }
        }
        assert!(matches!(slow.step(|| Revision::ZERO), Step::Lost));
        assert_eq!(step(&mut quick)[0], last / 2 + 3);
        assert_eq!(cache.follow(Revision::new(5)).unwrap_err(), TooOld { floor: Revision::new(11) });
        assert!(cache.follow(Revision::new(11)).is_ok());
    }

    #[test]
    fn the_changes_of_one_revision_stay_together() {
        let cache = cache();
        cache.fill(Revision::new(1), Vec::new());
        let mut cursor = cache.follow(Revision::new(1)).unwrap();
        let mut events: Vec<Event> = (0..limits::WATCHER_QUEUE as i64 - 1).map(|i| put(&format!("a{i}"), i + 2)).collect();
        let shared = limits::WATCHER_QUEUE as i64 + 5;
        events.extend((0..4).map(|i| put(&format!("t{i}"), shared)));
        events.push(put("after", shared + 1));
        cache.apply(&events);
        let first = step(&mut cursor);
        assert_eq!(first.iter().filter(|r| **r == shared).count(), 4, "none is left for the next step");
        assert_eq!(step(&mut cursor), [shared + 1]);
        assert!(matches!(cursor.step(|| Revision::new(99_999)), Step::Idle(r) if r == Revision::new(99_999)));
    }

    #[test]
    fn an_unreadable_object_is_left_out_and_an_unknown_deletion_is_none() {
        let cache = cache();
        cache.fill(Revision::new(1), Vec::new());
        let mut broken = put("a", 2);
        broken.kv.value = Bytes::from_static(b"k8s\0junk");
        cache.apply(&[broken, delete("never", 3), put("b", 4)]);
        assert_eq!(names(&cache), ["b"]);
        let mut cursor = cache.follow(Revision::new(1)).unwrap();
        assert_eq!(step(&mut cursor), [4]);
        let (revision, _) = cache.snapshot(b"/registry/configmaps/", || Revision::ZERO);
        assert_eq!(revision, Revision::new(4));
    }
}
