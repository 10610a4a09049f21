//! RFC 6902 JSON patch, with the bounds that kube-apiserver puts on it.

use json_patch::PatchOperation;
use kontiki_base::limits;
use serde_json::Value;

use super::PatchError;

/// Applies a list of operations: all of them or none.
///
/// # Errors
/// [`PatchError::Malformed`] if it is no list of operations, [`PatchError::TooLarge`] beyond the bounds,
/// [`PatchError::DoesNotApply`] if a path is missing or a test fails.
pub fn json(doc: &Value, patch: &Value) -> Result<Value, PatchError> {
    let Value::Array(list) = patch else {
        return Err(PatchError::Malformed(format!(
            "error decoding patch: json: cannot unmarshal {} into Go value of type []handlers.jsonPatchOp",
            super::json_type(patch)
        )));
    };
    if list.len() > limits::JSON_PATCH_OPS {
        return Err(PatchError::TooLarge(format!(
            "The allowed maximum operations in a JSON patch is {}, got {}",
            limits::JSON_PATCH_OPS,
            list.len()
        )));
    }
    let mut out = doc.clone();
    let mut copied = 0usize;
    for item in list {
        let op = serde_json::from_value::<PatchOperation>(item.clone())
            .map_err(|e| PatchError::Malformed(format!("error decoding patch: {e}")))?;
        let op = from_the_end(&out, op);
        if let PatchOperation::Copy(copy) = &op {
            copied += out.pointer(copy.from.as_str()).map_or(0, |v| v.to_string().len());
            if copied > limits::JSON_PATCH_COPY_BYTES {
                return Err(PatchError::TooLarge(format!(
                    "Unable to complete the copy, the accumulated size increase of copy is {copied}, exceeding the limit {}",
                    limits::JSON_PATCH_COPY_BYTES
                )));
            }
        }
        json_patch::patch(&mut out, std::slice::from_ref(&op)).map_err(|e| PatchError::DoesNotApply(e.to_string()))?;
    }
    Ok(out)
}

/// Kubernetes accepts negative list indices, counted from the end. Rewrites the last token of an operation's path.
fn from_the_end(doc: &Value, op: PatchOperation) -> PatchOperation {
    let path = match &op {
        PatchOperation::Remove(o) => o.path.as_str(),
        PatchOperation::Replace(o) => o.path.as_str(),
        PatchOperation::Test(o) => o.path.as_str(),
        _ => return op,
    };
    let Some((parent, last)) = path.rsplit_once('/') else { return op };
    let back = last.strip_prefix('-').and_then(|n| n.parse::<usize>().ok());
    let (Some(back), Some(Value::Array(list))) = (back, doc.pointer(parent)) else { return op };
    let Some(index) = list.len().checked_sub(back).filter(|_| back > 0) else { return op };
    let Ok(path) = json_patch::jsonptr::PointerBuf::parse(format!("{parent}/{index}")) else { return op };
    match op {
        PatchOperation::Remove(mut o) => {
            o.path = path;
            PatchOperation::Remove(o)
        }
        PatchOperation::Replace(mut o) => {
            o.path = path;
            PatchOperation::Replace(o)
        }
        PatchOperation::Test(mut o) => {
            o.path = path;
            PatchOperation::Test(o)
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn operations_in_order() {
        let doc = json!({"data": {"k": "v"}, "list": [1, 2, 3]});
        let patch = json!([
            {"op": "add", "path": "/data/n", "value": "1"},
            {"op": "test", "path": "/data/k", "value": "v"},
            {"op": "move", "from": "/data/k", "path": "/data/m"},
            {"op": "copy", "from": "/data/m", "path": "/data/c"},
            {"op": "add", "path": "/list/-", "value": 4},
            {"op": "remove", "path": "/list/0"},
            {"op": "replace", "path": "/list/-1", "value": 9},
        ]);
        assert_eq!(json(&doc, &patch), Ok(json!({"data": {"n": "1", "m": "v", "c": "v"}, "list": [2, 3, 9]})));
    }

    #[test]
    fn failures_say_whose_fault_it_is() {
        let doc = json!({"data": {"k": "v"}});
        for patch in [
            json!([{"op": "test", "path": "/data/k", "value": "z"}]),
            json!([{"op": "remove", "path": "/data/zz"}]),
            json!([{"op": "add", "path": "/no/such", "value": 1}]),
            json!([{"op": "replace", "path": "/data/zz", "value": 1}]),
        ] {
            assert!(matches!(json(&doc, &patch), Err(PatchError::DoesNotApply(_))), "{patch}");
        }
        let e = json(&doc, &json!({"a": 1})).unwrap_err();
        assert_eq!(e.to_string(), "error decoding patch: json: cannot unmarshal object into Go value of type []handlers.jsonPatchOp");
        assert!(matches!(json(&doc, &json!([{"op": "nope"}])), Err(PatchError::Malformed(_))));
    }

    #[test]
    fn bounds() {
        let doc = json!({"a": "x".repeat(1 << 20)});
        let copies: Vec<_> = (0..4).map(|i| json!({"op": "copy", "from": "/a", "path": format!("/b{i}")})).collect();
        assert!(matches!(json(&doc, &Value::Array(copies)), Err(PatchError::TooLarge(_))));
        let many = vec![json!({"op": "test", "path": "/a", "value": 1}); limits::JSON_PATCH_OPS + 1];
        let e = json(&doc, &Value::Array(many)).unwrap_err();
        assert_eq!(e.to_string(), "The allowed maximum operations in a JSON patch is 10000, got 10001");
    }
}
