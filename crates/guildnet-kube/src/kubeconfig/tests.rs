//! Kubeconfig files: what is read, and what is refused.

use base64::engine::{Engine as _, general_purpose::STANDARD};
use guildnet_model::{Class, Explain as _};

use super::*;
use crate::fake::Pki;

/// A folder with a kubeconfig of one context, whose cluster and user entries are given.
struct Written {
    folder: tempfile::TempDir,
}

impl Written {
    fn text(text: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join("config"), text).expect("written");
        Self { folder }
    }

    fn entries(cluster: &str, user: &str) -> Self {
        Self::text(&format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: home\ncontexts:\n- name: home\n  context: {{cluster: c, user: u, namespace: x}}\n- name: work\n  context: {{cluster: gone, user: u}}\nclusters:\n- name: c\n  cluster: {{{cluster}}}\nusers:\n- name: u\n  user: {{{user}}}\n"
        ))
    }

    fn read(&self) -> Result<Kubeconfig, KubeconfigError> {
        Kubeconfig::read(&self.folder.path().join("config"))
    }

    fn access(&self, context: Option<&str>) -> Result<ClusterAccess, KubeconfigError> {
        self.read()?.access(context, &Allow::default())
    }

    /// The error's words after the path, and its class.
    fn refused(&self, context: Option<&str>) -> (String, Class) {
        let error = self.access(context).expect_err("refused");
        assert!(error.hint().is_some(), "{error} has no hint");
        let path = self.folder.path().join("config").display().to_string();
        (error.to_string().replace(&path, "F"), error.class())
    }
}

const SERVER: &str = "server: 'https://10.0.0.1:6443'";

fn inline(field: &str, pem: &str) -> String {
    format!("{field}: {}", STANDARD.encode(pem))
}

fn good(pki: &Pki) -> Written {
    let (cert, key) = pki.client("admin");
    let cluster =
        format!("{SERVER}, tls-server-name: kubernetes, {}", inline("certificate-authority-data", &pki.ca_pem()));
    let user = format!("{}, {}", inline("client-certificate-data", &cert), inline("client-key-data", &key));
    Written::entries(&cluster, &user)
}

#[test]
fn a_self_contained_file_becomes_a_credential() {
    let written = good(&Pki::new());
    let access = written.access(None).expect("a credential");
    assert_eq!(access.server().as_str(), "https://10.0.0.1:6443/");
    assert_eq!((access.tls_name().as_str(), access.context()), ("kubernetes", "home"));
    assert_eq!(written.read().expect("read").contexts().collect::<Vec<_>>(), ["home", "work"]);
}

#[test]
fn an_unknown_context_lists_those_there_are() {
    let said = good(&Pki::new()).refused(Some("elsewhere"));
    assert_eq!(said, ("kubeconfig F has no context \"elsewhere\"; it has: home, work".into(), Class::NotFound));
}

#[test]
fn a_context_without_its_cluster_is_named() {
    let said = good(&Pki::new()).refused(Some("work"));
    assert_eq!(
        said,
        ("kubeconfig F, context \"work\": its cluster \"gone\" is not in the file".into(), Class::NotFound)
    );
}

#[test]
fn a_file_that_is_no_kubeconfig_is_told_from_one_that_is_not_there() {
    let missing = Kubeconfig::read(Path::new("/nonexistent/config")).expect_err("refused");
    assert_eq!(
        (missing.to_string().as_str(), missing.class()),
        ("kubeconfig /nonexistent/config does not exist", Class::NotFound)
    );
    let folder = Kubeconfig::read(Path::new("/")).expect_err("refused");
    assert!(matches!(folder, KubeconfigError::Unreadable { .. }), "{folder}");
    assert_eq!(Written::text(" \n").refused(None), ("kubeconfig F is empty".into(), Class::Usage));
    let none = Written::text("apiVersion: v1\nkind: Config\ncontexts: null\n").refused(None);
    assert_eq!(
        none,
        ("kubeconfig F has no current-context and none was named; it has: no context at all".into(), Class::Usage)
    );
}

#[test]
fn a_malformed_file_is_refused_without_quoting_it() {
    let (said, class) = Written::text("users:\n- name: u\n  user:\n    token: [very, secret\n").refused(None);
    assert!(said.starts_with("kubeconfig F is malformed: line "), "{said}");
    assert!(!said.contains("secret"), "{said}");
    assert_eq!(class, Class::Usage);
    let (said, _) = Written::text("users: topsecret\n").refused(None);
    assert!(said.contains("malformed") && !said.contains("topsecret"), "{said}");
}

#[test]
fn what_would_reach_beyond_the_file_is_refused() {
    let said = |cluster: &str, user: &str| {
        let (said, class) = Written::entries(cluster, user).refused(None);
        assert_eq!(class, Class::Usage);
        said.replace("kubeconfig F, context \"home\" is refused: ", "")
    };
    let token = "token: abc";
    assert_eq!(
        said(SERVER, "exec: {command: aws, args: [x]}"),
        "it runs a program to get its credential (exec: \"aws\")"
    );
    assert_eq!(said(SERVER, "auth-provider: {name: gcp}"), "it gets its credential from an auth provider (\"gcp\")");
    assert_eq!(said(SERVER, "tokenFile: /etc/token"), "it reads another file (tokenFile: \"/etc/token\")");
    assert_eq!(
        said(&format!("{SERVER}, certificate-authority: ca.crt"), token),
        "it reads another file (certificate-authority: \"ca.crt\")"
    );
    assert_eq!(
        said(&format!("{SERVER}, insecure-skip-tls-verify: true"), token),
        "it skips the check of the server's certificate (insecure-skip-tls-verify)"
    );
    assert_eq!(
        said(&format!("{SERVER}, proxy-url: 'http://p'"), token),
        "it reaches the server through a proxy (proxy-url)"
    );
    assert_eq!(said(SERVER, "token: abc, as: root"), "it acts as another user (as)");
}

