//! The pods' images, made of the peers' static programs: docker archives with one layer, never pulled from anywhere.

use std::{
    env,
    fs::{self, File},
    io::{self, Read, Seek, Write},
    path::{Path, PathBuf},
};

use serde_json::json;
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

use crate::{
    error::LabError,
    files,
    peers::{Peers, Versions, cache_dir, hex},
    state::Lock,
};

/// The router's image under its real name: manifests that name it work here and anywhere.
fn router_image(versions: &Versions) -> String {
    format!("ghcr.io/tailscale/tailscale:v{}", versions.tailscale)
}

/// Prefix of an archive that is being written.
const WORK: &str = ".making-";

/// One image to make.
#[derive(Debug)]
struct Recipe<'a> {
    name: String,
    /// Path in the image, path here.
    programs: Vec<(&'a str, PathBuf)>,
    /// A shell and the small tools, as the real image has them.
    shell: bool,
    env: &'a [&'a str],
    command: &'a [&'a str],
}

/// The images of a lab: name and archive.
#[derive(Debug, Clone)]
pub(crate) struct Images {
    pub(crate) all: Vec<(String, PathBuf)>,
    pub(crate) pause: String,
    pub(crate) echo: String,
    pub(crate) coredns: String,
}

/// Makes what the cache lacks.
pub(crate) fn make(peers: &Peers, versions: &Versions) -> Result<Images, LabError> {
    let workload = || peers.program("workload", "workload");
    let tailscale = |program| peers.program("tailscale", program);
    // The peer's folder names its recipe: other programs, another tag.
    let tag = |peer: &str| {
        let folder = peers.bin(peer).parent().and_then(Path::file_name).map(|f| f.to_string_lossy().into_owned());
        folder.unwrap_or_default()
    };
    let pause = format!("guildnet.invalid/lab/pause:{}", tag("workload"));
    let echo = format!("guildnet.invalid/lab/echo:{}", tag("workload"));
    let coredns = format!("guildnet.invalid/lab/coredns:{}", tag("coredns"));
    let recipes = [
        Recipe {
            name: pause.clone(),
            programs: vec![("usr/local/bin/workload", workload())],
            shell: false,
            env: &[],
            command: &["/usr/local/bin/workload", "pause"],
        },
        Recipe {
            name: echo.clone(),
            programs: vec![("usr/local/bin/workload", workload())],
            shell: true,
            env: &[],
            command: &["/usr/local/bin/workload", "echo"],
        },
        Recipe {
            name: coredns.clone(),
            programs: vec![("usr/local/bin/coredns", peers.program("coredns", "coredns"))],
            shell: false,
            env: &[],
            command: &["/usr/local/bin/coredns"],
        },
        Recipe {
            name: router_image(versions),
            programs: vec![
                ("usr/local/bin/containerboot", tailscale("containerboot")),
                ("usr/local/bin/tailscaled", tailscale("tailscaled")),
                ("usr/local/bin/tailscale", tailscale("tailscale")),
            ],
            shell: true,
            // The real image brings iptables; here tailscaled speaks to the kernel itself.
            env: &["TS_DEBUG_FIREWALL_MODE=nftables"],
            command: &["/usr/local/bin/containerboot"],
        },
    ];
    let mut all = Vec::new();
    for recipe in &recipes {
        all.push((recipe.name.clone(), recipe.archive()?));
    }
    Ok(Images { all, pause, echo, coredns })
}

/// The applets that get a name of their own. None that looks a name up: the static program has no resolver.
const APPLETS: [&str; 12] = ["sh", "cat", "echo", "env", "grep", "hostname", "ip", "ls", "ps", "rm", "sleep", "tar"];

