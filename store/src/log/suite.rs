//! The log, with the power cut at every point, and on real files.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use kontiki_base::ids::{LogIndex, LogPos, MemberId, Term};
use kontiki_proto::env::SystemEnv;
use tokio::sync::oneshot;

use super::sim::SimDisk;
use super::{Cold, Done, FsDisk, Log, LogDisk, LogEntry, LogError, LogOptions, Runner, Vote};

const SEGMENT: u32 = 16 << 10;

fn options() -> LogOptions {
    LogOptions { segment_bytes: SEGMENT, tail_bytes: 4 << 10, spares: 2 }
}

fn pos(term: u64, index: u64) -> LogPos {
    LogPos { term: Term::new(term), index: LogIndex::new(index) }
}

/// SplitMix64.
fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb) >> 11
}

#[derive(Clone, Debug)]
enum Op {
    Append(Vec<LogEntry>),
    Vote(Vote),
    Truncate(LogPos),
    Purge(LogPos),
}

/// What the log must say, computed the simple way.
#[derive(Clone, Debug, Default, PartialEq)]
struct Model {
    vote: Option<Vote>,
    purged: LogPos,
    last: LogPos,
    entries: BTreeMap<u64, LogEntry>,
}

impl Model {
    fn apply(&mut self, op: &Op) {
        match op {
            Op::Append(entries) => {
                for entry in entries {
                    self.last = entry.pos;
                    self.entries.insert(entry.pos.index.get(), entry.clone());
                }
            }
            Op::Vote(vote) => self.vote = Some(*vote),
            Op::Truncate(after) => {
                if after.index < self.last.index {
                    self.last = *after;
                }
                self.entries.retain(|i, _| *i <= after.index.get());
            }
            Op::Purge(upto) => {
                self.purged = *upto;
                if upto.index > self.last.index {
                    self.last = *upto;
                }
                self.entries.retain(|i, _| *i > upto.index.get());
            }
        }
    }

    fn pos_at(&self, index: u64) -> LogPos {
        self.entries.get(&index).map_or(self.purged, |e| e.pos)
    }

    /// The next operation that consensus could ask for in this state.
    fn next_op(&self, seed: &mut u64) -> Op {
        let term = self.last.term.get().max(1) + u64::from(random(seed).is_multiple_of(10));
        let (purged, last) = (self.purged.index.get(), self.last.index.get());
        match random(seed) % 10 {
            0 => Op::Vote(Vote {
                term: Term::new(term),
                member: MemberId::new(random(seed) % 3 + 1),
                committed: random(seed).is_multiple_of(2),
            }),
            1 if last > purged => Op::Truncate(self.pos_at(purged + random(seed) % (last - purged))),
            2 if last > purged => Op::Purge(self.pos_at(purged + 1 + random(seed) % (last - purged))),
            3 if random(seed).is_multiple_of(4) => Op::Purge(pos(term, last + 1 + random(seed) % 20)),
            _ => {
                let count = random(seed) % 5 + 1;
                let entry = |i, seed: &mut u64| {
                    let body = vec![(i % 251) as u8; (random(seed) % 1500) as usize];
                    LogEntry { pos: pos(term, last + 1 + i), kind: (i % 3) as u8, body: body.into() }
                };
                Op::Append((0..count).map(|i| entry(i, seed)).collect())
            }
        }
    }
}

/// The operation as the steps in which a crash may leave it.
fn steps(op: &Op) -> Vec<Op> {
    match op {
        Op::Append(entries) => entries.iter().map(|e| Op::Append(vec![e.clone()])).collect(),
        other => vec![other.clone()],
    }
}

fn done() -> (Done, oneshot::Receiver<Result<(), LogError>>) {
    let (tx, rx) = oneshot::channel();
    (Box::new(move |result| drop(tx.send(result))), rx)
}

async fn submit(log: &Log, op: Op) -> oneshot::Receiver<Result<(), LogError>> {
    let (done, result) = done();
    match op {
        Op::Append(entries) => log.append(entries, Vec::new(), done).await,
        Op::Vote(vote) => log.vote(vote, done).await,
        Op::Truncate(after) => log.truncate(after, done).await,
        Op::Purge(upto) => log.purge(upto, done).await,
    }
    result
}

