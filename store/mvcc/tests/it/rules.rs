//! etcd's rules for put, range, delete, lease and compaction, one by one.

use std::ops::Bound;

use bytes::Bytes;
use kontiki_base::kv::{DeleteReq, KvError, PutReq, PutRes, RangeReq, SortOrder, SortTarget};
use kontiki_base::{LeaseId, Revision};
use kontiki_mvcc::{
    Batch, Command, NEVER_COMPACTED, Progress, Reply, Revisions, Space, View, current, get_at, hash_kv, history, lease, previous,
    state_hash, sweep, verify,
};

use crate::util::{Store, all, brief, del, kv, one, put, put_leased, wire};

fn keys(kvs: &[kontiki_base::kv::KeyValue]) -> Vec<&str> {
    kvs.iter().map(|kv| std::str::from_utf8(&kv.key).unwrap()).collect()
}

fn compact(revision: i64) -> Command {
    Command::Compact { revision: Revision(revision) }
}

fn grant(id: i64) -> Command {
    Command::LeaseGrant { id: LeaseId(id), ttl: 60 }
}

#[test]
fn an_empty_store_is_at_one_and_the_first_write_makes_two() {
    let mut store = Store::default();
    assert_eq!(current(&store.view), Ok(Revisions { revision: Revision(1), compact: NEVER_COMPACTED }));
    assert_eq!(store.read(&RangeReq::new(all())).revision, Revision(1));
    assert_eq!(store.put("k", "v"), Revision(2));
}

#[test]
fn a_put_counts_create_mod_and_version() {
    let mut store = Store::default();
    store.put("k", "1");
    assert_eq!(store.get("k"), Some(kv("k", "1", 2, 2, 1)));
    store.put("other", "x");
    store.put("k", "2");
    assert_eq!(store.get("k"), Some(kv("k", "2", 2, 4, 2)));
    // The same value is still a write.
    assert_eq!(store.put("k", "2"), Revision(5));
    assert_eq!(store.get("k"), Some(kv("k", "2", 2, 5, 3)));
    // After a delete it is a new key.
    store.delete("k");
    assert_eq!(store.get("k"), None);
    store.put("k", "");
    assert_eq!(store.get("k"), Some(kv("k", "", 7, 7, 1)));
}

#[test]
fn what_changes_nothing_makes_no_revision() {
    let mut store = Store::default();
    store.put("k", "v");
    for command in [
        Command::Delete(del(one("absent"))),
        Command::Delete(del(wire("z", "a"))),
        grant(7),
        Command::LeaseRevoke { id: LeaseId(7) },
        Command::Txn { txn: kontiki_base::kv::Txn::default(), fence: None },
        compact(2),
    ] {
        let outcome = store.apply(&command);
        assert!(outcome.reply.is_ok(), "{command:?}");
        assert_eq!((outcome.revision, outcome.events), (Revision(2), vec![]), "{command:?}");
    }
}

#[test]
fn a_put_answers_and_keeps_what_it_is_told_to() {
    let mut store = Store::default();
    store.ok(grant(9));
    let prev = |store: &mut Store, req: PutReq| match store.apply(&Command::Put(req)).reply {
        Ok(Reply::Put(PutRes { prev, .. })) => prev,
        other => panic!("{other:?}"),
    };
    let asking = PutReq { prev_kv: true, ..put("k", "1") };
    assert_eq!(prev(&mut store, asking.clone()), None);
    assert_eq!(prev(&mut store, put_leased("k", 9)), None);
    let leased = kontiki_base::kv::KeyValue { lease: LeaseId(9), ..kv("k", "leased", 2, 3, 2) };
    assert_eq!(prev(&mut store, PutReq { ignore_lease: true, prev_kv: true, ..put("k", "2") }), Some(leased));
    assert_eq!(store.get("k").unwrap().lease, LeaseId(9));
    store.ok(Command::Put(PutReq { ignore_value: true, lease: LeaseId(9), ..put("k", "") }));
    assert_eq!(store.get("k").unwrap().value, Bytes::from("2"));
    // Without a lease, and without keeping it, the key loses it.
    store.ok(Command::Put(PutReq { ignore_value: true, ..put("k", "") }));
    assert_eq!(store.get("k"), Some(kv("k", "2", 2, 6, 5)));
    assert!(lease::attached(&store.view, LeaseId(9)).unwrap().is_empty());
}

