//! kubectl's long requests: followed logs, exec with and without a terminal, attach, cp, port-forward.
//!
//! kubectl speaks WebSocket and, where that is refused, SPDY without a word: each is asked for by name, and kubectl has to say
//! which it was.

use std::{
    fs::{self, File},
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    time::Duration,
};

use super::{person::Person, running::Running};
use crate::fleet::{Ran, STEP, finish};

/// A pod to enter.
const IDLE: &str = "while true; do sleep 1; done";
/// A pod that goes on talking, five lines a second.
const COUNTER: &str = "n=0; while true; do echo line $n; n=$((n+1)); sleep 0.2; done";
/// A pod that repeats what it hears until its input ends.
const PARROT: &str = "while read -r word; do echo heard $word; done; echo ended";

/// More than the windows of every connection on the way, so that back-pressure is needed.
const SIZE: usize = 8 << 20;

/// How kubectl is told to speak: a name, and the value of its switches.
const PROTOCOLS: [(&str, &str); 2] = [("WebSocket", "true"), ("SPDY", "false")];
/// The switch of exec, attach and cp, and what kubectl says at level 4 when it speaks WebSocket.
const REMOTE_COMMAND: (&str, &str) = ("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", "The subprotocol is v5.channel.k8s.io");
/// The same of port-forward.
const PORT_FORWARD: (&str, &str) = ("KUBECTL_PORT_FORWARD_WEBSOCKETS", "negotiated protocol: portforward.k8s.io");

/// Bytes that nothing can compress or guess.
fn noise() -> Vec<u8> {
    let mut bytes = vec![0; SIZE];
    File::open("/dev/urandom").and_then(|mut from| from.read_exact(&mut bytes)).expect("the kernel gives");
    bytes
}

fn pods(person: &Person, cluster: &str, pods: &[(&str, bool, &str)]) {
    let all: String = pods.iter().map(|(name, stdin, script)| person.pod(cluster, name, *stdin, script)).collect();
    person.apply(cluster, &all);
    for (name, ..) in pods {
        person.kubectl(cluster, &["wait", "--for=condition=Ready", "pod", name, "--timeout=50s"]).ok();
    }
}

/// kubectl with a protocol, which it has to say that it speaks.
#[track_caller]
fn spoken(person: &Person, cluster: &str, protocol: (&str, &str), args: &[&str], input: &[u8]) -> Ran {
    let mut command = person.kubectl_command(cluster);
    command.env(REMOTE_COMMAND.0, protocol.1).arg("-v=4").args(args);
    let ran = finish(command, input, STEP);
    assert_eq!(ran.err.contains(REMOTE_COMMAND.1), protocol.0 == "WebSocket", "{}: {}", protocol.0, ran.err);
    ran
}

#[test]
fn kubectl_logs_follow_a_pod_that_goes_on() {
    let person = Person::at("logs");
    person.each(|cluster| {
        pods(&person, cluster, &[("counter", false, COUNTER)]);
        let mut follow = person.kubectl_command(cluster);
        follow.args(["logs", "-f", "counter"]);
        let mut follow = Running::start(follow);
        let number = |line: &str| line.strip_prefix("line ").and_then(|n| n.parse::<u32>().ok());
        // What was said before is there to its end, and then it goes on: each line once, in order.
        let mut next = |expected| assert_eq!(follow.find("another line", |line| Some(number(line))), Some(expected));
        next(0);
        let written = person.kubectl(cluster, &["logs", "--tail=1", "counter"]).ok();
        let now = number(written.trim()).expect("a line of the counter's");
        (1..now + 15).for_each(&mut next);
        // Another reader, while the first is still there.
        let all = person.kubectl(cluster, &["logs", "counter", "--timestamps"]).ok();
        let seen = usize::try_from(now).expect("a small number") + 15;
        assert!(all.lines().count() >= seen && all.contains("Z line 3\n"), "{all}");
    });
}

