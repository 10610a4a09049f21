//! Addresses and ports of Services; default classes of claims and ingresses; finalizers that protect volumes.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use serde_json::{Value, json};

use crate::field::{Errors, Path};
use crate::row::Row;
use crate::status::Status;
use crate::val::{list_at, list_mut, map_at, put, str_at, vec_mut};

/// The range of service addresses: 10.96.0.0/16.
pub const SERVICE_NET: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 0);
/// Length of the prefix of [`SERVICE_NET`].
pub const SERVICE_PREFIX: u32 = 16;
/// Addresses at the start of the range that are left to those who ask for them by number (`min(max(16, size/16), 256)`).
const STATIC_BAND: u32 = 256;
/// Ports of nodes, both ends included.
pub const NODE_PORTS: std::ops::RangeInclusive<u16> = 30000..=32767;
/// Ports at the start of the range that are left to those who ask for them by number.
const STATIC_PORTS: u16 = 86;

/// The address of the `kubernetes` Service: the first of the range.
pub fn kubernetes_service_ip() -> Ipv4Addr {
    Ipv4Addr::from_bits(SERVICE_NET.to_bits() + 1)
}

fn in_range(ip: Ipv4Addr) -> bool {
    let size = 1u32 << (32 - SERVICE_PREFIX);
    let offset = ip.to_bits().wrapping_sub(SERVICE_NET.to_bits());
    offset > 0 && offset < size - 1
}

/// A free address: from the upper band first, the lower one when that is full. `seed` spreads the choice.
pub fn free_ip(used: &BTreeSet<Ipv4Addr>, seed: u64) -> Option<Ipv4Addr> {
    let last = (1u32 << (32 - SERVICE_PREFIX)) - 2;
    let pick = |from: u32, to: u32| {
        let n = u64::from(to - from + 1);
        let start = seed % n;
        (0..n).map(|i| Ipv4Addr::from_bits(SERVICE_NET.to_bits() + from + ((start + i) % n) as u32)).find(|ip| !used.contains(ip))
    };
    pick(STATIC_BAND + 1, last).or_else(|| pick(1, STATIC_BAND))
}

/// A free port, from the upper band first.
pub fn free_port(used: &BTreeSet<u16>, seed: u64) -> Option<u16> {
    let pick = |from: u16, to: u16| {
        let n = u64::from(to - from) + 1;
        let start = seed % n;
        (0..n).map(|i| from + ((start + i) % n) as u16).find(|p| !used.contains(p))
    };
    let split = NODE_PORTS.start() + STATIC_PORTS;
    pick(split, *NODE_PORTS.end()).or_else(|| pick(*NODE_PORTS.start(), split - 1))
}

/// A number that spreads choices and is the same for the same object: FNV-1a over namespace, name and uid.
fn seed_of(svc: &Value) -> u64 {
    let m = &svc["metadata"];
    let text = [str_at(m, &["namespace"]), "/", str_at(m, &["name"]), "/", str_at(m, &["uid"])];
    text.iter().flat_map(|t| t.bytes()).fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}

/// Gives a Service its addresses and ports, or says why it cannot have those that it asks for. `all`: every Service of the cluster.
pub fn allocate(row: &Row, svc: &mut Value, old: Option<&Value>, all: &[&Value]) -> Result<(), Status> {
    let uid = str_at(svc, &["metadata", "uid"]).to_string();
    let others: Vec<&Value> = all.iter().filter(|s| str_at(s, &["metadata", "uid"]) != uid).copied().collect();
    let mut e = Errors::default();
    if str_at(svc, &["spec", "type"]) == "ExternalName" {
        for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            put(svc, &["spec", field], Value::Null);
        }
    } else {
        cluster_ip(svc, old, &others, &mut e);
    }
    node_ports(svc, old, &others, &mut e);
    if e.is_empty() { Ok(()) } else { Err(Status::invalid(row, str_at(svc, &["metadata", "name"]), &e)) }
}

