//! What verify asks of the Headscale server: pure decisions over what was observed.

use std::time::Duration;

use guildnet_headscale::{PolicyVerdict, ServerInfo};
use guildnet_model::{Class, Explain as _};

use super::Outcome;
use crate::HostError;

pub(super) fn reachable(url: &str, seen: &Result<Duration, HostError>) -> Outcome {
    match seen {
        Ok(took) => Outcome::pass(format!("{url} answered in {} ms", took.as_millis())),
        Err(why) => Outcome::fail(
            why.message(),
            match why.hint() {
                Some(hint) if hint.contains("Headscale") => hint,
                Some(hint) => format!("start Headscale at {url}, or {hint}"),
                None => format!("start Headscale at {url}, or correct its address: guildnet up --headscale-url URL"),
            },
        ),
    }
}

/// Why the server did not answer with the API key.
pub(super) fn api_key_refused(why: &HostError) -> Outcome {
    let hint = match why.class() {
        Class::Credentials => {
            "make a new one with 'headscale apikeys create' and give it: guildnet up --headscale-api-key-file FILE"
                .to_owned()
        }
        _ => why.hint().unwrap_or_else(|| "see Headscale's log, then run 'guildnet verify' again".to_owned()),
    };
    Outcome::fail(why.message(), hint)
}

pub(super) fn version(info: &ServerInfo) -> Outcome {
    if info.features.via_grants {
        Outcome::pass(format!("Headscale {}", info.version))
    } else {
        Outcome::warn(
            format!(
                "Headscale {}: equal networks are told apart by 4via6 addresses, which is slow on lossy links",
                info.version
            ),
            "upgrade Headscale to 0.29 or later, then run 'guildnet up'",
        )
    }
}

pub(crate) fn policy(seen: &PolicyVerdict) -> Outcome {
    const MEND: &str = "guildnet headscale policy diff, then: guildnet headscale policy apply";
    match seen {
        PolicyVerdict::Isolates { clusters, foreign } => Outcome::pass(format!(
            "the server's policy keeps {clusters} cluster{} apart{}",
            if *clusters == 1 { "" } else { "s" },
            if foreign.is_empty() { "" } else { "; it also holds rules that are not GuildNet's" },
        )),
        PolicyVerdict::AllowsAll => Outcome::fail("the server's policy lets every node reach every other", MEND),
        PolicyVerdict::Opened { rules } => Outcome::fail(
            format!("the server's policy holds rules that let clusters reach each other: {}", rules.join("; ")),
            "take these rules out ('headscale policy get', 'headscale policy set'), then: guildnet headscale policy apply",
        ),
        PolicyVerdict::Differs { how } => {
            Outcome::fail(format!("the server's policy is not the one that keeps the clusters apart: {how}"), MEND)
        }
    }
}

#[cfg(test)]
mod tests {
    use guildnet_headscale::{ServerFeatures, ServerVersion};

    use super::*;

    fn hint(outcome: &Outcome) -> &str {
        match outcome {
            Outcome::Fail { hint, .. } | Outcome::Warn { hint, .. } => hint,
            other => panic!("neither fail nor warn: {other:?}"),
        }
    }

    #[test]
    fn a_server_that_does_not_answer_fails_and_the_hint_names_it() {
        let down = HostError::new(Class::Unreachable, "connection refused");
        assert!(hint(&reachable("https://hs:8443", &Err(down))).contains("start Headscale at https://hs:8443"));
        assert!(matches!(reachable("https://hs:8443", &Ok(Duration::from_millis(3))), Outcome::Pass { .. }));
    }

    #[test]
    fn a_refused_api_key_fails_with_the_way_to_a_new_one() {
        let refused = HostError::new(Class::Credentials, "the API key is not accepted");
        assert!(hint(&api_key_refused(&refused)).contains("--headscale-api-key-file"));
    }

    #[test]
    fn a_server_without_via_is_a_warning() {
        let info = |says, features| ServerInfo { version: ServerVersion::parse(says), features };
        assert!(matches!(version(&info("0.29.2", ServerFeatures::CURRENT)), Outcome::Pass { .. }));
        assert!(hint(&version(&info("0.28.0", ServerFeatures::BEFORE_029))).contains("0.29"));
    }

    #[test]
    fn a_policy_other_than_the_compiled_one_fails() {
        assert!(matches!(policy(&PolicyVerdict::Isolates { clusters: 2, foreign: vec![] }), Outcome::Pass { .. }));
        let apply = "guildnet headscale policy apply";
        assert!(hint(&policy(&PolicyVerdict::AllowsAll)).contains(apply));
        assert!(hint(&policy(&PolicyVerdict::Differs { how: "a grant is missing".into() })).contains(apply));
        assert!(hint(&policy(&PolicyVerdict::Opened { rules: vec![] })).contains(apply));
    }
}
