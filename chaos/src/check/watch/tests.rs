//! Each promise of a watch, broken by hand.

use super::super::Verdict;
use super::*;
use crate::history::{Op, Seen};

fn changes() -> Vec<Change> {
    vec![
        Change::put(2, "a", "1"),
        Change::put(3, "b", "2"),
        Change::put(3, "c", "3"),
        Change::put(4, "a", "4"),
        Change::delete(5, "b"),
        Change::put(6, "x", "no"),
        Change::put(7, "c", "5"),
    ]
}

fn event(revision: i64, key: &str) -> SeenEvent {
    let changes = changes();
    let log = Log::new(&changes);
    match log.get(key, revision).filter(|v| v.revision == revision).and_then(|v| v.seen(key)) {
        Some(kv) => SeenEvent { kv, ..SeenEvent::default() },
        None => SeenEvent { delete: true, kv: Seen { key: key.into(), modified: revision, ..Seen::default() }, prev: None },
    }
}

fn events(list: &[(i64, &str)]) -> Frame {
    let events: Vec<_> = list.iter().map(|(revision, key)| event(*revision, key)).collect();
    Frame::Events { revision: 7, events, fragment: false }
}

fn asks(start: i64) -> WatchAsk {
    WatchAsk { key: "a".into(), end: "d".into(), start, ..WatchAsk::default() }
}

fn progress(revision: i64) -> Frame {
    Frame::Progress { revision }
}

fn history(ask: WatchAsk, frames: Vec<Frame>) -> History {
    let mut all = vec![Frame::Asked(ask), Frame::Created { revision: 1 }];
    all.extend(frames);
    let watch = |(n, frame)| Watch { watch: 1, client: 0, member: 0, at: 1_000 + n as u64, frame };
    History { changes: changes(), watches: all.into_iter().enumerate().map(watch).collect(), ..History::default() }
}

fn rules(ask: WatchAsk, frames: Vec<Frame>) -> Vec<&'static str> {
    let mut rules: Vec<_> = judge(&history(ask, frames)).violations().iter().map(|v| v.check).collect();
    rules.dedup();
    rules
}

#[test]
fn a_good_watch_passes() {
    let frames = vec![
        events(&[(2, "a"), (3, "b"), (3, "c")]),
        progress(3),
        events(&[(4, "a")]),
        events(&[(5, "b")]),
        progress(6),
        events(&[(7, "c")]),
    ];
    assert_eq!(judge(&history(asks(2), frames.clone())).verdict, Verdict::Pass);
    assert_eq!(rules(asks(0), frames), [""; 0], "created at 1: from 2 on");
    assert_eq!(rules(asks(4), vec![events(&[(4, "a"), (5, "b")])]), [""; 0], "resumed; the rest has not come yet");
    let filtered = WatchAsk { no_put: true, ..asks(2) };
    assert_eq!(rules(filtered, vec![events(&[(5, "b")]), progress(7)]), [""; 0]);
    let with_prev = WatchAsk { prev: true, ..asks(4) };
    let one = SeenEvent { prev: Some(event(2, "a").kv), ..event(4, "a") };
    assert_eq!(rules(with_prev, vec![Frame::Events { revision: 7, events: vec![one], fragment: false }]), [""; 0]);
}

#[test]
fn every_broken_promise_is_found() {
    let cases: Vec<(&str, WatchAsk, Vec<Frame>)> = vec![
        ("filter", WatchAsk { key: "a".into(), end: "b".into(), ..asks(2) }, vec![events(&[(2, "a"), (3, "c")])]),
        ("filter", WatchAsk { no_delete: true, ..asks(5) }, vec![events(&[(5, "b")])]),
        ("ordered", asks(2), vec![events(&[(2, "a"), (3, "b"), (3, "c")]), events(&[(2, "a")])]),
        ("unique", asks(2), vec![events(&[(2, "a"), (2, "a")])]),
        ("atomic", asks(2), vec![events(&[(2, "a"), (3, "b")]), events(&[(3, "c")])]),
        ("reliable", asks(2), vec![events(&[(2, "a"), (3, "b"), (4, "a")])]),
        (
            "reliable",
            asks(2),
            vec![Frame::Events { revision: 7, events: vec![SeenEvent { delete: true, ..event(2, "a") }], fragment: false }],
        ),
        ("resumable", asks(2), vec![events(&[(4, "a")])]),
        ("resumable", asks(4), vec![events(&[(3, "b"), (3, "c"), (4, "a")])]),
        ("bookmarkable", asks(2), vec![progress(2)]),
        ("bookmarkable", asks(2), vec![events(&[(2, "a")]), progress(2), progress(1)]),
        ("bookmarkable", asks(7), vec![events(&[(7, "c")]), progress(6)]),
        ("compacted", asks(4), vec![Frame::Cancelled { compact: 6, why: String::new() }]),
        ("prev", WatchAsk { prev: true, ..asks(4) }, vec![events(&[(4, "a")])]),
        (
            "prev",
            WatchAsk { prev: true, ..asks(4) },
            vec![Frame::Events { revision: 7, events: vec![SeenEvent { prev: Some(event(3, "c").kv), ..event(4, "a") }], fragment: false }],
        ),
    ];
    for (rule, ask, frames) in cases {
        let found = rules(ask.clone(), frames.clone());
        assert!(found.contains(&rule), "{rule} is not among {found:?}: {ask:?} {frames:?}");
    }
}

#[test]
fn fragments_are_one_response() {
    let part = Frame::Events { revision: 7, events: vec![event(2, "a"), event(3, "b")], fragment: true };
    assert_eq!(rules(WatchAsk { fragment: true, ..asks(2) }, vec![part, events(&[(3, "c")])]), [""; 0]);
}

#[test]
fn a_refusal_needs_a_compaction() {
    let compact =
        Op { client: 0, member: 0, call: 1, ret: 2, ask: Ask::Compact { revision: 6 }, answer: Answer::Compacted { revision: 7 } };
    let refused = |start| {
        let mut history = history(asks(start), vec![Frame::Cancelled { compact: 6, why: String::new() }]);
        history.ops.push(compact.clone());
        judge(&history).violations().iter().map(|v| v.check).collect::<Vec<_>>()
    };
    assert_eq!(refused(4), [""; 0]);
    assert_eq!(refused(6), ["compacted"]);
}

#[test]
fn silence_in_the_end_is_found() {
    let answer = Answer::Read { revision: 7, found: None };
    let read = Op { client: 0, member: 0, call: 1, ret: 2, ask: Ask::Get { key: "q".into() }, answer };
    let ended = |frames| {
        let mut history = History { ended: Some(9_000_000_000), ..history(asks(2), frames) };
        history.ops.push(read.clone());
        judge(&history).violations().iter().map(|v| v.check).collect::<Vec<_>>()
    };
    let all = [(2, "a"), (3, "b"), (3, "c"), (4, "a"), (5, "b"), (7, "c")];
    assert_eq!(ended(vec![events(&all)]), [""; 0]);
    assert_eq!(ended(vec![events(&all[..5])]), ["delivered"]);
    assert_eq!(ended(vec![events(&all[..5]), Frame::Closed]), [""; 0], "the client left");
}
