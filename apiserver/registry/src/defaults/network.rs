//! Defaults of services, endpoints and network policies.

use serde_json::{Value, json};

use crate::val::{default, default_int, default_str, list_at, list_mut, map_mut, put, str_at};

/// Defaults of a Service.
pub fn service(obj: &mut Value) {
    let spec = map_mut(obj, &["spec"]);
    default_str(spec, "type", "ClusterIP");
    default_str(spec, "sessionAffinity", "None");
    let kind = str_at(obj, &["spec", "type"]).to_string();
    if obj["spec"]["sessionAffinity"] == "ClientIP" {
        default(map_mut(obj, &["spec", "sessionAffinityConfig", "clientIP"]), "timeoutSeconds", 10800);
    } else {
        put(obj, &["spec", "sessionAffinityConfig"], Value::Null);
    }
    for p in list_mut(obj, &["spec", "ports"]) {
        let port = p["port"].as_i64().unwrap_or(0);
        let Some(m) = p.as_object_mut() else { continue };
        default_str(m, "protocol", "TCP");
        if m.get("targetPort").is_none_or(|t| t.is_null() || t == 0 || t == "") {
            m.insert("targetPort".into(), json!(port));
        }
    }
    let external = !list_at(obj, &["spec", "externalIPs"]).is_empty();
    let spec = map_mut(obj, &["spec"]);
    if kind == "NodePort" || kind == "LoadBalancer" || (kind == "ClusterIP" && external) {
        default_str(spec, "externalTrafficPolicy", "Cluster");
    }
    if kind != "ExternalName" {
        default_str(spec, "internalTrafficPolicy", "Cluster");
    }
    if kind == "LoadBalancer" {
        default(spec, "allocateLoadBalancerNodePorts", true);
        for ingress in list_mut(obj, &["status", "loadBalancer", "ingress"]) {
            if !str_at(ingress, &["ip"]).is_empty() {
                default(map_mut(ingress, &[]), "ipMode", "VIP");
            }
        }
    }
    default(map_mut(obj, &["status"]), "loadBalancer", json!({}));
}

/// Defaults of Endpoints.
pub fn endpoints(obj: &mut Value) {
    for subset in list_mut(obj, &["subsets"]) {
        for p in list_mut(subset, &["ports"]) {
            default_str(map_mut(p, &[]), "protocol", "TCP");
        }
    }
}

/// Defaults of an EndpointSlice.
pub fn endpoint_slice(obj: &mut Value) {
    for p in list_mut(obj, &["ports"]) {
        let p = map_mut(p, &[]);
        default(p, "name", "");
        default_str(p, "protocol", "TCP");
    }
}

/// Defaults of a NetworkPolicy.
pub fn network_policy(obj: &mut Value) {
    for (list, _) in [("ingress", "from"), ("egress", "to")] {
        for rule in list_mut(obj, &["spec", list]) {
            for p in list_mut(rule, &["ports"]) {
                default(map_mut(p, &[]), "protocol", "TCP");
            }
        }
    }
    if list_at(obj, &["spec", "policyTypes"]).is_empty() {
        let egress = !list_at(obj, &["spec", "egress"]).is_empty();
        put(obj, &["spec", "policyTypes"], if egress { json!(["Ingress", "Egress"]) } else { json!(["Ingress"]) });
    }
}

/// Defaults of an Ingress.
pub fn ingress(obj: &mut Value) {
    default(map_mut(obj, &["status"]), "loadBalancer", json!({}));
}

/// Defaults of an IngressClass.
pub fn ingress_class(obj: &mut Value) {
    if let Some(Value::Object(p)) = crate::val::at_mut(obj, &["spec", "parameters"]) {
        default(p, "scope", "Cluster");
    }
}

/// Defaults of a service reference of a webhook.
pub fn webhook_client(client: &mut Value) {
    if let Some(Value::Object(s)) = crate::val::at_mut(client, &["service"]) {
        default_int(s, "port", 443);
    }
}
