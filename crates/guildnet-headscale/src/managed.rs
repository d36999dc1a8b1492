//! A Headscale that GuildNet runs itself: what it is told ([`ManagedConfig`]) and how the words of its own command line
//! are read. Pure: text in, text out. Who runs it, and where its files lie, is `guildnet-host`'s business.

use std::{
    fmt::Write as _,
    net::{Ipv4Addr, SocketAddrV4},
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use guildnet_model::{Class, Explain, Secret};

use crate::ServerVersion;

/// The settings file's name in its folder.
pub const CONFIG_FILE: &str = "config.yaml";
/// The database's.
pub const DATABASE_FILE: &str = "db.sqlite";
/// The server's private keys: of the control protocol, and of the relay. Headscale makes them at its first start.
pub const KEY_FILES: [&str; 2] = ["noise_private.key", "derp_private.key"];
/// The socket of its command line.
const SOCKET_FILE: &str = "headscale.sock";

/// Bytes that a socket's path may have: `sun_path` holds 108, the last one a zero (unix(7)).
const SOCKET_PATH_LIMIT: usize = 107;

/// The domain under which nodes would be named. Names are not handed out (`magic_dns: false`); Headscale wants one that
/// is not its own address. `.internal` is set apart for such use.
const BASE_DOMAIN: &str = "guildnet.internal";

/// Why a Headscale can't be told what it needs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManagedError {
    /// The socket's path is longer than the kernel takes.
    #[error("{path} is {bytes} bytes long, and a socket's path may have {SOCKET_PATH_LIMIT}", path = .path.display())]
    SocketPath {
        /// The path.
        path: PathBuf,
        /// Its length.
        bytes: usize,
    },
    /// A path is no text, which a settings file must be.
    #[error("{path} is not UTF-8, and can't be written into a settings file", path = .path.display())]
    NoText {
        /// The path.
        path: PathBuf,
    },
}

impl Explain for ManagedError {
    fn class(&self) -> Class {
        Class::Precondition
    }

    fn hint(&self) -> Option<String> {
        Some("use a folder with a shorter or plainer name: GUILDNET_HOME=DIR".to_owned())
    }
}

/// What a managed Headscale is told.
#[derive(Clone, Copy, Debug)]
pub struct ManagedConfig<'a> {
    /// The folder of its state. Absolute.
    pub folder: &'a Path,
    /// The address by which nodes reach it.
    pub address: Ipv4Addr,
    /// Where it listens for HTTPS: control, API and relay.
    pub listen: SocketAddrV4,
    /// Where it answers STUN, which tells nodes their own address.
    pub stun: SocketAddrV4,
    /// PEM file in the folder with its key and its certificates.
    pub identity_file: &'a str,
}

