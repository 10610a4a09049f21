//! Lists in a strategic merge: matching by key, and the order of the result. Elements are the same if their keys print the same; each key is printed once,
//! so that a merge of long lists takes no more than n log n.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{DIRECTIVE, Object, Result, list_info, merge_map};
use crate::patch::keys::Type;
use crate::patch::{PatchError, go_text};

/// Merges a patch list into the list of a field.
pub(super) fn merge(original: Value, patch: Vec<Value>, ty: Type<'_>, field: &str, order: Option<&[Value]>) -> Result<Value> {
    let (info, element) = list_info(ty, field)?;
    let Value::Array(original) = original else { return Ok(Value::Array(patch)) };
    let Some(info) = info.filter(|i| i.merge) else {
        return Ok(Value::Array(if patch.is_empty() && order.is_some() { original } else { patch }));
    };
    if original.iter().chain(&patch).any(Value::is_array) {
        return Err(PatchError::DoesNotApply("merging lists of lists is not supported".into()));
    }
    match info.merge_key {
        Some(key) => keyed(original, patch, key, element, order),
        None => scalars(original, patch, order),
    }
}

/// A list where there was none: only the directives are carried out.
pub(super) fn fresh(patch: Vec<Value>, ty: Type<'_>, field: &str, order: Option<&[Value]>) -> Result<Value> {
    let directives = patch.iter().any(|v| v.get(DIRECTIVE).is_some());
    if !directives && order.is_none() {
        return Ok(Value::Array(patch));
    }
    merge(Value::Array(Vec::new()), patch, ty, field, order)
}

/// The printed key of an element that must have one.
fn key_of(item: &Value, key: &str) -> Result<String> {
    let missing = || PatchError::Unmergeable(format!("map: {} does not contain declared merge key: {key}", go_text(item)));
    item.get(key).map(go_text).ok_or_else(missing)
}

/// The printed key of an element of the original; elements without one match nothing.
fn old_key(item: &Value, key: &str) -> Option<String> {
    item.get(key).map(go_text)
}

/// The first position of each key.
fn positions(keys: impl Iterator<Item = Option<String>>) -> BTreeMap<String, usize> {
    let mut out = BTreeMap::new();
    for (i, key) in keys.enumerate() {
        if let Some(key) = key {
            out.entry(key).or_insert(i);
        }
    }
    out
}

fn keyed(mut original: Vec<Value>, patch: Vec<Value>, key: &str, element: Type<'_>, order: Option<&[Value]>) -> Result<Value> {
    if patch.iter().any(|v| v.get(DIRECTIVE).and_then(Value::as_str) == Some("replace")) {
        return Ok(Value::Array(patch.into_iter().filter(|v| v.get(DIRECTIVE).is_none()).collect()));
    }
    let (mut changes, mut gone) = (Vec::new(), BTreeMap::new());
    for item in patch {
        match item.get(DIRECTIVE) {
            None => changes.push(item),
            Some(directive) if directive == "delete" => {
                gone.insert(key_of(&item, key)?, ());
            }
            Some(directive) => {
                return Err(PatchError::Unmergeable(format!("unknown patch type: {} in map: {}", go_text(directive), go_text(&item))));
            }
        }
    }
    if !gone.is_empty() {
        original.retain(|old| old_key(old, key).is_none_or(|k| !gone.contains_key(&k)));
    }
    let patched = changes.iter().map(|v| key_of(v, key)).collect::<Result<Vec<_>>>()?;
    let wanted = match order {
        None => None,
        Some(order) => {
            let keys = order.iter().map(|v| key_of(v, key)).collect::<Result<Vec<_>>>()?;
            let bare = |v: &Value| Value::Object(std::iter::once((key.to_owned(), v[key].clone())).collect());
            check_order(&patched, &keys, &changes, || order.iter().map(bare).collect())?;
            Some(keys)
        }
    };
    let server = positions(original.iter().map(|v| old_key(v, key)));
    let mut at = server.clone();
    for (change, id) in changes.into_iter().zip(&patched) {
        match (at.get(id).copied(), change) {
            (Some(i), Value::Object(change)) => {
                let old = original[i].as_object().cloned().unwrap_or_default();
                original[i] = Value::Object(merge_map(old, change, element, false)?);
            }
            (_, change) => {
                at.insert(id.clone(), original.len());
                original.push(without_directives(change));
            }
        }
    }
    let keys = original.iter().map(|v| old_key(v, key).unwrap_or_default()).collect();
    Ok(Value::Array(arrange(original, keys, wanted.as_deref().unwrap_or(&patched), &server)))
}

/// A new element keeps its nulls (they vanish when it is decoded), but no directive.
fn without_directives(item: Value) -> Value {
    match item {
        Value::Object(mut item) => {
            Object::retain(&mut item, |key, _| !key.starts_with('$'));
            Value::Object(item)
        }
        other => other,
    }
}

fn scalars(mut original: Vec<Value>, patch: Vec<Value>, order: Option<&[Value]>) -> Result<Value> {
    let patched: Vec<String> = patch.iter().map(go_text).collect();
    let wanted: Option<Vec<String>> = order.map(|order| order.iter().map(go_text).collect());
    if let (Some(wanted), Some(order)) = (&wanted, order) {
        check_order(&patched, wanted, &patch, || order.to_vec())?;
    }
    let server = positions(original.iter().map(|v| Some(go_text(v))));
    let mut known = server.clone();
    for (item, text) in patch.into_iter().zip(&patched) {
        if known.insert(text.clone(), 0).is_none() {
            original.push(item);
        }
    }
    let keys = original.iter().map(go_text).collect();
    Ok(Value::Array(arrange(original, keys, wanted.as_deref().unwrap_or(&patched), &server)))
}

/// Every element of the patch must be in the order list, in the same relative order.
fn check_order(patched: &[String], order: &[String], patch: &[Value], order_text: impl Fn() -> Vec<Value>) -> Result<()> {
    let mut rest = order.iter();
    if patched.iter().all(|p| rest.any(|o| o == p)) {
        return Ok(());
    }
    Err(PatchError::Unmergeable(format!(
        "The order in patch list:\n{}\n doesn't match $setElementOrder list:\n{}\n",
        go_text(&Value::Array(patch.to_vec())),
        go_text(&Value::Array(order_text()))
    )))
}

/// Puts merged elements in order: those that the patch (or its order list) names in that order, the server's others around them. The head of the
/// server's others goes first only while both heads were there before and it stood before the other.
fn arrange(items: Vec<Value>, keys: Vec<String>, wanted: &[String], server: &BTreeMap<String, usize>) -> Vec<Value> {
    let rank = positions(wanted.iter().cloned().map(Some));
    let (mut named, mut others) = (Vec::new(), Vec::new());
    for (key, item) in keys.into_iter().zip(items) {
        let before = server.get(&key).copied();
        match rank.get(&key) {
            Some(rank) => named.push((*rank, before, item)),
            None => others.push((before, item)),
        }
    }
    named.sort_by_key(|(rank, _, _)| *rank);
    let mut out = Vec::with_capacity(named.len() + others.len());
    let (mut named, mut others) = (named.into_iter().peekable(), others.into_iter().peekable());
    while let (Some((_, n, _)), Some((o, _))) = (named.peek(), others.peek()) {
        let other_first = matches!((o, n), (Some(o), Some(n)) if o < n);
        if other_first {
            out.extend(others.next().map(|(_, item)| item));
        } else {
            out.extend(named.next().map(|(_, _, item)| item));
        }
    }
    out.extend(named.map(|(_, _, item)| item));
    out.extend(others.map(|(_, item)| item));
    out
}
