//! Headscale: a typed client of its REST API, the policy that keeps clusters apart, namespaces with their keys, and views
//! of the nodes it lists.
//!
//! - [`Headscale`] speaks HTTP `/api/v1` with an API key (Headscale 0.26 and later). Its wire types stay inside.
//! - [`compile`] turns clusters into a [`Policy`]; [`plan`] fits it into what the server holds; [`apply_policy`] writes it.
//!   Compiling and planning are pure.
//! - [`ensure_namespace`] makes a cluster's user and keys; [`NamespaceFile`] is the file that carries them; [`remove_cluster`]
//!   undoes both.
//! - [`routers_of`], [`clients_of`], [`routes_of`] judge nodes by tag, never by user: a tagged node has no user of its own.
//! - [`managed`] is what a Headscale of our own is told, as text.
//!
//! Absent: the node protocol (joining a tailnet is the connector's), running a Headscale, `docker exec`.

mod apply;
mod client;
#[cfg(any(test, feature = "contract"))]
pub mod contract;
mod error;
#[cfg(test)]
mod fake;
mod keys;
pub mod managed;
mod namespace;
mod nodes;
mod overlap;
mod policy;
mod removal;
mod server;

pub use apply::{PolicyApplied, PolicyChange, PolicyWriting, apply_policy};
pub use client::{ApiKey, Headscale, HeadscaleConfig, HeldPolicy, NewKey, PreauthKey, User};
pub use error::HeadscaleError;
pub use keys::{EnsureKeys, EnsuredNamespace, KeyKind, client_key, ensure_namespace, ensure_user, near_end_from};
pub use namespace::{NamespaceFile, NamespaceFileError};
pub use nodes::{Node, RouteView, clients_of, dead_routers, routers_of, routes_of, routes_to_approve, unseen_routers};
pub use overlap::{RouteOverlap, overlaps};
pub use policy::{
    CutOff, Policy, PolicyError, PolicyInput, PolicyPlan, PolicyRequest, PolicyVerdict, compile, cut_off, judge,
    known_clusters, plan, policy_diff, routes_to_advertise, routes_to_serve, same_policy,
};
pub use removal::{Cleared, Leaving, remove_namespace, remove_nodes};
pub use server::{ServerFeatures, ServerInfo, ServerVersion};
