//! The lock, the files beside it, and the life of a process. "This program" is the test program here: started again, it
//! runs one of the ignored tests below in the Host App's place.

use std::{
    os::fd::AsFd as _,
    process::{Command as Process, Stdio},
};

use guildnet_model::Explain as _;

use super::*;

fn home() -> tempfile::TempDir {
    tempfile::tempdir().expect("tempdir")
}

#[test]
fn one_host_app_for_each_home_folder() {
    let home = home();
    assert_eq!(running(home.path()).expect("asked"), None);
    let first = Instance::take(home.path()).expect("taken");
    let pid = std::process::id();
    assert_eq!(running(home.path()).expect("asked"), Some(Running { pid, address: None }));

    let refused = Instance::take(home.path()).expect_err("refused");
    assert_eq!(refused.class(), Class::Conflict);
    assert!(refused.to_string().ends_with(&format!("(process {pid})")), "{refused}");

    let address: SocketAddr = ([127, 0, 0, 1], 8090).into();
    first.announce(address).expect("announced");
    assert_eq!(running(home.path()).expect("asked"), Some(Running { pid, address: Some(address) }));
    drop(first);
    assert_eq!(running(home.path()).expect("asked"), None);
    Instance::take(home.path()).expect("free again");
}

#[test]
fn what_a_killed_host_app_left_means_nothing() {
    let home = home();
    private::make_dir(home.path()).expect("private");
    for (name, content) in [("host.lock", ""), ("host.pid", "1 1\n"), ("host.addr", "127.0.0.1:8090\n")] {
        private::write(&home.path().join(name), content.as_bytes()).expect("written");
    }
    assert_eq!(running(home.path()).expect("asked"), None);
    let _next = Instance::take(home.path()).expect("taken");
    assert_eq!(running(home.path()).expect("asked").expect("this one").address, None, "the old address is gone");
}

#[test]
fn a_number_that_was_given_to_another_process_is_not_trusted() {
    let home = home();
    let _held = Instance::take(home.path()).expect("taken");
    private::write(&home.path().join("host.pid"), format!("{} 1\n", std::process::id()).as_bytes()).expect("written");
    assert!(running(home.path()).is_err());
}

#[tokio::test]
async fn stopping_what_does_not_run_is_no_error() {
    assert!(!stop(home().path(), Duration::ZERO).await.expect("nothing to stop"));
}

/// A process that looks like the Host App of `home`, and the lock that it would hold.
fn stand_in(home: &Path, script: &str) -> (std::process::Child, Instance) {
    let held = Instance::take(home).expect("taken");
    let mut child = Process::new("sh").args(["-c", script]).stdout(Stdio::piped()).spawn().expect("sh");
    // Its signal handler is in place once it has spoken.
    child.stdout.as_mut().expect("piped").read_exact(&mut [0]).expect("started");
    let line = format!("{} {}\n", child.id(), started(child.id()).expect("runs"));
    private::write(&home.join("host.pid"), line.as_bytes()).expect("written");
    (child, held)
}

#[tokio::test]
async fn a_host_app_is_asked_before_it_is_killed() {
    let home = home();
    let (mut child, _held) = stand_in(home.path(), "trap 'kill $!; exit 7' TERM; tail -f /dev/null & echo; wait");
    assert!(stop(home.path(), Duration::from_secs(20)).await.expect("stopped"));
    assert_eq!(child.wait().expect("ended").code(), Some(7), "it ended by itself");
}

#[tokio::test]
async fn a_host_app_that_does_not_listen_is_killed() {
    use std::os::unix::process::ExitStatusExt as _;
    let home = home();
    let (mut child, _held) = stand_in(home.path(), "trap '' TERM; echo; exec tail -f /dev/null");
    assert!(stop(home.path(), Duration::from_millis(50)).await.expect("stopped"));
    assert_eq!(child.wait().expect("ended").signal(), Some(9));
}

#[test]
fn the_log_is_private_and_put_aside_when_it_is_large() {
    let home = home();
    private::make_dir(home.path()).expect("private");
    let (mut log, seen) = HOST.of(home.path()).open_log(false).expect("opened");
    for n in 0..100 {
        writeln!(log, "line {n}").expect("written");
    }
    private::check(&home.path().join("host.log")).expect("private");
    let shown = HOST.of(home.path()).tail(seen);
    assert_eq!(shown.lines().count(), LOG_TAIL.0 + 1, "each on a line of its own, after the message");
    assert!(shown.ends_with("\n  line 99"), "{shown}");
    assert_eq!(HOST.of(home.path()).tail(log.metadata().expect("meta").len()), "", "nothing of an earlier start");

    log.set_len(LOG_LIMIT + 1).expect("grown");
    let (log, _) = HOST.of(home.path()).open_log(false).expect("opened");
    assert!(log.metadata().expect("meta").len() < 100);
    private::check(&home.path().join("host.log.1")).expect("kept aside");
}

