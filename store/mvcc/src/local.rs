//! The real state machine over memory, as a [`Kv`]: what tests above the store run on. No Raft, no disk, no runtime; and no second
//! set of semantics that could drift from the first.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use kontiki_base::ids::{LogIndex, LogPos, Revision, Term};
use kontiki_base::kv::{Event, Kv, KvError, KvStatus, RangeReq, RangeRes, Txn, TxnRes, WatchMsg, WatchReq, WatchStream};
use kontiki_base::{BoxFuture, limits};

use crate::apply::apply;
use crate::command::{Command, Outcome, Reply};
use crate::compact::sweep;
use crate::history::{history, previous};
use crate::range::range;
use crate::state::{self, ReadError, Revisions};
use crate::view::{Batch, MemView, ViewError};

/// A watch looks for so many events at a time.
const EVENTS_PER_MESSAGE: usize = 256;

/// A slice of a sweep.
const SWEEP_BUDGET: usize = 1_000;

/// A store in memory. Clones are the same store. It leads in term 1 until told otherwise.
#[derive(Clone, Debug, Default)]
pub struct LocalKv {
    shared: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    view: MemView,
    at: LogPos,
    leads: bool,
    closed: bool,
    next_waiter: u64,
    /// Watches, with the waker of those that wait.
    watches: BTreeMap<u64, Option<Waker>>,
    /// Who waits for a change of term or leadership.
    status_waiters: BTreeMap<u64, Waker>,
}

impl Default for State {
    fn default() -> Self {
        Self {
            view: MemView::new(),
            at: LogPos { term: Term(1), index: LogIndex::ZERO },
            leads: true,
            closed: false,
            next_waiter: 0,
            watches: BTreeMap::new(),
            status_waiters: BTreeMap::new(),
        }
    }
}

impl LocalKv {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// Carries out any command, at the current term. A compaction removes the records, too.
    ///
    /// # Errors
    /// [`KvError::Stopped`] after [`LocalKv::close`], or what the command answers.
    pub fn apply(&self, command: &Command) -> Result<Outcome, KvError> {
        let (outcome, wakers) = {
            let mut state = self.open()?;
            let outcome = state.apply(command).map_err(unreadable)?;
            let changed = !outcome.events.is_empty() || matches!(outcome.reply, Ok(Reply::Compact));
            (outcome, if changed { state.sleeping_watches() } else { Vec::new() })
        };
        wakers.into_iter().for_each(Waker::wake);
        Ok(outcome)
    }

    /// Where the store stands.
    pub fn revisions(&self) -> Revisions {
        state::current(&self.lock().view).expect("memory can be read")
    }

    /// Changes term and leadership, to test what happens to writers of an earlier term.
    pub fn set_leadership(&self, term: Term, leads: bool) {
        let waiters = {
            let mut state = self.lock();
            state.at.term = term;
            state.leads = leads;
            std::mem::take(&mut state.status_waiters)
        };
        waiters.into_values().for_each(Waker::wake);
    }

    /// Shuts down: watches end, requests answer [`KvError::Stopped`].
    pub fn close(&self) {
        let wakers = {
            let mut state = self.lock();
            state.closed = true;
            state.sleeping_watches()
        };
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Nothing is left half done when a holder panics: changes are committed in one piece.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self) -> Result<MutexGuard<'_, State>, KvError> {
        let state = self.lock();
        if state.closed { Err(KvError::Stopped) } else { Ok(state) }
    }

    fn run(&self, command: &Command) -> Result<Reply, KvError> {
        self.apply(command)?.reply
    }

    fn start_watch(&self, req: WatchReq) -> Result<Box<dyn WatchStream>, KvError> {
        let mut state = self.open()?;
        if state.watches.len() >= limits::WATCHES_PER_STREAM {
            return Err(KvError::TooManyRequests);
        }
        let revision = state::current(&state.view).map_err(unreadable)?.revision;
        let id = state.waiter();
        state.watches.insert(id, None);
        let next = if req.from == Revision::ZERO { revision.next() } else { req.from };
        Ok(Box::new(LocalWatch { kv: self.clone(), id, req, next, stage: Stage::Create { revision } }))
    }
}

impl State {
    fn apply(&mut self, command: &Command) -> Result<Outcome, ViewError> {
        self.at.index = self.at.index.next();
        let mut batch = Batch::default();
        let outcome = apply(&self.view, self.at, command, &mut batch)?;
        self.view.commit(batch);
        if outcome.reply == Ok(Reply::Compact) {
            self.sweep()?;
        }
        Ok(outcome)
    }

    fn sweep(&mut self) -> Result<(), ViewError> {
        loop {
            let mut batch = Batch::default();
            let done = sweep(&self.view, SWEEP_BUDGET, &mut batch)?.done;
            self.view.commit(batch);
            if done {
                return Ok(());
            }
        }
    }

    fn sleeping_watches(&mut self) -> Vec<Waker> {
        self.watches.values_mut().filter_map(Option::take).collect()
    }

    fn waiter(&mut self) -> u64 {
        self.next_waiter += 1;
        self.next_waiter
    }

