//! An authority of this person's own, and the one certificate that it signs: made, checked, renewed.
//!
//! In one folder, all private to the person:
//! - the authority's key and certificate,
//! - its certificate alone, for clients,
//! - the server's key, its certificate, and the authority's certificate.
//!
//! Each file is written whole and says all that is needed to check it against the others, so an interrupted run is
//! mended by the next one. Who the two are is the caller's: `certs.rs` for the door, `managed/certs.rs` for Headscale.
//! No network, and no trust store is touched here.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    path::{Path, PathBuf},
};

use guildnet_model::Class;
use guildnet_store::private;
use jiff::{Timestamp, ToSpan, civil::Date, tz::TimeZone};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, NameConstraints, PKCS_ECDSA_P256_SHA256, SanType,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use x509_parser::extensions::GeneralName;

use crate::{HostError, error::Explained as _};

/// How long an authority is good for, in days: ten years, so that trusting it is done once.
pub(crate) const AUTHORITY_DAYS: i64 = 3_653;
/// How long a server's certificate is good for, in days: a year and a month. Browsers refuse more than 398.
pub(crate) const LEAF_DAYS: i64 = 397;
/// A certificate with fewer days left is renewed at the next start.
pub(crate) const RENEW_DAYS: i64 = 30;
/// Certificates begin this many days ago, for clocks that are behind.
const BACKDATED_DAYS: i64 = 1;

/// Who an authority and its server are, and how their files are named.
#[derive(Clone, Debug)]
pub(crate) struct Spec {
    /// The authority's name; a mark of its key is put behind it.
    pub(crate) authority: &'static str,
    /// What the authority can vouch for, if not for everything.
    pub(crate) constraints: Option<NameConstraints>,
    /// The server's name, for people who look at the certificate.
    pub(crate) server: &'static str,
    /// Addresses by which the server is reached.
    pub(crate) addresses: Vec<IpAddr>,
    /// Names by which it is reached.
    pub(crate) names: &'static [&'static str],
    /// File of the authority's key and certificate.
    pub(crate) authority_file: &'static str,
    /// File of its certificate alone.
    pub(crate) trust_file: &'static str,
    /// File of the server's key and certificates.
    pub(crate) server_file: &'static str,
    /// What makes a new authority where the one that is there is damaged.
    pub(crate) mend: &'static str,
}

/// A server's key and certificates.
pub(crate) struct Identity {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: PrivateKeyDer<'static>,
    pub(crate) ends: Date,
}

/// The files of one authority.
pub(crate) struct Pki {
    spec: Spec,
    authority: PathBuf,
    trust: PathBuf,
    server: PathBuf,
}

/// The authority, able to sign.
pub(crate) struct Authority {
    pub(crate) cert: CertificateDer<'static>,
    pub(crate) issuer: Issuer<'static, KeyPair>,
}

impl Pki {
    /// The files in a folder, which is made.
    ///
    /// # Errors
    /// The folder can't be made, or is not private.
    pub(crate) fn of(folder: &Path, spec: Spec) -> Result<Self, HostError> {
        private::make_dir(folder).explained()?;
        Ok(Self {
            authority: folder.join(spec.authority_file),
            trust: folder.join(spec.trust_file),
            server: folder.join(spec.server_file),
            spec,
        })
    }

    /// Where the authority's certificate is.
    pub(crate) fn trust_file(&self) -> &Path {
        &self.trust
    }

    /// The server's identity; what is missing, damaged, near its end, or of other addresses is made anew. Also says
    /// whether that was so.
    ///
    /// # Errors
    /// The files can't be read or written, or the authority is damaged.
    pub(crate) fn ensure(&self, today: Date) -> Result<(Identity, bool), HostError> {
        let authority = match self.authority(today)? {
            Some(authority) => authority,
            None => self.make_authority(today)?,
        };
        match self.server(&authority, today)? {
            Some(server) => Ok((server, false)),
            None => self.make_server(&authority, today).map(|server| (server, true)),
        }
    }

