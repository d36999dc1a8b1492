//! The door over real TLS on 127.0.0.1, with a fake Host App behind it.

mod crowd;
mod sessions;
mod uninvited;

use std::time::Duration;

use guildnet_kube::ApiServer;
use guildnet_model::{BoxFuture, ClusterId, DialError, Explain as _, Io, Target};
use http_body_util::Empty;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls_pki_types::ServerName;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::*;
use crate::{
    ClusterInfo, ClusterStatus, Destination, KeyInfo, NamespaceShown, Place, Progress, RouterReport, Settings,
    SettingsShown, StatusReport, certs,
    client::HostClient,
    daemon::Instance,
    events::Events,
    jobs::{Job, JobKind, Jobs, Work, as_value},
    metrics::{ClusterSeen, ConnectorSeen, Metrics},
    names::OpenError,
    set::ClusterChange,
    settings::HeadscaleChange,
    status::ConnectorShown,
    verify::Report,
};

/// A Host App with one cluster, `a`, whose every address echoes; port 1 refuses.
#[derive(Debug)]
pub(crate) struct Fake {
    events: Arc<Events>,
    jobs: Jobs,
    metrics: Arc<Metrics>,
}

impl Default for Fake {
    fn default() -> Self {
        let events = Arc::new(Events::default());
        let metrics = Arc::new(Metrics::default());
        metrics.know(&[id("a")]);
        Self { jobs: Jobs::new(Arc::clone(&events)), events, metrics }
    }
}

impl Fake {
    fn a() -> ClusterStatus {
        ClusterStatus {
            id: id("a"),
            state: "ready".into(),
            detail: "ready".into(),
            since_secs: 1,
            usable: true,
            node: None,
            addresses: vec![],
            node_key: None,
            key_expires: None,
            path: None,
            router: None,
            routes: vec!["10.96.0.0/16".into()],
            flows: 0,
            read_only: false,
        }
    }
}

