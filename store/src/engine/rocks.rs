//! RocksDB as an engine: one column family per [`Space`], no write-ahead log (the raft log is one), all families flushed together.
//!
//! Every commit writes the applied mark as the last record of its batch. Because RocksDB numbers records and tells the highest number of
//! every finished flush, the engine knows which mark is on disk without asking the disk. Replaced states live in directories of
//! their own (`db.1`, `db.2`, …), so that the one rename that makes a directory visible also makes it the current one.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use kontiki_base::ids::LogPos;
use kontiki_base::invariant::Inv;
use kontiki_mvcc::{Batch, Space};
use rocksdb::checkpoint::Checkpoint;
use rocksdb::event_listener::{DBBackgroundErrorReason, EventListener, FlushJobInfo, MutableStatus};
use rocksdb::{BlockBasedOptions, Cache, ColumnFamilyDescriptor, CompactOptions, DB, DBCompressionType, FlushOptions, Options, WriteBatch};

use super::mark::{AppliedMark, MARK_KEY};
use super::sim::is_reserved;
use super::{BoxView, Engine, EngineError, FULL_PAUSE};
use crate::log::disk::{make_dir, sync_dir};

mod view;

use view::RocksView;

/// How much memory RocksDB may use. The defaults suit a machine with 2 GiB and scale linearly.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RocksOptions {
    /// Bytes of the block cache that all column families share, index and filter blocks included.
    pub cache_bytes: usize,
    /// Bytes of one write buffer of the large column families; the small ones get an eighth of it.
    pub write_buffer_bytes: usize,
    /// Bytes of all write buffers together.
    pub all_write_buffers_bytes: usize,
    /// Threads for flushes and compactions.
    pub background_jobs: i32,
    /// Bytes per second that flushes and compactions may write: what remains of the disk is for the log.
    pub background_bytes_per_second: i64,
}

impl Default for RocksOptions {
    fn default() -> Self {
        Self {
            cache_bytes: 256 << 20,
            // Small enough for a processor's cache: looking for a place in it is most of what a write costs.
            write_buffer_bytes: 16 << 20,
            all_write_buffers_bytes: 64 << 20,
            background_jobs: 2,
            background_bytes_per_second: 256 << 20,
        }
    }
}

/// RocksDB in a directory.
pub struct RocksEngine {
    base: PathBuf,
    options: RocksOptions,
    current: RwLock<Arc<Open>>,
    /// The mark of the latest commit. Also the commit lock.
    applied: Mutex<AppliedMark>,
    /// The member stops: nobody waits for room any more.
    stopping: AtomicBool,
    /// A manual compaction is under way.
    reclaiming: Mutex<()>,
}

/// One open database. Snapshots keep it alive after it was replaced; then its directory goes with the last of them.
pub(super) struct Open {
    db: Option<DB>,
    dir: PathBuf,
    generation: u64,
    flushes: Arc<Flushes>,
    retired: std::sync::atomic::AtomicBool,
}

impl Open {
    pub(super) fn db(&self) -> &DB {
        self.db.as_ref().expect("taken only when dropped")
    }

    /// The sum of properties over all families.
    fn sum(&self, names: &[&str]) -> u64 {
        let property = |space: &Space, name: &str| {
            let value = self.db().property_int_value_cf(family(self.db(), *space), name);
            value.ok().flatten().unwrap_or(0)
        };
        Space::ALL.iter().flat_map(|space| names.iter().map(move |name| property(space, name))).sum()
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.db = None;
        if self.retired.load(std::sync::atomic::Ordering::Acquire)
            && let Err(error) = std::fs::remove_dir_all(&self.dir)
        {
            tracing::warn!(dir = %self.dir.display(), %error, "replaced database was not removed; the next start does it");
        }
    }
}

/// Knows which commits a finished flush contains.
#[derive(Default)]
struct Flushes {
    state: Mutex<FlushState>,
    /// A flush or a compaction has found no room, and none has ended well since.
    full: AtomicBool,
}

