//! Tokens for kubectl: made from the home folder's own token, good for `/k8s/` only, and for minutes. Pure.
//!
//! `gnk1.<end>.<nonce>.<tag>`: the end in seconds since 1970, 128 random bits, and HMAC-SHA256 (RFC 2104) of all before
//! under a key that is itself derived from the long token. Whoever reads one, in a process list of children, a trace, or
//! a tool's cache, can reach the clusters for a quarter of an hour and nothing else of the Host App; nobody can make one
//! without the long token, and none leads back to it. Nothing is stored: a new long token ends them all.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use guildnet_model::{Class, Secret};
use hmac::{Hmac, Mac as _};
use rand::{TryRngCore as _, rngs::OsRng};
use sha2::Sha256;

use crate::HostError;

/// What they begin with; another form gets another number.
const PREFIX: &str = "gnk1.";
/// How long one is good: kubectl keeps it until then, so this is how often it is made anew, and how long a stolen one helps.
const LIFE: Duration = Duration::from_secs(15 * 60);
/// How much longer than [`LIFE`] an end may be away: for a clock that was set back in between.
const SLACK: Duration = Duration::from_secs(60);
/// What the derived key is for. Another use of the long token gets another text, and so another key.
const PURPOSE: &[u8] = b"guildnet kube token 1";
/// Random bytes: so that no two are equal, and one found in a log tells nothing of another.
const NONCE: usize = 16;

/// What a presented token is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Judged {
    /// None of this form.
    Other,
    /// Made with this long token, and not at its end.
    Good,
    /// Of this form, and past its end, or not made here.
    Bad,
}

/// Makes one, and says when it ends.
///
/// # Errors
/// The system has no random numbers, or its clock stands before 1970.
pub(crate) fn make(long: &Secret<String>, now: SystemTime) -> Result<(Secret<String>, SystemTime), HostError> {
    let failed = |what: String| HostError::new(Class::Failed, what).with_hint("mend this machine's clock or kernel");
    let mut nonce = [0; NONCE];
    OsRng.try_fill_bytes(&mut nonce).map_err(|why| failed(format!("no random numbers: {why}")))?;
    let now = now.duration_since(UNIX_EPOCH).map_err(|_| failed("the clock stands before 1970".into()))?;
    let end = now.as_secs() + LIFE.as_secs();
    let signed = format!("{PREFIX}{end}.{}", BASE64_URL_SAFE_NO_PAD.encode(nonce));
    let tag = BASE64_URL_SAFE_NO_PAD.encode(mac(long, &signed).finalize().into_bytes());
    Ok((Secret::new(format!("{signed}.{tag}")), UNIX_EPOCH + Duration::from_secs(end)))
}

/// Judges one. The tag is compared in a time that says nothing about where it differs.
pub(super) fn judge(long: &Secret<String>, presented: &str, now: SystemTime) -> Judged {
    let Some(rest) = presented.strip_prefix(PREFIX) else { return Judged::Other };
    let good = || {
        let (signed, tag) = presented.rsplit_once('.')?;
        let tag = BASE64_URL_SAFE_NO_PAD.decode(tag).ok()?;
        mac(long, signed).verify_slice(&tag).ok()?;
        // Only what was made here is looked into.
        let end = Duration::from_secs(rest.split_once('.')?.0.parse().ok()?);
        let now = now.duration_since(UNIX_EPOCH).ok()?;
        (now < end && end <= now + LIFE + SLACK).then_some(())
    };
    if good().is_some() { Judged::Good } else { Judged::Bad }
}

fn mac(long: &Secret<String>, signed: &str) -> Hmac<Sha256> {
    let new = |key: &[u8]| Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    let key = new(long.expose().as_bytes()).chain_update(PURPOSE).finalize().into_bytes();
    new(&key).chain_update(signed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn long() -> Secret<String> {
        Secret::new("the-long-token".into())
    }

    /// A quarter past some hour.
    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_800_000_000 + seconds)
    }

    #[test]
    fn one_is_good_until_its_end() {
        let (token, end) = make(&long(), at(0)).expect("made");
        assert_eq!(end, at(15 * 60));
        for (when, judged) in
            [(0, Judged::Good), (15 * 60 - 1, Judged::Good), (15 * 60, Judged::Bad), (1 << 40, Judged::Bad)]
        {
            assert_eq!(judge(&long(), token.expose(), at(when)), judged, "after {when} s");
        }
        assert_ne!(make(&long(), at(0)).expect("made").0, token, "no two are equal");
    }

    #[test]
    fn one_from_the_future_is_not_good() {
        let (token, _) = make(&long(), at(3_600)).expect("made");
        assert_eq!(judge(&long(), token.expose(), at(0)), Judged::Bad);
    }

    #[test]
    fn a_forged_one_is_not_good() {
        let (token, _) = make(&long(), at(0)).expect("made");
        let parts: Vec<&str> = token.expose().split('.').collect();
        let [form, end, nonce, tag] = parts[..] else { panic!("four parts") };
        let later = end.parse::<u64>().expect("a number") + 60;
        let tag_of_others = make(&Secret::new("another-long-token".into()), at(0)).expect("made").0;
        for forged in [
            format!("{form}.{later}.{nonce}.{tag}"),
            format!("{form}.{end}.AAAAAAAAAAAAAAAAAAAAAA.{tag}"),
            format!("{form}.{end}.{nonce}."),
            format!("{form}.{end}.{nonce}.{}", &tag[..tag.len() - 4]),
            format!("{form}.{end}.{nonce}.{tag}A"),
            format!("{form}.{end}.{nonce}"),
            format!("{form}."),
            tag_of_others.expose().clone(),
        ] {
            assert_eq!(judge(&long(), &forged, at(0)), Judged::Bad, "{forged}");
        }
        assert_eq!(judge(&long(), "the-long-token", at(0)), Judged::Other);
    }
}
