//! networking, discovery and coordination.

use serde_json::Value;

use super::format::{NONE, age, balancer, join, more_list, name, plain, selector, strings, text_or};
use super::{AGE, NAME, Printer, row, text};
use crate::val::{at, list_at, str_at};

pub(super) fn printer(group: &str, kind: &str) -> Option<Printer> {
    Some(match (group, kind) {
        ("networking" | "extensions", "Ingress") => INGRESS,
        ("networking", "IngressClass") => INGRESS_CLASS,
        ("networking", "NetworkPolicy") => NETWORK_POLICY,
        ("networking", "ServiceCIDR") => SERVICE_CIDR,
        ("networking", "IPAddress") => IP_ADDRESS,
        ("discovery", "EndpointSlice") => ENDPOINT_SLICE,
        ("coordination", "Lease") => LEASE,
        ("coordination", "LeaseCandidate") => LEASE_CANDIDATE,
        _ => return None,
    })
}

const INGRESS: Printer = Printer {
    columns: &[NAME, text("Class"), text("Hosts"), text("Address"), text("Ports"), AGE],
    cells: |o, now| {
        let ports = if list_at(o, &["spec", "tls"]).is_empty() { "80" } else { "80, 443" };
        row![name(o), text_or(o, &["spec", "ingressClassName"], NONE), hosts(o), balancer(o), ports, age(o, now)]
    },
};

fn hosts(o: &Value) -> String {
    let hosts: Vec<&str> = list_at(o, &["spec", "rules"]).iter().map(|r| str_at(r, &["host"])).filter(|h| !h.is_empty()).collect();
    let shown = join(hosts.iter().take(3).copied(), ",");
    match hosts.len() {
        0 => "*".into(),
        n if n > 3 => format!("{shown} + {} more...", list_at(o, &["spec", "rules"]).len() - 3),
        _ => shown,
    }
}

const INGRESS_CLASS: Printer = Printer {
    columns: &[NAME, text("Controller"), text("Parameters"), AGE],
    cells: |o, now| {
        let default = str_at(o, &["metadata", "annotations", "ingressclass.kubernetes.io/is-default-class"]) == "true";
        let parameters = at(o, &["spec", "parameters"]);
        let parameters = match (parameters.is_object(), str_at(parameters, &["apiGroup"])) {
            (false, _) => NONE.into(),
            (true, "") => format!("{}/{}", str_at(parameters, &["kind"]), str_at(parameters, &["name"])),
            (true, group) => format!("{}.{group}/{}", str_at(parameters, &["kind"]), str_at(parameters, &["name"])),
        };
        row![with_default(o, default), str_at(o, &["spec", "controller"]), parameters, age(o, now)]
    },
};

/// The name, marked if the object is the default of its kind.
pub(super) fn with_default(o: &Value, default: bool) -> String {
    format!("{}{}", name(o), if default { " (default)" } else { "" })
}

const NETWORK_POLICY: Printer = Printer {
    columns: &[NAME, text("Pod-Selector"), AGE],
    cells: |o, now| row![name(o), selector(at(o, &["spec", "podSelector"])), age(o, now)],
};

const SERVICE_CIDR: Printer =
    Printer { columns: &[NAME, text("CIDRs"), AGE], cells: |o, now| row![name(o), join(strings(o, &["spec", "cidrs"]), ","), age(o, now)] };

/// Kubernetes sends one cell more than columns here, and clients drop it.
const IP_ADDRESS: Printer = Printer {
    columns: &[NAME, text("ParentRef")],
    cells: |o, now| {
        let parent = at(o, &["spec", "parentRef"]);
        let text = if parent.is_object() {
            let resource = str_at(parent, &["resource"]).to_lowercase();
            let kind = match str_at(parent, &["group"]) {
                "" => resource,
                group => format!("{resource}.{}", group.to_lowercase()),
            };
            let parts = [kind.as_str(), str_at(parent, &["namespace"]), str_at(parent, &["name"])];
            join(parts.into_iter().filter(|p| !p.is_empty()), "/")
        } else {
            NONE.into()
        };
        row![name(o), text, age(o, now)]
    },
};

const ENDPOINT_SLICE: Printer = Printer {
    columns: &[NAME, text("AddressType"), text("Ports"), text("Endpoints"), AGE],
    cells: |o, now| {
        let port = |p: &Value| match (at(p, &["port"]), str_at(p, &["name"])) {
            (Value::Null, "") => "*".into(),
            (Value::Null, name) => name.to_owned(),
            (number, _) => plain(number),
        };
        let ports: Vec<String> = list_at(o, &["ports"]).iter().map(port).collect();
        let addresses: Vec<String> =
            list_at(o, &["endpoints"]).iter().flat_map(|e| strings(e, &["addresses"])).map(str::to_owned).collect();
        row![name(o), str_at(o, &["addressType"]), more_list(&ports, 3), more_list(&addresses, 3), age(o, now)]
    },
};

const LEASE: Printer =
    Printer { columns: &[NAME, text("Holder"), AGE], cells: |o, now| row![name(o), str_at(o, &["spec", "holderIdentity"]), age(o, now)] };

const LEASE_CANDIDATE: Printer = Printer {
    columns: &[NAME, text("LeaseName"), text("BinaryVersion"), text("EmulationVersion"), AGE],
    cells: |o, now| {
        let spec = |field| str_at(o, &["spec", field]);
        row![name(o), spec("leaseName"), spec("binaryVersion"), spec("emulationVersion"), age(o, now)]
    },
};
