//! A second store, as naive as can be: a full copy of all keys for every revision. It shares requests and answers with the real
//! one, and nothing else.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use kontiki_base::ids::{LeaseId, MemberId, Revision};
use kontiki_base::key::{KeyRange, RangeEnd};
use kontiki_base::kv::{
    Compare, CompareOp, CompareTarget, DeleteReq, DeleteRes, Event, EventKind, KeyValue, KvError, Op, OpRes, PutReq, PutRes, RangeReq,
    RangeRes, SortOrder, SortTarget, Txn, TxnRes,
};
use kontiki_mvcc::{Alarm, AlarmKind, Command, Outcome, Reply};

use crate::util::TERM;

type Keys = BTreeMap<Bytes, KeyValue>;

pub(crate) struct Model {
    /// All keys as of each revision that can be read, and a few before.
    states: BTreeMap<i64, Arc<Keys>>,
    /// All changes from the compact revision on.
    changes: BTreeMap<i64, Vec<Event>>,
    leases: BTreeMap<LeaseId, i64>,
    /// Whether each alarm goes by itself.
    alarms: BTreeMap<(AlarmKind, u64), bool>,
    revision: i64,
    compact: i64,
}

/// The keys in the course of one command.
struct Work {
    keys: Keys,
    events: Vec<Event>,
}

impl Model {
    pub(crate) fn new() -> Self {
        Self {
            states: BTreeMap::from([(0, Arc::default()), (1, Arc::default())]),
            changes: BTreeMap::new(),
            leases: BTreeMap::new(),
            alarms: BTreeMap::new(),
            revision: 1,
            compact: -1,
        }
    }

    pub(crate) fn apply(&mut self, command: &Command) -> Outcome {
        let mut work = Work { keys: self.states[&self.revision].as_ref().clone(), events: vec![] };
        let reply = self.run(command, &mut work);
        if reply.is_ok() && !work.events.is_empty() {
            self.revision += 1;
            self.states.insert(self.revision, Arc::new(work.keys));
            self.changes.insert(self.revision, work.events.clone());
        } else {
            work.events.clear();
        }
        Outcome { reply, events: work.events, revision: Revision(self.revision) }
    }

    fn run(&mut self, command: &Command, work: &mut Work) -> Result<Reply, KvError> {
        match command {
            Command::Put(req) => {
                put_is_sane(req)?;
                self.not_alarmed(true)?;
                if req.lease.0 != 0 && !self.leases.contains_key(&req.lease) {
                    return Err(KvError::LeaseNotFound);
                }
                Ok(Reply::Put(self.put(req, work)?))
            }
            Command::Delete(req) => {
                not_empty(&req.range.start)?;
                self.not_alarmed(false)?;
                Ok(Reply::Delete(self.delete(req, work)))
            }
            Command::Txn { txn, fence } => {
                if let Some(given) = fence.filter(|fence| *fence != TERM) {
                    return Err(KvError::Fenced { given, current: TERM });
                }
                txn_is_sane(txn)?;
                no_overlap(&txn.success)?;
                no_overlap(&txn.failure)?;
                let (mut all, ops) = (vec![], [&txn.success[..], &txn.failure[..]].concat());
                puts(&ops, &mut all);
                self.not_alarmed(!all.is_empty())?;
                self.check_path(txn, &work.keys)?;
                let before = work.keys.clone();
                let mut res = self.txn(txn, &before, work)?;
                res.revision = self.header(work);
                Ok(Reply::Txn(res))
            }
            Command::LeaseGrant { id, ttl } => {
                if id.0 == 0 {
                    Err(KvError::LeaseNotFound)
                } else if *ttl > 9_000_000_000 {
                    Err(KvError::LeaseTtlTooLarge)
                } else if let Err(error) = self.not_alarmed(true) {
                    Err(error)
                } else if self.leases.contains_key(id) {
                    Err(KvError::LeaseExists)
                } else {
                    let ttl = if *ttl < 1 { 1 } else { *ttl };
                    self.leases.insert(*id, ttl);
                    Ok(Reply::LeaseGrant { id: *id, ttl })
                }
            }
            Command::LeaseExpire { term, .. } if *term != TERM => Err(KvError::Fenced { given: *term, current: TERM }),
            Command::LeaseRevoke { id } | Command::LeaseExpire { id, .. } => {
                self.not_alarmed(false)?;
                self.leases.remove(id).ok_or(KvError::LeaseNotFound)?;
                for key in attached(&work.keys, *id) {
                    self.remove(&key, work);
                }
                Ok(Reply::LeaseRevoke)
            }
            Command::Alarm { raise, alarm } => Ok(Reply::Alarm(self.alarm(*raise, *alarm))),
            Command::Compact { revision } => {
                self.not_alarmed(false)?;
                if revision.0 <= self.compact {
                    return Err(KvError::Compacted { compact: Revision(self.compact) });
                }
                if revision.0 > self.revision {
                    return Err(KvError::FutureRevision);
                }
                self.compact = revision.0;
                self.states.retain(|at, _| *at >= revision.0);
                self.changes.retain(|at, _| *at >= revision.0);
                Ok(Reply::Compact)
            }
            Command::Auth(_) | Command::As { .. } => unreachable!("this model has no users; they have tables of their own"),
        }
    }

