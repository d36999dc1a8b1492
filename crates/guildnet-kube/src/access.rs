//! What is needed to talk to one API server: its URL, the name its certificate must bear, whom to trust, who we are.
//!
//! A [`ClusterAccess`] is complete and checked: it names no file, runs no program, and its TLS configuration was built
//! once already. It can be turned into bytes for sealing, and back. The file format of `kubectl` is read in
//! `kubeconfig.rs`.

use std::{borrow::Cow, fmt, sync::Arc};

use guildnet_model::{Class, Explain, Secret};
use http::HeaderValue;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use serde::{Deserialize, Serialize};
use url::{Host, Url};

/// A complete, checked credential for one API server. Cheap to clone.
///
/// `Debug` shows the server and the kind of credential, never the credential.
#[derive(Clone)]
pub struct ClusterAccess(Arc<Checked>);

struct Checked {
    parts: Parts,
    tls_name: ServerName<'static>,
    tls: Arc<ClientConfig>,
    bearer: Option<HeaderValue>,
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
    pub(crate) token: Option<Secret<String>>,
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
}

/// The number of the saved form that this program writes and reads.
const SAVED_VERSION: u8 = 1;

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
        let bearer = parts.token.as_ref().map(bearer).transpose()?;
        Ok(Self(Arc::new(Checked { parts, tls_name, tls, bearer })))
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
            version: SAVED_VERSION,
            context: parts.context.as_str().into(),
            server: parts.server.as_str().into(),
            tls_name: parts.tls_name.as_deref().map(Into::into),
            ca_pem: parts.ca_pem.as_deref().map(Into::into),
            cert_pem: parts.identity.as_ref().map(|(cert, _)| cert.into()),
            key_pem: parts.identity.as_ref().map(|(_, key)| key.expose().into()),
            token: parts.token.as_ref().map(|token| token.expose().into()),
        };
        // Room for everything with each character escaped, so that the buffer never grows and leaves copies behind.
        let texts = [&saved.tls_name, &saved.ca_pem, &saved.cert_pem, &saved.key_pem, &saved.token];
        let length: usize = texts.into_iter().flatten().map(|t| t.len()).sum();
        let mut bytes = Vec::with_capacity(2 * (length + saved.context.len() + saved.server.len()) + 256);
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
        if saved.version != SAVED_VERSION {
            let why = format!("has form {}, this program knows form {SAVED_VERSION}", saved.version);
            return Err(AccessError::new("the saved credential", why));
        }
        Self::new(Parts {
            context: saved.context.into_owned(),
            server: saved.server.parse().map_err(|e| AccessError::new("the saved server", e))?,
            tls_name: saved.tls_name.map(Cow::into_owned),
            ca_pem: saved.ca_pem.map(Cow::into_owned),
            identity: saved.cert_pem.map(Cow::into_owned).zip(key),
            token,
        })
    }

    pub(crate) fn server_name(&self) -> &ServerName<'static> {
        &self.0.tls_name
    }

    pub(crate) fn tls(&self) -> &Arc<ClientConfig> {
        &self.0.tls
    }

    pub(crate) fn bearer(&self) -> Option<&HeaderValue> {
        self.0.bearer.as_ref()
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
            .field("token", &parts.token.is_some())
            .finish()
    }
}

fn bearer(token: &Secret<String>) -> Result<HeaderValue, AccessError> {
    let mut value = HeaderValue::try_from(format!("Bearer {}", token.expose()))
        .map_err(|_| AccessError::new("the token", "has characters that no HTTP header may hold"))?;
    value.set_sensitive(true);
    Ok(value)
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
            token: Some(Secret::new("very-secret-token".into())),
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
        let newer = br#"{"version":2,"context":"","server":"https://a","tls_name":null,"ca_pem":null,"cert_pem":null,"key_pem":null,"token":null}"#;
        assert_eq!(said(newer), "the saved credential: has form 2, this program knows form 1");
    }
}
