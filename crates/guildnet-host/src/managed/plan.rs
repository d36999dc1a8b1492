//! What a managed Headscale is started with: from what was asked for, and what this machine is. Pure, but for the
//! program's version and the machine's addresses, which are looked up first.

use std::{
    net::{Ipv4Addr, SocketAddrV4, TcpListener, UdpSocket},
    path::{Path, PathBuf},
};

use guildnet_headscale::managed::ManagedConfig;
use guildnet_model::Class;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use url::Url;

use super::{
    AddressChoice,
    address::{self, Addresses},
    binary::{self, Build},
    certs,
};
use crate::HostError;

/// The port for HTTPS: one that needs no privilege.
const PORT: u16 = 8443;
/// STUN's own port (RFC 8489).
const STUN_PORT: u16 = 3478;

/// What is asked of a Headscale of this machine's own; what is not given was chosen before, or is found out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ManagedSettings {
    /// The program (`GUILDNET_HEADSCALE_BINARY`).
    pub binary: Option<PathBuf>,
    /// The address by which the clusters' nodes reach it (`GUILDNET_HEADSCALE_ADDRESS`).
    pub address: Option<AddressChoice>,
    /// Where it listens (`GUILDNET_HEADSCALE_LISTEN`).
    pub listen: Option<SocketAddrV4>,
    /// Port for STUN (`GUILDNET_HEADSCALE_STUN_PORT`).
    pub stun_port: Option<u16>,
}

impl ManagedSettings {
    /// These, and what they leave open as it was chosen before.
    pub(super) fn or(self, before: &Self) -> Self {
        Self {
            binary: self.binary.or_else(|| before.binary.clone()),
            address: self.address.or(before.address),
            listen: self.listen.or(before.listen),
            stun_port: self.stun_port.or(before.stun_port),
        }
    }
}

/// Everything that a start needs to know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Plan {
    pub(super) binary: PathBuf,
    pub(super) build: Build,
    pub(super) address: Ipv4Addr,
    pub(super) listen: SocketAddrV4,
    pub(super) stun: SocketAddrV4,
}

/// A plan that was carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Started {
    #[serde(flatten)]
    pub(super) plan: Plan,
    pub(super) at: Timestamp,
}

impl Plan {
    /// Finds out what is not given.
    ///
    /// # Errors
    /// There is no program, or no address that nodes could reach.
    pub(super) async fn make(asked: &ManagedSettings) -> Result<Self, HostError> {
        let binary = binary::find(asked.binary.as_deref())?;
        let places = places(asked, &address::observed())?;
        let build = binary::build(&binary).await?;
        Ok(Self { binary, build, address: places.address, listen: places.listen, stun: places.stun })
    }

    /// The address that nodes log in to.
    pub(super) fn url(&self) -> Url {
        url(self.address, self.listen.port())
    }

    /// The address by which this machine asks it.
    pub(super) fn local_url(&self) -> Url {
        url(certs::local(self.listen), self.listen.port())
    }

    /// What the server is told.
    pub(super) fn config<'a>(&self, folder: &'a Path) -> ManagedConfig<'a> {
        let (address, listen, stun) = (self.address, self.listen, self.stun);
        ManagedConfig { folder, address, listen, stun, identity_file: certs::IDENTITY_FILE }
    }

    /// Why a server that runs by this plan does not do what `wanted` asks for; `None` if it does.
    pub(super) fn outdated(&self, wanted: &Self) -> Option<String> {
        if self.address != wanted.address {
            return Some(format!("its address was {} and is now {}", self.address, wanted.address));
        }
        if (self.listen, self.stun) != (wanted.listen, wanted.stun) {
            let (from, to) = ((self.listen, self.stun), (wanted.listen, wanted.stun));
            return Some(format!("it listens at {} and {} (STUN) instead of {} and {}", from.0, from.1, to.0, to.1));
        }
        match binary::change(Some(&self.build), &wanted.build) {
            binary::Change::Other { said } => Some(said),
            binary::Change::First | binary::Change::Same => None,
        }
    }

    /// Finds out whether its ports are free, before anything else has to fail for it.
    ///
    /// # Errors
    /// One is taken, or the address is none of this machine.
    pub(super) fn ports_are_free(&self) -> Result<(), HostError> {
        let tcp = TcpListener::bind(self.listen).map(drop).map_err(|why| (self.listen, "TCP", "--listen IP:PORT", why));
        let udp = UdpSocket::bind(self.stun).map(drop).map_err(|why| (self.stun, "UDP", "--stun-port PORT", why));
        let Err((at, kind, flag, why)) = tcp.and(udp) else { return Ok(()) };
        let (class, said) = match why.kind() {
            std::io::ErrorKind::AddrInUse => (Class::Conflict, "is taken by another program".to_owned()),
            std::io::ErrorKind::AddrNotAvailable => (Class::Precondition, "is no address of this machine".to_owned()),
            _ => (Class::Failed, format!("can't be listened at: {why}")),
        };
        Err(HostError::new(class, format!("{at} ({kind}) {said}"))
            .with_hint(format!("free it, or choose another: guildnet headscale up {flag}")))
    }
}

fn url(address: Ipv4Addr, port: u16) -> Url {
    format!("https://{address}:{port}").parse().expect("an address and a port make a URL")
}

/// Where it is reached and where it listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Places {
    pub(super) address: Ipv4Addr,
    pub(super) listen: SocketAddrV4,
    pub(super) stun: SocketAddrV4,
}

