//! What is remembered: plain data, secrets by type. How it is laid out in tables is `store.rs`'s business.

use std::{
    net::{SocketAddr, SocketAddrV4},
    path::PathBuf,
};

use guildnet_model::{ClusterId, Networks, Secret, SiteNumber};
use jiff::Timestamp;
use url::Url;

/// Everything that the Host App knows of one cluster between runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterRecord {
    /// Its id.
    pub id: ClusterId,
    /// The kubeconfig, as YAML or JSON. Sealed.
    pub kubeconfig: Secret<String>,
    /// The context in it that is meant.
    pub context: String,
    /// The Headscale server (`tsLoginServer`).
    pub login_server: Url,
    /// PEM certificates to trust for that server and its relays, beside the system's roots.
    pub ca_pem: Option<String>,
    /// Preauth key for the connector (`tsClientAuthKey`). Sealed.
    pub client_auth_key: Option<Secret<String>>,
    /// Preauth key for the routers, kept so that new nodes can join. Sealed.
    pub router_auth_key: Option<Secret<String>>,
    /// The cluster's networks (`tsRoutes`).
    pub routes: Networks,
    /// Whether a person named these networks. Otherwise they were discovered, and follow the cluster when it changes.
    pub routes_given: bool,
    /// Where the connector keeps its identity (`tsStatePath`).
    pub state_path: PathBuf,
    /// The namespace's name on the Headscale server.
    pub namespace: String,
    /// The namespace's number there, if it is known.
    pub namespace_id: Option<u64>,
    /// The site number, if there is one.
    pub site: Option<SiteNumber>,
    /// The API server's address inside the cluster, once seen.
    pub api_address: Option<SocketAddr>,
    /// What makes the cluster this one and no other: the UID of its `kube-system` namespace, once seen.
    pub cluster_uid: Option<String>,
    /// Whether a person has disconnected it: its connector is not started then.
    pub disconnected: bool,
    /// Whether the Host App passes on only what changes nothing there.
    pub read_only: bool,
    /// When it was first stored; a replacement keeps the first one's. Millisecond precision.
    pub created: Timestamp,
    /// When it was last changed, by the caller's clock. Millisecond precision.
    pub updated: Timestamp,
}

impl ClusterRecord {
    /// The names of the fields that differ, times left out. Names only: values may be secret.
    pub fn differences(&self, other: &Self) -> Vec<&'static str> {
        let fields = [
            ("id", self.id == other.id),
            ("kubeconfig", self.kubeconfig == other.kubeconfig),
            ("context", self.context == other.context),
            ("login server", self.login_server == other.login_server),
            ("trusted certificates", self.ca_pem == other.ca_pem),
            ("client key", self.client_auth_key == other.client_auth_key),
            ("router key", self.router_auth_key == other.router_auth_key),
            ("routes", self.routes == other.routes),
            ("routes given", self.routes_given == other.routes_given),
            ("state folder", self.state_path == other.state_path),
            ("namespace", self.namespace == other.namespace),
            ("namespace number", self.namespace_id == other.namespace_id),
            ("site number", self.site == other.site),
            ("API server address", self.api_address == other.api_address),
            ("cluster UID", self.cluster_uid == other.cluster_uid),
            ("disconnection", self.disconnected == other.disconnected),
            ("read-only switch", self.read_only == other.read_only),
        ];
        fields.into_iter().filter(|(_, same)| !same).map(|(name, _)| name).collect()
    }
}

/// The Headscale server that `up` used last, so that later commands need no flags.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeadscaleRecord {
    /// Where it is.
    pub url: Url,
    /// API key. Sealed.
    pub api_key: Option<Secret<String>>,
    /// PEM certificates to trust for it, beside the system's roots.
    pub ca_pem: Option<String>,
}

/// A policy of a Headscale server that this device replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplacedPolicy {
    /// The server.
    pub server: Url,
    /// When, by the caller's clock. Millisecond precision.
    pub at: Timestamp,
    /// What the change was for, in words.
    pub what: String,
    /// The document that went; `None` if there was none.
    pub before: Option<String>,
    /// The document that came.
    pub after: String,
}

/// A forward that a person left to the Host App: a port of this device that leads into a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForwardRecord {
    /// Where it listens. One forward for each address.
    pub local: SocketAddrV4,
    /// The cluster that it leads into.
    pub cluster: ClusterId,
    /// Where it leads there, `HOST:PORT`, as it was given.
    pub target: String,
    /// When it was made, by the caller's clock. Millisecond precision.
    pub created: Timestamp,
}

/// The SOCKS5 and CONNECT listeners of a cluster, and the password that they want.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxiesRecord {
    /// The cluster.
    pub cluster: ClusterId,
    /// Whether they are on.
    pub enabled: bool,
    /// The SOCKS5 listener's port, on the cluster's own loopback address.
    pub socks_port: u16,
    /// The CONNECT listener's port.
    pub http_port: u16,
    /// What both want of their clients. Sealed.
    pub password: Secret<String>,
}
