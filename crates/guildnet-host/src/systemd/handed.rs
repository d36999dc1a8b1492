//! What systemd hands to the process that a unit starts: a socket that listens already (sd_listen_fds(3)), and where to say
//! that it is ready and that it ends (sd_notify(3)). Absent: the watchdog, stored descriptors, more than one socket.
//!
//! The variables are this process's alone. Programs that the Host App runs for a credential get an environment of their
//! own, and a background process is started without them; the socket is closed in whatever is started.

use std::{
    ffi::OsStr,
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener},
    os::{
        fd::{AsFd as _, FromRawFd as _, OwnedFd, RawFd},
        linux::net::SocketAddrExt as _,
        unix::{
            ffi::OsStrExt as _,
            net::{SocketAddr as UnixAddress, UnixDatagram},
        },
    },
    sync::atomic::{AtomicBool, Ordering},
};

use guildnet_model::Class;
use nix::libc;
use rustix::net::{AddressFamily, SocketType, ipproto, sockopt};

use crate::HostError;

/// The first descriptor that is handed over (sd_listen_fds(3), `SD_LISTEN_FDS_START`).
const FIRST: RawFd = 3;
/// The variables of both: not for anybody else.
pub(crate) const VARIABLES: [&str; 2] = ["LISTEN_", "NOTIFY_SOCKET"];

/// What systemd handed over; nothing if it did not start this process.
#[derive(Debug, Default)]
pub struct Handed {
    /// The door's socket.
    pub(crate) listener: Option<TcpListener>,
    notify: Option<Notify>,
}

impl Handed {
    /// Takes what the environment says was handed to this process: once, and before anything of its own is open. A second
    /// call gets nothing.
    ///
    /// # Errors
    /// [`Class::Usage`] for anything but exactly one TCP socket that listens on 127.0.0.1 or ::1.
    pub fn take() -> Result<Self, HostError> {
        static TAKEN: AtomicBool = AtomicBool::new(false);
        if TAKEN.swap(true, Ordering::SeqCst) {
            return Ok(Self::default());
        }
        let variable = std::env::var_os;
        let sockets = count(variable("LISTEN_PID").as_deref(), variable("LISTEN_FDS").as_deref(), std::process::id())?;
        let listener = match sockets {
            0 => None,
            1 => Some(listener(inherited()?)?),
            more => return Err(unfit(&format!("{more} sockets, and the Host App takes one"))),
        };
        let notify = variable("NOTIFY_SOCKET").and_then(|to| Notify::to(&to));
        Ok(Self { listener, notify })
    }

    /// Says that it serves, and where.
    pub(crate) fn ready(&self, address: &dyn fmt::Display) {
        self.tell(&format!("READY=1\nSTATUS=serving at https://{address}\n"));
    }

    /// Says that it has begun to end.
    pub(crate) fn stopping(&self) {
        self.tell("STOPPING=1\nSTATUS=stopping\n");
    }

    fn tell(&self, what: &str) {
        if let Some(Err(why)) = self.notify.as_ref().map(|notify| notify.tell(what)) {
            tracing::warn!(%why, "systemd is not told");
        }
    }
}

/// Where systemd listens.
#[derive(Debug)]
struct Notify {
    socket: UnixDatagram,
    to: UnixAddress,
}

impl Notify {
    /// `None` for an address of another kind (a virtual machine's, say): nobody in reach waits there.
    fn to(address: &OsStr) -> Option<Self> {
        let to = match address.as_bytes() {
            [b'/', ..] => UnixAddress::from_pathname(address).ok()?,
            [b'@', name @ ..] => UnixAddress::from_abstract_name(name).ok()?,
            _ => return None,
        };
        let socket = UnixDatagram::unbound().ok()?;
        // Whoever does not read must not hold up the start.
        socket.set_nonblocking(true).ok()?;
        Some(Self { socket, to })
    }

    fn tell(&self, what: &str) -> io::Result<()> {
        self.socket.send_to_addr(what.as_bytes(), &self.to).map(drop)
    }
}

/// How many sockets are for the process `own`: a child of the one that they were meant for gets the same variables.
fn count(for_pid: Option<&OsStr>, sockets: Option<&OsStr>, own: u32) -> Result<u32, HostError> {
    let number = |text: &OsStr| text.to_str().and_then(|text| text.parse::<u32>().ok());
    match (for_pid.and_then(number), sockets) {
        (Some(pid), Some(sockets)) if pid == own => {
            number(sockets).ok_or_else(|| unfit(&format!("LISTEN_FDS={}, which is no number", sockets.display())))
        }
        _ => Ok(0),
    }
}

/// The descriptor that was open when this program began.
fn inherited() -> Result<OwnedFd, HostError> {
    #[allow(unsafe_code, reason = "what was open before this program began can only be named by its number")]
    // SAFETY: fcntl(2) with a number is sound whatever the number; once it has said that the descriptor is open, nobody
    // else owns it: systemd put it there for this process (LISTEN_PID), and `take` comes here once.
    let inherited = unsafe {
        match libc::fcntl(FIRST, libc::F_SETFD, libc::FD_CLOEXEC) {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(OwnedFd::from_raw_fd(FIRST)),
        }
    };
    inherited.map_err(|why| unfit(&format!("no open socket: {why}")))
}

