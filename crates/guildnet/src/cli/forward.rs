//! `guildnet forward`: what can be typed.

use clap::Args;

use super::OutputArgs;

/// One of: forwards to make, `--list`, `--stop`, `--stop-all`.
#[derive(Debug, Args)]
#[command(after_help = "Each cluster has a loopback address of its own, so two clusters can both forward port 3000:\n\
                        guildnet forward a 3000:grafana.monitoring:80\n\
                        guildnet forward b 3000:grafana.monitoring:80")]
pub(crate) struct Forward {
    /// The cluster; with --list and --stop-all, only this one's
    #[arg(value_name = "CLUSTER", required_unless_present_any = ["list", "stop", "stop_all"], conflicts_with = "stop")]
    pub(crate) cluster: Option<String>,
    /// What leads where: a local port (0 for a free one), or IP:PORT in 127.0.0.0/8; then a Service or an address in the cluster
    ///
    /// Like 3000:grafana.monitoring:80. Names are resolved in the cluster, anew for each connection.
    #[arg(value_name = "LOCAL:HOST:PORT", required_unless_present_any = ["list", "stop", "stop_all"],
        conflicts_with_all = ["list", "stop", "stop_all"])]
    pub(crate) forwards: Vec<String>,
    /// Leave them to the Host App, over restarts too; otherwise they end with this command
    #[arg(long, requires = "forwards")]
    pub(crate) keep: bool,
    /// List all forwards
    #[arg(long, conflicts_with_all = ["stop", "stop_all"])]
    pub(crate) list: bool,
    /// Stop a forward, by its id in the list; repeat for more
    #[arg(long, value_name = "ID", conflicts_with = "stop_all")]
    pub(crate) stop: Vec<String>,
    /// Stop all forwards
    #[arg(long)]
    pub(crate) stop_all: bool,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}
