//! The node's identity: its keys, and the folder that keeps them.
//!
//! Machine and node key are saved before they are shown to any server, so a crash never leaves a node behind that nobody
//! owns. A replacement for the node key is kept beside the old one until the server has accepted it. The disco key is
//! made anew at every start and never saved. When keys are replaced is decided in `control.rs`.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use guildnet_model::ConnectorError;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use ts_keys::{DiscoKeyPair, Export, ExportableKey, MachineKeyPair, NodeKeyPair};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::netmap::Key;

/// The identity's file inside the state folder.
const FILE: &str = "identity.json";
/// Where a new version of the file is written before it takes the old one's place.
const NEW_FILE: &str = "identity.json.new";
/// Locked while a process uses the identity. Two processes with one node key would steal each other's packets.
const LOCK: &str = "identity.lock";
/// The only format so far.
const VERSION: u32 = 1;
/// No identity is larger; a file that is, is damaged. Bytes.
const MAX_FILE: u64 = 16 * 1024;

/// The file's content. Keys are in the text form of their own crate, `privkey:<hex>`.
#[derive(Clone, Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
#[serde(deny_unknown_fields)]
struct Saved {
    version: u32,
    machine_key: String,
    node_key: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    next_node_key: Option<String>,
    #[serde(default)]
    registered: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    home_relay: Option<u16>,
}

/// What can change while the process runs.
struct Current {
    next_node: Option<NodeKeyPair>,
    registered: bool,
    home_relay: Option<u16>,
    /// Never saved again.
    forgotten: bool,
}

/// The keys of one node: machine and node key from disk, a disco key of this run. Shared by control, relays and data side.
///
/// The folder stays locked until the identity is dropped.
pub(crate) struct Identity {
    machine: MachineKeyPair,
    disco: DiscoKeyPair,
    node: watch::Sender<Arc<NodeKeyPair>>,
    current: Mutex<Current>,
    /// `None` only in tests.
    dir: Option<PathBuf>,
    _lock: Option<File>,
}