#[derive(Default)]
struct FlushState {
    /// Commits that are not known to be flushed: (sequence number of its last record, its position), ascending.
    pending: VecDeque<(u64, LogPos)>,
    flushed: LogPos,
}

/// Commits remembered between two flushes. Beyond it every second one is forgotten, which can only make `flushed` lag.
const PENDING_COMMITS: usize = 8192;

impl Flushes {
    fn committed(&self, seqno: u64, pos: LogPos) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.pending.len() >= PENDING_COMMITS {
            let mut keep = false;
            state.pending.retain(|_| {
                keep = !keep;
                keep
            });
        }
        state.pending.push_back((seqno, pos));
    }

    fn flushed_up_to(&self, seqno: u64) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some((_, pos)) = state.pending.pop_front_if(|(s, _)| *s <= seqno) {
            state.flushed = state.flushed.max(pos);
        }
    }

    fn raise(&self, pos: LogPos) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.flushed = state.flushed.max(pos);
    }

    fn flushed(&self) -> LogPos {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).flushed
    }
}

struct Listener(Arc<Flushes>);

impl EventListener for Listener {
    fn on_flush_completed(&self, info: &FlushJobInfo) {
        self.0.full.store(false, Ordering::Release);
        if info.cf_name().as_deref() == Some(Space::Sys.name().as_bytes()) {
            self.0.flushed_up_to(info.largest_seqno());
        }
    }

    fn on_background_error(&self, _: DBBackgroundErrorReason, status: MutableStatus) {
        if status.result().as_ref().is_err_and(is_full) {
            self.0.full.store(true, Ordering::Release);
        }
    }
}

impl RocksEngine {
    /// Opens the engine in `base`, which is made if it is missing.
    pub fn open(base: &Path, options: RocksOptions) -> Result<Self, EngineError> {
        make_dir(base).map_err(|e| io(base, "create", &e))?;
        let generation = clean(base)?;
        let dir = generation_dir(base, generation);
        let open = open_db(&dir, generation, &options, true)?;
        sync_dir(base).map_err(|e| io(base, "sync", &e))?;
        let applied = read_mark(open.db(), &dir)?;
        open.flushes.raise(applied.pos);
        Ok(Self {
            base: base.to_owned(),
            options,
            current: RwLock::new(Arc::new(open)),
            applied: Mutex::new(applied),
            stopping: AtomicBool::new(false),
            reclaiming: Mutex::default(),
        })
    }

    /// Writes, and waits for room while there is none. RocksDB refuses all writes once a flush has failed for want of room, before it has
    /// taken anything of them: so the same batch can be tried again.
    fn write(&self, open: &Open, writes: &WriteBatch) -> Result<(), EngineError> {
        let mut waited = false;
        loop {
            match open.db().write_without_wal(writes) {
                Ok(()) if waited => {
                    tracing::info!("the storage engine has room again");
                    return Ok(());
                }
                Ok(()) => return Ok(()),
                Err(error) if is_full(&error) && self.waits() => {
                    if !std::mem::replace(&mut waited, true) {
                        tracing::error!(%error, "the disk is full: the storage engine waits for room");
                    }
                    std::thread::sleep(FULL_PAUSE);
                    // RocksDB looks by itself, too, every five seconds; while it does, or while there is no room, this does nothing.
                    drop(open.db().resume());
                }
                Err(error) => return Err(io(&open.dir, "write", &error)),
            }
        }
    }

