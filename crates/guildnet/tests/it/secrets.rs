//! Secrets planted wherever one can stand, then looked for wherever none may be: the log at its most verbose, answers of
//! the API, events, `/metrics`, every file of the home folder, the process's arguments and environment, and what commands
//! print. Browsers sign in, and programs give tokens that an API server takes: what they were given is planted too.

#[path = "secrets/api_server.rs"]
mod api_server;
#[path = "secrets/host_app.rs"]
mod host_app;

use std::{fs, io::Read as _, path::PathBuf};

use guildnet_kube::{Allow, Kubeconfig};
use guildnet_model::Secret;
use guildnet_store::{ClusterRecord, HeadscaleRecord, Store};
use serde_json::Value;
use tokio::runtime::Runtime;

use crate::sandbox::{Ran, Sandbox, base64, good, record, with_user};
use api_server::ApiServer;
use host_app::{Asked, body, serve};

/// What was planted, by what it is.
#[derive(Clone, Default)]
struct Planted(Vec<(&'static str, String)>);

impl Planted {
    /// A secret of this kind; long enough to be in nothing by chance.
    fn plant(&mut self, what: &'static str) -> String {
        let secret = format!("PLANTED{:02}-{}", self.0.len(), "s3cr3t".repeat(4));
        self.0.push((what, secret.clone()));
        secret
    }

    /// One that is there already.
    fn known(&mut self, what: &'static str, secret: &str) {
        assert!(secret.len() >= 20, "{what}");
        self.0.push((what, secret.to_owned()));
    }

    #[track_caller]
    fn is_not_in(&self, place: &str, content: &[u8]) {
        self.is_not_in_but_for(&[], place, content);
    }

    /// The same where some secrets may be, by what they are.
    #[track_caller]
    fn is_not_in_but_for(&self, given: &[&str], place: &str, content: &[u8]) {
        assert!(!content.is_empty(), "nothing was looked at: {place}");
        for (what, secret) in self.0.iter().filter(|(what, _)| !given.contains(what)) {
            let forms = [secret.clone(), base64(secret.as_bytes()).trim_end_matches('=').to_owned()];
            for form in forms {
                // The last letters of base64 depend on what follows.
                let form = &form.as_bytes()[..form.len() - 2];
                let found = content.windows(form.len()).any(|window| window == form);
                assert!(!found, "{what} is in {place}:\n{}", String::from_utf8_lossy(content));
            }
        }
    }
}

/// A cluster whose kubeconfig says this about the user; it is to be connected, and its Headscale refuses at once.
fn cluster(sandbox: &Sandbox, id: &str, kubeconfig: &str, programs: &[PathBuf], keys: &[String; 2]) -> ClusterRecord {
    let file = sandbox.path(&format!("{id}.kubeconfig"));
    fs::write(&file, kubeconfig).expect("written");
    let allow = Allow { programs: programs.to_vec(), ..Allow::default() };
    let access = Kubeconfig::read(&file).and_then(|k| k.access(None, &allow)).expect("a credential");
    fs::remove_file(&file).expect("it was written");
    let saved = access.to_secret_bytes();
    ClusterRecord {
        kubeconfig: Secret::new(String::from_utf8(saved.expose().clone()).expect("text")),
        client_auth_key: Some(Secret::new(keys[0].clone())),
        router_auth_key: Some(Secret::new(keys[1].clone())),
        disconnected: false,
        ..record(id, &sandbox.path("home"))
    }
}

/// A program that gives this answer, as the kubeconfig of a cluster at this API server names it.
fn with_program(
    sandbox: &Sandbox,
    server: &ApiServer,
    name: &str,
    answer: &str,
    planted: &mut Planted,
) -> (String, PathBuf) {
    let program = sandbox.path(name);
    fs::write(&program, format!("#!/bin/sh\necho '{answer}'\n")).expect("written");
    sandbox.open_up(&program, 0o700);
    let exec = format!(
        "exec: {{apiVersion: client.authentication.k8s.io/v1, command: {}, interactiveMode: Never, \
         args: [--token, {}], env: [{{name: X, value: {}}}]}}",
        program.display(),
        planted.plant("an argument of a credential's program"),
        planted.plant("a variable of a credential's program")
    );
    let authority = format!("certificate-authority-data: {}", base64(server.authority.as_bytes()));
    let address = format!("https://{}", server.address);
    (with_user("x", &authority, &exec).replace("https://127.0.0.1:9", &address), program)
}

/// Puts secrets wherever one can be stored: `a` has a token, `b` a client's certificate, `c` a program that gives a token, `d` one
/// that gives no credential. Returns c's token.
fn fill(sandbox: &Sandbox, runtime: &Runtime, server: &ApiServer, planted: &mut Planted) -> String {
    let key = rcgen::KeyPair::generate().expect("a key");
    let names = rcgen::CertificateParams::new(vec!["me".into()]).expect("a name");
    let certificate = names.self_signed(&key).expect("a certificate").pem();
    let key = key.serialize_pem();
    planted.known("a client key", key.lines().nth(1).expect("a line of it"));
    planted.known("a client key as a kubeconfig has it", &base64(key.as_bytes())[48..100]);
    let pair = format!(
        "client-certificate-data: {}\n    client-key-data: {}",
        base64(certificate.as_bytes()),
        base64(key.as_bytes())
    );
    let token = format!("token: {}", planted.plant("a cluster's token"));
    let plain = |user: &str| (with_user("x", "insecure-skip-tls-verify: false", user), PathBuf::from("/bin/false"));
    let given = planted.plant("a token that a program gives");
    let good = format!(
        r#"{{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential","status":{{"token":"{given}"}}}}"#
    );
    let odd = format!(r#"{{"token":"{}"#, planted.plant("what a program gives that is no credential"));
    let keys = [planted.plant("a connector's auth key"), planted.plant("a router's auth key")];
    let records: Vec<ClusterRecord> = [
        ("a", plain(&token)),
        ("b", plain(&pair)),
        ("c", with_program(sandbox, server, "gives-a-token", &good, planted)),
        ("d", with_program(sandbox, server, "gives-something-else", &odd, planted)),
    ]
    .into_iter()
    .map(|(id, (kubeconfig, program))| cluster(sandbox, id, &kubeconfig, &[program], &keys))
    .collect();
    let headscale = HeadscaleRecord {
        url: "https://127.0.0.1:9".parse().expect("a URL"),
        api_key: Some(Secret::new(planted.plant("an API key"))),
        ca_pem: None,
    };
    let folder = tempfile::tempdir().expect("a folder");
    runtime.block_on(async {
        let store = Store::open(folder.path()).await.expect("opened");
        for record in &records {
            store.add(record).await.expect("stored");
        }
        store.put_headscale(&headscale).await.expect("stored");
        store.close().await;
    });
    for name in ["guildnet.db", "seal.key"] {
        let to = sandbox.path("home").join(name);
        fs::copy(folder.path().join(name), &to).expect("copied");
        sandbox.open_up(&to, 0o600);
    }
    let env_file = format!(
        "HEADSCALE_API_KEY={}\nTS_AUTHKEY={}\nTS_CLIENT_AUTHKEY_A={}\n",
        planted.plant("an API key in .env"),
        planted.plant("an auth key in .env"),
        planted.plant("a client's auth key in .env")
    );
    sandbox.file("work/.env", &env_file);
    given
}

/// Secrets that commands print because they are asked for nothing else.
fn printed(sandbox: &Sandbox, planted: &mut Planted) {
    for (what, args) in
        [("the metrics token", &["token", "--metrics"][..]), ("kubectl's token", &["kubeconfig", "credential"])]
    {
        let ran = sandbox.run(args);
        assert_eq!(ran.code, 0, "{ran:#?}");
        let told = ran.out.split('"').find(|word| word.starts_with("gnm1.") || word.starts_with("gnk1."));
        planted.known(what, told.unwrap_or_else(|| panic!("{what}: {ran:#?}")).trim());
    }
    let ran = sandbox.run(&["ui", "--print"]);
    let (_, code) = ran.out.trim().split_once("#code=").unwrap_or_else(|| panic!("{ran:#?}"));
    planted.known("a code in a link", code);
    let ran = sandbox.run(&["cluster", "proxies", "a", "-o", "json"]);
    let access: Value = serde_json::from_str(&ran.out).unwrap_or_else(|why| panic!("{why}: {ran:#?}"));
    planted.known("the password of a cluster's proxies", access["password"].as_str().expect("text"));
}

/// Switches a's proxies on, which makes their password, at ports that no other program has.
fn proxies_on(sandbox: &Sandbox) {
    let free = || std::net::TcpListener::bind("127.0.0.2:0").expect("a port");
    let port = |listener: &std::net::TcpListener| listener.local_addr().expect("an address").port().to_string();
    let (socks, http) = (free(), free());
    let (socks, http) = (port(&socks), port(&http));
    let on = ["cluster", "set", "a", "--proxies", "on", "--socks-port", &socks, "--http-port", &http];
    let ran = sandbox.run(&on);
    assert_eq!(ran.code, 0, "{ran:#?}");
}

#[test]
fn a_planted_secret_is_found_nowhere() {
    let sandbox = Sandbox::new();
    let home = sandbox.path("home");
    let mut planted = Planted::default();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let server = ApiServer::start(&runtime);
    let given = fill(&sandbox, &runtime, &server, &mut planted);
    proxies_on(&sandbox);
    let strangers = planted.plant("a credential that is not ours");
    let query = planted.plant("a secret in a query");
    let content = planted.plant("a secret in a body");
    for form in ["text", "json"] {
        let log = sandbox.path(&format!("log-{form}"));
        let host = serve(&sandbox, form, &log);
        let token = fs::read_to_string(home.join("token")).expect("made").trim().to_owned();
        let mut all = planted.clone();
        printed(&sandbox, &mut all);
        let mut bearer = all.clone();
        bearer.known("the Host App's token", &token);
        let bearer_line = format!("authorization: Bearer {token}\r\n");
        let mut asked = Asked { runtime: &runtime, home: home.clone(), planted: bearer, bearer: bearer_line };
        let page = asked.sign_in();
        let events = asked.follow(&page);

        // What there is to be listed: a forward that came to nothing, jobs that failed, a report.
        let wanted = r#"{"cluster":"a","forwards":[{"local":"0","target":"10.96.0.1:443"}]}"#;
        let made = body(&asked.token("POST /api/v1/forwards", "", wanted));
        let local = made[0]["id"].as_str().unwrap_or_else(|| panic!("{made}"));
        let mut end = std::net::TcpStream::connect(local).expect("it listens");
        let _ = end.read(&mut [0; 1]);
        let job = asked.job("POST /api/v1/clusters/c/router");
        assert!(job["steps"].to_string().contains("reached directly") && server.has_seen(&given), "{job}");
        let job = asked.job("POST /api/v1/clusters/d/router");
        assert!(job["error"].to_string().contains("no ExecCredential"), "{job}");

        for on in ["false", "true"] {
            let switched = asked.token("PATCH /api/v1/clusters/a", "", &format!("{{\"proxies\":{on}}}"));
            assert_eq!(body(&switched)["changed"], true, "{switched}");
        }

        let dial = "connection: upgrade\r\nupgrade: guildnet-dial/1\r\n";
        for (line, headers, content) in [
            ("GET /metrics", "", ""),
            ("GET /readyz", "", ""),
            (&format!("GET /nowhere?x={query}"), "", ""),
            (&format!("GET /k8s/a/api/v1/pods?x={query}"), "", ""),
            ("GET /k8s/b/api", "", ""),
            (&format!("POST /k8s/c/api/v1/namespaces/d/secrets?x={query}"), "", &content),
            (&format!("GET /api/v1/clusters/a/dial?to=10.96.0.1:443&x={query}"), dial, ""),
            ("POST /api/v1/verify", "", &format!("{{\"x\":\"{content}\"}}")),
            ("POST /api/v1/clusters", "", &format!("{{\"id\":\"e\",\"kubeconfig\":\"{content}\",\"x\":1}}")),
            ("POST /api/v1/verify", "", "{}"),
            ("POST /api/v1/reload", "", ""),
        ] {
            asked.token(line, headers, content);
        }
        for path in [
            "status",
            "settings",
            "clusters",
            "clusters/a",
            "clusters/a/record",
            "clusters/c/record",
            "clusters/a/proxies",
            "clusters/a/connector",
            "clusters/c/router",
            "clusters/a/kube/api",
            "connectors",
            "namespaces",
            "keys",
            "forwards",
            "jobs",
            "verify",
            "sessions",
        ] {
            let line = format!("GET /api/v1/{path}");
            let answers = [asked.token(&line, "", ""), asked.given(&[], &line, &page, "")];
            if ["forwards", "jobs", "sessions", "clusters/a/proxies"].contains(&path) {
                assert!(answers.iter().all(|answer| body(answer) != Value::Array(vec![])), "{line}: {answers:?}");
            }
        }
        for header in ["authorization: Bearer ", "authorization: Basic ", "cookie: x=", "impersonate-user: "] {
            asked.given(&[], "GET /k8s/a/api", &format!("{header}{strangers}\r\n"), "");
        }
        let pid = host.0.id();
        for place in ["cmdline", "environ"] {
            asked.planted.is_not_in(place, &fs::read(format!("/proc/{pid}/{place}")).expect("readable"));
        }
        // All checks, with what they saw: nothing answers them, so once is enough.
        let verify: &[&[&str]] = if form == "text" { &[&["-vv", "verify", "-o", "json"]] } else { &[] };
        let others: &[&[&str]] = &[
            &["status", "-o", "json"],
            &["sessions", "-o", "json"],
            &["forward", "--list", "-o", "json"],
            &["cluster", "show", "a", "-o", "yaml"],
            &["-vv", "router", "status", "c"],
        ];
        for args in [verify, others].concat() {
            let Ran { out, err, .. } = sandbox.run(args);
            asked.planted.is_not_in(&args.join(" "), format!("{out}{err}").as_bytes());
        }
        assert!(asked.token(&format!("DELETE /api/v1/forwards/{local}"), "", "").starts_with("HTTP/1.1 200 "));
        for file in sandbox.listing().iter().filter(|file| file.starts_with(&home)) {
            // Empty ones, sockets and folders have nothing to be found.
            let Some(content) = fs::read(file).ok().filter(|content| !content.is_empty()) else { continue };
            let own: &[&str] = if file.ends_with("token") { &["the Host App's token"] } else { &[] };
            asked.planted.is_not_in_but_for(own, &file.display().to_string(), &content);
        }
        drop(host);
        let told = runtime.block_on(events).expect("it ended");
        assert!(told.contains("event: job") && told.contains("reached directly"), "{told}");
        asked.planted.is_not_in("events", told.as_bytes());
        let text = fs::read(&log).expect("written");
        asked.planted.is_not_in("the log", &text);
        let text = String::from_utf8(text).expect("text");
        for said in ["connector", "not passed on", "a browser signed in"] {
            assert!(text.contains(said), "it was verbose: {text}");
        }
        if form == "json" {
            for line in text.lines() {
                assert!(serde_json::from_str::<Value>(line).is_ok_and(|l| l.is_object()), "{line}");
            }
        }
    }
}

#[test]
fn an_address_with_a_password_is_refused_without_being_repeated() {
    let sandbox = Sandbox::new();
    let mut planted = Planted::default();
    let password = planted.plant("a password in a URL");
    for url in [
        format!("https://me:{password}@127.0.0.1:9"),
        format!("http://me:{password}@127.0.0.1:9"),
        format!("me:{password}@127.0.0.1:9"),
        format!("https://me:{password}@"),
    ] {
        let ran =
            sandbox.run(&["-vv", "up", "--headscale-url", &url, "--cluster", &sandbox.kubeconfig("good", &good("x"))]);
        ran.refused(2, &["https://HOST"]);
        planted.is_not_in(&url, ran.err.as_bytes());
    }
    let server = format!("https://me:{password}@127.0.0.1:9");
    let text = good("x").replace("https://127.0.0.1:9", &server);
    let ran = sandbox.up(&["--cluster", &sandbox.kubeconfig("bad", &text)]);
    assert_ne!(ran.code, 0);
    planted.is_not_in("the refusal of a kubeconfig", ran.err.as_bytes());
}
