//! Forwards and proxies over real sockets on loopback, into clusters that are made of closures; the names in them are
//! resolved as ever.

use std::net::{IpAddr, SocketAddr};

use guildnet_model::{Explain as _, Secret};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
};

use super::*;
use crate::{
    fake::record,
    metrics::Way,
    names::{
        Names,
        tests::{FakeCluster, Server},
    },
};

/// Two clusters with equal networks.
struct Clusters([(Names, Arc<FakeCluster>); 2]);

impl Clusters {
    fn new() -> Arc<Self> {
        Arc::new(Self(["a", "b"].map(|id| (Names::default(), FakeCluster::new(Server::Answers).named(id)))))
    }
}

impl Open for Clusters {
    fn open<'a>(
        &'a self,
        cluster: &'a ClusterId,
        to: &'a Destination,
    ) -> BoxFuture<'a, Result<Box<dyn Io>, OpenError>> {
        let (names, inside) = &self.0[usize::from(cluster.as_str() == "b")];
        Box::pin(names.open(inside, to))
    }
}

struct Served {
    _home: TempDir,
    store: Store,
    metrics: Arc<Metrics>,
    forwards: Arc<Forwards>,
}

impl Served {
    async fn new() -> Self {
        let home = tempfile::tempdir().expect("a folder");
        let store = Store::open(home.path()).await.expect("opened");
        for id in ["a", "b"] {
            store.add(&record(id)).await.expect("stored");
        }
        let metrics = Arc::<Metrics>::default();
        metrics.know(&[id("a"), id("b")]);
        let forwards = Arc::new(Forwards::new(store.clone(), Clusters::new(), Arc::clone(&metrics)));
        forwards.follow().await.expect("read");
        Self { _home: home, store, metrics, forwards }
    }

    /// The Host App ends and starts again.
    async fn restart(&mut self) {
        self.forwards.shut(Duration::ZERO).await;
        self.forwards = Arc::new(Forwards::new(self.store.clone(), Clusters::new(), Arc::clone(&self.metrics)));
        self.forwards.follow().await.expect("read");
    }

    async fn keep(&self, cluster: &str, spec: &str) -> Result<SocketAddrV4, HostError> {
        let made = self.forwards.keep(&id(cluster), &[spec.parse().expect(spec)]).await?;
        Ok(made[0].local)
    }

    /// Switches the proxies of `a` on, at free ports; their addresses.
    async fn proxies(&self, password: &str) -> (SocketAddrV4, SocketAddrV4) {
        let own = self.store.loopbacks().await.expect("read")[&id("a")];
        let [socks, http] = [free(own).await, free(own).await];
        let password = Secret::new(password.to_owned());
        let record = ProxiesRecord { cluster: id("a"), enabled: true, socks_port: socks, http_port: http, password };
        assert!(self.store.put_proxies(&record).await.expect("stored"));
        self.forwards.follow().await.expect("read");
        let status = self.forwards.proxies(&id("a")).expect("known");
        let at = |proxy: Option<ProxyStatus>| {
            let proxy = proxy.expect("on");
            assert!(proxy.traffic.listening, "{proxy:?}");
            proxy.address
        };
        (at(status.socks), at(status.http))
    }
}

fn id(text: &str) -> ClusterId {
    text.parse().expect("an id")
}

/// A port where nothing listens now.
async fn free(ip: Ipv4Addr) -> u16 {
    let listener = TcpListener::bind((ip, 0)).await.expect("a port");
    listener.local_addr().expect("an address").port()
}

/// The line that the far end of a forward says first; empty if it is closed at once.
async fn said(local: SocketAddrV4) -> String {
    let stream = TcpStream::connect(local).await.expect("it listens");
    first_line(stream).await
}

async fn first_line(stream: TcpStream) -> String {
    let mut line = String::new();
    // A reset is an end too.
    let _ = BufReader::new(stream).read_line(&mut line).await;
    line.trim_end().to_owned()
}

#[tokio::test]
async fn two_clusters_forward_the_same_port_and_each_name_is_its_own() {
    let served = Served::new().await;
    let a = served.keep("a", "0:echo.default:80").await.expect("made");
    let b = served.keep("b", &format!("{}:echo.default:80", a.port())).await.expect("made");
    assert_ne!(a.ip(), b.ip());
    assert!([a, b].iter().all(|local| local.ip().is_loopback() && *local.ip() != Ipv4Addr::LOCALHOST));
    assert_eq!(said(a).await, "a 10.96.0.80:80");
    assert_eq!(said(b).await, "b 10.96.0.80:80");
    served.forwards.shut(Duration::ZERO).await;
}

