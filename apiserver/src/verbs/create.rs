//! CREATE.

use std::slice;

use kontiki_base::{Code, Revision};
use kontiki_registry::admit::Request;
use kontiki_registry::meta::{self, CreateCtx, GENERATE_NAME_TRIES};
use kontiki_registry::rbac::User;
use kontiki_registry::status::Status;
use kontiki_registry::write_rules::{self, Write, WriteDecision};
use serde_json::Value;

use super::commit::{Committed, Done, Effect, KeyWrite, Prepared};
use super::{Current, Target, WRITE_TRIES, WriteOptions, stored};
use crate::codec;
use crate::core::Core;
use crate::error::Result;

/// What is to be created.
#[derive(Clone, Debug)]
pub(crate) struct NewObject {
    /// Its kind and namespace; the name is empty until it is known.
    pub(crate) target: Target,
    /// The object as it was sent.
    pub(crate) body: Value,
    /// It was made by server-side apply, and says itself who owns its fields.
    pub(crate) applied: bool,
}

impl Core {
    /// Creates an object.
    pub(crate) async fn create(&self, user: &User, new: &NewObject, options: &WriteOptions) -> Result<Done> {
        let generated = str_of(&new.body, "name").is_empty() && !str_of(&new.body, "generateName").is_empty();
        let mut names_tried = 0;
        for _ in 0..WRITE_TRIES {
            let prepared = self.prepare_create(user, new, options).await?;
            let row = &prepared.target.row;
            let taken = if options.dry_run {
                let there = self.read_fresh(&prepared.target).await?;
                if there.value.is_none() {
                    return Ok(prepared.done(None));
                }
                Some(there)
            } else {
                match self.commit(slice::from_ref(&prepared), options.fence).await? {
                    Committed::At(revision) => return Ok(prepared.done(Some(revision))),
                    Committed::Stale(mut found) => match found.remove(&prepared.write.key).flatten() {
                        Some(kv) => Some(Current::fresh(row, Some(kv))?),
                        None => None,
                    },
                }
            };
            let Some(taken) = taken else {
                // Not the name was taken: the namespace changed, or somebody else was given an address.
                self.catch_up().await?;
                continue;
            };
            names_tried += 1;
            if !generated {
                let terminating = taken.value.is_some_and(|v| v["metadata"]["deletionTimestamp"].is_string());
                return Err(Status::already_exists(row, &prepared.target.name, terminating));
            }
            if names_tried == GENERATE_NAME_TRIES {
                return Err(Status::generate_name_exhausted(row, &prepared.target.name));
            }
        }
        Err(contended(&new.target))
    }

    /// Decides a creation. The write expects that there is no such object.
    pub(crate) async fn prepare_create(&self, user: &User, new: &NewObject, options: &WriteOptions) -> Result<Prepared> {
        let Target { row, namespace, .. } = &new.target;
        let mut object = new.body.clone();
        if let WriteDecision::Refuse(why) = write_rules::decide_write(row, Write::Create, &object, None)? {
            return Err(write_rules::refusal(row, why, str_of(&new.body, "name"), &object, None));
        }
        let custom = self.custom(row);
        if let Some(custom) = &custom {
            if custom.terminating {
                return Err(Status::forbidden(row, "", "create not allowed while custom resource definition is terminating"));
            }
            custom.shape(&mut object);
            custom.validate(row, &object)?;
        }
        let (now, suffix) = (self.now(), self.suffix());
        let request = Request { user, row, sub: None, namespace, suffix: &suffix };
        let gathered = self.gather(&request, &object, true).await?;
        (row.rules.defaults)(&mut object);
        gathered.create(&request, &mut object)?;
        let context =
            CreateCtx { uid: self.uid(), now: &now, user: &user.name, suffix: &suffix, namespace, field_manager: &options.manager };
        let managed = new.applied.then(|| object["metadata"]["managedFields"].clone());
        meta::prepare_create(row, &mut object, &context)?;
        crate::crd::check_definition(row, &object)?;
        if let Some(managed) = managed {
            kontiki_registry::val::put(&mut object, &["metadata", "managedFields"], managed);
        }
        codec::tidy(&mut object);
        if let Some(custom) = &custom {
            custom.settle(&mut object);
        }
        let target = Target::of(row, namespace, str_of(&object, "name"));
        if !new.applied {
            super::managed::on_write(row, custom.as_deref(), &mut object, None, options, None, &now);
        }
        let value = codec::encode(&mut stored(row, object.clone()));
        let write = KeyWrite { key: target.key(), expect: Revision::ZERO, effect: Effect::Put(value) };
        Ok(Prepared { target, write, also: gathered.also, guards: gathered.guards, object, created: true, gone: false })
    }
}

/// A field of `metadata` that is text; empty if it is not there.
pub(crate) fn str_of<'a>(object: &'a Value, field: &str) -> &'a str {
    object["metadata"][field].as_str().unwrap_or_default()
}

/// The answer to a write that lost every race.
pub(crate) fn contended(target: &Target) -> Status {
    let what = format!("{} {:?}", target.row.group_resource(), target.name);
    Status::new(Code::Conflict, format!("{what} is written by too many at once; please try again"))
}
