//! Random commands against the naive model: answers, events, reads at any revision, replays, hashes, paced removal, and crashes: the store
//! falls back to what was last flushed, and the log is replayed.
//!
//! `MVCC_OPS=10000000 cargo nextest run --profile long --cargo-profile release -p kontiki-mvcc a_long_random_run` makes it a long run: three
//! minutes of processor time. It says how many operations it has compared.

use kontiki_base::Revision;
use kontiki_base::ids::{LogIndex, LogPos};
use kontiki_base::kv::{EventKind, KvError};
use kontiki_mvcc::{
    Batch, Command, MemView, Outcome, Space, View, alarm, apply, current, get_at, hash_kv, history, lease, page, previous, state_hash,
    sweep, verify,
};
use proptest::prelude::*;
use std::ops::Bound;

use crate::generate::Choices;
use crate::model::Model;
use crate::util::{Store, TERM};

/// The real store and the model, side by side.
struct Pair {
    store: Store,
    model: Model,
    /// What a crash leaves: the state as of a log index, and the entries after it.
    flushed: (MemView, u64),
    log: Vec<(Command, Outcome)>,
    crashes: u64,
}

impl Pair {
    fn new() -> Self {
        Self { store: Store::default(), model: Model::new(), flushed: (MemView::new(), 0), log: Vec::new(), crashes: 0 }
    }

    fn step(&mut self, choices: &mut Choices) {
        let command = choices.command(self.model.revision());
        let bytes = command.encode();
        assert_eq!(Command::decode(bytes).as_ref(), Ok(&command));
        let (real, expected) = (self.store.apply(&command), self.model.apply(&command));
        assert_eq!(real, expected, "{command:#?}");
        self.log.push((command, real));
        match choices.below(64) {
            0 => self.flush(),
            1 => self.crash(),
            _ => {}
        }
        match choices.below(16) {
            0 => self.sweep(choices),
            1..4 => self.compare_history(choices),
            4 => self.compare_leases(),
            5 => self.compare_points(choices),
            6 if choices.below(20) == 0 => verify(&self.store.view).unwrap(),
            _ => self.compare_range(choices),
        }
    }

    /// The state becomes durable, and the log before it goes.
    fn flush(&mut self) {
        self.flushed = (self.store.view.clone(), self.store.index);
        self.log.clear();
    }

    /// Everything since the last flush is lost, sweeps included, and the log is replayed: every command has the outcome that it had.
    fn crash(&mut self) {
        let before = state_hash(&self.store.view).unwrap();
        self.store = Store { view: self.flushed.0.clone(), index: self.flushed.1 };
        for (command, outcome) in &self.log {
            assert_eq!(&self.store.apply(command), outcome, "when replayed: {command:#?}");
        }
        assert_eq!(state_hash(&self.store.view).unwrap(), before);
        self.crashes += 1;
    }

    fn compare_range(&self, choices: &mut Choices) {
        let req = choices.range_req(self.model.revision());
        let expected = self.model.range(&req);
        assert_eq!(self.store.range(&req), expected, "{req:#?}");
        let simple = kontiki_base::kv::RangeReq {
            at: req.at,
            keys_only: req.keys_only,
            limit: req.limit,
            ..kontiki_base::kv::RangeReq::new(req.range)
        };
        let expected = self.model.range(&simple).map(|res| (res.kvs, res.more));
        let limit = if req.limit == 0 { usize::MAX } else { req.limit };
        assert_eq!(
            page(&self.store.view, &simple.range, simple.at, limit, simple.keys_only).map_err(KvError::from),
            expected,
            "{simple:#?}"
        );
    }

