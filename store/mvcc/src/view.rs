//! What `apply` sees of a disk ([`View`]) and what it leaves behind ([`Batch`]).

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::collections::{BTreeMap, btree_map};
use std::ops::Bound;

use bytes::Bytes;

macro_rules! spaces {
    ($($(#[$doc:meta])* $name:ident = $byte:literal, $text:literal;)*) => {
        /// A kind of record; one column family of the engine each. Bytes and names are on disk: they are never reused.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum Space { $($(#[$doc])* $name = $byte,)* }

        impl Space {
            /// All of them, in the order of their bytes.
            pub const ALL: &'static [Space] = &[$(Space::$name,)*];

            /// The name on disk.
            pub const fn name(self) -> &'static str {
                match self { $(Space::$name => $text,)* }
            }
        }
    };
}

spaces! {
    /// Versions of keys: (key, newest revision first) to value.
    Kv = 1, "kv";
    /// Revisions in order: (main, sub) to key.
    Rev = 2, "rev";
    /// The present life of a key, without its value.
    Meta = 3, "meta";
    /// Leases, and the keys attached to them.
    Lease = 4, "lease";
    /// Users and roles.
    Auth = 5, "auth";
    /// Members of the cluster.
    Member = 6, "member";
    /// Single facts: revision, compact revision, applied position, alarms.
    Sys = 7, "sys";
}

/// The disk could not be read. Always fatal for the member: it stops, and says so.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot read {space:?}: {why}")]
pub struct ViewError {
    /// Where.
    pub space: Space,
    /// What the engine said.
    pub why: String,
}

/// An iterator over records.
pub type Scan<'a> = Box<dyn Iterator<Item = Result<(Bytes, Bytes), ViewError>> + 'a>;

/// A consistent state to read from.
pub trait View {
    /// One record.
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, ViewError>;

    /// The records between two bounds, in key order, or backwards. Bounds that enclose nothing give nothing.
    fn scan<'a>(&'a self, space: Space, from: Bound<&[u8]>, to: Bound<&[u8]>, reverse: bool) -> Scan<'a>;
}

/// One entry of an ordered map of records, borrowed.
type Entry<'a, V> = (&'a (Space, Bytes), &'a V);

/// Where a record stands, in a form that owned and borrowed keys share: lets a map of owned keys be searched without making one.
trait Place {
    /// The byte of the space, and the key.
    fn place(&self) -> (u8, &[u8]);
}

impl Place for (Space, Bytes) {
    fn place(&self) -> (u8, &[u8]) {
        (self.0 as u8, &self.1)
    }
}

/// A borrowed place. The byte may be one past the last space: the end of everything.
struct At<'a>(u8, &'a [u8]);

impl Place for At<'_> {
    fn place(&self) -> (u8, &[u8]) {
        (self.0, self.1)
    }
}

impl<'a> Borrow<dyn Place + 'a> for (Space, Bytes) {
    fn borrow(&self) -> &(dyn Place + 'a) {
        self
    }
}

impl PartialEq for dyn Place + '_ {
    fn eq(&self, other: &Self) -> bool {
        self.place() == other.place()
    }
}

impl Eq for dyn Place + '_ {}

impl PartialOrd for dyn Place + '_ {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for dyn Place + '_ {
    fn cmp(&self, other: &Self) -> Ordering {
        self.place().cmp(&other.place())
    }
}

/// The entries of one space between two bounds. Bounds that enclose nothing give nothing.
fn entries<'a, V>(map: &'a BTreeMap<(Space, Bytes), V>, space: Space, from: Bound<&[u8]>, to: Bound<&[u8]>) -> Between<'a, V> {
    if encloses_nothing(from, to) {
        return Between(None);
    }
    let byte = space as u8;
    let (low, high);
    let from: Bound<&dyn Place> = match from {
        Bound::Included(key) => {
            low = At(byte, key);
            Bound::Included(&low)
        }
        Bound::Excluded(key) => {
            low = At(byte, key);
            Bound::Excluded(&low)
        }
        Bound::Unbounded => {
            low = At(byte, &[]);
            Bound::Included(&low)
        }
    };
    let to: Bound<&dyn Place> = match to {
        Bound::Included(key) => {
            high = At(byte, key);
            Bound::Included(&high)
        }
        Bound::Excluded(key) => {
            high = At(byte, key);
            Bound::Excluded(&high)
        }
        Bound::Unbounded => {
            high = At(byte + 1, &[]);
            Bound::Excluded(&high)
        }
    };
    Between(Some(map.range::<dyn Place, _>((from, to))))
}

