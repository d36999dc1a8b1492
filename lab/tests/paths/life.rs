//! What a flow lives through: its direct path lost for a while, the home relay dead, the server away; and a tunnel whose sessions
//! are renewed, and that is used again after it was idle.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use guildnet_lab::{Host, Talk as Progress};
use guildnet_model::{ConnectorSnapshot, ConnectorState, Degraded, NodeInfo, PathKind, PeerInfo};
use tokio::{task::JoinHandle, time::sleep};

use crate::{
    fleet::finish,
    member::{Member, Talk, on_host_with},
    moved::wait_for_direct,
    site::Site,
    transfer::{FAR, FarEnd, Transfer},
};

/// Between two looks, and between two requests.
const PAUSE: Duration = Duration::from_millis(50);
/// How long UDP is blocked.
const LOST: Duration = Duration::from_secs(10);
/// The longest silence of a transfer whose path is lost, and of one whose relay dies or hangs. The router asks its relays again
/// when its connection ends, and every half minute: until then it is found at the one that hangs, and nowhere else.
const SILENT: Duration = Duration::from_secs(3);
const DEAD_RELAY: Duration = Duration::from_secs(30);
const HUNG_RELAY: Duration = Duration::from_secs(45);
/// How long a relay that is back is watched.
const WATCHED: Duration = Duration::from_secs(10);
/// How long Headscale is away.
const AWAY: Duration = Duration::from_secs(600);
/// How long it may take until a state is told: a server that is back is tried again within a minute.
const TOLD: Duration = Duration::from_secs(90);
/// How long the tunnel has traffic: a session is renewed every two minutes.
const BUSY: Duration = Duration::from_secs(310);
/// How long it has none: longer than any session lives.
const IDLE: Duration = Duration::from_secs(600);
/// The longest stall of a flow that nothing happens to, and the longest dial.
const STALL: Duration = Duration::from_secs(1);

/// A client host x behind a link.
fn client_host(site: &Site, link: &str) {
    let lab = &site.device.fleet.lab;
    lab.host(&Host { link: Some(7), ..Host::new("x") }, &Progress::start()).expect("a client host");
    let mut set = site.lab(&["link", "x"]);
    set.args(link.split(' '));
    finish(set, b"", Duration::from_secs(10)).ok();
}

fn with_relays(site: &Site) {
    let up = site.lab(&["up", "--relays"]).output().expect("the command runs");
    assert!(up.status.success(), "{up:?}");
}

/// The cluster's only router.
fn router(snapshot: ConnectorSnapshot) -> PeerInfo {
    snapshot.peers.into_iter().find(|peer| peer.trusted).expect("a router")
}

#[test]
fn a_transfer_goes_on_by_the_relay_while_the_direct_path_is_lost() {
    let site = Site::up(1);
    site.router("a", 1);
    client_host(&site, "rate=8MB/s queue=50ms delay=5ms");
    let far = FarEnd::listen(&site, "a");
    on_host_with(&site, "x", async |outside| {
        let member = Member::join(&site, "a").await;
        let transfer = Transfer::begin(member.dial(FAR).await.expect("a flow"));
        wait_for_direct(&member).await;
        transfer.grows(10_000_000).await;
        let before = transfer.silence();

        outside.fault(["block-udp", "x"]).await;
        let (lost, from) = (Instant::now(), transfer.received());
        let (mut relay_after, mut at_relay) = (None, 0);
        while lost.elapsed() < LOST {
            if relay_after.is_none() && router(member.snapshot().await).path == PathKind::Relay {
                relay_after = Some(lost.elapsed());
                at_relay = transfer.received();
            }
            sleep(PAUSE).await;
        }
        let by_relay = transfer.received() - at_relay;
        let relay_after = relay_after.expect("the relay is used while there is no direct path");
        assert!(by_relay > 1_000_000, "{by_relay} bytes by the relay, {} in all", transfer.received() - from);
        assert_eq!(router(member.snapshot().await).path, PathKind::Relay);
        let while_lost = transfer.silence();

        outside.fault(["unblock-udp", "x"]).await;
        let back = Instant::now();
        wait_for_direct(&member).await;
        let direct_after = back.elapsed();
        transfer.grows(10_000_000).await;
        let after = transfer.silence();
        let (near, far) = transfer.end(far).await;
        member.leave().await;
        eprintln!(
            "{} MB down, {} MB up; {} MB down by the relay after {relay_after:?}; direct again {direct_after:?} after it could be",
            near.received / 1_000_000,
            near.sent / 1_000_000,
            by_relay / 1_000_000,
        );
        eprintln!(
            "longest silence before, while it was lost, after: {before:?}, {while_lost:?}, {after:?}; of what went up: {:?}",
            far.silence
        );
        assert!(near.silence < SILENT && far.silence < SILENT, "{near:?} {far:?}");
    });
}

