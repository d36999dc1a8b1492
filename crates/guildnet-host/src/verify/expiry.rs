//! What verify says of keys that end: the routers' preauth key, the API key. Pure: time comes in. A connector's own node
//! key is judged in `membership.rs`, with its membership.

use guildnet_headscale::{ApiKey, PreauthKey, near_end_from};
use guildnet_model::{ClusterId, Secret};
use jiff::{SignedDuration, Timestamp};

use super::Outcome;

/// An API key that ends sooner is worth a warning: only a person on the server can make another one, and may be away for a
/// fortnight.
const API_KEY_NEAR_END: SignedDuration = SignedDuration::from_hours(14 * 24);

/// Up to this, time left is told in hours: two days.
const IN_HOURS: SignedDuration = SignedDuration::from_hours(48);

/// How long until `end`, for a person: `5 h`, `12 days`.
pub(super) fn left(now: Timestamp, end: Timestamp) -> String {
    let left = end.duration_since(now);
    if left < IN_HOURS { format!("{} h", left.as_hours()) } else { format!("{} days", left.as_hours() / 24) }
}

/// How the server lists the router key that is kept here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RouterKey {
    /// None is kept here.
    NotKept,
    /// It does not list it.
    Unlisted,
    /// It lists it.
    Listed {
        /// When it was made, if that is told.
        created: Option<Timestamp>,
        /// When it ends, if it does.
        expires: Option<Timestamp>,
        /// Whether a node can join with it now.
        usable: bool,
    },
}

impl RouterKey {
    /// `kept`: the key that is kept here; `listed`: those of the cluster's namespace.
    pub(super) fn of(kept: Option<&Secret<String>>, listed: &[PreauthKey], now: Timestamp) -> Self {
        let Some(kept) = kept else { return Self::NotKept };
        match listed.iter().find(|k| k.is(kept)) {
            Some(k) => Self::Listed { created: k.created, expires: k.expires, usable: k.is_usable(now) },
            None => Self::Unlisted,
        }
    }
}

pub(super) fn router_key(cluster: &ClusterId, seen: RouterKey, now: Timestamp) -> Outcome {
    // Routers that have joined need no key: only those of new nodes do.
    let warn = |said: String| Outcome::warn(format!("{said}: a new node's router could not join"), mend(cluster));
    match seen {
        RouterKey::NotKept => Outcome::NotRequired { because: "no router key is kept here" },
        RouterKey::Unlisted => warn("the server does not know the router key".into()),
        RouterKey::Listed { expires: Some(end), .. } if end <= now => warn(format!("the router key has ended ({end})")),
        RouterKey::Listed { usable: false, .. } => warn("the router key is used up".into()),
        RouterKey::Listed { created, expires: Some(end), .. } => {
            let left = left(now, end);
            match near_end_from(created, Some(end)) {
                Some(from) if from <= now => Outcome::warn(format!("the router key ends in {left}"), mend(cluster)),
                _ => Outcome::pass(format!("new nodes' routers can join for {left}")),
            }
        }
        RouterKey::Listed { expires: None, .. } => Outcome::pass("new nodes' routers can join; their key has no end"),
    }
}

fn mend(cluster: &ClusterId) -> String {
    format!("guildnet router ensure {cluster}")
}

/// An API key that the server accepts. `listed`: how it lists it, if it does.
pub(super) fn api_key(listed: Option<&ApiKey>, now: Timestamp) -> Outcome {
    match listed.and_then(|k| k.expires) {
        Some(end) if end.duration_since(now) < API_KEY_NEAR_END => Outcome::warn(
            format!("the API key ends in {}", left(now, end)),
            "make a new one with 'headscale apikeys create' and give it: guildnet up --headscale-api-key-file FILE",
        ),
        Some(end) => Outcome::pass(format!("the API key is accepted for {}", left(now, end))),
        None => Outcome::pass("the API key is accepted"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Timestamp {
        "2026-11-25T00:00:00Z".parse().expect("a time")
    }

    fn hours(n: i64) -> SignedDuration {
        SignedDuration::from_hours(n)
    }

    fn a() -> ClusterId {
        "a".parse().expect("an id")
    }

    /// A key born `age` hours ago that ends in `left` hours.
    fn listed(age: i64, left: i64) -> RouterKey {
        let (created, expires) = (Some(now() - hours(age)), Some(now() + hours(left)));
        RouterKey::Listed { created, expires, usable: true }
    }

    #[track_caller]
    fn warns(outcome: &Outcome, part: &str, command: &str) {
        let Outcome::Warn { seen, hint } = outcome else { panic!("no warning: {outcome:?}") };
        assert!(seen.contains(part) && hint.contains(command), "{seen} {hint}");
    }

    #[test]
    fn a_router_key_is_warned_of_in_its_last_quarter_and_once_it_is_over_or_unknown() {
        let of = |seen| router_key(&a(), seen, now());
        assert_eq!(of(listed(1, 23)), Outcome::pass("new nodes' routers can join for 23 h"));
        warns(&of(listed(19, 5)), "ends in 5 h", "guildnet router ensure a");
        warns(&of(listed(60 * 24, 6 * 24)), "ends in 6 days", "guildnet router ensure a");
        warns(&of(listed(48, -24)), "has ended (2026-11-24", "guildnet router ensure a");
        warns(&of(RouterKey::Unlisted), "does not know the router key", "guildnet router ensure a");
        let used = RouterKey::Listed { created: None, expires: None, usable: false };
        warns(&of(used), "used up", "guildnet router ensure a");
        assert!(matches!(of(RouterKey::NotKept), Outcome::NotRequired { .. }));
    }

    #[test]
    fn an_api_key_is_warned_of_a_fortnight_ahead() {
        let of = |left: i64| {
            let expires = Some(now() + hours(left));
            api_key(Some(&ApiKey { id: 1, prefix: "x".into(), created: None, expires }), now())
        };
        assert_eq!(of(90 * 24), Outcome::pass("the API key is accepted for 90 days"));
        warns(&of(13 * 24), "ends in 13 days", "--headscale-api-key-file");
        warns(&of(3), "ends in 3 h", "--headscale-api-key-file");
        assert_eq!(api_key(None, now()), Outcome::pass("the API key is accepted"));
    }
}
