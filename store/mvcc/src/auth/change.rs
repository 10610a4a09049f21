//! The commands that change users and roles. Every change makes one auth revision; what changes nothing makes none, and enabling makes
//! none, as in etcd. A command that fails has written nothing.

use kontiki_base::AuthError;
use kontiki_base::ids::LogPos;
use kontiki_base::key::RangeEnd;

use super::record::{self, Change, Facts, Role, User};
use super::{AuthCommand, AuthReply, Out, Permission, ROOT};
use crate::state::ReadError;
use crate::view::Space;
use crate::write::Writer;

/// What a command comes to: whose tokens end, and the records that change. `None`: nothing changes.
type Plan = Option<(Out, Vec<Change>)>;

/// Carries out a change of users and roles.
pub(crate) fn run(writer: &mut Writer<'_>, at: LogPos, command: &AuthCommand) -> Result<AuthReply, ReadError> {
    let facts = record::facts(&writer.view())?;
    let plan = match command {
        AuthCommand::Authenticate { user, prefix } => return token(writer, facts, at, user, prefix),
        AuthCommand::Enable => return enable(writer, facts),
        AuthCommand::Disable if !facts.enabled => None,
        AuthCommand::Disable => Some((Out::Everybody, Vec::new())),
        AuthCommand::UserAdd { .. }
        | AuthCommand::UserDelete { .. }
        | AuthCommand::UserPassword { .. }
        | AuthCommand::UserGrant { .. }
        | AuthCommand::UserRevoke { .. } => change_user(writer, facts, command)?,
        AuthCommand::RoleAdd { .. } | AuthCommand::RoleDelete { .. } | AuthCommand::RoleGrant { .. } | AuthCommand::RoleRevoke { .. } => {
            change_role(writer, facts, command)?
        }
    };
    let Some((out, changes)) = plan else { return Ok(AuthReply::Changed { out: Out::Nobody }) };
    let enabled = facts.enabled && !matches!(command, AuthCommand::Disable);
    let facts = Facts { enabled, revision: facts.revision.wrapping_add(1) };
    for change in changes.into_iter().chain([record::set_facts(facts)]) {
        write(writer, change);
    }
    Ok(AuthReply::Changed { out })
}

fn write(writer: &mut Writer<'_>, (key, value): Change) {
    match value {
        Some(value) => writer.set(Space::Auth, key, value),
        None => writer.unset(Space::Auth, key),
    }
}

fn enable(writer: &mut Writer<'_>, facts: Facts) -> Result<AuthReply, ReadError> {
    if !facts.enabled {
        let root = record::user(&writer.view(), ROOT)?.ok_or(AuthError::RootUserAbsent)?;
        if !root.is_admin() {
            return Err(AuthError::RootRoleAbsent.into());
        }
        write(writer, record::set_facts(Facts { enabled: true, ..facts }));
    }
    Ok(AuthReply::Changed { out: Out::Nobody })
}

/// The member that was asked has checked the password.
fn token(writer: &Writer<'_>, facts: Facts, at: LogPos, user: &str, prefix: &str) -> Result<AuthReply, ReadError> {
    if !facts.enabled {
        return Err(AuthError::NotEnabled.into());
    }
    match record::user(&writer.view(), user)? {
        Some(found) if found.hash.is_some() => {
            Ok(AuthReply::Token { token: format!("{prefix}.{}", at.index.get()), user: user.to_owned() })
        }
        _ => Err(AuthError::Failed.into()),
    }
}

fn known_user(writer: &Writer<'_>, name: &str) -> Result<User, ReadError> {
    Ok(record::user(&writer.view(), name)?.ok_or(AuthError::UserNotFound)?)
}

fn known_role(writer: &Writer<'_>, name: &str) -> Result<Role, ReadError> {
    Ok(record::role(&writer.view(), name)?.ok_or(AuthError::RoleNotFound)?)
}

