//! A log as lines: those that are complete, also when the file grows while it is read.

use std::{
    fs::File,
    io::{BufRead as _, BufReader, ErrorKind, Read as _, Seek as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use guildnet_store::private::PrivateError;

use crate::{HostError, error::Explained as _};

/// Where a line is cut, in bytes: far above what is written, so that no file takes more room than this.
const LINE_LIMIT: usize = 64 * 1024;

/// An open log.
#[derive(Debug)]
pub(super) struct Lines {
    file: BufReader<File>,
    path: PathBuf,
    /// How much was read, in bytes.
    at: u64,
    /// A line that has no end yet.
    begun: Vec<u8>,
}

impl Lines {
    /// `None` if there is no such file.
    pub(super) fn open(path: &Path) -> Result<Option<Self>, HostError> {
        match File::open(path) {
            Ok(file) => {
                let file = BufReader::new(file);
                Ok(Some(Self { file, path: path.to_owned(), at: 0, begun: Vec::new() }))
            }
            Err(why) if why.kind() == ErrorKind::NotFound => Ok(None),
            Err(why) => Err(PrivateError::io(path)(why)).explained(),
        }
    }

    /// Whether both are one file.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        let id = |of: &Self| of.file.get_ref().metadata().ok().map(|meta| (meta.dev(), meta.ino()));
        id(self) == id(other)
    }

    /// The next line, if it is there with its end. What was read of one without is kept for the next call.
    pub(super) fn next_line(&mut self) -> Result<Option<String>, HostError> {
        let room = (LINE_LIMIT - self.begun.len()) as u64;
        let read = (&mut self.file).take(room).read_until(b'\n', &mut self.begun);
        let read = read.map_err(PrivateError::io(&self.path)).explained()?;
        self.at += read as u64;
        if self.begun.ends_with(b"\n") || self.begun.len() >= LINE_LIMIT {
            return Ok(self.begun_line());
        }
        // Somebody has emptied it: it begins again.
        if self.file.get_ref().metadata().is_ok_and(|meta| meta.len() < self.at) {
            self.file.rewind().map_err(PrivateError::io(&self.path)).explained()?;
            self.at = 0;
            self.begun.clear();
            return self.next_line();
        }
        Ok(None)
    }

    /// The line that has no end yet, as far as it goes.
    pub(super) fn begun_line(&mut self) -> Option<String> {
        let line = std::mem::take(&mut self.begun);
        if line.is_empty() { None } else { Some(printable(&line)) }
    }
}

/// A line as text. What would steer a terminal is shown instead: what a cluster says may stand in it.
fn printable(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line.trim_ascii_end());
    let mut printed = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() && c != '\t' { printed.extend(c.escape_default()) } else { printed.push(c) }
    }
    printed
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write as _};

    use super::*;

    fn rest(lines: &mut Lines) -> Vec<String> {
        std::iter::from_fn(|| lines.next_line().expect("read")).collect()
    }

    #[test]
    fn a_line_is_told_once_it_has_its_end() {
        let folder = tempfile::tempdir().expect("tempdir");
        let path = folder.path().join("log");
        assert!(Lines::open(&path).expect("asked").is_none());
        let mut log = File::create(&path).expect("made");
        let mut lines = Lines::open(&path).expect("asked").expect("there");
        write!(log, "one\ntw").expect("written");
        assert_eq!(rest(&mut lines), ["one"]);
        write!(log, "o\n\nthree").expect("written");
        assert_eq!(rest(&mut lines), ["two", ""]);
        assert_eq!(lines.begun_line().as_deref(), Some("three"));
        assert_eq!(lines.begun_line(), None);
    }

    #[test]
    fn an_emptied_file_begins_again() {
        let folder = tempfile::tempdir().expect("tempdir");
        let path = folder.path().join("log");
        fs::write(&path, "one\ntwo\nbegun").expect("written");
        let mut lines = Lines::open(&path).expect("asked").expect("there");
        assert_eq!(rest(&mut lines), ["one", "two"]);
        fs::write(&path, "three\n").expect("written");
        assert_eq!(rest(&mut lines), ["three"]);
    }

    #[test]
    fn a_line_without_an_end_takes_no_more_room_than_its_limit() {
        let folder = tempfile::tempdir().expect("tempdir");
        let path = folder.path().join("log");
        fs::write(&path, vec![b'x'; 3 * LINE_LIMIT + 1]).expect("written");
        let mut lines = Lines::open(&path).expect("asked").expect("there");
        assert!(rest(&mut lines).iter().map(String::len).eq([LINE_LIMIT; 3]));
        assert_eq!(lines.begun_line().as_deref(), Some("x"));
    }

    #[test]
    fn nothing_steers_the_terminal() {
        assert_eq!(printable(b"a\x1b[2J\tb\xff\r\n"), "a\\u{1b}[2J\tb\u{fffd}");
    }
}