    fn compare_history(&self, choices: &mut Choices) {
        let (range, from, max) = (choices.range(), choices.revision(self.model.revision()), 1 + choices.below(20) as usize);
        let expected = self.model.history(&range, from.get());
        let mut next = from;
        let mut events = Vec::new();
        while next <= self.model.revision() {
            let before = next;
            match history(&self.store.view, &range, next, max).map_err(KvError::from) {
                Ok((some, after)) => {
                    // A revision is never split, and what is delivered lies between the two.
                    assert!(some.iter().all(|e| e.kv.mod_revision >= before && e.kv.mod_revision < after));
                    events.extend(some);
                    next = after;
                }
                Err(error) => {
                    assert_eq!(Err(error), expected.map(|_| ()));
                    return;
                }
            }
            assert!(next > before, "no progress");
        }
        for event in &mut events {
            event.prev = previous(&self.store.view, &event.kv.key, event.kv.mod_revision).unwrap();
            assert!(event.kind == EventKind::Put || event.kv.version == 0);
        }
        assert_eq!(Ok(events), expected, "{range:?} from {from}");
    }

    fn compare_leases(&self) {
        let view = &self.store.view;
        let leases = lease::list(view).unwrap().into_iter();
        let real: Vec<_> = leases.map(|l| (l.id, l.ttl, lease::attached(view, l.id).unwrap())).collect();
        assert_eq!(real, self.model.leases());
        assert_eq!(alarm::list(view).unwrap(), self.model.alarms());
    }

    fn compare_points(&self, choices: &mut Choices) {
        let (key, at) = (choices.key(), choices.revision(self.model.revision()));
        if key.is_empty() {
            return;
        }
        let req = kontiki_base::kv::RangeReq { at, ..kontiki_base::kv::RangeReq::new(kontiki_base::KeyRange::single(key.clone())) };
        let expected = self.model.range(&req).map(|mut res| res.kvs.pop());
        assert_eq!(get_at(&self.store.view, &key, at).map_err(KvError::from), expected);
    }

    /// Sweeps a slice, or to the end; nothing that can be read may change, and at the end nothing else is left.
    fn sweep(&mut self, choices: &mut Choices) {
        let budget = [0, 3, 10, 1_000][choices.below(4) as usize];
        let calls = if choices.below(2) == 0 { 1 } else { usize::MAX };
        let hashes = |view: &MemView| (state_hash(view).unwrap(), hash_kv(view, Revision::ZERO).unwrap());
        let before = hashes(&self.store.view);
        for _ in 0..calls {
            let mut batch = Batch::default();
            let done = sweep(&self.store.view, budget, &mut batch).unwrap().done;
            self.store.view.commit(batch);
            assert_eq!(hashes(&self.store.view), before);
            if done {
                assert_eq!(count(&self.store.view, Space::Kv), self.model.readable_versions());
                assert_eq!(count(&self.store.view, Space::Rev), self.model.readable_versions());
                return;
            }
        }
    }

    fn finish(&mut self) {
        verify(&self.store.view).unwrap();
        let now = current(&self.store.view).unwrap();
        assert_eq!((now.revision, now.compact), (self.model.revision(), self.model.compacted()));
    }
}

fn count(view: &MemView, space: Space) -> usize {
    view.scan(space, Bound::Unbounded, Bound::Unbounded, false).count()
}

fn ops() -> u64 {
    std::env::var("MVCC_OPS").ok().map_or(30_000, |text| text.parse().expect("MVCC_OPS is a number"))
}

