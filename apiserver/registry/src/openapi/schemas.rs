//! The schemas of a document: those of its kinds and all that they refer to, with the extensions that clients read.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;

use serde_json::{Map, Value, json};

use super::{reference, schema_name};
use crate::row::Row;
use crate::schema;

/// Per field: list type, map keys, merge key and strategy; per type: map type and unions.
const MERGE_KEYS: &str = include_str!("../../data/merge-keys.tsv");
const QUANTITY: &str = "io.k8s.apimachinery.pkg.api.resource.Quantity";
const INT_OR_STRING: &str = "io.k8s.apimachinery.pkg.util.intstr.IntOrString";
const LIST_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta";
const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";
const DELETE_OPTIONS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions";
const STATUS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Status";

type Extensions = BTreeMap<(&'static str, &'static str), Vec<(&'static str, Value)>>;

/// The extensions of a field, by schema and field; the field `.` is the type itself.
fn extensions() -> &'static Extensions {
    static EXTENSIONS: OnceLock<Extensions> = OnceLock::new();
    EXTENSIONS.get_or_init(|| {
        let mut all = Extensions::new();
        for line in MERGE_KEYS.lines().skip(1) {
            let cells: Vec<&'static str> = line.split('\t').collect();
            let cell = |i: usize| cells.get(i).copied().unwrap_or("");
            let mut out = Vec::new();
            for (i, name) in [
                (3, "x-kubernetes-list-type"),
                (5, "x-kubernetes-patch-merge-key"),
                (6, "x-kubernetes-patch-strategy"),
                (7, "x-kubernetes-map-type"),
            ] {
                if !cell(i).is_empty() {
                    out.push((name, json!(cell(i))));
                }
            }
            if !cell(4).is_empty() {
                out.push(("x-kubernetes-list-map-keys", json!(cell(4).split(',').collect::<Vec<_>>())));
            }
            if let Some(unions) = cell(8).strip_prefix("unions=").and_then(|u| serde_json::from_str(u).ok()) {
                out.push(("x-kubernetes-unions", unions));
            }
            all.insert((cell(0), cell(1)), out);
        }
        all
    })
}

/// The schemas for a document of these rows.
pub(super) fn of(rows: &[&Row]) -> Value {
    let mut out: Map<String, Value> = Map::new();
    let mut todo: Vec<String> = [DELETE_OPTIONS, STATUS, LIST_META, OBJECT_META].map(String::from).to_vec();
    for row in rows {
        let name = schema_name(row);
        if row.schema.is_empty() {
            out.insert(name.clone(), custom(row));
        } else {
            todo.push(name.clone());
        }
        out.insert(format!("{name}List"), list(row, &name));
        for sub in &row.subresources {
            todo.extend(schema::schema_name(&sub.gvk).map(String::from));
        }
    }
    let mut seen: BTreeSet<String> = BTreeSet::new();
    while let Some(name) = todo.pop() {
        if !seen.insert(name.clone()) {
            continue;
        }
        if let Some(raw) = schema::raw(&name) {
            todo.extend(schema::references(raw).into_iter().map(String::from));
            out.insert(name.clone(), finish(&name, raw));
        }
    }
    for row in rows {
        tag(&mut out, &schema_name(row), &row.group, &row.version, &row.kind);
        for sub in &row.subresources {
            if let Some(name) = schema::schema_name(&sub.gvk) {
                tag(&mut out, name, &sub.gvk.group, &sub.gvk.version, &sub.gvk.kind);
            }
        }
    }
    Value::Object(out)
}

fn tag(out: &mut Map<String, Value>, name: &str, group: &str, version: &str, kind: &str) {
    if let Some(Value::Object(m)) = out.get_mut(name) {
        m.insert("x-kubernetes-group-version-kind".into(), json!([{"group": group, "version": version, "kind": kind}]));
    }
}

/// A custom resource whose schema is not known here: any fields.
fn custom(row: &Row) -> Value {
    json!({
        "type": "object",
        "description": row.kind,
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"allOf": [reference(OBJECT_META)]},
        },
        "x-kubernetes-preserve-unknown-fields": true,
    })
}

fn list(row: &Row, of: &str) -> Value {
    json!({
        "description": format!("{} is a list of {}.", row.list_kind, row.kind),
        "type": "object",
        "required": ["items"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"allOf": [reference(LIST_META)]},
            "items": {"type": "array", "items": {"allOf": [reference(of)]}},
        },
        "x-kubernetes-group-version-kind": [{"group": row.group, "version": row.version, "kind": row.list_kind}],
    })
}

/// A schema with its extensions, and with references in the one form that OpenAPI 3.0 allows beside other keys.
fn finish(name: &str, raw: &Value) -> Value {
    let mut v = raw.clone();
    match name {
        QUANTITY => {
            v["oneOf"] = json!([{"type": "string"}, {"type": "number"}]);
            drop_key(&mut v, "x-kubernetes-int-or-string");
        }
        INT_OR_STRING => {
            v["format"] = json!("int-or-string");
            v["oneOf"] = json!([{"type": "integer"}, {"type": "string"}]);
            drop_key(&mut v, "x-kubernetes-int-or-string");
        }
        _ => {}
    }
    wrap_references(&mut v);
    for (key, value) in extensions().get(&(name, ".")).into_iter().flatten() {
        v[*key] = value.clone();
    }
    let Some(properties) = v.get_mut("properties").and_then(Value::as_object_mut) else { return v };
    for (field, property) in properties.iter_mut() {
        for (key, value) in extensions().get(&(name, field.as_str())).into_iter().flatten() {
            property[*key] = value.clone();
        }
        // The one key of an associative list that may be left out.
        if field == "protocol" && (name.ends_with(".v1.ContainerPort") || name.ends_with(".v1.ServicePort")) {
            property["default"] = json!("TCP");
        }
    }
    v
}

fn drop_key(v: &mut Value, key: &str) {
    if let Some(m) = v.as_object_mut() {
        m.remove(key);
    }
}

fn wrap_references(v: &mut Value) {
    match v {
        Value::Object(m) => {
            // A schema for schemas has a property of that name, which is no reference.
            if m.len() > 1
                && m.get("$ref").is_some_and(Value::is_string)
                && let Some(r) = m.remove("$ref")
            {
                m.insert("allOf".into(), json!([{"$ref": r}]));
                return;
            }
            m.values_mut().for_each(wrap_references);
        }
        Value::Array(a) => a.iter_mut().for_each(wrap_references),
        _ => {}
    }
}
