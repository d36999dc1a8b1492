//! The client of one relay (DERP): keeps a TLS connection to it and passes packets in both directions.
//!
//! Which relays are used, and for which peer, is decided by the data side; the frames are in `relay/frame.rs`. Nothing is
//! kept for later: what can't be sent is dropped, WireGuard and TCP repeat what matters.

mod frame;
#[cfg(test)]
mod tests;

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use crypto_box::{
    SalsaBox,
    aead::{Aead, generic_array::GenericArray},
};
use http::{Request, StatusCode, header};
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    sync::{mpsc, watch},
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;
use ts_keys::{DerpServerPublicKey, NodeKeyPair};

use self::frame::{Frame, FrameError, FrameReader};
use crate::{
    backoff::Backoff,
    netmap::{Key, Relay},
    quote,
    state::{Identity, public},
    tls,
};

/// How long connecting may take: TCP, TLS, upgrade, introduction.
const CONNECT_LIMIT: Duration = Duration::from_secs(15);
/// How long a relay may be silent: it sends a keep-alive every 60 s and some jitter; twice that is a missed one
/// (tailscale `derp/derp.go`, `KeepAlive`).
const SILENCE_LIMIT: Duration = Duration::from_secs(120);
/// How long nothing may come after packets were sent before the relay is asked whether it lives. Most of what is sent is
/// answered, so a relay that works is hardly ever asked.
const PING_AFTER: Duration = Duration::from_secs(5);
/// How long the answer may take. A relay that is cut off or frozen while it is used is noticed after 10 s at the latest, and
/// not after [`SILENCE_LIMIT`].
const PONG_LIMIT: Duration = Duration::from_secs(5);
/// How long a write may be stuck before the connection counts as dead: as long as a relay that accepts all and answers nothing
/// is believed.
const WRITE_LIMIT: Duration = Duration::from_secs(10);
/// How often the log repeats that a relay reports a problem.
const HEALTH_PAUSE: Duration = Duration::from_secs(60);
/// Packets that are written at once.
const BATCH: usize = 64;
/// Pongs that wait to be written; a relay pings rarely.
const PONGS: usize = 4;
/// A connection that lasted so long was a success: the next failure starts the backoff anew.
const SOUND_CONNECTION: Duration = Duration::from_secs(10);
/// Version of the relay protocol: received packets name their sender.
const INTRODUCTION: &[u8] = br#"{"version":2,"CanAckPings":true}"#;

/// What a relay connection tells the connector.
#[derive(Clone, Debug)]
pub(crate) enum RelayEvent {
    /// Connected and introduced.
    Connected {
        /// The relay.
        region: u16,
    },
    /// A packet from a peer.
    Packet {
        /// The relay.
        region: u16,
        /// The node key of the connection from which the relay has it: the relay's word, no proof.
        from: Key,
        /// The packet.
        data: Bytes,
    },
    /// The connection is down; it is tried again.
    Down {
        /// The relay.
        region: u16,
        /// The cause.
        why: String,
    },
}

/// Why a connection ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Broken(String),
    /// This node has another key now: it must introduce itself again.
    Rekeyed,
    /// Nobody sends or nobody listens any more, or it was cancelled.
    Stopped,
}

/// What a relay connection works with.
pub(crate) struct Connection {
    /// The relay.
    pub(crate) relay: Relay,
    /// Who introduces itself.
    pub(crate) identity: Arc<Identity>,
    /// Trusted roots.
    pub(crate) tls: Arc<rustls::ClientConfig>,
    /// Packets for peers; bounded by its maker.
    pub(crate) outgoing: mpsc::Receiver<(Key, Bytes)>,
    /// What is told.
    pub(crate) events: mpsc::Sender<RelayEvent>,
    /// Whether this is the home relay, where peers look for this node; the relay is told when it changes.
    pub(crate) preferred: watch::Receiver<bool>,
    /// Counts packets that were skipped since they are larger than any for us.
    pub(crate) skipped: Arc<AtomicU64>,
}

