//! `guildnet kubeconfig`: what can be typed.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueHint};

#[derive(Debug, Subcommand)]
pub(crate) enum Kubeconfig {
    /// Write a context guildnet-<id> for each cluster into your kubeconfig, for kubectl and every other client
    ///
    /// The contexts lead through the Host App and hold no credential. What others have in the file keeps its meaning;
    /// comments are not kept. What was there before is copied beside it, to FILE.guildnet-backup. From then on the file
    /// follows when clusters are added or removed. Its current context is left alone.
    ///
    /// With several files in KUBECONFIG, an entry stays where it is; new ones go into the first file that exists, else
    /// into the last of the list, as with kubectl.
    Write(KubeconfigWrite),
    /// Print these contexts as a kubeconfig of their own
    Print {
        /// Make this cluster's context the current one
        #[arg(long, value_name = "CLUSTER")]
        set_current: Option<String>,
        /// Only these clusters [default: all]
        #[arg(value_name = "CLUSTER")]
        clusters: Vec<String>,
    },
    /// Take these contexts out again, and nothing else
    Remove {
        /// Only from this file [default: wherever they were written, and KUBECONFIG or ~/.kube/config]
        #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
        file: Option<PathBuf>,
        /// Only those of these clusters [default: all]
        #[arg(value_name = "CLUSTER")]
        clusters: Vec<String>,
    },
    /// Print a short-lived token for kubectl, which runs this by itself
    ///
    /// The token is good for 15 minutes and for the clusters' APIs only, not for the Host App's own.
    Credential,
}

#[derive(Debug, Args)]
pub(crate) struct KubeconfigWrite {
    /// The file to write to [env: KUBECONFIG] [default: ~/.kube/config]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) file: Option<PathBuf>,
    /// Make this cluster's context the current one
    #[arg(long, value_name = "CLUSTER")]
    pub(crate) set_current: Option<String>,
    /// Only these clusters [default: all, and those that are added later]
    #[arg(value_name = "CLUSTER")]
    pub(crate) clusters: Vec<String>,
}