#[test]
fn a_long_random_run_agrees_with_the_model() {
    // A thread for each core, and more seeds for longer runs: the model of one seed grows with its history.
    let (steps, threads) = (ops(), std::thread::available_parallelism().map_or(1, |n| n.get() as u64));
    let seeds = (steps / 25_000).max(8);
    let crashes: u64 = std::thread::scope(|scope| {
        let run =
            move |thread: u64| (1..=seeds).filter(|seed| seed % threads == thread).map(|seed| run_seed(seed, steps / seeds)).sum::<u64>();
        let running: Vec<_> = (0..threads).map(|thread| scope.spawn(move || run(thread))).collect();
        running.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    eprintln!("{} operations with {crashes} crashes between them: no difference", steps / seeds * seeds);
    assert!(crashes > 0);
}

fn run_seed(seed: u64, steps: u64) -> u64 {
    let (mut pair, mut choices) = (Pair::new(), Choices::Seed(seed));
    for step in 0..steps {
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| pair.step(&mut choices)));
        if let Err(panic) = caught {
            eprintln!("seed {seed}, step {step}");
            std::panic::resume_unwind(panic);
        }
    }
    pair.finish();
    pair.crashes
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    /// The same, on short runs that proptest can shrink.
    #[test]
    fn short_random_runs_agree_with_the_model(tape in prop::collection::vec(any::<u32>(), 0..3_000)) {
        let (mut pair, mut choices) = (Pair::new(), Choices::Tape(tape.into_iter()));
        while !choices.exhausted() {
            pair.step(&mut choices);
        }
        pair.finish();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    /// How commands are grouped in log entries and write batches makes no difference to any byte.
    #[test]
    fn batching_makes_no_difference(seed in any::<u64>()) {
        let mut choices = Choices::Seed(seed);
        let mut now = Revision(1);
        let commands: Vec<Command> = (0..600).map(|_| {
            now = Revision(now.get() + i64::from(choices.below(2)));
            choices.command(now)
        }).collect();
        let one_by_one = in_batches(&commands, 1);
        for size in [7, 512] {
            let together = in_batches(&commands, size);
            prop_assert!(one_by_one == together, "in batches of {size}");
        }
        // An alarm early on lets nothing happen afterwards: such a run shows nothing, and another one is taken.
        prop_assume!(one_by_one.1.iter().filter(|outcome| !outcome.events.is_empty()).count() > 20);
    }
}

fn in_batches(commands: &[Command], size: usize) -> (MemView, Vec<Outcome>) {
    let (mut view, mut outcomes) = (MemView::new(), Vec::new());
    for (index, entry) in commands.chunks(size).enumerate() {
        let mut batch = Batch::default();
        let at = LogPos { term: TERM, index: LogIndex(index as u64 + 1) };
        for command in Command::decode_batch(Command::encode_batch(entry)).unwrap() {
            outcomes.push(apply(&view, at, &command, &mut batch).unwrap());
        }
        view.commit(batch);
    }
    (view, outcomes)
}

/// A run that never sees an error, a nested answer, or a compaction, tests none.
#[test]
fn random_runs_reach_everything() {
    let (mut store, mut choices) = (Store::default(), Choices::Seed(11));
    let mut seen = std::collections::BTreeMap::<String, usize>::new();
    for _ in 0..20_000 {
        let now = current(&store.view).unwrap().revision;
        let outcome = store.apply(&choices.command(now));
        let text = match &outcome.reply {
            Ok(reply) => format!("{reply:?}"),
            Err(error) => format!("{error:?}"),
        };
        let mut note = |what: &str| *seen.entry(what.to_owned()).or_default() += 1;
        note(text.split([' ', '(', '{']).next().unwrap());
        if text.contains("Txn(TxnRes { revision: Revision(0)") {
            note("nested");
        }
        if outcome.events.len() > 3 {
            note("several events");
        }
    }
    for (what, least) in [
        ("Put", 3_000),
        ("Delete", 1_000),
        ("Txn", 2_000),
        ("LeaseGrant", 100),
        ("LeaseRevoke", 100),
        ("Compact", 300),
        ("EmptyKey", 50),
        ("ValueProvided", 50),
        ("LeaseProvided", 20),
        ("KeyNotFound", 50),
        ("DuplicateKey", 300),
        ("Compacted", 100),
        ("FutureRevision", 20),
        ("LeaseNotFound", 100),
        ("LeaseExists", 50),
        ("LeaseTtlTooLarge", 50),
        ("Fenced", 50),
        ("Alarm", 300),
        ("NoSpace", 100),
        ("Corrupt", 100),
        ("nested", 300),
        ("several events", 200),
    ] {
        assert!(seen.get(what).is_some_and(|n| *n >= least), "{what}: {:?} of {least}; all: {seen:?}", seen.get(what));
    }
}
