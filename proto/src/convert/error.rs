//! The error table: what an etcd client sees. Go clients recognise an error by its exact text and code.

use kontiki_base::kv::KvError;
use kontiki_base::{AuthError, Revision, text};
use tonic::{Code, Status};

macro_rules! errors {
    ($($(#[$doc:meta])* $name:ident $code:ident $text:expr;)*) => {
        /// An error with a text that etcd's clients know.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum EtcdError { $($(#[$doc])* $name,)* }

        impl EtcdError {
            /// Every row, for tests that walk the table.
            pub const ALL: &'static [EtcdError] = &[$(EtcdError::$name,)*];

            /// The gRPC code.
            pub const fn code(self) -> Code {
                match self { $(EtcdError::$name => Code::$code,)* }
            }

            /// The exact text.
            pub const fn text(self) -> &'static str {
                match self { $(EtcdError::$name => $text,)* }
            }
        }
    };
}

errors! {
    /// The key is empty.
    EmptyKey InvalidArgument text::EMPTY_KEY;
    /// `ignore_value` or `ignore_lease` on an absent key; also a transaction step that says nothing.
    KeyNotFound InvalidArgument text::KEY_NOT_FOUND;
    /// `ignore_value` with a value.
    ValueProvided InvalidArgument text::VALUE_PROVIDED;
    /// `ignore_lease` with a lease.
    LeaseProvided InvalidArgument text::LEASE_PROVIDED;
    /// Too many steps.
    TooManyOps InvalidArgument text::TOO_MANY_OPS;
    /// One key twice in one branch.
    DuplicateKey InvalidArgument text::DUPLICATE_KEY;
    /// Unknown sort order or target.
    InvalidSort InvalidArgument "etcdserver: invalid sort option";
    /// History before here is gone.
    Compacted OutOfRange text::COMPACTED;
    /// Not here yet.
    FutureRev OutOfRange text::FUTURE_REVISION;
    /// The quota or the disk is full.
    NoSpace ResourceExhausted text::NO_SPACE;
    /// The request is over the limit.
    RequestTooLarge InvalidArgument text::TOO_LARGE;
    /// A queue is full.
    TooManyRequests ResourceExhausted text::TOO_MANY_REQUESTS;
    /// No such lease.
    LeaseNotFound NotFound text::LEASE_NOT_FOUND;
    /// The lease id is taken.
    LeaseExists FailedPrecondition text::LEASE_EXISTS;
    /// The time to live is over nine milliard seconds.
    LeaseTtlTooLarge OutOfRange text::LEASE_TTL_TOO_LARGE;
    /// The client ended the watch.
    WatchCanceled Cancelled "etcdserver: watch canceled";
    /// The member id is taken.
    MemberExists FailedPrecondition "etcdserver: member ID already exist";
    /// A peer URL is taken.
    PeerUrlExists FailedPrecondition "etcdserver: Peer URLs already exists";
    /// The change would cost the quorum. The code on etcd's wire is Unknown, by a slip that clients have got used to.
    NotEnoughStarted Unknown "etcdserver: re-configuration failed due to not enough started members";
    /// A peer URL cannot be read.
    BadMemberUrls InvalidArgument "etcdserver: given member URLs are invalid";
    /// No such member.
    MemberNotFound NotFound "etcdserver: member not found";
    /// A voter cannot be promoted.
    NotLearner FailedPrecondition "etcdserver: can only promote a learner member";
    /// The learner is too far behind.
    LearnerNotReady FailedPrecondition "etcdserver: can only promote a learner member which is in sync with leader";
    /// One learner at a time.
    TooManyLearners FailedPrecondition "etcdserver: too many learner members in cluster";
    /// A learner does not serve this.
    NotForLearner FailedPrecondition "etcdserver: rpc not supported for learner";
    /// The cluster's version does not have this.
    NotCapable FailedPrecondition "etcdserver: not capable";
    /// Leadership cannot go there.
    BadTransferee FailedPrecondition "etcdserver: bad leader transferee";
    /// Only the leader does this.
    NotLeader FailedPrecondition "etcdserver: not leader";
    /// The cluster's version is not known yet.
    NoClusterVersion FailedPrecondition "etcdserver: cluster version not found during downgrade";
    /// Not a version.
    WrongDowngradeFormat InvalidArgument "etcdserver: wrong downgrade target version format";
    /// Not the minor version before ours.
    BadDowngradeTarget InvalidArgument "etcdserver: invalid downgrade target version";
    /// A downgrade is under way.
    DowngradeInProgress FailedPrecondition "etcdserver: cluster has a downgrade job in progress";
    /// No downgrade is under way.
    NoDowngrade FailedPrecondition "etcdserver: no inflight downgrade job";
    /// There is no leader.
    NoLeader Unavailable text::NO_LEADER;
    /// The leader changed meanwhile.
    LeaderChanged Unavailable text::LEADER_CHANGED;
    /// The process is shutting down.
    Stopped Unavailable text::STOPPED;
    /// Time ran out.
    Timeout Unavailable text::TIMEOUT;
    /// Time ran out while a leader was being replaced.
    TimeoutLeaderFail Unavailable "etcdserver: request timed out, possibly due to previous leader failure";
    /// Time ran out while this member was cut off.
    TimeoutConnection Unavailable "etcdserver: request timed out, possibly due to connection lost";
    /// Time ran out while this member was applying.
    TimeoutApply Unavailable "etcdserver: request timed out, waiting for the applied index took too long";
    /// A quorum is not healthy.
    Unhealthy Unavailable "etcdserver: unhealthy cluster";
    /// The client ended the call.
    RequestCanceled Cancelled "etcdserver: request canceled";
    /// The client's deadline passed.
    DeadlineExceeded DeadlineExceeded "context deadline exceeded";
    /// Members hold different data.
    Corrupt DataLoss "etcdserver: corrupt cluster";
    /// Auth cannot be enabled without root.
    RootUserAbsent FailedPrecondition text::AUTH_ROOT_USER_ABSENT;
    /// Auth cannot be enabled while root is powerless.
    RootRoleAbsent FailedPrecondition text::AUTH_ROOT_ROLE_ABSENT;
    /// The user name is taken.
    UserExists FailedPrecondition text::AUTH_USER_EXISTS;
    /// No user name, or nobody said who they are.
    UserEmpty InvalidArgument text::AUTH_USER_EMPTY;
    /// No such user.
    UserNotFound FailedPrecondition text::AUTH_USER_NOT_FOUND;
    /// The role name is taken.
    RoleExists FailedPrecondition text::AUTH_ROLE_EXISTS;
    /// No such role.
    RoleNotFound FailedPrecondition text::AUTH_ROLE_NOT_FOUND;
    /// No role name.
    RoleEmpty InvalidArgument text::AUTH_ROLE_EMPTY;
    /// Wrong name or password.
    AuthFailed InvalidArgument text::AUTH_FAILED;
    /// A grant without a permission.
    PermissionNotGiven InvalidArgument text::AUTH_PERMISSION_NOT_GIVEN;
    /// Not allowed.
    PermissionDenied PermissionDenied text::AUTH_PERMISSION_DENIED;
    /// The user does not have the role.
    RoleNotGranted FailedPrecondition text::AUTH_ROLE_NOT_GRANTED;
    /// The role does not have the permission.
    PermissionNotGranted FailedPrecondition text::AUTH_PERMISSION_NOT_GRANTED;
    /// Auth is off.
    AuthNotEnabled FailedPrecondition text::AUTH_NOT_ENABLED;
    /// The token is unknown or has expired.
    InvalidToken Unauthenticated text::AUTH_INVALID_TOKEN;
    /// The change would lock everybody out.
    InvalidAuthMgmt InvalidArgument text::AUTH_INVALID_MANAGEMENT;
    /// Permissions changed since the token was issued.
    AuthOldRevision InvalidArgument text::AUTH_OLD_REVISION;
    /// A password was given for a user who has none.
    NoPasswordUser Unknown text::AUTH_NO_PASSWORD_USER;
    /// A password that bcrypt would cut off.
    PasswordTooLong Unknown text::AUTH_PASSWORD_TOO_LONG;
    /// This member can check tokens, but not issue them.
    VerifyOnly Unknown text::AUTH_VERIFY_ONLY;
    /// The lease of who waited for a lock has run out.
    MutexExpired Unknown "mutex: session is expired";
    /// Nobody leads the election.
    ElectionNoLeader Unknown "election: no leader";
    /// The caller does not lead the election.
    ElectionNotLeader Unknown "election: not leader";
    /// The request names no leadership.
    MissingLeaderKey Unknown "\"leader\" field must be provided";
    /// A stream of a range has key order only.
    StreamSort Unimplemented "RangeStream does not support custom sort orders";
    /// A stream of a range has no filters.
    StreamFilter Unimplemented "RangeStream does not support revision filters";
}

/// Why a watch is ended, where that is no status: `cancel_reason` has it.
pub mod reason {
    use super::EtcdError;

    /// The range has no keys.
    pub const EMPTY_RANGE: &str = "mvcc: watcher range is empty";
    /// The client gave an id that it uses already.
    pub const DUPLICATE_ID: &str = "mvcc: duplicate watch ID provided on the WatchStream";

    /// A row as gRPC for Go prints it: that is what a client looks for in a reason. What has no reason of its own is "permission denied", as
    /// in etcd.
    pub fn printed(row: EtcdError) -> String {
        let name = match row {
            EtcdError::InvalidToken => "Unauthenticated",
            EtcdError::AuthOldRevision | EtcdError::UserEmpty => "InvalidArgument",
            _ => return format!("rpc error: code = PermissionDenied desc = {}", EtcdError::PermissionDenied.text()),
        };
        format!("rpc error: code = {name} desc = {}", row.text())
    }
}

/// What gRPC for Go says to a message of so many bytes that is larger than the limit. Not etcd's word but its transport's.
pub fn message_too_large(found: u64, max: usize) -> String {
    format!("grpc: received message larger than max ({found} vs. {max})")
}

impl EtcdError {
    /// The row with this text, whatever code came with it: that is how etcd's own client reads errors.
    pub fn from_text(text: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|row| row.text() == text)
    }

    /// The status that a client is sent.
    pub fn status(self) -> Status {
        Status::new(self.code(), self.text())
    }
}

