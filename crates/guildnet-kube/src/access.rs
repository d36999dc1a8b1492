//! What is needed to talk to one API server: its URL, the name its certificate must bear, whom to trust, who we are.
//!
//! A [`ClusterAccess`] is complete and checked, and its TLS configuration was built once already. Its token may be in a
//! file or come from a program, if the person allowed that: `credential.rs` gets it. It can be turned into bytes for
//! sealing, and back. The file format of `kubectl` is read in `kubeconfig.rs`.

use std::{borrow::Cow, fmt, path::PathBuf, sync::Arc};

use guildnet_model::{Class, Explain, Secret};
use http::HeaderValue;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use serde::{Deserialize, Serialize};
use url::{Host, Url};

use crate::credential::{self, Credential, CredentialError, ExecSpec};

/// A complete, checked credential for one API server. Cheap to clone.
///
/// `Debug` shows the server and the kind of credential, never the credential.
#[derive(Clone)]
pub struct ClusterAccess(Arc<Checked>);

struct Checked {
    parts: Parts,
    tls_name: ServerName<'static>,
    tls: Arc<ClientConfig>,
    credential: Credential,
}

/// The parts of a credential before they are checked.
pub(crate) struct Parts {
    /// Where it came from, for messages.
    pub(crate) context: String,
    /// The API server; `https`, with a host, without user information.
    pub(crate) server: Url,
    /// The name that the certificate must bear, if it is not the URL's host.
    pub(crate) tls_name: Option<String>,
    /// Whom to trust; the system's roots if absent.
    pub(crate) ca_pem: Option<String>,
    /// Client certificate chain and its key.
    pub(crate) identity: Option<(String, Secret<String>)>,
    /// Bearer token.
    pub(crate) token: Option<Token>,
}

/// Where the bearer token comes from.
pub(crate) enum Token {
    /// It is here.
    Here(Secret<String>),
    /// It is in this file, and read again when that changes.
    File(PathBuf),
    /// This program gives it.
    Program(ExecSpec),
}

/// The saved form. Fields are only ever added; a form that older programs must not read gets a new number.
#[derive(Serialize, Deserialize)]
struct Saved<'a> {
    version: u8,
    context: Cow<'a, str>,
    server: Cow<'a, str>,
    tls_name: Option<Cow<'a, str>>,
    ca_pem: Option<Cow<'a, str>>,
    cert_pem: Option<Cow<'a, str>>,
    key_pem: Option<Cow<'a, str>>,
    token: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    token_file: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    exec: Option<Cow<'a, ExecSpec>>,
}

/// The number of the saved form.
const SAVED_VERSION: u8 = 1;
/// The form with a token that changes: a program that knows only the first would use it as if it had none.
const SAVED_LIVE: u8 = 2;

/// Why the parts of a credential don't fit together, or bytes are no saved credential.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {why}")]
pub struct AccessError {
    what: &'static str,
    why: String,
}

impl AccessError {
    fn new(what: &'static str, why: impl fmt::Display) -> Self {
        Self { what, why: why.to_string() }
    }
}

impl Explain for AccessError {
    fn class(&self) -> Class {
        Class::Credentials
    }

    fn hint(&self) -> Option<String> {
        Some("give a working kubeconfig with 'guildnet cluster add ID --kubeconfig FILE'".into())
    }
}

impl ClusterAccess {
    /// Checks the parts: certificates, key and token must be well formed, and the key must be the certificate's.
    pub(crate) fn new(parts: Parts) -> Result<Self, AccessError> {
        let tls_name = match &parts.tls_name {
            Some(name) => name.clone(),
            None => match parts.server.host() {
                Some(Host::Domain(name)) => name.to_owned(),
                Some(Host::Ipv4(ip)) => ip.to_string(),
                Some(Host::Ipv6(ip)) => ip.to_string(),
                None => return Err(AccessError::new("the server's URL", "has no host")),
            },
        };
        let tls_name = ServerName::try_from(tls_name).map_err(|e| AccessError::new("the server's TLS name", e))?;
        let tls = Arc::new(tls_config(&parts)?);
        let credential = match &parts.token {
            None => Credential::None,
            Some(Token::Here(token)) => Credential::Fixed(
                credential::header(token)
                    .ok_or_else(|| AccessError::new("the token", "has characters that no HTTP header may hold"))?,
            ),
            Some(Token::File(path)) => Credential::file(path.clone()),
            Some(Token::Program(spec)) => Credential::program(spec.clone()),
        };
        Ok(Self(Arc::new(Checked { parts, tls_name, tls, credential })))
    }

