//! Names against a cluster that is made of closures: its DNS speaks over a pipe, its Services are a list.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::io::AsyncBufReadExt as _;

use hickory_proto::{
    op::{Message, ResponseCode},
    rr::{RData, Record, RecordType, rdata::PTR},
};

use super::{
    message::tests::{a, answer, full},
    *,
};

/// What the DNS does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Server {
    Answers,
    /// Takes connections and says nothing.
    Hangs,
    /// Says that it failed.
    Fails,
    /// There is no such Service.
    Absent,
}

/// A cluster `a` at 10.96.0.0/16 and 10.244.0.0/16, whose DNS is 10.96.0.10. Every other address there says in a line where
/// one is, sends back what it gets, and `.` once nothing more comes; port 1 refuses, port 2 is not ready.
#[derive(Debug)]
pub(crate) struct FakeCluster {
    id: ClusterId,
    networks: Networks,
    server: Server,
    domain: &'static str,
    records: BTreeMap<&'static str, Vec<[u8; 4]>>,
    services: BTreeMap<(&'static str, &'static str), &'static str>,
    /// Connections to the DNS so far.
    talks: Arc<AtomicUsize>,
}

impl FakeCluster {
    pub(crate) fn new(server: Server) -> Self {
        let records = BTreeMap::from([
            ("echo.default.svc.cluster.local", vec![[10, 96, 0, 80]]),
            ("web-0.web.shop.svc.cluster.local", vec![[10, 244, 0, 7]]),
            ("pods.shop.svc.cluster.local", vec![[10, 244, 0, 1], [10, 244, 0, 2]]),
            ("mixed.shop.svc.cluster.local", vec![[192, 0, 2, 1], [10, 244, 0, 7]]),
            ("world.default.svc.cluster.local", vec![[127, 0, 0, 1], [169, 254, 169, 254]]),
            ("echo.default.svc.k8s.corp", vec![[10, 96, 0, 80]]),
            ("www.example.com", vec![[192, 0, 2, 1]]),
        ]);
        let services = BTreeMap::from([(("default", "echo"), "10.96.0.80"), (("default", "far"), "192.0.2.7")]);
        Self {
            id: "a".parse().expect("an id"),
            networks: "10.96.0.0/16,10.244.0.0/16".parse().expect("networks"),
            server,
            domain: "cluster.local",
            records,
            services,
            talks: Arc::default(),
        }
    }

    /// The same with another name.
    pub(crate) fn named(self, id: &str) -> Arc<Self> {
        Arc::new(Self { id: id.parse().expect("an id"), ..self })
    }

    /// Serves one connection of the DNS.
    async fn serve(self: Arc<Self>, mut stream: tokio::io::DuplexStream) -> std::io::Result<()> {
        loop {
            let mut question = vec![0; usize::from(stream.read_u16().await?)];
            stream.read_exact(&mut question).await?;
            let asked = Message::from_vec(&question).expect("a question");
            let query = &asked.queries[0];
            let name = query.name().to_ascii().to_lowercase();
            let name = name.trim_end_matches('.');
            let (code, records) = match (self.server, query.query_type()) {
                (Server::Hangs, _) => std::future::pending().await,
                (Server::Fails, _) => (ResponseCode::ServFail, vec![]),
                (_, RecordType::PTR) => {
                    let own = format!("kube-dns.kube-system.svc.{}", self.domain);
                    (ResponseCode::NoError, vec![Record::from_rdata(full(name), 30, RData::PTR(PTR(full(&own))))])
                }
                _ => match self.records.get(name) {
                    Some(found) => (ResponseCode::NoError, found.iter().map(|ip| a(name, 30, *ip)).collect()),
                    None => (ResponseCode::NXDomain, vec![]),
                },
            };
            let said = answer(&question, code, records);
            stream.write_u16(u16::try_from(said.len()).expect("short")).await?;
            stream.write_all(&said).await?;
        }
    }
}

impl Inside for Arc<FakeCluster> {
    fn id(&self) -> &ClusterId {
        &self.id
    }

    fn networks(&self) -> &Networks {
        &self.networks
    }

    fn dial(&self, to: Target) -> BoxFuture<'_, Result<Box<dyn Io>, DialError>> {
        Box::pin(async move {
            let ip = to.addr().ip();
            let (near, far) = tokio::io::duplex(1024);
            match (ip.to_string().as_str(), to.addr().port()) {
                ("10.96.0.10", _) => {
                    self.talks.fetch_add(1, Ordering::Relaxed);
                    tokio::spawn(Arc::clone(self).serve(far));
                }
                ("10.244.0.1", _) | (_, 1) => return Err(DialError::Refused { target: to }),
                (_, 2) => return Err(DialError::NotReady { state: "starting".into() }),
                _ => {
                    let line = format!("{} {to}\n", self.id);
                    tokio::spawn(async move {
                        let (mut read, mut write) = tokio::io::split(far);
                        write.write_all(line.as_bytes()).await?;
                        tokio::io::copy(&mut read, &mut write).await?;
                        write.write_all(b".").await?;
                        write.shutdown().await
                    });
                }
            }
            Ok(Box::new(near) as Box<dyn Io>)
        })
    }

    fn dns_address(&self) -> BoxFuture<'_, Result<Option<Target>, HostError>> {
        let known = (self.server != Server::Absent).then(|| "10.96.0.10:53".parse().expect("a target"));
        Box::pin(async move { Ok(known) })
    }

    fn cluster_ip<'a>(&'a self, namespace: &'a str, service: &'a str) -> BoxFuture<'a, Result<IpAddr, HostError>> {
        Box::pin(async move {
            let found = self.services.get(&(namespace, service)).map(|ip| ip.parse().expect("an address"));
            found.ok_or_else(|| HostError::new(Class::NotFound, format!("services \"{service}\" not found")))
        })
    }
}

