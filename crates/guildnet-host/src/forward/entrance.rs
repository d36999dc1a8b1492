//! One port of this device that leads into a cluster: its listener, its connections, and what is told of them.
//!
//! A connection is opened in the cluster when it comes, by name again each time, and closed at once if that fails: what was
//! wrong stands in [`Seen`]. Bytes go both ways with the back-pressure of both sides, and each way ends alone. Everything
//! that runs ends with the entrance.

use std::{
    collections::VecDeque,
    io,
    net::SocketAddrV4,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use guildnet_model::{ClusterId, Io};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, broadcast},
    task::JoinHandle,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{Open, connect, credential::Credential, socks};
use crate::{
    metrics::{ClusterCounts, Metrics, Way, WayCounts},
    names::{Destination, OpenError},
};

/// Connections of one entrance at once: a browser opens a few dozen, a load test a hundred.
const HERE: usize = 256;
/// Clients of a proxy at once that have not shown its password yet. One more makes the oldest of them go, so that silent
/// ones keep nobody out.
const UNPROVEN: usize = 64;
/// Bytes that each direction of a connection holds.
const BUFFER: usize = 16 * 1024;
/// First and longest wait before a port that could not be had is tried again: nothing tells when it is free.
const BIND_WAIT: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(60));
/// How long accepting pauses when the system refuses (no file descriptors left): nothing tells when one is free again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// After how long the log hears again of what goes on failing for the same reason.
const SAID_AGAIN: SignedDuration = SignedDuration::from_secs(60);

/// What leads into the cluster at a port.
#[derive(Clone, Debug)]
pub(super) enum Kind {
    /// Every connection leads to the same place.
    Forward(Destination),
    /// The client says where to, by SOCKS5.
    Socks(Arc<Credential>),
    /// The client says where to, by HTTP CONNECT.
    Connect(Arc<Credential>),
}

impl Kind {
    const fn way(&self) -> Way {
        match self {
            Self::Forward(_) => Way::Forward,
            Self::Socks(_) => Way::Socks,
            Self::Connect(_) => Way::Connect,
        }
    }
}

/// What all entrances share.
#[derive(Clone)]
pub(super) struct Around {
    pub(super) open: Arc<dyn Open>,
    /// Connections of all entrances.
    pub(super) room: Arc<Semaphore>,
    pub(super) tasks: TaskTracker,
    /// Cancelled when nobody is let in any more.
    pub(super) stop: CancellationToken,
    /// Cancelled when connections are cut.
    pub(super) cut: CancellationToken,
    pub(super) metrics: Arc<Metrics>,
    pub(super) news: broadcast::Sender<(SocketAddrV4, Trouble)>,
}

/// Why a connection, or the port itself, came to nothing, and when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Trouble {
    /// When.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// The thing and the cause.
    pub why: String,
}

/// What an entrance is doing, and what it has done since it was made or the Host App was started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Traffic {
    /// Whether it listens. If not, the last error says why, and it is tried again.
    pub listening: bool,
    /// Connections that are open.
    pub open: usize,
    /// Connections that were let in, open ones included.
    pub total: u64,
    /// Bytes that went into the cluster.
    pub sent: u64,
    /// Bytes that came from there.
    pub received: u64,
    /// What went wrong last.
    pub last_error: Option<Trouble>,
}

/// The same while it changes.
#[derive(Debug, Default)]
pub(super) struct Seen {
    listening: AtomicBool,
    counts: WayCounts,
    last: Mutex<Option<Trouble>>,
}

impl Seen {
    fn last(&self) -> std::sync::MutexGuard<'_, Option<Trouble>> {
        // It is replaced whole.
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Traffic {
        let counts = self.counts.seen();
        Traffic {
            listening: self.listening.load(Ordering::Relaxed),
            open: usize::try_from(counts.open).unwrap_or(usize::MAX),
            total: counts.entered,
            sent: counts.sent,
            received: counts.received,
            last_error: self.last().clone(),
        }
    }
}

/// An entrance that is there. Dropping it ends it, with its connections; [`Entrance::close`] also waits for the port.
pub(super) struct Entrance {
    pub(super) gate: Arc<Gate>,
    /// Cancelled when it ends, for whatever reason.
    pub(super) ended: CancellationToken,
    /// Ends its connections.
    cut: CancellationToken,
    task: JoinHandle<()>,
}

impl Drop for Entrance {
    fn drop(&mut self) {
        self.ended.cancel();
        self.cut.cancel();
    }
}

