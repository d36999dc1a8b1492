//! Runs short programs to their end and says what they said when they fail; polls where only polling is possible.

use std::{
    ffi::OsStr,
    io::Write,
    path::Path,
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use crate::error::LabError;

/// The search path of everything the lab starts: `sbin` is not on an ordinary user's.
pub(crate) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(150);

/// How much of a failed program's words an error repeats.
const TAIL: usize = 2_000;

/// A command with the lab's search path.
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.env("PATH", PATH).stdin(Stdio::null());
    command
}

/// Runs `program ARGS...`; its standard output, or an error with what it said.
pub(crate) fn run<S: AsRef<OsStr>>(program: impl AsRef<OsStr>, args: &[S]) -> Result<String, LabError> {
    let mut command = command(program);
    command.args(args);
    finish(command, None)
}

/// Runs a prepared command, feeding it `input`.
pub(crate) fn finish(mut command: Command, input: Option<&str>) -> Result<String, LabError> {
    let shown = shown(&command);
    let failed = |source| LabError::Io { what: shown.clone(), source };
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let output: Output = if let Some(input) = input {
        let mut child = command.stdin(Stdio::piped()).spawn().map_err(failed)?;
        let mut stdin = child.stdin.take().expect("stdin was asked for as a pipe");
        let fed = stdin.write_all(input.as_bytes());
        drop(stdin);
        let output = child.wait_with_output().map_err(failed)?;
        // A program that refuses its input says why itself.
        if output.status.success() {
            fed.map_err(failed)?;
        }
        output
    } else {
        command.output().map_err(failed)?
    };
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let mut said = String::from_utf8_lossy(&output.stderr).into_owned();
    if said.trim().is_empty() {
        said = String::from_utf8_lossy(&output.stdout).into_owned();
    }
    Err(LabError::Command {
        command: shown,
        status: output.status.to_string(),
        said: tail(said.trim(), TAIL).to_owned(),
    })
}

/// A command in a network namespace, in the machine's own mount namespace.
pub(crate) fn in_netns(name: &str, program: impl AsRef<OsStr>) -> Command {
    let mut inside = command("nsenter");
    inside.arg(format!("--net=/run/netns/{name}")).arg("--").arg(program);
    inside
}

/// Polls `ready` until it holds, at most `limit`. `ready` may fail for good, or leave words for the time-out's message.
pub(crate) fn until(
    what: &str,
    limit: Duration,
    mut ready: impl FnMut(&mut String) -> Result<bool, LabError>,
) -> Result<(), LabError> {
    let begin = Instant::now();
    let mut seen = String::new();
    loop {
        if ready(&mut seen)? {
            return Ok(());
        }
        if begin.elapsed() >= limit {
            let detail = if seen.is_empty() { String::new() } else { format!("; seen last: {seen}") };
            return Err(LabError::Timeout { what: what.to_owned(), after: limit, detail });
        }
        std::thread::sleep(POLL);
    }
}

/// The last lines of a log file, for an error.
pub(crate) fn log_tail(path: &Path) -> String {
    let text = std::fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    format!("{}\n({})", tail(text.trim(), TAIL), path.display())
}

/// The end of a text, from a line's start, at most `limit` bytes.
fn tail(text: &str, limit: usize) -> &str {
    if text.len() <= limit {
        return text;
    }
    let mut from = text.len() - limit;
    while !text.is_char_boundary(from) {
        from += 1;
    }
    let rest = &text[from..];
    rest.find('\n').map_or(rest, |at| &rest[at + 1..])
}

/// The command line, for an error.
fn shown(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|arg| arg.to_string_lossy().into_owned()));
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tail_begins_at_a_line() {
        assert_eq!(tail("one\ntwo\nthree", 8), "three");
        assert_eq!(tail("short", 8), "short");
    }

    #[test]
    fn a_failed_command_says_what_it_was_and_what_it_said() {
        let why = run("sh", &["-c", "echo broken >&2; exit 3"]).expect_err("it fails").to_string();
        assert!(why.contains("broken") && why.contains("sh -c") && why.contains('3'), "{why}");
    }

    #[test]
    fn a_wait_that_ends_in_vain_tells_what_was_seen() {
        let why = until("the moon", Duration::ZERO, |seen| {
            *seen = "clouds".into();
            Ok(false)
        });
        assert_eq!(why.expect_err("never ready").to_string(), "the moon: not within 0 s; seen last: clouds");
    }
}