    fn current(&self) -> Arc<Open> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Engine for RocksEngine {
    fn snapshot(&self) -> BoxView {
        view_of(self.current())
    }

    fn commit(&self, batch: Batch, mark: AppliedMark) -> Result<(), EngineError> {
        let mut applied = self.applied.lock().unwrap_or_else(PoisonError::into_inner);
        kontiki_base::check!(Inv::AppliedForward, mark.pos.index >= applied.pos.index, "{:?} after {:?}", mark.pos, applied.pos);
        let open = self.current();
        let mut writes = WriteBatch::with_capacity_bytes(batch_bytes(&batch));
        // Records come sorted: a family is looked up once.
        let mut last: Option<(Space, &rocksdb::ColumnFamily)> = None;
        for ((space, key), value) in &batch.writes {
            if is_reserved(*space, key) {
                return Err(EngineError::Reserved { space: *space, key: key.to_vec() });
            }
            let cf = last.filter(|(known, _)| known == space).map_or_else(|| family(open.db(), *space), |(_, cf)| cf);
            last = Some((*space, cf));
            match value {
                Some(value) => writes.put_cf(cf, key, value),
                None => writes.delete_cf(cf, key),
            }
        }
        // Last in the batch: its sequence number is the batch's.
        writes.put_cf(family(open.db(), Space::Sys), MARK_KEY, mark.encode());
        self.write(&open, &writes)?;
        open.flushes.committed(open.db().latest_sequence_number(), mark.pos);
        *applied = mark;
        Ok(())
    }

    fn applied(&self) -> AppliedMark {
        self.applied.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn flushed(&self) -> LogPos {
        self.current().flushes.flushed()
    }

    fn flush(&self) -> Result<LogPos, EngineError> {
        let open = self.current();
        let full = || EngineError::Full { path: open.dir.clone(), what: "flush" };
        // After a flush has failed for want of room, RocksDB holds the next one until there is some: nobody can wait for that.
        if open.flushes.full.load(Ordering::Acquire) && open.db().resume().is_err() {
            return Err(full());
        }
        let before = self.applied().pos;
        let families: Vec<_> = Space::ALL.iter().map(|s| family(open.db(), *s)).collect();
        let families: Vec<_> = families.iter().collect();
        let mut options = FlushOptions::default();
        options.set_wait(true);
        open.db().flush_cfs_opt(&families, &options).map_err(|e| if is_full(&e) { full() } else { io(&open.dir, "flush", &e) })?;
        open.flushes.raise(before);
        Ok(open.flushes.flushed())
    }

    fn checkpoint(&self, dir: &Path) -> Result<AppliedMark, EngineError> {
        let open = self.current();
        let checkpoint = Checkpoint::new(open.db()).map_err(|e| io(dir, "checkpoint", &e))?;
        checkpoint.create_checkpoint(dir).map_err(|e| io(dir, "checkpoint", &e))?;
        let db = DB::open_cf_descriptors_read_only(&Options::default(), dir, plain_families(), false);
        let db = db.map_err(|e| io(dir, "open checkpoint", &e))?;
        read_mark(&db, dir)
    }

    fn replace_from(&self, dir: &Path) -> Result<AppliedMark, EngineError> {
        let mut applied = self.applied.lock().unwrap_or_else(PoisonError::into_inner);
        let mark = read_mark(open_db(dir, 0, &self.options, false)?.db(), dir)?;
        if mark == AppliedMark::default() {
            return Err(EngineError::Corrupt { path: dir.to_owned(), why: "the checkpoint has no applied mark".into() });
        }
        for entry in std::fs::read_dir(dir).map_err(|e| io(dir, "list", &e))? {
            let path = entry.map_err(|e| io(dir, "list", &e))?.path();
            std::fs::File::open(&path).and_then(|f| f.sync_all()).map_err(|e| io(&path, "sync", &e))?;
        }
        sync_dir(dir).map_err(|e| io(dir, "sync", &e))?;
        let old = self.current();
        let generation = old.generation + 1;
        let target = generation_dir(&self.base, generation);
        std::fs::rename(dir, &target).map_err(|e| io(&target, "rename checkpoint to", &e))?;
        sync_dir(&self.base).map_err(|e| io(&self.base, "sync", &e))?;
        let open = open_db(&target, generation, &self.options, false)?;
        open.flushes.raise(mark.pos);
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(open);
        old.retired.store(true, std::sync::atomic::Ordering::Release);
        *applied = mark.clone();
        Ok(mark)
    }

    fn size(&self) -> u64 {
        self.current().sum(&["rocksdb.total-sst-files-size", "rocksdb.cur-size-all-mem-tables"])
    }

    fn in_use(&self) -> u64 {
        let open = self.current();
        open.sum(&["rocksdb.estimate-live-data-size", "rocksdb.cur-size-all-mem-tables"]).min(self.size())
    }

    fn stop_waiting(&self) {
        self.stopping.store(true, Ordering::Release);
        self.current().db().disable_manual_compaction();
    }

    fn waits(&self) -> bool {
        !self.stopping.load(Ordering::Acquire)
    }

    fn reclaim(&self) -> Result<(), EngineError> {
        let Ok(_one) = self.reclaiming.try_lock() else { return Ok(()) };
        let open = self.current();
        let mut options = CompactOptions::default();
        // Automatic compactions go on beside it, or writes would stall behind it.
        options.set_exclusive_manual_compaction(false);
        for space in Space::ALL {
            if !self.waits() {
                return Ok(());
            }
            open.db().compact_range_cf_opt(family(open.db(), *space), None::<&[u8]>, None::<&[u8]>, &options);
        }
        Ok(())
    }
}

/// Bytes that a batch takes in RocksDB's form, at most.
fn batch_bytes(batch: &Batch) -> usize {
    // Tag, family, two lengths; at the end the mark.
    const HEAD: usize = 1 + 1 + 5 + 5;
    const MARK: usize = 512;
    batch.writes.iter().map(|((_, key), value)| HEAD + key.len() + value.as_ref().map_or(0, bytes::Bytes::len)).sum::<usize>() + MARK
}

pub(super) fn io(path: &Path, what: &'static str, why: &dyn std::fmt::Display) -> EngineError {
    EngineError::Io { path: path.to_owned(), what, why: why.to_string() }
}

/// Whether RocksDB says that there is no room. Its errors have no kind for that, only a text.
fn is_full(error: &rocksdb::Error) -> bool {
    let text = error.to_string();
    text.contains("No space left on device") || text.contains("Disk quota exceeded")
}

pub(super) fn generation_dir(base: &Path, generation: u64) -> PathBuf {
    base.join(format!("db.{generation}"))
}

/// The newest generation in `base`; removes the others.
fn clean(base: &Path) -> Result<u64, EngineError> {
    let found = generations(base)?;
    let newest = found.iter().copied().max().unwrap_or(1);
    for old in found.into_iter().filter(|n| *n != newest) {
        let dir = generation_dir(base, old);
        std::fs::remove_dir_all(&dir).map_err(|e| io(&dir, "remove", &e))?;
    }
    Ok(newest)
}

/// The databases in `base`; the newest counts.
pub(super) fn generations(base: &Path) -> Result<Vec<u64>, EngineError> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(base).map_err(|e| io(base, "list", &e))? {
        let name = entry.map_err(|e| io(base, "list", &e))?.file_name();
        if let Some(n) = name.to_str().and_then(|n| n.strip_prefix("db.")).and_then(|n| n.parse::<u64>().ok()) {
            found.push(n);
        }
    }
    Ok(found)
}

pub(super) fn family(db: &DB, space: Space) -> &rocksdb::ColumnFamily {
    db.cf_handle(space.name()).expect("every space was opened")
}

fn plain_families() -> Vec<ColumnFamilyDescriptor> {
    let all = std::iter::once(rocksdb::DEFAULT_COLUMN_FAMILY_NAME).chain(Space::ALL.iter().map(|s| s.name()));
    all.map(|name| ColumnFamilyDescriptor::new(name, Options::default())).collect()
}

pub(super) fn read_mark(db: &DB, dir: &Path) -> Result<AppliedMark, EngineError> {
    let stored = db.get_cf(family(db, Space::Sys), MARK_KEY).map_err(|e| io(dir, "read applied mark", &e))?;
    let Some(stored) = stored else {
        return Ok(AppliedMark::default());
    };
    AppliedMark::decode(stored.into())
        .ok_or_else(|| EngineError::Corrupt { path: dir.to_owned(), why: "the applied mark does not parse".into() })
}

/// Opens a database without changing it.
pub(super) fn open_read_only(dir: &Path) -> Result<Open, EngineError> {
    let mut options = Options::default();
    // Every data block is read once: errors name the file and the place.
    options.set_paranoid_checks(true);
    let db = DB::open_cf_descriptors_read_only(&options, dir, plain_families(), false).map_err(|e| io(dir, "open", &e))?;
    Ok(Open { db: Some(db), dir: dir.to_owned(), generation: 0, flushes: Arc::default(), retired: false.into() })
}

/// The present state of an open database.
pub(super) fn view_of(open: Arc<Open>) -> BoxView {
    Box::new(RocksView::new(open, |open| open.db().snapshot()))
}

pub(super) fn open_db(dir: &Path, generation: u64, options: &RocksOptions, create: bool) -> Result<Open, EngineError> {
    let flushes = Arc::new(Flushes::default());
    let mut db = Options::default();
    db.create_if_missing(create);
    db.create_missing_column_families(create);
    db.set_atomic_flush(true);
    db.set_db_write_buffer_size(options.all_write_buffers_bytes);
    db.set_max_background_jobs(options.background_jobs);
    db.set_max_open_files(-1);
    db.set_skip_stats_update_on_db_open(true);
    db.set_keep_log_file_num(2);
    db.set_log_level(rocksdb::LogLevel::Warn);
    db.set_bytes_per_sync(1 << 20);
    db.set_stats_dump_period_sec(0);
    db.set_ratelimiter(options.background_bytes_per_second, 100_000, 10);
    db.add_event_listener(Listener(flushes.clone()));
    let cache = Cache::new_lru_cache(options.cache_bytes);
    let default = ColumnFamilyDescriptor::new(rocksdb::DEFAULT_COLUMN_FAMILY_NAME, family_options(None, options, &cache));
    let families = Space::ALL.iter().map(|s| ColumnFamilyDescriptor::new(s.name(), family_options(Some(*s), options, &cache)));
    let opened = DB::open_cf_descriptors(&db, dir, std::iter::once(default).chain(families));
    let opened = opened.map_err(|e| io(dir, "open", &e))?;
    Ok(Open { db: Some(opened), dir: dir.to_owned(), generation, flushes, retired: false.into() })
}

pub(super) fn family_options(space: Option<Space>, options: &RocksOptions, cache: &Cache) -> Options {
    let mut cf = Options::default();
    let large = matches!(space, Some(Space::Kv | Space::Rev | Space::Meta));
    cf.set_write_buffer_size(if large { options.write_buffer_bytes } else { options.write_buffer_bytes / 8 });
    cf.set_max_write_buffer_number(3);
    // Each merge rewrites the level below: less often is cheaper, and bloom filters keep point reads of many files cheap.
    cf.set_level_zero_file_num_compaction_trigger(8);
    cf.set_level_zero_slowdown_writes_trigger(30);
    cf.set_level_zero_stop_writes_trigger(48);
    cf.set_level_compaction_dynamic_level_bytes(true);
    cf.set_compression_per_level(&[DBCompressionType::None, DBCompressionType::None, DBCompressionType::Lz4]);
    cf.set_bottommost_compression_type(DBCompressionType::Zstd);
    // A scan over many deleted keys costs a compaction once, not every scan.
    cf.add_compact_on_deletion_collector_factory(4096, 2048, 0.5);
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(cache);
    table.set_block_size(16 << 10);
    table.set_format_version(6);
    table.set_cache_index_and_filter_blocks(true);
    table.set_pin_l0_filter_and_index_blocks_in_cache(true);
    if matches!(space, Some(Space::Meta | Space::Kv | Space::Sys)) {
        table.set_bloom_filter(10.0, false);
    }
    // Every command looks for alarms, which there are none of.
    if matches!(space, Some(Space::Meta | Space::Sys)) {
        cf.set_memtable_whole_key_filtering(true);
        cf.set_memtable_prefix_bloom_ratio(0.05);
    }
    cf.set_block_based_table_factory(&table);
    cf
}
