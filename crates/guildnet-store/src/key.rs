//! The key that seals: 32 random bytes in a private file beside the database.
//!
//! The file holds one line, `guildnet-seal-1 ID KEY`: ID is the first 8 bytes of SHA-256 over a label and the key, in hex;
//! KEY is base64. ID is no secret; it stands in every sealed row, so that a wrong key is told apart from a damaged row.
//! A key is made only where nothing is sealed yet: the caller says so.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use guildnet_model::Secret;
use rand::{TryRngCore, rngs::OsRng};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::{StoreError, private};

/// The file's name in the store's folder.
pub(crate) const FILE: &str = "seal.key";
/// First word of the file: names the format.
const FORMAT: &str = "guildnet-seal-1";

/// A key, its id, and where it came from.
pub(crate) struct SealKey {
    pub(crate) id: String,
    pub(crate) key: Secret<[u8; 32]>,
    pub(crate) path: PathBuf,
}

impl fmt::Debug for SealKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SealKey").field("id", &self.id).field("path", &self.path).finish_non_exhaustive()
    }
}

impl SealKey {
    /// Reads the key; `None` if there is no key file.
    pub(crate) fn load(path: &Path) -> Result<Option<Self>, StoreError> {
        let Some(content) = private::read(path)?.map(Zeroizing::new) else { return Ok(None) };
        let damaged = |why| StoreError::KeyDamaged { path: path.to_owned(), why };
        let text = std::str::from_utf8(&content).map_err(|_| damaged("it is not text"))?;
        let words: Vec<&str> = text.split_whitespace().collect();
        let [FORMAT, id, encoded] = words[..] else {
            return Err(damaged("it is not one line 'guildnet-seal-1 ID KEY'"));
        };
        let mut key = Zeroizing::new([0; 32]);
        // One byte more than needed: the decoder wants room for whole groups.
        let mut room = Zeroizing::new([0; 33]);
        match BASE64_STANDARD.decode_slice(encoded, room.as_mut_slice()) {
            Ok(32) => key.copy_from_slice(&room[..32]),
            _ => return Err(damaged("the key is not 32 bytes in base64")),
        }
        if key_id(&key) != id {
            return Err(damaged("the key does not fit its id"));
        }
        Ok(Some(Self { id: id.to_owned(), key: Secret::new(*key), path: path.to_owned() }))
    }

    /// Makes the key file. If another process was faster, its key is taken.
    pub(crate) fn make(path: &Path) -> Result<Self, StoreError> {
        let mut key = Zeroizing::new([0; 32]);
        OsRng.try_fill_bytes(key.as_mut_slice()).map_err(|e| StoreError::NoRandom { why: e.to_string() })?;
        let encoded = Zeroizing::new(BASE64_STANDARD.encode(key.as_slice()));
        let line = Zeroizing::new(format!("{FORMAT} {} {}\n", key_id(&key), encoded.as_str()));
        private::create(path, line.as_bytes())?;
        Self::load(path)?.ok_or(StoreError::KeyDamaged { path: path.to_owned(), why: "it vanished while it was made" })
    }
}

/// The id of a key: says which it is, not what it is.
fn key_id(key: &[u8; 32]) -> String {
    let digest = Sha256::new().chain_update(b"guildnet seal key id\0").chain_update(key).finalize();
    digest[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_key_is_made_once_and_comes_back() {
        let folder = tempfile::tempdir().expect("tempdir");
        let path = folder.path().join(FILE);
        assert!(SealKey::load(&path).expect("read").is_none());
        let made = SealKey::make(&path).expect("made");
        let again = SealKey::make(&path).expect("the one that is there");
        assert_eq!((&made.id, &made.key), (&again.id, &again.key));
        assert!(!format!("{made:?}").contains(&BASE64_STANDARD.encode(made.key.expose())));
    }

    #[test]
    fn a_damaged_file_is_refused_with_its_cause() {
        let folder = tempfile::tempdir().expect("tempdir");
        let path = folder.path().join(FILE);
        SealKey::make(&path).expect("made");
        let good = fs::read_to_string(&path).expect("text");
        let other_id = format!("{FORMAT} 0123456789abcdef {}", good.rsplit(' ').next().expect("a key"));
        for (content, why) in [
            ("", "it is not one line 'guildnet-seal-1 ID KEY'"),
            (&good[..good.len() - 8], "the key is not 32 bytes in base64"),
            (&other_id, "the key does not fit its id"),
        ] {
            private::write(&path, content.as_bytes()).expect("written");
            match SealKey::load(&path) {
                Err(StoreError::KeyDamaged { why: said, .. }) => assert_eq!(said, why),
                other => panic!("{other:?}"),
            }
        }
    }
}
