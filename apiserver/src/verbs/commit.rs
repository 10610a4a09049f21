//! Prepared writes, and the one store transaction that carries them out.

use std::collections::BTreeMap;

use bytes::Bytes;
use kontiki_base::kv::{Compare, DeleteReq, KeyValue, Op, OpRes, PutReq, RangeReq, Txn};
use kontiki_base::{KeyRange, Revision, Term};
use serde_json::Value;

use super::Target;
use crate::codec;
use crate::core::Core;
use crate::error::Result;

/// What is done to a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// It gets this value.
    Put(Bytes),
    /// It is removed.
    Delete,
    /// Nothing: it has the wanted value already.
    Keep,
}

/// A write of one key, under the condition that nobody wrote it since `expect`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KeyWrite {
    /// The key.
    pub(crate) key: Bytes,
    /// Revision of the state that the decision was based on; zero: there was no such key.
    pub(crate) expect: Revision,
    /// What is done.
    pub(crate) effect: Effect,
}

/// A decided write.
#[derive(Clone, Debug)]
pub(crate) struct Prepared {
    /// The object that it is about.
    pub(crate) target: Target,
    /// Its own key.
    pub(crate) write: KeyWrite,
    /// Keys that are written along: addresses that a Service takes.
    pub(crate) also: Vec<KeyWrite>,
    /// Keys that must not have changed: the namespace that a new object is put into.
    pub(crate) guards: Vec<(Bytes, Revision)>,
    /// The object afterwards (or last, if it goes away), in the version of its row, without resource version.
    pub(crate) object: Value,
    /// The object is new.
    pub(crate) created: bool,
    /// The object is gone afterwards.
    pub(crate) gone: bool,
}

/// What came of a write.
#[derive(Clone, Debug)]
pub(crate) struct Done {
    /// The object that it was about.
    pub(crate) target: Target,
    /// The object with its resource version.
    pub(crate) object: Value,
    /// Its revision; zero after a dry run of a creation.
    pub(crate) revision: Revision,
    /// The object is new.
    pub(crate) created: bool,
    /// The object is gone.
    pub(crate) gone: bool,
}

impl Done {
    /// The object's JSON.
    pub(crate) fn bytes(&self) -> Bytes {
        serde_json::to_vec(&self.object).map(Bytes::from).unwrap_or_default()
    }

    /// The object's uid.
    pub(crate) fn uid(&self) -> &str {
        self.object["metadata"]["uid"].as_str().unwrap_or_default()
    }
}

/// How a transaction ended.
#[derive(Debug)]
pub(crate) enum Committed {
    /// All of it was done, at this revision.
    At(Revision),
    /// Nothing was done; this is what the keys are now.
    Stale(BTreeMap<Bytes, Option<KeyValue>>),
}

impl Prepared {
    /// Whether there is anything to write.
    pub(crate) fn is_noop(&self) -> bool {
        self.write.effect == Effect::Keep && self.also.iter().all(|w| w.effect == Effect::Keep)
    }

    /// The result, once it was carried out at `revision` (or not at all, for a dry run or a write that changes nothing).
    pub(crate) fn done(self, revision: Option<Revision>) -> Done {
        let shown = match (revision, &self.write.effect) {
            (Some(revision), Effect::Put(_) | Effect::Delete) => revision,
            _ => self.write.expect,
        };
        let mut object = self.object;
        if shown > Revision::ZERO {
            codec::stamp(&mut object, shown);
        }
        Done { target: self.target, object, revision: shown, created: self.created, gone: self.gone }
    }

    fn writes(&self) -> impl Iterator<Item = &KeyWrite> {
        std::iter::once(&self.write).chain(&self.also)
    }
}

impl Core {
    /// Carries out prepared writes: all of them at one revision, or none.
    pub(crate) async fn commit(&self, writes: &[Prepared], fence: Option<Term>) -> Result<Committed> {
        let mut expected: BTreeMap<&Bytes, Revision> = BTreeMap::new();
        let mut txn = Txn::default();
        for prepared in writes {
            for write in prepared.writes() {
                expected.insert(&write.key, write.expect);
                match &write.effect {
                    Effect::Put(value) => {
                        txn.success.push(Op::Put(PutReq { key: write.key.clone(), value: value.clone(), ..PutReq::default() }));
                    }
                    Effect::Delete => {
                        txn.success.push(Op::Delete(DeleteReq { range: KeyRange::single(write.key.clone()), prev_kv: false }));
                    }
                    Effect::Keep => {}
                }
            }
        }
        for (key, revision) in writes.iter().flat_map(|p| &p.guards) {
            expected.entry(key).or_insert(*revision);
        }
        txn.compare = expected.iter().map(|(key, revision)| Compare::mod_equals((*key).clone(), *revision)).collect();
        txn.failure = expected.keys().map(|key| Op::Range(RangeReq::new(KeyRange::single((*key).clone())))).collect();
        let keys: Vec<Bytes> = expected.into_keys().cloned().collect();
        let answer = self.kv.txn(txn, fence).await?;
        if answer.succeeded {
            return Ok(Committed::At(answer.revision));
        }
        let found = answer.responses.into_iter().map(|r| match r {
            OpRes::Range(mut range) => range.kvs.pop(),
            OpRes::Put(_) | OpRes::Delete(_) | OpRes::Txn(_) => None,
        });
        Ok(Committed::Stale(keys.into_iter().zip(found).collect()))
    }
}
