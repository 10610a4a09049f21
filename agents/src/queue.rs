//! The keyed queue: a key waits at most once, is never worked on twice at the same time, and one that is added while it is worked
//! on is worked on again. Failing keys come back later and later.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kontiki_base::env::{Env, Mono};
use kontiki_base::{invariant::Inv, limits};
use tokio::sync::Notify;

/// The first pause of a failing key.
const BACKOFF_MIN: Duration = Duration::from_millis(5);
/// The longest.
const BACKOFF_MAX: Duration = Duration::from_secs(1000);

#[derive(Default)]
struct Slot {
    queued: bool,
    running: bool,
    /// Added while it was running.
    again: bool,
}

struct Inner<K> {
    ready: VecDeque<K>,
    slots: BTreeMap<K, Slot>,
    later: BTreeSet<(Mono, K)>,
    later_at: BTreeMap<K, Mono>,
    failures: BTreeMap<K, u32>,
}

impl<K> Default for Inner<K> {
    fn default() -> Self {
        Self {
            ready: VecDeque::new(),
            slots: BTreeMap::new(),
            later: BTreeSet::new(),
            later_at: BTreeMap::new(),
            failures: BTreeMap::new(),
        }
    }
}

/// The queue.
pub struct Queue<K> {
    inner: Mutex<Inner<K>>,
    env: Arc<dyn Env>,
    /// Something became ready, or an earlier alarm was set.
    ready: Notify,
    /// Something left.
    room: Notify,
}

