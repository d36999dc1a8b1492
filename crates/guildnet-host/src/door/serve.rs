//! Moves the bytes: accepts, speaks TLS and HTTP/1.1 or HTTP/2, bounds what a client can hold, and ends in order.
//!
//! Bounds, since any program on this machine may connect: connections (`crowd.rs`), time for the handshake and for a
//! request's head, size and number of headers, streams of a connection. Nothing is spawned that is not waited for.

use std::{
    convert::Infallible,
    pin::pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::Router;
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::AsyncReadExt as _,
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt as _;

use super::{
    HostApi,
    certificate::Certificate,
    crowd::{Crowd, Places, Slot},
    gate::Gate,
    gather::Gather,
    routes::{self, Behind},
    session::Sessions,
};
use crate::{
    drain::{GRACE, drain},
    metrics::Metrics,
    pki,
    proxy::{ApiServers, Limits},
};

/// Connections at once. Admitted ones, dials and tunnels included: more than one cluster may take ([`crate::proxy`]'s
/// limits: 640), and few enough that their buffers (a tunnel holds about 130 KiB) stay below 160 MiB. Newcomers: more than
/// any program of a person's opens in the moment that a handshake takes; a silent one holds a few KiB.
const PLACES: Places = Places { admitted: 1024, newcomers: 512 };
/// How long the TLS handshake, and then the head of each request, may take. An idle connection is closed after it too.
const HEAD_TIME: Duration = Duration::from_secs(10);
/// Bytes of a request's head: far above what kubectl and curl send.
const HEAD_LIMIT: u32 = 16 * 1024;
/// Headers of a request.
const HEADER_COUNT: usize = 64;
/// Requests at once on one HTTP/2 connection: client libraries put everything on one, and 200 reads beside a few hundred
/// watches are ordinary. The limits of each cluster come behind it.
const STREAMS: u32 = 512;
/// Bytes that one request's body may be ahead of the cluster that takes it: enough for any speed on loopback.
const STREAM_WINDOW: u32 = 256 * 1024;
/// Bytes that all bodies of a connection may be ahead: 64 uploads to clusters that take nothing hold up no other.
const CONNECTION_WINDOW: u32 = 64 * STREAM_WINDOW;
/// Bytes of one answer that wait for their client: as much as a loopback needs, since hundreds of readers may be slow.
const SEND_BUFFER: usize = 128 * 1024;
/// How often an HTTP/2 client is asked whether it is still there, and how long it may take to answer.
const PING: (Duration, Duration) = (Duration::from_secs(20), Duration::from_secs(10));
/// How long accepting pauses when the system refuses (no file descriptors left): nothing tells when one is free again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// All that serves.
pub(super) struct Server {
    /// See [`PLACES`]; less in a test.
    pub(super) places: Places,
    metrics: Arc<Metrics>,
    certificate: Arc<Certificate>,
    routes: Router,
    tasks: TaskTracker,
    stopping: CancellationToken,
    cut: CancellationToken,
}

impl Server {
    pub(super) fn new(
        gate: Gate,
        certificate: Certificate,
        api: Arc<dyn HostApi>,
        servers: Arc<dyn ApiServers>,
        limits: Limits,
    ) -> Self {
        let (tasks, stopping, cut) = (TaskTracker::new(), CancellationToken::new(), CancellationToken::new());
        let metrics = Arc::clone(api.metrics());
        let behind = Behind {
            api,
            servers,
            gate: Arc::new(gate),
            sessions: Arc::new(Mutex::new(Sessions::new(cut.clone()))),
            limits: Arc::new(limits),
            tasks: tasks.clone(),
            stopping: stopping.clone(),
            cut: cut.clone(),
        };
        let certificate = Arc::new(certificate);
        Self { places: PLACES, metrics, certificate, routes: routes::router(behind), tasks, stopping, cut }
    }

    /// Accepts until `stop`, then drains.
    pub(super) async fn serve(self, listener: TcpListener, stop: CancellationToken) {
        let crowd = Crowd::new(self.places, Arc::clone(&self.metrics));
        self.metrics.door.limited_to(self.places.admitted + self.places.newcomers);
        self.tasks.spawn(Arc::clone(&self.certificate).keep(pki::today, stop.clone()));
        while let Some((stream, slot)) = stop.run_until_cancelled(next(&listener, &crowd)).await {
            let metrics = Arc::clone(&self.metrics);
            let acceptor = TlsAcceptor::from(self.certificate.current());
            let (routes, stop) = (self.routes.clone(), stop.clone());
            let (cut, give_way, joined) = (self.cut.clone(), slot.give_way(), Joined(self.tasks.clone()));
            self.tasks.spawn(async move {
                let connection = connection(stream, slot, acceptor, routes, joined, stop, metrics);
                let serving = cut.run_until_cancelled(connection);
                if give_way.run_until_cancelled(serving).await.is_none() {
                    tracing::debug!("a connection that had shown nothing gave way");
                }
            });
        }
        drop(listener);
        self.stopping.cancel();
        drain(&self.tasks, &self.cut, GRACE, "open connections").await;
    }
}

/// Runs the requests of an HTTP/2 connection where they are waited for. They end with it, since it resets them.
#[derive(Clone)]
struct Joined(TaskTracker);

impl<F> hyper::rt::Executor<F> for Joined
where
    F: Future<Output: Send> + Send + 'static,
{
    fn execute(&self, task: F) {
        self.0.spawn(task);
    }
}

/// The next connection, once there is a place for it.
async fn next(listener: &TcpListener, crowd: &Arc<Crowd>) -> (TcpStream, Slot) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return (stream, crowd.enter().await),
            Err(why) => {
                tracing::warn!(%why, "can't accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// One connection, from its handshake to its end. Failures are the client's: they end it and say so in the log only.
async fn connection(
    stream: TcpStream,
    slot: Slot,
    acceptor: TlsAcceptor,
    routes: Router,
    joined: Joined,
    stop: CancellationToken,
    metrics: Arc<Metrics>,
) {
    // Requests are small and each waits for its answer.
    let _ = stream.set_nodelay(true);
    let handshake = stop.run_until_cancelled(timeout(HEAD_TIME, acceptor.accept(stream)));
    let stream = match handshake.await {
        Some(Ok(Ok(stream))) => stream,
        Some(Ok(Err(why))) => {
            metrics.door.no_tls();
            return tracing::debug!(%why, "no TLS");
        }
        Some(Err(_)) => return metrics.door.no_tls(),
        None => return,
    };
    let ended = if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
        speak_http2(stream, slot, routes, joined, stop).await
    } else {
        speak_http1(stream, slot, routes, stop).await
    };
    if let Err(why) = ended {
        tracing::debug!(%why, "connection ended");
    }
}

async fn speak_http1(
    stream: TlsStream<TcpStream>,
    slot: Slot,
    routes: Router,
    stop: CancellationToken,
) -> Result<(), hyper::Error> {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_headers(HEADER_COUNT)
        .max_buf_size(HEAD_LIMIT as usize);
    let service = service_fn(move |request| answer(routes.clone(), slot.clone(), request));
    let mut serving = pin!(builder.serve_connection(TokioIo::new(stream), service).with_upgrades());
    tokio::select! {
        ended = serving.as_mut() => return ended,
        () = stop.cancelled() => serving.as_mut().graceful_shutdown(),
    }
    serving.await
}

async fn speak_http2(
    stream: TlsStream<TcpStream>,
    slot: Slot,
    routes: Router,
    joined: Joined,
    stop: CancellationToken,
) -> Result<(), hyper::Error> {
    let Some(stream) = after_preface(stream).await else { return Ok(()) };
    let gather = stream.clone();
    let mut builder = http2::Builder::new(joined);
    builder
        .timer(TokioTimer::new())
        .max_header_list_size(HEAD_LIMIT)
        .max_concurrent_streams(STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        .keep_alive_interval(PING.0)
        .keep_alive_timeout(PING.1);
    let service = service_fn(move |request| answer(routes.clone(), slot.clone(), request));
    let mut serving = pin!(builder.serve_connection(TokioIo::new(stream), service));
    tokio::select! {
        ended = gather.drive(serving.as_mut()) => return ended,
        () = stop.cancelled() => serving.as_mut().graceful_shutdown(),
    }
    gather.drive(serving).await
}

/// Waits for the first bytes of HTTP/2, which hyper would do without a limit, and puts them back in front.
async fn after_preface(mut stream: TlsStream<TcpStream>) -> Option<Gather<TlsStream<TcpStream>>> {
    /// Bytes of the client's preface (RFC 9113 section 3.4).
    const PREFACE: usize = 24;
    let mut preface = vec![0; PREFACE];
    timeout(HEAD_TIME, stream.read_exact(&mut preface)).await.ok()?.ok()?;
    Some(Gather::new(stream, preface))
}

async fn answer(
    routes: Router,
    slot: Slot,
    mut request: hyper::Request<Incoming>,
) -> Result<axum::response::Response, Infallible> {
    request.extensions_mut().insert(slot);
    routes.oneshot(request.map(axum::body::Body::new)).await
}
