//! The `headscale` program: found, told apart from other builds, and asked by its own command line.

use std::{
    env,
    ffi::OsString,
    fs::{self, File},
    io::{self, Read as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use guildnet_headscale::{ServerVersion, managed};
use guildnet_model::{Class, Secret};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::{process::Command, time::timeout};

use crate::HostError;

/// How long its command line may take. It gives itself 5 s to reach the server.
const CLI_LIMIT: Duration = Duration::from_secs(20);

/// What `guildnet` says where there is no `headscale`.
const WAYS_ON: &str = "\
install Headscale 0.26 or later (a package or a static program from the Headscale project), so that it is on PATH,\n\
or name it: --headscale-binary FILE (or GUILDNET_HEADSCALE_BINARY=FILE)\n\
or use a server that you have: guildnet up --headscale-url https://HOST:PORT --headscale-api-key-file FILE ...\n\
GuildNet downloads no program and runs no container image: copy the program out of an image, if that is what you have";

/// A build of Headscale. Two builds may bear the same version, or none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Build {
    /// What it calls itself.
    pub(super) version: String,
    /// SHA-256 of the program, in hexadecimal.
    pub(super) digest: String,
}

/// How the program compares with the one that ran last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// None ran yet.
    First,
    /// It is the same.
    Same,
    /// It is another one: the database is copied before it may change it.
    Other {
        /// In words.
        said: String,
    },
}

/// Compares builds.
pub(super) fn change(last: Option<&Build>, now: &Build) -> Change {
    let Some(last) = last else { return Change::First };
    if last == now {
        return Change::Same;
    }
    if last.version == now.version {
        return Change::Other { said: format!("another build of Headscale {}", now.version) };
    }
    let numbers = |build: &Build| match ServerVersion::parse(&build.version) {
        ServerVersion::Release { major, minor, patch } => Some((major, minor, patch)),
        _ => None,
    };
    let older = numbers(last).zip(numbers(now)).is_some_and(|(last, now)| now < last);
    let word = if older { " (older: it may refuse the database)" } else { "" };
    Change::Other { said: format!("Headscale {} instead of {}{word}", now.version, last.version) }
}

/// The program: the one that is named, else the first `headscale` on `PATH`.
///
/// # Errors
/// There is none, or it can't be run.
pub(super) fn find(named: Option<&Path>) -> Result<PathBuf, HostError> {
    find_on(named, env::var_os("PATH"))
}

fn find_on(named: Option<&Path>, path: Option<OsString>) -> Result<PathBuf, HostError> {
    if let Some(file) = named {
        return match runnable(file) {
            Ok(()) => std::path::absolute(file).map_err(|why| not_usable(file, &why)),
            Err(why) => Err(not_usable(file, &why)),
        };
    }
    let folders = path.iter().flat_map(env::split_paths).filter(|folder| folder.is_absolute());
    let found = folders.map(|folder| folder.join("headscale")).find(|file| runnable(file).is_ok());
    found.ok_or_else(|| HostError::new(Class::Precondition, "there is no headscale program on PATH").with_hint(WAYS_ON))
}

fn runnable(file: &Path) -> io::Result<()> {
    let meta = fs::metadata(file)?;
    if meta.is_file() && meta.permissions().mode() & 0o111 != 0 {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::PermissionDenied, "it is no program that can be run"))
}

fn not_usable(file: &Path, why: &io::Error) -> HostError {
    HostError::new(Class::Precondition, format!("the headscale program {}: {why}", file.display())).with_hint(WAYS_ON)
}

/// Which build a program is.
///
/// # Errors
/// It can't be read or run, is no Headscale, or is too old.
pub(super) async fn build(binary: &Path) -> Result<Build, HostError> {
    let mut command = command(binary, Path::new("/"));
    command.arg("version");
    let printed = run(command, binary, WAYS_ON).await?;
    let version = managed::version_of(&printed);
    if version.is_too_old() {
        return Err(HostError::new(
            Class::Precondition,
            format!("{} is Headscale {version}; 0.26 is the oldest that GuildNet speaks with", binary.display()),
        )
        .with_hint(WAYS_ON));
    }
    let version = match version {
        // A build outside of a release calls itself by one word.
        ServerVersion::Unnamed { says } if says.is_empty() || says.contains(char::is_whitespace) => {
            let message = format!("{} does not say which Headscale it is", binary.display());
            return Err(HostError::new(Class::Precondition, message).with_hint(WAYS_ON));
        }
        ServerVersion::Unnamed { says } => says,
        release => release.to_string(),
    };
    // A file that is large and read at once would be held in memory whole.
    let digest = digest(binary).map_err(|why| not_usable(binary, &why))?;
    Ok(Build { version, digest })
}