#[test]
fn a_put_that_cannot_be_carried_out_writes_nothing() {
    let mut store = Store::default();
    let table = [
        (put("", "v"), KvError::EmptyKey),
        (PutReq { ignore_value: true, ..put("k", "v") }, KvError::ValueProvided),
        (PutReq { ignore_lease: true, lease: LeaseId(1), ..put("k", "v") }, KvError::LeaseProvided),
        (PutReq { ignore_value: true, ..put("k", "") }, KvError::KeyNotFound),
        (PutReq { ignore_lease: true, ..put("k", "v") }, KvError::KeyNotFound),
        (put_leased("k", 4), KvError::LeaseNotFound),
    ];
    for (req, error) in table {
        assert_eq!(store.fails(Command::Put(req)), error);
        assert!(store.view.is_empty());
    }
}

#[test]
fn a_delete_goes_in_key_order_in_one_revision() {
    let mut store = Store::default();
    for key in ["c", "a", "b", "d"] {
        store.put(key, key);
    }
    let outcome = store.apply(&Command::Delete(DeleteReq { range: wire("a", "d"), prev_kv: true }));
    assert_eq!(brief(&outcome.events), ["del a@6", "del b@6", "del c@6"]);
    assert!(outcome.events.iter().all(|e| e.kv.value.is_empty() && e.kv.version == 0 && e.kv.create_revision == Revision::ZERO));
    let Ok(Reply::Delete(res)) = outcome.reply else { panic!() };
    assert_eq!((res.revision, res.deleted), (Revision(6), 3));
    assert_eq!(res.prevs, [kv("a", "a", 3, 3, 1), kv("b", "b", 4, 4, 1), kv("c", "c", 2, 2, 1)]);
    assert_eq!(store.fails(Command::Delete(del(one("")))), KvError::EmptyKey);
}

#[test]
fn ranges_follow_the_table_of_range_ends() {
    let mut store = Store::default();
    for key in ["\0", "a", "a\0", "a\0b", "ab", "b", "\u{7f}"] {
        store.put(key, "");
    }
    let table: &[(&str, &str, &[&str])] = &[
        ("a", "", &["a"]),
        ("a", "b", &["a", "a\0", "a\0b", "ab"]),
        ("a\0", "ab", &["a\0", "a\0b"]),
        ("a", "\0", &["a", "a\0", "a\0b", "ab", "b", "\u{7f}"]),
        ("\0", "\0", &["\0", "a", "a\0", "a\0b", "ab", "b", "\u{7f}"]),
        ("\0", "", &["\0"]),
        ("b", "b", &[]),
        ("b", "a", &[]),
        ("absent", "", &[]),
    ];
    for (key, end, expected) in table {
        for at in [0, 8] {
            let req = RangeReq { at: Revision(at), ..RangeReq::new(wire(key, end)) };
            let res = store.read(&req);
            assert_eq!(keys(&res.kvs), *expected, "{key:?} {end:?}");
            assert_eq!(res.count, expected.len() as i64);
            let counted = store.read(&RangeReq { count_only: true, ..req });
            assert_eq!((counted.count, counted.kvs.len(), counted.more), (expected.len() as i64, 0, false));
        }
    }
    assert_eq!(store.range(&RangeReq::new(one(""))), Err(KvError::EmptyKey));
}

#[test]
fn limit_cuts_the_results_but_not_the_count() {
    let mut store = Store::default();
    for key in ["a", "b", "c"] {
        store.put(key, key);
    }
    store.put("d", "d");
    // (revision, limit, keys, more)
    let table: &[(i64, usize, &[&str], bool)] = &[
        (0, 0, &["a", "b", "c", "d"], false),
        (0, 3, &["a", "b", "c"], true),
        (0, 4, &["a", "b", "c", "d"], false),
        (4, 2, &["a", "b"], true),
        (4, 3, &["a", "b", "c"], false),
        (1, 1, &[], false),
    ];
    for (at, limit, expected, more) in table {
        let req = RangeReq { at: Revision(*at), limit: *limit, ..RangeReq::new(all()) };
        let res = store.read(&req);
        assert_eq!((keys(&res.kvs), res.more, res.revision), (expected.to_vec(), *more, Revision(5)));
        assert_eq!(res.count, [4, 0, 3, 3, 3][*at as usize]);
        let backwards = store.read(&RangeReq { order: SortOrder::Descend, limit: 1, ..req });
        assert_eq!(keys(&backwards.kvs), if *at == 1 { vec![] } else { vec![["d", "c"][usize::from(*at == 4)]] });
    }
}

