//! The nouns and seams of GuildNet.
//!
//! What the other crates agree on: cluster ids, networks, 4via6 addresses, targets, the [`Dialer`] and [`Connector`]
//! traits, what is observed of a connector, secrets that cannot be printed, and how an error explains itself.
//! Nothing here does IO, and nothing here names Tailscale, Kubernetes or Headscale libraries.

mod connector;
mod dial;
mod explain;
mod id;
mod networks;
mod secret;
pub mod via6;

pub use connector::{
    AuthKeys, Connector, ConnectorError, ConnectorSnapshot, ConnectorSpec, ConnectorState, ConnectorStatus, Degraded,
    Dropped, FixedKey, ListenError, Listener, NoAuthKey, NodeInfo, PathKind, PeerContact, PeerInfo, ProbeOutcome,
    StartConnector, Trouble,
};
pub use dial::{BoxFuture, DialError, Dialer, Io, Target, TargetError};
pub use explain::{Class, Explain};
pub use id::{ClusterId, ClusterIdError, SiteNumber, SiteNumberError};
pub use networks::{Networks, NetworksError};
pub use secret::Secret;