fn cluster_ip(svc: &mut Value, old: Option<&Value>, others: &[&Value], e: &mut Errors) {
    let policy = str_at(svc, &["spec", "ipFamilyPolicy"]).to_string();
    if policy == "RequireDualStack" && !list_at(svc, &["spec", "selector"]).is_empty() || list_at(svc, &["spec", "ipFamilies"]).len() > 1 {
        let detail = "this cluster is not configured for dual-stack services";
        e.invalid(&Path::new("spec.ipFamilyPolicy"), policy.as_str(), detail);
        return;
    }
    let asked = str_at(svc, &["spec", "clusterIP"]).to_string();
    let had = old.map_or("", |o| str_at(o, &["spec", "clusterIP"]));
    if asked == "None" {
        put(svc, &["spec", "clusterIPs"], json!(["None"]));
        finish_families(svc);
        return;
    }
    let used: BTreeSet<Ipv4Addr> =
        others.iter().filter_map(|s| str_at(s, &["spec", "clusterIP"]).parse().ok()).chain([kubernetes_service_ip()]).collect();
    let own = str_at(svc, &["metadata", "namespace"]) == "default" && str_at(svc, &["metadata", "name"]) == "kubernetes";
    let ip = if asked.is_empty() {
        match free_ip(&used, seed_of(svc)) {
            Some(ip) => ip.to_string(),
            None => {
                e.push(crate::field::Reason::Internal, &Path::new("spec.clusterIPs"), Value::Null, "failed to allocate IP: range is full");
                return;
            }
        }
    } else {
        if asked != had
            && let Some(why) = refuse_ip(&asked, &used, own)
        {
            let detail = format!("failed to allocate IP {asked}: {why}");
            e.invalid(&Path::new("spec.clusterIPs"), json!([asked]), detail);
            return;
        }
        asked
    };
    put(svc, &["spec", "clusterIP"], json!(ip));
    put(svc, &["spec", "clusterIPs"], json!([ip]));
    finish_families(svc);
}

fn refuse_ip(ip: &str, used: &BTreeSet<Ipv4Addr>, own: bool) -> Option<&'static str> {
    match ip.parse::<Ipv4Addr>() {
        Ok(ip) if !in_range(ip) => Some("the provided network does not match the current range"),
        Ok(ip) if own && ip == kubernetes_service_ip() => None,
        Ok(ip) if used.contains(&ip) => Some("provided IP is already allocated"),
        Ok(_) => None,
        Err(_) => Some("the provided network does not match the current range"),
    }
}

fn finish_families(svc: &mut Value) {
    let headless = str_at(svc, &["spec", "clusterIP"]) == "None";
    let selectorless = map_at(svc, &["spec", "selector"]).is_none_or(serde_json::Map::is_empty);
    if list_at(svc, &["spec", "ipFamilies"]).is_empty() {
        put(svc, &["spec", "ipFamilies"], if headless && selectorless { json!(["IPv4", "IPv6"]) } else { json!(["IPv4"]) });
    }
    if str_at(svc, &["spec", "ipFamilyPolicy"]).is_empty() {
        put(svc, &["spec", "ipFamilyPolicy"], json!(if headless && selectorless { "RequireDualStack" } else { "SingleStack" }));
    }
}

/// Ports on nodes are one space for both protocols of one Service port number, as upstream keeps them: a port that the same Service
/// uses for another protocol may be shared, one of another Service may not.
fn node_ports(svc: &mut Value, old: Option<&Value>, others: &[&Value], e: &mut Errors) {
    let kind = str_at(svc, &["spec", "type"]).to_string();
    let wants = kind == "NodePort" || (kind == "LoadBalancer" && svc["spec"]["allocateLoadBalancerNodePorts"] != json!(false));
    let ports_of = |s: &Value| -> Vec<u16> {
        let health = s["spec"]["healthCheckNodePort"].as_u64();
        let ports = list_at(s, &["spec", "ports"]).iter().filter_map(|p| p["nodePort"].as_u64());
        ports.chain(health).filter_map(|n| u16::try_from(n).ok()).filter(|n| *n > 0).collect()
    };
    let mut used: BTreeSet<u16> = others.iter().flat_map(|s| ports_of(s)).collect();
    let had = old.map(ports_of).unwrap_or_default();
    let mut seed = seed_of(svc);
    // Ports that are asked for come first, so that no port that is chosen for us takes one of them.
    for (i, p) in list_at(svc, &["spec", "ports"]).iter().enumerate() {
        let Some(n) = p["nodePort"].as_i64().filter(|n| *n != 0) else { continue };
        let path = Path::new("spec.ports").index(i).child("nodePort");
        match u16::try_from(n).ok().filter(|n| NODE_PORTS.contains(n)) {
            None => e.invalid(&path, n, "provided port is not in the valid range. The range of valid ports is 30000-32767"),
            Some(n) if used.contains(&n) && !had.contains(&n) => e.invalid(&path, n, "provided port is already allocated"),
            Some(_) => {}
        }
    }
    used.extend(ports_of(svc));
    if !wants || !e.is_empty() {
        return;
    }
    let mut by_number: Vec<(i64, u16, String)> = Vec::new();
    for p in list_mut(svc, &["spec", "ports"]) {
        let number = p["port"].as_i64().unwrap_or(0);
        let protocol = str_at(p, &["protocol"]).to_string();
        let port = match p["nodePort"].as_u64().filter(|n| *n > 0) {
            Some(n) => u16::try_from(n).unwrap_or(0),
            None => {
                let shared = by_number.iter().find(|(n, _, proto)| *n == number && *proto != protocol).map(|(_, port, _)| *port);
                let Some(port) = shared.or_else(|| free_port(&used, seed)) else {
                    e.push(
                        crate::field::Reason::Internal,
                        &Path::new("spec.ports"),
                        Value::Null,
                        "failed to allocate a nodePort: range is full",
                    );
                    return;
                };
                put(p, &["nodePort"], json!(port));
                port
            }
        };
        seed = seed.wrapping_add(1);
        used.insert(port);
        by_number.push((number, port, protocol));
    }
    let local = str_at(svc, &["spec", "externalTrafficPolicy"]) == "Local";
    if kind == "LoadBalancer" && local && svc["spec"]["healthCheckNodePort"].as_u64().unwrap_or(0) == 0 {
        match free_port(&used, seed) {
            Some(port) => put(svc, &["spec", "healthCheckNodePort"], json!(port)),
            None => e.push(crate::field::Reason::Internal, &Path::new("spec.healthCheckNodePort"), Value::Null, "range is full"),
        }
    }
}