    /// The authority that is there, if it is good for long enough. A damaged one is not replaced unasked: others may
    /// trust it.
    pub(crate) fn authority(&self, today: Date) -> Result<Option<Authority>, HostError> {
        let Some(pem) = private::read(&self.authority).explained()? else { return Ok(None) };
        let damaged = || damaged(&self.authority, self.spec.mend);
        let text = std::str::from_utf8(&pem).map_err(|_| damaged())?;
        let cert = CertificateDer::from_pem_slice(&pem).map_err(|_| damaged())?;
        let key = KeyPair::from_pem(text).map_err(|_| damaged())?;
        let facts = facts(&cert).ok_or_else(damaged)?;
        if facts.public != key.public_key_raw() {
            return Err(damaged());
        }
        if days_between(today, facts.ends) < RENEW_DAYS {
            return Ok(None);
        }
        let issuer = Issuer::from_ca_cert_der(&cert, key).map_err(|_| damaged())?;
        let authority = Authority { cert, issuer };
        self.publish(&authority)?;
        Ok(Some(authority))
    }

    /// The certificate for clients follows the authority, also after a run that ended between the two files.
    fn publish(&self, authority: &Authority) -> Result<(), HostError> {
        let pem = pem("CERTIFICATE", &authority.cert);
        if private::read(&self.trust).explained()?.as_deref() != Some(pem.as_bytes()) {
            private::write(&self.trust, pem.as_bytes()).explained()?;
        }
        Ok(())
    }

    pub(crate) fn make_authority(&self, today: Date) -> Result<Authority, HostError> {
        let key = new_key()?;
        let mut params = CertificateParams::default();
        // Two authorities of one person must not bear the same name: verifiers look issuers up by name.
        let mark: String = key.public_key_raw().iter().rev().take(4).map(|byte| format!("{byte:02x}")).collect();
        params.distinguished_name = name(&format!("{} {mark}", self.spec.authority));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.name_constraints.clone_from(&self.spec.constraints);
        valid(&mut params, today, AUTHORITY_DAYS);
        let cert = params.self_signed(&key).map_err(not_signed)?.der().clone();
        let content = zeroizing(pem("PRIVATE KEY", key.serialized_der()) + &pem("CERTIFICATE", &cert));
        private::write(&self.authority, content.expose().as_bytes()).explained()?;
        let issuer = Issuer::from_ca_cert_der(&cert, key).map_err(not_signed)?;
        let authority = Authority { cert, issuer };
        self.publish(&authority)?;
        Ok(authority)
    }

    /// The server's identity that is there, if it is whole, of this authority and these addresses, and good for long
    /// enough.
    fn server(&self, authority: &Authority, today: Date) -> Result<Option<Identity>, HostError> {
        let Some(pem) = private::read(&self.server).explained()? else { return Ok(None) };
        // Nobody trusts this certificate itself: a damaged one is simply made anew.
        let Ok(chain) = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>() else { return Ok(None) };
        let Ok(key) = PrivateKeyDer::from_pem_slice(&pem) else { return Ok(None) };
        let Some(facts) = chain.first().and_then(facts) else { return Ok(None) };
        let fits = KeyPair::try_from(&key).is_ok_and(|pair| pair.public_key_raw() == facts.public);
        let ours = chain.len() == 2 && chain[1] == authority.cert;
        let reached = facts.addresses == self.spec.addresses.iter().copied().collect();
        let lasts = days_between(today, facts.ends) >= RENEW_DAYS;
        Ok((fits && ours && reached && lasts).then_some(Identity { chain, key, ends: facts.ends }))
    }

