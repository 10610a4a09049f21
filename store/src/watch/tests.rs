//! Watches from end to end: what is delivered equals what happened, however slow the watcher, however short the memory.

use std::sync::Arc;
use std::time::Duration;

use kontiki_base::ids::Revision;
use kontiki_base::key::KeyRange;
use kontiki_base::kv::{DeleteReq, Event, EventKind, Kv as _, KvError, PutReq, RangeReq, Txn, WatchMsg, WatchReq};
use kontiki_base::{LeaseId, WatchId};

use super::hub::HubLimits;
use super::ring::RingLimits;
use super::{Out, Pace, Session, WatchSpec};
use crate::kv::LocalStoreKv;
use crate::testing::{Bench, bench, bench_with};

const NEVER: Pace = Pace::Every(Duration::from_secs(3600));

fn spec(range: KeyRange, from: i64) -> WatchSpec {
    WatchSpec {
        id: None,
        range,
        from: Revision::new(from),
        prev_kv: true,
        no_put: false,
        no_delete: false,
        progress: false,
        fragment: false,
    }
}

async fn put(bench: &Bench, key: &str, value: &str) -> Revision {
    let put = PutReq { key: key.to_owned().into(), value: value.to_owned().into(), lease: LeaseId::ZERO, ..PutReq::default() };
    bench.service.put(put).await.unwrap().revision
}

/// Reads until an event of revision `until` has come; checks order and wholeness on the way.
async fn drain(session: &mut Session, id: WatchId, until: Revision) -> Vec<Event> {
    let mut seen: Vec<Event> = Vec::new();
    while seen.last().is_none_or(|e| e.kv.mod_revision < until) {
        let out = tokio::time::timeout(Duration::from_secs(10), session.next()).await.expect("in time").unwrap().unwrap();
        if let Out::Events { id: of, revision, events, .. } = out
            && of == id
        {
            let events = events.to_events();
            let first = events.first().unwrap().kv.mod_revision;
            assert!(seen.last().is_none_or(|last| last.kv.mod_revision < first), "a revision is never split");
            assert!(revision >= events.last().unwrap().kv.mod_revision);
            seen.extend(events.iter().cloned());
        }
    }
    seen
}

/// A small generator: the tests need variety, not randomness.
struct Mix(u64);

