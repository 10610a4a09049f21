//! Label and field selectors: grammar, matching, and the texts of apimachinery `pkg/labels` and `pkg/fields`.

mod lex;

use std::collections::BTreeSet;
use std::fmt;

use serde_json::Value;

use crate::row::Row;
use crate::rules::SelectableField;
use crate::status::Status;
use crate::val::{list_at, map_at, str_at};

/// How a label must relate to the values of a requirement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Op {
    /// It has one of them.
    In,
    /// It has none of them, or is not there.
    NotIn,
    /// It has this one.
    Equals,
    /// As `Equals`, written `==`.
    DoubleEquals,
    /// It does not have this one, or is not there.
    NotEquals,
    /// It is there.
    Exists,
    /// It is not there.
    DoesNotExist,
    /// It is a number above this one.
    Greater,
    /// It is a number below this one.
    Less,
}

/// One condition on one label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    /// Label key.
    pub key: String,
    /// Relation.
    pub op: Op,
    /// Values; empty for existence.
    pub values: BTreeSet<String>,
}

impl Requirement {
    /// Whether a set of labels satisfies the condition. `get` looks a label up.
    pub fn matches<'a>(&self, get: impl Fn(&str) -> Option<&'a str>) -> bool {
        let label = get(&self.key);
        let number = |s: &str| s.parse::<i64>().ok();
        let bound = || self.values.first().and_then(|v| number(v));
        match self.op {
            Op::In | Op::Equals | Op::DoubleEquals => label.is_some_and(|l| self.values.contains(l)),
            Op::NotIn | Op::NotEquals => label.is_none_or(|l| !self.values.contains(l)),
            Op::Exists => label.is_some(),
            Op::DoesNotExist => label.is_none(),
            Op::Greater => label.and_then(number).zip(bound()).is_some_and(|(l, b)| l > b),
            Op::Less => label.and_then(number).zip(bound()).is_some_and(|(l, b)| l < b),
        }
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let values = || self.values.iter().map(String::as_str).collect::<Vec<_>>().join(",");
        let key = &self.key;
        match self.op {
            Op::Exists => write!(f, "{key}"),
            Op::DoesNotExist => write!(f, "!{key}"),
            Op::In => write!(f, "{key} in ({})", values()),
            Op::NotIn => write!(f, "{key} notin ({})", values()),
            Op::Equals => write!(f, "{key}={}", values()),
            Op::DoubleEquals => write!(f, "{key}=={}", values()),
            Op::NotEquals => write!(f, "{key}!={}", values()),
            Op::Greater => write!(f, "{key}>{}", values()),
            Op::Less => write!(f, "{key}<{}", values()),
        }
    }
}

/// A label selector: conditions that must all hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector {
    requirements: Vec<Requirement>,
    nothing: bool,
}

impl LabelSelector {
    /// Selects no object at all.
    pub fn nothing() -> Self {
        Self { requirements: Vec::new(), nothing: true }
    }

    /// Reads `a=b,c in (d,e),!f`. The empty text selects everything. An error is a 400.
    pub fn parse(text: &str) -> Result<Self, Status> {
        let mut requirements = lex::parse(text).map_err(Status::bad_request)?;
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(Self { requirements, nothing: false })
    }

    /// Reads a `LabelSelector` object. `Null` selects nothing, `{}` everything.
    pub fn from_object(v: &Value) -> Result<Self, Status> {
        if v.is_null() {
            return Ok(Self::nothing());
        }
        let mut requirements = Vec::new();
        for (key, value) in map_at(v, &["matchLabels"]).into_iter().flatten() {
            let values = BTreeSet::from([value.as_str().unwrap_or("").to_string()]);
            requirements.push(lex::requirement(key, Op::In, values).map_err(Status::bad_request)?);
        }
        for e in list_at(v, &["matchExpressions"]) {
            let values: BTreeSet<String> = list_at(e, &["values"]).iter().filter_map(Value::as_str).map(Into::into).collect();
            let op = match str_at(e, &["operator"]) {
                "In" => Op::In,
                "NotIn" => Op::NotIn,
                "Exists" => Op::Exists,
                "DoesNotExist" => Op::DoesNotExist,
                other => return Err(Status::bad_request(format!("{other:?} is not a valid label selector operator"))),
            };
            requirements.push(lex::requirement(str_at(e, &["key"]), op, values).map_err(Status::bad_request)?);
        }
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(Self { requirements, nothing: false })
    }

    /// From plain pairs, as a Service or a ReplicationController selects. No pairs select nothing.
    pub fn from_map(v: &Value) -> Self {
        let pairs = v.as_object().into_iter().flatten();
        let one = |(k, v): (&String, &Value)| Requirement {
            key: k.clone(),
            op: Op::Equals,
            values: BTreeSet::from([v.as_str().unwrap_or("").to_string()]),
        };
        let requirements: Vec<Requirement> = pairs.map(one).collect();
        Self { nothing: requirements.is_empty(), requirements }
    }

    /// Whether an object's `metadata.labels` match.
    pub fn matches(&self, obj: &Value) -> bool {
        self.matches_labels(&obj["metadata"]["labels"])
    }