impl Identity {
    /// Loads the identity kept in `dir`, or makes and saves a new one. Locks the folder against other processes.
    ///
    /// # Errors
    /// [`ConnectorError::State`] if the folder can't be made, read, written or locked, belongs to someone else or is open
    /// to others; [`ConnectorError::Damaged`] if the file is there but is no identity: it is never replaced by a new one,
    /// that would silently make another node.
    pub(crate) fn load_or_create(dir: &Path) -> Result<Self, ConnectorError> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|e| state(dir, &e))?;
        check_private(dir, &fs::metadata(dir).map_err(|e| state(dir, &e))?)?;
        let lock = lock(&dir.join(LOCK))?;
        let path = dir.join(FILE);
        let (saved, fresh) = match open_existing(&path)? {
            Some(file) => (read(&path, file)?, false),
            None => (new_identity(), true),
        };
        let identity = Self::from_saved(&saved, Some(dir.to_owned()), Some(lock))
            .map_err(|why| ConnectorError::Damaged { path, why })?;
        if fresh {
            identity.save()?;
        }
        Ok(identity)
    }

    /// An identity that is kept nowhere.
    #[cfg(test)]
    pub(crate) fn ephemeral() -> Self {
        Self::from_saved(&new_identity(), None, None).expect("a new identity is sound")
    }

    fn from_saved(saved: &Saved, dir: Option<PathBuf>, lock: Option<File>) -> Result<Self, String> {
        if saved.version != VERSION {
            return Err(format!("format {} is not known, only {VERSION}", saved.version));
        }
        // The causes are not passed on: they could show a piece of a key.
        let node = |text: &str| text.parse::<NodeKeyPair>().map_err(|_| "the node key is none".to_owned());
        let machine = saved.machine_key.parse().map_err(|_| "the machine key is none".to_owned())?;
        let current = Current {
            next_node: saved.next_node_key.as_deref().map(node).transpose()?,
            registered: saved.registered,
            home_relay: saved.home_relay,
            forgotten: false,
        };
        Ok(Self {
            machine,
            disco: DiscoKeyPair::random(),
            node: watch::Sender::new(Arc::new(node(&saved.node_key)?)),
            current: Mutex::new(current),
            dir,
            _lock: lock,
        })
    }

    /// The machine key pair: proves to the control server that this is the same installation.
    pub(crate) const fn machine(&self) -> &MachineKeyPair {
        &self.machine
    }

    /// The disco key pair of this run.
    pub(crate) const fn disco(&self) -> &DiscoKeyPair {
        &self.disco
    }

    /// The node key pair of now, which is also the WireGuard key. It is replaced when the server had removed or expired the
    /// node; relays and data side follow by [`Identity::watch_node`].
    pub(crate) fn node(&self) -> Arc<NodeKeyPair> {
        self.node.borrow().clone()
    }

    /// The public node key of now.
    pub(crate) fn node_key(&self) -> Key {
        public(&self.node())
    }

    /// The node key pair and its replacements.
    pub(crate) fn watch_node(&self) -> watch::Receiver<Arc<NodeKeyPair>> {
        self.node.subscribe()
    }

    /// Whether the server had accepted the node key of now.
    pub(crate) fn is_registered(&self) -> bool {
        self.current().registered
    }

    /// The home relay of the last run, so that the first map request can name it.
    pub(crate) fn home_relay(&self) -> Option<u16> {
        self.current().home_relay
    }

    /// The key that may replace the node key; made and saved if there is none yet. Blocks on the disk.
    pub(crate) fn next_node(&self) -> Result<NodeKeyPair, ConnectorError> {
        let next = self.current().next_node.get_or_insert_with(NodeKeyPair::random).clone();
        self.save()?;
        Ok(next)
    }

    /// Notes that the server has accepted `key`: the node key of now, or its replacement, which then takes its place.
    /// Blocks on the disk.
    pub(crate) fn accepted(&self, key: &NodeKeyPair) -> Result<(), ConnectorError> {
        let replaced = *self.node() != *key;
        {
            let mut current = self.current();
            if current.registered && !replaced && current.next_node.is_none() {
                return Ok(());
            }
            current.registered = true;
            current.next_node = None;
            if replaced {
                self.node.send_replace(Arc::new(key.clone()));
            }
        }
        self.save()
    }

    /// Keeps the home relay for the next run. Blocks on the disk if it is another one.
    pub(crate) fn keep_home_relay(&self, region: u16) -> Result<(), ConnectorError> {
        let before = self.current().home_relay.replace(region);
        if before == Some(region) { Ok(()) } else { self.save() }
    }

    /// Removes the file: who comes next makes another identity. Blocks on the disk.
    pub(crate) fn forget(&self) -> Result<(), ConnectorError> {
        let mut current = self.current();
        current.forgotten = true;
        let Some(dir) = &self.dir else { return Ok(()) };
        let path = dir.join(FILE);
        fs::remove_file(&path).and_then(|()| File::open(dir)?.sync_all()).map_err(|e| state(&path, &e))
    }

    fn current(&self) -> std::sync::MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes the file: a new one beside it, synced, then renamed over it, then the folder synced.
    fn save(&self) -> Result<(), ConnectorError> {
        let Some(dir) = &self.dir else { return Ok(()) };
        // Held while writing: two saves must not mix.
        let current = self.current();
        if current.forgotten {
            return Ok(());
        }
        let saved = Saved {
            version: VERSION,
            machine_key: self.machine.export().to_string(),
            node_key: self.node().export().to_string(),
            next_node_key: current.next_node.as_ref().map(|key| key.export().to_string()),
            registered: current.registered,
            home_relay: current.home_relay,
        };
        let text = Zeroizing::new(serde_json::to_vec_pretty(&saved).expect("strings and numbers are JSON"));
        let new = dir.join(NEW_FILE);
        let written = (|| {
            let mut options = OpenOptions::new();
            options.write(true).create(true).truncate(true).mode(0o600).custom_flags(no_follow());
            let mut file = options.open(&new)?;
            file.write_all(&text)?;
            file.sync_all()?;
            fs::rename(&new, dir.join(FILE))?;
            File::open(dir)?.sync_all()
        })();
        written.map_err(|e| {
            // Best effort: the leftover holds the same keys and is overwritten by the next save.
            let _ = fs::remove_file(&new);
            state(&dir.join(FILE), &e)
        })
    }
}

