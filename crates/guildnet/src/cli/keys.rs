//! `guildnet headscale keys`: what can be typed.

use clap::Subcommand;

use super::{HeadscaleArgs, OutputArgs};

#[derive(Debug, Subcommand)]
pub(crate) enum Keys {
    /// List the keys of the clusters' namespaces and the API key, with their ends (never their values)
    List {
        /// Only these clusters [default: all that are known]
        #[arg(value_name = "CLUSTER")]
        clusters: Vec<String>,
        #[command(flatten)]
        output: OutputArgs,
        #[command(flatten)]
        headscale: HeadscaleArgs,
    },
    /// Give a cluster's connector a new identity; no other cluster is cut
    Rotate {
        /// The cluster
        #[arg(value_name = "CLUSTER")]
        id: String,
        /// Give its routers a new key too
        #[arg(long)]
        router: bool,
        #[command(flatten)]
        headscale: HeadscaleArgs,
    },
}
