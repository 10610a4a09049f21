//! Which watches see a key: a map for watches of one key, an interval tree for watches of ranges.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use kontiki_base::WatchId;
use kontiki_base::ids::Revision;
use kontiki_base::key::{KeyRange, RangeEnd};

/// Numbers a stream of watches within this process.
pub type StreamId = u64;

/// A watch as the index knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sub {
    /// Its stream.
    pub stream: StreamId,
    /// Its id within the stream.
    pub watch: WatchId,
    /// It is told of nothing before this revision.
    pub from: Revision,
    /// It wants to know what was there before.
    pub prev_kv: bool,
}

/// The exclusive end of a range, in order: "no end" is the last.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    Before(Bytes),
    Unbounded,
}

impl End {
    fn is_after(&self, key: &[u8]) -> bool {
        match self {
            Self::Before(end) => key < end.as_ref(),
            Self::Unbounded => true,
        }
    }
}

type Span = (Bytes, End);

/// All watched keys.
#[derive(Debug, Default)]
pub struct WatchIndex {
    exact: HashMap<Bytes, Vec<Sub>>,
    spans: BTreeMap<Span, Vec<Sub>>,
    /// The spans in order, as an implicit balanced tree: the middle of a slice is its root. Beside each span, the latest end in its
    /// subtree. Rebuilt at the first look-up after a change: watches come and go far more rarely than events.
    tree: Vec<(Span, End)>,
    stale: bool,
}

impl WatchIndex {
    /// Adds a watch.
    pub fn insert(&mut self, range: &KeyRange, sub: Sub) {
        match span_of(range) {
            None => self.exact.entry(range.start.clone()).or_default().push(sub),
            Some(span) => {
                self.stale |= !self.spans.contains_key(&span);
                self.spans.entry(span).or_default().push(sub);
            }
        }
    }

    /// Removes a watch.
    pub fn remove(&mut self, range: &KeyRange, stream: StreamId, watch: WatchId) {
        let is_it = |sub: &Sub| sub.stream == stream && sub.watch == watch;
        match span_of(range) {
            None => {
                if let Some(subs) = self.exact.get_mut(&range.start) {
                    subs.retain(|sub| !is_it(sub));
                    if subs.is_empty() {
                        self.exact.remove(&range.start);
                    }
                }
            }
            Some(span) => {
                if let Some(subs) = self.spans.get_mut(&span) {
                    subs.retain(|sub| !is_it(sub));
                    if subs.is_empty() {
                        self.spans.remove(&span);
                        self.stale = true;
                    }
                }
            }
        }
    }

    /// Calls `found` for every watch that sees `key`.
    pub fn matching(&mut self, key: &[u8], mut found: impl FnMut(&Sub)) {
        if let Some(subs) = self.exact.get(key) {
            subs.iter().for_each(&mut found);
        }
        if self.stale {
            self.rebuild();
        }
        stab(&self.tree, key, &mut |span| {
            self.spans.get(span).into_iter().flatten().for_each(&mut found);
        });
    }

    fn rebuild(&mut self) {
        self.tree = self.spans.keys().map(|span| (span.clone(), span.1.clone())).collect();
        raise(&mut self.tree);
        self.stale = false;
    }
}

/// `None` for a single key.
fn span_of(range: &KeyRange) -> Option<Span> {
    match &range.end {
        RangeEnd::Single => None,
        RangeEnd::Before(end) => Some((range.start.clone(), End::Before(end.clone()))),
        RangeEnd::Unbounded => Some((range.start.clone(), End::Unbounded)),
    }
}

/// Writes the latest end of each subtree beside its root; returns the slice's.
fn raise(tree: &mut [(Span, End)]) -> Option<End> {
    let (left, rest) = tree.split_at_mut(tree.len() / 2);
    let (root, right) = rest.split_first_mut()?;
    let latest = [raise(left), raise(right)].into_iter().flatten().chain([root.0.1.clone()]).max()?;
    root.1 = latest.clone();
    Some(latest)
}

/// Calls `found` for every span that contains `key`.
fn stab(tree: &[(Span, End)], key: &[u8], found: &mut dyn FnMut(&Span)) {
    let (left, rest) = tree.split_at(tree.len() / 2);
    let Some((root, right)) = rest.split_first() else { return };
    if !root.1.is_after(key) {
        return;
    }
    stab(left, key, found);
    if root.0.0.as_ref() <= key {
        if root.0.1.is_after(key) {
            found(&root.0);
        }
        stab(right, key, found);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sub(watch: i64) -> Sub {
        Sub { stream: 1, watch: WatchId::new(watch), from: Revision::ZERO, prev_kv: false }
    }

    fn seen(index: &mut WatchIndex, key: &[u8]) -> Vec<i64> {
        let mut ids = Vec::new();
        index.matching(key, |sub| ids.push(sub.watch.get()));
        ids.sort_unstable();
        ids
    }

    proptest! {
        /// The tree finds what a walk over all ranges finds, while watches come and go.
        #[test]
        fn finds_exactly_the_ranges_that_contain_the_key(
            ranges in prop::collection::vec((0u8..20, 0u8..24), 1..40),
            gone in prop::collection::vec(any::<prop::sample::Index>(), 0..10),
            key in 0u8..22,
        ) {
            let mut all: Vec<(i64, KeyRange)> = ranges.iter().zip(0..).map(|((start, end), id)| {
                let end = match end { 20 => vec![], 21.. => vec![0], n => vec![*n] };
                (id, KeyRange::from_wire(vec![*start].into(), end.into()))
            }).collect();
            let mut index = WatchIndex::default();
            for (id, range) in &all {
                index.insert(range, sub(*id));
            }
            for place in gone {
                if all.is_empty() { break }
                let (id, range) = all.remove(place.index(all.len()));
                seen(&mut index, &[key]);
                index.remove(&range, 1, WatchId::new(id));
            }
            let expected: Vec<i64> = all.iter().filter(|(_, range)| range.contains(&[key])).map(|(id, _)| *id).collect();
            prop_assert_eq!(seen(&mut index, &[key]), expected);
        }
    }

    #[test]
    fn two_watches_of_one_range_are_two() {
        let mut index = WatchIndex::default();
        index.insert(&KeyRange::prefix("a"), sub(1));
        index.insert(&KeyRange::prefix("a"), sub(2));
        index.insert(&KeyRange::single("ab"), sub(3));
        assert_eq!(seen(&mut index, b"ab"), [1, 2, 3]);
        index.remove(&KeyRange::prefix("a"), 1, WatchId::new(1));
        index.remove(&KeyRange::single("ab"), 1, WatchId::new(3));
        assert_eq!(seen(&mut index, b"ab"), [2]);
    }
}
