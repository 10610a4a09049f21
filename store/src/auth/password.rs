//! bcrypt: hashing passwords, where the request came in. Hashes are random, so this is never done while the log is applied.

use bytes::Bytes;
use kontiki_base::{AuthError, KvError};

use super::Auth;

/// bcrypt reads no more of a password; a longer one is refused, not cut.
const LONGEST: usize = 72;

/// The costs that bcrypt knows.
pub(super) const COSTS: std::ops::RangeInclusive<u32> = 4..=31;

/// The hash of a password, in the usual form (`$2a$…`).
fn hash(password: &str, cost: u32, salt: [u8; 16]) -> Result<Bytes, KvError> {
    if password.len() > LONGEST {
        return Err(AuthError::PasswordTooLong.into());
    }
    let parts = bcrypt::hash_with_salt(password, cost, salt).map_err(|error| KvError::Internal(format!("bcrypt: {error}")))?;
    Ok(parts.format_for_version(bcrypt::Version::TwoA).into())
}

/// Whether a password has this hash. A hash that makes no sense is nobody's.
fn matches(password: &str, hash: &[u8]) -> bool {
    std::str::from_utf8(hash).is_ok_and(|hash| bcrypt::verify(password, hash).unwrap_or(false))
}

impl Auth {
    /// Hashes a password.
    ///
    /// # Errors
    /// [`AuthError::PasswordTooLong`].
    pub(super) async fn hash(&self, password: String) -> Result<Bytes, KvError> {
        let mut salt = [0; 16];
        salt[..8].copy_from_slice(&self.env.random_u64().to_le_bytes());
        salt[8..].copy_from_slice(&self.env.random_u64().to_le_bytes());
        let cost = self.cost;
        self.workers.run(move || hash(&password, cost, salt)).await
    }

    /// Whether a password has this hash.
    ///
    /// # Errors
    /// [`KvError::Stopped`].
    pub(super) async fn matches(&self, password: String, hash: Bytes) -> Result<bool, KvError> {
        self.workers.run(move || Ok(matches(&password, &hash))).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_of_etcd() {
        let ours = hash("secret", 4, [7; 16]).unwrap();
        assert!(ours.starts_with(b"$2a$04$") && ours.len() == 60);
        assert!(matches("secret", &ours) && !matches("Secret", &ours) && !matches("", &ours));
        // The example of OpenBSD's test vectors.
        assert!(matches("U*U", b"$2a$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW"));
        assert!(!matches("secret", b"") && !matches("secret", b"\xff") && !matches("secret", b"$2a$04$"));
        assert_ne!(hash("secret", 4, [8; 16]).unwrap(), ours);
        assert!(hash(&"x".repeat(72), 4, [7; 16]).is_ok());
        assert_eq!(hash(&"x".repeat(73), 4, [7; 16]), Err(AuthError::PasswordTooLong.into()));
    }
}