#[tokio::test]
async fn bytes_go_both_ways_each_way_ends_alone_and_all_is_counted() {
    let served = Served::new().await;
    let local = served.keep("a", "0:10.96.0.80:80").await.expect("made");
    let mut stream = TcpStream::connect(local).await.expect("it listens");
    let bytes: Vec<u8> = (0..1_000_000_u32).map(|n| n.to_le_bytes()[0] ^ n.to_le_bytes()[1]).collect();
    let (mut read, mut write) = stream.split();
    let sending = async {
        write.write_all(&bytes).await.expect("sent");
        write.shutdown().await.expect("ended");
    };
    let mut got = Vec::new();
    let ((), received) = tokio::join!(sending, read.read_to_end(&mut got));
    received.expect("received");
    assert_eq!(got.pop(), Some(b'.'), "what comes after our end still arrives");
    let line = b"a 10.96.0.80:80\n";
    assert!(got.starts_with(line) && got[line.len()..] == bytes, "{} bytes came back", got.len());
    until(|| served.forwards.list()[0].traffic.open == 0).await;
    let traffic = served.forwards.list()[0].traffic.clone();
    let wanted = Traffic {
        listening: true,
        open: 0,
        total: 1,
        sent: bytes.len() as u64,
        received: (bytes.len() + line.len() + 1) as u64,
        last_error: None,
    };
    assert_eq!(traffic, wanted);
    let counts = |cluster| served.metrics.of(&id(cluster)).expect("known").seen().ways[Way::Forward as usize].clone();
    let counted = counts("a");
    assert_eq!((counted.entered, counted.open, counted.failed), (1, 0, 0));
    assert_eq!((counted.sent, counted.received), (wanted.sent, wanted.received));
    assert_eq!(counts("b").entered, 0);
    served.forwards.shut(Duration::ZERO).await;
}

/// A connection whose far end has said its line.
async fn opened(local: SocketAddrV4) -> BufReader<TcpStream> {
    let mut stream = BufReader::new(TcpStream::connect(local).await.expect("it listens"));
    stream.read_line(&mut String::new()).await.expect("a line");
    stream
}

#[tokio::test]
async fn a_stop_lets_nobody_in_and_open_connections_end_in_their_own_time() {
    let served = Served::new().await;
    let kept = served.keep("a", "0:10.96.0.80:80").await.expect("made");
    let spec = "0:10.96.0.80:80".parse().expect("a forward");
    let mut lease = served.forwards.lease(&id("a"), &[spec]).await.expect("made");
    let Some(Said::Forwards(made)) = lease.next().await else { panic!("the forwards come first") };
    let open = [opened(kept).await, opened(made[0].local).await];
    let forwards = Arc::clone(&served.forwards);
    let stopping = tokio::spawn(async move { forwards.shut(Duration::from_secs(600)).await });
    assert_eq!(lease.next().await, None, "its holder is told");
    drop(lease);
    for local in [kept, made[0].local] {
        until(|| std::net::TcpListener::bind(local).is_ok()).await;
    }
    for mut stream in open {
        stream.write_all(b"more").await.expect("sent");
        stream.shutdown().await.expect("ended");
        let mut rest = String::new();
        stream.read_to_string(&mut rest).await.expect("received");
        assert_eq!(rest, "more.");
    }
    stopping.await.expect("ended, long before the grace is over");
}

#[tokio::test]
async fn a_stop_cuts_connections_that_do_not_end() {
    let served = Served::new().await;
    let local = served.keep("a", "0:10.96.0.80:80").await.expect("made");
    let mut open = opened(local).await;
    served.forwards.shut(Duration::from_millis(10)).await;
    // A reset is an end too.
    assert_eq!(open.read(&mut [0]).await.unwrap_or_default(), 0);
}

/// Waits until something holds; each look lets everybody else run.
async fn until(holds: impl Fn() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), waiting).await.expect("it comes to hold");
}

