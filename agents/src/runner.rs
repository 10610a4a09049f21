//! Workers: take a key, wait until the informers have seen the key's own last write, reconcile, carry the plan out.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kontiki_base::env::Mono;
use kontiki_base::{Code, Term};
use kontiki_control::controllers::{ControllerId, Failure, Input};
use kontiki_control::world::Dirty;
use kontiki_proto::trace::names;
use tracing::Instrument as _;

use crate::act::{Done, Hands, Stopped};
use crate::events::Recorder;
use crate::informer::{Caches, Owned, Written};
use crate::leader::Alive;
use crate::metrics::{ControllerLabel, ReconcileLabels};

/// How long a worker waits for a key's own last write before it lets another key go first.
const OWN_WRITE_WAIT: Duration = Duration::from_secs(1);

/// How long a key of a controller rests after a plan that wrote something: what changes meanwhile is taken together. The first
/// change after a quiet time is acted on at once.
const fn pace(controller: ControllerId) -> Duration {
    Duration::from_millis(match controller {
        // Large objects that many small changes touch.
        ControllerId::Endpoints | ControllerId::EndpointSlice => 100,
        ControllerId::Namespace => 200,
        ControllerId::ReplicaSet | ControllerId::Deployment => 20,
        _ => 0,
    })
}

/// What is remembered of a key between two reconciles.
#[derive(Default)]
struct Memo {
    /// Not to be looked at before this.
    rests_until: Mono,
    written: Vec<Written>,
    failure: Option<Failure>,
}

/// The controllers' workers under one term.
pub struct Runner {
    caches: Arc<Caches>,
    term: Term,
    recorder: Recorder,
    memos: Mutex<BTreeMap<Dirty, Memo>>,
    _alive: Alive,
}

impl std::fmt::Debug for Runner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Runner").field("term", &self.term).finish_non_exhaustive()
    }
}

/// What came of one reconcile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Quiet,
    Done,
    Retry,
    Fenced,
}

impl Outcome {
    const fn word(self) -> &'static str {
        match self {
            Self::Quiet => "quiet",
            Self::Done => "done",
            Self::Retry => "retry",
            Self::Fenced => "fenced",
        }
    }
}

impl Runner {
    /// Workers that act under `term`.
    pub(crate) fn new(caches: Arc<Caches>, term: Term, recorder: Recorder, alive: Alive) -> Arc<Self> {
        Arc::new(Self { caches, term, recorder, memos: Mutex::new(BTreeMap::new()), _alive: alive })
    }

    /// Starts `count` workers; they end when the answer is dropped.
    pub fn start(self: &Arc<Self>, count: usize) -> Vec<Owned> {
        (0..count)
            .map(|_| {
                let me = self.clone();
                Owned::spawn(&self.caches.env, "controller-worker", async move { me.work().await })
            })
            .collect()
    }

    fn memos(&self) -> std::sync::MutexGuard<'_, BTreeMap<Dirty, Memo>> {
        self.memos.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn work(&self) {
        loop {
            let key = self.caches.queue.next().await;
            let outcome = self.run(&key).await;
            self.caches.queue.done(&key);
            let metrics = &self.caches.metrics;
            let controller = key.controller.row().name;
            metrics.reconciles.get_or_create(&ReconcileLabels { controller, outcome: outcome.word() }).inc();
            let depth = i64::try_from(self.caches.queue.len()).unwrap_or(i64::MAX);
            metrics.queue_depth.get_or_create(&ControllerLabel { controller: "all" }).set(depth);
            if outcome == Outcome::Fenced {
                // The leadership watch is about to say the same; nothing may be written until it does.
                std::future::pending::<()>().await;
            }
        }
    }

    async fn run(&self, key: &Dirty) -> Outcome {
        if !self.has_seen_itself(key).await {
            self.caches.queue.add_after(key.clone(), Duration::from_millis(50));
            return Outcome::Retry;
        }
        let rest = self.memos().get(key).map_or(Duration::ZERO, |memo| memo.rests_until.since(self.caches.env.now_mono()));
        if !rest.is_zero() {
            self.caches.queue.add_after(key.clone(), rest);
            return Outcome::Quiet;
        }
        let failure = self.memos().get(key).and_then(|memo| memo.failure.clone());
        let row = key.controller.row();
        let plan = {
            let world = self.caches.world();
            (row.reconcile)(&Input { key: &key.key, world: &world, now: self.caches.env.now_wall(), failure: failure.as_ref() })
        };
        if let Some(recheck) = plan.recheck {
            self.caches.queue.add_after(key.clone(), recheck);
        }
        if plan.is_quiet() {
            self.memos().remove(key);
            self.caches.queue.forget(key);
            return Outcome::Quiet;
        }
        tracing::debug!(controller = row.name, key = %key.key, actions = plan.actions.len(), "plan");
        let client = self.caches.client.under(self.term).as_manager(row.name);
        let hands = Hands { client, recorder: &self.recorder, source: row.name, metrics: &self.caches.metrics };
        let span =
            tracing::debug_span!(parent: None, names::RECONCILE, controller = row.name, key = %key.key, outcome = tracing::field::Empty);
        let done = hands.carry_out(&plan).instrument(span.clone()).await;
        let outcome = self.settle(key, done);
        span.record("outcome", outcome.word());
        outcome
    }

    /// Remembers what was written and decides when the key comes back.
    fn settle(&self, key: &Dirty, done: Done) -> Outcome {
        let (outcome, failure) = match done.stopped {
            None => (Outcome::Done, None),
            Some(Stopped::Again) => {
                self.caches.queue.add_after(key.clone(), Duration::from_millis(100));
                (Outcome::Done, None)
            }
            Some(Stopped::Failed { error, .. }) if error.code == Code::Fenced => (Outcome::Fenced, None),
            Some(Stopped::Failed { error, object }) => {
                let pause = self.caches.queue.retry(key.clone());
                let controller = key.controller.row().name;
                if matches!(error.code, Code::Conflict | Code::FailedPrecondition) {
                    tracing::debug!(controller, key = %key.key, %error, "stale plan");
                } else {
                    tracing::warn!(controller, key = %key.key, %error, pause_ms = pause.as_millis(), "plan failed");
                }
                let tells = matches!(error.code, Code::Forbidden | Code::Invalid | Code::BadRequest | Code::AlreadyExists | Code::TooLarge);
                (Outcome::Retry, tells.then_some(Failure { code: error.code, message: error.message, object }))
            }
        };
        if outcome == Outcome::Done {
            self.caches.queue.forget(key);
        }
        if done.written.is_empty() && failure.is_none() {
            self.memos().remove(key);
        } else {
            let rests_until = self.caches.env.now_mono().plus(pace(key.controller));
            self.memos().insert(key.clone(), Memo { rests_until, written: done.written, failure });
        }
        outcome
    }

    /// Waits for the key's own last write to come back through the informers.
    async fn has_seen_itself(&self, key: &Dirty) -> bool {
        let written = self.memos().get(key).map(|memo| memo.written.clone()).unwrap_or_default();
        let all = |caches: &Caches| written.iter().all(|w| caches.has_seen(w));
        if written.is_empty() || all(&self.caches) {
            return true;
        }
        tokio::select! {
            () = self.caches.until(all) => true,
            () = self.caches.env.sleep(OWN_WRITE_WAIT) => false,
        }
    }
}
