//! The laws of an engine, run on every implementation, and the two compared with each other.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use kontiki_base::ids::{LogIndex, LogPos, Term};
use kontiki_mvcc::{Batch, Space};
use proptest::prelude::*;

use super::rocks::{RocksEngine, RocksOptions};
use super::sim::SimEngine;
use super::{AppliedMark, BoxView, Engine, EngineError};

type Model = BTreeMap<(Space, Bytes), Bytes>;

/// An engine with a disk that can lose power.
trait Lab {
    type E: Engine;
    fn new() -> Self;
    fn engine(&self) -> &Self::E;
    /// Cuts the power and comes back.
    fn crash(&mut self);
    /// A free path on the disk that checkpoints go to.
    fn path(&self, name: &str) -> PathBuf;
}

struct SimLab {
    engine: SimEngine,
    dir: tempfile::TempDir,
}

impl Lab for SimLab {
    type E = SimEngine;

    fn new() -> Self {
        Self { engine: SimEngine::new(), dir: tempfile::tempdir().unwrap() }
    }

    fn engine(&self) -> &SimEngine {
        &self.engine
    }

    fn crash(&mut self) {
        self.engine.crash();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

struct RocksLab {
    engine: RocksEngine,
    dir: tempfile::TempDir,
    life: u32,
}

fn small() -> RocksOptions {
    RocksOptions {
        cache_bytes: 1 << 20,
        write_buffer_bytes: 256 << 10,
        all_write_buffers_bytes: 4 << 20,
        background_jobs: 2,
        ..RocksOptions::default()
    }
}

fn copy_all(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_all(&path, &target);
        } else if let Err(e) = std::fs::copy(&path, &target) {
            // The database removes what it no longer needs at any time.
            assert_eq!(e.kind(), std::io::ErrorKind::NotFound);
        }
    }
}

/// All files below a folder with their sizes.
fn listing(dir: &Path) -> BTreeMap<PathBuf, u64> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match std::fs::metadata(&path) {
            Ok(meta) if meta.is_dir() => files.extend(listing(&path)),
            Ok(meta) => assert_eq!(files.insert(path, meta.len()), None),
            Err(e) => assert_eq!(e.kind(), std::io::ErrorKind::NotFound),
        }
    }
    files
}

