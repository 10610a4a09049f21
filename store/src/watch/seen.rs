//! The events that a watch sees of a batch: shared with all others that see it, down to the bytes that are sent.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use kontiki_base::kv::{Event, EventKind};

use super::ring::Feed;

/// The events of a batch as they are sent. Each is encoded when the first watcher needs it, for all that follow; gone with the deliveries.
pub type Wired = Arc<[OnceLock<Bytes>]>;

/// What a watch sees. Never holds events that it does not see.
#[derive(Clone, Debug)]
pub enum Seen {
    /// Made for it: replayed, or with what was there before.
    Own(Arc<[Event]>),
    /// Of a batch that others see, too. Its events do not say what was there before.
    Shared {
        /// The batch.
        feed: Arc<Feed>,
        /// As it is sent; as long as the batch.
        wired: Wired,
        /// Which of its events, in order; `None`: all.
        places: Option<Box<[u32]>>,
    },
}

impl From<Vec<Event>> for Seen {
    fn from(events: Vec<Event>) -> Self {
        Self::Own(events.into())
    }
}

impl Seen {
    /// How many there are.
    pub fn len(&self) -> usize {
        match self {
            Self::Own(events) => events.len(),
            Self::Shared { feed, places: None, .. } => feed.events.len(),
            Self::Shared { places: Some(places), .. } => places.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn at(&self, place: usize) -> Option<(&Event, Option<&OnceLock<Bytes>>)> {
        match self {
            Self::Own(events) => Some((events.get(place)?, None)),
            Self::Shared { feed, wired, places } => {
                let place = match places {
                    None => place,
                    Some(places) => usize::try_from(*places.get(place)?).ok()?,
                };
                Some((feed.events.get(place)?, wired.get(place)))
            }
        }
    }

    /// The events, in order.
    pub fn iter(&self) -> impl Iterator<Item = &Event> {
        (0..self.len()).filter_map(|place| Some(self.at(place)?.0))
    }

    /// The events, in order, as they are sent. `encode` is asked only for those that nobody has encoded before.
    pub fn encoded(&self, encode: impl Fn(&Event) -> Bytes) -> impl Iterator<Item = Bytes> {
        (0..self.len()).filter_map(move |place| {
            let (event, wired) = self.at(place)?;
            // Two streams may look at once; they make the same.
            Some(wired.map_or_else(|| encode(event), |wired| wired.get_or_init(|| encode(event)).clone()))
        })
    }

    /// The events themselves. When it is all of a batch, that is shared, not copied.
    pub fn to_events(&self) -> Arc<[Event]> {
        match self {
            Self::Own(events) => Arc::clone(events),
            Self::Shared { feed, places: None, .. } => Arc::clone(&feed.events),
            Self::Shared { .. } => self.iter().cloned().collect(),
        }
    }

    /// Those of the kinds that are wanted.
    #[must_use]
    pub fn only(self, wanted: impl Fn(EventKind) -> bool) -> Self {
        if self.iter().all(|event| wanted(event.kind)) {
            return self;
        }
        match self {
            Self::Own(events) => Self::Own(events.iter().filter(|event| wanted(event.kind)).cloned().collect()),
            Self::Shared { ref feed, ref wired, ref places } => {
                let place = |place: usize| places.as_ref().map_or_else(|| u32::try_from(place).ok(), |places| places.get(place).copied());
                let kept = (0..self.len()).filter(|n| self.at(*n).is_some_and(|(event, _)| wanted(event.kind))).filter_map(place);
                Self::Shared { feed: Arc::clone(feed), wired: Arc::clone(wired), places: Some(kept.collect()) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use kontiki_base::ids::Revision;
    use kontiki_base::kv::KeyValue;

    use super::super::ring::{Ring, RingLimits};
    use super::*;

    #[test]
    fn an_event_is_encoded_once_for_all_that_see_it() {
        let event = |n: i64, kind| {
            let kv = KeyValue { key: vec![u8::try_from(n).unwrap()].into(), mod_revision: Revision::new(n), ..KeyValue::default() };
            Event { kind, kv, prev: None }
        };
        let mut ring = Ring::new(RingLimits { revisions: 10, bytes: 10_000 }, Revision::new(1));
        let events = vec![event(2, EventKind::Put), event(3, EventKind::Delete), event(4, EventKind::Put)];
        ring.push(events.clone(), Revision::new(4));
        let feed = Arc::clone(ring.at_or_after(0).unwrap());
        let wired: Wired = feed.events.iter().map(|_| OnceLock::new()).collect();
        let shared =
            |places: Option<&[u32]>| Seen::Shared { feed: Arc::clone(&feed), wired: Arc::clone(&wired), places: places.map(Into::into) };
        let encoded = Cell::new(0);
        let encode = |event: &Event| {
            encoded.set(encoded.get() + 1);
            event.kv.key.clone()
        };
        let keys = |seen: &Seen| seen.encoded(encode).flatten().collect::<Vec<u8>>();
        assert_eq!(keys(&shared(Some(&[1, 2]))), [3, 4]);
        assert_eq!(keys(&shared(None)), [2, 3, 4]);
        assert_eq!(keys(&shared(None).only(|kind| kind == EventKind::Put)), [2, 4]);
        assert_eq!(keys(&shared(Some(&[0, 1])).only(|kind| kind == EventKind::Delete)), [3]);
        assert_eq!(encoded.get(), 3, "each of the batch once");
        assert!(Arc::ptr_eq(&shared(None).only(|_| true).to_events(), &feed.events), "the whole batch is shared");
        assert_eq!(shared(Some(&[2])).to_events()[..], events[2..]);
        let own = Seen::from(events.clone());
        assert_eq!(keys(&own.clone().only(|kind| kind == EventKind::Put)), [2, 4]);
        assert_eq!((own.len(), own.is_empty(), shared(Some(&[])).is_empty()), (3, false, true));
    }
}
