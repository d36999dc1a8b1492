//! The client: one HTTP connection pool to one Headscale server, with its API key.
//!
//! Here: how a request is sent and how an answer becomes a value or an error. The calls are in `client/calls.rs`, the JSON
//! that travels in `client/wire.rs`, TLS in `client/tls.rs`.

mod calls;
#[cfg(any(test, feature = "contract"))]
mod pretend;
mod tls;
mod wire;

use std::{fmt, time::Duration};

use guildnet_model::Secret;
use jiff::Timestamp;
use reqwest::{Method, StatusCode, header};
use serde::{Serialize, de::DeserializeOwned};
use url::Url;

use crate::HeadscaleError;

/// How long a whole request may take. Headscale answers in milliseconds; writing a policy makes it compile one network map
/// per node, which stays below a second for hundreds of nodes.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// How long TCP and TLS may take: two SYN retransmissions (1 s, 2 s) and the handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest answer that is read, in bytes: a node is about 1 KiB, so this is ten thousands of them.
const MAX_ANSWER: usize = 32 << 20;

/// Where the server is and how to be let in.
#[derive(Clone, Debug)]
pub struct HeadscaleConfig {
    /// `https://HOST[:PORT]`, or with `http` where a proxy in front does TLS.
    pub url: Url,
    /// API key; without one only [`Headscale::health`] and [`Headscale::server`] work.
    pub api_key: Option<Secret<String>>,
    /// PEM certificates to trust beside the system's roots.
    pub ca_pem: Option<String>,
}

/// A Headscale server. Cheap to clone; clones share connections.
#[derive(Clone)]
pub struct Headscale {
    http: reqwest::Client,
    config: HeadscaleConfig,
}

impl fmt::Debug for Headscale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Headscale").field("url", &self.config.url.as_str()).finish_non_exhaustive()
    }
}

/// A user of the server: for GuildNet, a namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct User {
    /// The server's number for it: unique, never used again.
    pub id: u64,
    /// Its name.
    pub name: String,
}

/// The policy as the server has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldPolicy {
    /// The document; `None` if there never was one. Both none and an empty one allow everything.
    pub document: Option<String>,
    /// Whether the server reads it from a file (`policy.mode: file`) and can't be given another.
    pub in_file: bool,
}

/// A preauth key as the server lists it. Since 0.28 the key itself is not in it.
#[derive(Clone, PartialEq, Eq)]
pub struct PreauthKey {
    /// The server's number for it.
    pub id: u64,
    /// The namespace that it was made for, if there was one.
    pub user: Option<u64>,
    /// Tags that its nodes get.
    pub tags: Vec<String>,
    /// Whether it may be used more than once.
    pub reusable: bool,
    /// Whether its nodes vanish when they go offline.
    pub ephemeral: bool,
    /// Whether it was used.
    pub used: bool,
    /// When it was made, if the server says so.
    pub created: Option<Timestamp>,
    /// When it ends.
    pub expires: Option<Timestamp>,
    /// Its public beginning, or the whole key on servers before 0.28.
    listed: Secret<String>,
}

impl fmt::Debug for PreauthKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, user, tags, reusable, ephemeral, used, created, expires, listed: _ } = self;
        write!(
            f,
            "PreauthKey {{ id: {id}, user: {user:?}, tags: {tags:?}, reusable: {reusable}, ephemeral: {ephemeral}, used: {used}, created: {created:?}, expires: {expires:?} }}"
        )
    }
}

impl PreauthKey {
    /// Whether this entry is the given key.
    pub fn is(&self, key: &Secret<String>) -> bool {
        let listed = self.listed.expose();
        match listed.strip_suffix("***") {
            // `hskey-auth-<12 characters>-***`: the public part is unique on the server.
            Some(public) => !public.is_empty() && key.expose().starts_with(public),
            None => !listed.is_empty() && listed == key.expose(),
        }
    }

