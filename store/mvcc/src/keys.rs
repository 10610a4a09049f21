//! How records are laid out in each [`Space`]: the bytes on disk. Any change here is a change of the disk format.
//!
//! | space | key | value |
//! |---|---|---|
//! | `Kv` | escaped user key, `00 01`, BE(!main), BE(!sub) | kind, create, version, lease, value; a tombstone is its kind alone |
//! | `Rev` | BE(main), BE(sub) | kind, user key |
//! | `Meta` | user key | create, mod main, mod sub, version, lease |
//! | `Lease` | `01`, id | granted seconds to live |
//! | `Lease` | `02`, id, user key | nothing: the key is attached to the lease |
//! | `Member` | `01`, id | nothing: a member of this id was removed |
//! | `Sys` | name | see the constants |
//!
//! In the escaped form of a key a zero byte is `00 FF`. With the terminator `00 01` no encoded key is a prefix of another, and
//! the order of keys is kept. The complements put the newest version of a key first, so that "as of revision R" is one seek.
//! `main` is the revision (8 bytes), `sub` counts the changes within it (4 bytes).

use std::ops::Bound;

use bytes::{BufMut, Bytes};
use kontiki_base::ids::{LeaseId, MemberId, Revision};
use kontiki_base::key::{KeyRange, RangeEnd};

use crate::view::{Space, ViewError};

/// `Sys`: the store's revision, 8 bytes. Absent in an empty store.
pub const SYS_REVISION: &[u8] = b"revision";
/// `Sys`: history is kept from this revision on, 8 bytes. Absent before the first compaction.
pub const SYS_COMPACT: &[u8] = b"compact";
/// `Sys`: where physical removal goes on: a [`Stamp`], and the compact revision that it works for. Members may differ.
pub const SYS_SWEEP: &[u8] = b"sweep";

/// Bytes of a revision; a [`Stamp`] begins with them.
pub const REVISION_LEN: usize = 8;
/// Bytes of an encoded [`Stamp`].
pub const STAMP_LEN: usize = REVISION_LEN + 4;
/// Bytes of the `Meta` record.
pub const META_LEN: usize = 36;
/// Bytes before the value in a `Kv` record.
pub const VERSION_HEAD: usize = 25;

const KIND_PUT: u8 = 1;
const KIND_TOMBSTONE: u8 = 2;
const LEASE_TAG: u8 = 1;
const REMOVED_TAG: u8 = 1;
const ATTACH_TAG: u8 = 2;

/// The key in `Member` of a member that was removed.
pub fn removed_key(id: MemberId) -> [u8; 9] {
    let mut out = [REMOVED_TAG; 9];
    out[1..].copy_from_slice(&id.get().to_be_bytes());
    out
}

/// The place of a change in history: revision, and order within it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stamp {
    /// The revision.
    pub main: Revision,
    /// The order among the changes of the revision, from 0.
    pub sub: u32,
}

impl Stamp {
    /// The first change of a revision.
    pub const fn first(main: Revision) -> Self {
        Self { main, sub: 0 }
    }

    /// The key in `Rev`.
    pub fn encode(self) -> [u8; STAMP_LEN] {
        let mut out = [0; STAMP_LEN];
        out[..REVISION_LEN].copy_from_slice(&self.main.get().to_be_bytes());
        out[REVISION_LEN..].copy_from_slice(&self.sub.to_be_bytes());
        out
    }

    /// From the key in `Rev`.
    pub fn decode(space: Space, bytes: &[u8]) -> Result<Self, ViewError> {
        let (main, sub) = bytes.split_at_checked(REVISION_LEN).ok_or_else(|| bad(space, "stamp"))?;
        Ok(Self { main: Revision(int(space, main)?), sub: u32::from_be_bytes(sub.try_into().map_err(|_| bad(space, "stamp"))?) })
    }

    fn put_complement(self, out: &mut Vec<u8>) {
        out.put_i64(!self.main.get());
        out.put_u32(!self.sub);
    }
}

/// The present life of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meta {
    /// Revision at which this life began.
    pub create: Revision,
    /// The last write.
    pub at: Stamp,
    /// Number of writes in this life.
    pub version: i64,
    /// The lease it is attached to, or zero.
    pub lease: LeaseId,
}