#[tokio::test]
async fn what_can_not_be_reached_is_closed_at_once_and_told() {
    let served = Served::new().await;
    for (to, why) in [
        ("10.96.0.80:1", "10.96.0.80:1 refused the connection"),
        ("echo.default:1", "echo.default: 10.96.0.80:1 refused the connection"),
        ("10.96.0.80:2", "not ready"),
        ("nosuch.default:80", "knows no such name"),
        ("127.0.0.1:80", "not in this cluster's networks"),
        ("169.254.169.254:80", "not in this cluster's networks"),
    ] {
        let local = served.keep("a", &format!("0:{to}")).await.expect("made");
        assert_eq!(said(local).await, "", "{to}");
        let of = |f: &ForwardStatus| f.local == local;
        let told = served.forwards.list().into_iter().find(of).and_then(|f| f.traffic.last_error).expect("told");
        assert!(told.why.contains(why), "{to}: {}", told.why);
    }
    served.forwards.shut(Duration::ZERO).await;
}

#[tokio::test]
async fn leased_forwards_end_with_the_lease_and_tell_their_holder() {
    let served = Served::new().await;
    let specs = ["0:echo.default:80".parse().expect("a forward"), "0:10.96.0.80:1".parse().expect("a forward")];
    let mut lease = served.forwards.lease(&id("a"), &specs).await.expect("made");
    let Some(Said::Forwards(made)) = lease.next().await else { panic!("the forwards come first") };
    let open = TcpStream::connect(made[0].local).await.expect("it listens");
    assert_eq!(said(made[1].local).await, "");
    let Some(Said::Trouble { local, trouble }) = lease.next().await else { panic!("trouble") };
    assert_eq!(local, made[1].local);
    assert!(trouble.why.contains("refused"), "{}", trouble.why);
    let again = [format!("{}:echo.default:80", made[0].local).parse().expect("a forward")];
    let again = served.forwards.lease(&id("a"), &again).await;
    assert_eq!(again.err().expect("taken").class(), Class::Conflict);

    drop(lease);
    assert_eq!(served.forwards.list(), []);
    let mut rest = Vec::new();
    let mut open = open;
    let _ = open.read_to_end(&mut rest).await;
    // Once its listener is closed the port is free again.
    let local = made[0].local;
    until(|| std::net::TcpListener::bind(local).is_ok()).await;
    served.forwards.shut(Duration::ZERO).await;
}

#[tokio::test]
async fn a_lease_ends_when_all_of_its_forwards_were_stopped() {
    let served = Served::new().await;
    let specs = ["0:echo.default:80".parse().expect("a forward"), "0:echo.default:81".parse().expect("a forward")];
    let mut lease = served.forwards.lease(&id("a"), &specs).await.expect("made");
    let Some(Said::Forwards(made)) = lease.next().await else { panic!("the forwards come first") };
    for forward in &made {
        assert!(served.forwards.stop(forward.local).await.expect("stopped").is_some());
    }
    assert_eq!(lease.next().await, None);
    // Another one in the same place is not its affair.
    let local = served.keep("a", &format!("{}:echo.default:80", made[0].local.port())).await.expect("made");
    drop(lease);
    assert_eq!(served.forwards.list().len(), 1);
    assert_eq!(served.forwards.stop(local).await.expect("stopped").map(|f| f.local), Some(local));
    assert_eq!(served.forwards.stop(local).await.expect("nothing"), None);
    served.forwards.shut(Duration::ZERO).await;
}

#[tokio::test]
async fn kept_forwards_come_back_after_a_restart_until_they_are_stopped() {
    let mut served = Served::new().await;
    let kept = served.keep("a", "0:echo.default:80").await.expect("made");
    let lease = served.forwards.lease(&id("a"), &["0:echo.default:80".parse().expect("a forward")]).await;
    served.restart().await;
    drop(lease);
    let there: Vec<_> = served.forwards.list().into_iter().map(|f| (f.local, f.kept)).collect();
    assert_eq!(there, [(kept, true)], "and no other");
    assert_eq!(said(kept).await, "a 10.96.0.80:80");
    assert_eq!(served.keep("a", &format!("{}:echo.default:80", kept.port())).await, Ok(kept), "asked for again");
    served.forwards.stop(kept).await.expect("stopped").expect("there");
    served.restart().await;
    assert_eq!(served.forwards.list(), []);
    served.forwards.shut(Duration::ZERO).await;
}

