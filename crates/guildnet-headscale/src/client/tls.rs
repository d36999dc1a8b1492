//! Which certificates the client trusts, and what went wrong with one. The system's roots and, beside them, the given ones.

use std::{error::Error, io, sync::Arc};

use rustls::{CertificateError, ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};

use crate::HeadscaleError;

/// The TLS client config.
pub(super) fn client_config(ca_pem: Option<&str>) -> Result<ClientConfig, HeadscaleError> {
    let refuse = |why: String| HeadscaleError::Ca { why };
    let mut roots = RootCertStore::empty();
    if let Some(pem) = ca_pem {
        for cert in CertificateDer::pem_slice_iter(pem.as_bytes()) {
            let cert = cert.map_err(|e| refuse(e.to_string()))?;
            roots.add(cert).map_err(|e| refuse(e.to_string()))?;
        }
        if roots.is_empty() {
            return Err(refuse("no PEM certificate in it".into()));
        }
    }
    // A device without root certificates can still use a given one, or plain HTTP behind a tunnel: no error here.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|e| refuse(e.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(config)
}

/// What was wrong with TLS.
pub(super) enum Cause {
    /// Signed by nobody who is trusted.
    NotTrusted(String),
    /// Another name, or out of date, or damaged.
    Invalid(String),
    /// The far end answered in something else.
    NoTls,
}

/// Looks for a TLS error among an error's causes.
pub(super) fn cause(error: &(dyn Error + 'static)) -> Option<Cause> {
    let mut next = Some(error);
    while let Some(error) = next {
        // An `io::Error` hands out its inner error's source, not the inner error: it must be looked into.
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        let tls = error
            .downcast_ref::<rustls::Error>()
            .or_else(|| inner.and_then(|inner| inner.downcast_ref::<rustls::Error>()));
        if let Some(tls) = tls {
            return judge(tls);
        }
        next = match inner {
            Some(inner) => Some(inner as &(dyn Error + 'static)),
            None => error.source(),
        };
    }
    None
}

fn judge(error: &rustls::Error) -> Option<Cause> {
    match error {
        rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
            Some(Cause::NotTrusted("signed by an authority that this device does not know".into()))
        }
        rustls::Error::InvalidCertificate(why) => {
            let why = match why {
                // Webpki's wording for a self-signed certificate that is no authority.
                CertificateError::Other(_) => return Some(Cause::NotTrusted(why.to_string())),
                _ => why.to_string(),
            };
            Some(Cause::Invalid(why))
        }
        rustls::Error::InvalidMessage(_) => Some(Cause::NoTls),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_without_a_certificate_is_refused() {
        for pem in ["hello", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            assert!(matches!(client_config(Some(pem)), Err(HeadscaleError::Ca { .. })), "{pem}");
        }
    }

    #[test]
    fn a_tls_error_is_found_below_io_errors() {
        let tls = rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let nested = io::Error::other(io::Error::new(io::ErrorKind::InvalidData, tls));
        assert!(matches!(cause(&nested), Some(Cause::NotTrusted(_))));
        assert!(cause(&io::Error::other("closed")).is_none());
    }
}
