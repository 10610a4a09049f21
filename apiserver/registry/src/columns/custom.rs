//! Columns of custom resources: JSONPath expressions from the CustomResourceDefinition.

use serde_json::{Value, json};

use super::{IncludeObject, NAME, NAME_TEXT, envelope, partial_metadata};
use crate::columns::format::name;
use crate::{time, times};

/// One declared column.
#[derive(Clone, Debug)]
struct CustomColumn {
    name: String,
    type_: String,
    format: String,
    description: String,
    priority: i64,
    path: Option<Path>,
}

/// The columns of one version of a custom resource.
#[derive(Clone, Debug)]
pub struct CustomColumns(Vec<CustomColumn>);

impl CustomColumns {
    /// From `additionalPrinterColumns` of an element of a CustomResourceDefinition's `spec.versions`; the object's age if there are none.
    pub fn of_version(version: &Value) -> Self {
        let declared = version.get("additionalPrinterColumns").and_then(Value::as_array).filter(|c| !c.is_empty());
        let age = json!({"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp", "description": super::CREATED_TEXT});
        let columns = declared.map_or_else(|| vec![custom_column(&age)], |list| list.iter().map(custom_column).collect());
        Self(columns)
    }

    /// The column definitions of a Table, the name first.
    pub fn definitions(&self) -> Value {
        let first = json!({"name": NAME.name, "type": "string", "format": "name", "description": NAME_TEXT, "priority": 0});
        let rest = self
            .0
            .iter()
            .map(|c| json!({"name": c.name, "type": c.type_, "format": c.format, "description": c.description, "priority": c.priority}));
        std::iter::once(first).chain(rest).collect()
    }

    /// The cells of an object.
    pub fn cells(&self, object: &Value, now: i64) -> Vec<Value> {
        std::iter::once(name(object).into())
            .chain(self.0.iter().map(|c| match c.path.as_ref().and_then(|p| p.first(object)) {
                None => Value::Null,
                Some(value) => cell(value, &c.type_, now),
            }))
            .collect()
    }

    /// A Table of objects.
    pub fn table(&self, items: &[&Value], list_meta: Value, include: IncludeObject, now: i64) -> Value {
        let rows = items.iter().map(|o| self.row(o, include, now)).collect();
        envelope(list_meta, self.definitions(), rows)
    }

    /// A Table with one object, as it stands in a watch event.
    pub fn watch_table(&self, object: &Value, include: IncludeObject, now: i64, first: bool) -> Value {
        let definitions = if first { self.definitions() } else { Value::Null };
        envelope(super::list_meta_of(object), definitions, vec![self.row(object, include, now)])
    }

    fn row(&self, object: &Value, include: IncludeObject, now: i64) -> Value {
        let carried = match include {
            IncludeObject::None => Value::Null,
            IncludeObject::Metadata => partial_metadata(object),
            IncludeObject::Object => object.clone(),
        };
        json!({"cells": self.cells(object, now), "object": carried})
    }
}

fn custom_column(column: &Value) -> CustomColumn {
    let text = |field: &str| column.get(field).and_then(Value::as_str).unwrap_or("").to_owned();
    let path = text("jsonPath");
    let description = match text("description") {
        given if given.is_empty() => format!("Custom resource definition column (in JSONPath format): {path}"),
        given => given,
    };
    CustomColumn {
        name: text("name"),
        type_: text("type"),
        format: text("format"),
        description,
        priority: column.get("priority").and_then(Value::as_i64).unwrap_or(0),
        path: Path::parse(&path),
    }
}

/// A value as its declared type prints; null if it is of another type.
fn cell(value: &Value, type_: &str, now: i64) -> Value {
    match (type_, value) {
        ("integer", Value::Number(n)) => n.as_i64().or_else(|| n.as_f64().map(|f| f as i64)).map_or(Value::Null, Value::from),
        ("number", Value::Number(_)) | ("boolean", Value::Bool(_)) => value.clone(),
        ("string", Value::String(_)) => value.clone(),
        ("string", other) => other.to_string().into(),
        ("date", Value::String(text)) => match time::instant(text) {
            Some(_) => times::age(text, now).into(),
            None if text.is_empty() => "<unknown>".into(),
            None => "<invalid>".into(),
        },
        _ => Value::Null,
    }
}

