//! Lists in a strategic merge: matching by key, and the order of the result.

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

fn key_of<'a>(item: &'a Value, key: &str) -> Result<&'a Value> {
    item.get(key).ok_or_else(|| PatchError::Unmergeable(format!("map: {} does not contain declared merge key: {key}", go_text(item))))
}

/// Elements are the same if their keys print the same.
fn same(a: &Value, b: &Value) -> bool {
    a == b || go_text(a) == go_text(b)
}

fn keyed(mut original: Vec<Value>, patch: Vec<Value>, key: &str, element: Type<'_>, order: Option<&[Value]>) -> Result<Value> {
    if patch.iter().any(|v| v.get(DIRECTIVE).and_then(Value::as_str) == Some("replace")) {
        return Ok(Value::Array(patch.into_iter().filter(|v| v.get(DIRECTIVE).is_none()).collect()));
    }
    let mut changes = Vec::new();
    for item in patch {
        match item.get(DIRECTIVE) {
            None => changes.push(item),
            Some(directive) if directive == "delete" => {
                let gone = key_of(&item, key)?;
                original.retain(|old| old.get(key).is_none_or(|k| !same(k, gone)));
            }
            Some(directive) => {
                return Err(PatchError::Unmergeable(format!("unknown patch type: {} in map: {}", go_text(directive), go_text(&item))));
            }
        }
    }
    let server: Vec<Value> = original.iter().map(|v| v.get(key).cloned().unwrap_or_default()).collect();
    let patched = changes.iter().map(|v| key_of(v, key).cloned()).collect::<Result<Vec<_>>>()?;
    let order = match order {
        None => None,
        Some(order) => Some(order.iter().map(|v| key_of(v, key).cloned()).collect::<Result<Vec<_>>>()?),
    };
    if let Some(order) = &order {
        check_order(&patched, order, &changes, key)?;
    }
    for change in changes {
        let id = key_of(&change, key)?.clone();
        let slot = original.iter_mut().find(|old| old.get(key).is_some_and(|k| same(k, &id)));
        match (slot, change) {
            (Some(slot), Value::Object(change)) => {
                let old = slot.as_object().cloned().unwrap_or_default();
                *slot = Value::Object(merge_map(old, change, element, false)?);
            }
            (_, Value::Object(change)) => original.push(Value::Object(without_directives(change))),
            (_, other) => original.push(other),
        }
    }
    let id = |v: &Value| v.get(key).cloned().unwrap_or_default();
    Ok(Value::Array(arrange(original, &patched, &server, order.as_deref(), id)))
}

/// A new element keeps its nulls (they vanish when it is decoded), but no directive.
fn without_directives(mut item: Object) -> Object {
    item.retain(|key, _| !key.starts_with('$'));
    item
}

fn scalars(mut original: Vec<Value>, patch: Vec<Value>, order: Option<&[Value]>) -> Result<Value> {
    let server = original.clone();
    if let Some(order) = order {
        check_order(&patch, order, &patch, "")?;
    }
    for item in &patch {
        if !original.iter().any(|old| same(old, item)) {
            original.push(item.clone());
        }
    }
    Ok(Value::Array(arrange(original, &patch, &server, order, Value::clone)))
}

/// Every element of the patch must be in the order list, in the same relative order.
fn check_order(patched: &[Value], order: &[Value], patch: &[Value], key: &str) -> Result<()> {
    let mut rest = order.iter();
    if patched.iter().all(|p| rest.any(|o| same(o, p))) {
        return Ok(());
    }
    let order_text = if key.is_empty() {
        Value::Array(order.to_vec())
    } else {
        Value::Array(order.iter().map(|k| Value::Object(std::iter::once((key.to_owned(), k.clone())).collect())).collect())
    };
    Err(PatchError::Unmergeable(format!(
        "The order in patch list:\n{}\n doesn't match $setElementOrder list:\n{}\n",
        go_text(&Value::Array(patch.to_vec())),
        go_text(&order_text)
    )))
}

/// Puts merged elements in order: those that the patch (or its order list) names in that order, the server's others around them. The head of the
/// server's others goes first only while both heads were there before and it stood before the other.
fn arrange(items: Vec<Value>, patched: &[Value], server: &[Value], order: Option<&[Value]>, id: impl Fn(&Value) -> Value) -> Vec<Value> {
    let wanted = order.unwrap_or(patched);
    let rank = |v: &Value| wanted.iter().position(|w| same(w, &id(v)));
    let (mut named, others): (Vec<Value>, Vec<Value>) = items.into_iter().partition(|v| rank(v).is_some());
    named.sort_by_key(|v| rank(v));
    let before = |v: &Value| server.iter().position(|s| same(s, &id(v)));
    let mut out = Vec::with_capacity(named.len() + others.len());
    let (mut named, mut others) = (named.into_iter().peekable(), others.into_iter().peekable());
    while let (Some(n), Some(o)) = (named.peek(), others.peek()) {
        let other_first = matches!((before(o), before(n)), (Some(o), Some(n)) if o < n);
        out.extend(if other_first { others.next() } else { named.next() });
    }
    out.extend(named);
    out.extend(others);
    out
}
