//! Newtypes for the numbers that travel: a term is not an index, and neither is a revision.

use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);

        impl $name {
            /// The value that means "none yet".
            pub const ZERO: Self = Self(0);

            /// Wraps a number that came from the wire or the disk.
            pub const fn new(value: $inner) -> Self {
                Self(value)
            }

            /// The bare number, for the wire and the disk.
            pub const fn get(self) -> $inner {
                self.0
            }

            /// The following number.
            #[must_use]
            pub const fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id!(
    /// A point in the history of the whole store: etcd's one global int64. An empty store is at 1, its first write makes 2.
    Revision(i64)
);
id!(
    /// A Raft term. Leadership is one fact, and this is its number.
    Term(u64)
);
id!(
    /// A position in the Raft log, from 1.
    LogIndex(u64)
);
id!(
    /// A member of the store; what etcd calls a member id. Never 0.
    MemberId(u64)
);
id!(
    /// A lease. 0 means "no lease".
    LeaseId(i64)
);
id!(
    /// A watch within one stream.
    WatchId(i64)
);

/// A Kubernetes object's uid: distinguishes two objects that had the same name at different times.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Uid(pub String);

impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Where an entry stands in the Raft log: what `apply` is told beside the command.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogPos {
    /// The term of the leader that appended the entry.
    pub term: Term,
    /// Its index.
    pub index: LogIndex,
}
