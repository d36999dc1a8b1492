//! `host-ca`, this person's own authority, and the certificate for the door on 127.0.0.1.
//!
//! The authority can vouch for loopback addresses and `localhost` and for nothing else (name constraints, RFC 5280
//! section 4.2.1.10): who trusts it risks nothing if its key is stolen. In `<home>/certs/`, all private to the person:
//! - `host-ca.pem`: the authority's key and certificate,
//! - `host-ca.crt`: its certificate alone, for clients,
//! - `host.pem`: the door's key, its certificate, and the authority's certificate.
//!
//! Each file is written whole and says all that is needed to check it against the others, so an interrupted run is
//! mended by the next one. No network, and no trust store is touched here.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    sync::Arc,
};

use guildnet_model::Class;
use guildnet_store::private;
use jiff::{Timestamp, ToSpan, civil::Date, tz::TimeZone};
use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose, NameConstraints, PKCS_ECDSA_P256_SHA256, SanType,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use serde::Serialize;

use crate::{HostError, error::Explained as _};

/// How long the authority is good for, in days: ten years, so that trusting it is done once.
const AUTHORITY_DAYS: i64 = 3_653;
/// How long the door's certificate is good for, in days: a year and a month. Browsers refuse more than 398.
const LEAF_DAYS: i64 = 397;
/// A certificate with fewer days left is renewed at the next start.
const RENEW_DAYS: i64 = 30;
/// Certificates begin this many days ago, for clocks that are behind.
const BACKDATED_DAYS: i64 = 1;

/// What [`regen_certs`] made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Certificates {
    /// The authority's certificate: what clients trust.
    pub authority: PathBuf,
    /// Whether the authority is new: then everything that trusted the old one must be told.
    pub new_authority: bool,
    /// The day on which the door's certificate ends, `YYYY-MM-DD`.
    pub ends: String,
}

/// Renews the door's certificate, with `new_ca` the authority too. A running Host App takes the new ones by itself.
///
/// # Errors
/// The files can't be written, or the authority that is to be kept is damaged.
pub fn regen_certs(home: &Path, new_ca: bool) -> Result<Certificates, HostError> {
    let place = Place::of(home)?;
    let today = today();
    let kept = if new_ca { None } else { place.authority(today)? };
    let new_authority = kept.is_none();
    let authority = match kept {
        Some(authority) => authority,
        None => place.make_authority(today)?,
    };
    let leaf = place.make_leaf(&authority, today)?;
    Ok(Certificates { authority: place.authority_cert, new_authority, ends: leaf.ends.to_string() })
}

/// The door's key and certificates.
pub(crate) struct Identity {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    ends: Date,
}

/// Reads the door's identity, and makes or renews what is missing, damaged or near its end.
pub(crate) fn ensure(home: &Path) -> Result<Identity, HostError> {
    ensure_on(home, today())
}

fn ensure_on(home: &Path, today: Date) -> Result<Identity, HostError> {
    let place = Place::of(home)?;
    let authority = match place.authority(today)? {
        Some(authority) => authority,
        None => place.make_authority(today)?,
    };
    match place.leaf(&authority, today)? {
        Some(leaf) => Ok(leaf),
        None => place.make_leaf(&authority, today),
    }
}

/// The file that changes when the door has a new identity.
pub(crate) fn identity_file(home: &Path) -> PathBuf {
    home.join(FOLDER).join(LEAF)
}

/// The authority's certificate for clients; `None` if none was made yet.
pub(crate) fn authority(home: &Path) -> Result<Option<CertificateDer<'static>>, HostError> {
    let file = home.join(FOLDER).join(AUTHORITY_CERT);
    let Some(pem) = private::read(&file).explained()? else { return Ok(None) };
    CertificateDer::from_pem_slice(&pem).map(Some).map_err(|_| damaged(&file))
}

