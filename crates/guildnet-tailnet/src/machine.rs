//! Notices that this machine has moved: it has other addresses, or it has slept.
//!
//! One watch serves all connectors of an engine. The system's own word comes at once (Linux: rtnetlink(7), address groups);
//! it is only a hint to look, so nothing of it is parsed, and where there is none a look every few seconds does.

use std::{convert::Infallible, net::Ipv4Addr, time::Duration};

use tokio::{sync::watch, time::sleep};

/// How often is looked without a hint.
const LOOK: Duration = Duration::from_secs(10);
/// Changes come in bursts: an address goes, another one comes, its routes follow.
const SETTLE: Duration = Duration::from_millis(250);
/// Time that passed for the world and not for this process, from which on connections are as good as lost. Adjusting the
/// clock makes far less.
const SLEPT: Duration = Duration::from_secs(5);

/// What has happened to the machine so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Machine {
    /// How often its addresses have changed.
    pub(crate) moves: u64,
    /// How often it has slept.
    pub(crate) sleeps: u64,
}

/// What is seen of it at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Look {
    addresses: Vec<Ipv4Addr>,
    /// How much longer it has run than been awake.
    asleep: Duration,
}

impl Machine {
    /// What has happened between two looks.
    fn after(self, before: &Look, now: &Look) -> Self {
        let slept = now.asleep.saturating_sub(before.asleep) >= SLEPT;
        Self {
            moves: self.moves + u64::from(before.addresses != now.addresses),
            sleeps: self.sleeps + u64::from(slept),
        }
    }
}

/// Watches for ever.
pub(crate) async fn watch(told: watch::Sender<Machine>) -> Infallible {
    let hints = hints::open();
    let mut before = look();
    loop {
        tokio::select! {
            () = hints::next(hints.as_ref()) => sleep(SETTLE).await,
            () = sleep(LOOK) => {}
        }
        let now = look();
        told.send_if_modified(|machine| {
            let after = machine.after(&before, &now);
            std::mem::replace(machine, after) != after
        });
        before = now;
    }
}

fn look() -> Look {
    let mut addresses = crate::udp::interface_addresses();
    addresses.sort_unstable();
    Look { addresses, asleep: asleep() }
}

/// How long the machine has slept since it was started; zero where the system does not tell.
#[cfg(target_os = "linux")]
fn asleep() -> Duration {
    use rustix::time::{ClockId, clock_gettime};
    let at = |id| Duration::try_from(clock_gettime(id)).unwrap_or_default();
    at(ClockId::Boottime).saturating_sub(at(ClockId::Monotonic))
}

/// The wall clock runs on while the machine sleeps.
#[cfg(not(target_os = "linux"))]
fn asleep() -> Duration {
    use std::{
        sync::LazyLock,
        time::{Instant, SystemTime},
    };
    static START: LazyLock<(SystemTime, Instant)> = LazyLock::new(|| (SystemTime::now(), Instant::now()));
    START.0.elapsed().unwrap_or_default().saturating_sub(START.1.elapsed())
}

#[cfg(target_os = "linux")]
mod hints {
    use std::{future::pending, io, os::fd::AsRawFd as _};

    use nix::sys::socket::{AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, socket};
    use tokio::net::UdpSocket;

    /// `RTMGRP_IPV4_IFADDR` and `RTMGRP_IPV6_IFADDR` (linux/rtnetlink.h).
    const ADDRESSES: u32 = 0x10 | 0x100;

    pub(super) fn open() -> Option<UdpSocket> {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let opened = socket(AddressFamily::Netlink, SockType::Datagram, flags, SockProtocol::NetlinkRoute)
            .and_then(|socket| bind(socket.as_raw_fd(), &NetlinkAddr::new(0, ADDRESSES)).map(|()| socket))
            .map_err(io::Error::from)
            // Datagrams are received from one as from the other.
            .and_then(|socket| UdpSocket::from_std(socket.into()));
        opened.inspect_err(|error| tracing::debug!(%error, "the system gives no word of its addresses")).ok()
    }

    /// Waits for a word; for ever if there will be none.
    pub(super) async fn next(socket: Option<&UdpSocket>) {
        let Some(socket) = socket else { return pending().await };
        let mut word = [0; 4096];
        let first = socket.recv(&mut word).await;
        if first.as_ref().is_err_and(|why| why.raw_os_error() != Some(nix::libc::ENOBUFS)) {
            return pending().await;
        }
        // One look is enough for all that came; an overflow is a word, too.
        while socket.try_recv(&mut word).is_ok() {}
    }
}

#[cfg(not(target_os = "linux"))]
mod hints {
    pub(super) fn open() -> Option<()> {
        None
    }

    pub(super) async fn next(_: Option<&()>) {
        std::future::pending().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(addresses: &[&str], asleep: u64) -> Look {
        let addresses = addresses.iter().map(|ip| ip.parse().expect("an address")).collect();
        Look { addresses, asleep: Duration::from_secs(asleep) }
    }

    #[test]
    fn other_addresses_are_a_move_and_lost_time_is_a_sleep() {
        let home = look(&["192.168.1.7"], 100);
        let at = |moves, sleeps| Machine { moves, sleeps };
        let machine = at(3, 1);
        assert_eq!(machine.after(&home, &home), machine);
        assert_eq!(machine.after(&home, &look(&["10.0.0.7"], 101)), at(4, 1));
        assert_eq!(machine.after(&home, &look(&[], 100)), at(4, 1), "no network at all is another one");
        assert_eq!(machine.after(&home, &look(&["192.168.1.7"], 105)), at(3, 2));
        assert_eq!(machine.after(&home, &look(&["10.0.0.7"], 4000)), at(4, 2));
        assert_eq!(machine.after(&home, &look(&["192.168.1.7"], 0)), machine, "a clock that was set back");
    }
}
