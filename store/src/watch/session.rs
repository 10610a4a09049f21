//! One stream of watches: what its client is told next. Not a task of its own: whoever serves the stream asks [`Session::next`].

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use kontiki_base::env::Env;
use kontiki_base::ids::Revision;
use kontiki_base::invariant::Inv;
use kontiki_base::key::KeyRange;
use kontiki_base::kv::{Event, EventKind, KvError};
use kontiki_base::mutant;
use kontiki_base::{BoxFuture, WatchId, check, limits};
use tokio::sync::watch;

use super::cursor::{Cursor, Input, Reason};
use super::hub::{Attach, Delivery, Hub, Link, Queued};
use super::replay::{Piece, add_previous, replay};
use super::ring::Feed;
use super::seen::Seen;
use crate::metrics::Metrics;
use crate::read::Views;

/// What a client asks of a watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchSpec {
    /// The id it wants; `None` takes the next that is free.
    pub id: Option<WatchId>,
    /// Which keys.
    pub range: KeyRange,
    /// The first revision to deliver; 0 is "from now on".
    pub from: Revision,
    /// Deliver what was there before, too.
    pub prev_kv: bool,
    /// Leave puts out.
    pub no_put: bool,
    /// Leave deletions out.
    pub no_delete: bool,
    /// Say how far it is when nothing happens.
    pub progress: bool,
    /// Its client takes a large message in pieces. Nothing to the session: it is for whoever writes messages.
    pub fragment: bool,
}

/// Why a watch ended or never began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Canceled {
    /// Its client ended it.
    Client,
    /// What it wants has been compacted; history begins at this revision.
    Compacted(Revision),
    /// Its range can hold no key. Never began.
    EmptyRange,
    /// Its id is in use on this stream. Never began.
    DuplicateId,
    /// It wants to begin before time. Never began.
    NegativeStart,
    /// The stream has as many watches as it may. Never began.
    TooMany,
}

/// What a client is told.
#[derive(Clone, Debug)]
pub enum Out {
    /// A watch is in place.
    Created {
        /// Which.
        id: WatchId,
        /// The store's revision then.
        revision: Revision,
    },
    /// Changes, whole revisions, in order.
    Events {
        /// Which watch.
        id: WatchId,
        /// Nothing that it watches up to here is missing.
        revision: Revision,
        /// What happened. `prev` may be filled although nobody asked: see `prev_kv`.
        events: Seen,
        /// Whether its client wants `prev`.
        prev_kv: bool,
        /// Whether its client takes a large message in pieces.
        fragment: bool,
    },
    /// Nothing that it watches happened up to here.
    Progress {
        /// Which watch.
        id: WatchId,
        /// Everything up to here has been delivered.
        revision: Revision,
    },
    /// Answer to [`Session::request_progress`]: holds for all watches of the stream.
    ProgressAll {
        /// Everything up to here has been delivered.
        revision: Revision,
    },
    /// A watch has ended, or never began.
    Canceled {
        /// Which; `None` if it never began.
        id: Option<WatchId>,
        /// Why.
        why: Canceled,
        /// The store's revision.
        revision: Revision,
    },
}

/// When a stream says how far it is although nothing happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// To watches that asked for it and were told nothing for this long.
    Every(Duration),
    /// To watches that asked for it, this long after the store has moved on without them.
    Behind(Duration),
}

struct Watcher {
    spec: WatchSpec,
    cursor: Cursor,
    /// Nothing was sent since the last tick.
    quiet: bool,
}

/// One stream of watches.
pub struct Session {
    hub: Arc<Hub>,
    views: Arc<dyn Views>,
    env: Arc<dyn Env>,
    metrics: Arc<Metrics>,
    link: Link,
    watchers: BTreeMap<WatchId, Watcher>,
    next_id: i64,
    /// Whose turn it is to read history.
    turn: WatchId,
    out: VecDeque<Out>,
    /// The revision of the last batch taken from the link.
    delivered: Revision,
    dispatched: watch::Receiver<Revision>,
    progress_wanted: bool,
    /// The furthest that progress has been told to all.
    told: Revision,
    pace: Pace,
    tick: Option<BoxFuture<'static, ()>>,
}

impl Session {
    /// A stream without watches.
    pub fn new(hub: Arc<Hub>, views: Arc<dyn Views>, env: Arc<dyn Env>, metrics: Arc<Metrics>, pace: Pace) -> Self {
        let (link, dispatched) = (hub.link(), hub.dispatched());
        metrics.watch_streams.inc();
        Self {
            hub,
            views,
            env,
            metrics,
            link,
            watchers: BTreeMap::new(),
            next_id: 0,
            turn: WatchId::ZERO,
            out: VecDeque::new(),
            delivered: Revision::ZERO,
            dispatched,
            progress_wanted: false,
            told: Revision::ZERO,
            pace,
            tick: None,
        }
    }