impl ManagedConfig<'_> {
    /// The settings file. It reaches nothing outside: no update check, no foreign relays, no name servers.
    ///
    /// # Errors
    /// [`ManagedError`].
    pub fn text(&self) -> Result<String, ManagedError> {
        let file = |name: &str| quoted(&self.folder.join(name));
        let identity = file(self.identity_file)?;
        let [noise, derp] = KEY_FILES;
        let mut text = String::from(
            "# Written by GuildNet at every start: changes are lost. Flags of `guildnet headscale up` change it.\n",
        );
        let mut line = |depth: usize, key: &str, value: &str| {
            let space = if value.is_empty() { "" } else { " " };
            writeln!(text, "{:1$}{key}:{space}{value}", "", depth * 2).expect("a string grows");
        };
        let (address, listen, stun) = (self.address, self.listen, self.stun);
        line(0, "server_url", &self.url());
        line(0, "listen_addr", &listen.to_string());
        // Both can't be switched off in every release: a free port of this machine's own, which nobody is told.
        line(0, "metrics_listen_addr", "127.0.0.1:0");
        line(0, "grpc_listen_addr", "127.0.0.1:0");
        line(0, "grpc_allow_insecure", "false");
        // One file for both: of PEM blocks, each reader takes its own kind.
        line(0, "tls_cert_path", &identity);
        line(0, "tls_key_path", &identity);
        line(0, "noise", "");
        line(1, "private_key_path", &file(noise)?);
        line(0, "prefixes", "");
        line(1, "v4", "100.64.0.0/10");
        line(1, "v6", "fd7a:115c:a1e0::/48");
        line(1, "allocation", "sequential");
        line(0, "derp", "");
        line(1, "server", "");
        line(2, "enabled", "true");
        line(2, "region_id", "999");
        line(2, "region_code", "guildnet");
        line(2, "region_name", "GuildNet");
        line(2, "verify_clients", "true");
        line(2, "stun_listen_addr", &stun.to_string());
        line(2, "private_key_path", &file(derp)?);
        line(2, "automatically_add_embedded_derp_region", "true");
        line(2, "ipv4", &address.to_string());
        line(1, "urls", "[]");
        line(1, "paths", "[]");
        line(1, "auto_update_enabled", "false");
        line(0, "disable_check_updates", "true");
        line(0, "database", "");
        line(1, "type", "sqlite");
        line(1, "sqlite", "");
        line(2, "path", &file(DATABASE_FILE)?);
        line(2, "write_ahead_log", "true");
        line(0, "policy", "");
        line(1, "mode", "database");
        line(0, "dns", "");
        line(1, "magic_dns", "false");
        line(1, "base_domain", BASE_DOMAIN);
        line(1, "override_local_dns", "false");
        line(1, "nameservers", "");
        line(2, "global", "[]");
        line(0, "unix_socket", &quoted(&socket_path(self.folder)?)?);
        line(0, "unix_socket_permission", "\"0700\"");
        line(0, "logtail", "");
        line(1, "enabled", "false");
        line(0, "log", "");
        // One line for each poll of each node stands at the next level, and the log is only put aside at a start.
        line(1, "level", "warn");
        line(1, "format", "text");
        Ok(text)
    }

    /// What nodes are told to log in to.
    pub fn url(&self) -> String {
        format!("https://{}:{}", self.address, self.listen.port())
    }
}

/// Where the socket of its command line is.
///
/// # Errors
/// [`ManagedError::SocketPath`].
fn socket_path(folder: &Path) -> Result<PathBuf, ManagedError> {
    let path = folder.join(SOCKET_FILE);
    let bytes = path.as_os_str().as_bytes().len();
    if bytes > SOCKET_PATH_LIMIT { Err(ManagedError::SocketPath { path, bytes }) } else { Ok(path) }
}

/// A path as a YAML scalar: JSON's strings are a part of YAML's.
fn quoted(path: &Path) -> Result<String, ManagedError> {
    let no_text = || ManagedError::NoText { path: path.to_owned() };
    let text = path.to_str().ok_or_else(no_text)?;
    serde_json::to_string(text).map_err(|_| no_text())
}

/// Reads what `headscale version` prints: `headscale version v0.29.2` and more lines, or the number alone.
pub fn version_of(printed: &str) -> ServerVersion {
    let first = printed.lines().next().unwrap_or_default().trim();
    ServerVersion::parse(first.strip_prefix("headscale version").unwrap_or(first).trim())
}

/// Arguments that make an API key which lives that long.
pub fn create_key_args(lives: Duration) -> [String; 4] {
    let hours = lives.as_secs().div_ceil(3_600);
    ["apikeys".into(), "create".into(), "--expiration".into(), format!("{hours}h")]
}

/// The key in what [`create_key_args`] prints: its last line. `None` if that is no key.
pub fn key_of(printed: &Secret<String>) -> Option<Secret<String>> {
    let last = printed.expose().lines().rev().map(str::trim).find(|line| !line.is_empty())?;
    // Every form has a prefix and a secret part; the shortest one has 51 characters.
    let is_key = last.len() >= 40 && last.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.=".contains(&b));
    is_key.then(|| Secret::new(last.to_owned()))
}

