//! `headscale keys list`: the keys of the clusters' namespaces and the API key, with when they end. Never their values.

use guildnet_headscale::{KeyKind, PreauthKey, near_end_from};
use guildnet_model::{Class, ClusterId, Secret};
use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;

use crate::{HostError, Settings, up::Known};

/// What a listed key is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum KeyUse {
    /// The cluster's routers join with it.
    Router,
    /// One connector of the cluster joins with it.
    Client,
    /// It does not have the form of GuildNet's keys.
    Other,
    /// The API key that is used here.
    Api,
}

/// Whose a listed key is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum KeyOwner {
    /// It is kept here.
    Here,
    /// It has the form of a key that GuildNet makes, and is not kept here: another device's, or one that was replaced.
    Guildnet,
    /// GuildNet did not make it, and never removes it.
    Others,
}

/// How it stands with a listed key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum KeyState {
    /// A node can join with it.
    Valid,
    /// The same, and it ends soon.
    NearEnd,
    /// It was for one use, and was used.
    Used,
    /// It has ended.
    Ended,
}

/// A key, as the server lists it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct KeyInfo {
    /// The server's number for it.
    pub id: u64,
    /// The cluster in whose namespace it is; none for the API key.
    #[schema(value_type = Option<String>)]
    pub cluster: Option<ClusterId>,
    /// What it is for.
    pub kind: KeyUse,
    /// Tags that its nodes get.
    pub tags: Vec<String>,
    /// Whether it may be used more than once.
    pub reusable: bool,
    /// Whether it was used.
    pub used: bool,
    /// When it was made, if the server says so.
    pub created: Option<Timestamp>,
    /// When it ends, if it does.
    pub expires: Option<Timestamp>,
    /// Whole days until then; negative once it has ended.
    pub days_left: Option<i64>,
    /// How it stands with it.
    pub state: KeyState,
    /// Whose it is.
    pub owner: KeyOwner,
}

impl KeyInfo {
    fn of(key: &PreauthKey, cluster: &ClusterId, held: &[&Secret<String>], now: Timestamp) -> Self {
        let kind = KeyKind::of(key, cluster);
        let owner = match kind {
            // Whoever made it, it is in use here.
            _ if held.iter().any(|k| key.is(k)) => KeyOwner::Here,
            KeyKind::Other => KeyOwner::Others,
            KeyKind::Router | KeyKind::Client => KeyOwner::Guildnet,
        };
        Self {
            id: key.id,
            cluster: Some(cluster.clone()),
            kind: match kind {
                KeyKind::Router => KeyUse::Router,
                KeyKind::Client => KeyUse::Client,
                KeyKind::Other => KeyUse::Other,
            },
            tags: key.tags.clone(),
            reusable: key.reusable,
            used: key.used,
            created: key.created,
            expires: key.expires,
            days_left: days_left(key.expires, now),
            state: state(key.created, key.expires, key.used && !key.reusable, now),
            owner,
        }
    }
}

fn days_left(expires: Option<Timestamp>, now: Timestamp) -> Option<i64> {
    expires.map(|end| end.duration_since(now).as_hours().div_euclid(24))
}

fn state(created: Option<Timestamp>, expires: Option<Timestamp>, spent: bool, now: Timestamp) -> KeyState {
    if expires.is_some_and(|end| end <= now) {
        KeyState::Ended
    } else if spent {
        KeyState::Used
    } else if near_end_from(created, expires).is_some_and(|from| from <= now) {
        KeyState::NearEnd
    } else {
        KeyState::Valid
    }
}

/// See [`crate::keys_list`].
pub(crate) async fn keys_list(settings: &Settings, clusters: &[ClusterId]) -> Result<Vec<KeyInfo>, HostError> {
    let known = Known::read(settings).await?;
    let server = known.server(settings)?.ok_or_else(|| {
        HostError::new(Class::Usage, "no Headscale server is known")
            .with_hint("give one: --headscale-url https://HOST:PORT --headscale-api-key-file FILE")
    })?;
    let clusters: Vec<ClusterId> = match clusters {
        [] => known.records.iter().map(|r| r.id.clone()).collect(),
        some => some.to_vec(),
    };
    let now = Timestamp::now();
    let mut all = Vec::new();
    if let Some(key) = server.own_api_key().await? {
        all.push(KeyInfo {
            id: key.id,
            cluster: None,
            kind: KeyUse::Api,
            tags: vec![],
            reusable: true,
            used: true,
            created: key.created,
            expires: key.expires,
            days_left: days_left(key.expires, now),
            state: state(key.created, key.expires, false, now),
            owner: KeyOwner::Here,
        });
    }
    for cluster in &clusters {
        let record = known.record(cluster);
        let held = record.into_iter().flat_map(|r| [&r.router_auth_key, &r.client_auth_key]);
        let held: Vec<&Secret<String>> = held.filter_map(Option::as_ref).collect();
        all.extend(server.keys_of(cluster).await?.iter().map(|key| KeyInfo::of(key, cluster, &held, now)));
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Option<Timestamp> {
        Some(text.parse().expect("a time"))
    }

    #[test]
    fn a_key_is_valid_near_its_end_used_or_ended() {
        let now = at("2026-11-25T12:00:00Z").expect("a time");
        let born = at("2026-11-25T00:00:00Z");
        let of = |expires: &str, spent| state(born, at(expires), spent, now);
        assert_eq!(of("2026-11-26T00:00:00Z", false), KeyState::Valid);
        assert_eq!(of("2026-11-25T14:00:00Z", false), KeyState::NearEnd);
        assert_eq!(of("2026-11-26T00:00:00Z", true), KeyState::Used);
        assert_eq!(of("2026-11-25T12:00:00Z", true), KeyState::Ended);
        assert_eq!(state(born, None, false, now), KeyState::Valid);
    }

    #[test]
    fn days_left_are_whole_days_and_negative_after_the_end() {
        let now = at("2026-11-25T12:00:00Z").expect("a time");
        let of = |expires: &str| days_left(at(expires), now);
        assert_eq!(of("2026-11-26T11:00:00Z"), Some(0));
        assert_eq!(of("2026-12-05T12:00:00Z"), Some(10));
        assert_eq!(of("2026-11-25T11:00:00Z"), Some(-1));
        assert_eq!(days_left(None, now), None);
    }
}
