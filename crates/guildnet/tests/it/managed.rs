//! A Headscale of one's own, as far as that needs no `headscale`: the rest is tested on the fleet.

use std::fs;

use crate::{sandbox::Sandbox, service::accepted_by_systemd};

#[test]
fn up_without_a_server_and_without_a_program_names_the_ways_on() {
    let sandbox = Sandbox::new();
    let cluster = format!("a={}", sandbox.text("good"));
    let before = sandbox.listing();
    sandbox
        .run(&["up", "--cluster", &cluster])
        .refused(8, &["headscale program", "--headscale-binary", "--headscale-url"]);
    sandbox
        .run(&["headscale", "up", "--headscale-binary", &sandbox.text("nothing")])
        .refused(8, &["nothing: No such file"]);
    sandbox
        .run(&["headscale", "up", "--address", "127.0.0.1", "--headscale-binary", "/bin/true"])
        .refused(2, &["in a pod"]);
    sandbox.run(&["headscale", "up", "--listen", "8443"]).refused(2, &["--listen", "192.168.1.20:8443"]);
    assert_eq!(sandbox.listing(), before, "nothing was made");
}

#[test]
fn where_there_is_none_it_says_so() {
    let sandbox = Sandbox::new();
    let ran = sandbox.run(&["headscale", "status", "-o", "json"]);
    assert_eq!(ran.code, 1, "{ran:#?}");
    let status: serde_json::Value = serde_json::from_str(&ran.out).expect("json");
    assert!(status["running"] == false && status["url"].is_null(), "{status}");
    assert!(ran.err.contains("none here (start one: guildnet headscale up)"), "{ran:#?}");
    sandbox.run(&["headscale", "backup"]).refused(3, &["no managed Headscale"]);
    let ran = sandbox.run(&["headscale", "down"]);
    assert_eq!((ran.code, ran.err.trim()), (0, "the managed Headscale was not running"));
}

#[test]
fn a_loopback_server_in_the_env_file_becomes_the_address_that_is_given() {
    let sandbox = Sandbox::new();
    let text = "# mine\nHEADSCALE_URL=\"https://127.0.0.1:8443\" # local\nTS_ROUTES=10.96.0.0/16\n";
    let file = sandbox.file("work/.env", text);
    let ran = sandbox.run(&["headscale", "env-sync-lan", "--address", "192.168.1.20"]);
    assert_eq!(ran.code, 0, "{ran:#?}");
    assert!(ran.err.contains(".env, line 2: HEADSCALE_URL now names 192.168.1.20 instead of 127.0.0.1"), "{ran:#?}");
    assert_eq!(fs::read_to_string(&file).expect("there"), text.replace("127.0.0.1", "192.168.1.20"));
    let again = sandbox.run(&["headscale", "env-sync-lan", "--address", "192.168.1.20", "-o", "json"]);
    let done: serde_json::Value = serde_json::from_str(&again.out).expect("json");
    assert_eq!((again.code, &done["changes"]), (0, &serde_json::json!([])), "{again:#?}");
    sandbox.run(&["headscale", "env-sync-lan", "--file", "other.env"]).refused(3, &["other.env", "--file"]);
    sandbox.run(&["headscale", "env-sync-lan", "--address", "127.0.0.1"]).refused(2, &["in a pod it means the pod"]);
}

#[test]
fn a_unit_is_printed_and_nothing_is_made() {
    let sandbox = Sandbox::new();
    let before = sandbox.listing();
    for (flag, target) in [("--systemd", "default.target"), ("--systemd=system", "multi-user.target")] {
        let ran = sandbox.run(&["headscale", "up", flag, "--headscale-binary", "/bin/true"]);
        assert_eq!(ran.code, 0, "{ran:#?}");
        assert!(
            ran.out.contains(&format!("WantedBy={target}\n")) && ran.out.contains("NoNewPrivileges=yes"),
            "{ran:#?}"
        );
        accepted_by_systemd(&[("guildnet-headscale.service", &ran.out)], flag == "--systemd");
    }
    assert_eq!(sandbox.listing(), before);
}
