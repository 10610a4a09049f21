//! Users and roles as records of [`Space::Auth`], and reading them. The layout is part of the disk format:
//!
//! | key | value |
//! |---|---|
//! | `00` | whether auth is enabled (one byte), its revision (8 bytes) |
//! | `01`, name | a [`User`]: whether there is a password (one byte), its hash, the roles |
//! | `02`, name | a [`Role`]: its permissions |
//!
//! Strings have their length before them, 4 bytes.

use std::ops::Bound;

use bytes::{BufMut as _, Bytes};
use kontiki_base::KeyRange;

use super::{Access, Permission, ROOT};
use crate::keys::{self, bad};
use crate::view::{Space, View, ViewError};

const FACTS_TAG: u8 = 0;
const USER_TAG: u8 = 1;
const ROLE_TAG: u8 = 2;

/// The auth revision of a store where nothing was ever changed.
const FIRST: u64 = 1;

/// Whether auth is enabled, and how often anything about it has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Whether people must say who they are.
    pub enabled: bool,
    /// One more with every change; 1 at first.
    pub revision: u64,
}

/// A user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// The bcrypt hash of the password; `None` for a user who cannot use one.
    pub hash: Option<Bytes>,
    /// The roles, in order.
    pub roles: Vec<String>,
}

impl User {
    /// Whether the user may do anything.
    pub fn is_admin(&self) -> bool {
        self.roles.iter().any(|role| role == ROOT)
    }

    fn encode(&self) -> Bytes {
        let mut out = Vec::new();
        out.put_u8(self.hash.is_some().into());
        put_text(&mut out, self.hash.as_deref().unwrap_or_default());
        self.roles.iter().for_each(|role| put_text(&mut out, role.as_bytes()));
        out.into()
    }

    fn decode(bytes: Bytes) -> Result<Self, ViewError> {
        let mut input = Input(bytes);
        let has_password = input.flag()?;
        let hash = input.text()?;
        let mut roles = Vec::new();
        while !input.0.is_empty() {
            roles.push(input.name()?);
        }
        Ok(Self { hash: has_password.then_some(hash), roles })
    }
}

/// A role: permissions in order of their keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Role {
    /// What it allows.
    pub permissions: Vec<Permission>,
}

impl Role {
    fn encode(&self) -> Bytes {
        let mut out = Vec::new();
        for Permission { access, range } in &self.permissions {
            let place = Access::ALL.iter().position(|one| one == access).expect("the list has every variant");
            out.put_u8(u8::try_from(place).expect("the list is short"));
            let (key, end) = range.to_wire();
            put_text(&mut out, &key);
            put_text(&mut out, &end);
        }
        out.into()
    }

    fn decode(bytes: Bytes) -> Result<Self, ViewError> {
        let mut input = Input(bytes);
        let mut permissions = Vec::new();
        while !input.0.is_empty() {
            let access = *Access::ALL.get(usize::from(input.byte()?)).ok_or_else(malformed)?;
            let (key, end) = (input.text()?, input.text()?);
            permissions.push(Permission { access, range: KeyRange::from_wire(key, end) });
        }
        Ok(Self { permissions })
    }

    /// The permission for exactly these keys.
    pub(super) fn position(&self, range: &KeyRange) -> Option<usize> {
        self.permissions.iter().position(|permission| permission.range == *range)
    }

    /// Sets what is allowed on exactly these keys.
    pub(super) fn set(&mut self, permission: Permission) {
        match self.position(&permission.range) {
            Some(place) => self.permissions[place] = permission,
            None => {
                self.permissions.push(permission);
                self.permissions.sort_by_key(|permission| permission.range.to_wire());
            }
        }
    }
}

fn malformed() -> ViewError {
    bad(Space::Auth, "record")
}

fn put_text(out: &mut Vec<u8>, text: &[u8]) {
    out.put_u32(u32::try_from(text.len()).expect("a request is smaller than 4 GiB"));
    out.put_slice(text);
}

/// What is left of a record.
struct Input(Bytes);

impl Input {
    fn byte(&mut self) -> Result<u8, ViewError> {
        if self.0.is_empty() { Err(malformed()) } else { Ok(self.0.split_to(1)[0]) }
    }

    fn flag(&mut self) -> Result<bool, ViewError> {
        match self.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(malformed()),
        }
    }

    fn text(&mut self) -> Result<Bytes, ViewError> {
        let (len, _) = self.0.split_first_chunk::<4>().ok_or_else(malformed)?;
        let len = usize::try_from(u32::from_be_bytes(*len)).map_err(|_| malformed())?;
        if self.0.len() - 4 < len {
            return Err(malformed());
        }
        Ok(self.0.split_to(4 + len).slice(4..))
    }

    fn name(&mut self) -> Result<String, ViewError> {
        name_of(&self.text()?)
    }
}

