//! Giving up root: the Host App needs no privilege, so a command that was started with some runs without.
//!
//! As root the process becomes the person who called `sudo`, else nobody (65534), for good: all three user and group
//! ids, no other groups, no capability in any set, and no way back through a set-uid program. Only what root alone can
//! prepare is done before: folders, made for that person and never taken from anybody.

use std::{
    env,
    ffi::OsStr,
    fs::{self, DirBuilder},
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use guildnet_model::Class;
use nix::unistd::{self, Gid, Uid, User};
use rustix::{
    fs::Mode,
    thread::{CapabilitySet, CapabilitySets},
};

use crate::HostError;

/// User and group of nobody: what the kernel shows for ids that it can't map (user_namespaces(7)), and Debian's `nobody`.
const NOBODY: u32 = 65534;
/// Nobody has no folder of its own.
const NOBODY_HOME: &str = "/var/lib/guildnet";
/// The folder's name in the person's own.
const HOME_NAME: &str = ".guildnet";

/// Who the process is after [`become_person`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Person {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// GuildNet's home folder: the one that was given, else `~/.guildnet`. It exists if root had to prepare it.
    pub home: PathBuf,
}

/// Makes sure that what this process creates is private (umask 077), and, as root, becomes the invoking person for good.
///
/// As root, `home` and `extra_dirs` are made first if they are not there: by the person if they can, else by root in a
/// folder that only root can change, and given to them. An empty folder of root's is given to them too; any other is
/// left alone. Not as root, nothing but the umask is changed.
///
/// To be called first in `main`: capabilities belong to threads, and one that exists already keeps its own.
///
/// # Errors
/// [`Class::Usage`] if there is no home folder to use, or `SUDO_UID` is no number; [`Class::Precondition`] if the kernel
/// refuses, or the home folder can't be made or reached by the person. The process must then end: it may be half-way.
pub fn become_person(home: Option<&Path>, extra_dirs: &[&Path]) -> Result<Person, HostError> {
    rustix::process::umask(Mode::RWXG | Mode::RWXO);
    if !Uid::effective().is_root() {
        let (uid, gid) = (Uid::effective(), Gid::effective());
        let home = match home {
            Some(home) => home.to_owned(),
            None => own_home(uid)?,
        };
        return Ok(Person { uid: uid.as_raw(), gid: gid.as_raw(), home });
    }
    let (uid, gid) = invoker(env::var_os("SUDO_UID").as_deref(), env::var_os("SUDO_GID").as_deref())?;
    let home = match home {
        Some(home) => home.to_owned(),
        None if uid.as_raw() == NOBODY => NOBODY_HOME.into(),
        None => own_home_in_database(uid)?,
    };
    unistd::setgroups(&[gid]).map_err(refused("leave root's groups"))?;
    prepare(&home, uid, gid).map_err(|why| no_folder(&home, uid, &why))?;
    for folder in extra_dirs {
        // One that can't be made is told by whoever wants to write there, who knows for what.
        let _ = prepare(folder, uid, gid);
    }
    give_up(uid, gid)?;
    // Asked as the person: a parent that only root can enter makes the folder useless.
    fs::read_dir(&home).map_err(|why| no_folder(&home, uid, &why))?;
    Ok(Person { uid: uid.as_raw(), gid: gid.as_raw(), home })
}

/// The person behind `sudo`; nobody if root itself called.
fn invoker(sudo_uid: Option<&OsStr>, sudo_gid: Option<&OsStr>) -> Result<(Uid, Gid), HostError> {
    let number = |name: &str, value: Option<&OsStr>| match value {
        None => Ok(0),
        Some(value) => value.to_str().and_then(|text| text.parse::<u32>().ok()).ok_or_else(|| {
            HostError::new(Class::Usage, format!("{name}={} is no user or group number", value.to_string_lossy()))
                .with_hint(format!("unset {name}, or run the command without sudo"))
        }),
    };
    let (uid, gid) = (number("SUDO_UID", sudo_uid)?, number("SUDO_GID", sudo_gid)?);
    let or_nobody = |id| if id == 0 { NOBODY } else { id };
    Ok((or_nobody(uid).into(), or_nobody(gid).into()))
}

