//! A real Chromium, driven by the DevTools protocol over its WebSocket: as much of it as these tests need.

use std::{
    collections::VecDeque,
    net::TcpStream,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tungstenite::{Message, WebSocket};

use crate::clients::{person::Person, running::Running};
use crate::fleet::STEP;

/// How long one read waits before the test looks at its clock again.
const TICK: Duration = Duration::from_millis(200);

/// Debian's program. Its sandbox needs namespaces that a test's machine may not give; what is tested is the pages' rules.
const PROGRAM: &str = "/usr/bin/chromium";

/// The browser. It ends with this value.
pub(super) struct Chromium {
    socket: WebSocket<TcpStream>,
    next: u64,
    /// Events that came while something else was waited for.
    events: VecDeque<Value>,
    _process: Running,
}

/// One tab.
#[derive(Clone)]
pub(super) struct Tab {
    session: String,
}

impl Chromium {
    /// Starts it as the person, with a profile of its own, without a screen. It resolves no name but those in `names`, so that
    /// nothing of it leaves this machine.
    pub(super) fn start(person: &Person, names: &[(&str, &str)]) -> Self {
        let mut command = person.command(PROGRAM);
        let mut rules: Vec<String> = names.iter().map(|(name, to)| format!("MAP {name} {to}")).collect();
        rules.push("MAP * ~NOTFOUND".into());
        rules.extend(["127.0.0.1", "127.0.0.2", "localhost"].map(|own| format!("EXCLUDE {own}")));
        command
            .args([
                "--headless=new",
                "--remote-debugging-port=0",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
            ])
            .args(["--no-first-run", "--no-default-browser-check", "--no-proxy-server", "--disable-extensions"])
            .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
            .arg(format!("--host-resolver-rules={}", rules.join(",")))
            .arg(format!("--user-data-dir={}", person.path("chromium").display()))
            .arg("about:blank");
        let mut process = Running::start(command);
        let url =
            process.find("Chromium listens", |line| line.strip_prefix("DevTools listening on ").map(str::to_owned));
        let address = url.strip_prefix("ws://").and_then(|rest| rest.split_once('/')).expect("an address").0;
        let stream = TcpStream::connect(address).expect("Chromium's own port");
        let (mut socket, _) = tungstenite::client(url.as_str(), stream).expect("a WebSocket");
        socket.get_mut().set_read_timeout(Some(TICK)).expect("a timeout");
        Self { socket, next: 0, events: VecDeque::new(), _process: process }
    }

    /// A new tab.
    pub(super) fn tab(&mut self) -> Tab {
        let target = self.call(None, "Target.createTarget", json!({"url": "about:blank"}))["targetId"].clone();
        let attached = self.call(None, "Target.attachToTarget", json!({"targetId": target, "flatten": true}));
        let tab = Tab { session: attached["sessionId"].as_str().expect("a session").to_owned() };
        for domain in ["Page.enable", "Network.enable", "Runtime.enable"] {
            self.on(&tab, domain, json!({}));
        }
        tab
    }

    /// Calls a method for a tab. The test fails if Chromium refuses.
    #[track_caller]
    pub(super) fn on(&mut self, tab: &Tab, method: &str, params: Value) -> Value {
        self.call(Some(&tab.session), method, params)
    }

    /// Goes to an address; what the document's request was answered with, and the last address.
    #[track_caller]
    pub(super) fn go(&mut self, tab: &Tab, url: &str) -> u64 {
        self.events.clear();
        let gone = self.on(tab, "Page.navigate", json!({"url": url}));
        assert_eq!(gone["errorText"], Value::Null, "{url}: {gone}");
        let loader = gone["loaderId"].clone();
        let response = self.event(tab, "Network.responseReceived", |params| {
            params["type"] == "Document" && params["loaderId"] == loader
        });
        self.event(tab, "Page.loadEventFired", |_| true);
        response["response"]["status"].as_u64().expect("a status")
    }

    /// Why an address can't be gone to.
    #[track_caller]
    pub(super) fn refuses(&mut self, tab: &Tab, url: &str) -> String {
        let gone = self.on(tab, "Page.navigate", json!({"url": url}));
        gone["errorText"].as_str().unwrap_or_else(|| panic!("{url} can be reached: {gone}")).to_owned()
    }

    /// The value of an expression in the page, after a promise has settled; as if a person had just clicked there.
    #[track_caller]
    pub(super) fn eval(&mut self, tab: &Tab, expression: &str) -> Value {
        let params =
            json!({"expression": expression, "awaitPromise": true, "returnByValue": true, "userGesture": true});
        let said = self.on(tab, "Runtime.evaluate", params);
        assert_eq!(said["exceptionDetails"], Value::Null, "{expression}: {said}");
        said["result"]["value"].clone()
    }

    /// Waits until an expression is true in the page.
    #[track_caller]
    pub(super) fn until(&mut self, tab: &Tab, expression: &str) {
        let begun = Instant::now();
        while self.eval(tab, expression) != Value::Bool(true) {
            assert!(begun.elapsed() < STEP, "{expression}: never; the page says {}", self.text(tab));
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The text that the page shows, read past its scripts and its sandbox.
    #[track_caller]
    pub(super) fn text(&mut self, tab: &Tab) -> String {
        let root = self.on(tab, "DOM.getDocument", json!({"depth": -1}));
        let html = self.on(tab, "DOM.getOuterHTML", json!({"nodeId": root["root"]["nodeId"]}));
        html["outerHTML"].as_str().unwrap_or_default().to_owned()
    }

    #[track_caller]
    fn event(&mut self, tab: &Tab, method: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let is =
            |event: &Value| event["method"] == method && event["sessionId"] == *tab.session && wanted(&event["params"]);
        let begun = Instant::now();
        loop {
            if let Some(at) = self.events.iter().position(&is) {
                return self.events.remove(at).expect("it is there")["params"].take();
            }
            assert!(begun.elapsed() < STEP, "{method} does not come");
            if let Some(message) = self.read() {
                self.events.push_back(message);
            }
        }
    }

    #[track_caller]
    fn call(&mut self, session: Option<&str>, method: &str, params: Value) -> Value {
        self.next += 1;
        let id = self.next;
        let mut message = json!({"id": id, "method": method, "params": params});
        if let Some(session) = session {
            message["sessionId"] = session.into();
        }
        self.socket.send(Message::text(message.to_string())).expect("Chromium listens");
        let begun = Instant::now();
        loop {
            assert!(begun.elapsed() < STEP, "{method} is not answered");
            match self.read() {
                Some(mut answer) if answer["id"] == id => {
                    assert_eq!(answer["error"], Value::Null, "{method}: {answer}");
                    return answer["result"].take();
                }
                Some(event) => self.events.push_back(event),
                None => {}
            }
        }
    }

    /// The next message, if one comes soon.
    fn read(&mut self) -> Option<Value> {
        match self.socket.read() {
            Ok(Message::Text(text)) => Some(serde_json::from_str(&text).expect("JSON")),
            Ok(_) => None,
            Err(tungstenite::Error::Io(why))
                if matches!(why.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) =>
            {
                None
            }
            Err(why) => panic!("Chromium is gone: {why}"),
        }
    }
}
