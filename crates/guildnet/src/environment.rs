//! The environment as settings see it: the process's variables, then those of `.env` in the working folder.
//!
//! `.env` is only read, never put into the process's environment: a child would inherit its secrets. Its form is
//! `NAME=VALUE` a line, `#` comments, an optional `export`, optional single or double quotes; no substitution.

use std::{
    collections::BTreeMap,
    fmt, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use guildnet_model::{Class, Explain, Secret};

use crate::failure::Failure;

/// What the names of variables begin with whose values are secrets; the keys of single clusters end with their ids.
const SECRETS: [&str; 3] = ["HEADSCALE_API_KEY", "TS_AUTHKEY", "TS_CLIENT_AUTHKEY"];

/// Variables by name, and the person's own folder. An empty value counts as not set.
pub(crate) struct Environment {
    person_dir: Option<PathBuf>,
    process: fn(&str) -> Option<String>,
    file: BTreeMap<String, Secret<String>>,
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Environment").field("file", &self.file.keys()).finish_non_exhaustive()
    }
}

/// Why `.env` can't be used. Never shows a line's text: it may be a secret.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EnvFileError {
    /// It is there and can't be read.
    #[error("{path} can't be read: {why}")]
    Unreadable { path: String, why: io::Error },
    /// A line has another form.
    #[error("{path}, line {line}: {why}")]
    Line { path: String, line: usize, why: &'static str },
}

impl Explain for EnvFileError {
    fn class(&self) -> Class {
        Class::Usage
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Unreadable { .. } => {
                "make it readable for the user that the command runs as, or run it in another folder".into()
            }
            Self::Line { .. } => "write NAME=VALUE, a line each; see .env.example".into(),
        })
    }
}

impl Environment {
    /// Variables of the process and of an `.env` file, if that is there; `person_dir` is what `~` stands for.
    pub(crate) fn read(path: Option<&Path>, person_dir: Option<PathBuf>) -> Result<Self, EnvFileError> {
        let Some(path) = path else { return Ok(Self { person_dir, process, file: BTreeMap::new() }) };
        let shown = || path.display().to_string();
        let file = match std::fs::read_to_string(path) {
            Ok(text) => parse(&text).map_err(|(line, why)| EnvFileError::Line { path: shown(), line, why })?,
            Err(why) if why.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(why) => return Err(EnvFileError::Unreadable { path: shown(), why }),
        };
        Ok(Self { person_dir, process, file })
    }

    /// What the person should know: a key in a file that others can read.
    pub(crate) fn warning(&self, path: &Path) -> Option<String> {
        let mode = std::fs::metadata(path).ok()?.permissions().mode();
        let is_secret = |name: &str| SECRETS.iter().any(|s| name.starts_with(s)) && !name.ends_with("_FILE");
        let holds_key = self.file.iter().any(|(name, value)| is_secret(name) && !value.expose().is_empty());
        (holds_key && mode & 0o077 != 0)
            .then(|| format!("warning: {} holds a key and others can read it: chmod 600 {0}", path.display()))
    }

    /// The variables of the process alone.
    pub(crate) fn of_process() -> Self {
        Self { person_dir: std::env::home_dir(), process, file: BTreeMap::new() }
    }

    /// The first of `names` that is set, and its value: all of them are looked up in the process before `.env`.
    pub(crate) fn first<'n>(&self, names: &[&'n str]) -> Option<(&'n str, String)> {
        let of_process = names.iter().find_map(|n| Some((*n, (self.process)(n).filter(|v| !v.is_empty())?)));
        let of_file = || {
            names.iter().find_map(|n| {
                let value = self.file.get(*n)?.expose();
                (!value.is_empty()).then(|| (*n, value.clone()))
            })
        };
        of_process.or_else(of_file)
    }

    /// One variable.
    pub(crate) fn get(&self, name: &str) -> Option<String> {
        self.first(&[name]).map(|(_, value)| value)
    }

    /// A path as it was typed: a leading `~/` is the person's own folder (a shell leaves it as it is behind `=`).
    pub(crate) fn path(&self, text: impl AsRef<Path>) -> PathBuf {
        match (text.as_ref().strip_prefix("~"), &self.person_dir) {
            (Ok(rest), Some(dir)) => dir.join(rest),
            _ => text.as_ref().to_owned(),
        }
    }

    /// The person's own folder.
    pub(crate) fn person_dir(&self) -> Result<PathBuf, Failure> {
        self.person_dir.clone().filter(|dir| dir.is_absolute()).ok_or_else(|| {
            Failure::new(Class::Precondition, "this user has no folder of their own", "set HOME to an absolute path")
        })
    }

    /// As kubectl: the first file of `KUBECONFIG`, else `~/.kube/config`.
    pub(crate) fn default_kubeconfig(&self) -> Option<PathBuf> {
        self.kubeconfigs().into_iter().next()
    }

    /// As kubectl: all files of `KUBECONFIG`, in their order, else `~/.kube/config`.
    pub(crate) fn kubeconfigs(&self) -> Vec<PathBuf> {
        let listed = self.get("KUBECONFIG").unwrap_or_default();
        let listed: Vec<PathBuf> = listed.split(':').filter(|p| !p.is_empty()).map(|p| self.path(p)).collect();
        if listed.is_empty() { self.person_dir.iter().map(|dir| dir.join(".kube/config")).collect() } else { listed }
    }

    /// For tests: variables given here instead of the process's, and a `.env`.
    #[cfg(test)]
    pub(crate) fn of(process: fn(&str) -> Option<String>, file: &str) -> Self {
        Self { person_dir: Some("/person".into()), process, file: parse(file).expect("a good file") }
    }
}

