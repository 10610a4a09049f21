//! Text of cells that several kinds print.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::quantity::Quantity;
use crate::times;
use crate::val::{at, list_at, map_at, str_at};

pub(super) const NONE: &str = "<none>";
pub(super) const UNSET: &str = "<unset>";
pub(super) const UNKNOWN: &str = "<unknown>";

pub(super) fn name(o: &Value) -> &str {
    str_at(o, &["metadata", "name"])
}

pub(super) fn created(o: &Value) -> Value {
    at(o, &["metadata", "creationTimestamp"]).clone()
}

pub(super) fn age(o: &Value, now: i64) -> String {
    times::age(str_at(o, &["metadata", "creationTimestamp"]), now)
}

pub(super) fn int(o: &Value, path: &[&str]) -> i64 {
    at(o, path).as_i64().unwrap_or(0)
}

pub(super) fn or<'a>(text: &'a str, instead: &'a str) -> &'a str {
    if text.is_empty() { instead } else { text }
}

/// The text at a path, or something else if it is empty.
pub(super) fn text_or<'a>(o: &'a Value, path: &[&str], instead: &'a str) -> &'a str {
    or(str_at(o, path), instead)
}

/// A scalar as it prints: text without quotes, absent as empty.
pub(super) fn plain(v: &Value) -> String {
    match v {
        Value::Null => String::new(),
        Value::String(s) => s.clone(),
        other => other.to_string(),
    }
}

/// A scalar as it prints, or something else if it is absent.
pub(super) fn plain_or(v: &Value, instead: &str) -> String {
    if v.is_null() { instead.to_owned() } else { plain(v) }
}

/// A quantity in canonical form.
pub(super) fn quantity(v: &Value) -> String {
    let text = plain(v);
    Quantity::parse(&text).map_or(text, |q| q.to_string())
}

pub(super) fn join<'a>(items: impl IntoIterator<Item = &'a str>, separator: &str) -> String {
    items.into_iter().collect::<Vec<_>>().join(separator)
}

pub(super) fn strings<'a>(o: &'a Value, path: &[&str]) -> impl Iterator<Item = &'a str> {
    list_at(o, path).iter().filter_map(Value::as_str)
}

/// `k=v,…` sorted by key.
pub(super) fn labels(map: &Value) -> String {
    let mut pairs: Vec<_> = map.as_object().into_iter().flatten().map(|(k, v)| format!("{k}={}", plain(v))).collect();
    if pairs.is_empty() {
        return NONE.into();
    }
    pairs.sort();
    pairs.join(",")
}

/// A LabelSelector as text, sorted by key; `None` if it cannot be one.
pub(super) fn selector_text(selector: &Value) -> Option<String> {
    let mut parts: Vec<(String, String)> = Vec::new();
    for (key, value) in map_at(selector, &["matchLabels"]).into_iter().flatten() {
        parts.push((key.clone(), format!("{key}={}", plain(value))));
    }
    for e in list_at(selector, &["matchExpressions"]) {
        let key = str_at(e, &["key"]);
        let values: BTreeSet<&str> = strings(e, &["values"]).collect();
        let set = join(values.iter().copied(), ",");
        let text = match (str_at(e, &["operator"]), values.is_empty()) {
            ("In", false) => format!("{key} in ({set})"),
            ("NotIn", false) => format!("{key} notin ({set})"),
            ("Exists", true) => key.to_owned(),
            ("DoesNotExist", true) => format!("!{key}"),
            _ => return None,
        };
        parts.push((key.to_owned(), text));
    }
    parts.sort_by(|a, b| a.0.cmp(&b.0));
    Some(join(parts.iter().map(|(_, text)| text.as_str()), ","))
}

/// A LabelSelector as a cell.
pub(super) fn selector(selector: &Value) -> String {
    match selector_text(selector) {
        None => "<error>".into(),
        Some(text) if text.is_empty() => NONE.into(),
        Some(text) => text,
    }
}

pub(super) fn containers(pod_spec: &Value) -> String {
    join(list_at(pod_spec, &["containers"]).iter().map(|c| str_at(c, &["name"])), ",")
}

pub(super) fn images(pod_spec: &Value) -> String {
    join(list_at(pod_spec, &["containers"]).iter().map(|c| str_at(c, &["image"])), ",")
}

pub(super) fn access_modes(modes: &Value) -> String {
    let has = |mode: &str| modes.as_array().is_some_and(|m| m.iter().any(|v| v == mode));
    let known = [("ReadWriteOnce", "RWO"), ("ReadOnlyMany", "ROX"), ("ReadWriteMany", "RWX"), ("ReadWriteOncePod", "RWOP")];
    join(known.into_iter().filter(|(mode, _)| has(mode)).map(|(_, short)| short), ",")
}

/// The first `max` items; how many more there are.
pub(super) fn some_of(items: &[String], max: usize) -> String {
    let shown = items.iter().take(max).map(String::as_str);
    let text = join(shown, ",");
    if items.len() > max { format!("{text} + {} more...", items.len() - max) } else { text }
}

/// Like [`some_of`], with a word for none.
pub(super) fn more_list(items: &[String], max: usize) -> String {
    if items.is_empty() { UNSET.into() } else { some_of(items, max) }
}

/// Addresses of a load balancer, sorted, each once.
pub(super) fn balancer(o: &Value) -> String {
    let points: BTreeSet<&str> = list_at(o, &["status", "loadBalancer", "ingress"])
        .iter()
        .map(|i| or(str_at(i, &["ip"]), str_at(i, &["hostname"])))
        .filter(|s| !s.is_empty())
        .collect();
    join(points, ",")
}

/// The condition of a type.
pub(super) fn condition<'a>(o: &'a Value, kind: &str) -> Option<&'a Value> {
    list_at(o, &["status", "conditions"]).iter().find(|c| str_at(c, &["type"]) == kind)
}

pub(super) fn is_true(o: &Value, kind: &str) -> bool {
    condition(o, kind).is_some_and(|c| str_at(c, &["status"]) == "True")
}

pub(super) fn deleting(o: &Value) -> bool {
    !at(o, &["metadata", "deletionTimestamp"]).is_null()
}

/// `kind[.group]` in lower case, from an API version.
pub(super) fn kind_dot_group(kind: &str, api_version: &str) -> String {
    let kind = kind.to_lowercase();
    match api_version.split_once('/') {
        Some((group, _)) => format!("{kind}.{group}"),
        None => kind,
    }
}
