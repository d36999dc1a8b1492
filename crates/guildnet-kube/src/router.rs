//! The subnet router that runs on every node of a cluster and brings the cluster's networks into its tailnet.
//!
//! Pure: [`manifests`] says what should be in the cluster (`manifest.rs`), `rollout.rs` judges what is there. The edge,
//! `deploy.rs`, applies the one and watches the other; `remove.rs` takes it out. A cluster holds one router DaemonSet, of one GuildNet cluster id.

mod deploy;
mod error;
mod manifest;
mod remove;
mod rollout;

use std::fmt;

use guildnet_model::{ClusterId, Networks, Secret};
use ipnet::Ipv6Net;
use serde::{Deserialize, Serialize};
use url::Url;

pub(crate) use self::manifest::MANAGED_BY;
pub use self::{
    deploy::{ensure, restart, status},
    error::{RouterError, Trouble},
    manifest::{Manifest, manifests, manifests_yaml},
    remove::{Reached, Removal, remove},
};

/// The image that routers run unless told otherwise; its version is the one that is tested.
pub const DEFAULT_IMAGE: &str = "ghcr.io/tailscale/tailscale:v1.98.10";

/// The Kubernetes namespace that holds the router and nothing else.
pub const NAMESPACE: &str = "guildnet-system";

/// The name of the router's DaemonSet.
pub const DAEMON_SET: &str = "guildnet-router";

/// What is wanted of a cluster's routers.
#[derive(Clone, Debug)]
pub struct RouterPlan {
    /// The cluster.
    pub cluster: ClusterId,
    /// The Headscale server, at an address that pods can reach.
    pub login_server: Url,
    /// Preauth key; `None` leaves the key that is in the cluster.
    pub auth_key: Option<Secret<String>>,
    /// Plain networks to advertise.
    pub routes: Networks,
    /// 4via6 networks to advertise beside them.
    pub site_routes: Vec<Ipv6Net>,
    /// First part of the routers' names in the tailnet; `-NODE` is appended.
    pub hostname: String,
    /// Container image.
    pub image: String,
    /// PEM certificates to trust for the login server and its relays, instead of the image's own.
    pub ca_pem: Option<String>,
}

impl RouterPlan {
    /// A plan with the defaults: [`DEFAULT_IMAGE`], names `gn-<cluster>-router-NODE`, no 4via6 networks, no authority,
    /// no key.
    pub fn new(cluster: ClusterId, login_server: Url, routes: Networks) -> Self {
        Self {
            hostname: format!("gn-{cluster}-router"),
            cluster,
            login_server,
            auth_key: None,
            routes,
            site_routes: Vec::new(),
            image: DEFAULT_IMAGE.to_owned(),
            ca_pem: None,
        }
    }
}

/// What applying an object did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Applied {
    /// It was not there.
    Created,
    /// It was changed.
    Changed,
    /// It was as wanted.
    Unchanged,
}

impl fmt::Display for Applied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Created => "created",
            Self::Changed => "changed",
            Self::Unchanged => "unchanged",
        })
    }
}

/// A step of [`ensure`]; `Display` is a line for a person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RouterProgress {
    /// An object was applied.
    Applied {
        /// `Kind/name`.
        object: String,
        /// What it did.
        applied: Applied,
    },
    /// A pod that could not start with its old key, or that the server does not know any more, is made anew.
    Restarted {
        /// The pod.
        pod: String,
    },
    /// Routers are not all ready; something changed.
    Waiting {
        /// Routers that are ready.
        ready: u32,
        /// Routers wanted: one for each node.
        desired: u32,
        /// What the others wait for.
        detail: String,
    },
    /// The API server does not answer for now: the way to it may lead through a router that is being replaced.
    Away {
        /// Why it can't be asked.
        why: String,
    },
    /// All routers are ready.
    Ready {
        /// How many.
        desired: u32,
    },
}

impl fmt::Display for RouterProgress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Applied { object, applied } => write!(f, "{object} {applied}"),
            Self::Restarted { pod } => write!(f, "Pod/{pod} made anew"),
            Self::Waiting { ready, desired, detail } => write!(f, "router {ready}/{desired} ready: {detail}"),
            Self::Away { why } => write!(f, "API server out of reach while routers are replaced: {why}"),
            Self::Ready { desired } => write!(f, "router ready ({desired}/{desired})"),
        }
    }
}

/// One router pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodReport {
    /// The pod.
    pub name: String,
    /// Its node, once it has one.
    pub node: Option<String>,
    /// `Pending`, `Running`, ..., `Terminating`.
    pub phase: String,
    /// Whether it has joined the tailnet.
    pub ready: bool,
    /// Why it is not ready, as far as Kubernetes says.
    pub reason: Option<String>,
    /// Restarts of its container.
    pub restarts: u32,
}

/// What was observed of a cluster's routers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouterStatus {
    /// The GuildNet cluster id that the routers were deployed for.
    pub cluster: Option<String>,
    /// Routers wanted: one for each node.
    pub desired: u32,
    /// Routers that are ready and as the DaemonSet now wants them.
    pub ready: u32,
    /// The pods, by node.
    pub pods: Vec<PodReport>,
}

impl RouterStatus {
    /// Whether there is at least one router and none is missing.
    pub fn is_ready(&self) -> bool {
        self.desired > 0 && self.ready >= self.desired
    }
}
