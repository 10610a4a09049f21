//! What a client asks next: every form that the store's API has, on few keys, so that clients meet.

use super::rng::Stream;
use crate::history::{Answer, Ask, Compare, CompareOp, CompareTarget, RangeAsk, Step};

/// All keys of the run lie here…
pub const PREFIX: &str = "chaos/";

/// …and before this.
pub const END: &str = "chaos0";

/// A key that nobody ever writes.
const NOBODYS: &str = "chaos/none";

/// A lease that nobody ever asks for.
const NO_LEASE: i64 = 999_999_999_999;

/// A client's memory and its taste.
pub struct Choice {
    client: u16,
    random: Stream,
    value_bytes: u16,
    /// What it last knew of each key: revision and value.
    known: Vec<(i64, String)>,
    /// The largest revision that it was told.
    revision: i64,
    asked: u64,
}

fn key(slot: usize) -> String {
    format!("{PREFIX}k{slot}")
}

fn put(key: String, value: String) -> Step {
    Step::Put { key, value, lease: 0, prev: false }
}

fn all() -> RangeAsk {
    RangeAsk { key: PREFIX.into(), end: END.into(), ..RangeAsk::default() }
}

impl Choice {
    /// That of a client on so many keys.
    pub fn new(client: u16, keys: u8, value_bytes: u16, random: Stream) -> Self {
        Self { client, random, value_bytes, known: vec![(0, String::new()); usize::from(keys)], revision: 1, asked: 0 }
    }

    /// A value that nobody else writes.
    pub fn value(&mut self) -> String {
        self.asked += 1;
        let pad = usize::try_from(self.random.below(u64::from(self.value_bytes) + 1)).unwrap_or(0);
        format!("c{}-{}{}", self.client, self.asked, "_".repeat(pad))
    }

    fn slot(&mut self) -> usize {
        usize::try_from(self.random.below(self.known.len() as u64)).unwrap_or(0)
    }

    /// The next thing to ask, and the slot of the key that it is about.
    pub fn draw(&mut self) -> (usize, Ask) {
        let slot = self.slot();
        let expect = self.known[slot].0;
        let ask = match self.random.below(100) {
            0..26 => Ask::Get { key: key(slot) },
            26..48 => Ask::Put { key: key(slot), value: self.value() },
            48..64 => Ask::Cas { key: key(slot), expect, value: self.value() },
            64..69 => Ask::Delete { key: key(slot) },
            69..82 => self.transaction(slot),
            82..94 => Ask::Do(Step::Range(self.range())),
            94..96 => Ask::Do(Step::Delete { key: format!("{PREFIX}k"), end: format!("{PREFIX}k2"), prev: true }),
            _ => Ask::Do(Step::Put { key: key(slot), value: self.value(), lease: 0, prev: true }),
        };
        (slot, ask)
    }

    /// Remembers what came of it.
    pub fn learn(&mut self, slot: usize, ask: &Ask, answer: &Answer) {
        self.revision = self.revision.max(answer.revision().unwrap_or(0));
        let known = &mut self.known[slot];
        match answer {
            Answer::Written { revision } => *known = ask.value().map(|value| (*revision, value.to_owned())).unwrap_or_default(),
            Answer::Read { found, .. } => *known = found.clone().map(|(value, at)| (at, value)).unwrap_or_default(),
            Answer::Did { revision, .. } => {
                if let Some(value) = ask.value() {
                    *known = (*revision, value.to_owned());
                }
            }
            // It may have been written, with a value that does not matter for the next comparison.
            Answer::Txn { revision, succeeded: true, .. } => known.0 = *revision,
            _ => {}
        }
    }

    /// A revision of the last part of history.
    fn recent(&mut self) -> i64 {
        let back = i64::try_from(self.random.below(40)).unwrap_or(0);
        (self.revision - back).max(1)
    }

    fn range(&mut self) -> RangeAsk {
        let at = if self.random.chance(350_000) { self.recent() } else { 0 };
        let limit = i64::try_from(self.random.below(4)).unwrap_or(0);
        let (key, end) = match self.random.below(4) {
            0 => (format!("{PREFIX}k1"), format!("{PREFIX}k3")),
            1 => (format!("{PREFIX}k"), "\0".into()),
            _ => (PREFIX.into(), END.into()),
        };
        let serializable = self.random.chance(350_000);
        let (count_only, keys_only) = (self.random.chance(100_000), self.random.chance(100_000));
        RangeAsk { key, end, at, limit, serializable, count_only, keys_only }
    }

