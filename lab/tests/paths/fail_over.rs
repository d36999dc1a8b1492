//! Two routers of one cluster; the one in use fails, in every way that a router can.

use std::time::{Duration, Instant};

use tokio::time::{sleep, timeout};

use crate::{member::Member, site::Site};

/// How long a flow through a dead router may stay undecided. TCP itself would take a minute.
const FLOW: Duration = Duration::from_secs(20);
/// How long a router that is back may take to be used for a dial again: a doubted one is asked once a minute.
const BACK: Duration = Duration::from_secs(90);
/// Between two requests of the flow that is watched: a person's tool that polls.
const PAUSE: Duration = Duration::from_millis(50);

/// Which router dials go through, by what they add to its received bytes.
async fn in_use(member: &Member) -> String {
    let seen = |snapshot: guildnet_model::ConnectorSnapshot| {
        let routers = snapshot.peers.into_iter().filter(|peer| peer.trusted);
        routers.map(|peer| (peer.name, peer.tx_bytes)).collect::<Vec<_>>()
    };
    let before = seen(member.snapshot().await);
    for _ in 0..10 {
        member.talk().await.expect("a dial").say().await.expect("an answer");
    }
    let mut grown: Vec<_> = seen(member.snapshot().await)
        .into_iter()
        .map(|(name, bytes)| (bytes - before.iter().find(|(n, _)| *n == name).map_or(0, |(_, bytes)| *bytes), name))
        .collect();
    grown.sort();
    grown.pop().expect("a router").1
}

#[test]
fn dials_move_and_flows_are_reset_when_the_router_in_use_fails() {
    let site = Site::up(1);
    // Both on hosts of their own, so that each fault is possible.
    site.router("a", 2);
    site.router("a", 3);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let member = Member::join(&site, "a").await;
        eprintln!("{:<8} {:<10} {:>12} {:>12} {:>12}", "fault", "router", "dial, s", "next, s", "reset, s");
        for (fault, mend) in [("kill", "start"), ("freeze", "thaw"), ("cut", "mend"), ("detach", "attach")] {
            let name = in_use(&member).await;
            let router = format!("a/{}", name.strip_prefix("gn-a-").expect("as they were called"));
            let mut flow = member.talk().await.expect("a flow");
            flow.say().await.expect("an answer");

            site.fault(&[fault, &router]);
            let failed = Instant::now();
            let reset = async {
                while flow.say().await.is_ok() {
                    sleep(PAUSE).await;
                }
                failed.elapsed()
            };
            let dials = async {
                let mut times = Vec::new();
                for _ in 0..3 {
                    let begun = Instant::now();
                    let mut talk = member.talk().await.unwrap_or_else(|why| panic!("{fault}: {why}"));
                    talk.say().await.unwrap_or_else(|why| panic!("{fault}: dialled, but {why}"));
                    times.push(begun.elapsed().as_secs_f64());
                }
                times
            };
            let (reset, dials) = tokio::join!(timeout(FLOW, reset), dials);
            let reset = reset.unwrap_or_else(|_| panic!("{fault}: the flow through the dead router hangs"));
            let next = dials[2];
            eprintln!("{fault:<8} {router:<10} {:>12.2} {next:>12.2} {:>12.2}", dials[0], reset.as_secs_f64());

            site.fault(&[mend, &router]);
            let begun = Instant::now();
            while member.snapshot().await.peers.iter().any(|p| p.name == name && p.online != Some(true)) {
                assert!(begun.elapsed() < BACK, "{router} does not come back");
                sleep(PAUSE).await;
            }
        }
        member.leave().await;
    });
}
