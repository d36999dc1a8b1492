//! Clients that hold connections and say nothing, or say it slowly, beside one that is honest.

use std::collections::VecDeque;

use futures_util::future::join_all;

use super::*;

/// Files that this process may open; its own limit is raised first, as the Host App does.
fn files() -> usize {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let _as_it_is = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    getrlimit(Resource::Nofile).current.map_or(usize::MAX, |n| usize::try_from(n).unwrap_or(usize::MAX))
}

/// How many of these connections the door still holds.
fn held(crowd: &VecDeque<TcpStream>) -> usize {
    crowd
        .iter()
        .filter(|stream| stream.try_read(&mut [0; 64]).is_err_and(|why| why.kind() == io::ErrorKind::WouldBlock))
        .count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_half_open_connections_keep_nobody_out() {
    const ALL: usize = 10_000;
    /// Fewer at once than there are places for newcomers, so that the honest client's chance does not hang on how fast this
    /// machine is: nobody who came after it can push it out before its answer.
    const ROUND: usize = 250;
    let door = Served::new().await;
    let client = door.client();
    // Whoever has shown the token stays, whatever comes.
    let mut dialled = client.dialer(&id("a")).dial(target("10.96.0.1:443")).await.expect("dialled");
    let room = files().saturating_sub(2_000).min(ALL);
    assert!(room > 2 * ROUND, "this process may open too few files for the test");
    let mut crowd = VecDeque::new();
    for round in 0..ALL / ROUND {
        let connecting = join_all((0..ROUND).map(|_| TcpStream::connect(door.address)));
        let (came, answered) = tokio::join!(connecting, client.ready());
        assert!(answered.expect("the honest client is answered"), "round {round}");
        for (n, stream) in came.into_iter().enumerate() {
            let mut stream = stream.expect("connected");
            // Half of them begin a handshake that they never end: the head of a record, and one byte.
            if n % 2 == 0 {
                let _gone = stream.write_all(&[0x16, 3, 1, 2, 0, 1]).await;
            }
            crowd.push_back(stream);
        }
        while crowd.len() > room {
            crowd.pop_front();
        }
    }
    assert!(held(&crowd) <= 512 + ROUND, "{} of {} are held", held(&crowd), crowd.len());
    dialled.write_all(b"x").await.expect("sent");
    assert_eq!(dialled.read_u8().await.expect("echoed"), b'x');
    drop((dialled, crowd));
    door.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_ends_the_handshake_and_shows_no_token_gives_way_too() {
    let door = Served::with(|door| door.server.places = crate::door::crowd::Places { admitted: 8, newcomers: 4 }).await;
    let mut idle = Vec::new();
    for _ in 0..4 {
        let mut stream = door.tls(&[]).await;
        let request = format!("GET /healthz HTTP/1.1\r\nhost: {}\r\nauthorization: none\r\n\r\n", door.address);
        stream.write_all(request.as_bytes()).await.expect("sent");
        stream.read_u8().await.expect("answered: it needs no token");
        idle.push(stream);
    }
    for _ in 0..8 {
        assert!(door.client().ready().await.expect("answered"));
    }
    let mut rest = Vec::new();
    let _reset = idle[0].read_to_end(&mut rest).await;
    drop(idle);
    door.stop().await;
}

#[tokio::test]
async fn a_head_that_never_ends_is_let_go_in_both_protocols() {
    let door = Served::new().await;
    let mut http1 = door.tls(&[]).await;
    http1.write_all(b"GET /healthz HTTP/1.1\r\nx: ").await.expect("sent");
    let mut http2 = door.tls(&[b"h2"]).await;
    // The preface, empty settings, and the first three bytes of a head of twenty (RFC 9113 sections 3.4, 4.1, 6.2).
    http2.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.expect("sent");
    http2.write_all(b"\0\0\x14\x01\x04\0\0\0\x01\x82\x84\x87").await.expect("sent");
    tokio::time::pause();
    let began = tokio::time::Instant::now();
    let mut rest = Vec::new();
    let _reset = http1.read_to_end(&mut rest).await;
    assert!(began.elapsed() < Duration::from_secs(15), "HTTP/1.1: {:?}", began.elapsed());
    let _reset = http2.read_to_end(&mut rest).await;
    assert!(began.elapsed() < Duration::from_secs(60), "HTTP/2: {:?}", began.elapsed());
    door.stop().await;
}

#[tokio::test]
async fn a_body_byte_by_byte_gets_its_time_as_a_whole() {
    let door = Served::new().await;
    let mut slow = door.tls(&[]).await;
    let head = format!(
        "POST /api/v1/verify HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer {}\r\nconnection: close\r\ncontent-length: 1000\r\n\r\n",
        door.address,
        door.token()
    );
    slow.write_all(head.as_bytes()).await.expect("sent");
    let (mut read, mut write) = tokio::io::split(slow);
    tokio::time::pause();
    let began = tokio::time::Instant::now();
    let dripping = async {
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            if write.write_all(b" ").await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    };
    let mut answer = String::new();
    tokio::select! {
        _ = read.read_to_string(&mut answer) => {}
        () = dripping => {}
    }
    assert_eq!(said(&answer), refused(408, "slow_body"));
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    door.stop().await;
}