    /// The API server's URL, as the kubeconfig has it.
    pub fn server(&self) -> &Url {
        &self.0.parts.server
    }

    /// The name (or IP address) that the server's certificate must bear.
    pub fn tls_name(&self) -> String {
        self.0.tls_name.to_str().into_owned()
    }

    /// The kubeconfig's context that it came from.
    pub fn context(&self) -> &str {
        &self.0.parts.context
    }

    /// All of it as bytes, to be sealed by the caller.
    pub fn to_secret_bytes(&self) -> Secret<Vec<u8>> {
        let parts = &self.0.parts;
        let saved = Saved {
            version: match parts.token {
                None | Some(Token::Here(_)) => SAVED_VERSION,
                Some(Token::File(_) | Token::Program(_)) => SAVED_LIVE,
            },
            context: parts.context.as_str().into(),
            server: parts.server.as_str().into(),
            tls_name: parts.tls_name.as_deref().map(Into::into),
            ca_pem: parts.ca_pem.as_deref().map(Into::into),
            cert_pem: parts.identity.as_ref().map(|(cert, _)| cert.into()),
            key_pem: parts.identity.as_ref().map(|(_, key)| key.expose().into()),
            token: match &parts.token {
                Some(Token::Here(token)) => Some(token.expose().into()),
                _ => None,
            },
            token_file: match &parts.token {
                // Known to be UTF-8 since it was read from a kubeconfig.
                Some(Token::File(path)) => Some(path.to_string_lossy()),
                _ => None,
            },
            exec: match &parts.token {
                Some(Token::Program(spec)) => Some(Cow::Borrowed(spec)),
                _ => None,
            },
        };
        // Room for everything with each character escaped, so that the buffer never grows and leaves copies behind.
        let texts = [&saved.tls_name, &saved.ca_pem, &saved.cert_pem, &saved.key_pem, &saved.token];
        let length: usize = texts.into_iter().flatten().map(|t| t.len()).sum();
        let live =
            saved.token_file.as_ref().map_or(0, |file| file.len()) + saved.exec.as_ref().map_or(0, |spec| spec.room());
        let mut bytes = Vec::with_capacity(2 * (length + live + saved.context.len() + saved.server.len()) + 512);
        serde_json::to_writer(&mut bytes, &saved)
            .expect("texts and a number are always JSON, and a Vec takes any write");
        Secret::new(bytes)
    }

    /// Reads back what [`Self::to_secret_bytes`] wrote.
    ///
    /// # Errors
    /// [`AccessError`] if the bytes are no saved credential, or one of a newer form.
    pub fn from_secret_bytes(bytes: &Secret<Vec<u8>>) -> Result<Self, AccessError> {
        // The parser's message is left out: it may quote what it stumbled over.
        let saved: Saved<'_> = serde_json::from_slice(bytes.expose())
            .map_err(|_| AccessError::new("the saved credential", "is damaged"))?;
        // Taken into keeping first, so that every way out wipes them.
        let key = saved.key_pem.map(|key| Secret::new(key.into_owned()));
        let token = saved.token.map(|token| Secret::new(token.into_owned()));
        if ![SAVED_VERSION, SAVED_LIVE].contains(&saved.version) {
            let why = format!("has form {}, this program knows forms up to {SAVED_LIVE}", saved.version);
            return Err(AccessError::new("the saved credential", why));
        }
        Self::new(Parts {
            context: saved.context.into_owned(),
            server: saved.server.parse().map_err(|e| AccessError::new("the saved server", e))?,
            tls_name: saved.tls_name.map(Cow::into_owned),
            ca_pem: saved.ca_pem.map(Cow::into_owned),
            identity: saved.cert_pem.map(Cow::into_owned).zip(key),
            token: match (token, saved.token_file, saved.exec) {
                (Some(token), ..) => Some(Token::Here(token)),
                (None, Some(file), _) => Some(Token::File(file.into_owned().into())),
                (None, None, Some(spec)) => Some(Token::Program(spec.into_owned())),
                (None, None, None) => None,
            },
        })
    }

