//! Rules of ConfigMaps, Secrets, ServiceAccounts, Leases, Endpoints and EndpointSlices.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{Generation, PLAIN, Rules, SelectableField};
use crate::defaults;
use crate::field::{Errors, Path};
use crate::val::{int_at, is_empty, list_at, map_at, put, same, str_at};
use crate::validate::names;
use crate::validate::pod::one_of;

/// Keys and values of a ConfigMap or Secret together, in bytes.
const DATA_BYTES: usize = 1 << 20;
const IMMUTABLE: &str = "field is immutable when `immutable` is set";

/// The rules of ConfigMaps.
pub const CONFIG_MAP: Rules = Rules { validate: config_map, validate_update: config_map_update, ..PLAIN };

/// The rules of Secrets.
pub const SECRET: Rules = Rules {
    defaults: defaults::cluster::secret,
    prepare_update: keep_type,
    validate: secret,
    validate_update: secret_update,
    fields: SECRET_FIELDS,
    ..PLAIN
};

const SECRET_FIELDS: &[SelectableField] = &[("type", |s| str_at(s, &["type"]).into())];

/// The rules of ServiceAccounts.
pub const SERVICE_ACCOUNT: Rules = Rules { delete_returns_object: true, ..PLAIN };

/// The rules of Leases.
pub const LEASE: Rules = Rules { validate: lease, create_on_update: true, unconditional_update: false, ..PLAIN };

/// The rules of Endpoints.
pub const ENDPOINTS: Rules = Rules { defaults: defaults::network::endpoints, validate: endpoints, create_on_update: true, ..PLAIN };

/// The rules of EndpointSlices.
pub const ENDPOINT_SLICE: Rules = Rules {
    generation: Generation::ContentAndLabels,
    defaults: defaults::network::endpoint_slice,
    validate: endpoint_slice,
    validate_update: |new, old, e| e.immutable(&Path::new("addressType"), &new["addressType"], &old["addressType"]),
    ..PLAIN
};

/// Bytes of a base64 text once decoded.
fn decoded_len(text: &str) -> usize {
    text.trim_end_matches('=').len() * 3 / 4
}

fn keys(v: &Value, path: &Path, e: &mut Errors) {
    for key in v.as_object().into_iter().flatten().map(|(k, _)| k) {
        for why in names::config_key(key) {
            e.invalid(&path.key(key), key.as_str(), why);
        }
    }
}

fn config_map(obj: &Value, e: &mut Errors) {
    keys(&obj["data"], &Path::new("data"), e);
    for key in map_at(obj, &["data"]).into_iter().flatten().map(|(k, _)| k) {
        if obj["binaryData"].get(key).is_some() {
            e.invalid(&Path::new("data").key(key), key.as_str(), format!("duplicate of key present in binaryData: {key}"));
        }
    }
    keys(&obj["binaryData"], &Path::new("binaryData"), e);
    let text = map_at(obj, &["data"]).into_iter().flatten().map(|(_, v)| v.as_str().map_or(0, str::len));
    let bytes = map_at(obj, &["binaryData"]).into_iter().flatten().map(|(_, v)| v.as_str().map_or(0, decoded_len));
    if text.chain(bytes).sum::<usize>() > DATA_BYTES {
        e.too_long(&Path::new("[]"), DATA_BYTES);
    }
}

/// What is immutable stays so, and keeps its data.
fn frozen(new: &Value, old: &Value, fields: &[&str], e: &mut Errors) {
    if old["immutable"] != true {
        return;
    }
    if new["immutable"] != true {
        e.forbidden(&Path::new("immutable"), IMMUTABLE);
    }
    for f in fields {
        if !same(&new[*f], &old[*f]) {
            e.forbidden(&Path::new(f), IMMUTABLE);
        }
    }
}

fn config_map_update(new: &Value, old: &Value, e: &mut Errors) {
    frozen(new, old, &["data", "binaryData"], e);
}

