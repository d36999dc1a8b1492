//! Background processes of this program: one of a [`Kind`] for each folder, started, found again, stopped. The Host App is
//! one kind, the supervisor of a managed Headscale another.
//!
//! - [`Instance`] is the lock (`host.lock`) that only one process holds; the kernel frees it when that process ends,
//!   however it ends, so nothing stale can look alive. `host.pid` and `host.addr` beside it say who and where.
//! - [`start_background`] runs this very program again as the Host App; [`stop`] ends it. [`Place`] does so for any kind.
//! - [`become_person`] gives up root (`daemon/person.rs`).
//!
//! What the processes do is not known here.

mod person;

use std::{
    ffi::OsString,
    fs::{File, OpenOptions},
    io::{Read as _, Seek as _, SeekFrom, Write as _},
    net::SocketAddr,
    os::{
        fd::OwnedFd,
        unix::{fs::OpenOptionsExt as _, process::CommandExt as _},
    },
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};

use guildnet_model::Class;
use guildnet_store::private;
use nix::{fcntl::FcntlArg, libc};
use rustix::{
    event::{PollFd, PollFlags, Timespec},
    io::Errno,
    process::{Pid, PidfdFlags, Signal},
};
use tokio::{
    process::{Child, Command},
    time::{Instant, sleep},
};

pub use person::{Person, become_person};

use crate::{HostError, client::HostClient, error::Explained as _, settings::JSON_LOG, systemd};

/// How often a starting process is asked. Its lock and files are all that there is to see at first, and nothing tells
/// when they change.
const START_POLL: Duration = Duration::from_millis(50);
/// How long a killed process may take to be gone.
const KILL_TIME: Duration = Duration::from_secs(5);
/// Size at which the log is put aside at a start, in bytes; one older file is kept.
const LOG_LIMIT: u64 = 10 * 1024 * 1024;
/// How much of the log's end is shown when a start fails: lines, and bytes to look through for them.
const LOG_TAIL: (usize, u64) = (15, 8 * 1024);

/// A kind of background process: what it is called, and what its files begin with.
#[derive(Debug)]
pub(crate) struct Kind {
    /// In the middle of a sentence.
    what: &'static str,
    /// Its files are this and an ending: `host.lock`, `host.pid`, `host.addr`, `host.log`.
    stem: &'static str,
    /// What is said to who wants to start a second one.
    taken_hint: &'static str,
    /// How long a start may take until it is ready.
    start_time: Duration,
}

/// The Host App; its folder is the home folder.
pub(crate) static HOST: Kind = Kind {
    what: "Host App",
    stem: "host",
    taken_hint: "see it with: guildnet status; stop it with: guildnet down; or use another folder with GUILDNET_HOME",
    // It reads files and binds a port, and waits for no cluster; an upgrade of the store is what may take seconds.
    start_time: Duration::from_secs(30),
};

/// The supervisor of a managed Headscale; its folder is Headscale's.
pub(crate) static HEADSCALE: Kind = Kind {
    what: "managed Headscale",
    stem: "headscale",
    taken_hint: "see it with: guildnet headscale status; stop it with: guildnet headscale down",
    // Headscale answers within two seconds; an upgrade of a large database is what may take longer.
    start_time: Duration::from_secs(90),
};

impl Kind {
    /// The one of a folder.
    pub(crate) fn of<'a>(&'static self, folder: &'a Path) -> Place<'a> {
        Place { kind: self, folder }
    }
}

/// A kind of process and the folder that it is, or would be, the only one of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place<'a> {
    kind: &'static Kind,
    folder: &'a Path,
}

/// A background process that runs: the Host App, or another kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Running {
    /// Process id.
    pub pid: u32,
    /// Where its door is, once it is bound.
    pub address: Option<SocketAddr>,
}

/// The proof that this process is the only one of its kind in a folder. Dropping it lets the next one start.
#[derive(Debug)]
pub struct Instance {
    kind: &'static Kind,
    folder: PathBuf,
    _lock: File,
}

