//! The Host App's page in a real Chromium, and the pages of others in the same browser, which must get nothing.
//!
//! The browser belongs to the lab's person, trusts the Host App by `guildnet trust install` alone, and is signed in by the link
//! of `guildnet ui --print`. Hostile pages stand on another port of the Host App's address and on another loopback address;
//! a Pod's stands behind `services/x/proxy/` of its cluster, and behind a forward.

#[path = "browser/chromium.rs"]
mod chromium;
#[path = "browser/site.rs"]
mod site;

use serde_json::{Value, json};

use self::{
    chromium::{Chromium, Tab},
    site::Site,
};
use crate::{
    clients::{person::Person, running::Running},
    fleet::{STEP, finish},
};

/// Tries from a page of somebody else, each by its name; what became of it. `BASE` is the Host App.
const ATTACKS: &str = r#"
(async () => {
  const base = BASE, wss = base.replace("https", "wss"), told = {};
  const soon = (promise) => Promise.race([promise, new Promise((done) => setTimeout(() => done("nothing"), 4000))]);
  const attack = async (name, how) => { told[name] = await soon(how().catch((error) => "refused: " + error.name)); };
  const fetched = (path, options) => async () => {
    const answer = await fetch(base + path, { credentials: "include", ...options });
    return answer.type === "opaque" ? "opaque" : "READ " + answer.status + " " + (await answer.text()).slice(0, 80);
  };
  const loaded = (tag, set) => () => new Promise((done) => {
    const it = document.createElement(tag);
    it.onload = () => done("loaded");
    it.onerror = () => done("refused");
    set(it);
    document.body.append(it);
  });
  await attack("fetch", fetched("/api/v1/status"));
  await attack("fetch without cors", fetched("/api/v1/status", { mode: "no-cors" }));
  await attack("fetch of the page", fetched("/"));
  await attack("fetch of a cluster", fetched("/api/v1/clusters/a/kube/api/v1/secrets"));
  await attack("fetch of a cluster by the tools' way", fetched("/k8s/a/api/v1/secrets"));
  await attack("post", fetched("/api/v1/logout", { method: "POST", mode: "no-cors" }));
  await attack("post of text", fetched("/api/v1/reload", { method: "POST", mode: "no-cors", body: "{}" }));
  await attack("delete", fetched("/api/v1/sessions", { method: "DELETE" }));
  await attack("a code", fetched("/api/v1/login-codes", { method: "POST" }));
  await attack("a code without cors", fetched("/api/v1/login-codes", { method: "POST", mode: "no-cors" }));
  await attack("a header of its own", fetched("/api/v1/status", { headers: { "sec-fetch-site": "same-origin", "x-y": "z" } }));
  await attack("beacon", async () => String(navigator.sendBeacon(base + "/api/v1/logout", "{}")));
  for (const path of ["/api/v1/logout", "/api/v1/sessions"]) {
    await attack("form " + path, () => new Promise((done) => {
      const frame = document.createElement("iframe");
      frame.name = "f" + path;
      const form = document.createElement("form");
      Object.assign(form, { method: "POST", action: base + path, target: frame.name });
      document.body.append(frame, form);
      // Only now: an empty frame is loaded at once.
      frame.onload = () => { try { done("READ " + frame.contentDocument.body.innerText); } catch (error) { done("refused: " + error.name); } };
      form.submit();
    }));
  }
  await attack("script", loaded("script", (it) => { it.src = base + "/shell.js"; }));
  await attack("script of the API", loaded("script", (it) => { it.src = base + "/api/v1/status"; }));
  await attack("image", loaded("img", (it) => { it.src = base + "/api/v1/status"; }));
  await attack("frame", () => new Promise((done) => {
    const frame = document.createElement("iframe");
    frame.onload = () => { try { done(frame.contentDocument ? "READ" : "refused"); } catch (error) { done("refused"); } };
    frame.src = base + "/";
    document.body.append(frame);
  }));
  for (const path of ["/api/v1/clusters/a/kube/api/v1/namespaces/default/pods/x/exec?command=sh", "/k8s/a/api/v1/namespaces/default/pods/x/exec?command=sh"]) {
    await attack("websocket " + path.slice(0, 5), () => new Promise((done) => {
      const socket = new WebSocket(wss + path, ["v5.channel.k8s.io"]);
      socket.onopen = () => done("OPEN");
      socket.onerror = () => done("refused");
    }));
  }
  await attack("events", () => new Promise((done) => {
    const events = new EventSource(base + "/api/v1/events", { withCredentials: true });
    events.onopen = () => done("OPEN");
    events.onerror = () => { events.close(); done("refused"); };
  }));
  await attack("window", () => new Promise((done) => {
    const opened = window.open(base + "/");
    if (!opened) return done("refused: no window");
    setTimeout(() => {
      try { done(opened.closed ? "cut off" : "READ " + opened.document.title); } catch (error) { done("refused: " + error.name); }
    }, 1500);
  }));
  return told;
})()
"#;