/// `~/.guildnet` of whoever runs this.
fn own_home(uid: Uid) -> Result<PathBuf, HostError> {
    match env::home_dir().filter(|home| home.is_absolute()) {
        Some(home) => Ok(home.join(HOME_NAME)),
        None => own_home_in_database(uid),
    }
}

/// The same by the user database: `HOME` may still be root's.
fn own_home_in_database(uid: Uid) -> Result<PathBuf, HostError> {
    let user = User::from_uid(uid).ok().flatten();
    user.map(|user| user.dir.join(HOME_NAME)).ok_or_else(|| {
        HostError::new(Class::Usage, format!("user {uid} has no folder of their own"))
            .with_hint("name a folder with GUILDNET_HOME")
    })
}

/// Makes a folder that belongs to the person.
fn prepare(folder: &Path, uid: Uid, gid: Gid) -> io::Result<()> {
    match as_person(uid, gid, || DirBuilder::new().recursive(true).mode(0o700).create(folder))? {
        Ok(()) => {}
        Err(why) if why.kind() == io::ErrorKind::PermissionDenied => {
            // Only where nobody else can put a link in our way.
            only_roots(folder.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")))?;
            match DirBuilder::new().mode(0o700).create(folder) {
                Err(why) if why.kind() != io::ErrorKind::AlreadyExists => return Err(why),
                _ => {}
            }
        }
        Err(why) => return Err(why),
    }
    let parent_is_roots =
        only_roots(folder.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))).is_ok();
    let found = fs::symlink_metadata(folder)?;
    if parent_is_roots && found.is_dir() && found.uid() == 0 && fs::read_dir(folder)?.next().is_none() {
        std::os::unix::fs::lchown(folder, Some(uid.as_raw()), Some(gid.as_raw()))?;
    }
    Ok(())
}

/// Refuses a folder that anybody but root can change.
fn only_roots(folder: &Path) -> io::Result<()> {
    let found = fs::metadata(folder)?;
    if found.uid() == 0 && found.mode() & 0o022 == 0 {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("{} can be changed by others", folder.display())))
}

/// Does something with the person's rights, and comes back.
fn as_person<T>(uid: Uid, gid: Gid, work: impl FnOnce() -> T) -> io::Result<T> {
    let root = (Uid::effective(), Gid::effective());
    unistd::setegid(gid)?;
    unistd::seteuid(uid)?;
    let done = work();
    unistd::seteuid(root.0)?;
    unistd::setegid(root.1)?;
    Ok(done)
}

/// Root no more: ids, then every set of capabilities, then the way back.
fn give_up(uid: Uid, gid: Gid) -> Result<(), HostError> {
    rustix::thread::clear_ambient_capability_set().map_err(refused("give up capabilities"))?;
    // Taking from the bounding set needs a capability itself, so it comes before the ids.
    for one in 0..u64::BITS {
        match rustix::thread::remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << one)) {
            Ok(()) => {}
            // The kernel knows no more of them.
            Err(rustix::io::Errno::INVAL) => break,
            Err(why) => return Err(refused("give up capabilities")(why)),
        }
    }
    unistd::setresgid(gid, gid, gid).map_err(refused("become the person's group"))?;
    unistd::setresuid(uid, uid, uid).map_err(refused("become the person"))?;
    let none = CapabilitySet::empty();
    let sets = CapabilitySets { effective: none, permitted: none, inheritable: none };
    rustix::thread::set_capabilities(None, sets).map_err(refused("give up capabilities"))?;
    rustix::thread::set_no_new_privs(true).map_err(refused("close the way back to privileges"))?;
    if unistd::setuid(Uid::from_raw(0)).is_ok() {
        return Err(HostError::new(Class::Precondition, "root's rights could not be given up"));
    }
    Ok(())
}

