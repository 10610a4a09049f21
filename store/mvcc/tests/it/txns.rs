//! etcd's rules for transactions, one by one.

use bytes::Bytes;
use kontiki_base::ids::{LeaseId, Revision, Term};
use kontiki_base::kv::{Compare, CompareOp, CompareTarget, KvError, Op, OpRes, PutReq, RangeReq, Txn};
use kontiki_mvcc::{Command, Reply, is_read_only, read_txn, validate};

use crate::util::{Store, TERM, all, brief, compare, del, kv, one, put, put_leased, then, wire};

fn p(key: &'static str) -> Op {
    Op::Put(put(key, "v"))
}

fn d(key: &'static str, end: &'static str) -> Op {
    Op::Delete(del(wire(key, end)))
}

fn nested(success: Vec<Op>, failure: Vec<Op>) -> Op {
    Op::Txn(Txn { compare: vec![], success, failure })
}

fn checked(txn: Txn) -> Result<(), KvError> {
    validate(&Command::Txn { txn, fence: None }, 128)
}

fn in_txn(success: Vec<Op>) -> Command {
    Command::Txn { txn: then(success), fence: None }
}

#[test]
fn duplicate_keys_are_found_as_etcd_finds_them() {
    let duplicate = Err(KvError::DuplicateKey);
    let table: Vec<(&str, Vec<Op>, Result<(), KvError>)> = vec![
        ("two puts of one key", vec![p("k"), p("k")], duplicate.clone()),
        ("puts of two keys", vec![p("k"), p("l")], Ok(())),
        ("put within a delete", vec![p("k"), d("a", "z")], duplicate.clone()),
        ("put at the end of a delete", vec![p("k"), d("a", "k")], Ok(())),
        ("put and delete of one key", vec![d("k", ""), p("k")], duplicate.clone()),
        ("overlapping deletes", vec![d("a", "m"), d("k", "z")], Ok(())),
        ("put and range", vec![p("k"), Op::Range(RangeReq::new(all()))], Ok(())),
        ("parent put, child put", vec![p("k"), nested(vec![p("k")], vec![])], duplicate.clone()),
        ("parent put, child delete", vec![p("k"), nested(vec![d("k", "")], vec![])], duplicate.clone()),
        ("parent delete, child put", vec![d("a", "z"), nested(vec![], vec![p("k")])], duplicate.clone()),
        ("siblings put one key", vec![nested(vec![p("k")], vec![]), nested(vec![], vec![p("k")])], duplicate.clone()),
        ("both branches put one key", vec![nested(vec![p("k")], vec![p("k")])], Ok(())),
        ("one branch puts, the other deletes", vec![nested(vec![p("k")], vec![d("k", "")])], Ok(())),
        ("siblings: put, delete", vec![nested(vec![p("k")], vec![]), nested(vec![d("k", "")], vec![])], Ok(())),
        ("siblings: delete, put", vec![nested(vec![d("k", "")], vec![]), nested(vec![p("k")], vec![])], duplicate.clone()),
        ("put, delete without an end", vec![p("k"), d("a", "\0")], Ok(())),
        ("put, delete of everything", vec![p("k"), d("\0", "\0")], Ok(())),
        ("grandchild", vec![p("k"), nested(vec![nested(vec![], vec![p("k")])], vec![])], duplicate),
    ];
    for (what, ops, expected) in table {
        assert_eq!(checked(then(ops.clone())), expected, "{what}");
        assert_eq!(checked(Txn { failure: ops.clone(), ..Txn::default() }), expected, "{what}, in the other branch");
        let reply = Store::default().apply(&in_txn(ops)).reply.map(|_| ());
        assert_eq!(reply, expected, "{what}, applied");
    }
    // The two branches of the transaction itself exclude each other.
    assert_eq!(checked(Txn { compare: vec![], success: vec![p("k")], failure: vec![p("k")] }), Ok(()));
}

