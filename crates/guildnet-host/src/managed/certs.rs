//! `headscale-ca`: the authority of the managed Headscale, trusted by connectors and routers and by nothing else, and the
//! server's certificate with the address by which it is reached.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, SocketAddrV4},
    path::Path,
};

use crate::{
    HostError,
    pki::{Pki, Spec},
};

/// The server's key and certificates, in one file.
pub(super) const IDENTITY_FILE: &str = "headscale.pem";
/// The authority's certificate alone.
pub(super) const TRUST_FILE: &str = "headscale-ca.crt";
/// The authority's key and certificate.
pub(super) const AUTHORITY_FILE: &str = "headscale-ca.pem";

/// What the certificate must be good for: the address in the server's URL, and the one that this machine asks it by.
pub(super) fn addresses(address: Ipv4Addr, listen: SocketAddrV4) -> Vec<IpAddr> {
    let all: BTreeSet<IpAddr> = [address, local(listen)].into_iter().map(IpAddr::from).collect();
    all.into_iter().collect()
}

/// Where a server that listens there is asked from its own machine.
pub(super) fn local(listen: SocketAddrV4) -> Ipv4Addr {
    if listen.ip().is_unspecified() { Ipv4Addr::LOCALHOST } else { *listen.ip() }
}

/// The files of these certificates in Headscale's folder.
///
/// # Errors
/// The folder is not private.
pub(super) fn pki(folder: &Path, address: Ipv4Addr, listen: SocketAddrV4) -> Result<Pki, HostError> {
    let spec = Spec {
        authority: "GuildNet headscale-ca",
        // An address may change, so no network can be named here; it is trusted for this one server only.
        constraints: None,
        server: "GuildNet managed Headscale",
        addresses: addresses(address, listen),
        names: &[],
        authority_file: AUTHORITY_FILE,
        trust_file: TRUST_FILE,
        server_file: IDENTITY_FILE,
        mend: "put the file back from a backup, or remove it: 'guildnet headscale up' then makes a new authority, and 'guildnet up' takes it to routers and connectors",
    };
    Pki::of(folder, spec)
}

#[cfg(test)]
mod tests {
    use jiff::ToSpan as _;

    use super::*;
    use crate::pki::{LEAF_DAYS, RENEW_DAYS, today};

    #[test]
    fn the_certificate_follows_the_address_and_the_authority_stays() {
        let home = tempfile::tempdir().expect("tempdir");
        let at = |address: [u8; 4]| {
            let listen = SocketAddrV4::new(address.into(), 8443);
            pki(home.path(), address.into(), listen).expect("a place").ensure(today()).expect("made")
        };
        let (first, new) = at([192, 168, 1, 20]);
        assert!(new);
        let (kept, new) = at([192, 168, 1, 20]);
        assert!(!new && kept.chain == first.chain);
        let (moved, new) = at([192, 168, 1, 21]);
        assert!(new && moved.chain[0] != first.chain[0]);
        assert_eq!(moved.chain[1], first.chain[1], "who trusts it goes on trusting it");
    }

    #[test]
    fn it_is_renewed_before_its_end() {
        let home = tempfile::tempdir().expect("tempdir");
        let listen = SocketAddrV4::new([192, 168, 1, 20].into(), 8443);
        let pki = pki(home.path(), *listen.ip(), listen).expect("a place");
        pki.ensure(today()).expect("made");
        let on = |days: i64| pki.ensure(today() + days.days()).expect("checked").1;
        assert!(!on(LEAF_DAYS - RENEW_DAYS));
        assert!(on(LEAF_DAYS - RENEW_DAYS + 1));
    }

    #[test]
    fn a_server_on_every_interface_is_asked_by_loopback() {
        let listen = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 8443);
        let names = addresses([198, 51, 100, 7].into(), listen);
        assert_eq!(names, [IpAddr::from([127, 0, 0, 1]), IpAddr::from([198, 51, 100, 7])]);
        let listen = SocketAddrV4::new([192, 168, 1, 20].into(), 8443);
        assert_eq!(addresses(*listen.ip(), listen), [IpAddr::from([192, 168, 1, 20])]);
    }
}