    /// Whether a map of labels matches; anything else is no labels.
    pub fn matches_labels(&self, labels: &Value) -> bool {
        !self.nothing && self.requirements.iter().all(|r| r.matches(|k| labels.get(k).and_then(Value::as_str)))
    }

    /// Whether it selects everything.
    pub fn is_everything(&self) -> bool {
        !self.nothing && self.requirements.is_empty()
    }
}

impl fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let texts: Vec<String> = self.requirements.iter().map(ToString::to_string).collect();
        f.write_str(&texts.join(","))
    }
}

/// One condition on one field.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Term {
    field: String,
    value: String,
    equal: bool,
}

/// A field selector: conditions that must all hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector(Vec<Term>);

impl FieldSelector {
    /// Reads `a=b,c!=d` and checks that the kind has such fields. The empty text selects everything. An error is a 400.
    pub fn parse(row: &Row, text: &str) -> Result<Self, Status> {
        let mut terms = parse_terms(text).map_err(Status::bad_request)?;
        for t in &mut terms {
            if row.group.is_empty() && row.kind == "Pod" && t.field == "spec.host" {
                t.field = "spec.nodeName".into();
            }
            check_field(row, &t.field)?;
        }
        Ok(Self(terms))
    }

    /// Whether an object matches. `row` must be the kind that the selector was read for.
    pub fn matches(&self, row: &Row, obj: &Value) -> bool {
        self.0.iter().all(|t| (field_of(row, obj, &t.field) == t.value) == t.equal)
    }

    /// The name that it pins, if it pins one.
    pub fn pinned_name(&self) -> Option<&str> {
        self.0.iter().find(|t| t.equal && t.field == "metadata.name").map(|t| t.value.as_str())
    }

    /// The value that it pins a field to, if it does.
    pub fn pinned(&self, field: &str) -> Option<&str> {
        self.0.iter().find(|t| t.equal && t.field == field).map(|t| t.value.as_str())
    }

    /// Whether it selects everything.
    pub fn is_everything(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for FieldSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let escape = |v: &str| v.replace('\\', "\\\\").replace(',', "\\,").replace('=', "\\=");
        let text = |t: &Term| format!("{}{}{}", t.field, if t.equal { "=" } else { "!=" }, escape(&t.value));
        let texts: Vec<String> = self.0.iter().map(text).collect();
        f.write_str(&texts.join(","))
    }
}

fn check_field(row: &Row, field: &str) -> Result<(), Status> {
    let own: &[SelectableField] = row.rules.fields;
    let custom = row.selectable.as_ref();
    let known = match field {
        "metadata.name" => true,
        // Kinds with a list of their own know no namespace where they have none.
        "metadata.namespace" => row.namespaced || (own.is_empty() && custom.is_none()),
        _ => own.iter().any(|(f, _)| *f == field) || custom.is_some_and(|c| c.iter().any(|p| p.trim_start_matches('.') == field)),
    };
    if known {
        Ok(())
    } else if own.is_empty() && custom.is_none() {
        let message = format!("\"{field}\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\"");
        Err(Status::bad_request(message))
    } else {
        Err(Status::bad_request(format!("field label not supported: {field}")))
    }
}

fn field_of(row: &Row, obj: &Value, field: &str) -> String {
    match field {
        "metadata.name" => str_at(obj, &["metadata", "name"]).into(),
        "metadata.namespace" => str_at(obj, &["metadata", "namespace"]).into(),
        _ => match row.rules.fields.iter().find(|(f, _)| *f == field) {
            Some((_, read)) => read(obj),
            None => {
                let path: Vec<&str> = field.split('.').collect();
                match crate::val::at(obj, &path) {
                    Value::String(s) => s.clone(),
                    v @ (Value::Bool(_) | Value::Number(_)) => v.to_string(),
                    _ => String::new(),
                }
            }
        },
    }
}

fn parse_terms(text: &str) -> Result<Vec<Term>, String> {
    let mut terms = Vec::new();
    for part in split_terms(text).into_iter().filter(|p| !p.is_empty()) {
        let Some((field, op, value)) = split_term(part) else {
            return Err(format!("invalid selector: '{text}'; can't understand '{part}'"));
        };
        terms.push(Term { field: field.into(), value: unescape(value)?, equal: op != "!=" });
    }
    terms.sort_by(|a, b| a.field.cmp(&b.field));
    Ok(terms)
}

/// Splits at commas that no backslash precedes.
fn split_terms(text: &str) -> Vec<&str> {
    let (mut parts, mut start, mut escaped) = (Vec::new(), 0, false);
    for (i, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ',' => {
                parts.push(&text[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

fn split_term(term: &str) -> Option<(&str, &str, &str)> {
    term.char_indices().find_map(|(i, _)| {
        let op = ["!=", "==", "="].into_iter().find(|op| term[i..].starts_with(op))?;
        Some((&term[..i], op, &term[i + op.len()..]))
    })
}

fn unescape(value: &str) -> Result<String, String> {
    let mut out = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(c @ ('\\' | ',' | '=')) => out.push(c),
                Some(c) => return Err(format!("invalid field selector: invalid escape sequence: \\{c}")),
                None => return Err("invalid field selector: invalid escape sequence: \\".into()),
            },
            ',' | '=' => return Err(format!("invalid field selector: unescaped character in value: {}", c as u32)),
            c => out.push(c),
        }
    }
    Ok(out)
}