impl From<AuthError> for EtcdError {
    fn from(error: AuthError) -> Self {
        row_of_auth(error)
    }
}

impl From<EtcdError> for Status {
    fn from(error: EtcdError) -> Self {
        error.status()
    }
}

/// The row of a store error; `None` for those that etcd has no text for.
pub const fn row_of(error: &KvError) -> Option<EtcdError> {
    Some(match error {
        KvError::EmptyKey => EtcdError::EmptyKey,
        KvError::ValueProvided => EtcdError::ValueProvided,
        KvError::LeaseProvided => EtcdError::LeaseProvided,
        KvError::KeyNotFound => EtcdError::KeyNotFound,
        KvError::DuplicateKey => EtcdError::DuplicateKey,
        KvError::TooManyOps => EtcdError::TooManyOps,
        KvError::Compacted { .. } => EtcdError::Compacted,
        KvError::FutureRevision => EtcdError::FutureRev,
        KvError::LeaseNotFound => EtcdError::LeaseNotFound,
        KvError::LeaseExists => EtcdError::LeaseExists,
        KvError::LeaseTtlTooLarge => EtcdError::LeaseTtlTooLarge,
        KvError::TooLarge => EtcdError::RequestTooLarge,
        KvError::TooManyRequests => EtcdError::TooManyRequests,
        KvError::NoSpace => EtcdError::NoSpace,
        KvError::NoLeader => EtcdError::NoLeader,
        KvError::LeaderChanged => EtcdError::LeaderChanged,
        KvError::Timeout => EtcdError::Timeout,
        KvError::Stopped => EtcdError::Stopped,
        KvError::Auth(error) => row_of_auth(*error),
        KvError::Fenced { .. } | KvError::Unavailable(_) | KvError::Corrupt(_) | KvError::Unimplemented(_) | KvError::Internal(_) => {
            return None;
        }
    })
}

