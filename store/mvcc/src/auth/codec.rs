//! Changes of users and roles as bytes, and who asks for a command. See [`crate::codec`].

use bytes::{BufMut as _, Bytes};

use super::{Access, AuthCommand, Permission, Who};
use crate::codec::{DecodeError, Input, index, put_bytes, put_range, put_u64};

// Tags. They are on disk: never reused.
const ENABLE: u8 = 1;
const DISABLE: u8 = 2;
const AUTHENTICATE: u8 = 3;
const USER_ADD: u8 = 4;
const USER_DELETE: u8 = 5;
const USER_PASSWORD: u8 = 6;
const USER_GRANT: u8 = 7;
const USER_REVOKE: u8 = 8;
const ROLE_ADD: u8 = 9;
const ROLE_DELETE: u8 = 10;
const ROLE_GRANT: u8 = 11;
const ROLE_REVOKE: u8 = 12;
const USER_ADD_WITHOUT_PASSWORD: u8 = 13;

fn put_text(out: &mut Vec<u8>, text: &str) {
    put_bytes(out, text.as_bytes());
}

fn put_named(out: &mut Vec<u8>, tag: u8, name: &str) {
    out.put_u8(tag);
    put_text(out, name);
}

pub(crate) fn put_auth(out: &mut Vec<u8>, command: &AuthCommand) {
    match command {
        AuthCommand::Enable => out.put_u8(ENABLE),
        AuthCommand::Disable => out.put_u8(DISABLE),
        AuthCommand::Authenticate { user, prefix } => {
            put_named(out, AUTHENTICATE, user);
            put_text(out, prefix);
        }
        AuthCommand::UserAdd { name, hash: None } => put_named(out, USER_ADD_WITHOUT_PASSWORD, name),
        AuthCommand::UserAdd { name, hash: Some(hash) } => {
            put_named(out, USER_ADD, name);
            put_bytes(out, hash);
        }
        AuthCommand::UserDelete { name } => put_named(out, USER_DELETE, name),
        AuthCommand::UserPassword { name, hash } => {
            put_named(out, USER_PASSWORD, name);
            put_bytes(out, hash);
        }
        AuthCommand::UserGrant { name, role } => {
            put_named(out, USER_GRANT, name);
            put_text(out, role);
        }
        AuthCommand::UserRevoke { name, role } => {
            put_named(out, USER_REVOKE, name);
            put_text(out, role);
        }
        AuthCommand::RoleAdd { name } => put_named(out, ROLE_ADD, name),
        AuthCommand::RoleDelete { name } => put_named(out, ROLE_DELETE, name),
        AuthCommand::RoleGrant { name, permission } => {
            put_named(out, ROLE_GRANT, name);
            out.put_u8(index(Access::ALL, permission.access));
            put_range(out, &permission.range);
        }
        AuthCommand::RoleRevoke { name, range } => {
            put_named(out, ROLE_REVOKE, name);
            put_range(out, range);
        }
    }
}

pub(crate) fn put_who(out: &mut Vec<u8>, who: &Who) {
    put_text(out, &who.user);
    put_u64(out, who.revision);
}

impl Input {
    fn text(&mut self) -> Result<String, DecodeError> {
        let bytes: Bytes = self.bytes()?;
        String::from_utf8(bytes.into()).map_err(|_| DecodeError::Text)
    }

    pub(crate) fn who(&mut self) -> Result<Who, DecodeError> {
        Ok(Who { user: self.text()?, revision: self.u64()? })
    }

    pub(crate) fn auth(&mut self) -> Result<AuthCommand, DecodeError> {
        Ok(match self.u8()? {
            ENABLE => AuthCommand::Enable,
            DISABLE => AuthCommand::Disable,
            AUTHENTICATE => AuthCommand::Authenticate { user: self.text()?, prefix: self.text()? },
            USER_ADD => AuthCommand::UserAdd { name: self.text()?, hash: Some(self.bytes()?) },
            USER_ADD_WITHOUT_PASSWORD => AuthCommand::UserAdd { name: self.text()?, hash: None },
            USER_DELETE => AuthCommand::UserDelete { name: self.text()? },
            USER_PASSWORD => AuthCommand::UserPassword { name: self.text()?, hash: self.bytes()? },
            USER_GRANT => AuthCommand::UserGrant { name: self.text()?, role: self.text()? },
            USER_REVOKE => AuthCommand::UserRevoke { name: self.text()?, role: self.text()? },
            ROLE_ADD => AuthCommand::RoleAdd { name: self.text()? },
            ROLE_DELETE => AuthCommand::RoleDelete { name: self.text()? },
            ROLE_GRANT => {
                let name = self.text()?;
                let access = self.one_of("access", Access::ALL)?;
                AuthCommand::RoleGrant { name, permission: Permission { access, range: self.range()? } }
            }
            ROLE_REVOKE => AuthCommand::RoleRevoke { name: self.text()?, range: self.range()? },
            tag => return Err(DecodeError::Tag { what: "change of users", tag }),
        })
    }
}
