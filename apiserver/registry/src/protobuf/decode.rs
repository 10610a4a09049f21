//! Protobuf bytes to JSON. Total: any bytes give an object or a typed error, in bounded memory and stack.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kontiki_base::object::Gvk;
use serde_json::{Map, Number, Value};

use super::table::{Field, Kind, Label, Message, MessageId, Shape, Table};
use super::{DecodeError, MAGIC, MAX_DEPTH, MAX_VALUES};
use crate::{time, times};

type Result<T> = std::result::Result<T, DecodeError>;

const VARINT: u8 = 0;
const FIXED64: u8 = 1;
const BYTES: u8 = 2;
const FIXED32: u8 = 5;

/// One field as it stands on the wire.
enum Wire<'a> {
    Int(u64),
    Fixed64(u64),
    Bytes(&'a [u8]),
    Fixed32,
}

impl Wire<'_> {
    const fn code(&self) -> u8 {
        match self {
            Self::Int(_) => VARINT,
            Self::Fixed64(_) => FIXED64,
            Self::Bytes(_) => BYTES,
            Self::Fixed32 => FIXED32,
        }
    }
}

/// A cursor over the fields of one message.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn varint(&mut self) -> Result<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.0.split_first().ok_or(DecodeError::Truncated)?;
            self.0 = rest;
            if shift == 63 && byte > 1 {
                return Err(DecodeError::BadVarint);
            }
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(DecodeError::BadVarint)
    }

    fn take(&mut self, n: u64) -> Result<&'a [u8]> {
        let n = usize::try_from(n).map_err(|_| DecodeError::Truncated)?;
        let (head, rest) = self.0.split_at_checked(n).ok_or(DecodeError::Truncated)?;
        self.0 = rest;
        Ok(head)
    }

    /// The next field, or `None` at the end.
    fn next(&mut self) -> Result<Option<(u32, Wire<'a>)>> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let number = u32::try_from(tag >> 3).ok().filter(|n| *n > 0).ok_or(DecodeError::BadVarint)?;
        let wire = match (tag & 7) as u8 {
            VARINT => Wire::Int(self.varint()?),
            FIXED64 => Wire::Fixed64(u64::from_le_bytes(self.take(8)?.try_into().expect("eight bytes were taken"))),
            BYTES => {
                let n = self.varint()?;
                Wire::Bytes(self.take(n)?)
            }
            FIXED32 => {
                self.take(4)?;
                Wire::Fixed32
            }
            _ => return Err(DecodeError::BadVarint),
        };
        Ok(Some((number, wire)))
    }
}

/// What is left of the bounds.
struct Decoder {
    table: &'static Table,
    values: u32,
}

pub(super) fn envelope(body: &[u8]) -> Result<(Gvk, Value)> {
    nested_envelope(&mut Decoder { table: Table::get(), values: MAX_VALUES }, body, 0)
}

pub(super) fn message(id: MessageId, bytes: &[u8]) -> Result<Value> {
    Decoder { table: Table::get(), values: MAX_VALUES }.message(id, bytes, 0)
}

/// Reads `runtime.Unknown`: 1 typeMeta {1 apiVersion, 2 kind}, 2 raw, 3 contentEncoding, 4 contentType.
fn nested_envelope(decoder: &mut Decoder, body: &[u8], depth: u32) -> Result<(Gvk, Value)> {
    let unknown = body.strip_prefix(&MAGIC).ok_or(DecodeError::NoMagic)?;
    let (mut api_version, mut kind, mut raw, mut content_type) = ("", "", &[][..], "");
    let mut reader = Reader(unknown);
    while let Some((number, wire)) = reader.next()? {
        match (number, wire) {
            (1, Wire::Bytes(meta)) => {
                let mut meta = Reader(meta);
                while let Some(field) = meta.next()? {
                    match field {
                        (1, Wire::Bytes(b)) => api_version = utf8(b, "apiVersion")?,
                        (2, Wire::Bytes(b)) => kind = utf8(b, "kind")?,
                        _ => {}
                    }
                }
            }
            (2, Wire::Bytes(b)) => raw = b,
            (3, Wire::Bytes(b)) if !b.is_empty() => return Err(DecodeError::Content(String::from_utf8_lossy(b).into_owned())),
            (4, Wire::Bytes(b)) => content_type = utf8(b, "contentType")?,
            _ => {}
        }
    }
    let gvk = Gvk::from_api_version(api_version, kind);
    let mut value = match content_type {
        "" | super::MEDIA_TYPE => {
            let id = decoder.table.of_kind(&gvk).ok_or_else(|| DecodeError::UnknownKind(gvk.clone()))?;
            decoder.message(id, raw, depth)?
        }
        "application/json" => json(raw)?,
        other => return Err(DecodeError::Content(other.into())),
    };
    let fields = value.as_object_mut().ok_or_else(|| DecodeError::Json("expected an object".into()))?;
    fields.insert("apiVersion".into(), api_version.into());
    fields.insert("kind".into(), kind.into());
    Ok((gvk, value))
}

