//! What can go wrong between this process and an API server, in our own words.
//!
//! Library errors end here: [`KubeError`] names the server, the cause and, by [`Explain`], the next step.

use std::{error::Error as StdError, time::Duration};

use guildnet_model::{Class, DialError, Explain};
use rustls::CertificateError;

use crate::{connect::ConnectError, credential::CredentialError};

/// A request to an API server failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("API server {server}: {cause}")]
pub struct KubeError {
    /// The server, as its kubeconfig names it.
    pub server: String,
    /// The cause.
    pub cause: KubeCause,
}

/// Why a request to an API server failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KubeCause {
    /// No connection: the dialer says why.
    #[error("{0}")]
    Dial(DialError),
    /// The URL's host name has no address.
    #[error("{host} has no address: {why}")]
    Resolve {
        /// The name.
        host: String,
        /// The cause.
        why: String,
    },
    /// The certificate is signed by another authority than the kubeconfig's.
    #[error("its certificate is not signed by the kubeconfig's certificate authority")]
    WrongAuthority,
    /// The certificate bears other names than the wanted one.
    #[error("its certificate is not for {wanted}, but for {}", presented.join(", "))]
    WrongName {
        /// The name that was wanted.
        wanted: String,
        /// The names it bears.
        presented: Vec<String>,
    },
    /// The certificate is not valid now.
    #[error("its certificate is not valid now: {why}")]
    CertificateTime {
        /// Expired, or not valid yet.
        why: String,
    },
    /// Another failure of TLS.
    #[error("TLS failed: {why}")]
    Tls {
        /// The cause.
        why: String,
    },
    /// The credential can't be had: its file or program gives none.
    #[error("{why}")]
    Credential {
        /// The file or program, and the cause.
        why: String,
    },
    /// The token is not accepted, and the next request has another.
    #[error("it did not accept the token, which is replaced now")]
    Stale,
    /// The credential is not accepted.
    #[error("it does not accept the kubeconfig's credential: {why}")]
    Unauthorized {
        /// What it said.
        why: String,
    },
    /// The credential does not suffice.
    #[error("not allowed: {why}")]
    Forbidden {
        /// What it said.
        why: String,
    },
    /// The object does not exist.
    #[error("{what}")]
    NotFound {
        /// What does not.
        what: String,
    },
    /// The request contradicts what is there.
    #[error("{why}")]
    Conflict {
        /// What it said.
        why: String,
    },
    /// The server refused for another reason.
    #[error("it answered {code}: {message}")]
    Refused {
        /// HTTP status.
        code: u16,
        /// What it said.
        message: String,
    },
    /// The connection broke before the answer was whole.
    #[error("the connection broke: {why}")]
    Lost {
        /// The cause.
        why: String,
    },
    /// No answer in time.
    #[error("no answer within {after:?}")]
    Timeout {
        /// How long was waited.
        after: Duration,
    },
    /// The answer is not what was asked for.
    #[error("its answer can't be used: {why}")]
    Answer {
        /// What is wrong with it.
        why: String,
    },
}

impl KubeCause {
    /// Whether the same request may well succeed on a fresh connection.
    pub(crate) fn is_lost(&self) -> bool {
        matches!(self, Self::Lost { .. })
    }
}

impl From<kube::Error> for KubeCause {
    fn from(e: kube::Error) -> Self {
        match e {
            kube::Error::Api(status) => Self::from_status(status.code, status.message),
            kube::Error::Service(e) => Self::lost(e.as_ref()),
            kube::Error::HyperError(e) => Self::lost(&e),
            kube::Error::ReadEvents(e) => Self::lost(&e),
            other => Self::Answer { why: innermost(&other) },
        }
    }
}

impl From<CredentialError> for KubeCause {
    fn from(none: CredentialError) -> Self {
        Self::Credential { why: none.to_string() }
    }
}

