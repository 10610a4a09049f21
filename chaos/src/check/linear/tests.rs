//! The certificate: hand-made histories, and agreement with the search on thousands of random ones.

use super::super::Verdict;
use super::super::random::{Rng, Shape, corrupt, good};
use super::super::wgl::{Found, search};
use super::*;
use crate::history::{RangeAsk, Seen, StepAnswer};

fn op(call: u64, ret: u64, ask: Ask, answer: Answer) -> Op {
    Op { client: 0, member: 0, call, ret, ask, answer }
}

fn put(value: &str) -> Ask {
    Ask::Put { key: "k".into(), value: value.into() }
}

fn get() -> Ask {
    Ask::Get { key: "k".into() }
}

fn delete() -> Ask {
    Ask::Delete { key: "k".into() }
}

fn read(revision: i64, found: Option<(&str, i64)>) -> Answer {
    Answer::Read { revision, found: found.map(|(v, at)| (v.into(), at)) }
}

fn change(revision: i64, value: Option<&str>) -> Change {
    value.map_or_else(|| Change::delete(revision, "k"), |value| Change::put(revision, "k", value))
}

fn unknown() -> Answer {
    Answer::Unknown { why: "timeout".into() }
}

fn written(revision: i64) -> Answer {
    Answer::Written { revision }
}

fn checks(ops: Vec<Op>, changes: Vec<Change>) -> Vec<&'static str> {
    check(&History { ops, changes, ..History::default() }).into_iter().map(|v| v.check).collect()
}

#[test]
fn a_clean_history_passes() {
    let cas = |expect, value: &str| Ask::Cas { key: "k".into(), expect, value: value.into() };
    let ops = vec![
        op(0, 10, put("a"), written(2)),
        op(5, 20, get(), read(1, None)),
        op(11, 20, get(), read(2, Some(("a", 2)))),
        op(21, 30, cas(2, "b"), written(3)),
        op(31, 40, cas(2, "c"), Answer::CompareFailed { revision: 3 }),
        op(41, 50, put("d"), unknown()),
        op(51, 60, delete(), written(5)),
        op(61, 70, delete(), Answer::NothingDeleted { revision: 5 }),
    ];
    let changes = vec![change(2, Some("a")), change(3, Some("b")), change(4, Some("d")), change(5, None)];
    assert_eq!(checks(ops, changes), [""; 0]);
}

#[test]
fn an_unknown_write_may_happen_late_or_never_but_not_early_and_not_twice() {
    let late = vec![op(0, 1, put("a"), unknown()), op(5, 6, get(), read(1, None))];
    assert_eq!(checks(late.clone(), vec![change(2, Some("a"))]), [""; 0]);
    assert_eq!(checks(late.clone(), vec![]), [""; 0]);
    assert_eq!(checks(late, vec![change(2, Some("a")), change(3, Some("a"))]), ["twice"]);
    let early = vec![op(0, 1, put("b"), written(3)), op(5, 6, put("a"), unknown())];
    assert_eq!(checks(early, vec![change(2, Some("a")), change(3, Some("b"))]), ["real-time"]);
}

#[test]
fn what_must_not_be_is_found() {
    let a = || vec![change(2, Some("a"))];
    let cases: Vec<(&str, Vec<Op>, Vec<Change>)> = vec![
        ("lost-write", vec![op(0, 1, put("a"), written(2)), op(2, 3, put("b"), written(3))], a()),
        ("stale-read", vec![op(0, 1, put("a"), written(2)), op(2, 3, get(), read(2, None))], a()),
        ("real-time", vec![op(0, 1, put("a"), written(2)), op(2, 3, get(), read(1, None))], a()),
        ("phantom", vec![], a()),
        ("phantom", vec![op(0, 1, put("a"), Answer::Refused { why: "no".into() })], a()),
        ("phantom", vec![op(0, 1, put("a"), written(2))], vec![change(2, Some("a")), change(3, None)]),
        ("twice", vec![op(0, 1, put("a"), written(2))], vec![change(2, Some("a")), change(3, Some("a"))]),
        (
            "revision-order",
            vec![op(0, 1, put("a"), written(2)), op(0, 1, put("b"), written(2))],
            vec![change(2, Some("a")), change(2, Some("b"))],
        ),
    ];
    for (rule, ops, changes) in cases {
        let found = checks(ops.clone(), changes.clone());
        assert!(found.contains(&rule), "{rule} is not among {found:?} of {ops:?} {changes:?}");
    }
}

#[test]
fn a_failed_compare_that_held_is_found() {
    let ops = vec![
        op(0, 1, put("a"), written(2)),
        op(2, 3, Ask::Cas { key: "k".into(), expect: 2, value: "b".into() }, Answer::CompareFailed { revision: 2 }),
    ];
    assert_eq!(checks(ops, vec![change(2, Some("a"))]), ["wrong-compare"]);
    let ops = vec![op(0, 1, put("a"), written(2)), op(2, 3, Ask::Cas { key: "k".into(), expect: 0, value: "b".into() }, written(3))];
    assert_eq!(checks(ops, vec![change(2, Some("a")), change(3, Some("b"))]), ["wrong-compare"]);
}