impl Meta {
    /// Appends the record's bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_i64(self.create.get());
        out.put_slice(&self.at.encode());
        out.put_i64(self.version);
        out.put_i64(self.lease.get());
    }

    /// Reads the record.
    pub fn decode(bytes: &[u8]) -> Result<Self, ViewError> {
        let s = Space::Meta;
        if bytes.len() != META_LEN {
            return Err(bad(s, "record length"));
        }
        Ok(Self {
            create: Revision(int(s, &bytes[..8])?),
            at: Stamp::decode(s, &bytes[8..20])?,
            version: int(s, &bytes[20..28])?,
            lease: LeaseId(int(s, &bytes[28..])?),
        })
    }
}

/// A record of `Kv`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Version {
    /// The key was written.
    Put {
        /// Revision at which this life began.
        create: Revision,
        /// Number of writes in this life.
        version: i64,
        /// The lease, or zero.
        lease: LeaseId,
        /// The value.
        value: Bytes,
    },
    /// The key was deleted.
    Tombstone,
}

impl Version {
    /// Reads the record; the value shares its memory.
    pub fn decode(bytes: &Bytes) -> Result<Self, ViewError> {
        let s = Space::Kv;
        match bytes.first() {
            Some(&KIND_TOMBSTONE) if bytes.len() == 1 => Ok(Self::Tombstone),
            Some(&KIND_PUT) if bytes.len() >= VERSION_HEAD => Ok(Self::Put {
                create: Revision(int(s, &bytes[1..9])?),
                version: int(s, &bytes[9..17])?,
                lease: LeaseId(int(s, &bytes[17..25])?),
                value: bytes.slice(VERSION_HEAD..),
            }),
            _ => Err(bad(s, "record kind or length")),
        }
    }

    /// Whether a record is a tombstone, without reading the rest of it.
    pub fn is_tombstone(bytes: &[u8]) -> bool {
        bytes.first() == Some(&KIND_TOMBSTONE)
    }
}

/// The three records of a write, cut from one allocation.
pub struct PutRecords {
    /// Key in `Kv`.
    pub kv_key: Bytes,
    /// Record in `Kv`.
    pub kv: Bytes,
    /// Key in `Rev`.
    pub rev_key: Bytes,
    /// Record in `Rev`.
    pub rev: Bytes,
    /// Record in `Meta`.
    pub meta: Bytes,
}

/// Encodes a write of `key`.
pub fn put_records(key: &[u8], meta: &Meta, value: &[u8]) -> PutRecords {
    let kv_key_len = version_key_len(key);
    let mut out = Vec::with_capacity(kv_key_len + VERSION_HEAD + value.len() + STAMP_LEN + 1 + key.len() + META_LEN);
    put_version_key(key, meta.at, &mut out);
    out.put_u8(KIND_PUT);
    out.put_i64(meta.create.get());
    out.put_i64(meta.version);
    out.put_i64(meta.lease.get());
    out.put_slice(value);
    let kv_end = out.len();
    out.put_slice(&meta.at.encode());
    let rev_key_end = out.len();
    out.put_u8(KIND_PUT);
    out.put_slice(key);
    let rev_end = out.len();
    meta.encode(&mut out);
    let all = Bytes::from(out);
    PutRecords {
        kv_key: all.slice(..kv_key_len),
        kv: all.slice(kv_key_len..kv_end),
        rev_key: all.slice(kv_end..rev_key_end),
        rev: all.slice(rev_key_end..rev_end),
        meta: all.slice(rev_end..),
    }
}

/// The records of a deletion.
pub struct TombstoneRecords {
    /// Key in `Kv`.
    pub kv_key: Bytes,
    /// Record in `Kv`.
    pub kv: Bytes,
    /// Key in `Rev`.
    pub rev_key: Bytes,
    /// Record in `Rev`.
    pub rev: Bytes,
}

/// Encodes a deletion of `key`.
pub fn tombstone_records(key: &[u8], at: Stamp) -> TombstoneRecords {
    let kv_key_len = version_key_len(key);
    let mut out = Vec::with_capacity(kv_key_len + STAMP_LEN + 1 + key.len());
    put_version_key(key, at, &mut out);
    out.put_slice(&at.encode());
    let rev_key_end = out.len();
    out.put_u8(KIND_TOMBSTONE);
    out.put_slice(key);
    let all = Bytes::from(out);
    TombstoneRecords {
        kv_key: all.slice(..kv_key_len),
        kv: Bytes::from_static(&[KIND_TOMBSTONE]),
        rev_key: all.slice(kv_key_len..rev_key_end),
        rev: all.slice(rev_key_end..),
    }
}