impl KubeCause {
    /// The cause behind an error of a connection: ours, or one of TLS, else that it broke.
    pub(crate) fn lost(e: &(dyn StdError + 'static)) -> Self {
        from_chain(e).unwrap_or_else(|| Self::Lost { why: innermost(e) })
    }

    /// The cause behind an answer that is an error.
    pub(crate) fn from_status(code: u16, message: String) -> Self {
        let why = if message.is_empty() { format!("HTTP status {code}") } else { message };
        match code {
            401 => Self::Unauthorized { why },
            403 => Self::Forbidden { why },
            404 => Self::NotFound { what: why },
            409 => Self::Conflict { why },
            _ => Self::Refused { code, message: why },
        }
    }
}

/// Our own connect error, or an error of TLS, somewhere below a library's.
fn from_chain(top: &(dyn StdError + 'static)) -> Option<KubeCause> {
    let mut next = Some(top);
    while let Some(e) = next {
        if let Some(cause) = e.downcast_ref::<KubeCause>() {
            return Some(cause.clone());
        }
        if let Some(ours) = e.downcast_ref::<ConnectError>() {
            return Some(match ours {
                ConnectError::Dial(e) => KubeCause::Dial(e.clone()),
                ConnectError::Resolve { host, why } => KubeCause::Resolve { host: host.clone(), why: why.clone() },
                ConnectError::HandshakeTimeout(after) => KubeCause::Timeout { after: *after },
                ConnectError::Handshake(e) => match tls_error(e) {
                    Some(e) => from_tls(e),
                    None => KubeCause::Lost { why: format!("during the TLS handshake: {e}") },
                },
            });
        }
        // After the handshake TLS speaks up as an IO error: a refused client certificate comes this late.
        if let Some(tls) = e.downcast_ref::<std::io::Error>().and_then(tls_error) {
            return Some(from_tls(tls));
        }
        next = e.source();
    }
    None
}

fn tls_error(e: &std::io::Error) -> Option<&rustls::Error> {
    e.get_ref()?.downcast_ref()
}

fn from_tls(e: &rustls::Error) -> KubeCause {
    let rustls::Error::InvalidCertificate(why) = e else {
        return KubeCause::Tls { why: e.to_string() };
    };
    match why {
        CertificateError::UnknownIssuer | CertificateError::BadSignature => KubeCause::WrongAuthority,
        CertificateError::NotValidForNameContext { expected, presented } => {
            KubeCause::WrongName { wanted: expected.to_str().into_owned(), presented: presented.clone() }
        }
        CertificateError::Expired
        | CertificateError::ExpiredContext { .. }
        | CertificateError::NotValidYet
        | CertificateError::NotValidYetContext { .. } => KubeCause::CertificateTime { why: why.to_string() },
        other => KubeCause::Tls { why: other.to_string() },
    }
}

fn innermost(e: &dyn StdError) -> String {
    let mut last = e;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}

impl Explain for KubeError {
    fn class(&self) -> Class {
        match &self.cause {
            KubeCause::Dial(e) => e.class(),
            KubeCause::Resolve { .. } | KubeCause::Lost { .. } | KubeCause::Timeout { .. } => Class::Unreachable,
            KubeCause::Credential { .. }
            | KubeCause::Stale
            | KubeCause::Unauthorized { .. }
            | KubeCause::Forbidden { .. } => Class::Credentials,
            KubeCause::NotFound { .. } => Class::NotFound,
            KubeCause::Conflict { .. } => Class::Conflict,
            KubeCause::WrongAuthority
            | KubeCause::WrongName { .. }
            | KubeCause::CertificateTime { .. }
            | KubeCause::Tls { .. }
            | KubeCause::Refused { .. }
            | KubeCause::Answer { .. } => Class::Failed,
        }
    }

    fn hint(&self) -> Option<String> {
        Some(match &self.cause {
            KubeCause::Dial(e) => return e.hint(),
            KubeCause::WrongAuthority => {
                "this is another cluster, or its authority was renewed: give a fresh kubeconfig with 'guildnet cluster add'".into()
            }
            KubeCause::WrongName { presented, .. } => format!(
                "set tls-server-name in the kubeconfig to a name that the certificate bears ({}) and add the cluster again",
                presented.first().map_or("it bears none", String::as_str)
            ),
            KubeCause::CertificateTime { .. } => {
                "renew the API server's certificate ('kubeadm certs renew apiserver'), or set this machine's clock".into()
            }
            KubeCause::Unauthorized { .. } => {
                "the credential is expired or revoked: give a fresh kubeconfig with 'guildnet cluster add'".into()
            }
            KubeCause::Stale => "run the command again".into(),
            KubeCause::Credential { .. } => {
                "log in where it gets its token from, or give another kubeconfig with 'guildnet cluster add'".into()
            }
            KubeCause::Forbidden { .. } => "give a kubeconfig whose user may do this".into(),
            KubeCause::Resolve { .. } => "check the server in the kubeconfig and this machine's DNS".into(),
            KubeCause::Lost { .. } | KubeCause::Timeout { .. } | KubeCause::Tls { .. } => {
                "run 'guildnet verify' to see which link is broken".into()
            }
            KubeCause::NotFound { .. } | KubeCause::Conflict { .. } | KubeCause::Refused { .. } | KubeCause::Answer { .. } => {
                return None;
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(cause: KubeCause) -> Class {
        KubeError { server: "https://a".into(), cause }.class()
    }

    #[test]
    fn a_server_that_takes_the_connection_and_says_nothing_is_unreachable() {
        let silent = ConnectError::HandshakeTimeout(Duration::from_secs(5));
        let cause = KubeCause::from(kube::Error::Service(silent.into()));
        assert_eq!(cause, KubeCause::Timeout { after: Duration::from_secs(5) });
        assert_eq!(class(cause), Class::Unreachable);
    }

    #[test]
    fn the_classes_follow_the_status() {
        let of = |code| class(KubeCause::from_status(code, String::new()));
        assert_eq!(
            [401, 403, 404, 409, 500].map(of),
            [Class::Credentials, Class::Credentials, Class::NotFound, Class::Conflict, Class::Failed]
        );
    }
}
