//! Why a call to Headscale failed, in the caller's words: who was asked, what it said, what to do next.

use std::time::Duration;

use guildnet_model::{Class, ClusterId, Explain};
use url::Url;

use crate::PolicyError;

/// Why an operation on the Headscale server failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeadscaleError {
    /// The address can't be one of a Headscale server.
    #[error("{url} is no address of a Headscale server: {why}")]
    BadUrl {
        /// What was given.
        url: Url,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The certificates given as trusted can't be used.
    #[error("the certificates to trust for Headscale can't be read: {why}")]
    Ca {
        /// The cause.
        why: String,
    },
    /// No connection, or none that lasted.
    #[error("Headscale at {url} can't be reached: {why}")]
    Unreachable {
        /// The server.
        url: Url,
        /// The cause.
        why: String,
    },
    /// Connected, but nothing came back in time.
    #[error("Headscale at {url} did not answer within {after:?}")]
    Timeout {
        /// The server.
        url: Url,
        /// How long was waited.
        after: Duration,
    },
    /// The server's certificate was not signed by anyone trusted.
    #[error("the certificate of Headscale at {url} is not trusted: {why}")]
    NotTrusted {
        /// The server.
        url: Url,
        /// The cause.
        why: String,
    },
    /// The server's certificate is signed as it should be, but is not valid: another name, or out of date.
    #[error("the certificate of Headscale at {url} is not valid: {why}")]
    BadCertificate {
        /// The server.
        url: Url,
        /// The cause.
        why: String,
    },
    /// Something answers there, but it is not Headscale.
    #[error("what answers at {url} is not Headscale: {why}")]
    NotHeadscale {
        /// The address.
        url: Url,
        /// What was seen.
        why: String,
    },
    /// The call needs an API key and none is configured.
    #[error("no API key for Headscale at {url} is given")]
    NoApiKey {
        /// The server.
        url: Url,
    },
    /// The server does not accept the API key.
    #[error("Headscale at {url} does not accept the API key: wrong, or expired")]
    Unauthorized {
        /// The server.
        url: Url,
    },
    /// The API key, or what stands in front of the server, does not allow this call.
    #[error("{what}: Headscale at {url} does not allow it with this API key")]
    Forbidden {
        /// The server.
        url: Url,
        /// What was asked for.
        what: String,
    },
    /// The server is too old.
    #[error("Headscale at {url} is version {version}; 0.26 or later is needed")]
    TooOld {
        /// The server.
        url: Url,
        /// Its version.
        version: String,
    },
    /// The named thing is not on the server.
    #[error("{what}: Headscale does not know it ({said})")]
    NotFound {
        /// What was asked for.
        what: String,
        /// The server's words.
        said: String,
    },
    /// The server refused a request.
    #[error("{what}: Headscale refused (HTTP {status}): {said}")]
    Refused {
        /// What was asked for.
        what: String,
        /// HTTP status.
        status: u16,
        /// The server's words.
        said: String,
    },
    /// The server would remove everybody's preauth keys with this user.
    #[error("Headscale at {url} would remove {keys} preauth keys of other namespaces with user {user}; it is kept")]
    WouldEndKeys {
        /// The server.
        url: Url,
        /// The user's number.
        user: u64,
        /// How many usable keys others have.
        keys: usize,
    },
    /// The server does not accept the policy.
    #[error("Headscale refused the policy: {said}")]
    PolicyRefused {
        /// The server's words.
        said: String,
    },
    /// The server reads its policy from a file.
    #[error("Headscale at {url} reads its policy from a file and can't be given one")]
    PolicyReadOnly {
        /// The server.
        url: Url,
    },
    /// The policy may not be read or written with this API key.
    #[error("the policy of Headscale at {url} may not be read or changed with this API key")]
    PolicyDenied {
        /// The server.
        url: Url,
    },
    /// With this policy the clusters would not be apart: the server's own evaluation says so. Nothing was written.
    #[error("the policy would not keep the clusters apart: {said}")]
    PolicyLeaks {
        /// The server's words.
        said: String,
    },
    /// Somebody else wrote the policy each time between our write and our reading it back.
    #[error("the policy of Headscale at {url} was changed by somebody else {times} times while it was being written")]
    PolicyRace {
        /// The server.
        url: Url,
        /// How often it was tried.
        times: usize,
    },
    /// The policy can't be compiled, or not merged with what the server has.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The file holds another cluster's keys.
    #[error("the namespace file is of cluster {found}, not of {wanted}")]
    OtherCluster {
        /// The cluster in the file.
        found: ClusterId,
        /// The cluster that was asked for.
        wanted: ClusterId,
    },
}