fn read(log: &Log, from: u64, to: u64, max: usize) -> Result<Vec<LogEntry>, LogError> {
    match log.read(LogIndex::new(from), LogIndex::new(to), max)? {
        Cold::Ready(entries) => Ok(entries),
        Cold::Files(cold) => cold.run(),
    }
}

/// What the log says, as a model.
fn observe(log: &Log) -> Model {
    let status = log.status();
    let entries = read(log, 0, u64::MAX, usize::MAX).unwrap();
    let entries = entries.into_iter().map(|e| (e.pos.index.get(), e)).collect();
    Model { vote: status.vote, purged: status.purged, last: status.last, entries }
}

fn open_sim(disk: &SimDisk, seed: u64) -> Result<Log, LogError> {
    let runner = Runner::Task { env: Arc::new(SystemEnv::new()), sync_us: 50 };
    Log::open(Arc::new(disk.clone()), options(), runner, seed)
}

/// Runs operations until one fails or all are done. Gives the models after each step, and how many steps were acknowledged.
async fn run(log: &Log, mut model: Model, ops: usize, seed: &mut u64) -> (Vec<Model>, usize) {
    let mut models = vec![model.clone()];
    let mut acked = 0;
    let mut waiting = std::collections::VecDeque::new();
    for _ in 0..ops {
        let op = model.next_op(seed);
        for step in steps(&op) {
            model.apply(&step);
            models.push(model.clone());
        }
        waiting.push_back((models.len() - 1, submit(log, op).await));
        // Up to three operations are under way at once.
        while waiting.len() > 3 || (!waiting.is_empty() && random(seed).is_multiple_of(4)) {
            let (step, result) = waiting.pop_front().unwrap();
            match result.await.unwrap() {
                Ok(()) => acked = step,
                Err(_) => return (models, acked),
            }
        }
        assert_eq!(observe_live(log), Some(model.clone()).filter(|_| log.shared.failure().is_none()), "readable at once");
    }
    for (step, result) in waiting {
        match result.await.unwrap() {
            Ok(()) => acked = step,
            Err(_) => return (models, acked),
        }
    }
    (models, acked)
}

fn observe_live(log: &Log) -> Option<Model> {
    log.shared.failure().is_none().then(|| observe(log))
}

/// After a crash the log must stand at some step between the last that was acknowledged and the last that was asked for.
fn assert_recovered(found: &Model, models: &[Model], acked: usize, context: &str) {
    let fits = models[acked..].iter().any(|m| m == found);
    assert!(fits, "{context}: found {found:#?}\nacknowledged was {:#?}", models[acked]);
}

async fn crash_and_check(seed: u64, cut: u64) -> bool {
    let disk = SimDisk::new();
    let mut chance = seed ^ (cut << 32);
    disk.fail_after(cut);
    let mut ops = seed;
    let (models, acked, finished) = match open_sim(&disk, seed) {
        Ok(log) => {
            let (models, acked) = run(&log, Model::default(), 40, &mut ops).await;
            let finished = acked + 1 == models.len();
            (models, acked, finished)
        }
        Err(_) => (vec![Model::default()], 0, false),
    };
    disk.crash(|| random(&mut chance));
    // A second cut, during recovery or soon after.
    let again = random(&mut chance) % 12;
    disk.fail_after(again);
    if let Ok(log) = open_sim(&disk, seed + 1) {
        let found = observe(&log);
        assert_recovered(&found, &models, acked, &format!("seed {seed} cut {cut}"));
        let (models, acked) = run(&log, found, 10, &mut ops).await;
        drop(log);
        disk.crash(|| random(&mut chance));
        let log = open_sim(&disk, seed + 2).unwrap_or_else(|e| panic!("seed {seed} cut {cut} again {again}: {e}"));
        assert_recovered(&observe(&log), &models, acked, &format!("seed {seed} cut {cut} again {again}"));
    } else {
        disk.crash(|| random(&mut chance));
        let log = open_sim(&disk, seed + 2).unwrap_or_else(|e| panic!("seed {seed} cut {cut} in recovery: {e}"));
        assert_recovered(&observe(&log), &models, acked, &format!("seed {seed} cut {cut} in recovery"));
    }
    finished
}