/// TLS for the door: HTTP/2 or HTTP/1.1, aws-lc-rs, no client certificates.
pub(crate) fn server_config(identity: Identity) -> Result<rustls::ServerConfig, HostError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("aws-lc-rs has the cipher suites of the default protocol versions")
        .with_no_client_auth();
    let mut config = builder.with_single_cert(identity.chain, identity.key).map_err(|why| {
        HostError::new(Class::Failed, format!("the door's certificate can't be used: {why}"))
            .with_hint("make a new one: guildnet certs regen")
    })?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

const FOLDER: &str = "certs";
const AUTHORITY: &str = "host-ca.pem";
const AUTHORITY_CERT: &str = "host-ca.crt";
const LEAF: &str = "host.pem";

/// The files of one home folder.
struct Place {
    authority: PathBuf,
    authority_cert: PathBuf,
    leaf: PathBuf,
}

/// The authority, able to sign.
struct Authority {
    cert: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl Place {
    fn of(home: &Path) -> Result<Self, HostError> {
        let folder = home.join(FOLDER);
        private::make_dir(home).explained()?;
        private::make_dir(&folder).explained()?;
        Ok(Self {
            authority: folder.join(AUTHORITY),
            authority_cert: folder.join(AUTHORITY_CERT),
            leaf: folder.join(LEAF),
        })
    }

    /// The authority that is there, if it is good for long enough. A damaged one is not replaced unasked: others may
    /// trust it.
    fn authority(&self, today: Date) -> Result<Option<Authority>, HostError> {
        let Some(pem) = private::read(&self.authority).explained()? else { return Ok(None) };
        let damaged = || damaged(&self.authority).with_hint("make a new authority: guildnet certs regen --new-ca");
        let text = std::str::from_utf8(&pem).map_err(|_| damaged())?;
        let cert = CertificateDer::from_pem_slice(&pem).map_err(|_| damaged())?;
        let key = KeyPair::from_pem(text).map_err(|_| damaged())?;
        let (ends, public) = facts(&cert).ok_or_else(damaged)?;
        if public != key.public_key_raw() {
            return Err(damaged());
        }
        if days_between(today, ends) < RENEW_DAYS {
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
        if private::read(&self.authority_cert).explained()?.as_deref() != Some(pem.as_bytes()) {
            private::write(&self.authority_cert, pem.as_bytes()).explained()?;
        }
        Ok(())
    }

    fn make_authority(&self, today: Date) -> Result<Authority, HostError> {
        let key = new_key()?;
        let mut params = CertificateParams::default();
        // Two authorities of one person must not bear the same name: verifiers look issuers up by name.
        let mark: String = key.public_key_raw().iter().rev().take(4).map(|byte| format!("{byte:02x}")).collect();
        params.distinguished_name = name(&format!("GuildNet host-ca {mark}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.name_constraints = Some(NameConstraints {
            permitted_subtrees: vec![
                GeneralSubtree::DnsName("localhost".into()),
                GeneralSubtree::IpAddress(CidrSubnet::from_v4_prefix([127, 0, 0, 0], 8)),
                GeneralSubtree::IpAddress(CidrSubnet::from_v6_prefix(Ipv6Addr::LOCALHOST.octets(), 128)),
            ],
            excluded_subtrees: vec![],
        });
        valid(&mut params, today, AUTHORITY_DAYS);
        let cert = params.self_signed(&key).map_err(not_signed)?.der().clone();
        let content = zeroizing(pem("PRIVATE KEY", key.serialized_der()) + &pem("CERTIFICATE", &cert));
        private::write(&self.authority, content.expose().as_bytes()).explained()?;
        let issuer = Issuer::from_ca_cert_der(&cert, key).map_err(not_signed)?;
        let authority = Authority { cert, issuer };
        self.publish(&authority)?;
        Ok(authority)
    }

    /// The door's identity that is there, if it is whole, of this authority, and good for long enough.
    fn leaf(&self, authority: &Authority, today: Date) -> Result<Option<Identity>, HostError> {
        let Some(pem) = private::read(&self.leaf).explained()? else { return Ok(None) };
        // Nobody trusts this certificate itself: a damaged one is simply made anew.
        let Ok(chain) = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>() else { return Ok(None) };
        let Ok(key) = PrivateKeyDer::from_pem_slice(&pem) else { return Ok(None) };
        let Some((ends, public)) = chain.first().and_then(facts) else { return Ok(None) };
        let fits = KeyPair::try_from(&key).is_ok_and(|pair| pair.public_key_raw() == public);
        let ours = chain.len() == 2 && chain[1] == authority.cert;
        let lasts = days_between(today, ends) >= RENEW_DAYS;
        Ok((fits && ours && lasts).then_some(Identity { chain, key, ends }))
    }

    fn make_leaf(&self, authority: &Authority, today: Date) -> Result<Identity, HostError> {
        let key = new_key()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = name("GuildNet Host App");
        params.subject_alt_names = vec![
            SanType::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST)),
            SanType::IpAddress(IpAddr::V6(Ipv6Addr::LOCALHOST)),
            SanType::DnsName("localhost".try_into().expect("ASCII is an IA5 string")),
        ];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let ends = valid(&mut params, today, LEAF_DAYS);
        let cert = params.signed_by(&key, &authority.issuer).map_err(not_signed)?.der().clone();
        let chain = vec![cert, authority.cert.clone()];
        let certs: String = chain.iter().map(|cert| pem("CERTIFICATE", cert)).collect();
        let content = zeroizing(pem("PRIVATE KEY", key.serialized_der()) + &certs);
        private::write(&self.leaf, content.expose().as_bytes()).explained()?;
        let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(not_signed)?;
        Ok(Identity { chain, key, ends })
    }
}

