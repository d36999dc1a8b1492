//! Signing in and out over TLS, as a browser's own page does it, and as other pages try.

use super::*;
use crate::SessionInfo;

const SAME: &str = "sec-fetch-site: same-origin";

/// A door, and what the page's browser sends with everything.
struct Browser {
    door: Served,
    origin: String,
    cookie: String,
    key: String,
}

impl Browser {
    /// Signed in, as `guildnet ui` does it.
    async fn new() -> Self {
        let door = Served::new().await;
        let origin = format!("origin: https://{}", door.address);
        let code = door.client().login_code().await.expect("made");
        let answer = login(&door, &origin, code.expose()).await;
        assert_eq!(said(&answer), (200, None), "{answer}");
        let key = answer.split("\"key\":\"").nth(1).and_then(|rest| rest.split('"').next()).expect("a key");
        let key = format!("x-guildnet-key: {key}");
        let cookie = answer.lines().find_map(|line| line.strip_prefix("set-cookie: ")).expect("a cookie");
        let (cookie, rest) = cookie.split_once(';').expect("with its bounds");
        assert_eq!(rest, " Path=/; Secure; HttpOnly; SameSite=Strict; Max-Age=604800");
        assert!(cookie.starts_with("__Host-guildnet=") && cookie.len() == "__Host-guildnet=".len() + 43, "{cookie}");
        Self { cookie: format!("cookie: {cookie}"), key, origin, door }
    }

    async fn ask(&self, line: &str, more: &[&str]) -> String {
        self.door.bare(line, &[&[self.cookie.as_str(), self.key.as_str()], more].concat(), "").await
    }

    async fn page(&self, line: &str) -> String {
        self.ask(line, &[SAME, &self.origin]).await
    }
}

async fn login(door: &Served, origin: &str, code: &str) -> String {
    let body = format!("{{\"code\":\"{code}\"}}");
    let length = format!("content-length: {}", body.len());
    let headers = [SAME, origin, "content-type: application/json", "user-agent: Test/1.0 <b>", length.as_str()];
    door.bare("POST /api/v1/login", &headers, &body).await
}

#[tokio::test]
async fn a_code_signs_a_browser_in_once_and_signing_out_ends_it() {
    let browser = Browser::new().await;
    assert_eq!(said(&browser.page("GET /api/v1/status").await), (200, None));
    let list = browser.door.client().sessions().await.expect("listed");
    assert_eq!(list.iter().map(|s| (s.user_agent.as_str(), s.current)).collect::<Vec<_>>(), [("Test/1.0 b", false)]);
    let seen = browser.page("GET /api/v1/sessions").await;
    let seen: Vec<SessionInfo> = serde_json::from_str(seen.split_once("\r\n\r\n").expect("a body").1).expect("JSON");
    assert!(seen[0].current && seen[0].id == list[0].id);
    let out = browser.page("POST /api/v1/logout").await;
    assert!(
        said(&out) == (204, None) && out.contains("set-cookie: __Host-guildnet=;") && out.contains("Max-Age=0"),
        "{out}"
    );
    assert_eq!(said(&browser.page("GET /api/v1/status").await), refused(401, "unauthorized"));
    assert!(browser.door.client().sessions().await.expect("listed").is_empty());
    browser.door.stop().await;
}

#[tokio::test]
async fn a_code_is_used_up_and_wrong_ones_are_slowed_down_but_not_the_owner() {
    let door = Served::new().await;
    let origin = format!("origin: https://{}", door.address);
    let code = door.client().login_code().await.expect("made");
    assert_eq!(said(&login(&door, &origin, code.expose()).await), (200, None));
    for _ in 0..10 {
        assert_eq!(said(&login(&door, &origin, code.expose()).await), refused(403, "wrong_code"));
    }
    assert_eq!(said(&login(&door, &origin, "x").await), refused(429, "too_many_codes"));
    let code = door.client().login_code().await.expect("made");
    assert_eq!(said(&login(&door, &origin, code.expose()).await), (200, None), "the owner gets in at once");
    door.stop().await;
}

