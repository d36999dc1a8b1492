//! `guildnet trust`: the person's own browsers trust `host-ca`, or do so no longer. No root, no store of the machine's.
//!
//! On Linux browsers keep what they trust in NSS databases: Chromium's `~/.pki/nssdb`, and one in each profile of Firefox. They are
//! changed by `certutil`; on macOS the login keychain by `security`. What was put where is written down in the home folder,
//! so that exactly that is taken away again, also after a new authority was made; and before anything is taken away, the store
//! is asked whether it is what was put there.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::{Output, Stdio},
    time::Duration,
};

use guildnet_model::Class;
use guildnet_store::private;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::{process::Command, time::timeout};

use crate::{HostError, Progress, Settings, certs, error::Explained as _};

/// What was put where.
const RECORD: &str = "trusted.json";
/// Where Chromium and what is made from it look, below the person's folder: in the first that is there. If none is, the first is
/// made: they take it up. To make it beside the second would hide that one from them.
const CHROMIUM: [&str; 2] = [".pki/nssdb", ".local/share/pki/nssdb"];
/// Where packages with a folder of their own keep Chromium's; `*` is any one folder.
const CHROMIUM_PACKED: [&str; 1] = ["snap/chromium/*/.pki/nssdb"];
/// Where Firefox keeps its profiles: by itself, as a snap, as a flatpak.
const FIREFOX: [&str; 4] = [
    ".mozilla/firefox/*",
    ".config/mozilla/firefox/*",
    "snap/firefox/common/.mozilla/firefox/*",
    ".var/app/org.mozilla.firefox/.mozilla/firefox/*",
];
/// The file by which an NSS database is known.
const NSS_FILE: &str = "cert9.db";
/// How long one call of a program may take: it reads and writes one small file. A person may have to allow it on macOS.
const CALL_TIME: Duration = Duration::from_secs(if cfg!(target_os = "macos") { 120 } else { 20 });

/// One store, and what became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TrustStore {
    /// Its folder or file.
    pub store: PathBuf,
    /// Whether it was changed.
    pub changed: bool,
}

/// What [`crate::trust_install`] and [`crate::trust_remove`] did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Trusted {
    /// The authority's name, as browsers list it.
    pub authority: String,
    /// The stores that were looked at.
    pub stores: Vec<TrustStore>,
}

/// One entry in one store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    store: PathBuf,
    name: String,
    sha256: String,
}

/// An authority's certificate, as stores know it.
struct Authority {
    file: PathBuf,
    name: String,
    sha256: String,
}

/// Whether something was put into a store and not taken away again.
pub fn trusted(home: &Path) -> bool {
    recorded(home).is_ok_and(|entries| !entries.is_empty())
}

/// See [`crate::trust_install`].
pub(crate) async fn trust_install(
    settings: &Settings,
    person_dir: &Path,
    progress: &dyn Progress,
) -> Result<Trusted, HostError> {
    let home = &settings.home;
    certs::ensure(home)?;
    let authority = authority(home)?.ok_or_else(|| HostError::new(Class::Failed, "the authority vanished"))?;
    let mut entries = recorded(home)?;
    let mut changed = Vec::new();
    // Of an authority that is no more.
    for old in entries.clone().into_iter().filter(|entry| entry.sha256 != authority.sha256) {
        if take_away(&old).await? {
            progress.step(None, &format!("{}: {} is trusted no longer", old.store.display(), old.name));
            changed.push(old.store.clone());
        }
        entries.retain(|entry| *entry != old);
        record(home, &entries)?;
    }
    let mut stores = Vec::new();
    for store in places(person_dir, true)? {
        let entry = Entry { store: store.clone(), name: authority.name.clone(), sha256: authority.sha256.clone() };
        let new = found(&entry).await?.as_deref() != Some(entry.sha256.as_str());
        // Written down first: what is interrupted can be taken away.
        if !entries.contains(&entry) {
            entries.push(entry.clone());
            record(home, &entries)?;
        }
        if new {
            put(&entry, &authority.file).await?;
            if found(&entry).await?.as_deref() != Some(entry.sha256.as_str()) {
                let said =
                    format!("{}: {} is not there under this name after it was put there", store.display(), entry.name);
                return Err(HostError::new(Class::Conflict, said).with_hint(format!(
                    "it may be there under another name, see: certutil -L -d sql:{}",
                    store.display()
                )));
            }
        }
        stores.push(TrustStore { changed: new || changed.contains(&store), store });
    }
    Ok(Trusted { authority: authority.name, stores })
}

