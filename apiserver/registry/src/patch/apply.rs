//! Server-side apply.

use kontiki_base::object::Gvk;
use serde_json::Value;

use super::PatchError;

/// One field that another manager owns with another value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConflictCause {
    /// Such as `conflict with "kubectl" using apps/v1`.
    pub message: String,
    /// Path of the field, such as `.spec.replicas`.
    pub field: String,
}

/// Why an apply was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// Other managers own fields that this one wants to change, and it did not force.
    #[error("{message}")]
    Conflicts {
        /// The message of the Status.
        message: String,
        /// One per field.
        causes: Vec<ConflictCause>,
    },
    /// The configuration is no object of its kind.
    #[error(transparent)]
    Patch(#[from] PatchError),
}

/// Applies a manager's whole intent to the live object.
pub fn apply(live: Option<&Value>, applied: &Value, gvk: &Gvk, manager: &str, force: bool, now: &str) -> Result<Value, ApplyError> {
    let _ = (live, applied, gvk, manager, force, now);
    Err(PatchError::Unmergeable("server-side apply is not built yet".into()).into())
}
