//! The contexts that a kubeconfig offers: for messages that say what could be named. Nothing in the file is used.

use std::path::Path;

use guildnet_kube::Kubeconfig;

use crate::{HostError, error::Explained};

/// Names of the contexts in a kubeconfig, as they stand there.
///
/// # Errors
/// The file is missing, unreadable or malformed.
pub fn contexts(path: &Path) -> Result<Vec<String>, HostError> {
    let kubeconfig = Kubeconfig::read(path).explained()?;
    Ok(kubeconfig.contexts().map(Into::into).collect())
}