    /// Starts a watch; what came of it is the stream's next message but for those already waiting.
    pub fn create(&mut self, spec: WatchSpec) {
        let tip = self.hub.tip();
        let refusal = if spec.range.is_empty() {
            Some(Canceled::EmptyRange)
        } else if spec.id.is_some_and(|id| self.watchers.contains_key(&id)) {
            Some(Canceled::DuplicateId)
        } else if spec.from < Revision::ZERO {
            Some(Canceled::NegativeStart)
        } else if self.watchers.len() >= limits::WATCHES_PER_STREAM {
            Some(Canceled::TooMany)
        } else {
            None
        };
        if let Some(why) = refusal {
            self.out.push_back(Out::Canceled { id: None, why, revision: tip.revision });
            return;
        }
        let id = spec.id.unwrap_or_else(|| self.free_id());
        let now = mutant!("M48", tip.revision.next(), tip.revision.next().next());
        let next = if spec.from == Revision::ZERO { now } else { spec.from };
        self.out.push_back(Out::Created { id, revision: tip.revision });
        self.watchers.insert(id, Watcher { spec, cursor: Cursor::CatchUp { next }, quiet: true });
        self.metrics.watchers.inc();
    }

    fn free_id(&mut self) -> WatchId {
        loop {
            let id = WatchId::new(self.next_id);
            self.next_id += 1;
            if !self.watchers.contains_key(&id) {
                return id;
            }
        }
    }

    /// Ends a watch. An unknown id is ignored, as etcd does.
    pub fn cancel(&mut self, id: WatchId) {
        let revision = self.hub.tip().revision;
        self.end(id, Reason::Client, revision);
    }

    fn end(&mut self, id: WatchId, reason: Reason, revision: Revision) {
        let Some(mut watcher) = self.watchers.remove(&id) else { return };
        watcher.cursor = watcher.cursor.step(Input::End(reason));
        self.hub.detach(&self.link, id);
        self.metrics.watchers.dec();
        let why = match reason {
            Reason::Client => Canceled::Client,
            Reason::Compacted(compact) => Canceled::Compacted(compact),
            Reason::Stopped => return,
        };
        // Nothing more is told of it after this, but what was queued before stays queued before.
        self.out.push_back(Out::Canceled { id: Some(id), why, revision });
    }

    /// Asks to be told how far all watches are, once they all are level with the store.
    pub fn request_progress(&mut self) {
        self.progress_wanted = true;
    }

    /// The next message. `None` when the member is shutting down. Cancel-safe: dropping the future loses nothing.
    ///
    /// # Errors
    /// [`KvError::Corrupt`] if the engine cannot be read; the stream is over then.
    pub async fn next(&mut self) -> Result<Option<Out>, KvError> {
        loop {
            if let Some(out) = self.out.pop_front() {
                return Ok(Some(out));
            }
            while let Some(queued) = self.link.try_recv() {
                self.take(queued)?;
            }
            if !self.out.is_empty() {
                continue;
            }
            if let Some(id) = self.whose_turn() {
                if !self.catch_up(id)? {
                    return Ok(None);
                }
                continue;
            }
            if self.answer_progress()? {
                continue;
            }
            self.arm();
            if self.wait().await? {
                return Ok(None);
            }
        }
    }

    /// The next message, if it is there already: what one batch has brought to the watches of the stream.
    pub fn queued(&mut self) -> Option<Out> {
        self.out.pop_front()
    }

    /// Waits until there is something to do; says whether the hub has gone.
    async fn wait(&mut self) -> Result<bool, KvError> {
        let eager = matches!(self.pace, Pace::Behind(_)) && self.tick.is_none() && self.wants_progress();
        tokio::select! {
            biased;
            queued = self.link.recv() => self.take(queued)?,
            () = tick(&mut self.tick) => self.tell_progress()?,
            changed = self.dispatched.changed(), if eager || self.progress_wanted => return Ok(changed.is_err()),
        }
        Ok(false)
    }

    fn take(&mut self, queued: Queued) -> Result<(), KvError> {
        match queued {
            Queued::Delivery(delivery) => self.deliver(&delivery)?,
            Queued::Overflowed(seen) => {
                for watcher in self.watchers.values_mut() {
                    watcher.cursor = mutant!(
                        "M16",
                        watcher.cursor.step(Input::Overflowed(seen)),
                        Cursor::CatchUp { next: watcher.spec.from.max(Revision::new(1)) }
                    );
                }
            }
        }
        Ok(())
    }

