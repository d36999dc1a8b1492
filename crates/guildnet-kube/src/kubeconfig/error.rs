//! Why a kubeconfig can't be used, and what to do about it.

use std::path::PathBuf;

use guildnet_model::{Class, Explain};

use crate::access::AccessError;

/// Something that a kubeconfig asks for and that GuildNet does not do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// Its user runs a program to get a credential.
    #[error("it runs a program to get its credential (exec: {command:?})")]
    Exec {
        /// The program.
        command: String,
    },
    /// Its user relies on an auth provider, which kubectl itself no longer has.
    #[error("it gets its credential from an auth provider ({name:?})")]
    AuthProvider {
        /// The provider.
        name: String,
    },
    /// It reads another file.
    #[error("it reads another file ({field}: {file:?})")]
    File {
        /// The field that names the file.
        field: &'static str,
        /// The file.
        file: String,
    },
    /// It skips the check of the server's certificate.
    #[error("it skips the check of the server's certificate (insecure-skip-tls-verify)")]
    SkipsTls,
    /// It reaches the server through a proxy.
    #[error("it reaches the server through a proxy (proxy-url)")]
    Proxy,
    /// It acts as another user.
    #[error("it acts as another user (as)")]
    Impersonation,
}

/// Why a kubeconfig can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KubeconfigError {
    /// There is no such file.
    #[error("kubeconfig {} does not exist", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// The file can't be read.
    #[error("kubeconfig {} can't be read: {why}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The cause.
        why: String,
    },
    /// The file holds nothing.
    #[error("kubeconfig {} is empty", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// The file is not shaped like a kubeconfig.
    #[error("kubeconfig {} is malformed: {at} is not YAML, or not what a kubeconfig holds there", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The place.
        at: String,
    },
    /// No context was named and the file has no current one.
    #[error("kubeconfig {} has no current-context and none was named; it has: {}", path.display(), list(known))]
    NoContext {
        /// The file.
        path: PathBuf,
        /// The contexts it has.
        known: Vec<String>,
    },
    /// The named context is not in the file.
    #[error("kubeconfig {} has no context {name:?}; it has: {}", path.display(), list(known))]
    UnknownContext {
        /// The file.
        path: PathBuf,
        /// The context.
        name: String,
        /// The contexts it has.
        known: Vec<String>,
    },
    /// The context names a cluster or user that is not in the file.
    #[error("kubeconfig {}, context {context:?}: its {kind} {wanted:?} is not in the file", path.display())]
    Dangling {
        /// The file.
        path: PathBuf,
        /// The context.
        context: String,
        /// `cluster` or `user`.
        kind: &'static str,
        /// The name that was not found.
        wanted: String,
    },
    /// A field is missing or can't be used.
    #[error("kubeconfig {}, context {context:?}: {field} {why}", path.display())]
    Field {
        /// The file.
        path: PathBuf,
        /// The context.
        context: String,
        /// The field.
        field: &'static str,
        /// The cause.
        why: String,
    },
    /// Certificates, key or token are not well formed, or don't fit together.
    #[error("kubeconfig {}, context {context:?}: {why}", path.display())]
    Access {
        /// The file.
        path: PathBuf,
        /// The context.
        context: String,
        /// The cause.
        why: AccessError,
    },
    /// The user has no credential, or only one that Kubernetes no longer takes.
    #[error("kubeconfig {}, context {context:?}: its user has no client certificate and no token{}", path.display(), password(*by_password))]
    NoCredential {
        /// The file.
        path: PathBuf,
        /// The context.
        context: String,
        /// Whether it has a user name or password instead.
        by_password: bool,
    },
    /// It asks for something that is not done.
    #[error("kubeconfig {}, context {context:?} is refused: {asks}", path.display())]
    Refused {
        /// The file.
        path: PathBuf,
        /// The context.
        context: String,
        /// What it asks for.
        asks: Refusal,
    },
}

fn list(known: &[String]) -> String {
    if known.is_empty() { "no context at all".into() } else { known.join(", ") }
}

fn password(by_password: bool) -> &'static str {
    if by_password { ", only a user name and password" } else { "" }
}

impl Explain for KubeconfigError {
    fn class(&self) -> Class {
        match self {
            Self::Missing { .. } | Self::UnknownContext { .. } | Self::Dangling { .. } => Class::NotFound,
            Self::NoCredential { .. } => Class::Credentials,
            _ => Class::Usage,
        }
    }

    fn hint(&self) -> Option<String> {
        let inlined = |path: &PathBuf, context: &str| {
            format!(
                "put everything into one file: kubectl config view --raw --flatten --minify --kubeconfig {} --context {context} > FILE",
                path.display()
            )
        };
        let own = "make a kubeconfig for GuildNet with a client certificate, or with a token from 'kubectl create token SERVICEACCOUNT'";
        Some(match self {
            Self::Missing { .. } | Self::Unreadable { .. } | Self::Empty { .. } => {
                "name a kubeconfig file that this user can read".into()
            }
            Self::Malformed { path, .. } => {
                format!("see what kubectl says: kubectl config view --kubeconfig {}", path.display())
            }
            Self::NoContext { .. } | Self::UnknownContext { .. } => "name one of its contexts".into(),
            Self::Dangling { path, .. } => format!("mend {}: 'kubectl config view' shows it", path.display()),
            Self::Field { field: "server", .. } => "give the API server's URL, like https://10.0.0.1:6443".into(),
            Self::Field { path, context, .. } | Self::Access { path, context, .. } => inlined(path, context),
            Self::NoCredential { .. } => own.into(),
            Self::Refused { path, context, asks } => match asks {
                Refusal::File { .. } => format!("{}; or allow it with --allow-files", inlined(path, context)),
                Refusal::Exec { command } if command.starts_with('/') => {
                    format!("if you trust that program, allow it with --allow-exec {command}; or {own}")
                }
                Refusal::Exec { command } => format!(
                    "write the program's absolute path into the kubeconfig ('command -v {command}' tells it) and allow it with --allow-exec PATH; or {own}"
                ),
                Refusal::AuthProvider { .. } | Refusal::Impersonation => own.into(),
                Refusal::SkipsTls => {
                    "give the cluster's own authority as certificate-authority-data in place of insecure-skip-tls-verify".into()
                }
                Refusal::Proxy => "leave proxy-url out: the cluster is reached through its own connector".into(),
            },
        })
    }
}