#[test]
fn kubectl_exec_gives_a_terminal_of_the_right_size() {
    let person = Person::at("terminal");
    person.each(|cluster| {
        pods(&person, cluster, &[("idle", false, IDLE)]);
        for (name, websocket) in PROTOCOLS {
            let asked = person.path(&format!("resize-{cluster}-{name}"));
            // `script` gives kubectl a terminal, whose size is set before and changed when the test says so.
            let kubectl = person.fleet.lab.program("kubernetes", "kubectl");
            let inside = format!(
                "stty rows 37 cols 101; here=$(tty); (until [ -e {asked} ]; do sleep 0.1; done; \
                 stty -F $here rows 40 cols 120) & exec {kubectl} --context guildnet-{cluster} -n {ns} \
                 -v=4 exec -it idle -- sh",
                asked = asked.display(),
                kubectl = kubectl.display(),
                ns = person.namespace
            );
            let mut script = person.command("script");
            script.env(REMOTE_COMMAND.0, websocket).env("SHELL", "/bin/sh").args(["-qec", &inside, "/dev/null"]);
            let mut shell = Running::start(script);
            shell.type_in("busybox tty\n");
            shell.find("a terminal in the pod", |line| line.starts_with("/dev/pts/").then_some(()));
            // The size follows the start: asked until it is there.
            shell.type_in("until [ \"$(busybox stty size)\" = '37 101' ]; do sleep 0.1; done; echo size-$((1*1))\n");
            shell.until_line("size-1");
            person.file(asked.file_name().and_then(|n| n.to_str()).expect("a name"), "");
            shell.type_in("until [ \"$(busybox stty size)\" = '40 120' ]; do sleep 0.1; done; echo size-$((1+1))\n");
            shell.until_line("size-2");
            // A key that is a signal there, not here.
            shell.type_in("echo asleep-$((2+1)); sleep 1000\n");
            shell.until_line("asleep-3");
            shell.type_in("\u{3}");
            shell.type_in("echo awake-$((2+2))\n");
            shell.until_line("awake-4");
            shell.type_in("exit 7\n");
            assert_eq!(shell.end(), 7, "{name}: the shell's exit code\n{}", shell.said().join("\n"));
            assert_eq!(shell.has_said(REMOTE_COMMAND.1), name == "WebSocket", "{}", shell.said().join("\n"));
        }
    });
}

#[test]
fn kubectl_exec_attach_and_cp_lose_no_byte() {
    let person = Person::at("bytes");
    let noise = noise();
    let sent = person.file("sent", &noise);
    person.each(|cluster| {
        pods(&person, cluster, &[("idle", false, IDLE), ("parrot-ws", true, PARROT), ("parrot-spdy", true, PARROT)]);
        for protocol in PROTOCOLS {
            let exec = |args: &[&str], input: &[u8]| {
                let args = [&["exec", "-i", "idle", "--"], args].concat();
                spoken(&person, cluster, protocol, &args, input)
            };
            let said = exec(&["sh", "-c", "echo out; echo err >&2; exit 7"], b"");
            said.refused(7, &["err\n", "exit code 7"]);
            assert_eq!(said.out, "out\n", "{}", protocol.0);

            let sum = exec(&["sh", "-c", "cat >/tmp/up; busybox sha256sum /tmp/up"], &noise).ok();
            let expected = checksum(&person, &sent);
            assert!(sum.starts_with(&expected), "{} up: {sum} is not {expected}", protocol.0);
            both_ways(&person, cluster, protocol, &sent, &noise);

            let copy = format!("copy-{cluster}-{}", protocol.0);
            let there = format!("{}/idle:/tmp/{copy}", person.namespace);
            spoken(&person, cluster, protocol, &["cp", "sent", &there], b"").ok();
            spoken(&person, cluster, protocol, &["cp", &there, &copy], b"").ok();
            assert!(fs::read(person.path(&copy)).expect("copied") == noise, "{}: cp changed bytes", protocol.0);
        }
        for (protocol, parrot) in PROTOCOLS.into_iter().zip(["parrot-ws", "parrot-spdy"]) {
            let said = spoken(&person, cluster, protocol, &["attach", "-i", parrot], b"one\ntwo\n").ok();
            assert!(said.contains("heard one\nheard two\n"), "{}: {said}", protocol.0);
            let ended = "--for=jsonpath={.status.phase}=Succeeded";
            person.kubectl(cluster, &["wait", ended, "pod", parrot, "--timeout=50s"]).ok();
            assert_eq!(person.kubectl(cluster, &["logs", parrot]).ok(), "heard one\nheard two\nended\n");
        }
    });
}

