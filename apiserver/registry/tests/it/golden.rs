//! What pure functions say, next to what kube-apiserver 1.36 said.

use kontiki_base::object::Gvk;
use kontiki_registry::admit::{self, Facts, Request};
use kontiki_registry::meta::{self, CreateCtx};
use kontiki_registry::rbac::User;
use kontiki_registry::row::Row;
use kontiki_registry::schema::{FieldValidation, decode};
use kontiki_registry::select::{FieldSelector, LabelSelector};
use kontiki_registry::status::Status;
use kontiki_registry::table::Registry;
use kontiki_registry::write_rules::{Write, WriteDecision, decide_write, refusal};
use kontiki_registry::{discovery, val};
use serde_json::{Value, json};

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

fn answers() -> Vec<Value> {
    lines(include_str!("../golden/answers.jsonl"))
}

/// Equal but for what JSON clients cannot tell apart: absent, null, empty, zero, false.
fn alike(a: &Value, b: &Value) -> bool {
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

fn create(row: &Row, ns: &str, body: &Value, terminating: bool) -> Result<Value, Status> {
    let mut obj = decode(row, body.clone(), &[], FieldValidation::Warn)?.object;
    if let WriteDecision::Refuse(why) = decide_write(row, Write::Create, &obj, None)? {
        return Err(refusal(row, why, "", &obj, None));
    }
    let user = User { name: "admin".into(), groups: vec!["system:masters".into()], uid: String::new() };
    let request = Request { user: &user, row, sub: None, namespace: ns, suffix: "abcde" };
    let namespace = json!({"metadata": {"name": ns}, "status": {"phase": if terminating { "Terminating" } else { "Active" }}});
    let account = json!({"metadata": {"name": "default"}});
    // The class that the recorded cluster had.
    let class = json!({"metadata": {"name": "hi"}, "value": 100, "globalDefault": true});
    let facts = Facts {
        namespace: (ns != "nope").then_some(&namespace),
        service_account: Some(&account),
        priority_classes: &[&class],
        ..Facts::default()
    };
    (row.rules.defaults)(&mut obj);
    let ctx = CreateCtx {
        uid: "1b671a64-40d5-491e-99b0-da01ff1f3341".into(),
        now: "2026-01-01T00:00:00Z",
        user: "admin",
        suffix: "abcde",
        namespace: ns,
        field_manager: "test",
    };
    admit::create(&request, &mut obj, &facts)?;
    if row.kind == "Pod" {
        admit::pod::mount_token(&mut obj, &account, "abcde");
    }
    meta::prepare_create(row, &mut obj, &ctx)?;
    Ok(obj)
}

/// What differs from one creation to the next, out.
fn settle(v: &Value) -> Value {
    let mut v = v.clone();
    let uid = v["metadata"]["uid"].as_str().unwrap_or("").to_string();
    let suffix = val::list_at(&v, &["spec", "volumes"])
        .iter()
        .filter_map(|v| v["name"].as_str()?.strip_prefix("kube-api-access-"))
        .next()
        .map(String::from);
    let created = v["metadata"]["creationTimestamp"].as_str().unwrap_or("").to_string();
    for field in ["uid", "resourceVersion", "managedFields"] {
        val::take(&mut v, &["metadata", field]);
    }
    if v["metadata"]["generateName"].is_string() {
        val::take(&mut v, &["metadata", "name"]);
    }
    // The recorded cluster had a source of certificates that only one distribution knows.
    for volume in val::list_mut(&mut v, &["spec", "volumes"]) {
        if let Some(Value::Array(sources)) = val::at_mut(volume, &["projected", "sources"]) {
            sources.retain(|s| s["configMap"]["name"] != "openshift-service-ca.crt");
        }
    }
    let mut text = v.to_string();
    for (from, to) in [(uid, "UID"), (suffix.unwrap_or_default(), "SUFFIX"), (created, "NOW")] {
        if !from.is_empty() {
            text = text.replace(&from, to);
        }
    }
    serde_json::from_str(&text).unwrap()
}

#[test]
fn creations_end_as_the_server_ended_them() {
    let registry = Registry::builtin();
    let (mut created, mut refused) = (0, 0);
    for case in answers().iter().filter(|c| c["method"] == "POST") {
        let name = case["name"].as_str().unwrap();
        let (group, version, ns, plural) = split(case["path"].as_str().unwrap());
        let row = registry.resource(&group, &version, &plural).unwrap_or_else(|| panic!("{name}"));
        let got = create(&row, &ns, &case["body"], name == "ns terminating create");
        match got {
            Ok(obj) => {
                assert_eq!(case["code"], 201, "{name}: {obj}");
                // The conditions of a definition are its controller's; the server sets them in the same write.
                let (mut is, mut want) = (settle(&obj), settle(&case["resp"]));
                if row.kind == "CustomResourceDefinition" {
                    val::take(&mut is, &["status"]);
                    val::take(&mut want, &["status"]);
                }
                assert!(alike(&is, &want), "{name}\n is  {is}\n not {want}");
                created += 1;
            }
            Err(status) => {
                assert_eq!(status.to_json(), case["resp"], "{name}");
                refused += 1;
            }
        }
    }
    assert!(created >= 12 && refused >= 14, "{created} {refused}");
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
