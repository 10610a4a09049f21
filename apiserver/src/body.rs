//! Bodies of requests: from bytes to a tree of the kind that the path names.

use axum::body::Body;
use bytes::Bytes;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use kontiki_base::limits;
use kontiki_base::object::Gvk;
use kontiki_registry::row::Row;
use kontiki_registry::schema::decode::{self, FieldValidation};
use kontiki_registry::schema::json::{self, Parsed};
use kontiki_registry::status::Status;
use serde_json::{Map, Value};

use crate::error::Result;
use crate::negotiate::Media;

/// Reads a whole body; 413 if it is longer than [`limits::BODY_BYTES`].
pub(crate) async fn read(body: Body) -> Result<Bytes> {
    match Limited::new(body, limits::BODY_BYTES).collect().await {
        Ok(all) => Ok(all.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(Status::too_large(limits::BODY_BYTES)),
        Err(error) => Err(Status::bad_request(format!("the body of the request cannot be read: {error}"))),
    }
}

/// Reads JSON, YAML or protobuf. `must_be`: for the error text.
pub(crate) fn parse(media: Media, body: &[u8], must_be: &str) -> Result<Parsed> {
    let unrecognized = |why: &str| {
        let shown: String = String::from_utf8_lossy(body).chars().take(256).collect();
        let shown = if shown.is_empty() { "<empty>".into() } else { shown };
        let must = format!("the object provided is unrecognized (must be of type {must_be})");
        Status::bad_request(format!("{must}: couldn't get version/kind; json parse error: {why} ({shown})"))
    };
    match media {
        Media::Json => json::parse(body).map_err(|e| unrecognized(&go_json_error(body, &e))),
        Media::Yaml => {
            let value = serde_yaml_ng::from_slice(body).map_err(|e| unrecognized(&format!("error converting YAML to JSON: {e}")))?;
            Ok(Parsed { value, duplicates: Vec::new() })
        }
        Media::Protobuf => {
            let (_, value) = kontiki_registry::protobuf::decode(body).map_err(|e| Status::bad_request(e.to_string()))?;
            Ok(Parsed { value, duplicates: Vec::new() })
        }
    }
}

/// Reads the object of a write on a kind: checks that it is of that kind and has only fields that the kind has.
pub(crate) fn object(row: &Row, media: Media, body: &[u8], validation: FieldValidation, warnings: &mut Vec<String>) -> Result<Value> {
    let parsed = parse(media, body, &row.kind)?;
    let mut decoded = decode::decode(row, parsed.value, &parsed.duplicates, validation)?;
    warnings.append(&mut decoded.warnings);
    if !decoded.object["metadata"].is_object() {
        decoded.object["metadata"] = Value::Object(Map::new());
    }
    Ok(decoded.object)
}

/// Reads the body of a subresource that has a kind of its own.
pub(crate) fn of_kind(gvk: &Gvk, media: Media, body: &[u8]) -> Result<Value> {
    let mut value = parse(media, body, &gvk.kind)?.value;
    // Clients of several versions post the same evictions and bindings.
    if value["kind"].as_str() == Some(gvk.kind.as_str()) {
        value["apiVersion"] = Value::String(gvk.api_version());
    }
    decode::check_kind(gvk, &mut value)?;
    let cannot =
        |why: String| Status::bad_request(format!("{} in version {:?} cannot be handled as a {}: {why}", gvk.kind, gvk.version, gvk.kind));
    decode::conform(gvk, &mut value).map_err(cannot)?;
    Ok(value)
}

/// The parser's complaint in the words of Go's decoder, for the two mistakes that people make.
pub(crate) fn go_json_error(body: &[u8], error: &serde_json::Error) -> String {
    if error.is_eof() {
        return "unexpected end of JSON input".into();
    }
    let before: usize = body.split_inclusive(|b| *b == b'\n').take(error.line().saturating_sub(1)).map(<[u8]>::len).sum();
    match body.get((before + error.column()).saturating_sub(1)).map(|b| char::from(*b)) {
        Some(c) if error.to_string().starts_with("key must be a string") => {
            format!("invalid character '{c}' looking for beginning of object key string")
        }
        Some(c) if error.to_string().starts_with("expected value") => format!("invalid character '{c}' looking for beginning of value"),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn garbage_is_refused_in_gos_words() {
        let message = |body: &[u8]| parse(Media::Json, body, "ConfigMap").unwrap_err().message;
        let lead = "the object provided is unrecognized (must be of type ConfigMap): couldn't get version/kind; json parse error: ";
        assert_eq!(message(b""), format!("{lead}unexpected end of JSON input (<empty>)"));
        assert_eq!(message(b"{not json"), format!("{lead}invalid character 'n' looking for beginning of object key string ({{not json)"));
    }

    #[test]
    fn every_encoding_gives_the_same_object() {
        let row = kontiki_registry::table::Registry::builtin().resource("", "v1", "configmaps").unwrap();
        let mut warnings = Vec::new();
        let mut read = |media, text: &str| object(&row, media, text.as_bytes(), FieldValidation::Warn, &mut warnings).unwrap();
        let json = read(Media::Json, r#"{"metadata":{"name":"a"},"data":{"k":"v"},"nope":1}"#);
        let yaml = read(Media::Yaml, "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata: {k: v}\n");
        assert_eq!(json, yaml);
        assert_eq!(warnings, ["unknown field \"nope\""]);
    }
}