#[tokio::test]
async fn a_removed_cluster_takes_its_forwards_and_proxies_with_it() {
    let served = Served::new().await;
    served.keep("a", "0:echo.default:80").await.expect("made");
    let b = served.keep("b", "0:echo.default:80").await.expect("made");
    let mut lease =
        served.forwards.lease(&id("a"), &["0:echo.default:80".parse().expect("a forward")]).await.expect("made");
    let (socks, _) = served.proxies("pass").await;
    served.store.remove(&id("a")).await.expect("removed");
    served.forwards.follow().await.expect("read");
    let left: Vec<_> = served.forwards.list().into_iter().map(|f| f.local).collect();
    assert_eq!(left, [b]);
    assert!(matches!(lease.next().await, Some(Said::Forwards(_))));
    assert_eq!(lease.next().await, None);
    assert!(TcpStream::connect(socks).await.is_err());
    assert_eq!(served.forwards.proxies(&id("a")).expect_err("gone").class(), Class::NotFound);
    assert_eq!(served.keep("a", "0:echo.default:80").await.expect_err("gone").class(), Class::NotFound);
    served.forwards.shut(Duration::ZERO).await;
}

#[tokio::test]
async fn addresses_are_not_shared_and_nothing_is_made_if_one_can_not_be() {
    let served = Served::new().await;
    let a = served.keep("a", "0:echo.default:80").await.expect("made");
    let b = served.keep("b", "127.9.9.9:0:echo.default:80").await.expect("made");
    let refused = async |cluster: &str, specs: &[String]| {
        let specs: Vec<ForwardSpec> = specs.iter().map(|spec| spec.parse().expect("a forward")).collect();
        let refused = served.forwards.keep(&id(cluster), &specs).await.expect_err("refused");
        assert_eq!(served.forwards.list().len(), 2, "nothing was made");
        assert_eq!(refused.class(), Class::Conflict, "{refused}");
        refused.message().to_owned()
    };
    let said = refused("b", &[format!("{}:0:echo.default:80", a.ip())]).await;
    assert!(said.contains("is the own address of cluster a"), "{said}");
    let said = refused("a", &["127.9.9.9:0:echo.default:80".into()]).await;
    assert!(said.contains("has a forward of cluster b"), "{said}");
    let said = refused("a", &[format!("{a}:echo.default:81")]).await;
    assert!(said.contains("leads to echo.default:80 in a already"), "{said}");
    let holder = TcpListener::bind((*a.ip(), 0)).await.expect("a port");
    let held = holder.local_addr().expect("an address").port();
    let said = refused("a", &["0:echo.default:80".into(), format!("{held}:echo.default:80")]).await;
    assert!(said.contains("taken by another program"), "{said}");
    assert_eq!(served.store.forwards().await.expect("read").len(), 2, "nor kept");
    assert_eq!(*b.ip(), Ipv4Addr::new(127, 9, 9, 9));
    served.forwards.shut(Duration::ZERO).await;
}

#[tokio::test]
async fn a_kept_forward_whose_port_is_taken_says_so_and_comes_when_it_is_free() {
    let mut served = Served::new().await;
    let local = served.keep("a", "0:echo.default:80").await.expect("made");
    served.forwards.shut(Duration::ZERO).await;
    let holder = std::net::TcpListener::bind(local).expect("free");
    served.restart().await;
    let traffic = served.forwards.list()[0].traffic.clone();
    assert!(!traffic.listening);
    assert!(traffic.last_error.expect("told").why.contains("taken by another program"));
    drop(holder);
    tokio::time::pause();
    until(|| served.forwards.list()[0].traffic.listening).await;
    tokio::time::resume();
    assert_eq!(said(local).await, "a 10.96.0.80:80");
    served.forwards.shut(Duration::ZERO).await;
}

#[tokio::test]
async fn one_forward_has_a_bound_and_what_is_too_much_is_closed() {
    let served = Served::new().await;
    let local = served.keep("a", "0:10.96.0.80:80").await.expect("made");
    let mut open = Vec::new();
    for _ in 0..256 {
        let mut stream = BufReader::new(TcpStream::connect(local).await.expect("it listens"));
        stream.read_line(&mut String::new()).await.expect("it leads there");
        open.push(stream);
    }
    assert_eq!(said(local).await, "");
    let traffic = served.forwards.list()[0].traffic.clone();
    assert_eq!((traffic.open, traffic.total), (256, 256));
    assert!(traffic.last_error.expect("told").why.contains("at once"));
    drop(open);
    until(|| served.forwards.list()[0].traffic.open == 0).await;
    assert_eq!(said(local).await, "a 10.96.0.80:80", "room again");
    served.forwards.shut(Duration::ZERO).await;
}

/// Where a proxy must lead nobody, beside the host's own listener: LAN, metadata, other clusters' and the world's addresses.
const OUTSIDE: [&str; 9] = [
    "192.168.1.1",
    "169.254.169.254",
    "10.97.0.1",
    "172.17.0.1",
    "127.0.0.2",
    "0.0.0.0",
    "www.example.com",
    "world.default",
    "metadata.google.internal",
];