/// A page that tells its own server whether its script ran.
fn hostile(beacon: &Site) -> String {
    format!(
        "<!doctype html><title>quiet</title><body><p>hostile page<script>document.title='ran';\
         fetch('http://{0}/script').catch(()=>0);</script><img src='http://{0}/image'>",
        beacon.address
    )
}

/// A person with a browser that is signed in.
struct Desk {
    person: Person,
    base: String,
}

impl Desk {
    /// A person whose browser is to trust the Host App, by the command alone.
    fn at(what: &str) -> Self {
        let person = Person::at(what);
        let base = format!("https://{}", person.fleet.listen);
        let desk = Self { person, base };
        desk.guildnet(&["trust", "install"]);
        desk
    }

    /// The command as the person runs it.
    #[track_caller]
    fn guildnet(&self, args: &[&str]) -> String {
        let mut command = self.person.command(&self.person.fleet.program);
        command.args(args).env("GUILDNET_HOME", &self.person.fleet.home);
        finish(command, b"", STEP).ok()
    }

    /// Signs in by a link; the page then shows the clusters.
    #[track_caller]
    fn sign_in(&self, chromium: &mut Chromium, tab: &Tab) {
        let link = self.guildnet(&["ui", "--print"]);
        assert!(link.starts_with(&format!("{}/#code=", self.base)), "the link leads elsewhere");
        assert_eq!(chromium.go(tab, link.trim()), 200);
        chromium.until(tab, "!document.getElementById('fleet').hidden");
    }

    fn sessions(&self) -> Vec<Value> {
        let list: Value = serde_json::from_str(&self.guildnet(&["sessions", "-o", "json"])).expect("JSON");
        list.as_array().expect("a list").clone()
    }

    /// Everything that the page in this tab, somebody else's, tries against the Host App gets nothing.
    #[track_caller]
    fn withstands(&self, chromium: &mut Chromium, tab: &Tab, place: &str) {
        let told = chromium.eval(tab, &ATTACKS.replace("BASE", &json!(self.base).to_string()));
        let told = told.as_object().expect("what was told");
        assert!(told.len() >= 20, "{told:?}");
        for (attack, result) in told {
            let result = result.as_str().unwrap_or_default();
            let fine = result.starts_with("refused")
                || result == "cut off"
                || ((attack.contains("without cors") || attack.starts_with("post")) && result == "opaque")
                || attack == "beacon";
            assert!(fine, "{attack} from {place}: {result}\n{told:#?}");
        }
    }

    /// What the door's own page gets for a request of its own.
    fn own(&self, chromium: &mut Chromium, tab: &Tab, path: &str) -> u64 {
        let with = "{headers: {'x-guildnet-key': localStorage.getItem('guildnet-key') || ''}}";
        let status = chromium.eval(tab, &format!("fetch({}, {with}).then((answer) => answer.status)", json!(path)));
        status.as_u64().unwrap_or_else(|| panic!("{path}: {status}"))
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        let mut command = self.person.command(&self.person.fleet.program);
        command.args(["trust", "remove"]).env("GUILDNET_HOME", &self.person.fleet.home);
        let _best_effort = finish(command, b"", STEP);
        let mut command = self.person.command(&self.person.fleet.program);
        command.args(["sessions", "revoke", "--all"]).env("GUILDNET_HOME", &self.person.fleet.home);
        let _best_effort = finish(command, b"", STEP);
    }
}