/// The row of an error of users and roles.
const fn row_of_auth(error: AuthError) -> EtcdError {
    match error {
        AuthError::RootUserAbsent => EtcdError::RootUserAbsent,
        AuthError::RootRoleAbsent => EtcdError::RootRoleAbsent,
        AuthError::UserExists => EtcdError::UserExists,
        AuthError::UserEmpty => EtcdError::UserEmpty,
        AuthError::UserNotFound => EtcdError::UserNotFound,
        AuthError::RoleExists => EtcdError::RoleExists,
        AuthError::RoleNotFound => EtcdError::RoleNotFound,
        AuthError::RoleEmpty => EtcdError::RoleEmpty,
        AuthError::Failed => EtcdError::AuthFailed,
        AuthError::NoPasswordUser => EtcdError::NoPasswordUser,
        AuthError::PermissionNotGiven => EtcdError::PermissionNotGiven,
        AuthError::PermissionDenied => EtcdError::PermissionDenied,
        AuthError::RoleNotGranted => EtcdError::RoleNotGranted,
        AuthError::PermissionNotGranted => EtcdError::PermissionNotGranted,
        AuthError::NotEnabled => EtcdError::AuthNotEnabled,
        AuthError::InvalidToken => EtcdError::InvalidToken,
        AuthError::InvalidManagement => EtcdError::InvalidAuthMgmt,
        AuthError::OldRevision => EtcdError::AuthOldRevision,
        AuthError::PasswordTooLong => EtcdError::PasswordTooLong,
        AuthError::VerifyOnly => EtcdError::VerifyOnly,
    }
}

