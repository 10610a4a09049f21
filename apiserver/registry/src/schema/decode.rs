//! From any JSON to an object of a kind: types are checked, unknown fields leave, nulls are "not set", times and quantities get
//! their canonical form, and what Go's encoder leaves out is left out, so that equal objects are equal trees. The texts are those of
//! kube-apiserver's decoder.

use kontiki_base::object::Gvk;
use serde_json::{Map, Value};

use super::{Node, SchemaNode, node, schema_of};
use crate::quantity::Quantity;
use crate::row::Row;
use crate::status::Status;
use crate::time;
use crate::val::{go_quote, str_at};

/// What becomes of unknown and duplicate fields.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FieldValidation {
    /// They are dropped.
    Ignore,
    /// They are dropped, and each is a warning.
    #[default]
    Warn,
    /// They fail the request.
    Strict,
}

impl FieldValidation {
    /// From the query parameter; empty is the default. `options` names the kind of the error: `CreateOptions`.
    pub fn parse(text: &str, options: &str) -> Result<Self, Status> {
        match text {
            "" | "Warn" => Ok(Self::Warn),
            "Ignore" => Ok(Self::Ignore),
            "Strict" => Ok(Self::Strict),
            other => {
                let mut e = crate::field::Errors::default();
                e.unsupported(&crate::field::Path::new("fieldValidation"), other, &["", "Ignore", "Warn", "Strict"]);
                Err(Status::invalid_kind("meta.k8s.io", options, "", &e))
            }
        }
    }
}

/// An object as it is to be handled, and what is to be said about it in `Warning` headers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Decoded {
    /// The object, pruned, with `apiVersion` and `kind`.
    pub object: Value,
    /// Texts of warnings.
    pub warnings: Vec<String>,
}

/// Decodes the body of a POST or PUT for a kind. `duplicates` are the paths that [`super::json::parse`] reported.
pub fn decode(row: &Row, mut v: Value, duplicates: &[String], mode: FieldValidation) -> Result<Decoded, Status> {
    check_kind(&row.gvk(), &mut v)?;
    let cannot = |why: &str| {
        Status::bad_request(format!("{} in version {} cannot be handled as a {}: {why}", row.kind, go_quote(&row.version), row.kind))
    };
    let unknown = conform(&row.gvk(), &mut v).map_err(|e| cannot(&e))?;
    let mut problems: Vec<String> = duplicates.iter().map(|d| format!("duplicate field {}", go_quote(d))).collect();
    problems.extend(unknown.iter().map(|u| format!("unknown field {}", go_quote(u))));
    match mode {
        FieldValidation::Strict if !problems.is_empty() => Err(cannot(&format!("strict decoding error: {}", problems.join(", ")))),
        FieldValidation::Warn => Ok(Decoded { object: v, warnings: problems }),
        _ => Ok(Decoded { object: v, warnings: Vec::new() }),
    }
}

/// Decodes the result of a JSON, merge or strategic patch. Errors are a 422 on the field `patch`.
pub fn decode_patched(row: &Row, mut v: Value, mode: FieldValidation) -> Result<Decoded, Status> {
    let refuse = |shown: String, why: String| {
        let mut e = crate::field::Errors::default();
        e.invalid(&crate::field::Path::new("patch"), shown, why);
        Status::invalid_kind("", "", "", &e)
    };
    let text = v.to_string();
    let unknown = conform(&row.gvk(), &mut v).map_err(|e| refuse(text.clone(), e))?;
    let problems: Vec<String> = unknown.iter().map(|u| format!("unknown field {}", go_quote(u))).collect();
    match mode {
        FieldValidation::Strict if !problems.is_empty() => Err(refuse(text, format!("strict decoding error: {}", problems.join(", ")))),
        FieldValidation::Warn => Ok(Decoded { object: v, warnings: problems }),
        _ => Ok(Decoded { object: v, warnings: Vec::new() }),
    }
}