fn utf8<'a>(bytes: &'a [u8], field: &'static str) -> Result<&'a str> {
    std::str::from_utf8(bytes).map_err(|_| DecodeError::NotUtf8(field))
}

fn json(bytes: &[u8]) -> Result<Value> {
    serde_json::from_slice(bytes).map_err(|e| DecodeError::Json(e.to_string()))
}

impl Decoder {
    fn spend(&mut self) -> Result<()> {
        self.values = self.values.checked_sub(1).ok_or(DecodeError::TooMany)?;
        Ok(())
    }

    fn message(&mut self, id: MessageId, bytes: &[u8], depth: u32) -> Result<Value> {
        if depth > MAX_DEPTH {
            return Err(DecodeError::TooDeep);
        }
        self.spend()?;
        let message = self.table.message(id);
        match message.shape {
            Shape::Plain => {
                let mut out = Map::new();
                self.fields(message, bytes, depth, &mut out)?;
                Ok(Value::Object(out))
            }
            Shape::Time | Shape::MicroTime => instant(bytes, message.shape == Shape::MicroTime),
            Shape::RawJson => self.raw_json(bytes, depth),
            Shape::SchemaOrBool | Shape::SchemaOrArray | Shape::SchemaOrStrings => self.union(message, bytes, depth),
            shape => self.special(message, shape, bytes, depth),
        }
    }

    /// Reads the fields of a message into the JSON object that they stand in.
    fn fields(&mut self, message: &'static Message, bytes: &[u8], depth: u32, out: &mut Map<String, Value>) -> Result<()> {
        let mut reader = Reader(bytes);
        while let Some((number, wire)) = reader.next()? {
            let Some(field) = message.field(number) else { continue };
            self.spend()?;
            match field.label {
                Label::One => self.singular(field, &wire, depth, out)?,
                Label::Many => {
                    let list = out.entry(field.json).or_insert_with(|| Value::Array(Vec::new()));
                    let Value::Array(list) = list else { continue };
                    self.repeated(field, &wire, depth, list)?;
                }
                Label::Map => {
                    let (key, value) = self.map_entry(field, &wire, depth)?;
                    let map = out.entry(field.json).or_insert_with(|| Value::Object(Map::new()));
                    if let Value::Object(map) = map {
                        map.insert(key, value);
                    }
                }
            }
        }
        self.settle(message, depth, out)
    }

    /// Reads a field that occurs once. A message that occurs again is merged into the first, as protobuf wants it.
    fn singular(&mut self, field: &'static Field, wire: &Wire<'_>, depth: u32, out: &mut Map<String, Value>) -> Result<()> {
        let Kind::Msg(id) = field.kind else {
            out.insert(field.json.into(), scalar(field, wire)?);
            return Ok(());
        };
        let bytes = bytes_of(field, wire)?;
        let inner = self.table.message(id);
        if field.inline && inner.shape == Shape::Plain {
            if depth >= MAX_DEPTH {
                return Err(DecodeError::TooDeep);
            }
            return self.fields(inner, bytes, depth + 1, out);
        }
        match (inner.shape, out.get_mut(field.json)) {
            (Shape::Plain, Some(Value::Object(map))) => self.fields(inner, bytes, depth + 1, map),
            _ => {
                let value = self.message(id, bytes, depth + 1)?;
                out.insert(field.json.into(), value);
                Ok(())
            }
        }
    }

