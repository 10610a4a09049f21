//! Who owns which field: `metadata.managedFields` after ordinary writes, and server-side apply.

use std::sync::Arc;

use kontiki_base::Code;
use kontiki_base::object::Gvk;
use kontiki_registry::patch::{self, ApplyError, PatchError, Writer};
use kontiki_registry::row::Row;
use kontiki_registry::status::{Cause, Details, Status};
use serde_json::Value;

use super::WriteOptions;
use super::update::Change;
use crate::crd::Custom;
use crate::error::Result;

/// Notes in `object` what this write says about ownership. `old`: the live object, if there is one.
pub(crate) fn on_write(
    row: &Row,
    custom: Option<&Custom>,
    object: &mut Value,
    old: Option<&Value>,
    options: &WriteOptions,
    sub: Option<&str>,
    now: &str,
) {
    let manager = if options.manager.is_empty() { "unknown" } else { &options.manager };
    let gvk = row.gvk();
    let writer = Writer::new(&gvk, manager, sub.unwrap_or_default(), now);
    match custom {
        Some(custom) => patch::managed::update(old, object, &writer.with_schema(&custom.schema)),
        None => patch::managed::update(old, object, &writer),
    }
}

/// The change that an apply makes.
pub(crate) fn apply_of(
    row: &Row,
    custom: Option<Arc<Custom>>,
    body: &[u8],
    options: &WriteOptions,
    force: bool,
    sub: &str,
    now: &str,
) -> Result<Box<Change<'static>>> {
    let applied: Value = serde_yaml_ng::from_slice(body).map_err(|e| Status::bad_request(format!("error decoding YAML: {e}")))?;
    if !applied.is_object() {
        return Err(Status::bad_request("error decoding YAML: an object is needed"));
    }
    if applied["metadata"]["managedFields"].is_array() {
        return Err(Status::bad_request("metadata.managedFields must be nil"));
    }
    let gvk = row.gvk();
    let given = Gvk::from_api_version(applied["apiVersion"].as_str().unwrap_or_default(), applied["kind"].as_str().unwrap_or_default());
    if given != gvk {
        return Err(Status::bad_request(format!("invalid object type: {given}")));
    }
    let (manager, sub, now) = (options.manager.clone(), sub.to_owned(), now.to_owned());
    let change = move |live: Option<&Value>| {
        let writer = Writer::new(&gvk, &manager, &sub, &now);
        let writer = match &custom {
            Some(custom) => writer.with_schema(&custom.schema),
            None => writer,
        };
        patch::apply_as(live, &applied, &writer, force).map_err(refused)
    };
    Ok(Box::new(change))
}

fn refused(error: ApplyError) -> Status {
    match error {
        ApplyError::Conflicts { message, causes } => {
            let cause = |c: patch::ConflictCause| Cause { reason: "FieldManagerConflict".into(), message: c.message, field: c.field };
            let details = Details { causes: causes.into_iter().map(cause).collect(), ..Details::default() };
            Status::new(Code::Conflict, message).with_details(details)
        }
        ApplyError::Patch(PatchError::Unmergeable(message)) => Status::bare_error(message),
        ApplyError::Patch(error) => Status::new(error.code(), error.to_string()),
    }
}
