//! `guildnet logs`: the last lines of the Host App's log, and those that come. The log is `host.log` in the home folder, and
//! `host.log.1` is what a start put aside ([`crate::daemon`]); a Host App in the foreground, systemd's too, writes elsewhere.
//!
//! `logs/select.rs` decides which lines concern a cluster; `logs/file.rs` cuts a file into lines. Nothing is asked of the
//! Host App, so a log can be read of one that does not answer.

mod file;
mod select;

use std::{
    collections::VecDeque,
    fs,
    io::{self, Write},
    os::{
        fd::{BorrowedFd, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
};

use guildnet_model::{Class, ClusterId};
use rustix::{
    event::{PollFd, PollFlags},
    fs::inotify::{self, CreateFlags, WatchFlags},
    io::Errno,
};

use crate::{
    HostError, Progress, Settings, add,
    daemon::{self, HOST},
};
use file::Lines;
use select::Selection;

/// Where a Host App's log is that was not started in the background.
const ELSEWHERE: &str = "where it was started, or in the journal (journalctl --user -u guildnet, or without --user)";

/// What is to be printed.
#[derive(Clone, Debug)]
pub struct LogsRequest {
    /// Only lines that concern this cluster.
    pub cluster: Option<ClusterId>,
    /// How many of the last lines.
    pub lines: usize,
    /// Whether to go on with what is written from now on.
    pub follow: bool,
}

/// See [`crate::logs`].
pub(crate) async fn logs(
    settings: &Settings,
    request: &LogsRequest,
    out: &mut dyn Write,
    reader: BorrowedFd<'_>,
    progress: &dyn Progress,
) -> Result<(), HostError> {
    let elsewhere = writes_elsewhere(&settings.home);
    if let Some(pid) = elsewhere {
        progress.step(None, &format!("the log of the Host App that runs (process {pid}) is {ELSEWHERE}"));
    }
    let place = HOST.of(&settings.home);
    let (log, old) = (place.log_file(), place.old_log_file());
    // Watched before it is read: what is written in between is seen by one or the other.
    let changes = if request.follow { Changes::of(&settings.home)? } else { None };
    let now = Lines::open(&log)?;
    let before = Lines::open(&old)?.filter(|old| now.as_ref().is_none_or(|now| !now.is_same(old)));
    if before.is_none() && now.is_none() && changes.is_none() {
        return Err(no_log(&log, elsewhere.is_some()));
    }
    let mut shown = Shown { selection: Selection::of(request.cluster.as_ref()), out };
    let (last, found, now) = shown.last(before, now, request)?;
    if let (Some(id), false) = (&request.cluster, found) {
        // Asked only now: the log tells of clusters that are gone, and can be read when the store can't.
        let known: Option<Vec<_>> =
            add::cluster_list(settings).await.ok().map(|c| c.into_iter().map(|c| c.id).collect());
        if let Some(known) = known.filter(|known| !known.contains(id)) {
            return Err(HostError::unknown_cluster(id, &known));
        }
    }
    if !shown.put(last)? {
        return Ok(());
    }
    match changes {
        Some(changes) => shown.follow(&log, now, &changes, reader),
        None => Ok(()),
    }
}

/// What is printed, and where.
struct Shown<'a> {
    selection: Selection,
    out: &'a mut dyn Write,
}

impl Shown<'_> {
    /// The last lines of both files, whether there was any at all, and the newer file with what it has not told yet.
    fn last(
        &mut self,
        before: Option<Lines>,
        mut now: Option<Lines>,
        request: &LogsRequest,
    ) -> Result<(VecDeque<String>, bool, Option<Lines>), HostError> {
        let (mut last, mut found) = (VecDeque::new(), false);
        let mut keep = |line: String| {
            if self.selection.keeps(&line) {
                found = true;
                last.push_back(line);
                if last.len() > request.lines {
                    last.pop_front();
                }
            }
        };
        if let Some(mut before) = before {
            while let Some(line) = before.next_line()? {
                keep(line);
            }
            before.begun_line().into_iter().for_each(&mut keep);
        }
        if let Some(now) = &mut now {
            while let Some(line) = now.next_line()? {
                keep(line);
            }
            if !request.follow {
                now.begun_line().into_iter().for_each(&mut keep);
            }
        }
        Ok((last, found, now))
    }

    /// Prints what comes, until nobody reads it any more or the folder is gone.
    fn follow(
        &mut self,
        log: &Path,
        mut now: Option<Lines>,
        changes: &Changes,
        reader: BorrowedFd<'_>,
    ) -> Result<(), HostError> {
        loop {
            if !self.put_all(&mut now)? {
                return Ok(());
            }
            match Lines::open(log)? {
                // The next start has put the old one aside, which may have got a last line since it was read.
                Some(next) if now.as_ref().is_none_or(|now| !now.is_same(&next)) => {
                    if !self.put_all(&mut now)? {
                        return Ok(());
                    }
                    now = Some(next);
                }
                _ if changes.wait(reader)? => {}
                _ => return Ok(()),
            }
        }
    }

    /// Prints what a file has got. `false`: see [`Shown::put`].
    fn put_all(&mut self, file: &mut Option<Lines>) -> Result<bool, HostError> {
        let Some(file) = file else { return Ok(true) };
        while let Some(line) = file.next_line()? {
            if self.selection.keeps(&line) && !self.put([line])? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Prints lines. `false`: whoever read them has gone, which is no error.
    fn put(&mut self, lines: impl IntoIterator<Item = String>) -> Result<bool, HostError> {
        let written = lines.into_iter().try_for_each(|line| writeln!(self.out, "{line}"));
        match written.and_then(|()| self.out.flush()) {
            Ok(()) => Ok(true),
            Err(why) if why.kind() == io::ErrorKind::BrokenPipe => Ok(false),
            Err(why) => Err(HostError::new(Class::Failed, format!("the log can't be printed: {why}"))
                .with_hint("make room, or name another file")),
        }
    }
}

/// The process of the Host App, if it runs and its log is not the file.
fn writes_elsewhere(home: &Path) -> Option<u32> {
    let running = daemon::running(home).ok()??;
    // One that runs and has no such file certainly does.
    let Ok(log) = fs::metadata(HOST.of(home).log_file()) else { return Some(running.pid) };
    let its = fs::metadata(format!("/proc/{}/fd/2", running.pid)).ok()?;
    let same = (log.dev(), log.ino()) == (its.dev(), its.ino());
    (!same).then_some(running.pid)
}

fn no_log(log: &Path, elsewhere: bool) -> HostError {
    let hint = match elsewhere {
        true => format!("it is {ELSEWHERE}"),
        false => "it is made by a Host App in the background: guildnet up".to_owned(),
    };
    HostError::new(Class::NotFound, format!("there is no log {}", log.display())).with_hint(hint)
}

/// Tells when something happens in a folder (inotify(7)).
struct Changes {
    events: OwnedFd,
    folder: PathBuf,
}

impl Changes {
    /// `None` if the folder is not there.
    fn of(folder: &Path) -> Result<Option<Self>, HostError> {
        let refused = |why: Errno| {
            HostError::new(Class::Failed, format!("{} can't be watched: {}", folder.display(), io::Error::from(why)))
                .with_hint("leave out --follow")
        };
        let events = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).map_err(refused)?;
        let what = WatchFlags::CREATE | WatchFlags::MODIFY | WatchFlags::MOVED_TO | WatchFlags::DELETE_SELF;
        match inotify::add_watch(&events, folder, what) {
            Ok(_) => Ok(Some(Self { events, folder: folder.to_owned() })),
            Err(Errno::NOENT) => Ok(None),
            Err(why) => Err(refused(why)),
        }
    }

    /// Waits for the next change. `false`: `reader` has gone, or the folder.
    fn wait(&self, reader: BorrowedFd<'_>) -> Result<bool, HostError> {
        let failed = |why: Errno| {
            let why = io::Error::from(why);
            HostError::new(Class::Failed, format!("{} can't be watched any more: {why}", self.folder.display()))
                .with_hint("run the command again")
        };
        loop {
            // That a reader has gone is told unasked.
            let mut both =
                [PollFd::new(&self.events, PollFlags::IN), PollFd::from_borrowed_fd(reader, PollFlags::empty())];
            match rustix::event::poll(&mut both, None) {
                Err(Errno::INTR) => continue,
                told => told.map_err(failed)?,
            };
            if !both[1].revents().is_empty() {
                return Ok(false);
            }
            // Which change it was does not matter: the file is looked at.
            let mut events = [0; 4096];
            while rustix::io::read(&self.events, &mut events).is_ok_and(|read| read > 0) {}
            return Ok(self.folder.is_dir());
        }
    }
}

#[cfg(test)]
mod tests;
