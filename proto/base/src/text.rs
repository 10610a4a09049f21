//! Texts that etcd's clients compare, where more than one crate needs them: each is written here, once. The others stand in the error
//! table of `kontiki-proto`, which has their codes, too.

/// The key is empty.
pub const EMPTY_KEY: &str = "etcdserver: key is not provided";
/// `ignore_value` with a value.
pub const VALUE_PROVIDED: &str = "etcdserver: value is provided";
/// `ignore_lease` with a lease.
pub const LEASE_PROVIDED: &str = "etcdserver: lease is provided";
/// What is to be kept is not there.
pub const KEY_NOT_FOUND: &str = "etcdserver: key not found";
/// One key twice in one branch.
pub const DUPLICATE_KEY: &str = "etcdserver: duplicate key given in txn request";
/// Too many steps.
pub const TOO_MANY_OPS: &str = "etcdserver: too many operations in txn request";
/// History before here is gone.
pub const COMPACTED: &str = "etcdserver: mvcc: required revision has been compacted";
/// Not here yet.
pub const FUTURE_REVISION: &str = "etcdserver: mvcc: required revision is a future revision";
/// No such lease.
pub const LEASE_NOT_FOUND: &str = "etcdserver: requested lease not found";
/// The lease id is taken.
pub const LEASE_EXISTS: &str = "etcdserver: lease already exists";
/// A lease longer than nine milliard seconds.
pub const LEASE_TTL_TOO_LARGE: &str = "etcdserver: too large lease TTL";
/// The request is over the limit.
pub const TOO_LARGE: &str = "etcdserver: request is too large";
/// A queue is full.
pub const TOO_MANY_REQUESTS: &str = "etcdserver: too many requests";
/// The quota or the disk is full.
pub const NO_SPACE: &str = "etcdserver: mvcc: database space exceeded";
/// There is no leader.
pub const NO_LEADER: &str = "etcdserver: no leader";
/// The leader changed meanwhile.
pub const LEADER_CHANGED: &str = "etcdserver: leader changed";
/// Time ran out.
pub const TIMEOUT: &str = "etcdserver: request timed out";
/// The process is shutting down.
pub const STOPPED: &str = "etcdserver: server stopped";
/// Auth cannot be enabled without root.
pub const AUTH_ROOT_USER_ABSENT: &str = "etcdserver: root user does not exist";
/// Auth cannot be enabled while root is powerless.
pub const AUTH_ROOT_ROLE_ABSENT: &str = "etcdserver: root user does not have root role";
/// The user name is taken.
pub const AUTH_USER_EXISTS: &str = "etcdserver: user name already exists";
/// No user name, or nobody said who they are.
pub const AUTH_USER_EMPTY: &str = "etcdserver: user name is empty";
/// No such user.
pub const AUTH_USER_NOT_FOUND: &str = "etcdserver: user name not found";
/// The role name is taken.
pub const AUTH_ROLE_EXISTS: &str = "etcdserver: role name already exists";
/// No such role.
pub const AUTH_ROLE_NOT_FOUND: &str = "etcdserver: role name not found";
/// No role name.
pub const AUTH_ROLE_EMPTY: &str = "etcdserver: role name is empty";
/// Wrong name or password.
pub const AUTH_FAILED: &str = "etcdserver: authentication failed, invalid user ID or password";
/// A password was given for a user who has none.
pub const AUTH_NO_PASSWORD_USER: &str = "auth: authentication failed, password was given for no password user";
/// A grant without a permission.
pub const AUTH_PERMISSION_NOT_GIVEN: &str = "etcdserver: permission not given";
/// Not allowed.
pub const AUTH_PERMISSION_DENIED: &str = "etcdserver: permission denied";
/// The user does not have the role.
pub const AUTH_ROLE_NOT_GRANTED: &str = "etcdserver: role is not granted to the user";
/// The role does not have the permission.
pub const AUTH_PERMISSION_NOT_GRANTED: &str = "etcdserver: permission is not granted to the role";
/// Auth is off.
pub const AUTH_NOT_ENABLED: &str = "etcdserver: authentication is not enabled";
/// The token is unknown or has expired.
pub const AUTH_INVALID_TOKEN: &str = "etcdserver: invalid auth token";
/// The change would lock everybody out, or makes no sense.
pub const AUTH_INVALID_MANAGEMENT: &str = "etcdserver: invalid auth management";
/// Permissions changed since the token was issued.
pub const AUTH_OLD_REVISION: &str = "etcdserver: revision of auth store is old";
/// bcrypt reads no more than 72 bytes of a password.
pub const AUTH_PASSWORD_TOO_LONG: &str = "bcrypt: password length exceeds 72 bytes";
/// This member has no key to sign tokens with.
pub const AUTH_VERIFY_ONLY: &str = "auth: token signing attempted with verify-only key";
