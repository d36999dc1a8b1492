//! `guildnet cluster`: what can be typed.

use std::{num::NonZeroU16, path::PathBuf};

use clap::{ArgGroup, Args, Subcommand, ValueEnum, ValueHint};

use super::{AllowArgs, ConsentArgs, HeadscaleArgs, KubeconfigArgs, OutputArgs};

#[derive(Debug, Subcommand)]
pub(crate) enum Cluster {
    /// Add a cluster, or replace it
    Add(Box<ClusterAdd>),
    /// List the clusters
    List(OutputArgs),
    /// Show one cluster (never its secrets)
    Show {
        /// The cluster
        #[arg(value_name = "CLUSTER")]
        id: String,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Start a cluster's connector again
    Connect {
        /// The cluster
        #[arg(value_name = "CLUSTER")]
        id: String,
    },
    /// Stop a cluster's connector and keep its record, also over restarts
    Disconnect {
        /// The cluster
        #[arg(value_name = "CLUSTER")]
        id: String,
    },
    /// Change how a cluster is served
    Set(ClusterSet),
    /// Print where a cluster's SOCKS5 and CONNECT proxies are, with their user and password
    Proxies {
        /// The cluster
        #[arg(value_name = "CLUSTER")]
        id: String,
        /// Make a new password first; the old one opens nothing from then on
        #[arg(long)]
        renew: bool,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Remove a cluster: its router, its nodes, keys and policy on Headscale, its record and its connector's identity
    Remove {
        /// The cluster
        #[arg(value_name = "CLUSTER")]
        id: String,
        /// Leave the router and what it needs: the cluster can be added again from its file
        #[arg(long)]
        keep_router: bool,
        /// Forget the cluster here even if the rest can't be reached, and say what is left there
        #[arg(long)]
        forget: bool,
        #[command(flatten)]
        headscale: HeadscaleArgs,
    },
}

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("switches").required(true).multiple(true).args(["read_only", "proxies", "socks_port", "http_port"])))]
pub(crate) struct ClusterSet {
    /// The cluster
    #[arg(value_name = "CLUSTER")]
    pub(crate) id: String,
    /// Pass on only what changes nothing in the cluster
    #[arg(long, value_name = "on|off")]
    pub(crate) read_only: Option<Switch>,
    /// SOCKS5 and CONNECT proxies into the cluster, on its own loopback address
    ///
    /// They want a user and a password: guildnet cluster proxies CLUSTER
    #[arg(long, value_name = "on|off")]
    pub(crate) proxies: Option<Switch>,
    /// The SOCKS5 proxy's port [default: 1080]
    #[arg(long, value_name = "PORT")]
    pub(crate) socks_port: Option<NonZeroU16>,
    /// The CONNECT proxy's port [default: 8080]
    #[arg(long, value_name = "PORT")]
    pub(crate) http_port: Option<NonZeroU16>,
}

/// On or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Switch {
    On,
    Off,
}

#[derive(Debug, Args)]
pub(crate) struct ClusterAdd {
    /// The name to give it: a DNS label that begins with a letter
    #[arg(value_name = "CLUSTER")]
    pub(crate) id: String,
    #[command(flatten)]
    pub(crate) kubeconfig: KubeconfigArgs,
    /// Take namespace, login server and keys from a file that `guildnet headscale namespace` wrote
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) from: Option<PathBuf>,
    /// Where the connector logs in [env: TS_LOGIN_SERVER] [default: the Headscale server]
    #[arg(long, alias = "ts-login-server", value_name = "URL")]
    pub(crate) login_server: Option<String>,
    /// File with the connector's preauth key [default: made with the Headscale API key]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) client_key_file: Option<PathBuf>,
    /// Its Pod and Service networks, IPv4 [env: TS_ROUTES] [default: discovered]
    #[arg(long, alias = "ts-routes", value_name = "CIDR,...")]
    pub(crate) routes: Option<String>,
    /// Folder of the connector's identity [default: tsnet/cluster-<id> in GuildNet's folder]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) state_dir: Option<PathBuf>,
    /// Site number, 1 to 65535 [default: the namespace's number on Headscale]
    #[arg(long, value_name = "N")]
    pub(crate) site: Option<String>,
    /// Replace a cluster of this name
    #[arg(long)]
    pub(crate) replace: bool,
    /// Let nothing through the Host App that changes something in the cluster
    #[arg(long)]
    pub(crate) read_only: bool,
    #[command(flatten)]
    pub(crate) allow: AllowArgs,
    #[command(flatten)]
    pub(crate) consent: ConsentArgs,
    #[command(flatten)]
    pub(crate) headscale: HeadscaleArgs,
}
