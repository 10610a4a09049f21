//! Golden runs of server-side apply and updates, made with the libraries of Kubernetes 1.36.

use serde_json::{Value, json};

use super::*;
use crate::patch::managed::{decode, encode, record_update, without_managed};

/// The golden runs took less than a second each.
const NOW: &str = "2026-01-01T00:00:00Z";

/// The managed fields of an object without their times.
fn timeless(object: &Value) -> Vec<Value> {
    let list = object.pointer("/metadata/managedFields").and_then(Value::as_array).cloned().unwrap_or_default();
    list.into_iter()
        .map(|mut entry| {
            entry.as_object_mut().unwrap().remove("time");
            entry
        })
        .collect()
}

/// A plain write as the golden runs make it: on untyped objects, with nothing ignored, never capped.
fn write(live: &Value, object: &Value, writer: &Writer<'_>) -> Value {
    let mut managers = decode(live).unwrap();
    record_update(&mut managers, &without_managed(live), &without_managed(object), writer);
    let mut new = object.clone();
    encode(&mut new, &managers);
    new
}

#[test]
fn golden_runs() {
    let mut seen = 0;
    for line in include_str!("../../../tests/golden/patch.jsonl").lines() {
        let run: Value = serde_json::from_str(line).unwrap();
        if run["op"] != "ssa" {
            continue;
        }
        seen += 1;
        let mut live: Option<Value> = None;
        for (i, step) in run["steps"].as_array().unwrap().iter().enumerate() {
            let what = format!("{} step {i}", run["name"]);
            let object = &step["obj"];
            let gvk = Gvk::from_api_version(object["apiVersion"].as_str().unwrap(), object["kind"].as_str().unwrap());
            let writer = Writer { ignored: &[], ..Writer::new(&gvk, step["manager"].as_str().unwrap(), "", NOW) };
            let result = match step["do"].as_str().unwrap() {
                "apply" => apply_as(live.as_ref(), object, &writer, step["force"].as_bool().unwrap()),
                _ => Ok(write(live.as_ref().unwrap_or(&json!({})), object, &writer)),
            };
            match (result, step["error"].as_str()) {
                (Err(e), Some(want)) => {
                    assert_eq!(e.to_string(), want, "{what}");
                    compare_causes(&e, &step["errorObj"]["ErrStatus"]["details"]["causes"]);
                }
                (Ok(new), None) => {
                    let mut bare = without_managed(&new);
                    let want = &step["live"];
                    let wanted_managed: Vec<Value> = step["managedFields"].as_array().cloned().unwrap_or_default();
                    assert_eq!(timeless(&new), wanted_managed, "{what}");
                    bare["metadata"] = want["metadata"].clone();
                    assert_eq!(&bare, want, "{what}");
                    live = Some(new);
                }
                (got, want) => panic!("{what}: got {got:?}, want {want:?}"),
            }
        }
    }
    assert_eq!(seen, 33);
}

fn compare_causes(error: &ApplyError, want: &Value) {
    let ApplyError::Conflicts { causes, .. } = error else { return };
    let mut got: Vec<_> = causes.iter().map(|c| (c.field.clone(), c.message.clone())).collect();
    let text = |c: &Value, f: &str| c[f].as_str().unwrap().to_owned();
    let mut want: Vec<_> = want.as_array().unwrap().iter().map(|c| (text(c, "field"), text(c, "message"))).collect();
    got.sort();
    want.sort();
    assert_eq!(got, want);
}
