//! A client that moves to another network while it talks.

use std::{sync::mpsc, thread, time::Duration};

use guildnet_lab::{Host, Talk};
use tokio::time::{Instant, sleep, timeout};

use crate::{
    member::{Member, on_host},
    site::Site,
};

/// Between two requests.
const PAUSE: Duration = Duration::from_millis(50);
/// How long the talk goes on after the move.
const AFTER: Duration = Duration::from_secs(15);
/// How long it may take to find a direct path between two masquerading gateways.
const DIRECT: Duration = Duration::from_secs(30);
/// The longest that one answer may take: a flow that does not survive the move takes a minute to say so.
const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn a_flow_lives_on_when_its_client_gets_another_address() {
    let site = Site::up(1);
    site.router("a", 1);
    let lab = &site.device.fleet.lab;
    lab.host(&Host::new("x"), &Talk::start()).expect("a client host");
    let (asks, asked) = mpsc::channel();
    let (moves, moved) = mpsc::channel();
    let stall = thread::scope(|scope| {
        let site = &site;
        let talking = scope.spawn(move || {
            let change = move || {
                asks.send(()).expect("somebody moves it");
                moved.recv().expect("it moved");
            };
            on_host(site, "x", async move || talk_through_a_move(site, change).await)
        });
        if asked.recv().is_ok() {
            lab.move_host("x").expect("it moves");
            moves.send(()).expect("somebody waits");
        }
        talking.join().expect("it talked")
    });
    eprintln!("the longest silence: {stall:?}");
}

/// Asks and asks on one connection, moves in the middle, and finds a direct path again. Returns the longest time that an
/// answer took.
async fn talk_through_a_move(site: &Site, change: impl Fn()) -> Duration {
    let member = Member::join(site, "a").await;
    let mut talk = member.talk().await.expect("a flow");
    for _ in 0..40 {
        talk.say().await.expect("an answer");
        sleep(PAUSE).await;
    }
    wait_for_direct(&member).await;
    change();
    let (moved, mut stall) = (Instant::now(), Duration::ZERO);
    while moved.elapsed() < AFTER {
        let asked = Instant::now();
        let said = timeout(PATIENCE, talk.say()).await.expect("an answer in time");
        said.expect("the flow lives");
        stall = stall.max(asked.elapsed());
        sleep(PAUSE).await;
    }
    wait_for_direct(&member).await;
    member.leave().await;
    stall
}

/// Waits until packets go straight to the router; whoever dials keeps the search going.
pub(crate) async fn wait_for_direct(member: &Member) {
    let begun = Instant::now();
    while !member.is_direct().await {
        assert!(begun.elapsed() < DIRECT, "no direct path: {:?}", member.snapshot().await.peers);
        member.talk().await.expect("a dial").say().await.expect("an answer");
        sleep(PAUSE).await;
    }
}
