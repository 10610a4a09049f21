//! What a caller asks of the [`Service`], as far as they may. Whoever needs no permission (the API server in this process, the cluster
//! itself) asks the service directly.
//!
//! Permissions may change while a request is under way. It is then tried again, with what the caller's token stands for by now; if that is
//! the same as before (a token that says itself at which auth revision it was issued), the caller is told to log in again.

use kontiki_base::ids::{LeaseId, Revision};
use kontiki_base::kv::{Consistency, DeleteReq, DeleteRes, Op, PutReq, PutRes, RangeReq, RangeRes, Txn, TxnRes};
use kontiki_base::{AuthError, KeyRange, KvError};
use kontiki_mvcc::auth::{self, AuthCommand, AuthReply, Facts, Role, User, Who};
use kontiki_mvcc::{Command, ReadError, Reply, View, is_read_only};

use super::{Caller, Provider, is_stale};
use crate::lease::TimeToLive;
use crate::service::{Service, mismatch};

/// A request is tried anew so often while permissions change under it.
const ROUNDS: usize = 16;

/// Something that somebody asks for.
#[derive(Clone, Copy)]
pub(crate) struct Acting<'a> {
    service: &'a Service,
    caller: &'a Caller,
}

impl Service {
    /// What follows is what `caller` asks for.
    pub(crate) const fn by<'a>(&'a self, caller: &'a Caller) -> Acting<'a> {
        Acting { service: self, caller }
    }
}

