//! The relay connections of a connector: the home relay, at which peers find it, and those at which its peers are found.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::sleep_until,
};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::rtts::Rtts;
use crate::{
    netmap::{Key, NetMap, Relay},
    relay::{self, RelayEvent},
    state::Identity,
};

/// Packets that a flow may put out in one turn for a relay. A relay keeps 32 for each receiver and drops the oldest if there
/// are more (tailscale `derp/derpserver`, `defaultPerClientSendQueueDepth`), so large bursts would lose their own heads.
pub(super) const BATCH: usize = 16;
/// Packets that may wait for one relay, acknowledgements and handshakes included. More would only be old when they arrive.
const WAITING: usize = 64;
/// What must be free before a flow puts out a turn's worth: at most one such turn waits already.
const ROOM: usize = WAITING - BATCH;
/// The pace of flows through one relay, per packet: about 20 MB/s, what a relay was seen to pass on. Without a pace its queue
/// for the receiver overflows in bursts, and each lost tail costs a retransmission timeout of a second.
const PACE: Duration = Duration::from_micros(60);
/// How far a flow may run ahead of the pace: half a turn's worth, so that small exchanges never wait.
const AHEAD: Duration = Duration::from_micros(500);
/// Events of all relays that may wait; the relays wait if there are more, and so do their senders.
const WAITING_EVENTS: usize = 256;
/// A relay that is not home and was not used for so long is left.
const IDLE: Duration = Duration::from_secs(60);
/// A home relay that is down for so long is given up for another one. Longer than the first retry, so that a relay that
/// is merely restarted stays home.
const HOME_PATIENCE: Duration = Duration::from_secs(5);
/// A relay that failed as home is not chosen again for so long.
const PENALTY: Duration = Duration::from_secs(60);
/// How long a home that was moved to is not left for a nearer one: peers learn of each move by way of the server.
const SETTLED: Duration = Duration::from_secs(300);

/// A peer that was heard by a relay so long ago is still connected there; one that restarts is looked for at its home soon.
const HEARD: Duration = Duration::from_secs(10);

/// By which relays a peer is found.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Whereabouts {
    /// Its home, as the map says.
    pub(super) home: Option<u16>,
    /// Where it was heard last, and when.
    pub(super) heard: Option<(u16, Instant)>,
}

/// One connection.
struct Live {
    relay: Relay,
    outgoing: mpsc::Sender<(Key, Bytes)>,
    /// Whether it is home; the relay is told.
    preferred: watch::Sender<bool>,
    cancel: CancellationToken,
    connected: bool,
    down_since: Option<Instant>,
    trouble: Option<String>,
    used: Instant,
    /// When the flows' packets so far have passed at the pace.
    passed: Instant,
}

/// All of them.
pub(super) struct Relays {
    identity: Arc<Identity>,
    tls: Arc<rustls::ClientConfig>,
    known: Vec<Relay>,
    live: HashMap<u16, Live>,
    home: Option<u16>,
    /// When this node moved from one home to another the last time.
    moved: Option<Instant>,
    rtts: Rtts,
    /// Whether something was observed since that may make another relay the better home.
    observed: bool,
    failed: HashMap<u16, Instant>,
    /// A region whose queue is full and for which a flow waits.
    full: Option<u16>,
    /// Packets that were skipped since no packet for us is so large.
    skipped: Arc<AtomicU64>,
    events: mpsc::Sender<RelayEvent>,
    tasks: JoinSet<()>,
}

impl Relays {
    pub(super) fn new(identity: Arc<Identity>, tls: Arc<rustls::ClientConfig>) -> (Self, mpsc::Receiver<RelayEvent>) {
        let (events, receiver) = mpsc::channel(WAITING_EVENTS);
        let relays = Self {
            identity,
            tls,
            known: Vec::new(),
            live: HashMap::new(),
            home: None,
            moved: None,
            rtts: Rtts::default(),
            observed: false,
            failed: HashMap::new(),
            full: None,
            skipped: Arc::default(),
            events,
            tasks: JoinSet::new(),
        };
        (relays, receiver)
    }