/// What an entrance's connections share.
pub(super) struct Gate {
    pub(super) cluster: ClusterId,
    pub(super) local: SocketAddrV4,
    pub(super) kind: Kind,
    around: Around,
    seen: Seen,
    room: Arc<Semaphore>,
    unproven: Unproven,
}

/// A connection's share of what may be open at once.
pub(super) struct Place {
    gate: Arc<Gate>,
    /// The cluster's; `None` for one that is being removed.
    counts: Option<Arc<ClusterCounts>>,
    _here: OwnedSemaphorePermit,
    _in_all: OwnedSemaphorePermit,
}

impl Place {
    /// Counts for the entrance and for its cluster.
    fn count(&self, add: impl Fn(&WayCounts)) {
        self.gate.count(self.counts.as_deref(), add);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.count(WayCounts::left);
    }
}

impl Entrance {
    /// Starts one, on a listener or with the reason why there is none yet.
    pub(super) fn start(
        cluster: ClusterId,
        local: SocketAddrV4,
        kind: Kind,
        listener: Result<TcpListener, String>,
        around: &Around,
    ) -> Self {
        let gate = Arc::new(Gate {
            cluster,
            local,
            kind,
            around: around.clone(),
            seen: Seen::default(),
            room: Arc::new(Semaphore::new(HERE)),
            unproven: Unproven::default(),
        });
        let listener = match listener {
            Ok(listener) => {
                gate.seen.listening.store(true, Ordering::Relaxed);
                Some(listener)
            }
            Err(why) => {
                gate.failed(why);
                None
            }
        };
        let (ended, cut) = (around.stop.child_token(), around.cut.child_token());
        let (of_task, stop, of_all) = (Arc::clone(&gate), ended.clone(), cut.clone());
        let task = around.tasks.spawn(async move {
            stop.run_until_cancelled(serve(of_task, listener, of_all)).await;
        });
        Self { gate, ended, cut, task }
    }

    /// What it is doing.
    pub(super) fn traffic(&self) -> Traffic {
        self.gate.seen.now()
    }

    /// Ends it and its connections; returns when its port is free.
    pub(super) async fn close(mut self) {
        self.ended.cancel();
        self.cut.cancel();
        if let Err(panicked) = (&mut self.task).await {
            tracing::error!(local = %self.gate.local, %panicked, "a forward ended badly");
        }
    }
}

