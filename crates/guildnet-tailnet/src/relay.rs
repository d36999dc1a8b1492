//! The client of one relay (DERP): keeps a TLS connection to it and passes packets in both directions.
//!
//! Which relays are used, and for which peer, is decided by the data side; the frames are in `relay/frame.rs`. Nothing is
//! kept for later: what can't be sent is dropped, WireGuard and TCP repeat what matters.

mod frame;

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
                    self.events.send(RelayEvent::Packet { from, data }).await.map_err(|_| End::Stopped)?;
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

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use proptest::prelude::*;
    use tokio::io::{DuplexStream, duplex};

    use super::{
        frame::tests::{from_relay, stream},
        *,
    };

    const PEER: Key = Key([9; 32]);

    /// A relay at the wire: the test is the relay.
    struct FakeRelay {
        io: DuplexStream,
        key: crypto_box::SecretKey,
    }

    impl FakeRelay {
        fn new() -> (Self, DuplexStream) {
            let (client, io) = duplex(64 * 1024);
            (Self { io, key: crypto_box::SecretKey::from(rand::random::<[u8; 32]>()) }, client)
        }

        async fn say(&mut self, kind: u8, parts: &[&[u8]]) {
            self.io.write_all(&from_relay(kind, parts)).await.expect("the client reads");
        }

        async fn say_key(&mut self) {
            let key = self.key.public_key();
            self.say(0x01, &[b"DERP\xf0\x9f\x94\x91", key.as_bytes()]).await;
        }

        /// The client's next frame: type and body.
        async fn hear(&mut self) -> (u8, Vec<u8>) {
            use tokio::io::AsyncReadExt;
            let kind = self.io.read_u8().await.expect("a type");
            let length = self.io.read_u32().await.expect("a length");
            let mut body = vec![0; length.try_into().expect("short")];
            self.io.read_exact(&mut body).await.expect("a body");
            (kind, body)
        }

        /// Plays the relay's part of the introduction; gives what the client said of itself.
        async fn welcome(&mut self) -> (Key, String) {
            self.say_key().await;
            let (kind, body) = self.hear().await;
            assert_eq!(kind, 0x02);
            let client: [u8; 32] = body[..32].try_into().expect("a key");
            let sealer = SalsaBox::new(&client.into(), &self.key);
            let said = sealer.decrypt(GenericArray::from_slice(&body[32..56]), &body[56..]).expect("sealed for us");
            let nonce = [5; 24];
            let info = sealer.encrypt(GenericArray::from_slice(&nonce), &br#"{"version":2}"#[..]).expect("sealed");
            self.say(0x03, &[&nonce, &info]).await;
            (Key(client), String::from_utf8(said).expect("text"))
        }
    }

    /// A client that passes packets, and the ends of its channels.
    struct Client {
        outgoing: mpsc::Sender<(Key, Bytes)>,
        events: mpsc::Receiver<RelayEvent>,
        preferred: watch::Sender<bool>,
        skipped: Arc<AtomicU64>,
        task: tokio::task::JoinHandle<End>,
        /// Kept: a relay connection ends with its identity.
        _identity: Arc<Identity>,
    }

    impl Client {
        fn start(io: DuplexStream, identity: &Arc<Identity>) -> Self {
            let (outgoing, queue) = mpsc::channel(64);
            let (events_tx, events) = mpsc::channel(8);
            let (preferred, watched) = watch::channel(true);
            let skipped = Arc::new(AtomicU64::new(0));
            let (me, mut node) = (identity.node(), identity.watch_node());
            let ca = rcgen::generate_simple_self_signed(["ca".to_owned()]).expect("a certificate").cert.pem();
            let mut connection = Connection {
                relay: Relay {
                    region: 7,
                    name: String::new(),
                    host: "relay.example".into(),
                    port: 443,
                    ipv4: None,
                    stun_port: None,
                },
                identity: identity.clone(),
                tls: tls::client_config(Some(&ca)).expect("a config"),
                outgoing: queue,
                events: events_tx,
                preferred: watched,
                skipped: skipped.clone(),
            };
            let task = tokio::spawn(async move {
                let (reader, writer) = match introduce(io, &me, true).await {
                    Ok(halves) => halves,
                    Err(why) => return End::Broken(why),
                };
                match pass(reader, writer, &mut connection, &mut node, &mut Health::default()).await {
                    Ok(never) => match never {},
                    Err(end) => end,
                }
            });
            Self { outgoing, events, preferred, skipped, task, _identity: identity.clone() }
        }

        /// A client that is introduced to its relay.
        async fn introduced() -> (Self, FakeRelay) {
            let (mut relay, io) = FakeRelay::new();
            let client = Self::start(io, &Arc::new(Identity::ephemeral()));
            relay.welcome().await;
            relay.hear().await;
            (client, relay)
        }
    }

    #[tokio::test]
    async fn the_client_introduces_itself_and_names_its_home() {
        let identity = Arc::new(Identity::ephemeral());
        let (mut relay, io) = FakeRelay::new();
        let _client = Client::start(io, &identity);
        let (key, said) = relay.welcome().await;
        assert_eq!(key, identity.node_key());
        assert_eq!(said, r#"{"version":2,"CanAckPings":true}"#);
        assert_eq!(relay.hear().await, (0x07, vec![1]));
    }

    #[tokio::test]
    async fn packets_pass_in_both_directions_and_pings_are_answered() {
        let (mut client, mut relay) = Client::introduced().await;
        relay.say(0x7f, &[b"of a newer protocol"]).await;
        relay.say(0x05, &[&PEER.0, b"hello"]).await;
        match client.events.recv().await.expect("an event") {
            RelayEvent::Packet { from, data } => assert_eq!((from, &data[..]), (PEER, &b"hello"[..])),
            other => panic!("{other:?} is no packet"),
        }
        client.outgoing.send((PEER, Bytes::from_static(b"there"))).await.expect("room");
        assert_eq!(relay.hear().await, (0x04, [&PEER.0, &b"there"[..]].concat()));
        relay.say(0x12, &[&[1, 2, 3, 4, 5, 6, 7, 8]]).await;
        assert_eq!(relay.hear().await, (0x13, vec![1, 2, 3, 4, 5, 6, 7, 8]));
    }

    #[tokio::test]
    async fn a_relay_that_goes_away_is_reported_with_the_cause() {
        let (mut relay, io) = FakeRelay::new();
        let client = Client::start(io, &Arc::new(Identity::ephemeral()));
        relay.welcome().await;
        relay.say(0x15, &[&[0; 8]]).await;
        assert_eq!(client.task.await.expect("no panic"), End::Broken("the relay restarts".into()));

        let (relay, io) = FakeRelay::new();
        let client = Client::start(io, &Arc::new(Identity::ephemeral()));
        drop(relay);
        assert_eq!(client.task.await.expect("no panic"), End::Broken("the relay closed the connection".into()));
    }

    #[tokio::test]
    async fn a_relay_that_shows_a_foreign_key_is_refused() {
        let (mut relay, io) = FakeRelay::new();
        let client = Client::start(io, &Arc::new(Identity::ephemeral()));
        relay.say_key().await;
        relay.hear().await;
        relay.say(0x03, &[&[5; 24], &[0; 40]]).await;
        assert_eq!(
            client.task.await.expect("no panic"),
            End::Broken("the relay's introduction can't be opened".into())
        );
    }

    #[tokio::test]
    async fn a_new_node_key_is_introduced_anew() {
        let identity = Arc::new(Identity::ephemeral());
        let (mut relay, io) = FakeRelay::new();
        let client = Client::start(io, &identity);
        relay.welcome().await;
        relay.hear().await;
        identity.accepted(&identity.next_node().expect("kept nowhere")).expect("kept nowhere");
        assert_eq!(client.task.await.expect("no panic"), End::Rekeyed);
    }

    #[tokio::test]
    async fn a_packet_that_is_too_large_is_counted_and_the_next_one_comes() {
        let (mut client, mut relay) = Client::introduced().await;
        relay.say(0x05, &[&PEER.0, &[0; 60_000]]).await;
        relay.say(0x05, &[&PEER.0, b"hello"]).await;
        assert!(matches!(client.events.recv().await, Some(RelayEvent::Packet { data, .. }) if data == b"hello"[..]));
        assert_eq!(client.skipped.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn a_relay_that_becomes_home_or_no_longer_is_is_told() {
        let (client, mut relay) = Client::introduced().await;
        for preferred in [false, true] {
            client.preferred.send_replace(preferred);
            assert_eq!(relay.hear().await, (0x07, vec![u8::from(preferred)]));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_relay_that_answers_nothing_is_pinged_and_given_up_within_ten_seconds() {
        let (client, mut relay) = Client::introduced().await;
        // Nothing is sent: silence means nothing.
        sleep(Duration::from_secs(100)).await;
        relay.say(0x06, &[]).await;
        sleep(Duration::from_secs(60)).await;
        let sent = Instant::now();
        client.outgoing.send((PEER, Bytes::from_static(b"there"))).await.expect("room");
        assert_eq!(relay.hear().await.0, 0x04);
        let (kind, payload) = relay.hear().await;
        assert_eq!((kind, payload.len(), sent.elapsed().as_secs()), (0x12, 8, 5));
        assert_eq!(
            client.task.await.expect("no panic"),
            End::Broken("the relay did not answer a ping within 5s".into())
        );
        assert_eq!(sent.elapsed().as_secs(), 10);
    }

    #[tokio::test(start_paused = true)]
    async fn a_relay_that_answers_pings_or_anything_is_kept() {
        let (mut client, mut relay) = Client::introduced().await;
        for _ in 0..20 {
            client.outgoing.send((PEER, Bytes::from_static(b"there"))).await.expect("room");
            assert_eq!(relay.hear().await.0, 0x04);
            let (kind, payload) = relay.hear().await;
            assert_eq!(kind, 0x12);
            relay.say(0x13, &[&payload]).await;
            sleep(Duration::from_secs(6)).await;
        }
        for _ in 0..20 {
            client.outgoing.send((PEER, Bytes::from_static(b"there"))).await.expect("room");
            assert_eq!(relay.hear().await.0, 0x04, "traffic is answer enough");
            relay.say(0x05, &[&PEER.0, b"hello"]).await;
            assert!(matches!(client.events.recv().await, Some(RelayEvent::Packet { .. })));
            sleep(Duration::from_secs(4)).await;
        }
        assert!(!client.task.is_finished());
    }

    #[tokio::test(start_paused = true)]
    async fn a_relay_that_takes_nothing_is_given_up_after_ten_seconds() {
        let (client, relay) = Client::introduced().await;
        let start = Instant::now();
        // More than lies between the two when nobody reads.
        let packet = Bytes::from_static(&[0; 1300]);
        while start.elapsed() < WRITE_LIMIT && client.outgoing.send((PEER, packet.clone())).await.is_ok() {}
        let end = End::Broken("the relay accepted nothing for 10s".into());
        assert_eq!((client.task.await.expect("no panic"), start.elapsed()), (end, WRITE_LIMIT));
        drop(relay);
    }

    #[test]
    fn a_problem_is_said_once_a_minute() {
        let (mut health, start) = (Health::default(), Instant::now());
        let said = (0..300).filter(|second| health.is_due(start + Duration::from_secs(*second)));
        assert_eq!(said.collect::<Vec<_>>(), [0, 60, 120, 180, 240]);
    }

    proptest! {
        #[test]
        fn no_bytes_of_a_relay_make_the_introduction_panic(key: [u8; 32], bytes in stream()) {
            let said = [from_relay(0x01, &[b"DERP\xf0\x9f\x94\x91", &key]), bytes].concat();
            let io = tokio::io::join(&said[..], tokio::io::sink());
            let end = introduce(io, &NodeKeyPair::random(), true).now_or_never().expect("all is there");
            prop_assert!(end.is_err(), "without the relay's private key nobody is one");
        }
    }
}