/// Arguments that end a key before its time; `None` for a key of a form that is not known.
///
/// A key is `PREFIX.SECRET`, since 0.28 `hskey-api-PREFIX-SECRET` with a prefix of twelve characters. The prefix is no
/// secret: listings show it.
pub fn expire_key_args(key: &Secret<String>) -> Option<[String; 4]> {
    let key = key.expose();
    let prefix = match key.strip_prefix("hskey-api-") {
        Some(rest) => rest.get(..12).filter(|_| rest.as_bytes().get(12) == Some(&b'-'))?,
        None => key.split_once('.')?.0,
    };
    Some(["apikeys".into(), "expire".into(), "--prefix".into(), prefix.to_owned()])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(folder: &Path) -> ManagedConfig<'_> {
        ManagedConfig {
            folder,
            address: [192, 168, 1, 20].into(),
            listen: "192.168.1.20:8443".parse().expect("an address"),
            stun: "192.168.1.20:3478".parse().expect("an address"),
            identity_file: "headscale.pem",
        }
    }

    #[test]
    fn it_is_told_to_keep_to_itself() {
        insta::assert_snapshot!(config(Path::new("/home/me/.guildnet/headscale")).text().expect("a text"));
    }

    #[test]
    fn a_path_with_quotes_and_colons_stays_one_value() {
        let text = config(Path::new("/a \"b\": c\\d")).text().expect("a text");
        assert!(text.contains("\n    path: \"/a \\\"b\\\": c\\\\d/db.sqlite\"\n"), "{text}");
    }

    #[test]
    fn a_path_that_no_socket_can_have_is_explained() {
        // The name and its slash have fifteen bytes.
        let longest = format!("/{}", "x".repeat(SOCKET_PATH_LIMIT - 1 - "/headscale.sock".len()));
        config(Path::new(&longest)).text().expect("just fits");
        let said = config(Path::new(&format!("{longest}x"))).text().expect_err("too long");
        assert!(said.to_string().ends_with("is 108 bytes long, and a socket's path may have 107"), "{said}");
        assert_eq!(said.class(), Class::Precondition);
    }

    #[test]
    fn versions_are_read_in_either_form() {
        let release = ServerVersion::Release { major: 0, minor: 29, patch: 2 };
        assert_eq!(version_of("headscale version v0.29.2\ncommit: unknown\n"), release);
        assert_eq!(version_of("v0.29.2\n"), release);
        assert_eq!(version_of("headscale version dev\n"), ServerVersion::Unnamed { says: "dev".into() });
    }

    #[test]
    fn a_key_is_the_last_line_and_words_are_none() {
        let key = |text: &str| key_of(&Secret::new(text.to_owned())).map(|key| key.expose().clone());
        let new = "hskey-api-abcd-fgh_jkl-0123456789012345678901234567890123456789";
        assert_eq!(key(&format!("a warning\n{new}\n\n")).as_deref(), Some(new));
        assert_eq!(key("cannot connect to the socket, is headscale running?"), None);
        assert_eq!(key(""), None);
    }

    #[test]
    fn a_key_is_expired_by_its_prefix() {
        let prefix = |text: &str| expire_key_args(&Secret::new(text.to_owned())).map(|[.., prefix]| prefix);
        assert_eq!(prefix("hskey-api-abcd-fgh_jkl-0123").as_deref(), Some("abcd-fgh_jkl"));
        assert_eq!(prefix("abcdefghij.0123").as_deref(), Some("abcdefghij"));
        assert_eq!(prefix("hskey-api-short"), None);
        assert_eq!(prefix("word"), None);
    }

    #[test]
    fn a_keys_life_is_told_in_hours() {
        let [.., hours] = create_key_args(Duration::from_secs(90 * 24 * 3_600));
        assert_eq!(hours, "2160h");
    }
}
