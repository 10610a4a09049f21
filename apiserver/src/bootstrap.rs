//! Objects that a cluster has from its first minute: four namespaces, and the Service through which pods find the API.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use kontiki_base::Code;
use kontiki_registry::rbac::User;
use kontiki_registry::val;
use kontiki_registry::write_rules::Write;
use serde_json::{Value, json};

use crate::core::Core;
use crate::error::Result;
use crate::verbs::create::NewObject;
use crate::verbs::update::Update;
use crate::verbs::{Target, WriteOptions};

/// Namespaces that are always there.
const NAMESPACES: &[&str] = &["default", "kube-system", "kube-public", "kube-node-lease"];
/// Priorities of what a cluster cannot do without.
const PRIORITY_CLASSES: &[(&str, i64, &str)] = &[
    (
        "system-cluster-critical",
        2_000_000_000,
        "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
    ),
    ("system-node-critical", 2_000_001_000, "Used for system critical pods that must not be moved from their current node."),
];
/// Wait before a failed attempt is repeated.
const RETRY: Duration = Duration::from_secs(1);

/// Creates what is missing as soon as the store has a leader. Every server does this; whoever comes second finds it done.
pub(crate) async fn run(core: Arc<Core>) {
    loop {
        let status = core.kv.status();
        if !status.has_leader {
            tokio::select! {
                () = core.kv.status_changed(status) => {}
                () = core.env.sleep(RETRY) => {}
            }
            continue;
        }
        match all(&core).await {
            Ok(()) => return tracing::info!("bootstrap objects are in place"),
            Err(status) => {
                tracing::debug!(%status, "bootstrap is not done yet");
                core.env.sleep(RETRY).await;
            }
        }
    }
}

/// The server itself, as a user.
pub(crate) fn server_user() -> User {
    User { name: "system:apiserver".into(), groups: vec!["system:masters".into(), "system:authenticated".into()], uid: String::new() }
}

fn options() -> WriteOptions {
    WriteOptions { manager: "kube-apiserver".into(), ..WriteOptions::default() }
}

async fn all(core: &Arc<Core>) -> Result<()> {
    for name in NAMESPACES {
        let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        ensure(core, ("", "namespaces"), "", object).await?;
    }
    for (name, value, description) in PRIORITY_CLASSES {
        let object = json!({
            "apiVersion": "scheduling.k8s.io/v1",
            "kind": "PriorityClass",
            "metadata": {"name": name},
            "value": value,
            "description": description,
        });
        ensure(core, ("scheduling.k8s.io", "priorityclasses"), "", object).await?;
    }
    ensure(core, ("", "services"), "default", service(core)).await?;
    let endpoints = ensure(core, ("", "endpoints"), "default", endpoints(&core.advertise)).await?;
    keep(core, &endpoints, "subsets").await?;
    let slice = ensure(core, ("discovery.k8s.io", "endpointslices"), "default", slice(&core.advertise)).await?;
    keep(core, &slice, "endpoints").await
}

/// A bootstrap object, and where it is.
struct Wanted {
    target: Target,
    object: Value,
}

/// Creates an object unless it is there.
async fn ensure(core: &Arc<Core>, (group, plural): (&str, &str), namespace: &str, object: Value) -> Result<Wanted> {
    let row = core.builtin(group, "v1", plural);
    let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let target = Target::of(&row, namespace, &name);
    if core.read_fresh(&target).await?.value.is_none() {
        let new = NewObject { target: Target::of(&row, namespace, ""), body: object.clone(), applied: false };
        match core.create(&server_user(), &new, &options()).await {
            Ok(_) => tracing::info!(resource = plural, name, "created"),
            Err(status) if status.code == Code::AlreadyExists => {}
            Err(status) => return Err(status),
        }
    }
    Ok(Wanted { target, object })
}

/// Makes one field of an object what it should be: the servers' addresses may differ from those of the last start.
async fn keep(core: &Arc<Core>, wanted: &Wanted, field: &'static str) -> Result<()> {
    let value = wanted.object[field].clone();
    let change = move |live: Option<&Value>| {
        let mut new = live.cloned().unwrap_or_default();
        val::put(&mut new, &[field], value.clone());
        Ok(new)
    };
    let update = Update { target: wanted.target.clone(), sub: None, write: Write::Patch, own: false, change: Box::new(change) };
    core.update(&server_user(), &update, &options()).await.map(|_| ())
}

fn labels() -> Value {
    json!({"component": "apiserver", "provider": "kubernetes"})
}

fn port(addresses: &[SocketAddr]) -> u16 {
    addresses.first().map_or(6_443, SocketAddr::port)
}

fn service(core: &Core) -> Value {
    let address = core.service_cidr.nth(0).to_string();
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": labels()},
        "spec": {
            "clusterIP": address,
            "clusterIPs": [address],
            "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack",
            "type": "ClusterIP",
            "sessionAffinity": "None",
            "ports": [{"name": "https", "protocol": "TCP", "port": 443, "targetPort": port(&core.advertise)}],
        },
    })
}

/// Addresses that pods can reach: an Endpoints object must not name loopback ones.
fn reachable(addresses: &[SocketAddr]) -> Vec<String> {
    let mut found: Vec<String> =
        addresses.iter().map(SocketAddr::ip).filter(|ip| !ip.is_loopback() && !ip.is_unspecified()).map(|ip| ip.to_string()).collect();
    found.sort();
    found.dedup();
    found
}

fn endpoints(addresses: &[SocketAddr]) -> Value {
    let ips: Vec<Value> = reachable(addresses).into_iter().map(|ip| json!({"ip": ip})).collect();
    let subsets = if ips.is_empty() {
        json!([])
    } else {
        json!([{"addresses": ips, "ports": [{"name": "https", "port": port(addresses), "protocol": "TCP"}]}])
    };
    let labels = json!({"endpointslice.kubernetes.io/skip-mirror": "true"});
    json!({
        "apiVersion": "v1",
        "kind": "Endpoints",
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": labels},
        "subsets": subsets,
    })
}

fn slice(addresses: &[SocketAddr]) -> Value {
    let endpoints: Vec<Value> =
        reachable(addresses).into_iter().map(|ip| json!({"addresses": [ip], "conditions": {"ready": true}})).collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": {"kubernetes.io/service-name": "kubernetes"}},
        "addressType": "IPv4",
        "endpoints": endpoints,
        "ports": [{"name": "https", "port": port(addresses), "protocol": "TCP"}],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_name_what_pods_can_reach() {
        let addresses: Vec<SocketAddr> = ["127.0.0.1:6443", "10.0.0.2:6443", "10.0.0.1:6443"].iter().map(|a| a.parse().unwrap()).collect();
        assert_eq!(endpoints(&addresses)["subsets"][0]["addresses"], json!([{"ip": "10.0.0.1"}, {"ip": "10.0.0.2"}]));
        assert_eq!(endpoints(&addresses[..1])["subsets"], json!([]));
        assert_eq!(slice(&addresses)["endpoints"].as_array().map(Vec::len), Some(2));
    }
}
