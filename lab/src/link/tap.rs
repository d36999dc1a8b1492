//! Ethernet devices whose other end is this process, with the kernel's large packets passed through.

use std::{
    fs::File,
    io::{self, IoSlice},
    os::fd::{AsFd, BorrowedFd},
    path::Path,
};

use nix::sched::{CloneFlags, setns};
use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
    ioctl::{IntegerSetter, Opcode, Updater, ioctl},
};

use crate::error::LabError;

/// Room for the largest frame: 64 KiB of IP, Ethernet, the device's header.
pub(super) const LARGEST: usize = 65_536 + 64;

/// Source: `linux/if_tun.h`.
const TUNSETIFF: Opcode = 0x4004_54ca;
const TUNSETOFFLOAD: Opcode = 0x4004_54d0;
const IFF_TAP: u16 = 0x0002;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;
/// `TUN_F_CSUM`, `_TSO4`, `_TSO6`: large TCP packets pass whole, without checksums.
const TCP_OFFLOADS: usize = 0x01 | 0x02 | 0x04;
/// `TUN_F_USO4`, `_USO6`: large UDP packets, too (Linux 6.2).
const UDP_OFFLOADS: usize = 0x20 | 0x40;

/// `struct ifreq`, as far as it is used.
#[repr(C)]
struct Request {
    name: [u8; 16],
    flags: u16,
    rest: [u8; 22],
}

/// One end of a link.
#[derive(Debug)]
pub(super) struct Tap(File);

impl Tap {
    /// Attaches to the device of this name in a network namespace, or makes it; one that was made goes with this value.
    pub(super) fn open(namespace: Option<&Path>, name: &str) -> Result<Self, LabError> {
        let open = || {
            if let Some(path) = namespace {
                let file = File::open(path).map_err(LabError::io(format!("cannot open {}", path.display())))?;
                setns(file, CloneFlags::CLONE_NEWNET).map_err(LabError::os("cannot join a namespace"))?;
            }
            Self::open_here(name).map_err(LabError::io(format!("cannot attach to the device {name}")))
        };
        // A thread of its own: the namespace is left with it.
        std::thread::scope(|scope| scope.spawn(open).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    }

    /// The same in the namespace of the calling thread.
    pub(super) fn open_here(name: &str) -> io::Result<Self> {
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let device = rustix::fs::open("/dev/net/tun", flags, Mode::empty())?;
        let mut request = Request { name: [0; 16], flags: IFF_TAP | IFF_NO_PI | IFF_VNET_HDR, rest: [0; 22] };
        // The kernel's names end with a zero.
        let bytes = name.as_bytes().get(..15).unwrap_or(name.as_bytes());
        request.name[..bytes.len()].copy_from_slice(bytes);
        attach(device.as_fd(), &mut request)?;
        offload(device.as_fd(), TCP_OFFLOADS | UDP_OFFLOADS).or_else(|_| offload(device.as_fd(), TCP_OFFLOADS))?;
        Ok(Self(device.into()))
    }

    /// The next frame, if there is one.
    pub(super) fn read<'a>(&self, buffer: &'a mut [u8]) -> io::Result<Option<&'a [u8]>> {
        match rustix::io::read(&self.0, &mut *buffer) {
            Ok(length) => Ok(Some(&buffer[..length])),
            // Down for now: nothing comes, and nothing is wrong.
            Err(Errno::AGAIN | Errno::INTR | Errno::IO) => Ok(None),
            Err(why) => Err(why.into()),
        }
    }

    /// Sends a frame given in two pieces. One that the kernel does not take is lost, as on any wire.
    pub(super) fn write(&self, head: &[u8], body: &[u8]) {
        let _lost = rustix::io::writev(&self.0, &[IoSlice::new(head), IoSlice::new(body)]);
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[allow(unsafe_code, reason = "the kernel has no other way to attach to a device")]
fn attach(device: BorrowedFd<'_>, request: &mut Request) -> io::Result<()> {
    // SAFETY: TUNSETIFF reads and writes one `struct ifreq`, which `Request` is laid out as and as long as.
    Ok(unsafe { ioctl(device, Updater::<TUNSETIFF, Request>::new(request)) }?)
}

#[allow(unsafe_code, reason = "the kernel has no other way to set what a device passes on")]
fn offload(device: BorrowedFd<'_>, offloads: usize) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes a number, not a pointer.
    Ok(unsafe { ioctl(device, IntegerSetter::<TUNSETOFFLOAD>::new_usize(offloads)) }?)
}