impl Acting<'_> {
    /// Has a command decided and applied, if the caller may.
    async fn run(&self, command: Command, max_txn_ops: usize) -> Result<Reply, KvError> {
        let Service { auth, proposer, .. } = self.service;
        let mut who = auth.who(self.caller).await?;
        if self.caller.is_nobody() {
            // There is nothing to find out anew.
            return proposer.propose(command.by(who), max_txn_ops).await;
        }
        for _ in 0..ROUNDS {
            match proposer.propose(command.clone().by(who.clone()), max_txn_ops).await {
                Err(error) if is_stale(&error) => {
                    let now = auth.who(self.caller).await?;
                    if now == who {
                        return Err(error);
                    }
                    who = now;
                }
                other => return other,
            }
        }
        Err(AuthError::OldRevision.into())
    }

    /// Reads something that is allowed now, and still was when it had been read.
    async fn read<T, F>(
        &self,
        barrier: bool,
        allowed: impl Fn(&dyn View, &Who) -> Result<(), ReadError> + Send + Sync,
        read: impl Fn() -> F + Send + Sync,
    ) -> Result<T, KvError>
    where
        F: Future<Output = Result<T, KvError>> + Send,
        T: Send,
    {
        let auth = &self.service.auth;
        if !auth.facts()?.enabled {
            return read().await;
        }
        for _ in 0..ROUNDS {
            if barrier {
                self.service.reader.barrier().await?;
            }
            let revision = auth.check(self.caller, &allowed).await?;
            let result = read().await?;
            if auth.facts()?.revision == revision {
                return Ok(result);
            }
        }
        Err(AuthError::OldRevision.into())
    }

    /// Reads a range.
    pub(crate) async fn range(&self, req: RangeReq) -> Result<RangeRes, KvError> {
        if req.range.start.is_empty() {
            return Err(KvError::EmptyKey);
        }
        let barrier = req.consistency == Consistency::Linearizable;
        let range = req.range.clone();
        self.read(barrier, move |view, who| auth::may_read(view, who, &range), || self.service.range(req.clone())).await
    }

    /// Writes a key.
    pub(crate) async fn put(&self, req: PutReq) -> Result<PutRes, KvError> {
        self.service.metrics.puts.inc();
        match self.run(Command::Put(req), 0).await? {
            Reply::Put(res) => Ok(res),
            other => mismatch(&other),
        }
    }

    /// Deletes a range.
    pub(crate) async fn delete(&self, req: DeleteReq) -> Result<DeleteRes, KvError> {
        self.service.metrics.deletes.inc();
        match self.run(Command::Delete(req), 0).await? {
            Reply::Delete(res) => Ok(res),
            other => mismatch(&other),
        }
    }

    /// Carries out a transaction; one that only reads does not go through the log.
    pub(crate) async fn txn(&self, txn: Txn, max_ops: usize) -> Result<TxnRes, KvError> {
        if is_read_only(&txn) {
            let barrier = txn
                .success
                .iter()
                .chain(&txn.failure)
                .any(|op| matches!(op, Op::Range(range) if range.consistency == Consistency::Linearizable));
            let asked = Command::Txn { txn: txn.clone(), fence: None };
            kontiki_mvcc::validate(&asked, max_ops)?;
            let allowed = move |view: &dyn View, who: &Who| auth::may_run(view, who, &asked);
            return self.read(barrier, allowed, || self.service.txn(txn.clone(), None, max_ops)).await;
        }
        self.service.metrics.txns.inc();
        match self.run(Command::Txn { txn, fence: None }, max_ops).await? {
            Reply::Txn(res) => Ok(res),
            other => mismatch(&other),
        }
    }

    /// Forgets history before `revision`. With `physical`, only answers when the records are removed on this member, too.
    pub(crate) async fn compact(&self, revision: Revision, physical: bool) -> Result<(), KvError> {
        match self.run(Command::Compact { revision }, 0).await? {
            Reply::Compact if physical => self.service.room.board().wait_swept(revision).await,
            Reply::Compact => Ok(()),
            other => mismatch(&other),
        }
    }

    /// Checks that the caller may read a range, or watch it.
    pub(crate) async fn may_read(&self, range: &KeyRange) -> Result<(), KvError> {
        self.service.auth.check(self.caller, |view, who| auth::may_read(view, who, range)).await.map(drop)
    }

    /// Checks that the caller may do what concerns everybody.
    pub(crate) async fn must_be_admin(&self) -> Result<(), KvError> {
        self.service.auth.check(self.caller, auth::must_be_admin).await.map(drop)
    }

    /// Checks that the caller has said who they are.
    pub(crate) async fn must_be_known(&self) -> Result<(), KvError> {
        self.service.auth.check(self.caller, auth::must_be_known).await.map(drop)
    }

    /// Grants a lease.
    pub(crate) async fn grant(&self, id: LeaseId, ttl: i64) -> Result<(LeaseId, i64), KvError> {
        let who = self.service.auth.who(self.caller).await?;
        self.service.leases.grant_by(id, ttl, Some(&who)).await
    }

    /// Revokes a lease, with what hangs on it.
    pub(crate) async fn revoke(&self, id: LeaseId) -> Result<(), KvError> {
        self.run(Command::LeaseRevoke { id }, 0).await?;
        self.service.metrics.leases_revoked.inc();
        Ok(())
    }

    /// Keeps a lease alive, and with it what hangs on it.
    pub(crate) async fn keep_alive(&self, id: LeaseId) -> Result<Option<i64>, KvError> {
        self.service.auth.check(self.caller, |view, who| auth::may_write_lease(view, who, id)).await?;
        self.service.leases.keep_alive(id).await
    }

    /// How long a lease still lives, and what hangs on it.
    pub(crate) async fn time_to_live(&self, id: LeaseId, keys: bool) -> Result<TimeToLive, KvError> {
        let allowed = move |view: &dyn View, who: &Who| auth::may_read_lease(view, who, id);
        self.read(false, allowed, || self.service.leases.time_to_live(id, keys)).await
    }

    /// Changes users or roles.
    pub(crate) async fn change(&self, command: AuthCommand) -> Result<(), KvError> {
        match self.run(Command::Auth(command), 0).await? {
            Reply::Auth(AuthReply::Changed { .. }) => Ok(()),
            other => mismatch(&other),
        }
    }

    /// Hashes a password, for those who may give somebody one: it costs much.
    pub(crate) async fn hash(&self, password: String) -> Result<bytes::Bytes, KvError> {
        self.service.reader.barrier().await?;
        self.must_be_admin().await?;
        self.service.auth.hash(password).await
    }

    async fn look<T: Send>(
        &self,
        allowed: impl Fn(&dyn View, &Who) -> Result<(), ReadError> + Send + Sync,
        look: impl Fn(&dyn View) -> Result<T, ReadError> + Send + Sync,
    ) -> Result<T, KvError> {
        self.service.reader.barrier().await?;
        let found = self.read(false, allowed, || std::future::ready(look(&*self.service.reader.view()).map_err(KvError::from)));
        found.await
    }

    /// A user: for administrators, and for the user.
    pub(crate) async fn user(&self, name: &str) -> Result<User, KvError> {
        let allowed = |view: &dyn View, who: &Who| match auth::must_be_admin(view, who) {
            Err(ReadError::Kv(_)) if !who.is_nobody() && who.user == name => Ok(()),
            other => other,
        };
        self.look(allowed, |view| Ok(auth::user(view, name)?.ok_or(AuthError::UserNotFound)?)).await
    }

    /// A role: for administrators, and for whoever has it.
    pub(crate) async fn role(&self, name: &str) -> Result<Role, KvError> {
        let allowed = |view: &dyn View, who: &Who| match auth::must_be_admin(view, who) {
            Err(ReadError::Kv(error)) => match auth::user(view, &who.user)? {
                Some(user) if user.roles.iter().any(|role| role == name) => Ok(()),
                _ => Err(error.into()),
            },
            other => other,
        };
        self.look(allowed, |view| Ok(auth::role(view, name)?.ok_or(AuthError::RoleNotFound)?)).await
    }

    /// The names of all users.
    pub(crate) async fn users(&self) -> Result<Vec<String>, KvError> {
        self.look(auth::must_be_admin, |view| Ok(auth::users(view)?.into_iter().map(|(name, _)| name).collect())).await
    }

    /// The names of all roles.
    pub(crate) async fn roles(&self) -> Result<Vec<String>, KvError> {
        self.look(auth::must_be_admin, |view| Ok(auth::roles(view)?.into_iter().map(|(name, _)| name).collect())).await
    }

    /// Whether auth is enabled, and its revision. Anybody may ask.
    pub(crate) async fn status(&self) -> Result<Facts, KvError> {
        self.service.reader.barrier().await?;
        self.service.auth.facts()
    }

    /// A token for who knows the password. Anybody may try.
    pub(crate) async fn log_in(&self, name: String, password: String) -> Result<String, KvError> {
        let auth = &self.service.auth;
        self.service.reader.barrier().await?;
        for _ in 0..ROUNDS {
            let facts = auth.facts()?;
            if !facts.enabled {
                return Err(AuthError::NotEnabled.into());
            }
            let user = auth::user(&*self.service.reader.view(), &name).map_err(ReadError::from)?.ok_or(AuthError::Failed)?;
            let hash = user.hash.ok_or(AuthError::NoPasswordUser)?;
            if !auth.matches(password.clone(), hash).await? {
                return Err(AuthError::Failed.into());
            }
            let token = self.token(&name, facts).await?;
            // Otherwise the password may not be the right one any more.
            if auth.facts()?.revision == facts.revision {
                return Ok(token);
            }
        }
        Err(AuthError::OldRevision.into())
    }

    async fn token(&self, name: &str, facts: Facts) -> Result<String, KvError> {
        let auth = &self.service.auth;
        if let Provider::Jwt(jwt) = &auth.provider {
            return jwt.issue(name, facts.revision, auth.env.now_wall());
        }
        let command = AuthCommand::Authenticate { user: name.to_owned(), prefix: auth.letters() };
        match self.service.proposer.propose(Command::Auth(command), 0).await? {
            Reply::Auth(AuthReply::Token { token, .. }) => Ok(token),
            other => mismatch(&other),
        }
    }
}