    pub(crate) fn server_name(&self) -> &ServerName<'static> {
        &self.0.tls_name
    }

    pub(crate) fn tls(&self) -> &Arc<ClientConfig> {
        &self.0.tls
    }

    /// What to send as `Authorization` now: to be asked before each request, never kept.
    ///
    /// # Errors
    /// [`CredentialError`]: the token's file or program gives none.
    /// # Cancellation
    /// Dropping the future loses nothing.
    pub(crate) async fn bearer(&self) -> Result<Option<HeaderValue>, CredentialError> {
        self.0.credential.bearer().await
    }

    /// To be told when the API server answered 401 to a request that carried this: the next one then gets another token,
    /// if there can be one. Says whether.
    pub(crate) async fn refused(&self, used: Option<&HeaderValue>) -> bool {
        match used {
            Some(used) => self.0.credential.refused(used).await,
            None => false,
        }
    }
}

impl fmt::Debug for ClusterAccess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = &self.0.parts;
        f.debug_struct("ClusterAccess")
            .field("context", &parts.context)
            .field("server", &parts.server.as_str())
            .field("tls_name", &self.tls_name())
            .field("own_ca", &parts.ca_pem.is_some())
            .field("client_certificate", &parts.identity.is_some())
            .field("token", &self.0.credential)
            .finish()
    }
}