impl Recipe<'_> {
    /// The archive in the cache, made if it is not there. Its name holds a hash of everything in it.
    fn archive(&self) -> Result<PathBuf, LabError> {
        let mut hash = Sha256::new();
        // Programs lie in folders that are named for their recipe: path and size tell them apart.
        for (to, from) in self.programs.iter().map(|(to, from)| (*to, from.as_path())).chain(self.busybox()) {
            let size = fs::metadata(from).map_err(LabError::io(format!("cannot read {}", from.display())))?.len();
            hash.update(format!("{to}\0{}\0{size}\0", from.display()));
        }
        hash.update(self.config("").to_string());
        hash.update(APPLETS.join(" "));
        let short = self.name.rsplit('/').next().and_then(|n| n.split(':').next()).unwrap_or("image");
        let folder = cache_dir().join("images");
        let path = folder.join(format!("{short}-{}.tar", hex(&hash.finalize()[..8])));
        if !path.exists() {
            let _held = Lock::folder(&folder, None)?;
            files::sweep(&folder, WORK)?;
            let failed = || LabError::io(format!("cannot make {}", path.display()));
            let mut layer = tempfile::tempfile_in(&folder).map_err(failed())?;
            self.layer(&mut layer).map_err(failed())?;
            let whole = tempfile::Builder::new().prefix(WORK).tempfile_in(&folder);
            let mut whole = whole.map_err(failed())?;
            self.whole(&mut layer, whole.as_file_mut()).map_err(failed())?;
            whole.persist(&path).map_err(|why| why.error).map_err(failed())?;
        }
        Ok(path)
    }

    fn busybox(&self) -> Option<(&'static str, &'static Path)> {
        let here = ["/usr/bin/busybox", "/bin/busybox"].into_iter().map(Path::new).find(|path| path.exists());
        self.shell.then(|| ("bin/busybox", here.unwrap_or(Path::new("/bin/busybox"))))
    }

    fn layer(&self, to: &mut File) -> io::Result<()> {
        let mut tar = Builder::new(to);
        for (folder, mode) in [
            ("bin/", 0o755),
            ("etc/", 0o755),
            ("etc/ssl/", 0o755),
            ("etc/ssl/certs/", 0o755),
            ("root/", 0o700),
            ("run/", 0o755),
            ("tmp/", 0o1777),
            ("usr/", 0o755),
            ("usr/local/", 0o755),
            ("usr/local/bin/", 0o755),
            ("var/", 0o755),
            ("var/lib/", 0o755),
        ] {
            let mut header = header(EntryType::Directory, 0, mode);
            tar.append_data(&mut header, folder, io::empty())?;
        }
        // Relative, like any distribution's: containerboot makes a link below /var/run.
        tar.append_link(&mut header(EntryType::Symlink, 0, 0o777), "var/run", "../run")?;
        let passwd = b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n";
        tar.append_data(&mut header(EntryType::Regular, passwd.len() as u64, 0o644), "etc/passwd", &passwd[..])?;
        for (to, from) in self.programs.iter().map(|(to, from)| (*to, from.as_path())).chain(self.busybox()) {
            let program = File::open(from)?;
            let size = program.metadata()?.len();
            tar.append_data(&mut header(EntryType::Regular, size, 0o755), to, program)?;
        }
        if self.shell {
            for applet in APPLETS {
                tar.append_link(&mut header(EntryType::Symlink, 0, 0o777), format!("bin/{applet}"), "busybox")?;
            }
        }
        tar.finish()
    }

    fn whole(&self, layer: &mut File, to: &mut File) -> io::Result<()> {
        let mut hash = Sha256::new();
        let mut buffer = vec![0; 1 << 16];
        layer.rewind()?;
        loop {
            let read = layer.read(&mut buffer)?;
            if read == 0 {
                break;
            }
            hash.update(&buffer[..read]);
        }
        let size = layer.stream_position()?;
        layer.rewind()?;
        let config = self.config(&format!("sha256:{}", hex(&hash.finalize()))).to_string();
        let manifest =
            json!([{ "Config": "config.json", "RepoTags": [self.name], "Layers": ["layer.tar"] }]).to_string();
        let mut tar = Builder::new(&mut *to);
        tar.append_data(&mut header(EntryType::Regular, size, 0o644), "layer.tar", layer)?;
        for (name, text) in [("config.json", config), ("manifest.json", manifest)] {
            tar.append_data(&mut header(EntryType::Regular, text.len() as u64, 0o644), name, text.as_bytes())?;
        }
        tar.finish()?;
        drop(tar);
        to.flush()
    }

    fn config(&self, layer: &str) -> serde_json::Value {
        let architecture = match env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let mut env = vec!["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"];
        env.extend(self.env);
        json!({
            "architecture": architecture,
            "os": "linux",
            "config": { "Env": env, "Cmd": self.command, "WorkingDir": "/" },
            "rootfs": { "type": "layers", "diff_ids": [layer] },
        })
    }
}

/// A header with nothing in it that changes from one build to the next.
fn header(kind: EntryType, size: u64, mode: u32) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(mode);
    header.set_mtime(0);
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_holds_its_layer_under_the_hash_it_names() {
        let dir = tempfile::tempdir().expect("a folder");
        let program = dir.path().join("program");
        fs::write(&program, "static").expect("written");
        let recipe = Recipe {
            name: "guildnet.invalid/lab/x:1".into(),
            programs: vec![("usr/local/bin/x", program)],
            shell: false,
            env: &["A=b"],
            command: &["/usr/local/bin/x"],
        };
        let mut layer = tempfile::tempfile().expect("a file");
        recipe.layer(&mut layer).expect("written");
        let mut whole = tempfile::tempfile().expect("a file");
        recipe.whole(&mut layer, &mut whole).expect("written");
        whole.rewind().expect("a file");

        let mut found = std::collections::BTreeMap::new();
        for entry in tar::Archive::new(whole).entries().expect("an archive") {
            let mut entry = entry.expect("an entry");
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).expect("its bytes");
            found.insert(entry.path().expect("a path").display().to_string(), bytes);
        }
        let config: serde_json::Value = serde_json::from_slice(&found["config.json"]).expect("JSON");
        let digest = format!("sha256:{}", hex(&Sha256::digest(&found["layer.tar"])));
        assert_eq!(config["rootfs"]["diff_ids"][0], digest);
        assert_eq!(config["config"]["Env"][1], "A=b");
        let manifest: serde_json::Value = serde_json::from_slice(&found["manifest.json"]).expect("JSON");
        assert_eq!(manifest[0]["RepoTags"][0], "guildnet.invalid/lab/x:1");
    }
}
