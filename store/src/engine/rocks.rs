//! RocksDB as an engine: one column family per [`Space`], no write-ahead log (the raft log is one), all families flushed together.
//!
//! Every commit writes the applied mark as the last record of its batch. Because RocksDB numbers records and tells the highest number of
//! every finished flush, the engine knows which mark is on disk without asking the disk. Replaced states live in directories of
//! their own (`db.1`, `db.2`, …), so that the one rename that makes a directory visible also makes it the current one.

use std::collections::VecDeque;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use bytes::Bytes;
use kontiki_base::ids::LogPos;
use kontiki_base::invariant::Inv;
use kontiki_mvcc::view::Scan;
use kontiki_mvcc::{Batch, Space, View, ViewError};
use rocksdb::checkpoint::Checkpoint;
use rocksdb::event_listener::{EventListener, FlushJobInfo};
use rocksdb::{BlockBasedOptions, Cache, ColumnFamilyDescriptor, DB, DBCompressionType, DBRawIterator, FlushOptions, Options, ReadOptions};
use rocksdb::{Snapshot, WriteBatch};

use super::mark::{AppliedMark, MARK_KEY};
use super::sim::is_reserved;
use super::{BoxView, Engine, EngineError};
use crate::log::disk::{make_dir, sync_dir};

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
}

impl Default for RocksOptions {
    fn default() -> Self {
        Self { cache_bytes: 256 << 20, write_buffer_bytes: 32 << 20, all_write_buffers_bytes: 128 << 20, background_jobs: 2 }
    }
}

/// RocksDB in a directory.
pub struct RocksEngine {
    base: PathBuf,
    options: RocksOptions,
    current: RwLock<Arc<Open>>,
    /// The mark of the latest commit. Also the commit lock.
    applied: Mutex<AppliedMark>,
}

/// One open database. Snapshots keep it alive after it was replaced; then its directory goes with the last of them.
struct Open {
    db: Option<DB>,
    dir: PathBuf,
    generation: u64,
    flushes: Arc<Flushes>,
    retired: std::sync::atomic::AtomicBool,
}

impl Open {
    fn db(&self) -> &DB {
        self.db.as_ref().expect("taken only when dropped")
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
        if info.cf_name().as_deref() == Some(Space::Sys.name().as_bytes()) {
            self.0.flushed_up_to(info.largest_seqno());
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
        Ok(Self { base: base.to_owned(), options, current: RwLock::new(Arc::new(open)), applied: Mutex::new(applied) })
    }

    fn current(&self) -> Arc<Open> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Engine for RocksEngine {
    fn snapshot(&self) -> BoxView {
        Box::new(RocksView::new(self.current(), |open| open.db().snapshot()))
    }

    fn commit(&self, batch: Batch, mark: AppliedMark) -> Result<(), EngineError> {
        let mut applied = self.applied.lock().unwrap_or_else(PoisonError::into_inner);
        kontiki_base::check!(Inv::AppliedForward, mark.pos.index >= applied.pos.index, "{:?} after {:?}", mark.pos, applied.pos);
        let open = self.current();
        let mut writes = WriteBatch::default();
        for ((space, key), value) in &batch.writes {
            if is_reserved(*space, key) {
                return Err(EngineError::Reserved { space: *space, key: key.to_vec() });
            }
            let cf = family(open.db(), *space);
            match value {
                Some(value) => writes.put_cf(cf, key, value),
                None => writes.delete_cf(cf, key),
            }
        }
        // Last in the batch: its sequence number is the batch's.
        writes.put_cf(family(open.db(), Space::Sys), MARK_KEY, mark.encode());
        open.db().write_without_wal(&writes).map_err(|e| io(&open.dir, "write", &e))?;
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
        let before = self.applied().pos;
        let families: Vec<_> = Space::ALL.iter().map(|s| family(open.db(), *s)).collect();
        let families: Vec<_> = families.iter().collect();
        let mut options = FlushOptions::default();
        options.set_wait(true);
        open.db().flush_cfs_opt(&families, &options).map_err(|e| io(&open.dir, "flush", &e))?;
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
        let open = self.current();
        let property = |space: &Space, name: &str| {
            let value = open.db().property_int_value_cf(family(open.db(), *space), name);
            value.ok().flatten().unwrap_or(0)
        };
        let of = |space| property(space, "rocksdb.total-sst-files-size") + property(space, "rocksdb.cur-size-all-mem-tables");
        Space::ALL.iter().map(of).sum()
    }

    fn reclaim(&self) -> Result<(), EngineError> {
        let open = self.current();
        for space in Space::ALL {
            open.db().compact_range_cf(family(open.db(), *space), None::<&[u8]>, None::<&[u8]>);
        }
        Ok(())
    }
}

fn io(path: &Path, what: &'static str, why: &dyn std::fmt::Display) -> EngineError {
    EngineError::Io { path: path.to_owned(), what, why: why.to_string() }
}

fn generation_dir(base: &Path, generation: u64) -> PathBuf {
    base.join(format!("db.{generation}"))
}

/// The newest generation in `base`; removes the others.
fn clean(base: &Path) -> Result<u64, EngineError> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(base).map_err(|e| io(base, "list", &e))? {
        let name = entry.map_err(|e| io(base, "list", &e))?.file_name();
        if let Some(n) = name.to_str().and_then(|n| n.strip_prefix("db.")).and_then(|n| n.parse::<u64>().ok()) {
            found.push(n);
        }
    }
    let newest = found.iter().copied().max().unwrap_or(1);
    for old in found.into_iter().filter(|n| *n != newest) {
        let dir = generation_dir(base, old);
        std::fs::remove_dir_all(&dir).map_err(|e| io(&dir, "remove", &e))?;
    }
    Ok(newest)
}

fn family(db: &DB, space: Space) -> &rocksdb::ColumnFamily {
    db.cf_handle(space.name()).expect("every space was opened")
}

fn plain_families() -> Vec<ColumnFamilyDescriptor> {
    let all = std::iter::once(rocksdb::DEFAULT_COLUMN_FAMILY_NAME).chain(Space::ALL.iter().map(|s| s.name()));
    all.map(|name| ColumnFamilyDescriptor::new(name, Options::default())).collect()
}

fn read_mark(db: &DB, dir: &Path) -> Result<AppliedMark, EngineError> {
    let stored = db.get_cf(family(db, Space::Sys), MARK_KEY).map_err(|e| io(dir, "read applied mark", &e))?;
    let Some(stored) = stored else {
        return Ok(AppliedMark::default());
    };
    AppliedMark::decode(stored.into())
        .ok_or_else(|| EngineError::Corrupt { path: dir.to_owned(), why: "the applied mark does not parse".into() })
}

fn open_db(dir: &Path, generation: u64, options: &RocksOptions, create: bool) -> Result<Open, EngineError> {
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
    db.add_event_listener(Listener(flushes.clone()));
    let cache = Cache::new_lru_cache(options.cache_bytes);
    let default = ColumnFamilyDescriptor::new(rocksdb::DEFAULT_COLUMN_FAMILY_NAME, family_options(None, options, &cache));
    let families = Space::ALL.iter().map(|s| ColumnFamilyDescriptor::new(s.name(), family_options(Some(*s), options, &cache)));
    let opened = DB::open_cf_descriptors(&db, dir, std::iter::once(default).chain(families));
    let opened = opened.map_err(|e| io(dir, "open", &e))?;
    Ok(Open { db: Some(opened), dir: dir.to_owned(), generation, flushes, retired: false.into() })
}

fn family_options(space: Option<Space>, options: &RocksOptions, cache: &Cache) -> Options {
    let mut cf = Options::default();
    let large = matches!(space, Some(Space::Kv | Space::Rev | Space::Meta));
    cf.set_write_buffer_size(if large { options.write_buffer_bytes } else { options.write_buffer_bytes / 8 });
    cf.set_max_write_buffer_number(3);
    cf.set_level_zero_file_num_compaction_trigger(4);
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
    if matches!(space, Some(Space::Meta | Space::Kv)) {
        table.set_bloom_filter(10.0, false);
    }
    if space == Some(Space::Meta) {
        cf.set_memtable_whole_key_filtering(true);
        cf.set_memtable_prefix_bloom_ratio(0.05);
    }
    cf.set_block_based_table_factory(&table);
    cf
}

type DbSnapshot<'a> = Snapshot<'a>;

self_cell::self_cell!(
    struct RocksView {
        owner: Arc<Open>,
        #[covariant]
        dependent: DbSnapshot,
    }
);

impl View for RocksView {
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, ViewError> {
        let value = self.borrow_dependent().get_cf(family(self.borrow_owner().db(), space), key);
        value.map(|v| v.map(Bytes::from)).map_err(|e| ViewError { space, why: e.to_string() })
    }

