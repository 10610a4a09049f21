//! Users, roles and permissions: state like any other, so that members agree on it, snapshots carry it, and the hash of the state covers
//! it. Nothing of it is kept in memory between commands: a state that came in as a snapshot counts at once.
//!
//! A command from outside is carried out as [`Command::As`](crate::Command::As): with who asks for it. Whether that is allowed is decided
//! in `apply`, on the state that the command meets; a member that checks earlier does so to answer earlier. Commands of the cluster itself
//! (lease expiry, the API server in the same process) are not wrapped and not checked.
//!
//! | file | what it holds |
//! |---|---|
//! | `record` | users and roles as records, and reading them |
//! | `ranges` | which keys permissions cover |
//! | `change` | the commands that change users and roles, with etcd's outcomes |
//! | `check` | who may do what |
//! | `codec` | the commands as bytes |
//!
//! Passwords are hashed by the member that was asked, since a hash has a random salt; tokens are made there, too, all but the number at
//! their end. Rules and texts are those of etcd's `server/auth`.

pub(crate) mod change;
pub(crate) mod check;
pub(crate) mod codec;
mod ranges;
mod record;

use bytes::Bytes;
use kontiki_base::KeyRange;

pub use check::{Rights, may_read, may_read_lease, may_run, may_write_lease, must_be_admin, must_be_known};
pub use ranges::Ranges;
pub use record::{Facts, Role, User, facts, records, role, roles, user, users, verify};

/// The user without whom auth cannot be enabled, and the role that may do anything.
pub const ROOT: &str = "root";

/// Who asks for something.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Who {
    /// The user; empty for somebody who has not said.
    pub user: String,
    /// The auth revision at which that was found out. Permissions of an older one do not count any more.
    pub revision: u64,
}

impl Who {
    /// Somebody who has not said who they are.
    pub fn nobody() -> Self {
        Self::default()
    }

    /// Whether nobody has said who this is.
    pub fn is_nobody(&self) -> bool {
        self.user.is_empty()
    }
}

/// What a permission allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Access {
    /// Reading.
    Read,
    /// Writing.
    Write,
    /// Both.
    ReadWrite,
}

impl Access {
    pub(crate) const ALL: &'static [Access] = &[Access::Read, Access::Write, Access::ReadWrite];

    /// Whether it allows reading.
    pub const fn reads(self) -> bool {
        matches!(self, Self::Read | Self::ReadWrite)
    }

    /// Whether it allows writing.
    pub const fn writes(self) -> bool {
        matches!(self, Self::Write | Self::ReadWrite)
    }
}

/// Something that a role allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Permission {
    /// What.
    pub access: Access,
    /// On which keys.
    pub range: KeyRange,
}

/// A change of users and roles.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AuthCommand {
    /// From now on everybody must say who they are.
    Enable,
    /// Everybody may do everything again. All tokens end.
    Disable,
    /// Somebody has given their password, and it was right: their token counts from now on, at every member.
    Authenticate {
        /// The user.
        user: String,
        /// The random part of the token.
        prefix: String,
    },
    /// A new user.
    UserAdd {
        /// The name.
        name: String,
        /// The bcrypt hash of the password; `None` for a user who cannot use one.
        hash: Option<Bytes>,
    },
    /// A user goes.
    UserDelete {
        /// Who.
        name: String,
    },
    /// Another password.
    UserPassword {
        /// Whose.
        name: String,
        /// Its bcrypt hash.
        hash: Bytes,
    },
    /// A role for a user.
    UserGrant {
        /// The user.
        name: String,
        /// The role.
        role: String,
    },
    /// A role is taken from a user.
    UserRevoke {
        /// The user.
        name: String,
        /// The role.
        role: String,
    },
    /// A new role, that allows nothing yet.
    RoleAdd {
        /// The name.
        name: String,
    },
    /// A role goes, and is taken from all users.
    RoleDelete {
        /// Which.
        name: String,
    },
    /// A permission for a role.
    RoleGrant {
        /// The role.
        name: String,
        /// The permission.
        permission: Permission,
    },
    /// A permission is taken from a role.
    RoleRevoke {
        /// The role.
        name: String,
        /// The keys of the permission, exactly as they were given.
        range: KeyRange,
    },
}

/// What came of an [`AuthCommand`]: also what whoever keeps tokens must do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AuthReply {
    /// This token stands for this user.
    Token {
        /// The token.
        token: String,
        /// The user.
        user: String,
    },
    /// Users and roles are as they were asked to be. Tokens of these users have ended.
    Changed {
        /// Whose tokens.
        out: Out,
    },
}

/// Whose tokens have ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Out {
    /// Nobody's.
    Nobody,
    /// These users'.
    Users(Vec<String>),
    /// Everybody's.
    Everybody,
}
