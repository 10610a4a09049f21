//! Rules of Services.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{PLAIN, Rules, SelectableField, StatusMeta};
use crate::defaults;
use crate::field::{Errors, Path};
use crate::val::{copy, int_at, is_empty, list_at, list_mut, put, same, str_at};
use crate::validate::names::{self, NameRule};
use crate::validate::pod::one_of;

/// The rules of Services.
pub const RULES: Rules = Rules {
    name: NameRule::Label,
    status_meta: StatusMeta::Open,
    defaults: defaults::network::service,
    prepare_create,
    prepare_update,
    validate: check,
    validate_update: check_update,
    delete_returns_object: true,
    create_on_update: true,
    fields: FIELDS,
    ..PLAIN
};

const FIELDS: &[SelectableField] =
    &[("spec.clusterIP", |s| str_at(s, &["spec", "clusterIP"]).into()), ("spec.type", |s| str_at(s, &["spec", "type"]).into())];

fn prepare_create(svc: &mut Value) {
    join_cluster_ips(svc, None);
    put(svc, &["status"], json!({"loadBalancer": {}}));
}

/// `clusterIP` and `clusterIPs[0]` are one thing: who changes one of them changes the other.
fn join_cluster_ips(svc: &mut Value, old: Option<&Value>) {
    let ip = str_at(svc, &["spec", "clusterIP"]).to_string();
    let list_is_old = old.is_some_and(|o| same(&o["spec"]["clusterIPs"], &svc["spec"]["clusterIPs"]));
    let ip_is_old = old.is_some_and(|o| str_at(o, &["spec", "clusterIP"]) == ip);
    if ip.is_empty() && (old.is_none() || ip_is_old) {
        if let Some(first) = list_at(svc, &["spec", "clusterIPs"]).first().cloned() {
            put(svc, &["spec", "clusterIP"], first);
        }
    } else if !ip_is_old && (list_is_old || is_empty(&svc["spec"]["clusterIPs"])) {
        let list = if ip.is_empty() { Value::Null } else { json!([ip]) };
        put(svc, &["spec", "clusterIPs"], list);
    }
}

fn needs_ip(svc: &Value) -> bool {
    matches!(str_at(svc, &["spec", "type"]), "ClusterIP" | "NodePort" | "LoadBalancer")
}

fn needs_ports(svc: &Value) -> bool {
    let kind = str_at(svc, &["spec", "type"]);
    kind == "NodePort" || (kind == "LoadBalancer" && svc["spec"]["allocateLoadBalancerNodePorts"] != json!(false))
}

/// A PUT that leaves out what was allocated keeps it; a change of type lets go of what the new type has no use for.
fn prepare_update(svc: &mut Value, old: &Value) {
    if needs_ip(svc) && needs_ip(old) {
        let (ip, list) = (is_empty_text(&svc["spec"]["clusterIP"]), is_empty(&svc["spec"]["clusterIPs"]));
        if ip && list {
            copy(svc, old, &["spec", "clusterIP"]);
            copy(svc, old, &["spec", "clusterIPs"]);
        }
        for field in ["ipFamilies", "ipFamilyPolicy"] {
            if is_empty(&svc["spec"][field]) || is_empty_text(&svc["spec"][field]) {
                copy(svc, old, &["spec", field]);
            }
        }
    }
    join_cluster_ips(svc, Some(old));
    let old_ports = list_at(old, &["spec", "ports"]);
    let same_port = |p: &Value, o: &Value| p["port"] == o["port"] && p["protocol"] == o["protocol"];
    let both = needs_ports(svc) && needs_ports(old);
    let dropped = !needs_ports(svc) && needs_ports(old);
    for p in list_mut(svc, &["spec", "ports"]) {
        let before = old_ports.iter().find(|o| same_port(p, o)).map_or(Value::Null, |o| o["nodePort"].clone());
        let has = p["nodePort"].as_i64().unwrap_or(0) != 0;
        if both && !has || dropped && p["nodePort"] == before {
            put(p, &["nodePort"], if both { before } else { Value::Null });
        }
    }
    if str_at(svc, &["spec", "type"]) != str_at(old, &["spec", "type"]) {
        drop_fields_of_type(svc, old);
    } else if int_at(svc, &["spec", "healthCheckNodePort"]).unwrap_or(0) == 0 {
        copy(svc, old, &["spec", "healthCheckNodePort"]);
    }
}

/// Fields that a former type has left behind, unless this write sets them anew.
fn drop_fields_of_type(svc: &mut Value, old: &Value) {
    let kind = str_at(svc, &["spec", "type"]).to_string();
    let external = matches!(kind.as_str(), "NodePort" | "LoadBalancer") || !is_empty(&svc["spec"]["externalIPs"]);
    for (field, keep) in [
        ("externalTrafficPolicy", external),
        ("healthCheckNodePort", kind == "LoadBalancer"),
        ("allocateLoadBalancerNodePorts", kind == "LoadBalancer"),
        ("loadBalancerClass", kind == "LoadBalancer"),
        ("internalTrafficPolicy", kind != "ExternalName"),
        ("externalName", kind == "ExternalName"),
    ] {
        if !keep && same(&svc["spec"][field], &old["spec"][field]) {
            put(svc, &["spec", field], Value::Null);
        }
    }
    if kind == "ExternalName" && same(&svc["spec"]["clusterIP"], &old["spec"]["clusterIP"]) {
        for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            put(svc, &["spec", field], Value::Null);
        }
    }
}