/// As much up as down at the same time, through one `cat`.
#[track_caller]
fn both_ways(person: &Person, cluster: &str, protocol: (&str, &str), sent: &Path, noise: &[u8]) {
    let back = format!("back-{cluster}-{}", protocol.0);
    let kubectl = person.kubectl_command(cluster);
    let mut shell = person.command("sh");
    shell.env(REMOTE_COMMAND.0, protocol.1).args(["-c", &format!("exec \"$@\" <{} >{back}", sent.display()), "sh"]);
    shell.arg(kubectl.get_program()).args(kubectl.get_args()).args(["exec", "-i", "idle", "--", "cat"]);
    finish(shell, b"", STEP).ok();
    assert!(fs::read(person.path(&back)).expect("written") == noise, "{}: bytes were changed or lost", protocol.0);
}

fn checksum(person: &Person, file: &Path) -> String {
    let mut sum = person.command("sha256sum");
    sum.arg(file);
    finish(sum, b"", STEP).ok().split_whitespace().next().expect("a sum").to_owned()
}

#[test]
fn kubectl_port_forward_carries_many_connections() {
    let person = Person::at("ports");
    person.each(|cluster| {
        for (name, websocket) in PROTOCOLS {
            let mut forward = person.kubectl_command(cluster);
            let args = ["-v=4", "-n", "default", "port-forward", "--address=127.0.0.1", "service/echo", ":80", ":9000"];
            forward.env(PORT_FORWARD.0, websocket).args(args);
            let mut forward = Running::start(forward);
            let mut port = |to: &str| -> SocketAddr {
                forward.find(to, |line| {
                    let from = line.strip_prefix("Forwarding from ")?;
                    from.strip_suffix(to)?.parse().ok()
                })
            };
            let (http, bytes) = (port(" -> 8080"), port(" -> 9000"));
            std::thread::scope(|scope| {
                for _ in 0..8 {
                    scope.spawn(|| {
                        let said = ask(http, b"GET / HTTP/1.0\r\n\r\n", &[]);
                        let said = String::from_utf8_lossy(&said);
                        assert!(said.contains(&format!("cluster={cluster}\n")), "{name}: {said}");
                    });
                }
                scope.spawn(|| {
                    let count = (SIZE as u64).to_be_bytes();
                    assert_eq!(ask(bytes, &[b"D".as_slice(), &count].concat(), &[]).len(), SIZE, "{name}: down");
                });
                scope.spawn(|| {
                    let count = (SIZE as u64).to_be_bytes();
                    let up = vec![1; SIZE];
                    assert_eq!(ask(bytes, &[b"U".as_slice(), &count].concat(), &up), b"k", "{name}: up");
                });
            });
            forward.terminate();
            forward.end();
            assert_eq!(forward.has_said(PORT_FORWARD.1), name == "WebSocket", "{}", forward.said().join("\n"));
        }
    });
}

/// Sends, half-closes and reads to the end.
fn ask(to: SocketAddr, head: &[u8], body: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(5)).expect("kubectl listens");
    stream.set_read_timeout(Some(STEP)).expect("a timeout");
    stream.write_all(head).expect("sent");
    stream.write_all(body).expect("sent");
    stream.shutdown(std::net::Shutdown::Write).expect("half-closed");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("answered");
    answer
}
