//! The running link: a thread for each way reads frames from one device, lets `queue.rs` decide and writes what is due to the
//! other. A socket takes changes of the settings, one line each, and answers with what holds from then on and what was
//! counted.

use std::{
    convert::Infallible,
    io::{self, BufRead, BufReader, Write},
    ops::Range,
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    rc::Rc,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use clap::Args;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::{Deserialize, Serialize};

use super::{
    frame::{Frame, Shape},
    queue::{Counts, Queue},
    settings::{LinkChange, Settings},
    tap::{LARGEST, Tap},
};
use crate::error::LabError;

/// Frames that are read before what is due is written: enough to make the look at the clock cheap, few enough that nothing
/// waits for it.
const BATCH: usize = 32;

/// How long a question to a running link may take.
const ANSWER: Duration = Duration::from_secs(5);

/// Where a link runs.
#[derive(Debug, Args)]
pub struct RunLink {
    /// The network namespace of the host's end [default: this one]
    #[arg(long)]
    host_net: Option<PathBuf>,
    /// The device at the host's end
    #[arg(long)]
    host: String,
    /// The network namespace of the other end [default: this one]
    #[arg(long)]
    net: Option<PathBuf>,
    /// The device at the other end
    #[arg(long)]
    device: String,
    /// Seed of all chances
    #[arg(long)]
    seed: u64,
    /// Socket that takes changes
    #[arg(long)]
    control: PathBuf,
}

/// What a link says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkAnswer {
    /// From the host behind the link.
    pub up: WayAnswer,
    /// To it.
    pub down: WayAnswer,
}

/// What holds on one way from now on, and what became of its packets so far.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WayAnswer {
    /// The knobs that are turned, in the words that turn them.
    pub settings: String,
    /// Packets since the link began.
    pub counts: Counts,
}

/// One way, as its thread and the control socket share it.
#[derive(Debug, Default)]
pub(super) struct Shared(Mutex<(Settings, Counts)>);

impl Shared {
    fn lock(&self) -> MutexGuard<'_, (Settings, Counts)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set(&self, settings: Settings) {
        self.lock().0 = settings;
    }
}

/// Joins the two devices until killed.
///
/// # Errors
/// [`LabError::Io`] if a device can't be attached to or ends.
pub fn run_link(args: &RunLink) -> Result<Infallible, LabError> {
    let host = Tap::open(args.host_net.as_deref(), &args.host)?;
    let other = Tap::open(args.net.as_deref(), &args.device)?;
    let ways = <[Shared; 2]>::default();
    crate::files::remove(&args.control)?;
    let control = UnixListener::bind(&args.control)
        .map_err(LabError::io(format!("cannot listen at {}", args.control.display())))?;
    std::thread::scope(|scope| {
        scope.spawn(|| end_with(carry(&host, &other, args.seed, &ways[0])));
        scope.spawn(|| end_with(carry(&other, &host, args.seed.wrapping_add(1), &ways[1])));
        loop {
            // A caller that went away is no reason to end.
            let _gone = control.accept().and_then(|(stream, _)| serve(&stream, &ways));
        }
    })
}

/// A link with one way is none: the process ends, and whoever looks sees that.
fn end_with(why: io::Result<Infallible>) {
    let Err(why) = why;
    let _closed = writeln!(io::stderr(), "error: {why}");
    std::process::exit(1);
}

/// Takes changes until the caller goes away.
fn serve(stream: &UnixStream, ways: &[Shared; 2]) -> io::Result<()> {
    stream.set_read_timeout(Some(ANSWER))?;
    let mut out = stream;
    for line in BufReader::new(stream).lines() {
        let both = [&ways[0], &ways[1]].map(|way| way.lock().0);
        let answer = match line?.parse::<LinkChange>().and_then(|change| change.apply(both)) {
            Ok(settings) => {
                ways.iter().zip(settings).for_each(|(way, settings)| way.set(settings));
                let [up, down] = [&ways[0], &ways[1]].map(|way| {
                    let (settings, counts) = *way.lock();
                    WayAnswer { settings: settings.to_string(), counts }
                });
                serde_json::to_string(&LinkAnswer { up, down }).expect("plain data")
            }
            Err(why) => format!("error: {why}"),
        };
        writeln!(out, "{answer}")?;
    }
    Ok(())
}

/// Asks a running link to change; an empty line changes nothing.
pub(crate) fn request(control: &Path, change: &LinkChange) -> Result<LinkAnswer, LabError> {
    let failed = || LabError::io(format!("no answer of the link at {}", control.display()));
    let mut stream = UnixStream::connect(control).map_err(failed())?;
    stream.set_read_timeout(Some(ANSWER)).map_err(failed())?;
    writeln!(stream, "{change}").map_err(failed())?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).map_err(failed())?;
    serde_json::from_str(&line)
        .map_err(|_| LabError::Usage { what: line.trim().trim_start_matches("error: ").to_owned() })
}

/// A packet on its way: a frame, and which of its packets it is.
#[derive(Debug, Clone)]
struct Packet {
    frame: Rc<[u8]>,
    shape: Shape,
    index: usize,
}

/// One way: from one device to the other, until one of them fails.
pub(super) fn carry(from: &Tap, to: &Tap, seed: u64, shared: &Shared) -> io::Result<Infallible> {
    let mut queue = Queue::new(seed);
    let mut buffer = vec![0; LARGEST];
    let mut run = Run::default();
    let begin = Instant::now();
    loop {
        wait(from, queue.next().map(|due| due.saturating_sub(begin.elapsed())))?;
        queue.set(shared.lock().0);
        for _ in 0..BATCH {
            let Some(frame) = from.read(&mut buffer)? else { break };
            let shape = Shape::of(frame);
            if queue.is_open() {
                to.write(frame, &[]);
                queue.passed_by(u64::try_from(shape.packets).expect("few"));
                continue;
            }
            let now = begin.elapsed();
            let whole = Frame::new(frame, shape);
            let sizes = (0..shape.packets).map(|index| whole.size(index));
            let frame: Rc<[u8]> = frame.into();
            for (index, size) in sizes.enumerate() {
                queue.offer(now, size, Packet { frame: Rc::clone(&frame), shape, index });
            }
        }
        let now = begin.elapsed();
        while let Some(packet) = queue.take(now) {
            run.add(packet, to);
        }
        run.flush(to);
        shared.lock().1 = queue.counts();
    }
}

/// Waits until there is something to read, at most so long.
fn wait(from: &Tap, limit: Option<Duration>) -> io::Result<()> {
    let limit = limit.map(|limit| Timespec::try_from(limit).expect("a minute at most"));
    match poll(&mut [PollFd::new(from, PollFlags::IN)], limit.as_ref()) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(why) => Err(why.into()),
    }
}

/// Neighbours that leave together, written as one frame.
#[derive(Debug, Default)]
struct Run {
    frame: Option<(Rc<[u8]>, Shape)>,
    packets: Range<usize>,
    head: Vec<u8>,
}

impl Run {
    fn add(&mut self, packet: Packet, to: &Tap) {
        let follows = self.packets.end == packet.index
            && self.frame.as_ref().is_some_and(|(frame, _)| Rc::ptr_eq(frame, &packet.frame));
        if follows {
            self.packets.end += 1;
            return;
        }
        self.flush(to);
        self.packets = packet.index..packet.index + 1;
        self.frame = Some((packet.frame, packet.shape));
    }

    fn flush(&mut self, to: &Tap) {
        if let Some((frame, shape)) = self.frame.take() {
            let body = Frame::new(&frame, shape).part(self.packets.clone(), &mut self.head);
            to.write(&self.head, body);
        }
    }
}