#[test]
fn each_level_has_what_the_levels_above_leave() {
    let keys: Vec<&'static str> = (0..200).map(|i| &*format!("k{i}").leak()).collect();
    let puts = |n: usize| keys[..n].iter().map(|key| p(key)).collect::<Vec<_>>();
    assert_eq!(checked(then(puts(128))), Ok(()));
    assert_eq!(checked(then(puts(129))), Err(KvError::TooManyOps));
    assert_eq!(checked(Txn { failure: puts(129), ..Txn::default() }), Err(KvError::TooManyOps));
    let conditions = |n: usize| keys[..n].iter().map(|key| Compare::mod_equals(*key, Revision(0))).collect::<Vec<_>>();
    assert_eq!(checked(Txn { compare: conditions(129), ..Txn::default() }), Err(KvError::TooManyOps));
    assert_eq!(checked(then(vec![nested(puts(127), vec![])])), Ok(()));
    assert_eq!(checked(then(vec![nested(puts(128), vec![])])), Err(KvError::TooManyOps));
    // 3 conditions count as much as 3 steps.
    let inner = nested(puts(125), vec![]);
    assert_eq!(checked(Txn { compare: conditions(3), success: vec![inner.clone()], failure: vec![] }), Ok(()));
    assert_eq!(checked(Txn { compare: conditions(4), success: vec![inner], failure: vec![] }), Err(KvError::TooManyOps));
    let deep = |levels| in_txn(vec![(1..levels).fold(p("k"), |op, _| nested(vec![op], vec![]))]);
    assert_eq!(validate(&deep(129), usize::MAX), Err(KvError::TooManyOps));
    // As deep as can be: validated, carried, and carried out.
    let command = deep(128);
    assert_eq!(validate(&command, 128), Ok(()));
    assert_eq!(Command::decode(command.encode()).as_ref(), Ok(&command));
    assert_eq!(brief(&Store::default().apply(&command).events), ["put k@2"]);
}

#[test]
fn every_part_is_validated() {
    let keep_nothing = PutReq { ignore_value: true, ..put("k", "v") };
    let table = [
        (then(vec![p("")]), KvError::EmptyKey),
        (then(vec![d("", "z")]), KvError::EmptyKey),
        (then(vec![Op::Range(RangeReq::new(one("")))]), KvError::EmptyKey),
        (then(vec![nested(vec![], vec![p("")])]), KvError::EmptyKey),
        (Txn { compare: vec![Compare::mod_equals("", Revision(0))], ..Txn::default() }, KvError::EmptyKey),
        (Txn { failure: vec![Op::Put(keep_nothing)], ..Txn::default() }, KvError::ValueProvided),
        (then(vec![Op::Put(PutReq { ignore_lease: true, ..put_leased("k", 1) })]), KvError::LeaseProvided),
    ];
    for (txn, error) in table {
        assert_eq!(checked(txn.clone()), Err(error.clone()));
        assert_eq!(Store::default().fails(Command::Txn { txn, fence: None }), error);
    }
    assert_eq!(validate(&Command::Put(put("", "")), 128), Err(KvError::EmptyKey));
    assert_eq!(validate(&Command::LeaseGrant { id: LeaseId(0), ttl: 1 }, 128), Err(KvError::LeaseNotFound));
}

#[test]
fn conditions_compare_as_etcd_does() {
    let mut store = Store::default();
    store.ok(Command::LeaseGrant { id: LeaseId(5), ttl: 10 });
    store.ok(Command::Put(put_leased("k", 5)));
    store.ok(Command::Put(put_leased("k", 5)));
    use CompareOp::{Equal, Greater, Less, NotEqual};
    use CompareTarget::{Create, Lease, Mod, Value, Version};
    let value = |v: &'static str| Value(Bytes::from_static(v.as_bytes()));
    let table: Vec<(&str, CompareOp, CompareTarget, bool)> = vec![
        ("k", Equal, Version(2), true),
        ("k", Greater, Version(1), true),
        ("k", Less, Version(2), false),
        ("k", NotEqual, Version(2), false),
        ("k", Equal, Create(Revision(2)), true),
        ("k", Equal, Mod(Revision(3)), true),
        ("k", Less, Mod(Revision(4)), true),
        ("k", Equal, Lease(LeaseId(5)), true),
        ("k", Equal, value("leased"), true),
        ("k", Greater, value("lease"), true),
        ("k", Less, value("m"), true),
        ("k", NotEqual, value("leased"), false),
        ("absent", Equal, Version(0), true),
        ("absent", Equal, Create(Revision(0)), true),
        ("absent", Less, Mod(Revision(1)), true),
        ("absent", Equal, Lease(LeaseId(0)), true),
        ("absent", Greater, Version(0), false),
        // No comparison with the value of a missing key holds.
        ("absent", Equal, value(""), false),
        ("absent", NotEqual, value("x"), false),
        ("absent", Less, value("x"), false),
    ];
    for (key, op, target, expected) in table {
        let txn = Txn { compare: vec![compare(key, op, target.clone())], ..Txn::default() };
        assert_eq!(store.txn(txn).succeeded, expected, "{key} {op:?} {target:?}");
    }
}