fn tls_config(parts: &Parts) -> Result<ClientConfig, AccessError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| AccessError::new("TLS", e))?
        .with_root_certificates(parts.ca_pem.as_deref().map_or_else(system_roots, roots)?);
    let mut config = match &parts.identity {
        Some((cert, key)) => {
            let what = "the client certificate";
            let chain = certificates(what, cert)?;
            // The PEM reader's messages name sections, never content.
            let key = PrivateKeyDer::from_pem_slice(key.expose().as_bytes())
                .map_err(|e| AccessError::new("the client key", e))?;
            builder.with_client_auth_cert(chain, key).map_err(|e| AccessError::new(what, e))?
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

fn roots(pem: &str) -> Result<RootCertStore, AccessError> {
    let what = "the certificate authority";
    let mut store = RootCertStore::empty();
    for cert in certificates(what, pem)? {
        store.add(cert).map_err(|e| AccessError::new(what, e))?;
    }
    Ok(store)
}

/// The system's roots: for API servers with a publicly trusted certificate, whose kubeconfigs name no authority.
fn system_roots() -> Result<RootCertStore, AccessError> {
    let mut store = RootCertStore::empty();
    // A root that can't be read makes the set smaller, not wrong; an empty set is said.
    store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if store.is_empty() {
        let why = "there are none on this machine, and the kubeconfig names none";
        return Err(AccessError::new("the certificate authorities", why));
    }
    Ok(store)
}

fn certificates(what: &'static str, pem: &str) -> Result<Vec<CertificateDer<'static>>, AccessError> {
    let certs: Vec<_> = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|e| AccessError::new(what, e))?;
    if certs.is_empty() {
        return Err(AccessError::new(what, "holds no PEM certificate"));
    }
    Ok(certs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::Pki;

    fn parts(pki: &Pki) -> Parts {
        let (cert, key) = pki.client("admin");
        Parts {
            context: "home".into(),
            server: "https://10.0.0.1:6443".parse().expect("a URL"),
            tls_name: Some("kubernetes".into()),
            ca_pem: Some(pki.ca_pem()),
            identity: Some((cert, Secret::new(key))),
            token: Some(Token::Here(Secret::new("very-secret-token".into()))),
        }
    }

    #[test]
    fn a_saved_credential_comes_back_whole() {
        let access = ClusterAccess::new(parts(&Pki::new())).expect("checked");
        let bytes = access.to_secret_bytes();
        let back = ClusterAccess::from_secret_bytes(&bytes).expect("read back");
        assert_eq!(back.to_secret_bytes(), bytes);
        assert_eq!((back.tls_name(), back.context()), ("kubernetes".to_owned(), "home"));
    }

    #[test]
    fn a_token_that_changes_is_saved_as_where_it_comes_from_in_a_form_of_its_own() {
        let spec = ExecSpec {
            api_version: "client.authentication.k8s.io/v1".into(),
            command: "/usr/bin/helper".into(),
            args: vec!["--secret-arg".into()],
            env: vec![("NAME".into(), "secret-value".into())],
            cluster: Some(serde_json::json!({"server": "https://a"})),
        };
        for token in [Token::File("/run/token".into()), Token::Program(spec)] {
            let access = ClusterAccess::new(Parts { token: Some(token), ..parts(&Pki::new()) }).expect("checked");
            let bytes = access.to_secret_bytes();
            assert!(bytes.expose().starts_with(b"{\"version\":2,"), "older programs must refuse it");
            let back = ClusterAccess::from_secret_bytes(&bytes).expect("read back");
            assert_eq!(back.to_secret_bytes(), bytes);
            let shown = format!("{back:?}");
            assert!(!shown.contains("secret-"), "{shown}");
        }
        assert!(
            ClusterAccess::new(parts(&Pki::new()))
                .expect("checked")
                .to_secret_bytes()
                .expose()
                .starts_with(b"{\"version\":1,")
        );
    }

    #[test]
    fn debug_shows_no_secret() {
        let shown = format!("{:?}", ClusterAccess::new(parts(&Pki::new())).expect("checked"));
        assert!(!shown.contains("very-secret-token") && !shown.contains("PRIVATE KEY"), "{shown}");
        assert!(shown.contains("https://10.0.0.1:6443"), "{shown}");
    }

    #[test]
    fn a_key_of_another_certificate_is_refused() {
        let pki = Pki::new();
        let mut wrong = parts(&pki);
        wrong.identity = Some((pki.client("a").0, Secret::new(pki.client("b").1)));
        let said = ClusterAccess::new(wrong).expect_err("refused").to_string();
        assert!(said.starts_with("the client certificate: "), "{said}");
    }

    #[test]
    fn the_urls_host_is_the_tls_name_unless_another_is_given() {
        let pki = Pki::new();
        let name = |server: &str| {
            let parts = Parts { tls_name: None, server: server.parse().expect("a URL"), ..parts(&pki) };
            ClusterAccess::new(parts).expect("checked").tls_name()
        };
        assert_eq!(name("https://api.example:6443/k8s"), "api.example");
        assert_eq!(name("https://10.96.0.1"), "10.96.0.1");
        assert_eq!(name("https://[fd00::1]:6443"), "fd00::1");
    }

    #[test]
    fn damaged_and_newer_forms_are_told_apart_without_quoting_them() {
        let said = |bytes: &[u8]| {
            ClusterAccess::from_secret_bytes(&Secret::new(bytes.to_vec())).expect_err("refused").to_string()
        };
        assert_eq!(said(b"\"s3cret\""), "the saved credential: is damaged");
        let newer = br#"{"version":3,"context":"","server":"https://a","tls_name":null,"ca_pem":null,"cert_pem":null,"key_pem":null,"token":null}"#;
        assert_eq!(said(newer), "the saved credential: has form 3, this program knows forms up to 2");
    }
}
