//! A transfer both ways at once on one connection, of which every byte is checked at both ends.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use guildnet_lab::LIGHT_POD;
use guildnet_model::Io;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    task::JoinHandle,
    time::{sleep, timeout},
};

use crate::site::{Site, within};

/// Where the far end listens: in the cluster's Pod network, by no Service.
pub(crate) const FAR: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(LIGHT_POD), 9100);
/// Bytes in one piece.
const PIECE: usize = 1 << 15;
/// The longest silence that is waited for; what may be is for the tests to say.
const PATIENCE: Duration = Duration::from_secs(60);

/// What one end has done.
#[derive(Clone, Copy, Debug)]
pub(crate) struct End {
    pub(crate) sent: u64,
    pub(crate) received: u64,
    /// The longest time between two reads.
    pub(crate) silence: Duration,
}

/// The far end, in the network of a light cluster.
pub(crate) struct FarEnd(thread::JoinHandle<End>);

/// The near end, on a connection of a member's.
pub(crate) struct Transfer {
    stop: Arc<AtomicBool>,
    inflow: Arc<Inflow>,
    work: JoinHandle<End>,
}

/// What comes in.
#[derive(Default)]
struct Inflow {
    bytes: AtomicU64,
    /// In microseconds, since it was last asked for.
    silence: AtomicU64,
}

/// Bytes from a place of the stream on: no two stretches are alike, so what is lost, doubled or misplaced shows.
fn fill(buffer: &mut [u8], at: u64) {
    for (place, byte) in (at..).zip(buffer) {
        *byte = place.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes()[0];
    }
}

fn check(bytes: &[u8], at: u64) {
    let mut wanted = [0; PIECE];
    fill(&mut wanted[..bytes.len()], at);
    assert!(bytes == &wanted[..bytes.len()], "other bytes than were sent, after {at}");
}

impl FarEnd {
    /// Listens for one connection. It sends until the other side has ended.
    pub(crate) fn listen(site: &Site, cluster: &str) -> Self {
        let namespace = site.device.fleet.lab.plan().cluster(cluster).expect("a cluster").node_ns;
        let listener = within(&namespace, || TcpListener::bind(FAR).expect("a free port"));
        Self(thread::spawn(move || serve(&listener.accept().expect("a connection").0)))
    }
}

fn serve(stream: &TcpStream) -> End {
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream.set_write_timeout(Some(PATIENCE)).expect("a timeout");
    let ended = AtomicBool::new(false);
    thread::scope(|scope| {
        let sending = scope.spawn(|| {
            let (mut piece, mut sent) = ([0; PIECE], 0);
            while !ended.load(Relaxed) {
                fill(&mut piece, sent);
                (&mut &*stream).write_all(&piece).expect("the far end sends");
                sent += PIECE as u64;
            }
            stream.shutdown(Shutdown::Write).expect("the far end ends");
            sent
        });
        let (mut piece, mut received, mut silence, mut last) = ([0; PIECE], 0, Duration::ZERO, Instant::now());
        loop {
            let length = (&mut &*stream).read(&mut piece).expect("the far end receives");
            if length == 0 {
                break;
            }
            silence = silence.max(last.elapsed());
            last = Instant::now();
            check(&piece[..length], received);
            received += length as u64;
        }
        ended.store(true, Relaxed);
        End { sent: sending.join().expect("it sent"), received, silence }
    })
}

impl Transfer {
    /// Begins both ways.
    pub(crate) fn begin(stream: Box<dyn Io>) -> Self {
        let (stop, inflow) = (Arc::new(AtomicBool::new(false)), Arc::new(Inflow::default()));
        let work = tokio::spawn(both_ways(stream, stop.clone(), inflow.clone()));
        Self { stop, inflow, work }
    }

    pub(crate) fn received(&self) -> u64 {
        self.inflow.bytes.load(Relaxed)
    }

    /// The longest time between two reads since this was asked last.
    pub(crate) fn silence(&self) -> Duration {
        Duration::from_micros(self.inflow.silence.swap(0, Relaxed))
    }

    /// Waits until so many more bytes have come.
    pub(crate) async fn grows(&self, by: u64) {
        let (begun, from) = (Instant::now(), self.received());
        while self.received() < from + by {
            assert!(begun.elapsed() < PATIENCE && !self.work.is_finished(), "no {by} bytes come after {from}");
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// Ends both ways; what either end has done.
    pub(crate) async fn end(self, far: FarEnd) -> (End, End) {
        self.stop.store(true, Relaxed);
        let near = self.work.await.expect("the near end worked");
        let far = far.0.join().expect("the far end worked");
        assert_eq!((near.sent, near.received), (far.received, far.sent), "each has what the other sent");
        (near, far)
    }
}

async fn both_ways(stream: Box<dyn Io>, stop: Arc<AtomicBool>, inflow: Arc<Inflow>) -> End {
    let (mut read, mut write) = tokio::io::split(stream);
    let send = async {
        let (mut piece, mut sent) = ([0; PIECE], 0);
        while !stop.load(Relaxed) {
            fill(&mut piece, sent);
            timeout(PATIENCE, write.write_all(&piece)).await.expect("room in time").expect("the near end sends");
            sent += PIECE as u64;
        }
        write.shutdown().await.expect("the near end ends");
        sent
    };
    let receive = async {
        let (mut piece, mut received, mut silence, mut last) = ([0; PIECE], 0, Duration::ZERO, Instant::now());
        loop {
            let some = timeout(PATIENCE, read.read(&mut piece)).await.expect("bytes in time");
            let length = some.expect("the near end receives");
            if length == 0 {
                return (received, silence);
            }
            let gap = last.elapsed();
            last = Instant::now();
            silence = silence.max(gap);
            inflow.silence.fetch_max(u64::try_from(gap.as_micros()).unwrap_or(u64::MAX), Relaxed);
            check(&piece[..length], received);
            received += length as u64;
            inflow.bytes.store(received, Relaxed);
        }
    };
    let (sent, (received, silence)) = tokio::join!(send, receive);
    End { sent, received, silence }
}