    fn repeated(&mut self, field: &'static Field, wire: &Wire<'_>, depth: u32, list: &mut Vec<Value>) -> Result<()> {
        match (field.kind, wire) {
            (Kind::Msg(id), _) => list.push(self.message(id, bytes_of(field, wire)?, depth + 1)?),
            // Packed numbers.
            (Kind::Bool | Kind::I32 | Kind::I64, Wire::Bytes(bytes)) => {
                let mut reader = Reader(bytes);
                while !reader.0.is_empty() {
                    self.spend()?;
                    list.push(scalar(field, &Wire::Int(reader.varint()?))?);
                }
            }
            _ => list.push(scalar(field, wire)?),
        }
        Ok(())
    }

    fn map_entry(&mut self, field: &'static Field, wire: &Wire<'_>, depth: u32) -> Result<(String, Value)> {
        let (mut key, mut value) = (String::new(), None);
        let mut reader = Reader(bytes_of(field, wire)?);
        while let Some((number, wire)) = reader.next()? {
            match (number, &wire) {
                (1, Wire::Bytes(b)) => utf8(b, field.json)?.clone_into(&mut key),
                (2, _) => {
                    value = Some(match field.kind {
                        Kind::Msg(id) => self.message(id, bytes_of(field, &wire)?, depth + 1)?,
                        _ => scalar(field, &wire)?,
                    });
                }
                _ => {}
            }
        }
        let value = match (value, field.kind) {
            (Some(value), _) => value,
            (None, Kind::Msg(id)) => self.message(id, &[], depth + 1)?,
            (None, _) => zero(field.kind),
        };
        Ok((key, value))
    }