    pub(crate) fn make_server(&self, authority: &Authority, today: Date) -> Result<Identity, HostError> {
        let key = new_key()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = name(self.spec.server);
        let names = self.spec.names.iter().map(|name| {
            let name = (*name).try_into().expect("ASCII is an IA5 string");
            SanType::DnsName(name)
        });
        params.subject_alt_names = self.spec.addresses.iter().copied().map(SanType::IpAddress).chain(names).collect();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let ends = valid(&mut params, today, LEAF_DAYS);
        let cert = params.signed_by(&key, &authority.issuer).map_err(not_signed)?.der().clone();
        let chain = vec![cert, authority.cert.clone()];
        let certs: String = chain.iter().map(|cert| pem("CERTIFICATE", cert)).collect();
        let content = zeroizing(pem("PRIVATE KEY", key.serialized_der()) + &certs);
        private::write(&self.server, content.expose().as_bytes()).explained()?;
        let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(not_signed)?;
        Ok(Identity { chain, key, ends })
    }
}

/// The day on which the certificate that stands first in a file ends; `None` if there is none to read.
pub(crate) fn ends(file: &Path) -> Option<Date> {
    let pem = private::read(file).ok().flatten()?;
    let cert = CertificateDer::from_pem_slice(&pem).ok()?;
    facts(&cert).map(|facts| facts.ends)
}

fn zeroizing(text: String) -> guildnet_model::Secret<String> {
    guildnet_model::Secret::new(text)
}

pub(crate) fn new_key() -> Result<KeyPair, HostError> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(not_signed)
}

fn name(common: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, "GuildNet");
    name.push(DnType::CommonName, common);
    name
}

/// Sets the time from which and until which; returns the last day.
pub(crate) fn valid(params: &mut CertificateParams, today: Date, days: i64) -> Date {
    let at = |date: Date| {
        let (month, day) = (date.month().unsigned_abs(), date.day().unsigned_abs());
        rcgen::date_time_ymd(date.year().into(), month, day)
    };
    let ends = today.saturating_add(days.days());
    params.not_before = at(today.saturating_sub(BACKDATED_DAYS.days()));
    params.not_after = at(ends);
    ends
}

/// What a certificate says.
struct Facts {
    /// Its last day.
    ends: Date,
    /// The public key as it stands there.
    public: Vec<u8>,
    /// The addresses that it is good for.
    addresses: BTreeSet<IpAddr>,
}

fn facts(cert: &CertificateDer<'_>) -> Option<Facts> {
    let (_, parsed) = x509_parser::parse_x509_certificate(cert).ok()?;
    let ends = Timestamp::from_second(parsed.validity().not_after.timestamp()).ok()?;
    let names = parsed.subject_alternative_name().ok().flatten().map(|names| &names.value.general_names);
    let addresses = names.into_iter().flatten().filter_map(|name| match name {
        GeneralName::IPAddress(bytes) => address(bytes),
        _ => None,
    });
    Some(Facts {
        ends: ends.to_zoned(TimeZone::UTC).date(),
        public: parsed.public_key().subject_public_key.data.to_vec(),
        addresses: addresses.collect(),
    })
}

/// An address as certificates hold it: its bytes in network order.
fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

pub(crate) fn days_between(from: Date, to: Date) -> i64 {
    (to - from).get_days().into()
}

pub(crate) fn today() -> Date {
    Timestamp::now().to_zoned(TimeZone::UTC).date()
}

/// PEM (RFC 7468): base64 in lines of 64 letters.
fn pem(label: &str, der: &[u8]) -> String {
    use base64::{Engine as _, prelude::BASE64_STANDARD};
    let encoded = zeroizing(BASE64_STANDARD.encode(der));
    let mut text = format!("-----BEGIN {label}-----\n");
    for line in encoded.expose().as_bytes().chunks(64) {
        text.extend(line.iter().map(|byte| char::from(*byte)));
        text.push('\n');
    }
    text + &format!("-----END {label}-----\n")
}

pub(crate) fn damaged(file: &Path, mend: &str) -> HostError {
    HostError::new(Class::Failed, format!("{} is damaged", file.display())).with_hint(mend)
}

fn not_signed(why: impl std::fmt::Display) -> HostError {
    HostError::new(Class::Failed, format!("no certificate could be made: {why}"))
}
