//! The recent past in memory: what was applied lately, in order, bounded by revisions and by bytes.

use std::collections::VecDeque;
use std::sync::Arc;

use kontiki_base::ids::Revision;
use kontiki_base::kv::{Event, KeyValue};
use kontiki_base::mutant;

/// The events of one applied batch. Holds whole revisions.
#[derive(Debug)]
pub struct Feed {
    /// Its number in the ring, counted up from the start of the process.
    pub seq: u64,
    /// The revision of the first event.
    pub first: Revision,
    /// The store's revision after the batch.
    pub revision: Revision,
    /// In order; never empty.
    pub events: Arc<[Event]>,
    /// Roughly what it takes in memory.
    bytes: usize,
}

/// The ring's bounds.
#[derive(Clone, Copy, Debug)]
pub struct RingLimits {
    /// At most so many revisions…
    pub revisions: usize,
    /// …and so many bytes. The newest feed stays, whatever its size.
    pub bytes: usize,
}

/// Recent feeds. Everything after [`Ring::floor`] is in it.
#[derive(Debug)]
pub struct Ring {
    feeds: VecDeque<Arc<Feed>>,
    limits: RingLimits,
    floor: Revision,
    /// The store's revision as of the last push or clear.
    last: Revision,
    revisions: usize,
    bytes: usize,
    next_seq: u64,
}

impl Ring {
    /// An empty ring of a store that stands at `revision`.
    pub fn new(limits: RingLimits, revision: Revision) -> Self {
        Self { feeds: VecDeque::new(), limits, floor: revision, last: revision, revisions: 0, bytes: 0, next_seq: 0 }
    }

    /// Appends a batch's events; `revision` is the store's after it. The oldest leave if there is no room. What is known already is
    /// ignored; after a gap, the ring begins anew behind it.
    pub fn push(&mut self, events: Vec<Event>, revision: Revision) {
        let Some(first) = events.first().map(|e| e.kv.mod_revision) else { return };
        if revision <= self.last {
            return;
        }
        if first > self.last.next() {
            self.clear(Revision::new(first.get() - 1));
        }
        self.last = revision;
        let bytes = events.iter().map(event_bytes).sum();
        let feed = Feed { seq: self.next_seq, first, revision, events: events.into(), bytes };
        self.next_seq += 1;
        self.bytes += bytes;
        self.revisions += span(&feed);
        self.feeds.push_back(Arc::new(feed));
        while self.feeds.len() > 1 && (self.revisions > self.limits.revisions || self.bytes > self.limits.bytes) {
            self.evict();
        }
    }

    fn evict(&mut self) {
        if let Some(old) = self.feeds.pop_front() {
            self.floor = old.revision;
            self.bytes -= old.bytes;
            self.revisions -= span(&old);
        }
    }

    /// Forgets everything: the store was replaced and stands at `revision`.
    pub fn clear(&mut self, revision: Revision) {
        self.feeds.clear();
        (self.floor, self.last, self.revisions, self.bytes) = (revision, revision, 0, 0);
    }

    /// Everything after this revision is in the ring.
    pub const fn floor(&self) -> Revision {
        self.floor
    }

    /// The number that the next feed will get.
    pub const fn next_seq(&self) -> u64 {
        self.next_seq
    }

    /// The feed with this number, or the oldest after it.
    pub fn at_or_after(&self, seq: u64) -> Option<&Arc<Feed>> {
        let oldest = self.feeds.front()?.seq;
        let place = usize::try_from(seq.saturating_sub(oldest)).unwrap_or(usize::MAX);
        self.feeds.get(place)
    }

    /// The feeds that hold anything from revision `next` on, numbered below `before_seq`, at most about `revisions` revisions of them.
    /// `None` if some of that has left the ring.
    pub fn since(&self, next: Revision, before_seq: u64, revisions: usize) -> Option<Vec<Arc<Feed>>> {
        if next <= self.floor {
            return None;
        }
        let start = self.feeds.partition_point(|feed| mutant!("M49", feed.revision < next, feed.revision <= next));
        let mut taken = 0;
        let wanted = self.feeds.iter().skip(start).take_while(|feed| feed.seq < before_seq).take_while(|feed| {
            let go_on = taken < revisions;
            taken += span(feed);
            go_on
        });
        Some(wanted.cloned().collect())
    }
}