    fn status(&self) -> KvStatus {
        let revision = state::current(&self.view).expect("memory can be read").revision;
        KvStatus { term: self.at.term, is_leader: self.leads, has_leader: true, revision }
    }
}

fn unreadable(error: ViewError) -> KvError {
    ReadError::View(error).into()
}

/// A future that does its work when it is first polled.
fn later<'a, T: 'a>(work: impl FnOnce() -> T + Send + 'a) -> BoxFuture<'a, T> {
    let mut work = Some(work);
    Box::pin(poll_fn(move |_| Poll::Ready((work.take().expect("a finished future is not polled"))())))
}

impl Kv for LocalKv {
    fn range(&self, req: RangeReq) -> BoxFuture<'_, Result<RangeRes, KvError>> {
        later(move || Ok(range(&self.open()?.view, &req)?))
    }

    fn txn(&self, txn: Txn, fence: Option<Term>) -> BoxFuture<'_, Result<TxnRes, KvError>> {
        later(move || match self.run(&Command::Txn { txn, fence })? {
            Reply::Txn(res) => Ok(res),
            other => Err(KvError::Internal(format!("a transaction was answered with {other:?}"))),
        })
    }

    fn watch(&self, req: WatchReq) -> BoxFuture<'_, Result<Box<dyn WatchStream>, KvError>> {
        later(move || self.start_watch(req))
    }

    fn compact(&self, revision: Revision) -> BoxFuture<'_, Result<(), KvError>> {
        later(move || self.run(&Command::Compact { revision }).map(|_| ()))
    }

    fn status(&self) -> KvStatus {
        self.lock().status()
    }

    fn status_changed(&self, seen: KvStatus) -> BoxFuture<'_, ()> {
        let mut waiting = StatusWait { kv: self, id: None };
        Box::pin(poll_fn(move |cx| waiting.poll(&seen, cx)))
    }
}

/// Somebody who waits for a change of term or leadership.
struct StatusWait<'a> {
    kv: &'a LocalKv,
    id: Option<u64>,
}

impl StatusWait<'_> {
    fn poll(&mut self, seen: &KvStatus, cx: &Context<'_>) -> Poll<()> {
        let mut state = self.kv.lock();
        let now = state.status();
        if (now.term, now.is_leader, now.has_leader) != (seen.term, seen.is_leader, seen.has_leader) {
            return Poll::Ready(());
        }
        let id = *self.id.get_or_insert_with(|| state.waiter());
        state.status_waiters.insert(id, cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for StatusWait<'_> {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.kv.lock().status_waiters.remove(&id);
        }
    }
}

/// A watch: a cursor into history. Since it always reads history, it cannot miss, repeat or split a revision.
struct LocalWatch {
    kv: LocalKv,
    id: u64,
    req: WatchReq,
    /// The first revision that was not delivered.
    next: Revision,
    stage: Stage,
}

enum Stage {
    Create { revision: Revision },
    Running,
    Ended,
}

impl LocalWatch {
    fn poll(&mut self, cx: &Context<'_>) -> Poll<Option<Result<WatchMsg, KvError>>> {
        let kv = self.kv.clone();
        let mut state = kv.lock();
        if state.closed {
            self.stage = Stage::Ended;
        }
        match self.stage {
            Stage::Create { revision } => {
                self.stage = Stage::Running;
                Poll::Ready(Some(Ok(WatchMsg::Created { revision })))
            }
            Stage::Running => match self.advance(&state.view) {
                Ok(Some(message)) => Poll::Ready(Some(Ok(message))),
                Ok(None) => {
                    state.watches.insert(self.id, Some(cx.waker().clone()));
                    Poll::Pending
                }
                Err(error) => {
                    self.stage = Stage::Ended;
                    Poll::Ready(Some(Err(error.into())))
                }
            },
            Stage::Ended => Poll::Ready(None),
        }
    }

    /// The next message, if the store is beyond what was delivered.
    fn advance(&mut self, view: &MemView) -> Result<Option<WatchMsg>, ReadError> {
        let (mut events, next) = history(view, &self.req.range, self.next, EVENTS_PER_MESSAGE)?;
        if next == self.next {
            return Ok(None);
        }
        if self.req.prev_kv {
            fill_prev(view, &mut events)?;
        }
        self.next = next;
        let revision = Revision(next.get() - 1);
        Ok(Some(if events.is_empty() { WatchMsg::Progress { revision } } else { WatchMsg::Events { revision, events: events.into() } }))
    }
}

fn fill_prev(view: &MemView, events: &mut [Event]) -> Result<(), ViewError> {
    for event in events {
        event.prev = previous(view, &event.kv.key, event.kv.mod_revision)?;
    }
    Ok(())
}

impl WatchStream for LocalWatch {
    fn next(&mut self) -> BoxFuture<'_, Option<Result<WatchMsg, KvError>>> {
        Box::pin(poll_fn(move |cx| self.poll(cx)))
    }
}

impl Drop for LocalWatch {
    fn drop(&mut self) {
        self.kv.lock().watches.remove(&self.id);
    }
}
