//! How the door says no: `application/problem+json` (RFC 9457), with GuildNet's `code` and `hint`.
//!
//! `code` is the error's class, or a word of the door's own; clients turn it back into the error that it was. A failed
//! dial carries its [`DialError`] in `dial`, so that a dialer on the other side can return the very same.

use std::time::Duration;

use axum::response::{IntoResponse, Response};
use guildnet_model::{Class, ClusterId, DialError, Explain, Target};
use http::{HeaderValue, StatusCode, header};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{HostError, names::OpenError};

/// A refusal: the thing, the cause and the next step.
///
/// In its body, [`Wire`], it also has `type` and `title`, which follow from code and status.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = Refusal)]
pub(crate) struct Problem {
    /// The HTTP status.
    pub(crate) status: u16,
    /// The thing and the cause.
    pub(crate) detail: String,
    /// The kind, for programs.
    pub(crate) code: String,
    /// The next step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) hint: Option<String>,
    /// Where in the request's body the fault is, like `clusters[1]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) field: Option<String>,
    /// What became of a dial.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) dial: Option<Box<RefusedDial>>,
}

/// The body of a refusal.
#[derive(Serialize, ToSchema)]
#[schema(as = Problem)]
pub(super) struct Wire<'a> {
    /// `urn:guildnet:problem:<code>`: one for each kind of trouble.
    r#type: String,
    /// The kind in words, the same for all of a status.
    title: &'static str,
    #[serde(flatten)]
    problem: &'a Problem,
}

impl Problem {
    /// A refusal of the door's own.
    pub(super) fn new(status: StatusCode, code: &str, detail: impl Into<String>) -> Self {
        Self {
            status: status.as_u16(),
            detail: detail.into(),
            code: code.to_owned(),
            hint: None,
            field: None,
            dial: None,
        }
    }

    /// Names the next step.
    pub(super) fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The refusal for a stream that could not be opened. Of a name, the error is told in words: only who resolved it knows
    /// its target.
    pub(super) fn of_open(cluster: &ClusterId, error: OpenError) -> Self {
        match error {
            OpenError::Host(error) => error.into(),
            OpenError::Dial { name: None, why } => why.into(),
            OpenError::Dial { name: Some(name), why } => {
                let problem = Self::from(why);
                Self { detail: format!("cluster {cluster}: {name}: {}", problem.detail), dial: None, ..problem }
            }
        }
    }

    /// The error that this refusal stands for.
    pub(crate) fn into_error(self) -> HostError {
        let error = HostError::new(class(&self.code), self.detail);
        match self.hint {
            Some(hint) => error.with_hint(hint),
            None => error,
        }
    }
}

impl From<HostError> for Problem {
    fn from(error: HostError) -> Self {
        let (status, code) = status_and_code(error.class());
        Self { hint: error.hint(), ..Self::new(status, code, error.to_string()) }
    }
}

impl From<DialError> for Problem {
    fn from(error: DialError) -> Self {
        let status = match &error {
            DialError::NotAllowed { .. } => StatusCode::FORBIDDEN,
            DialError::NotReady { .. } | DialError::TooMany { .. } => StatusCode::SERVICE_UNAVAILABLE,
            DialError::Timeout { .. } => StatusCode::GATEWAY_TIMEOUT,
            _ => StatusCode::BAD_GATEWAY,
        };
        let (_, code) = status_and_code(error.class());
        let problem = Self::new(status, code, error.to_string());
        Self { hint: error.hint(), dial: Some(Box::new(error.into())), ..problem }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let wire = Wire {
            r#type: format!("urn:guildnet:problem:{}", self.code),
            title: status.canonical_reason().unwrap_or("Refused"),
            problem: &self,
        };
        let body = serde_json::to_vec(&wire).expect("texts and numbers are always JSON");
        let kind = HeaderValue::from_static("application/problem+json");
        (status, [(header::CONTENT_TYPE, kind)], body).into_response()
    }
}

/// Status and code of each class. A credential that is missing here is one towards Headscale or a cluster: not 401, which
/// would send the client looking for another token.
fn status_and_code(class: Class) -> (StatusCode, &'static str) {
    match class {
        Class::Failed => (StatusCode::INTERNAL_SERVER_ERROR, "failed"),
        Class::Usage => (StatusCode::BAD_REQUEST, "usage"),
        Class::NotFound => (StatusCode::NOT_FOUND, "not_found"),
        Class::Credentials => (StatusCode::FAILED_DEPENDENCY, "credentials"),
        Class::Unreachable => (StatusCode::BAD_GATEWAY, "unreachable"),
        Class::Conflict => (StatusCode::CONFLICT, "conflict"),
        Class::Partial => (StatusCode::INTERNAL_SERVER_ERROR, "partial"),
        Class::Precondition => (StatusCode::PRECONDITION_FAILED, "precondition"),
    }
}

