//! Between the messages of `kontiki.api.v1` and the words of the verbs.

use std::sync::Arc;

use kontiki_base::{Revision, Term};
use kontiki_proto::api;
use kontiki_registry::delete::DeleteOptions;
use kontiki_registry::row::{Row, Sub};
use kontiki_registry::schema::decode::FieldValidation;
use kontiki_registry::select::{FieldSelector, LabelSelector};
use kontiki_registry::status::Status;
use serde_json::{Value, json};

use crate::body;
use crate::cache::change::Cached;
use crate::core::Core;
use crate::error::Result;
use crate::negotiate::Media;
use crate::verbs::commit::Done;
use crate::verbs::list::{ListRequest, Match, Selection};
use crate::verbs::{Target, WriteOptions, bytes_of};

/// An object that a request names.
#[derive(Clone, Debug)]
pub(super) struct Named {
    pub(super) target: Target,
    /// Empty for the object itself.
    pub(super) sub: String,
}

impl Named {
    /// The subresource's row entry, if one is meant.
    pub(super) fn sub(&self) -> Result<Option<Sub>> {
        if self.sub.is_empty() {
            return Ok(None);
        }
        self.target.row.subresource(&self.sub).cloned().map(Some).ok_or_else(Status::no_such_resource)
    }
}

pub(super) fn row(core: &Core, resource: Option<&api::Resource>) -> Result<Arc<Row>> {
    let resource = resource.ok_or_else(|| Status::bad_request("resource: required"))?;
    let row = core.registry().resource(&resource.group, &resource.version, &resource.resource);
    row.ok_or_else(Status::no_such_resource)
}

pub(super) fn named(core: &Core, object: Option<&api::ObjectRef>) -> Result<Named> {
    let object = object.ok_or_else(|| Status::bad_request("ref: required"))?;
    let row = row(core, object.resource.as_ref())?;
    if object.name.is_empty() {
        return Err(Status::bad_request("ref.name: required"));
    }
    check_namespace(&row, &object.namespace)?;
    Ok(Named { target: Target::of(&row, &object.namespace, &object.name), sub: object.subresource.clone() })
}

/// A write or a GET in a kind with namespaces names one.
pub(super) fn check_namespace(row: &Row, namespace: &str) -> Result<()> {
    if row.namespaced && namespace.is_empty() {
        return Err(Status::bad_request(format!("namespace: required for {}", row.group_resource())));
    }
    Ok(())
}

pub(super) fn selection(core: &Core, request: &api::ListRequest) -> Result<Selection> {
    let row = row(core, request.resource.as_ref())?;
    select(&row, &request.namespace, &request.label_selector, &request.field_selector)
}

pub(super) fn select(row: &Arc<Row>, namespace: &str, labels: &str, fields: &str) -> Result<Selection> {
    Ok(Selection { labels: LabelSelector::parse(labels)?, fields: FieldSelector::parse(row, fields)?, ..Selection::all(row, namespace) })
}

pub(super) fn list(core: &Core, request: &api::ListRequest) -> Result<ListRequest> {
    Ok(ListRequest {
        selection: selection(core, request)?,
        revision: revision(request.revision)?,
        matching: (request.revision > 0).then_some(Match::Exact),
        limit: usize::try_from(request.limit).unwrap_or(0),
        page: None,
    })
}

/// 0 is "the latest".
pub(super) fn revision(number: i64) -> Result<Option<Revision>> {
    match number {
        0 => Ok(None),
        n if n > 0 => Ok(Some(Revision::new(n))),
        n => Err(Status::bad_request(format!("revision: {n} is negative"))),
    }
}

pub(super) fn write_options(options: Option<&api::WriteOptions>) -> Result<WriteOptions> {
    let options = options.cloned().unwrap_or_default();
    Ok(WriteOptions {
        dry_run: options.dry_run,
        manager: options.field_manager,
        validation: FieldValidation::parse(&options.field_validation, "WriteOptions")?,
        fence: (options.fence_term > 0).then(|| Term::new(options.fence_term)),
    })
}

/// The object of a write.
pub(super) fn object(
    core: &Core,
    row: &Row,
    object: Option<&api::Object>,
    options: &WriteOptions,
    warnings: &mut Vec<String>,
) -> Result<Value> {
    let object = object.ok_or_else(|| Status::bad_request("object: required"))?;
    let mut value = body::object(row, media(object), &object.raw, options.validation, warnings)?;
    if let Some(custom) = core.custom(row) {
        custom.check_fields(row, &mut value, options.validation, warnings)?;
    }
    Ok(value)
}

pub(super) fn media(object: &api::Object) -> Media {
    match object.encoding() {
        api::Encoding::Json => Media::Json,
        api::Encoding::Protobuf => Media::Protobuf,
    }
}

pub(super) fn delete_options(request: &api::DeleteRequest) -> Result<DeleteOptions> {
    let preconditions = request.preconditions.clone().unwrap_or_default();
    let mut how = with_policy(request.grace_period_seconds, &request.propagation_policy)?;
    how.uid = Some(preconditions.uid).filter(|u| !u.is_empty());
    how.resource_version = (preconditions.revision > 0).then(|| preconditions.revision.to_string());
    Ok(how)
}

pub(super) fn with_policy(grace: Option<i64>, policy: &str) -> Result<DeleteOptions> {
    let mut body = json!({});
    if let Some(seconds) = grace {
        body["gracePeriodSeconds"] = json!(seconds);
    }
    if !policy.is_empty() {
        body["propagationPolicy"] = json!(policy);
    }
    DeleteOptions::from_body(&body)
}

pub(super) fn from_cached(row: &Row, object: &Cached) -> api::Object {
    api::Object {
        api_version: row.api_version(),
        kind: row.kind.clone(),
        encoding: api::Encoding::Json.into(),
        raw: bytes_of(row, object),
        revision: object.revision.get(),
    }
}

pub(super) fn from_done(done: &Done) -> api::Object {
    api::Object { raw: done.bytes(), revision: done.revision.get(), ..from_tree(&done.object) }
}

pub(super) fn from_tree(object: &Value) -> api::Object {
    let text = |key: &str| object[key].as_str().unwrap_or_default().to_owned();
    let revision = object["metadata"]["resourceVersion"].as_str().and_then(|t| t.parse().ok()).unwrap_or(0);
    api::Object {
        api_version: text("apiVersion"),
        kind: text("kind"),
        encoding: api::Encoding::Json.into(),
        raw: serde_json::to_vec(object).map(Into::into).unwrap_or_default(),
        revision,
    }
}
