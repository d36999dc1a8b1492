//! Builds the peers (Headscale, Tailscale, Kubernetes, etcd, CoreDNS, the pods' workload) from their Go modules.
//!
//! One module for each family, in `peers/`: they need different versions of the same dependencies. Each goes into the
//! cache under its version and a hash of its recipe; what is there is not built again. A build ends with a rename.

use std::{
    collections::BTreeMap,
    env,
    fs::{self, File},
    path::{Path, PathBuf},
    process::Stdio,
    time::Instant,
};

use sha2::{Digest, Sha256};

use crate::{
    command::{command, log_tail},
    error::LabError,
    files,
    state::Lock,
    talk::Talk,
};

/// How to build one family.
#[derive(Debug)]
struct Recipe {
    name: &'static str,
    version: &'static str,
    /// Files of the module, by name.
    files: &'static [(&'static str, &'static str)],
    packages: &'static [&'static str],
    /// Variables that the linker sets: how these programs learn their own version.
    stamps: &'static [(&'static str, &'static str)],
    /// A program that Go names after its folder, and its name here.
    rename: Option<(&'static str, &'static str)>,
}

macro_rules! module {
    ($dir:literal $(, $file:literal)*) => {
        &[$(($file, include_str!(concat!("../peers/", $dir, "/", $file)))),*]
    };
}

const RECIPES: [Recipe; 6] = [
    Recipe {
        name: "headscale",
        version: "0.29.2",
        files: module!("headscale", "go.mod", "go.sum"),
        packages: &["github.com/juanfont/headscale/cmd/headscale"],
        stamps: &[],
        rename: None,
    },
    Recipe {
        name: "tailscale",
        version: "1.98.10",
        files: module!("tailscale", "go.mod", "go.sum"),
        packages: &[
            "tailscale.com/cmd/tailscaled",
            "tailscale.com/cmd/tailscale",
            "tailscale.com/cmd/containerboot",
            "tailscale.com/cmd/derper",
        ],
        // Without them the programs call themselves "ERR-BuildInfo".
        stamps: &[("tailscale.com/version.longStamp", "1.98.10"), ("tailscale.com/version.shortStamp", "1.98.10")],
        rename: None,
    },
    Recipe {
        name: "etcd",
        version: "3.6.16",
        files: module!("etcd", "go.mod", "go.sum"),
        packages: &["go.etcd.io/etcd/server/v3"],
        stamps: &[],
        rename: Some(("server", "etcd")),
    },
    Recipe {
        name: "kubernetes",
        // The last minor that is at ease with containerd 1.6 and version 1 of control groups.
        version: "1.34.4",
        files: module!("kubernetes", "go.mod", "go.sum"),
        packages: &[
            "k8s.io/kubernetes/cmd/kube-apiserver",
            "k8s.io/kubernetes/cmd/kube-controller-manager",
            "k8s.io/kubernetes/cmd/kube-scheduler",
            "k8s.io/kubernetes/cmd/kube-proxy",
            "k8s.io/kubernetes/cmd/kubelet",
            "k8s.io/kubernetes/cmd/kubectl",
        ],
        stamps: &[
            ("k8s.io/component-base/version.gitVersion", "v1.34.4"),
            ("k8s.io/component-base/version.gitMajor", "1"),
            ("k8s.io/component-base/version.gitMinor", "34"),
        ],
        rename: None,
    },
    Recipe {
        name: "coredns",
        version: "1.14.7",
        files: module!("coredns", "go.mod", "go.sum"),
        packages: &["github.com/coredns/coredns"],
        stamps: &[],
        rename: None,
    },
    Recipe {
        name: "workload",
        version: "1",
        files: module!("workload", "go.mod", "main.go"),
        packages: &["."],
        stamps: &[],
        rename: None,
    },
];

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

/// Builds what is missing.
///
/// # Errors
/// [`LabError::Missing`] if there is no Go; [`LabError::Build`] with the end of the build's log.
pub(crate) fn build(talk: &Talk) -> Result<Peers, LabError> {
    let cache = cache_dir();
    files::folder(&cache, 0o755)?;
    let mut peers = BTreeMap::new();
    let mut lock = None;
    let missing = RECIPES.iter().filter(|recipe| !cache.join(recipe.folder()).exists()).count();
    for recipe in &RECIPES {
        let folder = cache.join(recipe.folder());
        if !folder.exists() {
            if lock.is_none() {
                lock = Some(Lock::folder(&cache, Some(talk))?);
                files::sweep(&cache, WORK)?;
                talk.say("build", format!("{missing} of {} peers to build into {}", RECIPES.len(), cache.display()));
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
        let folders: Vec<String> = RECIPES.iter().map(Recipe::folder).collect();
        assert!(folders[0].starts_with("headscale-0.29.2-"), "{}", folders[0]);
        let other = Recipe { stamps: &[("a", "b")], ..RECIPES[0] };
        assert_ne!(other.folder(), folders[0], "other flags are another build");
    }

    #[test]
    fn every_module_pins_what_it_names() {
        for recipe in &RECIPES {
            let (_, module) = recipe.files[0];
            let pinned = recipe.name == "workload" || module.contains(&format!("v{}", recipe.version));
            assert!(pinned, "{} {} is not what its go.mod requires", recipe.name, recipe.version);
        }
    }
}
