//! A cluster's namespace and keys on the server: made where they are missing, kept where they are valid.

use guildnet_model::{ClusterId, Networks, Secret, SiteNumber};
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use url::Url;

use crate::{Headscale, HeadscaleError, NamespaceFile, NewKey, PreauthKey, User};

/// How long a router key lives: a day, so that nodes that join the cluster meanwhile can start their router.
const ROUTER_KEY_LIFE: SignedDuration = SignedDuration::from_hours(24);
/// How long a client key lives: it is used once, at once by the same command; or carried to another device within the hour.
const CLIENT_KEY_LIFE: SignedDuration = SignedDuration::from_hours(1);
/// A key is near its end a week before it at the earliest: time for a person to act.
const NEAR_END: SignedDuration = SignedDuration::from_hours(7 * 24);
/// The share of its life, a quarter, that a short-lived key keeps in reserve: six hours of a router key's day, a quarter of an
/// hour of a client key's hour. A key that was just made must never be near its end, or none would ever be kept.
const RESERVE: i32 = 4;

/// Which keys are needed.
#[derive(Clone, Debug)]
pub struct EnsureKeys {
    /// A reusable key for routers.
    pub router: bool,
    /// A key for one connector, to be used once. Not needed where a connector is registered.
    pub client: bool,
    /// How long a new router key lives.
    pub router_life: SignedDuration,
    /// How long a new client key lives.
    pub client_life: SignedDuration,
    /// The cluster's networks, for the file.
    pub routes: Option<Networks>,
    /// The site number, if it shall not be the namespace's number.
    pub site: Option<SiteNumber>,
    /// The address at which routers and connectors reach the server, if it is not the one used here.
    pub login_server: Option<Url>,
}

impl Default for EnsureKeys {
    fn default() -> Self {
        Self {
            router: true,
            client: true,
            router_life: ROUTER_KEY_LIFE,
            client_life: CLIENT_KEY_LIFE,
            routes: None,
            site: None,
            login_server: None,
        }
    }
}

/// What there is now.
#[derive(Clone, Debug)]
pub struct EnsuredNamespace {
    /// Everything that the cluster's side needs. Keys that were not asked for are those of the existing file.
    pub file: NamespaceFile,
    /// Whether the router key is new.
    pub new_router_key: bool,
    /// Whether the client key is new.
    pub new_client_key: bool,
}

/// The cluster's user, made if it is not there.
///
/// # Errors
/// Those of [`Headscale::ensure_user`].
pub async fn ensure_user(headscale: &Headscale, cluster: &ClusterId) -> Result<User, HeadscaleError> {
    headscale.ensure_user(&cluster.namespace()).await
}

/// Makes the cluster's namespace and the keys that are asked for, and keeps those of `existing` that are still valid on the
/// server. Keys can be made before the policy names their tags; the nodes that join with them are let in by the policy only.
///
/// # Errors
/// [`HeadscaleError::OtherCluster`] if `existing` is another cluster's; those of the calls.
/// # Cancellation
/// A key that was made and not returned stays on the server until it ends by itself.
pub async fn ensure_namespace(
    headscale: &Headscale,
    cluster: &ClusterId,
    want: &EnsureKeys,
    existing: Option<&NamespaceFile>,
) -> Result<EnsuredNamespace, HeadscaleError> {
    if let Some(other) = existing.filter(|file| file.cluster != *cluster) {
        return Err(HeadscaleError::OtherCluster { found: other.cluster.clone(), wanted: cluster.clone() });
    }
    let user = ensure_user(headscale, cluster).await?;
    // A namespace that was removed and made again has another number: nothing of the old file holds then.
    let same = existing.filter(|file| file.namespace_id.is_none_or(|id| id == user.id));
    let listed = headscale.keys(user.id).await?;
    let now = Timestamp::now();

    let router = Wanted { tag: cluster.router_tag(), kind: KeyKind::Router, life: want.router_life };
    let client = Wanted { tag: cluster.client_tag(), kind: KeyKind::Client, life: want.client_life };
    let old_router = same.and_then(|f| Some((f.router_auth_key.clone()?, f.router_key_expires)));
    let old_client = same.and_then(|f| Some((f.client_auth_key.clone()?, f.client_key_expires)));
    let whose = (cluster, user.id);
    let (router, new_router_key) = router.ensure(headscale, whose, &listed, old_router, want.router, now).await?;
    let (client, new_client_key) = client.ensure(headscale, whose, &listed, old_client, want.client, now).await?;

    let (router_auth_key, router_key_expires) = router.unzip();
    let (client_auth_key, client_key_expires) = client.unzip();
    let file = NamespaceFile {
        cluster: cluster.clone(),
        namespace_id: Some(user.id),
        login_server: want.login_server.clone().unwrap_or_else(|| headscale.url().clone()),
        router_auth_key,
        router_key_expires: router_key_expires.flatten(),
        client_auth_key,
        client_key_expires: client_key_expires.flatten(),
        // A number above 65535 is no site number; only servers without `via` grants need one, and say so then.
        site: want.site.or(same.and_then(|f| f.site)).or_else(|| SiteNumber::try_from(user.id).ok()),
        routes: want.routes.clone().or_else(|| same.and_then(|f| f.routes.clone())),
        ca_pem: headscale.ca_pem().map(str::to_owned).or_else(|| same.and_then(|f| f.ca_pem.clone())),
    };
    Ok(EnsuredNamespace { file, new_router_key, new_client_key })
}

