//! What a link can pass on at most, beside a plain cable (veth): two fresh network namespaces joined, floods both ways.
//! Nothing of it has a name on the machine, so nothing is left behind, however it ends.

use std::{
    fmt::Write as _,
    io::{self, Read, Write},
    net::{Ipv4Addr, Shutdown, TcpListener, TcpStream, UdpSocket},
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    time::{Duration, Instant},
};

use nix::{
    sched::{CloneFlags, unshare},
    sys::socket::{
        setsockopt,
        sockopt::{UdpGroSegment, UdpGsoSegment},
    },
    unistd::gettid,
};
use serde::Serialize;

use super::{
    run::{Shared, carry},
    settings::{LinkChange, Settings},
    tap::Tap,
};
use crate::{command::run, error::LabError};

const HOST: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const FAR: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
const PORT: u16 = 9;
const DEVICE: &str = "link0";
/// How long each flood lasts.
const FLOOD: Duration = Duration::from_secs(3);
/// What a flood of UDP begins with and is not counted of.
const WARM: Duration = Duration::from_millis(300);
/// Silence after which a flood of UDP has ended.
const SILENCE: Duration = Duration::from_millis(300);
/// Payload of a datagram: what WireGuard makes of a tailnet's packets.
const DATAGRAM: usize = 1_280;
/// As many as the kernel takes at once.
const AT_ONCE: usize = 50;
const PINGS: usize = 2_000;

/// What was measured of one way of joining two namespaces.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Ceiling {
    /// A cable, or the link's settings.
    pub joined_by: String,
    /// One TCP flow towards the host, in MB/s of payload.
    pub tcp_down: f64,
    /// And from it.
    pub tcp_up: f64,
    /// A flood of 1,280-byte datagrams towards the host, as far as it arrives.
    pub udp_down: f64,
    /// And from it.
    pub udp_up: f64,
    /// The median round trip of one byte by TCP, in microseconds.
    pub round_trip: f64,
}

impl Ceiling {
    /// The measurements as a table.
    #[must_use]
    pub fn table(all: &[Self]) -> String {
        let mut out = format!(
            "{:<24} {:>9} {:>9} {:>9} {:>9} {:>9}\n",
            "MB/s", "TCP down", "TCP up", "UDP down", "UDP up", "RTT us"
        );
        for one in all {
            let Self { joined_by, tcp_down, tcp_up, udp_down, udp_up, round_trip } = one;
            // Writing to a String does not fail.
            let _never = writeln!(
                out,
                "{joined_by:<24} {tcp_down:>9.0} {tcp_up:>9.0} {udp_down:>9.0} {udp_up:>9.0} {round_trip:>9.0}"
            );
        }
        out
    }
}

/// Measures a cable, and a link with each of the settings.
///
/// # Errors
/// [`LabError::NotRoot`]; or what the kernel refuses.
pub fn ceiling(settings: &[LinkChange]) -> Result<Vec<Ceiling>, LabError> {
    crate::up::require_root()?;
    std::iter::once(None).chain(settings.iter().map(Some)).map(measure).collect()
}

/// What the far end tells: its thread, and its end of a link.
type Hello = (i32, Option<Tap>);

fn measure(link: Option<&LinkChange>) -> Result<Ceiling, LabError> {
    let (hello_tx, hello_rx) = sync_channel::<Hello>(1);
    let (joined_tx, joined_rx) = sync_channel::<()>(1);
    std::thread::scope(|scope| {
        let far = scope.spawn(move || far(link.is_some(), &hello_tx, &joined_rx));
        let host = scope.spawn(move || host(link, &hello_rx, joined_tx));
        let host = host.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        far.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)).and(host)
    })
}

/// A network namespace of this thread's own.
fn alone() -> Result<(), LabError> {
    unshare(CloneFlags::CLONE_NEWNET).map_err(LabError::os("cannot make a network namespace"))
}

fn tap() -> Result<Tap, LabError> {
    Tap::open_here(DEVICE).map_err(LabError::io("cannot make a device"))
}

fn configure(address: Ipv4Addr) -> Result<(), LabError> {
    run("ip", &["address", "add", &format!("{address}/24"), "dev", DEVICE])?;
    run("ip", &["link", "set", DEVICE, "up", "txqueuelen", "10000"]).map(drop)
}

fn far(by_link: bool, hello: &SyncSender<Hello>, joined: &Receiver<()>) -> Result<(), LabError> {
    alone()?;
    let tap = by_link.then(tap).transpose()?;
    // Whoever is not there any more says why itself.
    let _ended = hello.send((gettid().as_raw(), tap));
    if joined.recv().is_err() {
        return Ok(());
    }
    configure(FAR)?;
    let serve = || -> io::Result<()> {
        let listener = TcpListener::bind((FAR, PORT))?;
        while answer(&listener.accept()?.0)? {}
        Ok(())
    };
    let served = serve().map_err(LabError::io("the far end"));
    // The last word must arrive before the devices go.
    let _ended = joined.recv();
    if by_link {
        run("ip", &["link", "del", DEVICE])?;
    }
    served
}

