//! RocksDB filled from nothing with a whole state: versions come in the order in which they were written, and leave in sorted files.
//!
//! Versions are collected until there are enough, sorted by key, and written as a table file that the database takes in as it is: no write-ahead
//! log, no memtable, every byte written once. The present life of each key follows from its newest version, so it is
//! derived from the sorted versions in one pass. Memory is bounded by three collections.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use bytes::Bytes;
use kontiki_base::ids::{LeaseId, Revision};
use kontiki_mvcc::Space;
use kontiki_mvcc::keys::{self, Meta, PutRecords, SYS_COMPACT, SYS_REVISION, Stamp, TombstoneRecords, Version};
use rocksdb::{Cache, DB, DBCompressionType, FlushOptions, IngestExternalFileOptions, Options, ReadOptions, SstFileWriter, WriteBatch};

use super::EngineError;
use super::mark::{AppliedMark, MARK_KEY};
use super::rocks::{Open, RocksOptions, family, family_options, generation_dir, io, open_db};
use crate::log::disk::{make_dir, sync_dir};

/// Bytes that are collected before they become files. Three times as much may be in memory: one is filled, one is on its way, one is
/// being written.
const RUN_BYTES: usize = 64 << 20;

/// More files than these whose keys overlap would slow reads down, so they are merged before anybody reads.
const OVERLAPPING_FILES: usize = 12;

/// Records of one write batch.
const BATCH: usize = 4_096;

/// Files of records, by space.
type Written = Vec<(Space, Vec<PathBuf>)>;

/// Records that become one file, and where they belong.
type Run = (Space, Vec<(Bytes, Bytes)>);

/// Which leases there are: one that a key names and that does not exist is taken off the key.
pub trait Leases {
    /// Whether there is such a lease.
    fn exists(&self, id: LeaseId) -> bool;
}

/// A database that is being filled. What is there after an error is of no use.
pub struct BulkLoad {
    open: Open,
    base: PathBuf,
    options: RocksOptions,
    versions: Vec<(Bytes, Bytes)>,
    changes: Vec<(Bytes, Bytes)>,
    bytes: usize,
    files: Files,
}

/// What a state is besides its records.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The store's revision.
    pub revision: Revision,
    /// History begins here; below 0 if it is whole.
    pub compact: Revision,
    /// Which log position the state is the result of.
    pub mark: AppliedMark,
}

/// What was loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Loaded {
    /// Keys that live.
    pub keys: u64,
    /// Keys that named a lease which does not exist; they live on without.
    pub without_lease: u64,
}

impl BulkLoad {
    /// Makes an empty database where an engine will look for it. `base` must not exist.
    pub fn create(base: &Path, options: RocksOptions) -> Result<Self, EngineError> {
        make_dir(base).map_err(|e| io(base, "create", &e))?;
        let open = open_db(&generation_dir(base, 1), 1, &options, true)?;
        for space in Space::ALL {
            let off = open.db().set_options_cf(family(open.db(), *space), &[("disable_auto_compactions", "true")]);
            off.map_err(|e| io(base, "prepare", &e))?;
        }
        let files = Files::start(base, &options)?;
        Ok(Self { open, base: base.to_owned(), options, versions: Vec::new(), changes: Vec::new(), bytes: 0, files })
    }

    /// Adds a write. Changes must come in order.
    pub fn put(&mut self, records: PutRecords) -> Result<(), EngineError> {
        self.add((records.kv_key, records.kv), (records.rev_key, records.rev))
    }

    /// Adds a deletion.
    pub fn delete(&mut self, records: TombstoneRecords) -> Result<(), EngineError> {
        self.add((records.kv_key, records.kv), (records.rev_key, records.rev))
    }

    fn add(&mut self, version: (Bytes, Bytes), change: (Bytes, Bytes)) -> Result<(), EngineError> {
        // The four share one allocation, so they have to leave together.
        self.bytes += version.0.len() + version.1.len() + change.0.len() + change.1.len();
        self.versions.push(version);
        self.changes.push(change);
        if self.bytes < RUN_BYTES { Ok(()) } else { self.end_run() }
    }

    fn end_run(&mut self) -> Result<(), EngineError> {
        self.bytes = 0;
        self.files.write(Space::Kv, std::mem::take(&mut self.versions))?;
        self.files.write(Space::Rev, std::mem::take(&mut self.changes))
    }

    /// Writes records that are few.
    pub fn records(&self, space: Space, records: impl IntoIterator<Item = (Bytes, Bytes)>) -> Result<(), EngineError> {
        let mut batch = WriteBatch::default();
        for (key, value) in records {
            batch.put_cf(family(self.open.db(), space), key, value);
            if batch.len() >= BATCH {
                self.write(&std::mem::take(&mut batch))?;
            }
        }
        self.write(&batch)
    }

