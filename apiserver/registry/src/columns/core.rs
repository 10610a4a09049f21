//! The core group, and events of either group.

use std::collections::BTreeSet;

use serde_json::Value;

use super::format::{
    NONE, UNKNOWN, UNSET, access_modes, age, balancer, condition, containers, deleting, images, int, is_true, join, labels, name, or,
    plain, quantity, some_of, strings, text_or,
};
use super::{AGE, Column, NAME, NAME_AGE, Printer, int as integer, row, text, wide};
use crate::times;
use crate::val::{at, bool_at, list_at, map_at, str_at};

pub(super) fn printer(group: &str, kind: &str) -> Option<Printer> {
    Some(match (group, kind) {
        ("", "Pod") => super::pod::POD,
        ("", "PodTemplate") => POD_TEMPLATE,
        ("", "ReplicationController") => CONTROLLER,
        ("", "Service") => SERVICE,
        ("", "Endpoints") => ENDPOINTS,
        ("", "Node") => NODE,
        ("" | "events", "Event") => EVENT,
        ("", "Namespace") => NAMESPACE,
        ("", "Secret") => SECRET,
        ("", "ConfigMap") => CONFIG_MAP,
        ("", "ServiceAccount") => NAME_AGE,
        ("", "PersistentVolume") => VOLUME,
        ("", "PersistentVolumeClaim") => CLAIM,
        ("", "ComponentStatus") => COMPONENT,
        ("", "ResourceQuota") => QUOTA,
        (_, "Status") => STATUS,
        _ => return None,
    })
}

const POD_TEMPLATE: Printer = Printer {
    columns: &[NAME, text("Containers"), text("Images"), text("Pod Labels")],
    cells: |o, _| {
        let spec = at(o, &["template", "spec"]);
        row![name(o), containers(spec), images(spec), labels(at(o, &["template", "metadata", "labels"]))]
    },
};

const CONTROLLER: Printer = Printer {
    columns: &[NAME, integer("Desired"), integer("Current"), integer("Ready"), AGE, wide("Containers"), wide("Images"), wide("Selector")],
    cells: |o, now| {
        let spec = at(o, &["spec", "template", "spec"]);
        row![
            name(o),
            int(o, &["spec", "replicas"]),
            int(o, &["status", "replicas"]),
            int(o, &["status", "readyReplicas"]),
            age(o, now),
            containers(spec),
            images(spec),
            labels(at(o, &["spec", "selector"])),
        ]
    },
};

const SERVICE: Printer = Printer {
    columns: &[NAME, text("Type"), text("Cluster-IP"), text("External-IP"), text("Port(s)"), AGE, wide("Selector")],
    cells: |o, now| {
        let ip = strings(o, &["spec", "clusterIPs"]).next().unwrap_or("");
        let kind = str_at(o, &["spec", "type"]);
        row![name(o), kind, or(ip, NONE), external_ip(o, kind), service_ports(o), age(o, now), labels(at(o, &["spec", "selector"]))]
    },
};

fn external_ip(o: &Value, kind: &str) -> String {
    let given = join(strings(o, &["spec", "externalIPs"]), ",");
    match kind {
        "ClusterIP" | "NodePort" => or(&given, NONE).to_owned(),
        "LoadBalancer" => {
            let both = [balancer(o), given];
            let text = join(both.iter().map(String::as_str).filter(|s| !s.is_empty()), ",");
            or(&text, "<pending>").to_owned()
        }
        "ExternalName" => str_at(o, &["spec", "externalName"]).to_owned(),
        _ => UNKNOWN.into(),
    }
}

fn service_ports(o: &Value) -> String {
    let port = |p: &Value| {
        let (port, node, protocol) = (int(p, &["port"]), int(p, &["nodePort"]), str_at(p, &["protocol"]));
        if node > 0 { format!("{port}:{node}/{protocol}") } else { format!("{port}/{protocol}") }
    };
    let ports: Vec<_> = list_at(o, &["spec", "ports"]).iter().map(port).collect();
    if ports.is_empty() { NONE.into() } else { ports.join(",") }
}

const ENDPOINTS: Printer = Printer { columns: &[NAME, text("Endpoints"), AGE], cells: |o, now| row![name(o), endpoints(o), age(o, now)] };

fn endpoints(o: &Value) -> String {
    let subsets = list_at(o, &["subsets"]);
    if subsets.is_empty() {
        return NONE.into();
    }
    let mut all = Vec::new();
    for subset in subsets {
        let (addresses, ports) = (list_at(subset, &["addresses"]), list_at(subset, &["ports"]));
        let ips = || addresses.iter().map(|a| str_at(a, &["ip"]));
        if ports.is_empty() {
            all.extend(ips().map(str::to_owned));
        }
        for port in ports {
            let number = int(port, &["port"]);
            all.extend(ips().map(|ip| if ip.contains(':') { format!("[{ip}]:{number}") } else { format!("{ip}:{number}") }));
        }
    }
    some_of(&all, 3)
}