fn host(link: Option<&LinkChange>, hello: &Receiver<Hello>, joined: SyncSender<()>) -> Result<Ceiling, LabError> {
    alone()?;
    let Ok((thread, far)) = hello.recv() else {
        return Err(LabError::Died { name: "the far end".into(), tail: String::new() });
    };
    let measured = move || -> Result<Ceiling, LabError> {
        let joined_by = link.map_or("cable".into(), |link| format!("link {link}").trim_end().to_owned());
        let _ended = joined.send(());
        configure(HOST)?;
        let measured = floods(joined_by).map_err(LabError::io("the host's end"));
        // That is the far end's word to end.
        drop(joined);
        measured
    };
    let Some((link, far)) = link.zip(far) else {
        let peer = thread.to_string();
        run("ip", &["link", "add", DEVICE, "type", "veth", "peer", "name", DEVICE, "netns", &peer])?;
        return measured();
    };
    let ways = <[Shared; 2]>::default();
    ways.iter().zip(link.apply([Settings::default(); 2])?).for_each(|(way, settings)| way.set(settings));
    let own = tap()?;
    std::thread::scope(|scope| {
        scope.spawn(|| carry(&own, &far, 1, &ways[0]));
        scope.spawn(|| carry(&far, &own, 2, &ways[1]));
        let measured = measured();
        // Both ways end with their devices.
        let gone = run("ip", &["link", "del", DEVICE]);
        gone.and(measured)
    })
}

/// The far end's part of one measurement; false at the end.
fn answer(mut stream: &TcpStream) -> io::Result<bool> {
    stream.set_nodelay(true)?;
    let mut word = [0];
    stream.read_exact(&mut word)?;
    let mut buffer = vec![0; 1 << 18];
    match word[0] {
        b'D' => while stream.write_all(&buffer).is_ok() {},
        b'U' => {
            while stream.read(&mut buffer)? > 0 {}
            stream.write_all(&word)?;
        }
        b'P' => {
            while stream.read_exact(&mut word).is_ok() {
                stream.write_all(&word)?;
            }
        }
        b'S' => flood(FAR, HOST)?,
        b'R' => {
            let socket = UdpSocket::bind((FAR, PORT))?;
            stream.write_all(&word)?;
            stream.write_all(&drain(&socket)?.to_be_bytes())?;
        }
        _ => {
            stream.write_all(&word)?;
            return Ok(false);
        }
    }
    Ok(true)
}

fn ask(word: u8) -> io::Result<TcpStream> {
    let begin = Instant::now();
    let mut stream = loop {
        match TcpStream::connect_timeout(&(FAR, PORT).into(), Duration::from_secs(5)) {
            // It is about to listen.
            Err(_) if begin.elapsed() < Duration::from_secs(5) => std::thread::sleep(Duration::from_millis(20)),
            other => break other?,
        }
    };
    stream.set_nodelay(true)?;
    stream.write_all(&[word])?;
    Ok(stream)
}

#[expect(clippy::cast_precision_loss, reason = "bytes of seconds are far below 2^52")]
fn rate(bytes: u64, took: Duration) -> f64 {
    bytes as f64 / took.as_secs_f64() / 1e6
}

fn floods(joined_by: String) -> io::Result<Ceiling> {
    let mut buffer = vec![0; 1 << 18];
    let (mut stream, begin, mut bytes) = (ask(b'D')?, Instant::now(), 0_u64);
    while begin.elapsed() < FLOOD {
        bytes += stream.read(&mut buffer)? as u64;
    }
    let tcp_down = rate(bytes, begin.elapsed());
    drop(stream);

    let (mut stream, begin, mut bytes) = (ask(b'U')?, Instant::now(), 0_u64);
    while begin.elapsed() < FLOOD {
        bytes += stream.write(&buffer)? as u64;
    }
    stream.shutdown(Shutdown::Write)?;
    stream.read_exact(&mut [0])?;
    let tcp_up = rate(bytes, begin.elapsed());

    let socket = UdpSocket::bind((HOST, PORT))?;
    let sends = ask(b'S')?;
    let udp_down = drain(&socket)?;
    drop(sends);
    let mut receives = ask(b'R')?;
    receives.read_exact(&mut [0])?;
    flood(HOST, FAR)?;
    let mut said = [0; 8];
    receives.read_exact(&mut said)?;
    let udp_up = f64::from_be_bytes(said);

    let mut stream = ask(b'P')?;
    let mut times = Vec::new();
    let begin = Instant::now();
    while times.len() < PINGS && begin.elapsed() < FLOOD {
        let sent = Instant::now();
        stream.write_all(b"p")?;
        stream.read_exact(&mut [0])?;
        times.push(sent.elapsed());
    }
    times.sort_unstable();
    let round_trip = times.get(times.len() / 2).map_or(f64::NAN, |median| median.as_secs_f64() * 1e6);
    drop(stream);
    ask(b'.')?.read_exact(&mut [0])?;
    Ok(Ceiling { joined_by, tcp_down, tcp_up, udp_down, udp_up, round_trip })
}

/// Datagrams as fast as they go.
fn flood(from: Ipv4Addr, to: Ipv4Addr) -> io::Result<()> {
    let socket = UdpSocket::bind((from, 0))?;
    setsockopt(&socket, UdpGsoSegment, &i32::try_from(DATAGRAM).expect("small"))?;
    let many = vec![0; DATAGRAM * AT_ONCE];
    let begin = Instant::now();
    while begin.elapsed() < FLOOD {
        // A full device or nobody who receives yet: the next one.
        let _dropped = socket.send_to(&many, (to, PORT));
    }
    Ok(())
}

/// What of a flood arrives, in MB/s.
fn drain(socket: &UdpSocket) -> io::Result<f64> {
    setsockopt(socket, UdpGroSegment, &true)?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut buffer = vec![0; 1 << 16];
    socket.recv(&mut buffer)?;
    socket.set_read_timeout(Some(SILENCE))?;
    let (begin, mut last, mut bytes) = (Instant::now(), Duration::ZERO, 0);
    while let Ok(length) = socket.recv(&mut buffer) {
        last = begin.elapsed();
        if last > WARM {
            bytes += length as u64;
        }
    }
    Ok(if last > WARM { rate(bytes, last - WARM) } else { 0.0 })
}