#[test]
fn the_link_signs_in_once_and_the_page_shows_both_clusters() {
    let desk = Desk::at("browser-page");
    let mut chromium = Chromium::start(&desk.person, &[]);
    let tab = chromium.tab();
    assert_eq!(chromium.go(&tab, &desk.base), 200);
    chromium.until(&tab, "document.getElementById('said').textContent.includes('not signed in')");

    let link = desk.guildnet(&["ui", "--print"]);
    // The same page with something behind `#` is no new load: another tab.
    let tab = chromium.tab();
    chromium.go(&tab, link.trim());
    chromium.until(&tab, "!document.getElementById('fleet').hidden");
    let rows = chromium.eval(&tab, "[...document.querySelectorAll('tbody tr')].map((tr) => [...tr.children].slice(0, 2).map((td) => td.textContent))");
    assert_eq!(rows, json!([["a", "ready"], ["b", "ready"]]));
    assert_eq!(chromium.eval(&tab, "location.href"), format!("{}/", desk.base), "the code has left the address");
    assert_eq!(chromium.eval(&tab, "document.cookie"), "", "no script sees the cookie");
    let cookies = chromium.on(&tab, "Network.getCookies", json!({}));
    let cookie = &cookies["cookies"][0];
    assert_eq!(
        (&cookie["name"], &cookie["secure"], &cookie["httpOnly"]),
        (&json!("__Host-guildnet"), &json!(true), &json!(true))
    );
    assert_eq!((&cookie["sameSite"], &cookie["path"]), (&json!("Strict"), &json!("/")));
    // What was typed stands beside each entry, since this test typed it; where an entry leads is what counts.
    let history = chromium.on(&tab, "Page.getNavigationHistory", json!({}));
    let entries = history["entries"].as_array().expect("entries");
    assert!(entries.len() > 1 && entries.iter().all(|e| !e["url"].to_string().contains("code=")), "{history}");

    let sessions = desk.sessions();
    assert!(
        sessions.len() == 1 && sessions[0]["userAgent"].as_str().is_some_and(|name| name.contains("Chrome/")),
        "{sessions:?}"
    );
    // Used up: another browser can't use the link.
    let other = chromium.tab();
    let elsewhere = chromium.eval(&tab, &format!(
        "fetch('/api/v1/login', {{method: 'POST', headers: {{'content-type': 'application/json'}}, body: JSON.stringify({{code: {}}})}}).then((a) => a.status)",
        json!(link.trim().rsplit_once('=').expect("a code").1)
    ));
    assert_eq!(elsewhere, 403);
    drop(other);

    // The way from `guildnet ui`: a page of the person's own folder that leads on.
    let code = desk.guildnet(&["ui", "--print"]);
    let file = desk.person.file("ui.html", format!("<meta http-equiv=\"refresh\" content=\"0;url={}\">", code.trim()));
    let from_file = chromium.tab();
    chromium.on(&from_file, "Page.navigate", json!({"url": format!("file://{}", file.display())}));
    chromium.until(&from_file, "!!document.getElementById('fleet') && !document.getElementById('fleet').hidden");
    assert_eq!(desk.sessions().len(), 2, "signed in again, by the second link");

    chromium.eval(&tab, "document.getElementById('leave').click()");
    chromium.until(&tab, "document.getElementById('said').textContent.includes('Signed out')");
    assert_eq!(desk.own(&mut chromium, &tab, "/api/v1/status"), 401);
    desk.guildnet(&["sessions", "revoke", "--all"]);
    assert!(desk.sessions().is_empty());
}

#[test]
fn a_hostile_page_elsewhere_on_this_machine_gets_nothing_and_changes_nothing() {
    let desk = Desk::at("browser-ports");
    let page = "<!doctype html><title>hostile</title><body>";
    let sites = [Site::serve([127, 0, 0, 1], page), Site::serve([127, 0, 0, 2], page)];
    let mut chromium = Chromium::start(&desk.person, &[("rebound.test", "127.0.0.1")]);
    let own = chromium.tab();
    desk.sign_in(&mut chromium, &own);
    let before = desk.sessions();
    for site in &sites {
        let tab = chromium.tab();
        assert_eq!(chromium.go(&tab, &format!("http://{}/", site.address)), 200);
        // Chromium sends Secure cookies to every port of 127.0.0.1. Whoever is sent ours can do nothing with it.
        for cookie in site.cookies() {
            let mut curl = std::process::Command::new("curl");
            let ca = desk.person.fleet.home.join("certs/host-ca.crt");
            curl.args(["-sS", "-o", "/dev/null", "-w", "%{http_code}", "--max-time", "10", "--cacert"]).arg(ca);
            curl.args(["-H", &format!("Cookie: {cookie}"), "-H", "Sec-Fetch-Site: same-origin"]);
            curl.args(["-H", &format!("Origin: {}", desk.base), &format!("{}/api/v1/status", desk.base)]);
            assert_eq!(finish(curl, b"", STEP).ok(), "401", "the cookie alone opens nothing");
        }
        desk.withstands(&mut chromium, &tab, &site.address.to_string());
        // What a page here may set, it may set; but not in a way that the Host App's session is another's.
        chromium.eval(&tab, "document.cookie = '__Host-guildnet=x; Secure; Path=/'; document.cookie = '__Host-guildnet=y; Path=/x; Secure'; true");
        assert_eq!(desk.own(&mut chromium, &own, "/api/v1/status"), 200, "still signed in beside {}", site.address);
    }
    // A name that leads to this machine: the browser takes no certificate for it, and the door does not answer to it.
    let tab = chromium.tab();
    let port = desk.person.fleet.listen.port();
    let why = chromium.refuses(&tab, &format!("https://rebound.test:{port}/"));
    assert!(why.contains("ERR_CERT"), "{why}");
    chromium.go(&tab, &format!("http://rebound.test:{}/", sites[0].address.port()));
    let read = chromium.eval(&tab, &format!("fetch('https://rebound.test:{port}/api/v1/status', {{credentials: 'include'}}).then(() => 'READ', () => 'refused')"));
    assert_eq!(read, "refused");
    let after = desk.sessions();
    let ids = |list: &[Value]| list.iter().map(|s| s["id"].clone()).collect::<Vec<_>>();
    assert_eq!(ids(&after), ids(&before), "nobody was signed out, nobody in");
}