fn zeroizing(text: String) -> guildnet_model::Secret<String> {
    guildnet_model::Secret::new(text)
}

fn new_key() -> Result<KeyPair, HostError> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(not_signed)
}

fn name(common: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, "GuildNet");
    name.push(DnType::CommonName, common);
    name
}

/// Sets the time from which and until which; returns the last day.
fn valid(params: &mut CertificateParams, today: Date, days: i64) -> Date {
    let at = |date: Date| {
        let (month, day) = (date.month().unsigned_abs(), date.day().unsigned_abs());
        rcgen::date_time_ymd(date.year().into(), month, day)
    };
    let ends = today.saturating_add(days.days());
    params.not_before = at(today.saturating_sub(BACKDATED_DAYS.days()));
    params.not_after = at(ends);
    ends
}

/// The last day of a certificate, and its public key as it stands there.
fn facts(cert: &CertificateDer<'_>) -> Option<(Date, Vec<u8>)> {
    let (_, parsed) = x509_parser::parse_x509_certificate(cert).ok()?;
    let ends = Timestamp::from_second(parsed.validity().not_after.timestamp()).ok()?;
    Some((ends.to_zoned(TimeZone::UTC).date(), parsed.public_key().subject_public_key.data.to_vec()))
}

fn days_between(from: Date, to: Date) -> i64 {
    (to - from).get_days().into()
}