/// Asks a SOCKS5 proxy for a place; the reply's number, and the stream if it is open.
async fn socks(proxy: SocketAddrV4, password: &str, host: &str, port: u16) -> Result<TcpStream, u8> {
    let mut stream = TcpStream::connect(proxy).await.expect("it listens");
    let login = [&b"\x05\x01\x02\x01\x01a"[..], &[u8::try_from(password.len()).expect("short")], password.as_bytes()];
    stream.write_all(&login.concat()).await.expect("sent");
    let mut said = [0; 4];
    stream.read_exact(&mut said).await.expect("answered");
    assert_eq!(said[..3], [5, 2, 1]);
    if said[3] != 0 {
        return Err(0xff);
    }
    let address = match host.parse::<IpAddr>() {
        Ok(IpAddr::V4(ip)) => [&[1][..], &ip.octets()].concat(),
        Ok(IpAddr::V6(ip)) => [&[4][..], &ip.octets()].concat(),
        Err(_) => [&[3, u8::try_from(host.len()).expect("short")][..], host.as_bytes()].concat(),
    };
    let request = [&[5, 1, 0][..], &address, &port.to_be_bytes()].concat();
    stream.write_all(&request).await.expect("sent");
    let mut reply = [0; 10];
    stream.read_exact(&mut reply).await.expect("answered");
    assert_eq!((reply[0], &reply[2..]), (5, &[0, 1, 0, 0, 0, 0, 0, 0][..]));
    if reply[1] == 0 { Ok(stream) } else { Err(reply[1]) }
}

#[tokio::test]
async fn socks_leads_into_the_cluster_and_nowhere_else() {
    let served = Served::new().await;
    let (proxy, _) = served.proxies("pass").await;
    for (host, there) in [
        ("echo.default", "a 10.96.0.80:80"),
        ("echo.default.svc.cluster.local", "a 10.96.0.80:80"),
        ("10.244.0.9", "a 10.244.0.9:80"),
    ] {
        assert_eq!(first_line(socks(proxy, "pass", host, 80).await.expect(host)).await, there);
    }
    let host_service = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let here = host_service.local_addr().expect("an address").port();
    for host in ["127.0.0.1", "::1", "::ffff:127.0.0.1", "localhost", "localhost."] {
        assert_eq!(socks(proxy, "pass", host, here).await.err(), Some(2), "{host}");
    }
    for host in OUTSIDE {
        let reply = socks(proxy, "pass", host, 80).await.err();
        // What is no name there is not reachable; the rest is not allowed.
        let wanted = if host.ends_with("internal") { 4 } else { 2 };
        assert_eq!(reply, Some(wanted), "{host}");
    }
    assert_eq!(socks(proxy, "pass", "10.96.0.80", 1).await.err(), Some(5), "refused");
    assert_eq!(socks(proxy, "pass", "10.96.0.80", 2).await.err(), Some(3), "not ready");
    assert_eq!(socks(proxy, "pass", "nosuch.default", 80).await.err(), Some(4), "unknown");
    assert_eq!(socks(proxy, "Pass", "echo.default", 80).await.err(), Some(0xff), "a wrong password");
    let reached = tokio::time::timeout(Duration::from_millis(100), host_service.accept()).await;
    assert!(reached.is_err(), "the host's own service was reached");
    served.forwards.shut(Duration::ZERO).await;
}

/// Asks a CONNECT proxy; the answer's head, and the stream behind it.
async fn connect(proxy: SocketAddrV4, line: &str, headers: &str) -> (String, BufReader<TcpStream>) {
    let mut stream = BufReader::new(TcpStream::connect(proxy).await.expect("it listens"));
    let request = format!("{line} HTTP/1.1\r\nhost: x\r\n{headers}\r\n");
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") && stream.read_line(&mut head).await.expect("answered") > 0 {}
    (head, stream)
}

/// `a:pass`
const GOOD: &str = "proxy-authorization: Basic YTpwYXNz\r\n";