/// A claim that says nothing of a class gets the newest default one (admission plugin `DefaultStorageClass`).
pub fn default_storage_class(pvc: &mut Value, classes: &[&Value]) {
    if pvc["spec"]["storageClassName"].is_string() {
        return;
    }
    if let Some(class) = default_class(classes, "storageclass.kubernetes.io/is-default-class") {
        put(pvc, &["spec", "storageClassName"], json!(class));
    }
}

/// As for claims (admission plugin `DefaultIngressClass`).
pub fn default_ingress_class(ingress: &mut Value, classes: &[&Value]) {
    let annotated = map_at(ingress, &["metadata", "annotations"]).is_some_and(|a| a.contains_key("kubernetes.io/ingress.class"));
    if annotated || ingress["spec"]["ingressClassName"].is_string() {
        return;
    }
    if let Some(class) = default_class(classes, "ingressclass.kubernetes.io/is-default-class") {
        put(ingress, &["spec", "ingressClassName"], json!(class));
    }
}

/// The newest class with the annotation; of two that are as old, the first by name.
fn default_class(classes: &[&Value], annotation: &str) -> Option<String> {
    let defaults = classes.iter().filter(|c| str_at(c, &["metadata", "annotations", annotation]) == "true");
    let key = |c: &&&Value| {
        (str_at(c, &["metadata", "creationTimestamp"]).to_string(), std::cmp::Reverse(str_at(c, &["metadata", "name"]).to_string()))
    };
    defaults.max_by_key(key).map(|c| str_at(c, &["metadata", "name"]).to_string())
}

