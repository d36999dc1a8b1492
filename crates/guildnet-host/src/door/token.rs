//! The token of the API: 256 random bits in a private file. Who can read the file is the person.

use std::path::Path;

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use guildnet_model::{Class, Secret};
use guildnet_store::private;
use rand::{TryRngCore as _, rngs::OsRng};
use sha2::{Digest as _, Sha256};

use crate::{HostError, error::Explained as _};

/// The file's name in the home folder.
const FILE: &str = "token";
/// Letters of 32 bytes in base64 without padding.
const LETTERS: usize = 43;

/// The token of this home folder's Host App; made if there is none.
///
/// # Errors
/// The file can't be read or made, is open to others, or holds something else.
pub(crate) fn token(home: &Path) -> Result<Secret<String>, HostError> {
    private::make_dir(home).explained()?;
    if let Some(found) = existing(home)? {
        return Ok(found);
    }
    let mut bits = [0; 32];
    OsRng
        .try_fill_bytes(&mut bits)
        .map_err(|why| HostError::new(Class::Failed, format!("no random numbers: {why}")))?;
    let line = Secret::new(BASE64_URL_SAFE_NO_PAD.encode(bits) + "\n");
    // If another process was faster, its token is the one.
    private::create(&home.join(FILE), line.expose().as_bytes()).explained()?;
    existing(home)?.ok_or_else(|| HostError::new(Class::Failed, "the token vanished while it was made"))
}

/// The token, if one was made.
pub(crate) fn existing(home: &Path) -> Result<Option<Secret<String>>, HostError> {
    let file = home.join(FILE);
    let Some(content) = private::read(&file).explained()? else { return Ok(None) };
    let text = Secret::new(String::from_utf8_lossy(&content).trim().to_owned());
    if text.expose().len() != LETTERS || BASE64_URL_SAFE_NO_PAD.decode(text.expose()).is_err() {
        return Err(HostError::new(Class::Credentials, format!("{} holds no token", file.display()))
            .with_hint(format!("remove {} and start the Host App again: a new one is made", file.display())));
    }
    Ok(Some(text))
}

/// Compares two texts in a time that says nothing about where they differ: their digests are compared, all bytes.
pub(crate) fn equal(one: impl AsRef<[u8]>, other: impl AsRef<[u8]>) -> bool {
    same(&Sha256::digest(one).into(), &Sha256::digest(other).into())
}

/// Compares two digests: all bytes, whatever they are.
pub(super) fn same(one: &[u8; 32], other: &[u8; 32]) -> bool {
    std::hint::black_box(one.iter().zip(other).fold(0, |all, (a, b)| all | (a ^ b))) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_made_once() {
        let home = tempfile::tempdir().expect("tempdir");
        assert_eq!(existing(home.path()).expect("read"), None);
        let made = token(home.path()).expect("made");
        assert_eq!(made.expose().len(), LETTERS);
        assert_eq!(token(home.path()).expect("read"), made);
        private::check(&home.path().join(FILE)).expect("private");
    }

    #[test]
    fn a_file_that_holds_no_token_is_refused() {
        let home = tempfile::tempdir().expect("tempdir");
        private::make_dir(home.path()).expect("private");
        for content in ["", "short", &"!".repeat(LETTERS)] {
            private::write(&home.path().join(FILE), content.as_bytes()).expect("written");
            assert!(token(home.path()).is_err(), "{content:?}");
        }
    }

    #[test]
    fn only_equal_texts_are_equal() {
        assert!(equal("abc", "abc"));
        for other in ["", "abd", "ab", "abcd"] {
            assert!(!equal("abc", other), "{other}");
        }
    }
}
