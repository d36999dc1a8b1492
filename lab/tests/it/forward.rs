//! Ways into the clusters for programs that know nothing of GuildNet: forwards and proxies, asked by curl, by the names of
//! Services. Both clusters have a Service `echo.default` at the same address; each says who it is.

use std::{fs, process::Command, time::Duration};

use serde_json::Value;

use crate::{
    clients::running::Running,
    fleet::{CLUSTERS, Fleet, Ran, STEP, eventually, finish},
};

/// The echo Service, in either cluster.
const ECHO_NAME: &str = "echo.default:80";

/// curl with more arguments; its output is the answer's body.
fn curl(args: &[&str]) -> Ran {
    let mut command = Command::new("curl");
    // Only the proxies that are named.
    command.env_clear().env("PATH", "/usr/bin:/bin").args(["-sS", "--max-time", "20"]).args(args);
    finish(command, b"", STEP)
}

/// What there is, by the command.
fn listed(fleet: &Fleet) -> Vec<Value> {
    let list: Value = serde_json::from_str(&fleet.run(&["forward", "--list", "-o", "json"]).ok()).expect("JSON");
    list.as_array().expect("a list").clone()
}

/// Where a forward is, of those that a command has just printed.
fn local(printed: &str) -> String {
    let line = printed.lines().find(|line| line.contains(" -> ")).unwrap_or_else(|| panic!("no forward: {printed}"));
    line.split(' ').next().expect("a word").to_owned()
}

/// A forward that lives as long as the command that is returned, and where it is.
fn forward(fleet: &Fleet, cluster: &str, spec: &str) -> (Running, String) {
    let mut running = Running::start(fleet.command(&["forward", cluster, spec]));
    let local = running.find("the forward", |line| line.contains(" -> ").then(|| local(line)));
    (running, local)
}

/// The proxies of a cluster, switched on: SOCKS5, CONNECT, `user:password`.
fn proxies(fleet: &Fleet, cluster: &str) -> (String, String, String) {
    fleet.run(&["cluster", "set", cluster, "--proxies", "on"]).ok();
    let shown = fleet.run(&["cluster", "proxies", cluster, "-o", "json"]).ok();
    let shown: Value = serde_json::from_str(&shown).expect("JSON");
    let text = |key: &str| shown[key].as_str().unwrap_or_else(|| panic!("no {key}")).to_owned();
    (text("socks"), text("http"), format!("{}:{}", text("user"), text("password")))
}

#[test]
fn one_name_leads_to_each_clusters_own_service_by_every_way_at_once() {
    let fleet = Fleet::answering();
    std::thread::scope(|scope| {
        let fleet = &fleet;
        let each = CLUSTERS.map(|cluster| {
            scope.spawn(move || {
                let own = format!("cluster={cluster}\n");
                let said =
                    fleet.run_with(&["dial", cluster, ECHO_NAME], &[], b"GET / HTTP/1.0\r\nHost: echo\r\n\r\n").ok();
                assert!(said.contains(&own), "dial: {said}");
                let (_running, local) = forward(fleet, cluster, &format!("0:{ECHO_NAME}"));
                let (socks, http, login) = proxies(fleet, cluster);
                let url = format!("http://{ECHO_NAME}/");
                for _ in 0..5 {
                    for (way, said) in [
                        ("forward", curl(&[&format!("http://{local}/")])),
                        ("SOCKS5", curl(&["--socks5-hostname", &socks, "--proxy-user", &login, &url])),
                        (
                            "CONNECT",
                            curl(&["--proxytunnel", "-x", &format!("http://{http}"), "--proxy-user", &login, &url]),
                        ),
                    ] {
                        let said = said.ok();
                        assert!(said.contains(&own), "{way} of {cluster}: {said}");
                    }
                }
                fleet.run(&["cluster", "set", cluster, "--proxies", "off"]).ok();
                local
            })
        });
        let [a, b] = each.map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        let host = |local: &str| local.split(':').next().map(str::to_owned);
        assert_ne!(host(&a), host(&b), "each has an address of its own");
        assert!([&a, &b].iter().all(|local| local.starts_with("127.0.0.") && !local.starts_with("127.0.0.1:")));
    });
}

