//! EndpointSlices of services with a selector (Kubernetes `staging/src/k8s.io/endpointslice`): slices of at most 100 endpoints, and
//! as few slices rewritten as possible.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointHints, EndpointPort, EndpointSlice, ForNode, ForZone};
use kontiki_base::object::ObjectKey;
use serde_json::{Value, json};

use super::Input;
use super::endpoints::{HEADLESS, address, hostname, is_headless, publishes_unready, selected_pods, target_port, target_ref};
use crate::kind::Kind;
use crate::meta::{self, Labels};
use crate::name;
use crate::plan::{Action, Plan};
use crate::world::World;

const SERVICE_NAME: &str = "kubernetes.io/service-name";
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const MANAGER: &str = "endpointslice-controller.k8s.io";
/// Endpoints in one slice (kube-controller-manager's `--max-endpoints-per-slice`).
pub const PER_SLICE: usize = 100;

/// Ports as a slice has them: what tells one group of slices from another.
type Ports = Vec<(String, i32, String, Option<String>)>;

/// One look at one service.
pub fn reconcile(input: &Input<'_>) -> Plan {
    let mut plan = Plan::nothing();
    let world = input.world;
    // Slices of a service that is gone are the garbage collector's: the service owns them.
    let Some(service) = world.services.get(input.key) else { return plan };
    let Some(pods) = selected_pods(service, world) else { return plan };
    if meta::deleting(&service.metadata) || !world.namespace_active(meta::namespace(&service.metadata)) {
        return plan;
    }
    let mut namer = Namer { service, world, attempt: 0 };
    let families = families(service);
    for slice in own_slices(service, world).filter(|s| !families.contains(&s.address_type.as_str())) {
        plan.push(delete(slice));
    }
    for family in families {
        let groups = desired(service, &pods, family, world);
        let mut present: BTreeMap<Ports, Vec<&Arc<EndpointSlice>>> = BTreeMap::new();
        for slice in own_slices(service, world).filter(|s| s.address_type == family) {
            present.entry(ports_of(slice)).or_default().push(slice);
        }
        let no_endpoint = groups.values().all(Vec::is_empty);
        for (ports, slices) in &present {
            if !groups.contains_key(ports) {
                slices.iter().for_each(|slice| plan.push(delete(slice)));
            }
        }
        for (ports, endpoints) in groups {
            let slices = present.remove(&ports).unwrap_or_default();
            pack(service, family, &ports, endpoints, &slices, no_endpoint, &mut namer, &mut plan);
        }
    }
    plan
}

fn families(service: &Service) -> Vec<&'static str> {
    let listed = service.spec.as_ref().and_then(|s| s.ip_families.as_deref()).unwrap_or_default();
    let mut out: Vec<&str> = listed.iter().map(|f| if f == "IPv6" { "IPv6" } else { "IPv4" }).collect();
    if out.is_empty() {
        out.push("IPv4");
    }
    out
}

fn own_slices<'a>(service: &'a Service, world: &'a World) -> impl Iterator<Item = &'a Arc<EndpointSlice>> {
    let name = meta::name(&service.metadata);
    world.endpoint_slices.in_namespace(meta::namespace(&service.metadata)).filter(move |s| {
        meta::label(&s.metadata, SERVICE_NAME) == Some(name)
            && meta::label(&s.metadata, MANAGED_BY) == Some(MANAGER)
            && !meta::deleting(&s.metadata)
    })
}

fn ports_of(slice: &EndpointSlice) -> Ports {
    let mut ports: Ports = slice
        .ports
        .iter()
        .flatten()
        .map(|p| {
            let protocol = p.protocol.clone().unwrap_or_else(|| "TCP".into());
            (p.name.clone().unwrap_or_default(), p.port.unwrap_or(0), protocol, p.app_protocol.clone())
        })
        .collect();
    ports.sort();
    ports
}

