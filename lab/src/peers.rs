//! Builds the peers (Headscale, Tailscale, Kubernetes, etcd, CoreDNS, the pods' workload) and the clients that the tests
//! run (Helm, a client-go informer) from their Go modules.
//!
//! One module for each family, in `peers/`: they need different versions of the same dependencies. Each goes into the
//! cache under its version and a hash of its recipe; what is there is not built again. A build ends with a rename.
//! Which there are: `recipes.rs`.

mod recipes;

use std::{
    collections::BTreeMap,
    env,
    fs::{self, File},
    path::{Path, PathBuf},
    process::Stdio,
    time::Instant,
};

use sha2::{Digest, Sha256};

use self::recipes::Recipe;
pub use self::recipes::{Versions, WantedVersions};
use crate::{
    command::{command, log_tail},
    error::LabError,
    files,
    state::Lock,
    talk::Talk,
};

/// Prefix of folders in which a build is under way; with nobody building, a killed build's remains.
const WORK: &str = ".building-";

/// Where the peers' programs are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Peers(pub(crate) BTreeMap<String, PathBuf>);

impl Peers {
    /// A program of a family.
    pub(crate) fn program(&self, peer: &str, program: &str) -> PathBuf {
        self.bin(peer).join(program)
    }

    /// The folder of a family's programs.
    pub(crate) fn bin(&self, peer: &str) -> &Path {
        self.0.get(peer).map_or(Path::new(""), PathBuf::as_path)
    }
}

/// The cache: `GUILDNET_LAB_CACHE`, else `/var/cache/guildnet-lab`.
pub(crate) fn cache_dir() -> PathBuf {
    env::var_os("GUILDNET_LAB_CACHE").filter(|v| !v.is_empty()).map_or("/var/cache/guildnet-lab".into(), PathBuf::from)
}

/// Builds what is missing of these versions.
///
/// # Errors
/// [`LabError::Missing`] if there is no Go; [`LabError::Build`] with the end of the build's log.
pub(crate) fn build(versions: &Versions, talk: &Talk) -> Result<Peers, LabError> {
    let recipes = versions.recipes();
    let cache = cache_dir();
    files::folder(&cache, 0o755)?;
    let mut peers = BTreeMap::new();
    let mut lock = None;
    let missing = recipes.iter().filter(|recipe| !cache.join(recipe.folder()).exists()).count();
    for recipe in &recipes {
        let folder = cache.join(recipe.folder());
        if !folder.exists() {
            if lock.is_none() {
                lock = Some(Lock::folder(&cache, Some(talk))?);
                files::sweep(&cache, WORK)?;
                talk.say("build", format!("{missing} of {} peers to build into {}", recipes.len(), cache.display()));
            }
            // Another command may have built it while this one waited.
            if !folder.exists() {
                recipe.build(talk, &cache, &folder)?;
            }
        }
        peers.insert(recipe.name.to_owned(), folder.join("bin"));
    }
    Ok(Peers(peers))
}

impl Recipe {
    fn folder(&self) -> String {
        let mut hash = Sha256::new();
        let mut add = |text: &str| {
            hash.update(text);
            hash.update([0]);
        };
        self.files.iter().for_each(|(name, text)| {
            add(name);
            add(text);
        });
        self.packages.iter().for_each(|package| add(package));
        add(&self.ldflags());
        add(env::consts::ARCH);
        format!("{}-{}-{}", self.name, self.version, hex(&hash.finalize()[..5]))
    }

    fn ldflags(&self) -> String {
        let stamps: Vec<String> = self.stamps.iter().map(|(name, value)| format!("-X {name}={value}")).collect();
        format!("-s -w {}", stamps.join(" "))
    }

    fn build(&self, talk: &Talk, cache: &Path, folder: &Path) -> Result<(), LabError> {
        let who = format!("build {} {}", self.name, self.version);
        talk.say(&who, format!("{} programs; minutes when nothing is cached", self.packages.len()));
        let begin = Instant::now();
        // In the cache itself, so that the rename at the end stays on one file system.
        let work = tempfile::Builder::new()
            .prefix(WORK)
            .tempdir_in(cache)
            .map_err(LabError::io(format!("cannot make a folder in {}", cache.display())))?;
        for (name, text) in self.files {
            files::write(&work.path().join(name), text, 0o644)?;
        }
        let made = work.path().join("made");
        files::folder(&made.join("bin"), 0o755)?;
        let log = cache.join(format!("{}.log", self.name));
        let open = || File::create(&log).map_err(LabError::io(format!("cannot write {}", log.display())));
        let output = open()?;
        let mut go = command(go()?);
        if let Some(path) = env::var_os("PATH") {
            go.env("PATH", path);
        }
        let status = go
            .current_dir(work.path())
            .env("CGO_ENABLED", "0")
            .env("GOWORK", "off")
            .args(["build", "-mod=readonly", "-trimpath", "-ldflags", &self.ldflags(), "-o"])
            .arg(format!("{}/", made.join("bin").display()))
            .args(self.packages)
            .stdout(Stdio::from(output.try_clone().map_err(LabError::io("cannot share the log"))?))
            .stderr(Stdio::from(output))
            .status()
            .map_err(LabError::io("cannot start go"))?;
        if !status.success() {
            let peer = format!("{} {}", self.name, self.version);
            return Err(LabError::Build { peer, status: status.to_string(), tail: log_tail(&log) });
        }
        if let Some((from, to)) = self.rename {
            let bin = made.join("bin");
            fs::rename(bin.join(from), bin.join(to)).map_err(LabError::io(format!("cannot rename {from}")))?;
        }
        fs::rename(&made, folder).map_err(LabError::io(format!("cannot make {}", folder.display())))?;
        files::remove(&log)?;
        talk.say(&who, format!("built in {:.0} s", begin.elapsed().as_secs_f64()));
        Ok(())
    }
}

/// The Go compiler on the user's path, or where its own installer puts it.
fn go() -> Result<PathBuf, LabError> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/local/go/bin".into()])
        .map(|dir| dir.join("go"))
        .find(|go| go.is_file())
        .ok_or_else(|| LabError::Missing {
            what: "no go command: the lab builds its peers from source".into(),
            hint: "install Go 1.26 or later (https://go.dev/dl) and put it on PATH".into(),
        })
}

/// Bytes as lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_names_version_and_recipe() {
        let folders: Vec<String> = Versions::default().recipes().into_iter().map(Recipe::folder).collect();
        assert!(folders[0].starts_with("headscale-0.29.2-"), "{}", folders[0]);
        let other = Recipe { stamps: &[("a", "b")], ..recipes::RECIPES[0] };
        assert_ne!(other.folder(), folders[0], "other flags are another build");
    }
}
