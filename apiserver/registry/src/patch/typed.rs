//! Values with a schema: their field sets, what changed between two, merging, and taking paths out. The algorithms are those of
//! `sigs.k8s.io/structured-merge-diff/v6/typed`.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::fields::{Element, Scalar, Set, path_text};
use super::keys::{Form, ListKind, Type};
use crate::protobuf::table::Kind;

/// What changed between two values.
#[derive(Debug, Default)]
pub(super) struct Comparison {
    pub added: Set,
    pub modified: Set,
    pub removed: Set,
}

/// The form of a value: without a schema, as it looks.
fn form_of(ty: Type<'_>, value: &Value) -> Form {
    match (ty.form(), value) {
        (Form::Dynamic, Value::Object(_)) => Form::Object,
        (Form::Dynamic, _) => Form::Leaf,
        (form, _) => form,
    }
}

fn child_of<'s>(ty: Type<'s>, name: &str) -> Type<'s> {
    ty.child(name).unwrap_or(Type::Open)
}

fn entries(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

fn items(value: Option<&Value>) -> &[Value] {
    value.and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn is_void(value: Option<&Value>) -> bool {
    match value {
        None | Some(Value::Null) => true,
        Some(Value::Object(map)) => map.is_empty(),
        Some(Value::Array(list)) => list.is_empty(),
        Some(_) => false,
    }
}

/// The path step of a list element.
fn step(kind: &ListKind, element: Type<'_>, item: &Value, index: usize) -> Element {
    match kind {
        ListKind::Atomic => Element::Index(index as i64),
        ListKind::Set => Element::Item(Scalar(item.clone())),
        ListKind::Map(names) => {
            let mut keys: Vec<(String, Scalar)> = names
                .iter()
                .filter_map(|name| {
                    let given = item.get(name).filter(|v| !v.is_null()).cloned();
                    Some((name.clone(), Scalar(given.or_else(|| element.key_default(name))?)))
                })
                .collect();
            keys.sort_by(|a, b| a.0.cmp(&b.0));
            Element::Key(keys)
        }
    }
}

/// Checks that a value fits its schema. All problems, in order.
pub(super) fn validate(ty: Type<'_>, value: &Value, path: &mut Vec<Element>, errors: &mut Vec<String>) {
    match (form_of(ty, value), value) {
        (_, Value::Null) => {}
        (Form::Leaf | Form::Dynamic, _) => {
            if let Some(problem) = scalar_problem(ty, value) {
                errors.push(format!("{}: {problem}", path_text(path)));
            }
        }
        (Form::Object, Value::Object(map)) => {
            for (name, inner) in map {
                path.push(Element::Field(name.clone()));
                match ty.child(name) {
                    Some(child) => validate(child, inner, path, errors),
                    None => errors.push(format!("{}: field not declared in schema", path_text(path))),
                }
                path.pop();
            }
        }
        (Form::List(kind), Value::Array(list)) => {
            let element = ty.element();
            let mut seen = std::collections::BTreeSet::new();
            for (i, item) in list.iter().enumerate() {
                let key = step(&kind, element, item, i);
                if !seen.insert(key.clone()) {
                    errors.push(format!("{}: duplicate entries for key {key}", path_text(path)));
                }
                path.push(key);
                validate(element, item, path, errors);
                path.pop();
            }
        }
        (Form::Object, other) => errors.push(format!("{}: expected map, got {}", path_text(path), go_kind(other))),
        (Form::List(_), other) => errors.push(format!("{}: expected list, got {}", path_text(path), go_kind(other))),
    }
}

fn go_kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_f64() => "float",
        Value::Number(_) => "int",
        Value::String(_) => "string",
        Value::Array(_) => "list",
        Value::Object(_) => "map",
    }
}

