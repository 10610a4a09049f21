//! Which keys a set of permissions covers: the union of their ranges. Ranges that touch count as one.

use bytes::{BufMut as _, Bytes, BytesMut};
use kontiki_base::KeyRange;
use kontiki_base::key::RangeEnd;

/// Keys from `start` on, before `end`; `None` is no end.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Span {
    start: Bytes,
    end: Option<Bytes>,
}

impl Span {
    fn of(range: &KeyRange) -> Self {
        let end = match &range.end {
            RangeEnd::Single => Some(successor(&range.start)),
            RangeEnd::Before(end) => Some(end.clone()),
            RangeEnd::Unbounded => None,
        };
        Self { start: range.start.clone(), end }
    }

    fn reaches_beyond(&self, key: &[u8]) -> bool {
        self.end.as_ref().is_none_or(|end| end.as_ref() > key)
    }
}

/// The first key after a key.
fn successor(key: &[u8]) -> Bytes {
    let mut next = BytesMut::with_capacity(key.len() + 1);
    next.put_slice(key);
    next.put_u8(0);
    next.freeze()
}

/// A union of ranges.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ranges {
    /// In order of their starts.
    spans: Vec<Span>,
}

impl<'a> FromIterator<&'a KeyRange> for Ranges {
    fn from_iter<I: IntoIterator<Item = &'a KeyRange>>(ranges: I) -> Self {
        let mut spans: Vec<Span> = ranges.into_iter().map(Span::of).collect();
        spans.sort_unstable();
        Self { spans }
    }
}

impl Ranges {
    /// Whether every key of `range` lies in one of the ranges. A range that ends before it begins holds no key, and is yet not for
    /// everybody: as in etcd, one of the ranges must enclose both of its bounds.
    pub fn covers(&self, range: &KeyRange) -> bool {
        if let RangeEnd::Before(end) = &range.end
            && range.is_empty()
        {
            return self.spans.iter().any(|span| span.start < *end && span.reaches_beyond(&range.start));
        }
        let Span { start, end } = Span::of(range);
        // Everything from `start` to here is covered.
        let mut reached = start;
        for span in &self.spans {
            if span.start > reached {
                return false;
            }
            match (&span.end, &end) {
                (None, _) => return true,
                (Some(here), Some(end)) if here >= end => return true,
                (Some(here), _) if *here > reached => reached = here.clone(),
                _ => {}
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn wire(key: &'static str, end: &'static str) -> KeyRange {
        KeyRange::from_wire(key.into(), end.into())
    }

    #[test]
    fn ranges_that_touch_are_one_and_a_gap_is_none() {
        let ranges = |all: &[(&'static str, &'static str)]| all.iter().map(|(k, e)| wire(k, e)).collect::<Vec<_>>();
        type Wire = (&'static str, &'static str);
        let table: &[(&[Wire], Wire, bool)] = &[
            (&[("a", "c"), ("c", "e")], ("a", "e"), true),
            (&[("a", "c"), ("c", "e")], ("b", "d"), true),
            (&[("a", "c"), ("d", "e")], ("a", "e"), false),
            (&[("a", "c"), ("b", "e")], ("a", "e"), true),
            (&[("a", "z"), ("b", "c")], ("a", "z"), true),
            (&[("a", "c")], ("a", "c\0"), false),
            (&[("a", ""), ("a\0", "b")], ("a", "b"), true),
            (&[("a", "c")], ("b", ""), true),
            (&[("a", "c")], ("c", ""), false),
            (&[("a", "c")], ("a", "\0"), false),
            (&[("a", "c"), ("c", "\0")], ("a", "\0"), true),
            (&[("\0", "\0")], ("\0", "\0"), true),
            (&[("b", "\0")], ("a", "\0"), false),
            (&[("a", "z")], ("m", "c"), true),
            (&[("a", "c"), ("c", "z")], ("m", "b"), false),
            (&[], ("a", ""), false),
        ];
        for (granted, asked, allowed) in table {
            let granted = ranges(granted);
            assert_eq!(granted.iter().collect::<Ranges>().covers(&wire(asked.0, asked.1)), *allowed, "{granted:?} {asked:?}");
        }
    }

    /// All keys of up to three of these bytes: a small world in which "every key" can be tried.
    const BYTES: [u8; 3] = [0, b'a', 0xff];

    fn world() -> Vec<Vec<u8>> {
        let mut keys = vec![vec![]];
        let mut from = 0;
        for _ in 0..4 {
            let to = keys.len();
            for at in from..to {
                keys.extend(BYTES.iter().map(|b| [&keys[at][..], &[*b]].concat()).collect::<Vec<_>>());
            }
            from = to;
        }
        keys.retain(|key| !key.is_empty());
        keys
    }

    fn keys() -> impl Strategy<Value = Vec<u8>> {
        vec(prop::sample::select(&BYTES[..]), 1..3)
    }

    fn a_range() -> impl Strategy<Value = KeyRange> {
        (keys(), keys(), 0..3).prop_map(|(start, end, kind)| KeyRange {
            start: start.into(),
            end: [RangeEnd::Single, RangeEnd::Before(end.into()), RangeEnd::Unbounded][usize::try_from(kind).unwrap()].clone(),
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

        /// Bounds have two bytes, keys up to four: between any two bounds that differ there are keys of the world.
        #[test]
        fn covered_is_what_has_every_key_in_some_range(granted in vec(a_range(), 0..6), asked in a_range()) {
            prop_assume!(!asked.is_empty());
            let naive = world().iter().filter(|key| asked.contains(key)).all(|key| granted.iter().any(|range| range.contains(key)));
            prop_assert_eq!(granted.iter().collect::<Ranges>().covers(&asked), naive, "{:?} {:?}", granted, asked);
        }
    }
}
