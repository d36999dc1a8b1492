//! `guildnet headscale up|down|status|backup|serve|env-sync-lan`: what can be typed.

use std::path::PathBuf;

use clap::{Args, ValueEnum, ValueHint};

use super::OutputArgs;

/// The program, and where it shall be reached.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct ManagedArgs {
    /// The headscale program [env: GUILDNET_HEADSCALE_BINARY] [default: the one of last time, else from PATH]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) headscale_binary: Option<PathBuf>,
    /// The IPv4 address by which the clusters' nodes reach it, or auto [env: GUILDNET_HEADSCALE_ADDRESS]
    /// [default: auto: this machine's own, by its default route]
    #[arg(long, value_name = "IP")]
    pub(crate) address: Option<String>,
    /// Where it listens [env: GUILDNET_HEADSCALE_LISTEN] [default: that address, port 8443]
    #[arg(long, value_name = "IP:PORT")]
    pub(crate) listen: Option<String>,
    /// Its UDP port for STUN [env: GUILDNET_HEADSCALE_STUN_PORT] [default: 3478]
    #[arg(long, value_name = "PORT")]
    pub(crate) stun_port: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct ManagedUp {
    #[command(flatten)]
    pub(crate) managed: ManagedArgs,
    /// Print a systemd unit instead, and change nothing: `user` for a systemd of your own, `system` for the machine's
    #[arg(long, value_enum, value_name = "WHOSE", num_args = 0..=1, require_equals = true, default_missing_value = "user")]
    pub(crate) systemd: Option<Systemd>,
}

/// Whose systemd.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Systemd {
    User,
    System,
}

#[derive(Debug, Args)]
pub(crate) struct ManagedDown {
    /// Remove its state too: every device and router that it coordinates will need another server
    #[arg(long)]
    pub(crate) purge: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ManagedBackup {
    /// The file to write (0600), which must not exist [default: a new one in headscale/backups in GuildNet's folder]
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) file: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

#[derive(Debug, Args)]
pub(crate) struct EnvSyncLan {
    /// The file
    #[arg(long, value_name = "FILE", default_value = ".env", value_hint = ValueHint::FilePath)]
    pub(crate) file: PathBuf,
    /// The address to write, or auto [env: GUILDNET_HEADSCALE_ADDRESS] [default: auto: this machine's own]
    #[arg(long, value_name = "IP")]
    pub(crate) address: Option<String>,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}
