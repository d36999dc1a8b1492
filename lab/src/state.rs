//! What a lab has decided and started, on disk before it happens; and the lock that keeps two commands apart.
//!
//! The plan is written before the first resource is made and names everything that may exist, so `down` works after a
//! `kill -9` at any moment. Process ids are only for looking: the sweep goes by cgroup.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Mutex,
};

use serde::{Deserialize, Serialize};

use crate::{
    error::LabError,
    files,
    peers::Versions,
    plan::{Instance, Nat, Plan},
    talk::Talk,
};

/// The contents of `state.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Names and addresses.
    pub plan: Plan,
    /// Which versions it runs, where there is a choice.
    #[serde(default)]
    pub versions: Versions,
    /// Where the peers' programs are: peer to its `bin` folder.
    #[serde(default)]
    pub peers: BTreeMap<String, PathBuf>,
    /// Clusters whose door is shut; a door that is not here is open.
    #[serde(default)]
    pub shut_doors: Vec<String>,
    /// Clusters and client hosts whose gateway drops UDP.
    #[serde(default)]
    pub udp_blocked: Vec<String>,
    /// Routers of light clusters that were started once, by process.
    #[serde(default)]
    pub routers: Vec<String>,
    /// Those of them that are cut off from everything outside their cluster.
    #[serde(default)]
    pub cut: Vec<String>,
    /// Those of them that are cut off from their cluster.
    #[serde(default)]
    pub detached: Vec<String>,
    /// What gateways do to addresses, where it is not the usual: by cluster or host.
    #[serde(default)]
    pub nat: BTreeMap<String, Nat>,
    /// Whether standalone relays run beside Headscale's own.
    #[serde(default)]
    pub relays: bool,
    /// Whether this lab made the folder of named namespaces: then `down` removes it, if nobody else uses it by then.
    #[serde(default)]
    pub made_netns_dir: bool,
    /// What was started: name to process.
    #[serde(default)]
    pub processes: BTreeMap<String, Running>,
}

/// A process that was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Running {
    /// Process id; also the id of its session and process group.
    pub pid: i32,
    /// Start time in clock ticks since boot (`/proc/PID/stat`, field 22): tells it from a later process of the same id.
    pub started: u64,
}

impl State {
    /// A lab that has a plan and nothing else.
    #[must_use]
    pub fn new(plan: Plan) -> Self {
        Self {
            plan,
            versions: Versions::default(),
            peers: BTreeMap::new(),
            shut_doors: Vec::new(),
            udp_blocked: Vec::new(),
            routers: Vec::new(),
            cut: Vec::new(),
            detached: Vec::new(),
            nat: BTreeMap::new(),
            relays: false,
            made_netns_dir: false,
            processes: BTreeMap::new(),
        }
    }

    /// What the gateway of a cluster or a host does to addresses.
    #[must_use]
    pub fn nat(&self, name: &str) -> Nat {
        self.nat.get(name).copied().unwrap_or_default()
    }

    /// Reads the state of an instance; `None` if it has none.
    ///
    /// # Errors
    /// If the file can't be read or understood.
    pub fn load(instance: &Instance) -> Result<Option<Self>, LabError> {
        let path = path(instance);
        match fs::read(&path) {
            Ok(bytes) => {
                serde_json::from_slice(&bytes).map(Some).map_err(|why| LabError::State { path, why: why.to_string() })
            }
            Err(why) if why.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(why) => Err(LabError::Io { what: format!("cannot read {}", path.display()), source: why }),
        }
    }
}

fn path(instance: &Instance) -> PathBuf {
    instance.run_dir().join("state.json")
}

/// The state in memory and on disk, the same at every moment; shared by the threads of one command.
#[derive(Debug)]
pub(crate) struct StateFile {
    path: PathBuf,
    held: Mutex<State>,
}

impl StateFile {
    /// Takes the state over and writes it.
    pub(crate) fn create(state: State) -> Result<Self, LabError> {
        let file = Self { path: path(&state.plan.instance), held: Mutex::new(state) };
        file.update(|_| ())?;
        Ok(file)
    }

    /// A copy of the state.
    pub(crate) fn get(&self) -> State {
        self.lock().clone()
    }

    /// Changes the state and writes it.
    pub(crate) fn update<T>(&self, change: impl FnOnce(&mut State) -> T) -> Result<T, LabError> {
        let mut held = self.lock();
        let result = change(&mut held);
        let text = serde_json::to_vec_pretty(&*held).expect("plain data");
        files::write(&self.path, text, 0o600)?;
        Ok(result)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.held.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// An instance, held by this command alone until dropped. Ends with the process, however it ends.
#[derive(Debug)]
pub(crate) struct Lock(#[expect(dead_code, reason = "held, not used: closing it lets go")] File);

impl Lock {
    /// Waits until no other command works on the instance; makes its folder.
    pub(crate) fn instance(instance: &Instance, talk: Option<&Talk>) -> Result<Self, LabError> {
        files::folder(&root(), 0o711)?;
        Self::folder(&instance.run_dir(), talk)
    }

    /// Waits for a folder of this machine's labs: the lock is on the folder itself, so it leaves no file behind.
    pub(crate) fn folder(path: &Path, talk: Option<&Talk>) -> Result<Self, LabError> {
        let failed = || LabError::io(format!("cannot lock {}", path.display()));
        loop {
            if !path.exists() {
                files::folder(path, 0o711)?;
            }
            let file = File::open(path).map_err(failed())?;
            match file.try_lock() {
                Ok(()) => {}
                Err(fs::TryLockError::WouldBlock) => {
                    if let Some(talk) = talk {
                        talk.say("lab", format!("another command works on {}: waiting", path.display()));
                    }
                    file.lock().map_err(failed())?;
                }
                Err(fs::TryLockError::Error(why)) => return Err(failed()(why)),
            }
            // The one before us may have been `down`: then this folder is no longer there, or another one.
            let held = file.metadata().map_err(failed())?;
            if fs::metadata(path).is_ok_and(|there| (there.dev(), there.ino()) == (held.dev(), held.ino())) {
                return Ok(Self(file));
            }
        }
    }
}

/// The folder of all instances.
pub(crate) fn root() -> PathBuf {
    PathBuf::from("/run/guildnet-lab")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_survives_the_disk() {
        let plan = Plan::sample(&["a"]);
        let mut state = State::new(plan);
        state.shut_doors.push("a".into());
        state.processes.insert("a/etcd".into(), Running { pid: 7, started: 99 });
        let text = serde_json::to_string(&state).expect("plain data");
        assert_eq!(serde_json::from_str::<State>(&text).expect("the same"), state);
    }

    #[test]
    fn a_held_folder_is_locked_for_others_until_it_is_let_go() {
        let dir = tempfile::tempdir().expect("a folder");
        let other = File::open(dir.path()).expect("it is there");
        let held = Lock::folder(dir.path(), None).expect("free");
        assert!(matches!(other.try_lock(), Err(fs::TryLockError::WouldBlock)));
        drop(held);
        assert!(other.try_lock().is_ok());
    }
}
