//! Why a kubeconfig can't take the fleet's entries. The file's name is the caller's to add.

use guildnet_model::{Class, Explain};

use super::tree::Broken;

/// Why a kubeconfig can't take the fleet's entries. It stays as it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FleetError {
    /// It is not YAML, or has what can't be kept.
    #[error("{why}")]
    Malformed {
        /// The place and the cause.
        why: String,
    },
    /// It is no kubeconfig.
    #[error("it is no kubeconfig: {what}")]
    Shape {
        /// What is otherwise.
        what: String,
    },
    /// It is larger than any kubeconfig.
    #[error("it is larger than {} MiB", limit >> 20)]
    Large {
        /// The limit in bytes.
        limit: usize,
    },
    /// An entry of the same name belongs to somebody else.
    #[error("it has a {kind} {name} that {}", whose(of.as_deref()))]
    Conflict {
        /// `cluster`, `context` or `user`.
        kind: &'static str,
        /// Its name.
        name: String,
        /// The home folder whose it is, if GuildNet made it.
        of: Option<String>,
    },
    /// What would be written is not read as what it should be.
    #[error("what would be written would not mean the same for everybody else's entries")]
    Lossy,
}

fn whose(of: Option<&str>) -> String {
    match of {
        Some(home) => format!("belongs to GuildNet's folder {home}"),
        None => "GuildNet did not make".into(),
    }
}

impl From<Broken> for FleetError {
    fn from(broken: Broken) -> Self {
        Self::Malformed { why: broken.to_string() }
    }
}

impl Explain for FleetError {
    fn class(&self) -> Class {
        match self {
            Self::Conflict { .. } => Class::Conflict,
            Self::Lossy => Class::Failed,
            _ => Class::Usage,
        }
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Conflict { of: Some(home), .. } => format!(
                "write into a file of its own with --file FILE, or take that folder's entries out: guildnet kubeconfig remove --home {home}"
            ),
            Self::Conflict { kind: "context", name, of: None } => format!(
                "rename it (kubectl config rename-context {name} OTHER), or write into a file of its own with --file FILE"
            ),
            Self::Conflict { kind, name, of: None } => format!(
                "delete it if nothing needs it (kubectl config delete-{kind} {name}), or write into a file of its own with --file FILE"
            ),
            _ => {
                "mend it ('kubectl config view' shows what is read), or write into another file with --file FILE".into()
            }
        })
    }
}