/// Listens, again and again if the port can't be had.
async fn serve(gate: Arc<Gate>, mut listener: Option<TcpListener>, cut: CancellationToken) {
    let (mut wait, longest) = BIND_WAIT;
    loop {
        if let Some(listener) = listener.take() {
            accept(&gate, listener, &cut).await;
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(longest);
        match super::bind(gate.local).await {
            Ok(bound) => {
                gate.seen.listening.store(true, Ordering::Relaxed);
                listener = Some(bound);
            }
            Err(why) => gate.failed(why.message().to_owned()),
        }
    }
}

/// Accepts for as long as the entrance lives. Connections go on until they are cut.
async fn accept(gate: &Arc<Gate>, listener: TcpListener, cut: &CancellationToken) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // Whatever is spoken, its messages are small and wait for answers.
                let _ = stream.set_nodelay(true);
                let (gate, cut) = (Arc::clone(gate), cut.clone());
                gate.around.tasks.clone().spawn(async move {
                    if let Some(Err(why)) = cut.run_until_cancelled(connection(&gate, stream)).await {
                        gate.failed(why);
                    }
                });
            }
            Err(why) => {
                gate.failed(format!("can't accept: {why}"));
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// One connection, from its beginning to its end.
///
/// # Errors
/// Why it came to nothing, in words. That a stream broke off later is its ends' affair.
async fn connection(gate: &Arc<Gate>, near: TcpStream) -> Result<(), String> {
    match &gate.kind {
        Kind::Forward(to) => {
            let place = gate.enter()?;
            let far = gate.open(to).await.map_err(|why| gate.words(why))?;
            gate.carry(near, far, place).await;
            Ok(())
        }
        Kind::Socks(credential) => socks::serve(gate, near, credential).await,
        Kind::Connect(credential) => connect::serve(gate, near, credential).await,
    }
}

impl Gate {
    /// Takes a place for a connection.
    ///
    /// # Errors
    /// There is none left, in words.
    pub(super) fn enter(self: &Arc<Self>) -> Result<Place, String> {
        let take = |room: &Arc<Semaphore>| Arc::clone(room).try_acquire_owned();
        let here = take(&self.room).map_err(|_| format!("more than {HERE} connections at once here"))?;
        let in_all =
            take(&self.around.room).map_err(|_| "too many connections at once into all clusters".to_owned())?;
        let counts = self.around.metrics.of(&self.cluster);
        let place = Place { gate: Arc::clone(self), counts, _here: here, _in_all: in_all };
        place.count(WayCounts::entered);
        Ok(place)
    }

    /// Opens a stream in the cluster.
    pub(super) async fn open(&self, to: &Destination) -> Result<Box<dyn Io>, OpenError> {
        self.around.open.open(&self.cluster, to).await
    }

    /// What to say of a stream that could not be opened.
    pub(super) fn words(&self, why: OpenError) -> String {
        why.of_cluster(&self.cluster).message().to_owned()
    }

    /// Copies both ways until both have ended, and counts.
    pub(super) async fn carry(&self, mut near: impl Io, far: Box<dyn Io>, place: Place) {
        let mut far = Counted { far, place: &place };
        let ended = tokio::io::copy_bidirectional_with_sizes(&mut near, &mut far, BUFFER, BUFFER).await;
        if let Err(why) = ended {
            tracing::debug!(cluster = %self.cluster, local = %self.local, %why, "a connection broke off");
        }
        drop(place);
    }

    /// Counts a client that has to show the password.
    pub(super) fn unproven(&self) -> (CancellationToken, Unproved<'_>) {
        self.unproven.enter()
    }

    /// Counts here and for the cluster.
    fn count(&self, cluster: Option<&ClusterCounts>, add: impl Fn(&WayCounts)) {
        add(&self.seen.counts);
        if let Some(counts) = cluster {
            add(counts.way(self.kind.way()));
        }
    }

    /// Notes what went wrong. The log hears of it when it is another thing than the last time, or some time has passed.
    fn failed(&self, why: String) {
        self.count(self.around.metrics.of(&self.cluster).as_deref(), WayCounts::failed);
        let trouble = Trouble { at: Timestamp::now(), why };
        let before = self.seen.last().replace(trouble.clone());
        let is_known = |last: &Trouble| last.why == trouble.why && trouble.at.duration_since(last.at) < SAID_AGAIN;
        if !before.as_ref().is_some_and(is_known) {
            tracing::info!(cluster = %self.cluster, local = %self.local, why = trouble.why, "a connection came to nothing");
        }
        // Nobody may be listening.
        let _ = self.around.news.send((self.local, trouble));
    }
}

/// The clients of a proxy that have not shown its password, oldest first.
#[derive(Debug, Default)]
struct Unproven(Mutex<(u64, VecDeque<(u64, CancellationToken)>)>);

/// One of them. Dropped when it has shown the password or has gone.
pub(super) struct Unproved<'u> {
    all: &'u Unproven,
    number: u64,
}

impl Unproven {
    fn locked(&self) -> std::sync::MutexGuard<'_, (u64, VecDeque<(u64, CancellationToken)>)> {
        // Each change is one insertion or removal.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets one in; if there are too many, the oldest is told to go by its token.
    fn enter(&self) -> (CancellationToken, Unproved<'_>) {
        let token = CancellationToken::new();
        let mut locked = self.locked();
        let (next, all) = &mut *locked;
        let number = *next;
        *next += 1;
        all.push_back((number, token.clone()));
        if all.len() > UNPROVEN
            && let Some((_, oldest)) = all.pop_front()
        {
            oldest.cancel();
        }
        (token, Unproved { all: self, number })
    }
}

impl Drop for Unproved<'_> {
    fn drop(&mut self) {
        self.all.locked().1.retain(|(number, _)| *number != self.number);
    }
}

/// A stream into a cluster whose bytes are counted.
struct Counted<'p> {
    far: Box<dyn Io>,
    place: &'p Place,
}

impl AsyncRead for Counted<'_> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.far).poll_read(cx, buf);
        let received = buf.filled().len() - before;
        self.place.count(|counts| counts.received(received));
        read
    }
}

impl AsyncWrite for Counted<'_> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.far).poll_write(cx, buf);
        if let Poll::Ready(Ok(n)) = &written {
            self.place.count(|counts| counts.sent(*n));
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.far).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.far).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_unproven_client_gives_way_and_the_proven_ones_stay() {
        let unproven = Unproven::default();
        let (first, gone) = unproven.enter();
        drop(gone);
        let waiting: Vec<_> = (0..UNPROVEN).map(|_| unproven.enter()).collect();
        assert!(!waiting[0].0.is_cancelled());
        let (newest, _held) = unproven.enter();
        assert!(waiting[0].0.is_cancelled(), "the oldest");
        assert!(!waiting[1].0.is_cancelled() && !newest.is_cancelled());
        assert!(!first.is_cancelled(), "it had shown the password");
    }
}