fn keep_type(secret: &mut Value, old: &Value) {
    // A PUT that says nothing of the type has just been given the default one.
    if secret["type"] == "Opaque" && !str_at(old, &["type"]).is_empty() && secret.get("type") != old.get("type") {
        let had = old["type"].clone();
        put(secret, &["type"], had);
    }
}

/// The annotation that says whose token a secret holds.
const ACCOUNT_NAME: &str = "kubernetes.io/service-account.name";

fn secret(obj: &Value, e: &mut Errors) {
    keys(&obj["data"], &Path::new("data"), e);
    let sum = map_at(obj, &["data"]).into_iter().flatten().map(|(_, v)| v.as_str().map_or(0, decoded_len)).sum::<usize>();
    if sum > DATA_BYTES {
        e.too_long(&Path::new("data"), DATA_BYTES);
    }
    let data = Path::new("data");
    let needs = |key: &str, e: &mut Errors| {
        if obj["data"].get(key).is_none() {
            e.required(&data.key(key), "");
        }
    };
    match str_at(obj, &["type"]) {
        "kubernetes.io/service-account-token" if str_at(obj, &["metadata", "annotations", ACCOUNT_NAME]).is_empty() => {
            e.required(&Path::new("metadata.annotations").key(ACCOUNT_NAME), "");
        }
        "kubernetes.io/dockercfg" => json_key(obj, ".dockercfg", e),
        "kubernetes.io/dockerconfigjson" => json_key(obj, ".dockerconfigjson", e),
        "kubernetes.io/basic-auth" => {
            let has = |k: &str| obj["data"].get(k).is_some();
            if !has("username") && !has("password") {
                needs("username", e);
                needs("password", e);
            }
        }
        "kubernetes.io/ssh-auth" => needs("ssh-privatekey", e),
        "kubernetes.io/tls" => {
            needs("tls.crt", e);
            needs("tls.key", e);
        }
        _ => {}
    }
}

/// A key that must hold JSON.
fn json_key(obj: &Value, key: &str, e: &mut Errors) {
    use base64::Engine as _;
    let path = Path::new("data").key(key);
    match obj["data"].get(key).and_then(Value::as_str) {
        None => e.required(&path, ""),
        Some(text) => {
            let bytes = base64::engine::general_purpose::STANDARD.decode(text).unwrap_or_default();
            if let Err(why) = serde_json::from_slice::<serde::de::IgnoredAny>(&bytes) {
                e.invalid(&path, "<secret contents redacted>", why.to_string());
            }
        }
    }
}

fn secret_update(new: &Value, old: &Value, e: &mut Errors) {
    e.immutable(&Path::new("type"), &new["type"], &old["type"]);
    frozen(new, old, &["data"], e);
}

fn lease(obj: &Value, e: &mut Errors) {
    let path = Path::new("spec");
    let spec = &obj["spec"];
    if let Some(n) = int_at(spec, &["leaseDurationSeconds"]).filter(|n| *n <= 0) {
        e.invalid(&path.child("leaseDurationSeconds"), n, "must be greater than 0");
    }
    if let Some(n) = int_at(spec, &["leaseTransitions"]).filter(|n| *n < 0) {
        e.invalid(&path.child("leaseTransitions"), n, "must be greater than or equal to 0");
    }
    if spec["holderIdentity"] == "" {
        e.invalid(&path.child("holderIdentity"), "", "must not be empty");
    }
}

fn port(p: &Value, path: &Path, need_name: bool, e: &mut Errors) {
    let name = str_at(p, &["name"]);
    if need_name && name.is_empty() {
        e.required(&path.child("name"), "");
    } else if !name.is_empty() {
        for why in names::dns1123_label(name) {
            e.invalid(&path.child("name"), name, why);
        }
    }
    one_of(p, path, "protocol", &["SCTP", "TCP", "UDP"], e);
}

