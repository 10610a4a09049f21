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

#[cfg(test)]
mod tests {
    use kontiki_base::object::Gvk;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    /// JSON made of the words that mean something to a patch.
    fn odd_json() -> impl Strategy<Value = Value> {
        let word = prop_oneof![
            Just("$patch"),
            Just("$retainKeys"),
            Just("$setElementOrder/containers"),
            Just("$deleteFromPrimitiveList/finalizers"),
            Just("delete"),
            Just("replace"),
            Just("spec"),
            Just("containers"),
            Just("name"),
            Just("ports"),
            Just("containerPort"),
            Just("metadata"),
            Just("finalizers"),
            Just("managedFields"),
            Just("apiVersion"),
            Just("kind"),
            Just("op"),
            Just("path"),
            Just("v1"),
            Just("Pod"),
        ];
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            (-2..3i64).prop_map(Value::from),
            word.clone().prop_map(Value::from)
        ];
        leaf.prop_recursive(5, 40, 5, move |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::btree_map(word.clone().prop_map(str::to_owned), inner, 0..5)
                    .prop_map(|m| Value::Object(m.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Any patch on any document is an answer or an error.
        #[test]
        fn patches_are_total(doc in odd_json(), patch in odd_json(), manager in "[a-b]") {
            let gvk = Gvk::from_api_version("v1", "Pod");
            let _ = strategic(&doc, &patch, &gvk);
            let _ = json(&doc, &patch);
            let _ = merge(&doc, &patch);
            let mut applied = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}});
            applied["spec"] = patch.clone();
            let _ = apply(Some(&doc), &applied, &gvk, &manager, true, "2026-01-01T00:00:00Z");
            let mut new = patch;
            update_managed(Some(&doc), &mut new, &gvk, &manager, Operation::Update, "", "2026-01-01T00:00:00Z");
        }

        /// Applying the same intent twice is applying it once, and what was applied is there.
        #[test]
        fn apply_is_idempotent(names in proptest::collection::btree_set("[a-e]", 0..4), images in proptest::collection::vec("[x-z]", 4), live in proptest::collection::btree_set("[a-e]", 0..4)) {
            let gvk = Gvk::from_api_version("v1", "Pod");
            let pod = |names: &std::collections::BTreeSet<String>, image: &dyn Fn(usize) -> String| {
                let containers: Vec<_> = names.iter().enumerate().map(|(i, n)| json!({"name": n, "image": image(i)})).collect();
                json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": containers}})
            };
            let base = apply(None, &pod(&live, &|_| "base".into()), &gvk, "first", false, "2026-01-01T00:00:00Z").unwrap();
            let intent = pod(&names, &|i| images[i].clone());
            let once = apply(Some(&base), &intent, &gvk, "second", true, "2026-01-01T00:00:01Z").unwrap();
            let twice = apply(Some(&once), &intent, &gvk, "second", false, "2026-01-01T00:00:02Z").unwrap();
            prop_assert_eq!(&twice, &once);
            let have = once["spec"]["containers"].as_array().cloned().unwrap_or_default();
            prop_assert_eq!(have.len(), live.union(&names).count());
            for wanted in intent["spec"]["containers"].as_array().unwrap() {
                prop_assert!(have.contains(wanted));
            }
        }
    }
}