/// What a client is sent for a store error.
pub fn kv_status(error: &KvError) -> Status {
    match row_of(error) {
        // A member that cannot read its own state says so in its own words; what all have agreed on has etcd's.
        None if matches!(error, KvError::Corrupt(why) if why == EtcdError::Corrupt.text()) => EtcdError::Corrupt.status(),
        Some(row) => row.status(),
        // A member that cannot read its own state says so in its own words; what all have agreed on has etcd's.
        None if matches!(error, KvError::Corrupt(why) if why == EtcdError::Corrupt.text()) => EtcdError::Corrupt.status(),
        None => Status::new(Code::from_i32(error.code().grpc()), error.to_string()),
    }
}

/// What a server's status means to a client of ours.
pub fn kv_error(status: &Status) -> KvError {
    match EtcdError::from_text(status.message()).map(kv_error_of_row) {
        Some(Some(error)) => return error,
        // Known to etcd, but nothing that our seam has a word for.
        Some(None) => return KvError::Internal(status.message().into()),
        None => {}
    }
    let text = status.message().to_owned();
    match status.code() {
        Code::Unavailable => KvError::Unavailable(text),
        // Not the server's word but the transport's: the connection broke under the call.
        Code::Unknown if std::error::Error::source(status).is_some() => KvError::Unavailable(text),
        Code::DeadlineExceeded | Code::Cancelled => KvError::Timeout,
        Code::ResourceExhausted => KvError::TooManyRequests,
        Code::DataLoss => KvError::Corrupt(text),
        Code::Unimplemented => KvError::Unimplemented(text),
        _ => KvError::Internal(text),
    }
}

