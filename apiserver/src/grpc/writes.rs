//! Writes through the gRPC door.

use std::sync::Arc;

use kontiki_proto::api;
use kontiki_registry::patch::PatchType;
use kontiki_registry::rbac::User;
use kontiki_registry::row::{Row, Sub};
use kontiki_registry::status::Status;
use kontiki_registry::val;
use kontiki_registry::write_rules::Write;
use serde_json::Value;

use super::{Door, convert};
use crate::body;
use crate::error::Result;
use crate::rest::patch_of;
use crate::sub::{binding, eviction};
use crate::verbs::create::NewObject;
use crate::verbs::transact::OneWrite;
use crate::verbs::update::{Change, Update};
use crate::verbs::{Target, WriteOptions};

/// Subresources that are written as the whole object.
const WHOLE: &[&str] = &["", "status", "ephemeralcontainers", "resize", "approval"];

fn whole_only(sub: &str, what: &str) -> Result<()> {
    if WHOLE.contains(&sub) { Ok(()) } else { Err(Status::unimplemented(&format!("{what} of subresource {sub}"))) }
}

impl Door {
    pub(super) async fn create_object(&self, user: &User, request: &api::CreateRequest, warnings: &mut Vec<String>) -> Result<api::Object> {
        let options = convert::write_options(request.options.as_ref())?;
        if request.subresource == "eviction" {
            return self.evict(user, request, &options).await;
        }
        match self.creation(user, request, &options, warnings)? {
            OneWrite::Create(new) => Ok(convert::from_done(&self.core.create(user, &new, &options).await?)),
            OneWrite::Update(update) => Ok(convert::from_done(&self.core.update(user, &update, &options).await?)),
            OneWrite::Delete(..) => Err(Status::internal("a creation became a deletion")),
        }
    }

    async fn evict(&self, user: &User, request: &api::CreateRequest, options: &WriteOptions) -> Result<api::Object> {
        let row = convert::row(&self.core, request.resource.as_ref())?;
        let sub = subresource(&row, &request.subresource)?;
        Self::authorize(user, "create", &row, &sub.name, &request.namespace, &request.name)?;
        let body = sub_body(&sub, request.object.as_ref())?;
        let how = kontiki_registry::delete::DeleteOptions::from_body(&body["deleteOptions"])?;
        let target = Target::of(&row, &request.namespace, &request.name);
        eviction::evict(&self.core, user, &target, &how, options).await?;
        Ok(convert::from_tree(&crate::rest::success()))
    }