#[test]
fn a_condition_over_a_range_must_hold_for_all() {
    let mut store = Store::default();
    store.put("a", "x");
    store.put("b", "x");
    store.put("b", "x");
    let holds =
        |store: &mut Store, range, target, op| store.txn(Txn { compare: vec![Compare { range, target, op }], ..Txn::default() }).succeeded;
    let x = || CompareTarget::Value("x".into());
    assert!(holds(&mut store, all(), x(), CompareOp::Equal));
    assert!(!holds(&mut store, all(), CompareTarget::Version(1), CompareOp::Equal));
    assert!(holds(&mut store, wire("a", "b"), CompareTarget::Version(1), CompareOp::Equal));
    assert!(holds(&mut store, all(), CompareTarget::Version(0), CompareOp::Greater));
    // An empty range is like a missing key.
    assert!(holds(&mut store, wire("x", "z"), CompareTarget::Version(0), CompareOp::Equal));
    assert!(!holds(&mut store, wire("x", "z"), x(), CompareOp::NotEqual));
    assert!(holds(&mut store, wire("z", "a"), CompareTarget::Mod(Revision(0)), CompareOp::Equal));
}

#[test]
fn one_revision_for_all_writes_and_every_step_sees_those_before() {
    let mut store = Store::default();
    store.put("old", "0");
    let outcome = store.apply(&in_txn(vec![
        Op::Range(RangeReq::new(all())),
        d("absent", ""),
        p("a"),
        Op::Range(RangeReq::new(all())),
        d("o", "p"),
        p("b"),
        Op::Range(RangeReq { at: Revision(2), ..RangeReq::new(all()) }),
        d("absent", ""),
        Op::Range(RangeReq { count_only: true, ..RangeReq::new(all()) }),
    ]));
    assert_eq!(brief(&outcome.events), ["put a@3", "del old@3", "put b@3"]);
    assert_eq!(outcome.revision, Revision(3));
    let Ok(Reply::Txn(res)) = outcome.reply else { panic!() };
    assert_eq!((res.revision, res.succeeded), (Revision(3), true));
    // (header revision, what it saw)
    let seen: Vec<(i64, String)> = res
        .responses
        .iter()
        .map(|res| match res {
            OpRes::Range(res) => {
                let keys: Vec<_> = res.kvs.iter().map(|kv| String::from_utf8_lossy(&kv.key)).collect();
                (res.revision.get(), format!("{} of {}", keys.join(" "), res.count))
            }
            OpRes::Put(res) => (res.revision.get(), "put".to_owned()),
            OpRes::Delete(res) => (res.revision.get(), format!("deleted {}", res.deleted)),
            OpRes::Txn(_) => unreachable!(),
        })
        .collect();
    let expected = [
        (2, "old of 1"),
        (2, "deleted 0"),
        (3, "put"),
        (3, "a old of 2"),
        (3, "deleted 1"),
        (3, "put"),
        (3, "old of 1"),
        (3, "deleted 0"),
        (3, " of 2"),
    ];
    assert_eq!(seen, expected.map(|(revision, what)| (revision, what.to_owned())));
}

#[test]
fn nested_conditions_are_decided_before_anything_is_written() {
    let mut store = Store::default();
    let inner = Txn {
        compare: vec![compare("k", CompareOp::Equal, CompareTarget::Version(0))],
        success: vec![p("absent-before")],
        failure: vec![p("present-before")],
    };
    let outcome = store.apply(&in_txn(vec![p("k"), Op::Txn(inner), nested(vec![nested(vec![p("deep")], vec![])], vec![])]));
    assert_eq!(brief(&outcome.events), ["put k@2", "put absent-before@2", "put deep@2"]);
    let Ok(Reply::Txn(res)) = outcome.reply else { panic!() };
    let OpRes::Txn(inner) = &res.responses[1] else { panic!() };
    assert_eq!((inner.succeeded, inner.revision, inner.responses.len()), (true, Revision::ZERO, 1));
}

