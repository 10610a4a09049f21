//! UPDATE and PATCH: both make the new object from the live one, and store it if the live one is still the live one.

use std::slice;

use kontiki_base::Code;
use kontiki_registry::admit::Request;
use kontiki_registry::meta;
use kontiki_registry::rbac::User;
use kontiki_registry::row::Sub;
use kontiki_registry::status::Status;
use kontiki_registry::write_rules::{self, Write, WriteDecision};
use serde_json::Value;

use super::commit::{Committed, Done, Effect, KeyWrite, Prepared};
use super::create::{NewObject, contended, str_of};
use super::{Current, Target, WRITE_TRIES, WriteOptions, stored};
use crate::codec;
use crate::core::Core;
use crate::error::Result;

/// Makes the new object from the live one. Called again whenever a race was lost.
pub(crate) type Change<'a> = dyn Fn(Option<&Value>) -> Result<Value> + Send + Sync + 'a;

/// An update or a patch of one object.
pub(crate) struct Update<'a> {
    /// Which object.
    pub(crate) target: Target,
    /// Through which subresource.
    pub(crate) sub: Option<Sub>,
    /// What kind of write it is, for the preconditions.
    pub(crate) write: Write,
    /// The change is the server's own (a binding, an eviction, a finalizer): it is stored as it is, without the rules for what a
    /// client may change.
    pub(crate) own: bool,
    /// The new object.
    pub(crate) change: Box<Change<'a>>,
}

impl<'a> Update<'a> {
    /// A change that the server itself makes to an object that is there.
    pub(crate) fn own(target: Target, change: impl Fn(&Value) -> Result<Value> + Send + Sync + 'a) -> Self {
        let row = target.row.clone();
        let name = target.name.clone();
        let change = move |live: Option<&Value>| change(live.ok_or_else(|| Status::not_found(&row, &name))?);
        Self { target, sub: None, write: Write::Patch, own: true, change: Box::new(change) }
    }
}

impl std::fmt::Debug for Update<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Update").field("target", &self.target).field("write", &self.write).finish_non_exhaustive()
    }
}

impl Core {
    /// Updates an object.
    pub(crate) async fn update(&self, user: &User, update: &Update<'_>, options: &WriteOptions) -> Result<Done> {
        let mut current = self.read_for_write(&update.target).await?;
        for _ in 0..WRITE_TRIES {
            let prepared = match self.prepare_update(user, update, &current, options).await {
                // What a cache that lags made us refuse may be right by now.
                Err(_) if !current.fresh => {
                    current = self.read_fresh(&update.target).await?;
                    continue;
                }
                other => other?,
            };
            if prepared.is_noop() || options.dry_run {
                if !current.fresh {
                    current = self.read_fresh(&update.target).await?;
                    continue;
                }
                return Ok(prepared.done(None));
            }
            match self.commit(slice::from_ref(&prepared), options.fence).await? {
                Committed::At(revision) => return Ok(prepared.done(Some(revision))),
                Committed::Stale(mut found) => {
                    current = Current::fresh(&update.target.row, found.remove(&prepared.write.key).flatten())?;
                }
            }
        }
        Err(contended(&update.target))
    }

    /// Decides an update against the object as it was found.
    pub(crate) async fn prepare_update(
        &self,
        user: &User,
        update: &Update<'_>,
        current: &Current,
        options: &WriteOptions,
    ) -> Result<Prepared> {
        let Update { target, sub, write, .. } = update;
        let row = &target.row;
        let live = current.value.as_ref();
        if live.is_none() && (*write == Write::Patch || sub.is_some()) {
            return Err(Status::not_found(row, &target.name));
        }
        let mut object = (update.change)(live)?;
        check_identity(target, &mut object)?;
        match write_rules::decide_write(row, *write, &object, live)? {
            WriteDecision::Refuse(why) => return Err(write_rules::refusal(row, why, &target.name, &object, live)),
            WriteDecision::Insert => return self.insert(user, update, object, options).await,
            WriteDecision::Replace => {}
        }
        let Some(old) = live else { return Err(Status::not_found(row, &target.name)) };
        if update.own {
            return Ok(self.settle(target, object, old, current, super::admit::Gathered::default()));
        }
        let (now, suffix) = (self.now(), self.suffix());
        let request = Request { user, row, sub: sub.as_ref(), namespace: &target.namespace, suffix: &suffix };
        let gathered = self.gather(&request, &object, false).await?;
        let custom = self.custom(row);
        if let Some(custom) = &custom {
            custom.shape(&mut object);
        }
        meta::prepare_update(row, &mut object, old, sub.as_ref(), &now)?;
        crate::crd::check_definition(row, &object)?;
        if let Some(custom) = &custom {
            custom.settle(&mut object);
            custom.validate(row, &object)?;
        }
        gathered.update(&request, &mut object, old)?;
        codec::tidy(&mut object);
        if *write != Write::Apply {
            let sub_name = sub.as_ref().map(|s| s.name.as_str());
            super::managed::on_write(row, custom.as_deref(), &mut object, Some(old), options, sub_name, &now);
        }
        Ok(self.settle(target, object, old, current, gathered))
    }

    /// What an accepted new state comes to: a write, the end of a deletion, or nothing.
    fn settle(&self, target: &Target, object: Value, old: &Value, current: &Current, gathered: super::admit::Gathered) -> Prepared {
        let gone = write_rules::completes_deletion(&object, old);
        let keep = !gone && write_rules::is_no_op(&object, old);
        let (object, effect, also) = match (gone, keep) {
            (true, _) => (object, Effect::Delete, gathered.also),
            (_, true) => (old.clone(), Effect::Keep, Vec::new()),
            _ => {
                let value = codec::encode(&mut stored(&target.row, object.clone()));
                (object, Effect::Put(value), gathered.also)
            }
        };
        let write = KeyWrite { key: target.key(), expect: current.revision, effect };
        Prepared { target: target.clone(), write, also, guards: gathered.guards, object, created: false, gone }
    }

    /// A PUT or an apply of an object that is not there yet.
    async fn insert(&self, user: &User, update: &Update<'_>, mut object: Value, options: &WriteOptions) -> Result<Prepared> {
        if let Some(meta) = object["metadata"].as_object_mut() {
            meta.remove("resourceVersion");
            meta.remove("uid");
        }
        self.prepare_create(
            user,
            &NewObject { target: update.target.clone(), body: object, applied: update.write == Write::Apply },
            options,
        )
        .await
    }
}

/// The object must be the one that the URL names; what it leaves out is filled in.
fn check_identity(target: &Target, object: &mut Value) -> Result<()> {
    let bad = |message: String| Err(Status::new(Code::BadRequest, message));
    let name = str_of(object, "name");
    if !name.is_empty() && name != target.name {
        return bad(format!("the name of the object ({name}) does not match the name on the URL ({})", target.name));
    }
    let namespace = str_of(object, "namespace");
    if target.row.namespaced && !namespace.is_empty() && namespace != target.namespace {
        return bad("the namespace of the provided object does not match the namespace sent on the request".into());
    }
    kontiki_registry::val::put(object, &["metadata", "name"], Value::String(target.name.clone()));
    if target.row.namespaced {
        kontiki_registry::val::put(object, &["metadata", "namespace"], Value::String(target.namespace.clone()));
    }
    Ok(())
}