fn special(ip: &str) -> Option<&'static str> {
    let ip: std::net::IpAddr = ip.parse().ok()?;
    if ip.is_unspecified() {
        Some("may not be unspecified (0.0.0.0 or ::)")
    } else if ip.is_loopback() {
        Some("may not be in the loopback range (127.0.0.0/8, ::1/128)")
    } else if ip.is_multicast() {
        Some("may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)")
    } else {
        None
    }
}

const BAD_IP: &str = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";

fn endpoints(obj: &Value, e: &mut Errors) {
    for (i, s) in list_at(obj, &["subsets"]).iter().enumerate() {
        let path = Path::new("subsets").index(i);
        if is_empty(&s["addresses"]) && is_empty(&s["notReadyAddresses"]) {
            e.required(&path, "must specify `addresses` or `notReadyAddresses`");
        }
        for list in ["addresses", "notReadyAddresses"] {
            for (j, a) in list_at(s, &[list]).iter().enumerate() {
                let path = path.child(list).index(j).child("ip");
                let ip = str_at(a, &["ip"]);
                if ip.parse::<std::net::IpAddr>().is_err() {
                    e.invalid(&path, ip, BAD_IP);
                } else if let Some(why) = special(ip) {
                    e.invalid(&path, ip, why);
                }
            }
        }
        let ports = list_at(s, &["ports"]);
        for (j, p) in ports.iter().enumerate() {
            let path = path.child("ports").index(j);
            port(p, &path, ports.len() > 1, e);
            let n = int_at(p, &["port"]).unwrap_or(0);
            if let Some(why) = names::port_number(n) {
                e.invalid(&path.child("port"), n, why);
            }
        }
    }
}

/// Bounds of an EndpointSlice.
const MAX_ENDPOINTS: usize = 1000;
const MAX_PORTS: usize = 20_000;
const MAX_ADDRESSES: usize = 100;

fn endpoint_slice(obj: &Value, e: &mut Errors) {
    let kind = str_at(obj, &["addressType"]);
    one_of(obj, &Path::root(), "addressType", &["FQDN", "IPv4", "IPv6"], e);
    let all = list_at(obj, &["endpoints"]);
    let too_many = |e: &mut Errors, path: &Path, n: usize, max: usize| {
        e.push(crate::field::Reason::TooMany, path, n, format!("must have at most {max} items"));
    };
    if all.len() > MAX_ENDPOINTS {
        too_many(e, &Path::new("endpoints"), all.len(), MAX_ENDPOINTS);
        return;
    }
    for (i, endpoint) in all.iter().enumerate() {
        let path = Path::new("endpoints").index(i).child("addresses");
        let addresses = list_at(endpoint, &["addresses"]);
        if addresses.is_empty() {
            e.required(&path, "must contain at least 1 address");
        } else if addresses.len() > MAX_ADDRESSES {
            too_many(e, &path, addresses.len(), MAX_ADDRESSES);
        }
        for (j, a) in addresses.iter().enumerate() {
            let text = a.as_str().unwrap_or("");
            let path = path.index(j);
            let wrong: Vec<String> = match kind {
                "IPv4" if text.parse::<std::net::Ipv4Addr>().is_err() => vec!["must be a valid IPv4 address".into()],
                "IPv6" if text.parse::<std::net::Ipv6Addr>().is_err() => vec!["must be a valid IPv6 address".into()],
                "FQDN" => names::dns1123_subdomain(text),
                _ => special(text).map(String::from).into_iter().collect(),
            };
            for why in wrong {
                e.invalid(&path, text, why);
            }
        }
    }
    let ports = list_at(obj, &["ports"]);
    if ports.len() > MAX_PORTS {
        too_many(e, &Path::new("ports"), ports.len(), MAX_PORTS);
    }
    let mut seen = BTreeSet::new();
    for (i, p) in ports.iter().enumerate() {
        let path = Path::new("ports").index(i);
        port(p, &path, false, e);
        let name = str_at(p, &["name"]);
        if !seen.insert(name) {
            e.duplicate(&path.child("name"), name);
        }
    }
}