    /// The relays of a new map. Connections to relays that changed or are gone are closed.
    pub(super) fn apply(&mut self, map: &NetMap) {
        self.known.clone_from(&map.relays);
        let known = &self.known;
        self.live.retain(|_, live| {
            let keep = known.contains(&live.relay);
            if !keep {
                live.cancel.cancel();
            }
            keep
        });
        let is_known = |region: u16| known.iter().any(|relay| relay.region == region);
        self.home = self.home.filter(|home| is_known(*home));
        self.rtts.keep(is_known);
    }

    /// Packets that relays were told to pass on to us and that are larger than any for us.
    pub(super) fn skipped(&self) -> u64 {
        self.skipped.load(Ordering::Relaxed)
    }

    /// The home relay's region.
    pub(super) const fn home(&self) -> Option<u16> {
        self.home
    }

    /// The home relay's region, if it is connected.
    pub(super) fn connected_home(&self) -> Option<u16> {
        self.home.filter(|home| self.live.get(home).is_some_and(|live| live.connected))
    }

    /// All relays: home, then the others by their distance.
    pub(super) fn near(&self, now: Instant) -> Vec<u16> {
        let mut regions: Vec<u16> = self.known.iter().map(|relay| relay.region).collect();
        regions.sort_by_cached_key(|region| {
            (Some(*region) != self.home, self.rtts.best(*region, now).unwrap_or(Duration::MAX), *region)
        });
        regions
    }

    /// Whether the home relay is connected.
    pub(super) fn is_connected(&self) -> bool {
        self.connected_home().is_some()
    }

    /// Why the home relay is not connected.
    pub(super) fn trouble(&self) -> Option<String> {
        match self.home {
            Some(home) => self.live.get(&home)?.trouble.clone(),
            None => self.known.is_empty().then(|| "the network map names none".to_owned()),
        }
    }

    /// Chooses a home if there is none, if the one of now is down for too long, or if another one is much nearer. Returns the
    /// new one's region.
    ///
    /// First the one of the last run, so that peers find this node where they look; then the nearest by STUN; then the
    /// lowest number, so that all choose alike.
    pub(super) fn choose_home(&mut self, map: &NetMap, before: Option<u16>, now: Instant) -> Option<u16> {
        let since = |at: Instant| now.saturating_duration_since(at);
        if let Some(home) = self.home {
            // The map may have changed its address, and with that its connection was closed.
            self.connect(home, now);
            let down = self.live.get(&home).and_then(|live| live.down_since);
            if down.is_none_or(|at| since(at) < HOME_PATIENCE) || map.relays.len() < 2 {
                return self.move_nearer(home, now);
            }
            self.failed.insert(home, now);
        }
        self.failed.retain(|_, at| now.saturating_duration_since(*at) < PENALTY);
        let rank = |relay: &&Relay| {
            let region = relay.region;
            let rtt = self.rtts.best(region, now).unwrap_or(Duration::MAX);
            (self.failed.contains_key(&region), Some(region) != before, rtt, region)
        };
        let region = map.relays.iter().min_by_key(rank)?.region;
        if self.home == Some(region) {
            return None;
        }
        self.set_home(region, now);
        Some(region)
    }

    /// Moves to a relay that is much nearer than `home`, once it is connected: at every moment there is a home that works.
    fn move_nearer(&mut self, home: u16, now: Instant) -> Option<u16> {
        if !std::mem::take(&mut self.observed)
            || self.moved.is_some_and(|at| now.saturating_duration_since(at) < SETTLED)
        {
            return None;
        }
        let others = self.known.iter().map(|relay| relay.region).filter(|region| *region != home);
        let sound = others.filter(|region| self.live.get(region).is_none_or(|live| live.down_since.is_none()));
        let nearer = self.rtts.nearer(home, sound, now)?;
        if !self.live.get(&nearer).is_some_and(|live| live.connected) {
            // Its connection is an observation.
            self.connect(nearer, now);
            return None;
        }
        self.set_home(nearer, now);
        Some(nearer)
    }

