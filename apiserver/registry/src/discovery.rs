//! Discovery documents.
use crate::table::Registry;
use serde_json::Value;
/// `GET /api`
pub fn api_versions(server_addr: &str) -> Value {
    let _ = server_addr;
    Value::Null
}
/// `GET /apis`
pub fn api_groups(registry: &Registry) -> Value {
    let _ = registry;
    Value::Null
}
/// `GET /apis/{group}`
pub fn api_group(registry: &Registry, group: &str) -> Option<Value> {
    let _ = (registry, group);
    None
}
/// `GET /api/v1`, `GET /apis/{group}/{version}`
pub fn resource_list(registry: &Registry, group: &str, version: &str) -> Option<Value> {
    let _ = (registry, group, version);
    None
}
/// The aggregated form of `GET /api` (`core`) and `GET /apis`.
pub fn aggregated(registry: &Registry, core: bool) -> Value {
    let _ = (registry, core);
    Value::Null
}
