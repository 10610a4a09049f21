//! Rules of pod specs, for pods and for templates (`pkg/apis/core/validation`): the ones that people meet.

use std::collections::BTreeSet;

use serde_json::Value;

use super::names;
use crate::field::{Errors, Path};
use crate::quantity::Quantity;
use crate::val::{go_quote, int_at, is_empty, list_at, map_at, str_at};

/// A pod spec.
pub fn spec(spec: &Value, path: &Path, e: &mut Errors) {
    let volumes = volumes(spec, &path.child("volumes"), e);
    containers(spec, &volumes, path, e);
    one_of(spec, path, "restartPolicy", &["Always", "OnFailure", "Never"], e);
    one_of(spec, path, "dnsPolicy", &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"], e);
    super::meta::labels(&spec["nodeSelector"], &path.child("nodeSelector"), e);
    for (field, subdomain) in [("serviceAccountName", true), ("nodeName", true), ("hostname", false), ("subdomain", false)] {
        let text = str_at(spec, &[field]);
        if !text.is_empty() {
            let wrong = if subdomain { names::dns1123_subdomain(text) } else { names::dns1123_label(text) };
            for why in wrong {
                e.invalid(&path.child(field), text, why);
            }
        }
    }
    if let Some(n) = int_at(spec, &["activeDeadlineSeconds"])
        && !(1..=i64::from(i32::MAX)).contains(&n)
    {
        e.invalid(&path.child("activeDeadlineSeconds"), n, "must be between 1 and 2147483647, inclusive");
    }
    non_negative(spec, path, "terminationGracePeriodSeconds", e);
    tolerations(spec, &path.child("tolerations"), e);
    spread(spec, &path.child("topologySpreadConstraints"), e);
    for (i, s) in list_at(spec, &["imagePullSecrets"]).iter().enumerate() {
        if str_at(s, &["name"]).is_empty() {
            e.required(&path.child("imagePullSecrets").index(i).child("name"), "");
        }
    }
    gates(spec, &path.child("schedulingGates"), e);
}

/// A field that must have one of these values.
pub fn one_of(v: &Value, path: &Path, field: &str, allowed: &[&str], e: &mut Errors) {
    match str_at(v, &[field]) {
        "" => e.required(&path.child(field), ""),
        text if !allowed.contains(&text) => e.unsupported(&path.child(field), text, allowed),
        _ => {}
    }
}

/// A number that must not be below zero.
pub fn non_negative(v: &Value, path: &Path, field: &str, e: &mut Errors) {
    if let Some(n) = int_at(v, &[field]).filter(|n| *n < 0) {
        e.invalid(&path.child(field), n, "must be greater than or equal to 0");
    }
}

fn gates(spec: &Value, path: &Path, e: &mut Errors) {
    let mut seen = BTreeSet::new();
    for (i, g) in list_at(spec, &["schedulingGates"]).iter().enumerate() {
        let name = str_at(g, &["name"]);
        for why in names::qualified_name(name) {
            e.invalid(&path.index(i), name, why);
        }
        if !seen.insert(name) {
            e.duplicate(&path.index(i), name);
        }
    }
}

fn volumes<'a>(spec: &'a Value, path: &Path, e: &mut Errors) -> BTreeSet<&'a str> {
    let mut all = BTreeSet::new();
    for (i, v) in list_at(spec, &["volumes"]).iter().enumerate() {
        let path = path.index(i);
        let name = str_at(v, &["name"]);
        if name.is_empty() {
            e.required(&path.child("name"), "");
        } else {
            for why in names::dns1123_label(name) {
                e.invalid(&path.child("name"), name, why);
            }
            if !all.insert(name) {
                e.duplicate(&path.child("name"), name);
            }
        }
        let mut sources = v.as_object().into_iter().flatten().filter(|(k, v)| *k != "name" && v.is_object()).map(|(k, _)| k);
        sources.next();
        for extra in sources {
            e.forbidden(&path.child(extra), "may not specify more than 1 volume type");
        }
        for (source, field) in [("secret", "secretName"), ("persistentVolumeClaim", "claimName"), ("hostPath", "path")] {
            if v[source].is_object() && str_at(v, &[source, field]).is_empty() {
                e.required(&path.child(source).child(field), "");
            }
        }
    }
    all
}

