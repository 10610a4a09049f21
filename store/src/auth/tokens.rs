//! Simple tokens: random letters that every member knows, because they came through the log. Each member lets a token live for as long as
//! it is used there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kontiki_base::env::Mono;
use kontiki_base::ids::LogIndex;
use kontiki_base::limits;
use kontiki_mvcc::auth::{AuthReply, Out};

/// The index of the entry with which a token was issued; `None` if it is no token.
pub(super) fn index_of(token: &str) -> Option<LogIndex> {
    let (letters, index) = token.split_once('.')?;
    let sound = !letters.is_empty() && !index.is_empty() && index.bytes().all(|b| b.is_ascii_digit());
    sound.then(|| index.parse().ok().map(LogIndex::new))?
}

#[derive(Debug)]
struct Held {
    user: String,
    until: Mono,
}

#[derive(Debug, Default)]
struct Tokens {
    held: BTreeMap<String, Held>,
    /// The same, by when they end.
    order: BTreeSet<(Mono, String)>,
}

impl Tokens {
    fn hold(&mut self, token: String, user: String, until: Mono) {
        self.drop_one(&token);
        self.order.insert((until, token.clone()));
        self.held.insert(token, Held { user, until });
    }

    fn drop_one(&mut self, token: &str) {
        if let Some(held) = self.held.remove(token) {
            self.order.remove(&(held.until, token.to_owned()));
        }
    }

    fn drop_expired(&mut self, now: Mono) {
        while let Some((until, _)) = self.order.first()
            && *until <= now
            && let Some((_, token)) = self.order.pop_first()
        {
            self.held.remove(&token);
        }
    }

    fn retain(&mut self, keep: impl Fn(&Held) -> bool) {
        self.held.retain(|token, held| {
            let keeps = keep(held);
            if !keeps {
                self.order.remove(&(held.until, token.clone()));
            }
            keeps
        });
    }
}

/// Takes what the log says about users and tokens, on the apply thread.
#[derive(Debug)]
pub(crate) struct Keeper {
    tokens: Mutex<Tokens>,
    ttl: Duration,
    /// Counts changes of anything about users.
    generation: AtomicU64,
}

impl Keeper {
    /// A keeper of tokens that live for `ttl` after they were last used.
    pub(crate) fn new(ttl: Duration) -> Self {
        Self { tokens: Mutex::default(), ttl, generation: AtomicU64::new(0) }
    }

    fn lock(&self) -> MutexGuard<'_, Tokens> {
        // The two maps agree between any two statements that could panic.
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes whenever users, roles or permissions may have changed.
    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// What a batch did to users and tokens. The batch is readable already.
    pub(crate) fn applied(&self, replies: &[AuthReply], now: Mono) {
        for reply in replies {
            match reply {
                AuthReply::Token { token, user } => self.issue(token, user, now),
                AuthReply::Changed { out } => {
                    self.generation.fetch_add(1, Ordering::AcqRel);
                    match out {
                        Out::Nobody => {}
                        Out::Users(users) => self.lock().retain(|held| !users.contains(&held.user)),
                        Out::Everybody => self.lock().retain(|_| false),
                    }
                }
            }
        }
    }

    /// The whole state was replaced. Which tokens were issued or ended meanwhile is not known: all clients log in again.
    pub(crate) fn replaced(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        self.lock().retain(|_| false);
    }

    fn issue(&self, token: &str, user: &str, now: Mono) {
        let mut tokens = self.lock();
        tokens.drop_expired(now);
        if tokens.held.len() >= limits::AUTH_TOKENS
            && let Some((_, oldest)) = tokens.order.pop_first()
        {
            tokens.held.remove(&oldest);
        }
        tokens.hold(token.to_owned(), user.to_owned(), now.plus(self.ttl));
    }

    /// Whose token it is. It lives on from now.
    pub(super) fn find(&self, token: &str, now: Mono) -> Option<String> {
        let mut tokens = self.lock();
        let held = tokens.held.get(token)?;
        if held.until <= now {
            tokens.drop_one(token);
            return None;
        }
        let user = held.user.clone();
        tokens.hold(token.to_owned(), user.clone(), now.plus(self.ttl));
        Some(user)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(seconds: u64) -> Mono {
        Mono(Duration::from_secs(seconds))
    }

    fn issued(token: &str, user: &str) -> AuthReply {
        AuthReply::Token { token: token.into(), user: user.into() }
    }

    fn keeper(tokens: &[(&str, &str)]) -> Keeper {
        let keeper = Keeper::new(Duration::from_secs(300));
        keeper.applied(&tokens.iter().map(|(token, user)| issued(token, user)).collect::<Vec<_>>(), at(0));
        keeper
    }

    #[test]
    fn a_token_lives_for_as_long_as_it_is_used() {
        let keeper = keeper(&[("t.1", "alice")]);
        for now in [0, 299, 598] {
            assert_eq!(keeper.find("t.1", at(now)).as_deref(), Some("alice"), "{now}");
        }
        assert_eq!(keeper.find("t.1", at(898)), None, "300 seconds after the last use");
        assert_eq!(keeper.find("t.1", at(598)), None, "and it does not come back");
        assert_eq!(keeper.lock().order.len(), 0);
    }

    #[test]
    fn tokens_end_with_what_they_stand_for() {
        let keeper = keeper(&[("a.1", "alice"), ("a.2", "alice"), ("b.3", "bob")]);
        let before = keeper.generation();
        keeper.applied(&[AuthReply::Changed { out: Out::Users(vec!["alice".into()]) }], at(1));
        assert_ne!(keeper.generation(), before);
        assert_eq!([keeper.find("a.1", at(1)), keeper.find("a.2", at(1)), keeper.find("b.3", at(1))], [None, None, Some("bob".into())]);
        keeper.applied(&[AuthReply::Changed { out: Out::Everybody }], at(1));
        assert_eq!(keeper.find("b.3", at(1)), None);
        keeper.applied(&[issued("c.4", "carol")], at(1));
        keeper.replaced();
        assert_eq!(keeper.find("c.4", at(1)), None, "a whole state came in");
    }

    #[test]
    fn only_so_many_are_kept() {
        let keeper = keeper(&[]);
        for n in 0..=limits::AUTH_TOKENS {
            keeper.applied(&[issued(&format!("t.{n}"), "alice")], at(0).plus(Duration::from_micros(u64::try_from(n).unwrap())));
        }
        assert_eq!(keeper.lock().held.len(), limits::AUTH_TOKENS);
        assert_eq!(keeper.find("t.0", at(1)), None, "the one that would have ended first");
        assert!(keeper.find("t.1", at(1)).is_some());
    }

    #[test]
    fn what_is_no_token_is_seen_at_once() {
        assert_eq!(index_of("abc.12"), Some(LogIndex::new(12)));
        for bad in ["", "abc", "abc.", ".1", "abc.x", "abc.1.2", "abc.-1", "abc.99999999999999999999999"] {
            assert_eq!(index_of(bad), None, "{bad}");
        }
    }
}
