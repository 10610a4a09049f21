//! Schemas of the built-in kinds: a tree of typed fields, built once from k8s-openapi's JSON schemas.
//!
//! It drives decoding (types, unknown fields, pruning) and the OpenAPI documents.

pub mod decode;
pub mod json;
mod kinds;

pub use decode::{FieldValidation, conform, decode, unknown_fields};

use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;

use kontiki_base::object::Gvk;
use serde_json::Value;

/// What a value must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    /// An object with these fields, by the name of its schema.
    Struct(String),
    /// An object whose keys are free.
    Map(Box<Node>),
    /// A list.
    List(Box<Node>),
    /// Text.
    String,
    /// Base64.
    Bytes,
    /// A whole number of so many bits.
    Integer(u8),
    /// A number.
    Number,
    /// `true` or `false`.
    Boolean,
    /// A whole number or text.
    IntOrString,
    /// A quantity.
    Quantity,
    /// A time with whole seconds.
    Time,
    /// A time with microseconds.
    MicroTime,
    /// Anything: stored as given.
    Any,
}

/// An object with named fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SchemaNode {
    /// Name of the schema: `io.k8s.api.core.v1.PodSpec`.
    pub name: String,
    /// Its fields.
    pub fields: BTreeMap<String, Node>,
    /// Fields that are not written when they are empty, zero or false (Go: no pointer, and `omitempty`).
    pub omitted: BTreeSet<String>,
}

impl SchemaNode {
    /// The last part of the name: `PodSpec`.
    pub fn short_name(&self) -> &str {
        self.name.rsplit('.').next().unwrap_or(&self.name)
    }
}

struct Schemas {
    names: BTreeMap<(String, String, String), String>,
    nodes: BTreeMap<String, SchemaNode>,
    raw: BTreeMap<String, Value>,
}

fn schemas() -> &'static Schemas {
    static SCHEMAS: OnceLock<Schemas> = OnceLock::new();
    SCHEMAS.get_or_init(|| {
        let raw = kinds::definitions();
        let nodes = raw.iter().filter_map(|(name, v)| Some((name.clone(), struct_of(name, v)?))).collect();
        let names = kinds::all().into_iter().map(|((g, v, k), name)| ((g.into(), v.into(), k.into()), name)).collect();
        Schemas { names, nodes, raw }
    })
}

/// The name of a kind's schema; `None` for kinds that are not built in.
pub fn schema_name(gvk: &Gvk) -> Option<&'static str> {
    schemas().names.get(&(gvk.group.clone(), gvk.version.clone(), gvk.kind.clone())).map(String::as_str)
}

/// The fields of a kind.
pub fn schema_of(gvk: &Gvk) -> Option<&'static SchemaNode> {
    node(schema_name(gvk)?)
}

/// The fields of a schema by its name.
pub fn node(name: &str) -> Option<&'static SchemaNode> {
    schemas().nodes.get(name)
}

/// A schema as JSON, with descriptions, by its name.
pub fn raw(name: &str) -> Option<&'static Value> {
    schemas().raw.get(name)
}

/// Names of the schemas that a schema refers to.
pub fn references(v: &Value) -> Vec<&str> {
    match v {
        Value::Object(m) => m
            .iter()
            .flat_map(|(k, v)| match v {
                Value::String(s) if k == "$ref" => s.rsplit('/').next().into_iter().collect(),
                other => references(other),
            })
            .collect(),
        Value::Array(a) => a.iter().flat_map(references).collect(),
        _ => Vec::new(),
    }
}

/// An object type with fixed fields; `None` for scalars, unions and free objects that have a name of their own.
fn struct_of(name: &str, v: &Value) -> Option<SchemaNode> {
    if scalar_by_name(name).is_some() {
        return None;
    }
    let properties = v.get("properties")?.as_object()?;
    let fields: BTreeMap<String, Node> = properties.iter().map(|(k, v)| (k.clone(), node_of(v))).collect();
    let omitted = fields.iter().filter(|(field, node)| is_omitted(name, field, node)).map(|(field, _)| field.clone()).collect();
    Some(SchemaNode { name: name.into(), fields, omitted })
}

/// Which fields of the Go types are pointers, and which are written even when they are empty.
const PRESENCE: &str = include_str!("../../data/protobuf-presence.tsv");

