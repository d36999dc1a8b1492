//! A connector: one membership of one cluster's tailnet, in this process. What is wanted of it, what is observed of it.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use ipnet::IpNet;
use serde::Serialize;
use tokio::sync::watch;
use url::Url;

use crate::{BoxFuture, Class, ClusterId, DialError, Dialer, Explain, Io, Networks, Secret, SiteNumber, Target};

/// What is wanted of a connector.
#[derive(Clone, Debug)]
pub struct ConnectorSpec {
    /// The cluster it belongs to; its tags decide which peers are trusted.
    pub cluster: ClusterId,
    /// The Headscale server, `https://HOST[:PORT]`.
    pub login_server: Url,
    /// PEM certificates to trust for the login server and its relays, beside the system's roots.
    pub ca_pem: Option<String>,
    /// The node's name in the tailnet.
    pub hostname: String,
    /// Folder (mode 0700) that keeps the node's identity.
    pub state_dir: PathBuf,
    /// Gives preauth keys; asked only while the server does not accept the node without one.
    pub auth_keys: Arc<dyn AuthKeys>,
    /// The cluster's networks: nothing else is dialled, whatever the network map offers.
    pub routes: Networks,
    /// The cluster's site number, for servers where equal networks need 4via6.
    pub site: Option<SiteNumber>,
    /// Whether the node is thrown away when the connector stops: it is logged out, and its identity is never used again. For preauth
    /// keys that make ephemeral nodes: the server deletes such a node at its logout, others only expire.
    pub ephemeral: bool,
}

/// Gives a connector the preauth keys with which it joins: asked at the moment when one is needed, so that it can be made then.
///
/// A connector asks when its node is not registered yet, when the server refuses it (removed, its key expired), and ten minutes before
/// its key expires if the server grants another end; once for each of these. Where the server goes on refusing, each later attempt
/// asks again, about a minute after the one before: a source that makes keys should give one again that nobody has used.
pub trait AuthKeys: fmt::Debug + Send + Sync {
    /// The key to join with now; `None` if there is none.
    ///
    /// # Errors
    /// [`NoAuthKey`]: one could be had, but not now.
    /// # Cancellation
    /// The connector drops the future when it stops, and after 30 s.
    fn key(&self) -> BoxFuture<'_, Result<Option<Secret<String>>, NoAuthKey>>;
}

/// Why no preauth key could be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no preauth key could be had: {why}")]
pub struct NoAuthKey {
    /// The cause.
    pub why: String,
}

/// The same key each time, or none.
#[derive(Clone, Debug, Default)]
pub struct FixedKey(pub Option<Secret<String>>);

impl AuthKeys for FixedKey {
    fn key(&self) -> BoxFuture<'_, Result<Option<Secret<String>>, NoAuthKey>> {
        let key = self.0.clone();
        Box::pin(async { Ok(key) })
    }
}

/// Why a connector could not be started at all.
#[derive(Debug, thiserror::Error)]
pub enum ConnectorError {
    /// The state folder can't be made, read or written.
    #[error("state folder {path}: {why}")]
    State {
        /// The folder or file.
        path: PathBuf,
        /// The cause.
        why: String,
    },
    /// The saved identity is there but damaged.
    #[error("saved identity {path} is damaged: {why}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The cause.
        why: String,
    },
    /// The certificates given as trusted are no PEM certificates.
    #[error("the trusted certificates can't be read: {why}")]
    Ca {
        /// The cause.
        why: String,
    },
    /// The machine refused a socket or a thread.
    #[error("the connector could not start: {why}")]
    System {
        /// The cause.
        why: String,
    },
}

impl Explain for ConnectorError {
    fn class(&self) -> Class {
        match self {
            Self::Ca { .. } => Class::Usage,
            _ => Class::Failed,
        }
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::State { .. } => {
                "make room and make the folder writable for this user, then run the command again".into()
            }
            Self::Damaged { path, .. } => {
                format!("move {} away and run 'guildnet up' again: the connector joins as a new node", path.display())
            }
            Self::Ca { .. } => "give a PEM file with --headscale-ca".into(),
            Self::System { .. } => "see the log for details".into(),
        })
    }
}

/// Why a port can't be listened on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ListenError {
    /// Somebody in this process listens on it already.
    #[error("port {port} of this node in the tailnet is taken")]
    Taken {
        /// The port.
        port: u16,
    },
    /// Port 0 is none, and none is chosen for the caller: the packet filter names ports.
    #[error("port 0 can't be listened on")]
    NoPort,
    /// A bound was reached.
    #[error("too many ports are listened on through this connector ({limit})")]
    TooMany {
        /// The bound.
        limit: usize,
    },
    /// The connector has stopped.
    #[error("the connector has stopped")]
    Stopped,
}