fn change_user(writer: &Writer<'_>, facts: Facts, command: &AuthCommand) -> Result<Plan, ReadError> {
    let plan = |out, name: &str, user: Option<&User>| Ok(Some((out, vec![record::set_user(name, user)])));
    match command {
        AuthCommand::UserAdd { name, .. } if name.is_empty() => Err(AuthError::UserEmpty.into()),
        AuthCommand::UserAdd { name, hash } => {
            if record::user(&writer.view(), name)?.is_some() {
                return Err(AuthError::UserExists.into());
            }
            plan(Out::Nobody, name, Some(&User { hash: hash.clone(), roles: Vec::new() }))
        }
        AuthCommand::UserDelete { name } if facts.enabled && name == ROOT => Err(AuthError::InvalidManagement.into()),
        AuthCommand::UserDelete { name } => {
            known_user(writer, name)?;
            plan(Out::Users(vec![name.clone()]), name, None)
        }
        AuthCommand::UserPassword { name, hash } => {
            let mut user = known_user(writer, name)?;
            // A user without a password stays one.
            user.hash = user.hash.map(|_| hash.clone());
            plan(Out::Users(vec![name.clone()]), name, Some(&user))
        }
        AuthCommand::UserGrant { name, role } => {
            let mut user = known_user(writer, name)?;
            if role != ROOT {
                known_role(writer, role)?;
            }
            match user.roles.binary_search(role) {
                Ok(_) => Ok(None),
                Err(place) => {
                    user.roles.insert(place, role.clone());
                    plan(Out::Nobody, name, Some(&user))
                }
            }
        }
        AuthCommand::UserRevoke { name, role } if facts.enabled && name == ROOT && role == ROOT => Err(AuthError::InvalidManagement.into()),
        AuthCommand::UserRevoke { name, role } => {
            let mut user = known_user(writer, name)?;
            let place = user.roles.binary_search(role).map_err(|_| AuthError::RoleNotGranted)?;
            user.roles.remove(place);
            plan(Out::Nobody, name, Some(&user))
        }
        _ => Ok(None),
    }
}

fn change_role(writer: &Writer<'_>, facts: Facts, command: &AuthCommand) -> Result<Plan, ReadError> {
    let plan = |name: &str, role: &Role| Ok(Some((Out::Nobody, vec![record::set_role(name, Some(role))])));
    match command {
        AuthCommand::RoleAdd { name } if name.is_empty() => Err(AuthError::RoleEmpty.into()),
        AuthCommand::RoleAdd { name } => {
            if record::role(&writer.view(), name)?.is_some() {
                return Err(AuthError::RoleExists.into());
            }
            plan(name, &Role::default())
        }
        AuthCommand::RoleDelete { name } if facts.enabled && name == ROOT => Err(AuthError::InvalidManagement.into()),
        AuthCommand::RoleDelete { name } => {
            known_role(writer, name)?;
            let mut changes = vec![record::set_role(name, None)];
            let mut out = Vec::new();
            for (holder, mut user) in record::users(&writer.view())? {
                if let Ok(place) = user.roles.binary_search(name) {
                    user.roles.remove(place);
                    changes.push(record::set_user(&holder, Some(&user)));
                    out.push(holder);
                }
            }
            Ok(Some((Out::Users(out), changes)))
        }
        AuthCommand::RoleGrant { permission, .. } if !makes_sense(permission) => Err(AuthError::InvalidManagement.into()),
        AuthCommand::RoleGrant { name, permission } => {
            let mut role = known_role(writer, name)?;
            role.set(permission.clone());
            plan(name, &role)
        }
        AuthCommand::RoleRevoke { name, range } => {
            let mut role = known_role(writer, name)?;
            let place = role.position(range).ok_or(AuthError::PermissionNotGranted)?;
            role.permissions.remove(place);
            plan(name, &role)
        }
        _ => Ok(None),
    }
}

/// Whether a permission is for any key at all.
fn makes_sense(permission: &Permission) -> bool {
    let range = &permission.range;
    !range.start.is_empty() && !matches!(&range.end, RangeEnd::Before(end) if *end <= range.start)
}
