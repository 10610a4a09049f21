//! JSON to protobuf bytes: fields in the order of their numbers, value fields always written, pointers only when set, maps sorted by key.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kontiki_base::object::Gvk;
use serde_json::{Map, Value};

use super::table::{Field, Kind, Label, Message, MessageId, Shape, Table};
use super::{EncodeError, MAGIC, MAX_DEPTH};
use crate::{time, times};

type Result<T> = std::result::Result<T, EncodeError>;

pub(super) fn envelope(gvk: &Gvk, message: &[u8]) -> Vec<u8> {
    let mut meta = Vec::new();
    put_bytes(&mut meta, 1, gvk.api_version().as_bytes());
    put_bytes(&mut meta, 2, gvk.kind.as_bytes());
    let mut out = Vec::with_capacity(message.len() + meta.len() + 24);
    out.extend_from_slice(&MAGIC);
    put_bytes(&mut out, 1, &meta);
    put_bytes(&mut out, 2, message);
    put_bytes(&mut out, 3, b"");
    put_bytes(&mut out, 4, b"");
    out
}

pub(super) fn message(id: MessageId, value: &Value) -> Result<Vec<u8>> {
    Encoder { table: Table::get() }.message(id, value, 0).map_err(|mut e| {
        if let EncodeError::Type { path, .. } = &mut e {
            *path = path.trim_start_matches('.').to_owned();
        }
        e
    })
}

