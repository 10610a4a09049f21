//! Invariants by name. The chaos checkers cite the same names.
//!
//! In the pure crates an invariant is a plain `assert!`: a replica that is about to diverge must stop. In the shells it is
//! [`check!`](crate::check): it panics in debug builds and tests, and in release it counts and goes on.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! invariants {
    ($($(#[$doc:meta])* $name:ident = $id:literal;)*) => {
        /// An invariant of the system.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(usize)]
        pub enum Inv { $($(#[$doc])* $name,)* }

        impl Inv {
            /// All of them.
            pub const ALL: &'static [Inv] = &[$(Inv::$name,)*];

            /// The stable short name, as reports and metrics print it.
            pub const fn id(self) -> &'static str {
                match self { $(Inv::$name => $id,)* }
            }
        }

        static BROKEN: [AtomicU64; Inv::ALL.len()] = [const { AtomicU64::new(0) }; Inv::ALL.len()];
    };
}

invariants! {
    /// Only `mvcc::apply` makes a revision, and one command makes at most one.
    OneRevisionPerCommand = "one-revision-per-command";
    /// A watch delivers every event in order, or ends saying why.
    WatchInOrder = "watch-in-order";
    /// Nothing is acknowledged before a quorum has synced it.
    AckedIsSynced = "acked-is-synced";
    /// The applied index never goes backwards.
    AppliedForward = "applied-forward";
    /// The log purges nothing that the engine has not flushed.
    PurgeBehindFlush = "purge-behind-flush";
    /// A key that was dirtied while it was being reconciled is reconciled again.
    DirtyIsRerun = "dirty-is-rerun";
    /// A controller writes only under the term in which it was started.
    FencedWrites = "fenced-writes";
    /// The watch cache never shows an object older than one it has shown before.
    CacheForward = "cache-forward";
}

/// Records a broken invariant; use [`check!`](crate::check).
pub fn broken(inv: Inv, detail: std::fmt::Arguments<'_>) {
    BROKEN[inv as usize].fetch_add(1, Ordering::Relaxed);
    if cfg!(debug_assertions) {
        panic!("invariant {} broken: {detail}", inv.id());
    }
}

/// How often each invariant was found broken in this process.
pub fn counts() -> impl Iterator<Item = (Inv, u64)> {
    Inv::ALL.iter().map(|inv| (*inv, BROKEN[*inv as usize].load(Ordering::Relaxed)))
}

/// Checks an invariant in a shell: `check!(Inv::WatchInOrder, event.rev >= next, "event={} next={}", event.rev, next)`.
#[macro_export]
macro_rules! check {
    ($inv:expr, $cond:expr, $($detail:tt)+) => {
        if !$cond {
            $crate::invariant::broken($inv, format_args!($($detail)+));
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "watch-in-order")]
    fn a_broken_invariant_stops_a_test() {
        check!(Inv::WatchInOrder, 1 > 2, "event={} next={}", 1, 2);
    }
}
