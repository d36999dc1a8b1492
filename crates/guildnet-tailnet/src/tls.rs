//! Which certificates a connector trusts, and the TLS connections that it opens.
//!
//! The system's roots and, beside them, the ones that the user gave. One config serves the login server and its relays; no
//! other part of the process is affected by it. What is spoken inside is in `control/connect.rs` and `relay.rs`.

use std::{
    future::Future,
    io,
    net::Ipv4Addr,
    pin::pin,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use guildnet_model::ConnectorError;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

/// The configs that connectors use now, one for all that trust the same: reading the system's roots takes milliseconds and
/// some 100 KiB, and a hundred connectors of one Headscale need them once. What the system trusts is read again when the last
/// connector that uses a config has gone.
#[derive(Debug, Default)]
pub(crate) struct Shared(Mutex<Vec<(Option<String>, Weak<ClientConfig>)>>);

impl Shared {
    /// The config for `ca_pem`; see [`client_config`].
    pub(crate) fn of(&self, ca_pem: Option<&str>) -> Result<Arc<ClientConfig>, ConnectorError> {
        // Every change is one push or a retain: a panic elsewhere leaves the list whole.
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|(_, config)| config.strong_count() > 0);
        let found = known.iter().find(|(pem, _)| pem.as_deref() == ca_pem).and_then(|(_, config)| config.upgrade());
        if let Some(config) = found {
            return Ok(config);
        }
        let config = client_config(ca_pem)?;
        known.push((ca_pem.map(str::to_owned), Arc::downgrade(&config)));
        Ok(config)
    }
}

/// The TLS client config for the login server and its relays: the system's roots and, beside them, `ca_pem`.
///
/// # Errors
/// [`ConnectorError::Ca`] if `ca_pem` holds no certificate or one that can't be a root, or if nothing at all is trusted.
/// Roots of the system that can't be read are left out with a warning.
pub(crate) fn client_config(ca_pem: Option<&str>) -> Result<Arc<ClientConfig>, ConnectorError> {
    let refuse = |why: String| ConnectorError::Ca { why };
    let mut roots = RootCertStore::empty();
    if let Some(pem) = ca_pem {
        for cert in CertificateDer::pem_slice_iter(pem.as_bytes()) {
            let cert = cert.map_err(|e| refuse(e.to_string()))?;
            roots.add(cert).map_err(|e| refuse(e.to_string()))?;
        }
        if roots.is_empty() {
            return Err(refuse("no certificate in it".into()));
        }
    }
    let system = rustls_native_certs::load_native_certs();
    for error in &system.errors {
        tracing::warn!(%error, "a system root certificate can't be read; it is left out");
    }
    roots.add_parsable_certificates(system.certs);
    if roots.is_empty() {
        return Err(refuse("the system has no root certificates and none was given".into()));
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| refuse(e.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// Opens a TLS connection to `host`, at `ipv4` if that is given. The caller bounds the time.
///
/// # Errors
/// What failed, in words that name the host.
pub(crate) async fn connect(
    config: &Arc<ClientConfig>,
    host: &str,
    port: u16,
    ipv4: Option<Ipv4Addr>,
) -> Result<TlsStream<TcpStream>, String> {
    let name = server_name(host)?;
    let tcp = match (ipv4, &name) {
        (Some(ip), _) => TcpStream::connect((ip, port)).await,
        (None, ServerName::IpAddress(ip)) => TcpStream::connect((std::net::IpAddr::from(*ip), port)).await,
        (None, _) => TcpStream::connect((host, port)).await,
    };
    let tcp = tcp.map_err(|e| format!("{host}:{port} can't be reached: {e}"))?;
    // Small messages must not wait for the acknowledgement of the ones before (40 ms each).
    tcp.set_nodelay(true).map_err(|e| format!("{host}:{port}: {e}"))?;
    TlsConnector::from(config.clone()).connect(name, tcp).await.map_err(|e| describe(host, &e))
}

fn describe(host: &str, error: &io::Error) -> String {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::InvalidCertificate(why)) => format!("the certificate of {host} is not trusted: {why}"),
        _ => format!("TLS with {host} failed: {error}"),
    }
}

/// Runs `talk` while `connection` is driven beside it. A connection that ends makes the talk fail by itself; until then its
/// end alone means nothing (it is how an HTTP upgrade looks).
pub(crate) async fn drive<T>(connection: impl Future, talk: impl Future<Output = T>) -> T {
    let connection = async {
        connection.await;
        std::future::pending::<std::convert::Infallible>().await
    };
    let (talk, connection) = (pin!(talk), pin!(connection));
    tokio::select! {
        out = talk => out,
        never = connection => match never {},
    }
}

/// The name that a server's certificate must have. For an IP address none is sent to the server (RFC 6066, section 3).
fn server_name(host: &str) -> Result<ServerName<'static>, String> {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    ServerName::try_from(bare.to_owned()).map_err(|_| format!("{host:?} is no host name"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_without_a_certificate_is_refused() {
        for (pem, said) in [
            ("hello", "the trusted certificates can't be read: no certificate in it"),
            (
                "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
                "the trusted certificates can't be read",
            ),
        ] {
            let error = client_config(Some(pem)).expect_err("no certificate").to_string();
            assert!(error.starts_with(said), "{error}");
        }
    }

    #[test]
    fn a_given_certificate_is_trusted() {
        let ca = rcgen::generate_simple_self_signed(["ca".to_owned()]).expect("a certificate");
        assert!(client_config(Some(&ca.cert.pem())).is_ok());
    }

    #[test]
    fn who_trusts_the_same_shares_a_config_and_nobody_else() {
        let pem = |name: &str| rcgen::generate_simple_self_signed([name.to_owned()]).expect("a certificate").cert.pem();
        let (one, other, shared) = (pem("one"), pem("other"), Shared::default());
        let of = |ca: Option<&str>| shared.of(ca).expect("a config");
        let first = of(Some(&one));
        assert!(Arc::ptr_eq(&first, &of(Some(&one))));
        assert!(!Arc::ptr_eq(&first, &of(Some(&other))));
        assert!(shared.of(Some("hello")).is_err(), "and an error is not kept");
        drop(first);
        assert!(shared.0.lock().expect("not poisoned").iter().all(|(_, config)| config.strong_count() == 0));
    }

    #[test]
    fn addresses_are_names_too() {
        assert!(matches!(server_name("127.0.0.1"), Ok(ServerName::IpAddress(_))));
        assert!(matches!(server_name("[::1]"), Ok(ServerName::IpAddress(_))));
        assert!(matches!(server_name("headscale.example"), Ok(ServerName::DnsName(_))));
        assert!(server_name("no name").is_err());
    }
}
