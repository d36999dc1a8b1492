//! `<home>/headscale/`: everything of the managed Headscale, and the two notes that GuildNet keeps there.
//!
//! `choices.json` is what the person asked for, and is written by commands; `started.json` is what the server was last
//! started with, and is written by its supervisor. Neither holds a secret.

use std::path::{Path, PathBuf};

use guildnet_headscale::managed::{CONFIG_FILE, DATABASE_FILE, KEY_FILES};
use guildnet_model::Class;
use guildnet_store::private;
use jiff::Timestamp;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use url::Url;

use super::{
    ManagedSettings,
    backup::Backup,
    certs::{AUTHORITY_FILE, IDENTITY_FILE, TRUST_FILE},
    plan::Started,
};
use crate::{
    HostError, Settings,
    daemon::{self, Place},
    error::Explained as _,
};

const NAME: &str = "headscale";
const CHOICES: &str = "choices.json";
const STARTED: &str = "started.json";
const LAST_BACKUP: &str = "last-backup.json";

/// What a backup holds beside the database, if it is there.
pub(super) const KEPT: [&str; 8] =
    [CONFIG_FILE, KEY_FILES[0], KEY_FILES[1], AUTHORITY_FILE, TRUST_FILE, IDENTITY_FILE, CHOICES, STARTED];

/// What the person asked for, kept for the next time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Choices {
    /// Program, addresses, ports, as far as they were given.
    pub(super) settings: ManagedSettings,
    /// Whether it runs because `guildnet up` needed it: then `guildnet down` ends it.
    pub(super) started_by_up: bool,
    /// The address by which the store knows it: what makes a server in the store this one.
    pub(super) url: Option<Url>,
    /// When the API key in the store ends.
    pub(super) api_key_ends: Option<Timestamp>,
}

/// The folder of one home.
#[derive(Clone, Debug)]
pub(super) struct Folder(PathBuf);

impl Folder {
    pub(super) fn of(settings: &Settings) -> Result<Self, HostError> {
        // The server is told absolute paths, and so is its supervisor, which works elsewhere.
        let home =
            std::path::absolute(&settings.home).map_err(private::PrivateError::io(&settings.home)).explained()?;
        Ok(Self(home.join(NAME)))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// Makes it, closed to others.
    pub(super) fn make(&self) -> Result<(), HostError> {
        private::make_dir(&self.0).explained()
    }

    /// The supervisor's place.
    pub(super) fn daemon(&self) -> Place<'_> {
        daemon::HEADSCALE.of(&self.0)
    }

    pub(super) fn database(&self) -> PathBuf {
        self.0.join(DATABASE_FILE)
    }

    pub(super) fn backups(&self) -> PathBuf {
        self.0.join("backups")
    }

    pub(super) fn identity(&self) -> PathBuf {
        self.0.join(IDENTITY_FILE)
    }

    /// The authority's certificate, once it was made.
    pub(super) fn trusted(&self) -> Result<Option<String>, HostError> {
        let pem = private::read(&self.0.join(TRUST_FILE)).explained()?;
        Ok(pem.map(|pem| String::from_utf8_lossy(&pem).into_owned()))
    }

    pub(super) fn choices(&self) -> Result<Choices, HostError> {
        self.note(CHOICES).map(Option::unwrap_or_default)
    }

    pub(super) fn set_choices(&self, choices: &Choices) -> Result<(), HostError> {
        self.write(CHOICES, choices)
    }

    /// What it was started with last; `None` if it never was.
    pub(super) fn started(&self) -> Result<Option<Started>, HostError> {
        self.note(STARTED)
    }

    pub(super) fn set_started(&self, started: &Started) -> Result<(), HostError> {
        self.write(STARTED, started)
    }

    pub(super) fn last_backup(&self) -> Result<Option<Backup>, HostError> {
        self.note(LAST_BACKUP)
    }

    pub(super) fn set_last_backup(&self, backup: &Backup) -> Result<(), HostError> {
        self.write(LAST_BACKUP, backup)
    }

    fn note<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, HostError> {
        let file = self.0.join(name);
        let Some(text) = private::read(&file).explained()? else { return Ok(None) };
        serde_json::from_slice(&text).map(Some).map_err(|why| {
            HostError::new(Class::Failed, format!("{} is damaged: {why}", file.display()))
                .with_hint("remove it; what it held is found out or asked for again by: guildnet headscale up")
        })
    }

    fn write(&self, name: &str, note: &impl Serialize) -> Result<(), HostError> {
        let text = serde_json::to_vec_pretty(note).expect("notes have only names and numbers for keys");
        private::write(&self.0.join(name), &text).explained()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::managed::AddressChoice;

    #[test]
    fn what_was_chosen_is_read_back_and_nothing_is_the_default() {
        let home = tempfile::tempdir().expect("tempdir");
        let folder = Folder::of(&Settings::new(home.path().to_owned())).expect("a folder");
        assert_eq!(folder.choices().expect("none yet"), Choices::default());
        folder.make().expect("made");
        let choices = Choices {
            settings: ManagedSettings { address: Some(AddressChoice::Auto), ..ManagedSettings::default() },
            started_by_up: true,
            url: "https://192.168.1.20:8443".parse().ok(),
            api_key_ends: Timestamp::from_second(1_800_000_000).ok(),
        };
        folder.set_choices(&choices).expect("written");
        assert_eq!(folder.choices().expect("read"), choices);
        private::write(&folder.path().join(STARTED), b"{").expect("written");
        assert!(folder.started().expect_err("damaged").to_string().contains("started.json is damaged"));
    }
}
