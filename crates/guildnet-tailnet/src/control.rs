//! The control connection: keeps the node registered and its network map current, and never gives up.
//!
//! `control/connect.rs` opens the connection, `control/register.rs` registers with keys of `control/keys.rs`, `control/session.rs`
//! follows the map, `control/stream.rs` and `control/wire.rs` read it. Absent: answering the server's pings, DNS, SSH and policy: a connector
//! needs none. What the data side does with a map is not decided here; the last one stays valid while the server is away.

mod connect;
#[cfg(test)]
mod fake;
mod keys;
mod register;
mod session;
mod stream;
mod wire;

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use url::Url;

pub(crate) use self::keys::Keys;

use self::session::Session;
use crate::{backoff::Backoff, netmap::NetMap, quote, state::Identity};

/// How long opening the connection may take: TCP, TLS, the server's key, the upgrade.
const CONNECT_LIMIT: Duration = Duration::from_secs(20);
/// When a refused node asks again, give or take a quarter. Only a person can change the answer, and each try leaves a line in
/// the server's log; the jitter keeps the nodes that one server refuses from asking it all at once.
const REFUSED_RETRY: Duration = Duration::from_secs(60);
/// A session that lasted so long was a success: the next failure starts the backoff anew.
const SOUND_SESSION: Duration = Duration::from_secs(10);

/// What the control server is told about this node. Changes are sent as lite updates, collected for 250 ms.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LocalReport {
    /// UDP addresses at which this node may be reached: local ones and what STUN saw.
    pub(crate) endpoints: Vec<SocketAddr>,
    /// Region of the relay where this node listens. `None`: the one of the last run is reported, or the lowest region of
    /// the map.
    pub(crate) home_relay: Option<u16>,
}

/// What the control connection tells the connector.
#[derive(Clone, Debug)]
pub(crate) enum ControlEvent {
    /// The server is being reached. Not sent before retries of a refused registration.
    Connecting,
    /// The server refuses this node until it gets another preauth key; asked again every minute.
    NeedsKey {
        /// The server's own words, as one line.
        why: String,
    },
    /// The server has accepted the node key (of now: it may have been replaced, see [`Identity::watch_node`]).
    Registered,
    /// The whole map after a change.
    Map(Arc<NetMap>),
    /// The node key of the last map expires within a day.
    KeyExpiring {
        /// When, by the server's clock.
        at: Instant,
    },
    /// The connection is down; the last map stays valid.
    Down {
        /// The cause, as one line.
        why: String,
        /// When the next attempt begins.
        retry_in: Duration,
    },
}

/// What a control connection needs to start.
pub(crate) struct ControlConfig {
    /// `https://HOST[:PORT]`.
    pub(crate) login_server: Url,
    /// Trusted roots.
    pub(crate) tls: Arc<rustls::ClientConfig>,
    /// The node's name in the tailnet.
    pub(crate) hostname: String,
    /// Asked only while the server does not accept the node without one, and shortly before that.
    pub(crate) keys: Keys,
    /// The node's keys.
    pub(crate) identity: Arc<Identity>,
    /// Whether the node is logged out at the end.
    pub(crate) ephemeral: bool,
}

impl ControlConfig {
    /// What is told of a failure. It may quote the server, and the server what it was asked: one short line without the preauth
    /// key.
    fn fit(&self, why: &str) -> String {
        // Before it is cut: half a key is no longer known as one.
        quote::line(&self.keys.hide(why))
    }
}

/// Why a session ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// A new preauth key is needed; the server's own words.
    Refused(String),
    /// Anything that another attempt may cure.
    Broken(String),
    /// This machine is in another network.
    Moved,
    /// The node has a new key: the old one's session is over.
    Renewed,
    /// Nobody listens any more.
    Stopped,
}

impl From<String> for End {
    fn from(why: String) -> Self {
        Self::Broken(why)
    }
}

/// Keeps the node registered and its map current until `cancel` or until nobody receives `events`. Never gives up: failed
/// attempts are repeated after 1 s to 60 s with jitter, refused ones every minute; at once after each `moved`, which says that
/// this machine is in another network, and with a new node key.
///
/// # Cancellation
/// By `cancel`; the connection is closed and helper tasks have ended when this returns. An ephemeral node whose connection is open
/// is logged out before.
pub(crate) async fn run(
    config: ControlConfig,
    mut reports: watch::Receiver<LocalReport>,
    mut moved: watch::Receiver<()>,
    events: mpsc::Sender<ControlEvent>,
    cancel: CancellationToken,
) {
    let mut backoff = Backoff::default();
    let mut refused = false;
    let mut renewed = None;
    loop {
        if !refused && !tell(&events, ControlEvent::Connecting, &cancel).await {
            return;
        }
        let began = Instant::now();
        let mut had_map = false;
        let memory = (&mut had_map, &mut renewed);
        let end = attempt(&config, &mut reports, &mut moved, &events, memory, &cancel).await;
        if had_map && began.elapsed() >= SOUND_SESSION {
            backoff.reset();
        }
        let (event, wait) = match end {
            End::Stopped => return,
            End::Moved => {
                backoff.reset();
                continue;
            }
            End::Renewed => continue,
            End::Refused(why) => (ControlEvent::NeedsKey { why }, refused_wait()),
            End::Broken(why) => {
                let retry_in = backoff.next();
                (ControlEvent::Down { why, retry_in }, retry_in)
            }
        };
        refused = matches!(event, ControlEvent::NeedsKey { .. });
        if !tell(&events, event, &cancel).await {
            return;
        }
        tokio::select! {
            () = cancel.cancelled() => return,
            Ok(()) = moved.changed() => backoff.reset(),
            () = sleep(wait) => {}
        }
    }
}

