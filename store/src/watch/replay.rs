//! The past from the engine: what a watch reads until it has caught up.

use kontiki_base::ids::Revision;
use kontiki_base::key::KeyRange;
use kontiki_base::kv::{Event, EventKind, KeyValue, KvError};
use kontiki_mvcc::{View, history, previous};

/// At most about so many events are read at once; between two reads, the stream's other watches get their turn.
pub const REPLAY_EVENTS: usize = 1_000;

/// A piece of history.
#[derive(Debug)]
pub struct Piece {
    /// In order, whole revisions.
    pub events: Vec<Event>,
    /// Everything watched up to here is in `events`.
    pub upto: Revision,
}

/// Reads the changes of `range` from `from` on.
///
/// # Errors
/// [`KvError::Compacted`] with the revision where history begins; [`KvError::Corrupt`].
pub fn replay(view: &dyn View, range: &KeyRange, from: Revision, prev_kv: bool) -> Result<Piece, KvError> {
    let (mut events, next) = history(view, range, from, REPLAY_EVENTS)?;
    if prev_kv {
        add_previous(view, &mut events)?;
    }
    Ok(Piece { events, upto: Revision::new(next.get() - 1) })
}

/// Fills `prev` in whole revisions of events.
///
/// # Errors
/// [`KvError::Corrupt`].
pub fn add_previous(view: &dyn View, events: &mut [Event]) -> Result<(), KvError> {
    for place in 0..events.len() {
        let prev = previous_of(view, events, place)?;
        if let Some(event) = events.get_mut(place) {
            event.prev = prev;
        }
    }
    Ok(())
}

/// What a key was before the event at `place`; apply does not say, since that would cost every write a read. A key that is written twice in
/// one revision has its first write as the second's past.
///
/// # Errors
/// [`KvError::Corrupt`].
pub fn previous_of(view: &dyn View, events: &[Event], place: usize) -> Result<Option<KeyValue>, KvError> {
    let Some(event) = events.get(place) else { return Ok(None) };
    let (key, revision) = (&event.kv.key, event.kv.mod_revision);
    let same_revision = events.iter().take(place).rev().take_while(|e| e.kv.mod_revision == revision);
    match same_revision.into_iter().find(|e| e.kv.key == *key) {
        Some(write) => Ok((write.kind == EventKind::Put).then(|| write.kv.clone())),
        None => previous(view, key, revision).map_err(|error| KvError::Corrupt(error.to_string())),
    }
}
