//! A cluster's namespace and keys on the server: made where they are missing, kept where they are valid.

use guildnet_model::{ClusterId, Networks, Secret, SiteNumber};
use jiff::{SignedDuration, Timestamp};
use url::Url;

use crate::{Headscale, HeadscaleError, NamespaceFile, NewKey, PreauthKey, User};

/// How long a router key lives: a day, so that nodes that join the cluster meanwhile can start their router.
const ROUTER_KEY_LIFE: SignedDuration = SignedDuration::from_hours(24);
/// A router key with less than this left is replaced: a rollout with slow image pulls must end before the key does.
const ROUTER_KEY_MARGIN: SignedDuration = SignedDuration::from_hours(1);
/// How long a client key lives: it is used once, at once by the same command; or carried to another device within the hour.
const CLIENT_KEY_LIFE: SignedDuration = SignedDuration::from_hours(1);
/// A client key with less than this left is replaced.
const CLIENT_KEY_MARGIN: SignedDuration = SignedDuration::from_mins(10);

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

    let router =
        Wanted { tag: cluster.router_tag(), reusable: true, life: want.router_life, margin: ROUTER_KEY_MARGIN };
    let client =
        Wanted { tag: cluster.client_tag(), reusable: false, life: want.client_life, margin: CLIENT_KEY_MARGIN };
    let old_router = same.and_then(|f| Some((f.router_auth_key.clone()?, f.router_key_expires)));
    let old_client = same.and_then(|f| Some((f.client_auth_key.clone()?, f.client_key_expires)));
    let (router, new_router_key) = router.ensure(headscale, user.id, &listed, old_router, want.router, now).await?;
    let (client, new_client_key) = client.ensure(headscale, user.id, &listed, old_client, want.client, now).await?;

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

/// A key and when it ends.
type Held = (Secret<String>, Option<Timestamp>);

struct Wanted {
    tag: String,
    reusable: bool,
    life: SignedDuration,
    margin: SignedDuration,
}

impl Wanted {
    /// Whether the listed key is of this kind and will do a while longer.
    fn accepts(&self, listed: &PreauthKey, now: Timestamp) -> bool {
        // Half of a life that is shorter than the margin is left at birth, or no key would ever be kept.
        let margin = self.margin.min(self.life / 2);
        listed.tags == [self.tag.as_str()]
            && listed.reusable == self.reusable
            && !listed.ephemeral
            && listed.is_usable(now.saturating_add(margin).unwrap_or(now))
    }

    async fn ensure(
        &self,
        headscale: &Headscale,
        user: u64,
        listed: &[PreauthKey],
        old: Option<Held>,
        asked: bool,
        now: Timestamp,
    ) -> Result<(Option<Held>, bool), HeadscaleError> {
        if !asked {
            return Ok((old, false));
        }
        if let Some((key, _)) = old
            && let Some(entry) = listed.iter().find(|entry| entry.is(&key) && self.accepts(entry, now))
        {
            return Ok((Some((key, entry.expires)), false));
        }
        let new = NewKey {
            user,
            tags: vec![self.tag.clone()],
            reusable: self.reusable,
            ephemeral: false,
            expires: now.saturating_add(self.life).unwrap_or(now),
        };
        let (entry, key) = headscale.create_key(&new).await?;
        Ok((Some((key, entry.expires)), true))
    }
}
