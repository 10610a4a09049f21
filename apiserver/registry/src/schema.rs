//! Schemas of the built-in kinds.
use kontiki_base::object::Gvk;
/// Name of a kind's schema in OpenAPI documents.
pub fn schema_name(gvk: &Gvk) -> Option<&'static str> {
    let _ = gvk;
    None
}