fn containers(spec: &Value, volumes: &BTreeSet<&str>, path: &Path, e: &mut Errors) {
    if list_at(spec, &["containers"]).is_empty() {
        e.required(&path.child("containers"), "");
    }
    let mut all = BTreeSet::new();
    for list in ["containers", "initContainers", "ephemeralContainers"] {
        let host_network = spec["hostNetwork"] == true;
        for (i, c) in list_at(spec, &[list]).iter().enumerate() {
            let path = path.child(list).index(i);
            let name = str_at(c, &["name"]);
            if name.is_empty() {
                e.required(&path.child("name"), "");
            } else {
                for why in names::dns1123_label(name) {
                    e.invalid(&path.child("name"), name, why);
                }
                if !all.insert(name) {
                    e.duplicate(&path.child("name"), name);
                }
            }
            container(c, &path, volumes, host_network, e);
            let policy = str_at(c, &["restartPolicy"]);
            if list == "initContainers" && !policy.is_empty() && !["Always", "Never", "OnFailure"].contains(&policy) {
                e.unsupported(&path.child("restartPolicy"), policy, &["Always", "Never", "OnFailure"]);
            }
        }
    }
}

fn container(c: &Value, path: &Path, volumes: &BTreeSet<&str>, host_network: bool, e: &mut Errors) {
    let image = str_at(c, &["image"]);
    if image.is_empty() {
        e.required(&path.child("image"), "");
    } else if image.trim() != image {
        e.invalid(&path.child("image"), image, "must not have leading or trailing whitespace");
    }
    for (probe_name, only_once) in [("livenessProbe", true), ("readinessProbe", false), ("startupProbe", true)] {
        if c[probe_name].is_object() {
            probe(&c[probe_name], &path.child(probe_name), only_once, e);
        }
    }
    one_of(c, path, "terminationMessagePolicy", &["FallbackToLogsOnError", "File"], e);
    ports(c, &path.child("ports"), host_network, e);
    env(c, path, e);
    mounts(c, &path.child("volumeMounts"), volumes, e);
    one_of(c, path, "imagePullPolicy", &["Always", "IfNotPresent", "Never"], e);
    resources(&c["resources"], &path.child("resources"), e);
}

fn probe(p: &Value, path: &Path, only_once: bool, e: &mut Errors) {
    let handlers: Vec<&str> = ["exec", "httpGet", "tcpSocket", "grpc"].into_iter().filter(|h| p[*h].is_object()).collect();
    match handlers[..] {
        [] => e.required(path, "must specify a handler type"),
        [_] => {}
        [_, ref more @ ..] => {
            for extra in more {
                e.forbidden(&path.child(extra), "may not specify more than 1 handler type");
            }
        }
    }
    if p["exec"].is_object() && list_at(p, &["exec", "command"]).is_empty() {
        e.required(&path.child("exec").child("command"), "");
    }
    for h in ["httpGet", "tcpSocket"] {
        if p[h].is_object() {
            int_or_name(&p[h]["port"], &path.child(h).child("port"), e);
        }
    }
    for field in ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"] {
        non_negative(p, path, field, e);
    }
    if only_once && int_at(p, &["successThreshold"]).is_some_and(|n| n != 1) {
        e.invalid(&path.child("successThreshold"), p["successThreshold"].clone(), "must be 1");
    }
}

/// A port by number or by name.
pub fn int_or_name(v: &Value, path: &Path, e: &mut Errors) {
    match v {
        Value::Number(n) => {
            if let Some(why) = names::port_number(n.as_i64().unwrap_or(0)) {
                e.invalid(path, v.clone(), why);
            }
        }
        Value::String(s) => {
            for why in names::port_name(s) {
                e.invalid(path, s.as_str(), why);
            }
        }
        _ => e.invalid(path, 0, "must be between 1 and 65535, inclusive"),
    }
}

fn ports(c: &Value, path: &Path, host_network: bool, e: &mut Errors) {
    let mut seen = BTreeSet::new();
    for (i, p) in list_at(c, &["ports"]).iter().enumerate() {
        let path = path.index(i);
        let name = str_at(p, &["name"]);
        if !name.is_empty() {
            let wrong = names::port_name(name);
            if wrong.is_empty() && !seen.insert(name) {
                e.duplicate(&path.child("name"), name);
            }
            for why in wrong {
                e.invalid(&path.child("name"), name, why);
            }
        }
        let (number, host) = (int_at(p, &["containerPort"]).unwrap_or(0), int_at(p, &["hostPort"]).unwrap_or(0));
        if number == 0 {
            e.required(&path.child("containerPort"), "");
        } else if let Some(why) = names::port_number(number) {
            e.invalid(&path.child("containerPort"), number, why);
        }
        if host != 0 {
            if let Some(why) = names::port_number(host) {
                e.invalid(&path.child("hostPort"), host, why);
            } else if host_network && host != number {
                e.invalid(&path.child("hostPort"), host, "must match `containerPort` when `hostNetwork` is true");
            }
        }
        one_of(p, &path, "protocol", &["SCTP", "TCP", "UDP"], e);
    }
}