    fn write(&self, batch: &WriteBatch) -> Result<(), EngineError> {
        self.open.db().write_without_wal(batch).map_err(|e| io(&self.base, "write", &e))
    }

    /// Derives what follows from the versions, and makes everything durable.
    pub fn finish(mut self, facts: &Facts, leases: &dyn Leases) -> Result<Loaded, EngineError> {
        self.end_run()?;
        let scratch = self.files.dir.clone();
        let options = self.options.clone();
        for (space, files) in std::mem::replace(&mut self.files, Files::start(&self.base, &options)?).end()? {
            ingest(self.open.db(), space, files, &self.base)?;
        }
        let loaded = self.derive(leases)?;
        for (space, files) in std::mem::replace(&mut self.files, Files::start(&self.base, &options)?).end()? {
            ingest(self.open.db(), space, files, &self.base)?;
        }
        let number = |n: Revision| Bytes::copy_from_slice(&n.get().to_be_bytes());
        let mut sys = vec![(Bytes::from_static(SYS_REVISION), number(facts.revision)), (Bytes::from_static(MARK_KEY), facts.mark.encode())];
        if facts.compact >= Revision::ZERO {
            sys.push((Bytes::from_static(SYS_COMPACT), number(facts.compact)));
        }
        self.records(Space::Sys, sys)?;
        self.close(&scratch)?;
        Ok(loaded)
    }

    /// The present life of each key, and which lease it is attached to: from its newest version, which comes first in the order of `Kv`.
    fn derive(&mut self, leases: &dyn Leases) -> Result<Loaded, EngineError> {
        let mut loaded = Loaded::default();
        let (mut batch, mut lives, mut bytes) = (WriteBatch::default(), Vec::new(), 0);
        let mut options = ReadOptions::default();
        options.set_readahead_size(2 << 20);
        options.fill_cache(false);
        let (kv, lease_family) = (family(self.open.db(), Space::Kv), family(self.open.db(), Space::Lease));
        let mut iter = self.open.db().raw_iterator_cf_opt(kv, options);
        let mut prefix: Vec<u8> = Vec::new();
        iter.seek_to_first();
        while let Some((kv_key, record)) = iter.item() {
            let (this, at) = keys::split_version_key(kv_key)?;
            if this != prefix {
                prefix.clear();
                prefix.extend_from_slice(this);
                if let Some((key, mut meta)) = life(kv_key, record, at)? {
                    loaded.keys += 1;
                    if meta.lease != LeaseId::ZERO && leases.exists(meta.lease) {
                        batch.put_cf(lease_family, keys::attach_key(meta.lease, &key), b"");
                    } else if meta.lease != LeaseId::ZERO {
                        loaded.without_lease += 1;
                        meta.lease = LeaseId::ZERO;
                        let value = Bytes::copy_from_slice(record).slice(keys::VERSION_HEAD..);
                        batch.put_cf(kv, kv_key, keys::put_records(&key, &meta, &value).kv);
                    }
                    let mut encoded = Vec::with_capacity(keys::META_LEN);
                    meta.encode(&mut encoded);
                    bytes += key.len() + encoded.len();
                    lives.push((key, encoded.into()));
                }
            }
            if batch.len() >= BATCH {
                self.open.db().write_without_wal(&std::mem::take(&mut batch)).map_err(|e| io(&self.base, "write", &e))?;
            }
            if bytes >= RUN_BYTES {
                bytes = 0;
                self.files.write(Space::Meta, std::mem::take(&mut lives))?;
            }
            iter.next();
        }
        iter.status().map_err(|e| io(&self.base, "read", &e))?;
        drop(iter);
        self.open.db().write_without_wal(&batch).map_err(|e| io(&self.base, "write", &e))?;
        self.files.write(Space::Meta, lives)?;
        Ok(loaded)
    }

