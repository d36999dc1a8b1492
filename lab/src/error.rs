//! What can go wrong in the lab, in the user's words: the thing, the cause, the next command.

use std::{io, path::PathBuf, time::Duration};

/// A failure of the lab.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// Network namespaces, mounts and cgroups are root's to make.
    #[error("the lab needs root: it makes network namespaces, mounts and cgroups")]
    NotRoot,
    /// Something of the machine that the lab can't do without.
    #[error("{what}")]
    Missing {
        /// What is missing.
        what: String,
        /// The command that brings it.
        hint: String,
    },
    /// No lab of this name is up.
    #[error("no lab is up (instance {instance:?})")]
    NotRunning {
        /// The instance looked for.
        instance: String,
    },
    /// A name or number that the lab does not know.
    #[error("{what}")]
    Usage {
        /// What is wrong with it.
        what: String,
    },
    /// A cluster or process that this lab does not have.
    #[error("{what}")]
    NotFound {
        /// What was looked for, and what there is.
        what: String,
    },
    /// The running lab differs from the wanted one in a way that needs a fresh start.
    #[error("{what}")]
    Conflict {
        /// How they differ.
        what: String,
    },
    /// A program that the lab ran failed.
    #[error("{command} failed ({status}): {said}")]
    Command {
        /// The command line.
        command: String,
        /// How it ended.
        status: String,
        /// The end of what it said.
        said: String,
    },
    /// A peer could not be built.
    #[error("cannot build {peer} ({status}); the end of the build's words:\n{tail}")]
    Build {
        /// Its name and version.
        peer: String,
        /// How the compiler ended.
        status: String,
        /// The last lines of its log.
        tail: String,
    },
    /// A long-running process of the lab ended when it should not have.
    #[error("{name} ended by itself; the end of its log:\n{tail}")]
    Died {
        /// The process, as `CLUSTER/PROGRAM`.
        name: String,
        /// The last lines of its log.
        tail: String,
    },
    /// Something did not become ready.
    #[error("{what}: not within {} s{}", after.as_secs(), detail)]
    Timeout {
        /// What was waited for.
        what: String,
        /// How long.
        after: Duration,
        /// What was seen last, or empty.
        detail: String,
    },
    /// A file, folder or system call.
    #[error("{what}: {source}")]
    Io {
        /// What was tried, with the path.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
    /// The state file can't be understood.
    #[error("{}: not a state file of this version: {why}", path.display())]
    State {
        /// The file.
        path: PathBuf,
        /// The parser's words.
        why: String,
    },
    /// A certificate could not be made.
    #[error("cannot make the certificate of {subject}: {why}")]
    Certificate {
        /// Whose.
        subject: String,
        /// The library's words.
        why: String,
    },
}

impl LabError {
    /// Wraps an input/output error with what was tried.
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    /// The same for errors of system calls.
    pub(crate) fn os(what: impl Into<String>) -> impl FnOnce(nix::Error) -> Self {
        let what = what.into();
        move |errno| Self::Io { what, source: errno.into() }
    }

    /// The next command to run.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NotRoot => Some("run it with sudo".into()),
            Self::Missing { hint, .. } => Some(hint.clone()),
            Self::NotRunning { instance } if instance == "default" => Some("guildnet-lab up".into()),
            Self::NotRunning { instance } => Some(format!("GUILDNET_LAB_INSTANCE={instance} guildnet-lab up")),
            Self::Conflict { .. } | Self::State { .. } => Some("guildnet-lab down, then guildnet-lab up".into()),
            Self::Died { .. } | Self::Timeout { .. } | Self::Command { .. } => {
                Some("guildnet-lab status shows what runs; guildnet-lab up starts what does not".into())
            }
            Self::NotFound { .. } => Some("guildnet-lab status lists what there is".into()),
            Self::Build { .. } => Some("guildnet-lab build, once the cause is gone: what is built is kept".into()),
            Self::Usage { .. } => Some("guildnet-lab --help".into()),
            Self::Io { .. } | Self::Certificate { .. } => None,
        }
    }

    /// The exit code: 2 usage, 3 not found, 5 timed out, 6 conflict, 8 a precondition is missing, else 1.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::NotRoot | Self::Missing { .. } => 8,
            Self::Usage { .. } => 2,
            Self::NotRunning { .. } | Self::NotFound { .. } => 3,
            Self::Timeout { .. } => 5,
            Self::Conflict { .. } => 6,
            Self::Command { .. }
            | Self::Died { .. }
            | Self::Io { .. }
            | Self::State { .. }
            | Self::Build { .. }
            | Self::Certificate { .. } => 1,
        }
    }
}