#[test]
fn sorting_is_stable_and_filters_come_before_the_limit() {
    let mut store = Store::default();
    for (key, value) in [("a", "z"), ("b", "y"), ("c", "z"), ("b", "x")] {
        store.put(key, value);
    }
    let req = |target, order| RangeReq { target, order, ..RangeReq::new(all()) };
    let table: &[(RangeReq, &[&str])] = &[
        (req(SortTarget::Version, SortOrder::None), &["a", "c", "b"]),
        (req(SortTarget::Version, SortOrder::Descend), &["b", "a", "c"]),
        (req(SortTarget::Create, SortOrder::Descend), &["c", "b", "a"]),
        (req(SortTarget::Mod, SortOrder::Ascend), &["a", "c", "b"]),
        (req(SortTarget::Value, SortOrder::Ascend), &["b", "a", "c"]),
        (RangeReq { keys_only: true, ..req(SortTarget::Value, SortOrder::Descend) }, &["a", "c", "b"]),
        (RangeReq { min_mod: Revision(3), ..RangeReq::new(all()) }, &["b", "c"]),
        (RangeReq { max_mod: Revision(3), ..RangeReq::new(all()) }, &["a"]),
        (RangeReq { min_create: Revision(3), ..req(SortTarget::Key, SortOrder::Descend) }, &["c", "b"]),
        (RangeReq { max_create: Revision(3), ..RangeReq::new(all()) }, &["a", "b"]),
    ];
    for (req, expected) in table {
        let res = store.read(req);
        assert_eq!(keys(&res.kvs), *expected, "{req:?}");
        assert_eq!(res.count, 3, "filters do not reduce the count");
        let cut = store.read(&RangeReq { limit: 1, ..req.clone() });
        assert_eq!((keys(&cut.kvs), cut.more), (expected[..1].to_vec(), expected.len() > 1), "{req:?}");
        assert!(!req.keys_only || res.kvs.iter().all(|kv| kv.value.is_empty()));
    }
}

#[test]
fn old_revisions_show_what_was() {
    let mut store = Store::default();
    store.put("k", "1");
    store.put("k", "2");
    store.delete("k");
    store.put("k", "3");
    let table =
        [(1, None), (2, Some(kv("k", "1", 2, 2, 1))), (3, Some(kv("k", "2", 2, 3, 2))), (4, None), (5, Some(kv("k", "3", 5, 5, 1)))];
    for (at, expected) in table {
        assert_eq!(get_at(&store.view, b"k", Revision(at)), Ok(expected.clone()));
        assert_eq!(store.read(&RangeReq { at: Revision(at), ..RangeReq::new(all()) }).kvs.pop(), expected);
        assert_eq!(previous(&store.view, b"k", Revision(at + 1)), Ok(expected));
    }
    assert_eq!(store.range(&RangeReq { at: Revision(6), ..RangeReq::new(all()) }), Err(KvError::FutureRevision));
    // Below zero is the latest.
    assert_eq!(store.read(&RangeReq { at: Revision(-3), ..RangeReq::new(all()) }).count, 1);
}

#[test]
fn many_versions_of_one_key_do_not_hide_its_neighbours() {
    let mut store = Store::default();
    store.put("a", "");
    for _ in 0..50 {
        store.put("b", "");
    }
    store.put("c", "");
    for at in 2..=53 {
        let res = store.read(&RangeReq { at: Revision(at), ..RangeReq::new(all()) });
        let expected = [&["a"][..], &["a", "b"], &["a", "b", "c"]][usize::from(at > 2) + usize::from(at == 53)];
        assert_eq!(keys(&res.kvs), expected, "at {at}");
        assert!(at == 2 || res.kvs[1].mod_revision == Revision(at.min(52)));
    }
}

