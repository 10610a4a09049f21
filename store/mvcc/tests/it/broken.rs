//! A disk that cannot be read: whatever is under way says so, and nothing panics or pretends.

use std::cell::Cell;
use std::ops::Bound;

use bytes::Bytes;
use kontiki_base::ids::{LeaseId, LogIndex, LogPos, Revision};
use kontiki_base::kv::{Compare, CompareOp, CompareTarget, DeleteReq, Op, PutReq, RangeReq, SortOrder, Txn};
use kontiki_mvcc::view::Scan;
use kontiki_mvcc::{
    Batch, Command, MemView, ReadError, Space, View, ViewError, apply, get_at, hash_kv, history, lease, previous, range, read_txn,
    state_hash, sweep, verify,
};

use crate::util::{Store, TERM, all, del, one, put, put_leased};

/// Reads well so many times, then never again.
struct Failing<'a> {
    below: &'a MemView,
    left: Cell<usize>,
}

impl Failing<'_> {
    fn read(&self, space: Space) -> Result<(), ViewError> {
        match self.left.get().checked_sub(1) {
            Some(left) => {
                self.left.set(left);
                Ok(())
            }
            None => Err(ViewError { space, why: "unplugged".to_owned() }),
        }
    }
}

impl View for Failing<'_> {
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, ViewError> {
        self.read(space)?;
        self.below.get(space, key)
    }

    fn scan<'a>(&'a self, space: Space, from: Bound<&[u8]>, to: Bound<&[u8]>, reverse: bool) -> Scan<'a> {
        Box::new(self.below.scan(space, from, to, reverse).map(move |record| self.read(space).and(record)))
    }
}

fn small_store() -> Store {
    let mut store = Store::default();
    store.ok(Command::LeaseGrant { id: LeaseId(1), ttl: 5 });
    for key in ["a", "b", "c"] {
        store.put(key, "1");
        store.ok(Command::Put(put_leased(key, 1)));
    }
    store.delete("b");
    store
}

/// Does it again and again, with one more good read each time, until it succeeds: it must have failed before, each time with the
/// error of the disk.
fn survives(store: &Store, what: &str, act: impl Fn(&dyn View) -> Result<(), ReadError>) {
    for good in 0..1_000 {
        match act(&Failing { below: &store.view, left: Cell::new(good) }) {
            Ok(()) => {
                assert!(good > 0, "{what} reads nothing");
                return;
            }
            Err(ReadError::View(error)) => assert_eq!(error.why, "unplugged", "{what}"),
            Err(ReadError::Kv(error)) => panic!("{what}: {error} instead of the disk's error"),
        }
    }
    panic!("{what} never succeeds");
}

#[test]
fn commands_report_it() {
    let store = small_store();
    let everything = Txn {
        compare: vec![Compare { range: all(), target: CompareTarget::Value("0".into()), op: CompareOp::Greater }],
        success: vec![
            Op::Put(PutReq { ignore_value: true, ..put("a", "") }),
            Op::Range(RangeReq::new(all())),
            Op::Txn(Txn { success: vec![Op::Delete(DeleteReq { range: one("c"), prev_kv: true })], ..Txn::default() }),
        ],
        failure: vec![],
    };
    for command in [
        Command::Put(PutReq { prev_kv: true, ..put_leased("a", 1) }),
        Command::Delete(del(all())),
        Command::Txn { txn: everything, fence: None },
        Command::LeaseGrant { id: LeaseId(2), ttl: 5 },
        Command::LeaseRevoke { id: LeaseId(1) },
        Command::Compact { revision: Revision(4) },
    ] {
        survives(&store, &format!("{command:?}"), |view| {
            let outcome = apply(view, LogPos { term: TERM, index: LogIndex(99) }, &command, &mut Batch::default())?;
            outcome.reply.map(|_| ()).map_err(ReadError::Kv)
        });
    }
}

#[test]
fn reads_report_it() {
    let mut store = small_store();
    store.ok(Command::Compact { revision: Revision(6) });
    for (at, limit, order) in [(0, 0, SortOrder::None), (0, 1, SortOrder::Descend), (6, 1, SortOrder::None), (7, 2, SortOrder::Descend)] {
        let req = RangeReq { at: Revision(at), limit, order, ..RangeReq::new(all()) };
        survives(&store, "range", |view| range(view, &req).map(drop));
        let counting = RangeReq { count_only: true, ..req };
        survives(&store, "count", |view| range(view, &counting).map(drop));
    }
    survives(&store, "get", |view| get_at(view, b"a", Revision(0)).map(drop));
    survives(&store, "get at", |view| get_at(view, b"a", Revision(6)).map(drop));
    survives(&store, "history", |view| history(view, &all(), Revision(6), 9).map(drop));
    survives(&store, "history of one key", |view| history(view, &one("b"), Revision(6), 9).map(drop));
    survives(&store, "previous", |view| Ok(previous(view, b"b", Revision(8)).map(drop)?));
    survives(&store, "leases", |view| Ok(lease::list(view).map(drop)?));
    survives(&store, "attached", |view| Ok(lease::attached(view, LeaseId(1)).map(drop)?));
    survives(&store, "hash", |view| Ok(state_hash(view).map(drop)?));
    survives(&store, "hash kv", |view| hash_kv(view, Revision(0)).map(drop));
    survives(&store, "verify", |view| Ok(verify(view)?));
    survives(&store, "sweep", |view| Ok(sweep(view, 100, &mut Batch::default()).map(drop)?));
    let reading = Txn { success: vec![Op::Range(RangeReq::new(all()))], ..Txn::default() };
    survives(&store, "read-only txn", |view| read_txn(view, &reading).map(drop));
}
