//! The schema of the built-in kinds as patches need it: which lists have keys, which maps are one value, how strategic merge treats a field.
//!
//! Fields and their types come from the message table; list types and merge keys from `merge-keys.tsv` (the `x-kubernetes-*` extensions of the published
//! OpenAPI document). A custom resource brings its own schema as JSON.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use kontiki_base::object::Gvk;
use serde_json::Value;

use crate::protobuf::table::{Field, Kind, Label, MessageId, Shape, Table};

/// How server-side apply merges a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListKind {
    /// The list is one value.
    Atomic,
    /// Distinct scalars.
    Set,
    /// Objects told apart by these fields.
    Map(Vec<String>),
}

/// What is known about a field of a message.
#[derive(Debug)]
pub struct Info {
    /// The field.
    pub field: &'static Field,
    /// For lists.
    pub list: ListKind,
    /// A map or object that is one value.
    pub atomic: bool,
    /// Strategic merge: merge the list instead of replacing it.
    pub merge: bool,
    /// Strategic merge: the field that tells elements apart.
    pub merge_key: Option<&'static str>,
}

/// A place in a schema.
#[derive(Clone, Copy, Debug)]
pub enum Type<'s> {
    /// Nothing below it has a type.
    Scalar(Kind),
    /// Scalar, object or list, taken as one value.
    Leaf,
    /// No schema: maps are merged, lists are one value.
    Open,
    /// An object with the fields of a message.
    Message(MessageId),
    /// A map or list whose elements have the type of the field.
    Many(&'static Info),
    /// A node of a custom resource's OpenAPI schema.
    Crd(&'s Value),
}

/// What the merge does at a place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Form {
    /// The value is replaced as a whole.
    Leaf,
    /// Fields are merged one by one. True: keys are declared, others are unknown fields.
    Object,
    /// Elements are merged.
    List(ListKind),
    /// As the value at hand suggests.
    Dynamic,
}

struct Schema {
    fields: Vec<BTreeMap<&'static str, Info>>,
    atomic: Vec<bool>,
}

impl Schema {
    fn get() -> &'static Self {
        static SCHEMA: OnceLock<Schema> = OnceLock::new();
        SCHEMA.get_or_init(build)
    }

    fn info(&self, id: MessageId, name: &str) -> Option<&Info> {
        self.fields[id.index()].get(name)
    }
}

/// `io.k8s.api.core.v1.PodSpec` for package `k8s.io.api.core.v1` and message `PodSpec`.
fn schema_name(package: &str, message: &str) -> String {
    format!("io.k8s.{}.{message}", package.trim_start_matches("k8s.io.").replace('_', "-"))
}

type Row = Vec<&'static str>;

fn build() -> Schema {
    let table = Table::get();
    let rows: BTreeMap<(&str, &str), Row> = include_str!("../../data/merge-keys.tsv")
        .lines()
        .skip(1)
        .map(|l| l.split('\t').collect::<Row>())
        .filter(|r| r.len() >= 8)
        .map(|r| ((r[0], r[1]), r))
        .collect();
    let mut schema = Schema { fields: Vec::new(), atomic: Vec::new() };
    for (_, message) in table.iter() {
        let name = schema_name(message.package, message.name);
        let mut fields = BTreeMap::new();
        flatten(table, &message.fields, &|field| rows.get(&(name.as_str(), field)).cloned(), &rows, &mut fields);
        schema.fields.push(fields);
        schema.atomic.push(rows.get(&(name.as_str(), ".")).is_some_and(|r| r[7] == "atomic"));
    }
    schema
}

fn flatten(
    table: &'static Table,
    fields: &'static [Field],
    row_of: &dyn Fn(&str) -> Option<Row>,
    rows: &BTreeMap<(&str, &str), Row>,
    out: &mut BTreeMap<&'static str, Info>,
) {
    for field in fields {
        if let (true, Kind::Msg(id)) = (field.inline, field.kind) {
            let inner = table.message(id);
            let name = schema_name(inner.package, inner.name);
            let own = |f: &str| row_of(f).or_else(|| rows.get(&(name.as_str(), f)).cloned());
            flatten(table, &inner.fields, &own, rows, out);
            continue;
        }
        let row = row_of(field.json).unwrap_or_else(|| vec![""; 9]);
        let list = match row[3] {
            "map" => ListKind::Map(row[4].split(',').map(str::to_owned).collect()),
            "set" => ListKind::Set,
            _ => ListKind::Atomic,
        };
        let merge = row[6].split(',').any(|s| s == "merge");
        let merge_key = (!row[5].is_empty()).then_some(row[5]);
        let atomic = row[7] == "atomic" || (row[3] == "atomic" && field.label == Label::Map);
        out.insert(field.json, Info { field, list, atomic, merge, merge_key });
    }
}

/// The schema of a built-in kind; [`Type::Open`] if it is none.
pub fn of_kind(gvk: &Gvk) -> Type<'static> {
    Table::get().of_kind(gvk).map_or(Type::Open, Type::Message)
}