const NODE: Printer = Printer {
    columns: &[
        NAME,
        text("Status"),
        text("Roles"),
        AGE,
        text("Version"),
        wide("Internal-IP"),
        wide("External-IP"),
        wide("OS-Image"),
        wide("Kernel-Version"),
        wide("Container-Runtime"),
    ],
    cells: |o, now| {
        let info = |field| str_at(o, &["status", "nodeInfo", field]);
        let address = |kind: &str| {
            let found = list_at(o, &["status", "addresses"]).iter().find(|a| str_at(a, &["type"]) == kind);
            or(found.map_or("", |a| str_at(a, &["address"])), NONE)
        };
        let kernel = match info("architecture") {
            "" => or(info("kernelVersion"), UNKNOWN).to_owned(),
            arch if info("kernelVersion").is_empty() => format!("{UNKNOWN} ({arch})"),
            arch => format!("{} ({arch})", info("kernelVersion")),
        };
        row![
            name(o),
            node_status(o),
            node_roles(o),
            age(o, now),
            info("kubeletVersion"),
            address("InternalIP"),
            address("ExternalIP"),
            or(info("osImage"), UNKNOWN),
            kernel,
            or(info("containerRuntimeVersion"), UNKNOWN),
        ]
    },
};

fn node_status(o: &Value) -> String {
    let ready = match condition(o, "Ready") {
        None => "Unknown",
        Some(_) if is_true(o, "Ready") => "Ready",
        Some(_) => "NotReady",
    };
    let cordoned = if bool_at(o, &["spec", "unschedulable"]) { ",SchedulingDisabled" } else { "" };
    format!("{ready}{cordoned}")
}

fn node_roles(o: &Value) -> String {
    let mut roles = BTreeSet::new();
    for (key, value) in map_at(o, &["metadata", "labels"]).into_iter().flatten() {
        match key.strip_prefix("node-role.kubernetes.io/") {
            Some(role) => roles.insert(role),
            None if key == "kubernetes.io/role" => roles.insert(value.as_str().unwrap_or("")),
            None => false,
        };
    }
    let text = join(roles.into_iter().filter(|r| !r.is_empty()), ",");
    or(&text, NONE).to_owned()
}

const EVENT: Printer = Printer {
    columns: &[
        text("Last Seen"),
        text("Type"),
        text("Reason"),
        text("Object"),
        wide("Subobject"),
        wide("Source"),
        text("Message"),
        wide("First Seen"),
        wide("Count"),
        Column { priority: 1, ..NAME },
    ],
    cells: event,
};

/// The same event under either API: `v1` names a field one way, `events.k8s.io/v1` another.
fn event(o: &Value, now: i64) -> Vec<Value> {
    let either = |a: &str, b: &str| -> Value { if at(o, &[a]).is_null() { at(o, &[b]).clone() } else { at(o, &[a]).clone() } };
    let text = |a: &str, b: &str| plain(&either(a, b));
    let first = match text("firstTimestamp", "deprecatedFirstTimestamp") {
        given if given.is_empty() => text("eventTime", "eventTime"),
        given => given,
    };
    let last = match (str_at(o, &["series", "lastObservedTime"]), text("lastTimestamp", "deprecatedLastTimestamp")) {
        ("", given) if given.is_empty() => first.clone(),
        ("", given) => given,
        (observed, _) => observed.to_owned(),
    };
    let count =
        [at(o, &["series", "count"]).clone(), either("count", "deprecatedCount")].iter().filter_map(Value::as_i64).find(|n| *n != 0);
    let (involved, source) = (either("involvedObject", "regarding"), either("source", "deprecatedSource"));
    let component = or(str_at(&source, &["component"]), "").to_owned();
    let component = if component.is_empty() { text("reportingController", "reportingComponent") } else { component };
    let host = or(str_at(&source, &["host"]), str_at(o, &["reportingInstance"])).to_owned();
    let kind = str_at(&involved, &["kind"]).to_lowercase();
    let object = match str_at(&involved, &["name"]) {
        "" => kind,
        name => format!("{kind}/{name}"),
    };
    row![
        times::age(&last, now),
        str_at(o, &["type"]),
        str_at(o, &["reason"]),
        object,
        str_at(&involved, &["fieldPath"]),
        if host.is_empty() { component } else { format!("{component}, {host}") },
        text("message", "note").trim(),
        times::age(&first, now),
        count.unwrap_or(1),
        name(o),
    ]
}