impl HostApi for Fake {
    fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    fn observed(&self) -> BoxFuture<'_, Vec<ClusterSeen>> {
        Box::pin(async { vec![ClusterSeen { id: id("a"), connector: ConnectorSeen::Disconnected }] })
    }

    fn ready(&self) -> bool {
        true
    }

    fn status(&self) -> BoxFuture<'_, StatusReport> {
        Box::pin(async {
            StatusReport { running: true, pid: Some(1), url: None, version: None, clusters: vec![Self::a()] }
        })
    }

    fn clusters(&self) -> BoxFuture<'_, Vec<ClusterStatus>> {
        Box::pin(async { vec![Self::a()] })
    }

    fn cluster<'a>(&'a self, wanted: &'a ClusterId) -> BoxFuture<'a, Option<ClusterStatus>> {
        Box::pin(async move { (*wanted == id("a")).then(Self::a) })
    }

    fn open<'a>(&'a self, wanted: &'a ClusterId, to: &'a Destination) -> BoxFuture<'a, Result<Box<dyn Io>, OpenError>> {
        Box::pin(async move {
            if *wanted != id("a") {
                return Err(OpenError::Host(HostError::unknown_cluster(wanted, &[id("a")])));
            }
            let (name, ip) = match to.place() {
                Place::Address(ip) => (None, *ip),
                Place::Name(name) => (Some(name.clone()), [10, 96, 0, 80].into()),
            };
            echo(Target::from(SocketAddr::new(ip, to.port()))).map_err(|why| OpenError::Dial { name, why })
        })
    }

    fn record<'a>(&'a self, id: &'a ClusterId) -> BoxFuture<'a, Result<ClusterInfo, HostError>> {
        Box::pin(async move { Err(HostError::unknown_cluster(id, &[])) })
    }

    fn knows(&self, id: &ClusterId) -> Result<(), HostError> {
        Err(HostError::unknown_cluster(id, &[]))
    }

    fn connector<'a>(&'a self, _: &'a ClusterId) -> BoxFuture<'a, Option<ConnectorShown>> {
        Box::pin(async { None })
    }

    fn connectors(&self) -> BoxFuture<'_, Vec<ConnectorShown>> {
        Box::pin(async { vec![] })
    }

    fn router<'a>(&'a self, id: &'a ClusterId) -> BoxFuture<'a, Result<RouterReport, HostError>> {
        Box::pin(async move { Err(HostError::unknown_cluster(id, &[])) })
    }

    fn keys<'a>(&'a self, _: &'a [ClusterId]) -> BoxFuture<'a, Result<Vec<KeyInfo>, HostError>> {
        Box::pin(async { Ok(vec![]) })
    }

    fn namespaces(&self) -> BoxFuture<'_, Result<Vec<NamespaceShown>, HostError>> {
        Box::pin(async { Ok(vec![]) })
    }

    fn settings(&self) -> BoxFuture<'_, Result<SettingsShown, HostError>> {
        Box::pin(async { Ok(SettingsShown::of(&Settings::new("/home".into()), None)) })
    }

    fn change_headscale(&self, _: HeadscaleChange) -> BoxFuture<'_, Result<(), HostError>> {
        Box::pin(async { Err(HostError::new(Class::Credentials, "Headscale refuses the API key")) })
    }

    fn change<'a>(&'a self, wanted: &'a ClusterId, change: ClusterChange) -> BoxFuture<'a, Result<bool, HostError>> {
        Box::pin(async move {
            let known = *wanted == id("a");
            if known { Ok(change.read_only == Some(true)) } else { Err(HostError::unknown_cluster(wanted, &[id("a")])) }
        })
    }

    /// A job that ends at once, or never on cluster `slow`.
    fn verify(&self, clusters: Vec<ClusterId>) -> Result<Job, HostError> {
        let run = move |progress: Arc<dyn Progress>| {
            Box::pin(async move {
                progress.step(None, "looking");
                if clusters.contains(&id("slow")) {
                    std::future::pending::<()>().await;
                }
                if let Some(unknown) = clusters.iter().find(|wanted| **wanted != id("a")) {
                    return Err(HostError::unknown_cluster(unknown, &[id("a")]));
                }
                let nothing = Report { success: true, passed: 0, warned: 0, failed: 0, skipped: 0, clusters: vec![] };
                as_value(&Report { passed: clusters.len(), ..nothing })
            }) as _
        };
        self.jobs.start(JobKind::Verify, None, Box::new(run))
    }

    fn start(&self, work: Work) -> Result<Job, HostError> {
        Err(HostError::new(Class::Conflict, format!("no {} in this test", work.kind())))
    }

    fn jobs(&self) -> &Jobs {
        &self.jobs
    }

    fn events(&self) -> &Arc<Events> {
        &self.events
    }

    fn reload(&self) -> BoxFuture<'_, Result<(), HostError>> {
        Box::pin(async { Err(HostError::new(Class::Credentials, "the key file is missing").with_hint("put it back")) })
    }
}

impl ApiServers for Fake {
    fn writing(&self, id: &ClusterId) -> Result<Option<CancellationToken>, HostError> {
        Err(HostError::unknown_cluster(id, &[]))
    }

    fn api_server<'a>(&'a self, id: &'a ClusterId) -> BoxFuture<'a, Result<ApiServer, HostError>> {
        Box::pin(async move { Err(HostError::unknown_cluster(id, &[])) })
    }
}

/// Sends back what it gets, and `.` once nothing more comes.
fn echo(to: Target) -> Result<Box<dyn Io>, DialError> {
    if to.addr().port() == 1 {
        return Err(DialError::Refused { target: to });
    }
    let (near, far) = tokio::io::duplex(1024);
    tokio::spawn(async move {
        let (mut read, mut write) = tokio::io::split(far);
        tokio::io::copy(&mut read, &mut write).await?;
        write.write_all(b".").await?;
        write.shutdown().await
    });
    Ok(Box::new(near))
}

fn id(text: &str) -> ClusterId {
    text.parse().expect("an id")
}

fn target(text: &str) -> Target {
    text.parse().expect("a target")
}