    /// Makes the object say what Go's JSON would: zero values go unless the field is a pointer or always printed; missing ones that are printed come.
    fn settle(&mut self, message: &'static Message, depth: u32, out: &mut Map<String, Value>) -> Result<()> {
        for field in &message.fields {
            if field.inline || field.label != Label::One {
                if field.label == Label::Many && field.keep && !out.contains_key(field.json) {
                    out.insert(field.json.into(), Value::Array(Vec::new()));
                }
                continue;
            }
            match (out.get(field.json), field.kind) {
                (Some(Value::Null), _) => {
                    out.remove(field.json);
                }
                (Some(value), _) if !field.pointer && !field.keep && self.unset(field, value) => {
                    out.remove(field.json);
                }
                (None, Kind::Msg(id)) if !field.pointer && depth < MAX_DEPTH && self.table.message(id).shape == Shape::Plain => {
                    let value = self.message(id, &[], depth + 1)?;
                    if field.keep || !self.unset(field, &value) {
                        out.insert(field.json.into(), value);
                    }
                }
                (None, Kind::Bytes | Kind::Msg(_)) => {}
                (None, kind) if field.keep && !field.pointer => {
                    out.insert(field.json.into(), zero(kind));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Whether a value of a non-pointer field means "not set".
    fn unset(&self, field: &Field, value: &Value) -> bool {
        match value {
            Value::String(s) => s.is_empty(),
            Value::Bool(b) => !b,
            Value::Number(n) => n.as_f64() == Some(0.0),
            Value::Object(map) => matches!(field.kind, Kind::Msg(id) if self.table.message(id).shape == Shape::Plain) && map.is_empty(),
            _ => false,
        }
    }

    fn raw_json(&mut self, bytes: &[u8], depth: u32) -> Result<Value> {
        let mut raw = &[][..];
        let mut reader = Reader(bytes);
        while let Some((number, wire)) = reader.next()? {
            if let (1, Wire::Bytes(b)) = (number, wire) {
                raw = b;
            }
        }
        if raw.is_empty() {
            return Ok(Value::Null);
        }
        if raw.starts_with(&MAGIC) {
            if depth >= MAX_DEPTH {
                return Err(DecodeError::TooDeep);
            }
            return nested_envelope(self, raw, depth + 1).map(|(_, value)| value);
        }
        json(raw)
    }

    /// `JSONSchemaPropsOr…`: 1 is the boolean or the schema, 2 the schema or the list.
    fn union(&mut self, message: &'static Message, bytes: &[u8], depth: u32) -> Result<Value> {
        let mut out = Map::new();
        let plain = message.fields.iter().map(|f| f.json).collect::<Vec<_>>();
        self.fields(message, bytes, depth, &mut out)?;
        let second = plain.get(1).and_then(|name| out.remove(*name));
        let first = plain.first().and_then(|name| out.remove(*name));
        Ok(match message.shape {
            Shape::SchemaOrBool => second.or(first).unwrap_or(Value::Bool(false)),
            _ => first.or(second).unwrap_or(Value::Null),
        })
    }

    /// Messages that are one scalar or one list in JSON.
    fn special(&mut self, message: &'static Message, shape: Shape, bytes: &[u8], depth: u32) -> Result<Value> {
        let (mut ints, mut text, mut list) = ([0i64; 3], String::new(), Vec::new());
        let mut reader = Reader(bytes);
        while let Some((number, wire)) = reader.next()? {
            let Some(field) = message.field(number) else { continue };
            if field.label == Label::Many {
                self.spend()?;
                self.repeated(field, &wire, depth, &mut list)?;
                continue;
            }
            match (&wire, field.kind) {
                (Wire::Int(n), Kind::I32 | Kind::I64) => ints[(number as usize).min(2)] = *n as i64,
                (Wire::Bytes(b), Kind::Str) => utf8(b, field.json)?.clone_into(&mut text),
                _ => return Err(DecodeError::WireType { wire: wire.code(), field: field.json }),
            }
        }
        Ok(match shape {
            Shape::Quantity if text.is_empty() => "0".into(),
            Shape::Quantity => text.into(),
            Shape::Duration => times::format_go_duration(ints[1]).into(),
            Shape::IntOrString if ints[1] == 0 => (ints[2] as i32).into(),
            Shape::IntOrString => text.into(),
            _ => Value::Array(list),
        })
    }
}

/// 1 seconds, 2 nanos. All zero is the zero time, which is no time.
fn instant(bytes: &[u8], micro: bool) -> Result<Value> {
    let (mut seconds, mut nanos) = (0i64, 0i32);
    let mut reader = Reader(bytes);
    while let Some((number, wire)) = reader.next()? {
        match (number, wire) {
            (1, Wire::Int(n)) => seconds = n as i64,
            (2, Wire::Int(n)) => nanos = n as i32,
            _ => {}
        }
    }
    if seconds == 0 && nanos == 0 {
        return Ok(Value::Null);
    }
    if !time::WRITABLE.contains(&seconds) || !(0..1_000_000_000).contains(&nanos) {
        return Err(DecodeError::OutOfRange("time"));
    }
    Ok(if micro { time::format_micro(seconds, nanos) } else { time::format(seconds) }.into())
}

fn bytes_of<'a>(field: &Field, wire: &Wire<'a>) -> Result<&'a [u8]> {
    match wire {
        Wire::Bytes(bytes) => Ok(bytes),
        other => Err(DecodeError::WireType { wire: other.code(), field: field.json }),
    }
}

fn scalar(field: &Field, wire: &Wire<'_>) -> Result<Value> {
    Ok(match (field.kind, wire) {
        (Kind::Str, Wire::Bytes(b)) => utf8(b, field.json)?.into(),
        (Kind::Bytes, Wire::Bytes(b)) => STANDARD.encode(b).into(),
        (Kind::Bool, Wire::Int(n)) => (*n != 0).into(),
        (Kind::I32, Wire::Int(n)) => (*n as i32).into(),
        (Kind::I64, Wire::Int(n)) => (*n as i64).into(),
        (Kind::F64, Wire::Fixed64(n)) => {
            Number::from_f64(f64::from_bits(*n)).map(Value::Number).ok_or(DecodeError::OutOfRange(field.json))?
        }
        (_, wire) => return Err(DecodeError::WireType { wire: wire.code(), field: field.json }),
    })
}

fn zero(kind: Kind) -> Value {
    match kind {
        Kind::Str | Kind::Bytes => "".into(),
        Kind::Bool => false.into(),
        Kind::I32 | Kind::I64 => 0.into(),
        Kind::F64 => 0.0.into(),
        Kind::Msg(_) => Value::Null,
    }
}