fn refused_wait() -> Duration {
    REFUSED_RETRY.mul_f64(rand::random_range(0.75..=1.25))
}

/// Passes an event on; `false` if it is time to stop. A receiver that is busy stopping does not hold us up.
async fn tell(events: &mpsc::Sender<ControlEvent>, event: ControlEvent, cancel: &CancellationToken) -> bool {
    tokio::select! {
        () = cancel.cancelled() => false,
        sent = events.send(event) => sent.is_ok(),
    }
}

/// One connection from its beginning to its end.
async fn attempt(
    config: &ControlConfig,
    reports: &mut watch::Receiver<LocalReport>,
    moved: &mut watch::Receiver<()>,
    events: &mpsc::Sender<ControlEvent>,
    (had_map, renewed): (&mut bool, &mut Option<SystemTime>),
    cancel: &CancellationToken,
) -> End {
    let opening =
        timeout(CONNECT_LIMIT, connect::channel(&config.tls, &config.login_server, config.identity.machine()));
    let channel = tokio::select! {
        () = cancel.cancelled() => return End::Stopped,
        Ok(()) = moved.changed() => return End::Moved,
        opened = opening => match opened {
            Ok(Ok(channel)) => channel,
            Ok(Err(why)) => return End::Broken(config.fit(&why)),
            Err(_) => {
                let server = connect::place(&config.login_server);
                return End::Broken(format!("{server} did not answer within {CONNECT_LIMIT:?}"));
            }
        },
    };
    let session = Session { config, reports, events, had_map, renewed };
    let talk = async |http| talk(&http, session, moved, cancel).await;
    match connect::with_http(channel, &config.login_server, talk).await {
        Ok(never) => match never {},
        Err(end) => end,
    }
}

/// What is said over an open connection.
async fn talk(
    http: &connect::Http,
    session: Session<'_>,
    moved: &mut watch::Receiver<()>,
    cancel: &CancellationToken,
) -> Result<Infallible, End> {
    let config = session.config;
    tokio::select! {
        () = cancel.cancelled() => {
            if config.ephemeral {
                register::logout(http, config).await;
            }
            Err(End::Stopped)
        }
        Ok(()) = moved.changed() => Err(End::Moved),
        end = session.run(http) => end,
    }
}

#[cfg(test)]
mod tests {
    use guildnet_model::{FixedKey, Secret};

    use super::*;
    use crate::tls;

    fn config(login_server: &str) -> ControlConfig {
        let ca = rcgen::generate_simple_self_signed(["ca".to_owned()]).expect("a certificate").cert.pem();
        ControlConfig {
            login_server: login_server.parse().expect("an address"),
            tls: tls::client_config(Some(&ca)).expect("a config"),
            hostname: "me".into(),
            keys: Keys::new(Arc::new(FixedKey(None))),
            identity: Arc::new(Identity::ephemeral()),
            ephemeral: false,
        }
    }

    #[tokio::test]
    async fn of_the_servers_address_only_host_and_port_are_told() {
        for (address, place) in [
            ("http://me:pa55@127.0.0.1:1/p?token=t0p#s3cret", "127.0.0.1:1"),
            ("https://me:pa55@127.0.0.1:1/p?token=t0p#s3cret", "127.0.0.1:1"),
            ("https://me:pa55@[::1]:1/p?token=t0p#s3cret", "[::1]:1"),
        ] {
            let (events_tx, mut events) = mpsc::channel(8);
            let (_reports, watched) = watch::channel(LocalReport::default());
            let cancel = CancellationToken::new();
            let (_moved, moves) = watch::channel(());
            let running = tokio::spawn(run(config(address), watched, moves, events_tx, cancel.clone()));
            assert!(matches!(events.recv().await, Some(ControlEvent::Connecting)));
            let Some(ControlEvent::Down { why, .. }) = events.recv().await else { panic!("another event") };
            assert!(why.contains(place), "{why}");
            assert!(!["me:", "pa55", "/p", "t0p", "s3cret"].iter().any(|secret| why.contains(secret)), "{why}");
            cancel.cancel();
            running.await.expect("no panic");
        }
    }

    #[tokio::test]
    async fn a_key_is_replaced_before_a_failure_is_cut_and_none_is_no_key() {
        let said = async |why: &str, key: Option<&str>| {
            let keys = Keys::new(Arc::new(FixedKey(key.map(|key| Secret::new(key.to_owned())))));
            let given = keys.ask().await.expect("no failure");
            (ControlConfig { keys, ..config("https://h") }.fit(why), given.is_some())
        };
        for filling in 280..310 {
            let why = said(&format!("{}hskey-secret", "x".repeat(filling)), Some("hskey-secret\n")).await.0;
            assert!(!why.contains("hskey"), "{why}");
        }
        assert_eq!(said("try\nlater", Some("")).await, ("try later".into(), false));
        assert_eq!(said("try later", None).await, ("try later".into(), false));
    }

    #[test]
    fn refused_nodes_do_not_ask_again_all_at_once() {
        let mut waits: Vec<u64> = (0..100).map(|_| refused_wait().as_secs()).collect();
        assert!(waits.iter().all(|seconds| (45..=75).contains(seconds)), "{waits:?}");
        waits.sort_unstable();
        assert!(waits[90] - waits[10] > 10, "{waits:?}");
    }
}
