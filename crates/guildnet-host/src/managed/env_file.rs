//! `env-sync-lan`: where a `.env` names this machine's loopback as its Headscale server, the address that pods can reach
//! is put there. Pods read that setting too, and in a pod 127.0.0.1 is the pod.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    net::Ipv4Addr,
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use guildnet_model::Class;
use serde::Serialize;

use super::{AddressChoice, address};
use crate::HostError;

/// Settings that name a Headscale server.
const NAMES: [&str; 2] = ["HEADSCALE_URL", "TS_LOGIN_SERVER"];

/// One line that was changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EnvChange {
    /// Its number, from 1.
    pub line: usize,
    /// The setting.
    pub name: String,
    /// The host that stood there.
    pub from: String,
    /// The address that stands there now.
    pub to: Ipv4Addr,
}

/// What was done to a `.env`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EnvSync {
    /// The file.
    pub file: PathBuf,
    /// Lines that were changed; none: nothing was written.
    pub changes: Vec<EnvChange>,
}

/// Changes loopback hosts of the two settings in `file` to `address` (this machine's own if not given). Everything else in
/// the file stays as it is, byte by byte; so do its mode and, if it is a link, the link.
///
/// # Errors
/// There is no such file, no address that pods can reach, or the file can't be written; then it is as it was.
pub fn env_sync_lan(file: &Path, address: AddressChoice) -> Result<EnvSync, HostError> {
    let refused = |why: io::Error| {
        let class = if why.kind() == io::ErrorKind::NotFound { Class::NotFound } else { Class::Failed };
        HostError::new(class, format!("{}: {why}", file.display()))
            .with_hint("run the command in the folder with your .env (cp .env.example .env), or name it with --file")
    };
    let place = fs::canonicalize(file).map_err(refused)?;
    let old = fs::read(&place).map_err(refused)?;
    let to = address::choose(address, &address::observed())?;
    let (new, changes) = synced(&old, to);
    if !changes.is_empty() {
        replace(&place, &new).map_err(refused)?;
    }
    Ok(EnvSync { file: file.to_owned(), changes })
}

/// Puts `content` in the file's place, whole or not at all, with the file's mode.
fn replace(file: &Path, content: &[u8]) -> io::Result<()> {
    let mode = fs::metadata(file)?.permissions().mode() & 0o777;
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let new = file.with_file_name(format!(".{name}.{}.new", std::process::id()));
    let write = || {
        let mut to = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        to.set_permissions(fs::Permissions::from_mode(mode))?;
        to.write_all(content)?;
        to.sync_all()?;
        fs::rename(&new, file)
    };
    write().inspect_err(|_| {
        let _ = fs::remove_file(&new);
    })
}

/// The file with its loopback hosts changed, and what was changed.
fn synced(old: &[u8], to: Ipv4Addr) -> (Vec<u8>, Vec<EnvChange>) {
    let (mut new, mut changes) = (Vec::with_capacity(old.len()), Vec::new());
    for (number, line) in old.split_inclusive(|byte| *byte == b'\n').enumerate() {
        match loopback_host(line) {
            Some((name, at)) => {
                changes.push(EnvChange {
                    line: number + 1,
                    name: name.to_owned(),
                    from: String::from_utf8_lossy(&line[at.clone()]).into_owned(),
                    to,
                });
                new.extend_from_slice(&line[..at.start]);
                new.extend_from_slice(to.to_string().as_bytes());
                new.extend_from_slice(&line[at.end..]);
            }
            None => new.extend_from_slice(line),
        }
    }
    (new, changes)
}