    /// Whether a node can join with it at `at`.
    pub fn is_usable(&self, at: Timestamp) -> bool {
        (self.reusable || !self.used) && self.expires.is_none_or(|end| end > at)
    }
}

/// An API key as the server lists it: by its public beginning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiKey {
    /// The server's number for it.
    pub id: u64,
    /// The part of it by which the server lists it; not secret.
    pub prefix: String,
    /// When it was made, if the server says so.
    pub created: Option<Timestamp>,
    /// When it ends, if it does.
    pub expires: Option<Timestamp>,
}

impl ApiKey {
    /// Whether this entry is the given key.
    pub fn is(&self, key: &Secret<String>) -> bool {
        // `hskey-api-<12 characters>-***` since 0.28, before that 7 characters alone: unique on the server either way.
        let public = self.prefix.strip_suffix("***").unwrap_or(&self.prefix);
        !public.is_empty() && key.expose().starts_with(public)
    }
}

/// A listed key from its JSON, for tests of what is decided about keys.
#[cfg(test)]
pub(crate) fn listed_key(json: serde_json::Value) -> PreauthKey {
    serde_json::from_value::<wire::WireKey>(json).expect("a listed key").into()
}

/// A preauth key to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewKey {
    /// The namespace's number.
    pub user: u64,
    /// Tags that its nodes get.
    pub tags: Vec<String>,
    /// Whether it may be used more than once.
    pub reusable: bool,
    /// Whether its nodes vanish when they go offline.
    pub ephemeral: bool,
    /// When it ends.
    pub expires: Timestamp,
}

