//! Who a client is: tokens, passwords, certificates. What somebody may do is decided by [`kontiki_mvcc::auth`].
//!
//! | file | what it holds |
//! |---|---|
//! | `options` | `--auth-token` and its kin |
//! | `caller` | what a request says of who sends it |
//! | `tokens` | simple tokens: known to every member, for as long as they are used |
//! | `jwt` | tokens that say themselves who they are for |
//! | `password` | bcrypt |
//! | `permission` | permissions as etcd has them on the wire and in its files |
//! | `acting` | what a caller asks of the [`Service`](crate::service::Service), as far as they may |
//!
//! A simple token's random part is made by the member that was asked and travels through the log; its number is the entry's index, so a
//! member that has not come so far yet waits before it says that it knows no such token. A member that starts, or receives a whole state,
//! knows no tokens: clients log in again, as with etcd.

mod acting;
mod caller;
mod jwt;
mod options;
mod password;
mod permission;
mod tokens;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kontiki_base::env::Env;
use kontiki_base::ids::LogIndex;
use kontiki_base::{AuthError, KvError, limits};
use kontiki_mvcc::ReadError;
use kontiki_mvcc::View;
use kontiki_mvcc::auth::{Facts, Who, facts};
use tokio::sync::{Semaphore, watch};

pub(crate) use caller::Caller;
pub use options::AuthOptions;
pub(crate) use options::Provider;
pub(crate) use permission::{access_of, permission_to};
pub(crate) use tokens::Keeper;

use crate::raft::RaftStatus;
use crate::read::{Views, Workers};

/// Letters of a simple token before its number, as in etcd.
const LETTERS: usize = 16;
const ALPHABET: &[u8; 52] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";

/// Whether the error may go away when it is found out anew who the caller is.
const fn is_stale(error: &KvError) -> bool {
    matches!(error, KvError::Auth(AuthError::OldRevision | AuthError::UserEmpty))
}

/// What a member needs to find out who somebody is.
pub struct Auth {
    provider: Provider,
    cost: u32,
    keeper: Arc<Keeper>,
    views: Arc<dyn Views>,
    env: Arc<dyn Env>,
    status: watch::Receiver<RaftStatus>,
    /// Where passwords are hashed: it takes tens of milliseconds of a core.
    workers: Workers,
    timeout: Duration,
    /// What was read last, and the keeper's generation then.
    cached: Mutex<Option<(u64, Facts)>>,
}

impl std::fmt::Debug for Auth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Auth").field("provider", &self.provider).finish_non_exhaustive()
    }
}

/// What [`Auth`] stands on.
pub(crate) struct Ground {
    pub(crate) keeper: Arc<Keeper>,
    pub(crate) views: Arc<dyn Views>,
    pub(crate) env: Arc<dyn Env>,
    pub(crate) status: watch::Receiver<RaftStatus>,
    /// Where reads run: passwords are hashed in the same manner.
    pub(crate) workers: Workers,
    /// The longest time that a request may take.
    pub(crate) timeout: Duration,
}

impl Auth {
    pub(crate) fn new(provider: Provider, cost: u32, ground: Ground) -> Arc<Self> {
        let Ground { keeper, views, env, status, workers, timeout } = ground;
        let workers = match workers {
            Workers::Inline => Workers::Inline,
            Workers::Threads(_) => Workers::Threads(Arc::new(Semaphore::new(limits::PASSWORDS_AT_ONCE))),
        };
        Arc::new(Self { provider, cost, keeper, views, env, status, workers, timeout, cached: Mutex::default() })
    }

    /// Whether auth is enabled here, and its revision.
    ///
    /// # Errors
    /// [`KvError::Corrupt`].
    pub fn facts(&self) -> Result<Facts, KvError> {
        let mut cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        // Before the state is read: a change after this is noticed the next time.
        let generation = self.keeper.generation();
        if let Some((known, facts)) = *cached
            && known == generation
        {
            return Ok(facts);
        }
        let now = facts(&*self.views.view()).map_err(ReadError::from)?;
        *cached = Some((generation, now));
        Ok(now)
    }

    /// Who a caller is, as far as anybody can tell; nobody while auth is disabled.
    ///
    /// # Errors
    /// [`AuthError::InvalidToken`], [`KvError::Corrupt`].
    pub(crate) async fn who(&self, caller: &Caller) -> Result<Who, KvError> {
        if !self.facts()?.enabled {
            return Ok(Who::nobody());
        }
        if let Some(token) = &caller.token {
            return self.holder(token).await;
        }
        Ok(match &caller.common_name {
            Some(name) if !name.is_empty() => Who { user: name.to_string(), revision: self.facts()?.revision },
            _ => Who::nobody(),
        })
    }

    /// Who holds a token.
    async fn holder(&self, token: &str) -> Result<Who, KvError> {
        if let Provider::Jwt(jwt) = &self.provider {
            let claims = jwt.check(token, self.env.now_wall()).ok_or(AuthError::InvalidToken)?;
            return Ok(Who { user: claims.username, revision: claims.revision });
        }
        let index = tokens::index_of(token).ok_or(AuthError::InvalidToken)?;
        let user = match self.keeper.find(token, self.env.now_mono()) {
            Some(user) => Some(user),
            None => {
                self.reach(index).await;
                self.keeper.find(token, self.env.now_mono())
            }
        };
        let user = user.ok_or(AuthError::InvalidToken)?;
        Ok(Who { user, revision: self.facts()?.revision })
    }

    /// Waits until this member has applied the entry at which a token was issued; not longer than a request may take.
    async fn reach(&self, index: LogIndex) {
        let mut status = self.status.clone();
        let reached = status.wait_for(|raft| raft.applied >= index);
        tokio::select! {
            biased;
            // Either it has come so far, or there is nothing more to come.
            _ = reached => {}
            () = self.env.sleep(self.timeout) => {}
        }
    }

    /// Checks something on the state of this member, with who the caller is now. Answers with the auth revision that it was checked at.
    ///
    /// # Errors
    /// What the check says, what [`Auth::who`] says.
    pub(crate) async fn check(
        &self,
        caller: &Caller,
        allowed: impl Fn(&dyn View, &Who) -> Result<(), ReadError> + Send + Sync,
    ) -> Result<u64, KvError> {
        let facts = self.facts()?;
        if !facts.enabled {
            return Ok(facts.revision);
        }
        let who = self.who(caller).await?;
        match self.check_for(&who, &allowed) {
            Err(error) if is_stale(&error) => {
                // Something has changed since it was found out who that is: once more, if that helps.
                let now = self.who(caller).await?;
                if now == who { Err(error) } else { self.check_for(&now, &allowed) }
            }
            other => other,
        }
    }

    fn check_for(&self, who: &Who, allowed: impl Fn(&dyn View, &Who) -> Result<(), ReadError>) -> Result<u64, KvError> {
        let view = self.views.view();
        allowed(&*view, who)?;
        Ok(facts(&*view).map_err(ReadError::from)?.revision)
    }

    /// The random part of a new token. Its 91 bits come from a keyed function whose key the operating system chose.
    fn letters(&self) -> String {
        let mut text = String::with_capacity(LETTERS);
        let mut bits = 0_u64;
        for place in 0..LETTERS {
            if place % 8 == 0 {
                bits = self.env.random_u64();
            }
            let letter = usize::try_from(bits % 52).unwrap_or(0);
            text.push(char::from(ALPHABET[letter]));
            bits /= 52;
        }
        text
    }
}