/// A client key of a namespace that is there: that of `held` while the server still takes it, else a new one. Asked again before a
/// key was used, it gives the same one. `None`: there is no such namespace, and what belongs to it is for [`ensure_namespace`] and
/// the policy.
///
/// # Errors
/// Those of [`ensure_namespace`].
pub async fn client_key(headscale: &Headscale, held: &NamespaceFile) -> Result<Option<NamespaceFile>, HeadscaleError> {
    if headscale.user(&held.cluster.namespace()).await?.is_none() {
        return Ok(None);
    }
    let want = EnsureKeys { router: false, ..EnsureKeys::default() };
    ensure_namespace(headscale, &held.cluster, &want, Some(held)).await.map(|made| Some(made.file))
}

/// A key and when it ends.
type Held = (Secret<String>, Option<Timestamp>);

/// What a preauth key is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum KeyKind {
    /// The cluster's routers: reusable.
    Router,
    /// One connector: for a single use.
    Client,
    /// It does not have the form of a key that GuildNet makes.
    Other,
}

impl KeyKind {
    /// The kind of a listed key, by its form: one tag, and what goes with it. GuildNet makes no other keys, so one of another
    /// form is somebody else's.
    pub fn of(listed: &PreauthKey, cluster: &ClusterId) -> Self {
        match listed.tags.as_slice() {
            [tag] if *tag == cluster.router_tag() && listed.reusable && !listed.ephemeral => Self::Router,
            [tag] if *tag == cluster.client_tag() && !listed.reusable && !listed.ephemeral => Self::Client,
            _ => Self::Other,
        }
    }
}

/// From when on a key is near its end: renewed by the commands that make keys, and warned of by those that look.
/// `created` may not be known: its life is taken for a router key's then. `None`: it has no end.
pub fn near_end_from(created: Option<Timestamp>, expires: Option<Timestamp>) -> Option<Timestamp> {
    let end = expires?;
    let life = created.map_or(ROUTER_KEY_LIFE, |born| end.duration_since(born));
    end.checked_sub(NEAR_END.min(life / RESERVE)).ok()
}

struct Wanted {
    tag: String,
    kind: KeyKind,
    life: SignedDuration,
}

impl Wanted {
    /// Whether the listed key is of this kind and will do a while longer.
    fn accepts(&self, listed: &PreauthKey, cluster: &ClusterId, now: Timestamp) -> bool {
        KeyKind::of(listed, cluster) == self.kind
            && listed.is_usable(now)
            && near_end_from(listed.created, listed.expires).is_none_or(|from| now < from)
    }

    async fn ensure(
        &self,
        headscale: &Headscale,
        (cluster, user): (&ClusterId, u64),
        listed: &[PreauthKey],
        old: Option<Held>,
        asked: bool,
        now: Timestamp,
    ) -> Result<(Option<Held>, bool), HeadscaleError> {
        if !asked {
            return Ok((old, false));
        }
        if let Some((key, _)) = old
            && let Some(entry) = listed.iter().find(|entry| entry.is(&key) && self.accepts(entry, cluster, now))
        {
            return Ok((Some((key, entry.expires)), false));
        }
        let new = NewKey {
            user,
            tags: vec![self.tag.clone()],
            reusable: self.kind == KeyKind::Router,
            ephemeral: false,
            expires: now.saturating_add(self.life).unwrap_or(now),
        };
        let (entry, key) = headscale.create_key(&new).await?;
        Ok((Some((key, entry.expires)), true))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().expect("a time")
    }

    #[test]
    fn a_key_is_near_its_end_in_the_last_quarter_of_a_short_life_and_the_last_week_of_a_long_one() {
        let from = |created, expires| near_end_from(created, expires).map(|t| t.to_string());
        let born = Some(at("2026-11-01T00:00:00Z"));
        assert_eq!(from(born, Some(at("2026-11-02T00:00:00Z"))).as_deref(), Some("2026-11-01T18:00:00Z"));
        assert_eq!(from(born, Some(at("2027-02-01T00:00:00Z"))).as_deref(), Some("2027-01-25T00:00:00Z"));
        assert_eq!(from(None, Some(at("2027-02-01T00:00:00Z"))).as_deref(), Some("2027-01-31T18:00:00Z"));
        assert_eq!(from(born, None), None);
    }

    #[test]
    fn only_keys_of_the_very_form_that_is_made_here_are_ours() {
        let a: ClusterId = "a".parse().expect("an id");
        let key = |tags: &[&str], reusable, ephemeral| {
            let text = serde_json::json!({ "id": "1", "aclTags": tags, "reusable": reusable, "ephemeral": ephemeral });
            KeyKind::of(&crate::client::listed_key(text), &a)
        };
        assert_eq!(key(&["tag:gn-a-router"], true, false), KeyKind::Router);
        assert_eq!(key(&["tag:gn-a-client"], false, false), KeyKind::Client);
        for (tags, reusable, ephemeral) in [
            (&[][..], true, false),
            (&["tag:gn-a-router"], false, false),
            (&["tag:gn-a-client"], true, false),
            (&["tag:gn-a-router"], true, true),
            (&["tag:gn-b-router"], true, false),
            (&["tag:gn-a-router", "tag:other"], true, false),
        ] {
            assert_eq!(key(tags, reusable, ephemeral), KeyKind::Other, "{tags:?} {reusable} {ephemeral}");
        }
    }
}
