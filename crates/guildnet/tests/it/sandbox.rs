//! The fixture: a folder with a home, a working folder and kubeconfigs, and the command run in it.

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use guildnet_model::Secret;
use guildnet_store::{ClusterRecord, Store};
use tempfile::TempDir;

/// Whom the command becomes when root runs it and nobody called sudo.
const NOBODY: u32 = 65534;

/// A certificate, so that kubeconfigs are well formed; nothing is ever signed by it.
const AUTHORITY: &str = include_str!("authority.pem");

pub(crate) struct Sandbox {
    root: TempDir,
    /// An address where nothing listens: the person's own Host App may run on this machine.
    listen: SocketAddr,
}

/// What a command did.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ran {
    /// Asserts the exit code, that standard error names each of `words`, and that it ends with a hint.
    #[track_caller]
    pub(crate) fn refused(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, code, "{self:#?}");
        assert!(self.err.contains("error: ") && self.err.contains("\n  hint: "), "no error with a hint: {self:#?}");
        for word in words {
            assert!(self.err.contains(word), "standard error does not say {word:?}: {self:#?}");
        }
        assert_eq!(self.out, "", "an error is no data");
    }
}

impl Sandbox {
    pub(crate) fn new() -> Self {
        let root = tempfile::tempdir().expect("a folder");
        let free = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port");
        let sandbox = Self { root, listen: free };
        sandbox.open_up(sandbox.root.path(), 0o755);
        for name in ["home", "work"] {
            let dir = sandbox.path(name);
            fs::create_dir(&dir).expect("a folder");
            sandbox.open_up(&dir, 0o700);
        }
        sandbox.file("api-key", "hskey-api-aaaaaaaaaaaa-bbbbbbbb");
        sandbox.kubeconfig("good", &good("a-cluster"));
        sandbox
    }

    /// Gives a path to the user that the command runs as.
    pub(crate) fn open_up(&self, path: &Path, mode: u32) {
        if rustix::process::geteuid().is_root() {
            chown(path, Some(NOBODY), Some(NOBODY)).expect("root may give files away");
        }
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("mode");
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    pub(crate) fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// Writes a file of the person's.
    pub(crate) fn file(&self, name: &str, text: &str) -> String {
        let path = self.path(name);
        fs::write(&path, text).expect("written");
        self.open_up(&path, 0o600);
        path.display().to_string()
    }

    /// Writes a kubeconfig and returns `--cluster`'s value for it, with id `a`.
    pub(crate) fn kubeconfig(&self, name: &str, text: &str) -> String {
        format!("a={}", self.file(name, text))
    }

    /// Makes these the clusters that the home knows; they are of no use but to be named.
    pub(crate) fn clusters(&self, ids: &[&str]) {
        let folder = tempfile::tempdir().expect("a folder");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let store = Store::open(folder.path()).await.expect("opened");
            for id in ids {
                store.add(&record(id, &self.path("home"))).await.expect("stored");
            }
            store.close().await;
        });
        for name in ["guildnet.db", "seal.key"] {
            let to = self.path("home").join(name);
            fs::copy(folder.path().join(name), &to).expect("copied");
            self.open_up(&to, 0o600);
        }
    }

    /// Makes a file unreadable for the user that the command runs as.
    pub(crate) fn lock_away(&self, name: &str) {
        self.open_up(&self.path(name), 0o000);
    }

    /// Runs the command in the working folder, with this home and nothing else in its environment.
    pub(crate) fn run(&self, args: &[&str]) -> Ran {
        self.run_with(args, &[])
    }

    pub(crate) fn run_with(&self, args: &[&str], env: &[(&str, &str)]) -> Ran {
        let mut command = self.prepared(Command::new(env!("CARGO_BIN_EXE_guildnet")));
        let output = command.args(args).envs(env.iter().copied()).output().expect("the command starts");
        Ran {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// A command in the working folder, with this home and nothing else in its environment, and nothing to read.
    pub(crate) fn prepared(&self, mut command: Command) -> Command {
        command
            .current_dir(self.path("work"))
            .env_clear()
            .env("GUILDNET_HOME", self.path("home"))
            .env("GUILDNET_LISTEN", self.listen.to_string())
            .env("HOME", self.path("work"))
            .stdin(Stdio::null());
        command
    }

    /// `guildnet up` with a cluster flag and a Headscale that does not answer.
    pub(crate) fn up(&self, more: &[&str]) -> Ran {
        let key = self.text("api-key");
        let args = ["up", "--headscale-url", "https://127.0.0.1:9", "--headscale-api-key-file", &key];
        self.run(&[&args, more].concat())
    }

    /// All files below the sandbox.
    pub(crate) fn listing(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut open = vec![self.root.path().to_owned()];
        while let Some(dir) = open.pop() {
            for entry in fs::read_dir(&dir).expect("a folder").flatten() {
                if entry.path().is_dir() {
                    open.push(entry.path());
                }
                found.push(entry.path());
            }
        }
        found.sort();
        found
    }
}

/// What is stored of a cluster.
pub(crate) fn record(id: &str, home: &Path) -> ClusterRecord {
    let now = jiff::Timestamp::now();
    ClusterRecord {
        id: id.parse().expect("an id"),
        kubeconfig: Secret::new("{}".into()),
        context: "x".into(),
        login_server: "https://127.0.0.1:9".parse().expect("a URL"),
        ca_pem: None,
        client_auth_key: None,
        router_auth_key: None,
        routes: "10.96.0.0/16".parse().expect("networks"),
        routes_given: true,
        state_path: home.join("tsnet").join(id),
        namespace: format!("cluster-{id}"),
        namespace_id: None,
        site: None,
        api_address: None,
        cluster_uid: None,
        disconnected: true,
        read_only: false,
        created: now,
        updated: now,
    }
}

/// A kubeconfig that holds everything itself; its server never answers.
pub(crate) fn good(context: &str) -> String {
    let ca = base64(AUTHORITY.as_bytes());
    with_user(context, &format!("certificate-authority-data: {ca}"), "token: a-token")
}

/// A kubeconfig with these lines about the server and about the user.
pub(crate) fn with_user(context: &str, server: &str, user: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: {context}\n\
         clusters:\n- name: c\n  cluster:\n    server: https://127.0.0.1:9\n    {server}\n\
         users:\n- name: u\n  user:\n    {user}\n\
         contexts:\n- name: {context}\n  context: {{cluster: c, user: u}}\n"
    )
}

/// RFC 4648, with padding; here so that the test needs no crate for it.
pub(crate) fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let n = chunk.iter().fold(0u32, |n, b| n << 8 | u32::from(*b)) << (8 * (3 - chunk.len()));
        for i in 0..4 {
            let letter = LETTERS[(n >> (18 - 6 * i)) as usize & 63] as char;
            text.push(if i <= chunk.len() { letter } else { '=' });
        }
    }
    text
}
