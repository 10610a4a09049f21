//! What pure functions say, next to what kube-apiserver 1.36 said.

use kontiki_base::object::Gvk;
use kontiki_registry::discovery;
use kontiki_registry::schema::{FieldValidation, decode};
use kontiki_registry::select::{FieldSelector, LabelSelector};
use kontiki_registry::status::Status;
use kontiki_registry::table::Registry;
use serde_json::{Value, json};

pub(super) fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

fn answers() -> Vec<Value> {
    lines(include_str!("../golden/answers.jsonl"))
}

/// Equal but for what JSON clients cannot tell apart: absent, null, empty, zero, false.
pub(super) fn alike(a: &Value, b: &Value) -> bool {
    let zero = |v: &Value| match v {
        Value::Null | Value::Bool(false) => true,
        Value::Number(n) => n.as_i64() == Some(0),
        Value::String(s) => s.is_empty(),
        Value::Array(a) => a.is_empty(),
        Value::Bool(true) | Value::Object(_) => false,
    };
    let empty = |v: &Value| zero(v) || v.as_object().is_some_and(|m| m.values().all(|v| alike(v, &Value::Null)));
    match (a, b) {
        (Value::Object(x), Value::Object(y)) => {
            x.iter().all(|(k, v)| alike(v, y.get(k).unwrap_or(&Value::Null)))
                && y.iter().all(|(k, v)| x.contains_key(k) || alike(&Value::Null, v))
        }
        (Value::Array(x), Value::Array(y)) => x.len() == y.len() && x.iter().zip(y).all(|(a, b)| alike(a, b)),
        _ => a == b || (empty(a) && empty(b)),
    }
}

#[test]
fn defaults_are_those_of_the_libraries() {
    let registry = Registry::builtin();
    let mut seen = 0;
    for case in lines(include_str!("../golden/kinds.jsonl")) {
        let (input, want) = (&case["in"], &case["defaulted"]);
        let gvk = Gvk::from_api_version(input["apiVersion"].as_str().unwrap(), input["kind"].as_str().unwrap());
        let Some(row) = registry.kind(&gvk).filter(|r| r.is_stored()) else { continue };
        let mut obj = decode(&row, input.clone(), &[], FieldValidation::Strict).unwrap().object;
        (row.rules.defaults)(&mut obj);
        assert!(alike(&obj, want), "{gvk}\n in  {input}\n is  {obj}\n not {want}");
        let once = obj.clone();
        (row.rules.defaults)(&mut obj);
        assert_eq!(obj, once, "{gvk}: defaults are idempotent");
        seen += 1;
    }
    assert!(seen > 70, "{seen}");
}

#[test]
fn discovery_is_that_of_the_server() {
    let registry = Registry::builtin();
    let sorted_groups = |v: &Value| -> Vec<Value> {
        // Groups that we do not serve: custom resources of the recording, and alpha or beta ones.
        let served = |g: &&Value| registry.has_group(g["name"].as_str().unwrap());
        v["groups"].as_array().unwrap().iter().filter(served).cloned().collect()
    };
    let mut seen = 0;
    for case in answers().iter().filter(|c| c["method"] == "GET" && !c["path"].as_str().unwrap().contains('?')) {
        let want = &case["resp"];
        match case["path"].as_str().unwrap() {
            "/api" => assert_eq!(&discovery::api_versions("127.0.0.1:26443"), want),
            "/apis" => assert_eq!(sorted_groups(&discovery::api_groups(&registry)), sorted_groups(want)),
            "/apis/apps" => assert_eq!(discovery::api_group(&registry, "apps").as_ref(), Some(want)),
            "/api/v1" => assert_eq!(discovery::resource_list(&registry, "", "v1").as_ref(), Some(want)),
            "/apis/apps/v1" => assert_eq!(discovery::resource_list(&registry, "apps", "v1").as_ref(), Some(want)),
            other => panic!("{other} has no test"),
        }
        seen += 1;
    }
    assert_eq!(seen, 5);
    assert!(discovery::resource_list(&registry, "apps", "v2").is_none() && discovery::api_group(&registry, "nope").is_none());
}

/// Group, version, namespace, plural.
fn split(path: &str) -> (String, String, String, String) {
    let path = path.split('?').next().unwrap();
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    let (group, version, rest) = if parts[0] == "api" { ("", parts[1], &parts[2..]) } else { (parts[1], parts[2], &parts[3..]) };
    let (ns, plural) = if rest.len() == 3 { (rest[1], rest[2]) } else { ("", rest[0]) };
    (group.into(), version.into(), ns.into(), plural.into())
}

#[test]
fn selectors_are_refused_in_the_same_words() {
    let registry = Registry::builtin();
    let mut seen = 0;
    for case in answers().iter().filter(|c| c["path"].as_str().unwrap().contains("elector=")) {
        let path = case["path"].as_str().unwrap();
        let (group, version, _, plural) = split(path);
        let row = registry.resource(&group, &version, &plural).unwrap();
        let query = path.split_once('?').unwrap().1;
        for pair in query.split('&') {
            let (key, value) = pair.split_once('=').unwrap();
            let text = percent_decoded(value);
            let status = match key {
                "labelSelector" => LabelSelector::parse(&text).unwrap_err(),
                "fieldSelector" => FieldSelector::parse(&row, &text).unwrap_err(),
                _ => continue,
            };
            assert_eq!(status.to_json(), case["resp"], "{path}");
            seen += 1;
        }
    }
    assert!(seen >= 6, "{seen}");
}

fn percent_decoded(s: &str) -> String {
    let mut out = Vec::new();
    let mut bytes = s.bytes();
    while let Some(b) = bytes.next() {
        if b == b'%' {
            let hex: Vec<u8> = bytes.by_ref().take(2).collect();
            out.push(u8::from_str_radix(std::str::from_utf8(&hex).unwrap(), 16).unwrap());
        } else {
            out.push(b);
        }
    }
    String::from_utf8(out).unwrap()
}

#[test]
fn selectors_are_those_of_the_libraries() {
    let all = lines(include_str!("../golden/selectors.jsonl"));
    let pod = Registry::builtin().resource("", "v1", "pods").unwrap();
    for group in &all {
        for case in group["cases"].as_array().unwrap() {
            let text = case["in"].as_str().unwrap();
            let (parsed, matches): (Result<String, Status>, Option<LabelSelector>) = if group["op"] == "labels" {
                let s = LabelSelector::parse(text);
                (s.clone().map(|s| s.to_string()), s.ok())
            } else {
                // The vectors use fields that no kind has: only those that a pod has are parsed to the end.
                match FieldSelector::parse(&pod, text) {
                    Err(e) if e.message.starts_with("field label not supported") => continue,
                    other => (other.map(|s| s.to_string()), None),
                }
            };
            match (parsed, case["error"].as_str()) {
                (Ok(canon), None) => assert_eq!(canon, case["canon"].as_str().unwrap(), "{text}"),
                (Err(e), Some(want)) => assert_eq!(e.message, want, "{text}"),
                (got, want) => panic!("{text}: {got:?} {want:?}"),
            }
            for (labels, hit) in case["match"].as_object().into_iter().flatten() {
                let pairs = labels.split(',').filter(|l| !l.is_empty()).map(|l| l.split_once('=').unwrap());
                let labels: serde_json::Map<String, Value> = pairs.map(|(k, v)| (k.to_string(), json!(v))).collect();
                let obj = json!({"metadata": {"labels": labels}});
                assert_eq!(matches.as_ref().unwrap().matches(&obj), hit.as_bool().unwrap(), "{text} on {obj}");
            }
        }
    }
}