/// The name of a message, for error texts.
pub fn message_name(id: MessageId) -> &'static str {
    Table::get().message(id).name
}

static NONE: Value = Value::Null;

impl<'s> Type<'s> {
    /// The type of a field of an object, or `None` if the object cannot have it.
    pub fn child(self, name: &str) -> Option<Self> {
        match self {
            Self::Scalar(_) | Self::Leaf => None,
            Self::Open => Some(Self::Open),
            Self::Message(id) => match Schema::get().info(id, name) {
                Some(info) if info.field.label == Label::One => Some(single(info)),
                Some(info) => Some(Self::Many(info)),
                None if is_type_meta(id, name) => Some(Self::Scalar(Kind::Str)),
                None => None,
            },
            Self::Many(info) if info.field.label == Label::Map => Some(element_of(info)),
            Self::Many(_) => None,
            Self::Crd(node) => crd_child(node, name),
        }
    }

    /// What is known about a field for strategic merge. `None` beyond the schema.
    pub fn info(self, name: &str) -> Option<&'static Info> {
        match self {
            Self::Message(id) => Schema::get().info(id, name),
            _ => None,
        }
    }

    /// The type of a list's elements.
    pub fn element(self) -> Self {
        match self {
            Self::Many(info) => element_of(info),
            Self::Crd(node) => node.get("items").map_or(Self::Open, Self::Crd),
            _ => Self::Open,
        }
    }

    /// True if the field is declared by name, and not a key of an open map.
    pub fn declares(self, name: &str) -> bool {
        match self {
            Self::Message(id) => Schema::get().info(id, name).is_some() || is_type_meta(id, name),
            Self::Crd(node) => node.pointer("/properties").is_some_and(|p| p.get(name).is_some()) || is_crd_meta(node, name),
            _ => false,
        }
    }

    /// What a merge does here.
    pub fn form(self) -> Form {
        match self {
            Self::Scalar(_) | Self::Leaf => Form::Leaf,
            Self::Open => Form::Dynamic,
            Self::Message(_) => Form::Object,
            Self::Many(info) => match info.field.label {
                Label::Many => match info.list {
                    ListKind::Atomic => Form::Leaf,
                    ref keyed => Form::List(keyed.clone()),
                },
                _ if info.atomic => Form::Leaf,
                _ => Form::Object,
            },
            Self::Crd(node) => crd_form(node),
        }
    }

    /// A value with the fields that Go's typed form always has: structs that are no pointers, and lists that are printed when they are nil. Ownership is
    /// computed on that form, so that such a field never comes into being by itself.
    pub fn normalized(self, value: &Value) -> Value {
        match (self, value) {
            (Self::Message(id), Value::Object(map)) => {
                let mut out = map.clone();
                for (name, info) in &Schema::get().fields[id.index()] {
                    let zero = match (info.field.label, single(info)) {
                        (Label::One, Self::Message(_)) if !info.field.pointer => Some(Value::Object(serde_json::Map::new())),
                        (Label::Many, _) if info.field.keep => Some(Value::Null),
                        (Label::One, Self::Leaf) if info.field.keep && info.field.pointer => Some(Value::Null),
                        _ => None,
                    };
                    if let Some(zero) = zero {
                        out.entry(*name).or_insert(zero);
                    }
                }
                Value::Object(
                    out.into_iter()
                        .map(|(name, v)| {
                            let v = self.child(&name).unwrap_or(Type::Open).normalized(&v);
                            (name, v)
                        })
                        .collect(),
                )
            }
            (Self::Many(info), Value::Array(list)) => list.iter().map(|v| element_of(info).normalized(v)).collect(),
            (Self::Many(info), Value::Object(map)) => {
                Value::Object(map.iter().map(|(name, v)| (name.clone(), element_of(info).normalized(v))).collect())
            }
            _ => value.clone(),
        }
    }

    /// The value that a missing key field of a list element stands for.
    pub fn key_default(self, name: &str) -> Option<Value> {
        match self {
            Self::Message(id) => {
                let info = Schema::get().info(id, name)?;
                match info.field.kind {
                    Kind::Str if name == "protocol" => Some("TCP".into()),
                    Kind::Str if info.field.keep => Some("".into()),
                    Kind::I32 | Kind::I64 if info.field.keep => Some(0.into()),
                    _ => None,
                }
            }
            Self::Crd(node) => node.pointer("/properties")?.get(name)?.get("default").cloned(),
            _ => None,
        }
    }
}

/// `apiVersion` and `kind` of objects, which protobuf does not carry.
fn is_type_meta(id: MessageId, name: &str) -> bool {
    (name == "apiVersion" || name == "kind") && Schema::get().info(id, "metadata").is_some()
}

/// The root of a custom resource has type and object meta without declaring them in full.
fn is_crd_meta(node: &Value, name: &str) -> bool {
    matches!(name, "apiVersion" | "kind" | "metadata")
        && (node.pointer("/properties/apiVersion").is_some() || node.get("x-kubernetes-embedded-resource") == Some(&Value::Bool(true)))
}

