//! OpenAPI v3 documents.
use crate::table::Registry;
use serde_json::Value;
/// `GET /openapi/v3`
pub fn index(registry: &Registry) -> Value {
    let _ = registry;
    Value::Null
}
/// `GET /openapi/v3/api/v1`, `GET /openapi/v3/apis/{group}/{version}`
pub fn document(registry: &Registry, group: &str, version: &str) -> Option<Value> {
    let _ = (registry, group, version);
    None
}