/// How to get an API key and hand it over.
const API_KEY_HINT: &str =
    "make one with 'headscale apikeys create' on the server, save it in a file, and give --headscale-api-key-file FILE";

impl Explain for HeadscaleError {
    fn class(&self) -> Class {
        match self {
            Self::BadUrl { .. } | Self::Ca { .. } | Self::OtherCluster { .. } => Class::Usage,
            Self::Unreachable { .. }
            | Self::Timeout { .. }
            | Self::NotTrusted { .. }
            | Self::BadCertificate { .. }
            | Self::NotHeadscale { .. } => Class::Unreachable,
            Self::NoApiKey { .. } | Self::Unauthorized { .. } | Self::Forbidden { .. } | Self::PolicyDenied { .. } => {
                Class::Credentials
            }
            Self::NotFound { .. } => Class::NotFound,
            Self::TooOld { .. } | Self::WouldEndKeys { .. } | Self::PolicyReadOnly { .. } => Class::Precondition,
            Self::PolicyLeaks { .. } | Self::PolicyRace { .. } => Class::Conflict,
            Self::Refused { .. } | Self::PolicyRefused { .. } => Class::Failed,
            Self::Policy(inner) => inner.class(),
        }
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::BadUrl { .. } => "give it as --headscale-url https://HOST[:PORT]".into(),
            Self::Ca { .. } => "give a file of PEM certificates with --headscale-ca FILE".into(),
            Self::Unreachable { url, .. } | Self::Timeout { url, .. } => {
                format!("start Headscale, or correct its address with --headscale-url; to look for yourself: curl -k {url}")
            }
            Self::NotTrusted { .. } => {
                "give the authority that signed it: --headscale-ca FILE (PEM), for example the CA of your Headscale".into()
            }
            Self::BadCertificate { .. } => {
                "use the name that stands in the certificate, or renew it on the Headscale server; check this device's clock".into()
            }
            Self::NotHeadscale { .. } => "correct the address with --headscale-url https://HOST[:PORT]".into(),
            Self::NoApiKey { .. } | Self::Unauthorized { .. } => API_KEY_HINT.into(),
            Self::Forbidden { .. } => {
                "give an API key that may do this (--headscale-api-key-file FILE), or have whoever runs the server allow it".into()
            }
            Self::PolicyDenied { .. } => {
                "have whoever may change it put the document of 'guildnet headscale policy show --compiled' there, or give an API key \
                 that may: --headscale-api-key-file FILE"
                    .into()
            }
            Self::TooOld { .. } => "upgrade Headscale to 0.29 or later, one minor version at a time".into(),
            Self::WouldEndKeys { .. } => {
                "upgrade Headscale to 0.29 or later; an unused namespace does no harm meanwhile".into()
            }
            Self::NotFound { .. } => "run 'guildnet up' to make what is missing".into(),
            Self::Refused { .. } => "see Headscale's log, mend the cause and run the command again".into(),
            Self::PolicyRefused { .. } => {
                "if the server's words name something of yours, mend it in the policy; then run the command again".into()
            }
            Self::PolicyReadOnly { .. } => {
                "put the document of 'guildnet headscale policy show --compiled' into the file that 'policy.path' in Headscale's \
                 configuration names and reload it (systemctl reload headscale, or SIGHUP); or set 'policy.mode: database' there \
                 and restart it. Then run the command again"
                    .into()
            }
            Self::PolicyLeaks { .. } => {
                "take the rule that opens tag:gn-... out of the policy (see it: guildnet headscale policy show), then run the command again".into()
            }
            Self::PolicyRace { .. } => "run the command again when the other one has ended".into(),
            Self::Policy(inner) => return inner.hint(),
            Self::OtherCluster { found, .. } => format!("give the file of this cluster, or use the id {found}"),
        })
    }
}