#[test]
fn a_kept_forward_outlives_connector_router_and_host_app_until_it_is_stopped() {
    let fleet = Fleet::answering();
    let local = local(&fleet.run(&["forward", "a", &format!("0:{ECHO_NAME}"), "--keep"]).ok());
    let url = format!("http://{local}/");
    let answers = || curl(&[&url]).out.contains("cluster=a\n");
    assert!(answers());

    fleet.run(&["cluster", "disconnect", "a"]).ok();
    assert_ne!(curl(&[&url]).code, 0, "closed at once");
    let of = |list: &[Value]| list.iter().find(|f| f["id"] == local.as_str()).cloned().expect("listed");
    let why = of(&listed(&fleet))["lastError"]["why"].as_str().expect("told").to_owned();
    assert!(why.contains("guildnet cluster connect a"), "{why}");
    fleet.run(&["cluster", "connect", "a"]).ok();
    eventually("the connector is back", Duration::from_secs(60), answers);

    fleet.kubectl("a", &["-n", "guildnet-system", "delete", "pod", "--all", "--grace-period=0", "--force"]).ok();
    eventually("the router is back", Duration::from_secs(90), answers);

    let pid = fleet.host_pid().to_string();
    assert!(Command::new("kill").args(["-9", &pid]).status().expect("kill runs").success());
    eventually("the process is gone", Duration::from_secs(10), || {
        !fs::exists(format!("/proc/{pid}/exe")).unwrap_or(true)
    });
    fleet.run(&["forward", "--list"]).refused(5, &["guildnet up"]);
    fleet.run(&["up", "--no-verify"]).ok();
    eventually("the Host App is back", Duration::from_secs(60), answers);
    let told = of(&listed(&fleet));
    assert_eq!((&told["cluster"], &told["target"], &told["kept"]), (&"a".into(), &ECHO_NAME.into(), &true.into()));
    assert!(told["total"].as_u64() > Some(0) && told["received"].as_u64() > Some(0), "{told}");

    let said = fleet.run(&["forward", "--stop", &local]);
    assert_eq!(said.code, 0, "{said:?}");
    assert_eq!(curl(&[&url]).code, 7, "nobody listens");
    fleet.run(&["forward", "--stop", &local]).refused(3, &["there is no forward"]);
    fleet.run(&["down"]).ok();
    fleet.run(&["up", "--no-verify"]).ok();
    assert_eq!(listed(&fleet), [] as [Value; 0]);
}

#[test]
fn forwards_end_with_their_command_however_it_ends() {
    let fleet = Fleet::answering();
    for signal in ["-TERM", "-KILL"] {
        let (running, local) = forward(&fleet, "b", &format!("0:{ECHO_NAME}"));
        assert!(curl(&[&format!("http://{local}/")]).ok().contains("cluster=b\n"));
        assert_eq!(listed(&fleet).len(), 1);
        running.kill(signal);
        eventually("the forward is gone", Duration::from_secs(10), || listed(&fleet).is_empty());
        assert_eq!(curl(&[&format!("http://{local}/")]).code, 7, "nobody listens");
    }
    let (mut running, _) = forward(&fleet, "b", "0:nosuch.default:80");
    let nowhere = listed(&fleet)[0]["local"].as_str().expect("an address").to_owned();
    assert_ne!(curl(&[&format!("http://{nowhere}/")]).code, 0);
    running.find("why", |line| line.contains("knows no such name").then_some(()));
    fleet.run(&["forward", "--stop-all"]).ok();
    assert_eq!(running.end(), 1, "{}", running.said().join("\n"));
}