    fn alarm(&mut self, raise: bool, alarm: Alarm) -> Option<Alarm> {
        let place = (alarm.kind, alarm.member.0);
        let known = self.alarms.get(&place).copied();
        match (raise, known) {
            (true, _) => {
                let automatic = alarm.automatic && known != Some(false);
                self.alarms.insert(place, automatic);
                Some(Alarm { automatic, ..alarm })
            }
            // Who takes back what goes by itself does not mean what somebody has raised by hand.
            (false, Some(false)) if alarm.automatic => None,
            (false, _) => self.alarms.remove(&place).map(|automatic| Alarm { automatic, ..alarm }),
        }
    }

    fn not_alarmed(&self, grows: bool) -> Result<(), KvError> {
        if self.alarms.iter().any(|((kind, _), automatic)| *kind == AlarmKind::Corrupt && !automatic) {
            return Err(KvError::Corrupt("etcdserver: corrupt cluster".into()));
        }
        let full = self.alarms.keys().any(|(kind, _)| *kind == AlarmKind::NoSpace);
        if full && grows { Err(KvError::NoSpace) } else { Ok(()) }
    }

    /// The alarms, in order.
    pub(crate) fn alarms(&self) -> Vec<Alarm> {
        self.alarms.iter().map(|((kind, id), automatic)| Alarm { kind: *kind, member: MemberId(*id), automatic: *automatic }).collect()
    }

    /// The revision of an answer that is given now.
    fn header(&self, work: &Work) -> Revision {
        Revision(if work.events.is_empty() { self.revision } else { self.revision + 1 })
    }

    fn put(&self, req: &PutReq, work: &mut Work) -> Result<PutRes, KvError> {
        let old = work.keys.get(&req.key).cloned();
        if (req.ignore_value || req.ignore_lease) && old.is_none() {
            return Err(KvError::KeyNotFound);
        }
        let mut new = KeyValue {
            key: req.key.clone(),
            value: req.value.clone(),
            lease: req.lease,
            create_revision: Revision(self.revision + 1),
            mod_revision: Revision(self.revision + 1),
            version: 1,
        };
        if let Some(old) = &old {
            new.create_revision = old.create_revision;
            new.version = old.version + 1;
            if req.ignore_value {
                new.value = old.value.clone();
            }
            if req.ignore_lease {
                new.lease = old.lease;
            }
        }
        work.keys.insert(req.key.clone(), new.clone());
        work.events.push(Event { kind: EventKind::Put, kv: new, prev: None });
        Ok(PutRes { revision: self.header(work), prev: if req.prev_kv { old } else { None } })
    }

    fn remove(&self, key: &Bytes, work: &mut Work) -> KeyValue {
        let old = work.keys.remove(key).unwrap();
        let kv = KeyValue { key: key.clone(), mod_revision: Revision(self.revision + 1), ..KeyValue::default() };
        work.events.push(Event { kind: EventKind::Delete, kv, prev: None });
        old
    }

    fn delete(&self, req: &DeleteReq, work: &mut Work) -> DeleteRes {
        let keys: Vec<Bytes> = work.keys.keys().filter(|key| selects(&req.range, key)).cloned().collect();
        let prevs: Vec<_> = keys.iter().map(|key| self.remove(key, work)).collect();
        DeleteRes { revision: self.header(work), deleted: keys.len() as i64, prevs: if req.prev_kv { prevs } else { vec![] } }
    }

    /// `before` decides all conditions, `work` is what the steps see.
    fn txn(&self, txn: &Txn, before: &Keys, work: &mut Work) -> Result<TxnRes, KvError> {
        let succeeded = txn.compare.iter().all(|compare| holds(compare, before));
        let mut responses = vec![];
        for op in if succeeded { &txn.success } else { &txn.failure } {
            responses.push(match op {
                Op::Put(req) => OpRes::Put(self.put(req, work)?),
                Op::Delete(req) => OpRes::Delete(self.delete(req, work)),
                Op::Txn(inner) => OpRes::Txn(self.txn(inner, before, work)?),
                Op::Range(req) => {
                    let keys = if req.at.0 > 0 { self.states[&req.at.0].as_ref() } else { &work.keys };
                    OpRes::Range(RangeRes { revision: self.header(work), ..read(req, keys) })
                }
            });
        }
        Ok(TxnRes { revision: Revision(0), succeeded, responses })
    }

