//! Sealing: a secret becomes a box that only the right key opens, and only in the place it was made for.
//!
//! XChaCha20-Poly1305 (draft-irtf-cfrg-xchacha-03) with a fresh random 24-byte nonce for each box: long enough that
//! random ones never repeat. The associated data names table, row, column and format version, so a box that is copied to
//! another row or column does not open. Pure but for the random nonce; where keys come from is `key.rs`'s business.
//!
//! Layout: version (1 byte), nonce (24 bytes), ciphertext and tag (16 bytes).

use chacha20poly1305::{
    KeyInit, XChaCha20Poly1305, XNonce,
    aead::{Aead, Payload},
};
use guildnet_model::Secret;
use rand::{TryRngCore, rngs::OsRng};

use crate::StoreError;

/// The layout and cipher above.
const VERSION: u8 = 1;
/// Bytes of an XChaCha20-Poly1305 nonce.
const NONCE: usize = 24;

/// Where a sealed value lives. A box opens only at the place for which it was made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place<'a> {
    pub(crate) table: &'static str,
    pub(crate) row: &'a str,
    pub(crate) column: &'static str,
}

impl Place<'_> {
    /// Associated data: each part with its length in front, so that no two places read the same.
    fn associated_data(self) -> Vec<u8> {
        let mut data = vec![VERSION];
        for part in [self.table, self.row, self.column] {
            data.extend_from_slice(&(part.len() as u64).to_be_bytes());
            data.extend_from_slice(part.as_bytes());
        }
        data
    }
}

/// A box does not open: wrong key, changed, or not made for this place.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct DoesNotOpen;

/// Seals `secret` for `place`.
pub(crate) fn seal(key: &Secret<[u8; 32]>, place: Place<'_>, secret: &str) -> Result<Vec<u8>, StoreError> {
    let mut nonce = [0; NONCE];
    OsRng.try_fill_bytes(&mut nonce).map_err(|e| StoreError::NoRandom { why: e.to_string() })?;
    let payload = Payload { msg: secret.as_bytes(), aad: &place.associated_data() };
    let sealed = XChaCha20Poly1305::new(key.expose().into())
        .encrypt(XNonce::from_slice(&nonce), payload)
        .expect("a value in memory is far below the cipher's limit of 256 GiB");
    Ok([&[VERSION], nonce.as_slice(), &sealed].concat())
}

/// Opens what [`seal`] made for the same place with the same key.
pub(crate) fn open(key: &Secret<[u8; 32]>, place: Place<'_>, sealed: &[u8]) -> Result<Secret<String>, DoesNotOpen> {
    let (nonce, ciphertext) = match sealed {
        [VERSION, rest @ ..] if rest.len() >= NONCE => rest.split_at(NONCE),
        _ => return Err(DoesNotOpen),
    };
    let payload = Payload { msg: ciphertext, aad: &place.associated_data() };
    let opened = XChaCha20Poly1305::new(key.expose().into())
        .decrypt(XNonce::from_slice(nonce), payload)
        .map_err(|_| DoesNotOpen)?;
    String::from_utf8(opened).map(Secret::new).map_err(|_| DoesNotOpen)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY: [u8; 32] = [7; 32];

    fn place(row: &str) -> Place<'_> {
        Place { table: "clusters", row, column: "kubeconfig" }
    }

    proptest! {
        #[test]
        fn what_was_sealed_comes_back(secret: String, row: String, key: [u8; 32]) {
            let key = Secret::new(key);
            let sealed = seal(&key, place(&row), &secret).expect("sealed");
            prop_assert_eq!(open(&key, place(&row), &sealed), Ok(Secret::new(secret)));
        }

        #[test]
        fn any_changed_byte_is_noticed(secret: String, at: prop::sample::Index, with in 1u8..) {
            let key = Secret::new(KEY);
            let mut sealed = seal(&key, place("a"), &secret).expect("sealed");
            let at = at.index(sealed.len());
            sealed[at] ^= with;
            prop_assert_eq!(open(&key, place("a"), &sealed), Err(DoesNotOpen));
        }

        #[test]
        fn garbage_does_not_open(garbage: Vec<u8>) {
            prop_assert_eq!(open(&Secret::new(KEY), place("a"), &garbage), Err(DoesNotOpen));
        }
    }

    #[test]
    fn a_box_opens_only_in_its_place() {
        let key = Secret::new(KEY);
        let sealed = seal(&key, place("a"), "secret").expect("sealed");
        let elsewhere = [
            Place { table: "settings", ..place("a") },
            Place { column: "client_auth_key", ..place("a") },
            place("b"),
            // The same letters, cut differently.
            Place { table: "clusters", row: "ak", column: "ubeconfig" },
        ];
        for place in elsewhere {
            assert_eq!(open(&key, place, &sealed), Err(DoesNotOpen), "{place:?}");
        }
        assert_eq!(open(&Secret::new([8; 32]), place("a"), &sealed), Err(DoesNotOpen), "another key");
    }

    #[test]
    fn equal_secrets_look_different() {
        let key = Secret::new(KEY);
        let one = seal(&key, place("a"), "secret").expect("sealed");
        let two = seal(&key, place("a"), "secret").expect("sealed");
        assert_ne!(one, two);
    }
}
