//! Permissions as etcd has them, on the wire and in its files.

use kontiki_mvcc::auth::{Access, Permission};
use kontiki_proto::etcd::authpb as pb;

const KINDS: [(Access, pb::permission::Type); 3] = [
    (Access::Read, pb::permission::Type::Read),
    (Access::Write, pb::permission::Type::Write),
    (Access::ReadWrite, pb::permission::Type::Readwrite),
];

/// What a number on the wire allows; `None` if it is not known.
pub(crate) fn access_of(perm_type: i32) -> Option<Access> {
    KINDS.iter().find(|(_, kind)| i32::from(*kind) == perm_type).map(|(access, _)| *access)
}

/// A permission for the wire.
pub(crate) fn permission_to(permission: &Permission) -> pb::Permission {
    let kind = KINDS.iter().find(|(access, _)| *access == permission.access).expect("the table has every kind").1;
    let (key, range_end) = permission.range.to_wire();
    pb::Permission { perm_type: kind.into(), key, range_end }
}
