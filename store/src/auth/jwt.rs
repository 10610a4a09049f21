//! Tokens that say themselves who they are for (JSON Web Tokens): signed by the member that was asked, checked by any, remembered by none.

use std::time::Duration;

use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use kontiki_base::env::WallMs;
use kontiki_base::{AuthError, KvError};
use serde::{Deserialize, Serialize};

/// What a token says. The names are etcd's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Claims {
    /// The user.
    pub(super) username: String,
    /// The auth revision at which it was issued.
    pub(super) revision: u64,
    /// When it ends: seconds since 1970.
    exp: i64,
}

/// Signs and checks.
pub(crate) struct Jwt {
    algorithm: Algorithm,
    /// Without it, this member only checks.
    sign: Option<EncodingKey>,
    check: DecodingKey,
    ttl: Duration,
}

impl std::fmt::Debug for Jwt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Jwt").field("algorithm", &self.algorithm).field("signs", &self.sign.is_some()).finish_non_exhaustive()
    }
}

/// The two keys, as they are in their files.
#[derive(Default)]
pub(super) struct Keys {
    pub(super) private: Option<Vec<u8>>,
    pub(super) public: Option<Vec<u8>>,
}

/// Reads a key.
type FromPem<K> = fn(&[u8]) -> Result<K, jsonwebtoken::errors::Error>;

impl Jwt {
    /// A signer with keys for a method; says what is wrong with them.
    pub(super) fn new(method: &str, keys: &Keys, ttl: Duration) -> Result<Self, String> {
        let algorithm: Algorithm = method.parse().map_err(|_| {
            format!("sign-method {method:?} is not known: take RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, EdDSA, HS256, HS384 or HS512")
        })?;
        let fail = |what: &'static str| move |error: jsonwebtoken::errors::Error| format!("{what} is no key for {method}: {error}");
        let (sign, check): (FromPem<EncodingKey>, FromPem<DecodingKey>) = match algorithm {
            Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512 => {
                let secret = keys.private.as_ref().filter(|key| !key.is_empty()).ok_or(format!("{method} needs priv-key: the secret"))?;
                let (sign, check) = (EncodingKey::from_secret(secret), DecodingKey::from_secret(secret));
                return Ok(Self { algorithm, sign: Some(sign), check, ttl });
            }
            Algorithm::ES256 | Algorithm::ES384 => (EncodingKey::from_ec_pem, DecodingKey::from_ec_pem),
            Algorithm::EdDSA => (EncodingKey::from_ed_pem, DecodingKey::from_ed_pem),
            _ => (EncodingKey::from_rsa_pem, DecodingKey::from_rsa_pem),
        };
        let public =
            keys.public.as_ref().ok_or(format!("{method} needs pub-key, to check tokens with; with priv-key, too, it issues them"))?;
        let jwt = Self {
            algorithm,
            sign: keys.private.as_deref().map(sign).transpose().map_err(fail("priv-key"))?,
            check: check(public).map_err(fail("pub-key"))?,
            ttl,
        };
        // Keys that do not belong together would make tokens that nobody believes.
        if jwt.sign.is_some() {
            let now = WallMs(0);
            let token = jwt.issue("probe", 1, now).map_err(|error| format!("priv-key cannot sign with {method}: {error}"))?;
            jwt.check(&token, now).ok_or("pub-key and priv-key do not belong together")?;
        }
        Ok(jwt)
    }

    /// A token for a user.
    ///
    /// # Errors
    /// [`AuthError::VerifyOnly`] without a key to sign with.
    pub(super) fn issue(&self, user: &str, revision: u64, now: WallMs) -> Result<String, KvError> {
        let key = self.sign.as_ref().ok_or(AuthError::VerifyOnly)?;
        let ttl = i64::try_from(self.ttl.as_secs()).unwrap_or(i64::MAX);
        let claims = Claims { username: user.to_owned(), revision, exp: seconds(now).saturating_add(ttl) };
        let header = Header::new(self.algorithm);
        jsonwebtoken::encode(&header, &claims, key).map_err(|error| KvError::Internal(format!("cannot sign a token: {error}")))
    }

    /// What a token says, if it is one of ours and has not ended.
    pub(super) fn check(&self, token: &str, now: WallMs) -> Option<Claims> {
        let mut rules = Validation::new(self.algorithm);
        // The crate would ask the system's clock.
        rules.validate_exp = false;
        rules.required_spec_claims.clear();
        rules.validate_aud = false;
        let claims = jsonwebtoken::decode::<Claims>(token, &self.check, &rules).ok()?.claims;
        (claims.exp > seconds(now)).then_some(claims)
    }
}

fn seconds(now: WallMs) -> i64 {
    now.0 / 1000
}

