//! Kubernetes' strategic merge patch: a merge patch that knows which lists are keyed, with directives for what a merge cannot say.
//!
//! The semantics, warts included, are those of `k8s.io/apimachinery/pkg/util/strategicpatch`.

use std::collections::BTreeSet;

use kontiki_base::object::Gvk;
use serde_json::{Map, Value};

use super::keys::{Info, Type, message_name, of_kind};
use super::{PatchError, go_text};

mod lists;

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_FROM: &str = "$deleteFromPrimitiveList/";
const SET_ORDER: &str = "$setElementOrder/";

type Object = Map<String, Value>;
type Result<T> = std::result::Result<T, PatchError>;

/// Applies a strategic merge patch to an object of a built-in kind.
///
/// # Errors
/// [`PatchError::Malformed`] for directives of the wrong type, [`PatchError::DoesNotApply`] for lists of lists,
/// [`PatchError::Unmergeable`] for everything that Kubernetes answers with status 500.
pub fn strategic(doc: &Value, patch: &Value, gvk: &Gvk) -> Result<Value> {
    let Value::Object(patch) = patch else {
        return Err(PatchError::Malformed(format!(
            "error decoding patch: json: cannot unmarshal {} into Go value of type map[string]interface {{}}",
            super::json_type(patch)
        )));
    };
    let original = doc.as_object().cloned().unwrap_or_default();
    merge_map(original, patch.clone(), of_kind(gvk), false).map(Value::Object)
}

/// The sorted elements that `$setElementOrder/<field>` asks for, taken out of a patch.
fn take_orders(patch: &mut Object) -> Result<Vec<(String, Vec<Value>)>> {
    let keys: Vec<String> = patch.keys().filter(|k| k.starts_with(SET_ORDER)).cloned().collect();
    let mut orders = Vec::new();
    for key in keys {
        match patch.remove(&key) {
            Some(Value::Array(order)) => orders.push((key[SET_ORDER.len()..].to_owned(), order)),
            _ => return Err(PatchError::Malformed("invalid patch format of setElementOrder list".into())),
        }
    }
    Ok(orders)
}

/// Merges `patch` into `original`. `fresh` says that there was no original: directives have nothing to act on.
fn merge_map(mut original: Object, mut patch: Object, ty: Type<'_>, fresh: bool) -> Result<Object> {
    if let Some(directive) = patch.get(DIRECTIVE) {
        return match directive.as_str() {
            Some("replace") => {
                patch.remove(DIRECTIVE);
                Ok(patch)
            }
            Some("delete") => Ok(Object::new()),
            _ => Err(PatchError::Unmergeable(format!(
                "unknown patch type: {} in map: {}",
                go_text(directive),
                go_text(&patch.clone().into())
            ))),
        };
    }
    retain_keys(&mut original, &mut patch)?;
    let orders = take_orders(&mut patch)?;
    for (field, order) in &orders {
        // A list that is only reordered: as if the patch had an empty list there.
        if !patch.contains_key(field) && original.get(field).is_some_and(Value::is_array) {
            let current = original.remove(field).unwrap_or_default();
            let merged = lists::merge(current, Vec::new(), ty, field, Some(order))?;
            original.insert(field.clone(), merged);
        }
    }
    for (key, change) in patch {
        if let Some(field) = key.strip_prefix(DELETE_FROM) {
            delete_primitives(&mut original, field, change)?;
            continue;
        }
        merge_field(&mut original, key, change, ty, &orders, fresh)?;
    }
    Ok(original)
}

fn merge_field(
    original: &mut Object,
    key: String,
    change: Value,
    ty: Type<'_>,
    orders: &[(String, Vec<Value>)],
    fresh: bool,
) -> Result<()> {
    if change.is_null() {
        original.remove(&key);
        return Ok(());
    }
    let order = orders.iter().find(|(f, _)| *f == key).map(|(_, o)| o.as_slice());
    let merged = match (original.remove(&key), change) {
        (Some(Value::Object(old)), Value::Object(change)) => {
            Value::Object(merge_map(old, change, ty.child(&key).unwrap_or(Type::Open), fresh)?)
        }
        (None, Value::Object(change)) => Value::Object(merge_map(Object::new(), change, ty.child(&key).unwrap_or(Type::Open), true)?),
        (Some(old @ Value::Array(_)), Value::Array(change)) => lists::merge(old, change, ty, &key, order)?,
        (None, Value::Array(change)) => lists::fresh(change, ty, &key, order)?,
        (_, change) => change,
    };
    original.insert(key, merged);
    Ok(())
}