impl Instance {
    /// Takes the Host App's lock of a home folder and writes `host.pid`.
    ///
    /// # Errors
    /// [`Class::Conflict`] if another process has the lock; the files can't be made.
    pub fn take(home: &Path) -> Result<Self, HostError> {
        HOST.of(home).take()
    }

    /// Tells clients where it serves (`host.addr`): to be called once that is bound.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn announce(&self, address: SocketAddr) -> Result<(), HostError> {
        let file = self.kind.of(&self.folder).address_file();
        private::write(&file, format!("{address}\n").as_bytes()).explained()
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        // Before the lock goes: what is there belongs to whoever has it.
        let place = self.kind.of(&self.folder);
        for file in [place.address_file(), place.pid_file()] {
            let _ = std::fs::remove_file(file);
        }
    }
}

/// The Host App that holds the lock of this home folder, if one does.
///
/// # Errors
/// A file is there and can't be read. A Host App that has just taken the lock and written nothing yet.
pub fn running(home: &Path) -> Result<Option<Running>, HostError> {
    HOST.of(home).running()
}

/// Starts this program again with `args` as the Host App of `home`, and waits until its door says that it is ready; see
/// [`Place::start`].
///
/// # Errors
/// It ended (with the last lines of its log, and the class of its exit code), or did not become ready in time: then it
/// was stopped again.
/// # Cancellation
/// Dropping the future leaves it running if it was started.
pub async fn start_background(args: &[OsString], home: &Path) -> Result<Running, HostError> {
    HOST.of(home).start(args, home, async || answering(home).await).await
}

/// The Host App that runs, once its door says that it is ready.
async fn answering(home: &Path) -> Result<Option<Running>, HostError> {
    let Some(client) = HostClient::discover(home)? else { return Ok(None) };
    if client.ready().await? { running(home) } else { Ok(None) }
}

/// Stops the Host App of this home folder; see [`Place::stop`]. `false`: none ran.
///
/// # Errors
/// It belongs to another user, or is not gone even after it was killed.
/// # Cancellation
/// Dropping the future leaves it as it is: asked to end, or not.
pub async fn stop(home: &Path, grace: Duration) -> Result<bool, HostError> {
    HOST.of(home).stop(grace).await
}

