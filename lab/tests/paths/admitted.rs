//! A member as others see it: admitted anew when its key has expired, gone when it was to be thrown away, and reached by those whom
//! the policy lets in.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use guildnet_lab::{LIGHT_POD, Lab};
use guildnet_model::{AuthKeys, BoxFuture, ConnectorState, Degraded, Io, Listener, NoAuthKey, NodeInfo, Secret};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpSocket,
    task::spawn_blocking,
    time::{sleep, timeout},
};

use crate::{
    fleet::{eventually, finish},
    member::Member,
    site::{Site, within},
};

const TAG: &str = "tag:gn-a-client";
const PAUSE: Duration = Duration::from_millis(50);
/// How long what the server decides may take to be seen.
const SHOWS: Duration = Duration::from_secs(60);
/// The policy's ports: one that is listened on and one that is not, and beyond them one that it does not allow.
const OPEN: u16 = 8080;
const NOBODY: u16 = 8081;
const DENIED: u16 = 8082;

/// Headscale's own command line.
#[track_caller]
fn headscale(lab: &Lab, args: &[&str]) -> String {
    let mut command = lab.headscale();
    command.args(args);
    finish(command, b"", Duration::from_secs(30)).ok()
}

/// The numbers of cluster a's client nodes.
fn clients(lab: &Lab) -> Vec<u64> {
    let list: Value = serde_json::from_str(&headscale(lab, &["nodes", "list", "-o", "json"])).expect("a list");
    let bears = |node: &&Value| node["tags"].as_array().into_iter().flatten().any(|tag| tag == TAG);
    list.as_array().into_iter().flatten().filter(bears).filter_map(|node| node["id"].as_u64()).collect()
}

/// Makes keys on the server, as the Host App does: an expired node with tags is not renewed by a key, so it goes before.
#[derive(Debug)]
struct Made {
    lab: Lab,
    kind: &'static [&'static str],
    asked: Arc<AtomicUsize>,
}

impl AuthKeys for Made {
    fn key(&self) -> BoxFuture<'_, Result<Option<Secret<String>>, NoAuthKey>> {
        let (lab, kind) = (self.lab.clone(), self.kind);
        self.asked.fetch_add(1, Relaxed);
        Box::pin(async move {
            let make = move || {
                for id in clients(&lab) {
                    headscale(&lab, &["nodes", "delete", "--force", "-i", &id.to_string()]);
                }
                let said = headscale(&lab, &[&["preauthkeys", "create", "--tags", TAG, "-o", "json"], kind].concat());
                let key: Value = serde_json::from_str(&said).expect("a key");
                key["key"].as_str().expect("a key").to_owned()
            };
            let key = spawn_blocking(make).await.map_err(|why| NoAuthKey { why: why.to_string() })?;
            Ok(Some(Secret::new(key)))
        })
    }
}

async fn told(member: &Member, what: &str, wanted: impl Fn(&ConnectorState) -> bool) {
    let begun = Instant::now();
    while !wanted(&member.snapshot().await.status.state) {
        assert!(begun.elapsed() < SHOWS, "{what}: {:?}", member.snapshot().await.status);
        sleep(PAUSE).await;
    }
}

async fn node(member: &Member) -> NodeInfo {
    member.snapshot().await.status.node.expect("it has joined")
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    runtime.expect("a runtime").block_on(work)
}

#[test]
fn a_member_whose_key_expires_joins_again_by_itself() {
    let site = Site::up(1);
    site.router("a", 1);
    let lab = &site.device.fleet.lab;
    let asked = Arc::new(AtomicUsize::new(0));
    let keys = Arc::new(Made { lab: lab.clone(), kind: &[], asked: asked.clone() });
    block_on(async {
        let member = Member::join_with(&site, "a", keys, false).await;
        let old = node(&member).await;
        told(&member, "ready", |state| *state == ConnectorState::Ready).await;
        let id = old.id.to_string();
        // In an hour: it is told, and nothing is asked for yet.
        let mut date = Command::new("date");
        date.args(["--utc", "--date=1 hour", "+%Y-%m-%dT%H:%M:%SZ"]);
        let hour = finish(date, b"", SHOWS).ok();
        headscale(lab, &["nodes", "expire", "-i", &id, "--expiry", hour.trim()]);
        let is_near =
            |state: &ConnectorState| matches!(state, ConnectorState::Degraded { why: Degraded::KeyExpiring { .. } });
        told(&member, "that the key expires soon", is_near).await;
        let near = member.snapshot().await.status.state.to_string();
        let mut flow = member.talk().await.expect("a dial");
        flow.say().await.expect("an answer");
        assert_eq!(asked.load(Relaxed), 1);

        headscale(lab, &["nodes", "expire", "-i", &id]);
        let expired = Instant::now();
        while node(&member).await.id == old.id || member.snapshot().await.status.state != ConnectorState::Ready {
            assert!(expired.elapsed() < SHOWS, "it does not join again: {:?}", member.snapshot().await.status);
            sleep(PAUSE).await;
        }
        let ready = expired.elapsed();
        let mut talk = member.talk().await.expect("a dial");
        talk.say().await.expect("an answer");
        let answered = expired.elapsed();
        // What the old node had open ends, and does not hang.
        timeout(SHOWS, flow.say())
            .await
            .expect("the old flow's end in time")
            .expect_err("the old node's session is gone");
        let new = node(&member).await;
        assert_eq!(clients(lab), [new.id], "one node, the new one");
        assert!(new.node_key != old.node_key && new.name == old.name, "{old:?} {new:?}");
        assert_eq!(asked.load(Relaxed), 2, "asked once for each node");
        eprintln!("{near:?}; expired: ready as another node after {ready:?}, answered after {answered:?}");
        member.leave().await;
        assert_eq!(clients(lab), [new.id], "an identity that is kept stays listed");
    });
}