/// The door's socket, if it is one.
fn listener(handed: OwnedFd) -> Result<TcpListener, HostError> {
    let asked = |why: rustix::io::Errno| unfit(&format!("what is no socket: {}", io::Error::from(why)));
    let socket = handed.as_fd();
    let of_internet =
        [AddressFamily::INET, AddressFamily::INET6].contains(&sockopt::socket_domain(socket).map_err(asked)?);
    let is_stream = sockopt::socket_type(socket).map_err(asked)? == SocketType::STREAM;
    let is_tcp = sockopt::socket_protocol(socket).map_err(asked)? == Some(ipproto::TCP);
    if !(of_internet && is_stream && is_tcp) {
        return Err(unfit("a socket that is not TCP"));
    }
    if !sockopt::socket_acceptconn(socket).map_err(asked)? {
        return Err(unfit("a TCP socket that does not listen"));
    }
    let listener = TcpListener::from(handed);
    let address = listener.local_addr().map_err(|why| unfit(&format!("a socket without an address: {why}")))?;
    if ![IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)].contains(&address.ip()) {
        return Err(unfit(&format!("a socket at {address}, and the Host App serves this device only")));
    }
    listener.set_nonblocking(true).map_err(|why| unfit(&format!("a socket that can't be used: {why}")))?;
    Ok(listener)
}

fn unfit(what: &str) -> HostError {
    HostError::new(Class::Usage, format!("systemd handed over {what}")).with_hint(
        "let guildnet.socket have one line ListenStream=127.0.0.1:8090, as 'guildnet serve --systemd --socket' prints it",
    )
}

#[cfg(test)]
mod tests {
    use std::net::{TcpStream, UdpSocket};

    use guildnet_model::Explain as _;

    use super::*;

    fn sockets(pid: &str, fds: &str) -> Result<u32, HostError> {
        count(Some(OsStr::new(pid)), Some(OsStr::new(fds)), 7)
    }

    #[test]
    fn only_what_is_for_this_process_is_taken() {
        assert_eq!(sockets("7", "1"), Ok(1));
        assert_eq!(sockets("7", "2"), Ok(2));
        assert_eq!(sockets("8", "1"), Ok(0), "of the parent");
        assert_eq!(count(None, Some(OsStr::new("1")), 7), Ok(0));
        assert_eq!(count(Some(OsStr::new("7")), None, 7), Ok(0));
        assert_eq!(sockets("7", "one").expect_err("no number").class(), Class::Usage);
    }

    #[test]
    fn a_listener_on_loopback_is_taken_as_it_is() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            // A machine without IPv6 has no ::1.
            let Ok(bound) = TcpListener::bind(address) else { continue };
            let address = bound.local_addr().expect("bound");
            let taken = listener(bound.into()).expect("fit");
            assert_eq!(taken.local_addr().expect("bound"), address);
            let waits = taken.accept().expect_err("nobody has connected");
            assert_eq!(waits.kind(), io::ErrorKind::WouldBlock, "the runtime must not be held up");
        }
    }

    #[test]
    fn whatever_else_is_handed_over_is_named() {
        let refused = |handed: OwnedFd| {
            let refused = listener(handed).expect_err("refused");
            assert_eq!(refused.class(), Class::Usage);
            assert!(refused.hint().expect("a hint").contains("ListenStream=127.0.0.1:8090"));
            refused.message().to_owned()
        };
        let tcp = |address: &str| TcpListener::bind(address).expect("bound");
        assert!(refused(UdpSocket::bind("127.0.0.1:0").expect("bound").into()).contains("not TCP"));
        assert!(refused(UnixDatagram::unbound().expect("made").into()).contains("not TCP"));
        assert!(refused(std::fs::File::open("/dev/null").expect("open").into()).contains("no socket"));
        assert!(refused(tcp("0.0.0.0:0").into()).contains("this device only"));
        assert!(refused(tcp("127.0.0.2:0").into()).contains("127.0.0.2:"));
        let listens = tcp("127.0.0.1:0");
        let connected = TcpStream::connect(listens.local_addr().expect("bound")).expect("connected");
        assert!(refused(connected.into()).contains("does not listen"));
    }

    #[test]
    fn systemd_is_told_by_path_and_by_abstract_name() {
        let folder = tempfile::tempdir().expect("tempdir");
        let path = folder.path().join("notify");
        let name = format!("guildnet-test-{}", std::process::id());
        let abstract_address = UnixAddress::from_abstract_name(&name).expect("an address");
        for (socket, address) in [
            (UnixDatagram::bind(&path).expect("bound"), path.display().to_string()),
            (UnixDatagram::bind_addr(&abstract_address).expect("bound"), format!("@{name}")),
        ] {
            let notify = Notify::to(OsStr::new(&address));
            let handed = Handed { listener: None, notify };
            handed.ready(&"127.0.0.1:8090");
            handed.stopping();
            let mut said = [0; 256];
            let mut next = || {
                let length = socket.recv(&mut said).expect("told");
                String::from_utf8_lossy(&said[..length]).into_owned()
            };
            assert_eq!(next(), "READY=1\nSTATUS=serving at https://127.0.0.1:8090\n");
            assert_eq!(next(), "STOPPING=1\nSTATUS=stopping\n");
        }
        assert!(Notify::to(OsStr::new("vsock:2:1")).is_none());
    }
}
