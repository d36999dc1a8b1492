//! A client host behind a link, whose settings change while packets flow.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    process::Command,
    sync::atomic::{AtomicU64, Ordering},
    thread::sleep,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    fleet::{eventually, finish, lab_binary},
    site::{Site, namespaces, within},
};

/// Time that two cores may add to a round trip.
const SLACK: Duration = Duration::from_millis(40);

/// `guildnet-lab link x ...`: settings and counts.
#[track_caller]
fn link(words: &str) -> Value {
    let mut command = Command::new(lab_binary());
    command.args(["link", "x"]).args(words.split(' '));
    serde_json::from_str(&finish(command, b"", Duration::from_secs(10)).ok()).expect("JSON")
}

/// How long a connection takes to be made, the shortest of some: one round trip.
fn round_trip(namespace: &str, to: SocketAddr) -> Duration {
    let connect = |_| {
        let begin = Instant::now();
        TcpStream::connect_timeout(&to, Duration::from_secs(10)).expect("it is reached");
        begin.elapsed()
    };
    within(namespace, || (0..5).map(connect).min().expect("some"))
}

#[test]
fn a_link_delays_loses_and_is_cut_in_the_middle_of_a_transfer() {
    let site = Site::up(1);
    let lab = &site.device.fleet.lab;
    let namespace =
        finish(site.lab(&["host", "x", "--link", "7"]), b"", Duration::from_secs(30)).ok().trim().to_owned();
    let internet = lab.plan().host_address();
    let listener = TcpListener::bind((internet, 0)).expect("the bridge's address is ours");
    let address = listener.local_addr().expect("bound");

    assert!(round_trip(&namespace, address) < SLACK, "a link that does nothing");
    link("delay=50ms");
    let took = round_trip(&namespace, address);
    assert!((Duration::from_millis(100)..Duration::from_millis(100) + SLACK).contains(&took), "{took:?}");
    link("up clear");
    let took = round_trip(&namespace, address);
    assert!((Duration::from_millis(50)..Duration::from_millis(50) + SLACK).contains(&took), "{took:?}");
    let shown = link("clear");
    assert_eq!((&shown["up"]["settings"], &shown["down"]["settings"]), (&"".into(), &"".into()));
    assert!(shown["up"]["counts"]["passed"].as_u64() > Some(6), "{shown}");
    let wrong = site.lab(&["link", "x", "loss=some"]).output().expect("the command runs");
    assert!(wrong.status.code() == Some(2) && String::from_utf8_lossy(&wrong.stderr).contains("in percent"));

    let received = AtomicU64::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Those of the round trips wait in front.
            for stream in listener.incoming() {
                let mut stream = stream.expect("accepted");
                if stream.read(&mut [0]).is_ok_and(|n| n == 1) {
                    while stream.write_all(&[0; 1 << 16]).is_ok() {}
                    return;
                }
            }
        });
        let reader = scope.spawn(|| {
            within(&namespace, || {
                let mut stream = TcpStream::connect(address).expect("it is reached");
                stream.write_all(b"x").expect("sent");
                let mut buffer = vec![0; 1 << 16];
                while received.load(Ordering::Relaxed) < 60_000_000 {
                    let n = stream.read(&mut buffer).expect("no reset");
                    received.fetch_add(n as u64, Ordering::Relaxed);
                }
            });
        });
        let grows = |from: u64| {
            eventually("bytes come", Duration::from_secs(20), || received.load(Ordering::Relaxed) > from);
        };
        link("rate=5MB/s");
        grows(2_000_000);
        link("cut=on");
        sleep(Duration::from_millis(300));
        let seen = received.load(Ordering::Relaxed);
        sleep(Duration::from_secs(1));
        assert_eq!(received.load(Ordering::Relaxed), seen, "nothing passes while it is cut");
        link("cut=off");
        grows(seen + 1_000_000);
        link("rate=off loss=1% burst=3 reorder=2% duplicate=1% delay=2ms jitter=1ms");
        reader.join().expect("the same connection took it all");
        let shown = link("");
        assert_eq!(shown["down"]["settings"], "delay=2ms jitter=1ms loss=1% burst=3 duplicate=1% reorder=2%");
        let counts = &shown["down"]["counts"];
        assert!(
            ["cut", "lost", "held", "duplicated", "passed"].iter().all(|n| counts[*n].as_u64() > Some(0)),
            "{shown}"
        );
        let lost = counts["lost"].as_f64().expect("a number") / counts["offered"].as_f64().expect("a number");
        assert!((0.001..0.02).contains(&lost), "{lost}");
    });

    site.fault(&["kill", "x/link"]);
    assert!(!lab.status().expect("the lab's state").is_whole());
    let up = site.lab(&["up"]).output().expect("the command runs");
    assert!(up.status.success(), "{up:?}");
    assert!(round_trip(&namespace, address) < SLACK, "it is mended, and does nothing again");
    let instance = format!("gnlab-{}-", lab.plan().instance);
    drop(site);
    assert_eq!(namespaces(&instance), Vec::<String>::new());
}