/// A door that serves, and what clients find in its home folder.
pub(crate) struct Served {
    home: TempDir,
    pub(crate) address: SocketAddr,
    instance: Instance,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Served {
    pub(crate) async fn new() -> Self {
        Self::with(|_| {}).await
    }

    async fn with(tune: impl FnOnce(&mut Door)) -> Self {
        let fake = Arc::new(Fake::default());
        let servers = Arc::clone(&fake);
        Self::before(fake, servers, Limits::default(), tune).await
    }

    /// A door before another Host App.
    pub(crate) async fn before(
        api: Arc<dyn HostApi>,
        servers: Arc<dyn ApiServers>,
        limits: Limits,
        tune: impl FnOnce(&mut Door),
    ) -> Self {
        let home = tempfile::tempdir().expect("tempdir");
        let instance = Instance::take(home.path()).expect("the only one");
        let listen = ([127, 0, 0, 1], 0).into();
        let mut door = Door::bind_with(home.path(), Listen::At(listen), api, servers, limits).await.expect("bound");
        tune(&mut door);
        let address = door.address();
        let stop = CancellationToken::new();
        let task = door.spawn(stop.clone());
        instance.announce(address).expect("announced");
        Self { home, address, instance, stop, task }
    }

    fn client(&self) -> HostClient {
        HostClient::discover(self.home.path()).expect("readable").expect("running")
    }

    pub(crate) fn token(&self) -> String {
        token(self.home.path()).expect("a token").expose().clone()
    }

    pub(crate) async fn tls(&self, protocols: &[&[u8]]) -> TlsStream<TcpStream> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(certs::authority(self.home.path()).expect("read").expect("made")).expect("a root");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|p| p.to_vec()).collect();
        let stream = TcpStream::connect(self.address).await.expect("connected");
        let name = ServerName::try_from("localhost").expect("a name");
        TlsConnector::from(Arc::new(config)).connect(name, stream).await.expect("TLS")
    }

    /// Sends a request as it stands, with our Host and token unless it has its own, and returns the whole answer.
    pub(crate) async fn raw(&self, line: &str, headers: &[&str], body: &str) -> String {
        let bearer = format!("authorization: Bearer {}", self.token());
        let given = headers.iter().any(|h| h.starts_with("authorization:"));
        let headers = if given { headers.to_vec() } else { [&[bearer.as_str()], headers].concat() };
        self.bare(line, &headers, body).await
    }

    /// The same without the token.
    pub(crate) async fn bare(&self, line: &str, headers: &[&str], body: &str) -> String {
        let text = format!("{}\r\n{body}", self.bare_head(line, headers));
        let mut stream = self.tls(&[]).await;
        stream.write_all(text.as_bytes()).await.expect("sent");
        let mut answer = Vec::new();
        // A server that refuses early may reset what it did not read.
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8(answer).expect("text")
    }

    /// The head of a request, with our token unless it has its own.
    pub(crate) fn head(&self, line: &str, headers: &[&str]) -> String {
        let bearer = format!("authorization: Bearer {}", self.token());
        let given = headers.iter().any(|h| h.starts_with("authorization:"));
        self.bare_head(line, &if given { headers.to_vec() } else { [&[bearer.as_str()], headers].concat() })
    }

    fn bare_head(&self, line: &str, headers: &[&str]) -> String {
        let mut text = format!("{line} HTTP/1.1\r\nconnection: close\r\n");
        if !headers.iter().any(|h| h.starts_with("host:")) {
            text += &format!("host: {}\r\n", self.address);
        }
        for header in headers {
            text += &format!("{header}\r\n");
        }
        text
    }

    /// Stops the door and waits until everything has ended.
    pub(crate) async fn stop(self) {
        self.stop.cancel();
        self.task.await.expect("ended in order");
        drop(self.instance);
    }
}

/// The status and, of a refusal, the code.
pub(crate) fn said(answer: &str) -> (u16, Option<String>) {
    let status = answer.get(9..12).and_then(|s| s.parse().ok()).unwrap_or_else(|| panic!("no status: {answer:?}"));
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    let problem: Option<problem::Problem> = serde_json::from_str(body).ok();
    assert_eq!(problem.is_some(), answer.contains("content-type: application/problem+json\r\n"), "{answer}");
    assert!(problem.as_ref().is_none_or(|p| p.status == status), "{answer}");
    (status, problem.map(|p| p.code))
}