#[cfg(test)]
mod tests {
    use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ED25519, SignatureAlgorithm};

    use super::*;

    const TTL: Duration = Duration::from_secs(600);

    fn pair(algorithm: &'static SignatureAlgorithm) -> Keys {
        let pair = KeyPair::generate_for(algorithm).unwrap();
        Keys { private: Some(pair.serialize_pem().into_bytes()), public: Some(pair.public_key_pem().into_bytes()) }
    }

    /// A pair for RSA, made for this test with openssl; the crate that makes the others cannot.
    fn rsa() -> Keys {
        Keys { private: Some(include_bytes!("testdata/rsa.pem").to_vec()), public: Some(include_bytes!("testdata/rsa.pub.pem").to_vec()) }
    }

    #[test]
    fn what_one_member_signs_another_believes_until_it_ends() {
        let secret = || Keys { private: Some(b"a secret of some length".to_vec()), public: None };
        let table: [(&str, Keys, Keys); 6] = [
            ("HS256", secret(), secret()),
            ("HS512", secret(), secret()),
            ("ES256", pair(&PKCS_ECDSA_P256_SHA256), pair(&PKCS_ECDSA_P256_SHA256)),
            ("EdDSA", pair(&PKCS_ED25519), pair(&PKCS_ED25519)),
            ("RS256", rsa(), rsa()),
            ("PS384", rsa(), rsa()),
        ];
        for (method, keys, others) in table {
            let jwt = Jwt::new(method, &keys, TTL).unwrap();
            let token = jwt.issue("alice", 7, WallMs(1_000_000)).unwrap();
            let claims = jwt.check(&token, WallMs(1_000_000)).unwrap();
            assert_eq!((claims.username.as_str(), claims.revision, claims.exp), ("alice", 7, 1600), "{method}");
            assert!(jwt.check(&token, WallMs(1_599_999)).is_some() && jwt.check(&token, WallMs(1_600_000)).is_none(), "{method}");
            let mut forged = token.clone();
            let last = forged.pop().unwrap();
            forged.push(if last == 'A' { 'Q' } else { 'A' });
            assert_eq!(jwt.check(&forged, WallMs(0)), None, "{method}: another signature");
            assert_eq!(jwt.check("abc.1", WallMs(0)), None);
            // The same key under another method does not count, nor does another key.
            if !method.starts_with("HS") && others.private != keys.private {
                assert_eq!(Jwt::new(method, &others, TTL).unwrap().check(&token, WallMs(0)), None, "{method}: another's key");
                let mixed = Keys { private: keys.private.clone(), public: others.public.clone() };
                assert!(Jwt::new(method, &mixed, TTL).unwrap_err().contains("do not belong together"), "{method}");
            }
        }
    }

    #[test]
    fn the_method_of_the_token_does_not_choose_how_it_is_checked() {
        let keys = pair(&PKCS_ECDSA_P256_SHA256);
        let jwt = Jwt::new("ES256", &keys, TTL).unwrap();
        // The old trick: signed with the public key, as if it were a secret.
        let trick = Jwt::new("HS256", &Keys { private: keys.public.clone(), public: None }, TTL).unwrap();
        assert_eq!(jwt.check(&trick.issue("root", 1, WallMs(0)).unwrap(), WallMs(0)), None);
        // No signature at all.
        assert_eq!(jwt.check("eyJhbGciOiJub25lIn0.eyJ1c2VybmFtZSI6InJvb3QiLCJyZXZpc2lvbiI6MSwiZXhwIjo5OTk5OTk5OTk5fQ.", WallMs(0)), None);
    }

    #[test]
    fn a_member_with_the_public_key_alone_only_checks() {
        let keys = pair(&PKCS_ED25519);
        let signs = Jwt::new("EdDSA", &keys, TTL).unwrap();
        let checks = Jwt::new("EdDSA", &Keys { private: None, public: keys.public }, TTL).unwrap();
        assert!(checks.check(&signs.issue("alice", 1, WallMs(0)).unwrap(), WallMs(0)).is_some());
        assert_eq!(checks.issue("alice", 1, WallMs(0)), Err(AuthError::VerifyOnly.into()));
    }

    #[test]
    fn keys_that_make_no_sense_are_named() {
        let nonsense = Keys { private: Some(b"x".to_vec()), public: Some(b"x".to_vec()) };
        for (method, keys, says) in [
            ("none", &nonsense, "is not known"),
            ("RS256", &nonsense, "priv-key is no key"),
            ("ES256", &Keys { private: None, ..Keys::default() }, "needs pub-key"),
            ("HS256", &Keys { private: None, public: Some(b"x".to_vec()) }, "needs priv-key"),
        ] {
            let error = Jwt::new(method, keys, TTL).unwrap_err();
            assert!(error.contains(says), "{method}: {error}");
        }
    }
}