#[tokio::test]
async fn no_other_page_signs_anybody_in() {
    let door = Served::new().await;
    let own = format!("origin: https://{}", door.address);
    let code = door.client().login_code().await.expect("made");
    let body = format!("{{\"code\":\"{}\"}}", code.expose());
    let length = format!("content-length: {}", body.len());
    let json = "content-type: application/json";
    for (headers, status, code) in [
        (&[json][..], 403, "foreign_page"),
        (&[json, own.as_str()], 403, "foreign_page"),
        (&[json, own.as_str(), "sec-fetch-site: same-site"], 403, "foreign_page"),
        (&[json, "origin: null", "sec-fetch-site: cross-site"], 403, "foreign_origin"),
        (&[json, "origin: https://127.0.0.1:9", SAME], 403, "foreign_origin"),
        (&[json, "origin: https://evil.example", SAME], 403, "foreign_origin"),
        (&["content-type: text/plain", own.as_str(), SAME], 415, "wrong_kind"),
        (&["content-type: application/x-www-form-urlencoded", own.as_str(), SAME], 415, "wrong_kind"),
        (&[own.as_str(), SAME], 415, "wrong_kind"),
    ] {
        let answer = door.bare("POST /api/v1/login", &[headers, &[length.as_str()]].concat(), &body).await;
        assert_eq!(said(&answer), refused(status, code), "{headers:?}");
        assert!(!answer.contains("set-cookie"), "{answer}");
    }
    assert_eq!(said(&login(&door, &own, &"x".repeat(2000)).await), refused(413, "too_large"));
    assert_eq!(said(&login(&door, &own, code.expose()).await), (200, None), "the code was not used up by these");
    door.stop().await;
}

#[tokio::test]
async fn the_cookie_opens_nothing_to_another_page_nor_what_is_for_tokens() {
    let browser = Browser::new().await;
    for line in [
        "GET /api/v1/status",
        "POST /api/v1/reload",
        "POST /api/v1/verify",
        "DELETE /api/v1/sessions",
        "POST /api/v1/logout",
    ] {
        for site in ["same-site", "cross-site", "none"] {
            let site = format!("sec-fetch-site: {site}");
            assert_eq!(said(&browser.ask(line, &[&site]).await), refused(403, "foreign_page"), "{line} {site}");
        }
        assert_eq!(said(&browser.ask(line, &[]).await), refused(403, "foreign_page"), "{line}: no metadata");
        let foreign = browser.ask(line, &[SAME, "origin: https://127.0.0.1:9"]).await;
        assert_eq!(said(&foreign), refused(403, "foreign_origin"), "{line}");
        let rebound = browser.ask(line, &[SAME, "host: evil.example"]).await;
        assert_eq!(said(&rebound), refused(421, "wrong_host"), "{line}: a name of the attacker's that leads here");
    }
    for line in
        ["POST /api/v1/login-codes", "GET /readyz", "GET /api/v1/clusters/a/dial?to=10.96.0.1:443", "GET /nowhere"]
    {
        assert_eq!(said(&browser.page(line).await), refused(401, "unauthorized"), "{line}");
    }
    let kube = browser.page("GET /k8s/a/api").await;
    assert!(kube.starts_with("HTTP/1.1 401 ") && kube.contains("\"kind\":\"Status\""), "{kube}");
    // A server on another port of this host is sent the cookie by the browser, and can claim anything with it.
    let stolen = browser.door.bare("GET /api/v1/status", &[SAME, &browser.origin, &browser.cookie], "").await;
    assert_eq!(said(&stolen), refused(401, "unauthorized"), "the cookie without the page's key");
    let twice = format!("{}; __Host-guildnet=x", browser.cookie);
    assert_eq!(said(&browser.door.bare("GET /api/v1/status", &[SAME, &twice], "").await), refused(403, "two_cookies"));
    let both = browser.ask("GET /api/v1/status", &[SAME, "authorization: Bearer wrong"]).await;
    assert_eq!(said(&both), refused(401, "unauthorized"), "where a bearer is sent, it alone counts");
    assert_eq!(said(&browser.page("GET /api/v1/status").await), (200, None), "the session is as it was");
    browser.door.stop().await;
}

