//! The past from the engine: what a watch reads until it has caught up.

use kontiki_base::ids::Revision;
use kontiki_base::key::KeyRange;
use kontiki_base::kv::{Event, KvError};
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

/// Fills `prev`. A key that is written twice in one revision has its first write as the second's past.
fn add_previous(view: &dyn View, events: &mut [Event]) -> Result<(), KvError> {
    for place in 0..events.len() {
        let (earlier, rest) = events.split_at_mut(place);
        let Some(event) = rest.first_mut() else { break };
        let revision = event.kv.mod_revision;
        let sibling = earlier.iter().rev().take_while(|e| e.kv.mod_revision == revision).find(|e| e.kv.key == event.kv.key);
        event.prev = match sibling {
            Some(write) if write.kind == kontiki_base::kv::EventKind::Put => Some(write.kv.clone()),
            Some(_) => None,
            None => previous(view, &event.kv.key, revision).map_err(|error| KvError::Corrupt(error.to_string()))?,
        };
    }
    Ok(())
}
