//! `guildnet headscale`: what can be typed.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueHint};

use super::HeadscaleArgs;

#[derive(Debug, Subcommand)]
pub(crate) enum Headscale {
    /// Make a cluster's namespace and its two keys, and write them to a file (0600)
    Namespace(Namespace),
}

#[derive(Debug, Args)]
pub(crate) struct Namespace {
    /// The cluster
    #[arg(value_name = "CLUSTER")]
    pub(crate) id: String,
    /// The file to write [default: tmp/cluster-<id>-headscale.json]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) file: Option<PathBuf>,
    /// The cluster's Pod and Service networks, IPv4 [env: TS_ROUTES]
    #[arg(long, alias = "ts-routes", value_name = "CIDR,...")]
    pub(crate) routes: Option<String>,
    /// Keep what others wrote into the Headscale policy, beside GuildNet's own part
    #[arg(long)]
    pub(crate) merge: bool,
    #[command(flatten)]
    pub(crate) headscale: HeadscaleArgs,
}