fn process(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Parses a `.env` file; the error is a line's number and what is wrong with it.
fn parse(text: &str) -> Result<BTreeMap<String, Secret<String>>, (usize, &'static str)> {
    let mut found = BTreeMap::new();
    for (at, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let wrong = |why| (at + 1, why);
        let line = line.strip_prefix("export ").unwrap_or(line);
        let (name, value) = line.split_once('=').ok_or(wrong("there is no '='"))?;
        let name = name.trim();
        let letters = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if name.is_empty() || !name.chars().all(letters) || name.starts_with(|c: char| c.is_ascii_digit()) {
            return Err(wrong("the name before '=' is not made of letters, digits and '_'"));
        }
        found.insert(name.to_owned(), Secret::new(value_of(value.trim()).map_err(wrong)?));
    }
    Ok(found)
}

/// A value without its quotes; without quotes, a `#` after white space begins a comment.
fn value_of(text: &str) -> Result<String, &'static str> {
    for quote in ['"', '\''] {
        let Some(inner) = text.strip_prefix(quote) else { continue };
        let (value, rest) = inner.split_once(quote).ok_or("the quote is not closed")?;
        let rest = rest.trim_start();
        return if rest.is_empty() || rest.starts_with('#') {
            Ok(value.into())
        } else {
            Err("text follows the closing quote")
        };
    }
    let end = text.match_indices('#').find(|(at, _)| *at == 0 || text[..*at].ends_with(char::is_whitespace));
    Ok(end.map_or(text, |(at, _)| text[..at].trim_end()).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn none(_: &str) -> Option<String> {
        None
    }

    #[test]
    fn lines_are_names_and_values() {
        let env = Environment::of(none, "# a comment\n\nA=1\nexport B = two words # note\nC='x # y'\nD=\"z\"\nE=a#b\n");
        let got: Vec<_> = ["A", "B", "C", "D", "E"].iter().map(|n| env.get(n).expect("set")).collect();
        assert_eq!(got, ["1", "two words", "x # y", "z", "a#b"]);
    }

    #[test]
    fn an_empty_value_is_not_set() {
        assert_eq!(Environment::of(none, "A=\nB=''\n").first(&["A", "B"]), None);
    }

    #[test]
    fn the_process_wins_over_the_file_whatever_the_name() {
        let env = Environment::of(|n| (n == "B").then(|| "process".into()), "A=file\nB=file\n");
        assert_eq!(env.first(&["A", "B"]), Some(("B", "process".into())));
        assert_eq!(env.get("A").as_deref(), Some("file"));
    }

    #[test]
    fn a_wrong_line_is_named_by_its_number_without_its_text() {
        for (text, line) in [("A=1\nsecret-without-name", 2), ("9A=secret", 1), ("A='secret", 1), ("A='b' secret", 1)] {
            let (at, why) = parse(text).expect_err("wrong");
            assert_eq!(at, line);
            assert!(!why.contains("secret"));
        }
    }

    #[test]
    fn a_tilde_is_the_persons_folder() {
        let env = Environment::of(none, "");
        assert_eq!(env.path("~/x"), Path::new("/person/x"));
        assert_eq!(env.path("~other/x"), Path::new("~other/x"));
        assert_eq!(env.path("/x"), Path::new("/x"));
    }

    #[test]
    fn the_default_kubeconfig_is_kubectls() {
        let of = |file| Environment::of(none, file).default_kubeconfig().expect("one");
        assert_eq!(of("KUBECONFIG=:/a:/b"), Path::new("/a"));
        assert_eq!(of(""), Path::new("/person/.kube/config"));
    }

    #[test]
    fn debug_shows_no_value() {
        assert!(!format!("{:?}", Environment::of(none, "A=secret")).contains("secret"));
    }
}
