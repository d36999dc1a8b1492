//! Small real programs: how often they run, what they see, and what is made of what they say.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use futures_util::future::join_all;

use super::*;

const V1: &str = "client.authentication.k8s.io/v1";
const FAR: &str = "2999-01-01T00:00:00Z";

/// A folder with a program that counts its runs, and the program.
struct Tried {
    folder: tempfile::TempDir,
    program: Program,
}

impl Tried {
    /// A shell script; it works in its folder, and `$run` is the number of the run.
    fn new(script: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let command = folder.path().join("program");
        let begin = format!("#!/bin/sh\ncd {}\necho x >> runs\nrun=$(wc -l < runs)\n", folder.path().display());
        fs::write(&command, begin + script).expect("written");
        fs::set_permissions(&command, fs::Permissions::from_mode(0o755)).expect("mode");
        let spec = ExecSpec {
            api_version: V1.into(),
            command,
            args: vec!["one arg".into(), "$HOME;x".into()],
            env: vec![("OWN".into(), "its value".into())],
            cluster: None,
        };
        Self { folder, program: Program::new(spec) }
    }

    /// One that gives the token `t<run>`, which ends then.
    fn giving(ends: &str) -> Self {
        Self::new(&format!(
            r#"echo '{{"apiVersion":"{V1}","kind":"ExecCredential","status":{{"token":"t'$run'","expirationTimestamp":"{ends}"}}}}'"#
        ))
    }

    fn file(&self, name: &str) -> String {
        fs::read_to_string(self.folder.path().join(name)).unwrap_or_default()
    }

    fn runs(&self) -> usize {
        self.file("runs").lines().count()
    }

    async fn token(&self) -> String {
        self.program.bearer().await.expect("a token").to_str().expect("text").replace("Bearer ", "")
    }

    async fn refusal(&self) -> String {
        let said = self.program.bearer().await.expect_err("no token").to_string();
        let named = format!("the program {} that gets its credential: ", self.program.spec.command.display());
        said.strip_prefix(&named).unwrap_or_else(|| panic!("{said} names the program")).to_owned()
    }
}

#[test]
fn a_token_is_replaced_before_its_end_and_not_used_at_it() {
    let got = SystemTime::now();
    let of = |life: u64, after: u64| {
        age(Some(Ends::of(got + Duration::from_secs(life), got)), got + Duration::from_secs(after))
    };
    assert_eq!(
        [0, 839, 840, 894, 895, 1_000].map(|after| of(900, after)),
        [Age::Good, Age::Good, Age::Soon, Age::Soon, Age::Over, Age::Over]
    );
    // One that lives for seconds is not fetched again with every request.
    assert_eq!([0, 5, 6, 7].map(|after| of(8, after)), [Age::Good, Age::Good, Age::Soon, Age::Over]);
    assert_eq!(age(Some(Ends::of(got - Duration::from_secs(1), got)), got), Age::Over);
    assert_eq!(age(None, got), Age::Good);
}

#[tokio::test]
async fn all_requests_share_one_run_and_its_token_until_that_ends() {
    let tried = Tried::giving(FAR);
    let tokens = join_all((0..20).map(|_| tried.token())).await;
    assert!(tokens.iter().all(|t| t == "t1"), "{tokens:?}");
    assert_eq!(tried.token().await, "t1");
    assert_eq!(tried.runs(), 1);
    let ended = Tried::giving("2000-01-01T00:00:00Z");
    assert_eq!((ended.token().await, ended.token().await), ("t1".into(), "t2".into()));
}

#[tokio::test]
async fn near_its_end_a_token_is_used_while_the_next_one_is_fetched() {
    let tried = Tried::giving(FAR);
    assert_eq!(tried.token().await, "t1");
    tried.program.state.lock().await.held.as_mut().expect("held").ends.as_mut().expect("an end").soon =
        SystemTime::now();
    assert_eq!(tried.token().await, "t1", "nobody waits");
    tried.program.state.lock().await.finish().await.expect("the next one");
    assert_eq!(tried.token().await, "t2");
}

#[tokio::test]
async fn a_token_that_the_server_refuses_is_replaced_once() {
    let tried = Tried::giving(FAR);
    let first = tried.program.bearer().await.expect("a token");
    assert!(tried.program.refused(&first).await);
    assert_eq!(tried.token().await, "t2");
    assert!(tried.program.refused(&first).await, "another request had the old one still");
    let second = tried.program.bearer().await.expect("a token");
    assert!(!tried.program.refused(&second).await, "it is no matter of age");
    assert_eq!((tried.token().await, tried.runs()), ("t2".into(), 2));
}