/// Whether no key lies between the bounds. `BTreeMap::range` panics on such.
fn encloses_nothing(from: Bound<&[u8]>, to: Bound<&[u8]>) -> bool {
    match (from, to) {
        (Bound::Included(a), Bound::Included(b)) => a > b,
        (Bound::Included(a) | Bound::Excluded(a), Bound::Included(b) | Bound::Excluded(b)) => a >= b,
        (Bound::Unbounded, _) | (_, Bound::Unbounded) => false,
    }
}

/// The entries between two bounds.
struct Between<'a, V>(Option<btree_map::Range<'a, (Space, Bytes), V>>);

impl<'a, V> Between<'a, V> {
    fn step(&mut self, reverse: bool) -> Option<Entry<'a, V>> {
        let range = self.0.as_mut()?;
        if reverse { range.next_back() } else { range.next() }
    }

    fn is_empty(&self) -> bool {
        self.0.as_ref().is_none_or(|range| range.clone().next().is_none())
    }
}

/// Changes that are committed together. Later changes of one record replace earlier ones. `None` deletes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// The changes.
    pub writes: BTreeMap<(Space, Bytes), Option<Bytes>>,
}

impl Batch {
    /// Writes a record.
    pub fn put(&mut self, space: Space, key: impl Into<Bytes>, value: impl Into<Bytes>) {
        self.writes.insert((space, key.into()), Some(value.into()));
    }

    /// Deletes a record.
    pub fn delete(&mut self, space: Space, key: impl Into<Bytes>) {
        self.writes.insert((space, key.into()), None);
    }

    /// What the batch says of a record: `None` is nothing, `Some(None)` that it is deleted.
    pub fn get(&self, space: Space, key: &[u8]) -> Option<Option<&Bytes>> {
        let at = At(space as u8, key);
        self.writes.get(&at as &dyn Place).map(Option::as_ref)
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }

    /// How many records it changes.
    pub fn len(&self) -> usize {
        self.writes.len()
    }
}

/// A state with a batch on top of it, as it will be once the batch is committed.
#[derive(Clone, Copy)]
pub struct Overlay<'a> {
    /// The state below.
    pub base: &'a dyn View,
    /// The changes above.
    pub batch: &'a Batch,
}

impl View for Overlay<'_> {
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, ViewError> {
        match self.batch.get(space, key) {
            Some(written) => Ok(written.cloned()),
            None => self.base.get(space, key),
        }
    }

    fn scan<'a>(&'a self, space: Space, from: Bound<&[u8]>, to: Bound<&[u8]>, reverse: bool) -> Scan<'a> {
        let above = entries(&self.batch.writes, space, from, to);
        let below = self.base.scan(space, from, to, reverse);
        if above.is_empty() {
            return below;
        }
        Box::new(Merge { below, above, reverse, next_below: None, next_above: None, started: false })
    }
}

/// Two ordered sequences as one; where both have a key the upper one counts, and its deletions hide.
struct Merge<'a> {
    below: Scan<'a>,
    above: Between<'a, Option<Bytes>>,
    reverse: bool,
    next_below: Option<Result<(Bytes, Bytes), ViewError>>,
    next_above: Option<Entry<'a, Option<Bytes>>>,
    started: bool,
}

impl Iterator for Merge<'_> {
    type Item = Result<(Bytes, Bytes), ViewError>;

    fn next(&mut self) -> Option<Self::Item> {
        if !self.started {
            self.started = true;
            self.next_below = self.below.next();
            self.next_above = self.above.step(self.reverse);
        }
        loop {
            let order = match (&self.next_below, self.next_above) {
                (None, None) => return None,
                (Some(Err(_)), _) | (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(Ok((below, _))), Some(((_, above), _))) if self.reverse => above.cmp(below),
                (Some(Ok((below, _))), Some(((_, above), _))) => below.cmp(above),
            };
            if order == Ordering::Less {
                return std::mem::replace(&mut self.next_below, self.below.next());
            }
            if order == Ordering::Equal {
                self.next_below = self.below.next();
            }
            let entry = std::mem::replace(&mut self.next_above, self.above.step(self.reverse));
            if let Some(((_, key), Some(value))) = entry {
                return Some(Ok((key.clone(), value.clone())));
            }
        }
    }
}

/// A whole state in memory: for tests, tools and the simulator.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemView {
    records: BTreeMap<(Space, Bytes), Bytes>,
}

