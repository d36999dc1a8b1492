//! The lab: a real fleet on one machine. Headscale and Kubernetes clusters, all with equal networks, each behind its
//! own masquerading gateway, in network namespaces; no container engine, no image pulled, nothing reaches outside.
//!
//! It knows nothing of the product. [`Lab`] is the face for tests; the `guildnet-lab` command is a thin layer over
//! [`up()`], [`down()`] and [`Lab`]. Inside: `plan.rs` names everything, `state.rs` keeps it, `net.rs`, `headscale.rs` and
//! `cluster.rs` make it, `launch.rs` is where a daemon enters its namespaces.

mod cgroup;
mod cluster;
mod command;
mod down;
mod error;
mod files;
mod headscale;
mod host;
mod images;
mod lab;
mod launch;
mod link;
mod net;
mod peers;
mod pki;
mod plan;
mod process;
mod relay;
mod state;
mod status;
mod talk;
mod up;

pub use cluster::RouterArgs;
pub use down::down;
pub use error::LabError;
pub use lab::Lab;
pub use launch::{HoldNode, Launch, hold_node, launch};
pub use link::{Ceiling, Counts, LinkAnswer, LinkChange, RunLink, WayAnswer, ceiling, run_link};
pub use peers::{Versions, WantedVersions};
pub use plan::{
    API_PORT, API_SERVICE, Behind, ClusterPlan, ECHO_PORT, ECHO_SERVICE, HOST_LAN, Host, HostPlan, Instance, LAN,
    LIGHT_POD, NODE_ADDRESS, Nat, POD_NETWORK, Person, Plan, RelayPlan, RouterPlan, SERVICE_NETWORK, cluster_names,
};
pub use state::{Running, State};
pub use status::{Bridge, Cluster, Headscale, PersonFiles, Process, Status};
pub use talk::Talk;
pub use up::{Wanted, build, up};