/// See [`crate::trust_remove`].
pub(crate) async fn trust_remove(settings: &Settings, person_dir: &Path) -> Result<Trusted, HostError> {
    let home = &settings.home;
    let mut entries = recorded(home)?;
    let authority = authority(home)?;
    // Also where the record was lost: by what the authority of now is.
    if let Some(authority) = &authority {
        for store in places(person_dir, false)? {
            let entry = Entry { store, name: authority.name.clone(), sha256: authority.sha256.clone() };
            if !entries.contains(&entry) {
                entries.push(entry);
            }
        }
    }
    let mut stores: Vec<TrustStore> = Vec::new();
    while let Some(entry) = entries.first().cloned() {
        let changed = take_away(&entry).await?;
        match stores.iter_mut().find(|seen| seen.store == entry.store) {
            Some(seen) => seen.changed |= changed,
            None => stores.push(TrustStore { store: entry.store, changed }),
        }
        entries.remove(0);
        record(home, &entries)?;
    }
    Ok(Trusted { authority: authority.map(|a| a.name).unwrap_or_default(), stores })
}

fn authority(home: &Path) -> Result<Option<Authority>, HostError> {
    let Some(der) = certs::authority(home)? else { return Ok(None) };
    let name = x509_parser::parse_x509_certificate(&der)
        .ok()
        .and_then(|(_, cert)| Some(cert.subject().iter_common_name().next()?.as_str().ok()?.to_owned()));
    let file = certs::authority_file(home);
    let name = name.ok_or_else(|| HostError::new(Class::Failed, format!("{} names nobody", file.display())))?;
    Ok(Some(Authority { file, name, sha256: digest(&der) }))
}

fn digest(der: &[u8]) -> String {
    Sha256::digest(der).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn recorded(home: &Path) -> Result<Vec<Entry>, HostError> {
    let file = home.join(RECORD);
    let Some(text) = private::read(&file).explained()? else { return Ok(Vec::new()) };
    serde_json::from_slice(&text).map_err(|why| {
        HostError::new(Class::Failed, format!("{} can't be read: {why}", file.display()))
            .with_hint(format!("remove {}, then run: guildnet trust install", file.display()))
    })
}

fn record(home: &Path, entries: &[Entry]) -> Result<(), HostError> {
    let file = home.join(RECORD);
    if entries.is_empty() {
        return match fs::remove_file(&file) {
            Err(why) if why.kind() != io::ErrorKind::NotFound => {
                Err(HostError::new(Class::Failed, format!("{}: {why}", file.display())))
            }
            _ => Ok(()),
        };
    }
    let text = serde_json::to_vec_pretty(entries).expect("paths and texts that were JSON before");
    private::write(&file, &text).explained()
}

/// The stores of the person. `wanted`: also the one that is still to be made.
fn places(person_dir: &Path, wanted: bool) -> Result<Vec<PathBuf>, HostError> {
    if cfg!(target_os = "macos") {
        return Ok(vec![person_dir.join("Library/Keychains/login.keychain-db")]);
    }
    let is_store = |folder: &PathBuf| folder.join(NSS_FILE).is_file();
    let mut places: Vec<PathBuf> =
        CHROMIUM.map(|folder| person_dir.join(folder)).into_iter().filter(is_store).collect();
    if wanted && places.is_empty() {
        places.push(person_dir.join(CHROMIUM[0]));
    }
    let packed = CHROMIUM_PACKED.iter().chain(&FIREFOX).flat_map(|pattern| matching(person_dir, pattern));
    places.extend(packed.filter(is_store));
    Ok(places)
}

/// Folders below another by a pattern with one `*`, in their order. A link among them is the same folder by another name.
fn matching(below: &Path, pattern: &str) -> Vec<PathBuf> {
    let (before, after) = pattern.split_once('*').unwrap_or((pattern, ""));
    let folder = below.join(before);
    let mut found: Vec<PathBuf> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| after.split('/').filter(|part| !part.is_empty()).fold(entry.path(), |path, part| path.join(part)))
        .collect();
    found.sort();
    found
}

/// The digest of what a store holds under the entry's name.
async fn found(entry: &Entry) -> Result<Option<String>, HostError> {
    if !entry.store.exists() {
        return Ok(None);
    }
    if cfg!(target_os = "macos") {
        let said = run("security", &["find-certificate", "-a", "-Z", "-c", &entry.name, &path(&entry.store)]).await?;
        let text = String::from_utf8_lossy(&said.stdout).to_lowercase();
        return Ok(text.contains(&entry.sha256).then(|| entry.sha256.clone()));
    }
    // 255: there is none of that name.
    let said = run("certutil", &["-L", "-d", &nss(&entry.store), "-n", &entry.name, "-r"]).await?;
    Ok(said.status.success().then(|| digest(&said.stdout)))
}

async fn put(entry: &Entry, file: &Path) -> Result<(), HostError> {
    if cfg!(target_os = "macos") {
        let keychain = path(&entry.store);
        return done(
            entry,
            run("security", &["add-trusted-cert", "-r", "trustRoot", "-p", "ssl", "-k", &keychain, &path(file)])
                .await?,
        );
    }
    if !entry.store.join(NSS_FILE).is_file() {
        private_dir(&entry.store)?;
        done(entry, run("certutil", &["-N", "-d", &nss(&entry.store), "--empty-password"]).await?)?;
    }
    // C: trusted to vouch for servers, and for nothing else.
    done(
        entry,
        run("certutil", &["-A", "-d", &nss(&entry.store), "-t", "C,,", "-n", &entry.name, "-a", "-i", &path(file)])
            .await?,
    )
}