impl Explain for ListenError {
    fn class(&self) -> Class {
        match self {
            Self::Taken { .. } => Class::Conflict,
            Self::NoPort => Class::Usage,
            Self::TooMany { .. } | Self::Stopped => Class::Failed,
        }
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Taken { .. } | Self::NoPort => "choose another port".into(),
            Self::TooMany { .. } => "close some of the ports".into(),
            Self::Stopped => "connect the cluster again with 'guildnet cluster connect'".into(),
        })
    }
}

/// A port of this node in the tailnet, and the connections that others open to it: see [`Connector::listen`].
///
/// Dropping it closes the port, and connections that nobody has taken.
pub trait Listener: Send {
    /// The next connection that is open, and the address that it comes from; `None` once the connector has stopped. Dropping
    /// the future loses no connection.
    fn accept(&mut self) -> BoxFuture<'_, Option<(Box<dyn Io>, SocketAddr)>>;
}

/// How packets travel to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PathKind {
    /// UDP, straight to the peer.
    Direct,
    /// Through a relay (DERP).
    Relay,
    /// Nothing was exchanged yet, or not lately.
    Idle,
}

impl fmt::Display for PathKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Direct => "direct",
            Self::Relay => "relay",
            Self::Idle => "idle",
        })
    }
}

/// This node, as the server knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NodeInfo {
    /// Name in the tailnet.
    pub name: String,
    /// The server's number for the node.
    pub id: u64,
    /// Addresses in the tailnet.
    pub addresses: Vec<IpAddr>,
    /// The node key, as `nodekey:<hex>`: public, and the identity by which the server's list names this node.
    pub node_key: String,
    /// Tags that the server gave it.
    pub tags: Vec<String>,
    /// When the node key expires, if it does.
    pub key_expiry: Option<SystemTime>,
}

/// What does not work although the connector does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Degraded {
    /// The control connection is down; the last network map is still used.
    ControlDown {
        /// The cause.
        why: String,
    },
    /// No relay is connected; a direct path may still work.
    RelayDown {
        /// The cause.
        why: String,
    },
    /// No router of the cluster is online or serves its networks.
    NoRouter {
        /// What was seen.
        why: String,
    },
    /// Everything works, but the node key expires within a day, and the node must be admitted anew then.
    KeyExpiring {
        /// When it expires, by this machine's clock: the server's may be another one.
        at: SystemTime,
    },
}

impl fmt::Display for Degraded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ControlDown { why } => write!(f, "login server not connected: {why}"),
            Self::RelayDown { why } => write!(f, "no relay: {why}"),
            Self::NoRouter { why } => write!(f, "no router: {why}"),
            // Told as of now: the time left is what a person needs.
            Self::KeyExpiring { at } => match at.duration_since(SystemTime::now()) {
                Ok(left) => write!(f, "the node key expires in {}", Left(left)),
                Err(_) => f.write_str("the node key expires now"),
            },
        }
    }
}

/// Time left, for a person: hours, or minutes when it is less than two hours.
struct Left(Duration);

impl fmt::Display for Left {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Rounded up: what has just begun is told whole.
        match self.0.as_secs().div_ceil(60) {
            minutes if minutes < 120 => write!(f, "{minutes} min"),
            minutes => write!(f, "{} h", minutes.div_ceil(60)),
        }
    }
}

/// Where a connector is in its life.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum ConnectorState {
    /// Keys are loaded, the login server is being reached.
    Starting,
    /// The server refuses the node: a new preauth key is needed.
    NeedsKey {
        /// What the server said.
        why: String,
    },
    /// Registered; the network map has not come yet.
    Syncing,
    /// A network map is there, a router of the cluster serves its networks, and a relay or a direct path is connected.
    Ready,
    /// Partly working.
    Degraded {
        /// What does not work.
        why: Degraded,
    },
    /// Not working.
    Failed {
        /// The cause.
        why: String,
        /// When the next attempt begins, if there is one.
        #[serde(skip)]
        retry_in: Option<Duration>,
    },
    /// Stopped on request.
    Stopped,
}

impl fmt::Display for ConnectorState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Starting => f.write_str("starting"),
            Self::NeedsKey { why } => write!(f, "needs a new key: {why}"),
            Self::Syncing => f.write_str("waiting for the network map"),
            Self::Ready => f.write_str("ready"),
            Self::Degraded { why } => write!(f, "degraded: {why}"),
            Self::Failed { why, .. } => write!(f, "failed: {why}"),
            Self::Stopped => f.write_str("stopped"),
        }
    }
}