/// The setting that a line makes, and where in the line its loopback host stands; `None` for every other line.
fn loopback_host(line: &[u8]) -> Option<(&'static str, std::ops::Range<usize>)> {
    let text = std::str::from_utf8(line).ok()?;
    let equals = text.find('=')?;
    let name = text[..equals].trim();
    let name = name.strip_prefix("export").filter(|rest| rest.starts_with(char::is_whitespace)).map_or(name, str::trim);
    let name = NAMES.into_iter().find(|known| *known == name)?;
    let scheme = "://";
    let value = equals + 1;
    let host = value + text[value..].find(scheme)? + scheme.len();
    // Only what a URL may begin with stands before: no word of a comment.
    let before = text[value..host - scheme.len()].trim_start().trim_start_matches(['"', '\'']);
    if !before.chars().all(|c| c.is_ascii_alphanumeric()) {
        return None;
    }
    let rest = &text[host..];
    let length = if rest.starts_with('[') {
        rest.find(']')? + 1
    } else {
        rest.find(|c: char| ":/?#\"'".contains(c) || c.is_whitespace()).unwrap_or(rest.len())
    };
    let is_loopback = match &rest[..length] {
        "[::1]" => true,
        word if word.eq_ignore_ascii_case("localhost") => true,
        word => word.parse::<Ipv4Addr>().is_ok_and(|address| address.is_loopback()),
    };
    is_loopback.then_some((name, host..host + length))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LAN: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 20);

    fn of(old: &str) -> String {
        String::from_utf8(synced(old.as_bytes(), LAN).0).expect("text")
    }

    #[test]
    fn a_loopback_host_becomes_the_address_and_port_and_form_stay() {
        for (old, new) in [
            ("HEADSCALE_URL=https://127.0.0.1:8443\n", "HEADSCALE_URL=https://192.168.1.20:8443\n"),
            (
                "  export TS_LOGIN_SERVER = \"https://localhost:8443/\"\r\n",
                "  export TS_LOGIN_SERVER = \"https://192.168.1.20:8443/\"\r\n",
            ),
            ("HEADSCALE_URL='https://[::1]:8443'", "HEADSCALE_URL='https://192.168.1.20:8443'"),
            ("HEADSCALE_URL=https://127.0.0.53", "HEADSCALE_URL=https://192.168.1.20"),
            ("TS_LOGIN_SERVER=http://LocalHost # mine", "TS_LOGIN_SERVER=http://192.168.1.20 # mine"),
        ] {
            assert_eq!(of(old), new);
        }
    }

    #[test]
    fn everything_else_stays() {
        for kept in [
            "# HEADSCALE_URL=https://127.0.0.1:8443\n",
            "HEADSCALE_URL=https://10.0.0.5:8443\n",
            "HEADSCALE_URL=https://localhost.example.org\n",
            "HEADSCALE_URL=https://127.0.0.1.example.org\n",
            "HEADSCALE_URL=\n",
            "HEADSCALE_URL=https://headscale.example.org # was https://127.0.0.1\n",
            "HEADSCALE_URL= # https://127.0.0.1\n",
            "GUILDNET_LISTEN=127.0.0.1:8090\n",
            "MY_HEADSCALE_URL=https://127.0.0.1\n",
            "exportHEADSCALE_URL=https://127.0.0.1\n",
        ] {
            assert_eq!(of(kept), kept);
        }
        let bytes = b"X=\xff\r\n\n\tHEADSCALE_URL=https://\xff127.0.0.1";
        assert_eq!(synced(bytes, LAN).0, bytes);
    }

    #[test]
    fn what_was_changed_is_told_by_line() {
        let (_, changes) = synced(b"A=1\n\nHEADSCALE_URL=https://localhost:1\n", LAN);
        assert_eq!(changes, [EnvChange { line: 3, name: "HEADSCALE_URL".into(), from: "localhost".into(), to: LAN }]);
    }

    proptest! {
        #[test]
        fn a_second_time_changes_nothing(text in r#"((HEADSCALE_URL|TS_LOGIN_SERVER|X)=["']?https?://(127\.0\.0\.1|localhost|[a-z.]{1,9})(:[0-9]{1,4})?["']?[\r\n ]{0,3}){0,6}"#) {
            let (once, _) = synced(text.as_bytes(), LAN);
            let (twice, changes) = synced(&once, LAN);
            prop_assert_eq!(once, twice);
            prop_assert!(changes.is_empty());
        }
    }

    #[test]
    fn the_file_keeps_its_mode_and_a_link_stays_a_link() {
        let folder = tempfile::tempdir().expect("tempdir");
        let (file, link) = (folder.path().join("real"), folder.path().join(".env"));
        fs::write(&file, "HEADSCALE_URL=https://127.0.0.1:8443\n").expect("written");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).expect("mode");
        std::os::unix::fs::symlink(&file, &link).expect("linked");
        let to = AddressChoice::This(LAN);
        assert_eq!(env_sync_lan(&link, to).expect("synced").changes.len(), 1);
        assert_eq!(fs::read_to_string(&file).expect("read"), "HEADSCALE_URL=https://192.168.1.20:8443\n");
        assert_eq!(fs::metadata(&file).expect("there").permissions().mode() & 0o777, 0o640);
        assert!(fs::symlink_metadata(&link).expect("there").is_symlink());
        let before = fs::metadata(&file).expect("there").modified().expect("a time");
        assert!(env_sync_lan(&link, to).expect("nothing to do").changes.is_empty());
        assert_eq!(fs::metadata(&file).expect("there").modified().expect("a time"), before, "not written again");
        assert_eq!(fs::read_dir(folder.path()).expect("read").count(), 2);
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        use guildnet_model::Explain as _;
        let said = env_sync_lan(Path::new("/nowhere/.env"), AddressChoice::This(LAN)).expect_err("missing");
        assert_eq!(said.class(), Class::NotFound);
        assert!(said.to_string().starts_with("/nowhere/.env: "), "{said}");
    }
}