#[test]
fn a_throw_away_member_is_gone_from_the_server_when_it_stops() {
    let site = Site::up(1);
    site.router("a", 1);
    let lab = &site.device.fleet.lab;
    let keys = Arc::new(Made { lab: lab.clone(), kind: &["--ephemeral"], asked: Arc::default() });
    block_on(async {
        for _ in 0..2 {
            let member = Member::join_with(&site, "a", keys.clone(), true).await;
            assert_eq!(clients(lab), [node(&member).await.id]);
            let leaves = Instant::now();
            member.leave().await;
            let left = leaves.elapsed();
            assert_eq!(clients(lab), [0; 0], "it is gone at once");
            eprintln!("gone {left:?} after it was told to stop");
        }
    });
}

/// Answers whoever comes with one word, and where they came from.
async fn serve(mut listener: Box<dyn Listener>, come: tokio::sync::mpsc::UnboundedSender<SocketAddr>) {
    while let Some((mut stream, from)) = listener.accept().await {
        answer(&mut stream).await.unwrap_or_else(|why| panic!("{from}: {why}"));
        let _nobody_counts = come.send(from);
    }
}

async fn answer(stream: &mut Box<dyn Io>) -> std::io::Result<()> {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        request.push(stream.read_u8().await?);
    }
    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\nmember").await?;
    stream.shutdown().await
}

#[test]
fn a_member_is_reached_by_those_whom_the_policy_lets_in() {
    let site = Site::up(1);
    site.router("a", 1);
    let lab = &site.device.fleet.lab;
    block_on(async {
        let member = Member::join(&site, "a").await;
        let (come, mut comes) = tokio::sync::mpsc::unbounded_channel();
        for port in [OPEN, DENIED] {
            tokio::spawn(serve(member.listen(port).await, come.clone()));
        }
        let own = node(&member).await.addresses.into_iter().find(IpAddr::is_ipv4).expect("an IPv4 address");
        let url = |port: u16| format!("http://{own}:{port}/");
        // By the policy that a cluster is set up with nobody reaches a member, listening or not.
        for port in [OPEN, NOBODY, DENIED] {
            assert!(
                site.is_silent("a", &url(port)),
                "{port} before the policy allows it: {:?}",
                site.get("a", &url(port))
            );
        }
        let denied = member.snapshot().await.dropped.no_flow;
        assert!(denied > 0, "what was not let in is counted");

        let mut policy: Value = serde_json::from_str(&headscale(lab, &["policy", "get"])).expect("JSON");
        let grant =
            json!({"src": ["tag:gn-a-router", "10.244.0.0/16"], "dst": [TAG], "ip": [format!("tcp:{OPEN}-{NOBODY}")]});
        policy["grants"].as_array_mut().expect("grants").push(grant);
        let file = site.device.fleet.home.join("policy.json");
        fs::write(&file, policy.to_string()).expect("written");
        headscale(lab, &["policy", "set", "-f", &file.display().to_string()]);
        let begun = Instant::now();
        eventually("the router's node is let in", SHOWS, || site.get("a", &url(OPEN)).out == "member");
        let let_in = begun.elapsed();
        let refused = site.get("a", &url(NOBODY));
        assert!(refused.code != 0 && refused.err.contains("refused"), "nobody listens there: {refused:?}");
        assert!(site.is_silent("a", &url(DENIED)), "no rule allows it");
        let router = comes.recv().await.expect("it came").ip();
        let names: Vec<IpAddr> = member.snapshot().await.peers.into_iter().flat_map(|peer| peer.addresses).collect();
        assert!(names.contains(&router), "{router} is the router's own name");

        // A Pod, in its own name.
        let namespace = lab.plan().cluster("a").expect("a cluster").node_ns;
        let from = within(&namespace, || {
            block_on(async {
                let socket = TcpSocket::new_v4().expect("a socket");
                socket.bind((LIGHT_POD, 0).into()).expect("the Pod's address");
                let connecting = socket.connect(SocketAddr::new(own, OPEN));
                let mut stream = timeout(SHOWS, connecting).await.expect("in time").expect("let in");
                stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.expect("sent");
                let mut said = String::new();
                timeout(SHOWS, stream.read_to_string(&mut said)).await.expect("in time").expect("an answer");
                assert!(said.ends_with("member"), "{said}");
                stream.local_addr().expect("bound")
            })
        });
        let seen = timeout(SHOWS, async {
            // Those that asked until they were let in stand before.
            while comes.recv().await.expect("it came") != from {}
        });
        seen.await.expect("it came in its own name");
        eprintln!("let in {let_in:?} after the policy was set; a Pod came as {from}");
        member.leave().await;
    });
}
