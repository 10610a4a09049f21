//! What `kubectl get` prints: the columns of every kind and the Table that carries them.
//!
//! A kind has a row in `lookup`: its columns and a function from an object to its cells. A kind without one prints its name and when it was created.
//! Custom resources bring their columns along ([`custom`]). The source of the columns is Kubernetes' `pkg/printers/internalversion`.

mod core;
pub mod custom;
mod format;
mod hpa;
mod network;
mod pod;
mod policy;
mod storage;
mod workload;

use kontiki_base::object::Gvk;
use serde_json::{Map, Value, json};

/// One column of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column {
    /// Heading.
    pub name: &'static str,
    /// `string`, `integer`, `number`, `boolean` or `date`.
    pub type_: &'static str,
    /// `name` for the column with the object's name, otherwise empty.
    pub format: &'static str,
    /// What it says.
    pub description: &'static str,
    /// 0: always shown; 1: only with `-o wide`.
    pub priority: i64,
}

/// What a row carries of its object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IncludeObject {
    /// Nothing.
    None,
    /// `PartialObjectMetadata`.
    #[default]
    Metadata,
    /// All of it.
    Object,
}

impl IncludeObject {
    /// Reads the query parameter `includeObject`; `None` if it is unknown.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "" | "Metadata" => Some(Self::Metadata),
            "None" => Some(Self::None),
            "Object" => Some(Self::Object),
            _ => None,
        }
    }
}

/// The cells of an object at a moment (seconds since the epoch).
type Cells = fn(&Value, i64) -> Vec<Value>;

/// How a kind prints.
struct Printer {
    columns: &'static [Column],
    cells: Cells,
}

const fn column(name: &'static str, type_: &'static str, priority: i64) -> Column {
    Column { name, type_, format: "", description: "", priority }
}

const fn text(name: &'static str) -> Column {
    column(name, "string", 0)
}

const fn int(name: &'static str) -> Column {
    column(name, "integer", 0)
}

const fn flag(name: &'static str) -> Column {
    column(name, "boolean", 0)
}

const fn wide(name: &'static str) -> Column {
    column(name, "string", 1)
}

const NAME_TEXT: &str = "Name must be unique within a namespace. Is required when creating resources, although some resources may allow a client to \
     request the generation of an appropriate name automatically.";
const CREATED_TEXT: &str = "CreationTimestamp is a timestamp representing the server time when this object was created. It is not guaranteed to be set \
     in happens-before order across separate operations. Clients may not set this value. It is represented in RFC3339 form and is in UTC.";

const NAME: Column = Column { name: "Name", type_: "string", format: "name", description: NAME_TEXT, priority: 0 };
const AGE: Column = Column { name: "Age", type_: "string", format: "", description: CREATED_TEXT, priority: 0 };
const CREATED: Column = Column { name: "Created At", type_: "date", format: "", description: CREATED_TEXT, priority: 0 };

/// A row of cells from values of any type that JSON has.
macro_rules! row {
    ($($cell:expr),* $(,)?) => { vec![$(serde_json::Value::from($cell)),*] };
}
use row;

/// Name and creation time: kinds without a printer of their own.
const PLAIN: Printer = Printer { columns: &[NAME, CREATED], cells: |o, _| row![format::name(o), format::created(o)] };
/// Name and age.
const NAME_AGE: Printer = Printer { columns: &[NAME, AGE], cells: |o, now| row![format::name(o), format::age(o, now)] };

/// The printer of a kind. Versions of a kind print alike.
fn lookup(gvk: &Gvk) -> Printer {
    let group = gvk.group.split('.').next().unwrap_or_default();
    let found = core::printer(group, &gvk.kind)
        .or_else(|| workload::printer(group, &gvk.kind))
        .or_else(|| network::printer(group, &gvk.kind))
        .or_else(|| storage::printer(group, &gvk.kind))
        .or_else(|| policy::printer(group, &gvk.kind));
    found.unwrap_or(PLAIN)
}

/// The columns of a kind.
pub fn columns(gvk: &Gvk) -> &'static [Column] {
    lookup(gvk).columns
}

/// The cells of one object, one per column. `now` is seconds since the Unix epoch.
pub fn cells(gvk: &Gvk, object: &Value, now: i64) -> Vec<Value> {
    (lookup(gvk).cells)(object, now)
}

/// A `meta.k8s.io/v1` Table of objects of one kind. `now` is seconds since the Unix epoch.
pub fn table(gvk: &Gvk, items: &[&Value], list_meta: Value, include: IncludeObject, now: i64) -> Value {
    let printer = lookup(gvk);
    let rows = items.iter().map(|o| table_row(gvk, o, (printer.cells)(o, now), include)).collect();
    envelope(list_meta, definitions(printer.columns), rows)
}

/// A Table with one object, as it stands in a watch event: only the first event of a watch says what the columns are.
pub fn watch_table(gvk: &Gvk, object: &Value, include: IncludeObject, now: i64, first: bool) -> Value {
    let printer = lookup(gvk);
    let definitions = if first { definitions(printer.columns) } else { Value::Null };
    envelope(list_meta_of(object), definitions, vec![table_row(gvk, object, (printer.cells)(object, now), include)])
}

/// The list metadata of a Table that holds one object: its resource version.
pub fn list_meta_of(object: &Value) -> Value {
    match &object["metadata"]["resourceVersion"] {
        Value::Null => json!({}),
        version => json!({ "resourceVersion": version }),
    }
}