#[test]
fn a_pods_hostile_page_runs_nothing_on_the_doors_origin() {
    let desk = Desk::at("browser-pod");
    let beacon = Site::serve([127, 0, 0, 1], "");
    let page = hostile(&beacon);
    let namespace = &desk.person.namespace;
    let script = format!("mkdir /www && echo \"{page}\" > /www/index.html && exec busybox httpd -f -p 8080 -h /www");
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec:\n  selector: {app: web}\n  ports: [{port: 80, targetPort: 8080}]\n";
    let pod = desk.person.pod("a", "web", false, &script).replacen("{name: web}", "{name: web, labels: {app: web}}", 1);
    desk.person.apply("a", &format!("{pod}{service}"));
    desk.person.kubectl("a", &["wait", "--for=condition=Ready", "pod/web", "--timeout=60s"]).ok();

    // The control: where nothing holds it back, its script runs.
    let mut chromium = Chromium::start(&desk.person, &[]);
    let control = Site::serve([127, 0, 0, 1], &page);
    let tab = chromium.tab();
    chromium.go(&tab, &format!("http://{}/", control.address));
    chromium.until(&tab, "document.title === 'ran'");
    crate::fleet::eventually("the control's script reaches its server", STEP, || {
        beacon.asked().contains(&"/script".to_owned())
    });
    let heard = beacon.asked().len();

    let own = chromium.tab();
    desk.sign_in(&mut chromium, &own);
    let below = format!("/api/v1/namespaces/{namespace}/services/web/proxy/");
    // With the session it is not to be had: neither by the tools' way nor by the page's, gone to or fetched.
    let tab = chromium.tab();
    assert_eq!(chromium.go(&tab, &format!("{}/k8s/a{below}", desk.base)), 401);
    assert_eq!(chromium.go(&tab, &format!("{}/api/v1/clusters/a/kube{below}", desk.base)), 403);
    assert_eq!(desk.own(&mut chromium, &own, &format!("/api/v1/clusters/a/kube{below}")), 403);
    assert_eq!(desk.own(&mut chromium, &own, &format!("/k8s/a{below}")), 401);
    assert_eq!(
        desk.own(&mut chromium, &own, "/api/v1/clusters/a/kube/api/v1/namespaces/default/pods"),
        200,
        "the API itself is"
    );

    // A person who makes their browser send the token reaches it, and it is a document without an origin or a script.
    let token = desk.guildnet(&["token"]);
    let bearer = json!({"headers": {"Authorization": format!("Bearer {}", token.trim())}});
    chromium.on(&tab, "Network.setExtraHTTPHeaders", bearer);
    crate::fleet::eventually("the Service has its pod", STEP, || {
        chromium.go(&tab, &format!("{}/k8s/a{below}", desk.base)) == 200
    });
    assert!(chromium.text(&tab).contains("hostile page"), "{}", chromium.text(&tab));
    chromium.on(&tab, "Network.setExtraHTTPHeaders", json!({"headers": {}}));
    assert_eq!(chromium.eval(&tab, "self.origin"), "null", "it has an origin");
    assert!(chromium.text(&tab).contains("<title>quiet</title>"), "its script ran: {}", chromium.text(&tab));
    // Something that comes after it on the same way, so that a late request of the page would have come before.
    assert_eq!(desk.own(&mut chromium, &own, "/api/v1/status"), 200, "the session is as it was");
    assert_eq!(beacon.asked().len(), heard, "it reached its server: {:?}", beacon.asked());

    // Behind a forward it is a page like any other, with its script; and a stranger to the Host App.
    let mut forward = Running::start(desk.person.fleet.command(&["forward", "a", &format!("0:web.{namespace}:80")]));
    let place = forward.find("the forward", |line| line.split_once(" -> ").map(|(local, _)| local.to_owned()));
    let tab = chromium.tab();
    assert_eq!(chromium.go(&tab, &format!("http://{place}/")), 200);
    chromium.until(&tab, "document.title === 'ran'");
    desk.withstands(&mut chromium, &tab, &place);
    assert_eq!(desk.own(&mut chromium, &own, "/api/v1/status"), 200, "still signed in");
    assert_eq!(desk.sessions().len(), 1);
}
