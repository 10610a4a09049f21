//! How tokens are made and passwords are hashed: `--auth-token`, `--auth-token-ttl`, `--bcrypt-cost`, with etcd's meanings.

use std::time::Duration;

use super::jwt::{Jwt, Keys};
use super::password::COSTS;
use crate::error::StoreError;
use crate::flags::value::duration;

/// A JSON Web Token lives so long if nothing else is said, as in etcd.
const JWT_TTL: Duration = Duration::from_secs(300);

/// How tokens are made and passwords are hashed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthOptions {
    /// `simple`, or `jwt,pub-key=FILE,priv-key=FILE,sign-method=METHOD,ttl=10m`. The same at every member.
    pub token: String,
    /// A simple token ends when it has not been used for so long. One of the other kind has its own `ttl`, and ends for good.
    pub token_ttl: Duration,
    /// The cost of hashing a password: each step doubles it. Passwords that are there keep theirs.
    pub bcrypt_cost: u32,
}

impl Default for AuthOptions {
    fn default() -> Self {
        Self { token: "simple".into(), token_ttl: Duration::from_secs(300), bcrypt_cost: 10 }
    }
}

/// How tokens are made.
#[derive(Debug)]
pub(crate) enum Provider {
    /// Random letters that every member knows.
    Simple,
    /// They say themselves who they are for.
    Jwt(Jwt),
}

fn fail<T>(text: impl Into<String>) -> Result<T, StoreError> {
    Err(StoreError::Config(format!("auth-token: {}", text.into())))
}

impl AuthOptions {
    /// Checks the options, and reads the keys that they name.
    ///
    /// # Errors
    /// [`StoreError::Config`], with what is wrong and what to write instead.
    pub(crate) fn provider(&self) -> Result<Provider, StoreError> {
        if !COSTS.contains(&self.bcrypt_cost) {
            let (least, most) = (COSTS.start(), COSTS.end());
            return Err(StoreError::Config(format!("bcrypt-cost: {} is not between {least} and {most}", self.bcrypt_cost)));
        }
        if self.token_ttl.is_zero() {
            return Err(StoreError::Config("auth-token-ttl: a token must live for a while".into()));
        }
        let (kind, rest) = self.token.split_once(',').map_or((self.token.as_str(), None), |(kind, rest)| (kind, Some(rest)));
        match (kind, rest) {
            ("simple", None) => Ok(Provider::Simple),
            ("simple", Some(_)) => fail("simple tokens have no options here: use auth-token-ttl"),
            ("jwt", Some(rest)) => jwt(rest),
            ("jwt", None) => fail("jwt needs at least sign-method and a key: jwt,sign-method=EdDSA,pub-key=FILE,priv-key=FILE"),
            (other, _) => fail(format!("{other:?} is not known: take simple or jwt")),
        }
    }
}

fn jwt(rest: &str) -> Result<Provider, StoreError> {
    let (mut method, mut keys, mut ttl) = (None, Keys::default(), JWT_TTL);
    for item in rest.split(',') {
        match item.split_once('=') {
            Some(("sign-method", name)) => method = Some(name),
            Some(("pub-key", path)) => keys.public = Some(read(path)?),
            Some(("priv-key", path)) => keys.private = Some(read(path)?),
            Some(("ttl", text)) => match duration(text) {
                Ok(found) if !found.is_zero() => ttl = found,
                _ => return fail(format!("ttl {text:?} is not a duration: write 10m or 90s")),
            },
            _ => return fail(format!("{item:?} is not an option of jwt: they are sign-method, pub-key, priv-key and ttl")),
        }
    }
    let Some(method) = method else { return fail("jwt needs a sign-method: RS256, ES256, EdDSA or HS256, say") };
    Jwt::new(method, &keys, ttl).map(Provider::Jwt).or_else(fail)
}

fn read(path: &str) -> Result<Vec<u8>, StoreError> {
    std::fs::read(path).or_else(|error| fail(format!("cannot read {path}: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(token: &str) -> Result<Provider, String> {
        AuthOptions { token: token.into(), ..AuthOptions::default() }.provider().map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_wrong_is_said_with_what_would_be_right() {
        assert!(matches!(with("simple"), Ok(Provider::Simple)));
        for (token, says) in [
            ("", "take simple or jwt"),
            ("kerberos", "take simple or jwt"),
            ("simple,ttl=5m", "auth-token-ttl"),
            ("jwt", "needs at least"),
            ("jwt,ttl=5m", "needs a sign-method"),
            ("jwt,sign-method=RS256", "needs pub-key"),
            ("jwt,sign-method=XY", "is not known"),
            ("jwt,color=red", "is not an option"),
            ("jwt,sign-method=EdDSA,ttl=soon", "write 10m"),
            ("jwt,sign-method=EdDSA,ttl=0s", "write 10m"),
            ("jwt,sign-method=EdDSA,pub-key=/no/such/file", "cannot read /no/such/file"),
        ] {
            let error = with(token).unwrap_err();
            assert!(error.contains(says), "{token}: {error}");
        }
        for cost in [0, 3, 32] {
            let error = AuthOptions { bcrypt_cost: cost, ..AuthOptions::default() }.provider().unwrap_err();
            assert!(error.to_string().contains("between 4 and 31"));
        }
        assert!(AuthOptions { token_ttl: Duration::ZERO, ..AuthOptions::default() }.provider().is_err());
    }

    #[test]
    fn keys_are_read_from_their_files() {
        let dir = tempfile::tempdir().unwrap();
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let (private, public) = (dir.path().join("key.pem"), dir.path().join("pub.pem"));
        std::fs::write(&private, pair.serialize_pem()).unwrap();
        std::fs::write(&public, pair.public_key_pem()).unwrap();
        let token = format!("jwt,pub-key={},priv-key={},sign-method=EdDSA,ttl=10m", public.display(), private.display());
        assert!(matches!(with(&token), Ok(Provider::Jwt(_))));
    }
}
