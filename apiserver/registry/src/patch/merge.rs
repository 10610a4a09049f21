//! RFC 7386 merge patch.

use serde_json::{Map, Value};

use super::PatchError;

/// Applies a merge patch: an object's members are merged, null deletes, anything else replaces.
///
/// # Errors
/// [`PatchError::Malformed`] if the patch is not an object: the API knows no other patch for an object.
pub fn merge(doc: &Value, patch: &Value) -> Result<Value, PatchError> {
    let Value::Object(patch) = patch else {
        return Err(PatchError::Malformed(format!(
            "error decoding patch: json: cannot unmarshal {} into Go value of type map[string]interface {{}}",
            super::json_type(patch)
        )));
    };
    let mut out = doc.clone();
    merge_object(&mut out, patch);
    Ok(out)
}

fn merge_object(target: &mut Value, patch: &Map<String, Value>) {
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(fields) = target else { return };
    for (key, change) in patch {
        match change {
            Value::Null => {
                fields.remove(key);
            }
            Value::Object(inner) => merge_object(fields.entry(key.as_str()).or_insert(Value::Null), inner),
            other => {
                fields.insert(key.clone(), other.clone());
            }
        }
    }
}

/// The smallest merge patch that makes `new` out of `old`. Nulls inside `new` cannot be expressed and read as absent.
pub fn diff(old: &Value, new: &Value) -> Value {
    let (Value::Object(old), Value::Object(new)) = (old, new) else { return new.clone() };
    let mut patch = Map::new();
    for key in old.keys().filter(|k| !new.contains_key(*k)) {
        patch.insert(key.clone(), Value::Null);
    }
    for (key, value) in new {
        match old.get(key) {
            Some(before) if before == value => {}
            Some(before @ Value::Object(_)) if value.is_object() => {
                patch.insert(key.clone(), diff(before, value));
            }
            _ => {
                patch.insert(key.clone(), value.clone());
            }
        }
    }
    Value::Object(patch)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn examples_of_the_rfc() {
        for (doc, patch, want) in [
            (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "b"}), json!({"b": "c"}), json!({"a": "b", "b": "c"})),
            (json!({"a": "b", "b": "c"}), json!({"a": null}), json!({"b": "c"})),
            (json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "c"}), json!({"a": ["b"]}), json!({"a": ["b"]})),
            (json!({"a": {"b": "c"}}), json!({"a": {"b": "d", "c": null}}), json!({"a": {"b": "d"}})),
            (json!({"a": [{"b": "c"}]}), json!({"a": [1]}), json!({"a": [1]})),
            (json!({"e": null}), json!({"a": 1}), json!({"e": null, "a": 1})),
            (json!([1, 2]), json!({"a": "b", "c": null}), json!({"a": "b"})),
            (json!({}), json!({"a": {"bb": {"ccc": null}}}), json!({"a": {"bb": {}}})),
        ] {
            assert_eq!(merge(&doc, &patch), Ok(want));
        }
        let e = merge(&json!({}), &json!([1])).unwrap_err();
        assert_eq!(e.to_string(), "error decoding patch: json: cannot unmarshal array into Go value of type map[string]interface {}");
    }

    /// Objects without nulls, three levels deep.
    fn object() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![any::<bool>().prop_map(Value::from), (0..5i64).prop_map(Value::from), "[a-c]{0,2}".prop_map(Value::from)];
        let inner = leaf.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
                proptest::collection::btree_map("[a-d]", inner, 0..4).prop_map(|m| Value::Object(m.into_iter().collect())),
            ]
        });
        proptest::collection::btree_map("[a-d]", inner, 0..4).prop_map(|m| Value::Object(m.into_iter().collect()))
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn applying_twice_is_applying_once(doc in object(), patch in object()) {
            let once = merge(&doc, &patch).unwrap();
            prop_assert_eq!(merge(&once, &patch).unwrap(), once);
        }

        #[test]
        fn a_diff_leads_from_old_to_new(old in object(), new in object()) {
            prop_assert_eq!(merge(&old, &diff(&old, &new)).unwrap(), new);
        }

        #[test]
        fn an_empty_patch_changes_nothing(doc in object()) {
            prop_assert_eq!(merge(&doc, &json!({})).unwrap(), doc);
        }
    }
}