/// Where a destination led, or what was said.
async fn led(names: &Names, cluster: &Arc<FakeCluster>, to: &str) -> Result<String, HostError> {
    let to: Destination = to.parse().expect(to);
    let stream = names.open(cluster, &to).await.map_err(|e| e.of_cluster(&cluster.id))?;
    let mut said = String::new();
    tokio::io::BufReader::new(stream).read_line(&mut said).await.expect("it says where");
    Ok(said.trim_end().trim_start_matches("a ").to_owned())
}

/// A text that is a name.
pub(super) fn name(text: &str) -> HostName {
    match Destination::new(text, 80).expect(text).place() {
        Place::Name(name) => name.clone(),
        Place::Address(ip) => panic!("{ip} is an address"),
    }
}

#[tokio::test]
async fn names_lead_where_the_clusters_dns_says_and_one_connection_serves_a_name() {
    let (names, cluster) = (Names::default(), Arc::new(FakeCluster::new(Server::Answers)));
    for (to, there) in [
        ("echo.default:80", "10.96.0.80:80"),
        ("echo.default:80", "10.96.0.80:80"),
        ("ECHO.default.svc:81", "10.96.0.80:81"),
        ("echo.default.svc.cluster.local:80", "10.96.0.80:80"),
        ("web-0.web.shop:80", "10.244.0.7:80"),
        ("10.96.0.80:80", "10.96.0.80:80"),
    ] {
        assert_eq!(led(&names, &cluster, to).await.as_deref(), Ok(there), "{to}");
    }
    // The domain, and echo.default's two readings, went over the same connection; the second time it was remembered.
    assert_eq!(cluster.talks.load(Ordering::Relaxed), 4);
}

#[tokio::test]
async fn of_several_addresses_the_next_is_tried_and_those_outside_are_left_out() {
    let (names, cluster) = (Names::default(), Arc::new(FakeCluster::new(Server::Answers)));
    assert_eq!(led(&names, &cluster, "pods.shop:80").await.as_deref(), Ok("10.244.0.2:80"));
    assert_eq!(led(&names, &cluster, "mixed.shop:80").await.as_deref(), Ok("10.244.0.7:80"));
}

#[tokio::test]
async fn what_is_not_in_the_cluster_is_refused_by_name_and_by_address() {
    let (names, cluster) = (Names::default(), Arc::new(FakeCluster::new(Server::Answers)));
    for to in [
        "world.default:80",
        "www.example.com:80",
        "127.0.0.1:80",
        "169.254.169.254:80",
        "192.168.1.1:80",
        "10.97.0.1:80",
        "[::1]:80",
        "[::ffff:10.96.0.80]:80",
        "0.0.0.0:80",
    ] {
        let refused = led(&names, &cluster, to).await.expect_err(to);
        assert_eq!(refused.class(), Class::Usage, "{to}: {refused}");
        assert!(refused.message().contains("10.96.0.0/16"), "{refused}");
    }
}

#[tokio::test]
async fn an_unknown_name_says_who_was_asked_and_what_to_do() {
    let (names, cluster) = (Names::default(), Arc::new(FakeCluster::new(Server::Answers)));
    let refused = led(&names, &cluster, "nosuch.default:80").await.expect_err("unknown");
    assert_eq!(refused.to_string(), "cluster a: nosuch.default: the cluster's DNS at 10.96.0.10:53 knows no such name");
    assert_eq!(refused.class(), Class::NotFound);
    assert!(refused.hint().is_some_and(|h| h.contains("get services -A")));
    // It has the last word: the API server is not asked.
    assert!(led(&names, &cluster, "far.default:80").await.expect_err("unknown").message().contains("DNS"));
}

#[tokio::test]
async fn a_domain_of_its_own_is_learnt() {
    let cluster = Arc::new(FakeCluster { domain: "k8s.corp", ..FakeCluster::new(Server::Answers) });
    assert_eq!(led(&Names::default(), &cluster, "echo.default:80").await.as_deref(), Ok("10.96.0.80:80"));
}

#[tokio::test(start_paused = true)]
async fn without_dns_a_service_is_found_by_the_api_server() {
    for server in [Server::Absent, Server::Fails, Server::Hangs] {
        let (names, cluster) = (Names::default(), Arc::new(FakeCluster::new(server)));
        for to in ["echo.default:80", "echo.default.svc.cluster.local:80"] {
            assert_eq!(led(&names, &cluster, to).await.as_deref(), Ok("10.96.0.80:80"), "{server:?} {to}");
        }
        let refused = led(&names, &cluster, "far.default:80").await.expect_err("outside");
        assert_eq!(refused.class(), Class::Usage, "{refused}");
        let refused = led(&names, &cluster, "nosuch.default:80").await.expect_err("unknown");
        assert_eq!(refused.class(), Class::NotFound, "{refused}");
        assert!(refused.message().contains("DNS") && refused.message().contains("not found"), "{refused}");
        let refused = led(&names, &cluster, "web-0.web.shop:80").await.expect_err("a pod");
        assert!(refused.message().contains("only a Service's name"), "{refused}");
    }
}
