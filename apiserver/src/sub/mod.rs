//! Subresources, and kinds that are served but never stored.

pub(crate) mod binding;
pub(crate) mod eviction;
mod log;
pub(crate) mod review;
pub(crate) mod scale;

use axum::body::Body;
use http::Response;
use kontiki_registry::row::Sub;
use kontiki_registry::status::Status;
use serde_json::Value;

use crate::error::Result;
use crate::negotiate;
use crate::rest::{self, Call};
use crate::verbs::Target;
use crate::verbs::update::Update;
use crate::{body, verbs};

/// Carries out a request on a subresource.
pub(crate) async fn serve(call: &mut Call, sub: &Sub) -> Result<Response<Body>> {
    let method = call.method.as_str().to_owned();
    match (sub.name.as_str(), method.as_str()) {
        ("status" | "ephemeralcontainers" | "resize" | "approval", "GET") => rest::get(call).await,
        ("status" | "ephemeralcontainers" | "resize" | "approval", "PUT") => rest::update(call, sub).await,
        ("status" | "ephemeralcontainers" | "resize" | "approval", "PATCH") => rest::patch(call, sub).await,
        ("scale", "GET" | "PUT" | "PATCH") => scale::serve(call, sub).await,
        ("binding", "POST") => binding::serve(call).await,
        ("eviction", "POST") => eviction::serve(call).await,
        ("finalize", "PUT") => finalize(call).await,
        ("log", "GET") => log::serve(call).await,
        ("exec" | "attach" | "portforward" | "proxy" | "token", _) => {
            call.core.get(&call.target(), None).await?;
            Err(Status::unimplemented(&format!("{}/{}", call.row.group_resource(), sub.name)))
        }
        _ => Err(Status::method_not_allowed()),
    }
}

/// Reads the body of a POST or PUT to a subresource whose kind is not that of the row.
pub(crate) async fn read_object(call: &mut Call, sub: &Sub, kind: &str) -> Result<(Value, verbs::WriteOptions)> {
    let options = call.write_options(kind)?;
    let media = negotiate::content(call.header("content-type"))?;
    let bytes = call.read_body().await?;
    Ok((body::of_kind(&sub.gvk, media, &bytes)?, options))
}

/// PUT namespaces/{name}/finalize: only `spec.finalizers` is taken.
async fn finalize(call: &mut Call) -> Result<Response<Body>> {
    let options = call.write_options("UpdateOptions")?;
    let media = negotiate::content(call.header("content-type"))?;
    let bytes = call.read_body().await?;
    let row = call.row.clone();
    let given = body::object(&row, media, &bytes, options.validation, &mut call.warnings)?;
    let update = finalizing(call.target(), given);
    let done = call.core.update(&call.user, &update, &options).await?;
    call.answer_object(200, &row, &done.object)
}

/// The change that takes `spec.finalizers` of `given`, with its resource version and uid as preconditions.
pub(crate) fn finalizing<'a>(target: Target, given: Value) -> Update<'a> {
    Update::own(target, move |live| {
        let mut new = live.clone();
        for field in ["resourceVersion", "uid"] {
            if given["metadata"][field].is_string() {
                kontiki_registry::val::copy(&mut new, &given, &["metadata", field]);
            }
        }
        kontiki_registry::val::copy(&mut new, &given, &["spec", "finalizers"]);
        if kontiki_registry::val::list_at(&new, &["spec", "finalizers"]).is_empty() {
            kontiki_registry::val::take(&mut new, &["spec", "finalizers"]);
        }
        Ok(new)
    })
}
