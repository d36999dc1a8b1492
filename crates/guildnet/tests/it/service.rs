//! The Host App as a service: its units, the socket that systemd hands over, what systemd is told, and the log.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    net::TcpListener,
    os::{
        fd::OwnedFd,
        unix::{fs::PermissionsExt as _, net::UnixDatagram},
    },
    process::{Child, Command, Stdio},
    time::Duration,
};

use crate::sandbox::Sandbox;

/// How long a Host App may take to say something, at most: far above what a loaded machine needs.
const PATIENCE: Duration = Duration::from_secs(60);

/// Asks systemd's own checker, which needs no running systemd, about units that belong together.
#[track_caller]
pub(crate) fn accepted_by_systemd(units: &[(&str, &str)], of_person: bool) {
    let folder = tempfile::tempdir().expect("a folder");
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700)).expect("mode");
    let files = units.iter().map(|(name, text)| {
        let file = folder.path().join(name);
        fs::write(&file, text).expect("written");
        file
    });
    let files: Vec<_> = files.collect();
    let mut check = Command::new("systemd-analyze");
    check.args(of_person.then_some("--user")).args(["--man=no", "verify"]).args(files).stdin(Stdio::null());
    let said = check.env("XDG_RUNTIME_DIR", folder.path()).output();
    let said = said.unwrap_or_else(|why| panic!("systemd-analyze (Debian's package systemd): {why}"));
    let text = String::from_utf8_lossy(&said.stderr);
    // Units of the machine that are broken by themselves are none of ours.
    let ours = units.iter().any(|(name, _)| text.contains(&format!("{name}:")));
    assert!(said.status.success() && !ours, "{text}\n{units:#?}");
}

#[test]
fn units_are_printed_and_nothing_is_made() {
    let sandbox = Sandbox::new();
    let before = sandbox.listing();
    for (flag, target) in [("--systemd", "default.target"), ("--systemd=system", "multi-user.target")] {
        let run = |more: &[&str]| {
            let ran = sandbox.run(&[&["serve", flag, "--listen", "127.0.0.1:8090"], more].concat());
            assert_eq!(ran.code, 0, "{ran:#?}");
            ran.out
        };
        let (service, socket) = (run(&[]), run(&["--socket"]));
        assert!(service.contains(&format!("WantedBy={target}\n")) && service.contains("Type=notify\n"), "{service}");
        assert!(service.contains(" serve --home "), "{service}");
        assert!(socket.contains("ListenStream=127.0.0.1:8090\n"), "{socket}");
        accepted_by_systemd(&[("guildnet.service", &service), ("guildnet.socket", &socket)], flag == "--systemd");
    }
    sandbox.run(&["serve", "--systemd", "--listen", "0.0.0.0:8090"]).refused(2, &["this device only"]);
    assert_eq!(sandbox.run(&["serve", "--socket"]).code, 2);
    assert_eq!(sandbox.listing(), before);
}

/// A Host App as systemd would run it, ended with the test.
struct Service {
    process: Child,
    told: UnixDatagram,
}

impl Service {
    /// Starts one with this socket as descriptor 3, which is said to be for it `fds` times.
    fn start(sandbox: &Sandbox, socket: &TcpListener, fds: &str) -> Self {
        let path = sandbox.path("notify");
        let _ = fs::remove_file(&path);
        let told = UnixDatagram::bind(&path).expect("bound");
        told.set_read_timeout(Some(PATIENCE)).expect("set");
        sandbox.open_up(&path, 0o600);
        // The shell is the process that becomes the Host App, as it would be between systemd's fork and exec.
        let script = r#"exec 3<&0 </dev/null; LISTEN_PID=$$; export LISTEN_PID; exec "$0" serve"#;
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", script, env!("CARGO_BIN_EXE_guildnet")]);
        let mut shell = sandbox.prepared(shell);
        shell
            .env("LISTEN_FDS", fds)
            .env("NOTIFY_SOCKET", &path)
            .stdin(OwnedFd::from(socket.try_clone().expect("cloned")))
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        Self { process: shell.spawn().expect("sh"), told }
    }

    /// What systemd is told next.
    #[track_caller]
    fn next(&self) -> String {
        let mut said = [0; 256];
        let length = self.told.recv(&mut said).expect("systemd is told");
        String::from_utf8_lossy(&said[..length]).into_owned()
    }

