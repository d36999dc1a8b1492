//! The client against a relay in the same process, which speaks the protocol frame by frame.

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
        RelayEvent::Packet { from, data, .. } => assert_eq!((from, &data[..]), (PEER, &b"hello"[..])),
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
    assert_eq!(client.task.await.expect("no panic"), End::Broken("the relay's introduction can't be opened".into()));
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
    assert_eq!(client.task.await.expect("no panic"), End::Broken("the relay did not answer a ping within 5s".into()));
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
