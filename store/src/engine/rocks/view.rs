//! Reading RocksDB: a snapshot that keeps its database open, and scans of it.

use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use kontiki_mvcc::view::Scan;
use kontiki_mvcc::{Space, View, ViewError};
use rocksdb::{DBRawIterator, ReadOptions, Snapshot};

use super::{Open, family};

type DbSnapshot<'a> = Snapshot<'a>;

self_cell::self_cell!(
    pub(super) struct RocksView {
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