fn name_of(bytes: &[u8]) -> Result<String, ViewError> {
    std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| malformed())
}

fn key_of(tag: u8, name: &str) -> Bytes {
    [&[tag], name.as_bytes()].concat().into()
}

/// A record that was changed or (`None`) deleted.
pub(super) type Change = (Bytes, Option<Bytes>);

pub(super) fn set_facts(facts: Facts) -> Change {
    let mut out = Vec::with_capacity(9);
    out.put_u8(facts.enabled.into());
    out.put_u64(facts.revision);
    (Bytes::from_static(&[FACTS_TAG]), Some(out.into()))
}

pub(super) fn set_user(name: &str, user: Option<&User>) -> Change {
    (key_of(USER_TAG, name), user.map(User::encode))
}

pub(super) fn set_role(name: &str, role: Option<&Role>) -> Change {
    (key_of(ROLE_TAG, name), role.map(Role::encode))
}

/// The records of a whole state, in order: for a state that is loaded at once.
pub fn records(facts: Facts, users: &[(String, User)], roles: &[(String, Role)]) -> Vec<(Bytes, Bytes)> {
    let users = users.iter().map(|(name, user)| (key_of(USER_TAG, name), user.encode()));
    let roles = roles.iter().map(|(name, role)| (key_of(ROLE_TAG, name), role.encode()));
    let facts = set_facts(facts);
    let mut records: Vec<_> = users.chain(roles).chain(facts.1.map(|value| (facts.0, value))).collect();
    records.sort();
    records
}

/// Whether auth is enabled, and its revision.
///
/// # Errors
/// The state cannot be read.
pub fn facts(view: &dyn View) -> Result<Facts, ViewError> {
    let Some(bytes) = view.get(Space::Auth, &[FACTS_TAG])? else { return Ok(Facts { enabled: false, revision: FIRST }) };
    let mut input = Input(bytes);
    let enabled = input.flag()?;
    let revision = keys::int(Space::Auth, &input.0)?.cast_unsigned();
    Ok(Facts { enabled, revision })
}

/// A user.
///
/// # Errors
/// The state cannot be read.
pub fn user(view: &dyn View, name: &str) -> Result<Option<User>, ViewError> {
    view.get(Space::Auth, &key_of(USER_TAG, name))?.map(User::decode).transpose()
}

/// A role.
///
/// # Errors
/// The state cannot be read.
pub fn role(view: &dyn View, name: &str) -> Result<Option<Role>, ViewError> {
    view.get(Space::Auth, &key_of(ROLE_TAG, name))?.map(Role::decode).transpose()
}

fn named<T>(view: &dyn View, tag: u8, decode: fn(Bytes) -> Result<T, ViewError>) -> Result<Vec<(String, T)>, ViewError> {
    view.scan(Space::Auth, Bound::Included(&[tag]), Bound::Excluded(&[tag + 1]), false)
        .map(|record| {
            let (key, value) = record?;
            Ok((name_of(&key[1..])?, decode(value)?))
        })
        .collect()
}

/// All users, by name.
///
/// # Errors
/// The state cannot be read.
pub fn users(view: &dyn View) -> Result<Vec<(String, User)>, ViewError> {
    named(view, USER_TAG, User::decode)
}

/// All roles, by name.
///
/// # Errors
/// The state cannot be read.
pub fn roles(view: &dyn View) -> Result<Vec<(String, Role)>, ViewError> {
    named(view, ROLE_TAG, Role::decode)
}

/// Checks that every record can be read, that users have roles that exist, and that root can act where auth is enabled.
///
/// # Errors
/// The first that is wrong.
pub fn verify(view: &dyn View) -> Result<(), ViewError> {
    let facts = facts(view)?;
    let (users, roles) = (users(view)?, roles(view)?);
    let exists = |name: &String| name == ROOT || roles.iter().any(|(role, _)| role == name);
    if !users.iter().all(|(_, user)| user.roles.iter().all(exists)) {
        return Err(bad(Space::Auth, "user: it has a role that does not exist"));
    }
    if facts.enabled && !users.iter().any(|(name, user)| name == ROOT && user.is_admin()) {
        return Err(bad(Space::Auth, "state: enabled without root"));
    }
    Ok(())
}