#[test]
fn the_exit_code_of_a_failed_start_says_of_what_kind() {
    use std::os::unix::process::ExitStatusExt as _;
    let home = home();
    let class = |code: i32| HOST.of(home.path()).ended(ExitStatus::from_raw(code << 8), 0).class();
    assert_eq!(
        (class(6), class(4), class(1), class(101)),
        (Class::Conflict, Class::Credentials, Class::Failed, Class::Failed)
    );
}

/// What `start_background` is to run here.
fn instead(inner: &str) -> Vec<OsString> {
    let name = format!("daemon::tests::{inner}");
    [name.as_str(), "--exact", "--ignored", "--nocapture"].map(OsString::from).into()
}

#[tokio::test]
async fn a_host_app_is_started_in_the_background_found_and_stopped() {
    let home = home();
    let args = instead("serves_until_it_is_asked_to_end");
    // As a shell may have left one open: it must not live on in the background.
    let (inherited, left_open) = nix::unistd::pipe().expect("a pipe that programs inherit");
    let started = start_background(&args, home.path()).await.expect("started");
    drop(left_open);
    let mut other_end = [nix::poll::PollFd::new(inherited.as_fd(), nix::poll::PollFlags::empty())];
    nix::poll::poll(&mut other_end, 1_000_u16).expect("polled");
    assert_eq!(other_end[0].revents(), Some(nix::poll::PollFlags::POLLHUP), "nobody holds the other end");
    assert_ne!(started.pid, std::process::id());
    assert_eq!(running(home.path()).expect("asked"), Some(started));
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", started.pid)).expect("stat");
    let session = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(3)?.parse().ok());
    assert_eq!(session, Some(started.pid), "a session of its own: closing the terminal does not end it");

    let client = HostClient::discover(home.path()).expect("readable").expect("running");
    assert_eq!(client.url(), format!("https://{}", started.address.expect("an address")));
    assert!(client.ready().await.expect("answers"));
    assert_eq!(start_background(&args, home.path()).await.expect_err("refused").class(), Class::Conflict);

    assert!(stop(home.path(), Duration::from_secs(20)).await.expect("stopped"));
    assert_eq!(running(home.path()).expect("asked"), None);
    assert!(HostClient::discover(home.path()).expect("readable").is_none());
    let log = std::fs::read_to_string(home.path().join("host.log")).expect("the log");
    assert!(log.contains("served until SIGTERM"), "{log}");
}

#[tokio::test]
#[ignore = "run by a_host_app_is_started_in_the_background_found_and_stopped, as the Host App"]
async fn serves_until_it_is_asked_to_end() {
    let mut asked = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).expect("a handler");
    let home = std::env::current_dir().expect("the home folder");
    let instance = Instance::take(&home).expect("the only one");
    let api = std::sync::Arc::new(crate::door::tests::Fake::default());
    let door =
        crate::door::Door::bind(&home, crate::door::Listen::At(([127, 0, 0, 1], 0).into()), api).await.expect("bound");
    let address = door.address();
    let end = tokio_util::sync::CancellationToken::new();
    let serving = door.spawn(end.clone());
    instance.announce(address).expect("announced");
    asked.recv().await;
    end.cancel();
    serving.await.expect("ended in order");
    println!("served until SIGTERM");
}

#[tokio::test]
async fn a_failed_start_shows_the_end_of_the_log_and_keeps_the_class() {
    let home = home();
    let failed = start_background(&instead("fails_like_a_port_that_is_taken"), home.path()).await.expect_err("failed");
    assert_eq!(failed.class(), Class::Conflict);
    assert!(failed.to_string().contains("\n  error: 127.0.0.1:8090 is taken"), "{failed}");
    assert_eq!(running(home.path()).expect("asked"), None);
}

#[test]
#[ignore = "run by a_failed_start_shows_the_end_of_the_log_and_keeps_the_class, as the Host App"]
fn fails_like_a_port_that_is_taken() {
    eprintln!("error: 127.0.0.1:8090 is taken");
    std::process::exit(Class::Conflict.exit_code().into());
}
