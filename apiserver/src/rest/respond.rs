//! Answers: bytes as they are kept wherever possible, trees where a table, metadata or another encoding is asked for.

use std::collections::VecDeque;
use std::sync::Arc;

use axum::body::Body;
use bytes::{BufMut as _, Bytes, BytesMut};
use futures::stream;
use http::{HeaderValue, Response, StatusCode, header};
use kontiki_registry::columns::{self, IncludeObject};
use kontiki_registry::row::Row;
use kontiki_registry::status::Status;
use serde_json::{Map, Value, json};

use crate::cache::change::Cached;
use crate::crd::Custom;
use crate::error::Result;
use crate::negotiate::{Form, MEDIA_TYPES, Media, View};
use crate::verbs::list::Listed;
use crate::verbs::{as_stored, bytes_of, served};

/// A list is sent in pieces of about this size.
const PIECE: usize = 64 << 10;

/// An answer with a body.
pub(crate) fn respond(code: u16, content_type: &'static str, body: impl Into<Body>) -> Response<Body> {
    let mut response = Response::new(body.into());
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// The answer to a request that failed.
pub(crate) fn failure(status: &Status) -> Response<Body> {
    let body = serde_json::to_vec(&status.to_json()).unwrap_or_default();
    let mut response = respond(status.http, "application/json", body);
    if let Some(seconds) = status.retry_after() {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// A tree in the negotiated encoding.
pub(crate) fn tree(code: u16, form: Form, value: &Value) -> Result<Response<Body>> {
    let media = form.media;
    let body = match media {
        Media::Json if form.pretty => serde_json::to_vec_pretty(value).map_err(|e| Status::internal(&e.to_string()))?,
        Media::Json => serde_json::to_vec(value).map_err(|e| Status::internal(&e.to_string()))?,
        Media::Yaml => serde_yaml_ng::to_string(value).map_err(|e| Status::internal(&e.to_string()))?.into_bytes(),
        Media::Protobuf => {
            let text = |key: &str| value[key].as_str().unwrap_or_default();
            let gvk = kontiki_base::object::Gvk::from_api_version(text("apiVersion"), text("kind"));
            kontiki_registry::protobuf::encode(&gvk, value).map_err(|_| Status::not_acceptable(MEDIA_TYPES))?
        }
    };
    Ok(respond(code, media.content_type(), body))
}

/// Which part of an object a table row carries.
pub(crate) fn include(text: &str) -> Result<IncludeObject> {
    match text {
        "" | "Metadata" => Ok(IncludeObject::Metadata),
        "None" => Ok(IncludeObject::None),
        "Object" => Ok(IncludeObject::Object),
        other => Err(Status::bad_request(format!("unrecognized includeObject {other:?}: None, Metadata or Object is needed"))),
    }
}

/// What answers need besides the objects: which part of them rows of a table carry, the columns of a custom resource, the time.
#[derive(Clone, Debug)]
pub(crate) struct Show {
    /// Part of the object in a row.
    pub(crate) include: IncludeObject,
    /// Columns, if the kind is not built in.
    pub(crate) custom: Option<Arc<Custom>>,
    /// Now, in seconds.
    pub(crate) now: i64,
}

/// One object in the negotiated form.
pub(crate) fn one(code: u16, row: &Row, form: Form, show: &Show, object: &Value) -> Result<Response<Body>> {
    match form.view {
        View::Whole => tree(code, form, object),
        View::Table(version) => {
            let meta = json!({"resourceVersion": object["metadata"]["resourceVersion"]});
            tree(code, form, &table(row, &[object], meta, show, version))
        }
        View::Partial(version) => tree(code, form, &partial(object, version)),
        View::PartialList(_) => Err(wrong_shape(row, "PartialObjectMetadataList", "not a list")),
    }
}

/// One object whose bytes are at hand.
pub(crate) fn cached(row: &Row, form: Form, show: &Show, object: &Cached) -> Result<Response<Body>> {
    if form == Form::default() {
        return Ok(respond(200, Media::Json.content_type(), bytes_of(row, object)));
    }
    one(200, row, form, show, &served(row, object.value()))
}

fn wrong_shape(row: &Row, asked: &str, is: &str) -> Status {
    let mut status = Status::not_acceptable(MEDIA_TYPES);
    let group = if row.group.is_empty() { "core" } else { row.group.split('.').next().unwrap_or_default() };
    let kind = if is == "a list" { &row.list_kind } else { &row.kind };
    status.message = format!("you requested {asked}, but the requested object is {is} (*{group}.{kind})");
    status
}

/// A list in the negotiated form.
pub(crate) fn list(row: &Row, form: Form, show: &Show, listed: &Listed) -> Result<Response<Body>> {
    let meta = list_meta(listed);
    match form.view {
        View::Whole if form.media == Media::Json && !form.pretty => Ok(stream_list(row, &meta, &listed.items)),
        View::Whole => {
            let items: Vec<Value> = listed.items.iter().map(|o| served(row, o.value())).collect();
            tree(200, form, &json!({"kind": row.list_kind, "apiVersion": row.api_version(), "metadata": meta, "items": items}))
        }
        View::Table(version) => {
            let items: Vec<Value> = listed.items.iter().map(|o| served(row, o.value())).collect();
            let refs: Vec<&Value> = items.iter().collect();
            tree(200, form, &table(row, &refs, meta, show, version))
        }
        View::PartialList(version) => {
            let items: Vec<Value> = listed.items.iter().map(|o| partial(&o.value(), version)).collect();
            let api_version = format!("meta.k8s.io/{version}");
            tree(200, form, &json!({"kind": "PartialObjectMetadataList", "apiVersion": api_version, "metadata": meta, "items": items}))
        }
        View::Partial(_) => Err(wrong_shape(row, "PartialObjectMetadata", "a list")),
    }
}

fn list_meta(listed: &Listed) -> Value {
    let mut meta = Map::new();
    meta.insert("resourceVersion".into(), listed.revision.to_resource_version().into());
    if let Some(token) = &listed.next {
        meta.insert("continue".into(), token.encode().into());
    }
    if let Some(remaining) = listed.remaining {
        meta.insert("remainingItemCount".into(), remaining.into());
    }
    Value::Object(meta)
}

/// A list as a stream of the objects' own bytes: a long list is never in memory twice.
fn stream_list(row: &Row, meta: &Value, items: &[Arc<Cached>]) -> Response<Body> {
    let head = format!("{{\"kind\":{},\"apiVersion\":{},\"metadata\":{meta},\"items\":[", json!(row.list_kind), json!(row.api_version()));
    let convert = !as_stored(row);
    let objects: VecDeque<Bytes> = items.iter().map(|o| if convert { bytes_of(row, o) } else { o.bytes.clone() }).collect();
    let total: usize = objects.iter().map(|o| o.len() + 1).sum();
    if total < PIECE {
        let mut whole = BytesMut::with_capacity(head.len() + total + 2);
        whole.put_slice(head.as_bytes());
        append(&mut whole, objects, true);
        return respond(200, Media::Json.content_type(), whole.freeze());
    }
    let pieces = stream::unfold((Some(head), objects, true), |(head, mut objects, mut first)| async move {
        let mut piece = BytesMut::with_capacity(PIECE + 4096);
        match head {
            Some(head) => piece.put_slice(head.as_bytes()),
            None if objects.is_empty() => return None,
            None => {}
        }
        while let Some(object) = objects.pop_front() {
            if !first {
                piece.put_u8(b',');
            }
            first = false;
            piece.put_slice(&object);
            if piece.len() >= PIECE {
                break;
            }
        }
        if objects.is_empty() {
            piece.put_slice(b"]}");
        }
        Some((Ok::<_, std::convert::Infallible>(piece.freeze()), (None, objects, first)))
    });
    respond(200, Media::Json.content_type(), Body::from_stream(pieces))
}

fn append(out: &mut BytesMut, objects: VecDeque<Bytes>, mut first: bool) {
    for object in objects {
        if !first {
            out.put_u8(b',');
        }
        first = false;
        out.put_slice(&object);
    }
    out.put_slice(b"]}");
}

/// A table of `meta.k8s.io`.
pub(crate) fn table(row: &Row, items: &[&Value], meta: Value, show: &Show, version: &str) -> Value {
    let mut table = match &show.custom {
        Some(custom) => custom.columns.table(items, meta, show.include, show.now),
        None => columns::table(&row.gvk(), items, meta, show.include, show.now),
    };
    if version != "v1" {
        table["apiVersion"] = json!(format!("meta.k8s.io/{version}"));
    }
    table
}

/// An object's metadata alone.
pub(crate) fn partial(object: &Value, version: &str) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": format!("meta.k8s.io/{version}"), "metadata": object["metadata"]})
}