#[test]
fn deletions_nobody_acknowledged_are_matched_once_each() {
    let wrote = |call, value: &str, revision| op(call, call + 1, put(value), written(revision));
    let log = || vec![change(2, Some("a")), change(3, None), change(4, Some("b")), change(5, None)];
    // Two unknown deletions explain two; the later one cannot be the earlier.
    let two = vec![wrote(0, "a", 2), op(2, 3, delete(), unknown()), wrote(10, "b", 4), op(20, 21, delete(), unknown())];
    assert_eq!(checks(two, log()), [""; 0]);
    let one = vec![wrote(0, "a", 2), op(2, 3, delete(), unknown()), wrote(10, "b", 4)];
    assert_eq!(checks(one, log()), ["phantom"]);
    let late = vec![wrote(0, "a", 2), wrote(10, "b", 4), op(20, 21, delete(), unknown()), op(20, 21, delete(), unknown())];
    assert_eq!(checks(late, log()), ["phantom"], "both began after revision 4 had been seen");
    // The first could have made either, the second only the second: an assignment exists.
    let range = Ask::Do(Step::Delete { key: "a".into(), end: "\0".into(), prev: false });
    let either = vec![wrote(0, "a", 2), op(2, 3, range, unknown()), wrote(10, "b", 4), op(11, 12, delete(), unknown())];
    assert_eq!(checks(either, log()), [""; 0]);
}

#[test]
fn a_transaction_is_whole_and_reads_its_own_writes() {
    let seen = |value: &str, at| Seen { key: "k".into(), value: value.into(), create: at, modified: at, version: 1, lease: 0 };
    let range = Step::Range(RangeAsk { key: "k".into(), ..RangeAsk::default() });
    let steps = |key: &str| Step::Put { key: key.into(), value: format!("{key}!"), lease: 0, prev: false };
    let ask = Ask::Txn { compare: vec![], success: vec![steps("k"), range, steps("l")], failure: vec![] };
    let kvs = vec![seen("k!", 2)];
    let answers = |kvs: Vec<Seen>| {
        let count = kvs.len() as i64;
        vec![StepAnswer::Put { prev: None }, StepAnswer::Range { kvs, more: false, count }, StepAnswer::Put { prev: None }]
    };
    let answer = |kvs| Answer::Txn { revision: 2, succeeded: true, steps: answers(kvs) };
    let whole = || vec![Change::put(2, "k", "k!"), Change::put(2, "l", "l!")];
    assert_eq!(checks(vec![op(0, 1, ask.clone(), answer(kvs.clone()))], whole()), [""; 0]);
    assert_eq!(checks(vec![op(0, 1, ask.clone(), answer(vec![]))], whole()), ["stale-read"]);
    let half = || vec![Change::put(2, "k", "k!")];
    assert_eq!(checks(vec![op(0, 1, ask.clone(), answer(kvs))], half()), ["phantom"]);
    assert_eq!(checks(vec![op(0, 1, ask.clone(), unknown())], half()), ["phantom"], "nor may an unknown one be half done");
    assert_eq!(checks(vec![op(0, 1, ask, unknown())], whole()), [""; 0]);
}

#[test]
fn nothing_seen_is_vacuous() {
    assert_eq!(judge(&History::default()).verdict, Verdict::Vacuous(vec!["writes", "reads"]));
}

/// Both ways to judge say the same of random small histories, as they are and corrupted.
#[test]
fn the_certificate_and_the_search_agree() {
    let (mut clean, mut bad, mut gave_up) = (0, 0, 0);
    for seed in 0..3_000 {
        let mut rng = Rng(seed);
        let shape =
            Shape { ops: 6 + rng.below(14) as usize, clients: 2 + rng.below(3), keys: 1 + rng.below(3), unknown: rng.below(3) * 12 };
        let mut history = good(&mut rng, &shape);
        let found = check(&history);
        assert_eq!(found, [], "seed {seed}: a good history is accused");
        assert!(!matches!(search(&history, 200_000), Found::Nothing), "seed {seed}: the search finds no order of a good history");
        if !corrupt(&mut history, &mut rng) {
            continue;
        }
        let found = check(&history);
        match search(&history, 200_000) {
            Found::Order(order) => {
                assert_eq!(found, [], "seed {seed}: the search has an order: {order:?} of {:#?}", history.ops);
                clean += 1;
            }
            Found::Nothing => {
                assert!(!found.is_empty(), "seed {seed}: the certificate misses what the search finds: {history:#?}");
                bad += 1;
            }
            Found::GaveUp(_) => gave_up += 1,
        }
    }
    println!("corrupted: {bad} bad, {clean} still good, {gave_up} too hard for the search");
    assert!(bad > 1_000 && clean > 50 && gave_up < 100, "{bad} {clean} {gave_up}");
}

#[test]
fn a_hundred_thousand_operations_are_judged_at_once() {
    let shape = Shape { ops: 100_000, clients: 32, keys: 50, unknown: 1 };
    let history = good(&mut Rng(7), &shape);
    let outcome = judge(&history);
    assert_eq!(outcome.verdict, Verdict::Pass, "{:?}", outcome.violations().first());
    assert!(outcome.counts["writes"] > 10_000 && outcome.counts["unknown outcomes that happened"] > 100, "{:?}", outcome.counts);
}
