//! The simulated engine: maps in memory. A crash takes it back to its last flush, whole.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::{Buf, BufMut, Bytes};
use kontiki_base::ids::LogPos;
use kontiki_base::invariant::Inv;
use kontiki_mvcc::view::Scan;
use kontiki_mvcc::{Batch, Space, View, ViewError};

use super::mark::{AppliedMark, MARK_KEY};
use super::{BoxView, Engine, EngineError};

type Records = BTreeMap<(Space, Bytes), Bytes>;

#[derive(Clone, Default)]
struct State {
    records: Arc<Records>,
    mark: AppliedMark,
}

#[derive(Default)]
struct Inner {
    live: State,
    durable: State,
}

/// The simulated engine together with its "disk": a clone is another handle to the same, so it outlives the member that runs on it.
#[derive(Clone, Default)]
pub struct SimEngine {
    inner: Arc<Mutex<Inner>>,
}

impl SimEngine {
    /// An empty engine.
    pub fn new() -> Self {
        Self::default()
    }

    /// What a power cut does: everything since the last flush is gone.
    pub fn crash(&self) {
        let mut inner = self.lock();
        inner.live = inner.durable.clone();
    }

    /// Every record, without the engine's own: what two members are compared by.
    pub fn dump(&self) -> Vec<((Space, Bytes), Bytes)> {
        let records = self.lock().live.records.clone();
        records.iter().filter(|((space, key), _)| !is_reserved(*space, key)).map(|(k, v)| (k.clone(), v.clone())).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no panic while the engine is locked")
    }
}

pub(super) fn is_reserved(space: Space, key: &[u8]) -> bool {
    space == Space::Sys && key.first() == Some(&super::RESERVED)
}

impl Engine for SimEngine {
    fn snapshot(&self) -> BoxView {
        Box::new(SimView(self.lock().live.records.clone()))
    }

    fn commit(&self, batch: Batch, applied: AppliedMark) -> Result<(), EngineError> {
        if let Some(((space, key), _)) = batch.writes.iter().find(|((space, key), _)| is_reserved(*space, key)) {
            return Err(EngineError::Reserved { space: *space, key: key.to_vec() });
        }
        let mut inner = self.lock();
        kontiki_base::check!(
            Inv::AppliedForward,
            applied.pos.index >= inner.live.mark.pos.index,
            "{:?} after {:?}",
            applied.pos,
            inner.live.mark.pos
        );
        let records = Arc::make_mut(&mut inner.live.records);
        for (key, value) in batch.writes {
            match value {
                Some(value) => records.insert(key, value),
                None => records.remove(&key),
            };
        }
        records.insert((Space::Sys, Bytes::from_static(MARK_KEY)), applied.encode());
        inner.live.mark = applied;
        Ok(())
    }

    fn applied(&self) -> AppliedMark {
        self.lock().live.mark.clone()
    }

    fn flushed(&self) -> LogPos {
        self.lock().durable.mark.pos
    }

    fn flush(&self) -> Result<LogPos, EngineError> {
        let mut inner = self.lock();
        inner.durable = inner.live.clone();
        Ok(inner.durable.mark.pos)
    }

    fn checkpoint(&self, dir: &Path) -> Result<AppliedMark, EngineError> {
        self.flush()?;
        let state = self.lock().durable.clone();
        std::fs::create_dir(dir).map_err(|e| io(dir, "create checkpoint", &e))?;
        std::fs::write(dir.join(FILE), encode(&state.records)).map_err(|e| io(dir, "write checkpoint", &e))?;
        Ok(state.mark)
    }

    fn replace_from(&self, dir: &Path) -> Result<AppliedMark, EngineError> {
        let bytes = std::fs::read(dir.join(FILE)).map_err(|e| io(dir, "read checkpoint", &e))?;
        let corrupt = |why: &str| EngineError::Corrupt { path: dir.to_owned(), why: why.into() };
        let records = decode(bytes.into()).ok_or_else(|| corrupt("records do not parse"))?;
        let mark = records.get(&(Space::Sys, Bytes::from_static(MARK_KEY))).cloned();
        let mark = mark.and_then(AppliedMark::decode).ok_or_else(|| corrupt("no applied mark"))?;
        let state = State { records: Arc::new(records), mark: mark.clone() };
        let mut inner = self.lock();
        inner.durable = state.clone();
        inner.live = state;
        drop(inner);
        std::fs::remove_dir_all(dir).map_err(|e| io(dir, "remove checkpoint", &e))?;
        Ok(mark)
    }

    fn size(&self) -> u64 {
        self.lock().live.records.iter().map(|((_, k), v)| (k.len() + v.len()) as u64).sum()
    }
}

fn io(path: &Path, what: &'static str, why: &dyn std::fmt::Display) -> EngineError {
    EngineError::Io { path: path.to_owned(), what, why: why.to_string() }
}

/// The one file of a checkpoint: records of (space, key length, key, value length, value).
const FILE: &str = "sim.records";

fn encode(records: &Records) -> Vec<u8> {
    let mut out = Vec::new();
    for ((space, key), value) in records {
        out.put_u8(*space as u8);
        for part in [key, value] {
            out.put_u32(u32::try_from(part.len()).expect("a record is smaller than 4 GiB"));
            out.put_slice(part);
        }
    }
    out
}

fn decode(mut bytes: Bytes) -> Option<Records> {
    let mut records = Records::new();
    let part = |bytes: &mut Bytes| {
        let len = bytes.try_get_u32().ok()? as usize;
        (bytes.len() >= len).then(|| bytes.split_to(len))
    };
    while !bytes.is_empty() {
        let byte = bytes.get_u8();
        let space = *Space::ALL.iter().find(|s| **s as u8 == byte)?;
        let (key, value) = (part(&mut bytes)?, part(&mut bytes)?);
        records.insert((space, key), value);
    }
    Some(records)
}

struct SimView(Arc<Records>);

impl View for SimView {
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, ViewError> {
        Ok(self.0.get(&(space, Bytes::copy_from_slice(key))).cloned())
    }

    fn scan<'a>(&'a self, space: Space, from: Bound<&[u8]>, to: Bound<&[u8]>, reverse: bool) -> Scan<'a> {
        let own = |b: Bound<&[u8]>| b.map(|k| (space, Bytes::copy_from_slice(k)));
        let from = match own(from) {
            Bound::Unbounded => Bound::Included((space, Bytes::new())),
            bound => bound,
        };
        let to = match own(to) {
            Bound::Unbounded => next_space(space).map_or(Bound::Unbounded, |next| Bound::Excluded((next, Bytes::new()))),
            bound => bound,
        };
        if is_empty(&from, &to) {
            return Box::new(std::iter::empty());
        }
        let range = self.0.range((from, to)).map(|((_, k), v)| Ok((k.clone(), v.clone())));
        if reverse { Box::new(range.rev()) } else { Box::new(range) }
    }
}

fn next_space(space: Space) -> Option<Space> {
    Space::ALL.iter().copied().find(|s| *s > space)
}

/// `BTreeMap::range` panics on ranges that are upside down; here they are simply empty.
fn is_empty<T: Ord>(from: &Bound<T>, to: &Bound<T>) -> bool {
    match (from, to) {
        (Bound::Included(a), Bound::Included(b)) => a > b,
        (Bound::Included(a) | Bound::Excluded(a), Bound::Excluded(b) | Bound::Included(b)) => a >= b,
        _ => false,
    }
}