impl Place<'_> {
    fn file(self, ending: &str) -> PathBuf {
        self.folder.join(format!("{}.{ending}", self.kind.stem))
    }

    fn lock_file(self) -> PathBuf {
        self.file("lock")
    }

    fn pid_file(self) -> PathBuf {
        self.file("pid")
    }

    fn address_file(self) -> PathBuf {
        self.file("addr")
    }

    /// Where its output goes.
    pub(crate) fn log_file(self) -> PathBuf {
        self.file("log")
    }

    /// Where a start puts the log that has grown large.
    pub(crate) fn old_log_file(self) -> PathBuf {
        self.file("log.1")
    }

    /// Takes the lock and writes the file with the process id.
    ///
    /// # Errors
    /// [`Class::Conflict`] if another process has the lock; the files can't be made.
    pub(crate) fn take(self) -> Result<Instance, HostError> {
        private::make_dir(self.folder).explained()?;
        let path = self.lock_file();
        let lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&path)
            .map_err(private::PrivateError::io(&path))
            .explained()?;
        match nix::fcntl::fcntl(&lock, FcntlArg::F_OFD_SETLK(&whole_file())) {
            Ok(_) => {}
            Err(nix::Error::EAGAIN | nix::Error::EACCES) => return Err(self.taken()),
            Err(why) => {
                return Err(HostError::new(Class::Failed, format!("{} can't be locked: {why}", path.display())));
            }
        }
        let this = Instance { kind: self.kind, folder: self.folder.to_owned(), _lock: lock };
        // Of a process that was killed.
        let _ = std::fs::remove_file(self.address_file());
        let own = std::process::id();
        let line = format!("{own} {}\n", started(own).unwrap_or_default());
        private::write(&self.pid_file(), line.as_bytes()).explained()?;
        Ok(this)
    }

    fn taken(self) -> HostError {
        let who = match self.running() {
            Ok(Some(running)) => format!(" (process {})", running.pid),
            _ => String::new(),
        };
        let message = format!("a {} runs already for {}{who}", self.kind.what, self.folder.display());
        HostError::new(Class::Conflict, message).with_hint(self.kind.taken_hint)
    }

    /// The process that holds the lock, if one does.
    ///
    /// # Errors
    /// A file is there and can't be read. A process that has just taken the lock and written nothing yet.
    pub(crate) fn running(self) -> Result<Option<Running>, HostError> {
        let path = self.lock_file();
        let lock = match File::open(&path) {
            Ok(lock) => lock,
            Err(why) if why.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(why) => return Err(private::PrivateError::io(&path)(why)).explained(),
        };
        let mut held = whole_file();
        nix::fcntl::fcntl(&lock, FcntlArg::F_OFD_GETLK(&mut held)).map_err(|why| {
            HostError::new(Class::Failed, format!("{} can't be asked for its lock: {why}", path.display()))
        })?;
        if held.l_type == libc::F_UNLCK as libc::c_short {
            return Ok(None);
        }
        let Some((pid, since)) = self.read_pid()? else { return Err(self.just_starting()) };
        // A number that was given to another process since is not the one that holds the lock.
        if started(pid) != Some(since) {
            return Err(self.just_starting());
        }
        let address = private::read(&self.address_file()).explained()?;
        let address = address.and_then(|text| String::from_utf8_lossy(&text).trim().parse().ok());
        Ok(Some(Running { pid, address }))
    }

    fn just_starting(self) -> HostError {
        let message = format!("a {} is just starting or ending in {}", self.kind.what, self.folder.display());
        HostError::new(Class::Failed, message).with_hint("run the command again in a moment")
    }

    fn read_pid(self) -> Result<Option<(u32, u64)>, HostError> {
        let Some(text) = private::read(&self.pid_file()).explained()? else { return Ok(None) };
        let text = String::from_utf8_lossy(&text);
        let mut words = text.split_whitespace();
        let pid = words.next().and_then(|word| word.parse().ok());
        let since = words.next().and_then(|word| word.parse().ok());
        Ok(pid.zip(since))
    }

    /// Starts this program again with `args`, in the background, and waits until `ready` finds it. It has a session of
    /// its own, its folder as working directory, and its output goes to the log there; `home` is GuildNet's.
    ///
    /// What it needs of Headscale it takes from the home folder: the settings that only this shell has (`HEADSCALE_*`,
    /// `GUILDNET_HEADSCALE_*`, `TS_*`) are not passed on, nor is what systemd told whoever starts it, nor is the shell's working directory with its `.env`. Paths in
    /// `args` must be absolute.
    ///
    /// # Errors
    /// It ended (with the last lines of its log, and the class of its exit code), or did not become ready in time: then
    /// it was stopped again.
    /// # Cancellation
    /// Dropping the future leaves it running if it was started.
    pub(crate) async fn start(
        self,
        args: &[OsString],
        home: &Path,
        ready: impl AsyncFn() -> Result<Option<Running>, HostError>,
    ) -> Result<Running, HostError> {
        private::make_dir(self.folder).explained()?;
        if self.running()?.is_some() {
            return Err(self.taken());
        }
        let (log, seen) = self.open_log(args.iter().any(|arg| arg == JSON_LOG))?;
        let mut child = self.spawn(args, home, log)?;
        let limit = Instant::now() + self.kind.start_time;
        loop {
            let why = match child.try_wait() {
                Ok(Some(status)) => return Err(self.ended(status, seen)),
                Ok(None) => match ready().await {
                    Ok(Some(running)) => return Ok(running),
                    Ok(None) => "it has not said that it is ready".to_owned(),
                    Err(why) => why.to_string(),
                },
                Err(why) => why.to_string(),
            };
            if Instant::now() >= limit {
                // Nothing half-started stays behind.
                let _ = child.kill().await;
                let (what, after) = (self.kind.what, self.kind.start_time);
                let message = format!("the {what} is not ready after {after:?} ({why}){}", self.tail(seen));
                return Err(
                    HostError::new(Class::Unreachable, message).with_hint(format!("see {}", self.log_file().display()))
                );
            }
            sleep(START_POLL).await;
        }
    }

    fn spawn(self, args: &[OsString], home: &Path, log: File) -> Result<Child, HostError> {
        let not_started = |why: std::io::Error| {
            HostError::new(Class::Failed, format!("the {} could not be started: {why}", self.kind.what))
                .with_hint("check that this user may run the guildnet program itself")
        };
        let home = std::path::absolute(home).map_err(not_started)?;
        let folder = std::path::absolute(self.folder).map_err(not_started)?;
        // By what runs now, not by a name: it may have been replaced, or lie where this user can't look.
        let mut command = std::process::Command::new("/proc/self/exe");
        let settings = std::env::vars_os().map(|(name, _)| name).filter(|name| {
            let name = name.to_string_lossy();
            let settings = ["HEADSCALE_", "GUILDNET_HEADSCALE_", "TS_"];
            settings.iter().chain(&systemd::VARIABLES).any(|begin| name.starts_with(begin))
        });
        for name in settings {
            command.env_remove(name);
        }
        command
            .arg0("guildnet")
            .args(args)
            .env("GUILDNET_HOME", &home)
            .current_dir(&folder)
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(not_started)?)
            .stderr(log);
        #[allow(
            unsafe_code,
            reason = "a session of its own can only be made by the child itself, before it runs the program"
        )]
        // SAFETY: between fork and exec only setsid(2) and close_range(2) are called, which are async-signal-safe and
        // allocate nothing.
        unsafe {
            command.pre_exec(|| {
                // Descriptors that a shell or a runner left open here (locks, pipes) must not live on in the background. A
                // kernel before 5.11 can't do it: then they do.
                let _unknown = libc::close_range(3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC as libc::c_int);
                rustix::process::setsid().map(drop).map_err(Into::into)
            });
        }
        Command::from(command).kill_on_drop(false).spawn().map_err(not_started)
    }

    /// Opens the log for appending; also says how long it is. One that has grown large is put aside first.
    fn open_log(self, json: bool) -> Result<(File, u64), HostError> {
        let path = self.log_file();
        if path.metadata().is_ok_and(|meta| meta.len() > LOG_LIMIT) {
            std::fs::rename(&path, self.old_log_file()).map_err(private::PrivateError::io(&path)).explained()?;
        }
        let mut options = OpenOptions::new();
        options.append(true).create(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
        let opened = options.open(&path).and_then(|mut log| {
            // What follows belongs to this start, whatever the last one left.
            let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ");
            let version = env!("CARGO_PKG_VERSION");
            match json {
                true => writeln!(
                    log,
                    r#"{{"timestamp":"{now}","level":"INFO","message":"guildnet {version} starts","target":"guildnet"}}"#
                )?,
                false => writeln!(log, "--- {now} guildnet {version} starts")?,
            }
            let seen = log.metadata()?.len();
            Ok((log, seen))
        });
        opened.map_err(private::PrivateError::io(&path)).explained()
    }

    /// The error of a process that ended while it was starting: its exit code says of what kind.
    fn ended(self, status: ExitStatus, seen: u64) -> HostError {
        let classes = [
            Class::Usage,
            Class::NotFound,
            Class::Credentials,
            Class::Unreachable,
            Class::Conflict,
            Class::Partial,
            Class::Precondition,
        ];
        let code = status.code().and_then(|code| u8::try_from(code).ok());
        let class = classes.into_iter().find(|class| Some(class.exit_code()) == code).unwrap_or(Class::Failed);
        let message = format!("the {} ended while it was starting ({status}){}", self.kind.what, self.tail(seen));
        HostError::new(class, message).with_hint(format!(
            "mend the cause, then run the command again; the whole log: {}",
            self.log_file().display()
        ))
    }

    /// The last lines that the log has got since `seen`, each indented on a line of its own.
    fn tail(self, seen: u64) -> String {
        let read = || -> std::io::Result<Vec<u8>> {
            let mut log = File::open(self.log_file())?;
            let from = log.metadata()?.len().saturating_sub(LOG_TAIL.1).max(seen);
            log.seek(SeekFrom::Start(from))?;
            let mut text = Vec::new();
            log.take(LOG_TAIL.1).read_to_end(&mut text)?;
            Ok(text)
        };
        let text = read().unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        let last = &lines[lines.len().saturating_sub(LOG_TAIL.0)..];
        last.iter().map(|line| format!("\n  {line}")).collect()
    }

    /// Stops the process: asks it (SIGTERM), kills it if it has not ended after `grace`, and returns when it is gone.
    /// `false`: none ran.
    ///
    /// # Errors
    /// It belongs to another user, or is not gone even after it was killed.
    /// # Cancellation
    /// Dropping the future leaves it as it is: asked to end, or not.
    pub(crate) async fn stop(self, grace: Duration) -> Result<bool, HostError> {
        let Some(running) = self.running()? else { return Ok(false) };
        let failed = |what: &str, why: &dyn std::fmt::Display| {
            HostError::new(Class::Failed, format!("the {} (process {}) {what}: {why}", self.kind.what, running.pid))
                .with_hint("run the command as the user who started it")
        };
        let Some(pid) = i32::try_from(running.pid).ok().and_then(Pid::from_raw) else { return Ok(false) };
        let process = match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
            Ok(process) => process,
            Err(Errno::SRCH) => return Ok(true),
            Err(why) => return Err(failed("can't be watched", &why)),
        };
        // The descriptor is of one process for good; that it is the right one is asked once more.
        if self.running()?.map(|again| again.pid) != Some(running.pid) {
            return Ok(true);
        }
        let process = Arc::new(process);
        for (signal, limit) in [(Signal::TERM, grace), (Signal::KILL, KILL_TIME)] {
            match rustix::process::pidfd_send_signal(&process, signal) {
                Ok(()) | Err(Errno::SRCH) => {}
                Err(why) => return Err(failed("can't be stopped", &why)),
            }
            let watched = Arc::clone(&process);
            let ended = tokio::task::spawn_blocking(move || ends_within(&watched, limit)).await;
            match ended.unwrap_or(Err(Errno::INTR)) {
                Ok(true) => {
                    self.clear();
                    return Ok(true);
                }
                Ok(false) => tracing::warn!(pid = running.pid, ?limit, "the {} has not ended yet", self.kind.what),
                Err(why) => return Err(failed("can't be watched", &why)),
            }
        }
        Err(failed("is still there", &"it was killed and has not ended; a disk or device may hang"))
    }

    /// Removes what a killed process left, unless another one has begun.
    fn clear(self) {
        if let Ok(None) = self.running() {
            for file in [self.address_file(), self.pid_file()] {
                let _ = std::fs::remove_file(file);
            }
        }
    }
}

/// A lock on everything. It belongs to the open file, not to the process (fcntl(2), "open file description locks"): it
/// is not lost when another descriptor of the file is closed, and can be asked for without being taken.
fn whole_file() -> libc::flock {
    libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

/// When a process started, in clock ticks since the machine did: with the id it names one process for good. `None` if
/// there is none of that id. (proc_pid_stat(5), field 22; the name in field 2 may hold anything but ends at the last ')'.)
fn started(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// Waits for the end of the process (pidfd_open(2): its descriptor becomes readable), for `limit` at most.
fn ends_within(process: &OwnedFd, limit: Duration) -> Result<bool, Errno> {
    let limit = std::time::Instant::now() + limit;
    loop {
        let left = limit.saturating_duration_since(std::time::Instant::now());
        let left = Timespec::try_from(left).map_err(|_| Errno::INVAL)?;
        match rustix::event::poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&left)) {
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::INTR) => {}
            Err(why) => return Err(why),
        }
    }
}

#[cfg(test)]
mod tests;