/// A record of `Rev`: whether the change was a deletion, and of which key.
pub fn decode_rev(bytes: &Bytes) -> Result<(bool, Bytes), ViewError> {
    match bytes.first() {
        Some(&KIND_PUT) => Ok((false, bytes.slice(1..))),
        Some(&KIND_TOMBSTONE) => Ok((true, bytes.slice(1..))),
        _ => Err(bad(Space::Rev, "record kind")),
    }
}

/// The key in `Kv` of one version of a key.
pub fn version_key(key: &[u8], at: Stamp) -> Vec<u8> {
    let mut out = Vec::with_capacity(version_key_len(key));
    put_version_key(key, at, &mut out);
    out
}

/// What every version of a key begins with in `Kv`, and of no other key.
pub fn versions_prefix(key: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(version_key_len(key));
    escape(key, &mut out);
    out.put_slice(&[0, 1]);
    out
}

/// The place in `Kv` of the newest version, not after `at`, of the key with this [`versions_prefix`].
pub fn newest_at(prefix: &[u8], at: Revision) -> Vec<u8> {
    let mut out = Vec::with_capacity(prefix.len() + STAMP_LEN);
    out.put_slice(prefix);
    Stamp { main: at, sub: u32::MAX }.put_complement(&mut out);
    out
}

/// The first place in `Kv` after all versions of the key with this [`versions_prefix`].
pub fn after_versions(mut prefix: Vec<u8>) -> Vec<u8> {
    let last = prefix.last_mut().expect("a prefix ends with its terminator");
    *last += 1;
    prefix
}

/// Splits a key of `Kv` into the [`versions_prefix`] and the stamp.
pub fn split_version_key(bytes: &[u8]) -> Result<(&[u8], Stamp), ViewError> {
    let at = bytes.len().checked_sub(STAMP_LEN).ok_or_else(|| bad(Space::Kv, "key length"))?;
    let (prefix, stamp) = bytes.split_at(at);
    if !prefix.ends_with(&[0, 1]) {
        return Err(bad(Space::Kv, "key terminator"));
    }
    let stamp = Stamp::decode(Space::Kv, stamp)?;
    Ok((prefix, Stamp { main: Revision(!stamp.main.get()), sub: !stamp.sub }))
}

/// The user key in a key of `Kv`; shares its memory unless a zero byte had to be escaped.
pub fn user_key(bytes: &Bytes) -> Result<Bytes, ViewError> {
    let end = split_version_key(bytes)?.0.len() - 2;
    let escaped = &bytes[..end];
    if !escaped.contains(&0) {
        return Ok(bytes.slice(..end));
    }
    let mut out = Vec::with_capacity(end);
    let mut rest = escaped.iter();
    while let Some(byte) = rest.next() {
        if *byte == 0 && rest.next() != Some(&0xff) {
            return Err(bad(Space::Kv, "key escape"));
        }
        out.push(*byte);
    }
    Ok(out.into())
}

/// Bounds in a space.
pub type Bounds = (Bound<Vec<u8>>, Bound<Vec<u8>>);

/// Where the versions of a range's keys stand in `Kv`.
pub fn kv_bounds(range: &KeyRange) -> Bounds {
    let from = versions_prefix(&range.start);
    let to = match &range.end {
        RangeEnd::Single => Bound::Excluded(after_versions(from.clone())),
        RangeEnd::Before(end) => Bound::Excluded(versions_prefix(end)),
        RangeEnd::Unbounded => Bound::Unbounded,
    };
    (Bound::Included(from), to)
}

/// Where a range's keys stand in `Meta`.
pub fn meta_bounds(range: &KeyRange) -> (Bound<&[u8]>, Bound<&[u8]>) {
    let to = match &range.end {
        RangeEnd::Single => Bound::Included(range.start.as_ref()),
        RangeEnd::Before(end) => Bound::Excluded(end.as_ref()),
        RangeEnd::Unbounded => Bound::Unbounded,
    };
    (Bound::Included(range.start.as_ref()), to)
}

/// The key in `Lease` of a lease.
pub fn lease_key(id: LeaseId) -> [u8; 9] {
    let mut out = [LEASE_TAG; 9];
    out[1..].copy_from_slice(&ordered(id).to_be_bytes());
    out
}

