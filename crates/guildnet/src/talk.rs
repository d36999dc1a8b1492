//! Talk: what is said on standard error while work is done. Data goes to standard output, see `print.rs`.

use std::{
    io::{IsTerminal, Write},
    time::Instant,
};

use guildnet_host::{LogFormat, Progress};
use guildnet_model::ClusterId;

use crate::failure::Failure;

/// Whether text is coloured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Style {
    colour: bool,
}

impl Style {
    /// No colour.
    pub(crate) const PLAIN: Self = Self { colour: false };

    /// Colour on a terminal, unless `NO_COLOR` is set and not empty (no-color.org) or the terminal is dumb.
    pub(crate) fn of(stream: &impl IsTerminal) -> Self {
        let set = |name: &str| std::env::var_os(name).is_some_and(|v| !v.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|v| v == "dumb");
        Self { colour: stream.is_terminal() && !set("NO_COLOR") && !dumb }
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.colour { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
    }

    pub(crate) fn bold(self, text: &str) -> String {
        self.paint("1", text)
    }

    pub(crate) fn red(self, text: &str) -> String {
        self.paint("1;31", text)
    }

    pub(crate) fn green(self, text: &str) -> String {
        self.paint("32", text)
    }

    pub(crate) fn yellow(self, text: &str) -> String {
        self.paint("33", text)
    }

    pub(crate) fn dim(self, text: &str) -> String {
        self.paint("2", text)
    }
}

/// Progress lines with the time since the command began: `[  12.3s] a: router ready (1/1)`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Talk {
    begin: Instant,
    style: Style,
    /// Lines are events of the log instead, for whoever reads each line as JSON.
    as_events: bool,
}

impl Talk {
    pub(crate) fn new() -> Self {
        Self { begin: Instant::now(), style: Style::of(&std::io::stderr()), as_events: false }
    }

    /// The same for a process that serves with this form of the log, which has begun.
    pub(crate) fn in_log(self, format: LogFormat) -> Self {
        Self { as_events: format == LogFormat::Json, ..self }
    }

    /// Says what ended the command.
    pub(crate) fn fail(&self, failure: &Failure) {
        match self.as_events {
            true if failure.is_said() => {}
            true => tracing::error!("{}", failure.render(Style::PLAIN).trim_end()),
            false => self.say(failure.render(self.style).trim_end()),
        }
    }

    /// Says a line, without a time.
    pub(crate) fn say(&self, text: &str) {
        if self.as_events {
            return tracing::info!("{text}");
        }
        // Whoever closed standard error does not want to hear it.
        let _closed = writeln!(std::io::stderr(), "{text}");
    }

    fn line(&self, cluster: Option<&ClusterId>, text: &str) -> String {
        let time = self.style.dim(&format!("[{:6.1}s]", self.begin.elapsed().as_secs_f32()));
        match cluster {
            Some(id) => format!("{time} {}: {text}", self.style.bold(id.as_str())),
            None => format!("{time} {text}"),
        }
    }
}

impl Progress for Talk {
    fn step(&self, cluster: Option<&ClusterId>, text: &str) {
        match (self.as_events, cluster) {
            (true, Some(cluster)) => tracing::info!(%cluster, "{text}"),
            (true, None) => tracing::info!("{text}"),
            (false, _) => self.say(&self.line(cluster, text)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_time_cluster_and_text() {
        let talk = Talk { begin: Instant::now(), style: Style::PLAIN, as_events: false };
        let a = "a".parse().expect("an id");
        assert_eq!(talk.line(Some(&a), "router ready (1/1)"), "[   0.0s] a: router ready (1/1)");
        assert_eq!(talk.line(None, "policy unchanged"), "[   0.0s] policy unchanged");
    }
}
