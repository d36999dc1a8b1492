//! The user and password of a cluster's proxies: made here, compared here.

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use guildnet_model::{Class, ClusterId, Secret};
use rand::{TryRngCore as _, rngs::OsRng};

use crate::{HostError, door::equal};

/// Random bytes of a password: nobody guesses 192 bits, and its 32 letters need no escape in a URL.
const BYTES: usize = 24;

/// What a proxy wants of its clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Credential {
    user: String,
    password: Secret<String>,
}

impl Credential {
    /// The user is the cluster's id.
    pub(crate) fn new(cluster: &ClusterId, password: Secret<String>) -> Self {
        Self { user: cluster.to_string(), password }
    }

    /// Whether this is it, in a time that tells nothing about which part differs, and where.
    pub(crate) fn admits(&self, user: &[u8], password: &[u8]) -> bool {
        // Both are always compared.
        equal(user, &self.user) & equal(password, self.password.expose())
    }
}

/// A new password.
///
/// # Errors
/// The system gives no random numbers.
pub(crate) fn make_password() -> Result<Secret<String>, HostError> {
    let mut bits = [0; BYTES];
    OsRng
        .try_fill_bytes(&mut bits)
        .map_err(|why| HostError::new(Class::Failed, format!("no random numbers: {why}")))?;
    Ok(Secret::new(BASE64_URL_SAFE_NO_PAD.encode(bits)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_user_and_password_together_are_admitted() {
        let credential = Credential::new(&"a".parse().expect("an id"), Secret::new("pass".into()));
        assert!(credential.admits(b"a", b"pass"));
        for (user, password) in [("a", "Pass"), ("a", ""), ("b", "pass"), ("", "pass"), ("", ""), ("ap", "ass")] {
            assert!(!credential.admits(user.as_bytes(), password.as_bytes()), "{user}:{password}");
        }
    }

    #[test]
    fn passwords_differ_and_need_no_escape() {
        let (one, other) = (make_password().expect("made"), make_password().expect("made"));
        assert_ne!(one, other);
        assert_eq!(one.expose().len(), 32);
        assert!(one.expose().bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'));
    }
}