/// The lease of a key in `Lease` that [`lease_key`] made.
pub fn decode_lease_key(bytes: &[u8]) -> Result<LeaseId, ViewError> {
    match bytes.split_first() {
        Some((&LEASE_TAG, id)) => Ok(LeaseId(int(Space::Lease, id)? ^ i64::MIN)),
        _ => Err(bad(Space::Lease, "key tag")),
    }
}

/// Bounds of all leases in `Lease`.
pub const LEASES: (Bound<&[u8]>, Bound<&[u8]>) = (Bound::Included(&[LEASE_TAG]), Bound::Excluded(&[ATTACH_TAG]));

/// Bounds of all attachments in `Lease`.
pub const ATTACHMENTS: (Bound<&[u8]>, Bound<&[u8]>) = (Bound::Included(&[ATTACH_TAG]), Bound::Excluded(&[ATTACH_TAG + 1]));

/// Bytes before the user key in an attachment's key.
pub const ATTACH_HEAD: usize = 9;

/// The key in `Lease` that says that `key` is attached to a lease. With an empty `key`: the place before all attachments.
pub fn attach_key(id: LeaseId, key: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(ATTACH_HEAD + key.len());
    out.put_u8(ATTACH_TAG);
    out.put_u64(ordered(id));
    out.put_slice(key);
    out
}

/// The lease of a key in `Lease` that [`attach_key`] made.
pub fn decode_attach_key(bytes: &[u8]) -> Result<LeaseId, ViewError> {
    match bytes.split_first() {
        Some((&ATTACH_TAG, rest)) if rest.len() >= ATTACH_HEAD - 1 => Ok(LeaseId(int(Space::Lease, &rest[..ATTACH_HEAD - 1])? ^ i64::MIN)),
        _ => Err(bad(Space::Lease, "attachment")),
    }
}

/// Bounds of the keys attached to a lease.
pub fn attach_bounds(id: LeaseId) -> Bounds {
    let to = match ordered(id).checked_add(1) {
        Some(next) => {
            let mut out = vec![ATTACH_TAG];
            out.put_u64(next);
            Bound::Excluded(out)
        }
        None => Bound::Excluded(vec![ATTACH_TAG + 1]),
    };
    (Bound::Included(attach_key(id, &[])), to)
}

/// An 8-byte number in a record.
pub fn int(space: Space, bytes: &[u8]) -> Result<i64, ViewError> {
    bytes.try_into().map(i64::from_be_bytes).map_err(|_| bad(space, "number"))
}

/// A record that this code cannot have written.
pub fn bad(space: Space, what: &str) -> ViewError {
    ViewError { space, why: format!("malformed {what}") }
}

/// Signed order as unsigned order.
fn ordered(id: LeaseId) -> u64 {
    (id.get() ^ i64::MIN).cast_unsigned()
}

fn version_key_len(key: &[u8]) -> usize {
    key.len() + key.iter().filter(|b| **b == 0).count() + 2 + STAMP_LEN
}

fn put_version_key(key: &[u8], at: Stamp, out: &mut Vec<u8>) {
    escape(key, out);
    out.put_slice(&[0, 1]);
    at.put_complement(out);
}

