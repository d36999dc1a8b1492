//! How the proxy says no: a Kubernetes `Status` (k8s.io/apimachinery/pkg/apis/meta/v1), which kubectl and client
//! libraries show as they show the API server's own. Pure.
//!
//! GuildNet's message and hint stand in `message`, which is all that kubectl prints; the hint is a cause too, for programs.

use std::{borrow::Cow, fmt};

use axum::response::{IntoResponse, Response};
use guildnet_kube::{KubeCause, KubeError};
use guildnet_model::{Class, ClusterId, DialError, Explain};
use http::{HeaderValue, StatusCode, header};
use serde_json::json;

use crate::{HostError, door::problem::Problem};

/// When a client may try again where there was no place for it. client-go repeats ten times by itself, and kubectl does so
/// with each of its questions before the first: so a cluster that is not connected is not worth a try again (measured:
/// more than 40 s until kubectl said so).
const RETRY_SECS: u64 = 1;

/// What a browser may do with an answer: show it, and nothing that is in it.
pub(super) const SANDBOX: HeaderValue = HeaderValue::from_static("sandbox; default-src 'none'");

/// A refusal, or a failure before there was an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    status: StatusCode,
    message: String,
    hint: Option<String>,
    retry: bool,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), hint: None, retry: false }
    }

    /// Names the next step.
    pub(super) fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// There will be a place soon.
    pub(super) fn for_now(mut self) -> Self {
        self.retry = true;
        self
    }

    pub(super) fn status(&self) -> StatusCode {
        self.status
    }

    /// What kept the Host App from having a client for the cluster.
    pub(super) fn of_host(error: &HostError) -> Self {
        let status = match error.class() {
            Class::NotFound => StatusCode::NOT_FOUND,
            Class::Usage => StatusCode::BAD_REQUEST,
            Class::Unreachable => StatusCode::SERVICE_UNAVAILABLE,
            Class::Credentials => StatusCode::BAD_GATEWAY,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        error.hint().into_iter().fold(Self::new(status, error.to_string()), Self::with_hint)
    }

    /// What kept the cluster's API server from answering.
    pub(super) fn of_kube(cluster: &ClusterId, error: &KubeError) -> Self {
        let (status, retry) = match &error.cause {
            KubeCause::Dial(DialError::TooMany { .. }) => (StatusCode::TOO_MANY_REQUESTS, true),
            KubeCause::Dial(
                DialError::NotReady { .. } | DialError::NoRoute { .. } | DialError::RouterOffline { .. },
            ) => (StatusCode::SERVICE_UNAVAILABLE, false),
            KubeCause::Dial(DialError::Timeout { .. }) | KubeCause::Timeout { .. } => {
                (StatusCode::GATEWAY_TIMEOUT, false)
            }
            _ => (StatusCode::BAD_GATEWAY, false),
        };
        let refusal = Self { retry, ..Self::new(status, format!("cluster {cluster}: {error}")) };
        error.hint().into_iter().fold(refusal, Self::with_hint)
    }

    /// The word for programs. Kubernetes' own where it has one.
    fn reason(&self) -> Cow<'static, str> {
        match self.status {
            StatusCode::METHOD_NOT_ALLOWED => "MethodNotAllowed".into(),
            StatusCode::TOO_MANY_REQUESTS => "TooManyRequests".into(),
            StatusCode::INTERNAL_SERVER_ERROR => "InternalError".into(),
            StatusCode::GATEWAY_TIMEOUT | StatusCode::REQUEST_TIMEOUT => "Timeout".into(),
            // BadRequest, Unauthorized, Forbidden, NotFound, ServiceUnavailable, BadGateway: the names of the statuses.
            other => other.canonical_reason().unwrap_or_default().replace(' ', "").into(),
        }
    }

    fn body(&self) -> serde_json::Value {
        let message = match &self.hint {
            Some(hint) => format!("{} (next: {hint})", self.message),
            None => self.message.clone(),
        };
        let mut details = serde_json::Map::new();
        if let Some(hint) = &self.hint {
            details.insert("causes".into(), json!([{ "reason": "GuildNetHint", "message": hint }]));
        }
        if self.retry {
            details.insert("retryAfterSeconds".into(), RETRY_SECS.into());
        }
        json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message,
            "reason": self.reason(), "details": details, "code": self.status.as_u16(),
        })
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Self { hint: problem.hint, ..Self::new(status, problem.detail) }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let kind = HeaderValue::from_static("application/json");
        let body = self.body().to_string();
        let headers = [(header::CONTENT_TYPE, kind), (header::CONTENT_SECURITY_POLICY, SANDBOX)];
        let mut response = (self.status, headers, body).into_response();
        if self.retry {
            response.headers_mut().insert(header::RETRY_AFTER, RETRY_SECS.into());
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_body_is_a_status_with_message_hint_and_wait() {
        let refusal = Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "cluster a: not ready")
            .with_hint("guildnet verify")
            .for_now();
        let expected = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": "cluster a: not ready (next: guildnet verify)", "reason": "ServiceUnavailable", "code": 503,
            "details": { "causes": [{ "reason": "GuildNetHint", "message": "guildnet verify" }], "retryAfterSeconds": 1 },
        });
        assert_eq!(refusal.body(), expected);
        assert_eq!(refusal.into_response().headers()[header::RETRY_AFTER], "1");
    }

    #[test]
    fn what_failed_on_the_way_is_told_apart_and_is_never_unauthorized() {
        let to = "10.96.0.1:443".parse().expect("a target");
        let of = |cause| {
            let error = KubeError { server: "https://api".into(), cause };
            let refusal = Refusal::of_kube(&"a".parse().expect("an id"), &error);
            (refusal.status.as_u16(), refusal.reason().into_owned(), refusal.retry)
        };
        let not_ready = DialError::NotReady { state: "starting".into() };
        let late = DialError::Timeout { target: to, after: std::time::Duration::from_secs(10) };
        assert_eq!(of(KubeCause::Dial(not_ready)), (503, "ServiceUnavailable".into(), false));
        assert_eq!(of(KubeCause::Dial(DialError::TooMany { limit: 1 })), (429, "TooManyRequests".into(), true));
        assert_eq!(of(KubeCause::Dial(late)), (504, "Timeout".into(), false));
        assert_eq!(of(KubeCause::Dial(DialError::Refused { target: to })), (502, "BadGateway".into(), false));
        assert_eq!(of(KubeCause::WrongAuthority), (502, "BadGateway".into(), false));
        assert_eq!(of(KubeCause::Unauthorized { why: "x".into() }).0, 502);
    }
}