/// A router of cluster a whose home is `derp-1`: no other relay answers its STUN while it chooses.
fn router_at_the_first_relay(site: &Site) {
    let lab = &site.device.fleet.lab;
    let own = lab.plan().host_address().to_string();
    let mut deaf = lab.inside("gw-a", "iptables").expect("a gateway");
    deaf.args(["-w", "-I", "FORWARD", "-p", "udp", "-d", &own, "--dport", "3478", "-j", "DROP"]);
    finish(deaf, b"", Duration::from_secs(10)).ok();
    site.fault(&["cut", "derp-2"]);
    site.router("a", 1);
    site.fault(&["mend", "derp-2"]);
}

#[test]
fn another_relay_takes_over_when_the_one_of_both_sides_dies_or_hangs() {
    for (fault, mend, bound) in [("kill", "start", DEAD_RELAY), ("freeze", "thaw", HUNG_RELAY)] {
        let site = Site::up(1);
        with_relays(&site);
        router_at_the_first_relay(&site);
        client_host(&site, "rate=4MB/s queue=50ms delay=5ms");
        site.fault(&["block-udp", "x"]);
        let far = FarEnd::listen(&site, "a");
        on_host_with(&site, "x", async |outside| {
            let member = Member::join(&site, "a").await;
            let transfer = Transfer::begin(member.dial(FAR).await.expect("a flow"));
            transfer.grows(4_000_000).await;
            let before = transfer.silence();
            let snapshot = member.snapshot().await;
            let homes = |snapshot: ConnectorSnapshot| (snapshot.home_relay, router(snapshot).contact.home_relay);
            assert_eq!(router(snapshot.clone()).path, PathKind::Relay);
            assert_eq!(homes(snapshot), (Some(901), Some(901)), "all goes through one relay");

            outside.fault([fault, "derp-1"]).await;
            let failed = Instant::now();
            let mut moved = [None; 2];
            while moved.contains(&None) {
                assert!(failed.elapsed() < bound, "{fault}: {moved:?}, {:?}", member.snapshot().await.status);
                sleep(PAUSE).await;
                let (own, routers) = homes(member.snapshot().await);
                for (moved, home) in moved.iter_mut().zip([own, routers]) {
                    *moved = moved.or(home.is_some_and(|home| home != 901).then(|| failed.elapsed()));
                }
            }
            transfer.grows(2_000_000).await;
            let silence = transfer.silence();
            let [own, routers] = moved.map(Option::unwrap_or_default);
            eprintln!(
                "{fault}: own home moved after {own:?}, the router's after {routers:?}; longest silence {silence:?}, before {before:?}"
            );
            assert!(silence < bound, "{fault}: {silence:?}");

            let home = member.snapshot().await.home_relay;
            outside.fault([mend, "derp-1"]).await;
            let mended = Instant::now();
            while mended.elapsed() < WATCHED {
                sleep(PAUSE).await;
                assert_eq!(member.snapshot().await.home_relay, home, "a home that works is kept");
            }
            transfer.grows(1_000_000).await;
            let after = transfer.silence();
            let (near, far) = transfer.end(far).await;
            member.leave().await;
            eprintln!(
                "{fault}: {} MB down, {} MB up, which was silent for {:?}; {after:?} after {mend}",
                near.received / 1_000_000,
                near.sent / 1_000_000,
                far.silence
            );
            assert!(after < STALL, "{mend}: {after:?}");
        });
    }
}

/// Asks and asks on a connection until it is told to stop.
struct Asked {
    stop: Arc<AtomicBool>,
    work: JoinHandle<Duration>,
}

impl Asked {
    fn begin(mut talk: Talk) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let work = tokio::spawn(async move {
            let mut longest = Duration::ZERO;
            while !stopped.load(Relaxed) {
                let asked = Instant::now();
                talk.say().await.expect("the flow lives");
                longest = longest.max(asked.elapsed());
                sleep(PAUSE).await;
            }
            longest
        });
        Self { stop, work }
    }

    /// The longest time that an answer took.
    async fn end(self) -> Duration {
        self.stop.store(true, Relaxed);
        self.work.await.expect("it asked")
    }
}