/// Keeps a connection to one relay until `cancel`, or until one of the channels is closed. Never gives up: failed attempts
/// are repeated after 1 s to 60 s with jitter.
///
/// What waits to be sent while the first connection is made is sent; what comes between two attempts is dropped.
///
/// # Cancellation
/// By `cancel`; the connection is closed when this returns.
pub(crate) async fn run(mut connection: Connection, cancel: CancellationToken) {
    let region = connection.relay.region;
    let mut node = connection.identity.watch_node();
    let mut backoff = Backoff::default();
    let mut health = Health::default();
    loop {
        let mut connected_at = None;
        let attempt = async {
            let me = node.borrow_and_update().clone();
            let relay = &connection.relay;
            let preferred = *connection.preferred.borrow_and_update();
            let opening = async { introduce(open(&connection.tls, relay).await?, &me, preferred).await };
            let (reader, writer) = match timeout(CONNECT_LIMIT, opening).await {
                Ok(opened) => opened.map_err(End::Broken)?,
                Err(_) => return Err(End::Broken(format!("{} did not answer within {CONNECT_LIMIT:?}", relay.host))),
            };
            connected_at = Some(Instant::now());
            connection.events.send(RelayEvent::Connected { region }).await.map_err(|_| End::Stopped)?;
            pass(reader, writer, &mut connection, &mut node, &mut health).await
        };
        let end = tokio::select! {
            () = cancel.cancelled() => return,
            end = attempt => end,
        };
        let why = match end {
            Ok(never) => match never {},
            Err(End::Stopped) => return,
            Err(End::Rekeyed) => continue,
            Err(End::Broken(why)) => quote::line(&why),
        };
        if connected_at.is_some_and(|at: Instant| at.elapsed() >= SOUND_CONNECTION) {
            backoff.reset();
        }
        let retry_in = backoff.next();
        let told = tokio::select! {
            () = cancel.cancelled() => return,
            told = connection.events.send(RelayEvent::Down { region, why }) => told,
        };
        if told.is_err() {
            return;
        }
        tokio::select! {
            () = cancel.cancelled() => return,
            () = sleep(retry_in) => {}
            // Packets are worthless when they are seconds late.
            () = async { while connection.outgoing.recv().await.is_some() {} } => return,
        }
    }
}

/// Connects and asks for the relay protocol. Returns the bare TLS stream and what was read of it already.
async fn open(
    tls: &Arc<rustls::ClientConfig>,
    relay: &Relay,
) -> Result<impl AsyncRead + AsyncWrite + Send + Unpin + use<>, String> {
    let Relay { host, port, .. } = relay;
    let io = tls::connect(tls, host, *port, relay.ipv4).await?;
    let refused = |why: String| format!("{host} refused the relay connection: {why}");
    let (mut sender, connection) = hyper::client::conn::http1::handshake::<_, Empty<Bytes>>(TokioIo::new(io))
        .await
        .map_err(|e| refused(e.to_string()))?;
    let talk = async {
        let request = Request::builder()
            .uri("/derp")
            .header(header::HOST, format!("{host}:{port}"))
            .header(header::CONNECTION, "Upgrade")
            .header(header::UPGRADE, "DERP")
            .body(Empty::new())
            .map_err(|e| e.to_string())?;
        let response = sender.send_request(request).await.map_err(|e| e.to_string())?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(response.status().to_string());
        }
        hyper::upgrade::on(response).await.map_err(|e| e.to_string())
    };
    let upgraded = tls::drive(connection.with_upgrades(), talk).await.map_err(refused)?;
    // Without hyper's wrapper: packets pass here.
    let parts = upgraded
        .downcast::<TokioIo<TlsStream<TcpStream>>>()
        .map_err(|_| refused("the upgraded connection is another one".into()))?;
    let (read, write) = tokio::io::split(parts.io.into_inner());
    Ok(tokio::io::join(tokio::io::AsyncReadExt::chain(std::io::Cursor::new(parts.read_buf), read), write))
}

type Halves<Io> = (FrameReader<tokio::io::ReadHalf<Io>>, tokio::io::WriteHalf<Io>);