    fn end(mut self) -> i32 {
        let pid = rustix::process::Pid::from_child(&self.process);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("ours");
        assert!(self.next().starts_with("STOPPING=1\n"));
        self.process.wait().expect("it ends").code().expect("by itself")
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn a_socket_that_systemd_holds_is_served_again_and_again() {
    let sandbox = Sandbox::new();
    let socket = TcpListener::bind("127.0.0.1:0").expect("bound");
    let address = socket.local_addr().expect("bound");
    for _ in 0..2 {
        let service = Service::start(&sandbox, &socket, "1");
        let said = service.next();
        assert!(said.starts_with("READY=1\n") && said.contains(&format!("https://{address}")), "{said}");
        let file = fs::read_to_string(sandbox.path("home/host.addr")).expect("announced");
        assert_eq!(file.trim(), address.to_string());
        // Where the settings would have it listen, nobody does: this asks at the socket's address.
        let ran = sandbox.run(&["status", "-o", "json"]);
        assert!(ran.code == 0 && ran.out.contains(&format!("https://{address}")), "{ran:#?}");
        let ran = sandbox.run(&["logs"]);
        ran.refused(3, &["host.log", "journalctl --user -u guildnet"]);
        assert_eq!(service.end(), 0);
        assert!(!sandbox.path("home/host.addr").exists());
        // Whoever comes now waits for the next one.
        std::net::TcpStream::connect(address).expect("the port is still held");
    }
}

#[test]
fn what_can_not_be_the_door_is_refused_before_anything_is_made() {
    let sandbox = Sandbox::new();
    let before = sandbox.listing().len();
    let everywhere = TcpListener::bind("0.0.0.0:0").expect("bound");
    let loopback = TcpListener::bind("127.0.0.1:0").expect("bound");
    for (socket, fds, said) in [(&everywhere, "1", "this device only"), (&loopback, "2", "2 sockets")] {
        let mut service = Service::start(&sandbox, socket, fds);
        let err = std::io::read_to_string(service.process.stderr.take().expect("piped")).expect("read");
        assert_eq!(service.process.wait().expect("ended").code(), Some(2), "{err}");
        assert!(err.contains(said) && err.contains("hint: let guildnet.socket have one line"), "{err}");
    }
    assert_eq!(sandbox.listing().len(), before + 1, "but the test's own socket");
}

#[test]
fn the_log_of_one_cluster_is_printed_and_followed() {
    let sandbox = Sandbox::new();
    sandbox.run(&["logs"]).refused(3, &["host.log", "guildnet up"]);
    sandbox.file("home/host.log", "INFO x: connector cluster=a\nINFO x: connector cluster=b\n[   0.1s] a: ready\n");
    assert_eq!(sandbox.run(&["logs", "a"]).out, "INFO x: connector cluster=a\n[   0.1s] a: ready\n");
    assert_eq!(sandbox.run(&["logs", "-n", "1"]).out, "[   0.1s] a: ready\n");
    sandbox.run(&["logs", "c"]).refused(3, &["there is no cluster c"]);
    sandbox.run(&["logs", "A b"]).refused(2, &["A b"]);

    let mut command = sandbox.prepared(Command::new(env!("CARGO_BIN_EXE_guildnet")));
    command.args(["logs", "b", "--follow"]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut following = command.spawn().expect("the command starts");
    let mut out = BufReader::new(following.stdout.take().expect("piped"));
    let mut line = String::new();
    out.read_line(&mut line).expect("read");
    assert_eq!(line, "INFO x: connector cluster=b\n");
    fs::rename(sandbox.path("home/host.log"), sandbox.path("home/host.log.1")).expect("put aside");
    sandbox.file("home/next", "INFO x: new cluster=a\nINFO x: new cluster=b\n");
    fs::rename(sandbox.path("home/next"), sandbox.path("home/host.log")).expect("the next one");
    line.clear();
    out.read_line(&mut line).expect("read");
    assert_eq!(line, "INFO x: new cluster=b\n");
    // Nothing more is written: that nobody reads ends it.
    drop(out);
    let ended = following.wait_with_output().expect("it ends");
    assert!(ended.status.success() && ended.stderr.is_empty(), "{ended:?}");
}