/// Type and metadata of an object, and nothing else of it.
pub fn partial_metadata(object: &Value) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object.get("metadata").cloned().unwrap_or_else(|| json!({}))})
}

/// The list form of [`partial_metadata`].
pub fn partial_metadata_list(items: &[&Value], list_meta: Value) -> Value {
    let items: Vec<_> = items.iter().map(|o| partial_metadata(o)).collect();
    json!({"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": list_meta, "items": items})
}

fn definitions(columns: &[Column]) -> Value {
    columns
        .iter()
        .map(|c| json!({"name": c.name, "type": c.type_, "format": c.format, "description": c.description, "priority": c.priority}))
        .collect()
}

fn envelope(list_meta: Value, definitions: Value, rows: Vec<Value>) -> Value {
    json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": list_meta, "columnDefinitions": definitions, "rows": rows})
}

fn table_row(gvk: &Gvk, object: &Value, cells: Vec<Value>, include: IncludeObject) -> Value {
    let mut row = Map::new();
    row.insert("cells".into(), Value::Array(cells));
    if let Some(condition) = (gvk.group.is_empty() && gvk.kind == "Pod").then(|| pod::row_condition(object)).flatten() {
        row.insert("conditions".into(), json!([condition]));
    }
    let carried = match include {
        IncludeObject::None => Value::Null,
        IncludeObject::Metadata => partial_metadata(object),
        IncludeObject::Object => whole(gvk, object),
    };
    row.insert("object".into(), carried);
    Value::Object(row)
}

/// List items are stored without type; a row's object must name it.
fn whole(gvk: &Gvk, object: &Value) -> Value {
    let mut object = object.clone();
    if let Value::Object(fields) = &mut object {
        fields.entry("kind").or_insert_with(|| gvk.kind.as_str().into());
        fields.entry("apiVersion").or_insert_with(|| gvk.api_version().into());
    }
    object
}

#[cfg(test)]
mod tests {
    use super::*;

    /// When the golden tables were made.
    const NOW: &str = "2026-11-23T17:25:00Z";

    #[test]
    fn golden_tables() {
        let now = crate::time::instant(NOW).unwrap().0;
        let mut seen = 0;
        for line in include_str!("../tests/golden/kinds.jsonl").lines() {
            let case: Value = serde_json::from_str(line).unwrap();
            let Some(want_columns) = case.get("columns") else { continue };
            seen += 1;
            let object = &case["defaulted"];
            let gvk = Gvk::from_api_version(object["apiVersion"].as_str().unwrap(), object["kind"].as_str().unwrap());
            let got: Vec<_> = columns(&gvk).iter().map(|c| format!("{}|{}|{}|{}", c.name, c.type_, c.format, c.priority)).collect();
            assert_eq!(json!(got), *want_columns, "{gvk}");
            let table = table(&gvk, &[object], json!({}), IncludeObject::None, now);
            assert_eq!(table["rows"][0]["cells"], case["rows"][0]["cells"], "{object}");
            assert_eq!(table["rows"][0].get("conditions").unwrap_or(&Value::Null), &case["rows"][0]["conditions"], "{object}");
        }
        assert_eq!(seen, 78);
    }

    /// Printers must live with objects that are not what they should be, and print a cell per column.
    #[test]
    fn odd_objects_print_a_full_row() {
        let kinds: Vec<Gvk> = include_str!("../data/resources.tsv")
            .lines()
            .skip(1)
            .map(|l| l.split('\t').collect::<Vec<_>>())
            .map(|r| Gvk { group: r[0].into(), version: r[1].into(), kind: r[2].into() })
            .collect();
        assert!(kinds.len() > 60);
        for gvk in &kinds {
            for object in [
                json!({}),
                json!({"spec": 1, "status": []}),
                json!({"spec": {"rules": {}, "ports": 3}, "status": {"conditions": [1, null]}}),
                json!(null),
            ] {
                let extra = usize::from(gvk.kind == "IPAddress");
                assert_eq!(cells(gvk, &object, 0).len(), columns(gvk).len() + extra, "{gvk}");
            }
        }
    }

    #[test]
    fn rows_carry_what_was_asked_for() {
        let gvk = Gvk::from_api_version("v1", "ConfigMap");
        let object = json!({"metadata": {"name": "a", "resourceVersion": "7"}, "data": {"k": "v"}});
        let t = |include| table(&gvk, &[&object], list_meta_of(&object), include, 0)["rows"][0]["object"].clone();
        assert_eq!(t(IncludeObject::None), Value::Null);
        assert_eq!(t(IncludeObject::Metadata)["kind"], "PartialObjectMetadata");
        assert_eq!(t(IncludeObject::Object)["kind"], "ConfigMap");
        assert_eq!(t(IncludeObject::Object)["data"]["k"], "v");
        assert_eq!(watch_table(&gvk, &object, IncludeObject::None, 0, false)["columnDefinitions"], Value::Null);
        assert_eq!(watch_table(&gvk, &object, IncludeObject::None, 0, true)["columnDefinitions"][0]["format"], "name");
        assert_eq!(watch_table(&gvk, &object, IncludeObject::None, 0, true)["metadata"]["resourceVersion"], "7");
        assert_eq!(IncludeObject::parse("x"), None);
    }
}
