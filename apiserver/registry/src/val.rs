//! Reading and writing fields of an object that is a JSON tree. An absent field and one of the wrong type read as absent.

use serde_json::{Map, Value};

/// The empty object, for reading through absent parents.
pub static NULL: Value = Value::Null;

/// The value at a path of field names; `Null` when absent.
pub fn at<'a>(v: &'a Value, path: &[&str]) -> &'a Value {
    path.iter().fold(v, |v, k| v.get(*k).unwrap_or(&NULL))
}

/// The string at a path; empty when absent.
pub fn str_at<'a>(v: &'a Value, path: &[&str]) -> &'a str {
    at(v, path).as_str().unwrap_or("")
}

/// The integer at a path.
pub fn int_at(v: &Value, path: &[&str]) -> Option<i64> {
    at(v, path).as_i64()
}

/// The boolean at a path; `false` when absent.
pub fn bool_at(v: &Value, path: &[&str]) -> bool {
    at(v, path).as_bool().unwrap_or(false)
}

/// The list at a path; empty when absent.
pub fn list_at<'a>(v: &'a Value, path: &[&str]) -> &'a [Value] {
    at(v, path).as_array().map_or(&[], Vec::as_slice)
}

/// The map at a path; `None` when absent.
pub fn map_at<'a>(v: &'a Value, path: &[&str]) -> Option<&'a Map<String, Value>> {
    at(v, path).as_object()
}

/// The elements of the list at a path, for changing.
pub fn list_mut<'a>(v: &'a mut Value, path: &[&str]) -> &'a mut [Value] {
    match at_mut(v, path) {
        Some(Value::Array(a)) => a,
        _ => &mut [],
    }
}

/// The value at a path, for changing, if it is there.
pub fn at_mut<'a>(v: &'a mut Value, path: &[&str]) -> Option<&'a mut Value> {
    let mut v = v;
    for k in path {
        v = v.get_mut(*k)?;
    }
    Some(v)
}

/// The map at a path, made (with its parents) where absent or of another type.
pub fn map_mut<'a>(v: &'a mut Value, path: &[&str]) -> &'a mut Map<String, Value> {
    let mut v = v;
    for k in path {
        v = own_map(v).entry(*k).or_insert(Value::Null);
    }
    own_map(v)
}

/// The list at a path, made (with its parents) where absent or of another type.
pub fn vec_mut<'a>(v: &'a mut Value, path: &[&str]) -> &'a mut Vec<Value> {
    let (last, parents) = path.split_last().expect("a list has a field name");
    let slot = map_mut(v, parents).entry(*last).or_insert(Value::Null);
    if !slot.is_array() {
        *slot = Value::Array(Vec::new());
    }
    slot.as_array_mut().expect("made an array above")
}

fn own_map(v: &mut Value) -> &mut Map<String, Value> {
    if !v.is_object() {
        *v = Value::Object(Map::new());
    }
    v.as_object_mut().expect("made an object above")
}

/// Sets a field of a map when it is absent or null.
pub fn default(m: &mut Map<String, Value>, key: &str, value: impl Into<Value>) {
    if m.get(key).is_none_or(Value::is_null) {
        m.insert(key.into(), value.into());
    }
}

/// As [`default`], and the empty string counts as absent (a Go string that is not a pointer).
pub fn default_str(m: &mut Map<String, Value>, key: &str, value: &str) {
    if m.get(key).is_none_or(|v| v.is_null() || v.as_str() == Some("")) {
        m.insert(key.into(), value.into());
    }
}

/// As [`default`], and 0 counts as absent (a Go number that is not a pointer).
pub fn default_int(m: &mut Map<String, Value>, key: &str, value: i64) {
    if m.get(key).is_none_or(|v| v.is_null() || v.as_i64() == Some(0)) {
        m.insert(key.into(), value.into());
    }
}

/// Sets a field, or removes it when the value is `Null`.
pub fn put(v: &mut Value, path: &[&str], value: Value) {
    let (last, parents) = path.split_last().expect("a field has a name");
    if value.is_null() {
        if let Some(Value::Object(m)) = at_mut(v, parents) {
            m.remove(*last);
        }
    } else {
        map_mut(v, parents).insert((*last).into(), value);
    }
}

/// Removes a field and returns what it held.
pub fn take(v: &mut Value, path: &[&str]) -> Option<Value> {
    let (last, parents) = path.split_last().expect("a field has a name");
    at_mut(v, parents)?.as_object_mut()?.remove(*last)
}

/// Copies the field at `path` from `from`, or removes it when `from` has none.
pub fn copy(v: &mut Value, from: &Value, path: &[&str]) {
    put(v, path, at(from, path).clone());
}

/// Whether two values are equal when null, absent, `{}` and `[]` are one (Go's semantic equality of empty containers).
pub fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Object(x), Value::Object(y)) => {
            x.iter().all(|(k, v)| same(v, y.get(k).unwrap_or(&NULL))) && y.iter().all(|(k, v)| x.contains_key(k) || is_empty(v))
        }
        (Value::Array(x), Value::Array(y)) => x.len() == y.len() && x.iter().zip(y).all(|(a, b)| same(a, b)),
        _ => a == b || (is_empty(a) && is_empty(b)),
    }
}

/// Whether a value is null, or a container that holds only such.
pub fn is_empty(v: &Value) -> bool {
    match v {
        Value::Null => true,
        Value::Array(a) => a.is_empty(),
        Value::Object(m) => m.values().all(is_empty),
        _ => false,
    }
}

/// Compact JSON as Go prints it: `<`, `>` and `&` escaped.
pub fn go_json(v: &Value) -> String {
    let text = v.to_string();
    if !text.contains(['<', '>', '&']) {
        return text;
    }
    text.replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026")
}

/// A string in double quotes as Go's `%q` prints it.
pub fn go_quote(s: &str) -> String {
    let mut out = String::with_capacity(s.len() + 2);
    out.push('"');
    for c in s.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{b}' => out.push_str("\\v"),
            '\u{c}' => out.push_str("\\f"),
            c if (c as u32) < 0x20 || c as u32 == 0x7f => out.push_str(&format!("\\x{:02x}", c as u32)),
            c if c.is_control() => out.push_str(&format!("\\u{:04x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn empty_containers_are_equal_to_nothing() {
        assert!(same(&json!({"a": {}, "b": 1}), &json!({"b": 1, "c": []})));
        assert!(!same(&json!({"a": {"x": 0}}), &json!({})));
        assert!(!same(&json!([{}]), &json!([])));
    }

    #[test]
    fn quoting_is_gos() {
        assert_eq!(go_quote("a\"b\\\n\u{1}é"), "\"a\\\"b\\\\\\n\\x01é\"");
        assert_eq!(go_json(&json!({"a": "<&>"})), r#"{"a":"\u003c\u0026\u003e"}"#);
    }

    #[test]
    fn writing_makes_parents() {
        let mut v = json!({"a": 1});
        put(&mut v, &["x", "y"], json!(2));
        vec_mut(&mut v, &["x", "l"]).push(json!(3));
        put(&mut v, &["a"], Value::Null);
        assert_eq!(v, json!({"x": {"y": 2, "l": [3]}}));
        assert_eq!(take(&mut v, &["x", "y"]), Some(json!(2)));
        assert_eq!(take(&mut v, &["q", "y"]), None);
    }
}
