//! How an error explains itself to a person: its class (which becomes the exit code) and the next step.

use serde::Serialize;

/// What kind of trouble an error is. The command's exit code and the API's status follow from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// A check or an operation failed.
    Failed,
    /// The input is wrong: flags, names, files.
    Usage,
    /// The named thing does not exist.
    NotFound,
    /// A credential is missing, refused or expired.
    Credentials,
    /// The other side cannot be reached or did not answer in time.
    Unreachable,
    /// The request contradicts what is there, for example networks that overlap.
    Conflict,
    /// Some clusters failed and some did not.
    Partial,
    /// A precondition of the machine is missing: root for the lab, a device on a node.
    Precondition,
}

impl Class {
    /// The command's exit code for this class.
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Failed => 1,
            Self::Usage => 2,
            Self::NotFound => 3,
            Self::Credentials => 4,
            Self::Unreachable => 5,
            Self::Conflict => 6,
            Self::Partial => 7,
            Self::Precondition => 8,
        }
    }
}

/// An error that knows its class and the next step. `Display` names the thing and the cause.
pub trait Explain: std::error::Error {
    /// The kind of trouble.
    fn class(&self) -> Class;

    /// The next step, in the imperative: a command to run, or what to change.
    fn hint(&self) -> Option<String> {
        None
    }
}