/// Fills in `apiVersion` and `kind` where they are missing, and refuses an object of another kind.
pub fn check_kind(want: &Gvk, v: &mut Value) -> Result<(), Status> {
    let Some(m) = v.as_object_mut() else {
        return Err(Status::bad_request(format!(
            "the object provided is unrecognized (must be of type {}): couldn't get version/kind; json parse error: not an object",
            want.kind
        )));
    };
    for key in ["apiVersion", "kind"] {
        if let Some(v) = m.get(key).filter(|v| !v.is_string() && !v.is_null()) {
            let at = Place { shown: String::new(), go: key.into(), owner: "" };
            let why = mismatch(v, &at, "string");
            let kind = &want.kind;
            return Err(Status::bad_request(format!(
                "the object provided is unrecognized (must be of type {kind}): couldn't get version/kind; json parse error: {why}"
            )));
        }
    }
    let text = |m: &Map<String, Value>, k: &str| m.get(k).and_then(Value::as_str).unwrap_or("").to_string();
    let (api, kind) = (text(m, "apiVersion"), text(m, "kind"));
    let want_api = want.api_version();
    let given = Gvk::from_api_version(if api.is_empty() { &want_api } else { &api }, if kind.is_empty() { &want.kind } else { &kind });
    if given == *want {
        m.insert("apiVersion".into(), want.api_version().into());
        m.insert("kind".into(), want.kind.clone().into());
        return Ok(());
    }
    Err(Status::bad_request(if given.kind == want.kind {
        format!("the API version in the data ({api}) does not match the expected API version ({})", want.api_version())
    } else if schema_of(&given).is_some() {
        let internal = |g: &str| if g.is_empty() { "core".to_string() } else { g.split('.').next().unwrap_or(g).to_string() };
        format!(
            "{} in version {} cannot be handled as a {}: converting ({}.{}) to ({}.{}): unknown conversion",
            given.kind,
            go_quote(&given.version),
            want.kind,
            given.version,
            given.kind,
            internal(&want.group),
            want.kind
        )
    } else {
        format!("no kind {} is registered for version {} in scheme \"kontiki\"", go_quote(&given.kind), go_quote(&given.api_version()))
    }))
}

/// Makes a value conform to the schema of a kind, and returns the paths of unknown fields, which are gone. A kind without a schema
/// keeps what it has. An error is the decoder's text.
pub fn conform(gvk: &Gvk, v: &mut Value) -> Result<Vec<String>, String> {
    let mut walk = Walk { unknown: Vec::new() };
    if let Some(schema) = schema_of(gvk) {
        walk.fields(schema, v, &Place { shown: String::new(), go: String::new(), owner: schema.short_name() })?;
    }
    Ok(walk.unknown)
}

/// The paths of fields that the kind does not have.
/// A type that does not fit is not this function's business: see [`conform`].
pub fn unknown_fields(row: &Row, v: &Value) -> Vec<String> {
    conform(&row.gvk(), &mut v.clone()).unwrap_or_default()
}

struct Walk {
    unknown: Vec<String>,
}

/// Where the walk is.
struct Place<'a> {
    /// With indices: how unknown fields are named.
    shown: String,
    /// Without indices: how Go names a field that does not fit.
    go: String,
    /// The type that has the field.
    owner: &'a str,
}

impl Place<'_> {
    fn child<'a>(&self, name: &str, owner: &'a str) -> Place<'a> {
        let join = |p: &str| if p.is_empty() { name.to_string() } else { format!("{p}.{name}") };
        Place { shown: join(&self.shown), go: join(&self.go), owner }
    }
}

impl Walk {
    fn fields(&mut self, schema: &SchemaNode, v: &mut Value, at: &Place<'_>) -> Result<(), String> {
        let m = match v {
            Value::Object(m) => m,
            other => return Err(mismatch(other, at, &go_type(&Node::Struct(schema.name.clone())))),
        };
        let mut gone = Vec::new();
        for (key, value) in m.iter_mut() {
            match schema.fields.get(key) {
                None => {
                    self.unknown.push(at.child(key, at.owner).shown);
                    gone.push(key.clone());
                }
                Some(_) if value.is_null() => gone.push(key.clone()),
                Some(field) => {
                    self.value(field, value, &at.child(key, schema.short_name()))?;
                    if is_zero(value) && schema.omitted.contains(key) {
                        gone.push(key.clone());
                    }
                }
            }
        }
        for key in gone {
            m.remove(&key);
        }
        Ok(())
    }

    fn value(&mut self, node_: &Node, v: &mut Value, at: &Place<'_>) -> Result<(), String> {
        match (node_, &mut *v) {
            (Node::Any, _) => Ok(()),
            (Node::Struct(name), _) => match node(name) {
                Some(schema) => self.fields(schema, v, at),
                None => Ok(()),
            },
            (Node::Map(each), Value::Object(m)) => {
                for (key, value) in m.iter_mut() {
                    fill_null(each, value);
                    // Go names the map, not the key, when a value of it does not fit.
                    let shown = at.child(key, at.owner).shown;
                    self.value(each, value, &Place { shown, go: at.go.clone(), owner: at.owner })?;
                }
                Ok(())
            }
            (Node::List(each), Value::Array(a)) => {
                for (i, value) in a.iter_mut().enumerate() {
                    fill_null(each, value);
                    self.value(each, value, &Place { shown: format!("{}[{i}]", at.shown), go: at.go.clone(), owner: at.owner })?;
                }
                Ok(())
            }
            _ => scalar(node_, v, at),
        }
    }
}

/// Whether Go's encoder leaves the value out of a field that is `omitempty`.
fn is_zero(v: &Value) -> bool {
    match v {
        Value::Null => true,
        Value::Bool(b) => !b,
        Value::Number(n) => n.as_f64() == Some(0.0),
        Value::String(s) => s.is_empty(),
        Value::Array(a) => a.is_empty(),
        Value::Object(m) => m.is_empty(),
    }
}

