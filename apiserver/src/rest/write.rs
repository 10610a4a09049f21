//! Writes through the REST door: bodies and options in, objects or statuses out.

use axum::body::Body;
use http::Response;
use kontiki_base::Code;
use kontiki_registry::delete::{DeleteOptions, JOB_WARNING};
use kontiki_registry::patch::{self, PatchError, PatchType};
use kontiki_registry::row::{Row, Sub};
use kontiki_registry::schema::decode::{self, FieldValidation};
use kontiki_registry::status::{self, Status};
use kontiki_registry::write_rules::Write;
use serde_json::{Value, json};

use super::Call;
use crate::body;
use crate::core::Core;
use crate::error::Result;
use crate::negotiate::{self, Media};
use crate::verbs::Target;
use crate::verbs::commit::Done;
use crate::verbs::create::NewObject;
use crate::verbs::update::{Change, Update};

/// POST to a collection.
pub(super) async fn create(call: &mut Call) -> Result<Response<Body>> {
    let options = call.write_options("CreateOptions")?;
    let media = negotiate::content(call.header("content-type"))?;
    let bytes = call.read_body().await?;
    let row = call.row.clone();
    let mut object = body::object(&row, media, &bytes, options.validation, &mut call.warnings)?;
    call.check_custom(&mut object, options.validation)?;
    let namespace = call.path.object_namespace().to_owned();
    check_namespace(&row, &namespace, &mut object)?;
    let target = Target::of(&row, &namespace, "");
    let done = call.core.create(&call.user, &NewObject { target, body: object, applied: false }, &options).await?;
    call.answer_object(201, &row, &done.object)
}

fn check_namespace(row: &Row, namespace: &str, object: &mut Value) -> Result<()> {
    if !row.namespaced {
        return Ok(());
    }
    let given = object["metadata"]["namespace"].as_str().unwrap_or_default();
    if !given.is_empty() && given != namespace {
        return Err(Status::bad_request("the namespace of the provided object does not match the namespace sent on the request"));
    }
    object["metadata"]["namespace"] = json!(namespace);
    Ok(())
}

/// PUT.
pub(super) async fn update(call: &mut Call, sub: Option<&Sub>) -> Result<Response<Body>> {
    let options = call.write_options("UpdateOptions")?;
    let media = negotiate::content(call.header("content-type"))?;
    let bytes = call.read_body().await?;
    let row = call.row.clone();
    let mut object = body::object(&row, media, &bytes, options.validation, &mut call.warnings)?;
    call.check_custom(&mut object, options.validation)?;
    let change: Box<Change<'_>> = Box::new(move |_| Ok(object.clone()));
    let update = Update { target: call.target(), sub: sub.cloned(), write: Write::Update, own: false, change };
    let done = call.core.update(&call.user, &update, &options).await?;
    call.answer_object(if done.created { 201 } else { 200 }, &row, &done.object)
}

/// PATCH.
pub(super) async fn patch(call: &mut Call, sub: Option<&Sub>) -> Result<Response<Body>> {
    let options = call.write_options("PatchOptions")?;
    let kind = PatchType::from_media_type(call.header("content-type")).ok_or_else(|| {
        let mut status = Status::unsupported_media(negotiate::MEDIA_TYPES);
        status.message = "415: Unsupported Media Type".into();
        status.with_details(status::Details::default())
    })?;
    let force = call.query.flag("force");
    check_patch_options(kind, call.query.has("force"), call.query.get("fieldManager"))?;
    let bytes = call.read_body().await?;
    let row = call.row.clone();
    let (change, write) = patch_of(&call.core, &row, kind, &bytes, &options, force, sub.map_or("", |s| &s.name))?;
    let update = Update { target: call.target(), sub: sub.cloned(), write, own: false, change };
    let done = call.core.update(&call.user, &update, &options).await?;
    call.answer_object(if done.created { 201 } else { 200 }, &row, &done.object)
}

fn check_patch_options(kind: PatchType, force_given: bool, manager: &str) -> Result<()> {
    use kontiki_registry::field::{Errors, Path};
    let mut errors = Errors::default();
    if kind == PatchType::ApplyYaml {
        if manager.is_empty() {
            errors.required(&Path::new("fieldManager"), "is required for apply patch");
        }
    } else if force_given {
        errors.forbidden(&Path::new("force"), "may not be specified for non-apply patch");
    }
    if errors.is_empty() { Ok(()) } else { Err(Status::invalid_kind("meta.k8s.io", "PatchOptions", "", &errors)) }
}