/// What was observed of a connector, and since when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ConnectorStatus {
    /// The state.
    #[serde(flatten)]
    pub state: ConnectorState,
    /// When this state began.
    pub since: SystemTime,
    /// This node, once the server has named it.
    pub node: Option<NodeInfo>,
    /// What was wrong last and is over.
    pub last_trouble: Option<Trouble>,
}

/// Something that was wrong for a time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Trouble {
    /// What, as the state was told then.
    pub what: String,
    /// When it began.
    pub since: SystemTime,
    /// When it was over, or something else became wrong.
    pub until: SystemTime,
}

/// What is needed to reach a peer: taken from one connector's network map, usable by another one's probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerContact {
    /// WireGuard public key.
    pub node_key: [u8; 32],
    /// Disco public key, if the peer has one.
    pub disco_key: Option<[u8; 32]>,
    /// Home relay's region, if known.
    pub home_relay: Option<u16>,
    /// UDP addresses at which the peer may be reached.
    pub endpoints: Vec<SocketAddr>,
}

/// A peer, as this connector sees it.
#[derive(Clone, Debug, Serialize)]
pub struct PeerInfo {
    /// Name in the tailnet.
    pub name: String,
    /// The node key, as `nodekey:<hex>`.
    pub node_key: String,
    /// Addresses in the tailnet.
    pub addresses: Vec<IpAddr>,
    /// Tags that the server gave it.
    pub tags: Vec<String>,
    /// Networks that the map says it serves (its own addresses left out).
    pub routes: Vec<IpNet>,
    /// Those of them that this connector never uses: default routes, other networks than its cluster's, and all of a peer that it does
    /// not trust.
    pub ignored: Vec<IpNet>,
    /// Whether the server sees it connected, if it says so.
    pub online: Option<bool>,
    /// Whether this connector trusts it: it is tagged as this cluster's router.
    pub trusted: bool,
    /// How packets travel to it now.
    pub path: PathKind,
    /// Round trip of the last answered ping on the direct path.
    pub rtt: Option<Duration>,
    /// When the last WireGuard handshake was completed.
    pub last_handshake: Option<SystemTime>,
    /// Payload bytes received from and sent to it.
    pub rx_bytes: u64,
    /// Payload bytes sent to it.
    pub tx_bytes: u64,
    /// How to reach it.
    #[serde(skip)]
    pub contact: PeerContact,
}

/// Everything that a connector can show at one moment.
#[derive(Clone, Debug, Serialize)]
pub struct ConnectorSnapshot {
    /// State and identity.
    pub status: ConnectorStatus,
    /// All peers of the network map, trusted or not.
    pub peers: Vec<PeerInfo>,
    /// Relay region that this connector is connected to, if any.
    pub home_relay: Option<u16>,
    /// TCP flows that are open now.
    pub flows: usize,
    /// Packets dropped because a bound was reached or they were not allowed.
    pub dropped: Dropped,
}

/// Packets that a connector has dropped since it started, by cause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Dropped {
    /// Received: of no kind that is understood here.
    pub unknown_kind: u64,
    /// Received: from no peer that is talked to, or for no session that there is.
    pub unknown_peer: u64,
    /// Received: not proved to come from its peer (wrong key, replayed, by a way that proves nothing), or not to be read.
    pub refused: u64,
    /// Received: larger than anything for this node.
    pub too_large: u64,
    /// Received: decrypted, of no flow with that peer, and no connection to this node that is let in.
    pub no_flow: u64,
    /// To be sent: the relay's queue was full, or there was no relay.
    pub relay_full: u64,
    /// To be sent: the machine's socket refused it.
    pub socket_refused: u64,
}

impl Dropped {
    /// The counts, each with its cause as one word.
    pub const fn causes(&self) -> [(&'static str, u64); 7] {
        let Self { unknown_kind, unknown_peer, refused, too_large, no_flow, relay_full, socket_refused } = *self;
        [
            ("unknown_kind", unknown_kind),
            ("unknown_peer", unknown_peer),
            ("refused", refused),
            ("too_large", too_large),
            ("no_flow", no_flow),
            ("relay_full", relay_full),
            ("socket_refused", socket_refused),
        ]
    }

    /// All of them.
    pub fn total(&self) -> u64 {
        self.causes().iter().map(|(_, count)| count).sum()
    }
}

/// How a probe past the route filter ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProbeOutcome {
    /// The far end answered, with an open port or a reset: packets get through.
    Answered,
    /// Nothing came back within the time.
    Silent,
    /// The probe could not be made; it says nothing about isolation.
    Impossible {
        /// The cause.
        why: String,
    },
}

/// One membership of one tailnet. Cheap to share; all methods may be called from any task.
pub trait Connector: Send + Sync {
    /// The dialer of this cluster: allows the cluster's networks only.
    fn dialer(&self) -> Arc<dyn Dialer>;

