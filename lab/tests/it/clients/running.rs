//! A program that goes on while the test does other things: what it prints, line by line, and what is typed into it.

use std::{
    io::{BufRead, BufReader, Read, Write},
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use crate::fleet::STEP;

/// Lines that may wait for the test to look at them; then the program waits.
const BACKLOG: usize = 4096;

/// A started program. It ends with this value.
pub(crate) struct Running {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Option<Receiver<String>>,
    readers: Vec<JoinHandle<()>>,
    seen: Vec<String>,
}

impl Running {
    /// Starts it. Its output and its errors are one stream of lines.
    pub(crate) fn start(mut command: Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|why| panic!("{command:?} does not start: {why}"));
        let (tx, lines) = sync_channel(BACKLOG);
        let readers =
            vec![read(child.stdout.take().expect("piped"), tx.clone()), read(child.stderr.take().expect("piped"), tx)];
        Self { stdin: child.stdin.take(), child, lines: Some(lines), readers, seen: Vec::new() }
    }

    /// The next line for which `wanted` gives something; what it gave. The test fails if there is none within a step's time.
    #[track_caller]
    pub(crate) fn find<T>(&mut self, what: &str, wanted: impl Fn(&str) -> Option<T>) -> T {
        let until = Instant::now() + STEP;
        loop {
            match self.next(until.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    let found = wanted(&line);
                    self.seen.push(line);
                    if let Some(found) = found {
                        return found;
                    }
                }
                Err(why) => panic!("{what}: {why}; it said\n{}", self.seen.join("\n")),
            }
        }
    }

    /// The next line that ends with `end`: a prompt or a log's prefix may stand before.
    #[track_caller]
    pub(crate) fn until_line(&mut self, end: &str) {
        self.find(end, |line| line.ends_with(end).then_some(()));
    }

    /// Whether a line that was looked at holds `text`.
    pub(crate) fn has_said(&self, text: &str) -> bool {
        self.seen.iter().any(|line| line.contains(text))
    }

    /// Everything that was looked at.
    pub(crate) fn said(&self) -> &[String] {
        &self.seen
    }

    /// Types text into it.
    pub(crate) fn type_in(&mut self, text: &str) {
        let stdin = self.stdin.as_mut().expect("still open");
        stdin.write_all(text.as_bytes()).and_then(|()| stdin.flush()).expect("it reads");
    }

    /// Asks it to end (SIGTERM).
    pub(crate) fn terminate(&self) {
        self.kill("-TERM");
    }

    /// Sends it a signal: `-KILL`.
    pub(crate) fn kill(&self, signal: &str) {
        let _gone = Command::new("kill").arg(signal).arg(self.child.id().to_string()).status();
    }

    /// Reads to its end; its exit code.
    #[track_caller]
    pub(crate) fn end(&mut self) -> i32 {
        self.stdin = None;
        let until = Instant::now() + STEP;
        loop {
            match self.next(until.saturating_duration_since(Instant::now())) {
                Ok(line) => self.seen.push(line),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => panic!("it does not end; it said\n{}", self.seen.join("\n")),
            }
        }
        self.child.wait().expect("it ended").code().unwrap_or(-1)
    }

    fn next(&self, limit: Duration) -> Result<String, RecvTimeoutError> {
        self.lines.as_ref().map_or(Err(RecvTimeoutError::Disconnected), |lines| lines.recv_timeout(limit))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
        // A reader that waits for room in the queue is let go.
        self.lines = None;
        for reader in self.readers.drain(..) {
            let _ended = reader.join();
        }
    }
}

fn read(from: impl Read + Send + 'static, to: SyncSender<String>) -> JoinHandle<()> {
    std::thread::spawn(move || {
        for line in BufReader::new(from).split(b'\n') {
            let Ok(line) = line else { return };
            let line = String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned();
            if to.send(line).is_err() {
                return;
            }
        }
    })
}
