//! Patches: the four ways in which a client says what to change, and who owns which field afterwards.
//!
//! | module | format |
//! |---|---|
//! | [`json`](mod@json) | RFC 6902 operations |
//! | [`merge`](mod@merge) | RFC 7386 merge patch |
//! | [`strategic`](mod@strategic) | Kubernetes strategic merge patch |
//! | [`apply`](mod@apply) | server-side apply |
//! | [`managed`] | `metadata.managedFields`: what other writes do to ownership |
//! | [`fields`] | sets of field paths and their `fieldsV1` form |
//! | [`keys`] | list and merge keys of the built-in kinds, by schema path |

pub mod apply;
pub mod fields;
pub mod json;
pub mod keys;
pub mod managed;
pub mod merge;
pub mod strategic;
mod typed;

use kontiki_base::Code;

pub use apply::{ApplyError, ConflictCause, apply, apply_as};
pub use json::json;
pub use managed::{Operation, Writer, update_managed};
pub use merge::merge;
pub use strategic::strategic;

/// The media type of a PATCH request decides how its body is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchType {
    /// `application/json-patch+json`.
    Json,
    /// `application/merge-patch+json`.
    Merge,
    /// `application/strategic-merge-patch+json`.
    Strategic,
    /// `application/apply-patch+yaml`.
    ApplyYaml,
}

impl PatchType {
    /// Every type, in the order in which a server lists what it accepts.
    pub const ALL: [Self; 4] = [Self::Json, Self::Merge, Self::Strategic, Self::ApplyYaml];

    /// The media type.
    pub const fn media_type(self) -> &'static str {
        match self {
            Self::Json => "application/json-patch+json",
            Self::Merge => "application/merge-patch+json",
            Self::Strategic => "application/strategic-merge-patch+json",
            Self::ApplyYaml => "application/apply-patch+yaml",
        }
    }

    /// Reads a `Content-Type`, parameters ignored.
    pub fn from_media_type(text: &str) -> Option<Self> {
        let bare = text.split(';').next().unwrap_or("").trim();
        Self::ALL.into_iter().find(|t| t.media_type().eq_ignore_ascii_case(bare))
    }
}

/// Why a patch could not be applied. The variant decides the status code, as in kube-apiserver.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    /// The patch itself is malformed.
    #[error("{0}")]
    Malformed(String),
    /// The patch is well formed but does not fit this object.
    #[error("{0}")]
    DoesNotApply(String),
    /// More operations or bytes than the server is willing to carry out.
    #[error("{0}")]
    TooLarge(String),
    /// What kube-apiserver reports as an internal error (status 500) although the patch is to blame.
    #[error("{0}")]
    Unmergeable(String),
}

impl PatchError {
    /// The outcome code; a door derives everything else from it.
    pub const fn code(&self) -> Code {
        match self {
            Self::Malformed(_) => Code::BadRequest,
            Self::DoesNotApply(_) => Code::Invalid,
            Self::TooLarge(_) => Code::TooLarge,
            Self::Unmergeable(_) => Code::Internal,
        }
    }
}

/// What Go's JSON decoder calls the type of a value.
fn json_type(value: &serde_json::Value) -> &'static str {
    use serde_json::Value;
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// A value as Go's `fmt` prints it with `%v`: kube-apiserver's error texts are made that way.
fn go_text(value: &serde_json::Value) -> String {
    use serde_json::Value;
    match value {
        Value::Null => "<nil>".into(),
        Value::String(text) => text.clone(),
        Value::Array(list) => format!("[{}]", list.iter().map(go_text).collect::<Vec<_>>().join(" ")),
        Value::Object(map) => {
            let mut fields: Vec<_> = map.iter().collect();
            fields.sort_by_key(|(key, _)| key.as_str());
            format!("map[{}]", fields.into_iter().map(|(k, v)| format!("{k}:{}", go_text(v))).collect::<Vec<_>>().join(" "))
        }
        other => other.to_string(),
    }
}
