//! A connector in the test's own process, and what it does through its tailnet.

use std::{
    fs, io,
    net::SocketAddr,
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use guildnet_model::{
    AuthKeys, Connector, ConnectorSnapshot, ConnectorSpec, DialError, FixedKey, Io, Listener, PathKind, Secret,
    StartConnector as _, Target,
};
use guildnet_tailnet::{Engine, EngineConfig};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::oneshot,
};

use crate::{
    fleet::{ECHO, ROUTES},
    site::{Site, within},
};

/// How long a connector may take until its first dial succeeds.
const JOIN: Duration = Duration::from_secs(60);

/// Does something on a client host: what is started there, an engine's threads among it, stays there.
pub(crate) fn on_host<T: Send>(site: &Site, host: &str, work: impl AsyncFnOnce() -> T + Send) -> T {
    within(&format!("gnlab-{}-{host}", site.device.fleet.lab.plan().instance), || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(work())
    })
}

/// What is done on the machine while somebody works on a client host.
type Act = Box<dyn FnOnce(&Site) + Send>;

/// The machine, for who works on a client host.
pub(crate) struct Outside(mpsc::Sender<Act>);

impl Outside {
    /// `guildnet-lab fault ...`; the caller's own tasks go on meanwhile.
    pub(crate) async fn fault(&self, words: [&'static str; 2]) {
        let (done, ended) = oneshot::channel();
        let act = move |site: &Site| {
            site.fault(&words);
            let _given_up = done.send(());
        };
        self.0.send(Box::new(act)).expect("the machine waits");
        ended.await.expect("it was done");
    }
}

/// As [`on_host`], for work during which something happens to the lab.
pub(crate) fn on_host_with<T: Send>(site: &Site, host: &str, work: impl AsyncFnOnce(Outside) -> T + Send) -> T {
    let (acts, asked) = mpsc::channel::<Act>();
    thread::scope(|scope| {
        let working = scope.spawn(move || on_host(site, host, async move || work(Outside(acts)).await));
        asked.into_iter().for_each(|act| act(site));
        working.join().expect("it worked")
    })
}

/// A member of a cluster's tailnet. It leaves when it is dropped.
pub(crate) struct Member {
    connector: Arc<dyn Connector>,
    _engine: Arc<Engine>,
}

/// A connection to the cluster's echo that stays open between requests.
pub(crate) struct Talk(Box<dyn Io>);

impl Member {
    /// Joins with the key of the cluster's file, and waits until the cluster answers.
    pub(crate) async fn join(site: &Site, cluster: &str) -> Self {
        let key = site.device.member(cluster)["clientAuthKey"].as_str().expect("a key").to_owned();
        Self::join_with(site, cluster, Arc::new(FixedKey(Some(Secret::new(key)))), false).await
    }

    /// The same with keys from elsewhere, and perhaps as a node that is thrown away.
    pub(crate) async fn join_with(site: &Site, cluster: &str, auth_keys: Arc<dyn AuthKeys>, ephemeral: bool) -> Self {
        let person = site.device.fleet.lab.person_dir();
        let read = |name: &str| fs::read_to_string(person.join(name)).expect("the lab wrote it").trim().to_owned();
        let engine = Engine::new(EngineConfig::default()).expect("threads");
        let connector = engine
            .start(ConnectorSpec {
                cluster: cluster.parse().expect("an id"),
                login_server: read("headscale-url").parse().expect("an URL"),
                ca_pem: Some(read("headscale-ca.pem")),
                hostname: format!("member-{cluster}"),
                state_dir: site.device.fleet.home.join(format!("member-{cluster}")),
                auth_keys,
                routes: ROUTES.parse().expect("networks"),
                site: None,
                ephemeral,
            })
            .expect("a connector");
        let member = Self { connector, _engine: engine };
        let begun = Instant::now();
        while let Err(why) = member.talk().await {
            assert!(begun.elapsed() < JOIN, "no way into {cluster}: {why}; {:?}", member.snapshot().await.status);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        member
    }

    pub(crate) async fn snapshot(&self) -> ConnectorSnapshot {
        self.connector.snapshot().await
    }

    /// Whether packets go straight to one of the cluster's routers.
    pub(crate) async fn is_direct(&self) -> bool {
        self.snapshot().await.peers.iter().any(|peer| peer.trusted && peer.path == PathKind::Direct)
    }

    /// Dials the cluster's echo.
    pub(crate) async fn talk(&self) -> Result<Talk, DialError> {
        self.dial(ECHO.parse().expect("an address")).await.map(Talk)
    }

    pub(crate) async fn dial(&self, to: SocketAddr) -> Result<Box<dyn Io>, DialError> {
        let to: Target = to.to_string().parse().expect("a target");
        self.connector.dialer().dial(to).await
    }

    pub(crate) async fn listen(&self, port: u16) -> Box<dyn Listener> {
        self.connector.listen(port).await.expect("a free port")
    }

    pub(crate) async fn leave(self) {
        self.connector.stop(Duration::from_secs(5)).await;
    }
}

impl Talk {
    /// One request, and its answer.
    pub(crate) async fn say(&mut self) -> io::Result<String> {
        self.0.write_all(b"GET / HTTP/1.1\r\nHost: echo\r\n\r\n").await?;
        let mut text = String::new();
        loop {
            let mut some = [0; 4096];
            let length = self.0.read(&mut some).await?;
            if length == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            text.push_str(&String::from_utf8_lossy(&some[..length]));
            let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
            let says = |line: &str| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse::<usize>().ok();
            let whole = head.lines().find_map(says).expect("the echo tells its length");
            if body.len() >= whole {
                return Ok(body.to_owned());
            }
        }
    }
}
