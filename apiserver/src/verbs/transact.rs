//! TRANSACT: several writes of any kinds, all at one revision or none at all.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use kontiki_base::kv::KeyValue;
use kontiki_base::{Code, Revision, limits};
use kontiki_registry::delete::DeleteOptions;
use kontiki_registry::rbac::User;
use kontiki_registry::status::Status;

use super::commit::{Committed, Done, Prepared};
use super::create::NewObject;
use super::update::Update;
use super::{Current, Target, WRITE_TRIES, WriteOptions};
use crate::core::Core;
use crate::error::Result;

/// One write of a transaction.
#[derive(Debug)]
pub(crate) enum OneWrite<'a> {
    /// A new object.
    Create(NewObject),
    /// An update or a patch.
    Update(Update<'a>),
    /// A deletion.
    Delete(Target, DeleteOptions),
}

impl Core {
    /// Carries out all writes at one revision. Every write is decided against the state before the transaction: no write of it sees
    /// another one, and two writes of one object are refused.
    pub(crate) async fn transact(&self, user: &User, writes: &[OneWrite<'_>], options: &WriteOptions) -> Result<(Revision, Vec<Done>)> {
        if writes.is_empty() || writes.len() > limits::TRANSACT_OBJECTS {
            let message = format!("a transaction takes 1 to {} writes, not {}", limits::TRANSACT_OBJECTS, writes.len());
            return Err(Status::new(Code::BadRequest, message));
        }
        // The first attempt may decide on what the caches say: the commit finds out if they lag.
        let mut fresh = false;
        for _ in 0..WRITE_TRIES {
            let prepared = match self.prepare_all(user, writes, options, fresh || options.dry_run).await {
                Err(_) if !fresh => {
                    fresh = true;
                    continue;
                }
                other => other?,
            };
            if options.dry_run {
                return Ok((self.quorum_revision().await?, prepared.into_iter().map(|p| p.done(None)).collect()));
            }
            match self.commit(&prepared, options.fence).await? {
                Committed::At(revision) => {
                    let done = |p: Prepared| p.done(Some(revision));
                    return Ok((revision, prepared.into_iter().map(done).collect()));
                }
                Committed::Stale(found) => refuse_if_taken(&prepared, &found)?,
            }
            self.catch_up().await?;
            fresh = true;
        }
        Err(Status::new(Code::Conflict, "the objects of the transaction are written by too many at once; please try again"))
    }

    async fn prepare_all(&self, user: &User, writes: &[OneWrite<'_>], options: &WriteOptions, fresh: bool) -> Result<Vec<Prepared>> {
        let mut prepared = Vec::with_capacity(writes.len());
        for write in writes {
            prepared.push(match write {
                OneWrite::Create(new) => self.prepare_create(user, new, options).await?,
                OneWrite::Update(update) => {
                    let current = self.found(&update.target, fresh).await?;
                    self.prepare_update(user, update, &current, options).await?
                }
                OneWrite::Delete(target, how) => self.prepare_delete(target, &self.found(target, fresh).await?, how)?,
            });
        }
        check_distinct(&prepared)?;
        Ok(prepared)
    }

    async fn found(&self, target: &Target, fresh: bool) -> Result<Current> {
        if fresh { self.read_fresh(target).await } else { self.read_for_write(target).await }
    }
}

/// A name that was taken between the decision and the commit; other lost races are tried again.
fn refuse_if_taken(prepared: &[Prepared], found: &BTreeMap<Bytes, Option<KeyValue>>) -> Result<()> {
    for new in prepared.iter().filter(|p| p.created) {
        if found.get(&new.write.key).is_some_and(Option::is_some) {
            return Err(Status::already_exists(&new.target.row, &new.target.name, false));
        }
    }
    Ok(())
}

/// Two writes of one object have no order within one revision. The same goes for two Services: each would be given the addresses
/// that are free before the transaction.
fn check_distinct(prepared: &[Prepared]) -> Result<()> {
    let mut keys = BTreeSet::new();
    for one in prepared {
        let what = format!("{} {:?}", one.target.row.group_resource(), one.target.name);
        if !keys.insert(&one.write.key) {
            return Err(Status::new(Code::BadRequest, format!("two writes of {what} in one transaction")));
        }
        if one.also.iter().any(|also| !keys.insert(&also.key)) {
            let message = format!("{what}: one transaction can allocate addresses for one Service only");
            return Err(Status::new(Code::BadRequest, message));
        }
    }
    Ok(())
}
