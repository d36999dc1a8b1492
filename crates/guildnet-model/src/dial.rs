//! Where to dial and who dials.

use std::{fmt, net::SocketAddr, str::FromStr, time::Duration};

use tokio::io::{AsyncRead, AsyncWrite};

use crate::{Class, Explain};

/// A boxed future, so that the seams stay usable as `dyn`.
pub type BoxFuture<'a, T> = futures_util::future::BoxFuture<'a, T>;

/// A byte stream to somewhere: what every [`Dialer`] returns.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

impl fmt::Debug for dyn Io {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Io")
    }
}

/// A TCP address inside a cluster's networks: an IP address and a port other than 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Target(SocketAddr);

/// Why a text is no target.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a target: {why}")]
pub struct TargetError {
    text: String,
    why: &'static str,
}

impl Explain for TargetError {
    fn class(&self) -> Class {
        Class::Usage
    }

    fn hint(&self) -> Option<String> {
        Some("give an address inside the cluster and a port, like 10.96.0.1:443".into())
    }
}

impl Target {
    /// The socket address.
    pub const fn addr(self) -> SocketAddr {
        self.0
    }
}

impl From<SocketAddr> for Target {
    fn from(addr: SocketAddr) -> Self {
        Self(addr)
    }
}

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = |why| TargetError { text: text.to_owned(), why };
        match text.parse::<SocketAddr>() {
            Ok(addr) if addr.port() == 0 => Err(refuse("port 0 can't be dialled")),
            Ok(addr) => Ok(Self(addr)),
            Err(_) if text.contains(':') => Err(refuse("the host must be an IP address and the port 1 to 65535")),
            Err(_) => Err(refuse("the port is missing")),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Opens TCP streams: through a tailnet, directly, or in a test.
pub trait Dialer: Send + Sync + fmt::Debug {
    /// Opens a stream to `to`. Dropping the future aborts the attempt and frees what it held.
    fn dial(&self, to: Target) -> BoxFuture<'_, Result<Box<dyn Io>, DialError>>;
}

/// Why a dial failed, as the caller sees it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DialError {
    /// No router of the cluster serves the address. Retrying is useless until the network map changes.
    #[error("no route to {target}: no router of this cluster serves it")]
    NoRoute {
        /// What was dialled.
        target: Target,
    },
    /// The address is outside the networks that this cluster may be dialled at.
    #[error("{target} is not in this cluster's networks ({allowed})")]
    NotAllowed {
        /// What was dialled.
        target: Target,
        /// The networks that are.
        allowed: String,
    },
    /// The router that serves the address is not connected.
    #[error("the router that serves {target} is offline")]
    RouterOffline {
        /// What was dialled.
        target: Target,
    },
    /// The connector is not ready; its state says why.
    #[error("the connector is not ready: {state}")]
    NotReady {
        /// The connector's state, in words.
        state: String,
    },
    /// Nothing came back in time.
    #[error("{target} did not answer within {after:?}")]
    Timeout {
        /// What was dialled.
        target: Target,
        /// How long was waited.
        after: Duration,
    },
    /// The far end answered with a reset: nothing listens there.
    #[error("{target} refused the connection")]
    Refused {
        /// What was dialled.
        target: Target,
    },
    /// A bound was reached: too many flows at once.
    #[error("too many connections at once through this connector ({limit})")]
    TooMany {
        /// The bound.
        limit: usize,
    },
    /// Another failure, in words.
    #[error("dialling {target} failed: {why}")]
    Io {
        /// What was dialled.
        target: Target,
        /// The cause.
        why: String,
    },
}

impl Explain for DialError {
    fn class(&self) -> Class {
        match self {
            Self::NotAllowed { .. } => Class::Usage,
            Self::TooMany { .. } => Class::Failed,
            _ => Class::Unreachable,
        }
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NotAllowed { .. } => {
                "dial an address in the cluster's networks, or change them with 'guildnet cluster add --routes'".into()
            }
            Self::Refused { .. } => "check that something listens on that port".into(),
            Self::TooMany { .. } => "close some connections".into(),
            _ => "run 'guildnet verify' to see which link is broken".into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_checked() {
        assert_eq!("10.96.0.1:443".parse::<Target>().expect("a target").to_string(), "10.96.0.1:443");
        for bad in ["10.96.0.1", "10.96.0.1:0", "10.96.0.1:65536", "echo:80", ""] {
            assert!(bad.parse::<Target>().is_err(), "{bad}");
        }
    }
}