fn scalar_problem(ty: Type<'_>, value: &Value) -> Option<String> {
    let Type::Scalar(kind) = ty else { return None };
    let (fits, expected) = match kind {
        Kind::Str | Kind::Bytes => (value.is_string(), "string"),
        Kind::Bool => (value.is_boolean(), "boolean"),
        Kind::I32 | Kind::I64 | Kind::F64 => (value.is_number(), "numeric (int or float)"),
        Kind::Msg(_) => (true, ""),
    };
    (!fits).then(|| format!("expected {expected}, got {}", go_kind(value)))
}

/// The paths that a configuration names.
pub(super) fn to_set(ty: Type<'_>, value: &Value) -> Set {
    let mut set = Set::default();
    collect(ty, value, &mut Vec::new(), &mut set);
    set
}

fn collect(ty: Type<'_>, value: &Value, path: &mut Vec<Element>, set: &mut Set) {
    match form_of(ty, value) {
        Form::Leaf | Form::Dynamic => set.insert(path),
        Form::Object => {
            for (name, inner) in entries(value) {
                path.push(Element::Field(name.clone()));
                collect(child_of(ty, name), inner, path, set);
                // Keys of open maps are owned by themselves; so is what has nothing below it.
                if is_void(Some(inner)) || !ty.declares(name) {
                    set.insert(path);
                }
                path.pop();
            }
        }
        Form::List(kind) => {
            let element = ty.element();
            for (i, item) in items(Some(value)).iter().enumerate() {
                path.push(step(&kind, element, item, i));
                collect(element, item, path, set);
                set.insert(path);
                path.pop();
            }
        }
    }
}

/// What changed from `old` to `new`.
pub(super) fn compare(ty: Type<'_>, old: &Value, new: &Value) -> Comparison {
    let mut out = Comparison::default();
    compare_at(ty, Some(old), Some(new), &mut Vec::new(), &mut out);
    out
}

fn compare_at(ty: Type<'_>, old: Option<&Value>, new: Option<&Value>, path: &mut Vec<Element>, out: &mut Comparison) {
    let form = match (old, new) {
        (_, Some(new)) if !new.is_null() || old.is_none() => form_of(ty, new),
        (Some(old), _) => form_of(ty, old),
        _ => return,
    };
    // A value that changes its nature is a change of the whole.
    let mismatch = matches!((old, new), (Some(a), Some(b)) if !a.is_null() && !b.is_null() && form_of(ty, a) != form_of(ty, b));
    let leaf = matches!(form, Form::Leaf | Form::Dynamic) || mismatch || (is_void(old) && is_void(new));
    if !leaf {
        match form {
            Form::Object => {
                let names: std::collections::BTreeSet<&String> = old.into_iter().chain(new).flat_map(entries).map(|(k, _)| k).collect();
                for name in names {
                    path.push(Element::Field(name.clone()));
                    compare_at(child_of(ty, name), old.and_then(|v| v.get(name)), new.and_then(|v| v.get(name)), path, out);
                    path.pop();
                }
            }
            Form::List(kind) => {
                let element = ty.element();
                let (before, after) = (index(&kind, element, items(old)), index(&kind, element, items(new)));
                let all: std::collections::BTreeSet<&Element> = before.keys().chain(after.keys()).collect();
                for key in all {
                    path.push(key.clone());
                    compare_at(element, before.get(key).copied(), after.get(key).copied(), path, out);
                    path.pop();
                }
            }
            Form::Leaf | Form::Dynamic => {}
        }
    }
    match (old, new) {
        (None, Some(_)) => out.added.insert(path),
        (Some(_), None) => out.removed.insert(path),
        (Some(a), Some(b)) if leaf && !same(a, b) => out.modified.insert(path),
        _ => {}
    }
}

/// Equality of JSON values, where an integer equals a float of the same value.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(_), Value::Number(_)) => Scalar(a.clone()) == Scalar(b.clone()),
        _ => a == b,
    }
}

/// The elements of a list by their steps; of duplicates the first.
fn index<'a>(kind: &ListKind, element: Type<'_>, list: &'a [Value]) -> BTreeMap<Element, &'a Value> {
    let mut out = BTreeMap::new();
    for (i, item) in list.iter().enumerate() {
        out.entry(step(kind, element, item, i)).or_insert(item);
    }
    out
}