/// The relay's key, our introduction, its introduction; then whether this is our home.
async fn introduce<Io>(io: Io, me: &NodeKeyPair, preferred: bool) -> Result<Halves<Io>, String>
where
    Io: AsyncRead + AsyncWrite,
{
    let (reader, mut writer) = tokio::io::split(io);
    let mut reader = FrameReader::new(reader);
    let Frame::ServerKey(relay_key) = reader.next().await.map_err(|e| e.to_string())? else {
        return Err(FrameError::NoRelay.to_string());
    };
    let sealer =
        SalsaBox::new(&DerpServerPublicKey::from_bytes(relay_key).to_crypto_box(), &me.private.to_crypto_box());
    let nonce: [u8; frame::NONCE] = rand::random();
    let sealed = sealer
        .encrypt(GenericArray::from_slice(&nonce), INTRODUCTION)
        .map_err(|_| "the introduction could not be sealed".to_owned())?;
    let mut out = BytesMut::new();
    frame::client_info(&mut out, public(me), nonce, &sealed);
    frame::note_preferred(&mut out, preferred);
    writer.write_all(&out).await.map_err(|e| e.to_string())?;
    writer.flush().await.map_err(|e| e.to_string())?;
    loop {
        match reader.next().await.map_err(|e| format!("the relay did not accept this node: {e}"))? {
            Frame::ServerInfo { nonce, sealed } => {
                // Opens only if the relay has the key that it showed.
                sealer
                    .decrypt(GenericArray::from_slice(&nonce), &*sealed)
                    .map_err(|_| "the relay's introduction can't be opened".to_owned())?;
                return Ok((reader, writer));
            }
            Frame::Health(problem) if !problem.is_empty() => return Err(problem),
            _ => {}
        }
    }
}

/// Passes packets until something ends the connection.
async fn pass<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
    reader: FrameReader<R>,
    writer: W,
    connection: &mut Connection,
    node: &mut watch::Receiver<Arc<NodeKeyPair>>,
    health: &mut Health,
) -> Result<Infallible, End> {
    let Connection { relay, outgoing, events, preferred, skipped, .. } = connection;
    let (pongs, to_answer) = mpsc::channel(PONGS);
    let heard = AtomicU64::new(0);
    let receiving = Receiving { region: relay.region, events, pongs, skipped, heard: &heard, health };
    let rekeyed = async {
        match node.changed().await {
            Ok(()) => End::Rekeyed,
            Err(_) => End::Stopped,
        }
    };
    // Reading and writing side by side: a relay that does not read must not keep us from reading. Reading first: after a pause
    // of the whole process an answer may lie there while its time is over.
    tokio::select! {
        biased;
        end = receiving.run(reader) => end,
        end = send(writer, outgoing, to_answer, preferred, &heard) => end,
        end = rekeyed => Err(end),
    }
}

/// The reading side of a connection.
struct Receiving<'a> {
    region: u16,
    events: &'a mpsc::Sender<RelayEvent>,
    pongs: mpsc::Sender<[u8; 8]>,
    skipped: &'a AtomicU64,
    /// Counts frames: as long as it moves, the relay lives.
    heard: &'a AtomicU64,
    health: &'a mut Health,
}

impl Receiving<'_> {
    async fn run<R: AsyncRead + Unpin>(self, mut reader: FrameReader<R>) -> Result<Infallible, End> {
        loop {
            let frame = timeout(SILENCE_LIMIT, reader.next())
                .await
                .map_err(|_| End::Broken(format!("the relay was silent for {SILENCE_LIMIT:?}")))?
                .map_err(|e| End::Broken(e.to_string()))?;
            self.heard.fetch_add(1, Ordering::Relaxed);
            match frame {
                Frame::Packet { from, data } => {
                    self.events
                        .send(RelayEvent::Packet { region: self.region, from, data })
                        .await
                        .map_err(|_| End::Stopped)?;
                }
                Frame::LargePacket => {
                    self.skipped.fetch_add(1, Ordering::Relaxed);
                }
                // A flood of pings gets fewer pongs.
                Frame::Ping(payload) => drop(self.pongs.try_send(payload)),
                Frame::Health(problem) => {
                    if !problem.is_empty() && self.health.is_due(Instant::now()) {
                        tracing::warn!(
                            region = self.region,
                            problem,
                            "the relay reports a problem with this connection"
                        );
                    }
                }
                Frame::Restarting => return Err(End::Broken("the relay restarts".into())),
                Frame::KeepAlive | Frame::Other(_) | Frame::ServerInfo { .. } | Frame::ServerKey(_) => {}
            }
        }
    }
}