    /// Makes a relay home, and tells both it and the one that was. The latter stays for those who look for this node there.
    fn set_home(&mut self, region: u16, now: Instant) {
        if let Some(old) = self.home.replace(region) {
            self.moved = Some(now);
            if let Some(live) = self.live.get_mut(&old) {
                live.preferred.send_replace(false);
                live.used = now;
            }
        }
        self.connect(region, now);
        if let Some(live) = self.live.get(&region) {
            live.preferred.send_if_modified(|preferred| !std::mem::replace(preferred, true));
        }
    }

    pub(super) fn on_connected(&mut self, region: u16) {
        self.observed = true;
        if let Some(live) = self.live.get_mut(&region) {
            live.connected = true;
            live.down_since = None;
            live.trouble = None;
        }
    }

    pub(super) fn on_down(&mut self, region: u16, why: String, now: Instant) {
        if let Some(live) = self.live.get_mut(&region) {
            live.connected = false;
            live.down_since.get_or_insert(now);
            live.trouble = Some(why);
        }
    }

    /// A relay's STUN side has answered.
    pub(super) fn on_rtt(&mut self, region: u16, rtt: Duration, now: Instant) {
        self.rtts.add(region, rtt, now);
        self.observed = true;
    }

    /// By which relay a peer is reached: where it was heard a moment ago, for it is connected there whatever becomes of its home
    /// (tailscale `wgengine/magicsock/derp.go`, `derpRoute`); else its home; else ours.
    fn towards(&self, peer: Whereabouts, now: Instant) -> Option<u16> {
        let is_there = |&(region, at): &(u16, Instant)| {
            now.saturating_duration_since(at) < HEARD && self.live.get(&region).is_some_and(|live| live.connected)
        };
        peer.heard.filter(is_there).map(|(region, _)| region).or(peer.home).or(self.home)
    }

    /// Whether a flow may put out packets for a peer by a relay.
    pub(super) fn has_room(&mut self, peer: Whereabouts, now: Instant) -> bool {
        let Some(region) = self.towards(peer, now) else { return true };
        let has_room = |live: &Live| live.outgoing.capacity() >= ROOM && live.passed <= now + AHEAD;
        let room = self.live.get(&region).is_none_or(has_room);
        if !room {
            self.full = Some(region);
        }
        room
    }

    /// Waits until the relay that had no room has some; forever if none is waited for.
    pub(super) async fn room(&mut self) {
        if let Some(region) = self.full
            && let Some(live) = self.live.get(&region)
        {
            sleep_until((live.passed - AHEAD).into()).await;
            // An error means that the connection has ended: then nothing is in the way either.
            let _ = live.outgoing.reserve_many(ROOM).await;
        } else if self.full.is_none() {
            std::future::pending::<()>().await;
        }
        self.full = None;
    }

    /// Sends a packet to a peer. Returns whether it was taken.
    pub(super) fn send(&mut self, peer: Whereabouts, to: Key, packet: Bytes, now: Instant) -> bool {
        let Some(region) = self.towards(peer, now) else { return false };
        if !self.live.contains_key(&region) {
            self.connect(region, now);
        }
        let Some(live) = self.live.get_mut(&region) else { return false };
        live.used = now;
        live.outgoing.try_send((to, packet)).is_ok()
    }

    /// A flow has put out packets for a peer: the next ones keep the pace.
    pub(super) fn pace(&mut self, peer: Whereabouts, packets: usize, now: Instant) {
        if let Some(live) = self.towards(peer, now).and_then(|region| self.live.get_mut(&region)) {
            live.passed = live.passed.max(now) + PACE * u32::try_from(packets).unwrap_or(u32::MAX);
        }
    }

    fn connect(&mut self, region: u16, now: Instant) {
        if self.live.contains_key(&region) {
            return;
        }
        let Some(relay) = self.known.iter().find(|relay| relay.region == region).cloned() else { return };
        let (outgoing, waiting) = mpsc::channel(WAITING);
        let cancel = CancellationToken::new();
        let preferred = watch::Sender::new(self.home == Some(region));
        let connection = relay::Connection {
            relay: relay.clone(),
            identity: self.identity.clone(),
            tls: self.tls.clone(),
            outgoing: waiting,
            events: self.events.clone(),
            preferred: preferred.subscribe(),
            skipped: self.skipped.clone(),
        };
        self.tasks.spawn(relay::run(connection, cancel.clone()).in_current_span());
        let (connected, down_since, trouble) = (false, None, None);
        let (used, passed) = (now, now);
        let live = Live { relay, outgoing, preferred, cancel, connected, down_since, trouble, used, passed };
        self.live.insert(region, live);
    }

