//! The error table: what an etcd client sees. Go clients recognise an error by its exact text and code.

use kontiki_base::Revision;
use kontiki_base::kv::KvError;
use tonic::{Code, Status};

macro_rules! errors {
    ($($(#[$doc:meta])* $name:ident $code:ident $text:literal;)*) => {
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
    EmptyKey InvalidArgument "etcdserver: key is not provided";
    /// `ignore_value` or `ignore_lease` on an absent key; also a transaction step that says nothing.
    KeyNotFound InvalidArgument "etcdserver: key not found";
    /// `ignore_value` with a value.
    ValueProvided InvalidArgument "etcdserver: value is provided";
    /// `ignore_lease` with a lease.
    LeaseProvided InvalidArgument "etcdserver: lease is provided";
    /// Too many steps.
    TooManyOps InvalidArgument "etcdserver: too many operations in txn request";
    /// One key twice in one branch.
    DuplicateKey InvalidArgument "etcdserver: duplicate key given in txn request";
    /// Unknown sort order or target.
    InvalidSort InvalidArgument "etcdserver: invalid sort option";
    /// History before here is gone.
    Compacted OutOfRange "etcdserver: mvcc: required revision has been compacted";
    /// Not here yet.
    FutureRev OutOfRange "etcdserver: mvcc: required revision is a future revision";
    /// The quota or the disk is full.
    NoSpace ResourceExhausted "etcdserver: mvcc: database space exceeded";
    /// The request is over the limit.
    RequestTooLarge InvalidArgument "etcdserver: request is too large";
    /// A queue is full.
    TooManyRequests ResourceExhausted "etcdserver: too many requests";
    /// No such lease.
    LeaseNotFound NotFound "etcdserver: requested lease not found";
    /// The lease id is taken.
    LeaseExists FailedPrecondition "etcdserver: lease already exists";
    /// The time to live is over nine milliard seconds.
    LeaseTtlTooLarge OutOfRange "etcdserver: too large lease TTL";
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
    NoLeader Unavailable "etcdserver: no leader";
    /// The leader changed meanwhile.
    LeaderChanged Unavailable "etcdserver: leader changed";
    /// The process is shutting down.
    Stopped Unavailable "etcdserver: server stopped";
    /// Time ran out.
    Timeout Unavailable "etcdserver: request timed out";
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
    RootUserAbsent FailedPrecondition "etcdserver: root user does not exist";
    /// Auth cannot be enabled while root is powerless.
    RootRoleAbsent FailedPrecondition "etcdserver: root user does not have root role";
    /// The user name is taken.
    UserExists FailedPrecondition "etcdserver: user name already exists";
    /// No user name, or nobody said who they are.
    UserEmpty InvalidArgument "etcdserver: user name is empty";
    /// No such user.
    UserNotFound FailedPrecondition "etcdserver: user name not found";
    /// The role name is taken.
    RoleExists FailedPrecondition "etcdserver: role name already exists";
    /// No such role.
    RoleNotFound FailedPrecondition "etcdserver: role name not found";
    /// No role name.
    RoleEmpty InvalidArgument "etcdserver: role name is empty";
    /// Wrong name or password.
    AuthFailed InvalidArgument "etcdserver: authentication failed, invalid user ID or password";
    /// A grant without a permission.
    PermissionNotGiven InvalidArgument "etcdserver: permission not given";
    /// Not allowed.
    PermissionDenied PermissionDenied "etcdserver: permission denied";
    /// The user does not have the role.
    RoleNotGranted FailedPrecondition "etcdserver: role is not granted to the user";
    /// The role does not have the permission.
    PermissionNotGranted FailedPrecondition "etcdserver: permission is not granted to the role";
    /// Auth is off.
    AuthNotEnabled FailedPrecondition "etcdserver: authentication is not enabled";
    /// The token is unknown or has expired.
    InvalidToken Unauthenticated "etcdserver: invalid auth token";
    /// The change would lock everybody out.
    InvalidAuthMgmt InvalidArgument "etcdserver: invalid auth management";
    /// Permissions changed since the token was issued.
    AuthOldRevision InvalidArgument "etcdserver: revision of auth store is old";
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
        KvError::Fenced { .. } | KvError::Unavailable(_) | KvError::Corrupt(_) | KvError::Unimplemented(_) | KvError::Internal(_) => {
            return None;
        }
    })
}

/// What a client is sent for a store error.
pub fn kv_status(error: &KvError) -> Status {
    match row_of(error) {
        // A member that cannot read its own state says so in its own words; what all have agreed on has etcd's.
        None if matches!(error, KvError::Corrupt(why) if why == EtcdError::Corrupt.text()) => EtcdError::Corrupt.status(),
        Some(row) => row.status(),
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
        _ => return None,
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
        for error in samples {
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
        assert_eq!(kv_error(&EtcdError::UserExists.status()), KvError::Internal(EtcdError::UserExists.text().into()));
    }
}