fn is_empty_text(v: &Value) -> bool {
    v.as_str().unwrap_or("").is_empty()
}

const TYPES: &[&str] = &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];

fn check(svc: &Value, e: &mut Errors) {
    let path = Path::new("spec");
    let spec = &svc["spec"];
    let kind = str_at(spec, &["type"]);
    let headless = str_at(spec, &["clusterIP"]) == "None";
    let ports = list_at(spec, &["ports"]);
    if ports.is_empty() && !headless && kind != "ExternalName" {
        e.required(&path.child("ports"), "");
    }
    match kind {
        "ExternalName" => {
            let name = str_at(spec, &["externalName"]);
            let name = name.strip_suffix('.').unwrap_or(name);
            if name.is_empty() {
                e.required(&path.child("externalName"), "");
            } else {
                for why in names::dns1123_subdomain(name) {
                    e.invalid(&path.child("externalName"), name, why);
                }
            }
            if !is_empty_text(&spec["clusterIP"]) {
                e.forbidden(&path.child("clusterIPs"), "may not be set when type is 'ExternalName'");
            }
        }
        "LoadBalancer" | "NodePort" if headless => {
            e.invalid(&path.child("clusterIPs").index(0), "None", format!("may not be set to 'None' for {kind} services"));
        }
        _ => {}
    }
    let mut seen = BTreeSet::new();
    let mut pairs = BTreeSet::new();
    for (i, p) in ports.iter().enumerate() {
        port(p, &path.child("ports").index(i), ports.len() > 1, kind, &mut seen, &mut pairs, e);
    }
    crate::validate::meta::labels(&spec["selector"], &path.child("selector"), e);
    one_of(spec, &path, "sessionAffinity", &["ClientIP", "None"], e);
    one_of(spec, &path, "type", TYPES, e);
    if let Some(s) = int_at(spec, &["sessionAffinityConfig", "clientIP", "timeoutSeconds"])
        && !(1..=86400).contains(&s)
    {
        let path = path.child("sessionAffinityConfig").child("clientIP").child("timeoutSeconds");
        e.invalid(&path, s, "must be greater than 0 and less than 86400");
    }
    traffic(spec, &path, kind, e);
}

fn traffic(spec: &Value, path: &Path, kind: &str, e: &mut Errors) {
    for (field, allowed) in [("externalTrafficPolicy", ["Cluster", "Local"]), ("internalTrafficPolicy", ["Cluster", "Local"])] {
        let text = str_at(spec, &[field]);
        if !text.is_empty() && !allowed.contains(&text) {
            e.unsupported(&path.child(field), text, &allowed);
        }
    }
    if !is_empty_text(&spec["externalTrafficPolicy"]) && kind == "ClusterIP" && is_empty(&spec["externalIPs"]) {
        e.invalid(
            &path.child("externalTrafficPolicy"),
            spec["externalTrafficPolicy"].clone(),
            "may only be set for externally-accessible services",
        );
    }
    for (i, ip) in list_at(spec, &["clusterIPs"]).iter().enumerate() {
        let text = ip.as_str().unwrap_or("");
        if text != "None" && text.parse::<std::net::IpAddr>().is_err() {
            e.invalid(&path.child("clusterIPs").index(i), text, "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)");
        }
    }
}

fn port<'a>(
    p: &'a Value,
    path: &Path,
    need_name: bool,
    kind: &str,
    seen: &mut BTreeSet<&'a str>,
    pairs: &mut BTreeSet<(i64, &'a str)>,
    e: &mut Errors,
) {
    let name = str_at(p, &["name"]);
    if name.is_empty() {
        if need_name {
            e.required(&path.child("name"), "");
        }
    } else {
        for why in names::dns1123_label(name) {
            e.invalid(&path.child("name"), name, why);
        }
        if !seen.insert(name) {
            e.duplicate(&path.child("name"), name);
        }
    }
    let number = int_at(p, &["port"]).unwrap_or(0);
    if let Some(why) = names::port_number(number) {
        e.invalid(&path.child("port"), number, why);
    }
    one_of(p, path, "protocol", &["SCTP", "TCP", "UDP"], e);
    if !p["targetPort"].is_null() {
        crate::validate::pod::int_or_name(&p["targetPort"], &path.child("targetPort"), e);
    }
    if kind == "ClusterIP" && int_at(p, &["nodePort"]).unwrap_or(0) != 0 {
        e.forbidden(&path.child("nodePort"), "may not be used when `type` is 'ClusterIP'");
    }
    if !pairs.insert((number, str_at(p, &["protocol"]))) {
        e.duplicate(path, json!({"protocol": p["protocol"], "port": number}));
    }
}

fn check_update(new: &Value, old: &Value, e: &mut Errors) {
    let had = list_at(old, &["spec", "clusterIPs"]).first();
    let have = list_at(new, &["spec", "clusterIPs"]).first();
    if needs_ip(new) && needs_ip(old) && had.is_some() && had != have {
        e.invalid(&Path::new("spec.clusterIPs").index(0), new["spec"]["clusterIPs"].clone(), "may not change once set");
    }
}
