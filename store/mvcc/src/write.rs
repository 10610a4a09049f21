//! How changes of keys become records and events. Everything that makes a revision goes through here.

use bytes::Bytes;
use kontiki_base::ids::{LeaseId, Revision};
use kontiki_base::kv::{Event, EventKind, KeyValue};
use kontiki_base::mutant;

use crate::keys::{self, Meta, REVISION_LEN, SYS_REVISION, Stamp};
use crate::state::Revisions;
use crate::view::{Batch, Overlay, Space, View};

/// A record as the batch had it before it was changed.
type Undo = ((Space, Bytes), Option<Option<Bytes>>);

/// The changes of one command.
pub(crate) struct Writer<'a> {
    base: &'a dyn View,
    out: &'a mut Batch,
    begin: Revisions,
    /// Changes so far.
    sub: u32,
    /// The new revision in bytes, cut from the last change's records: saves an allocation for each command.
    revision: Bytes,
    events: Vec<Event>,
    undo: Option<Vec<Undo>>,
}

impl<'a> Writer<'a> {
    pub(crate) fn new(base: &'a dyn View, out: &'a mut Batch, begin: Revisions) -> Self {
        Self { base, out, begin, sub: 0, revision: Bytes::new(), events: Vec::new(), undo: None }
    }

    /// The state with all changes so far.
    pub(crate) fn view(&self) -> Overlay<'_> {
        Overlay { base: self.base, batch: self.out }
    }

    /// Where the store stood before the command.
    pub(crate) fn begin(&self) -> Revisions {
        self.begin
    }

    /// Where the store stands with the changes so far: on a new revision as soon as there is one.
    pub(crate) fn now(&self) -> Revisions {
        let revision = if self.sub > 0 { self.begin.revision.next() } else { self.begin.revision };
        Revisions { revision, ..self.begin }
    }

    /// Makes [`Writer::roll_back`] possible for what follows. Costs a little for each record.
    pub(crate) fn remember(&mut self) {
        self.undo.get_or_insert_default();
    }

    /// Takes all changes back.
    pub(crate) fn roll_back(&mut self) {
        assert!(self.undo.is_some() || self.sub == 0, "changes were made that nobody remembers");
        for (place, before) in self.undo.take().unwrap_or_default().into_iter().rev() {
            match before {
                Some(value) => self.out.writes.insert(place, value),
                None => self.out.writes.remove(&place),
            };
        }
        self.sub = 0;
        self.events.clear();
    }

    /// Ends the command: the revision after it, and its events.
    pub(crate) fn finish(mut self) -> (Revision, Vec<Event>) {
        let revision = self.now().revision;
        if self.sub > 0 {
            self.set(Space::Sys, Bytes::from_static(SYS_REVISION), self.revision.clone());
        }
        (revision, self.events)
    }

    /// Writes a record that is not a version of a key.
    pub(crate) fn set(&mut self, space: Space, key: Bytes, value: Bytes) {
        self.change(space, key, Some(value));
    }

    /// Deletes a record that is not a version of a key.
    pub(crate) fn unset(&mut self, space: Space, key: Bytes) {
        self.change(space, key, None);
    }

    /// A new version of a key whose present life is `before`.
    pub(crate) fn put_key(&mut self, key: &Bytes, value: &Bytes, lease: LeaseId, before: Option<&Meta>) {
        let at = self.next_stamp();
        let meta = match before {
            Some(before) => Meta { create: before.create, at, version: before.version + 1, lease },
            None => Meta { create: at.main, at, version: 1, lease },
        };
        let old_lease = before.map_or(LeaseId::ZERO, |before| before.lease);
        if old_lease != lease {
            mutant!("M63", self.detach(old_lease, key), ());
            if lease != LeaseId::ZERO {
                self.set(Space::Lease, keys::attach_key(lease, key).into(), Bytes::new());
            }
        }
        let records = keys::put_records(key, &meta, value);
        self.set(Space::Kv, records.kv_key, records.kv);
        self.revision = records.rev_key.slice(..REVISION_LEN);
        self.set(Space::Rev, records.rev_key, records.rev);
        self.set(Space::Meta, key.clone(), records.meta);
        let kv = KeyValue {
            key: key.clone(),
            value: value.clone(),
            create_revision: meta.create,
            mod_revision: at.main,
            version: meta.version,
            lease,
        };
        self.events.push(Event { kind: EventKind::Put, kv, prev: None });
    }

    /// The end of the life `before` of a key.
    pub(crate) fn delete_key(&mut self, key: Bytes, before: &Meta) {
        let at = self.next_stamp();
        self.detach(before.lease, &key);
        let records = keys::tombstone_records(&key, at);
        self.set(Space::Kv, records.kv_key, records.kv);
        self.revision = records.rev_key.slice(..REVISION_LEN);
        self.set(Space::Rev, records.rev_key, records.rev);
        self.unset(Space::Meta, key.clone());
        let kv = KeyValue { key, mod_revision: at.main, ..KeyValue::default() };
        self.events.push(Event { kind: EventKind::Delete, kv, prev: None });
    }

    fn detach(&mut self, lease: LeaseId, key: &[u8]) {
        if lease != LeaseId::ZERO {
            self.unset(Space::Lease, keys::attach_key(lease, key).into());
        }
    }

    fn next_stamp(&mut self) -> Stamp {
        let stamp = Stamp { main: self.begin.revision.next(), sub: self.sub };
        self.sub = self.sub.checked_add(1).expect("a command changes fewer than 2^32 keys");
        stamp
    }

    fn change(&mut self, space: Space, key: Bytes, value: Option<Bytes>) {
        match &mut self.undo {
            Some(undo) => {
                let place = (space, key);
                let before = self.out.writes.insert(place.clone(), value);
                undo.push((place, before));
            }
            None => {
                self.out.writes.insert((space, key), value);
            }
        }
    }
}