fn single(info: &'static Info) -> Type<'static> {
    match info.field.kind {
        _ if info.atomic => Type::Leaf,
        Kind::Msg(id) => of_message(id),
        kind => Type::Scalar(kind),
    }
}

fn element_of(info: &'static Info) -> Type<'static> {
    match info.field.kind {
        Kind::Msg(id) => of_message(id),
        kind => Type::Scalar(kind),
    }
}

fn of_message(id: MessageId) -> Type<'static> {
    match Table::get().message(id).shape {
        Shape::Plain if Schema::get().atomic[id.index()] => Type::Leaf,
        Shape::Plain => Type::Message(id),
        Shape::RawJson => Type::Open,
        _ => Type::Leaf,
    }
}

fn crd_child<'s>(node: &'s Value, name: &str) -> Option<Type<'s>> {
    if let Some(child) = node.get("properties").and_then(|p| p.get(name)) {
        // A custom resource's own metadata is declared as a bare object; it has the built-in type.
        let bare = name == "metadata" && child.get("properties").is_none() && node.pointer("/properties/kind").is_some();
        return Some(if bare { object_meta() } else { Type::Crd(child) });
    }
    if is_crd_meta(node, name) {
        return Some(if name == "metadata" { object_meta() } else { Type::Scalar(Kind::Str) });
    }
    match node.get("additionalProperties") {
        Some(schema @ Value::Object(_)) => Some(Type::Crd(schema)),
        Some(Value::Bool(true)) => Some(Type::Open),
        _ if node.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(true)) => Some(Type::Open),
        _ => None,
    }
}

fn object_meta() -> Type<'static> {
    Table::get().named("k8s.io.apimachinery.pkg.apis.meta.v1", "ObjectMeta").map_or(Type::Open, Type::Message)
}

fn crd_form(node: &Value) -> Form {
    let text = |key: &str| node.get(key).and_then(Value::as_str).unwrap_or("");
    match text("type") {
        "object" if text("x-kubernetes-map-type") == "atomic" => Form::Leaf,
        "object" => Form::Object,
        "array" => match text("x-kubernetes-list-type") {
            "map" => {
                let keys = node.get("x-kubernetes-list-map-keys").unwrap_or(&NONE).as_array();
                Form::List(ListKind::Map(
                    keys.map(|k| k.iter().filter_map(|v| v.as_str().map(str::to_owned)).collect()).unwrap_or_default(),
                ))
            }
            "set" => Form::List(ListKind::Set),
            _ => Form::Leaf,
        },
        "" if node.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(true)) => Form::Dynamic,
        _ => Form::Leaf,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn walk<'s>(kind: Type<'s>, path: &[&str]) -> Type<'s> {
        path.iter().fold(kind, |t, name| if *name == "[]" { t.element() } else { t.child(name).unwrap_or_else(|| panic!("{name}")) })
    }

    #[test]
    fn lists_have_their_keys() {
        let deployment = of_kind(&Gvk::from_api_version("apps/v1", "Deployment"));
        let pod = walk(deployment, &["spec", "template", "spec"]);
        assert_eq!(pod.child("containers").unwrap().form(), Form::List(ListKind::Map(vec!["name".into()])));
        let ports = walk(pod, &["containers", "[]", "ports"]);
        assert_eq!(ports.form(), Form::List(ListKind::Map(vec!["containerPort".into(), "protocol".into()])));
        assert_eq!(ports.element().key_default("protocol"), Some("TCP".into()));
        assert_eq!(pod.child("tolerations").unwrap().form(), Form::Leaf);
        assert_eq!(pod.child("nodeSelector").unwrap().form(), Form::Leaf);
        assert_eq!(walk(deployment, &["spec", "selector"]).form(), Form::Leaf);
        assert_eq!(walk(deployment, &["metadata", "finalizers"]).form(), Form::List(ListKind::Set));
        assert_eq!(walk(deployment, &["metadata", "labels"]).form(), Form::Object);
        assert!(deployment.child("bogus").is_none());
        // Ephemeral containers inherit their fields by inlining.
        let env = walk(pod, &["ephemeralContainers", "[]", "env"]);
        assert_eq!(env.form(), Form::List(ListKind::Map(vec!["name".into()])));
    }

    /// Every row of the table about a message that we know must be about a field that we know.
    #[test]
    fn every_row_finds_its_field() {
        let table = Table::get();
        let mut used = 0;
        for row in include_str!("../../data/merge-keys.tsv").lines().skip(1).map(|l| l.split('\t').collect::<Vec<_>>()) {
            let Some((id, _)) = table.iter().find(|(_, m)| schema_name(m.package, m.name) == row[0]) else { continue };
            assert!(row[1] == "." || Schema::get().info(id, row[1]).is_some(), "{row:?}");
            used += 1;
        }
        assert!(used > 300, "{used}");
    }
}
