//! Short words for commands, and a store that carries them out one by one.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

use bytes::Bytes;
use kontiki_base::ids::{LogIndex, LogPos, Term};
use kontiki_base::kv::{
    Compare, CompareOp, CompareTarget, DeleteReq, Event, EventKind, KeyValue, KvError, Op, PutReq, RangeReq, RangeRes, Txn, TxnRes,
};
use kontiki_base::{KeyRange, LeaseId, Revision};
use kontiki_mvcc::{Batch, Command, MemView, Outcome, ReadError, Reply, apply, range};

pub(crate) const TERM: Term = Term(3);

/// A state, and every event so far.
#[derive(Default)]
pub(crate) struct Store {
    pub(crate) view: MemView,
    pub(crate) index: u64,
}

impl Store {
    pub(crate) fn apply(&mut self, command: &Command) -> Outcome {
        self.index += 1;
        let mut batch = Batch::default();
        let at = LogPos { term: TERM, index: LogIndex(self.index) };
        let outcome = apply(&self.view, at, command, &mut batch).unwrap();
        if outcome.reply.is_err() {
            assert!(batch.is_empty(), "a failed command left {batch:?}");
        }
        self.view.commit(batch);
        outcome
    }

    /// Carries out a command that must succeed; the revision after it.
    pub(crate) fn ok(&mut self, command: Command) -> Revision {
        let outcome = self.apply(&command);
        assert!(outcome.reply.is_ok(), "{command:?}: {:?}", outcome.reply);
        outcome.revision
    }

    pub(crate) fn fails(&mut self, command: Command) -> KvError {
        self.apply(&command).reply.expect_err("the command must fail")
    }

    pub(crate) fn put(&mut self, key: &'static str, value: &'static str) -> Revision {
        self.ok(Command::Put(put(key, value)))
    }

    pub(crate) fn delete(&mut self, key: &'static str) -> Revision {
        self.ok(Command::Delete(del(one(key))))
    }

    pub(crate) fn txn(&mut self, txn: Txn) -> TxnRes {
        match self.apply(&Command::Txn { txn, fence: None }).reply {
            Ok(Reply::Txn(res)) => res,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn range(&self, req: &RangeReq) -> Result<RangeRes, KvError> {
        match range(&self.view, req) {
            Ok(res) => Ok(res),
            Err(ReadError::Kv(error)) => Err(error),
            Err(ReadError::View(error)) => panic!("{error}"),
        }
    }

    pub(crate) fn read(&self, req: &RangeReq) -> RangeRes {
        self.range(req).unwrap()
    }

    pub(crate) fn get(&self, key: &'static str) -> Option<KeyValue> {
        self.read(&RangeReq::new(one(key))).kvs.pop()
    }
}

pub(crate) fn one(key: &'static str) -> KeyRange {
    KeyRange::single(key)
}

pub(crate) fn wire(key: &'static str, end: &'static str) -> KeyRange {
    KeyRange::from_wire(key.into(), end.into())
}

pub(crate) fn all() -> KeyRange {
    wire("\0", "\0")
}

pub(crate) fn put(key: &'static str, value: &'static str) -> PutReq {
    PutReq { key: key.into(), value: value.into(), ..PutReq::default() }
}

pub(crate) fn put_leased(key: &'static str, lease: i64) -> PutReq {
    PutReq { lease: LeaseId(lease), ..put(key, "leased") }
}

pub(crate) fn del(range: KeyRange) -> DeleteReq {
    DeleteReq { range, prev_kv: false }
}

pub(crate) fn compare(key: &'static str, op: CompareOp, target: CompareTarget) -> Compare {
    Compare { range: one(key), target, op }
}

pub(crate) fn then(success: Vec<Op>) -> Txn {
    Txn { success, ..Txn::default() }
}

pub(crate) fn kv(key: &str, value: &str, create: i64, modified: i64, version: i64) -> KeyValue {
    KeyValue {
        key: Bytes::copy_from_slice(key.as_bytes()),
        value: Bytes::copy_from_slice(value.as_bytes()),
        create_revision: Revision(create),
        mod_revision: Revision(modified),
        version,
        lease: LeaseId::ZERO,
    }
}

/// An event in short: `put k@5`, `del k@6`.
pub(crate) fn brief(events: &[Event]) -> Vec<String> {
    let word = |kind| if kind == EventKind::Put { "put" } else { "del" };
    events.iter().map(|e| format!("{} {}@{}", word(e.kind), String::from_utf8_lossy(&e.kv.key), e.kv.mod_revision)).collect()
}

struct Noted(std::sync::atomic::AtomicUsize);

impl Wake for Noted {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
    }
}

/// Polls futures by hand and counts wakeups.
pub(crate) struct Poller(Arc<Noted>);

impl Poller {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Noted(std::sync::atomic::AtomicUsize::new(0))))
    }

    pub(crate) fn woken(&self) -> usize {
        self.0.0.load(std::sync::atomic::Ordering::SeqCst)
    }

    pub(crate) fn poll<T>(&self, future: impl Future<Output = T>) -> Option<T> {
        let waker = Waker::from(Arc::clone(&self.0));
        match pin!(future).poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(value) => Some(value),
            Poll::Pending => None,
        }
    }
}

/// What a future answers that has nothing to wait for.
pub(crate) fn now<T>(future: impl Future<Output = T>) -> T {
    Poller::new().poll(future).expect("the future waits")
}