fn put_varint(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

fn put_int(out: &mut Vec<u8>, number: u32, n: i64) {
    put_varint(out, u64::from(number) << 3);
    put_varint(out, n as u64);
}

fn put_bytes(out: &mut Vec<u8>, number: u32, bytes: &[u8]) {
    put_varint(out, u64::from(number) << 3 | 2);
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn wrong(expected: &'static str) -> EncodeError {
    EncodeError::Type { path: String::new(), expected }
}

/// Puts a field's name in front of the path of an error from below it.
fn under(field: &'static str) -> impl Fn(EncodeError) -> EncodeError {
    move |e| match e {
        EncodeError::Type { path, expected } => EncodeError::Type { path: format!(".{field}{path}"), expected },
        other => other,
    }
}

struct Encoder {
    table: &'static Table,
}

impl Encoder {
    fn message(&self, id: MessageId, value: &Value, depth: u32) -> Result<Vec<u8>> {
        if depth > MAX_DEPTH {
            return Err(EncodeError::TooDeep);
        }
        let message = self.table.message(id);
        let mut out = Vec::new();
        match message.shape {
            Shape::Plain => {
                let object = match value {
                    Value::Object(object) => object,
                    Value::Null => &Map::new(),
                    _ => return Err(wrong("an object")),
                };
                self.fields(message, object, depth, &mut out)?;
            }
            Shape::RawJson => {
                if !value.is_null() {
                    put_bytes(&mut out, 1, value.to_string().as_bytes());
                }
            }
            Shape::Items => {
                for item in value.as_array().ok_or_else(|| wrong("a list"))? {
                    put_bytes(&mut out, 1, item.as_str().ok_or_else(|| wrong("a string"))?.as_bytes());
                }
            }
            Shape::SchemaOrBool | Shape::SchemaOrArray | Shape::SchemaOrStrings => self.union(message, value, depth, &mut out)?,
            shape => special(shape, value, &mut out)?,
        }
        Ok(out)
    }

    fn fields(&self, message: &'static Message, object: &Map<String, Value>, depth: u32, out: &mut Vec<u8>) -> Result<()> {
        for field in &message.fields {
            if let (true, Kind::Msg(id)) = (field.inline, field.kind) {
                if depth >= MAX_DEPTH {
                    return Err(EncodeError::TooDeep);
                }
                let mut inner = Vec::new();
                self.fields(self.table.message(id), object, depth + 1, &mut inner)?;
                put_bytes(out, field.number, &inner);
                continue;
            }
            let value = object.get(field.json).filter(|v| !v.is_null());
            self.field(field, value, depth, out).map_err(under(field.json))?;
        }
        Ok(())
    }

    fn field(&self, field: &'static Field, value: Option<&Value>, depth: u32, out: &mut Vec<u8>) -> Result<()> {
        match (field.label, value) {
            (Label::One, None) if field.pointer => Ok(()),
            (Label::One, None) => self.absent(field, depth, out),
            (Label::One, Some(value)) => self.single(field, value, depth, out),
            (_, None) => Ok(()),
            (Label::Many, Some(value)) => {
                value.as_array().ok_or_else(|| wrong("a list"))?.iter().try_for_each(|item| self.single(field, item, depth, out))
            }
            (Label::Map, Some(value)) => {
                let map = value.as_object().ok_or_else(|| wrong("an object"))?;
                let mut sorted: Vec<_> = map.iter().collect();
                sorted.sort_by_key(|(key, _)| key.as_str());
                for (key, value) in sorted {
                    let mut entry = Vec::new();
                    put_bytes(&mut entry, 1, key.as_bytes());
                    self.scalar_or_message(field.kind, 2, value, depth, &mut entry)?;
                    put_bytes(out, field.number, &entry);
                }
                Ok(())
            }
        }
    }

    /// Go writes a value field even when it was never set. Byte slices and raw JSON are written only when there are any.
    fn absent(&self, field: &Field, depth: u32, out: &mut Vec<u8>) -> Result<()> {
        match field.kind {
            Kind::Str => put_bytes(out, field.number, b""),
            Kind::Bool | Kind::I32 | Kind::I64 => put_int(out, field.number, 0),
            Kind::F64 => put_double(out, field.number, 0.0),
            Kind::Bytes => {}
            Kind::Msg(id) => {
                let empty = match self.table.message(id).shape {
                    Shape::Plain if depth < MAX_DEPTH => self.message(id, &Value::Null, depth + 1)?,
                    Shape::IntOrString => self.message(id, &Value::from(0), depth + 1)?,
                    Shape::Duration => self.message(id, &Value::from("0s"), depth + 1)?,
                    Shape::Quantity => self.message(id, &Value::from("0"), depth + 1)?,
                    _ => Vec::new(),
                };
                put_bytes(out, field.number, &empty);
            }
        }
        Ok(())
    }

    fn single(&self, field: &Field, value: &Value, depth: u32, out: &mut Vec<u8>) -> Result<()> {
        self.scalar_or_message(field.kind, field.number, value, depth, out)
    }

    fn scalar_or_message(&self, kind: Kind, number: u32, value: &Value, depth: u32, out: &mut Vec<u8>) -> Result<()> {
        match kind {
            Kind::Str => put_bytes(out, number, value.as_str().ok_or_else(|| wrong("a string"))?.as_bytes()),
            Kind::Bool => put_int(out, number, i64::from(value.as_bool().ok_or_else(|| wrong("a boolean"))?)),
            Kind::I32 => {
                let n = value.as_i64().filter(|n| i32::try_from(*n).is_ok()).ok_or_else(|| wrong("a 32-bit integer"))?;
                put_int(out, number, n);
            }
            Kind::I64 => put_int(out, number, value.as_i64().ok_or_else(|| wrong("a 64-bit integer"))?),
            Kind::F64 => put_double(out, number, value.as_f64().ok_or_else(|| wrong("a number"))?),
            Kind::Bytes => {
                let text = value.as_str().ok_or_else(|| wrong("base64 text"))?;
                put_bytes(out, number, &STANDARD.decode(text).map_err(|_| wrong("base64 text"))?);
            }
            Kind::Msg(id) => put_bytes(out, number, &self.message(id, value, depth + 1)?),
        }
        Ok(())
    }

    fn union(&self, message: &'static Message, value: &Value, depth: u32, out: &mut Vec<u8>) -> Result<()> {
        let [first, second] = message.fields.as_slice() else { return Err(wrong("a union")) };
        match (message.shape, value) {
            (Shape::SchemaOrBool, Value::Bool(allows)) => put_int(out, first.number, i64::from(*allows)),
            (Shape::SchemaOrBool, Value::Object(_)) => {
                put_int(out, first.number, 1);
                self.single(second, value, depth, out)?;
            }
            (Shape::SchemaOrArray | Shape::SchemaOrStrings, Value::Object(_)) => self.single(first, value, depth, out)?,
            (Shape::SchemaOrArray | Shape::SchemaOrStrings, Value::Array(items)) => {
                for item in items {
                    self.single(second, item, depth, out)?;
                }
            }
            (Shape::SchemaOrBool, _) => return Err(wrong("a schema or a boolean")),
            _ => return Err(wrong("a schema or a list")),
        }
        Ok(())
    }
}

fn put_double(out: &mut Vec<u8>, number: u32, value: f64) {
    put_varint(out, u64::from(number) << 3 | 1);
    out.extend_from_slice(&value.to_le_bytes());
}

/// Messages that are one scalar in JSON.
fn special(shape: Shape, value: &Value, out: &mut Vec<u8>) -> Result<()> {
    match (shape, value) {
        (Shape::IntOrString, Value::Number(n)) => {
            let n = n.as_i64().filter(|n| i32::try_from(*n).is_ok()).ok_or_else(|| wrong("a 32-bit integer or a string"))?;
            put_int(out, 1, 0);
            put_int(out, 2, n);
            put_bytes(out, 3, b"");
        }
        (Shape::IntOrString, Value::String(text)) => {
            put_int(out, 1, 1);
            put_int(out, 2, 0);
            put_bytes(out, 3, text.as_bytes());
        }
        // A manifest may give a quantity as a bare number.
        (Shape::Quantity, Value::Number(n)) => put_bytes(out, 1, n.to_string().as_bytes()),
        (Shape::Quantity, Value::String(text)) => put_bytes(out, 1, text.as_bytes()),
        (Shape::Duration, Value::String(text)) => {
            put_int(out, 1, times::parse_go_duration(text).ok_or_else(|| wrong("a duration"))?);
        }
        (Shape::Time | Shape::MicroTime, Value::String(text)) => {
            let (seconds, nanos) = time::instant(text).ok_or_else(|| wrong("an RFC 3339 time"))?;
            put_int(out, 1, seconds);
            put_int(out, 2, if shape == Shape::MicroTime { i64::from(nanos / 1000 * 1000) } else { 0 });
        }
        (Shape::Time | Shape::MicroTime, Value::Null) => {}
        _ => return Err(wrong("another type of value")),
    }
    Ok(())
}