/// `$retainKeys`: keys of the original that are not listed go. What the patch sets must be listed.
fn retain_keys(original: &mut Object, patch: &mut Object) -> Result<()> {
    let Some(retain) = patch.remove(RETAIN_KEYS) else { return Ok(()) };
    let malformed = || PatchError::Malformed("invalid patch format of retainKeys".into());
    let names = retain.as_array().ok_or_else(malformed)?;
    let names: BTreeSet<&str> = names.iter().filter_map(Value::as_str).collect();
    let listed = |key: &str| names.contains(key);
    let stray =
        patch.iter().any(|(key, value)| !value.is_null() && !key.starts_with(SET_ORDER) && !key.starts_with(DELETE_FROM) && !listed(key));
    if stray {
        return Err(malformed());
    }
    original.retain(|key, _| listed(key));
    Ok(())
}

fn delete_primitives(original: &mut Object, field: &str, gone: Value) -> Result<()> {
    let Value::Array(gone) = gone else {
        return Err(PatchError::Malformed("invalid patch format of deleteFromPrimitiveList".into()));
    };
    let gone: BTreeSet<String> = gone.iter().map(go_text).collect();
    if let Some(Value::Array(list)) = original.get_mut(field) {
        list.retain(|item| !gone.contains(&go_text(item)));
    }
    Ok(())
}

/// How the list in a field merges, or the error of a list that the kind does not have.
fn list_info<'s>(ty: Type<'s>, field: &str) -> Result<(Option<&'static Info>, Type<'s>)> {
    match (ty, ty.child(field)) {
        (_, Some(child)) => Ok((ty.info(field), child.element())),
        (Type::Message(id), None) => {
            Err(PatchError::Unmergeable(format!("unable to find api field in struct {} for the json field \"{field}\"", message_name(id))))
        }
        _ => Ok((None, Type::Open)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn gvk_of(kind: &str) -> Gvk {
        let (version, kind) = match kind {
            "Deployment" => ("apps/v1", kind),
            "ClusterRole" => ("rbac.authorization.k8s.io/v1", kind),
            "Ingress" => ("networking.k8s.io/v1", kind),
            "HPA" => ("autoscaling/v2", "HorizontalPodAutoscaler"),
            _ => ("v1", kind),
        };
        Gvk::from_api_version(version, kind)
    }

    #[test]
    fn golden_merges() {
        let mut seen = 0;
        for line in include_str!("../../tests/golden/patch.jsonl").lines() {
            let case: Value = serde_json::from_str(line).unwrap();
            if case["op"] != "smp" {
                continue;
            }
            seen += 1;
            let got = strategic(&case["orig"], &case["patch"], &gvk_of(case["kind"].as_str().unwrap()));
            match case["error"].as_str() {
                Some(want) => assert_eq!(got.unwrap_err().to_string(), want, "{}", case["name"]),
                None => assert_eq!(got.as_ref(), Ok(&case["result"]), "{}", case["name"]),
            }
        }
        assert_eq!(seen, 58);
    }

    #[test]
    fn new_elements_stand_where_the_patch_has_them() {
        let pod = gvk_of("Pod");
        let names = |n: &[&str]| json!({"spec": {"containers": n.iter().map(|n| json!({"name": n})).collect::<Vec<_>>()}});
        assert_eq!(strategic(&names(&["a", "b"]), &names(&["b", "z"]), &pod), Ok(names(&["a", "b", "z"])));
        let finalizers = |n: &[&str]| json!({"metadata": {"finalizers": n}});
        assert_eq!(strategic(&finalizers(&["a", "b"]), &finalizers(&["c", "a"]), &pod), Ok(finalizers(&["c", "a", "b"])));
    }

    /// Long lists must not take quadratic time.
    #[test]
    fn long_lists_merge_quickly() {
        let pod = gvk_of("Pod");
        let list = |n: usize, image: &str| {
            let containers: Vec<_> = (0..n).map(|i| json!({"name": format!("c{i:05}"), "image": image})).collect();
            json!({"spec": {"containers": containers}, "metadata": {"finalizers": (0..n).map(|i| format!("f{i}")).collect::<Vec<_>>()}})
        };
        let merged = strategic(&list(20_000, "a"), &list(20_000, "b"), &pod).unwrap();
        assert_eq!(merged, list(20_000, "b"));
    }

    #[test]
    fn statuses_follow_kubernetes() {
        let pod = gvk_of("Pod");
        let doc = json!({"spec": {"containers": [{"name": "a"}]}, "metadata": {"finalizers": ["a"]}});
        for (patch, code) in [
            (json!({"spec": {"$retainKeys": 1}}), 400),
            (json!({"spec": {"$setElementOrder/containers": {}}}), 400),
            (json!({"metadata": {"$deleteFromPrimitiveList/finalizers": "a"}}), 400),
            (json!({"metadata": {"finalizers": [["x"]]}}), 422),
            (json!({"spec": {"containers": [{"image": "x"}]}}), 500),
            (json!([1]), 400),
        ] {
            assert_eq!(strategic(&doc, &patch, &pod).unwrap_err().code().http(), code, "{patch}");
        }
    }
}