/// The function of a patch, and which preconditions go with it.
pub(crate) fn patch_of(
    core: &Core,
    row: &std::sync::Arc<Row>,
    kind: PatchType,
    bytes: &[u8],
    options: &crate::verbs::WriteOptions,
    force: bool,
    sub: &str,
) -> Result<(Box<Change<'static>>, Write)> {
    let custom = core.custom(row);
    if kind == PatchType::Strategic && custom.is_some() {
        let accepted = [PatchType::Json, PatchType::Merge, PatchType::ApplyYaml].map(PatchType::media_type);
        return Err(Status::unsupported_media(&accepted));
    }
    let now = core.now();
    if kind == PatchType::ApplyYaml {
        let change = crate::verbs::managed::apply_of(row, custom, bytes, options, force, sub, &now)?;
        return Ok((change, Write::Apply));
    }
    let patch: Value = serde_json::from_slice(bytes).map_err(|e| Status::bad_request(format!("error decoding patch: {e}")))?;
    check_shape(kind, &patch)?;
    let (row, gvk) = (row.clone(), row.gvk());
    // Warnings about what a patched object has too much are left out: a patch is carried out more than once.
    let mode = if options.validation == FieldValidation::Strict { FieldValidation::Strict } else { FieldValidation::Ignore };
    let change = move |live: Option<&Value>| {
        let live = live.ok_or_else(|| Status::not_found(&row, ""))?;
        let patched = match kind {
            PatchType::Json => patch::json(live, &patch),
            PatchType::Strategic => patch::strategic(live, &patch, &gvk),
            PatchType::Merge | PatchType::ApplyYaml => patch::merge(live, &patch),
        };
        let object = patched.map_err(|e| patch_failed(&e))?;
        Ok(decode::decode_patched(&row, object, mode)?.object)
    };
    Ok((Box::new(change), Write::Patch))
}

fn check_shape(kind: PatchType, patch: &Value) -> Result<()> {
    let shape = |is: &str, want: &str| {
        Err(Status::bad_request(format!("error decoding patch: json: cannot unmarshal {is} into Go value of type {want}")))
    };
    let is = if patch.is_array() { "array" } else { "object" };
    match kind {
        PatchType::Json if !patch.is_array() => shape(is, "[]handlers.jsonPatchOp"),
        PatchType::Merge | PatchType::Strategic if !patch.is_object() => shape(is, "map[string]interface {}"),
        _ => Ok(()),
    }
}

fn patch_failed(error: &PatchError) -> Status {
    match error {
        PatchError::Unmergeable(message) => Status::bare_error(message.clone()),
        PatchError::DoesNotApply(_) => Status::new(Code::Invalid, "the server rejected our request due to an error in our request")
            .with_details(status::Details::default()),
        PatchError::Malformed(message) | PatchError::TooLarge(message) => Status::new(error.code(), message.clone()),
    }
}

/// Options of a deletion: the body, or else the query.
async fn delete_options(call: &mut Call) -> Result<DeleteOptions> {
    let media = negotiate::content(call.header("content-type"));
    let bytes = call.read_body().await?;
    if bytes.is_empty() {
        return DeleteOptions::from_query(call.query.pairs());
    }
    let media: Media = media?;
    DeleteOptions::from_body(&body::parse(media, &bytes, "DeleteOptions")?.value)
}

/// DELETE of one object.
pub(super) async fn delete(call: &mut Call) -> Result<Response<Body>> {
    let mut options = call.write_options("DeleteOptions")?;
    let how = delete_options(call).await?;
    options.dry_run |= how.dry_run;
    warn_about_jobs(call, &how);
    let done = call.core.delete(&call.target(), &how, &options).await?;
    let row = call.row.clone();
    if done.gone && !row.rules.delete_returns_object {
        return call.answer_tree(200, &status::deleted(&row, &done.target.name, done.uid()));
    }
    let code = if !done.gone && how.orphan_false { 202 } else { 200 };
    call.answer_object(code, &row, &done.object)
}

fn warn_about_jobs(call: &mut Call, how: &DeleteOptions) {
    if call.row.group == "batch" && call.row.kind == "Job" && how.propagation.is_none() {
        call.warnings.push(JOB_WARNING.into());
    }
}

/// DELETE of a collection.
pub(super) async fn delete_collection(call: &mut Call) -> Result<Response<Body>> {
    let mut options = call.write_options("DeleteOptions")?;
    let request = call.query.list(&call.row, call.path.object_namespace())?;
    let how = delete_options(call).await?;
    options.dry_run |= how.dry_run;
    let (revision, deleted) = call.core.delete_collection(&request, &how, &options).await?;
    let items: Vec<Value> = deleted.into_iter().map(|d: Done| d.object).collect();
    let row = &call.row;
    let meta = json!({"resourceVersion": revision.to_resource_version()});
    call.answer_tree(200, &json!({"kind": row.list_kind, "apiVersion": row.api_version(), "metadata": meta, "items": items}))
}
