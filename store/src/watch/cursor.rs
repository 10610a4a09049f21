//! Where one watch stands. Each state holds what is true in it; `step` is the whole of the logic.

use kontiki_base::check;
use kontiki_base::ids::Revision;
use kontiki_base::invariant::Inv;

/// Why a watch has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Its client said so.
    Client,
    /// What it would have to deliver next has been compacted; history begins at this revision.
    Compacted(Revision),
    /// The member is shutting down.
    Stopped,
}

/// Where a watch stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cursor {
    /// Reads history; `next` is the first revision that it has not delivered.
    CatchUp {
        /// First revision not delivered.
        next: Revision,
    },
    /// Is in the hub's index: every batch from `next` on is brought to it.
    Live {
        /// First revision not delivered.
        next: Revision,
    },
    /// Was too slow and lost its place in the index.
    Lagging {
        /// First revision not delivered.
        from: Revision,
    },
    /// Has ended.
    Closed(Reason),
}

/// What can happen to a watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// History was delivered up to and including this revision.
    Replayed(Revision),
    /// It is in the index now, and nothing is missing before its `next`.
    Attached,
    /// Everything up to this revision that it watches was delivered live.
    Delivered(Revision),
    /// Its stream was thrown out of the index; everything up to this revision had been queued, and has been delivered by now.
    Overflowed(Revision),
    /// Its stream has room again.
    Resumed,
    /// It has ended.
    End(Reason),
}

impl Cursor {
    /// The state after `input`. What cannot happen in a state breaks [`Inv::WatchInOrder`] and changes nothing.
    #[must_use]
    pub fn step(self, input: Input) -> Self {
        match (self, input) {
            (Self::Closed(reason), _) => Self::Closed(reason),
            (_, Input::End(reason)) => Self::Closed(reason),
            (Self::CatchUp { next }, Input::Replayed(upto)) => Self::CatchUp { next: next.max(upto.next()) },
            (Self::CatchUp { next }, Input::Attached) => Self::Live { next },
            (Self::Live { next }, Input::Delivered(revision)) => Self::Live { next: next.max(revision.next()) },
            (Self::Live { next }, Input::Overflowed(seen)) => Self::Lagging { from: next.max(seen.next()) },
            // A watch that was reading history is not concerned: it has no place to lose.
            (Self::CatchUp { .. } | Self::Lagging { .. }, Input::Overflowed(_)) => self,
            (Self::Lagging { from }, Input::Resumed) => Self::CatchUp { next: from },
            (Self::CatchUp { .. } | Self::Live { .. }, Input::Resumed) => self,
            (state, input) => {
                check!(Inv::WatchInOrder, false, "cursor={state:?} input={input:?}");
                state
            }
        }
    }

    /// The first revision that has not been delivered; `None` when the watch has ended.
    pub const fn next(self) -> Option<Revision> {
        match self {
            Self::CatchUp { next } | Self::Live { next } | Self::Lagging { from: next } => Some(next),
            Self::Closed(_) => None,
        }
    }

    /// Whether everything that happens is brought to it.
    pub const fn is_live(self) -> bool {
        matches!(self, Self::Live { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn r(n: i64) -> Revision {
        Revision::new(n)
    }

    #[test]
    fn a_slow_watch_goes_round_without_losing_its_place() {
        let mut cursor = Cursor::CatchUp { next: r(3) };
        for (input, after) in [
            (Input::Replayed(r(7)), Cursor::CatchUp { next: r(8) }),
            (Input::Attached, Cursor::Live { next: r(8) }),
            (Input::Delivered(r(9)), Cursor::Live { next: r(10) }),
            // Batches that it does not watch are not brought, but they have been seen.
            (Input::Overflowed(r(20)), Cursor::Lagging { from: r(21) }),
            (Input::Resumed, Cursor::CatchUp { next: r(21) }),
            (Input::End(Reason::Compacted(r(30))), Cursor::Closed(Reason::Compacted(r(30)))),
            (Input::Delivered(r(40)), Cursor::Closed(Reason::Compacted(r(30)))),
        ] {
            cursor = cursor.step(input);
            assert_eq!(cursor, after, "after {input:?}");
        }
        assert_eq!(cursor.next(), None);
    }

    #[test]
    fn no_input_takes_a_cursor_back() {
        let states = [Cursor::CatchUp { next: r(5) }, Cursor::Live { next: r(5) }, Cursor::Lagging { from: r(5) }];
        let inputs = [Input::Overflowed(r(1)), Input::Resumed];
        for state in states {
            for input in inputs {
                assert!(state.step(input).next() >= state.next(), "{state:?} {input:?}");
            }
        }
        assert_eq!(Cursor::Live { next: r(50) }.step(Input::Delivered(r(7))), Cursor::Live { next: r(50) }, "a start in the future stays");
        assert_eq!(Cursor::CatchUp { next: r(50) }.step(Input::Replayed(r(7))), Cursor::CatchUp { next: r(50) });
    }

    #[test]
    #[should_panic(expected = "watch-in-order")]
    fn a_live_delivery_to_a_watch_that_catches_up_is_a_bug() {
        let _ = Cursor::CatchUp { next: r(5) }.step(Input::Delivered(r(7)));
    }
}
