//! Secrets planted wherever one can stand, then looked for wherever none may be: the log at its most verbose, answers of
//! the API, `/metrics`, the database file, the process's arguments and environment, and what commands print.

use std::{
    fs,
    os::unix::net::UnixDatagram,
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use guildnet_kube::{Allow, Kubeconfig};
use guildnet_model::Secret;
use guildnet_store::{ClusterRecord, HeadscaleRecord, Store};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::sandbox::{Sandbox, base64, good, record, with_user};

/// How long the Host App may take to say something, at most: far above what a loaded machine needs.
const PATIENCE: Duration = Duration::from_secs(60);

/// What was planted, by what it is.
#[derive(Default)]
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
        assert!(!content.is_empty(), "nothing was looked at: {place}");
        for (what, secret) in &self.0 {
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

/// A Host App in the foreground, ended with the test.
struct HostApp(Child);

impl Drop for HostApp {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts `guildnet -vv serve`, with its log in a file, and returns when it serves.
fn serve(sandbox: &Sandbox, form: &str, log: &Path) -> HostApp {
    let notify = sandbox.path("notify");
    let _ = fs::remove_file(&notify);
    let told = UnixDatagram::bind(&notify).expect("bound");
    told.set_read_timeout(Some(PATIENCE)).expect("set");
    sandbox.open_up(&notify, 0o600);
    let mut command = sandbox.prepared(Command::new(env!("CARGO_BIN_EXE_guildnet")));
    command.args(["-vv", "serve", "--log-format", form]).env("NOTIFY_SOCKET", &notify);
    command.stdout(Stdio::null()).stderr(fs::File::create(log).expect("a file"));
    let host = HostApp(command.spawn().expect("the command starts"));
    let mut said = [0; 256];
    let length = told
        .recv(&mut said)
        .unwrap_or_else(|why| panic!("it does not serve ({why}): {}", fs::read_to_string(log).unwrap_or_default()));
    assert!(said[..length].starts_with(b"READY=1\n"));
    host
}

/// One request over TLS, as it stands; the whole answer.
async fn ask(home: &Path, request: &str) -> String {
    let address = fs::read_to_string(home.join("host.addr")).expect("announced").trim().to_owned();
    let authority = CertificateDer::from_pem_file(home.join("certs/host-ca.crt")).expect("a certificate");
    let mut roots = rustls::RootCertStore::empty();
    roots.add(authority).expect("a root");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = builder.expect("versions").with_root_certificates(roots).with_no_client_auth();
    let tcp = TcpStream::connect(&address).await.expect("connected");
    let name = ServerName::try_from("localhost").expect("a name");
    let mut stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, tcp).await.expect("TLS");
    let request = request.replacen("\r\n", &format!("\r\nhost: {address}\r\nconnection: close\r\n"), 1);
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = Vec::new();
    // A server that refuses early may reset what it did not read.
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8(answer).expect("text")
}

/// A cluster whose kubeconfig says this about the user; it is to be connected, and its Headscale refuses at once.
fn cluster(sandbox: &Sandbox, id: &str, user: &str, keys: [&str; 2]) -> ClusterRecord {
    let file = sandbox.path(&format!("{id}.kubeconfig"));
    fs::write(&file, with_user("x", "insecure-skip-tls-verify: false", user)).expect("written");
    let allow = Allow { programs: vec!["/bin/false".into()], ..Allow::default() };
    let access = Kubeconfig::read(&file).and_then(|k| k.access(None, &allow)).expect("a credential");
    fs::remove_file(&file).expect("it was written");
    let saved = access.to_secret_bytes();
    ClusterRecord {
        kubeconfig: Secret::new(String::from_utf8(saved.expose().clone()).expect("text")),
        client_auth_key: Some(Secret::new(keys[0].to_owned())),
        router_auth_key: Some(Secret::new(keys[1].to_owned())),
        disconnected: false,
        ..record(id, &sandbox.path("home"))
    }
}

#[test]
fn a_planted_secret_is_found_nowhere() {
    let sandbox = Sandbox::new();
    let home = sandbox.path("home");
    let mut planted = Planted::default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");

    let key = rcgen::KeyPair::generate().expect("a key");
    let names = rcgen::CertificateParams::new(vec!["me".into()]).expect("a name");
    let certificate = names.self_signed(&key).expect("a certificate").pem();
    let key = key.serialize_pem();
    planted.known("a client key", key.lines().nth(1).expect("a line of it"));
    let pair = format!(
        "client-certificate-data: {}\n    client-key-data: {}",
        base64(certificate.as_bytes()),
        base64(key.as_bytes())
    );
    planted.known("a client key as a kubeconfig has it", &base64(key.as_bytes())[48..100]);
    let exec = format!(
        "exec: {{apiVersion: client.authentication.k8s.io/v1, command: /bin/false, interactiveMode: Never, \
         args: [--token, {}], env: [{{name: X, value: {}}}]}}",
        planted.plant("an argument of a credential's program"),
        planted.plant("a variable of a credential's program")
    );
    let token = format!("token: {}", planted.plant("a cluster's token"));
    let keys = [planted.plant("a connector's auth key"), planted.plant("a router's auth key")];
    let keys = [keys[0].as_str(), keys[1].as_str()];
    let records = [("a", token), ("b", pair), ("c", exec)].map(|(id, user)| cluster(&sandbox, id, &user, keys));
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
        let to = home.join(name);
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

    let strangers = planted.plant("a credential that is not ours");
    let query = planted.plant("a secret in a query");
    let body = planted.plant("a secret in a body");
    for form in ["text", "json"] {
        let log = sandbox.path(&format!("log-{form}"));
        let host = serve(&sandbox, form, &log);
        let token = fs::read_to_string(home.join("token")).expect("made").trim().to_owned();
        let mut all = Planted(planted.0.clone());
        all.known("the Host App's token", &token);
        for (what, args) in
            [("the metrics token", &["token", "--metrics"][..]), ("kubectl's token", &["kubeconfig", "credential"])]
        {
            let ran = sandbox.run(args);
            assert_eq!(ran.code, 0, "{ran:#?}");
            let told = ran.out.split('"').find(|word| word.starts_with("gnm1.") || word.starts_with("gnk1."));
            all.known(what, told.unwrap_or_else(|| panic!("{what}: {ran:#?}")).trim());
        }
        let bearer = format!("authorization: Bearer {token}\r\n");
        let dial = "connection: upgrade\r\nupgrade: guildnet-dial/1\r\n";
        for (line, headers, content) in [
            ("GET /api/v1/status", "", ""),
            ("GET /api/v1/clusters", "", ""),
            ("GET /api/v1/clusters/a", "", ""),
            ("GET /metrics", "", ""),
            ("GET /readyz", "", ""),
            (&format!("GET /nowhere?x={query}"), "", ""),
            (&format!("GET /k8s/a/api/v1/pods?x={query}"), "", ""),
            ("GET /k8s/b/api", "", ""),
            (&format!("POST /k8s/c/api/v1/namespaces/d/secrets?x={query}"), "", &body),
            (&format!("GET /api/v1/clusters/a/dial?to=10.96.0.1:443&x={query}"), dial, ""),
            ("POST /api/v1/verify", "", &format!("{{\"x\":\"{body}\"}}")),
            ("POST /api/v1/verify", "", "{}"),
            ("POST /api/v1/reload", "", ""),
        ] {
            let length = content.len();
            let request = format!("{line} HTTP/1.1\r\n{bearer}{headers}content-length: {length}\r\n\r\n{content}");
            let answer = runtime.block_on(ask(&home, &request));
            assert!(answer.starts_with("HTTP/1.1 ") && answer.contains("\r\nx-request-id: "), "{line}: {answer}");
            // An answer may repeat what was just asked, and nothing else.
            let others = Planted(all.0.iter().filter(|(_, s)| !request.contains(s) || *s == token).cloned().collect());
            others.is_not_in(line, answer.as_bytes());
        }
        for header in ["authorization: Bearer ", "authorization: Basic ", "cookie: x=", "impersonate-user: "] {
            let request = format!("GET /k8s/a/api HTTP/1.1\r\n{header}{strangers}\r\n\r\n");
            all.is_not_in(header, runtime.block_on(ask(&home, &request)).as_bytes());
        }
        let pid = host.0.id();
        for place in ["cmdline", "environ"] {
            all.is_not_in(place, &fs::read(format!("/proc/{pid}/{place}")).expect("readable"));
        }
        // All checks, with what they saw: nothing answers them, so once is enough.
        let verify = (form == "text").then(|| sandbox.run(&["-vv", "verify", "-o", "json"]));
        for ran in verify.into_iter().chain([sandbox.run(&["status", "-o", "json"])]) {
            all.is_not_in("what a command prints", format!("{}{}", ran.out, ran.err).as_bytes());
        }
        all.is_not_in("guildnet.db", &fs::read(home.join("guildnet.db")).expect("open"));
        // What is not in the database file yet, if there is anything.
        if let Ok(log) = fs::read(home.join("guildnet.db-wal"))
            && !log.is_empty()
        {
            all.is_not_in("guildnet.db-wal", &log);
        }
        drop(host);
        let text = fs::read(&log).expect("written");
        all.is_not_in("the log", &text);
        let text = String::from_utf8(text).expect("text");
        assert!(text.contains("connector") && text.contains("not passed on"), "it was verbose: {text}");
        if form == "json" {
            for line in text.lines() {
                assert!(serde_json::from_str::<serde_json::Value>(line).is_ok_and(|l| l.is_object()), "{line}");
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