impl MemView {
    /// The empty state.
    pub fn new() -> Self {
        Self::default()
    }

    /// Carries out all changes of a batch.
    pub fn commit(&mut self, batch: Batch) {
        for (place, value) in batch.writes {
            match value {
                Some(value) => self.records.insert(place, value),
                None => self.records.remove(&place),
            };
        }
    }

    /// How many records there are.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }
}

impl View for MemView {
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, ViewError> {
        let at = At(space as u8, key);
        Ok(self.records.get(&at as &dyn Place).cloned())
    }

    fn scan<'a>(&'a self, space: Space, from: Bound<&[u8]>, to: Bound<&[u8]>, reverse: bool) -> Scan<'a> {
        let mut between = entries(&self.records, space, from, to);
        Box::new(std::iter::from_fn(move || between.step(reverse).map(|((_, key), value)| Ok((key.clone(), value.clone())))))
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const SPACES: [Space; 3] = [Space::Kv, Space::Rev, Space::Sys];

    fn keys() -> impl Strategy<Value = Vec<u8>> {
        vec(prop_oneof![Just(0), Just(b'a'), Just(0xff)], 0..4)
    }

    fn bounds() -> impl Strategy<Value = Bound<Vec<u8>>> {
        prop_oneof![keys().prop_map(Bound::Included), keys().prop_map(Bound::Excluded), Just(Bound::Unbounded)]
    }

    fn batches() -> impl Strategy<Value = Batch> {
        vec((0..SPACES.len(), keys(), prop::option::of(vec(any::<u8>(), 0..2))), 0..30).prop_map(|writes| {
            let mut batch = Batch::default();
            for (space, key, value) in writes {
                match value {
                    Some(value) => batch.put(SPACES[space], key, value),
                    None => batch.delete(SPACES[space], key),
                }
            }
            batch
        })
    }

    fn all(view: &dyn View, space: Space, from: &Bound<Vec<u8>>, to: &Bound<Vec<u8>>, reverse: bool) -> Vec<(Bytes, Bytes)> {
        view.scan(space, from.as_ref().map(Vec::as_slice), to.as_ref().map(Vec::as_slice), reverse).collect::<Result<_, _>>().unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_view_with_a_batch_on_top_reads_like_one_that_has_it(
            below in batches(), above in batches(), from in bounds(), to in bounds(), space in 0..SPACES.len(), probe in keys(),
        ) {
            let space = SPACES[space];
            let mut base = MemView::new();
            base.commit(below);
            let mut committed = base.clone();
            committed.commit(above.clone());
            let overlay = Overlay { base: &base, batch: &above };
            prop_assert_eq!(overlay.get(space, &probe), committed.get(space, &probe));
            let forwards = all(&overlay, space, &from, &to, false);
            prop_assert_eq!(&forwards, &all(&committed, space, &from, &to, false));
            // And what a scan is, said without a map's range.
            let within = |key: &Bytes| std::ops::RangeBounds::contains(&(from.clone(), to.clone()), &key.to_vec());
            let naive: Vec<_> = committed.records.iter().filter(|((s, key), _)| *s == space && within(key)).map(|((_, key), v)| (key.clone(), v.clone())).collect();
            prop_assert_eq!(&forwards, &naive);
            let mut backwards = all(&overlay, space, &from, &to, true);
            backwards.reverse();
            prop_assert_eq!(backwards, forwards);
        }
    }

    /// A view whose every scan breaks after one record.
    struct Broken(MemView);

    impl View for Broken {
        fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, ViewError> {
            self.0.get(space, key)
        }

        fn scan<'a>(&'a self, space: Space, from: Bound<&[u8]>, to: Bound<&[u8]>, reverse: bool) -> Scan<'a> {
            let error = Err(ViewError { space, why: "broken".to_owned() });
            Box::new(self.0.scan(space, from, to, reverse).take(1).chain(std::iter::once(error)))
        }
    }

    #[test]
    fn an_error_below_comes_through() {
        let mut base = MemView::new();
        let mut batch = Batch::default();
        batch.put(Space::Kv, "a", "1");
        base.commit(batch);
        let mut batch = Batch::default();
        batch.put(Space::Kv, "z", "2");
        let base = Broken(base);
        let overlay = Overlay { base: &base, batch: &batch };
        for reverse in [false, true] {
            let read: Vec<_> = overlay.scan(Space::Kv, Bound::Unbounded, Bound::Unbounded, reverse).collect();
            assert!(read.iter().any(Result::is_err), "{read:?}");
        }
    }
}