impl Lab for RocksLab {
    type E = RocksEngine;

    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { engine: RocksEngine::open(&dir.path().join("0"), small()).unwrap(), dir, life: 0 }
    }

    fn engine(&self) -> &RocksEngine {
        &self.engine
    }

    /// Memory is lost, files stay: what a copy of the files of the running database holds.
    fn crash(&mut self) {
        let from = self.dir.path().join(self.life.to_string());
        self.life += 1;
        let to = self.dir.path().join(self.life.to_string());
        // The database writes and removes files in the background. A copy that it did so under is of no one moment, as a crash would be.
        loop {
            let before = listing(&from);
            copy_all(&from, &to);
            if listing(&from) == before {
                break;
            }
            std::fs::remove_dir_all(&to).unwrap();
        }
        self.engine = RocksEngine::open(&to, small()).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

fn mark(index: u64) -> AppliedMark {
    let pos = LogPos { term: Term::new(1 + index / 10), index: LogIndex::new(index) };
    AppliedMark { pos, membership: Bytes::from(format!("members at {index}")) }
}

fn batch(puts: &[(Space, &str, &str)], deletes: &[(Space, &str)]) -> Batch {
    let mut batch = Batch::default();
    for (space, key, value) in puts {
        batch.put(*space, key.as_bytes().to_vec(), value.as_bytes().to_vec());
    }
    for (space, key) in deletes {
        batch.delete(*space, key.as_bytes().to_vec());
    }
    batch
}

fn apply(model: &mut Model, batch: &Batch) {
    for (key, value) in &batch.writes {
        match value {
            Some(value) => model.insert(key.clone(), value.clone()),
            None => model.remove(key),
        };
    }
}

fn dump(view: &BoxView) -> Model {
    let mut all = Model::new();
    for space in Space::ALL {
        for record in view.scan(*space, Bound::Unbounded, Bound::Unbounded, false) {
            let (key, value) = record.unwrap();
            if !super::sim::is_reserved(*space, &key) {
                all.insert((*space, key), value);
            }
        }
    }
    all
}

fn commits_are_readable_and_snapshots_stand_still<L: Lab>() {
    let lab = L::new();
    let engine = lab.engine();
    assert_eq!(engine.applied(), AppliedMark::default());
    assert_eq!(engine.flushed(), LogPos::default());
    let empty = engine.snapshot();
    engine.commit(batch(&[(Space::Kv, "a", "1"), (Space::Rev, "a", "2"), (Space::Kv, "b", "3")], &[]), mark(1)).unwrap();
    let first = engine.snapshot();
    engine.commit(batch(&[(Space::Kv, "a", "9")], &[(Space::Kv, "b")]), mark(2)).unwrap();
    assert_eq!(dump(&empty), Model::new());
    assert_eq!(first.get(Space::Kv, b"a").unwrap().as_deref(), Some(&b"1"[..]));
    assert_eq!(first.get(Space::Kv, b"b").unwrap().as_deref(), Some(&b"3"[..]));
    assert_eq!(first.get(Space::Rev, b"a").unwrap().as_deref(), Some(&b"2"[..]), "spaces are apart");
    let now = engine.snapshot();
    assert_eq!(now.get(Space::Kv, b"a").unwrap().as_deref(), Some(&b"9"[..]));
    assert_eq!(now.get(Space::Kv, b"b").unwrap(), None);
    assert_eq!(engine.applied(), mark(2));
}

fn scans_respect_their_bounds<L: Lab>() {
    let lab = L::new();
    let keys = ["a", "ab", "b", "c", "d"];
    let puts: Vec<_> = keys.iter().map(|k| (Space::Meta, *k, *k)).collect();
    lab.engine().commit(batch(&puts, &[]), mark(1)).unwrap();
    lab.engine().commit(batch(&[(Space::Rev, "aa", ""), (Space::Lease, "aa", "")], &[]), mark(2)).unwrap();
    let view = lab.engine().snapshot();
    let all: Vec<Bound<&[u8]>> = ["", "a", "aa", "b", "d", "e"].iter().flat_map(|k| bounds(k)).chain([Bound::Unbounded]).collect();
    for from in &all {
        for to in &all {
            let expected: Vec<_> = keys.iter().filter(|k| within(k.as_bytes(), *from, *to)).collect();
            for reverse in [false, true] {
                let found: Vec<_> = view.scan(Space::Meta, *from, *to, reverse).map(|r| r.unwrap().0).collect();
                let mut expected: Vec<_> = expected.iter().map(|k| Bytes::copy_from_slice(k.as_bytes())).collect();
                if reverse {
                    expected.reverse();
                }
                assert_eq!(found, expected, "{from:?} {to:?} {reverse}");
            }
        }
    }
}

fn bounds(key: &str) -> [Bound<&[u8]>; 2] {
    [Bound::Included(key.as_bytes()), Bound::Excluded(key.as_bytes())]
}

fn within(key: &[u8], from: Bound<&[u8]>, to: Bound<&[u8]>) -> bool {
    let after = match from {
        Bound::Unbounded => true,
        Bound::Included(k) => key >= k,
        Bound::Excluded(k) => key > k,
    };
    let before = match to {
        Bound::Unbounded => true,
        Bound::Included(k) => key <= k,
        Bound::Excluded(k) => key < k,
    };
    after && before
}

fn reserved_keys_are_refused_whole<L: Lab>() {
    let lab = L::new();
    let refused = lab.engine().commit(batch(&[(Space::Kv, "a", "1"), (Space::Sys, "\0m", "x")], &[]), mark(1));
    assert!(matches!(refused, Err(EngineError::Reserved { .. })));
    assert_eq!(lab.engine().applied(), AppliedMark::default());
    assert_eq!(dump(&lab.engine().snapshot()), Model::new());
    lab.engine().commit(batch(&[(Space::Kv, "\0m", "fine")], &[]), mark(1)).unwrap();
}

fn a_crash_leaves_exactly_the_state_of_the_mark<L: Lab>() {
    let mut lab = L::new();
    let mut states = vec![Model::new()];
    for i in 1..=60u64 {
        let key = format!("k{}", i % 17);
        let value = "v".repeat((i * 37 % 2000) as usize);
        let gone = format!("k{}", (i * 5) % 17);
        let changes = batch(&[(Space::Kv, &key, &value), (Space::Rev, &i.to_string(), "r")], &[(Space::Meta, &gone)]);
        let mut model = states.last().unwrap().clone();
        apply(&mut model, &changes);
        states.push(model);
        lab.engine().commit(changes, mark(i)).unwrap();
        if i % 13 == 0 {
            let flushed = lab.engine().flush().unwrap();
            assert_eq!(flushed, mark(i).pos);
            assert_eq!(lab.engine().flushed(), mark(i).pos);
        }
    }
    let promised = lab.engine().flushed().index.get();
    assert!(promised >= 52, "{promised}");
    lab.crash();
    let after = lab.engine().applied();
    assert!(after.pos.index.get() >= promised);
    assert_eq!(after, mark(after.pos.index.get()), "the membership belongs to the position");
    assert_eq!(dump(&lab.engine().snapshot()), states[after.pos.index.get() as usize]);
    assert_eq!(lab.engine().flushed(), after.pos);
    // And it goes on from there.
    lab.engine().commit(batch(&[(Space::Kv, "new", "1")], &[]), mark(after.pos.index.get() + 1)).unwrap();
}

fn a_checkpoint_replaces_another_engine<L: Lab>() {
    let (source, mut target) = (L::new(), L::new());
    source.engine().commit(batch(&[(Space::Kv, "a", "1"), (Space::Sys, "x", "y")], &[]), mark(41)).unwrap();
    let path = target.path("incoming");
    assert_eq!(source.engine().checkpoint(&path).unwrap(), mark(41));
    source.engine().commit(batch(&[(Space::Kv, "a", "2")], &[]), mark(42)).unwrap();
    target.engine().commit(batch(&[(Space::Kv, "old", "1")], &[]), mark(7)).unwrap();
    let held = target.engine().snapshot();
    assert_eq!(target.engine().replace_from(&path).unwrap(), mark(41));
    assert!(!path.exists(), "the directory is consumed");
    assert_eq!(held.get(Space::Kv, b"old").unwrap().as_deref(), Some(&b"1"[..]), "a held snapshot stays");
    drop(held);
    for _ in 0..2 {
        assert_eq!(target.engine().applied(), mark(41));
        assert_eq!(target.engine().flushed(), mark(41).pos);
        let view = target.engine().snapshot();
        assert_eq!(view.get(Space::Kv, b"a").unwrap().as_deref(), Some(&b"1"[..]));
        assert_eq!(view.get(Space::Kv, b"old").unwrap(), None);
        drop(view);
        target.crash();
    }
    target.engine().commit(batch(&[(Space::Kv, "b", "1")], &[]), mark(42)).unwrap();
}

fn a_bad_checkpoint_changes_nothing<L: Lab>() {
    let lab = L::new();
    lab.engine().commit(batch(&[(Space::Kv, "a", "1")], &[]), mark(1)).unwrap();
    let path = lab.path("junk");
    assert!(lab.engine().replace_from(&path).is_err());
    assert_eq!(lab.engine().applied(), mark(1));
    assert_eq!(lab.engine().snapshot().get(Space::Kv, b"a").unwrap().as_deref(), Some(&b"1"[..]));
}

macro_rules! engine_suite {
    ($name:ident, $lab:ty: $($law:ident)*) => {
        mod $name {
            use super::*;
            $(#[test] fn $law() { super::$law::<$lab>(); })*
        }
    };
}

macro_rules! laws {
    ($($law:ident)*) => {
        engine_suite!(rocks, RocksLab: $($law)*);
        engine_suite!(sim, SimLab: $($law)*);
    };
}

laws! {
    commits_are_readable_and_snapshots_stand_still
    scans_respect_their_bounds
    reserved_keys_are_refused_whole
    a_crash_leaves_exactly_the_state_of_the_mark
    a_checkpoint_replaces_another_engine
    a_bad_checkpoint_changes_nothing
}

#[test]
fn a_flush_that_nobody_asked_for_raises_the_flushed_position() {
    let lab = RocksLab::new();
    for i in 1..=400 {
        lab.engine.commit(batch(&[(Space::Kv, &format!("k{i}"), &"v".repeat(10_000))], &[]), mark(i)).unwrap();
    }
    // Write buffers of 256 KiB: 4 MB of commits must have been flushed in the background, or will be in a moment.
    for _ in 0..200 {
        if lab.engine.flushed().index.get() > 0 {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let promised = lab.engine.flushed().index.get();
    assert!(promised > 0);
    let mut lab = lab;
    lab.crash();
    assert!(lab.engine.applied().pos.index.get() >= promised);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    /// The simulated engine and RocksDB say the same after any commits, flushes and restarts.
    #[test]
    fn both_engines_agree(steps in proptest::collection::vec(proptest::collection::vec((0..Space::ALL.len(), "[a-c]{0,3}", proptest::option::of("[x-z]{0,2}")), 0..6), 1..25),
        probes in proptest::collection::vec(("[a-d]{0,2}", "[a-d]{0,2}", any::<bool>(), any::<bool>(), any::<bool>()), 1..8)) {
        let (mut rocks, mut sim) = (RocksLab::new(), SimLab::new());
        for (i, step) in steps.iter().enumerate() {
            let mut changes = Batch::default();
            for (space, key, value) in step {
                let key = Bytes::from(key.clone().into_bytes());
                match value {
                    Some(value) => changes.put(Space::ALL[*space], key, value.clone().into_bytes()),
                    None => changes.delete(Space::ALL[*space], key),
                }
            }
            let at = mark(i as u64 + 1);
            rocks.engine.commit(changes.clone(), at.clone()).unwrap();
            sim.engine.commit(changes, at).unwrap();
            if step.len() == 3 {
                prop_assert_eq!(rocks.engine.flush().unwrap(), sim.engine.flush().unwrap());
            }
            if step.len() == 5 {
                rocks.engine.flush().unwrap();
                sim.engine.flush().unwrap();
                rocks.crash();
                sim.crash();
            }
            prop_assert_eq!(rocks.engine.applied(), sim.engine.applied());
            let (a, b) = (rocks.engine.snapshot(), sim.engine.snapshot());
            prop_assert_eq!(dump(&a), dump(&b));
            for (from, to, from_in, to_in, reverse) in &probes {
                let bound = |key: &'_ str, include: bool| if include { Bound::Included(key.as_bytes().to_vec()) } else { Bound::Excluded(key.as_bytes().to_vec()) };
                let (from, to) = (bound(from, *from_in), bound(to, *to_in));
                let scan = |view: &BoxView| -> Vec<(Bytes, Bytes)> {
                    let as_ref = |b: &'_ Bound<Vec<u8>>| -> Bound<Vec<u8>> { b.clone() };
                    let (from, to) = (as_ref(&from), as_ref(&to));
                    view.scan(Space::Meta, from.as_ref().map(Vec::as_slice), to.as_ref().map(Vec::as_slice), *reverse).map(Result::unwrap).collect()
                };
                prop_assert_eq!(scan(&a), scan(&b));
            }
        }
    }
}
