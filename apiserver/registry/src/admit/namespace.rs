//! Objects go into namespaces that exist and are not being deleted (admission plugin `NamespaceLifecycle`).

use serde_json::Value;

use super::Request;
use crate::status::{Cause, Status};
use crate::val::str_at;

/// Access reviews are answered for namespaces that do not exist.
fn is_exempt(req: &Request<'_>) -> bool {
    !req.row.namespaced || req.row.group == "authorization.k8s.io"
}

/// Whether an object may be created in the namespace of the request.
pub fn check_create(req: &Request<'_>, obj: &Value, namespace: Option<&Value>) -> Result<(), Status> {
    check_update(req, namespace)?;
    let terminating = namespace.is_some_and(|n| n["metadata"]["deletionTimestamp"].is_string() || n["status"]["phase"] == "Terminating");
    // Subresources such as bindings act on what is there already.
    if is_exempt(req) || !terminating || req.sub.is_some() {
        return Ok(());
    }
    let ns = req.namespace;
    let name = str_at(obj, &["metadata", "name"]);
    let why = format!("unable to create new content in namespace {ns} because it is being terminated");
    let mut status = Status::forbidden(req.row, name, &why);
    if let Some(d) = &mut status.details {
        d.causes = vec![Cause {
            reason: "NamespaceTerminating".into(),
            message: format!("namespace {ns} is being terminated"),
            field: "metadata.namespace".into(),
        }];
    }
    Err(status)
}

/// Whether the namespace of the request exists.
pub fn check_update(req: &Request<'_>, namespace: Option<&Value>) -> Result<(), Status> {
    if is_exempt(req) || namespace.is_some() { Ok(()) } else { Err(Status::no_such_namespace(req.namespace)) }
}