    fn deliver(&mut self, delivery: &Delivery) -> Result<(), KvError> {
        let revision = delivery.feed.revision;
        check!(Inv::WatchInOrder, revision > self.delivered, "batch={revision} delivered={}", self.delivered);
        self.delivered = revision;
        let mut view = None;
        for hits in delivery.hits.chunk_by(|(one, _), (next, _)| one == next) {
            let Some((id, _)) = hits.first() else { continue };
            let Some(watcher) = self.watchers.get_mut(id) else { continue };
            let Some(next) = watcher.cursor.next() else { continue };
            check!(Inv::WatchInOrder, delivery.feed.revision >= next, "watch={id} batch={revision} next={next}");
            watcher.cursor = watcher.cursor.step(Input::Delivered(revision));
            let events = if watcher.spec.prev_kv {
                let view = view.get_or_insert_with(|| self.views.view());
                delivery.events_with_prev(hits, &**view)?
            } else {
                delivery.events(hits)
            };
            let events = watcher.filter(events);
            self.emit(*id, events, revision);
        }
        Ok(())
    }

    fn emit(&mut self, id: WatchId, events: Seen, revision: Revision) {
        let Some(watcher) = self.watchers.get_mut(&id) else { return };
        if events.is_empty() {
            return;
        }
        watcher.quiet = false;
        let (prev_kv, fragment) = (watcher.spec.prev_kv, watcher.spec.fragment);
        let events: Seen = mutant!("M19", events, {
            let events = events.to_events();
            let (last, before) = events.split_last().expect("it is not empty");
            if !before.is_empty() {
                self.out.push_back(Out::Events { id, revision, events: Seen::from(before.to_vec()), prev_kv, fragment });
            }
            Seen::from(vec![last.clone()])
        });
        self.out.push_back(Out::Events { id, revision, events, prev_kv, fragment });
        if self.watchers.len() == 1 {
            self.told = self.told.max(revision);
        }
    }

    /// The next watch, in turn, that is not live.
    fn whose_turn(&mut self) -> Option<WatchId> {
        let behind = |(id, watcher): (&WatchId, &Watcher)| (!watcher.cursor.is_live()).then_some(*id);
        let after = self.watchers.range(self.turn..).find_map(behind);
        let id = after.or_else(|| self.watchers.iter().find_map(behind))?;
        self.turn = id.next();
        Some(id)
    }

    /// Takes a watch one piece further; says whether the stream goes on.
    fn catch_up(&mut self, id: WatchId) -> Result<bool, KvError> {
        let Some(watcher) = self.watchers.get_mut(&id) else { return Ok(true) };
        if matches!(watcher.cursor, Cursor::Lagging { .. }) {
            self.metrics.slow_watchers.inc();
            watcher.cursor = watcher.cursor.step(Input::Resumed);
        }
        let Some(next) = watcher.cursor.next() else { return Ok(true) };
        match self.hub.attach(&mut self.link, id, &watcher.spec, next) {
            Attach::Live(feeds) => {
                let piece = watcher.piece_of(&feeds, next, &*self.views)?;
                watcher.cursor = watcher.cursor.step(Input::Replayed(piece.upto)).step(Input::Attached);
                let events = watcher.filter(piece.events.into());
                self.emit(id, events, piece.upto);
            }
            Attach::Behind(feeds) => {
                let piece = watcher.piece_of(&feeds, next, &*self.views)?;
                watcher.cursor = watcher.cursor.step(Input::Replayed(piece.upto));
                let events = watcher.filter(piece.events.into());
                self.emit(id, events, piece.upto);
            }
            Attach::Cold => {
                let view = self.views.view();
                match replay(&*view, &watcher.spec.range, next, watcher.spec.prev_kv) {
                    Ok(piece) => {
                        watcher.cursor = watcher.cursor.step(Input::Replayed(piece.upto));
                        let revision = piece.events.last().map_or(piece.upto, |event| event.kv.mod_revision);
                        let events = watcher.filter(piece.events.into());
                        self.emit(id, events, revision);
                    }
                    Err(KvError::Compacted { compact }) => self.end(id, Reason::Compacted(compact), Revision::ZERO),
                    Err(error) => return Err(error),
                }
            }
            Attach::Overflowed => {
                if let Some(queued) = self.link.try_recv() {
                    self.take(queued)?;
                }
            }
            Attach::Compacted(compact) => self.end(id, Reason::Compacted(compact), Revision::ZERO),
            Attach::Closed => return Ok(false),
        }
        Ok(true)
    }

