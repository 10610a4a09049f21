//! The in-memory `Kv`: its watches, its fencing, its end.

use kontiki_base::kv::{Kv, KvError, Op, RangeReq, WatchMsg, WatchReq, WatchStream};
use kontiki_base::{Revision, ids::Term};
use kontiki_mvcc::{Command, LocalKv};

use crate::util::{Poller, all, brief, del, now, one, put, then, wire};

fn watch(kv: &LocalKv, from: i64, prev_kv: bool) -> Box<dyn WatchStream> {
    let mut stream = now(kv.watch(WatchReq { range: wire("k", "l"), from: Revision(from), prev_kv })).unwrap();
    assert!(matches!(now(stream.next()), Some(Ok(WatchMsg::Created { .. }))));
    stream
}

fn write(kv: &LocalKv, op: Op) -> Revision {
    now(kv.txn(then(vec![op]), None)).unwrap().revision
}

#[test]
fn reads_what_was_written() {
    let kv = LocalKv::new();
    assert_eq!(kv.status().revision, Revision(1));
    assert_eq!(write(&kv, Op::Put(put("k", "v"))), Revision(2));
    let res = now(kv.range(RangeReq::new(one("k")))).unwrap();
    assert_eq!((res.revision, res.count, res.kvs[0].value.as_ref()), (Revision(2), 1, &b"v"[..]));
    assert_eq!(now(kv.range(RangeReq { at: Revision(3), ..RangeReq::new(all()) })), Err(KvError::FutureRevision));
}

#[test]
fn a_watch_sleeps_until_something_happens() {
    let kv = LocalKv::new();
    let mut stream = watch(&kv, 0, false);
    let poller = Poller::new();
    assert!(poller.poll(stream.next()).is_none());
    assert_eq!(poller.woken(), 0);
    write(&kv, Op::Put(put("k1", "v")));
    assert_eq!(poller.woken(), 1);
    match now(stream.next()) {
        Some(Ok(WatchMsg::Events { revision, events })) => assert_eq!((revision.get(), brief(&events)), (2, vec!["put k1@2".to_owned()])),
        other => panic!("{other:?}"),
    }
    assert!(poller.poll(stream.next()).is_none());
    // Something that is not watched moves the watch on.
    write(&kv, Op::Put(put("other", "v")));
    assert!(matches!(now(stream.next()), Some(Ok(WatchMsg::Progress { revision: Revision(3) }))));
}

#[test]
fn a_watch_replays_history_with_what_was_before() {
    let kv = LocalKv::new();
    write(&kv, Op::Put(put("k", "1")));
    now(kv.txn(then(vec![Op::Put(put("k", "2")), Op::Put(put("k2", "x")), Op::Put(put("z", "y"))]), None)).unwrap();
    write(&kv, Op::Delete(del(one("k"))));
    let mut stream = watch(&kv, 2, true);
    let Some(Ok(WatchMsg::Events { revision, events })) = now(stream.next()) else { panic!("no events") };
    assert_eq!(revision, Revision(4));
    assert_eq!(brief(&events), ["put k@2", "put k@3", "put k2@3", "del k@4"]);
    let prevs: Vec<_> = events.iter().map(|e| e.prev.as_ref().map(|kv| kv.value.clone())).collect();
    assert_eq!(prevs, [None, Some("1".into()), None, Some("2".into())]);
}

#[test]
fn a_watch_from_before_compaction_is_created_and_then_fails() {
    let kv = LocalKv::new();
    for value in ["1", "2", "3"] {
        write(&kv, Op::Put(put("k", value)));
    }
    now(kv.compact(Revision(3))).unwrap();
    let mut stream = watch(&kv, 2, false);
    assert!(matches!(now(stream.next()), Some(Err(KvError::Compacted { compact: Revision(3) }))));
    assert!(now(stream.next()).is_none());
    // From the compact revision on, everything is there.
    let mut stream = watch(&kv, 3, false);
    let Some(Ok(WatchMsg::Events { events, .. })) = now(stream.next()) else { panic!("no events") };
    assert_eq!(brief(&events), ["put k@3", "put k@4"]);
}

#[test]
fn a_watch_from_the_future_is_silent_until_then() {
    let kv = LocalKv::new();
    let mut stream = watch(&kv, 4, false);
    let poller = Poller::new();
    for value in ["1", "2"] {
        write(&kv, Op::Put(put("k", value)));
        assert!(poller.poll(stream.next()).is_none());
    }
    write(&kv, Op::Put(put("k", "3")));
    let Some(Ok(WatchMsg::Events { revision, events })) = now(stream.next()) else { panic!("no events") };
    assert_eq!((revision.get(), brief(&events)), (4, vec!["put k@4".to_owned()]));
}

#[test]
fn a_writer_of_an_earlier_term_is_fenced() {
    let kv = LocalKv::new();
    let seen = kv.status();
    let poller = Poller::new();
    let mut changed = kv.status_changed(seen.clone());
    assert!(poller.poll(changed.as_mut()).is_none());
    assert!(now(kv.txn(then(vec![Op::Put(put("k", "v"))]), Some(seen.term))).is_ok());
    kv.set_leadership(Term(2), false);
    assert_eq!(poller.woken(), 1);
    assert!(poller.poll(changed.as_mut()).is_some());
    let refused = now(kv.txn(then(vec![Op::Put(put("k", "w"))]), Some(seen.term)));
    assert_eq!(refused, Err(KvError::Fenced { given: Term(1), current: Term(2) }));
    assert_eq!(kv.revisions().revision, Revision(2));
    assert!(!kv.status().is_leader);
}

#[test]
fn closing_ends_everything() {
    let kv = LocalKv::new();
    let mut stream = watch(&kv, 0, false);
    let poller = Poller::new();
    assert!(poller.poll(stream.next()).is_none());
    kv.close();
    assert_eq!(poller.woken(), 1);
    assert!(now(stream.next()).is_none());
    assert_eq!(now(kv.range(RangeReq::new(all()))), Err(KvError::Stopped));
    assert_eq!(kv.apply(&Command::Compact { revision: Revision(1) }), Err(KvError::Stopped));
}

#[test]
fn is_shared_between_threads() {
    let kv = LocalKv::new();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..50).for_each(|_| assert!(write(&kv, Op::Put(put("k", "v"))) > Revision(1))));
        }
    });
    let mut stream = watch(&kv, 2, false);
    let mut seen = 0;
    while let Some(Some(Ok(WatchMsg::Events { events, .. }))) = Poller::new().poll(stream.next()) {
        seen += events.len();
    }
    assert_eq!((seen, kv.revisions().revision), (200, Revision(201)));
}