/// Takes an entry away if the store has it; another certificate of the same name is left alone.
async fn take_away(entry: &Entry) -> Result<bool, HostError> {
    if found(entry).await?.as_deref() != Some(entry.sha256.as_str()) {
        return Ok(false);
    }
    if cfg!(target_os = "macos") {
        done(entry, run("security", &["delete-certificate", "-Z", &entry.sha256, "-t", &path(&entry.store)]).await?)?;
    } else {
        done(entry, run("certutil", &["-D", "-d", &nss(&entry.store), "-n", &entry.name]).await?)?;
    }
    Ok(true)
}

/// Makes the folders of a store that is not there yet, for the person alone; those that are there stay as they are.
fn private_dir(folder: &Path) -> Result<(), HostError> {
    use std::os::unix::fs::DirBuilderExt as _;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(|why| {
        HostError::new(Class::Precondition, format!("{}: {why}", folder.display()))
            .with_hint("browsers of this user keep what they trust there: make it usable")
    })
}

fn nss(store: &Path) -> String {
    format!("sql:{}", store.display())
}

fn path(path: &Path) -> String {
    path.display().to_string()
}

fn done(entry: &Entry, said: Output) -> Result<(), HostError> {
    if said.status.success() {
        return Ok(());
    }
    let why = String::from_utf8_lossy(&said.stderr).split_whitespace().collect::<Vec<_>>().join(" ");
    let message = format!("{}: {} ({})", entry.store.display(), why, said.status);
    Err(HostError::new(Class::Failed, message)
        .with_hint("close the browsers that use this store, then run the command again; what was done stays done"))
}

async fn run(program: &str, args: &[&str]) -> Result<Output, HostError> {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).kill_on_drop(true);
    match timeout(CALL_TIME, command.output()).await {
        Ok(Ok(output)) => Ok(output),
        Ok(Err(why)) if why.kind() == io::ErrorKind::NotFound => Err(HostError::new(
            Class::Precondition,
            format!("{program} is not installed: it changes what browsers trust"),
        )
        .with_hint(
            "install it: libnss3-tools (Debian, Ubuntu), nss-tools (Fedora), mozilla-nss-tools (openSUSE), nss (Arch)",
        )),
        Ok(Err(why)) => Err(HostError::new(Class::Failed, format!("{program}: {why}"))),
        Err(_) => Err(HostError::new(Class::Failed, format!("{program} did not end within {CALL_TIME:?}"))
            .with_hint("a store with a password can't be changed from here: do it in the browser's settings")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stores_of_a_person_are_chromiums_and_each_profile_of_firefox() {
        let person = tempfile::tempdir().expect("tempdir");
        let make = |folder: &str, store: bool| {
            fs::create_dir_all(person.path().join(folder)).expect("made");
            if store {
                fs::write(person.path().join(folder).join(NSS_FILE), "").expect("written");
            }
        };
        let places = |wanted| -> Vec<String> {
            let found = places(person.path(), wanted).expect("found");
            found.iter().map(|p| p.strip_prefix(person.path()).expect("below").display().to_string()).collect()
        };
        assert!(places(false).is_empty());
        assert_eq!(places(true), [".pki/nssdb"], "the one that is to be made");
        make(".mozilla/firefox/b.default", true);
        make(".mozilla/firefox/a.work", true);
        make(".mozilla/firefox/Crash Reports", false);
        make("snap/firefox/common/.mozilla/firefox/s", true);
        make("snap/chromium/123/.pki/nssdb", true);
        std::os::unix::fs::symlink("123", person.path().join("snap/chromium/current")).expect("linked");
        let packed = [
            "snap/chromium/123/.pki/nssdb",
            ".mozilla/firefox/a.work",
            ".mozilla/firefox/b.default",
            "snap/firefox/common/.mozilla/firefox/s",
        ];
        assert_eq!(places(false), packed);
        assert_eq!(places(true), [&[".pki/nssdb"][..], &packed].concat());
        make(".local/share/pki/nssdb", true);
        assert_eq!(places(true), [&[".local/share/pki/nssdb"][..], &packed].concat(), "none is made beside it");
    }

    #[test]
    fn what_was_put_where_is_remembered_until_it_is_gone() {
        let home = tempfile::tempdir().expect("tempdir");
        private::make_dir(home.path()).expect("private");
        let entry = Entry { store: "/x".into(), name: "n".into(), sha256: "00".into() };
        assert!(!trusted(home.path()));
        record(home.path(), std::slice::from_ref(&entry)).expect("written");
        assert!(trusted(home.path()));
        assert_eq!(recorded(home.path()).expect("read"), [entry]);
        record(home.path(), &[]).expect("removed");
        assert!(!trusted(home.path()) && !home.path().join(RECORD).exists());
        record(home.path(), &[]).expect("nothing to remove");
    }
}