    fn check_path(&self, txn: &Txn, before: &Keys) -> Result<(), KvError> {
        let succeeded = txn.compare.iter().all(|compare| holds(compare, before));
        for op in if succeeded { &txn.success } else { &txn.failure } {
            match op {
                Op::Put(req) if (req.ignore_value || req.ignore_lease) && !before.contains_key(&req.key) => {
                    return Err(KvError::KeyNotFound);
                }
                Op::Put(req) if req.lease.0 != 0 && !self.leases.contains_key(&req.lease) => return Err(KvError::LeaseNotFound),
                Op::Range(req) if req.at.0 > self.revision => return Err(KvError::FutureRevision),
                Op::Range(req) if req.at.0 != 0 && req.at.0 < self.compact => {
                    return Err(KvError::Compacted { compact: Revision(self.compact) });
                }
                Op::Txn(inner) => self.check_path(inner, before)?,
                _ => {}
            }
        }
        Ok(())
    }

    pub(crate) fn range(&self, req: &RangeReq) -> Result<RangeRes, KvError> {
        not_empty(&req.range.start)?;
        let at = if req.at.0 <= 0 { self.revision } else { req.at.0 };
        if at > self.revision {
            return Err(KvError::FutureRevision);
        }
        if at < self.compact {
            return Err(KvError::Compacted { compact: Revision(self.compact) });
        }
        Ok(RangeRes { revision: Revision(self.revision), ..read(req, &self.states[&at]) })
    }

    /// Every change of a range from a revision on, each with the key before it.
    pub(crate) fn history(&self, range: &KeyRange, from: i64) -> Result<Vec<Event>, KvError> {
        if from < self.compact {
            return Err(KvError::Compacted { compact: Revision(self.compact) });
        }
        let events = self.changes.range(from.max(0)..).flat_map(|(_, events)| events);
        let mut events: Vec<Event> = events.filter(|event| selects(range, &event.kv.key)).cloned().collect();
        for event in &mut events {
            let before = event.kv.mod_revision.0 - 1;
            event.prev = self.states.get(&before).and_then(|keys| keys.get(&event.kv.key)).cloned();
        }
        Ok(events)
    }

    /// How many versions can still be read by somebody.
    pub(crate) fn readable_versions(&self) -> usize {
        let changes: usize = self.changes.values().map(Vec::len).sum();
        let first = self.states.values().next().unwrap();
        changes + first.values().filter(|kv| kv.mod_revision.0 < self.compact).count()
    }

    pub(crate) fn leases(&self) -> Vec<(LeaseId, i64, Vec<Bytes>)> {
        let keys = &self.states[&self.revision];
        self.leases.iter().map(|(id, ttl)| (*id, *ttl, attached(keys, *id))).collect()
    }

    pub(crate) fn revision(&self) -> Revision {
        Revision(self.revision)
    }

    pub(crate) fn compacted(&self) -> Revision {
        Revision(self.compact)
    }
}

fn attached(keys: &Keys, id: LeaseId) -> Vec<Bytes> {
    keys.values().filter(|kv| kv.lease == id).map(|kv| kv.key.clone()).collect()
}

fn selects(range: &KeyRange, key: &Bytes) -> bool {
    match &range.end {
        RangeEnd::Single => *key == range.start,
        RangeEnd::Before(end) => range.start <= *key && *key < *end,
        RangeEnd::Unbounded => range.start <= *key,
    }
}

fn read(req: &RangeReq, keys: &Keys) -> RangeRes {
    let mut kvs: Vec<KeyValue> = keys.values().filter(|kv| selects(&req.range, &kv.key)).cloned().collect();
    let count = kvs.len() as i64;
    if req.count_only {
        return RangeRes { count, ..RangeRes::default() };
    }
    let within = |x: Revision, min: Revision, max: Revision| (min.0 == 0 || x >= min) && (max.0 == 0 || x <= max);
    kvs.retain(|kv| within(kv.mod_revision, req.min_mod, req.max_mod) && within(kv.create_revision, req.min_create, req.max_create));
    // Equals stay in key order: sorting by (rank, key), where a descending rank is a negative one.
    let down = req.order == SortOrder::Descend;
    let sign = if down { -1 } else { 1 };
    match req.target {
        SortTarget::Key if down => kvs.reverse(),
        SortTarget::Key => {}
        SortTarget::Version => kvs.sort_by_key(|kv| (sign * kv.version, kv.key.clone())),
        SortTarget::Create => kvs.sort_by_key(|kv| (sign * kv.create_revision.0, kv.key.clone())),
        SortTarget::Mod => kvs.sort_by_key(|kv| (sign * kv.mod_revision.0, kv.key.clone())),
        SortTarget::Value if down => kvs.sort_by_key(|kv| (std::cmp::Reverse(kv.value.clone()), kv.key.clone())),
        SortTarget::Value => kvs.sort_by_key(|kv| (kv.value.clone(), kv.key.clone())),
    }
    let more = req.limit != 0 && kvs.len() > req.limit;
    if more {
        kvs.truncate(req.limit);
    }
    if req.keys_only {
        kvs.iter_mut().for_each(|kv| kv.value = Bytes::new());
    }
    RangeRes { revision: Revision(0), kvs, more, count }
}

