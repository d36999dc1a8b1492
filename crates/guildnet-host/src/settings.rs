//! What the person set, already resolved: flags, then environment, then `.env`, then defaults. Pure but for
//! `settings/change.rs`, which changes what is kept.
//!
//! What is not set here may still be known from an earlier run: the store keeps the Headscale server, its authority and
//! the API key (sealed), and each cluster's record. [`Settings`] wins over both.

mod change;

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf};

use guildnet_model::{ClusterId, Networks, Secret};
use guildnet_store::HeadscaleRecord;
use serde::Serialize;
use url::Url;
use utoipa::ToSchema;

pub(crate) use self::change::HeadscaleChange;
use crate::ManagedSettings;

/// Where the Host App listens unless told otherwise: loopback only.
pub const DEFAULT_LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 8090);

/// How the log of a process that serves is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// Lines of text.
    #[default]
    Text,
    /// A JSON object each line.
    Json,
}

impl LogFormat {
    /// What makes a Host App that is started write so; the form that it has anyway needs nothing.
    pub(crate) fn flag(self) -> Option<&'static str> {
        match self {
            Self::Text => None,
            Self::Json => Some(JSON_LOG),
        }
    }
}

/// The argument of `serve` for [`LogFormat::Json`].
pub(crate) const JSON_LOG: &str = "--log-format=json";

/// Preauth keys of one cluster, given by hand.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeysAtHand {
    /// For its routers.
    pub router: Option<Secret<String>>,
    /// For its connector.
    pub client: Option<Secret<String>>,
}

/// Settings of one run of the command or of the Host App.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The folder that holds everything: `GUILDNET_HOME`, else `~/.guildnet`.
    pub home: PathBuf,
    /// Where the Host App listens.
    pub listen: SocketAddr,
    /// How a Host App that is started or described writes its log (`GUILDNET_LOG_FORMAT`).
    pub log_format: LogFormat,
    /// The Headscale server (`HEADSCALE_URL`, else `TS_LOGIN_SERVER`).
    pub headscale_url: Option<Url>,
    /// Headscale API key. Without one, keys from a namespace file suffice.
    pub api_key: Option<Secret<String>>,
    /// PEM certificates to trust for Headscale and its relays: the content, not the path.
    pub headscale_ca: Option<String>,
    /// Networks of clusters for which none are given or known (`TS_ROUTES`).
    pub routes: Option<Networks>,
    /// A preauth key given by hand (`TS_AUTHKEY`): for routers in `router_*`, for the connector in `cluster_add`.
    pub auth_key: Option<Secret<String>>,
    /// Preauth keys of the clusters of one `up`, for a server without an API key (`TS_AUTHKEY_<ID>`,
    /// `TS_CLIENT_AUTHKEY_<ID>`).
    pub cluster_keys: BTreeMap<ClusterId, KeysAtHand>,
    /// First part of the routers' names in the tailnet (`TS_HOSTNAME`); `gn-<cluster>` if not given.
    pub hostname: Option<String>,
    /// The routers' container image (`TS_IMAGE`), if not the pinned one.
    pub image: Option<String>,
    /// Whether kubeconfigs may name other files to be read.
    pub allow_files: bool,
    /// Programs that kubeconfigs may run for a credential, by their absolute paths.
    pub allow_exec: Vec<PathBuf>,
    /// What is asked of a Headscale of this machine's own.
    pub managed: ManagedSettings,
}

impl Settings {
    /// Defaults for a home folder.
    pub fn new(home: PathBuf) -> Self {
        Self {
            home,
            listen: DEFAULT_LISTEN,
            log_format: LogFormat::default(),
            headscale_url: None,
            api_key: None,
            headscale_ca: None,
            routes: None,
            auth_key: None,
            cluster_keys: BTreeMap::new(),
            hostname: None,
            image: None,
            allow_files: false,
            allow_exec: Vec::new(),
            managed: ManagedSettings::default(),
        }
    }

    /// Whether something is set here by which routers are deployed otherwise than they are known.
    pub(crate) fn shapes_routers(&self) -> bool {
        self.routes.is_some() || self.auth_key.is_some() || self.hostname.is_some() || self.image.is_some()
    }

    /// The folder that keeps a cluster's connector identity: `<home>/tsnet/cluster-<id>`.
    pub fn state_dir(&self, cluster: &ClusterId) -> PathBuf {
        self.home.join("tsnet").join(cluster.namespace())
    }
}

/// The settings of a running Host App, as they are shown: nothing secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SettingsShown {
    /// The version of the Host App.
    pub version: String,
    /// The folder that holds everything.
    #[schema(value_type = String)]
    pub home: PathBuf,
    /// Where the Host App was told to listen.
    #[schema(value_type = String)]
    pub listen: SocketAddr,
    /// The Headscale server, once one is known.
    pub headscale: Option<HeadscaleShown>,
}

/// What is kept of the Headscale server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct HeadscaleShown {
    /// Its address.
    #[schema(value_type = String)]
    pub url: Url,
    /// Whether an API key is kept (sealed) or was given.
    pub has_api_key: bool,
    /// Whether its certificate is of a private authority that is kept here.
    pub has_private_authority: bool,
}

impl SettingsShown {
    /// Out of what was set and what the store keeps.
    pub(crate) fn of(settings: &Settings, kept: Option<&HeadscaleRecord>) -> Self {
        let url = settings.headscale_url.as_ref().or_else(|| kept.map(|h| &h.url));
        let headscale = url.map(|url| {
            let kept = kept.filter(|h| h.url == *url);
            HeadscaleShown {
                url: url.clone(),
                has_api_key: settings.api_key.is_some() || kept.is_some_and(|h| h.api_key.is_some()),
                has_private_authority: settings.headscale_ca.is_some() || kept.is_some_and(|h| h.ca_pem.is_some()),
            }
        });
        let version = env!("CARGO_PKG_VERSION").to_owned();
        Self { version, home: settings.home.clone(), listen: settings.listen, headscale }
    }
}