/// A null inside a list or map is the zero value of its type.
fn fill_null(node_: &Node, v: &mut Value) {
    if v.is_null() {
        *v = match node_ {
            Node::String | Node::Bytes => "".into(),
            Node::Quantity => "0".into(),
            Node::Integer(_) | Node::Number => 0.into(),
            Node::Boolean => false.into(),
            Node::Struct(_) | Node::Map(_) => Value::Object(Map::new()),
            Node::List(_) => Value::Array(Vec::new()),
            _ => Value::Null,
        };
    }
}

fn scalar(node_: &Node, v: &mut Value, at: &Place<'_>) -> Result<(), String> {
    let wrong = |v: &Value| Err(mismatch(v, at, &go_type(node_)));
    let new = match (node_, &*v) {
        (Node::String, Value::String(_)) | (Node::Boolean, Value::Bool(_)) | (Node::Number, Value::Number(_)) => return Ok(()),
        (Node::IntOrString, Value::String(_)) => return Ok(()),
        (Node::Time | Node::MicroTime | Node::IntOrString, Value::Null) => return Ok(()),
        (Node::Integer(bits), Value::Number(n)) => match n.as_i64() {
            Some(i) if *bits == 64 || i32::try_from(i).is_ok() => return Ok(()),
            _ => return wrong(v),
        },
        (Node::IntOrString, Value::Number(n)) => match n.as_i64().map(i32::try_from) {
            Some(Ok(_)) => return Ok(()),
            _ => return wrong(v),
        },
        (Node::Bytes, Value::String(s)) => {
            use base64::Engine as _;
            let clean: String = s.chars().filter(|c| !matches!(c, '\r' | '\n')).collect();
            match base64::engine::general_purpose::STANDARD.decode(&clean) {
                Ok(_) if clean.len() == s.len() => return Ok(()),
                Ok(_) => Value::String(clean),
                Err(e) => return Err(format!("illegal base64 data at input byte {}", base64_offset(&e, &clean))),
            }
        }
        (Node::Quantity, Value::String(s)) => canonical_quantity(s.trim())?,
        (Node::Quantity, Value::Number(n)) => canonical_quantity(&n.to_string())?,
        (Node::Time, Value::String(s)) => time::normalize(s).ok_or_else(|| bad_time(s))?.into(),
        (Node::MicroTime, Value::String(s)) => time::normalize_micro(s).ok_or_else(|| bad_time(s))?.into(),
        _ => return wrong(v),
    };
    *v = new;
    Ok(())
}

fn canonical_quantity(s: &str) -> Result<Value, String> {
    Quantity::parse(s).map(|q| Value::String(q.to_string())).map_err(|e| e.to_string())
}

fn base64_offset(e: &base64::DecodeError, text: &str) -> usize {
    match e {
        base64::DecodeError::InvalidByte(at, _) | base64::DecodeError::InvalidLastSymbol(at, _) => *at,
        _ => text.len() / 4 * 4,
    }
}

fn bad_time(s: &str) -> String {
    format!("parsing time {} as \"2006-01-02T15:04:05Z07:00\": cannot parse {} as \"2006\"", go_quote(s), go_quote(s))
}

fn mismatch(v: &Value, at: &Place<'_>, want: &str) -> String {
    let have = match v {
        Value::Null => "null".into(),
        Value::Bool(_) => "bool".into(),
        Value::Number(n) if want.starts_with("int") => format!("number {n}"),
        Value::Number(_) => "number".into(),
        Value::String(_) => "string".into(),
        Value::Array(_) => "array".into(),
        Value::Object(_) => "object".into(),
    };
    let have: String = have;
    if at.go.is_empty() {
        return format!("json: cannot unmarshal {have} into Go value of type {want}");
    }
    format!("json: cannot unmarshal {have} into Go struct field {}.{} of type {want}", at.owner, at.go)
}

/// How Go names a type in its messages.
fn go_type(n: &Node) -> String {
    match n {
        Node::Struct(name) => {
            let mut parts = name.rsplit('.');
            let short = parts.next().unwrap_or(name);
            format!("{}.{short}", parts.next().unwrap_or("v1"))
        }
        Node::Map(each) => format!("map[string]{}", go_type(each)),
        Node::List(each) => format!("[]{}", go_type(each)),
        Node::String => "string".into(),
        Node::Bytes => "[]uint8".into(),
        Node::Integer(bits) => format!("int{bits}"),
        Node::Number => "float64".into(),
        Node::Boolean => "bool".into(),
        Node::IntOrString => "int32".into(),
        Node::Quantity => "resource.Quantity".into(),
        Node::Time => "v1.Time".into(),
        Node::MicroTime => "v1.MicroTime".into(),
        Node::Any => "interface {}".into(),
    }
}

/// The name of an object that may not be decoded yet, for messages.
pub fn name_of(v: &Value) -> &str {
    str_at(v, &["metadata", "name"])
}
