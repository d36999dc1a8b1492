//! The bearer token of an access: fixed, in a file that others keep fresh, or from a program that hands one out.
//!
//! [`Credential::bearer`] is asked before each request and answers at once nearly always; [`Credential::refused`] is told
//! when the API server did not accept what was given. `credential/file.rs` and `credential/program.rs` are the two kinds
//! that change. Nothing runs by itself: a token that nobody asks for is not refreshed.
//!
//! Absent: client certificates from programs, which would need connections of their own; they are refused with the reason.

mod file;
pub(crate) mod program;

use std::path::PathBuf;

use guildnet_model::Secret;
use http::HeaderValue;

pub(crate) use self::program::ExecSpec;
use self::{file::TokenFile, program::Program};

/// Why there is no credential to send.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CredentialError {
    /// The token's file can't be used.
    #[error("the token file {}: {why}", path.display())]
    File { path: PathBuf, why: String },
    /// The program gave no token.
    #[error("the program {} that gets its credential: {why}", command.display())]
    Program { command: PathBuf, why: String },
}

/// Where the token comes from.
#[derive(Debug)]
pub(crate) enum Credential {
    /// There is none: a client certificate suffices.
    None,
    /// It never changes.
    Fixed(HeaderValue),
    /// In a file.
    File(TokenFile),
    /// From a program.
    Program(Program),
}

impl Credential {
    pub(crate) fn file(path: PathBuf) -> Self {
        Self::File(TokenFile::new(path))
    }

    pub(crate) fn program(spec: ExecSpec) -> Self {
        Self::Program(Program::new(spec))
    }

    /// What to send as `Authorization`. Requests at the same time wait for the same run or read.
    ///
    /// # Errors
    /// [`CredentialError`].
    /// # Cancellation
    /// Dropping the future loses nothing: a program that was started is waited for by the next caller.
    pub(crate) async fn bearer(&self) -> Result<Option<HeaderValue>, CredentialError> {
        match self {
            Self::None => Ok(None),
            Self::Fixed(bearer) => Ok(Some(bearer.clone())),
            Self::File(file) => file.bearer().await.map(Some),
            Self::Program(program) => program.bearer().await.map(Some),
        }
    }

    /// The API server answered 401 to this token. Whether the next one may be another.
    pub(crate) async fn refused(&self, used: &HeaderValue) -> bool {
        match self {
            Self::None | Self::Fixed(_) => false,
            Self::File(file) => file.refused(used).await,
            Self::Program(program) => program.refused(used).await,
        }
    }
}

/// A token as it is sent; `None` if it has letters that no header may hold.
pub(crate) fn header(token: &Secret<String>) -> Option<HeaderValue> {
    let whole = Secret::new(format!("Bearer {}", token.expose()));
    let mut value = HeaderValue::try_from(whole.expose()).ok()?;
    value.set_sensitive(true);
    Some(value)
}