#[test]
fn a_failing_step_undoes_everything() {
    let mut store = Store::default();
    store.put("k", "v");
    store.put("k", "v");
    store.ok(Command::Compact { revision: Revision(3) });
    store.put("k", "v");
    let range_at = |at| Op::Range(RangeReq { at: Revision(at), ..RangeReq::new(all()) });
    let keep = |key| Op::Put(PutReq { ignore_value: true, ..put(key, "") });
    let compacted = KvError::Compacted { compact: Revision(3) };
    let table = [
        (vec![p("a"), range_at(5)], KvError::FutureRevision),
        (vec![p("a"), range_at(2)], compacted.clone()),
        // Within a transaction a negative revision is not the latest.
        (vec![p("a"), range_at(-1)], compacted),
        (vec![p("a"), Op::Put(put_leased("b", 77))], KvError::LeaseNotFound),
        (vec![p("a"), keep("absent")], KvError::KeyNotFound),
        // Steps are checked on the state before: a key that the transaction itself makes does not count.
        (vec![p("a"), nested(vec![nested(vec![keep("absent")], vec![])], vec![])], KvError::KeyNotFound),
        // This passes every check beforehand; only carrying it out shows it.
        (vec![p("a"), d("k", "\0"), keep("k")], KvError::KeyNotFound),
    ];
    let before = store.view.clone();
    for (ops, error) in table {
        let outcome = store.apply(&in_txn(ops));
        assert_eq!((outcome.reply, outcome.revision, outcome.events), (Err(error), Revision(4), vec![]));
        assert!(store.view == before);
    }
    // What is not on the path is not checked.
    store.txn(Txn { compare: vec![], success: vec![p("a")], failure: vec![range_at(99), keep("absent")] });
}

#[test]
fn a_roll_back_spares_what_earlier_commands_left_in_the_batch() {
    use kontiki_base::ids::{LogIndex, LogPos};
    use kontiki_mvcc::{Batch, MemView, apply};
    let (view, at) = (MemView::new(), LogPos { term: TERM, index: LogIndex(1) });
    let mut batch = Batch::default();
    apply(&view, at, &Command::Put(put("k", "1")), &mut batch).unwrap();
    let before = batch.clone();
    let doomed = in_txn(vec![p("k2"), d("k", "\0"), Op::Put(PutReq { ignore_lease: true, ..put("k", "2") })]);
    let outcome = apply(&view, at, &doomed, &mut batch).unwrap();
    assert_eq!((outcome.reply, outcome.revision), (Err(KvError::KeyNotFound), Revision(2)));
    assert_eq!(batch, before);
}

#[test]
fn a_key_put_and_deleted_in_one_revision_is_in_order_for_everyone() {
    let mut store = Store::default();
    store.put("k", "before");
    let outcome = store.apply(&in_txn(vec![p("k"), d("\0", "\0")]));
    assert_eq!(brief(&outcome.events), ["put k@3", "del k@3"]);
    assert_eq!(store.get("k"), None);
    let (events, _) = kontiki_mvcc::history(&store.view, &all(), Revision(3), 10).unwrap();
    assert_eq!(events, outcome.events);
    assert_eq!(kontiki_mvcc::get_at(&store.view, b"k", Revision(2)), Ok(Some(kv("k", "before", 2, 2, 1))));
    kontiki_mvcc::verify(&store.view).unwrap();
    // And across a compaction at that very revision.
    store.ok(Command::Compact { revision: Revision(3) });
    let mut batch = kontiki_mvcc::Batch::default();
    assert!(kontiki_mvcc::sweep(&store.view, 100, &mut batch).unwrap().done);
    store.view.commit(batch);
    let (events, _) = kontiki_mvcc::history(&store.view, &all(), Revision(3), 10).unwrap();
    assert_eq!(events, outcome.events);
}

#[test]
fn a_fence_lets_only_its_own_term_through() {
    let mut store = Store::default();
    let fenced = |term| Command::Txn { txn: then(vec![p("k")]), fence: Some(Term(term)) };
    for term in [TERM.get() - 1, TERM.get() + 1] {
        assert_eq!(store.fails(fenced(term)), KvError::Fenced { given: Term(term), current: TERM });
    }
    assert!(store.view.is_empty());
    assert_eq!(store.ok(fenced(TERM.get())), Revision(2));
}

#[test]
fn reading_transactions_are_answered_without_the_log() {
    let mut store = Store::default();
    store.put("k", "v");
    let read = Op::Range(RangeReq::new(all()));
    let txn = Txn { compare: vec![Compare::mod_equals("k", Revision(2))], success: vec![read.clone()], failure: vec![] };
    assert!(is_read_only(&txn) && is_read_only(&Txn::default()));
    let before = store.view.clone();
    let answer = read_txn(&store.view, &txn).unwrap();
    assert_eq!(answer, store.txn(txn));
    assert!(store.view == before);
    for writes in [then(vec![p("k")]), Txn { failure: vec![p("k")], ..Txn::default() }, then(vec![nested(vec![read], vec![])])] {
        assert!(!is_read_only(&writes));
        assert!(matches!(read_txn(&store.view, &writes).map_err(KvError::from), Err(KvError::Internal(_))));
    }
}