/// The simple JSONPath that printer columns may use.
#[derive(Clone, Debug, PartialEq)]
struct Path(Vec<Step>);

#[derive(Clone, Debug, PartialEq)]
enum Step {
    Field(String),
    Index(i64),
    All,
    /// `[?(@.path==literal)]`, or without a literal: the path exists.
    Filter {
        path: Path,
        equals: bool,
        literal: Option<Value>,
    },
}

impl Path {
    /// `None` if it is beyond the subset.
    fn parse(text: &str) -> Option<Self> {
        let mut steps = Vec::new();
        let mut rest = text.trim();
        while !rest.is_empty() {
            let (step, next) = if let Some(inner) = rest.strip_prefix('[') {
                let end = closing(inner)?;
                (bracket(&inner[..end])?, &inner[end + 1..])
            } else {
                let inner = rest.strip_prefix('.').unwrap_or(rest);
                let (field, next) = field(inner);
                if field.is_empty() {
                    return None;
                }
                (if field == "*" { Step::All } else { Step::Field(field) }, next)
            };
            steps.push(step);
            rest = next;
        }
        (!steps.is_empty()).then_some(Self(steps))
    }

    /// The first value that it leads to.
    fn first<'a>(&self, value: &'a Value) -> Option<&'a Value> {
        walk(&self.0, value)
    }
}

fn walk<'a>(steps: &[Step], value: &'a Value) -> Option<&'a Value> {
    let Some((step, rest)) = steps.split_first() else { return (!value.is_null()).then_some(value) };
    match step {
        Step::Field(name) => walk(rest, value.get(name)?),
        Step::Index(i) => {
            let list = value.as_array()?;
            let index = if *i < 0 { list.len().checked_sub(i.unsigned_abs() as usize)? } else { *i as usize };
            walk(rest, list.get(index)?)
        }
        Step::All => children(value).find_map(|v| walk(rest, v)),
        Step::Filter { path, equals, literal } => children(value)
            .filter(|v| match (path.first(v), literal) {
                (found, None) => found.is_some(),
                (found, Some(literal)) => (found == Some(literal)) == *equals,
            })
            .find_map(|v| walk(rest, v)),
    }
}

fn children(value: &Value) -> Box<dyn Iterator<Item = &Value> + '_> {
    match value {
        Value::Array(list) => Box::new(list.iter()),
        Value::Object(map) => Box::new(map.values()),
        _ => Box::new(std::iter::empty()),
    }
}

/// A field name up to the next `.` or `[`; a backslash takes the character after it as it is.
fn field(text: &str) -> (String, &str) {
    let mut name = String::new();
    let mut chars = text.char_indices();
    while let Some((i, c)) = chars.next() {
        match c {
            '\\' => name.extend(chars.next().map(|(_, c)| c)),
            '.' | '[' => return (name, &text[i..]),
            _ => name.push(c),
        }
    }
    (name, "")
}

/// The position of the bracket that closes, skipping nested ones and quoted text.
fn closing(text: &str) -> Option<usize> {
    let (mut depth, mut quote) = (0, None);
    for (i, c) in text.char_indices() {
        match (quote, c) {
            (Some(q), _) if c == q => quote = None,
            (Some(_), _) => {}
            (None, '"' | '\'') => quote = Some(c),
            (None, '[') => depth += 1,
            (None, ']') if depth == 0 => return Some(i),
            (None, ']') => depth -= 1,
            _ => {}
        }
    }
    None
}

fn bracket(text: &str) -> Option<Step> {
    let text = text.trim();
    if text == "*" {
        return Some(Step::All);
    }
    if let Some(inner) = text.strip_prefix("?(").and_then(|t| t.strip_suffix(')')) {
        return filter(inner);
    }
    if let Some(name) = quoted(text) {
        return Some(Step::Field(name));
    }
    text.parse().ok().map(Step::Index)
}