/// The public node key of the identity that `dir` keeps, `nodekey:<hex>`: by it the server's list names the node. `None` if
/// there is no identity. Only reads, also while a connector uses the identity.
///
/// # Errors
/// [`ConnectorError`] if the file can't be read, is open to others, or is damaged.
pub fn saved_node_key(dir: &Path) -> Result<Option<String>, ConnectorError> {
    let path = dir.join(FILE);
    let Some(file) = open_existing(&path)? else { return Ok(None) };
    let saved = read(&path, file)?;
    let damaged = |why: String| ConnectorError::Damaged { path: path.clone(), why };
    let identity = Identity::from_saved(&saved, None, None).map_err(damaged)?;
    Ok(Some(identity.node_key().node_text()))
}

/// The public half, as the data side names it.
pub(crate) fn public(pair: &NodeKeyPair) -> Key {
    Key(pair.public.to_x25519_dalek().to_bytes())
}

fn new_identity() -> Saved {
    let text = |key: Export<NodeKeyPair>| key.to_string();
    Saved {
        version: VERSION,
        machine_key: MachineKeyPair::random().export().to_string(),
        node_key: text(NodeKeyPair::random().export()),
        next_node_key: None,
        registered: false,
        home_relay: None,
    }
}

fn no_follow() -> i32 {
    i32::try_from(rustix::fs::OFlags::NOFOLLOW.bits()).expect("an open flag fits the kernel's int")
}

fn state(path: &Path, error: &io::Error) -> ConnectorError {
    ConnectorError::State { path: path.to_owned(), why: error.to_string() }
}

/// Refuses a folder or file that others can read or that someone else may change.
fn check_private(path: &Path, meta: &fs::Metadata) -> Result<(), ConnectorError> {
    let refuse = |why: String| Err(ConnectorError::State { path: path.to_owned(), why });
    let me = rustix::process::geteuid().as_raw();
    if meta.uid() != me {
        return refuse(format!("belongs to user {}, not to {me}", meta.uid()));
    }
    let mode = meta.mode() & 0o777;
    if mode & 0o077 != 0 {
        return refuse(format!("has mode {mode:04o}: others could read the node's keys; take their rights away"));
    }
    Ok(())
}

fn lock(path: &Path) -> Result<File, ConnectorError> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(0o600).custom_flags(no_follow());
    let file = options.open(path).map_err(|e| state(path, &e))?;
    flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|e| match e {
        rustix::io::Errno::WOULDBLOCK => {
            ConnectorError::State { path: path.to_owned(), why: "another connector uses this identity".into() }
        }
        other => state(path, &other.into()),
    })?;
    Ok(file)
}