/// When the log last said that the relay reports a problem; outlives a connection.
#[derive(Debug, Default)]
struct Health(Option<Instant>);

impl Health {
    /// Whether it may be said (again).
    fn is_due(&mut self, now: Instant) -> bool {
        let is_due = self.0.is_none_or(|at| now.duration_since(at) >= HEALTH_PAUSE);
        if is_due {
            self.0 = Some(now);
        }
        is_due
    }
}

/// Finds out whether the relay still lives while packets are sent to it. Pure: `heard` is how many frames have come so far.
#[derive(Debug, Default)]
enum Life {
    /// Nothing was sent since something came.
    #[default]
    Unasked,
    /// Packets were sent; nothing has come since there were `heard` frames.
    Waiting { heard: u64, until: Instant },
    /// It was pinged, and nothing has come since.
    Pinged { heard: u64, until: Instant },
}

/// What is to be done for it.
#[derive(Debug, PartialEq, Eq)]
enum Care {
    Nothing,
    Ping,
    GiveUp,
}

impl Life {
    /// Packets were sent.
    fn on_sent(&mut self, now: Instant, heard: u64) {
        if matches!(self, Self::Unasked) {
            *self = Self::Waiting { heard, until: now + PING_AFTER };
        }
    }

    /// When to look again.
    const fn next(&self) -> Option<Instant> {
        match self {
            Self::Unasked => None,
            Self::Waiting { until, .. } | Self::Pinged { until, .. } => Some(*until),
        }
    }

    /// Looks, at the time that [`Life::next`] gave.
    fn on_due(&mut self, now: Instant, heard_by_now: u64) -> Care {
        match *self {
            Self::Waiting { heard, .. } if heard == heard_by_now => {
                *self = Self::Pinged { heard, until: now + PONG_LIMIT };
                Care::Ping
            }
            Self::Pinged { heard, .. } if heard == heard_by_now => Care::GiveUp,
            // Anything that came is an answer. What was sent after it is looked after from the next packet on.
            _ => {
                *self = Self::Unasked;
                Care::Nothing
            }
        }
    }
}

async fn send<W: AsyncWrite + Unpin>(
    mut writer: W,
    outgoing: &mut mpsc::Receiver<(Key, Bytes)>,
    mut pongs: mpsc::Receiver<[u8; 8]>,
    preferred: &mut watch::Receiver<bool>,
    heard: &AtomicU64,
) -> Result<Infallible, End> {
    let mut batch = Vec::with_capacity(BATCH);
    let mut out = BytesMut::new();
    let mut life = Life::default();
    loop {
        let due = life.next();
        tokio::select! {
            count = outgoing.recv_many(&mut batch, BATCH) => {
                if count == 0 {
                    return Err(End::Stopped);
                }
                for (to, data) in batch.drain(..) {
                    frame::packet(&mut out, to, &data);
                }
                life.on_sent(Instant::now(), heard.load(Ordering::Relaxed));
            }
            Some(payload) = pongs.recv() => frame::pong(&mut out, payload),
            Ok(()) = preferred.changed() => frame::note_preferred(&mut out, *preferred.borrow_and_update()),
            () = async { match due { Some(at) => sleep_until(at).await, None => std::future::pending().await } } => {
                match life.on_due(Instant::now(), heard.load(Ordering::Relaxed)) {
                    Care::Nothing => continue,
                    Care::Ping => frame::ping(&mut out, rand::random()),
                    Care::GiveUp => {
                        return Err(End::Broken(format!("the relay did not answer a ping within {PONG_LIMIT:?}")));
                    }
                }
            }
        }
        let write = async {
            writer.write_all(&out).await?;
            writer.flush().await
        };
        timeout(WRITE_LIMIT, write)
            .await
            .map_err(|_| End::Broken(format!("the relay accepted nothing for {WRITE_LIMIT:?}")))?
            .map_err(|e| End::Broken(e.to_string()))?;
        out.clear();
    }
}