    fn condition(&mut self, slot: usize) -> Compare {
        let (modified, value) = self.known[slot].clone();
        // Half of them on a key that may be missing or is.
        let key = if self.random.chance(200_000) { NOBODYS.into() } else { key(slot) };
        let target = match self.random.below(8) {
            0 => CompareTarget::Value(if self.random.chance(500_000) { value } else { format!("c{}", self.random.below(9)) }),
            1 => CompareTarget::Version(i64::try_from(self.random.below(4)).unwrap_or(0)),
            2 => CompareTarget::Create(if self.random.chance(500_000) { 0 } else { self.recent() }),
            3 => CompareTarget::Lease(0),
            _ => CompareTarget::Mod(modified),
        };
        let op = *self.random.pick(&[CompareOp::Equal, CompareOp::Equal, CompareOp::NotEqual, CompareOp::Greater, CompareOp::Less]);
        Compare { key, target, op }
    }

    /// Several keys at once, if what is known of them still holds; otherwise a look at all.
    fn transaction(&mut self, slot: usize) -> Ask {
        let mut compare = vec![self.condition(slot)];
        if self.random.chance(300_000) {
            compare.push(self.condition(slot));
        }
        let value = self.value();
        let mut success = vec![put(key(slot), format!("{value}.1")), put(format!("{PREFIX}pair"), format!("{value}.2"))];
        match self.random.below(8) {
            0 => success.push(Step::Range(all())),
            // What history forgot in the meantime fails, and all of it.
            1 => success.push(Step::Range(RangeAsk { at: self.recent(), ..all() })),
            2 => success.push(Step::Put { key: format!("{PREFIX}late"), value: format!("{value}.3"), lease: NO_LEASE, prev: false }),
            3 => success.insert(0, Step::Delete { key: format!("{PREFIX}other"), end: String::new(), prev: true }),
            4 => success.push(put(format!("{PREFIX}other"), format!("{value}.3"))),
            _ => {}
        }
        let failure = match self.random.below(3) {
            0 => vec![Step::Delete { key: format!("{PREFIX}other"), end: String::new(), prev: true }],
            1 => vec![Step::Range(RangeAsk { keys_only: true, ..all() })],
            _ => vec![Step::Range(all())],
        };
        Ask::Txn { compare, success, failure }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn all_forms_come_up_and_values_are_unique() {
        let mut choice = Choice::new(3, 2, 4, Stream::new(1, "client", 3));
        let (mut forms, mut values) = (BTreeSet::new(), BTreeSet::new());
        for _ in 0..3_000 {
            let (slot, ask) = choice.draw();
            if let Some(value) = ask.value() {
                assert!(values.insert(value.to_owned()), "{value} comes twice");
            }
            choice.learn(slot, &ask, &Answer::Read { revision: 100, found: None });
            match ask {
                Ask::Txn { compare, success, .. } => {
                    forms.extend(compare.iter().map(|c| format!("{:?}", c.target).split('(').next().unwrap_or_default().to_owned()));
                    forms.extend(
                        success.iter().map(|s| format!("in a transaction: {}", format!("{s:?}").split([' ', '(']).next().unwrap())),
                    );
                }
                Ask::Do(Step::Range(range)) => {
                    forms.insert(format!("old {}, serializable {}", range.at != 0, range.serializable));
                }
                ask => {
                    forms.insert(format!("{ask:?}").split([' ', '(']).next().unwrap().to_owned());
                }
            }
        }
        let expected = [
            "Cas",
            "Create",
            "Delete",
            "Do",
            "Get",
            "Lease",
            "Mod",
            "Put",
            "Value",
            "Version",
            "in a transaction: Delete",
            "in a transaction: Put",
            "in a transaction: Range",
            "old false, serializable false",
            "old false, serializable true",
            "old true, serializable false",
            "old true, serializable true",
        ];
        assert_eq!(forms, expected.map(str::to_owned).into());
    }
}
