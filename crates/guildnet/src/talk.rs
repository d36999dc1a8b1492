//! Talk: what is said on standard error while work is done. Data goes to standard output, see `print.rs`.

use std::{
    io::{IsTerminal, Write},
    time::Instant,
};

use guildnet_host::Progress;
use guildnet_model::ClusterId;

/// Whether text is coloured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Style {
    colour: bool,
}

impl Style {
    /// No colour.
    #[cfg(test)]
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
#[derive(Debug)]
pub(crate) struct Talk {
    begin: Instant,
    style: Style,
}

impl Talk {
    pub(crate) fn new() -> Self {
        Self { begin: Instant::now(), style: Style::of(&std::io::stderr()) }
    }

    /// Says a line, without a time.
    pub(crate) fn say(&self, text: &str) {
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
        self.say(&self.line(cluster, text));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_time_cluster_and_text() {
        let talk = Talk { begin: Instant::now(), style: Style::PLAIN };
        let a = "a".parse().expect("an id");
        assert_eq!(talk.line(Some(&a), "router ready (1/1)"), "[   0.0s] a: router ready (1/1)");
        assert_eq!(talk.line(None, "policy unchanged"), "[   0.0s] policy unchanged");
    }
}