#[tokio::test(start_paused = true)]
async fn a_power_cut_at_any_point_loses_nothing_acknowledged_and_invents_nothing() {
    for seed in 0..12 {
        let mut cut = 0;
        while !crash_and_check(seed, cut).await {
            cut += 1;
        }
        assert!(cut > 40, "the workload of seed {seed} makes only {cut} changes");
    }
}

async fn filled(disk: &SimDisk, count: u64) -> Model {
    let log = open_sim(disk, 7).unwrap();
    let mut model = Model::default();
    for i in 1..=count {
        let op = Op::Append(vec![LogEntry { pos: pos(1, i), kind: 1, body: Bytes::from(vec![i as u8; 700]) }]);
        model.apply(&op);
        submit(&log, op).await.await.unwrap().unwrap();
    }
    model
}

#[tokio::test(start_paused = true)]
async fn damage_to_what_was_synced_is_refused_and_changes_nothing() {
    let disk = SimDisk::new();
    filled(&disk, 60).await;
    let segments: Vec<_> = disk.list().unwrap().into_iter().filter(|n| n.ends_with(".seg")).collect();
    assert!(segments.len() >= 3, "{segments:?}");
    for (name, offset) in [(&segments[0], 5000), (&segments[0], 20), (&segments[1], 4100), (&segments[1], 9000), (&segments[2], 60)] {
        disk.damage(name, offset);
        let before = disk.content(name);
        let error = open_sim(&disk, 8).err().unwrap_or_else(|| panic!("{name} at {offset} was accepted"));
        assert!(matches!(error, LogError::Corrupt { .. }), "{error}");
        assert_eq!(disk.content(name), before);
        disk.damage(name, offset);
    }
    disk.remove(&segments[1]).unwrap();
    assert!(matches!(open_sim(&disk, 8), Err(LogError::Corrupt { .. })), "a missing segment was accepted");
}

#[tokio::test(start_paused = true)]
async fn a_recycled_segment_never_shows_its_earlier_life() {
    let disk = SimDisk::new();
    let mut model = filled(&disk, 60).await;
    for round in 0..6 {
        let log = open_sim(&disk, 100 + round).unwrap();
        assert_eq!(observe(&log), model);
        let purge = Op::Purge(model.pos_at(model.last.index.get() - 3));
        model.apply(&purge);
        submit(&log, purge).await.await.unwrap().unwrap();
        for _ in 0..25 {
            let next = model.last.index.get() + 1;
            let op = Op::Append(vec![LogEntry { pos: pos(1, next), kind: 1, body: Bytes::from(vec![next as u8; 700]) }]);
            model.apply(&op);
            submit(&log, op).await.await.unwrap().unwrap();
        }
    }
    let names = disk.list().unwrap();
    assert!(names.len() <= 7, "purged segments are recycled or removed: {names:?}");
    assert!(names.iter().any(|n| n.ends_with(".spare")), "{names:?}");
}

#[tokio::test]
async fn real_files_survive_a_restart_and_syncs_are_shared() {
    let dir = tempfile::tempdir().unwrap();
    let open = || {
        let disk: Arc<dyn LogDisk> = Arc::new(FsDisk::open(&dir.path().join("log")).unwrap());
        Log::open(disk, options(), Runner::Thread, 3).unwrap()
    };
    let log = open();
    let finished = Arc::new(Mutex::new(Vec::new()));
    let mut model = Model::default();
    for i in 1..=300 {
        let op = Op::Append(vec![LogEntry { pos: pos(2, i), kind: 1, body: Bytes::from(vec![i as u8; 300]) }]);
        model.apply(&op);
        let Op::Append(entries) = op else { unreachable!() };
        let finished = finished.clone();
        log.append(entries, Vec::new(), Box::new(move |r| finished.lock().unwrap().push((i, r.is_ok())))).await;
    }
    log.hint_committed(pos(2, 299));
    let vote = Op::Vote(Vote { term: Term::new(2), member: MemberId::new(1), committed: true });
    model.apply(&vote);
    submit(&log, vote).await.await.unwrap().unwrap();
    let finished = std::mem::take(&mut *finished.lock().unwrap());
    assert_eq!(finished, (1..=300).map(|i| (i, true)).collect::<Vec<_>>(), "in order");
    assert_eq!(observe(&log), model);
    let page = read(&log, 10, 200, 1_100).unwrap();
    assert_eq!(page.iter().map(|e| e.pos.index.get()).collect::<Vec<_>>(), [10, 11, 12], "bounded by bytes");
    log.close().await;

    let log = open();
    assert_eq!(observe(&log), model);
    assert_eq!(log.status().committed, pos(2, 299));
    log.close().await;
}

