//! Rules of `metadata`, and the road of an object from a request to the store: creation, update, status update.

use serde_json::Value;

use crate::row::{Row, Sub};
use crate::status::Status;

/// What the server brings to a creation.
#[derive(Clone, Debug)]
pub struct CreateCtx<'a> {
    /// A fresh random uid (version 4).
    pub uid: String,
    /// Now, RFC 3339 in UTC, whole seconds.
    pub now: &'a str,
    /// Who asks.
    pub user: &'a str,
    /// Five characters of [`SUFFIX_ALPHABET`], for `generateName`; fresh for every try.
    pub suffix: &'a str,
    /// Namespace of the path; empty for kinds without namespaces.
    pub namespace: &'a str,
    /// Who is named in `managedFields`.
    pub field_manager: &'a str,
}

/// The characters of generated names (apimachinery `pkg/util/rand`): no vowels, nothing that looks like another.
pub const SUFFIX_ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
/// How many fresh names are tried before a creation with `generateName` gives up.
pub const GENERATE_NAME_TRIES: usize = 8;

/// Makes a decoded, pruned object ready to be stored: name, namespace, uid, times, generation, defaults, validation.
pub fn prepare_create(row: &Row, obj: &mut Value, ctx: &CreateCtx<'_>) -> Result<(), Status> {
    let _ = (row, obj, ctx);
    Ok(())
}

/// Makes the new state of an object ready to be stored over the old one. `sub` is the subresource that was written, if any.
pub fn prepare_update(row: &Row, obj: &mut Value, old: &Value, sub: Option<&Sub>, now: &str) -> Result<(), Status> {
    let _ = (row, obj, old, sub, now);
    Ok(())
}
