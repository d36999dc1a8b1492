//! The error of this crate: what failed and why, its class (the exit code follows from it) and the next step.
//!
//! The sibling crates keep their own typed errors; here, where they meet and where callers can only show them, one type
//! carries what [`Explain`] says of each, and the cluster that it is about.

use std::fmt;

use guildnet_model::{Class, ClusterId, Explain};

/// Why an operation of the Host App did not succeed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostError {
    cluster: Option<ClusterId>,
    message: String,
    class: Class,
    hint: Option<String>,
}

impl HostError {
    /// An error that names the thing and the cause.
    pub fn new(class: Class, message: impl Into<String>) -> Self {
        Self { cluster: None, message: message.into(), class, hint: None }
    }

    /// Takes over what another error says of itself, with the causes behind it that it does not name.
    pub fn explained(error: &dyn Explain) -> Self {
        let mut message = error.to_string();
        let mut cause = error.source();
        while let Some(inner) = cause {
            let said = inner.to_string();
            if !message.contains(&said) {
                message = format!("{message}: {said}");
            }
            cause = inner.source();
        }
        Self { cluster: None, message, class: error.class(), hint: error.hint() }
    }

    /// Names the next step.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Names the cluster that it is about.
    #[must_use]
    pub fn of_cluster(mut self, cluster: &ClusterId) -> Self {
        self.cluster = Some(cluster.clone());
        self
    }

    /// Says in front what was being done.
    #[must_use]
    pub fn while_doing(mut self, what: impl fmt::Display) -> Self {
        self.message = format!("{what}: {}", self.message);
        self
    }

    /// The error for a cluster id that the store does not hold.
    pub fn unknown_cluster(cluster: &ClusterId, known: &[ClusterId]) -> Self {
        let known: Vec<&str> = known.iter().map(ClusterId::as_str).collect();
        let hint = match known.as_slice() {
            [] => "add one: guildnet up --cluster ID=KUBECONFIG".to_owned(),
            some => format!("known clusters: {}", some.join(", ")),
        };
        Self::new(Class::NotFound, format!("there is no cluster {cluster}")).with_hint(hint)
    }

    /// The cluster that it is about, if it is about one.
    pub fn cluster(&self) -> Option<&ClusterId> {
        self.cluster.as_ref()
    }

    /// The message without the cluster's name.
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl fmt::Display for HostError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(cluster) = &self.cluster {
            write!(f, "cluster {cluster}: ")?;
        }
        f.write_str(&self.message)
    }
}

impl std::error::Error for HostError {}

impl Explain for HostError {
    fn class(&self) -> Class {
        self.class
    }

    fn hint(&self) -> Option<String> {
        self.hint.clone()
    }
}

/// Turns an error that explains itself into this crate's, keeping class and hint.
pub(crate) trait Explained<T> {
    /// See [`HostError::explained`].
    fn explained(self) -> Result<T, HostError>;

    /// The same, naming the cluster.
    fn explained_of(self, cluster: &ClusterId) -> Result<T, HostError>;
}

impl<T, E: Explain> Explained<T> for Result<T, E> {
    fn explained(self) -> Result<T, HostError> {
        self.map_err(|e| HostError::explained(&e))
    }

    fn explained_of(self, cluster: &ClusterId) -> Result<T, HostError> {
        self.map_err(|e| HostError::explained(&e).of_cluster(cluster))
    }
}

#[cfg(test)]
mod tests {
    use guildnet_model::NetworksError;

    use super::*;

    #[test]
    fn class_and_hint_of_the_first_error_are_kept() {
        let id: ClusterId = "a".parse().expect("an id");
        let refused = "10.96.0.1/16".parse::<guildnet_model::Networks>().expect_err("host bits");
        let said = Err::<(), NetworksError>(refused.clone()).explained_of(&id).expect_err("an error");
        assert_eq!(said.to_string(), format!("cluster a: {refused}"));
        assert_eq!((said.class(), said.hint()), (refused.class(), refused.hint()));
    }

    #[test]
    fn an_unknown_cluster_names_those_there_are() {
        let id = |t: &str| t.parse::<ClusterId>().expect("an id");
        let said = HostError::unknown_cluster(&id("x"), &[id("a"), id("b")]);
        assert_eq!(said.hint().as_deref(), Some("known clusters: a, b"));
        assert_eq!(said.class(), Class::NotFound);
    }
}