fn refused<E: std::fmt::Display>(what: &str) -> impl FnOnce(E) -> HostError {
    move |why| {
        HostError::new(Class::Precondition, format!("the kernel does not let this process {what}: {why}"))
            .with_hint("run the command as a user without privileges")
    }
}

fn no_folder(home: &Path, uid: Uid, why: &io::Error) -> HostError {
    HostError::new(Class::Precondition, format!("user {uid} can't use the folder {}: {why}", home.display()))
        .with_hint(format!("name a folder that user {uid} can reach with GUILDNET_HOME"))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn sudo_names_the_person_and_root_itself_is_nobody() {
        let who = |uid: Option<&str>, gid: Option<&str>| {
            invoker(uid.map(OsStr::new), gid.map(OsStr::new)).map(|(uid, gid)| (uid.as_raw(), gid.as_raw()))
        };
        assert_eq!(who(Some("1000"), Some("100")), Ok((1000, 100)));
        assert_eq!(who(Some("1000"), None), Ok((1000, NOBODY)));
        assert_eq!(who(None, None), Ok((NOBODY, NOBODY)));
        assert_eq!(who(Some("0"), Some("0")), Ok((NOBODY, NOBODY)));
        assert!(who(Some("-1"), None).is_err());
    }

    /// Runs the inner test in a process of its own, since there is no way back. As root it must lose everything, as
    /// another user it must stay who it is.
    #[test]
    fn root_is_given_up_for_good() {
        let folder = tempfile::tempdir().expect("tempdir");
        let done = Command::new(env::current_exe().expect("this test"))
            .args(["--exact", "daemon::person::tests::becomes_the_person", "--ignored"])
            .env("GUILDNET_TEST_HOME", folder.path().join("home"))
            .env("SUDO_UID", "4711")
            .env("SUDO_GID", "4712")
            .output()
            .expect("runs");
        let said = String::from_utf8_lossy(&done.stdout);
        assert!(done.status.success(), "{said}");
        assert!(said.contains("1 passed"), "the inner test has run: {said}");
    }

    #[test]
    #[ignore = "run by root_is_given_up_for_good, in a process of its own"]
    fn becomes_the_person() {
        let home = PathBuf::from(env::var_os("GUILDNET_TEST_HOME").expect("a home"));
        let before = Uid::effective();
        if before.is_root() {
            // The person must be able to reach the home folder's parent; only root can change it.
            let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
            fs::set_permissions(home.parent().expect("a parent"), open).expect("chmod");
        }
        let person = become_person(Some(&home), &[]).expect("became");
        assert_eq!(person.home, home);
        if !before.is_root() {
            assert_eq!((Uid::effective(), person.uid), (before, before.as_raw()));
            return;
        }
        assert_eq!((person.uid, person.gid), (4711, 4712));
        let status = fs::read_to_string("/proc/thread-self/status").expect("status");
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).expect(name);
            line.split_whitespace().collect::<Vec<_>>().join(" ")
        };
        assert_eq!(field("Uid:"), "4711 4711 4711 4711");
        assert_eq!(field("Gid:"), "4712 4712 4712 4712");
        assert_eq!(field("Groups:"), "4712");
        for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
            assert_eq!(field(set), "0000000000000000", "{set}");
        }
        assert_eq!(field("NoNewPrivs:"), "1");
        let made = fs::metadata(&home).expect("the home folder");
        assert_eq!((made.uid(), made.gid(), made.mode() & 0o7777), (4711, 4712, 0o700));
        let file = home.join("f");
        fs::write(&file, b"").expect("the person can write there");
        assert_eq!(fs::metadata(&file).expect("file").mode() & 0o7777, 0o600, "the umask");
    }
}