#[test]
fn headscale_is_away_and_sessions_are_renewed() {
    let site = Site::up(2);
    with_relays(&site);
    ["a", "b"].into_iter().for_each(|cluster| site.router(cluster, 1));
    let run = |work: &mut dyn FnMut(&tokio::runtime::Runtime)| {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        work(&runtime.expect("a runtime"));
    };
    thread::scope(|scope| {
        // Two members side by side, for both take minutes: b's sessions are renewed without a server, too.
        let away = scope.spawn(|| run(&mut |runtime| runtime.block_on(while_headscale_is_away(&site))));
        run(&mut |runtime| runtime.block_on(renewed_and_idle(&site)));
        away.join().expect("Headscale's absence was borne");
    });
}

/// Waits for a state; how long it took.
async fn told(member: &Member, what: &str, wanted: impl Fn(&ConnectorState) -> bool) -> Duration {
    let begun = Instant::now();
    loop {
        let state = member.snapshot().await.status.state;
        if wanted(&state) {
            return begun.elapsed();
        }
        assert!(begun.elapsed() < TOLD, "{what} is not told: {state}");
        sleep(PAUSE).await;
    }
}

async fn while_headscale_is_away(site: &Site) {
    let member = Member::join(site, "a").await;
    told(&member, "ready", |state| *state == ConnectorState::Ready).await;
    let identity = |snapshot: ConnectorSnapshot| -> NodeInfo { snapshot.status.node.expect("it has joined") };
    let before = identity(member.snapshot().await);
    let flow = Asked::begin(member.talk().await.expect("a flow"));

    site.fault(&["stop", "headscale"]);
    let gone = Instant::now();
    let is_down =
        |state: &ConnectorState| matches!(state, ConnectorState::Degraded { why: Degraded::ControlDown { .. } });
    let down_after = told(&member, "that the server is away", is_down).await;
    let (mut dials, mut longest_dial) = (0, Duration::ZERO);
    while gone.elapsed() < AWAY {
        let begun = Instant::now();
        let mut talk = member.talk().await.expect("a dial while the server is away");
        talk.say().await.expect("an answer while the server is away");
        longest_dial = longest_dial.max(begun.elapsed());
        dials += 1;
        let state = member.snapshot().await.status.state;
        assert!(is_down(&state), "{state}");
        sleep(STALL).await;
    }
    site.fault(&["start", "headscale"]);
    let ready_after = told(&member, "ready again", |state| *state == ConnectorState::Ready).await;
    member.talk().await.expect("a dial").say().await.expect("an answer");
    let stall = flow.end().await;
    let now = member.snapshot().await;
    eprintln!(
        "Headscale was away for {AWAY:?}: told after {down_after:?}, {dials} dials of at most {longest_dial:?}, the flow stalled {stall:?}, \
         ready {ready_after:?} after its start; {:?}",
        now.status.last_trouble
    );
    assert_eq!(identity(now), before, "the same node");
    assert!(
        stall < STALL && longest_dial < STALL,
        "the flow stalled {stall:?}, the longest dial took {longest_dial:?}"
    );
    member.leave().await;
}

async fn renewed_and_idle(site: &Site) {
    let member = Member::join(site, "b").await;
    let flow = Asked::begin(member.talk().await.expect("a flow"));
    let (begun, mut handshakes) = (Instant::now(), Vec::<SystemTime>::new());
    while begun.elapsed() < BUSY {
        let last = router(member.snapshot().await).last_handshake.expect("a session");
        if handshakes.last() != Some(&last) {
            handshakes.push(last);
        }
        sleep(PAUSE).await;
    }
    let stall = flow.end().await;
    let between = handshakes.windows(2).map(|two| two[1].duration_since(two[0]).unwrap_or_default());
    // Both sides may begin one when they meet.
    let between: Vec<_> = between.filter(|time| *time > STALL).collect();
    eprintln!("the session was renewed after {between:?}; the longest stall was {stall:?}");
    assert!(between.len() >= 2, "renewed {} times in {BUSY:?}", between.len());
    assert!(stall < STALL, "{stall:?}");

    let begun = Instant::now();
    while member.snapshot().await.flows > 0 {
        assert!(begun.elapsed() < TOLD, "a flow is left");
        sleep(PAUSE).await;
    }
    sleep(IDLE).await;
    let seen = member.snapshot().await;
    let dialled = Instant::now();
    let mut talk = member.talk().await.expect("a dial after idle minutes");
    let open = dialled.elapsed();
    talk.say().await.expect("an answer");
    eprintln!(
        "idle for {IDLE:?} (then {}): dialled in {open:?}, answered in {:?}",
        router(seen).path,
        dialled.elapsed()
    );
    assert!(dialled.elapsed() < STALL, "{:?}", dialled.elapsed());
    member.leave().await;
}