/// Schema and field -> the words `ptr`, `val`, `keep`.
fn presence() -> &'static BTreeMap<(String, &'static str), &'static str> {
    static PRESENCE_MAP: OnceLock<BTreeMap<(String, &'static str), &'static str>> = OnceLock::new();
    PRESENCE_MAP.get_or_init(|| {
        let row = |line: &'static str| {
            let [package, message, _, field, words] = line.split('\t').collect::<Vec<_>>()[..] else { return None };
            let package = package.strip_prefix("k8s.io.")?.replace('_', "-");
            Some(((format!("io.k8s.{package}.{message}"), field), words))
        };
        PRESENCE.lines().skip(1).filter_map(row).collect()
    })
}

fn is_omitted(schema: &str, field: &str, node: &Node) -> bool {
    let words = presence().get(&(schema.to_string(), field)).copied().unwrap_or("");
    match node {
        Node::Map(_) | Node::List(_) => !words.contains("keep"),
        Node::String | Node::Bytes | Node::Integer(_) | Node::Number | Node::Boolean => !words.contains("keep") && !words.contains("ptr"),
        _ => false,
    }
}

fn scalar_by_name(name: &str) -> Option<Node> {
    Some(match name.strip_prefix("io.k8s.apimachinery.pkg.")? {
        "api.resource.Quantity" => Node::Quantity,
        "util.intstr.IntOrString" => Node::IntOrString,
        "apis.meta.v1.Time" => Node::Time,
        "apis.meta.v1.MicroTime" => Node::MicroTime,
        "apis.meta.v1.FieldsV1" | "runtime.RawExtension" => Node::Any,
        _ => return None,
    })
}

fn node_of(v: &Value) -> Node {
    if let Some(name) = v["$ref"].as_str().and_then(|r| r.rsplit('/').next()) {
        return scalar_by_name(name).unwrap_or_else(|| Node::Struct(name.into()));
    }
    match v["type"].as_str() {
        Some("string") if v["format"] == "byte" => Node::Bytes,
        Some("string") => Node::String,
        Some("integer") => Node::Integer(if v["format"] == "int64" { 64 } else { 32 }),
        Some("number") => Node::Number,
        Some("boolean") => Node::Boolean,
        Some("array") => Node::List(Box::new(node_of(&v["items"]))),
        Some("object") => match v.get("additionalProperties") {
            Some(each) if each.is_object() => Node::Map(Box::new(node_of(each))),
            _ => Node::Any,
        },
        _ => Node::Any,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gvk(api: &str, kind: &str) -> Gvk {
        Gvk::from_api_version(api, kind)
    }

    #[test]
    fn a_pod_has_the_fields_of_a_pod() {
        let pod = schema_of(&gvk("v1", "Pod")).unwrap();
        assert_eq!(pod.short_name(), "Pod");
        let Node::Struct(spec) = &pod.fields["spec"] else { panic!("spec is an object") };
        let spec = node(spec).unwrap();
        assert_eq!(spec.fields["terminationGracePeriodSeconds"], Node::Integer(64));
        assert_eq!(spec.fields["nodeSelector"], Node::Map(Box::new(Node::String)));
        let container = node("io.k8s.api.core.v1.ContainerPort").unwrap();
        assert_eq!(container.fields["containerPort"], Node::Integer(32));
        let limits = node("io.k8s.api.core.v1.ResourceRequirements").unwrap();
        assert_eq!(limits.fields["limits"], Node::Map(Box::new(Node::Quantity)));
        assert_eq!(node("io.k8s.api.core.v1.HTTPGetAction").unwrap().fields["port"], Node::IntOrString);
        assert_eq!(schema_of(&gvk("v1", "Secret")).unwrap().fields["data"], Node::Map(Box::new(Node::Bytes)));
        assert_eq!(node("io.k8s.api.coordination.v1.LeaseSpec").unwrap().fields["renewTime"], Node::MicroTime);
    }

    #[test]
    fn every_reference_leads_somewhere() {
        for (name, v) in &schemas().raw {
            for r in references(v) {
                assert!(raw(r).is_some(), "{name} refers to {r}");
            }
        }
        assert!(schemas().raw.len() > 500, "{}", schemas().raw.len());
    }
}