#[tokio::test(start_paused = true)]
async fn many_appends_share_few_syncs() {
    let disk = SimDisk::new();
    let log = open_sim(&disk, 1).unwrap();
    let before = disk.syncs();
    let mut results = Vec::new();
    for i in 1..=100 {
        results.push(submit(&log, Op::Append(vec![LogEntry { pos: pos(1, i), kind: 0, body: Bytes::new() }])).await);
    }
    for result in results {
        result.await.unwrap().unwrap();
    }
    assert!(disk.syncs() - before <= 2, "{} syncs", disk.syncs() - before);
}

#[tokio::test(start_paused = true)]
async fn after_a_failed_sync_nothing_is_acknowledged_any_more() {
    let disk = SimDisk::new();
    let log = open_sim(&disk, 1).unwrap();
    let entry = |i| Op::Append(vec![LogEntry { pos: pos(1, i), kind: 0, body: Bytes::new() }]);
    submit(&log, entry(1)).await.await.unwrap().unwrap();
    disk.fail_after(1);
    assert!(submit(&log, entry(2)).await.await.unwrap().is_err());
    disk.fail_after(1000);
    assert!(matches!(submit(&log, entry(3)).await.await.unwrap(), Err(LogError::Stopped(_))));
    assert!(read(&log, 1, 2, 100).is_err());
}

/// A process ends, by itself or because its sync failed; the next one takes what it reads for granted. Then the power goes.
#[tokio::test(start_paused = true)]
async fn what_a_restarted_process_relies_on_survives_a_power_cut() {
    for (fails, seed) in (0..40).flat_map(|seed| [(false, seed), (true, seed)]) {
        let (disk, mut chance) = (SimDisk::new(), seed);
        let before = filled(&disk, 3 + seed % 7).await;
        let log = open_sim(&disk, seed).unwrap();
        let body = Bytes::from(vec![7; (random(&mut chance) % 900) as usize]);
        let entry = LogEntry { pos: pos(2, before.last.index.get() + 1), kind: 1, body };
        if fails {
            disk.fail_syncs(1);
        } else {
            // The write happens, and nothing after it.
            disk.fail_after(1);
        }
        let result = submit(&log, Op::Append(vec![entry.clone()])).await;
        assert!(result.await.unwrap().is_err(), "nobody was told that it was durable");
        drop(log);
        disk.restart();
        disk.fail_syncs(0);
        let log = open_sim(&disk, seed).unwrap();
        let found = observe(&log);
        assert!(found.last == entry.pos || found.last == before.last);
        drop(log);
        disk.crash(|| 1);
        let kept = observe(&open_sim(&disk, seed).unwrap());
        assert_eq!(kept.last, found.last, "fails={fails} seed={seed}: what the second process saw is gone");
    }
}

#[tokio::test(start_paused = true)]
async fn an_entry_that_fits_no_segment_is_refused_alone() {
    let log = open_sim(&SimDisk::new(), 1).unwrap();
    let entry = |size| Op::Append(vec![LogEntry { pos: pos(1, 1), kind: 0, body: Bytes::from(vec![0; size]) }]);
    assert!(matches!(submit(&log, entry(SEGMENT as usize)).await.await.unwrap(), Err(LogError::TooLarge { .. })));
    submit(&log, entry(8000)).await.await.unwrap().unwrap();
}
