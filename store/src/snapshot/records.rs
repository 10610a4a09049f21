//! What etcd keeps in which bucket, as of its storage version 3.5, which every etcd from 3.4 to 3.6 opens.
//!
//! | bucket | key | value |
//! |---|---|---|
//! | `key` | BE(main) `_` BE(sub); a deletion has a `t` behind it | `mvccpb.KeyValue` |
//! | `lease` | BE(id) | `leasepb.Lease` |
//! | `meta` | `consistent_index`, `term`, `confState`, `scheduledCompactRev`, … | see [`export`](super::export) |
//! | `members` | id, hexadecimal | JSON |
//! | `auth`, `authUsers`, `authRoles` | | see [`users`](super::users) |
//! | `alarm`, `cluster`, `members_removed` | | |
//! | `kontiki` | space byte, key | users and roles in files of older versions of ours; it is read, and not written any more |
//!
//! Source: etcd, `server/storage/schema`, `server/storage/mvcc/revision.go`.

use bytes::{BufMut as _, Bytes};
use kontiki_base::ids::Revision;
use kontiki_mvcc::keys::Stamp;
use prost::Message;

/// The storage version that files of ours have: what etcd must be at least in order to read them.
pub const STORAGE_VERSION: &str = "3.5.0";

/// Names of buckets.
pub mod bucket {
    /// Versions of keys, by revision.
    pub const KEY: &str = "key";
    /// Leases.
    pub const LEASE: &str = "lease";
    /// Single facts.
    pub const META: &str = "meta";
    /// Members of the cluster.
    pub const MEMBERS: &str = "members";
    /// Whether users count.
    pub const AUTH: &str = "auth";
    /// Roles.
    pub const AUTH_ROLES: &str = "authRoles";
    /// Users.
    pub const AUTH_USERS: &str = "authUsers";
    /// Records of ours, in files that we made before users had their place in etcd's buckets.
    pub const KONTIKI: &str = "kontiki";
}

/// Keys of the bucket `meta`.
pub mod meta {
    /// The last applied entry, 8 bytes.
    pub const CONSISTENT_INDEX: &str = "consistent_index";
    /// Its term, 8 bytes.
    pub const TERM: &str = "term";
    /// The voters, JSON.
    pub const CONF_STATE: &str = "confState";
    /// History before this revision is to be removed.
    pub const SCHEDULED_COMPACT: &str = "scheduledCompactRev";
    /// History before this revision was removed.
    pub const FINISHED_COMPACT: &str = "finishedCompactRev";
    /// The storage version, from 3.6 on.
    pub const STORAGE_VERSION: &str = "storageVersion";
}

const STAMP: usize = 17;
const TOMBSTONE: u8 = b't';

/// A lease: package `leasepb`.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct Lease {
    /// Its id.
    #[prost(int64, tag = "1")]
    pub id: i64,
    /// Seconds that it lives without being kept alive.
    #[prost(int64, tag = "2")]
    pub ttl: i64,
    /// Seconds left at the last checkpoint.
    #[prost(int64, tag = "3")]
    pub remaining: i64,
}

/// A change's place as a key of the bucket `key`.
pub fn stamp_key(at: Stamp, deleted: bool) -> Bytes {
    let mut out = Vec::with_capacity(STAMP + 1);
    out.put_i64(at.main.get());
    out.put_u8(b'_');
    out.put_i64(at.sub.into());
    if deleted {
        out.put_u8(TOMBSTONE);
    }
    out.into()
}

/// The place that a key of the bucket `key` names, and whether it is a deletion's; `None` if it is no such key.
pub fn parse_stamp(key: &[u8]) -> Option<(Stamp, bool)> {
    let (main, rest) = key.split_first_chunk::<8>()?;
    let (separator, rest) = rest.split_first()?;
    let (sub, rest) = rest.split_first_chunk::<8>()?;
    let deleted = match rest {
        [] => false,
        [TOMBSTONE] => true,
        _ => return None,
    };
    let (main, sub) = (i64::from_be_bytes(*main), u32::try_from(i64::from_be_bytes(*sub)).ok()?);
    (*separator == b'_' && main >= 0).then_some((Stamp { main: Revision::new(main), sub }, deleted))
}

/// The revision that a fact of the bucket `meta` holds.
pub fn parse_revision(value: &[u8]) -> Option<Revision> {
    parse_stamp(value).map(|(at, _)| at.main)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_as_etcd_writes_them() {
        let at = Stamp { main: Revision::new(0x0102), sub: 3 };
        assert_eq!(&stamp_key(at, false)[..], b"\0\0\0\0\0\0\x01\x02_\0\0\0\0\0\0\0\x03");
        for deleted in [false, true] {
            assert_eq!(parse_stamp(&stamp_key(at, deleted)), Some((at, deleted)));
        }
        for bad in [&b""[..], b"12345678_1234567", b"\0\0\0\0\0\0\x01\x02-\0\0\0\0\0\0\0\x03", b"\0\0\0\0\0\0\x01\x02_\0\0\0\0\0\0\0\x03x"]
        {
            assert_eq!(parse_stamp(bad), None);
        }
        assert_eq!(parse_stamp(b"\xff\0\0\0\0\0\x01\x02_\0\0\0\0\0\0\0\x03"), None, "negative");
    }
}
