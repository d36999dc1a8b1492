//! Why routers are not there, and what to do about it.

use std::{fmt, time::Duration};

use guildnet_model::{Class, Explain};

use super::{NAMESPACE, manifest::TUN};
use crate::KubeError;

/// Why the routers are not there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RouterError {
    /// The cluster can't be asked, or refused.
    #[error(transparent)]
    Kube(#[from] KubeError),
    /// An object of the same name is there and is not ours; it was left alone.
    #[error("{object} in namespace {NAMESPACE} was not made by GuildNet and is left alone")]
    Foreign {
        /// `Kind/name`.
        object: String,
    },
    /// The cluster already holds the router of another cluster id.
    #[error("this Kubernetes cluster already holds the router of cluster {here:?}, not of {wanted:?}")]
    OtherCluster {
        /// The id that the router there is of.
        here: String,
        /// The id that was asked for.
        wanted: String,
    },
    /// A first router needs a key and there is none.
    #[error("no preauth key for the router of cluster {cluster:?}, and none in the Kubernetes cluster")]
    NoKey {
        /// The cluster.
        cluster: String,
    },
    /// The cluster has no node that a router could run on.
    #[error("no router is wanted: the cluster has no Linux node")]
    NoNodes,
    /// A router does not come up, for a reason that waiting does not change.
    #[error("router on {place}: {trouble}")]
    Stuck {
        /// `node NAME`, or the pod while it has no node.
        place: String,
        /// The reason.
        trouble: Trouble,
    },
    /// Something did not happen in time.
    #[error("{what} within {after:?}")]
    Timeout {
        /// What did not happen, and what was seen last.
        what: String,
        /// How long was waited.
        after: Duration,
    },
    /// The DaemonSet went away while it was waited for.
    #[error("the router was removed while it was waited for")]
    Removed,
}

/// Why one router pod is not ready.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Trouble {
    /// The node has no `/dev/net/tun`.
    MissingDevice,
    /// The image can't be had.
    Image {
        /// What Kubernetes says.
        why: String,
    },
    /// The login server refuses the key.
    KeyRefused {
        /// The line of the router's log.
        why: String,
    },
    /// The login server's certificate is not trusted.
    Untrusted {
        /// The line of the router's log.
        why: String,
    },
    /// The login server can't be reached from the pod.
    ServerUnreachable {
        /// The line of the router's log.
        why: String,
    },
    /// The router ends again and again.
    Crash {
        /// How often it was restarted.
        restarts: u32,
        /// The last lines of its log.
        log: Vec<String>,
    },
    /// No room for the pod on the node.
    Unschedulable {
        /// What Kubernetes says.
        why: String,
    },
    /// The cluster's admission refuses the pod.
    Denied {
        /// What Kubernetes says.
        why: String,
    },
    /// Something else that Kubernetes reports.
    Other {
        /// What Kubernetes says.
        why: String,
    },
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MissingDevice => write!(f, "the node has no {TUN}"),
            Self::Image { why } => write!(f, "the image can't be had: {why}"),
            Self::KeyRefused { why } => write!(f, "the login server refuses the key: {why}"),
            Self::Untrusted { why } => write!(f, "the login server's certificate is not trusted: {why}"),
            Self::ServerUnreachable { why } => write!(f, "the login server can't be reached: {why}"),
            Self::Crash { restarts, log } => {
                write!(f, "it ended {restarts} times; its last words: {}", log.join(" | "))
            }
            Self::Unschedulable { why } => write!(f, "no room on the node: {why}"),
            Self::Denied { why } => write!(f, "the cluster refuses the pod: {why}"),
            Self::Other { why } => f.write_str(why),
        }
    }
}

impl Explain for RouterError {
    fn class(&self) -> Class {
        match self {
            Self::Kube(e) => e.class(),
            Self::Foreign { .. } | Self::OtherCluster { .. } => Class::Conflict,
            Self::NoKey { .. } => Class::Credentials,
            Self::Stuck { trouble, .. } => match trouble {
                Trouble::MissingDevice => Class::Precondition,
                Trouble::KeyRefused { .. } => Class::Credentials,
                Trouble::ServerUnreachable { .. } => Class::Unreachable,
                _ => Class::Failed,
            },
            Self::Timeout { .. } => Class::Unreachable,
            Self::NoNodes | Self::Removed => Class::Failed,
        }
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Kube(e) => return e.hint(),
            Self::Foreign { object } => {
                format!("rename or remove it: kubectl -n {NAMESPACE} delete {}", object.replacen('/', " ", 1))
            }
            Self::OtherCluster { here, .. } => {
                format!("use the id {here}, or remove that router first: kubectl delete namespace {NAMESPACE}")
            }
            Self::NoKey { cluster } => format!("make one: guildnet headscale namespace {cluster}"),
            Self::NoNodes => "see 'kubectl get nodes'".into(),
            Self::Stuck { trouble, .. } => match trouble {
                Trouble::MissingDevice => "load the module on that node: modprobe tun".into(),
                Trouble::Image { .. } => {
                    "check the image's name and that the node can pull it, or give another with --image".into()
                }
                Trouble::KeyRefused { .. } => {
                    "make a new key: guildnet up, or guildnet headscale namespace CLUSTER".into()
                }
                Trouble::Untrusted { .. } => "give the login server's certificate authority with --headscale-ca".into(),
                Trouble::ServerUnreachable { .. } => {
                    "name the login server by an address that the cluster's pods can reach, not 127.0.0.1".into()
                }
                Trouble::Denied { .. } => {
                    "the router is privileged: let the cluster's admission policy allow it in this namespace".into()
                }
                Trouble::Crash { .. } => format!("see 'kubectl -n {NAMESPACE} logs daemonset/{}'", super::DAEMON_SET),
                Trouble::Unschedulable { .. } | Trouble::Other { .. } => {
                    format!("see 'kubectl -n {NAMESPACE} describe pods'")
                }
            },
            Self::Timeout { .. } => format!("see 'kubectl -n {NAMESPACE} describe pods' and run the command again"),
            Self::Removed => "run the command again".into(),
        })
    }
}