fn today() -> Date {
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

fn damaged(file: &Path) -> HostError {
    HostError::new(Class::Failed, format!("{} is damaged", file.display()))
        .with_hint("make new certificates: guildnet certs regen --new-ca")
}

fn not_signed(why: impl std::fmt::Display) -> HostError {
    HostError::new(Class::Failed, format!("no certificate could be made: {why}"))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rustls::{
        RootCertStore,
        client::{WebPkiServerVerifier, danger::ServerCertVerifier as _},
    };
    use rustls_pki_types::{ServerName, UnixTime};

    use super::*;

    fn home() -> tempfile::TempDir {
        tempfile::tempdir().expect("tempdir")
    }

    /// Whether a client that trusts the authority takes the certificate for `name` today.
    fn trusted(home: &Path, chain: &[CertificateDer<'static>], name: &str) -> Result<(), rustls::Error> {
        let mut roots = RootCertStore::empty();
        roots.add(authority(home).expect("read").expect("an authority")).expect("a root");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build().expect("verifier");
        let name = ServerName::try_from(name.to_owned()).expect("a name");
        verifier.verify_server_cert(&chain[0], &chain[1..], &name, &[], UnixTime::now()).map(|_| ())
    }

    #[test]
    fn the_door_is_trusted_by_every_name_that_it_has() {
        let home = home();
        let identity = ensure(home.path()).expect("made");
        for name in ["127.0.0.1", "::1", "localhost"] {
            trusted(home.path(), &identity.chain, name).expect(name);
        }
        assert!(trusted(home.path(), &identity.chain, "127.0.0.2").is_err(), "not a name of the door");
    }

    #[test]
    fn the_authority_can_vouch_for_loopback_only() {
        let home = home();
        let place = Place::of(home.path()).expect("place");
        let authority = place.make_authority(today()).expect("made");
        let vouch = |subject: SanType, name: &str| {
            let key = new_key().expect("key");
            let mut params = CertificateParams::default();
            params.subject_alt_names = vec![subject];
            valid(&mut params, today(), 1);
            let cert = params.signed_by(&key, &authority.issuer).expect("signed").der().clone();
            trusted(home.path(), &[cert, authority.cert.clone()], name)
        };
        let dns = |name: &str| SanType::DnsName(name.try_into().expect("a name"));
        vouch(dns("localhost"), "localhost").expect("the control");
        assert!(vouch(dns("example.com"), "example.com").is_err());
        assert!(vouch(SanType::IpAddress([10, 96, 0, 1].into()), "10.96.0.1").is_err());
    }

    #[test]
    fn what_is_good_is_kept_and_what_ends_soon_is_renewed() {
        let home = home();
        let day = |n: i64| today() + n.days();
        let first = ensure(home.path()).expect("made");
        let kept = ensure_on(home.path(), day(LEAF_DAYS - RENEW_DAYS)).expect("kept");
        assert_eq!(kept.chain, first.chain);
        let renewed = ensure_on(home.path(), day(LEAF_DAYS - RENEW_DAYS + 1)).expect("renewed");
        assert_ne!(renewed.chain[0], first.chain[0]);
        assert_eq!(renewed.chain[1], first.chain[1], "the authority stays");
        let much_later = ensure_on(home.path(), day(AUTHORITY_DAYS)).expect("renewed");
        assert_ne!(much_later.chain[1], first.chain[1], "a new authority");
    }

    #[test]
    fn regen_keeps_the_authority_unless_told_otherwise() {
        let home = home();
        let first = ensure(home.path()).expect("made");
        let made = regen_certs(home.path(), false).expect("renewed");
        let second = ensure(home.path()).expect("read");
        assert!(!made.new_authority);
        assert_ne!(second.chain[0], first.chain[0]);
        assert_eq!(second.chain[1], first.chain[1]);
        assert!(regen_certs(home.path(), true).expect("renewed").new_authority);
        let third = ensure(home.path()).expect("read");
        assert_ne!(third.chain[1], first.chain[1]);
        trusted(home.path(), &third.chain, "127.0.0.1").expect("clients read the new authority");
    }

    #[test]
    fn an_interrupted_run_is_mended_by_the_next() {
        let home = home();
        let first = ensure(home.path()).expect("made");
        let folder = home.path().join(FOLDER);
        // A new authority was written, and nothing after it.
        let old_cert = fs::read(folder.join(AUTHORITY_CERT)).expect("read");
        Place::of(home.path()).expect("place").make_authority(today()).expect("made");
        private::write(&folder.join(AUTHORITY_CERT), &old_cert).expect("written");
        let second = ensure(home.path()).expect("mended");
        assert_ne!(second.chain[1], first.chain[1]);
        trusted(home.path(), &second.chain, "localhost").expect("all files agree again");
        // A damaged leaf is made anew; a damaged authority is not, since others may trust it.
        private::write(&folder.join(LEAF), b"x").expect("written");
        ensure(home.path()).expect("mended");
        private::write(&folder.join(AUTHORITY), b"x").expect("written");
        let refused = ensure(home.path()).err().expect("refused");
        assert_eq!(refused.to_string(), format!("{} is damaged", folder.join(AUTHORITY).display()));
        regen_certs(home.path(), true).expect("as the hint says");
        ensure(home.path()).expect("good again");
    }
}