    /// Leaves all connections and makes the home relay's anew: their way is gone.
    pub(super) fn reconnect(&mut self, now: Instant) {
        // From here they are as far as they are.
        self.rtts = Rtts::default();
        self.moved = None;
        for (_, live) in self.live.drain() {
            live.cancel.cancel();
        }
        if let Some(home) = self.home {
            self.connect(home, now);
        }
    }

    /// Leaves relays that are not needed any more, and takes note of tasks that have ended.
    pub(super) fn close_idle(&mut self, now: Instant) {
        let home = self.home;
        self.live.retain(|region, live| {
            let keep = Some(*region) == home || now.saturating_duration_since(live.used) < IDLE;
            if !keep {
                live.cancel.cancel();
            }
            keep
        });
        while let Some(ended) = self.tasks.try_join_next() {
            report(ended);
        }
    }

    /// When something is to be done here without an event.
    pub(super) fn next_due(&self) -> Option<Instant> {
        let idle = self.live.iter().filter(|(region, _)| Some(**region) != self.home).map(|(_, live)| live.used + IDLE);
        let patience = self.home.and_then(|home| self.live.get(&home)?.down_since).map(|at| at + HOME_PATIENCE);
        // Once it is over, the retries' own events bring the next look.
        let patience = patience.filter(|_| self.known.len() > 1).filter(|at| *at > Instant::now());
        idle.chain(patience).min()
    }

    /// Closes all connections and waits until they are.
    pub(super) async fn stop(&mut self) {
        for (_, live) in self.live.drain() {
            live.cancel.cancel();
        }
        while let Some(ended) = self.tasks.join_next().await {
            report(ended);
        }
    }
}