#[tokio::test]
async fn connect_leads_into_the_cluster_and_nowhere_else() {
    let served = Served::new().await;
    let (_, proxy) = served.proxies("pass").await;
    for to in ["echo.default:80", "10.96.0.80:80"] {
        let (head, mut stream) = connect(proxy, &format!("CONNECT {to}"), GOOD).await;
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        assert!(!head.contains("content-length") && !head.contains("transfer-encoding"), "{head}");
        let mut line = String::new();
        stream.read_line(&mut line).await.expect("it leads there");
        assert_eq!(line, "a 10.96.0.80:80\n");
        stream.write_all(b"x").await.expect("sent");
        stream.shutdown().await.expect("ended");
        let mut rest = String::new();
        stream.read_to_string(&mut rest).await.expect("received");
        assert_eq!(rest, "x.");
    }
    let status = async |line: &str, headers: &str| {
        let (head, _) = connect(proxy, line, headers).await;
        head.get(9..12).unwrap_or_else(|| panic!("no status: {head:?}")).to_owned()
    };
    let host_service = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let here = host_service.local_addr().expect("an address").port();
    for host in ["127.0.0.1", "[::1]", "[::ffff:127.0.0.1]"] {
        assert_eq!(status(&format!("CONNECT {host}:{here}"), GOOD).await, "403", "{host}");
    }
    assert_eq!(status(&format!("CONNECT localhost:{here}"), GOOD).await, "400", "no name of a cluster's");
    for host in OUTSIDE {
        let wanted = if host.ends_with("internal") { "502" } else { "403" };
        assert_eq!(status(&format!("CONNECT {host}:80"), GOOD).await, wanted, "{host}");
    }
    for (line, headers, wanted) in [
        ("CONNECT echo.default:80", "", "407"),
        ("CONNECT echo.default:80", "proxy-authorization: Basic YTpQYXNz\r\n", "407"),
        ("CONNECT echo.default:80", "authorization: Basic YTpwYXNz\r\n", "407"),
        (
            "CONNECT echo.default:80",
            "proxy-authorization: Basic YTpwYXNz\r\nproxy-authorization: Basic YTpwYXNz\r\n",
            "407",
        ),
        ("CONNECT echo.default", GOOD, "400"),
        ("GET http://echo.default/", GOOD, "405"),
        ("GET /", "", "405"),
        ("CONNECT 10.96.0.80:1", GOOD, "502"),
        ("CONNECT 10.96.0.80:2", GOOD, "503"),
        ("CONNECT nosuch.default:80", GOOD, "502"),
    ] {
        assert_eq!(status(line, headers).await, wanted, "{line} {headers}");
    }
    let reached = tokio::time::timeout(Duration::from_millis(100), host_service.accept()).await;
    assert!(reached.is_err(), "the host's own service was reached");
    served.forwards.shut(Duration::ZERO).await;
}

#[tokio::test]
async fn a_new_password_is_wanted_at_once_and_off_is_off() {
    let served = Served::new().await;
    let (proxy, http) = served.proxies("pass").await;
    let mut record = served.store.proxies().await.expect("read").remove(0);
    record.password = Secret::new("other".into());
    served.store.put_proxies(&record).await.expect("stored");
    served.forwards.follow().await.expect("read");
    assert_eq!(socks(proxy, "pass", "echo.default", 80).await.err(), Some(0xff));
    assert!(socks(proxy, "other", "echo.default", 80).await.is_ok());
    record.enabled = false;
    served.store.put_proxies(&record).await.expect("stored");
    served.forwards.follow().await.expect("read");
    assert!(!served.forwards.proxies(&id("a")).expect("known").enabled);
    for address in [proxy, http] {
        assert!(TcpStream::connect(SocketAddr::V4(address)).await.is_err());
    }
    assert!(!served.forwards.proxies(&id("b")).expect("known").enabled, "off unless somebody switches them on");
    served.forwards.shut(Duration::ZERO).await;
}

#[tokio::test]
async fn clients_that_do_not_log_in_are_let_go() {
    let served = Served::new().await;
    let (socks, http) = served.proxies("pass").await;
    let mut silent = Vec::new();
    for proxy in [socks, http] {
        silent.push(TcpStream::connect(proxy).await.expect("it listens"));
    }
    silent[0].write_all(b"\x05").await.expect("sent");
    silent[1].write_all(b"CONNECT echo.default:80 HTTP/1.1\r\n").await.expect("sent");
    // Both have been accepted once another client was served.
    assert!(self::socks(socks, "pass", "echo.default", 80).await.is_ok());
    assert!(connect(http, "CONNECT echo.default:80", GOOD).await.0.starts_with("HTTP/1.1 200"));
    // From here time passes as soon as everybody waits.
    tokio::time::pause();
    let begun = tokio::time::Instant::now();
    for stream in &mut silent {
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
    }
    assert!(begun.elapsed() < LOGIN_TIME * 2, "{:?}", begun.elapsed());
    served.forwards.shut(Duration::ZERO).await;
}
