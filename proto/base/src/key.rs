//! Byte keys and ranges of them, with etcd's rules for `range_end`.

use bytes::Bytes;

/// Where a range of keys ends.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum RangeEnd {
    /// The range is its start key alone (etcd: an empty `range_end`).
    Single,
    /// Exclusive end.
    Before(Bytes),
    /// All keys from the start (etcd: `range_end` is the one byte 0).
    Unbounded,
}

/// A range of keys. May be empty (an end at or before the start selects nothing).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KeyRange {
    /// The first key of the range.
    pub start: Bytes,
    /// Where it ends.
    pub end: RangeEnd,
}

impl KeyRange {
    /// Exactly one key.
    pub fn single(key: impl Into<Bytes>) -> Self {
        Self { start: key.into(), end: RangeEnd::Single }
    }

    /// Every key that starts with `prefix`; the empty prefix is every key.
    pub fn prefix(prefix: impl Into<Bytes>) -> Self {
        let start: Bytes = prefix.into();
        let end = prefix_end(&start).map_or(RangeEnd::Unbounded, RangeEnd::Before);
        let start = if start.is_empty() { Bytes::from_static(&[0]) } else { start };
        Self { start, end }
    }

    /// From etcd's wire form: an empty end is one key, the byte 0 is "to the end".
    pub fn from_wire(key: Bytes, range_end: Bytes) -> Self {
        let end = match range_end.as_ref() {
            [] => RangeEnd::Single,
            [0] => RangeEnd::Unbounded,
            _ => RangeEnd::Before(range_end),
        };
        Self { start: key, end }
    }

    /// To etcd's wire form: `(key, range_end)`.
    pub fn to_wire(&self) -> (Bytes, Bytes) {
        let end = match &self.end {
            RangeEnd::Single => Bytes::new(),
            RangeEnd::Before(end) => end.clone(),
            RangeEnd::Unbounded => Bytes::from_static(&[0]),
        };
        (self.start.clone(), end)
    }

    /// Whether `key` lies in the range.
    pub fn contains(&self, key: &[u8]) -> bool {
        match &self.end {
            RangeEnd::Single => key == self.start,
            RangeEnd::Before(end) => key >= self.start.as_ref() && key < end.as_ref(),
            RangeEnd::Unbounded => key >= self.start.as_ref(),
        }
    }

    /// Whether the range is one key.
    pub fn is_single(&self) -> bool {
        matches!(self.end, RangeEnd::Single)
    }

    /// Whether no key can lie in the range.
    pub fn is_empty(&self) -> bool {
        matches!(&self.end, RangeEnd::Before(end) if *end <= self.start)
    }
}

/// The first key after every key with this prefix; `None` when there is none (empty, or all bytes 0xff).
pub fn prefix_end(prefix: &[u8]) -> Option<Bytes> {
    let last = prefix.iter().rposition(|b| *b != 0xff)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefix_end_drops_trailing_ff() {
        let table: &[(&[u8], Option<&[u8]>)] =
            &[(b"a", Some(b"b")), (b"a\xff", Some(b"b")), (b"\xff\xff", None), (b"", None), (b"/registry/", Some(b"/registry0"))];
        for (prefix, end) in table {
            assert_eq!(prefix_end(prefix).as_deref(), *end, "{prefix:?}");
        }
    }

    #[test]
    fn wire_form_round_trips() {
        for (key, end) in [("k", ""), ("k", "z"), ("k", "\0"), ("\0", "\0"), ("k", "a")] {
            let range = KeyRange::from_wire(key.into(), end.into());
            assert_eq!(range.to_wire(), (Bytes::from(key), Bytes::from(end)));
        }
    }

    #[test]
    fn contains_follows_the_contract() {
        let wire = |k: &'static str, e: &'static str| KeyRange::from_wire(k.into(), e.into());
        assert!(wire("k", "").contains(b"k") && !wire("k", "").contains(b"kk"));
        assert!(wire("k", "m").contains(b"l") && !wire("k", "m").contains(b"m"));
        assert!(wire("k", "\0").contains(b"zzz") && !wire("k", "\0").contains(b"a"));
        assert!(wire("k", "a").is_empty() && !wire("k", "a").contains(b"k"));
        assert!(KeyRange::prefix("").contains(b"\x00"));
    }
}