    fn scan<'a>(&'a self, space: Space, from: Bound<&[u8]>, to: Bound<&[u8]>, reverse: bool) -> Scan<'a> {
        let (lower, upper) = (lower_bound(from), upper_bound(to));
        if let (Some(lower), Some(upper)) = (&lower, &upper)
            && lower >= upper
        {
            return Box::new(std::iter::empty());
        }
        let mut options = ReadOptions::default();
        options.set_total_order_seek(true);
        if let Some(lower) = lower {
            options.set_iterate_lower_bound(lower);
        }
        if let Some(upper) = upper {
            options.set_iterate_upper_bound(upper);
        }
        let mut iter = self.borrow_dependent().raw_iterator_cf_opt(family(self.borrow_owner().db(), space), options);
        if reverse {
            iter.seek_to_last();
        } else {
            iter.seek_to_first();
        }
        Box::new(RocksScan { iter, space, reverse, state: ScanState::Positioned })
    }
}

/// The smallest key that a lower bound lets in.
fn lower_bound(bound: Bound<&[u8]>) -> Option<Vec<u8>> {
    match bound {
        Bound::Unbounded => None,
        Bound::Included(key) => Some(key.to_vec()),
        Bound::Excluded(key) => Some(successor(key)),
    }
}

/// The smallest key that an upper bound keeps out.
fn upper_bound(bound: Bound<&[u8]>) -> Option<Vec<u8>> {
    match bound {
        Bound::Unbounded => None,
        Bound::Excluded(key) => Some(key.to_vec()),
        Bound::Included(key) => Some(successor(key)),
    }
}

fn successor(key: &[u8]) -> Vec<u8> {
    [key, &[0]].concat()
}

enum ScanState {
    /// The iterator stands on a record that was not given out.
    Positioned,
    /// It stands on the record that was given out last.
    Given,
    Ended,
}

struct RocksScan<'a> {
    iter: DBRawIterator<'a>,
    space: Space,
    reverse: bool,
    state: ScanState,
}

impl Iterator for RocksScan<'_> {
    type Item = Result<(Bytes, Bytes), ViewError>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.state {
            ScanState::Positioned => {}
            ScanState::Given if self.reverse => self.iter.prev(),
            ScanState::Given => self.iter.next(),
            ScanState::Ended => return None,
        }
        if let Some((key, value)) = self.iter.item() {
            self.state = ScanState::Given;
            return Some(Ok((Bytes::copy_from_slice(key), Bytes::copy_from_slice(value))));
        }
        self.state = ScanState::Ended;
        let failed = self.iter.status().err()?;
        Some(Err(ViewError { space: self.space, why: failed.to_string() }))
    }
}
