//! The Host App as a library: one actor per cluster, the door on 127.0.0.1, and the operations behind the command.
//!
//! Where to start reading: `host.rs` wires everything; `cluster.rs` is one cluster's actor, `fleet.rs` holds them all in
//! step with the store. [`up()`] is the main job from kubeconfigs to a verified fleet; [`verify`] names the link that is
//! broken. `door.rs` is the HTTPS listener, `daemon.rs` the process, `client.rs` how commands talk to a running Host App.
//! `proxy.rs` is what kubectl talks to, `kubeconfigs.rs` writes the fleet into the kubeconfigs of people. `names.rs` resolves names inside clusters, `forward.rs`
//! is the way in for everything else. `managed.rs` runs a Headscale of this machine's own, for those who have none; `systemd.rs` is how a machine keeps either
//! running. `ui.rs` signs a browser in, `trust.rs` makes it trust the door. What a command can call stands in `operations.rs`.
//!
//! Invariants: a dead or slow cluster never delays another; nothing touches the host's routes, DNS or interfaces; nothing
//! secret is in an error, a log line or an answer of the API. Absent: parsing flags and printing (the command's).

mod add;
mod auth_keys;
pub mod certs;
pub mod client;
mod cluster;
mod contexts;
pub mod daemon;
mod door;
mod drain;
mod error;
mod events;
#[cfg(test)]
mod fake;
mod fleet;
mod forward;
mod host;
mod jobs;
mod keys;
mod kubeconfigs;
mod logs;
mod managed;
mod metrics;
mod names;
mod namespace;
mod networks;
mod operations;
mod overlap;
mod pki;
mod policy;
mod preflight;
mod progress;
mod proxy;
mod reach;
mod remove;
mod rotate;
mod router;
mod server;
mod set;
mod settings;
mod status;
mod systemd;
mod trust;
mod ui;
mod up;
pub mod verify;

pub use add::{AddRequest, ClusterInfo};
pub use certs::regen_certs;
pub use contexts::contexts;
pub use door::{Listen, session::SessionInfo};
pub use error::HostError;
pub use forward::{
    ForwardRequest, ForwardSession, ForwardSpec, ForwardSpecError, ForwardStatus, ForwardStop, Local, ProxiesAccess,
    ProxiesRequest, ProxiesSet, ProxiesStatus, ProxyStatus, Traffic, Trouble,
};
pub use host::{Deps, Drain, Host, HostConfig};
pub use keys::{KeyInfo, KeyOwner, KeyState, KeyUse};
pub use kubeconfigs::{
    KubeCredential, KubeconfigChange, KubeconfigDone, KubeconfigWrite, kube_credential, kubeconfig_files,
};
pub use logs::LogsRequest;
pub use managed::{
    AddressChoice, Backup, EnvChange, EnvSync, ManagedSettings, ManagedStatus, ManagedUp, env_sync_lan, unit,
};
pub use names::{Destination, DestinationError, HostName, Place};
pub use namespace::{NamespaceReport, NamespaceShown};
pub use operations::*;
pub use policy::{Consent, PolicyCluster, PolicyClusterShown, PolicyDiff, PolicyDone, PolicyShown, ReplacedShown};
pub use progress::{Progress, Silent};
pub use remove::{RemoveRequest, Removed};
pub use rotate::Rotated;
pub use router::{RouterReport, RouterRequest, Via};
pub use set::Switched;
pub use settings::{DEFAULT_LISTEN, HeadscaleShown, KeysAtHand, LogFormat, Settings, SettingsShown};
pub use status::{ClusterStatus, DialSession, StatusReport, metrics_token, token};
pub use systemd::{Handed, UnitOf, host_socket, host_unit};
pub use trust::{TrustStore, Trusted, trusted};
pub use up::{ClusterUp, KubeconfigRef, UpReport, UpRequest};