    /// The status now and its changes.
    fn status(&self) -> watch::Receiver<ConnectorStatus>;

    /// State, peers and paths at this moment. Answers at once with what is known.
    fn snapshot(&self) -> BoxFuture<'_, ConnectorSnapshot>;

    /// Tries to open a TCP connection to `to` through the named peer, past the connector's own route and peer filters,
    /// with this connector's own identity. For isolation checks: it must be silent for another cluster's router.
    fn probe(&self, through: PeerContact, to: Target, within: Duration) -> BoxFuture<'_, ProbeOutcome>;

    /// Listens on a port of this node's own addresses in the tailnet.
    ///
    /// Only the cluster's routers are heard, in their own names and in those of the cluster's networks, and only where the
    /// tailnet's packet filter allows it. Of one port 64 connections may be half open or wait to be taken; what comes beyond is
    /// not answered, and tried again by its sender. All count towards the connector's flows. It is no matter whether the
    /// connector is ready: the port stays open as that comes and goes.
    ///
    /// # Errors
    /// [`ListenError::Taken`] until the port's other listener is dropped.
    fn listen(&self, port: u16) -> BoxFuture<'_, Result<Box<dyn Listener>, ListenError>>;

    /// Stops: flows are reset, the relay and control connections closed, tasks joined, at most `grace` long.
    /// The identity is kept. Later calls return at once.
    fn stop(&self, grace: Duration) -> BoxFuture<'_, ()>;
}

/// Starts connectors. Returns at once; the connector's status tells how it goes on.
pub trait StartConnector: Send + Sync {
    /// Starts one.
    ///
    /// # Errors
    /// [`ConnectorError`] only for what can be known without the network: the state folder, the certificates.
    fn start(&self, spec: ConnectorSpec) -> Result<Arc<dyn Connector>, ConnectorError>;
}

impl ConnectorStatus {
    /// A connector that begins to be in this state now, and of which nothing else is known.
    pub fn now_in(state: ConnectorState) -> Self {
        Self { state, since: SystemTime::now(), node: None, last_trouble: None }
    }

    /// Takes another state, and keeps what the old one told of trouble.
    pub fn become_at(&mut self, state: ConnectorState, now: SystemTime) {
        let old = std::mem::replace(&mut self.state, state);
        let since = std::mem::replace(&mut self.since, now);
        if let ConnectorState::NeedsKey { .. } | ConnectorState::Degraded { .. } | ConnectorState::Failed { .. } = old {
            self.last_trouble = Some(Trouble { what: old.to_string(), since, until: now });
        }
    }

    /// Whether dials may be tried: ready, or degraded in a way that leaves a path.
    pub fn is_usable(&self) -> bool {
        match &self.state {
            ConnectorState::Ready => true,
            ConnectorState::Degraded { why } => !matches!(why, Degraded::NoRouter { .. }),
            _ => false,
        }
    }

    /// The error that a dial gets while the connector is not usable.
    pub fn as_dial_error(&self) -> DialError {
        DialError::NotReady { state: self.state.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_expires_soon_is_told_with_the_time_left_and_dials_go_on() {
        for (left, said) in [(86_395, "24 h"), (7_300, "3 h"), (7_100, "119 min"), (30, "1 min")] {
            let why = Degraded::KeyExpiring { at: SystemTime::now() + Duration::from_secs(left) };
            assert_eq!(why.to_string(), format!("the node key expires in {said}"));
            assert!(ConnectorStatus::now_in(ConnectorState::Degraded { why }).is_usable());
        }
        let over = Degraded::KeyExpiring { at: SystemTime::UNIX_EPOCH };
        assert_eq!(over.to_string(), "the node key expires now");
    }

    #[test]
    fn the_last_trouble_is_kept_when_it_is_over() {
        let mut status = ConnectorStatus::now_in(ConnectorState::Starting);
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        status.become_at(ConnectorState::Syncing, at(1));
        assert_eq!(status.last_trouble, None);
        let why = Degraded::NoRouter { why: "offline".into() };
        status.become_at(ConnectorState::Degraded { why }, at(2));
        assert_eq!(status.last_trouble, None, "it is not over");
        for now in [5, 9] {
            status.become_at(ConnectorState::Ready, at(now));
            let what = "degraded: no router: offline".into();
            assert_eq!(status.last_trouble, Some(Trouble { what, since: at(2), until: at(5) }));
        }
        assert_eq!(status.since, at(9));
    }

    #[test]
    fn each_cause_counts() {
        let dropped = Dropped {
            unknown_kind: 1,
            unknown_peer: 2,
            refused: 4,
            too_large: 8,
            no_flow: 16,
            relay_full: 32,
            socket_refused: 64,
        };
        assert_eq!(dropped.total(), 127);
    }
}
