//! The ways into `guildnet up` beside the usual one: what is given differs, what a person gets does not.

use std::fs;

use crate::{
    bad_input::{up_with, with_bare_home},
    fleet::{CLUSTERS, Fleet, ROUTES, pretty},
    host_app::give_to_person,
};

/// Namespace and keys of a cluster, as somebody with the API key makes them: in `file`.
fn namespace(fleet: &Fleet, cluster: &str, file: &str) {
    let person = fleet.lab.person_dir();
    let named = |name: &str| person.join(name).display().to_string();
    let url = fs::read_to_string(person.join("headscale-url")).expect("the lab wrote it");
    let (key, ca) = (named("headscale-api-key"), named("headscale-ca.pem"));
    let mut args = vec!["headscale", "namespace", cluster, "--headscale-url", url.trim()];
    args.extend(["--headscale-api-key-file", &key, "--headscale-ca", &ca, "--routes", ROUTES, "--file", file]);
    fleet.run(&args).ok();
}

#[test]
fn with_keys_from_env_and_no_api_key() {
    with_bare_home("env-keys", 18098, |fleet| {
        let person = fleet.lab.person_dir();
        let mut env = format!(
            "TS_LOGIN_SERVER={}\nHEADSCALE_CA={}\nTS_ROUTES={ROUTES}\nGUILDNET_CLUSTERS=",
            fs::read_to_string(person.join("headscale-url")).expect("the lab wrote it").trim(),
            person.join("headscale-ca.pem").display(),
        );
        let list = CLUSTERS.map(|c| format!("{c}={}", person.join(format!("{c}.kubeconfig")).display()));
        env.push_str(&format!("{}\n", list.join(" ")));
        for cluster in CLUSTERS {
            fleet.lab.door(cluster, true).expect("the door opens");
            let file = fleet.home.join(format!("{cluster}.json"));
            namespace(fleet, cluster, &file.display().to_string());
            let made: serde_json::Value =
                serde_json::from_str(&fs::read_to_string(&file).expect("written")).expect("JSON");
            fs::remove_file(&file).expect("removed");
            for (name, key) in [("TS_AUTHKEY", "routerAuthKey"), ("TS_CLIENT_AUTHKEY", "clientAuthKey")] {
                let value = made[key].as_str().expect("a key");
                env.push_str(&format!("{name}_{}={value}\n", cluster.to_uppercase()));
            }
        }
        // The namespaces' maker kept nothing here: what follows is another person's device.
        fleet.run(&["down", "--purge"]).ok();
        let file = fleet.home.join(".env");
        fs::write(&file, env).expect("written");
        give_to_person(fleet, &file);
        let said = fleet.run(&["up"]);
        for cluster in CLUSTERS {
            fleet.lab.door(cluster, false).expect("the door shuts");
        }
        said.ok();
        for cluster in CLUSTERS {
            let answer = fleet.echo(cluster).ok();
            assert!(answer.contains(&format!("cluster={cluster}\n")), "{cluster} answered {answer:?}");
        }
        let (code, report) = fleet.verify();
        assert_eq!(code, 0, "{}", pretty(&report));
    });
}

#[test]
fn two_host_apps_that_are_set_up_at_the_same_moment_share_one_headscale() {
    with_bare_home("first-app", 18101, |first| {
        with_bare_home("second-app", 18102, |second| {
            let policy = || first.headscale(&["policy", "get"]).ok();
            // One cluster each, with the doors of both open.
            first.lab.door("b", true).expect("the door opens");
            std::thread::scope(|scope| {
                let one = scope.spawn(|| up_with(first, "a", &["--no-verify"]).ok());
                let other = scope.spawn(|| up_with(second, "b", &["--no-verify"]).ok());
                one.join().expect("the first is up");
                other.join().expect("the second is up");
            });
            first.lab.door("b", false).expect("the door shuts");
            let kept = policy();
            for tag in ["tag:gn-a-router", "tag:gn-b-router"] {
                assert!(kept.contains(tag), "{tag} is not in the policy:\n{kept}");
            }
            for (app, cluster) in [(first, "a"), (second, "b")] {
                assert!(app.echo(cluster).ok().contains(&format!("cluster={cluster}\n")));
                let (code, report) = app.verify();
                assert_eq!(code, 0, "{}", pretty(&report));
            }
        });
    });
}
