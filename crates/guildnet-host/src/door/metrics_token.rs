//! The token of a Prometheus server: made from the home folder's own token, good for `/metrics` only, without an end. Pure.
//!
//! `gnm1.<tag>`: HMAC-SHA256 (RFC 2104) of the form's name under a key that is derived from the long token. So there is always
//! the same one, nothing is stored, it survives restarts as a scraper's configuration must, and none leads back to the
//! long token. Whoever reads it learns counts and the names of the clusters. It ends with the long token.

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use guildnet_model::Secret;
use hmac::{Hmac, Mac as _};
use sha2::Sha256;

use super::token;

/// What it begins with; another form gets another number.
const PREFIX: &str = "gnm1.";
/// What the derived key is for; see `kube_token.rs`.
const PURPOSE: &[u8] = b"guildnet metrics token 1";

/// The one that belongs to a long token.
pub(crate) fn of(long: &Secret<String>) -> Secret<String> {
    let mac = Hmac::<Sha256>::new_from_slice(long.expose().as_bytes()).expect("HMAC takes keys of any length");
    let tag = mac.chain_update(PURPOSE).finalize().into_bytes();
    Secret::new(format!("{PREFIX}{}", BASE64_URL_SAFE_NO_PAD.encode(tag)))
}

/// Whether this is it. Compared in a time that says nothing about where it differs.
pub(super) fn is(long: &Secret<String>, presented: &str) -> bool {
    presented.starts_with(PREFIX) && token::equal(presented, of(long).expose())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_same_for_one_token_and_another_for_another() {
        let (one, other) = (Secret::new("one".to_owned()), Secret::new("other".to_owned()));
        let made = of(&one);
        assert!(is(&one, made.expose()) && !is(&other, made.expose()));
        assert_eq!(made, of(&one), "a scraper keeps it");
        assert!(!is(&one, PREFIX) && !is(&one, "one") && !is(&one, &made.expose()[1..]));
    }
}