    /// Everything up to here has been taken from the link by now, provided that `level` was read before the link was found empty.
    fn level(&self, level: Revision) -> Revision {
        level.max(self.delivered)
    }

    /// Answers a progress request if all watches are level with the store; says whether it did.
    fn answer_progress(&mut self) -> Result<bool, KvError> {
        if !self.progress_wanted || self.watchers.is_empty() {
            self.progress_wanted = false;
            return Ok(false);
        }
        let dispatched = *self.dispatched.borrow_and_update();
        mutant!("M15", {
            self.progress_wanted = false;
            self.out.push_back(Out::ProgressAll { revision: self.hub.tip().revision });
            return Ok(true);
        });
        if dispatched < self.hub.tip().revision {
            return Ok(false); // In a moment: the dispatcher is about to bring the rest, and `wait` listens for that.
        }
        while let Some(queued) = self.link.try_recv() {
            self.take(queued)?;
        }
        if !self.out.is_empty() || self.watchers.values().any(|w| !w.cursor.is_live()) {
            return Ok(true); // First what came in; then again.
        }
        self.progress_wanted = false;
        let revision = self.level(dispatched);
        if self.watchers.values().any(|w| w.spec.from > revision) {
            return Ok(false);
        }
        self.out.push_back(Out::ProgressAll { revision });
        Ok(true)
    }

    fn wants_progress(&self) -> bool {
        self.watchers.values().any(|w| w.spec.progress)
    }

    /// Sets the timer, if there is a reason to have one.
    fn arm(&mut self) {
        if self.tick.is_some() || !self.wants_progress() {
            return;
        }
        self.tick = match self.pace {
            // A tenth of jitter either way, so that streams do not all speak at once.
            Pace::Every(every) => {
                let tenth = u64::try_from(every.as_nanos() / 10).unwrap_or(u64::MAX).max(1);
                let jitter = Duration::from_nanos(self.env.random_u64() % (2 * tenth));
                Some(self.env.sleep(every - Duration::from_nanos(tenth) + jitter))
            }
            Pace::Behind(after) => {
                let dispatched = *self.dispatched.borrow_and_update();
                let level = self.level(dispatched);
                (level > self.told).then(|| self.env.sleep(after))
            }
        };
    }

    fn tell_progress(&mut self) -> Result<(), KvError> {
        self.tick = None;
        let dispatched = *self.dispatched.borrow_and_update();
        while let Some(queued) = self.link.try_recv() {
            self.take(queued)?;
        }
        let revision = self.level(dispatched);
        let only_quiet = matches!(self.pace, Pace::Every(_));
        for (id, watcher) in &mut self.watchers {
            let due = watcher.quiet || !only_quiet;
            if watcher.spec.progress && due && watcher.cursor.is_live() && watcher.spec.from <= revision {
                self.out.push_back(Out::Progress { id: *id, revision });
            }
            watcher.quiet = true;
        }
        self.told = revision;
        Ok(())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.hub.drop_link(&self.link);
        self.metrics.watch_streams.dec();
        for _ in 0..self.watchers.len() {
            self.metrics.watchers.dec();
        }
    }
}

/// Completes when the timer does, and never if there is none.
async fn tick(timer: &mut Option<BoxFuture<'static, ()>>) {
    match timer {
        Some(timer) => timer.await,
        None => std::future::pending().await,
    }
}

impl Watcher {
    /// What this watch sees of some feeds, from `next` on.
    fn piece_of(&self, feeds: &[Arc<Feed>], next: Revision, views: &dyn Views) -> Result<Piece, KvError> {
        let seen = |event: &&Event| event.kv.mod_revision >= next && self.spec.range.contains(&event.kv.key);
        let mut events: Vec<Event> = feeds.iter().flat_map(|feed| feed.events.iter().filter(seen).cloned()).collect();
        if self.spec.prev_kv && !events.is_empty() {
            add_previous(&*views.view(), &mut events)?;
        }
        let upto = feeds.last().map_or(Revision::new(next.get() - 1), |feed| feed.revision);
        Ok(Piece { events, upto })
    }

    /// Without the kinds that the client does not want.
    fn filter(&self, events: Seen) -> Seen {
        let wanted = |kind| match kind {
            EventKind::Put => !self.spec.no_put,
            EventKind::Delete => !self.spec.no_delete,
        };
        mutant!("M51", if self.spec.no_put || self.spec.no_delete { events.only(wanted) } else { events }, events)
    }
}
