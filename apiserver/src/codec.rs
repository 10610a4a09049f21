//! The stored form of an object and the form that is handed out: the same bytes, with `metadata.resourceVersion` spliced in.

use bytes::{BufMut as _, Bytes, BytesMut};
use kontiki_base::Revision;
use serde_json::{Map, Value};

/// Where `resourceVersion` stands in the bytes of an object: offset and length of its digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Digits {
    at: usize,
    len: usize,
}

/// The stored form: JSON without `resourceVersion`, which the store itself keeps as the mod revision.
pub(crate) fn encode(object: &mut Value) -> Bytes {
    if let Some(meta) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        meta.remove("resourceVersion");
    }
    // Writing a `Value` to memory cannot fail: its keys are strings.
    serde_json::to_vec(object).map(Bytes::from).unwrap_or_default()
}

/// Takes empty maps and lists out of `metadata`: to say "none" and to say nothing is the same there, and one of the two is stored.
pub(crate) fn tidy(object: &mut Value) {
    let empty = |v: &Value| v.as_object().is_some_and(Map::is_empty) || v.as_array().is_some_and(Vec::is_empty);
    if let Some(meta) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        meta.retain(|_, v| !empty(v));
    }
}

/// Sets `metadata.resourceVersion` of a tree.
pub(crate) fn stamp(object: &mut Value, revision: Revision) {
    if let Some(meta) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        meta.insert("resourceVersion".into(), Value::String(revision.to_resource_version()));
    }
}

/// Reads stored bytes as a tree with its `resourceVersion`.
pub(crate) fn decode(stored: &[u8], revision: Revision) -> Result<Value, serde_json::Error> {
    let mut object: Value = serde_json::from_slice(stored)?;
    stamp(&mut object, revision);
    Ok(object)
}

/// Stored bytes with the `resourceVersion` put in, and where it is. `None` if the bytes are no object with metadata.
pub(crate) fn splice(stored: &[u8], revision: Revision) -> Option<(Bytes, Digits)> {
    let open = metadata_at(stored)?;
    let digits = revision.to_resource_version();
    let mut out = BytesMut::with_capacity(stored.len() + digits.len() + 24);
    out.put_slice(&stored[..=open]);
    out.put_slice(b"\"resourceVersion\":\"");
    let at = out.len();
    out.put_slice(digits.as_bytes());
    out.put_u8(b'"');
    let rest = &stored[open + 1..];
    if rest.iter().find(|b| !b.is_ascii_whitespace()) != Some(&b'}') {
        out.put_u8(b',');
    }
    out.put_slice(rest);
    Some((out.freeze(), Digits { at, len: digits.len() }))
}

/// The same bytes with another `resourceVersion`.
pub(crate) fn restamp(bytes: &[u8], digits: Digits, revision: Revision) -> Bytes {
    let text = revision.to_resource_version();
    let mut out = BytesMut::with_capacity(bytes.len() + text.len());
    out.put_slice(&bytes[..digits.at]);
    out.put_slice(text.as_bytes());
    out.put_slice(&bytes[digits.at + digits.len..]);
    out.freeze()
}

/// Offset of the brace that opens the top-level `metadata` object.
fn metadata_at(json: &[u8]) -> Option<usize> {
    let mut at = skip_space(json, 0);
    if json.get(at) != Some(&b'{') {
        return None;
    }
    at += 1;
    loop {
        at = skip_space(json, at);
        match json.get(at)? {
            b',' => at += 1,
            b'"' => {
                let end = skip_string(json, at)?;
                let key = &json[at..end];
                let colon = skip_space(json, end);
                if json.get(colon) != Some(&b':') {
                    return None;
                }
                let value = skip_space(json, colon + 1);
                if key == b"\"metadata\"" {
                    return (json.get(value) == Some(&b'{')).then_some(value);
                }
                at = skip_value(json, value)?;
            }
            _ => return None,
        }
    }
}

fn skip_space(json: &[u8], at: usize) -> usize {
    json[at.min(json.len())..].iter().position(|b| !b.is_ascii_whitespace()).map_or(json.len(), |n| at + n)
}

/// The offset after the string that begins at `at`.
fn skip_string(json: &[u8], at: usize) -> Option<usize> {
    let mut at = at + 1;
    loop {
        match json.get(at)? {
            b'\\' => at += 2,
            b'"' => return Some(at + 1),
            _ => at += 1,
        }
    }
}

/// The offset after the value that begins at `at`.
fn skip_value(json: &[u8], at: usize) -> Option<usize> {
    let mut depth = 0usize;
    let mut at = at;
    loop {
        match json.get(at)? {
            b'"' => at = skip_string(json, at)?,
            b'{' | b'[' => {
                depth += 1;
                at += 1;
            }
            b'}' | b']' if depth == 0 => return Some(at),
            b'}' | b']' => {
                depth -= 1;
                at += 1;
            }
            b',' if depth == 0 => return Some(at),
            _ => at += 1,
        }
        if depth == 0 && matches!(json.get(at), Some(b',' | b'}' | b']') | None) {
            return Some(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn splice_equals_stamping_the_tree() {
        let objects = [
            json!({"metadata": {"name": "a"}}),
            json!({"metadata": {}}),
            json!({"apiVersion": "v1", "data": {"metadata": "{\"metadata\":{", "x\"metadata": {"a": [1, "]", {}]}}, "kind": "K", "metadata": {"name": "n"}}),
            json!({"a": [[], {"metadata": {"b": 1}}], "b": null, "c": 1.5, "d": true, "e": "\\", "metadata": {"name": "n", "resource": "x"}, "z": {}}),
        ];
        for object in objects {
            let mut tree = object.clone();
            let stored = encode(&mut tree);
            let (bytes, digits) = splice(&stored, Revision::new(17)).unwrap();
            let mut expected = object.clone();
            stamp(&mut expected, Revision::new(17));
            assert_eq!(serde_json::from_slice::<Value>(&bytes).unwrap(), expected);
            let again = restamp(&bytes, digits, Revision::new(123_456));
            stamp(&mut expected, Revision::new(123_456));
            assert_eq!(serde_json::from_slice::<Value>(&again).unwrap(), expected);
            assert_eq!(decode(&stored, Revision::new(123_456)).unwrap(), expected);
        }
    }

    #[test]
    fn whitespace_is_tolerated_and_garbage_refused() {
        let (bytes, _) = splice(b" { \"kind\" : \"K\" , \"metadata\" : { } }", Revision::new(3)).unwrap();
        assert_eq!(serde_json::from_slice::<Value>(&bytes).unwrap(), json!({"kind": "K", "metadata": {"resourceVersion": "3"}}));
        for bad in [&b""[..], b"[]", b"{}", b"{\"metadata\":1}", b"{\"a\":\"", b"k8s\0\x01", b"{\"a\" 1}"] {
            assert!(splice(bad, Revision::new(3)).is_none(), "{bad:?}");
        }
    }

    #[test]
    fn empty_metadata_is_not_stored() {
        let mut object = json!({"metadata": {"name": "a", "labels": {}, "finalizers": [], "generation": 0}, "data": {}});
        tidy(&mut object);
        assert_eq!(object, json!({"metadata": {"name": "a", "generation": 0}, "data": {}}));
    }

    #[test]
    fn stored_form_has_no_resource_version() {
        let mut object = json!({"metadata": {"name": "a", "resourceVersion": "9"}});
        assert_eq!(encode(&mut object), Bytes::from_static(b"{\"metadata\":{\"name\":\"a\"}}"));
    }
}