fn escape(key: &[u8], out: &mut Vec<u8>) {
    let mut rest = key;
    while let Some(zero) = rest.iter().position(|b| *b == 0) {
        out.put_slice(&rest[..=zero]);
        out.put_u8(0xff);
        rest = &rest[zero + 1..];
    }
    out.put_slice(rest);
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// Keys of few different bytes, so that prefixes and zeros are common.
    fn keys() -> impl Strategy<Value = Vec<u8>> {
        vec(prop_oneof![Just(0), Just(1), Just(b'a'), Just(0xfe), Just(0xff)], 0..6)
    }

    fn stamps() -> impl Strategy<Value = Stamp> {
        (0..4_i64, 0..3_u32).prop_map(|(main, sub)| Stamp { main: Revision([1, 2, 300, i64::MAX][main as usize]), sub })
    }

    proptest! {
        #[test]
        fn versions_stand_by_key_and_newest_first(a in keys(), b in keys(), s in stamps(), t in stamps()) {
            let order = a.cmp(&b).then(t.cmp(&s));
            prop_assert_eq!(version_key(&a, s).cmp(&version_key(&b, t)), order);
            prop_assert_eq!(s.encode().cmp(&t.encode()), s.cmp(&t));
        }

        #[test]
        fn version_keys_come_back(key in keys(), at in stamps()) {
            let bytes = Bytes::from(version_key(&key, at));
            prop_assert_eq!(bytes.len(), version_key_len(&key));
            let (prefix, stamp) = split_version_key(&bytes).unwrap();
            prop_assert_eq!((prefix, stamp), (&versions_prefix(&key)[..], at));
            prop_assert_eq!(user_key(&bytes).unwrap(), key);
        }

        #[test]
        fn bounds_enclose_exactly_the_versions_of_the_range(start in keys(), end in keys(), key in keys(), at in stamps(), kind in 0..3) {
            let end = match kind {
                0 => RangeEnd::Single,
                1 => RangeEnd::Before(end.into()),
                _ => RangeEnd::Unbounded,
            };
            let range = KeyRange { start: start.into(), end };
            let (from, to) = kv_bounds(&range);
            let within = std::ops::RangeBounds::contains(&(from, to), &version_key(&key, at));
            prop_assert_eq!(within, range.contains(&key));
        }

        #[test]
        fn records_come_back(key in keys(), value in keys(), at in stamps(), create in any::<i64>(), version in any::<i64>(), lease in any::<i64>()) {
            let meta = Meta { create: Revision(create), at, version, lease: LeaseId(lease) };
            let records = put_records(&key, &meta, &value);
            prop_assert_eq!(Meta::decode(&records.meta).unwrap(), meta);
            prop_assert_eq!(&records.kv_key, &version_key(&key, at));
            let expected = Version::Put { create: meta.create, version, lease: meta.lease, value: value.into() };
            prop_assert_eq!(Version::decode(&records.kv).unwrap(), expected);
            prop_assert!(!Version::is_tombstone(&records.kv));
            prop_assert_eq!(Stamp::decode(Space::Rev, &records.rev_key).unwrap(), at);
            prop_assert_eq!(decode_rev(&records.rev).unwrap(), (false, Bytes::from(key.clone())));
            let records = tombstone_records(&key, at);
            prop_assert_eq!(&records.kv_key, &version_key(&key, at));
            prop_assert_eq!(Version::decode(&records.kv).unwrap(), Version::Tombstone);
            prop_assert_eq!(decode_rev(&records.rev).unwrap(), (true, Bytes::from(key)));
        }

        #[test]
        fn lease_keys_keep_the_order_of_ids(a in any::<i64>(), b in any::<i64>(), key in keys()) {
            let (a, b) = (LeaseId(a), LeaseId(b));
            prop_assert_eq!(lease_key(a).cmp(&lease_key(b)), a.cmp(&b));
            prop_assert_eq!(decode_lease_key(&lease_key(a)).unwrap(), a);
            let within = std::ops::RangeBounds::contains(&attach_bounds(a), &attach_key(b, &key));
            prop_assert_eq!(within, a == b);
        }

        #[test]
        fn malformed_records_are_errors(bytes in vec(any::<u8>(), 0..40)) {
            let bytes = Bytes::from(bytes);
            let _ = (Version::decode(&bytes), user_key(&bytes), decode_rev(&bytes), decode_lease_key(&bytes));
            prop_assert!(Meta::decode(&bytes).is_err() || bytes.len() == META_LEN);
            prop_assert!(Stamp::decode(Space::Rev, &bytes).is_err() || bytes.len() == STAMP_LEN);
        }
    }

    /// These bytes are on disks: this test may get new lines, but none of its lines may change.
    #[test]
    fn the_format_is_what_it_was() {
        let at = Stamp { main: Revision(0x0102), sub: 3 };
        let meta = Meta { create: Revision(7), at, version: 9, lease: LeaseId(-2) };
        let put = put_records(b"k\0", &meta, b"v");
        let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        assert_eq!(hex(&put.kv_key), "6b00ff0001fffffffffffffefdfffffffc");
        assert_eq!(hex(&put.kv), "0100000000000000070000000000000009fffffffffffffffe76");
        assert_eq!(hex(&put.rev_key), "000000000000010200000003");
        assert_eq!(hex(&put.rev), "016b00");
        assert_eq!(hex(&put.meta), "00000000000000070000000000000102000000030000000000000009fffffffffffffffe");
        let tombstone = tombstone_records(b"k", at);
        assert_eq!((hex(&tombstone.kv), hex(&tombstone.rev)), ("02".to_owned(), "026b".to_owned()));
        assert_eq!(hex(&lease_key(LeaseId(1))), "018000000000000001");
        assert_eq!(hex(&attach_key(LeaseId(-1), b"k")), "027fffffffffffffff6b");
    }
}