fn env(c: &Value, path: &Path, e: &mut Errors) {
    for (i, v) in list_at(c, &["env"]).iter().enumerate() {
        let path = path.child("env").index(i);
        let name = str_at(v, &["name"]);
        if name.is_empty() {
            e.required(&path.child("name"), "");
        } else {
            for why in names::env_name(name) {
                e.invalid(&path.child("name"), name, why);
            }
        }
        let from = &v["valueFrom"];
        let Some(sources) = from.as_object() else { continue };
        let sources: Vec<&String> = sources.iter().filter(|(_, s)| s.is_object()).map(|(k, _)| k).collect();
        let path = path.child("valueFrom");
        if !str_at(v, &["value"]).is_empty() && !sources.is_empty() {
            e.invalid(&path, "", "may not be specified when `value` is not empty");
        }
        match sources.len() {
            0 => e.invalid(
                &path,
                "",
                "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`",
            ),
            1 => {}
            _ => e.invalid(&path, "", "may not have more than one field specified at a time"),
        }
        for source in ["configMapKeyRef", "secretKeyRef"] {
            if from[source].is_object() && str_at(from, &[source, "key"]).is_empty() {
                e.required(&path.child(source).child("key"), "");
            }
        }
    }
    for (i, v) in list_at(c, &["envFrom"]).iter().enumerate() {
        let path = path.child("envFrom").index(i);
        if !v["configMapRef"].is_object() && !v["secretRef"].is_object() {
            e.invalid(&path, "", "must specify one of: `configMapRef` or `secretRef`");
        }
    }
}

fn mounts(c: &Value, path: &Path, volumes: &BTreeSet<&str>, e: &mut Errors) {
    let mut seen = BTreeSet::new();
    for (i, m) in list_at(c, &["volumeMounts"]).iter().enumerate() {
        let path = path.index(i);
        let (name, at) = (str_at(m, &["name"]), str_at(m, &["mountPath"]));
        if name.is_empty() {
            e.required(&path.child("name"), "");
        } else if !volumes.contains(name) {
            e.not_found(&path.child("name"), name);
        }
        if at.is_empty() {
            e.required(&path.child("mountPath"), "");
        } else if !seen.insert(at) {
            e.invalid(&path.child("mountPath"), at, "must be unique");
        }
        let (sub, expr) = (str_at(m, &["subPath"]), str_at(m, &["subPathExpr"]));
        if !sub.is_empty() && !expr.is_empty() {
            e.invalid(&path.child("subPathExpr"), expr, "subPathExpr and subPath are mutually exclusive");
        }
        for (field, text) in [("subPath", sub), ("subPathExpr", expr)] {
            if text.starts_with('/') {
                e.invalid(&path.child(field), text, "must be a relative path");
            }
            if text.split('/').any(|part| part == "..") {
                e.invalid(&path.child(field), text, "must not contain '..'");
            }
        }
    }
}

/// Requests and limits of a container.
pub fn resources(r: &Value, path: &Path, e: &mut Errors) {
    for list in ["limits", "requests"] {
        for (name, amount) in map_at(r, &[list]).into_iter().flatten() {
            let path = path.child(list).key(name);
            for why in names::qualified_name(name) {
                e.invalid(&path, name.as_str(), why);
            }
            quantity(amount, &path, e);
        }
    }
    for (name, request) in map_at(r, &["requests"]).into_iter().flatten() {
        let parse = |v: &Value| v.as_str().and_then(|s| Quantity::parse(s).ok());
        let Some((request_q, limit)) = parse(request).zip(parse(&r["limits"][name])) else { continue };
        if request_q > limit {
            let why = format!("must be less than or equal to {name} limit of {limit}");
            e.invalid(&path.child("requests"), request.clone(), why);
        }
    }
}