fn digest(binary: &Path) -> io::Result<String> {
    /// Size of one read.
    const BLOCK: usize = 1 << 20;
    let (mut file, mut hash, mut block) = (File::open(binary)?, Sha256::new(), vec![0; BLOCK]);
    loop {
        match file.read(&mut block)? {
            0 => break,
            n => hash.update(&block[..n]),
        }
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The program with an environment of its own: every setting of Headscale can also come from a variable `HEADSCALE_*`,
/// and the person's are meant for GuildNet.
pub(super) fn command(binary: &Path, folder: &Path) -> Command {
    let mut command = Command::new(binary);
    command.env_clear().env("HOME", folder).current_dir(folder).stdin(Stdio::null()).kill_on_drop(true);
    for name in ["PATH", "TZ", "SSL_CERT_FILE"] {
        if let Some(value) = env::var_os(name) {
            command.env(name, value);
        }
    }
    command
}

/// Asks the running server by its own command line, over the socket in its folder. Returns what it printed; that may be
/// a secret.
///
/// # Errors
/// It does not answer, or refuses.
pub(super) async fn ask<S: AsRef<std::ffi::OsStr>>(
    binary: &Path,
    folder: &Path,
    args: &[S],
) -> Result<Secret<String>, HostError> {
    let mut command = command(binary, folder);
    command.args(args).arg("--config").arg(folder.join(managed::CONFIG_FILE));
    run(command, binary, "see whether it runs, and where its log is: guildnet headscale status").await.map(Secret::new)
}

async fn run(mut command: Command, binary: &Path, hint: &str) -> Result<String, HostError> {
    let name = binary.display();
    let output = match timeout(CLI_LIMIT, command.output()).await {
        Ok(ran) => ran.map_err(|why| not_usable(binary, &why))?,
        Err(_late) => {
            let message = format!("{name} did not end within {CLI_LIMIT:?}");
            return Err(HostError::new(Class::Unreachable, message).with_hint(hint));
        }
    };
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    // Only what it complains of: its other stream may hold a key.
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.trim().lines().last().unwrap_or("it did not say why").to_owned();
    Err(HostError::new(Class::Failed, format!("{name} failed ({}): {said}", output.status)).with_hint(hint))
}

#[cfg(test)]
mod tests {
    use guildnet_model::Explain as _;

    use super::*;

    fn program(folder: &Path, name: &str, text: &str) -> PathBuf {
        let file = folder.join(name);
        fs::write(&file, text).expect("written");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o700)).expect("mode");
        file
    }

    #[test]
    fn the_named_program_comes_before_the_path() {
        let folder = tempfile::tempdir().expect("tempdir");
        let on_path = program(folder.path(), "headscale", "");
        let other = program(folder.path(), "other", "");
        let path = Some(OsString::from(format!("/nowhere:{}", folder.path().display())));
        assert_eq!(find_on(None, path.clone()).expect("found"), on_path);
        assert_eq!(find_on(Some(&other), path).expect("found"), other);
    }

    #[test]
    fn without_one_the_ways_on_are_named() {
        for said in [find_on(None, None), find_on(None, Some("/nowhere:relative".into()))] {
            let said = said.expect_err("none");
            assert_eq!(said.class(), Class::Precondition);
            let hint = said.hint().expect("a hint");
            for way in ["on PATH", "--headscale-binary", "--headscale-url", "no container image"] {
                assert!(hint.contains(way), "{hint}");
            }
        }
    }

    #[test]
    fn a_named_file_that_is_no_program_is_named() {
        let folder = tempfile::tempdir().expect("tempdir");
        let said = find_on(Some(folder.path()), None).expect_err("a folder");
        assert!(said.to_string().contains("no program that can be run"), "{said}");
        let said = find_on(Some(Path::new("/nowhere/headscale")), None).expect_err("nothing");
        assert!(said.to_string().starts_with("the headscale program /nowhere/headscale: No such file"), "{said}");
    }

    fn of(version: &str, digest: &str) -> Build {
        Build { version: version.into(), digest: digest.into() }
    }

    #[test]
    fn another_version_or_another_build_is_a_change() {
        let now = of("0.29.2", "2");
        let said = |last: Option<&Build>| match change(last, &now) {
            Change::Other { said } => said,
            other => format!("{other:?}"),
        };
        assert_eq!(said(None), "First");
        assert_eq!(said(Some(&now)), "Same");
        assert_eq!(said(Some(&of("0.29.2", "1"))), "another build of Headscale 0.29.2");
        assert_eq!(said(Some(&of("0.28.0", "1"))), "Headscale 0.29.2 instead of 0.28.0");
        assert_eq!(
            said(Some(&of("0.30.0", "1"))),
            "Headscale 0.29.2 instead of 0.30.0 (older: it may refuse the database)"
        );
    }

    #[tokio::test]
    async fn a_build_is_told_by_version_and_content() {
        let folder = tempfile::tempdir().expect("tempdir");
        let say = |text: &str| program(folder.path(), "headscale", &format!("#!/bin/sh\n{text}\n"));
        let seen = build(&say("echo headscale version v0.29.2")).await.expect("a build");
        assert_eq!((seen.version.as_str(), seen.digest.len()), ("0.29.2", 64));
        let old = build(&say("echo v0.25.1")).await.expect_err("too old");
        assert_eq!(old.class(), Class::Precondition);
        assert!(old.to_string().contains("0.26 is the oldest"), "{old}");
        let other = build(&say("echo hello there")).await.expect_err("another program");
        assert!(other.to_string().ends_with("does not say which Headscale it is"), "{other}");
        let failed = build(&say("echo secret; echo first >&2; echo it broke >&2; exit 3")).await.expect_err("failed");
        assert!(failed.to_string().ends_with("(exit status: 3): it broke"), "{failed}");
    }

    #[tokio::test]
    async fn the_persons_variables_do_not_reach_it() {
        let folder = tempfile::tempdir().expect("tempdir");
        let binary = program(folder.path(), "headscale", "#!/bin/sh\nenv\n");
        let seen = ask(&binary, folder.path(), &["x"]).await.expect("ran");
        let names: Vec<&str> = seen.expose().lines().filter_map(|line| line.split_once('=')).map(|(n, _)| n).collect();
        for name in names {
            assert!(["HOME", "PATH", "TZ", "SSL_CERT_FILE", "PWD", "SHLVL", "_", "OLDPWD"].contains(&name), "{name}");
        }
    }
}
