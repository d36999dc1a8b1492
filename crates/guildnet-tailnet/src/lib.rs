//! GuildNet's tailnet connector: one membership of one cluster's tailnet per connector, many in one process.
//!
//! Control side: `control` (registration and map stream), `netmap` (the model of the map), `relay` (DERP client), `state`
//! (the node's keys on disk), `tls` (trusted roots). Data side: the rest. Nothing here touches the host's routes, DNS or
//! network interfaces, and nothing knows about Kubernetes or Headscale's administration.

mod backoff;
mod quote;

// Control side.
mod control;
mod netmap;
mod relay;
mod state;
mod tls;

// Data side.
mod connector;
mod data;
mod disco;
mod engine;
mod filter;
mod health;
mod machine;
mod packet;
mod path;
mod routes;
mod standing;
mod stream;
mod stun;
mod tcp;
mod udp;
mod wg;

#[cfg(test)]
mod sim;

pub use engine::{Engine, EngineConfig};
pub use state::saved_node_key;
