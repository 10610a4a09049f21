//! Members that were removed, for ever: an id that has voted once must not vote again as another.
//!
//! The record is made where the removal is applied, from the membership before and the one after, so that all members have the same; it is part
//! of the state, and so of snapshots.

use kontiki_base::ids::MemberId;
use kontiki_base::kv::KvError;
use kontiki_mvcc::{Batch, Space, View, keys};

use super::node::Inner;
use super::types::Membership;

/// Records who is in the membership before and not in the one after.
pub(super) fn note(before: &Membership, after: &Membership, batch: &mut Batch) {
    for (id, _) in before.nodes().filter(|(id, _)| after.get_node(id).is_none()) {
        batch.put(Space::Member, keys::removed_key(MemberId::new(*id)).to_vec(), Vec::new());
    }
}

/// Whether a member of this id was removed, as far as this member has applied the log.
pub(super) fn contains(view: &dyn View, id: MemberId) -> Result<bool, KvError> {
    let found = view.get(Space::Member, &keys::removed_key(id));
    found.map(|found| found.is_some()).map_err(|e| KvError::Internal(e.to_string()))
}

/// Refuses who was removed: it may not know it yet.
pub(super) fn refuse(inner: &Inner, id: u64) -> Result<(), String> {
    match contains(&*inner.engine.snapshot(), MemberId::new(id)) {
        Ok(false) => Ok(()),
        Ok(true) => Err(format!("member {id:x} was removed from the cluster")),
        Err(error) => Err(error.to_string()),
    }
}