fn open_existing(path: &Path) -> Result<Option<File>, ConnectorError> {
    match OpenOptions::new().read(true).custom_flags(no_follow()).open(path) {
        Ok(file) => Ok(Some(file)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(state(path, &e)),
    }
}

fn read(path: &Path, file: File) -> Result<Saved, ConnectorError> {
    check_private(path, &file.metadata().map_err(|e| state(path, &e))?)?;
    let mut text = Zeroizing::new(Vec::with_capacity(1024));
    file.take(MAX_FILE).read_to_end(&mut text).map_err(|e| state(path, &e))?;
    // Only the place is told: the cause could quote a piece of a key.
    serde_json::from_slice(&text).map_err(|e| ConnectorError::Damaged {
        path: path.to_owned(),
        why: format!("it is no identity (line {}, column {})", e.line(), e.column()),
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A folder of mode 0700 and the identity in it.
    fn home() -> (tempfile::TempDir, PathBuf) {
        let root = tempfile::tempdir().expect("a folder");
        let dir = root.path().join("node");
        (root, dir)
    }

    fn refused(dir: &Path) -> String {
        Identity::load_or_create(dir).err().expect("refused").to_string()
    }

    #[test]
    fn the_same_node_comes_back_with_a_new_disco_key() {
        let (_root, dir) = home();
        let first = Identity::load_or_create(&dir).expect("made");
        let (node, machine, disco) = (first.node_key(), first.machine().public, first.disco().public);
        assert!(!first.is_registered());
        first.accepted(&first.node()).expect("saved");
        first.keep_home_relay(999).expect("saved");
        drop(first);

        let again = Identity::load_or_create(&dir).expect("loaded");
        assert_eq!((again.node_key(), again.machine().public), (node, machine));
        assert!(again.is_registered());
        assert_eq!(again.home_relay(), Some(999));
        assert_ne!(again.disco().public, disco);
    }

    #[test]
    fn whose_node_it_is_can_be_read_beside_a_connector_that_uses_it() {
        let (_root, dir) = home();
        assert_eq!(saved_node_key(&dir).expect("no identity"), None);
        let identity = Identity::load_or_create(&dir).expect("made");
        assert_eq!(saved_node_key(&dir).expect("read"), Some(identity.node_key().node_text()));
        fs::write(dir.join(FILE), "{").expect("written");
        assert!(matches!(saved_node_key(&dir), Err(ConnectorError::Damaged { .. })));
    }

    #[test]
    fn nobody_else_can_read_it() {
        let (_root, dir) = home();
        let _identity = Identity::load_or_create(&dir).expect("made");
        let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
        assert_eq!((mode(&dir), mode(&dir.join(FILE)), mode(&dir.join(LOCK))), (0o700, 0o600, 0o600));
    }

    #[test]
    fn what_others_can_read_is_refused() {
        let (_root, dir) = home();
        drop(Identity::load_or_create(&dir).expect("made"));
        fs::set_permissions(dir.join(FILE), fs::Permissions::from_mode(0o640)).expect("chmod");
        assert!(refused(&dir).contains("has mode 0640"), "{}", refused(&dir));
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).expect("chmod");
        assert!(refused(&dir).contains("has mode 0755"), "{}", refused(&dir));
    }

    #[test]
    fn a_damaged_file_is_refused_and_kept() {
        let (_root, dir) = home();
        drop(Identity::load_or_create(&dir).expect("made"));
        let path = dir.join(FILE);
        let good = fs::read_to_string(&path).expect("text");
        for bad in
            ["", "{", &good[..good.len() / 2], &good.replace("privkey:", "privkey:zz"), &good.replace(": 1", ": 9")]
        {
            fs::write(&path, bad).expect("written");
            let error = Identity::load_or_create(&dir).err().expect("refused");
            assert!(matches!(error, ConnectorError::Damaged { .. }), "{error}");
            assert!(!error.to_string().contains("privkey"), "{error}");
            assert_eq!(fs::read_to_string(&path).expect("text"), bad);
        }
    }

    #[test]
    fn two_users_of_one_identity_are_refused() {
        let (_root, dir) = home();
        let first = Identity::load_or_create(&dir).expect("made");
        assert!(refused(&dir).contains("another connector uses this identity"));
        drop(first);
        assert!(Identity::load_or_create(&dir).is_ok());
    }

    #[test]
    fn a_replacement_is_saved_before_use_and_takes_over_when_accepted() {
        let (_root, dir) = home();
        let identity = Identity::load_or_create(&dir).expect("made");
        let old = identity.node_key();
        let next = identity.next_node().expect("saved");
        drop(identity);

        let identity = Identity::load_or_create(&dir).expect("loaded");
        assert_eq!(identity.node_key(), old, "not accepted yet");
        assert_eq!(identity.next_node().expect("saved").public, next.public, "a retry shows the same key");
        let mut watched = identity.watch_node();
        identity.accepted(&next).expect("saved");
        assert!(watched.has_changed().expect("alive"));
        assert_eq!(watched.borrow_and_update().public, next.public);
        drop(identity);

        assert_eq!(Identity::load_or_create(&dir).expect("loaded").node_key(), public(&next));
    }

    #[test]
    fn who_comes_after_a_forgotten_identity_is_another_node() {
        let (_root, dir) = home();
        let first = Identity::load_or_create(&dir).expect("made");
        first.forget().expect("removed");
        first.keep_home_relay(7).expect("no longer saved");
        assert_eq!(saved_node_key(&dir).expect("no identity"), None);
        let node = first.node_key();
        drop(first);
        assert_ne!(Identity::load_or_create(&dir).expect("made anew").node_key(), node);
    }

    #[test]
    fn a_full_disk_leaves_the_old_identity() {
        let (_root, dir) = home();
        let identity = Identity::load_or_create(&dir).expect("made");
        let before = fs::read(dir.join(FILE)).expect("text");
        // A folder in the new file's place makes writing fail, whoever runs the test.
        fs::create_dir(dir.join(NEW_FILE)).expect("made");
        assert!(identity.keep_home_relay(7).is_err());
        assert_eq!(fs::read(dir.join(FILE)).expect("text"), before);
    }
}
