//! `guildnet router`: what can be typed.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum, ValueHint};

use super::{HeadscaleArgs, KubeconfigArgs, OutputArgs};

#[derive(Debug, Subcommand)]
pub(crate) enum Router {
    /// Apply the router's DaemonSet and wait until it is connected
    Ensure(RouterEnsure),
    /// Print the router's manifests, for `kubectl apply -f -` on the cluster's side
    Manifest(RouterManifest),
    /// Take the router out of the cluster, and its nodes off Headscale
    Remove {
        /// The cluster
        #[arg(value_name = "CLUSTER")]
        id: String,
        #[command(flatten)]
        reach: ReachArgs,
        #[command(flatten)]
        headscale: HeadscaleArgs,
    },
    /// Show the router's pods
    Status {
        /// The cluster
        #[arg(value_name = "CLUSTER")]
        id: String,
        #[command(flatten)]
        reach: ReachArgs,
        #[command(flatten)]
        output: OutputArgs,
    },
}

/// How the cluster's API server is reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Via {
    /// Directly if it answers within 3 s, else through the connector
    #[default]
    Auto,
    /// By the kubeconfig's own address
    Direct,
    /// Through the cluster's connector
    Tailnet,
}

/// Which API server, and on which way.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct ReachArgs {
    #[command(flatten)]
    pub(crate) kubeconfig: KubeconfigArgs,
    /// How to reach the API server
    #[arg(long, value_enum, default_value_t, value_name = "WAY")]
    pub(crate) via: Via,
}

/// What the router is told.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct RouterArgs {
    /// File with namespace, login server and router key [default: tmp/cluster-<id>-headscale.json, if it is there]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) from: Option<PathBuf>,
    /// Where it logs in [env: TS_LOGIN_SERVER] [default: the Headscale server]
    #[arg(long, alias = "ts-login-server", value_name = "URL")]
    pub(crate) login_server: Option<String>,
    /// File with its preauth key [env: the key in TS_AUTHKEY]
    #[arg(long, alias = "ts-authkey-file", value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) router_key_file: Option<PathBuf>,
    /// The networks it serves, IPv4 [env: TS_ROUTES] [default: discovered]
    #[arg(long, alias = "ts-routes", value_name = "CIDR,...")]
    pub(crate) routes: Option<String>,
    /// Its name in the tailnet; the node's name is added [env: TS_HOSTNAME]
    #[arg(long, alias = "ts-hostname", value_name = "NAME")]
    pub(crate) hostname: Option<String>,
    /// Its image [env: GUILDNET_ROUTER_IMAGE]
    #[arg(long, value_name = "IMAGE")]
    pub(crate) image: Option<String>,
    #[command(flatten)]
    pub(crate) headscale: HeadscaleArgs,
}

#[derive(Debug, Args)]
pub(crate) struct RouterEnsure {
    /// The cluster
    #[arg(value_name = "CLUSTER")]
    pub(crate) id: String,
    #[command(flatten)]
    pub(crate) reach: ReachArgs,
    #[command(flatten)]
    pub(crate) router: RouterArgs,
}

#[derive(Debug, Args)]
pub(crate) struct RouterManifest {
    /// The cluster
    #[arg(value_name = "CLUSTER")]
    pub(crate) id: String,
    /// Print the router key too; without it the manifests expect the Secret to be there
    #[arg(long)]
    pub(crate) with_key: bool,
    #[command(flatten)]
    pub(crate) router: RouterArgs,
}
