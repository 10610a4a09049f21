//! The gRPC door: `kontiki.api.v1.Resources`, health and reflection.

mod convert;
pub(crate) mod errors;
mod streams;
mod writes;

use std::sync::Arc;

use kontiki_base::limits;
use kontiki_proto::api;
use kontiki_proto::api::resources_server::{Resources, ResourcesServer};
use kontiki_registry::rbac::{self, Decision, User};
use kontiki_registry::row::Row;
use kontiki_registry::status::Status;
use tonic::{Request, Response};

use crate::auth::Caller;
use crate::core::Core;
use crate::error::Result;
use crate::stack;
use crate::sub::scale;
use crate::verbs::served;
use crate::verbs::watch::{Begin, WatchRequest};

use errors::to_tonic;
use streams::Answers;

/// The services of the gRPC door as one router.
pub(crate) fn router(core: &Arc<Core>, extra: Option<axum::Router>) -> axum::Router {
    let service = ResourcesServer::new(Door { core: core.clone() })
        .max_decoding_message_size(limits::BODY_BYTES)
        .max_encoding_message_size(usize::MAX);
    let (reporter, health) = tonic_health::server::health_reporter();
    core.env.spawn("grpc-health", Box::pin(report(core.clone(), reporter)));
    let mut routes = tonic::service::Routes::new(service).add_service(health);
    let reflection = || tonic_reflection::server::Builder::configure().register_encoded_file_descriptor_set(kontiki_proto::DESCRIPTORS);
    match (reflection().build_v1(), reflection().build_v1alpha()) {
        (Ok(v1), Ok(v1alpha)) => routes = routes.add_service(v1).add_service(v1alpha),
        (Err(error), _) | (_, Err(error)) => tracing::error!(%error, "no gRPC reflection"),
    }
    let router = routes.into_axum_router();
    match extra {
        Some(extra) => router.merge(extra),
        None => router,
    }
}

/// Keeps the health service in step with the store: it serves while a leader is known.
async fn report(core: Arc<Core>, reporter: tonic_health::server::HealthReporter) {
    loop {
        let status = core.kv.status();
        if status.has_leader && !*core.stopping.borrow() {
            reporter.set_serving::<ResourcesServer<Door>>().await;
        } else {
            reporter.set_not_serving::<ResourcesServer<Door>>().await;
        }
        tokio::select! {
            () = core.kv.status_changed(status) => {}
            () = core.stopped() => return reporter.set_not_serving::<ResourcesServer<Door>>().await,
        }
    }
}

/// The service.
#[derive(Clone, Debug)]
pub(crate) struct Door {
    core: Arc<Core>,
}

impl Door {
    fn user<T>(request: &Request<T>) -> User {
        request.extensions().get::<Caller>().map_or_else(User::anonymous, |c| c.0.clone())
    }

    /// The same question that the REST door asks.
    fn authorize(user: &User, verb: &str, row: &Row, sub: &str, namespace: &str, name: &str) -> Result<()> {
        // A namespace lies in itself, as in its URL.
        let namespace = if row.group.is_empty() && row.plural == "namespaces" { name } else { namespace };
        let target = rbac::Target::row(row, sub, namespace, name);
        match rbac::authorize(user, verb, target) {
            Decision::Allow => Ok(()),
            Decision::Deny(why) => Err(rbac::forbidden(user, verb, target, &why)),
        }
    }