impl<K: Ord + Clone + std::fmt::Debug> Queue<K> {
    /// An empty queue.
    pub fn new(env: Arc<dyn Env>) -> Self {
        Self { inner: Mutex::new(Inner::default()), env, ready: Notify::new(), room: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner<K>> {
        // Every change below is complete before anything that could panic.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The key is to be worked on.
    pub fn add(&self, key: K) {
        let mut inner = self.lock();
        inner.add(key);
        drop(inner);
        self.ready.notify_one();
    }

    /// The key is to be worked on after `d`; an earlier appointment stays.
    pub fn add_after(&self, key: K, d: Duration) {
        if d.is_zero() {
            return self.add(key);
        }
        let at = self.env.now_mono().plus(d);
        let mut inner = self.lock();
        match inner.later_at.get(&key).copied() {
            Some(old) if old <= at => return,
            Some(old) => {
                inner.later.remove(&(old, key.clone()));
            }
            None => {}
        }
        inner.later_at.insert(key.clone(), at);
        inner.later.insert((at, key));
        drop(inner);
        self.ready.notify_one();
    }

    /// The key has failed: it comes back after a pause that doubles every time. The pause.
    pub fn retry(&self, key: K) -> Duration {
        let count = {
            let mut inner = self.lock();
            let count = inner.failures.entry(key.clone()).or_default();
            *count = count.saturating_add(1);
            *count
        };
        let pause = BACKOFF_MIN.saturating_mul(1u32.checked_shl(count - 1).unwrap_or(u32::MAX)).min(BACKOFF_MAX);
        self.add_after(key, pause);
        pause
    }

    /// The key has succeeded.
    pub fn forget(&self, key: &K) {
        self.lock().failures.remove(key);
    }

    /// The next key to work on. [`Queue::done`] must follow.
    pub async fn next(&self) -> K {
        loop {
            let notified = self.ready.notified();
            let wait = {
                let mut inner = self.lock();
                inner.ripen(self.env.now_mono());
                if let Some(key) = inner.take() {
                    let more = !inner.ready.is_empty();
                    drop(inner);
                    if more {
                        self.ready.notify_one();
                    }
                    return key;
                }
                inner.later.first().map(|(at, _)| at.since(self.env.now_mono()))
            };
            match wait {
                None => notified.await,
                Some(wait) => tokio::select! {
                    () = notified => {}
                    () = self.env.sleep(wait.max(Duration::from_millis(1))) => {}
                },
            }
        }
    }

    /// The key has been worked on.
    pub fn done(&self, key: &K) {
        let again = self.lock().done(key);
        if again {
            self.ready.notify_one();
        }
        self.room.notify_waiters();
    }

    /// Keys that wait, now or later.
    pub fn len(&self) -> usize {
        let inner = self.lock();
        inner.ready.len() + inner.later.len()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets everything that waits.
    pub fn clear(&self) {
        let mut inner = self.lock();
        inner.ready.clear();
        inner.later.clear();
        inner.later_at.clear();
        inner.failures.clear();
        for slot in inner.slots.values_mut() {
            (slot.queued, slot.again) = (false, false);
        }
        inner.slots.retain(|_, slot| slot.running);
        drop(inner);
        self.room.notify_waiters();
    }

    /// Forgets who was working: all workers have been stopped.
    pub fn reset(&self) {
        self.clear();
        self.lock().slots.clear();
    }

    /// Completes when there is room for more keys.
    pub async fn room(&self) {
        loop {
            let notified = self.room.notified();
            if self.len() < limits::QUEUE_KEYS {
                return;
            }
            notified.await;
        }
    }
}

impl<K: Ord + Clone + std::fmt::Debug> Inner<K> {
    fn add(&mut self, key: K) {
        let slot = self.slots.entry(key.clone()).or_default();
        if slot.running {
            slot.again = true;
        } else if !slot.queued {
            slot.queued = true;
            self.ready.push_back(key);
        }
    }

    fn ripen(&mut self, now: Mono) {
        while let Some((at, _)) = self.later.first()
            && *at <= now
        {
            if let Some((_, key)) = self.later.pop_first() {
                self.later_at.remove(&key);
                self.add(key);
            }
        }
    }

    fn take(&mut self) -> Option<K> {
        let key = self.ready.pop_front()?;
        let slot = self.slots.entry(key.clone()).or_default();
        kontiki_base::check!(Inv::DirtyIsRerun, !slot.running, "key {key:?} is taken twice");
        (slot.queued, slot.running) = (false, true);
        Some(key)
    }

    fn done(&mut self, key: &K) -> bool {
        let Some(slot) = self.slots.get_mut(key) else { return false };
        slot.running = false;
        if std::mem::take(&mut slot.again) {
            slot.queued = true;
            self.ready.push_back(key.clone());
            return true;
        }
        if !slot.queued {
            self.slots.remove(key);
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kontiki_proto::env::SystemEnv;

    fn queue() -> Queue<u32> {
        Queue::new(Arc::new(SystemEnv::new()))
    }

    async fn nothing_ready(q: &Queue<u32>) -> bool {
        tokio::time::timeout(Duration::from_millis(20), q.next()).await.is_err()
    }

    #[tokio::test]
    async fn once_in_the_queue_and_once_at_work() {
        let q = queue();
        q.add(1);
        q.add(1);
        q.add(2);
        assert_eq!((q.next().await, q.next().await), (1, 2));
        // Dirtied twice while running: run once more, and only after it is done.
        q.add(1);
        q.add(1);
        assert!(nothing_ready(&q).await);
        q.done(&1);
        assert_eq!(q.next().await, 1);
        q.done(&1);
        q.done(&2);
        assert!(nothing_ready(&q).await && q.is_empty() && q.lock().slots.is_empty());
    }

    #[tokio::test]
    async fn the_earlier_appointment_wins() {
        let q = queue();
        q.add_after(1, Duration::from_secs(60));
        q.add_after(1, Duration::from_millis(10));
        q.add_after(1, Duration::from_secs(30));
        assert_eq!(q.len(), 1);
        assert_eq!(tokio::time::timeout(Duration::from_secs(5), q.next()).await, Ok(1));
    }

    #[tokio::test]
    async fn failures_double_the_pause_up_to_a_bound() {
        let q = queue();
        let pauses: Vec<u64> = (0..20).map(|_| u64::try_from(q.retry(7).as_millis()).unwrap()).collect();
        assert_eq!(pauses[..4], [5, 10, 20, 40]);
        assert_eq!(pauses[19], 1_000_000);
        q.forget(&7);
        assert_eq!(q.retry(7), Duration::from_millis(5));
    }

    #[tokio::test]
    async fn many_workers_never_share_a_key_and_lose_none() {
        let q = Arc::new(queue());
        let running = Arc::new(Mutex::new(BTreeSet::new()));
        let runs = Arc::new(Mutex::new(BTreeMap::<u32, u32>::new()));
        let workers: Vec<_> = (0..8)
            .map(|_| {
                let (q, running, runs) = (q.clone(), running.clone(), runs.clone());
                tokio::spawn(async move {
                    loop {
                        let key = q.next().await;
                        assert!(running.lock().unwrap().insert(key), "key {key} runs twice");
                        tokio::task::yield_now().await;
                        *runs.lock().unwrap().entry(key).or_default() += 1;
                        running.lock().unwrap().remove(&key);
                        q.done(&key);
                    }
                })
            })
            .collect();
        for i in 0..2_000 {
            q.add(i % 50);
            if i % 7 == 0 {
                tokio::task::yield_now().await;
            }
        }
        tokio::time::timeout(Duration::from_secs(10), async {
            while !q.is_empty() || !q.lock().slots.is_empty() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await
        .unwrap();
        assert_eq!(runs.lock().unwrap().len(), 50);
        workers.iter().for_each(tokio::task::JoinHandle::abort);
    }
}
