//! `guildnet headscale policy`: what can be typed.

use clap::{Args, Subcommand};

use super::{HeadscaleArgs, OutputArgs};

#[derive(Debug, Subcommand)]
pub(crate) enum Policy {
    /// Show the server's policy as it was written, and what it does
    Show(PolicyShow),
    /// Show the lines that `apply` would change
    ///
    /// Exit codes as of `kubectl diff`: 0 if nothing would change, 1 if something would, more if that could not be found out
    /// or `apply` would refuse.
    Diff(PolicyArgs),
    /// Write the policy that keeps the clusters apart, beside the clusters that the server's policy knows already
    Apply(PolicyArgs),
    /// Judge the server's policy: does it keep the clusters apart? Exit code 1 if not
    Check(PolicyCheck),
    /// Put back the policy that the last write from this device replaced; a second time undoes that
    Rollback(PolicyRollback),
}

/// What may be done to what others have on the Headscale server.
#[derive(Clone, Copy, Debug, Default, Args)]
pub(crate) struct ConsentArgs {
    /// Keep what others have on the Headscale server: their part of its policy, or a rule for their nodes if it has no rules yet
    #[arg(long)]
    pub(crate) merge: bool,
    /// Apply the policy although nodes that GuildNet does not know would no longer reach each other
    #[arg(long)]
    pub(crate) cut_off_others: bool,
}

impl From<ConsentArgs> for guildnet_host::Consent {
    fn from(args: ConsentArgs) -> Self {
        Self { merge: args.merge, cut_off_others: args.cut_off_others }
    }
}

/// Which clusters, and what may be done for them.
#[derive(Debug, Args)]
pub(crate) struct PolicyArgs {
    /// A cluster that is not known here, or with other networks than are known; repeat for more
    #[arg(long = "cluster", value_name = "ID=CIDR,...[@SITE]")]
    pub(crate) clusters: Vec<String>,
    #[command(flatten)]
    pub(crate) consent: ConsentArgs,
    #[command(flatten)]
    pub(crate) headscale: HeadscaleArgs,
}

#[derive(Debug, Args)]
pub(crate) struct PolicyShow {
    /// Print the whole document that `apply` would write instead: for a server that reads its policy from a file
    #[arg(long, conflicts_with = "output")]
    pub(crate) compiled: bool,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) policy: PolicyArgs,
}

#[derive(Debug, Args)]
pub(crate) struct PolicyCheck {
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) headscale: HeadscaleArgs,
}

#[derive(Debug, Args)]
pub(crate) struct PolicyRollback {
    /// Put it back although somebody changed the policy since: what they changed is lost
    #[arg(long)]
    pub(crate) discard_changes: bool,
    /// Put it back although nodes that GuildNet does not know would no longer reach each other
    #[arg(long)]
    pub(crate) cut_off_others: bool,
    #[command(flatten)]
    pub(crate) headscale: HeadscaleArgs,
}
