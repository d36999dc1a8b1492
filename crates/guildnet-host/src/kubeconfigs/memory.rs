//! Which kubeconfigs the fleet was written to: `kubeconfigs.json` in the home folder. A file and not a row of the store,
//! since new certificates and the removal of everything must find them without a database. Nothing in it is secret.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use guildnet_model::{Class, ClusterId};
use guildnet_store::private;
use serde::{Deserialize, Serialize};

use crate::{HostError, error::Explained as _};

/// The file's name in the home folder.
pub(crate) const FILE: &str = "kubeconfigs.json";

/// What was written where.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Memory {
    /// The Host App's address in these files.
    pub(super) host: Option<String>,
    /// The files.
    #[serde(default)]
    pub(super) files: Vec<Remembered>,
}

/// One kubeconfig.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Remembered {
    pub(super) file: PathBuf,
    /// New clusters come in too; else only those that a person named.
    pub(super) all: bool,
    /// Whose entries were left there. If there are none of them any more, a person took them out.
    pub(super) clusters: BTreeSet<ClusterId>,
}

impl Memory {
    /// What is remembered; nothing if there is no file.
    pub(super) fn read(home: &Path) -> Result<Self, HostError> {
        let file = home.join(FILE);
        // Asked first: a home folder that is not there is no error here.
        let Some(content) = private::read(&file).explained()? else { return Ok(Self::default()) };
        serde_json::from_slice(&content).map_err(|why| {
            HostError::new(Class::Failed, format!("{} is damaged: {why}", file.display()))
                .with_hint(format!("rm {}, then: guildnet kubeconfig write", file.display()))
        })
    }

    /// Notes what a file holds now.
    pub(super) fn note(&mut self, file: &Path, all: Option<bool>, clusters: BTreeSet<ClusterId>) {
        match self.files.iter_mut().find(|known| known.file == file) {
            Some(known) => {
                known.all = all.unwrap_or(known.all);
                known.clusters = clusters;
            }
            None if clusters.is_empty() => {}
            None => {
                self.files.push(Remembered { file: file.to_owned(), all: all.unwrap_or_default(), clusters });
            }
        }
    }

    /// Writes it down if it is not what is there.
    pub(super) fn keep(&self, home: &Path) -> Result<(), HostError> {
        if Self::read(home).is_ok_and(|there| there == *self) {
            return Ok(());
        }
        let content = serde_json::to_vec_pretty(self).map_err(|why| {
            HostError::new(Class::Usage, format!("a kubeconfig's path can't be remembered: {why}"))
                .with_hint("use paths that are UTF-8")
        })?;
        private::make_dir(home).explained()?;
        private::write(&home.join(FILE), &content).explained()
    }
}
