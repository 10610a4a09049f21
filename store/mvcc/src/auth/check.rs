//! Who may do what. Asked twice: by the member that a client speaks to, for reads and to refuse early; and in `apply`, for everything that
//! goes through the log, on the state that it meets there.

use kontiki_base::kv::{DeleteReq, Op, PutReq, RangeReq, Txn};
use kontiki_base::{AuthError, KeyRange, LeaseId};

use super::ranges::Ranges;
use super::record::{self, Facts};
use super::{AuthCommand, Who};
use crate::command::Command;
use crate::lease;
use crate::state::ReadError;
use crate::view::{View, ViewError};

/// What a user may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rights {
    /// Anything.
    All,
    /// Something with some keys.
    Some {
        /// What can be read.
        read: Ranges,
        /// What can be written.
        write: Ranges,
    },
}

impl Rights {
    /// The rights of a user; `None` if there is no such user.
    ///
    /// # Errors
    /// The state cannot be read.
    pub fn of(view: &dyn View, name: &str) -> Result<Option<Self>, ViewError> {
        let Some(user) = record::user(view, name)? else { return Ok(None) };
        if user.is_admin() {
            return Ok(Some(Self::All));
        }
        let mut permissions = Vec::new();
        for role in &user.roles {
            permissions.extend(record::role(view, role)?.unwrap_or_default().permissions);
        }
        let of = |allowed: fn(super::Access) -> bool| permissions.iter().filter(|p| allowed(p.access)).map(|p| &p.range).collect();
        Ok(Some(Self::Some { read: of(super::Access::reads), write: of(super::Access::writes) }))
    }