#[tokio::test]
async fn what_a_session_follows_ends_when_it_is_revoked() {
    let browser = Browser::new().await;
    let client = browser.door.client();
    let mut stream = browser.door.tls(&[]).await;
    let head = format!(
        "GET /api/v1/events HTTP/1.1\r\nhost: {}\r\n{}\r\n{}\r\n{SAME}\r\n\r\n",
        browser.door.address, browser.cookie, browser.key
    );
    stream.write_all(head.as_bytes()).await.expect("sent");
    let mut seen = Vec::new();
    while !String::from_utf8_lossy(&seen).contains("event: open") {
        assert_ne!(stream.read_buf(&mut seen).await.expect("readable"), 0, "{}", String::from_utf8_lossy(&seen));
    }
    let one = client.sessions().await.expect("listed").remove(0);
    client.revoke_session(&one.id).await.expect("revoked");
    // The end of the body: a chunk of no bytes.
    while !String::from_utf8_lossy(&seen).ends_with("\r\n0\r\n\r\n") {
        assert_ne!(stream.read_buf(&mut seen).await.expect("readable"), 0, "{}", String::from_utf8_lossy(&seen));
    }
    browser.door.stop().await;
}

#[tokio::test]
async fn a_session_can_be_revoked_alone_or_with_all() {
    let browser = Browser::new().await;
    let client = browser.door.client();
    let unknown = client.revoke_session("0000000000").await.expect_err("unknown");
    assert_eq!((unknown.class(), unknown.hint().as_deref()), (Class::NotFound, Some("list them: guildnet sessions")));
    assert_eq!(client.revoke_session("../reload").await.expect_err("no id").class(), Class::Usage);
    let one = client.sessions().await.expect("listed").remove(0);
    client.revoke_session(&one.id).await.expect("revoked");
    assert_eq!(said(&browser.page("GET /api/v1/status").await), refused(401, "unauthorized"));
    let code = client.login_code().await.expect("made");
    assert_eq!(client.revoke_sessions().await.expect("none is left"), 0);
    let late = login(&browser.door, &browser.origin, code.expose()).await;
    assert_eq!(said(&late), refused(403, "wrong_code"), "codes end with them");
    browser.door.stop().await;
}

#[tokio::test]
async fn the_pages_files_are_locked_down() {
    let door = Served::new().await;
    for (path, kind) in [("/", "text/html"), ("/shell.js", "text/javascript"), ("/shell.css", "text/css")] {
        let answer = door.bare(&format!("GET {path}"), &[], "").await;
        assert_eq!(said(&answer), (200, None), "{path}");
        for header in [
            &format!("content-type: {kind}; charset=utf-8"),
            "content-security-policy: default-src 'none'; script-src 'self'; style-src 'self'; ",
            "frame-ancestors 'none'",
            "x-content-type-options: nosniff",
            "cache-control: no-store",
            "referrer-policy: no-referrer",
            "x-frame-options: DENY",
            "cross-origin-opener-policy: same-origin",
            "cross-origin-resource-policy: same-origin",
        ] {
            assert!(answer.contains(header), "{path}: {header}: {answer}");
        }
        assert!(!answer.contains("unsafe-") && !answer.contains("set-cookie"), "{answer}");
    }
    let framed = door.bare("GET /", &["sec-fetch-dest: iframe", "sec-fetch-site: cross-site"], "").await;
    assert_eq!(said(&framed), refused(403, "foreign_page"));
    door.stop().await;
}
