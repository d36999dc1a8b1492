//! Reading what may not be there, or not be ours to read: an answer that is a refusal is noted, not fatal.
//!
//! A server that can't be asked at all (no connection, no TLS, a credential that it does not know) stays an error.

use std::future::Future;

use crate::{ApiServer, KubeError, error::KubeCause};

/// What one read brought.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) enum Read<T> {
    /// It is there.
    Seen(T),
    /// It is not there, or the server has no such kind.
    #[default]
    Absent,
    /// The server did not let it be read.
    Refused {
        /// What it said.
        why: String,
    },
}

impl<T> Read<T> {
    /// What was read, if it was.
    pub(crate) fn seen(&self) -> Option<&T> {
        match self {
            Self::Seen(value) => Some(value),
            Self::Absent | Self::Refused { .. } => None,
        }
    }

    /// Why it could not be read, if that is known.
    pub(crate) fn refusal(&self) -> Option<&str> {
        match self {
            Self::Refused { why } => Some(why),
            Self::Seen(_) | Self::Absent => None,
        }
    }
}

/// Something that could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unread {
    /// What it is, in words: `the nodes`.
    pub what: &'static str,
    /// What the server said.
    pub why: String,
}

impl Unread {
    pub(crate) fn of<T>(what: &'static str, read: &Read<T>) -> Option<Self> {
        read.refusal().map(|why| Self { what, why: why.to_owned() })
    }
}

impl ApiServer {
    /// A question whose answer may be a refusal.
    ///
    /// # Errors
    /// The server can't be asked, or does not know the credential.
    pub(crate) async fn try_read<T, F>(&self, ask: impl Fn(kube::Client) -> F) -> Result<Read<T>, KubeError>
    where
        F: Future<Output = kube::Result<T>>,
    {
        sorted(self.read(ask).await)
    }
}

/// Tells refusals from errors.
pub(crate) fn sorted<T>(answer: Result<T, KubeError>) -> Result<Read<T>, KubeError> {
    match answer {
        Ok(value) => Ok(Read::Seen(value)),
        Err(KubeError { cause: KubeCause::NotFound { .. }, .. }) => Ok(Read::Absent),
        Err(KubeError { cause: KubeCause::Forbidden { why }, .. }) => Ok(Read::Refused { why }),
        // An extension's API that is down, an object of a shape that this program does not know: others may still tell.
        Err(KubeError { cause: cause @ (KubeCause::Refused { .. } | KubeCause::Answer { .. }), .. }) => {
            Ok(Read::Refused { why: cause.to_string() })
        }
        Err(e) => Err(e),
    }
}
