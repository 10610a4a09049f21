//! The outcome table. An error anywhere in Kontiki has one of these codes, and the code alone decides what each door answers.

/// When it makes sense to try again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// The same request can never succeed.
    Never,
    /// Read the object again, decide again.
    AfterReread,
    /// List again: the history that was asked for is gone.
    AfterRelist,
    /// At once, at another member.
    OtherNode,
    /// At the same place, after backing off.
    Backoff,
}

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident $grpc:literal $http:literal $reason:literal $retry:ident;)*) => {
        /// What came of a request.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Code { $($(#[$doc])* $name,)* }

        impl Code {
            /// Every code, for tests that walk the table.
            pub const ALL: &'static [Code] = &[$(Code::$name,)*];

            /// The gRPC status code, as its number.
            pub const fn grpc(self) -> i32 {
                match self { $(Code::$name => $grpc,)* }
            }

            /// The HTTP status.
            pub const fn http(self) -> u16 {
                match self { $(Code::$name => $http,)* }
            }

            /// The `reason` of a Kubernetes Status; empty where Kubernetes leaves it empty.
            pub const fn reason(self) -> &'static str {
                match self { $(Code::$name => $reason,)* }
            }

            /// When to try again.
            pub const fn retry(self) -> Retry {
                match self { $(Code::$name => Retry::$retry,)* }
            }
        }
    };
}

codes! {
    // code            grpc http reason                  retry
    /// The request is malformed.
    BadRequest           3  400 "BadRequest"             Never;
    /// The object breaks a rule of its kind.
    Invalid              3  422 "Invalid"                Never;
    /// Nobody said who they are, or not credibly.
    Unauthenticated     16  401 "Unauthorized"           Never;
    /// Known, but not allowed.
    Forbidden            7  403 "Forbidden"              Never;
    /// There is no such object.
    NotFound             5  404 "NotFound"               Never;
    /// The verb does not exist for this resource.
    MethodNotAllowed    12  405 "MethodNotAllowed"       Never;
    /// The client accepts no form that we can answer in.
    NotAcceptable        3  406 "NotAcceptable"          Never;
    /// The body is of a type that we cannot read.
    UnsupportedMedia     3  415 "UnsupportedMediaType"   Never;
    /// There is one already.
    AlreadyExists        6  409 "AlreadyExists"          Never;
    /// Somebody else wrote first.
    Conflict            10  409 "Conflict"               AfterReread;
    /// The writer is no longer the leader it was: its term has passed.
    Fenced               9  409 "Conflict"               Never;
    /// The revision that was asked for has been compacted.
    Compacted           11  410 "Expired"                AfterRelist;
    /// The revision that was asked for is not here yet.
    FutureRevision      11  504 "Timeout"                Backoff;
    /// A precondition other than the version failed.
    FailedPrecondition   9  409 "Conflict"               AfterReread;
    /// The request is larger than allowed.
    TooLarge             3  413 "RequestEntityTooLarge"  Never;
    /// A queue is full.
    TooManyRequests      8  429 "TooManyRequests"        Backoff;
    /// No room left on the disk or in the quota.
    NoSpace              8  507 "InsufficientStorage"    Backoff;
    /// There is no leader, or it changed while we asked.
    NoLeader            14  503 "ServiceUnavailable"     OtherNode;
    /// This process cannot serve now.
    Unavailable         14  503 "ServiceUnavailable"     OtherNode;
    /// Time ran out; the write may have happened.
    Timeout             14  504 "Timeout"                Backoff;
    /// The client went away.
    Cancelled            1  499 ""                       Never;
    /// It is not built.
    Unimplemented       12  501 "NotImplemented"         Never;
    /// Stored data failed its checksum or cannot be read.
    DataLoss            15  500 "InternalError"          OtherNode;
    /// A bug.
    Internal            13  500 "InternalError"          Never;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_on_every_wire() {
        for code in Code::ALL {
            assert!((1..=16).contains(&code.grpc()), "{code:?}");
            assert!((400..600).contains(&code.http()), "{code:?}");
            // A stale write must never look like success or like a missing object to a Kubernetes client.
            assert_eq!(code.reason() == "Conflict", code.http() == 409 && *code != Code::AlreadyExists, "{code:?}");
        }
    }
}
