//! One name for a request, from the client to the cluster: made here, in every line of the log about it, in the answer's
//! `X-Request-Id`, and in the API server's audit log.
//!
//! A client's own `X-Request-Id` is not taken over: it could write into our log, and two requests could have one name.

use std::fmt;

use http::{HeaderMap, HeaderName, HeaderValue};
use tracing::{Span, error_span, field};

/// The name of a request, in the answer.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The name of a request: 64 random bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RequestId(u64);

impl RequestId {
    /// A new one.
    pub(crate) fn new() -> Self {
        Self(rand::random())
    }

    /// The span of everything that is done for the request. It is there at every level of the log; whose cluster it is
    /// about is filled in by [`about`] once that is known.
    pub(crate) fn span(self) -> Span {
        error_span!("http", request = %self, cluster = field::Empty)
    }

    /// Puts it into an answer.
    pub(crate) fn put(self, headers: &mut HeaderMap) {
        let value = HeaderValue::try_from(self.to_string()).expect("hexadecimal digits");
        headers.insert(REQUEST_ID, value);
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Says of which cluster the request is that is served now: for a name that is well formed, so that nothing else gets into
/// the log.
pub(crate) fn about(cluster: &guildnet_model::ClusterId) {
    Span::current().record("cluster", field::display(cluster));
}
