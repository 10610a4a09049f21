//! DELETE, of one object and of a collection.

use std::slice;

use kontiki_registry::delete::{self, DeleteDecision, DeleteOptions};
use kontiki_registry::status::Status;

use super::commit::{Committed, Done, Effect, KeyWrite, Prepared};
use super::create::contended;
use super::list::ListRequest;
use super::{Current, Target, WRITE_TRIES, WriteOptions, stored};
use crate::codec;
use crate::core::Core;
use crate::error::Result;

/// Objects per page of a collection that is deleted.
const COLLECTION_PAGE: usize = 500;

impl Core {
    /// Deletes an object, or begins to.
    pub(crate) async fn delete(&self, target: &Target, how: &DeleteOptions, options: &WriteOptions) -> Result<Done> {
        let mut current = self.read_for_write(target).await?;
        let dry_run = how.dry_run || options.dry_run;
        for _ in 0..WRITE_TRIES {
            let prepared = match self.prepare_delete(target, &current, how) {
                Err(_) if !current.fresh => {
                    current = self.read_fresh(target).await?;
                    continue;
                }
                other => other?,
            };
            if prepared.is_noop() || dry_run {
                if !current.fresh {
                    current = self.read_fresh(target).await?;
                    continue;
                }
                return Ok(prepared.done(None));
            }
            match self.commit(slice::from_ref(&prepared), options.fence).await? {
                Committed::At(revision) => return Ok(prepared.done(Some(revision))),
                Committed::Stale(mut found) => {
                    current = Current::fresh(&target.row, found.remove(&prepared.write.key).flatten())?;
                }
            }
        }
        Err(contended(target))
    }

    /// Decides a deletion against the object as it was found.
    pub(crate) fn prepare_delete(&self, target: &Target, current: &Current, how: &DeleteOptions) -> Result<Prepared> {
        let row = &target.row;
        let Some(live) = &current.value else { return Err(Status::not_found(row, &target.name)) };
        let (object, effect, gone) = match delete::decide_delete(row, live, how, &self.now()) {
            DeleteDecision::Fail(status) => return Err(*status),
            DeleteDecision::AlreadyDeleting => (live.clone(), Effect::Keep, false),
            DeleteDecision::Remove(last) => (last, Effect::Delete, true),
            DeleteDecision::MarkAndKeep(marked) => {
                let value = codec::encode(&mut stored(row, marked.clone()));
                (marked, Effect::Put(value), false)
            }
        };
        let write = KeyWrite { key: target.key(), expect: current.revision, effect };
        Ok(Prepared { target: target.clone(), write, also: Vec::new(), guards: Vec::new(), object, created: false, gone })
    }

    /// Deletes what a list shows, one by one, and returns what was deleted. Objects that are gone meanwhile are passed over.
    pub(crate) async fn delete_collection(
        &self,
        request: &ListRequest,
        how: &DeleteOptions,
        options: &WriteOptions,
    ) -> Result<(kontiki_base::Revision, Vec<Done>)> {
        let mut deleted = Vec::new();
        let mut page = request.clone();
        page.limit = if request.limit == 0 { COLLECTION_PAGE } else { request.limit };
        loop {
            let listed = self.list(&page).await?;
            for object in &listed.items {
                let Some(key) = request.selection.row.key_of(&object.key) else { continue };
                let target = Target::of(&request.selection.row, &key.namespace, &key.name);
                match self.delete(&target, how, options).await {
                    Ok(done) => deleted.push(done),
                    Err(status) if status.code == kontiki_base::Code::NotFound => {}
                    Err(status) => return Err(status),
                }
            }
            if request.limit > 0 || listed.next.is_none() {
                return Ok((listed.revision, deleted));
            }
            page.page = listed.next;
        }
    }
}
