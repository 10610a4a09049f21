//! Discovery: what the server says it serves, in the classic form and in the aggregated one.

use serde_json::{Map, Value, json};

use crate::row::{Row, Sub, VerbSet};
use crate::table::{Group, Registry};

/// Content type parameters of the aggregated form.
pub const AGGREGATED_TYPE: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// `GET /api`. `server_addr` is `host:port` as clients reach it.
pub fn api_versions(server_addr: &str) -> Value {
    json!({
        "kind": "APIVersions",
        "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": server_addr}],
    })
}

/// `GET /apis`.
pub fn api_groups(registry: &Registry) -> Value {
    let groups: Vec<Value> = registry.groups().iter().filter(|g| !g.name.is_empty()).map(|g| Value::Object(group_fields(g))).collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

/// `GET /apis/{group}`; `None` if no such group is served.
pub fn api_group(registry: &Registry, group: &str) -> Option<Value> {
    let group = registry.groups().into_iter().find(|g| g.name == group && !g.name.is_empty())?;
    let mut fields = group_fields(&group);
    fields.insert("kind".into(), json!("APIGroup"));
    fields.insert("apiVersion".into(), json!("v1"));
    Some(Value::Object(fields))
}

fn group_fields(group: &Group) -> Map<String, Value> {
    let versions: Vec<Value> =
        group.versions.iter().map(|v| json!({"groupVersion": format!("{}/{v}", group.name), "version": v})).collect();
    let mut m = Map::new();
    m.insert("name".into(), json!(group.name));
    m.insert("preferredVersion".into(), versions.first().cloned().unwrap_or_default());
    m.insert("versions".into(), Value::Array(versions));
    m
}

/// `GET /api/v1` and `GET /apis/{group}/{version}`; `None` if nothing of the kind is served.
pub fn resource_list(registry: &Registry, group: &str, version: &str) -> Option<Value> {
    let mut resources = Vec::new();
    for row in registry.rows_of(group, version) {
        resources.push(resource(row));
        resources.extend(row.subresources.iter().map(|s| subresource(row, s)));
    }
    if resources.is_empty() {
        return None;
    }
    let mut v = json!({"kind": "APIResourceList", "groupVersion": version, "resources": resources});
    if !group.is_empty() {
        // The core group's list has never had an apiVersion.
        v["apiVersion"] = json!("v1");
        v["groupVersion"] = json!(format!("{group}/{version}"));
    }
    Some(v)
}

fn verbs(set: VerbSet) -> Vec<&'static str> {
    set.iter().map(|v| v.as_str()).collect()
}

fn resource(row: &Row) -> Value {
    let mut v = json!({
        "name": row.plural,
        "singularName": row.singular,
        "namespaced": row.namespaced,
        "kind": row.kind,
        "verbs": verbs(row.verbs),
    });
    names(&mut v, row);
    if !row.storage_version_hash.is_empty() {
        v["storageVersionHash"] = json!(row.storage_version_hash);
    }
    v
}

fn names(v: &mut Value, row: &Row) {
    if !row.short.is_empty() {
        v["shortNames"] = json!(row.short);
    }
    if !row.categories.is_empty() {
        v["categories"] = json!(row.categories);
    }
}

fn subresource(row: &Row, sub: &Sub) -> Value {
    let mut v = json!({
        "name": format!("{}/{}", row.plural, sub.name),
        "singularName": "",
        "namespaced": row.namespaced,
        "kind": sub.gvk.kind,
        "verbs": verbs(sub.verbs),
    });
    if sub.gvk.group != row.group || sub.gvk.version != row.version {
        v["group"] = json!(sub.gvk.group);
        v["version"] = json!(sub.gvk.version);
    }
    v
}

/// The aggregated form of `GET /api` (`core`) and `GET /apis`: an `APIGroupDiscoveryList` of `apidiscovery.k8s.io/v2`.
pub fn aggregated(registry: &Registry, core: bool) -> Value {
    let groups = registry.groups();
    let items: Vec<Value> = groups.iter().filter(|g| g.name.is_empty() == core).map(|g| group_discovery(registry, g)).collect();
    json!({"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items})
}

fn group_discovery(registry: &Registry, group: &Group) -> Value {
    let version = |v: &String| {
        let resources: Vec<Value> = registry.rows_of(&group.name, v).map(|r| resource_discovery(r)).collect();
        json!({"version": v, "freshness": "Current", "resources": resources})
    };
    let versions: Vec<Value> = group.versions.iter().map(version).collect();
    let mut metadata = json!({"creationTimestamp": null});
    if !group.name.is_empty() {
        metadata["name"] = json!(group.name);
    }
    json!({"metadata": metadata, "versions": versions})
}

fn resource_discovery(row: &Row) -> Value {
    let mut v = json!({
        "resource": row.plural,
        "responseKind": {"group": row.group, "version": row.version, "kind": row.kind},
        "scope": if row.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": row.singular,
        "verbs": verbs(row.verbs),
    });
    names(&mut v, row);
    if !row.subresources.is_empty() {
        let sub = |s: &Sub| {
            json!({
                "subresource": s.name,
                "responseKind": {"group": s.gvk.group, "version": s.gvk.version, "kind": s.gvk.kind},
                "verbs": verbs(s.verbs),
            })
        };
        v["subresources"] = row.subresources.iter().map(sub).collect();
    }
    v
}