impl Headscale {
    /// A client; nothing is sent yet.
    ///
    /// # Errors
    /// [`HeadscaleError::BadUrl`] and [`HeadscaleError::Ca`].
    pub fn new(config: HeadscaleConfig) -> Result<Self, HeadscaleError> {
        let bad = |why| HeadscaleError::BadUrl { url: config.url.clone(), why };
        if !matches!(config.url.scheme(), "https" | "http") {
            return Err(bad("it must begin with https://"));
        }
        if config.url.host_str().is_none_or(str::is_empty) {
            return Err(bad("it names no host"));
        }
        if !config.url.username().is_empty() || config.url.password().is_some() {
            return Err(bad("a user or password in it is not used; Headscale takes an API key"));
        }
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls::client_config(config.ca_pem.as_deref())?)
            .timeout(REQUEST_TIMEOUT)
            .connect_timeout(CONNECT_TIMEOUT)
            // A redirect would carry the API key elsewhere, and connectors, which go to the address as it is, would not follow.
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .build()
            .map_err(|e| HeadscaleError::Ca { why: e.to_string() })?;
        Ok(Self { http, config })
    }

    /// The server's address.
    pub fn url(&self) -> &Url {
        &self.config.url
    }

    /// The certificates trusted beside the system's roots.
    pub fn ca_pem(&self) -> Option<&str> {
        self.config.ca_pem.as_deref()
    }

    fn endpoint(&self, path: &str, query: &[(&str, &str)]) -> Url {
        let mut url = self.config.url.clone();
        url.set_query(None);
        url.set_fragment(None);
        url.set_path(&format!("{}/{path}", self.config.url.path().trim_end_matches('/')));
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        url
    }

    /// Sends a request with the API key and reads the answer's JSON. `what` says in errors what was wanted.
    async fn call<T: DeserializeOwned>(
        &self,
        what: impl Into<String>,
        method: Method,
        url: Url,
        body: Option<&(impl Serialize + Sync)>,
    ) -> Result<T, HeadscaleError> {
        let Some(key) = &self.config.api_key else {
            return Err(HeadscaleError::NoApiKey { url: self.config.url.clone() });
        };
        let mut bearer = header::HeaderValue::from_str(&format!("Bearer {}", key.expose().trim()))
            .map_err(|_| HeadscaleError::Unauthorized { url: self.config.url.clone() })?;
        bearer.set_sensitive(true);
        let mut request = self.http.request(method, url).header(header::AUTHORIZATION, bearer);
        if let Some(body) = body {
            request = request.json(body);
        }
        let answer = self.exchange(request).await?;
        if answer.status.is_success() {
            return self.parse(&answer);
        }
        Err(self.refusal(what, &answer))
    }

    /// Sends a request and reads the whole answer, whatever its status.
    async fn exchange(&self, request: reqwest::RequestBuilder) -> Result<Answer, HeadscaleError> {
        let mut response = request.send().await.map_err(|e| self.explain(&e))?;
        let status = response.status();
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|e| self.explain(&e))? {
            if body.len() + chunk.len() > MAX_ANSWER {
                return Err(self.not_headscale(format!("its answer is longer than {MAX_ANSWER} bytes")));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Answer { status, body })
    }

    fn parse<T: DeserializeOwned>(&self, answer: &Answer) -> Result<T, HeadscaleError> {
        serde_json::from_slice(&answer.body).map_err(|e| {
            // Not the error's text: it can quote the answer, and an answer can hold a key.
            let at = format!("line {}, column {}", e.line(), e.column());
            self.not_headscale(format!("its answer is not the expected JSON ({at})"))
        })
    }

    fn not_headscale(&self, why: impl Into<String>) -> HeadscaleError {
        HeadscaleError::NotHeadscale { url: self.config.url.clone(), why: why.into() }
    }

    /// The error that an answer without success stands for.
    fn refusal(&self, what: impl Into<String>, answer: &Answer) -> HeadscaleError {
        let url = self.config.url.clone();
        let status = answer.status;
        let said = wire::refusal(&answer.body);
        match (status, said) {
            (StatusCode::UNAUTHORIZED, _) => HeadscaleError::Unauthorized { url },
            // 0.26 answers so to a key that is not in its database (`httpAuthenticationMiddleware` in hscontrol/app.go).
            (StatusCode::INTERNAL_SERVER_ERROR, None) if answer.body == b"Unauthorized" => {
                HeadscaleError::Unauthorized { url }
            }
            (StatusCode::FORBIDDEN, _) => HeadscaleError::Forbidden { url, what: what.into() },
            (StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT, None) => {
                HeadscaleError::Unreachable { url, why: format!("what stands in front of it answers {status}") }
            }
            // Headscale answers 500 with "... not found" where the database did not have it.
            (StatusCode::NOT_FOUND, Some(said)) => HeadscaleError::NotFound { what: what.into(), said },
            (_, Some(said)) if said.ends_with("not found") => HeadscaleError::NotFound { what: what.into(), said },
            (_, Some(said)) => HeadscaleError::Refused { what: what.into(), status: status.as_u16(), said },
            (_, None) => self.not_headscale(format!("it answers {status} without Headscale's error message")),
        }
    }

    /// The error that a request without an answer stands for.
    fn explain(&self, error: &reqwest::Error) -> HeadscaleError {
        let url = self.config.url.clone();
        match tls::cause(error) {
            Some(tls::Cause::NotTrusted(why)) => return HeadscaleError::NotTrusted { url, why },
            Some(tls::Cause::Invalid(why)) => return HeadscaleError::BadCertificate { url, why },
            Some(tls::Cause::NoTls) => return self.not_headscale("it does not speak TLS"),
            None => {}
        }
        if error.is_timeout() {
            let after = if error.is_connect() { CONNECT_TIMEOUT } else { REQUEST_TIMEOUT };
            return HeadscaleError::Timeout { url, after };
        }
        // The innermost cause is the one that names the trouble ("Connection refused").
        let mut cause: &dyn std::error::Error = error;
        while let Some(inner) = cause.source() {
            cause = inner;
        }
        HeadscaleError::Unreachable { url, why: cause.to_string() }
    }
}

struct Answer {
    status: StatusCode,
    body: Vec<u8>,
}