    /// What a CreateRequest comes to: a new object, or a binding of one that is there.
    fn creation<'a>(
        &self,
        user: &User,
        request: &api::CreateRequest,
        options: &WriteOptions,
        warnings: &mut Vec<String>,
    ) -> Result<OneWrite<'a>> {
        let row = convert::row(&self.core, request.resource.as_ref())?;
        convert::check_namespace(&row, &request.namespace)?;
        Self::authorize(user, "create", &row, &request.subresource, &request.namespace, &request.name)?;
        match request.subresource.as_str() {
            "" if row.is_stored() => {
                let mut object = convert::object(&self.core, &row, request.object.as_ref(), options, warnings)?;
                if row.namespaced {
                    let given = object["metadata"]["namespace"].as_str().unwrap_or_default();
                    if !given.is_empty() && given != request.namespace {
                        return Err(Status::bad_request(
                            "the namespace of the provided object does not match the namespace sent on the request",
                        ));
                    }
                    val::put(&mut object, &["metadata", "namespace"], Value::String(request.namespace.clone()));
                }
                Ok(OneWrite::Create(NewObject { target: Target::of(&row, &request.namespace, ""), body: object, applied: false }))
            }
            "binding" => {
                let body = sub_body(&subresource(&row, "binding")?, request.object.as_ref())?;
                Ok(OneWrite::Update(binding::bind(&self.core, &request.namespace, &request.name, &body)?))
            }
            "" => Err(Status::unimplemented(&format!("Create of {} over gRPC", row.kind))),
            other => Err(Status::unimplemented(&format!("Create of subresource {other}"))),
        }
    }

    pub(super) async fn update_object(&self, user: &User, request: &api::UpdateRequest, warnings: &mut Vec<String>) -> Result<api::Object> {
        let options = convert::write_options(request.options.as_ref())?;
        let update = self.replacement(user, request, &options, warnings)?;
        Ok(convert::from_done(&self.core.update(user, &update, &options).await?))
    }

    fn replacement<'a>(
        &self,
        user: &User,
        request: &api::UpdateRequest,
        options: &WriteOptions,
        warnings: &mut Vec<String>,
    ) -> Result<Update<'a>> {
        let named = convert::named(&self.core, request.r#ref.as_ref())?;
        let target = named.target.clone();
        Self::authorize(user, "update", &target.row, &named.sub, &target.namespace, &target.name)?;
        let sub = named.sub()?;
        let object = convert::object(&self.core, &target.row, request.object.as_ref(), options, warnings)?;
        if named.sub == "finalize" {
            return Ok(crate::sub::finalizing(target, object));
        }
        whole_only(&named.sub, "Update")?;
        let change: Box<Change<'a>> = Box::new(move |_| Ok(object.clone()));
        Ok(Update { target, sub, write: Write::Update, own: false, change })
    }

    pub(super) async fn patch_object(&self, user: &User, request: &api::PatchRequest) -> Result<api::Object> {
        let options = convert::write_options(request.options.as_ref())?;
        let update = self.patching(user, request, &options)?;
        Ok(convert::from_done(&self.core.update(user, &update, &options).await?))
    }

    fn patching<'a>(&self, user: &User, request: &api::PatchRequest, options: &WriteOptions) -> Result<Update<'a>> {
        let kind = match request.r#type() {
            api::PatchType::JsonPatch => PatchType::Json,
            api::PatchType::MergePatch => PatchType::Merge,
            api::PatchType::StrategicMergePatch => PatchType::Strategic,
            api::PatchType::Unspecified => return Err(Status::bad_request("type: required")),
        };
        let named = convert::named(&self.core, request.r#ref.as_ref())?;
        let target = named.target.clone();
        Self::authorize(user, "patch", &target.row, &named.sub, &target.namespace, &target.name)?;
        let sub = named.sub()?;
        whole_only(&named.sub, "Patch")?;
        let (change, write) = patch_of(&self.core, &target.row, kind, &request.patch, options, false, &named.sub)?;
        Ok(Update { target, sub, write, own: false, change })
    }

    pub(super) async fn apply_object(&self, user: &User, request: &api::ApplyRequest) -> Result<api::Object> {
        let mut options = convert::write_options(request.options.as_ref())?;
        if request.field_manager.is_empty() {
            return Err(Status::bad_request("field_manager: required"));
        }
        options.manager.clone_from(&request.field_manager);
        let named = convert::named(&self.core, request.r#ref.as_ref())?;
        let target = named.target.clone();
        Self::authorize(user, "patch", &target.row, &named.sub, &target.namespace, &target.name)?;
        let sub = named.sub()?;
        whole_only(&named.sub, "Apply")?;
        let object = request.object.as_ref().ok_or_else(|| Status::bad_request("object: required"))?;
        let (change, write) = patch_of(&self.core, &target.row, PatchType::ApplyYaml, &object.raw, &options, request.force, &named.sub)?;
        let update = Update { target, sub, write, own: false, change };
        Ok(convert::from_done(&self.core.update(user, &update, &options).await?))
    }

    pub(super) async fn delete_object(&self, user: &User, request: &api::DeleteRequest) -> Result<api::DeleteResponse> {
        let options = convert::write_options(request.options.as_ref())?;
        let (target, how) = self.deletion(user, request)?;
        let done = self.core.delete(&target, &how, &options).await?;
        Ok(api::DeleteResponse { gone: done.gone, object: Some(convert::from_done(&done)) })
    }

    fn deletion(&self, user: &User, request: &api::DeleteRequest) -> Result<(Target, kontiki_registry::delete::DeleteOptions)> {
        let named = convert::named(&self.core, request.r#ref.as_ref())?;
        let target = named.target;
        Self::authorize(user, "delete", &target.row, &named.sub, &target.namespace, &target.name)?;
        if !named.sub.is_empty() {
            return Err(Status::method_not_allowed());
        }
        Ok((target, convert::delete_options(request)?))
    }

    pub(super) async fn delete_objects(
        &self,
        user: &User,
        request: &api::DeleteCollectionRequest,
    ) -> Result<api::DeleteCollectionResponse> {
        let options = convert::write_options(request.options.as_ref())?;
        let list = convert::list(&self.core, request.list.as_ref().ok_or_else(|| Status::bad_request("list: required"))?)?;
        let selection = &list.selection;
        convert::check_namespace(&selection.row, &selection.namespace)?;
        Self::authorize(user, "deletecollection", &selection.row, "", &selection.namespace, "")?;
        let how = convert::with_policy(request.grace_period_seconds, &request.propagation_policy)?;
        let (_, deleted) = self.core.delete_collection(&list, &how, &options).await?;
        Ok(api::DeleteCollectionResponse { deleted: i64::try_from(deleted.len()).unwrap_or(i64::MAX) })
    }

    pub(super) async fn transact_objects(
        &self,
        user: &User,
        request: &api::TransactRequest,
        warnings: &mut Vec<String>,
    ) -> Result<api::TransactResponse> {
        let options = convert::write_options(request.options.as_ref())?;
        let mut writes = Vec::with_capacity(request.writes.len());
        for (i, write) in request.writes.iter().enumerate() {
            use api::write::Write as One;
            let one = match &write.write {
                Some(One::Create(create)) => self.creation(user, create, &options, warnings)?,
                Some(One::Update(update)) => OneWrite::Update(self.replacement(user, update, &options, warnings)?),
                Some(One::Patch(patch)) => OneWrite::Update(self.patching(user, patch, &options)?),
                Some(One::Delete(delete)) => {
                    let (target, how) = self.deletion(user, delete)?;
                    OneWrite::Delete(target, how)
                }
                None => return Err(Status::bad_request(format!("writes[{i}]: nothing in it"))),
            };
            writes.push(one);
        }
        let (revision, done) = self.core.transact(user, &writes, &options).await?;
        Ok(api::TransactResponse { revision: revision.get(), objects: done.iter().map(convert::from_done).collect() })
    }
}

fn subresource(row: &Arc<Row>, name: &str) -> Result<Sub> {
    row.subresource(name).cloned().ok_or_else(Status::no_such_resource)
}

fn sub_body(sub: &Sub, object: Option<&api::Object>) -> Result<Value> {
    let object = object.ok_or_else(|| Status::bad_request("object: required"))?;
    body::of_kind(&sub.gvk, convert::media(object), &object.raw)
}