fn quoted(text: &str) -> Option<String> {
    ['\'', '"'].into_iter().find_map(|q| text.strip_prefix(q)?.strip_suffix(q)).map(str::to_owned)
}

fn filter(text: &str) -> Option<Step> {
    let operator = ["==", "!="].into_iter().filter_map(|op| text.find(op).map(|at| (at, op))).min();
    let (path, equals, literal) = match operator {
        None => (text, true, None),
        Some((at, op)) => (&text[..at], op == "==", Some(literal(text[at + 2..].trim())?)),
    };
    let path = Path::parse(path.trim().strip_prefix('@')?)?;
    Some(Step::Filter { path, equals, literal })
}

fn literal(text: &str) -> Option<Value> {
    match quoted(text) {
        Some(text) => Some(text.into()),
        None => serde_json::from_str(text).ok().filter(|v: &Value| !v.is_object() && !v.is_array()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(path: &str, value: &Value) -> Value {
        Path::parse(path).and_then(|p| p.first(value).cloned()).unwrap_or(Value::Null)
    }

    #[test]
    fn paths_that_are_in_use() {
        let o = json!({
            "metadata": {"annotations": {"a.b/c": "x"}},
            "status": {"conditions": [{"type": "Synced", "status": "False"}, {"type": "Ready", "status": "True", "n": 3}], "list": [[1], [2]]},
        });
        for (path, want) in [
            (".status.conditions[?(@.type==\"Ready\")].status", json!("True")),
            (".status.conditions[?(@.type=='Ready')].status", json!("True")),
            (".status.conditions[?(@.type!=\"Ready\")].status", json!("False")),
            (".status.conditions[?(@.n==3)].type", json!("Ready")),
            (".status.conditions[?(@.n)].type", json!("Ready")),
            (".status.conditions[0].type", json!("Synced")),
            (".status.conditions[-1].type", json!("Ready")),
            (".status.conditions[*].status", json!("False")),
            (".status.list[1][0]", json!(2)),
            (".metadata.annotations.a\\.b/c", json!("x")),
            (".metadata.annotations['a.b/c']", json!("x")),
            ("metadata.annotations[\"a.b/c\"]", json!("x")),
            (".status.nope.x", Value::Null),
            (".status.conditions[?(@.type==\"Ready\"].status", Value::Null),
            ("", Value::Null),
            ("[", Value::Null),
        ] {
            assert_eq!(find(path, &o), want, "{path}");
        }
    }

    #[test]
    fn cells_are_of_their_declared_type() {
        let version = json!({"additionalPrinterColumns": [
            {"name": "Replicas", "type": "integer", "jsonPath": ".spec.replicas"},
            {"name": "Spec", "type": "string", "jsonPath": ".spec", "priority": 1},
            {"name": "Ok", "type": "boolean", "jsonPath": ".spec.replicas"},
            {"name": "Since", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
            {"name": "When", "type": "date", "jsonPath": ".spec.when"},
            {"name": "None", "type": "string", "jsonPath": ".spec.none"},
        ]});
        let columns = CustomColumns::of_version(&version);
        let o = json!({"metadata": {"name": "n", "creationTimestamp": "1970-01-01T00:00:00Z"}, "spec": {"replicas": 2.7, "when": "soon"}});
        let want = json!(["n", 2, "{\"replicas\":2.7,\"when\":\"soon\"}", null, "90s", "<invalid>", null]);
        assert_eq!(json!(columns.cells(&o, 90)), want);
        let table = columns.table(&[&o], json!({}), IncludeObject::None, 90);
        assert_eq!(table["columnDefinitions"][2]["priority"], 1);
        assert_eq!(table["columnDefinitions"][1]["description"], "Custom resource definition column (in JSONPath format): .spec.replicas");
        let plain = CustomColumns::of_version(&json!({}));
        assert_eq!(json!(plain.cells(&o, 90)), json!(["n", "90s"]));
    }
}
