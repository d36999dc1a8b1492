//! Three routers of one cluster, and what can happen to one of them while the others work.

use std::{fs, time::Duration};

use serde_json::Value;

use crate::{
    fleet::eventually,
    site::{Site, namespaces},
};

/// What a router forwards to, and what it reaches outside.
const ECHO: &str = "http://10.96.0.80/";

#[test]
fn a_router_is_killed_frozen_cut_off_or_detached_and_the_others_work() {
    let site = Site::up(1);
    let lab = &site.device.fleet.lab;
    let outside = format!("http://{}:9090/metrics", lab.plan().host_address());
    [1, 2, 3].into_iter().for_each(|number| site.router("a", number));
    let nodes = || -> Vec<(u64, String, bool)> {
        let list: Value =
            serde_json::from_str(&site.device.fleet.headscale(&["nodes", "list", "-o", "json"]).ok()).expect("a list");
        let node = |n: &Value| Some((n["id"].as_u64()?, n["given_name"].as_str()?.to_owned(), n["online"] == true));
        list.as_array().expect("an array").iter().filter_map(node).collect()
    };
    let names: Vec<String> = nodes().into_iter().map(|(_, name, _)| name).collect();
    assert_eq!(names, ["gn-a-router-1", "gn-a-router-2", "gn-a-router-3"]);
    let works = |host: &str| {
        let said = site.get(host, ECHO);
        assert!(said.out.contains("cluster=a\n"), "{host}: {said:?}");
        site.get(host, &outside).ok();
    };
    let all_work = || ["a", "a.2", "a.3"].into_iter().for_each(works);
    all_work();

    for (router, host) in [("a/router-2", "a.2"), ("a/router", "a")] {
        site.fault(&["cut", router]);
        assert!(site.is_silent(host, &outside), "{router} is cut off from the world");
        assert!(site.get(host, ECHO).out.contains("cluster=a\n"), "{router} still has its cluster");
        works("a.3");
        assert!(std::net::TcpStream::connect(lab.door_address("a")).is_ok(), "the door is no way of the router's");
        site.fault(&["mend", router]);
        all_work();
    }

    site.fault(&["detach", "a/router-2"]);
    assert!(site.is_silent("a.2", ECHO), "what it forwards is dropped");
    site.get("a.2", &outside).ok();
    works("a.3");
    site.fault(&["attach", "a/router-2"]);
    all_work();
    let node = site.lab(&["fault", "detach", "a/router"]).output().expect("the command runs");
    assert_eq!(node.status.code(), Some(2), "nothing lies between the node's router and the node");

    let pid = || lab.status().expect("the lab's state").clusters[0].processes["a/router-2"].pid;
    let state = || {
        let text = fs::read_to_string(format!("/proc/{}/stat", pid())).unwrap_or_default();
        text.rsplit(") ").next().unwrap_or_default().chars().next()
    };
    site.fault(&["freeze", "a/router-2"]);
    assert_eq!(state(), Some('T'), "it is stopped");
    site.fault(&["thaw", "a/router-2"]);
    assert_ne!(state(), Some('T'));

    let before = nodes();
    site.fault(&["kill", "a/router-2"]);
    assert!(!lab.status().expect("the lab's state").is_whole(), "it is missed");
    eventually("the server sees that it is gone", Duration::from_secs(60), || {
        nodes().iter().any(|(_, _, online)| !online)
    });
    site.fault(&["start", "a/router-2"]);
    eventually("it is the same node again", Duration::from_secs(60), || nodes() == before);
    all_work();

    let instance = format!("gnlab-{}-", lab.plan().instance);
    assert!(namespaces(&instance).contains(&format!("{instance}a.2")));
    // A fault that is still there does not outlive the lab.
    site.fault(&["freeze", "a/router-3"]);
    site.fault(&["cut", "a/router-2"]);
    drop(site);
    assert_eq!(namespaces(&instance), Vec::<String>::new());
}
