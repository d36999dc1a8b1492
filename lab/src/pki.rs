//! Keys and certificates: one authority for each cluster and one for Headscale, all P-256.

use std::net::IpAddr;

use base64::{Engine, prelude::BASE64_STANDARD};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, SanType, date_time_ymd,
};

use crate::error::LabError;

/// A certificate and its key, in PEM.
#[derive(Clone)]
pub(crate) struct Pair {
    pub(crate) cert: String,
    pub(crate) key: String,
}

/// An authority that signs.
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// Who a certificate is for and what it may do.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Subject<'a> {
    /// Common name: in Kubernetes, the user.
    pub(crate) name: &'a str,
    /// Organisation: in Kubernetes, the group.
    pub(crate) group: Option<&'a str>,
    /// Names of a server; none: a client.
    pub(crate) dns: &'a [&'a str],
    /// Addresses of a server.
    pub(crate) ips: &'a [IpAddr],
}

impl<'a> Subject<'a> {
    /// A client of this name and group.
    pub(crate) fn client(name: &'a str, group: Option<&'a str>) -> Self {
        Self { name, group, dns: &[], ips: &[] }
    }
}

impl Authority {
    /// A new authority.
    pub(crate) fn new(name: &str) -> Result<Self, LabError> {
        let mut params = params(name, None);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        let issuer =
            KeyPair::generate().and_then(|key| CertifiedIssuer::self_signed(params, key)).map_err(failed(name))?;
        Ok(Self { issuer })
    }

    /// Its certificate and key.
    pub(crate) fn pair(&self) -> Pair {
        Pair { cert: self.issuer.pem(), key: self.issuer.key().serialize_pem() }
    }

    /// Makes a key and signs its certificate.
    pub(crate) fn sign(&self, subject: Subject<'_>) -> Result<Pair, LabError> {
        let mut params = params(subject.name, subject.group);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        for name in subject.dns {
            let name = (*name).try_into().map_err(failed(subject.name))?;
            params.subject_alt_names.push(SanType::DnsName(name));
        }
        params.subject_alt_names.extend(subject.ips.iter().map(|ip| SanType::IpAddress(*ip)));
        params.extended_key_usages = if params.subject_alt_names.is_empty() {
            vec![ExtendedKeyUsagePurpose::ClientAuth]
        } else {
            vec![ExtendedKeyUsagePurpose::ServerAuth]
        };
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().map_err(failed(subject.name))?;
        let cert = params.signed_by(&key, &self.issuer).map_err(failed(subject.name))?;
        Ok(Pair { cert: cert.pem(), key: key.serialize_pem() })
    }
}

/// A bare key for service accounts' tokens: private and public half.
pub(crate) fn bare_key() -> Result<(String, String), LabError> {
    let key = KeyPair::generate().map_err(failed("service accounts"))?;
    Ok((key.serialize_pem(), key.public_key_pem()))
}

fn params(name: &str, group: Option<&str>) -> CertificateParams {
    let mut params = CertificateParams::default();
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, name);
    if let Some(group) = group {
        subject.push(DnType::OrganizationName, group);
    }
    params.distinguished_name = subject;
    // Fixed dates, both sides of any sane clock: a lab is made anew, never renewed.
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2099, 1, 1);
    params
}

fn failed(subject: &str) -> impl FnOnce(rcgen::Error) -> LabError {
    let subject = subject.to_owned();
    move |why| LabError::Certificate { subject, why: why.to_string() }
}

/// A kubeconfig that needs no other file.
pub(crate) fn kubeconfig(name: &str, server: &str, ca: &str, client: &Pair) -> String {
    let [ca, cert, key] = [ca, &client.cert, &client.key].map(|pem| BASE64_STANDARD.encode(pem));
    format!(
        "apiVersion: v1
kind: Config
current-context: {name}
clusters:
- name: {name}
  cluster:
    server: {server}
    certificate-authority-data: {ca}
contexts:
- name: {name}
  context:
    cluster: {name}
    user: {name}
users:
- name: {name}
  user:
    client-certificate-data: {cert}
    client-key-data: {key}
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kubeconfig_holds_everything_inline() {
        let client = Pair { cert: "CERT".into(), key: "KEY".into() };
        insta::assert_snapshot!(kubeconfig("a", "https://10.99.0.11:6443", "CA", &client));
    }

    #[test]
    fn a_signed_pair_is_in_pem() {
        let ca = Authority::new("lab").expect("an authority");
        let pair = ca.sign(Subject::client("someone", Some("some group"))).expect("a certificate");
        assert!(
            pair.cert.starts_with("-----BEGIN CERTIFICATE-----") && pair.key.starts_with("-----BEGIN PRIVATE KEY-----")
        );
        assert_ne!(pair.cert, ca.pair().cert);
    }
}