/// A quantity that is not negative.
pub fn quantity(v: &Value, path: &Path, e: &mut Errors) {
    match v.as_str().map(Quantity::parse) {
        Some(Ok(q)) if q.nanos() < 0 => e.invalid(path, v.clone(), "must be greater than or equal to 0"),
        Some(Ok(_)) => {}
        Some(Err(why)) => e.invalid(path, v.clone(), why.to_string()),
        None => e.invalid(path, v.clone(), "must be a quantity"),
    }
}

fn tolerations(spec: &Value, path: &Path, e: &mut Errors) {
    for (i, t) in list_at(spec, &["tolerations"]).iter().enumerate() {
        let path = path.index(i);
        let (key, op, value, effect) = (str_at(t, &["key"]), str_at(t, &["operator"]), str_at(t, &["value"]), str_at(t, &["effect"]));
        if !key.is_empty() {
            for why in names::qualified_name(key) {
                e.invalid(&path.child("key"), key, why);
            }
        } else if op != "Exists" {
            e.invalid(
                &path.child("operator"),
                op,
                "operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
            );
        }
        if t["tolerationSeconds"].is_i64() && effect != "NoExecute" {
            e.invalid(&path.child("effect"), effect, "effect must be 'NoExecute' when `tolerationSeconds` is set");
        }
        match op {
            "" | "Equal" => {
                for why in names::label_value(value) {
                    e.invalid(&path.child("operator"), value, why);
                }
            }
            "Exists" if !value.is_empty() => {
                e.invalid(&path.child("operator"), t.clone(), "value must be empty when `operator` is 'Exists'");
            }
            "Exists" | "Lt" | "Gt" => {}
            other => e.unsupported(&path.child("operator"), other, &["Equal", "Exists"]),
        }
        if !effect.is_empty() && !["NoSchedule", "PreferNoSchedule", "NoExecute"].contains(&effect) {
            e.unsupported(&path.child("effect"), effect, &["NoSchedule", "PreferNoSchedule", "NoExecute"]);
        }
    }
}

fn spread(spec: &Value, path: &Path, e: &mut Errors) {
    for (i, c) in list_at(spec, &["topologySpreadConstraints"]).iter().enumerate() {
        let path = path.index(i);
        match int_at(c, &["maxSkew"]) {
            Some(n) if n > 0 => {}
            n => e.invalid(&path.child("maxSkew"), n.unwrap_or(0), "must be greater than zero"),
        }
        if str_at(c, &["topologyKey"]).is_empty() {
            e.required(&path.child("topologyKey"), "can not be empty");
        }
        one_of(c, &path, "whenUnsatisfiable", &["DoNotSchedule", "ScheduleAnyway"], e);
        super::meta::label_selector(&c["labelSelector"], &path.child("labelSelector"), e);
    }
}

/// A pod template, whose labels a selector must match.
pub fn template(template: &Value, path: &Path, e: &mut Errors) {
    let meta = &template["metadata"];
    super::meta::labels(&meta["labels"], &path.child("labels"), e);
    super::meta::annotations(&meta["annotations"], &path.child("annotations"), e);
    spec(&template["spec"], &path.child("spec"), e);
    if !is_empty(&template["spec"]["ephemeralContainers"]) {
        e.forbidden(&path.child("spec").child("ephemeralContainers"), "ephemeral containers not allowed in pod template");
    }
}

/// A line for each field in which two values differ, for messages: `-path: old` and `+path: new`.
pub fn diff(path: &str, new: &Value, old: &Value, out: &mut String) {
    match (new, old) {
        _ if crate::val::same(new, old) => {}
        (Value::Object(n), Value::Object(o)) => {
            let keys: BTreeSet<&String> = n.keys().chain(o.keys()).collect();
            for k in keys {
                diff(&format!("{path}.{k}"), n.get(k).unwrap_or(&Value::Null), o.get(k).unwrap_or(&Value::Null), out);
            }
        }
        (Value::Array(n), Value::Array(o)) if n.len() == o.len() => {
            for (i, (n, o)) in n.iter().zip(o).enumerate() {
                diff(&format!("{path}[{i}]"), n, o, out);
            }
        }
        _ => {
            let show = |v: &Value| v.as_str().map_or_else(|| v.to_string(), go_quote);
            out.push_str(&format!("-{path}: {}\n+{path}: {}\n", show(old), show(new)));
        }
    }
}
