//! The Host App as a library: one actor per cluster, the door on 127.0.0.1, and the operations behind the command.
//!
//! Where to start reading: `host.rs` wires everything; `cluster.rs` is one cluster's actor, `fleet.rs` holds them all in
//! step with the store. [`up()`] is the main job from kubeconfigs to a verified fleet; [`verify`] names the link that is
//! broken. `door.rs` is the HTTPS listener, `daemon.rs` the process, `client.rs` how commands talk to a running Host App.
//! `managed.rs` runs a Headscale of this machine's own, for those who have none.
//!
//! Invariants: a dead or slow cluster never delays another; nothing touches the host's routes, DNS or interfaces; nothing
//! secret is in an error, a log line or an answer of the API. Absent: parsing flags and printing (the command's).

mod add;
pub mod certs;
pub mod client;
mod cluster;
mod connect;
mod contexts;
pub mod daemon;
pub mod door;
mod error;
#[cfg(test)]
mod fake;
mod fleet;
mod host;
mod keys;
mod managed;
mod namespace;
mod networks;
mod overlap;
mod pki;
mod policy;
mod preflight;
mod progress;
mod reach;
mod remove;
mod rotate;
mod router;
mod server;
mod settings;
mod status;
mod up;
pub mod verify;

pub use add::{AddRequest, ClusterInfo, cluster_add, cluster_list, cluster_show};
pub use certs::regen_certs;
pub use connect::{ConnectionChange, cluster_connect};
pub use contexts::contexts;
pub use error::HostError;
pub use host::{Deps, Drain, Host, HostConfig, serve};
pub use keys::{KeyInfo, KeyOwner, KeyState, KeyUse, keys_list};
pub use managed::{
    AddressChoice, Backup, EnvChange, EnvSync, ManagedSettings, ManagedStatus, ManagedUp, UnitOf, env_sync_lan,
    headscale_backup, headscale_down, headscale_serve, headscale_status, headscale_up, unit,
};
pub use namespace::{NamespaceReport, namespace_and_keys};
pub use policy::{
    Consent, PolicyCluster, PolicyClusterShown, PolicyDiff, PolicyDone, PolicyShown, ReplacedShown, policy_apply,
    policy_check, policy_compiled, policy_diff, policy_rollback, policy_show,
};
pub use progress::{Progress, Silent};
pub use remove::{RemoveRequest, Removed, cluster_remove, router_remove};
pub use rotate::{Rotated, keys_rotate};
pub use router::{RouterReport, RouterRequest, Via, router_ensure, router_manifest, router_status};
pub use settings::{DEFAULT_LISTEN, KeysAtHand, Settings};
pub use status::{ClusterStatus, DialSession, StatusReport, dial, status, token};
pub use up::{ClusterUp, KubeconfigRef, UpReport, UpRequest, down, up};
pub use verify::verify;
