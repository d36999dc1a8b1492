//! How an error reaches the person: `error:` the thing and the cause, `hint:` the next command, and the exit code.

use std::{fmt, process::ExitCode};

use guildnet_model::{Class, Explain};

use crate::talk::Style;

/// What ends a command early.
#[derive(Debug)]
pub(crate) struct Failure {
    class: Class,
    message: String,
    hint: Option<String>,
}

impl Failure {
    /// A failure of the command's own.
    pub(crate) fn new(class: Class, message: impl fmt::Display, hint: impl Into<String>) -> Self {
        Self { class, message: message.to_string(), hint: Some(hint.into()) }
    }

    /// A failure that only gives the exit code: what is wrong was printed as data.
    pub(crate) const fn said(class: Class) -> Self {
        Self { class, message: String::new(), hint: None }
    }

    /// Whether nothing is left to be said.
    pub(crate) fn is_said(&self) -> bool {
        self.message.is_empty()
    }

    /// Puts the name of what was asked for before the cause.
    pub(crate) fn about(mut self, thing: impl fmt::Display) -> Self {
        self.message = format!("{thing}: {}", self.message);
        self
    }

    /// Adds, for a command that root ran, why a file that root may read could not be read.
    pub(crate) fn of_former_root(mut self) -> Self {
        if self.message.contains("Permission denied") || self.message.contains("permission denied") {
            let why = "the command never works as root: it became the user who called sudo, or nobody (65534); let that user read the file";
            self.hint = Some(self.hint.map_or_else(|| why.to_owned(), |hint| format!("{hint}\n{why}")));
        }
        self
    }

    /// What a person reads: one line for thing and cause, one for the next step. Further lines of either are indented.
    pub(crate) fn render(&self, style: Style) -> String {
        if self.is_said() {
            return String::new();
        }
        let mut text = format!("{} {}\n", style.red("error:"), self.message.trim_end().replace('\n', "\n  "));
        if let Some(hint) = &self.hint {
            text.push_str(&format!("  {} {}\n", style.bold("hint:"), hint.trim_end().replace('\n', "\n        ")));
        }
        text
    }

    /// The process's exit code.
    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.class.exit_code())
    }
}

impl<E: Explain> From<E> for Failure {
    fn from(error: E) -> Self {
        Self { class: error.class(), message: error.to_string(), hint: error.hint() }
    }
}

#[cfg(test)]
mod tests {
    use guildnet_model::Networks;

    use super::*;

    fn refused(text: &str) -> Failure {
        text.parse::<Networks>().map_err(Failure::from).expect_err("refused")
    }

    #[test]
    fn an_error_names_thing_cause_and_next_step() {
        let failure = refused("10.96.0.1/16").about("--routes");
        insta::assert_snapshot!(failure.render(Style::PLAIN), @r"
        error: --routes: 10.96.0.1/16 has host bits set; the network is 10.96.0.0/16
          hint: write 10.96.0.0/16
        ");
    }

    #[test]
    fn further_lines_are_indented() {
        let failure = Failure::new(Class::Failed, "two\nlines", "first this\nthen that");
        insta::assert_snapshot!(failure.render(Style::PLAIN), @r"
        error: two
          lines
          hint: first this
                then that
        ");
    }

    #[test]
    fn the_class_decides_the_exit_code() {
        let code = |text: &str| format!("{:?}", refused(text).exit_code());
        assert_eq!(code("10.96.0.1/16"), format!("{:?}", ExitCode::from(2)));
        assert_eq!(code("10.96.0.0/12,10.96.0.0/16"), format!("{:?}", ExitCode::from(6)));
    }
}