    fn close(self, scratch: &Path) -> Result<(), EngineError> {
        let db = self.open.db();
        let all: Vec<_> = Space::ALL.iter().map(|s| family(db, *s)).collect();
        let mut wait = FlushOptions::default();
        wait.set_wait(true);
        db.flush_cfs_opt(&all.iter().collect::<Vec<_>>(), &wait).map_err(|e| io(&self.base, "flush", &e))?;
        let overlapping = db.property_int_value_cf(family(db, Space::Kv), "rocksdb.num-files-at-level0").ok().flatten();
        if overlapping.unwrap_or(0) > OVERLAPPING_FILES as u64 {
            db.compact_range_cf(family(db, Space::Kv), None::<&[u8]>, None::<&[u8]>);
        }
        let dir = generation_dir(&self.base, 1);
        drop(self.files);
        drop(self.open);
        std::fs::remove_dir_all(scratch).map_err(|e| io(scratch, "remove", &e))?;
        for entry in std::fs::read_dir(&dir).map_err(|e| io(&dir, "list", &e))? {
            let path = entry.map_err(|e| io(&dir, "list", &e))?.path();
            std::fs::File::open(&path).and_then(|f| f.sync_all()).map_err(|e| io(&path, "sync", &e))?;
        }
        sync_dir(&dir).and_then(|()| sync_dir(&self.base)).map_err(|e| io(&self.base, "sync", &e))
    }
}

/// The life that a newest version means; `None` if it is a deletion.
fn life(kv_key: &[u8], record: &[u8], at: Stamp) -> Result<Option<(Bytes, Meta)>, EngineError> {
    if Version::is_tombstone(record) {
        return Ok(None);
    }
    let key = keys::user_key(&Bytes::copy_from_slice(kv_key))?;
    match Version::decode(&Bytes::copy_from_slice(record))? {
        Version::Put { create, version, lease, .. } => Ok(Some((key, Meta { create, at, version, lease }))),
        Version::Tombstone => Ok(None),
    }
}

fn ingest(db: &DB, space: Space, files: Vec<PathBuf>, base: &Path) -> Result<(), EngineError> {
    let mut options = IngestExternalFileOptions::default();
    options.set_move_files(true);
    db.ingest_external_file_cf_opts(family(db, space), &options, files).map_err(|e| io(base, "take in", &e))
}

/// The thread that sorts runs and writes them.
struct Files {
    dir: PathBuf,
    runs: Option<SyncSender<Run>>,
    thread: Option<JoinHandle<Result<Written, EngineError>>>,
}

impl Files {
    fn start(base: &Path, options: &RocksOptions) -> Result<Self, EngineError> {
        let dir = base.join("load");
        make_dir(&dir).map_err(|e| io(&dir, "create", &e))?;
        let (runs, queue) = sync_channel(1);
        let (to, options) = (dir.clone(), options.clone());
        let thread = std::thread::Builder::new().name("bulk-load".into()).spawn(move || write_runs(&to, &options, &queue));
        let thread = thread.map_err(|e| io(base, "start a thread for", &e))?;
        Ok(Self { dir, runs: Some(runs), thread: Some(thread) })
    }

    fn write(&mut self, space: Space, records: Vec<(Bytes, Bytes)>) -> Result<(), EngineError> {
        let gone = self.runs.as_ref().is_none_or(|runs| !records.is_empty() && runs.send((space, records)).is_err());
        // The thread ends before its time only with an error.
        if gone { self.join().map(drop) } else { Ok(()) }
    }

    fn join(&mut self) -> Result<Written, EngineError> {
        self.runs = None;
        let ended = self.thread.take().and_then(|thread| thread.join().ok());
        ended.unwrap_or_else(|| Err(io(&self.dir, "write", &"the writing thread has ended")))
    }

    fn end(mut self) -> Result<Written, EngineError> {
        self.join()
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        self.runs = None;
        if let Some(thread) = self.thread.take() {
            // Whoever drops it unfinished has an error of its own to tell.
            drop(thread.join());
        }
    }
}

fn write_runs(dir: &Path, options: &RocksOptions, queue: &Receiver<Run>) -> Result<Written, EngineError> {
    let cache = Cache::new_lru_cache(8 << 20);
    let mut written: Written = Vec::new();
    let table = |space| {
        let mut table: Options = family_options(Some(space), options, &cache);
        // Compactions will choose again; until then speed counts.
        table.set_compression_per_level(&[DBCompressionType::Lz4]);
        table.set_bottommost_compression_type(DBCompressionType::Lz4);
        table
    };
    for (space, mut records) in queue {
        records.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        let place = written.iter().position(|(of, _)| *of == space).unwrap_or_else(|| {
            written.push((space, Vec::new()));
            written.len() - 1
        });
        let files = &mut written[place].1;
        let path = dir.join(format!("{}-{:06}.sst", space.name(), files.len()));
        let options = table(space);
        let mut writer = SstFileWriter::create(&options);
        writer.open(&path).map_err(|e| io(&path, "create", &e))?;
        for (key, value) in &records {
            writer.put(key, value).map_err(|e| io(&path, "write", &e))?;
        }
        writer.finish().map_err(|e| io(&path, "write", &e))?;
        files.push(path);
    }
    Ok(written)
}