pub(crate) fn refused(status: u16, code: &str) -> (u16, Option<String>) {
    (status, Some(code.to_owned()))
}

#[tokio::test]
async fn healthz_is_open_and_the_rest_needs_the_token() {
    let door = Served::new().await;
    let none = ["authorization: none"];
    assert_eq!(said(&door.raw("GET /healthz", &none, "").await), (200, None));
    assert_eq!(said(&door.raw("GET /readyz", &[], "").await), (200, None));
    for path in
        ["/readyz", "/api/v1/status", "/api/v1/clusters", "/api/v1/clusters/a/dial?to=10.96.0.1:443", "/nowhere"]
    {
        let answer = door.raw(&format!("GET {path}"), &none, "").await;
        assert_eq!(said(&answer), refused(401, "unauthorized"), "{path}");
        assert!(answer.contains("www-authenticate: Bearer\r\n"), "{answer}");
    }
    let wrong = format!("authorization: Bearer {}", "A".repeat(43));
    assert_eq!(said(&door.raw("GET /readyz", &[&wrong], "").await), refused(401, "unauthorized"));
    door.stop().await;
}

#[tokio::test]
async fn a_forged_host_and_another_page_are_refused() {
    let door = Served::new().await;
    let answer = door.raw("GET /healthz", &["host: evil.example"], "").await;
    assert_eq!(said(&answer), refused(421, "wrong_host"));
    let answer = door.raw("GET /readyz", &["origin: https://evil.example"], "").await;
    assert_eq!(said(&answer), refused(403, "foreign_origin"));
    assert!(!answer.to_lowercase().contains("access-control-"), "no CORS: {answer}");
    door.stop().await;
}