#[test]
fn proxies_want_their_password_and_lead_into_their_cluster_only() {
    let fleet = Fleet::answering();
    let (socks, http, login) = proxies(&fleet, "a");
    let shown = fleet.run(&["cluster", "show", "a", "-o", "json"]).ok();
    let shown: Value = serde_json::from_str(&shown).expect("JSON");
    assert_eq!(
        (shown["socksProxy"].as_str(), shown["httpProxy"].as_str()),
        (Some(socks.as_str()), Some(http.as_str()))
    );
    let proxy = format!("http://{http}");
    let door = format!("{}/healthz", fleet.listen);
    let here = format!("localhost:{}", fleet.listen.port());
    let headscale = fs::read_to_string(fleet.lab.person_dir().join("headscale-url")).expect("the lab wrote it");
    let headscale = headscale.trim().trim_start_matches("https://").trim_end_matches('/').to_owned();
    // This machine, its LAN, the metadata address, the other side of the router, the other cluster's forwards.
    for to in [door.as_str(), &headscale, "169.254.169.254/", "192.168.77.10:6443", "127.0.0.3:1080", here.as_str()] {
        let url = format!("http://{to}");
        let said = curl(&["--socks5-hostname", &socks, "--proxy-user", &login, &url]);
        assert_eq!(said.code, 97, "SOCKS5 to {to}: {said:?}");
        let code = ["-o", "/dev/null", "-w", "%{http_connect}", "--proxytunnel", "-x", &proxy, "--proxy-user", &login];
        let said = curl(&[&code[..], &[url.as_str()]].concat());
        assert!(["403", "400"].contains(&said.out.as_str()), "CONNECT to {to}: {said:?}");
    }
    let url = format!("http://{ECHO_NAME}/");
    for login in ["a:wrong", "b:wrong", ":"] {
        let said = curl(&["--socks5-hostname", &socks, "--proxy-user", login, &url]);
        assert_eq!(said.code, 97, "{login}: {said:?}");
        let said = curl(&["-w", "%{http_connect}", "--proxytunnel", "-x", &proxy, "--proxy-user", login, &url]);
        assert!(said.out.ends_with("407"), "{login}: {said:?}");
    }
    let password = login.split_once(':').expect("user and password").1;
    let ran = fleet.run(&["status", "-o", "json"]).ok() + &fleet.run(&["cluster", "list", "-o", "json"]).ok();
    let log = fs::read_to_string(fleet.home.join("host.log")).expect("a log");
    assert!(!ran.contains(password) && !log.contains(password), "the password is told elsewhere");
    fleet.run(&["cluster", "proxies", "a", "--renew"]).ok();
    assert_eq!(curl(&["--socks5-hostname", &socks, "--proxy-user", &login, &url]).code, 97, "the old password");
    fleet.run(&["cluster", "set", "a", "--proxies", "off"]).ok();
    assert_eq!(curl(&["--socks5-hostname", &socks, &url]).code, 7, "off is off: nobody listens");
}

#[test]
fn without_the_clusters_dns_a_service_is_found_all_the_same() {
    let fleet = Fleet::answering();
    let scale = |replicas: &str| {
        let replicas = format!("--replicas={replicas}");
        fleet.kubectl("a", &["-n", "kube-system", "scale", "deployment", "coredns", &replicas]).ok();
    };
    let pods =
        || fleet.kubectl("a", &["-n", "kube-system", "get", "pods", "-l", "k8s-app=kube-dns", "-o", "name"]).ok();
    scale("0");
    let asked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        eventually("the DNS is gone", Duration::from_secs(60), || pods().trim().is_empty());
        let (_running, local) = forward(&fleet, "a", &format!("0:{ECHO_NAME}"));
        assert!(curl(&[&format!("http://{local}/")]).ok().contains("cluster=a\n"));
        let said = fleet.run(&["dial", "a", "nosuch.default:80"]);
        said.refused(3, &["nosuch.default", "not found", "get services"]);
    }));
    scale("1");
    fleet.kubectl("a", &["-n", "kube-system", "rollout", "status", "deployment/coredns", "--timeout=60s"]).ok();
    if let Err(why) = asked {
        std::panic::resume_unwind(why);
    }
    eventually("the DNS answers", Duration::from_secs(30), || {
        fleet.run(&["dial", "a", "nosuch.default:80"]).err.contains("knows no such name")
    });
}
