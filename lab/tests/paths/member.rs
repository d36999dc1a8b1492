//! A connector in the test's own process, and what it does through its tailnet.

use std::{
    fs, io,
    sync::Arc,
    time::{Duration, Instant},
};

use guildnet_model::{
    Connector, ConnectorSnapshot, ConnectorSpec, DialError, FixedKey, Io, PathKind, Secret, StartConnector as _, Target,
};
use guildnet_tailnet::{Engine, EngineConfig};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::{
    fleet::ROUTES,
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

/// A member of a cluster's tailnet. It leaves when it is dropped.
pub(crate) struct Member {
    connector: Arc<dyn Connector>,
    _engine: Arc<Engine>,
}

/// A connection to the cluster's echo that stays open between requests.
pub(crate) struct Talk(Box<dyn Io>);

impl Member {
    /// Joins, and waits until the cluster answers.
    pub(crate) async fn join(site: &Site, cluster: &str) -> Self {
        let person = site.device.fleet.lab.person_dir();
        let read = |name: &str| fs::read_to_string(person.join(name)).expect("the lab wrote it").trim().to_owned();
        let key = site.device.member(cluster)["clientAuthKey"].as_str().expect("a key").to_owned();
        let engine = Engine::new(EngineConfig::default()).expect("threads");
        let connector = engine
            .start(ConnectorSpec {
                cluster: cluster.parse().expect("an id"),
                login_server: read("headscale-url").parse().expect("an URL"),
                ca_pem: Some(read("headscale-ca.pem")),
                hostname: format!("member-{cluster}"),
                state_dir: site.device.fleet.home.join(format!("member-{cluster}")),
                auth_keys: Arc::new(FixedKey(Some(Secret::new(key)))),
                routes: ROUTES.parse().expect("networks"),
                site: None,
                ephemeral: false,
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
        let echo: Target = "10.96.0.80:80".parse().expect("a target");
        self.connector.dialer().dial(echo).await.map(Talk)
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