#[tokio::test]
async fn bodies_and_heads_have_limits() {
    let door = Served::new().await;
    let large = " ".repeat(1024 * 1024 + 1);
    let answer = door.raw("POST /api/v1/verify", &[&format!("content-length: {}", large.len())], &large).await;
    assert_eq!(said(&answer), refused(413, "too_large"));
    let many: Vec<String> = (0..70).map(|n| format!("x-{n}: y")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    assert_eq!(said(&door.raw("GET /readyz", &many, "").await), (431, None), "number");
    let long = format!("x: {}", "y".repeat(20_000));
    assert_eq!(said(&door.raw("GET /readyz", &[&long], "").await), (431, None), "size");
    door.stop().await;
}

#[tokio::test]
async fn a_client_that_does_not_end_its_head_or_body_is_let_go() {
    let door = Served::new().await;
    let mut slow_head = door.tls(&[]).await;
    slow_head.write_all(b"GET /healthz HTTP/1.1\r\nhost: ").await.expect("sent");
    let mut slow_body = door.tls(&[]).await;
    let head = format!(
        "POST /api/v1/verify HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer {}\r\nconnection: close\r\ncontent-length: 9\r\n\r\n{{",
        door.address,
        door.token()
    );
    slow_body.write_all(head.as_bytes()).await.expect("sent");
    let mut silent_http2 = door.tls(&[b"h2"]).await;
    // From here time passes as soon as everybody waits.
    tokio::time::pause();
    let began = tokio::time::Instant::now();
    let (mut head, mut body, mut http2) = (Vec::new(), String::new(), Vec::new());
    let _ = slow_head.read_to_end(&mut head).await;
    let _ = slow_body.read_to_string(&mut body).await;
    let _ = silent_http2.read_to_end(&mut http2).await;
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    assert_eq!(said(&body), refused(408, "slow_body"));
    door.stop().await;
}

#[tokio::test]
async fn what_is_not_there_is_said_in_the_same_form() {
    let door = Served::new().await;
    assert_eq!(said(&door.raw("GET /nowhere", &[], "").await), refused(404, "not_found"));
    assert_eq!(said(&door.raw("PUT /api/v1/verify", &[], "").await), refused(405, "wrong_method"));
    assert_eq!(said(&door.raw("GET /api/v1/clusters/x", &[], "").await), refused(404, "not_found"));
    assert_eq!(said(&door.raw("GET /api/v1/clusters/X%2F", &[], "").await), refused(400, "usage"));
    let odd = door.raw("POST /api/v1/verify", &["content-length: 5"], "{\"x\":").await;
    assert_eq!(said(&odd), refused(400, "usage"));
    for (path, status, code) in [
        ("/api/v1/clusters/a/dial?to=10.96.0.1:443", 426, "upgrade_required"),
        ("/api/v1/clusters/a/dial?to=echo:443", 400, "usage"),
        ("/api/v1/clusters/a/dial", 400, "usage"),
    ] {
        assert_eq!(said(&door.raw(&format!("GET {path}"), &[], "").await), refused(status, code), "{path}");
    }
    door.stop().await;
}

#[tokio::test]
async fn the_client_gets_what_the_host_app_says() {
    let door = Served::new().await;
    let client = door.client();
    assert_eq!(client.url(), format!("https://{}", door.address));
    assert!(client.ready().await.expect("answers"));
    assert_eq!(client.clusters().await.expect("clusters"), [Fake::a()]);
    assert_eq!(client.cluster(&id("a")).await.expect("a"), Fake::a());
    assert_eq!(client.status().await.expect("status").clusters, [Fake::a()]);
    assert_eq!(client.verify(&[id("a")]).await.expect("a report").passed, 1);
    assert_eq!(client.verify(&[]).await.expect("a report").passed, 0);

    let unknown = HostError::unknown_cluster(&id("x"), &[id("a")]);
    assert_eq!(client.cluster(&id("x")).await.expect_err("unknown"), unknown);
    assert_eq!(client.verify(&[id("x")]).await.expect_err("unknown"), unknown);
    let missing = client.reload().await.expect_err("refused");
    assert_eq!((missing.class(), missing.hint().as_deref()), (Class::Credentials, Some("put it back")));
    door.stop().await;
}

#[tokio::test]
async fn a_dial_is_the_stream_itself_both_ways_and_each_way_ends_alone() {
    let door = Served::new().await;
    let mut stream = door.client().dialer(&id("a")).dial(target("10.96.0.1:443")).await.expect("dialled");
    let sent: Vec<u8> = (0..200_000_u32).map(|n| n.to_le_bytes()[0] ^ n.to_le_bytes()[1]).collect();
    let (mut read, mut write) = tokio::io::split(&mut stream);
    let sending = async {
        write.write_all(&sent).await.expect("sent");
        write.shutdown().await.expect("ended");
    };
    let mut got = Vec::new();
    let ((), received) = tokio::join!(sending, read.read_to_end(&mut got));
    received.expect("received");
    assert_eq!(got.pop(), Some(b'.'), "what comes after our end still arrives");
    assert!(got == sent, "{} of {} bytes came back", got.len(), sent.len());
    door.stop().await;
}

#[tokio::test]
async fn a_failed_dial_is_the_error_that_the_connector_gave() {
    let door = Served::new().await;
    let to = target("10.96.0.1:1");
    let why = door.client().dialer(&id("a")).dial(to).await.expect_err("refused");
    assert_eq!(why, DialError::Refused { target: to });
    let why = door.client().dialer(&id("x")).dial(to).await.expect_err("unknown");
    assert!(why.to_string().contains("there is no cluster x"), "{why}");
    door.stop().await;
}

#[tokio::test]
async fn a_name_is_dialled_and_its_failure_names_it() {
    let door = Served::new().await;
    let open = async |to: &str| door.client().open(&id("a"), &to.parse::<Destination>().expect(to)).await;
    let mut stream = open("echo.default:80").await.expect("opened");
    stream.write_all(b"x").await.expect("sent");
    stream.shutdown().await.expect("ended");
    let mut got = String::new();
    stream.read_to_string(&mut got).await.expect("received");
    assert_eq!(got, "x.");
    let why = open("echo.default:1").await.expect_err("refused");
    assert_eq!(why.to_string(), "cluster a: echo.default: 10.96.0.80:1 refused the connection");
    assert_eq!(why.class(), Class::Unreachable);
    assert_eq!(
        open("10.96.0.9:1").await.expect_err("refused").to_string(),
        "cluster a: 10.96.0.9:1 refused the connection"
    );
    door.stop().await;
}

#[tokio::test]
async fn http2_is_spoken_too() {
    let door = Served::new().await;
    let stream = door.tls(&[b"h2"]).await;
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.expect("HTTP/2");
    let uri = format!("https://{}/readyz", door.address);
    let request = http::Request::get(uri).header("authorization", format!("Bearer {}", door.token()));
    let asking = async {
        let answer = sender.send_request(request.body(Empty::<bytes::Bytes>::new()).expect("a request")).await;
        drop(sender);
        answer.expect("an answer").status()
    };
    let (status, ended) = tokio::join!(asking, connection);
    assert_eq!(status, http::StatusCode::OK);
    ended.expect("ended in order");
    door.stop().await;
}

#[tokio::test]
async fn a_dial_counts_as_a_connection_for_as_long_as_it_lives() {
    let door = Served::with(|door| door.server.places.admitted = 1).await;
    let stream = door.client().dialer(&id("a")).dial(target("10.96.0.1:443")).await.expect("dialled");
    let second = door.raw("GET /readyz", &[], "").await;
    assert_eq!(said(&second), refused(503, "too_many_connections"));
    assert!(second.contains("retry-after: 1\r\n"), "{second}");
    drop(stream);
    while !door.client().ready().await.expect("it answers") {
        tokio::task::yield_now().await;
    }
    door.stop().await;
}

#[tokio::test]
async fn a_stop_cuts_what_does_not_end_within_the_grace() {
    let door = Served::new().await;
    let mut stream = door.client().dialer(&id("a")).dial(target("10.96.0.1:443")).await.expect("dialled");
    stream.write_all(b"x").await.expect("sent");
    assert_eq!(stream.read_u8().await.expect("echoed"), b'x');
    let address = door.address;
    tokio::time::pause();
    let began = tokio::time::Instant::now();
    door.stop().await;
    assert_eq!(began.elapsed().as_secs(), 10, "the open dial had its grace");
    assert!(TcpStream::connect(address).await.is_err(), "nothing listens any more");
    assert!(stream.read_u8().await.is_err(), "the dial was cut");
}

#[tokio::test]
async fn a_new_certificate_is_taken_without_a_restart() {
    let door = Served::new().await;
    let before = door.client();
    assert!(before.ready().await.expect("answers"));
    certs::regen_certs(door.home.path(), true).expect("made");
    assert!(door.client().ready().await.expect("trusted by those who read the new authority"));
    assert!(before.ready().await.is_err(), "not by those who have the old one");
    door.stop().await;
}

#[tokio::test]
async fn a_port_that_is_taken_is_named_and_nothing_is_made() {
    let holder = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let address = holder.local_addr().expect("an address");
    let home = tempfile::tempdir().expect("tempdir");
    let refused = Door::bind(home.path(), Listen::At(address), Arc::new(Fake::default())).await.expect_err("refused");
    assert_eq!(refused.to_string(), format!("{address} is taken by another program"));
    assert_eq!(refused.class(), Class::Conflict);
    let hint = refused.hint().expect("a hint");
    assert!(hint.contains("guildnet status") && hint.contains("--listen"), "{hint}");
    assert_eq!(std::fs::read_dir(home.path()).expect("folder").count(), 0);
    drop(holder);
    Door::bind(home.path(), Listen::At(address), Arc::new(Fake::default())).await.expect("works once the port is free");
}

#[tokio::test]
async fn the_door_opens_on_this_device_only() {
    let home = tempfile::tempdir().expect("tempdir");
    for address in ["0.0.0.0:0", "[::]:0", "127.0.0.2:0", "192.0.2.1:0"] {
        let refused =
            Door::bind(home.path(), Listen::At(address.parse().expect("an address")), Arc::new(Fake::default())).await;
        assert_eq!(refused.expect_err(address).class(), Class::Usage);
    }
}