/// The store error of a row; `None` where the seam has no word for it.
fn kv_error_of_row(row: EtcdError) -> Option<KvError> {
    Some(match row {
        EtcdError::EmptyKey => KvError::EmptyKey,
        EtcdError::ValueProvided => KvError::ValueProvided,
        EtcdError::LeaseProvided => KvError::LeaseProvided,
        EtcdError::KeyNotFound => KvError::KeyNotFound,
        EtcdError::DuplicateKey => KvError::DuplicateKey,
        EtcdError::TooManyOps => KvError::TooManyOps,
        // The text does not say where history begins; a watch's cancellation does.
        EtcdError::Compacted => KvError::Compacted { compact: Revision::ZERO },
        EtcdError::FutureRev => KvError::FutureRevision,
        EtcdError::LeaseNotFound => KvError::LeaseNotFound,
        EtcdError::LeaseExists => KvError::LeaseExists,
        EtcdError::LeaseTtlTooLarge => KvError::LeaseTtlTooLarge,
        EtcdError::RequestTooLarge => KvError::TooLarge,
        EtcdError::TooManyRequests => KvError::TooManyRequests,
        EtcdError::NoSpace => KvError::NoSpace,
        EtcdError::NoLeader => KvError::NoLeader,
        EtcdError::LeaderChanged => KvError::LeaderChanged,
        EtcdError::Timeout
        | EtcdError::TimeoutLeaderFail
        | EtcdError::TimeoutConnection
        | EtcdError::TimeoutApply
        | EtcdError::DeadlineExceeded
        | EtcdError::RequestCanceled => KvError::Timeout,
        EtcdError::Stopped => KvError::Stopped,
        EtcdError::Unhealthy => KvError::Unavailable(row.text().into()),
        EtcdError::Corrupt => KvError::Corrupt(row.text().into()),
        other => return AuthError::ALL.iter().find(|error| row_of_auth(**error) == other).map(|error| KvError::Auth(*error)),
    })
}

#[cfg(test)]
mod tests {
    use kontiki_base::Term;

    use super::*;

    #[test]
    fn the_table_has_no_two_rows_with_one_text() {
        for row in EtcdError::ALL {
            assert_eq!(EtcdError::from_text(row.text()), Some(*row));
            assert_ne!(row.code(), Code::Ok);
        }
    }

    #[test]
    fn a_store_error_says_on_the_wire_what_it_says_of_itself() {
        let samples = [
            KvError::EmptyKey,
            KvError::ValueProvided,
            KvError::LeaseProvided,
            KvError::KeyNotFound,
            KvError::DuplicateKey,
            KvError::TooManyOps,
            KvError::Compacted { compact: Revision::ZERO },
            KvError::FutureRevision,
            KvError::LeaseNotFound,
            KvError::LeaseExists,
            KvError::LeaseTtlTooLarge,
            KvError::TooLarge,
            KvError::TooManyRequests,
            KvError::NoSpace,
            KvError::NoLeader,
            KvError::LeaderChanged,
            KvError::Timeout,
            KvError::Stopped,
        ];
        let corrupt = kv_status(&KvError::Corrupt("etcdserver: corrupt cluster".into()));
        assert_eq!((corrupt.code(), corrupt.message()), (Code::DataLoss, "etcdserver: corrupt cluster"));
        assert_eq!(kv_error(&corrupt), KvError::Corrupt("etcdserver: corrupt cluster".into()));
        for error in samples.into_iter().chain(AuthError::ALL.iter().copied().map(KvError::Auth)) {
            let status = kv_status(&error);
            assert_eq!(status.message(), error.to_string(), "the text in base and the text in the table");
            assert_eq!(kv_error(&status), error, "there and back");
        }
    }

    #[test]
    fn codes_are_etcds() {
        for (error, code) in [
            (KvError::EmptyKey, Code::InvalidArgument),
            (KvError::Compacted { compact: Revision::new(3) }, Code::OutOfRange),
            (KvError::FutureRevision, Code::OutOfRange),
            (KvError::LeaseNotFound, Code::NotFound),
            (KvError::LeaseExists, Code::FailedPrecondition),
            (KvError::LeaseTtlTooLarge, Code::OutOfRange),
            (KvError::NoSpace, Code::ResourceExhausted),
            (KvError::NoLeader, Code::Unavailable),
            (KvError::Timeout, Code::Unavailable),
            (KvError::Fenced { given: Term::new(1), current: Term::new(2) }, Code::FailedPrecondition),
            (KvError::Unimplemented("x".into()), Code::Unimplemented),
        ] {
            assert_eq!(kv_status(&error).code(), code, "{error:?}");
        }
    }

    #[test]
    fn an_unknown_status_keeps_its_meaning() {
        assert_eq!(kv_error(&Status::unavailable("transport")), KvError::Unavailable("transport".into()));
        assert_eq!(kv_error(&Status::unknown("x")), KvError::Internal("x".into()));
        assert_eq!(kv_error(&EtcdError::MemberNotFound.status()), KvError::Internal(EtcdError::MemberNotFound.text().into()));
    }
}
