//! Kubernetes, reached through any [`Dialer`](guildnet_model::Dialer): kubeconfig files, a client for the API server,
//! what a cluster says about itself, the subnet router that runs in it, and the way for requests that are passed on.
//!
//! The only crate that names `kube` and `k8s-openapi`; their types stay inside. Absent: what a proxy
//! lets pass (`guildnet-host` decides that), and everything about Headscale and the tailnet.
//!
//! Where to go next: [`Kubeconfig`] turns a file into a [`ClusterAccess`], whose token `credential.rs` keeps fresh; [`ApiServer`]
//! is the client, [`ApiServer::forward`] its way for others' requests;
//! [`router::manifests`] is the pure heart of the router, [`router::ensure`] applies it.

mod access;
mod api;
mod cluster;
mod connect;
mod credential;
mod error;
mod forward;
mod kubeconfig;
mod networks;
pub mod preflight;
mod read;
pub mod router;

#[cfg(test)]
mod fake;

pub use access::{AccessError, ClusterAccess};
pub use api::{ApiServer, ApiServerSpec, Readyz};
pub use connect::DirectDialer;
pub use error::{KubeCause, KubeError};
pub use forward::{ForwardBody, Upgrade};
pub use kubeconfig::{
    Allow, Kubeconfig, KubeconfigError, Refusal,
    fleet::{FleetDocument, FleetError, FleetOwner, context_name},
};
pub use networks::{ClusterNetworks, FoundNetwork, NetworkSource, NetworksUnknown};
pub use read::Unread;
pub use router::{
    Applied, DEFAULT_IMAGE, Manifest, PodReport, RouterError, RouterPlan, RouterProgress, RouterStatus, Trouble,
};
