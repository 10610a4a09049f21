//! What can go wrong with users, roles and permissions: the words of the state machine, of whoever asks it, and of the wire.

use crate::code::Code;
use crate::text;

macro_rules! errors {
    ($($(#[$doc:meta])* $name:ident $code:ident $text:ident;)*) => {
        /// Why a request about users and roles fails, or why somebody may not do what they ask for. The texts are etcd's.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
        pub enum AuthError { $($(#[$doc])* #[error("{}", text::$text)] $name,)* }

        impl AuthError {
            /// Every one, for tables and tests.
            pub const ALL: &'static [AuthError] = &[$(AuthError::$name,)*];

            /// The outcome code.
            pub const fn code(self) -> Code {
                match self { $(AuthError::$name => Code::$code,)* }
            }

            /// The exact text.
            pub const fn text(self) -> &'static str {
                match self { $(AuthError::$name => text::$text,)* }
            }
        }
    };
}

errors! {
    /// Auth cannot be enabled without root.
    RootUserAbsent FailedPrecondition AUTH_ROOT_USER_ABSENT;
    /// Auth cannot be enabled while root is powerless.
    RootRoleAbsent FailedPrecondition AUTH_ROOT_ROLE_ABSENT;
    /// The user name is taken.
    UserExists FailedPrecondition AUTH_USER_EXISTS;
    /// No user name, or nobody said who they are.
    UserEmpty BadRequest AUTH_USER_EMPTY;
    /// No such user.
    UserNotFound FailedPrecondition AUTH_USER_NOT_FOUND;
    /// The role name is taken.
    RoleExists FailedPrecondition AUTH_ROLE_EXISTS;
    /// No such role.
    RoleNotFound FailedPrecondition AUTH_ROLE_NOT_FOUND;
    /// No role name.
    RoleEmpty BadRequest AUTH_ROLE_EMPTY;
    /// Wrong name or password.
    Failed BadRequest AUTH_FAILED;
    /// A password was given for a user who has none.
    NoPasswordUser Internal AUTH_NO_PASSWORD_USER;
    /// A grant without a permission.
    PermissionNotGiven BadRequest AUTH_PERMISSION_NOT_GIVEN;
    /// Not allowed.
    PermissionDenied Forbidden AUTH_PERMISSION_DENIED;
    /// The user does not have the role.
    RoleNotGranted FailedPrecondition AUTH_ROLE_NOT_GRANTED;
    /// The role does not have the permission.
    PermissionNotGranted FailedPrecondition AUTH_PERMISSION_NOT_GRANTED;
    /// Auth is off.
    NotEnabled FailedPrecondition AUTH_NOT_ENABLED;
    /// The token is unknown or has expired.
    InvalidToken Unauthenticated AUTH_INVALID_TOKEN;
    /// The change would lock everybody out, or makes no sense.
    InvalidManagement BadRequest AUTH_INVALID_MANAGEMENT;
    /// Permissions changed since the token was issued.
    OldRevision BadRequest AUTH_OLD_REVISION;
    /// bcrypt reads no more than 72 bytes of a password.
    PasswordTooLong Internal AUTH_PASSWORD_TOO_LONG;
    /// This member has no key to sign tokens with.
    VerifyOnly Internal AUTH_VERIFY_ONLY;
}
