//! Users and roles in a snapshot file: the buckets `auth`, `authUsers` and `authRoles`, as etcd has had them since 3.0.
//!
//! | bucket | key | value |
//! |---|---|---|
//! | `auth` | `authEnabled` | one byte |
//! | `auth` | `authRevision` | 8 bytes |
//! | `authUsers` | name | `authpb.User`, with the bcrypt hash of the password |
//! | `authRoles` | name | `authpb.Role`, permissions by key |
//!
//! Source: etcd, `server/storage/schema/auth.go`, `auth_users.go`, `auth_roles.go`. Both use bcrypt, so passwords go on working.

use std::io::Write;

use bytes::Bytes;
use kontiki_base::key::KeyRange;
use kontiki_mvcc::auth::{self, Facts, Permission, Role, User};
use kontiki_mvcc::{View, ViewError};
use kontiki_proto::etcd::authpb as pb;
use prost::Message as _;

use super::SnapshotError;
use super::bbolt::{Bucket, Db, Tree, Writer};
use super::records::bucket;
use crate::auth::{access_of, permission_to};

const ENABLED: &str = "authEnabled";
const REVISION: &str = "authRevision";

/// The auth revision of a store where nothing was ever changed.
const FIRST: u64 = 1;

/// Users, roles, and whether they count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Users {
    pub(super) facts: Facts,
    pub(super) users: Vec<(String, User)>,
    pub(super) roles: Vec<(String, Role)>,
}

impl Users {
    /// Those of a state.
    pub(super) fn of(view: &dyn View) -> Result<Self, ViewError> {
        Ok(Self { facts: auth::facts(view)?, users: auth::users(view)?, roles: auth::roles(view)? })
    }

    /// Writes the buckets up to, and with, `authUsers`. They are to be in the order of their names.
    pub(super) fn write<W: Write>(&self, to: &mut Writer<W>) -> Result<(), SnapshotError> {
        let touched = self.facts != Facts { enabled: false, revision: FIRST };
        to.bucket(bucket::AUTH.as_bytes(), |tree: &mut Tree<'_, W>| {
            if touched {
                tree.put(ENABLED, vec![u8::from(self.facts.enabled)])?;
                tree.put(REVISION, self.facts.revision.to_be_bytes().to_vec())?;
            }
            Ok::<_, SnapshotError>(())
        })?;
        to.bucket(bucket::AUTH_ROLES.as_bytes(), |tree: &mut Tree<'_, W>| {
            self.roles
                .iter()
                .try_for_each(|(name, role)| Ok::<_, SnapshotError>(tree.put(name.clone(), role_to(name, role).encode_to_vec())?))
        })?;
        to.bucket(bucket::AUTH_USERS.as_bytes(), |tree: &mut Tree<'_, W>| {
            self.users
                .iter()
                .try_for_each(|(name, user)| Ok::<_, SnapshotError>(tree.put(name.clone(), user_to(name, user).encode_to_vec())?))
        })
    }

    /// Those of a file; `None` if it has none, and never had.
    pub(super) fn read(db: &Db, buckets: &[Bucket]) -> Result<Option<Self>, SnapshotError> {
        let mut facts = Facts { enabled: false, revision: FIRST };
        for_each(db, buckets, bucket::AUTH, |key, value| {
            match (&key[..], &value[..]) {
                (key, [flag]) if key == ENABLED.as_bytes() => facts.enabled = *flag != 0,
                (key, revision) if key == REVISION.as_bytes() => {
                    let revision = revision.try_into().map_err(|_| bad(bucket::AUTH, "the revision has not 8 bytes"))?;
                    facts.revision = u64::from_be_bytes(revision);
                }
                _ => return Err(bad(bucket::AUTH, format!("{key:?} is not known"))),
            }
            Ok(())
        })?;
        let mut users = Vec::new();
        for_each(db, buckets, bucket::AUTH_USERS, |key, value| {
            let user = pb::User::decode(value).map_err(|e| bad(bucket::AUTH_USERS, e.to_string()))?;
            users.push((name_of(bucket::AUTH_USERS, &key)?, user_from(user)));
            Ok(())
        })?;
        let mut roles = Vec::new();
        for_each(db, buckets, bucket::AUTH_ROLES, |key, value| {
            let role = pb::Role::decode(value).map_err(|e| bad(bucket::AUTH_ROLES, e.to_string()))?;
            roles.push((name_of(bucket::AUTH_ROLES, &key)?, role_from(role)?));
            Ok(())
        })?;
        let some = facts.enabled || facts.revision != FIRST || !users.is_empty() || !roles.is_empty();
        Ok(some.then_some(Self { facts, users, roles }))
    }

    /// The records of the state.
    pub(super) fn records(&self) -> Vec<(Bytes, Bytes)> {
        auth::records(self.facts, &self.users, &self.roles)
    }
}