/// The class behind a code. The door's own words are faults of the client: usage, but for the token.
fn class(code: &str) -> Class {
    match code {
        "failed" => Class::Failed,
        "not_found" => Class::NotFound,
        "credentials" | "unauthorized" => Class::Credentials,
        "unreachable" => Class::Unreachable,
        "conflict" => Class::Conflict,
        "partial" => Class::Partial,
        "precondition" => Class::Precondition,
        "not_ready" => Class::Unreachable,
        _ => Class::Usage,
    }
}

/// [`DialError`] on its way from the Host App to the command. The target is known on both sides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(crate) enum RefusedDial {
    /// [`DialError::NoRoute`]
    NoRoute,
    /// [`DialError::NotAllowed`]
    NotAllowed {
        /// The networks that are.
        allowed: String,
    },
    /// [`DialError::RouterOffline`]
    RouterOffline,
    /// [`DialError::NotReady`]
    NotReady {
        /// The connector's state.
        state: String,
    },
    /// [`DialError::Timeout`]
    Timeout {
        /// Milliseconds.
        after_ms: u64,
    },
    /// [`DialError::Refused`]
    Refused,
    /// [`DialError::TooMany`]
    TooMany {
        /// The bound.
        limit: usize,
    },
    /// [`DialError::Io`]
    Io {
        /// The cause.
        why: String,
    },
}

impl From<DialError> for RefusedDial {
    fn from(error: DialError) -> Self {
        match error {
            DialError::NoRoute { .. } => Self::NoRoute,
            DialError::NotAllowed { allowed, .. } => Self::NotAllowed { allowed },
            DialError::RouterOffline { .. } => Self::RouterOffline,
            DialError::NotReady { state } => Self::NotReady { state },
            DialError::Timeout { after, .. } => {
                Self::Timeout { after_ms: u64::try_from(after.as_millis()).unwrap_or(u64::MAX) }
            }
            DialError::Refused { .. } => Self::Refused,
            DialError::TooMany { limit } => Self::TooMany { limit },
            DialError::Io { why, .. } => Self::Io { why },
        }
    }
}

impl RefusedDial {
    /// The error that it was, for the target that was dialled.
    pub(crate) fn into_error(self, target: Target) -> DialError {
        match self {
            Self::NoRoute => DialError::NoRoute { target },
            Self::NotAllowed { allowed } => DialError::NotAllowed { target, allowed },
            Self::RouterOffline => DialError::RouterOffline { target },
            Self::NotReady { state } => DialError::NotReady { state },
            Self::Timeout { after_ms } => DialError::Timeout { target, after: Duration::from_millis(after_ms) },
            Self::Refused => DialError::Refused { target },
            Self::TooMany { limit } => DialError::TooMany { limit },
            Self::Io { why } => DialError::Io { target, why },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_body_has_the_documented_fields() {
        use http_body_util::BodyExt as _;
        let problem = Problem::new(StatusCode::NOT_FOUND, "not_found", "there is no cluster x").with_hint("known: a");
        let answer = problem.into_response();
        assert_eq!(answer.headers()[header::CONTENT_TYPE], "application/problem+json");
        let body = answer.into_body().collect().await.expect("a body").to_bytes();
        let body: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
        let expected = serde_json::json!({
            "type": "urn:guildnet:problem:not_found", "title": "Not Found", "status": 404, "code": "not_found",
            "detail": "there is no cluster x", "hint": "known: a",
        });
        assert_eq!(body, expected);
    }

    #[test]
    fn an_error_comes_back_as_it_was() {
        let classes = [
            Class::Failed,
            Class::Usage,
            Class::NotFound,
            Class::Credentials,
            Class::Unreachable,
            Class::Conflict,
            Class::Partial,
            Class::Precondition,
        ];
        for class in classes {
            let error = HostError::new(class, "the thing: the cause").with_hint("the next step");
            assert_eq!(Problem::from(error.clone()).into_error(), error);
        }
    }

    #[test]
    fn a_dial_error_comes_back_as_it_was() {
        let target: Target = "10.96.0.1:443".parse().expect("a target");
        let errors = [
            DialError::NoRoute { target },
            DialError::NotAllowed { target, allowed: "10.96.0.0/16".into() },
            DialError::RouterOffline { target },
            DialError::NotReady { state: "starting".into() },
            DialError::Timeout { target, after: Duration::from_secs(10) },
            DialError::Refused { target },
            DialError::TooMany { limit: 7 },
            DialError::Io { target, why: "broken".into() },
        ];
        for error in errors {
            let json = serde_json::to_string(&Problem::from(error.clone())).expect("JSON");
            let problem: Problem = serde_json::from_str(&json).expect("a problem");
            assert_eq!(problem.dial.expect("a dial").into_error(target), error);
        }
    }
}