#[tokio::test]
async fn one_that_nobody_waits_for_any_more_is_not_run_twice() {
    let tried = Tried::new(&format!(
        r#"while [ ! -e go ]; do sleep 0.01; done
echo '{{"apiVersion":"{V1}","status":{{"token":"t'$run'"}}}}'"#
    ));
    let given_up = timeout(Duration::from_millis(50), tried.program.bearer()).await;
    assert!(given_up.is_err(), "it waits for the file");
    fs::write(tried.folder.path().join("go"), "").expect("written");
    assert_eq!((tried.token().await, tried.runs()), ("t1".into(), 1));
}

#[tokio::test]
async fn a_failure_says_what_the_program_said_and_never_its_answer() {
    let tried = Tried::new("echo s3cret\necho 'you are not\n  logged in' >&2\nexit 3\n");
    assert_eq!(tried.refusal().await, "it ended with exit code 3: you are not logged in");
    assert_eq!(tried.refusal().await, "it ended with exit code 3: you are not logged in");
    assert_eq!(tried.runs(), 1, "not once for each request");
    let long = Tried::new("head -c 200000 /dev/zero | tr '\\0' w >&2\nexit 1\n").refusal().await;
    assert!(long.len() < 2 * MAX_SHOWN, "{long}");
}

#[tokio::test]
async fn an_answer_that_can_not_be_used_is_told_without_being_quoted() {
    let said = async |answer: &str| Tried::new(&format!("echo '{answer}'")).refusal().await;
    assert_eq!(said("s3cret").await, "its answer is no ExecCredential");
    let other = r#"{"apiVersion":"client.authentication.k8s.io/v1beta1","status":{"token":"s3cret"}}"#;
    assert_eq!(said(other).await, format!("it answers in another version than it is asked in ({V1})"));
    let of = |status: &str| format!(r#"{{"apiVersion":"{V1}","status":{status}}}"#);
    assert_eq!(said(&of("null")).await, "its answer has no status");
    assert_eq!(said(&of(r#"{"token":""}"#)).await, "its answer has no token");
    let certificate = of(r#"{"clientCertificateData":"PEM","clientKeyData":"s3cret"}"#);
    assert!(said(&certificate).await.starts_with("it gives a client certificate"), "{certificate}");
    let large = Tried::new("head -c 2000000 /dev/zero | tr '\\0' x").refusal().await;
    assert_eq!(large, "its answer is larger than 1 MiB");
    let nothing = ExecSpec { command: "/nonexistent/program".into(), ..(*Tried::giving(FAR).program.spec).clone() };
    let said = Program::new(nothing).bearer().await.expect_err("not there").to_string();
    assert!(said.contains("/nonexistent/program") && said.contains("it can't be run: No such file"), "{said}");
}

#[tokio::test]
async fn it_sees_what_it_needs_and_nothing_else_of_this_process() {
    let tried = Tried::new("env > seen\nprintf '%s\\n' \"$@\" > args\ncat > input\necho '{'");
    tried.refusal().await;
    let seen = tried.file("seen");
    assert!(seen.contains("OWN=its value\n") && seen.contains("PATH="), "{seen}");
    assert!(seen.contains(r#""spec":{"cluster":null,"interactive":false}"#), "{seen}");
    // The test's own environment has this one.
    assert!(std::env::var_os("CARGO_MANIFEST_DIR").is_some() && !seen.contains("CARGO_"), "{seen}");
    assert_eq!(tried.file("args"), "one arg\n$HOME;x\n", "no shell has looked at them");
    assert_eq!(tried.file("input"), "");
}

#[tokio::test]
async fn one_that_hangs_is_ended_with_everything_that_it_started() {
    let mut tried = Tried::new("sleep 1000 &\necho $! > child\nsleep 1000\n");
    tried.program.run_time = Duration::from_millis(300);
    assert_eq!(tried.refusal().await, "it gave no answer within 300ms");
    let child = tried.file("child").trim().to_owned();
    let gone = async {
        while is_running(&child) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(10), gone).await.expect("what it started has ended");
}

/// Whether a process is there and is more than an entry that its parent has not read.
fn is_running(pid: &str) -> bool {
    let stat = fs::read_to_string(Path::new("/proc").join(pid).join("stat"));
    stat.is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or_default().trim_start().starts_with('Z'))
}
