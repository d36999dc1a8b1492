//! Connections to one API server, shared by the requests that are passed on.
//!
//! Over HTTP/2 requests share a connection in **lanes**: a lane is one connection and room for [`LANE_STREAMS`] requests,
//! and the first lane with room is taken. So few requests use one connection, no watch waits behind the server's own limit
//! of streams, and a reader that stops reading fills its own window only. A server that speaks only HTTP/1.1 gets a
//! connection for each request at a time; idle ones are kept.

use std::{
    sync::{
        Arc, Mutex as StdMutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use http::{Request, Response, request::Parts};
use hyper::{
    body::Incoming,
    client::conn::{TrySendError, http1, http2},
    rt::Executor as _,
};
use hyper_util::rt::TokioTimer;
use tokio::{
    sync::{Mutex, OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use super::{ForwardBody, is_repeatable, nothing, over_http1};
use crate::{
    api::{PING_EVERY, PING_LIMIT, Tasks},
    connect::Connect,
    error::KubeCause,
};

/// Requests at once on one HTTP/2 connection: below the 100 streams that Go's servers allow at least, so that none waits
/// in the library for a stream to end.
const LANE_STREAMS: usize = 64;

/// Lanes: 512 requests at once. The proxy's own limits for one cluster come first.
const LANES: usize = 8;

/// Bytes that one answer may be ahead of its reader: 160 Mbit/s over a way of 50 ms.
const STREAM_WINDOW: u32 = 1 << 20;

/// Bytes that all answers of one connection may be ahead: room for each of them, so that readers that stop hold up
/// nobody else. It is a permission, not memory: 64 MiB are held only when 64 readers stop in the middle of large answers.
const CONNECTION_WINDOW: u32 = LANE_STREAMS as u32 * STREAM_WINDOW;

/// Idle HTTP/1.1 connections that are kept, and for how long: shorter than the 90 s after which API servers close them.
const IDLE: (usize, Duration) = (8, Duration::from_secs(60));

/// How long an idle connection may take to be ready again: nothing is on its way any more but its own bookkeeping.
const SETTLING: Duration = Duration::from_millis(100);

/// The connections of one client.
pub(crate) struct Pool {
    connect: Connect,
    tasks: Tasks,
    lanes: Vec<Lane>,
    /// The server chose HTTP/1.1 last.
    speaks_http1: AtomicBool,
    idle: Arc<Idle>,
}

struct Lane {
    room: Arc<Semaphore>,
    kept: Mutex<Kept>,
}

/// A lane's connection, or why there was none.
#[derive(Default)]
struct Kept {
    sender: Option<http2::SendRequest<ForwardBody>>,
    failed: Option<(Instant, KubeCause)>,
}

#[derive(Default)]
struct Idle(StdMutex<Vec<(Instant, http1::SendRequest<ForwardBody>)>>);

impl Idle {
    fn list(&self) -> MutexGuard<'_, Vec<(Instant, http1::SendRequest<ForwardBody>)>> {
        // Every change is one push or pop: a panic elsewhere leaves the list whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The one that was used last, if it is not too old.
    fn take(&self) -> Option<http1::SendRequest<ForwardBody>> {
        let mut list = self.list();
        list.retain(|(since, sender)| since.elapsed() < IDLE.1 && !sender.is_closed());
        list.pop().map(|(_, sender)| sender)
    }
}

/// Where a request goes.
enum Sender {
    Http1(http1::SendRequest<ForwardBody>),
    Http2(http2::SendRequest<ForwardBody>),
}

/// What a request holds of the pool until its answer has ended.
pub(super) struct Held {
    _room: OwnedSemaphorePermit,
    alone: Option<(Weak<Idle>, http1::SendRequest<ForwardBody>)>,
}

impl Held {
    /// The answer is whole: its connection, if it has one for itself, may be used again.
    pub(super) fn free(self) {
        let Some((idle, sender)) = self.alone else { return };
        let Some(idle) = idle.upgrade().filter(|_| !sender.is_closed()) else { return };
        let mut list = idle.list();
        if list.len() < IDLE.0 {
            list.push((Instant::now(), sender));
        }
    }
}

impl Pool {
    pub(crate) fn new(connect: Connect, tasks: Tasks) -> Self {
        let lane = || Lane { room: Arc::new(Semaphore::new(LANE_STREAMS)), kept: Mutex::default() };
        let lanes = std::iter::repeat_with(lane).take(LANES).collect();
        Self { connect, tasks, lanes, speaks_http1: AtomicBool::new(false), idle: Arc::default() }
    }

    /// Sends a request, once more where that can't do anything twice.
    pub(super) async fn send(&self, request: Request<ForwardBody>) -> Result<(Response<Incoming>, Held), KubeCause> {
        let (lane, room) = self.room()?;
        let repeatable = is_repeatable(request.method(), request.body());
        let (head, mut body) = request.into_parts();
        let mut again = true;
        loop {
            let (sender, reused) = self.connection(lane).await?;
            match sender.send(head.clone(), body).await {
                Ok((answer, alone)) => {
                    let alone = alone.map(|sender| (Arc::downgrade(&self.idle), sender));
                    return Ok((answer, Held { _room: room, alone }));
                }
                Err(mut error) => match error.take_message() {
                    // Nothing of it was sent.
                    Some(unsent) if again => body = unsent.into_body(),
                    None if again && repeatable && reused => body = nothing(),
                    _ => return Err(KubeCause::lost(error.error())),
                },
            }
            again = false;
        }
    }

    /// The first lane with room for one more.
    fn room(&self) -> Result<(&Lane, OwnedSemaphorePermit), KubeCause> {
        let free = |lane: &Lane| Arc::clone(&lane.room).try_acquire_owned().ok();
        let full = guildnet_model::DialError::TooMany { limit: LANES * LANE_STREAMS };
        self.lanes.iter().find_map(|lane| Some((lane, free(lane)?))).ok_or(KubeCause::Dial(full))
    }

    /// A connection with room for one more, and whether it has been used before.
    async fn connection(&self, lane: &Lane) -> Result<(Sender, bool), KubeCause> {
        while let Some(mut sender) = self.idle.take() {
            // One whose last answer has ended is ready, or closed; unless its request is still being sent.
            if matches!(timeout(SETTLING, sender.ready()).await, Ok(Ok(()))) {
                return Ok((Sender::Http1(sender), true));
            }
        }
        if self.speaks_http1.load(Ordering::Relaxed) {
            return Ok((self.open().await?, false));
        }
        let asked = Instant::now();
        let mut kept = lane.kept.lock().await;
        if self.speaks_http1.load(Ordering::Relaxed) {
            drop(kept);
            return Ok((self.open().await?, false));
        }
        if let Some(sender) = kept.sender.as_ref().filter(|sender| !sender.is_closed()) {
            return Ok((Sender::Http2(sender.clone()), true));
        }
        // Who waited for an attempt shares its failure: a dead server is not dialled by one after the other.
        if let Some((_, cause)) = kept.failed.as_ref().filter(|(at, _)| asked <= *at) {
            return Err(cause.clone());
        }
        *kept = Kept::default();
        match self.open().await {
            Ok(Sender::Http2(sender)) => {
                kept.sender = Some(sender.clone());
                Ok((Sender::Http2(sender), false))
            }
            Ok(alone) => Ok((alone, false)),
            Err(cause) => {
                kept.failed = Some((Instant::now(), cause.clone()));
                Err(cause)
            }
        }
    }

    /// A new connection, in the protocol that the server chooses.
    async fn open(&self) -> Result<Sender, KubeCause> {
        let stream = self.connect.clone().connect().await.map_err(|e| KubeCause::lost(&e))?;
        let http2 = stream.is_http2();
        self.speaks_http1.store(!http2, Ordering::Relaxed);
        if !http2 {
            let (sender, connection) = http1::handshake(stream).await.map_err(|e| KubeCause::lost(&e))?;
            self.tasks.execute(connection);
            return Ok(Sender::Http1(sender));
        }
        let (sender, connection) = http2::Builder::new(self.tasks.clone())
            .timer(TokioTimer::new())
            .keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_LIMIT)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .handshake(stream)
            .await
            .map_err(|e| KubeCause::lost(&e))?;
        self.tasks.execute(connection);
        Ok(Sender::Http2(sender))
    }
}

type Unsent = TrySendError<Request<ForwardBody>>;

impl Sender {
    /// Sends it, and gives back a connection that served this request alone.
    async fn send(
        self,
        head: Parts,
        body: ForwardBody,
    ) -> Result<(Response<Incoming>, Option<http1::SendRequest<ForwardBody>>), Unsent> {
        match self {
            Self::Http1(mut sender) => {
                let answer = sender.try_send_request(over_http1(head, body)).await?;
                Ok((answer, Some(sender)))
            }
            Self::Http2(mut sender) => {
                let answer = sender.try_send_request(Request::from_parts(head, body)).await?;
                Ok((answer, None))
            }
        }
    }
}