const NAMESPACE: Printer =
    Printer { columns: &[NAME, text("Status"), AGE], cells: |o, now| row![name(o), str_at(o, &["status", "phase"]), age(o, now)] };

fn entries(o: &Value, field: &str) -> usize {
    map_at(o, &[field]).map_or(0, serde_json::Map::len)
}

const SECRET: Printer = Printer {
    columns: &[NAME, text("Type"), text("Data"), AGE],
    cells: |o, now| row![name(o), str_at(o, &["type"]), entries(o, "data"), age(o, now)],
};

const CONFIG_MAP: Printer = Printer {
    columns: &[NAME, text("Data"), AGE],
    cells: |o, now| row![name(o), entries(o, "data") + entries(o, "binaryData"), age(o, now)],
};

/// The annotation that came before the field still wins.
fn storage_class(o: &Value) -> &str {
    let annotated = str_at(o, &["metadata", "annotations", "volume.beta.kubernetes.io/storage-class"]);
    or(annotated, str_at(o, &["spec", "storageClassName"]))
}

fn phase(o: &Value) -> &str {
    if deleting(o) { "Terminating" } else { str_at(o, &["status", "phase"]) }
}

const VOLUME: Printer = Printer {
    columns: &[
        NAME,
        text("Capacity"),
        text("Access Modes"),
        text("Reclaim Policy"),
        text("Status"),
        text("Claim"),
        text("StorageClass"),
        text("VolumeAttributesClass"),
        text("Reason"),
        AGE,
        wide("VolumeMode"),
    ],
    cells: |o, now| {
        let claim = at(o, &["spec", "claimRef"]);
        let claim =
            if claim.is_object() { format!("{}/{}", str_at(claim, &["namespace"]), str_at(claim, &["name"])) } else { String::new() };
        row![
            name(o),
            quantity(at(o, &["spec", "capacity", "storage"])),
            access_modes(at(o, &["spec", "accessModes"])),
            str_at(o, &["spec", "persistentVolumeReclaimPolicy"]),
            phase(o),
            claim,
            storage_class(o),
            text_or(o, &["spec", "volumeAttributesClassName"], UNSET),
            str_at(o, &["status", "reason"]),
            age(o, now),
            text_or(o, &["spec", "volumeMode"], UNSET),
        ]
    },
};

const CLAIM: Printer = Printer {
    columns: &[
        NAME,
        text("Status"),
        text("Volume"),
        text("Capacity"),
        text("Access Modes"),
        text("StorageClass"),
        text("VolumeAttributesClass"),
        AGE,
        wide("VolumeMode"),
    ],
    cells: |o, now| {
        let volume = str_at(o, &["spec", "volumeName"]);
        let bound = |text: String| if volume.is_empty() { String::new() } else { text };
        row![
            name(o),
            phase(o),
            volume,
            bound(quantity(at(o, &["status", "capacity", "storage"]))),
            bound(access_modes(at(o, &["status", "accessModes"]))),
            storage_class(o),
            text_or(o, &["spec", "volumeAttributesClassName"], UNSET),
            age(o, now),
            text_or(o, &["spec", "volumeMode"], UNSET),
        ]
    },
};

const COMPONENT: Printer = Printer {
    columns: &[NAME, text("Status"), text("Message"), text("Error")],
    cells: |o, _| {
        let healthy = list_at(o, &["conditions"]).iter().find(|c| str_at(c, &["type"]) == "Healthy");
        let status = match healthy.map(|c| str_at(c, &["status"])) {
            None => "Unknown",
            Some("True") => "Healthy",
            Some(_) => "Unhealthy",
        };
        let field = |name| healthy.map_or("", |c| str_at(c, &[name]));
        row![name(o), status, field("message"), field("error")]
    },
};

const QUOTA: Printer = Printer {
    columns: &[NAME, text("Request"), text("Limit"), AGE],
    cells: |o, now| {
        let (mut requests, mut limits) = (Vec::new(), Vec::new());
        let mut hard: Vec<_> = map_at(o, &["status", "hard"]).into_iter().flatten().collect();
        hard.sort_by_key(|(resource, _)| resource.as_str());
        for (resource, most) in hard {
            let used = at(o, &["status", "used", resource]);
            let used = if used.is_null() { "0".into() } else { quantity(used) };
            let text = format!("{resource}: {used}/{}", quantity(most));
            if resource.split('.').next() == Some("limits") { limits.push(text) } else { requests.push(text) }
        }
        row![name(o), requests.join(", "), limits.join(", "), age(o, now)]
    },
};

const STATUS: Printer = Printer {
    columns: &[text("Status"), text("Reason"), text("Message")],
    cells: |o, _| row![str_at(o, &["status"]), str_at(o, &["reason"]), str_at(o, &["message"])],
};