/// Chooses them.
///
/// # Errors
/// There is no address that nodes could reach.
pub(super) fn places(asked: &ManagedSettings, seen: &Addresses) -> Result<Places, HostError> {
    let choice = match (asked.address, asked.listen) {
        (Some(choice), _) => choice,
        // Who names where it listens has named the address too, if it is one that can be reached.
        (None, Some(listen)) if !listen.ip().is_unspecified() => AddressChoice::This(*listen.ip()),
        (None, _) => AddressChoice::Auto,
    };
    let address = address::choose(choice, seen)?;
    // An address that is not this machine's leads to it by somebody's forwarding, through any of its own.
    let own = if seen.has(address) { address } else { Ipv4Addr::UNSPECIFIED };
    let listen = asked.listen.unwrap_or(SocketAddrV4::new(own, PORT));
    let stun = SocketAddrV4::new(*listen.ip(), asked.stun_port.unwrap_or(STUN_PORT));
    Ok(Places { address, listen, stun })
}

#[cfg(test)]
mod tests {
    use guildnet_model::Explain as _;

    use super::*;

    fn seen() -> Addresses {
        let address: Ipv4Addr = [192, 168, 1, 20].into();
        Addresses { routed: Some(address), own: vec![("eth0".into(), address)] }
    }

    fn placed(asked: &ManagedSettings) -> [String; 3] {
        let places = places(asked, &seen()).expect("chosen");
        [places.address.to_string(), places.listen.to_string(), places.stun.to_string()]
    }

    #[test]
    fn nothing_given_means_the_networks_address_and_the_usual_ports() {
        let said = placed(&ManagedSettings::default());
        assert_eq!(said, ["192.168.1.20", "192.168.1.20:8443", "192.168.1.20:3478"]);
    }

    #[test]
    fn where_it_listens_names_the_address_unless_it_is_everywhere() {
        let listen = |text: &str| ManagedSettings { listen: text.parse().ok(), ..ManagedSettings::default() };
        assert_eq!(placed(&listen("10.99.0.1:8444")), ["10.99.0.1", "10.99.0.1:8444", "10.99.0.1:3478"]);
        assert_eq!(placed(&listen("0.0.0.0:443")), ["192.168.1.20", "0.0.0.0:443", "0.0.0.0:3478"]);
        let refused = places(&listen("127.0.0.1:8443"), &seen()).expect_err("pods can't reach it");
        assert_eq!(refused.class(), Class::Usage);
    }

    #[test]
    fn a_forwarded_address_is_listened_for_everywhere() {
        let address = Some(AddressChoice::This([198, 51, 100, 7].into()));
        let asked = ManagedSettings { address, stun_port: Some(3479), ..ManagedSettings::default() };
        assert_eq!(placed(&asked), ["198.51.100.7", "0.0.0.0:8443", "0.0.0.0:3479"]);
    }

    #[test]
    fn what_is_given_wins_over_what_was_chosen_before() {
        let address = |choice| ManagedSettings { address: Some(choice), ..ManagedSettings::default() };
        let before = ManagedSettings { stun_port: Some(3479), ..address(AddressChoice::This([10, 0, 0, 5].into())) };
        let now = address(AddressChoice::Auto).or(&before);
        assert_eq!((now.address, now.stun_port), (Some(AddressChoice::Auto), Some(3479)));
    }

    fn plan(change: impl FnOnce(&mut Plan)) -> Plan {
        let address: Ipv4Addr = [192, 168, 1, 20].into();
        let mut plan = Plan {
            binary: "/usr/bin/headscale".into(),
            build: Build { version: "0.29.2".into(), digest: "1".into() },
            address,
            listen: SocketAddrV4::new(address, PORT),
            stun: SocketAddrV4::new(address, STUN_PORT),
        };
        change(&mut plan);
        plan
    }

    #[test]
    fn a_changed_address_or_program_is_named() {
        let why = |change: fn(&mut Plan)| plan(|_| {}).outdated(&plan(change)).unwrap_or_default();
        assert_eq!(why(|_| {}), "");
        assert_eq!(why(|p| p.binary = "/elsewhere".into()), "", "the same program");
        assert_eq!(why(|p| p.address = [10, 0, 0, 5].into()), "its address was 192.168.1.20 and is now 10.0.0.5");
        assert!(why(|p| p.stun.set_port(1)).contains("STUN"));
        assert_eq!(why(|p| p.build.version = "0.30.0".into()), "Headscale 0.30.0 instead of 0.29.2");
    }

    #[test]
    fn a_taken_port_names_its_flag() {
        let held = UdpSocket::bind("127.0.0.1:0").expect("a port");
        let free = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port");
        let v4 = |at: std::net::SocketAddr| SocketAddrV4::new(Ipv4Addr::LOCALHOST, at.port());
        let taken = plan(|p| (p.listen, p.stun) = (v4(free), v4(held.local_addr().expect("bound"))));
        let said = taken.ports_are_free().expect_err("taken");
        assert_eq!(said.class(), Class::Conflict);
        assert!(said.hint().expect("a hint").contains("--stun-port"));
        let foreign = plan(|p| p.listen = "203.0.113.9:8443".parse().expect("an address"));
        assert_eq!(foreign.ports_are_free().expect_err("not ours").class(), Class::Precondition);
    }

    #[test]
    fn what_was_started_is_read_back() {
        let started = Started { plan: plan(|_| {}), at: Timestamp::from_second(1_800_000_000).expect("a time") };
        let text = serde_json::to_string(&started).expect("json");
        assert_eq!(serde_json::from_str::<Started>(&text).expect("read"), started);
    }
}
