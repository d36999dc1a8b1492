//! `guildnet ui`, `sessions`, `trust`: what can be typed.

use clap::{Args, Subcommand};

use super::OutputArgs;

#[derive(Debug, Args)]
pub(crate) struct Ui {
    /// Print the link instead: it signs one browser in, once, within a minute
    #[arg(long)]
    pub(crate) print: bool,
}

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Sessions {
    #[command(subcommand)]
    pub(crate) command: Option<SessionsCommand>,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum SessionsCommand {
    /// List them (the same as without a subcommand)
    List(OutputArgs),
    /// Sign a browser out
    Revoke {
        /// Its id in the list
        #[arg(value_name = "ID", required_unless_present = "all")]
        id: Option<String>,
        /// All of them
        #[arg(long, conflicts_with = "id")]
        all: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Trust {
    /// Make your browsers trust it: Chromium and its kin, each profile of Firefox; on macOS the login keychain
    ///
    /// They then take the Host App's certificate without a warning. The authority can vouch for this device alone (localhost,
    /// 127.0.0.0/8, ::1), and browsers hold it to that; its key is in GuildNet's folder, for you only. Nothing of the machine is
    /// changed, and root is not needed. On Linux it takes certutil (Debian: libnss3-tools).
    Install(OutputArgs),
    /// Take exactly that away again
    Remove(OutputArgs),
}