#[test]
fn leases_die_with_their_keys() {
    let mut store = Store::default();
    assert_eq!(store.apply(&grant(9)).reply, Ok(Reply::LeaseGrant { id: LeaseId(9), ttl: 60 }));
    assert_eq!(store.fails(grant(9)), KvError::LeaseExists);
    assert_eq!(store.fails(grant(0)), KvError::LeaseNotFound);
    let grant_for = |ttl| Command::LeaseGrant { id: LeaseId(-4), ttl };
    assert_eq!(store.fails(grant_for(9_000_000_001)), KvError::LeaseTtlTooLarge);
    assert_eq!(store.apply(&grant_for(-1)).reply, Ok(Reply::LeaseGrant { id: LeaseId(-4), ttl: 1 }));
    for key in ["c", "a", "b"] {
        store.ok(Command::Put(put_leased(key, 9)));
    }
    store.ok(Command::Put(put_leased("b", -4)));
    store.put("plain", "");
    let leases: Vec<_> = lease::list(&store.view).unwrap().into_iter().map(|lease| (lease.id.get(), lease.ttl)).collect();
    assert_eq!(leases, [(-4, 1), (9, 60)]);
    assert_eq!(lease::ttl(&store.view, LeaseId(9)), Ok(Some(60)));
    assert_eq!(lease::attached(&store.view, LeaseId(9)).unwrap(), ["a", "c"]);
    assert_eq!(lease::attached(&store.view, LeaseId(-4)).unwrap(), ["b"]);
    let outcome = store.apply(&Command::LeaseRevoke { id: LeaseId(9) });
    assert_eq!(brief(&outcome.events), ["del a@7", "del c@7"]);
    assert_eq!(store.fails(Command::LeaseRevoke { id: LeaseId(9) }), KvError::LeaseNotFound);
    assert_eq!(lease::ttl(&store.view, LeaseId(9)), Ok(None));
    // A deleted key is not attached any more.
    store.delete("b");
    let outcome = store.apply(&Command::LeaseRevoke { id: LeaseId(-4) });
    assert_eq!((outcome.revision, outcome.events.len()), (Revision(8), 0));
    verify(&store.view).unwrap();
}

#[test]
fn neighbouring_lease_ids_are_kept_apart() {
    let mut store = Store::default();
    for id in [i64::MIN, -1, 1, i64::MAX] {
        store.ok(grant(id));
        let key: &'static str = format!("k{id}").leak();
        store.ok(Command::Put(put_leased(key, id)));
    }
    for id in [i64::MIN, -1, 1, i64::MAX] {
        assert_eq!(lease::attached(&store.view, LeaseId(id)).unwrap(), [format!("k{id}")]);
    }
}

#[test]
fn compaction_gates_reads_at_once() {
    let mut store = Store::default();
    // "compact 0" succeeds once on a store that was never compacted.
    store.ok(compact(0));
    assert_eq!(store.fails(compact(0)), KvError::Compacted { compact: Revision(0) });
    for value in ["1", "2", "3"] {
        store.put("k", value);
    }
    assert_eq!(store.fails(compact(5)), KvError::FutureRevision);
    assert_eq!(store.ok(compact(3)), Revision(4));
    assert_eq!(store.fails(compact(3)), KvError::Compacted { compact: Revision(3) });
    let at = |at| RangeReq { at: Revision(at), ..RangeReq::new(all()) };
    assert_eq!(store.range(&at(2)), Err(KvError::Compacted { compact: Revision(3) }));
    assert_eq!(store.read(&at(3)).kvs, [kv("k", "2", 2, 3, 2)]);
    assert_eq!(store.read(&at(0)).kvs, [kv("k", "3", 2, 4, 3)]);
    let refused = history(&store.view, &all(), Revision(2), 10).map(|_| ()).map_err(KvError::from);
    assert_eq!(refused, Err(KvError::Compacted { compact: Revision(3) }));
    let (events, next) = history(&store.view, &all(), Revision(3), 10).unwrap();
    assert_eq!((brief(&events), next), (vec!["put k@3".to_owned(), "put k@4".to_owned()], Revision(5)));
    // What lies before is not known, though the record may still be there.
    assert_eq!(previous(&store.view, b"k", Revision(3)), Ok(None));
    assert_eq!(previous(&store.view, b"k", Revision(4)), Ok(Some(kv("k", "2", 2, 3, 2))));
    store.ok(compact(4));
}