/// The endpoints that should be, by their ports. A service without any endpoint has one group: its placeholder.
fn desired(service: &Service, pods: &[&Arc<Pod>], family: &str, world: &World) -> BTreeMap<Ports, Vec<Endpoint>> {
    let ports = service.spec.as_ref().and_then(|s| s.ports.as_deref()).unwrap_or_default();
    let mut groups: BTreeMap<Ports, Vec<Endpoint>> = BTreeMap::new();
    for pod in pods {
        let Some(ip) = address(pod, family == "IPv6") else { continue };
        let mut resolved: Ports = ports
            .iter()
            .filter_map(|port| {
                let number = target_port(pod, port)?;
                let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".into());
                Some((port.name.clone().unwrap_or_default(), number, protocol, port.app_protocol.clone()))
            })
            .collect();
        resolved.sort();
        groups.entry(resolved).or_default().push(endpoint(service, pod, ip, world));
    }
    if groups.is_empty() {
        groups.insert(Ports::new(), Vec::new());
    }
    groups
}

fn endpoint(service: &Service, pod: &Pod, ip: &str, world: &World) -> Endpoint {
    let node_name = meta::node_of(pod);
    let zone = world.node(node_name).and_then(|n: &Arc<Node>| meta::label(&n.metadata, "topology.kubernetes.io/zone"));
    let (serving, terminating) = (meta::pod_ready(pod), meta::deleting(&pod.metadata));
    Endpoint {
        addresses: vec![ip.to_owned()],
        conditions: Some(EndpointConditions {
            ready: Some(publishes_unready(service) || (serving && !terminating)),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        deprecated_topology: None,
        hints: hints(service, node_name, zone),
        hostname: hostname(pod, service),
        node_name: (!node_name.is_empty()).then(|| node_name.to_owned()),
        target_ref: Some(target_ref(pod)),
        zone: zone.map(str::to_owned),
    }
}

fn hints(service: &Service, node: &str, zone: Option<&str>) -> Option<EndpointHints> {
    let wish = service.spec.as_ref().and_then(|s| s.traffic_distribution.as_deref())?;
    let for_zones = zone.map(|z| vec![ForZone { name: z.to_owned() }]);
    let for_nodes = (wish == "PreferSameNode" && !node.is_empty()).then(|| vec![ForNode { name: node.to_owned() }]);
    let known = matches!(wish, "PreferClose" | "PreferSameZone" | "PreferSameNode");
    (known && (for_zones.is_some() || for_nodes.is_some())).then_some(EndpointHints { for_zones, for_nodes })
}

/// What makes an endpoint the same endpoint.
fn identity(endpoint: &Endpoint) -> (Vec<String>, Option<String>) {
    (endpoint.addresses.clone(), endpoint.target_ref.as_ref().and_then(|t| t.uid.clone()))
}

/// What becomes of one slice.
struct Draft<'a> {
    slice: &'a EndpointSlice,
    endpoints: Vec<Endpoint>,
    changed: bool,
}

#[allow(clippy::too_many_arguments, reason = "the two ends of one step")]
fn pack(
    service: &Service,
    family: &str,
    ports: &Ports,
    endpoints: Vec<Endpoint>,
    slices: &[&Arc<EndpointSlice>],
    placeholder: bool,
    namer: &mut Namer<'_>,
    plan: &mut Plan,
) {
    let mut left: BTreeMap<_, Endpoint> = endpoints.into_iter().map(|e| (identity(&e), e)).collect();
    let wanted_labels = labels(service);
    let mut drafts: Vec<Draft<'_>> = Vec::new();
    for slice in slices {
        let before = slice.endpoints.as_deref().unwrap_or_default();
        let after: Vec<Endpoint> = before.iter().filter_map(|e| left.remove(&identity(e))).collect();
        let changed = before != after || slice.metadata.labels.as_ref() != Some(&wanted_labels);
        drafts.push(Draft { slice, endpoints: after, changed });
    }
    let mut left: Vec<Endpoint> = left.into_values().collect();
    fill(&mut drafts, &mut left);
    // One slice stays as the placeholder if there is nothing to say.
    let keep = if placeholder { drafts.first().map(|d| d.slice.metadata.uid.clone()) } else { None };
    let had_any = !drafts.is_empty();
    for draft in drafts {
        if draft.endpoints.is_empty() && keep.as_ref() != Some(&draft.slice.metadata.uid) {
            plan.push(delete(draft.slice));
        } else if draft.changed {
            plan.push(update(draft, ports, &wanted_labels));
        }
    }
    if left.is_empty() && placeholder && !had_any {
        plan.push(create(service, family, ports, &[], &wanted_labels, namer.next(family)));
    }
    for chunk in left.chunks(PER_SLICE) {
        plan.push(create(service, family, ports, chunk, &wanted_labels, namer.next(family)));
    }
}

/// Puts what is left into slices that change anyway, the fullest first, and then into the one other slice that it fits best.
fn fill(drafts: &mut [Draft<'_>], left: &mut Vec<Endpoint>) {
    left.reverse();
    let mut order: Vec<usize> = (0..drafts.len()).filter(|i| drafts[*i].changed).collect();
    order.sort_by_key(|i| std::cmp::Reverse(drafts[*i].endpoints.len()));
    for i in order {
        take(&mut drafts[i], left);
    }
    if !left.is_empty() && left.len() < PER_SLICE {
        let fits = |d: &&mut Draft<'_>| !d.changed && d.endpoints.len() + left.len() <= PER_SLICE;
        if let Some(best) = drafts.iter_mut().filter(fits).max_by_key(|d| d.endpoints.len()) {
            take(best, left);
        }
    }
    left.reverse();
}

fn take(draft: &mut Draft<'_>, left: &mut Vec<Endpoint>) {
    while draft.endpoints.len() < PER_SLICE {
        let Some(endpoint) = left.pop() else { return };
        draft.endpoints.push(endpoint);
        draft.changed = true;
    }
}

fn labels(service: &Service) -> Labels {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.remove(HEADLESS);
    if is_headless(service) {
        labels.insert(HEADLESS.into(), String::new());
    }
    labels.insert(SERVICE_NAME.into(), meta::name(&service.metadata).to_owned());
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    labels
}

fn wire_ports(ports: &Ports) -> Vec<EndpointPort> {
    let port = |(name, port, protocol, app): &(String, i32, String, Option<String>)| EndpointPort {
        name: Some(name.clone()),
        port: Some(*port),
        protocol: Some(protocol.clone()),
        app_protocol: app.clone(),
    };
    ports.iter().map(port).collect()
}

fn create(service: &Service, family: &str, ports: &Ports, endpoints: &[Endpoint], labels: &Labels, slice_name: String) -> Action {
    let object = json!({
        "apiVersion": Kind::EndpointSlice.api_version(),
        "kind": Kind::EndpointSlice.word(),
        "metadata": {
            "name": slice_name,
            "generateName": format!("{}-", meta::name(&service.metadata)),
            "namespace": service.metadata.namespace,
            "labels": labels,
            "ownerReferences": [meta::owner_ref(Kind::Service, &service.metadata)],
        },
        "addressType": family,
        "endpoints": endpoints,
        "ports": wire_ports(ports),
    });
    Action::Create { kind: Kind::EndpointSlice, object, guards: Vec::new() }
}

fn update(draft: Draft<'_>, ports: &Ports, labels: &Labels) -> Action {
    let mut object = meta::to_json(draft.slice);
    object["endpoints"] = json!(draft.endpoints);
    object["ports"] = json!(wire_ports(ports));
    object["metadata"]["labels"] = json!(labels);
    Action::Update { kind: Kind::EndpointSlice, object, expect: meta::revision(&draft.slice.metadata), subresource: "" }
}

fn delete(slice: &EndpointSlice) -> Action {
    Action::Delete {
        kind: Kind::EndpointSlice,
        key: meta::key(&slice.metadata),
        uid: meta::uid(&slice.metadata),
        expect: None,
        grace: None,
        propagation: None,
        guards: Vec::new(),
    }
}

/// Finds free names, the same ones every time.
struct Namer<'a> {
    service: &'a Service,
    world: &'a World,
    attempt: u64,
}

impl Namer<'_> {
    fn next(&mut self, family: &str) -> String {
        let (base, uid) = (format!("{}-", meta::name(&self.service.metadata)), meta::uid(&self.service.metadata));
        loop {
            let candidate = name::generated(&base, &name::suffix(&[&uid.0, family], self.attempt));
            self.attempt += 1;
            let key = ObjectKey::new(meta::namespace(&self.service.metadata), candidate.clone());
            if self.world.endpoint_slices.get(&key).is_none() {
                return candidate;
            }
        }
    }
}

/// For tests and explanations: all endpoints of a service's slices as JSON.
pub fn published(world: &World, service: &Service) -> Vec<Value> {
    own_slices(service, world).flat_map(|s| s.endpoints.iter().flatten()).map(meta::to_json).collect()
}