    fn may(&self, what: Need, range: &KeyRange) -> bool {
        match (self, what) {
            (Self::All, _) => true,
            (Self::Some { read, .. }, Need::Read) => read.covers(range),
            (Self::Some { write, .. }, Need::Write) => write.covers(range),
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Need {
    Read,
    Write,
}

/// Somebody who asks for something while auth is enabled.
struct Guard<'a> {
    view: &'a dyn View,
    facts: Facts,
    who: &'a Who,
    /// Looked up when first needed; the inner `None` is a user who does not exist.
    rights: Option<Option<Rights>>,
}

impl<'a> Guard<'a> {
    /// `None` while auth is disabled: everybody may do everything.
    fn new(view: &'a dyn View, who: &'a Who) -> Result<Option<Self>, ViewError> {
        let facts = record::facts(view)?;
        Ok(facts.enabled.then_some(Self { view, facts, who, rights: None }))
    }

    fn rights(&mut self) -> Result<Option<&Rights>, ViewError> {
        if self.rights.is_none() {
            self.rights = Some(Rights::of(self.view, &self.who.user)?);
        }
        Ok(self.rights.as_ref().and_then(Option::as_ref))
    }

    fn key(&mut self, need: Need, range: &KeyRange) -> Result<(), ReadError> {
        if self.who.revision == 0 {
            return Err(AuthError::UserEmpty.into());
        }
        if self.who.revision < self.facts.revision {
            return Err(AuthError::OldRevision.into());
        }
        match self.rights()? {
            Some(rights) if rights.may(need, range) => Ok(()),
            _ => Err(AuthError::PermissionDenied.into()),
        }
    }

    fn admin(&mut self) -> Result<(), ReadError> {
        self.known()?;
        match self.rights()? {
            Some(Rights::All) => Ok(()),
            Some(Rights::Some { .. }) => Err(AuthError::PermissionDenied.into()),
            None => Err(AuthError::UserNotFound.into()),
        }
    }

    fn known(&self) -> Result<(), ReadError> {
        if self.who.is_nobody() { Err(AuthError::UserEmpty.into()) } else { Ok(()) }
    }

    /// Whoever does something to a lease does it to the keys that hang on it.
    fn lease(&mut self, need: Need, id: LeaseId) -> Result<(), ReadError> {
        if !self.who.is_nobody() && matches!(self.rights()?, Some(Rights::All)) {
            return Ok(());
        }
        for key in lease::attached(self.view, id)? {
            self.key(need, &KeyRange::single(key))?;
        }
        Ok(())
    }

    fn put(&mut self, req: &PutReq) -> Result<(), ReadError> {
        let key = KeyRange::single(req.key.clone());
        self.key(Need::Write, &key)?;
        if req.lease != LeaseId::ZERO {
            self.lease(Need::Write, req.lease)?;
        }
        if req.prev_kv { self.key(Need::Read, &key) } else { Ok(()) }
    }

    fn delete(&mut self, req: &DeleteReq) -> Result<(), ReadError> {
        self.key(Need::Write, &req.range)?;
        if req.prev_kv { self.key(Need::Read, &req.range) } else { Ok(()) }
    }

    fn range(&mut self, req: &RangeReq) -> Result<(), ReadError> {
        self.key(Need::Read, &req.range)
    }

    /// Both branches, whichever will run, to any depth: what a transaction could do must be allowed.
    fn txn(&mut self, txn: &Txn) -> Result<(), ReadError> {
        txn.compare.iter().try_for_each(|compare| self.key(Need::Read, &compare.range))?;
        txn.success.iter().chain(&txn.failure).try_for_each(|op| match op {
            Op::Range(req) => self.range(req),
            Op::Put(req) => self.put(req),
            Op::Delete(req) => self.delete(req),
            Op::Txn(inner) => self.txn(inner),
        })
    }

    fn command(&mut self, command: &Command) -> Result<(), ReadError> {
        match command {
            Command::Put(req) => self.put(req),
            Command::Delete(req) => self.delete(req),
            Command::Txn { txn, .. } => self.txn(txn),
            Command::LeaseGrant { .. } => self.known(),
            Command::LeaseRevoke { id } => self.lease(Need::Write, *id),
            // The password was the proof.
            Command::Auth(AuthCommand::Authenticate { .. }) => Ok(()),
            // Whatever else there is concerns everybody.
            _ => self.admin(),
        }
    }
}

/// Checks that somebody may run a command.
///
/// # Errors
/// The [`AuthError`] that says why not; or the state cannot be read.
pub fn may_run(view: &dyn View, who: &Who, command: &Command) -> Result<(), ReadError> {
    Guard::new(view, who)?.map_or(Ok(()), |mut guard| guard.command(command))
}

/// Checks that somebody may read a range.
///
/// # Errors
/// As [`may_run`].
pub fn may_read(view: &dyn View, who: &Who, range: &KeyRange) -> Result<(), ReadError> {
    Guard::new(view, who)?.map_or(Ok(()), |mut guard| guard.key(Need::Read, range))
}

/// Checks that somebody may see what hangs on a lease.
///
/// # Errors
/// As [`may_run`].
pub fn may_read_lease(view: &dyn View, who: &Who, id: LeaseId) -> Result<(), ReadError> {
    Guard::new(view, who)?.map_or(Ok(()), |mut guard| guard.lease(Need::Read, id))
}

/// Checks that somebody may keep a lease alive.
///
/// # Errors
/// As [`may_run`].
pub fn may_write_lease(view: &dyn View, who: &Who, id: LeaseId) -> Result<(), ReadError> {
    Guard::new(view, who)?.map_or(Ok(()), |mut guard| guard.lease(Need::Write, id))
}

/// Checks that somebody may do what concerns everybody.
///
/// # Errors
/// As [`may_run`].
pub fn must_be_admin(view: &dyn View, who: &Who) -> Result<(), ReadError> {
    Guard::new(view, who)?.map_or(Ok(()), |mut guard| guard.admin())
}

/// Checks that somebody has said who they are.
///
/// # Errors
/// As [`may_run`].
pub fn must_be_known(view: &dyn View, who: &Who) -> Result<(), ReadError> {
    Guard::new(view, who)?.map_or(Ok(()), |guard| guard.known())
}
