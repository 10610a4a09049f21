//! Endpoints of services with a selector (Kubernetes `pkg/controller/endpoint`), and what both kinds of endpoints share: which
//! pods, which ports.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset, Endpoints, ObjectReference, Pod, Service, ServicePort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::json;

use super::Input;
use crate::kind::Kind;
use crate::meta::{self, Labels};
use crate::plan::{Action, PatchType, Plan};
use crate::selector;
use crate::world::World;

/// Label of headless services' endpoints.
pub(crate) const HEADLESS: &str = "service.kubernetes.io/headless";
const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const MANAGER: &str = "endpoint-controller";
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
/// More addresses than this do not fit into one object.
const MAX_ADDRESSES: usize = 1000;

/// One look at one service.
pub fn reconcile(input: &Input<'_>) -> Plan {
    let mut plan = Plan::nothing();
    let world = input.world;
    let present = world.endpoints.get(input.key);
    let Some(service) = world.services.get(input.key) else {
        if let Some(endpoints) = present.filter(|e| meta::label(&e.metadata, MANAGED_BY) == Some(MANAGER)) {
            plan.push(delete(endpoints));
        }
        return plan;
    };
    let Some(pods) = selected_pods(service, world) else { return plan };
    if meta::deleting(&service.metadata) || !world.namespace_active(meta::namespace(&service.metadata)) {
        return plan;
    }
    let (subsets, truncated) = subsets(service, &pods);
    let labels = labels(service);
    match present {
        None => {
            let mut object = json!({
                "apiVersion": "v1",
                "kind": "Endpoints",
                "metadata": { "name": input.key.name, "namespace": input.key.namespace, "labels": labels },
            });
            if !subsets.is_empty() {
                object["subsets"] = json!(subsets);
            }
            if truncated {
                object["metadata"]["annotations"] = json!({ OVER_CAPACITY: "truncated" });
            }
            plan.push(Action::Create { kind: Kind::Endpoints, object, guards: Vec::new() });
        }
        Some(endpoints) => update(endpoints, &subsets, &labels, truncated, &mut plan),
    }
    plan
}

fn delete(endpoints: &Endpoints) -> Action {
    Action::Delete {
        kind: Kind::Endpoints,
        key: meta::key(&endpoints.metadata),
        uid: meta::uid(&endpoints.metadata),
        expect: None,
        grace: None,
        propagation: None,
        guards: Vec::new(),
    }
}

fn update(endpoints: &Endpoints, subsets: &[EndpointSubset], labels: &Labels, truncated: bool, plan: &mut Plan) {
    let same_subsets = endpoints.subsets.as_deref().unwrap_or_default() == subsets;
    let same_labels = endpoints.metadata.labels.as_ref().unwrap_or(&Labels::new()) == labels;
    let was_truncated = meta::annotation(&endpoints.metadata, OVER_CAPACITY).is_some();
    if same_subsets && same_labels && was_truncated == truncated {
        return;
    }
    let mut metadata = meta::pin(&endpoints.metadata);
    let mut wanted = json!(labels);
    for stale in endpoints.metadata.labels.iter().flatten().map(|(k, _)| k).filter(|k| !labels.contains_key(*k)) {
        wanted[stale] = serde_json::Value::Null;
    }
    metadata["labels"] = wanted;
    if was_truncated != truncated {
        metadata["annotations"] = json!({ OVER_CAPACITY: truncated.then_some("truncated") });
    }
    plan.push(Action::Patch {
        kind: Kind::Endpoints,
        key: meta::key(&endpoints.metadata),
        patch_type: PatchType::Merge,
        patch: json!({ "metadata": metadata, "subsets": subsets }),
        subresource: "",
        guards: Vec::new(),
    });
}

fn labels(service: &Service) -> Labels {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.remove(HEADLESS);
    if is_headless(service) {
        labels.insert(HEADLESS.into(), String::new());
    }
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    labels
}

/// Whether the service has no address of its own.
pub(crate) fn is_headless(service: &Service) -> bool {
    service.spec.as_ref().and_then(|s| s.cluster_ip.as_deref()) == Some("None")
}

/// Whether pods that are not ready are published as if they were.
pub(crate) fn publishes_unready(service: &Service) -> bool {
    service.spec.as_ref().and_then(|s| s.publish_not_ready_addresses) == Some(true)
}

/// The pods of a service that have an address and have not run to their end; `None`: the service has no selector, hands off.
pub(crate) fn selected_pods<'a>(service: &Service, world: &'a World) -> Option<Vec<&'a Arc<Pod>>> {
    let spec = service.spec.as_ref().filter(|s| s.type_.as_deref() != Some("ExternalName"))?;
    let wanted = spec.selector.as_ref().filter(|s| !s.is_empty())?;
    let namespace = service.metadata.namespace.as_deref().unwrap_or_default();
    let has_address = |pod: &&Arc<Pod>| pod.status.as_ref().and_then(|s| s.pod_ip.as_deref()).is_some_and(|ip| !ip.is_empty());
    let keep = |pod: &&Arc<Pod>| !meta::terminal(pod) && selector::contains(pod.metadata.labels.as_ref(), wanted);
    let pods: Vec<_> = world.pods_in(namespace).into_iter().filter(has_address).filter(keep).collect();
    Some(pods)
}