#[test]
fn the_server_must_be_an_https_url_without_a_password() {
    let said = |server: &str| {
        Written::entries(&format!("server: '{server}'"), "token: abc")
            .refused(None)
            .0
            .replace("kubeconfig F, context \"home\": ", "")
    };
    assert_eq!(said(""), "server is missing");
    assert_eq!(said("http://10.0.0.1"), "server begins with http:, not with https:");
    assert_eq!(said("https://u:pa55@a"), "server holds a user name or password");
    assert_eq!(said("10.0.0.1:6443"), "server is no URL");
}

#[test]
fn a_user_without_a_credential_lacks_credentials() {
    let pki = Pki::new();
    let said = Written::entries(SERVER, "username: admin, password: pa55").refused(None);
    let wanted = "kubeconfig F, context \"home\": its user has no client certificate and no token, only a user name and password";
    assert_eq!(said, (wanted.into(), Class::Credentials));
    assert_eq!(Written::entries(SERVER, "").refused(None).1, Class::Credentials);
    let half = Written::entries(SERVER, &inline("client-certificate-data", &pki.client("a").0)).refused(None).0;
    assert!(half.ends_with("client-key is missing beside the client certificate"), "{half}");
}

#[test]
fn damaged_material_names_its_field() {
    let said = |field: &str| Written::entries(&format!("{SERVER}, {field}"), "token: abc").refused(None).0;
    let damaged = said("certificate-authority-data: '%%%'");
    assert!(damaged.ends_with("certificate-authority is not base64"), "{damaged}");
    let empty = said(&inline("certificate-authority-data", "no certificate"));
    assert!(empty.ends_with("the certificate authority: holds no PEM certificate"), "{empty}");
}

#[test]
fn other_files_are_read_from_beside_the_kubeconfig_once_allowed() {
    let pki = Pki::new();
    let written = Written::entries(&format!("{SERVER}, certificate-authority: ca.crt"), "token: abc");
    let allowed =
        |written: &Written| written.read().expect("read").access(None, &Allow { files: true, ..Allow::default() });
    let missing = allowed(&written).expect_err("not there").to_string();
    assert!(missing.contains("certificate-authority ") && missing.ends_with("ca.crt does not exist"), "{missing}");
    fs::write(written.folder.path().join("ca.crt"), pki.ca_pem()).expect("written");
    allowed(&written).expect("a credential");
}

#[tokio::test]
async fn a_token_file_is_kept_by_its_place_and_read_again() {
    let written = Written::entries(SERVER, "tokenFile: sub/token");
    let allow = Allow { files: true, ..Allow::default() };
    let read = || written.read().expect("read").access(None, &allow);
    assert!(read().expect_err("not there").to_string().ends_with("sub/token does not exist"));
    fs::create_dir(written.folder.path().join("sub")).expect("made");
    fs::write(written.folder.path().join("sub/token"), "one\n").expect("written");
    let access = read().expect("a credential");
    fs::write(written.folder.path().join("sub/token"), "another\n").expect("written");
    let sealed = ClusterAccess::from_secret_bytes(&access.to_secret_bytes()).expect("read back");
    for access in [access, sealed] {
        let bearer = access.bearer().await.expect("a token").expect("some");
        assert_eq!(bearer.as_bytes(), b"Bearer another", "the file counts, not what it held then");
    }
}

#[test]
fn a_program_is_taken_only_by_its_full_name_and_where_nobody_is_asked() {
    let exec = |fields: &str| {
        Written::entries(SERVER, &format!("exec: {{apiVersion: client.authentication.k8s.io/v1, {fields}}}"))
    };
    let said = |fields: &str, allowed: &str| {
        let allow = Allow { programs: vec![allowed.into()], ..Allow::default() };
        let error = exec(fields).read().expect("read").access(None, &allow).expect_err("refused");
        (error.to_string().split("\"home\"").nth(1).expect("a context").to_owned(), error.hint().expect("a hint"))
    };
    let (error, hint) = said("command: /usr/bin/helper", "/usr/bin/other");
    assert_eq!(error, " is refused: it runs a program to get its credential (exec: \"/usr/bin/helper\")");
    assert!(hint.contains("--allow-exec /usr/bin/helper"), "{hint}");
    let (_, hint) = said("command: helper", "helper");
    assert!(hint.contains("command -v helper"), "{hint}");
    said("command: /usr/bin/../bin/helper", "/usr/bin/helper2");
    let asks = said("command: /x, interactiveMode: Always", "/x").0;
    assert!(asks.contains("exec.interactiveMode is Always"), "{asks}");
    let allow = Allow { programs: vec!["/x".into()], ..Allow::default() };
    let older = Written::entries(SERVER, "exec: {apiVersion: client.authentication.k8s.io/v1alpha1, command: /x}");
    let error = older.read().expect("read").access(None, &allow).expect_err("refused").to_string();
    assert!(error.contains("exec.apiVersion is \"client.authentication.k8s.io/v1alpha1\""), "{error}");
    let good = exec("command: /x, interactiveMode: IfAvailable, args: [a], env: [{name: N, value: v}]");
    good.read().expect("read").access(None, &allow).expect("a credential");
}