fn holds(compare: &Compare, keys: &Keys) -> bool {
    let found: Vec<&KeyValue> = keys.values().filter(|kv| selects(&compare.range, &kv.key)).collect();
    if found.is_empty() {
        return !matches!(compare.target, CompareTarget::Value(_)) && holds_for(compare, &KeyValue::default());
    }
    found.into_iter().all(|kv| holds_for(compare, kv))
}

fn holds_for(compare: &Compare, kv: &KeyValue) -> bool {
    fn relation<T: Ord>(op: CompareOp, a: T, b: T) -> bool {
        match op {
            CompareOp::Equal => a == b,
            CompareOp::NotEqual => a != b,
            CompareOp::Greater => a > b,
            CompareOp::Less => a < b,
        }
    }
    match &compare.target {
        CompareTarget::Version(x) => relation(compare.op, kv.version, *x),
        CompareTarget::Create(x) => relation(compare.op, kv.create_revision, *x),
        CompareTarget::Mod(x) => relation(compare.op, kv.mod_revision, *x),
        CompareTarget::Lease(x) => relation(compare.op, kv.lease, *x),
        CompareTarget::Value(x) => relation(compare.op, &kv.value, x),
    }
}

fn not_empty(key: &Bytes) -> Result<(), KvError> {
    if key.is_empty() { Err(KvError::EmptyKey) } else { Ok(()) }
}

fn put_is_sane(req: &PutReq) -> Result<(), KvError> {
    not_empty(&req.key)?;
    if req.ignore_value && !req.value.is_empty() {
        return Err(KvError::ValueProvided);
    }
    if req.ignore_lease && req.lease.0 != 0 {
        return Err(KvError::LeaseProvided);
    }
    Ok(())
}

fn txn_is_sane(txn: &Txn) -> Result<(), KvError> {
    for compare in &txn.compare {
        not_empty(&compare.range.start)?;
    }
    for op in txn.success.iter().chain(&txn.failure) {
        match op {
            Op::Range(req) => not_empty(&req.range.start)?,
            Op::Put(req) => put_is_sane(req)?,
            Op::Delete(req) => not_empty(&req.range.start)?,
            Op::Txn(inner) => txn_is_sane(inner)?,
        }
    }
    Ok(())
}

/// Every key that a list of steps may put, whichever branches are taken.
fn puts(ops: &[Op], out: &mut Vec<Bytes>) {
    for op in ops {
        match op {
            Op::Put(req) => out.push(req.key.clone()),
            Op::Txn(inner) => {
                puts(&inner.success, out);
                puts(&inner.failure, out);
            }
            Op::Range(_) | Op::Delete(_) => {}
        }
    }
}

/// Every bounded range that a list of steps may delete. Those without an end are not looked at, in etcd.
fn deletes(ops: &[Op], out: &mut Vec<KeyRange>) {
    for op in ops {
        match op {
            Op::Delete(req) if req.range.end != RangeEnd::Unbounded => out.push(req.range.clone()),
            Op::Txn(inner) => {
                deletes(&inner.success, out);
                deletes(&inner.failure, out);
            }
            Op::Range(_) | Op::Delete(_) | Op::Put(_) => {}
        }
    }
}

/// The rule about overlapping writes, said of pairs: for each two steps of a list, may they write the same key?
fn no_overlap(ops: &[Op]) -> Result<(), KvError> {
    for (i, a) in ops.iter().enumerate() {
        if let Op::Txn(inner) = a {
            no_overlap(&inner.success)?;
            no_overlap(&inner.failure)?;
        }
        for (j, b) in ops.iter().enumerate().filter(|(j, _)| *j != i) {
            let (mut a_puts, mut b_puts, mut b_deletes) = (vec![], vec![], vec![]);
            puts(std::slice::from_ref(a), &mut a_puts);
            puts(std::slice::from_ref(b), &mut b_puts);
            deletes(std::slice::from_ref(b), &mut b_deletes);
            let same_put = a_puts.iter().any(|key| b_puts.contains(key));
            // Among nested transactions only an earlier delete counts against a later put.
            let counts = !(matches!((a, b), (Op::Txn(_), Op::Txn(_))) && j > i);
            let deleted = a_puts.iter().any(|key| b_deletes.iter().any(|range| selects(range, key)));
            if same_put || deleted && counts {
                return Err(KvError::DuplicateKey);
            }
        }
    }
    Ok(())
}