impl Mix {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

async fn random_write(bench: &Bench, mix: &mut Mix) {
    let key = format!("k{}", mix.below(6));
    if mix.below(4) == 0 {
        let range = if mix.below(2) == 0 { KeyRange::single(key) } else { KeyRange::prefix("k") };
        bench.service.delete(DeleteReq { range, prev_kv: false }).await.unwrap();
    } else {
        put(bench, &key, &mix.below(1000).to_string()).await;
    }
}

/// Slow and fast readers of one history, over rings and queues that are far too small, see the same: all of it, in order, once.
#[tokio::test]
async fn every_watcher_sees_all_of_history_in_order() {
    for seed in 0..6 {
        let mut mix = Mix(seed);
        let ring = RingLimits { revisions: usize::try_from(1 + mix.below(40)).unwrap(), bytes: usize::MAX };
        let bench = bench_with(HubLimits { ring, stream_queue: usize::try_from(1 + mix.below(3)).unwrap() }, Duration::from_secs(600));
        let mut sessions = Vec::new();
        for round in 0..300 {
            random_write(&bench, &mut mix).await;
            if round % 60 == 7 {
                let mut session = bench.service.watch(NEVER);
                let from = i64::try_from(2 + mix.below(20)).unwrap();
                session.create(spec(KeyRange::prefix("k"), from));
                session.create(spec(KeyRange::single(format!("k{}", mix.below(6))), from));
                sessions.push((session, from, Vec::new()));
            }
            // Readers read now and then, and get behind.
            for (session, _, seen) in &mut sessions {
                if mix.below(9) == 0
                    && let Ok(out) = tokio::time::timeout(Duration::from_millis(1), session.next()).await
                    && let Some(Out::Events { id, events, .. }) = out.unwrap()
                    && id == WatchId::ZERO
                {
                    seen.extend(events.iter().cloned());
                }
            }
        }
        let last = put(&bench, "k-last", "").await;
        let view = bench.service.reader.view();
        for (mut session, from, mut seen) in sessions {
            let until = seen.last().map_or(Revision::ZERO, |e: &Event| e.kv.mod_revision);
            assert!(until < last);
            seen.extend(drain(&mut session, WatchId::ZERO, last).await);
            let (mut expected, _) = kontiki_mvcc::history(&*view, &KeyRange::prefix("k"), Revision::new(from), usize::MAX / 32).unwrap();
            super::replay::add_previous(&*view, &mut expected).unwrap();
            assert_eq!(seen, expected, "seed {seed}");
        }
        assert!(seed > 0 || bench.service.metrics.slow_watchers.get() > 0, "the queues were too small for that");
    }
}

/// A key that is written twice in one revision: each event knows the one before it.
#[tokio::test]
async fn previous_versions_within_one_revision() {
    let bench = bench();
    put(&bench, "a", "old").await;
    let mut session = bench.service.watch(NEVER);
    session.create(spec(KeyRange::prefix("a"), 0));
    let put = |value: &'static str| kontiki_base::kv::Op::Put(PutReq { key: "a".into(), value: value.into(), ..PutReq::default() });
    let delete = DeleteReq { range: KeyRange::from_wire("a".into(), "\0".into()), prev_kv: false };
    let txn = Txn { success: vec![put("new"), kontiki_base::kv::Op::Delete(delete)], ..Txn::default() };
    let revision = bench.service.txn(txn, None, 128).await.unwrap().revision;
    let seen = drain(&mut session, WatchId::ZERO, revision).await;
    let brief: Vec<_> = seen.iter().map(|e| (e.kind, e.prev.as_ref().map(|kv| kv.value.clone()))).collect();
    assert_eq!(brief, [(EventKind::Put, Some("old".into())), (EventKind::Delete, Some("new".into()))]);
}

/// A snapshot replaces the state: watches go on from where they stand, or hear that it is gone.
#[tokio::test]
async fn a_replaced_state_is_caught_up_with() {
    let bench = bench();
    put(&bench, "a", "1").await;
    let mut session = bench.service.watch(NEVER);
    session.create(spec(KeyRange::single("a"), 2));
    drain(&mut session, WatchId::ZERO, Revision::new(2)).await;
    put(&bench, "a", "2").await;
    put(&bench, "a", "3").await;
    bench.service.hub.replaced(super::hub::Tip { revision: Revision::new(4), compact: Revision::new(-1) });
    let seen = drain(&mut session, WatchId::ZERO, Revision::new(4)).await;
    assert_eq!(seen.iter().map(|e| e.kv.mod_revision.get()).collect::<Vec<_>>(), [3, 4]);
    bench.service.hub.replaced(super::hub::Tip { revision: Revision::new(40), compact: Revision::new(30) });
    let end = loop {
        if let Out::Canceled { why, .. } = session.next().await.unwrap().unwrap() {
            break why;
        }
    };
    assert_eq!(end, super::Canceled::Compacted(Revision::new(30)));
}

/// Progress says that everything up to there has been delivered: so nothing may follow that is older.
#[tokio::test]
async fn progress_never_overtakes_events() {
    let bench = Arc::new(bench());
    let mut session = bench.service.watch(NEVER);
    session.create(spec(KeyRange::prefix("k"), 0));
    let writer = Arc::clone(&bench);
    let writing = tokio::spawn(async move {
        for n in 0..300 {
            put(&writer, if n % 3 == 0 { "k" } else { "other" }, "").await;
            if n % 7 == 0 {
                tokio::task::yield_now().await;
            }
        }
    });
    let (mut promised, mut told) = (Revision::ZERO, 0);
    loop {
        session.request_progress();
        match tokio::time::timeout(Duration::from_millis(300), session.next()).await {
            Ok(out) => match out.unwrap().unwrap() {
                Out::Events { events, .. } => assert!(events.iter().all(|e| e.kv.mod_revision > promised), "{events:?} after {promised}"),
                Out::ProgressAll { revision } => {
                    assert!(revision >= promised);
                    (promised, told) = (revision, told + 1);
                    if writing.is_finished() && revision >= Revision::new(301) {
                        break;
                    }
                    tokio::task::yield_now().await;
                }
                _ => {}
            },
            Err(_) => panic!("no progress"),
        }
    }
    assert!(told > 1);
}

#[tokio::test]
async fn the_store_in_process_reads_writes_and_watches() {
    let bench = bench();
    let kv = LocalStoreKv::new(Arc::clone(&bench.service));
    let mut watch = kv.watch(WatchReq { range: KeyRange::prefix("a"), from: Revision::ZERO, prev_kv: false }).await.unwrap();
    let Some(Ok(WatchMsg::Created { revision })) = watch.next().await else { panic!("created first") };
    assert_eq!(revision, Revision::new(1));
    let put = |key: &'static str| kontiki_base::kv::Op::Put(PutReq { key: key.into(), value: "v".into(), ..PutReq::default() });
    let term = kv.status().term;
    let res = kv.txn(Txn { success: vec![put("a")], ..Txn::default() }, Some(term)).await.unwrap();
    assert_eq!(res.revision, Revision::new(2));
    let Some(Ok(WatchMsg::Events { revision, events })) = watch.next().await else { panic!("the put") };
    assert_eq!((revision, events.len()), (Revision::new(2), 1));
    kv.txn(Txn { success: vec![put("b")], ..Txn::default() }, None).await.unwrap();
    let Some(Ok(WatchMsg::Progress { revision })) = watch.next().await else { panic!("progress soon") };
    assert_eq!(revision, Revision::new(3), "the store moved on, and nothing watched happened");
    let stale = kv.txn(Txn { success: vec![put("a")], ..Txn::default() }, Some(term.next())).await;
    assert!(matches!(stale, Err(KvError::Fenced { .. })), "{stale:?}");
    let res = kv.range(RangeReq::new(KeyRange::prefix("a"))).await.unwrap();
    assert_eq!((res.count, res.revision), (1, Revision::new(3)));
    let seen = kv.status();
    assert!(seen.is_leader && seen.has_leader && seen.revision == Revision::new(3));
    let changed = kv.status_changed(seen);
    bench.solo.become_(|s| s.term = s.term.next());
    tokio::time::timeout(Duration::from_secs(1), changed).await.expect("a new term is a change");
    kv.compact(Revision::new(3)).await.unwrap();
    let mut old = kv.watch(WatchReq { range: KeyRange::prefix("a"), from: Revision::new(2), prev_kv: false }).await.unwrap();
    assert!(matches!(old.next().await, Some(Ok(WatchMsg::Created { .. }))));
    assert!(matches!(old.next().await, Some(Err(KvError::Compacted { compact: Revision(3) }))));
    assert!(old.next().await.is_none());
    bench.service.hub.close();
    assert!(watch.next().await.is_none(), "the member shuts down");
}