/// Adds a finalizer that keeps a volume or claim while it is in use (admission plugin `StorageObjectInUseProtection`).
pub fn protect(obj: &mut Value, finalizer: &str) {
    let finalizers = vec_mut(obj, &["metadata", "finalizers"]);
    if !finalizers.iter().any(|f| f == finalizer) {
        finalizers.push(json!(finalizer));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::Registry;

    fn allocated(svc: Value, old: Option<&Value>, all: &[Value]) -> Result<Value, String> {
        let row = Registry::builtin().resource("", "v1", "services").unwrap();
        let mut svc = svc;
        crate::defaults::network::service(&mut svc);
        let all: Vec<&Value> = all.iter().collect();
        allocate(&row, &mut svc, old, &all).map_err(|s| s.message)?;
        Ok(svc)
    }

    fn svc(name: &str, spec: Value) -> Value {
        json!({"metadata": {"name": name, "namespace": "ns", "uid": name}, "spec": spec})
    }

    #[test]
    fn every_address_is_given_once_and_the_range_ends() {
        let base = SERVICE_NET.to_bits();
        let free: [u32; 5] = [300, 40_000, 65_534, 1, STATIC_BAND];
        let all = (1..(1u32 << 16) - 1).filter(|n| !free.contains(n));
        let mut used: BTreeSet<Ipv4Addr> = all.map(|n| Ipv4Addr::from_bits(base + n)).collect();
        let mut given = Vec::new();
        while let Some(ip) = free_ip(&used, 7) {
            assert!(in_range(ip) && used.insert(ip));
            given.push(ip.to_bits() - base);
        }
        assert_eq!(given, [300, 40_000, 65_534, STATIC_BAND, 1], "the lower band comes last, and each has its own start");
        let mut ports = BTreeSet::new();
        while let Some(p) = free_port(&ports, 3) {
            assert!(NODE_PORTS.contains(&p) && ports.insert(p));
        }
        assert_eq!(ports.len(), NODE_PORTS.count());
    }

    #[test]
    fn addresses_are_not_shared() {
        let a = allocated(svc("a", json!({"ports": [{"port": 80}]})), None, &[]).unwrap();
        let ip = str_at(&a, &["spec", "clusterIP"]).to_string();
        assert!(in_range(ip.parse().unwrap()) && a["spec"]["clusterIPs"] == json!([ip]) && a["spec"]["ipFamilyPolicy"] == "SingleStack");
        let same = allocated(svc("b", json!({"clusterIP": ip, "ports": [{"port": 80}]})), None, std::slice::from_ref(&a)).unwrap_err();
        assert!(same.ends_with(&format!("failed to allocate IP {ip}: provided IP is already allocated")), "{same}");
        let out = allocated(svc("b", json!({"clusterIP": "10.97.0.1", "ports": [{"port": 80}]})), None, &[]).unwrap_err();
        assert!(out.ends_with("the provided network does not match the current range"), "{out}");
        let first = allocated(svc("b", json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80}]})), None, &[]).unwrap_err();
        assert!(first.contains("already allocated"), "the first address is that of the API itself: {first}");
        // An update of the same service keeps its own.
        assert_eq!(allocated(a.clone(), Some(&a), std::slice::from_ref(&a)).unwrap(), a);
        let headless = allocated(svc("h", json!({"clusterIP": "None", "selector": {"a": "b"}})), None, &[]).unwrap();
        assert_eq!(headless["spec"]["clusterIPs"], json!(["None"]));
        let named = allocated(svc("e", json!({"type": "ExternalName", "externalName": "x.y"})), None, &[]).unwrap();
        assert!(named["spec"].get("clusterIP").is_none());
    }

    #[test]
    fn node_ports_are_not_shared_between_services() {
        let spec = json!({"type": "NodePort", "ports": [{"name": "a", "port": 80, "nodePort": 30111}, {"name": "b", "port": 81}]});
        let a = allocated(svc("a", spec.clone()), None, &[]).unwrap();
        let chosen = a["spec"]["ports"][1]["nodePort"].as_u64().unwrap();
        assert!(chosen != 30111 && NODE_PORTS.contains(&(chosen as u16)));
        let taken = allocated(svc("b", spec), None, std::slice::from_ref(&a)).unwrap_err();
        assert!(taken.contains("spec.ports[0].nodePort: Invalid value: 30111: provided port is already allocated"), "{taken}");
        let far = allocated(svc("b", json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 80}]})), None, &[]).unwrap_err();
        assert!(far.contains("The range of valid ports is 30000-32767"), "{far}");
        // The same port number over two protocols shares its node port.
        let both = json!({"type": "NodePort", "ports": [{"name": "t", "port": 53}, {"name": "u", "port": 53, "protocol": "UDP"}]});
        let both = allocated(svc("c", both), None, &[a]).unwrap();
        assert_eq!(both["spec"]["ports"][0]["nodePort"], both["spec"]["ports"][1]["nodePort"]);
    }

    #[test]
    fn the_newest_default_class_is_taken() {
        let class = |name: &str, at: &str| {
            json!({"metadata": {"name": name, "creationTimestamp": at,
            "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}}})
        };
        let (a, b, c) = (class("a", "2026-01-01T00:00:00Z"), class("b", "2026-01-02T00:00:00Z"), class("c", "2026-01-02T00:00:00Z"));
        let mut pvc = json!({"spec": {}});
        default_storage_class(&mut pvc, &[&a, &c, &b]);
        assert_eq!(pvc["spec"]["storageClassName"], "b");
        let mut none = json!({"spec": {"storageClassName": ""}});
        default_storage_class(&mut none, &[&a]);
        assert_eq!(none["spec"]["storageClassName"], "", "an empty name means no class");
    }
}
