//! What `kubectl get` prints: the columns of every kind and the Table that carries them.

use kontiki_base::object::Gvk;
use serde_json::{Value, json};

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

/// The columns of a kind.
pub fn columns(gvk: &Gvk) -> &'static [Column] {
    let _ = gvk;
    &[Column { name: "Name", type_: "string", format: "name", description: "", priority: 0 }]
}

/// The cells of one object, one per column.
pub fn cells(gvk: &Gvk, object: &Value, now: i64) -> Vec<Value> {
    let _ = (gvk, now);
    vec![object["metadata"]["name"].clone()]
}

/// A `meta.k8s.io/v1` Table of objects of one kind.
pub fn table(gvk: &Gvk, items: &[&Value], list_meta: Value, include: IncludeObject, now: i64) -> Value {
    let _ = include;
    json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": list_meta, "columnDefinitions": [],
        "rows": items.iter().map(|o| json!({"cells": cells(gvk, o, now), "object": null})).collect::<Vec<_>>()})
}
