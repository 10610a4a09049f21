//! The REST door: from method, path and query to a verb, and back to an answer.

pub(crate) mod respond;
pub(crate) mod watch;
mod write;

use std::sync::{Arc, Mutex, PoisonError};

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, Method, Response};
use kontiki_base::Term;
use kontiki_registry::rbac::User;
use kontiki_registry::row::{Row, Sub, Verb};
use kontiki_registry::schema::decode::FieldValidation;
use kontiki_registry::status::Status;
use serde_json::{Value, json};

use crate::core::Core;
use crate::error::Result;
use crate::negotiate::{self, Form};
use crate::path::ResourcePath;
use crate::query::Query;
use crate::sub;
use crate::verbs::{Target, WriteOptions};

/// Header by which a controller says under which term it acts.
const FENCE_HEADER: &str = "kontiki-fence-term";

/// A request on a resource, its row found and its caller known.
pub(crate) struct Call {
    pub(crate) core: Arc<Core>,
    pub(crate) user: User,
    pub(crate) row: Arc<Row>,
    pub(crate) path: ResourcePath,
    pub(crate) method: Method,
    pub(crate) query: Query,
    pub(crate) headers: HeaderMap,
    /// Behind a lock only so that `&Call` can cross threads: a body is not `Sync`.
    pub(crate) body: Mutex<Body>,
    /// Sent as `Warning` headers.
    pub(crate) warnings: Vec<String>,
}

impl std::fmt::Debug for Call {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Call").field("method", &self.method).field("path", &self.path).finish_non_exhaustive()
    }
}

impl Call {
    /// Reads the whole body; a second time there is none.
    pub(crate) async fn read_body(&mut self) -> Result<Bytes> {
        let body = std::mem::take(self.body.get_mut().unwrap_or_else(PoisonError::into_inner));
        crate::body::read(body).await
    }

    /// A header as text; empty if it is not there.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default()
    }

    /// The form that the client wants its answer in.
    pub(crate) fn form(&self) -> Result<Form> {
        let mut form = negotiate::accept(self.header("accept"))?;
        let agent = self.header("user-agent");
        let person = ["curl", "Wget", "Mozilla/5.0"].iter().any(|a| agent.starts_with(a));
        form.pretty |= if self.query.has("pretty") { self.query.flag("pretty") } else { person };
        Ok(form)
    }

    /// What the answer needs besides its objects. `row`: the kind that is shown.
    fn show(&self, row: &Row) -> Result<Show> {
        let include = respond::include(self.query.get("includeObject"))?;
        Ok(Show { include, custom: self.core.custom(row), now: self.core.now_seconds() })
    }

    /// Looks for fields that a custom resource does not have.
    pub(crate) fn check_custom(&mut self, object: &mut Value, mode: FieldValidation) -> Result<()> {
        match self.core.custom(&self.row) {
            Some(custom) => custom.check_fields(&self.row, object, mode, &mut self.warnings),
            None => Ok(()),
        }
    }

    /// The object that the path names.
    pub(crate) fn target(&self) -> Target {
        Target::of(&self.row, self.path.object_namespace(), &self.path.name)
    }

    /// Options of a write.
    pub(crate) fn write_options(&self, kind: &str) -> Result<WriteOptions> {
        let mut options = self.query.write(kind, self.header("user-agent"))?;
        let fence = self.header(FENCE_HEADER);
        if !fence.is_empty() {
            let term = fence.parse().map_err(|_| Status::bad_request(format!("{FENCE_HEADER}: {fence:?} is no term")))?;
            options.fence = Some(Term::new(term));
        }
        Ok(options)
    }

    /// Answers with one object.
    pub(crate) fn answer_object(&self, code: u16, row: &Row, object: &Value) -> Result<Response<Body>> {
        respond::one(code, row, self.form()?, &self.show(row)?, object)
    }

    /// Answers with a tree that is no object of a kind: a Status, a review.
    pub(crate) fn answer_tree(&self, code: u16, tree: &Value) -> Result<Response<Body>> {
        respond::tree(code, self.form()?, tree)
    }
}