#[test]
fn history_comes_in_whole_revisions() {
    let mut store = Store::default();
    store.put("a", "1");
    store.put("b", "1");
    store.ok(Command::Delete(del(all())));
    store.put("a", "2");
    let read = |from, max| {
        let (events, next) = history(&store.view, &all(), Revision(from), max).unwrap();
        (brief(&events).join(" "), next.get())
    };
    assert_eq!(read(0, 1), ("put a@2".to_owned(), 3));
    assert_eq!(read(3, 2), ("put b@3 del a@4 del b@4".to_owned(), 5));
    assert_eq!(read(4, 1), ("del a@4 del b@4".to_owned(), 5));
    assert_eq!(read(5, 100), ("put a@5".to_owned(), 6));
    assert_eq!(read(6, 100), (String::new(), 6));
    assert_eq!(read(60, 100), (String::new(), 60));
    let (events, next) = history(&store.view, &one("b"), Revision(2), 100).unwrap();
    assert_eq!((brief(&events).join(" "), next.get()), ("put b@3 del b@4".to_owned(), 6));
}

#[test]
fn history_of_a_quiet_range_moves_on_in_bounded_steps() {
    let mut store = Store::default();
    for _ in 0..3_000 {
        store.put("busy", "");
    }
    store.put("quiet", "");
    let (mut from, mut calls, mut found) = (Revision(2), 0, Vec::new());
    while from <= Revision(3_002) {
        let (events, next) = history(&store.view, &wire("q", "r"), from, 1).unwrap();
        assert!(next > from);
        found.extend(events);
        (from, calls) = (next, calls + 1);
    }
    assert_eq!((brief(&found).join(" "), calls), ("put quiet@3002".to_owned(), 3));
    // The history of one key is found at once.
    let (events, next) = history(&store.view, &one("quiet"), Revision(2), 1).unwrap();
    assert_eq!((brief(&events).join(" "), next), ("put quiet@3002".to_owned(), Revision(3_003)));
    let (events, next) = history(&store.view, &one("busy"), Revision(7), 2).unwrap();
    assert_eq!((brief(&events).join(" "), next), ("put busy@7 put busy@8".to_owned(), Revision(9)));
}

/// Found by a long random run: a slice that ends within the compact revision has passed a tombstone that it had to keep.
#[test]
fn a_sweep_that_stops_within_the_compact_revision_looks_at_it_again_for_the_next() {
    let mut store = Store::default();
    let keys = ["a", "b", "c", "d"];
    for key in keys {
        store.put(key, "");
    }
    let at = store.ok(Command::Delete(del(all())));
    store.put("later", "");
    let slice = |store: &mut Store, budget| {
        let mut batch = Batch::default();
        let progress = sweep(&store.view, budget, &mut batch).unwrap();
        store.view.commit(batch);
        progress
    };
    store.ok(Command::Compact { revision: at });
    // Four changes that were superseded, then two of the four deletions.
    assert_eq!(slice(&mut store, 11), Progress { done: false, visited: 6, removed: 4 });
    store.ok(compact(at.get() + 1));
    while !slice(&mut store, 11).done {}
    let left = store.view.scan(Space::Kv, Bound::Unbounded, Bound::Unbounded, false).count();
    assert_eq!(left, 1, "only the last put can be read");
}

#[test]
fn a_deletion_at_the_compact_revision_counts_in_the_hash() {
    let hashes = |key: &'static str| {
        let mut store = Store::default();
        store.put(key, "");
        store.delete(key);
        store.ok(compact(3));
        let before = (state_hash(&store.view).unwrap(), hash_kv(&store.view, Revision(0)).unwrap());
        let mut batch = Batch::default();
        assert_eq!(sweep(&store.view, 100, &mut batch).unwrap().removed, 1);
        store.view.commit(batch);
        assert_eq!((state_hash(&store.view).unwrap(), hash_kv(&store.view, Revision(0)).unwrap()), before);
        before
    };
    let (a, b) = (hashes("a"), hashes("b"));
    assert!(a.0 != b.0 && a.1.hash != b.1.hash);
    assert_eq!((a.1.revision, a.1.compact), (Revision(3), Revision(3)));
}