fn report(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "a relay connection's task panicked");
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, net::Ipv4Addr};

    use guildnet_model::NodeInfo;

    use super::*;
    use crate::{netmap::SelfNode, tls};

    /// Relays of three regions at which nobody listens, and their map.
    fn relays() -> (Relays, NetMap) {
        let identity = Arc::new(Identity::ephemeral());
        let ca = rcgen::generate_simple_self_signed(["ca".to_owned()]).expect("a certificate").cert.pem();
        let relay = |region| Relay {
            region,
            name: String::new(),
            host: "relay.example".into(),
            port: 1,
            ipv4: Some(Ipv4Addr::LOCALHOST),
            stun_port: None,
        };
        let node_key = identity.node_key();
        let info = NodeInfo {
            name: "me".into(),
            id: 1,
            addresses: vec![],
            node_key: node_key.node_text(),
            tags: vec![],
            key_expiry: None,
        };
        let map = NetMap {
            self_node: SelfNode { info, node_key, allowed: vec![], expired: false },
            peers: BTreeMap::new(),
            relays: [1, 2, 3].map(relay).into(),
            filter: crate::filter::Filter::default(),
        };
        let (mut relays, _) = Relays::new(identity, tls::client_config(Some(&ca)).expect("a config"));
        relays.apply(&map);
        (relays, map)
    }

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    /// Answers of all three.
    fn measure(relays: &mut Relays, rtts: [u64; 3], now: Instant) {
        for (region, rtt) in (1..).zip(rtts) {
            relays.on_rtt(region, ms(rtt), now);
        }
    }

    #[tokio::test]
    async fn home_moves_to_the_nearest_relay_once_it_is_connected() {
        let ((mut relays, map), now) = (relays(), Instant::now());
        assert_eq!(relays.choose_home(&map, Some(2), now), Some(2), "where peers look");
        relays.on_connected(2);
        measure(&mut relays, [40, 50, 20], now);
        assert_eq!(relays.choose_home(&map, Some(2), now), None, "the nearest is not connected yet");
        assert_eq!(relays.connected_home(), Some(2));
        relays.on_connected(3);
        assert_eq!(relays.choose_home(&map, Some(2), now), Some(3));
        assert_eq!(relays.connected_home(), Some(3));
        assert!(relays.live.contains_key(&2), "peers still look there");
        relays.stop().await;
    }

    #[tokio::test]
    async fn home_and_the_nearest_relays_come_first() {
        let ((mut relays, map), now) = (relays(), Instant::now());
        assert_eq!(relays.near(now), [1, 2, 3]);
        relays.choose_home(&map, Some(2), now);
        relays.on_rtt(3, ms(5), now);
        assert_eq!(relays.near(now), [2, 3, 1]);
        relays.stop().await;
    }

    #[tokio::test]
    async fn home_stays_for_minutes_where_it_moved_to() {
        let ((mut relays, map), start) = (relays(), Instant::now());
        relays.choose_home(&map, None, start);
        (1..=3).for_each(|region| relays.connect(region, start));
        (1..=3).for_each(|region| relays.on_connected(region));
        measure(&mut relays, [90, 20, 80], start);
        assert_eq!(relays.choose_home(&map, None, start), Some(2));
        let at = |seconds| start + Duration::from_secs(seconds);
        measure(&mut relays, [90, 20, 1], at(200));
        assert_eq!(relays.choose_home(&map, None, at(200)), None);
        measure(&mut relays, [90, 20, 1], at(299));
        assert_eq!(relays.choose_home(&map, None, at(299)), None);
        measure(&mut relays, [90, 20, 1], at(301));
        assert_eq!(relays.choose_home(&map, None, at(301)), Some(3));
        relays.stop().await;
    }

    #[tokio::test]
    async fn a_relay_that_can_not_be_connected_is_no_home_however_near() {
        let ((mut relays, map), now) = (relays(), Instant::now());
        relays.choose_home(&map, None, now);
        relays.on_connected(1);
        measure(&mut relays, [90, 80, 1], now);
        assert_eq!(relays.choose_home(&map, None, now), None);
        relays.on_down(3, "refused".into(), now);
        measure(&mut relays, [90, 20, 1], now);
        assert_eq!(relays.choose_home(&map, None, now), None);
        relays.on_connected(2);
        assert_eq!(relays.choose_home(&map, None, now), Some(2), "the next best");
        relays.stop().await;
    }

    #[tokio::test]
    async fn a_peer_is_reached_where_it_was_heard_a_moment_ago_then_at_its_home_then_at_ours() {
        let ((mut relays, map), now) = (relays(), Instant::now());
        relays.choose_home(&map, Some(1), now);
        (2..=3).for_each(|region| relays.connect(region, now));
        relays.on_connected(2);
        let peer = |home, heard| Whereabouts { home, heard };
        assert_eq!(relays.towards(peer(None, None), now), Some(1));
        assert_eq!(relays.towards(peer(Some(3), None), now), Some(3));
        assert_eq!(relays.towards(peer(Some(3), Some((2, now))), now), Some(2));
        assert_eq!(relays.towards(peer(Some(2), Some((3, now))), now), Some(2), "that one is not connected");
        assert_eq!(relays.towards(peer(Some(3), Some((2, now))), now + HEARD), Some(3), "too long ago");
        relays.stop().await;
    }

    #[tokio::test]
    async fn a_relay_that_is_live_already_is_told_that_it_is_home_now() {
        let ((mut relays, map), start) = (relays(), Instant::now());
        relays.choose_home(&map, None, start);
        relays.on_connected(1);
        assert!(relays.send(
            Whereabouts { home: Some(2), heard: None },
            Key([9; 32]),
            Bytes::from_static(b"hello"),
            start
        ));
        let preferred = |relays: &Relays, region| *relays.live[&region].preferred.borrow();
        assert_eq!((preferred(&relays, 1), preferred(&relays, 2)), (true, false));
        relays.on_down(1, "gone".into(), start);
        assert_eq!(relays.choose_home(&map, None, start + HOME_PATIENCE), Some(2));
        assert_eq!((preferred(&relays, 1), preferred(&relays, 2)), (false, true));
        relays.stop().await;
    }
}