/// Carries out a request on a resource.
pub(crate) async fn serve(call: &mut Call) -> Result<Response<Body>> {
    // What cannot be answered is not carried out.
    call.form()?;
    if !call.path.sub.is_empty() {
        let sub = call.row.subresource(&call.path.sub).cloned().ok_or_else(Status::no_such_resource)?;
        return sub::serve(call, &sub).await;
    }
    if call.path.name.is_empty() { collection(call).await } else { named(call).await }
}

async fn collection(call: &mut Call) -> Result<Response<Body>> {
    let whole = call.row.namespaced && call.path.object_namespace().is_empty();
    match call.method.as_str() {
        "GET" if call.path.legacy_watch || call.query.flag("watch") => {
            require(&call.row, Verb::Watch)?;
            watch_answer(call).await
        }
        "GET" => {
            require(&call.row, Verb::List)?;
            let request = call.query.list(&call.row, call.path.object_namespace())?;
            let (form, show) = (call.form()?, call.show(&call.row)?);
            let listed = call.core.list(&request).await?;
            respond::list(&call.row, form, &show, &listed)
        }
        "POST" if !call.row.is_stored() => sub::review::create(call).await,
        "POST" if !whole => {
            require(&call.row, Verb::Create)?;
            write::create(call).await
        }
        "DELETE" if !whole => {
            require(&call.row, Verb::DeleteCollection)?;
            write::delete_collection(call).await
        }
        _ => Err(Status::method_not_allowed()),
    }
}

async fn named(call: &mut Call) -> Result<Response<Body>> {
    match call.method.as_str() {
        "GET" if call.path.legacy_watch => {
            require(&call.row, Verb::Watch)?;
            watch_answer(call).await
        }
        "GET" => {
            require(&call.row, Verb::Get)?;
            get(call).await
        }
        "PUT" => {
            require(&call.row, Verb::Update)?;
            write::update(call, None).await
        }
        "PATCH" => {
            require(&call.row, Verb::Patch)?;
            write::patch(call, None).await
        }
        "DELETE" => {
            require(&call.row, Verb::Delete)?;
            write::delete(call).await
        }
        _ => Err(Status::method_not_allowed()),
    }
}

fn require(row: &Row, verb: Verb) -> Result<()> {
    if row.has_verb(verb) { Ok(()) } else { Err(Status::method_not_allowed()) }
}

/// GET of an object, or of an object through a subresource that shows it whole.
pub(crate) async fn get(call: &Call) -> Result<Response<Body>> {
    let (form, show) = (call.form()?, call.show(&call.row)?);
    let object = call.core.get(&call.target(), call.query.revision()?).await?;
    respond::cached(&call.row, form, &show, &object)
}

/// PUT of an object through a subresource.
pub(crate) async fn update(call: &mut Call, sub: &Sub) -> Result<Response<Body>> {
    write::update(call, Some(sub)).await
}

/// PATCH of an object through a subresource.
pub(crate) async fn patch(call: &mut Call, sub: &Sub) -> Result<Response<Body>> {
    write::patch(call, Some(sub)).await
}

use respond::Show;
/// The patch function of a request: from the live object to the new one.
pub(crate) use write::patch_of;

async fn watch_answer(call: &Call) -> Result<Response<Body>> {
    let mut request = call.query.watch(&call.row, call.path.object_namespace())?;
    if !call.path.name.is_empty() {
        let pinned = request.selection.fields.pinned_name();
        if pinned.is_some_and(|p| p != call.path.name) {
            return Err(Status::bad_request("fieldSelector metadata.name doesn't match requested name"));
        }
        let text = format!("metadata.name={}", call.path.name);
        request.selection.fields = kontiki_registry::select::FieldSelector::parse(&call.row, &text)?;
    }
    let (form, show) = (call.form()?, call.show(&call.row)?);
    if form.media != negotiate::Media::Json {
        return Err(Status::not_acceptable(negotiate::MEDIA_TYPES));
    }
    let watch = call.core.watch(request).await;
    watch::answer(call.row.clone(), form, show, watch)
}

/// Success without an object: what bindings and evictions answer.
pub(crate) fn success() -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201})
}
