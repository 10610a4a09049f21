//! Where wire types end: conversions between etcd's messages and the words of `kontiki-base`, both ways, and the error table.
//!
//! | module | what it holds |
//! |---|---|
//! | [`error`] | every error text that an etcd client may compare, with its code; to and from `tonic::Status` |
//! | [`request`] | requests: a server reads them, a client writes them |
//! | [`response`] | replies: a server writes them, a client reads them |
//!
//! Every conversion is total: what has no meaning gives the typed error that etcd gives.

pub mod error;
pub mod request;
pub mod response;

use kontiki_base::ids::{LeaseId, Revision};
use kontiki_base::kv::{Event, EventKind, KeyValue};

use crate::etcd::mvccpb;

/// A key with its value, to the wire.
pub fn kv_to_wire(kv: KeyValue) -> mvccpb::KeyValue {
    mvccpb::KeyValue {
        key: kv.key,
        create_revision: kv.create_revision.get(),
        mod_revision: kv.mod_revision.get(),
        version: kv.version,
        value: kv.value,
        lease: kv.lease.get(),
    }
}

/// A key with its value, from the wire.
pub fn kv_from_wire(kv: mvccpb::KeyValue) -> KeyValue {
    KeyValue {
        key: kv.key,
        value: kv.value,
        create_revision: Revision::new(kv.create_revision),
        mod_revision: Revision::new(kv.mod_revision),
        version: kv.version,
        lease: LeaseId::new(kv.lease),
    }
}

/// An event, to the wire; without `with_prev` the value before is left out.
pub fn event_to_wire(event: &Event, with_prev: bool) -> mvccpb::Event {
    let kind = match event.kind {
        EventKind::Put => mvccpb::event::EventType::Put,
        EventKind::Delete => mvccpb::event::EventType::Delete,
    };
    let prev = event.prev.as_ref().filter(|_| with_prev);
    mvccpb::Event { r#type: kind.into(), kv: Some(kv_to_wire(event.kv.clone())), prev_kv: prev.cloned().map(kv_to_wire) }
}

/// An event, from the wire. An unknown type is read as a put, as protobuf's open enums have it in etcd's own client.
pub fn event_from_wire(event: mvccpb::Event) -> Event {
    let kind = match mvccpb::event::EventType::try_from(event.r#type) {
        Ok(mvccpb::event::EventType::Delete) => EventKind::Delete,
        Ok(mvccpb::event::EventType::Put) | Err(_) => EventKind::Put,
    };
    Event { kind, kv: event.kv.map(kv_from_wire).unwrap_or_default(), prev: event.prev_kv.map(kv_from_wire) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_survive_the_wire() {
        let kv = KeyValue {
            key: "k".into(),
            value: "v".into(),
            create_revision: Revision::new(2),
            mod_revision: Revision::new(5),
            version: 3,
            lease: LeaseId::new(-7),
        };
        for (kind, prev) in [(EventKind::Put, None), (EventKind::Put, Some(kv.clone())), (EventKind::Delete, Some(kv.clone()))] {
            let event = Event { kind, kv: kv.clone(), prev };
            assert_eq!(event_from_wire(event_to_wire(&event, true)), event);
            assert_eq!(event_from_wire(event_to_wire(&event, false)), Event { prev: None, ..event });
        }
    }
}
