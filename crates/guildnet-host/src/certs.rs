//! `host-ca`, this person's own authority, and the certificate for the door on 127.0.0.1.
//!
//! The authority can vouch for loopback addresses and `localhost` and for nothing else (name constraints, RFC 5280
//! section 4.2.1.10): who trusts it risks nothing if its key is stolen. In `<home>/certs/`, all private to the person:
//! - `host-ca.pem`: the authority's key and certificate,
//! - `host-ca.crt`: its certificate alone, for clients,
//! - `host.pem`: the door's key, its certificate, and the authority's certificate.
//!
//! How they are made and kept is in `pki.rs`. No network, and no trust store is touched here.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    sync::Arc,
};

use guildnet_model::Class;
use guildnet_store::private;
use jiff::civil::Date;
use rcgen::{CidrSubnet, GeneralSubtree, NameConstraints};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use serde::Serialize;

use crate::{
    HostError,
    error::Explained as _,
    pki::{self, Identity, Pki, Spec, today},
};

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
    let place = place(home)?;
    let today = today();
    let kept = if new_ca { None } else { place.authority(today)? };
    let new_authority = kept.is_none();
    let authority = match kept {
        Some(authority) => authority,
        None => place.make_authority(today)?,
    };
    let leaf = place.make_server(&authority, today)?;
    Ok(Certificates { authority: place.trust_file().to_owned(), new_authority, ends: leaf.ends.to_string() })
}

/// Reads the door's identity, and makes or renews what is missing, damaged or near its end.
pub(crate) fn ensure(home: &Path) -> Result<Identity, HostError> {
    ensure_on(home, today()).map(|(identity, _)| identity)
}

/// The same on a day; also says whether something was made.
pub(crate) fn ensure_on(home: &Path, today: Date) -> Result<(Identity, bool), HostError> {
    place(home)?.ensure(today)
}

/// The file that changes when the door has a new identity.
pub(crate) fn identity_file(home: &Path) -> PathBuf {
    home.join(FOLDER).join(LEAF)
}

/// The file with the authority's certificate for clients.
pub(crate) fn authority_file(home: &Path) -> PathBuf {
    home.join(FOLDER).join(AUTHORITY_CERT)
}

/// The authority's certificate for clients; `None` if none was made yet.
pub(crate) fn authority(home: &Path) -> Result<Option<CertificateDer<'static>>, HostError> {
    let file = authority_file(home);
    let Some(pem) = private::read(&file).explained()? else { return Ok(None) };
    CertificateDer::from_pem_slice(&pem).map(Some).map_err(|_| pki::damaged(&file, MEND))
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
const MEND: &str = "make new certificates: guildnet certs regen --new-ca";

/// The files of one home folder.
fn place(home: &Path) -> Result<Pki, HostError> {
    private::make_dir(home).explained()?;
    let loopback = [
        GeneralSubtree::DnsName("localhost".into()),
        GeneralSubtree::IpAddress(CidrSubnet::from_v4_prefix([127, 0, 0, 0], 8)),
        GeneralSubtree::IpAddress(CidrSubnet::from_v6_prefix(Ipv6Addr::LOCALHOST.octets(), 128)),
    ];
    let spec = Spec {
        authority: "GuildNet host-ca",
        constraints: Some(NameConstraints { permitted_subtrees: loopback.into(), excluded_subtrees: vec![] }),
        server: "GuildNet Host App",
        addresses: vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
        names: &["localhost"],
        authority_file: AUTHORITY,
        trust_file: AUTHORITY_CERT,
        server_file: LEAF,
        mend: MEND,
    };
    Pki::of(&home.join(FOLDER), spec)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use guildnet_model::Explain as _;
    use jiff::ToSpan as _;
    use rcgen::{CertificateParams, SanType};
    use rustls::{
        RootCertStore,
        client::{WebPkiServerVerifier, danger::ServerCertVerifier as _},
    };
    use rustls_pki_types::{ServerName, UnixTime};

    use super::*;
    use crate::pki::{AUTHORITY_DAYS, LEAF_DAYS, RENEW_DAYS, new_key, valid};

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
        let place = place(home.path()).expect("place");
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
        let (kept, _) = ensure_on(home.path(), day(LEAF_DAYS - RENEW_DAYS)).expect("kept");
        assert_eq!(kept.chain, first.chain);
        let (renewed, _) = ensure_on(home.path(), day(LEAF_DAYS - RENEW_DAYS + 1)).expect("renewed");
        assert_ne!(renewed.chain[0], first.chain[0]);
        assert_eq!(renewed.chain[1], first.chain[1], "the authority stays");
        let (much_later, _) = ensure_on(home.path(), day(AUTHORITY_DAYS)).expect("renewed");
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
        place(home.path()).expect("place").make_authority(today()).expect("made");
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
        assert_eq!(refused.hint().as_deref(), Some(MEND));
        regen_certs(home.path(), true).expect("as the hint says");
        ensure(home.path()).expect("good again");
    }
}