fn bad(bucket: &'static str, why: impl Into<String>) -> SnapshotError {
    SnapshotError::Record { bucket, why: why.into() }
}

fn for_each(
    db: &Db,
    buckets: &[Bucket],
    name: &str,
    mut each: impl FnMut(Bytes, Bytes) -> Result<(), SnapshotError>,
) -> Result<(), SnapshotError> {
    let Some(bucket) = buckets.iter().find(|bucket| bucket.name == name) else { return Ok(()) };
    let mut cursor = db.cursor(bucket)?;
    while let Some((key, value)) = cursor.next()? {
        each(key, value)?;
    }
    Ok(())
}

fn name_of(bucket: &'static str, key: &[u8]) -> Result<String, SnapshotError> {
    String::from_utf8(key.to_vec()).map_err(|_| bad(bucket, format!("{key:?} is no name in UTF-8")))
}

fn user_to(name: &str, user: &User) -> pb::User {
    pb::User {
        name: Bytes::copy_from_slice(name.as_bytes()),
        password: user.hash.clone().unwrap_or_default(),
        roles: user.roles.clone(),
        // As etcd has it: without options for a user with a password.
        options: user.hash.is_none().then_some(pb::UserAddOptions { no_password: true }),
    }
}

fn user_from(user: pb::User) -> User {
    let mut roles = user.roles;
    roles.sort_unstable();
    roles.dedup();
    let without = user.options.is_some_and(|options| options.no_password);
    User { hash: (!without).then_some(user.password), roles }
}

fn role_to(name: &str, role: &Role) -> pb::Role {
    pb::Role { name: Bytes::copy_from_slice(name.as_bytes()), key_permission: role.permissions.iter().map(permission_to).collect() }
}

fn role_from(role: pb::Role) -> Result<Role, SnapshotError> {
    let permission = |permission: pb::Permission| {
        let access = access_of(permission.perm_type);
        let access = access.ok_or_else(|| bad(bucket::AUTH_ROLES, format!("{} is no kind of permission", permission.perm_type)))?;
        Ok(Permission { access, range: KeyRange::from_wire(permission.key, permission.range_end) })
    };
    let mut permissions = role.key_permission.into_iter().map(permission).collect::<Result<Vec<_>, SnapshotError>>()?;
    permissions.sort_by_key(|permission| permission.range.to_wire());
    Ok(Role { permissions })
}

#[cfg(test)]
mod tests {
    use kontiki_mvcc::auth::Access;

    use super::*;

    #[test]
    fn users_and_roles_survive_etcds_encoding() {
        let users = [User { hash: Some("$2a$04$x".into()), roles: vec!["a".into(), "b".into()] }, User { hash: None, roles: Vec::new() }];
        for user in users {
            assert_eq!(user_from(user_to("n", &user)), user);
        }
        let range = |key: &'static str, end: &'static [u8]| KeyRange::from_wire(key.into(), Bytes::from_static(end));
        let permissions = [(Access::Read, range("a", b"")), (Access::Write, range("b", b"c")), (Access::ReadWrite, range("d", b"\0"))];
        let role = Role { permissions: permissions.into_iter().map(|(access, range)| Permission { access, range }).collect() };
        let wire = role_to("r", &role);
        assert_eq!(role_from(wire.clone()).unwrap(), role);
        let mut unknown = wire;
        unknown.key_permission[0].perm_type = 9;
        assert!(role_from(unknown).is_err());
    }
}
