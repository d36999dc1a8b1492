//! `guildnet headscale`: what can be typed.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueHint};

use super::{
    ConsentArgs, HeadscaleArgs, Keys, OutputArgs, Policy,
    managed::{EnvSyncLan, ManagedArgs, ManagedBackup, ManagedDown, ManagedUp},
};

#[derive(Debug, Subcommand)]
pub(crate) enum Headscale {
    /// Run a Headscale of your own on this machine, or have the one that runs take new flags
    Up(ManagedUp),
    /// Stop your own Headscale
    Down(ManagedDown),
    /// Show your own Headscale: process, address, certificate, key, backup
    Status(OutputArgs),
    /// Copy your own Headscale's database, keys and settings into one file; it may run meanwhile
    Backup(ManagedBackup),
    /// Run your own Headscale in the foreground, and start it again when it dies
    Serve(ManagedArgs),
    /// Where .env names 127.0.0.1 as Headscale server, write the address that pods can reach
    EnvSyncLan(EnvSyncLan),
    /// Make a cluster's namespace and its two keys, and write them to a file (0600)
    Namespace(Namespace),
    /// The keys of the clusters: what there is and until when, and new ones
    #[command(subcommand)]
    Keys(Keys),
    /// The policy that keeps the clusters apart
    #[command(subcommand)]
    Policy(Policy),
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
    #[command(flatten)]
    pub(crate) consent: ConsentArgs,
    #[command(flatten)]
    pub(crate) headscale: HeadscaleArgs,
}