/// How many revisions a feed covers.
fn span(feed: &Feed) -> usize {
    usize::try_from(feed.revision.get() - feed.first.get() + 1).unwrap_or(1)
}

fn event_bytes(event: &Event) -> usize {
    let size = |kv: &KeyValue| kv.key.len() + kv.value.len() + size_of::<KeyValue>();
    size(&event.kv) + event.prev.as_ref().map_or(0, size)
}

#[cfg(test)]
mod tests {
    use kontiki_base::kv::EventKind;

    use super::*;

    const fn r(n: i64) -> Revision {
        Revision::new(n)
    }

    fn put(revision: i64, value: usize) -> Event {
        let kv = KeyValue { key: "k".into(), value: vec![0; value].into(), mod_revision: r(revision), ..KeyValue::default() };
        Event { kind: EventKind::Put, kv, prev: None }
    }

    fn revisions(feeds: &[Arc<Feed>]) -> Vec<i64> {
        feeds.iter().map(|f| f.revision.get()).collect()
    }

    #[test]
    fn old_feeds_leave_and_the_floor_says_so() {
        let mut ring = Ring::new(RingLimits { revisions: 3, bytes: usize::MAX }, r(1));
        for n in 2..=5 {
            ring.push(vec![put(n, 1)], r(n));
        }
        assert_eq!(ring.floor(), r(2));
        assert!(ring.since(r(2), u64::MAX, 99).is_none(), "revision 2 has left");
        assert_eq!(revisions(&ring.since(r(3), u64::MAX, 99).unwrap()), [3, 4, 5]);
        assert_eq!(revisions(&ring.since(r(4), 3, 99).unwrap()), [4], "5 has the number 3");
        assert_eq!(revisions(&ring.since(r(3), u64::MAX, 2).unwrap()), [3, 4], "in pieces");
        assert_eq!(revisions(&ring.since(r(6), u64::MAX, 99).unwrap()), [] as [i64; 0]);
        assert_eq!(ring.at_or_after(0).map(|f| f.revision), Some(r(3)), "the oldest there is");
        assert_eq!(ring.at_or_after(3).map(|f| f.revision), Some(r(5)));
        assert!(ring.at_or_after(4).is_none());
    }

    #[test]
    fn bytes_bound_it_but_the_newest_stays() {
        let mut ring = Ring::new(RingLimits { revisions: 99, bytes: 1000 }, r(1));
        ring.push(vec![put(2, 600)], r(2));
        ring.push(vec![put(3, 5000)], r(3));
        assert_eq!(ring.floor(), r(2));
        assert_eq!(revisions(&ring.since(r(3), u64::MAX, 9).unwrap()), [3]);
    }

    #[test]
    fn a_gap_empties_it_and_what_is_known_is_ignored() {
        let mut ring = Ring::new(RingLimits { revisions: 99, bytes: usize::MAX }, r(1));
        ring.push(vec![put(2, 1)], r(2));
        ring.push(vec![put(9, 1)], r(9));
        assert_eq!(ring.floor(), r(8), "a member that starts over old data is told of what comes after it");
        ring.push(vec![put(9, 1)], r(9));
        assert_eq!(revisions(&ring.since(r(9), u64::MAX, 9).unwrap()), [9]);
    }

    #[test]
    fn a_batch_without_events_is_not_kept() {
        let mut ring = Ring::new(RingLimits { revisions: 9, bytes: 1000 }, r(1));
        ring.push(Vec::new(), r(1));
        assert_eq!(ring.next_seq(), 0);
    }

    #[test]
    fn a_feed_of_many_revisions_is_found_from_its_middle() {
        let mut ring = Ring::new(RingLimits { revisions: 99, bytes: usize::MAX }, r(1));
        ring.push(vec![put(2, 1), put(3, 1), put(4, 1)], r(4));
        ring.push(vec![put(5, 1)], r(5));
        assert_eq!(revisions(&ring.since(r(3), u64::MAX, 99).unwrap()), [4, 5]);
        ring.clear(r(40));
        assert!(ring.since(r(5), u64::MAX, 99).is_none());
        assert_eq!(ring.at_or_after(0).map(|f| f.seq), None);
    }
}
