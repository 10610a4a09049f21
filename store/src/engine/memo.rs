//! What `apply` reads again and again, in memory: the store's own numbers, and the present lives of keys that were written lately.
//!
//! Every put asks how its key stands, and for the store's revision, compaction and alarms: four look-ups in the engine, which cost more
//! than all the rest of it. Only the apply thread changes the state, so what it has seen last is what is there. Nothing is decided here: a
//! memo answers as the engine would, or passes the question on.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::Bound;

use bytes::Bytes;
use kontiki_base::limits;
use kontiki_mvcc::view::Scan;
use kontiki_mvcc::{Batch, Space, View, ViewError};

/// What a record is; `None`: there is none. Copied, so that a short record does not keep a whole log entry in memory.
type Known = Option<Box<[u8]>>;

/// Records that were read or written lately.
///
/// Lives of keys are in two generations: when the young one is full, it becomes the old one, and what the old one held is forgotten unless
/// somebody asked for it meanwhile. That is nearly as good as forgetting the least recently used, and costs nothing to keep up.
#[derive(Default)]
pub(crate) struct Memo {
    /// [`Space::Sys`]: there are few.
    numbers: HashMap<Box<[u8]>, Known>,
    young: HashMap<Box<[u8]>, Known>,
    old: HashMap<Box<[u8]>, Known>,
}

impl Memo {
    /// Takes over what a batch changes, which must be committed before anything is read again.
    pub(crate) fn note(&mut self, batch: &Batch) {
        for ((space, key), value) in &batch.writes {
            let value = value.as_deref();
            match space {
                Space::Sys => set(&mut self.numbers, key, value),
                Space::Meta => {
                    if !self.old.is_empty() {
                        self.old.remove(&**key);
                    }
                    self.make_room();
                    set(&mut self.young, key, value);
                }
                _ => {}
            }
        }
    }

    /// The state has become another.
    pub(crate) fn forget(&mut self) {
        *self = Self::default();
    }

    fn make_room(&mut self) {
        if self.young.len() >= limits::APPLY_MEMO_KEYS {
            self.old = std::mem::take(&mut self.young);
        }
    }

    fn get(&mut self, space: Space, key: &[u8]) -> Option<Option<Bytes>> {
        let copy = |known: &Known| known.as_deref().map(Bytes::copy_from_slice);
        match space {
            Space::Sys => self.numbers.get(key).map(copy),
            Space::Meta => {
                if let Some(known) = self.young.get(key) {
                    return Some(copy(known));
                }
                let (key, known) = self.old.remove_entry(key)?;
                let answer = copy(&known);
                self.make_room();
                self.young.insert(key, known);
                Some(answer)
            }
            _ => None,
        }
    }

    fn learn(&mut self, space: Space, key: &[u8], value: Option<&[u8]>) {
        match space {
            Space::Sys => set(&mut self.numbers, key, value),
            Space::Meta => {
                self.make_room();
                set(&mut self.young, key, value);
            }
            _ => {}
        }
    }
}

/// Notes a record; one that keeps its length costs no allocation.
fn set(map: &mut HashMap<Box<[u8]>, Known>, key: &[u8], value: Option<&[u8]>) {
    match (map.get_mut(key), value) {
        (Some(Some(known)), Some(value)) if known.len() == value.len() => known.copy_from_slice(value),
        (Some(known), value) => *known = value.map(Into::into),
        (None, value) => drop(map.insert(key.into(), value.map(Into::into))),
    }
}

/// A state, with what is known of it by heart.
pub(crate) struct Remembered<'a> {
    /// The state.
    pub(crate) base: &'a dyn View,
    /// What is known of it.
    pub(crate) memo: &'a RefCell<Memo>,
}

impl View for Remembered<'_> {
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, ViewError> {
        if let Some(known) = self.memo.borrow_mut().get(space, key) {
            return Ok(known);
        }
        let found = self.base.get(space, key)?;
        self.memo.borrow_mut().learn(space, key, found.as_deref());
        Ok(found)
    }

    fn scan<'a>(&'a self, space: Space, from: Bound<&[u8]>, to: Bound<&[u8]>, reverse: bool) -> Scan<'a> {
        self.base.scan(space, from, to, reverse)
    }
}

#[cfg(test)]
mod tests {
    use kontiki_mvcc::MemView;
    use proptest::prelude::*;

    use super::*;

    /// A space, a key and what becomes of it; `None` reads it.
    type Step = (Space, u8, Option<Option<u8>>);

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let space = prop_oneof![Just(Space::Sys), Just(Space::Meta), Just(Space::Kv)];
        proptest::collection::vec((space, 0_u8..6, prop::option::of(prop::option::of(0_u8..4))), 0..60)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_memo_answers_as_the_state_does(steps in steps(), ages in proptest::collection::vec(any::<bool>(), 60)) {
            let (mut state, memo) = (MemView::new(), RefCell::new(Memo::default()));
            for ((space, key, change), age) in steps.into_iter().zip(ages) {
                if age {
                    let mut memo = memo.borrow_mut();
                    memo.old = std::mem::take(&mut memo.young);
                }
                if let Some(value) = change {
                    let mut batch = Batch::default();
                    match value {
                        // Of different lengths.
                        Some(n) => batch.put(space, vec![key], vec![n; usize::from(n)]),
                        None => batch.delete(space, vec![key]),
                    }
                    memo.borrow_mut().note(&batch);
                    state.commit(batch);
                }
                let seen = Remembered { base: &state, memo: &memo };
                prop_assert_eq!(seen.get(space, &[key]), state.get(space, &[key]));
            }
        }
    }

    #[test]
    fn what_is_asked_for_outlives_what_is_not() {
        let mut memo = Memo::default();
        let put = |memo: &mut Memo, n: u32| {
            let mut batch = Batch::default();
            batch.put(Space::Meta, n.to_be_bytes().to_vec(), vec![1]);
            memo.note(&batch);
        };
        let limit = u32::try_from(limits::APPLY_MEMO_KEYS).unwrap();
        for n in 0..limit * 3 {
            put(&mut memo, n);
            assert!(memo.get(Space::Meta, &0_u32.to_be_bytes()).is_some(), "asked for all the time");
        }
        assert_eq!(memo.get(Space::Meta, &1_u32.to_be_bytes()), None, "forgotten");
        assert!(memo.young.len() + memo.old.len() <= 2 * limits::APPLY_MEMO_KEYS);
        memo.forget();
        assert_eq!(memo.get(Space::Meta, &0_u32.to_be_bytes()), None);
    }
}