    async fn get_object(&self, user: &User, request: &api::GetRequest) -> Result<api::Object> {
        let named = convert::named(&self.core, request.r#ref.as_ref())?;
        let target = &named.target;
        Self::authorize(user, "get", &target.row, &named.sub, &target.namespace, &target.name)?;
        named.sub()?;
        let object = match convert::revision(request.revision)? {
            None => self.core.get(target, None).await?,
            Some(revision) => self.core.get_at(target, revision).await?,
        };
        match named.sub.as_str() {
            "" | "status" => Ok(convert::from_cached(&target.row, &object)),
            "scale" => {
                let paths = scale::Paths::of(&self.core, &target.row);
                Ok(convert::from_tree(&scale::of(&paths, &served(&target.row, object.value()))?))
            }
            other => Err(Status::unimplemented(&format!("Get of subresource {other}"))),
        }
    }

    async fn list_objects(&self, user: &User, request: &api::ListRequest) -> Result<Answers<api::ListResponse>> {
        let list = convert::list(&self.core, request)?;
        let row = list.selection.row.clone();
        Self::authorize(user, "list", &row, "", &list.selection.namespace, "")?;
        Ok(streams::list(row, self.core.list(&list).await?))
    }

    async fn watch_objects(&self, user: &User, request: &api::WatchRequest) -> Result<Answers<api::WatchResponse>> {
        let row = convert::row(&self.core, request.resource.as_ref())?;
        Self::authorize(user, "watch", &row, "", &request.namespace, "")?;
        let selection = convert::select(&row, &request.namespace, &request.label_selector, &request.field_selector)?;
        let begin = convert::revision(request.after_revision)?.map_or(Begin::State(None), Begin::After);
        // A gRPC stream lives as long as its client wants: HTTP/2 pings find the dead ones.
        let timeout = Some(std::time::Duration::from_secs(365 * 86_400));
        let watch = WatchRequest { selection, begin, bookmarks: request.bookmarks, mark_end: true, timeout };
        Ok(streams::watch(row, self.core.watch(watch).await?))
    }
}

/// Says on the request's span what it is about.
fn tell(resource: Option<&api::Resource>, namespace: &str, name: &str) {
    stack::tell(&tracing::Span::current(), resource.map_or("", |r| &r.resource), namespace, name);
}

/// The same, of one object.
fn tell_ref(object: Option<&api::ObjectRef>) {
    if let Some(object) = object {
        tell(object.resource.as_ref(), &object.namespace, &object.name);
    }
}

fn answer<T>(result: Result<T>) -> std::result::Result<Response<T>, tonic::Status> {
    result.map(Response::new).map_err(|status| to_tonic(&status))
}

/// An answer to a write: warnings travel as metadata.
fn answer_write<T>(result: Result<T>, warnings: &[String]) -> std::result::Result<Response<T>, tonic::Status> {
    let mut response = answer(result)?;
    for warning in warnings {
        if let Ok(value) = warning.parse() {
            response.metadata_mut().append("warning", value);
        }
    }
    Ok(response)
}

#[tonic::async_trait]
impl Resources for Door {
    type ListStream = Answers<api::ListResponse>;
    type WatchStream = Answers<api::WatchResponse>;

    async fn get(&self, request: Request<api::GetRequest>) -> std::result::Result<Response<api::Object>, tonic::Status> {
        tell_ref(request.get_ref().r#ref.as_ref());
        answer(self.get_object(&Self::user(&request), request.get_ref()).await)
    }

    async fn list(&self, request: Request<api::ListRequest>) -> std::result::Result<Response<Self::ListStream>, tonic::Status> {
        tell(request.get_ref().resource.as_ref(), &request.get_ref().namespace, "");
        answer(self.list_objects(&Self::user(&request), request.get_ref()).await)
    }

    async fn watch(&self, request: Request<api::WatchRequest>) -> std::result::Result<Response<Self::WatchStream>, tonic::Status> {
        tell(request.get_ref().resource.as_ref(), &request.get_ref().namespace, "");
        answer(self.watch_objects(&Self::user(&request), request.get_ref()).await)
    }

    async fn create(&self, request: Request<api::CreateRequest>) -> std::result::Result<Response<api::Object>, tonic::Status> {
        tell(request.get_ref().resource.as_ref(), &request.get_ref().namespace, &request.get_ref().name);
        let mut warnings = Vec::new();
        let result = self.create_object(&Self::user(&request), request.get_ref(), &mut warnings).await;
        answer_write(result, &warnings)
    }

    async fn update(&self, request: Request<api::UpdateRequest>) -> std::result::Result<Response<api::Object>, tonic::Status> {
        tell_ref(request.get_ref().r#ref.as_ref());
        let mut warnings = Vec::new();
        let result = self.update_object(&Self::user(&request), request.get_ref(), &mut warnings).await;
        answer_write(result, &warnings)
    }

    async fn patch(&self, request: Request<api::PatchRequest>) -> std::result::Result<Response<api::Object>, tonic::Status> {
        tell_ref(request.get_ref().r#ref.as_ref());
        answer(self.patch_object(&Self::user(&request), request.get_ref()).await)
    }

    async fn apply(&self, request: Request<api::ApplyRequest>) -> std::result::Result<Response<api::Object>, tonic::Status> {
        tell_ref(request.get_ref().r#ref.as_ref());
        answer(self.apply_object(&Self::user(&request), request.get_ref()).await)
    }

    async fn delete(&self, request: Request<api::DeleteRequest>) -> std::result::Result<Response<api::DeleteResponse>, tonic::Status> {
        tell_ref(request.get_ref().r#ref.as_ref());
        answer(self.delete_object(&Self::user(&request), request.get_ref()).await)
    }

    async fn delete_collection(
        &self,
        request: Request<api::DeleteCollectionRequest>,
    ) -> std::result::Result<Response<api::DeleteCollectionResponse>, tonic::Status> {
        if let Some(list) = &request.get_ref().list {
            tell(list.resource.as_ref(), &list.namespace, "");
        }
        answer(self.delete_objects(&Self::user(&request), request.get_ref()).await)
    }

    async fn transact(
        &self,
        request: Request<api::TransactRequest>,
    ) -> std::result::Result<Response<api::TransactResponse>, tonic::Status> {
        let mut warnings = Vec::new();
        let result = self.transact_objects(&Self::user(&request), request.get_ref(), &mut warnings).await;
        answer_write(result, &warnings)
    }
}
