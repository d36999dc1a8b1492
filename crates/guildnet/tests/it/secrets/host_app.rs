//! The Host App that is searched: started with a log of its own, asked as programs and as its page do.

use std::{
    fs,
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    runtime::Runtime,
    task::JoinHandle,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::Planted;
use crate::sandbox::Sandbox;

/// How long the Host App may take to say something, at most: far above what a loaded machine needs.
const PATIENCE: Duration = Duration::from_secs(60);

/// A Host App in the foreground, ended with the test.
pub(super) struct HostApp(pub(super) Child);

impl Drop for HostApp {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts `guildnet -vv serve`, with its log in a file, and returns when it serves.
pub(super) fn serve(sandbox: &Sandbox, form: &str, log: &Path) -> HostApp {
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

/// Sends one request over TLS, as it stands.
async fn begin(home: &Path, request: &str) -> TlsStream<TcpStream> {
    let address = fs::read_to_string(home.join("host.addr")).expect("announced").trim().to_owned();
    let authority = CertificateDer::from_pem_file(home.join("certs/host-ca.crt")).expect("a certificate");
    let mut roots = rustls::RootCertStore::empty();
    roots.add(authority).expect("a root");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = builder.expect("versions").with_root_certificates(roots).with_no_client_auth();
    let tcp = TcpStream::connect(&address).await.expect("connected");
    let name = ServerName::try_from("localhost").expect("a name");
    let mut stream = TlsConnector::from(Arc::new(config)).connect(name, tcp).await.expect("TLS");
    let request = request.replacen("\r\n", &format!("\r\nhost: {address}\r\nconnection: close\r\n"), 1);
    stream.write_all(request.as_bytes()).await.expect("sent");
    stream
}

/// One request, and the whole answer.
async fn ask(home: &Path, request: &str) -> String {
    let mut answer = Vec::new();
    // A server that refuses early may reset what it did not read.
    let _ = begin(home, request).await.read_to_end(&mut answer).await;
    String::from_utf8(answer).expect("text")
}

/// A Host App that is asked, and each of whose answers is searched.
pub(super) struct Asked<'a> {
    pub(super) runtime: &'a Runtime,
    pub(super) home: PathBuf,
    pub(super) planted: Planted,
    /// The header with the token.
    pub(super) bearer: String,
}

impl Asked<'_> {
    /// Asks with the token. No answer repeats a secret, not even one that was just asked with.
    #[track_caller]
    pub(super) fn token(&self, line: &str, headers: &str, content: &str) -> String {
        self.given(&[], line, &format!("{}{headers}", self.bearer), content)
    }

    /// Asks for what is a secret, by what it is.
    #[track_caller]
    pub(super) fn given(&self, given: &[&str], line: &str, headers: &str, content: &str) -> String {
        let length = content.len();
        let request = format!("{line} HTTP/1.1\r\n{headers}content-length: {length}\r\n\r\n{content}");
        let answer = self.runtime.block_on(ask(&self.home, &request));
        assert!(answer.starts_with("HTTP/1.1 ") && answer.contains("\r\nx-request-id: "), "{line}: {answer}");
        self.planted.is_not_in_but_for(given, line, answer.as_bytes());
        answer
    }

    /// Signs a browser in as `guildnet ui` and the page do, and returns what the page sends from then on.
    pub(super) fn sign_in(&mut self) -> String {
        // What is not known yet can't be searched for: these answers are where it comes from.
        let bearer = self.bearer.clone();
        let code = self.given(&[], "POST /api/v1/login-codes", &bearer, "");
        let code = body(&code)["code"].as_str().expect("a code").to_owned();
        self.planted.known("a one-time code", &code);
        let address = fs::read_to_string(self.home.join("host.addr")).expect("announced");
        let page = format!("origin: https://{}\r\nsec-fetch-site: same-origin\r\n", address.trim());
        let headers = format!("{page}content-type: application/json\r\n");
        let login = |code: &str| format!("{{\"code\":\"{code}\"}}");
        let opened = self.given(&[], "POST /api/v1/login", &headers, &login(&code));
        let cookie = opened.split("set-cookie: __Host-guildnet=").nth(1).and_then(|rest| rest.split(';').next());
        let cookie = cookie.expect("a cookie").to_owned();
        let key = body(&opened)["key"].as_str().expect("a key").to_owned();
        self.planted.known("a session's cookie", &cookie);
        self.planted.known("a session's key", &key);
        for wrong in [code, self.planted.plant("a code that is not ours")] {
            let refused = self.given(&[], "POST /api/v1/login", &headers, &login(&wrong));
            assert!(refused.contains("wrong_code"), "{refused}");
        }
        format!("{page}cookie: __Host-guildnet={cookie}\r\nx-guildnet-key: {key}\r\n")
    }

    /// Follows what happens from now on, until the Host App ends.
    pub(super) fn follow(&self, headers: &str) -> JoinHandle<String> {
        let mut stream =
            self.runtime.block_on(begin(&self.home, &format!("GET /api/v1/events HTTP/1.1\r\n{headers}\r\n")));
        let mut told = Vec::new();
        self.runtime.block_on(async {
            while !told.windows(11).any(|window| window == b"event: open") {
                assert_ne!(
                    stream.read_buf(&mut told).await.expect("readable"),
                    0,
                    "{}",
                    String::from_utf8_lossy(&told)
                );
            }
        });
        self.runtime.spawn(async move {
            // It is cut.
            let _ = stream.read_to_end(&mut told).await;
            String::from_utf8(told).expect("text")
        })
    }

    /// Begins a job and waits for its end.
    pub(super) fn job(&self, line: &str) -> Value {
        let begun = Instant::now();
        let mut job = body(&self.token(line, "", ""));
        while job["state"] == "running" {
            assert!(begun.elapsed() < PATIENCE, "{line}: {job}");
            std::thread::sleep(Duration::from_millis(50));
            let id = job["id"].as_str().expect("a name");
            job = body(&self.token(&format!("GET /api/v1/jobs/{id}"), "", ""));
        }
        job
    }
}

/// The JSON of an answer.
#[track_caller]
pub(super) fn body(answer: &str) -> Value {
    let body = answer.split_once("\r\n\r\n").expect("a body").1;
    serde_json::from_str(body).unwrap_or_else(|why| panic!("{why}: {answer}"))
}