/// Merges a configuration into a live value; the configuration wins.
pub(super) fn merge(ty: Type<'_>, live: &Value, config: &Value) -> Value {
    let form = form_of(ty, if config.is_null() { live } else { config });
    let void = is_void(Some(live)) && is_void(Some(config));
    let live_fits = live.is_null() || form_of(ty, live) == form;
    match form {
        _ if void || !live_fits => config.clone(),
        Form::Leaf | Form::Dynamic => config.clone(),
        Form::Object => {
            let mut out = live.as_object().cloned().unwrap_or_default();
            for (name, value) in entries(config) {
                let merged = match out.get(name) {
                    Some(old) => merge(child_of(ty, name), old, value),
                    None => value.clone(),
                };
                out.insert(name.clone(), merged);
            }
            Value::Object(out)
        }
        Form::List(kind) => Value::Array(merge_lists(&kind, ty.element(), items(Some(live)), items(Some(config)))),
    }
}

/// Interleaves two keyed lists: the configuration's elements in its order, live ones where they stood relative to those.
fn merge_lists(kind: &ListKind, element: Type<'_>, live: &[Value], config: &[Value]) -> Vec<Value> {
    let steps = |list: &[Value]| list.iter().enumerate().map(|(i, v)| step(kind, element, v, i)).collect::<Vec<_>>();
    let (left, right) = (steps(live), steps(config));
    let (in_live, in_config) = (index(kind, element, live), index(kind, element, config));
    let both = |key: &Element| match (in_live.get(key), in_config.get(key)) {
        (Some(l), Some(r)) => merge(element, l, r),
        (None, Some(v)) | (Some(v), None) => (*v).clone(),
        (None, None) => Value::Null,
    };
    let mut shared = right.iter().filter(|key| in_live.contains_key(*key));
    let mut next_shared = shared.next();
    let mut merged = std::collections::BTreeSet::new();
    let mut out = Vec::new();
    let (mut l, mut r) = (0, 0);
    while l < left.len() || r < right.len() {
        if let (Some(a), Some(b)) = (left.get(l), right.get(r)) {
            if a == b {
                merged.insert(a);
                out.push(both(a));
                (l, r) = (l + 1, r + 1);
                next_shared = shared.next();
                continue;
            }
            if in_config.contains_key(a) && next_shared.is_some_and(|s| s != a) {
                // Shared, but its turn comes later, where the configuration has it.
                l += 1;
                continue;
            }
        }
        if let Some(a) = left.get(l) {
            if !in_config.contains_key(a) {
                out.push(live[l].clone());
                l += 1;
                continue;
            }
            if merged.contains(a) {
                l += 1;
            }
        }
        if let Some(b) = right.get(r) {
            merged.insert(b);
            out.push(both(b));
            r += 1;
            if next_shared == Some(b) {
                next_shared = shared.next();
            }
        }
    }
    out
}

/// Takes paths out of a value. A container that is emptied stays, unless it is taken out itself.
pub(super) fn remove(ty: Type<'_>, value: &Value, gone: &Set) -> Value {
    match (form_of(ty, value), value) {
        (Form::Object, Value::Object(map)) => {
            let mut out = Map::new();
            for (name, inner) in map {
                let key = Element::Field(name.clone());
                if gone.has(&key) {
                    continue;
                }
                let kept = match gone.below(&key) {
                    Some(below) => remove(child_of(ty, name), inner, below),
                    None => inner.clone(),
                };
                out.insert(name.clone(), kept);
            }
            Value::Object(out)
        }
        (Form::List(kind), Value::Array(list)) => {
            let element = ty.element();
            let mut out = Vec::new();
            for (i, item) in list.iter().enumerate() {
                let key = step(&kind, element, item, i);
                if gone.has(&key) {
                    continue;
                }
                out.push(match gone.below(&key) {
                    Some(below) => remove(element, item, below),
                    None => item.clone(),
                });
            }
            Value::Array(out)
        }
        _ => value.clone(),
    }
}