/// The pod's addresses of one family.
pub(crate) fn address(pod: &Pod, v6: bool) -> Option<&str> {
    let status = pod.status.as_ref()?;
    let listed = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str());
    let of_family = |ip: &str| ip.parse::<IpAddr>().is_ok_and(|a| a.is_ipv6() == v6);
    listed.chain(status.pod_ip.as_deref()).find(|ip| of_family(ip))
}

/// The port on the pod that a service's port leads to; `None`: it names a port that the pod does not have.
pub(crate) fn target_port(pod: &Pod, port: &ServicePort) -> Option<i32> {
    let protocol = port.protocol.as_deref().unwrap_or("TCP");
    match &port.target_port {
        None | Some(IntOrString::Int(0)) => Some(port.port),
        Some(IntOrString::Int(number)) => Some(*number),
        Some(IntOrString::String(name)) => {
            let spec = pod.spec.as_ref()?;
            let sidecars = spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
            let ports = spec.containers.iter().chain(sidecars).flat_map(|c| c.ports.iter().flatten());
            let named = |p: &&k8s_openapi::api::core::v1::ContainerPort| {
                p.name.as_deref() == Some(name) && p.protocol.as_deref().unwrap_or("TCP") == protocol
            };
            ports.into_iter().find(named).map(|p| p.container_port)
        }
    }
}

/// What an endpoint says of its pod.
pub(crate) fn target_ref(pod: &Pod) -> ObjectReference {
    ObjectReference {
        kind: Some("Pod".into()),
        name: pod.metadata.name.clone(),
        namespace: pod.metadata.namespace.clone(),
        uid: pod.metadata.uid.clone(),
        ..ObjectReference::default()
    }
}

/// The pod's own host name, if DNS is to know it under this service.
pub(crate) fn hostname(pod: &Pod, service: &Service) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let hostname = spec.hostname.as_ref().filter(|h| !h.is_empty())?;
    (spec.subdomain.as_deref() == service.metadata.name.as_deref()).then(|| hostname.clone())
}

/// Name, number, protocol and application protocol.
type Port = (String, i32, String, Option<String>);

#[derive(Default)]
struct Group {
    ready: Vec<EndpointAddress>,
    not_ready: Vec<EndpointAddress>,
}

/// The subsets: pods with the same ports together. True: there were too many addresses.
fn subsets(service: &Service, pods: &[&Arc<Pod>]) -> (Vec<EndpointSubset>, bool) {
    let spec = service.spec.as_ref();
    let ports = spec.and_then(|s| s.ports.as_deref()).unwrap_or_default();
    let v6 = spec.and_then(|s| s.ip_families.as_ref()).is_some_and(|f| f.first().is_some_and(|f| f == "IPv6"));
    let mut groups: BTreeMap<Vec<Port>, Group> = BTreeMap::new();
    for pod in pods.iter().filter(|p| !meta::deleting(&p.metadata)) {
        let Some(ip) = address(pod, v6) else { continue };
        let resolved: Vec<_> = ports.iter().filter_map(|port| resolve(pod, port)).collect();
        if resolved.is_empty() && !ports.is_empty() {
            continue;
        }
        let node = meta::node_of(pod);
        let address = EndpointAddress {
            ip: ip.to_owned(),
            hostname: hostname(pod, service),
            node_name: (!node.is_empty()).then(|| node.to_owned()),
            target_ref: Some(target_ref(pod)),
        };
        let group = groups.entry(resolved).or_default();
        if meta::pod_ready(pod) || publishes_unready(service) { group.ready.push(address) } else { group.not_ready.push(address) }
    }
    let mut room = MAX_ADDRESSES;
    let mut truncated = false;
    let mut out = Vec::new();
    for (ports, mut group) in groups {
        for list in [&mut group.ready, &mut group.not_ready] {
            list.sort_by(|a, b| (&a.ip, a.target_ref.as_ref().map(|t| &t.uid)).cmp(&(&b.ip, b.target_ref.as_ref().map(|t| &t.uid))));
            truncated |= list.len() > room;
            list.truncate(room);
            room -= list.len();
        }
        out.push(subset(ports, group));
    }
    (out, truncated)
}

fn resolve(pod: &Pod, port: &ServicePort) -> Option<Port> {
    let number = target_port(pod, port)?;
    let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".into());
    Some((port.name.clone().unwrap_or_default(), number, protocol, port.app_protocol.clone()))
}

fn subset(ports: Vec<Port>, group: Group) -> EndpointSubset {
    let port = |(name, port, protocol, app_protocol): Port| EndpointPort {
        name: (!name.is_empty()).then_some(name),
        port,
        protocol: Some(protocol),
        app_protocol,
    };
    let some = |list: Vec<EndpointAddress>| (!list.is_empty()).then_some(list);
    EndpointSubset {
        addresses: some(group.ready),
        not_ready_addresses: some(group.not_ready),
        ports: (!ports.is_empty()).then(|| ports.into_iter().map(port).collect()),
    }
}
