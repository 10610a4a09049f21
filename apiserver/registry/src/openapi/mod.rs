//! OpenAPI v3: an index of documents, one document per group version.
//!
//! kubectl reads it to learn whether the server validates fields (a PATCH operation of the kind with a parameter `fieldValidation`),
//! for merge keys, and for `kubectl explain`. Documents are built when they are asked for; the hash in the index needs none of them.

mod paths;
mod schemas;

use serde_json::{Map, Value, json};

use crate::row::Row;
use crate::table::Registry;

/// The version that the documents claim.
pub const VERSION: &str = "v1.36.2";

/// The path of a group version below `/openapi/v3/`, and in the index.
pub fn key(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}

/// `GET /openapi/v3`.
pub fn index(registry: &Registry) -> Value {
    let mut paths = Map::new();
    for group in registry.groups() {
        for version in &group.versions {
            let key = key(&group.name, version);
            let hash = hash(registry, &group.name, version);
            paths.insert(key.clone(), json!({"serverRelativeURL": format!("/openapi/v3/{key}?hash={hash}")}));
        }
    }
    json!({"paths": paths})
}

/// The hash of a group version's document, in hexadecimal: changes whenever the document does. Two rounds of FNV-1a over what the document
/// is made from.
pub fn hash(registry: &Registry, group: &str, version: &str) -> String {
    let mut text = format!("{VERSION} {} {group}/{version}", env!("CARGO_PKG_VERSION"));
    for row in registry.rows_of(group, version) {
        text.push_str(&format!(" {} {} {:?} {:?} {}", row.plural, row.kind, row.verbs, row.subresources, row.schema));
    }
    let fnv = |seed: u64| text.bytes().fold(seed, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    format!("{:016X}{:016X}", fnv(0xcbf2_9ce4_8422_2325), fnv(0x6c62_272e_07bb_0142))
}

/// The document of a group version: `GET /openapi/v3/api/v1`, `GET /openapi/v3/apis/{group}/{version}`.
pub fn document(registry: &Registry, group: &str, version: &str) -> Option<Value> {
    let rows: Vec<&Row> = registry.rows_of(group, version).map(|r| &**r).collect();
    if rows.is_empty() {
        return None;
    }
    let mut all = Map::new();
    for row in &rows {
        paths::add(&mut all, row);
    }
    Some(json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": VERSION},
        "paths": all,
        "components": {"schemas": schemas::of(&rows)},
    }))
}

/// The name of the schema of a row. A custom resource gets one in the same style: `com.example.v1.CronTab`.
fn schema_name(row: &Row) -> String {
    if row.schema.is_empty() {
        let group: Vec<&str> = row.group.rsplit('.').collect();
        format!("{}.{}.{}", group.join("."), row.version, row.kind)
    } else {
        row.schema.clone()
    }
}

fn reference(name: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{name}")})
}

#[cfg(test)]
mod tests {
    use super::*;
    use kontiki_base::object::Gvk;

    #[test]
    fn every_group_version_has_a_document_that_kubectl_can_use() {
        let registry = Registry::builtin();
        for row in registry.rows() {
            let doc = document(&registry, &row.group, &row.version).unwrap();
            let schemas = &doc["components"]["schemas"];
            for name in crate::schema::references(&doc) {
                assert!(schemas.get(name).is_some(), "{name} is referred to in {}", row.api_version());
            }
            let patch = |gvk: &Gvk| {
                doc["paths"].as_object().unwrap().values().filter_map(|p| p.get("patch")).any(|op| {
                    op["x-kubernetes-group-version-kind"] == json!({"group": gvk.group, "version": gvk.version, "kind": gvk.kind})
                        && op["parameters"].as_array().unwrap().iter().any(|p| p["name"] == "fieldValidation")
                })
            };
            assert_eq!(patch(&row.gvk()), row.has_verb(crate::row::Verb::Patch), "{}", row.gvk());
            let schema = &schemas[schema_name(row)];
            assert_eq!(schema["x-kubernetes-group-version-kind"][0]["kind"], row.kind.as_str());
        }
    }

    #[test]
    fn merge_keys_are_there() {
        let doc = document(&Registry::builtin(), "", "v1").unwrap();
        let spec = &doc["components"]["schemas"]["io.k8s.api.core.v1.PodSpec"]["properties"];
        assert_eq!(spec["containers"]["x-kubernetes-patch-merge-key"], "name");
        assert_eq!(spec["containers"]["x-kubernetes-list-map-keys"], json!(["name"]));
        assert_eq!(spec["volumes"]["x-kubernetes-patch-strategy"], "merge,retainKeys");
        let port = &doc["components"]["schemas"]["io.k8s.api.core.v1.ContainerPort"]["properties"]["protocol"];
        assert_eq!(port["default"], "TCP");
        let pod = &doc["components"]["schemas"]["io.k8s.api.core.v1.Pod"]["properties"]["spec"];
        assert_eq!(pod["allOf"][0]["$ref"], "#/components/schemas/io.k8s.api.core.v1.PodSpec");
        assert!(pod["description"].as_str().unwrap().starts_with("Specification of the desired behavior"));
    }

    #[test]
    fn the_hash_follows_the_rows() {
        let mut registry = Registry::builtin();
        let before = (hash(&registry, "apps", "v1"), hash(&registry, "", "v1"));
        registry.remove(&Gvk::from_api_version("apps/v1", "ReplicaSet"));
        assert_ne!(hash(&registry, "apps", "v1"), before.0);
        assert_eq!(hash(&registry, "", "v1"), before.1);
    }
}
