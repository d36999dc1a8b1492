//! `guildnet headscale policy` on the lab's own server: what is there is shown and compared, what others wrote is kept, a
//! change is taken back; and a server whose policy lies in a file.

use std::{fs, path::Path, process::Command, time::Duration};

use serde_json::{Value, json};

use crate::{
    fleet::{Fleet, check, eventually, finish, pretty},
    host_app::give_to_person,
    managed::Own,
};

/// The policy that the server has, by its own command line.
fn held(fleet: &Fleet) -> Value {
    let text = fleet.headscale(&["policy", "get"]).ok();
    serde_json::from_str(&text).unwrap_or_else(|why| panic!("{why} in the policy\n{text}"))
}

/// Somebody else writes the policy, by the server's own command line.
fn write(fleet: &Fleet, policy: &Value) {
    let file = fleet.home.join("somebodys-policy.json");
    fs::write(&file, pretty(policy)).expect("written");
    fleet.headscale(&["policy", "set", "-f", &file.display().to_string()]).ok();
    fs::remove_file(file).expect("removed");
}

#[test]
fn it_is_shown_compared_applied_beside_others_and_taken_back() {
    let fleet = Fleet::up();
    let policy = |args: &[&str]| fleet.run(&[&["headscale", "policy"], args].concat());
    let before = held(&fleet);
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        assert_eq!(policy(&["diff"]).ok(), "", "what up has applied is what would be applied");
        policy(&["check"]).ok();

        // Somebody adds a rule of their own, and takes the one that lets a's client reach its cluster out.
        let mut theirs = before.clone();
        theirs["tagOwners"]["tag:ops"] = json!([]);
        let rules = theirs["grants"].as_array_mut().expect("grants");
        let ours = rules.len();
        rules.retain(|rule| !rule["src"].to_string().contains("tag:gn-a-client"));
        assert!(rules.len() < ours, "a's client has rules");
        rules.push(json!({"src": ["tag:ops"], "dst": ["tag:ops"], "ip": ["*"]}));
        write(&fleet, &theirs);

        let shown: Value = serde_json::from_str(&policy(&["show", "-o", "json"]).ok()).expect("json");
        assert!(shown["foreign"].to_string().contains("tag:ops"), "{}", pretty(&shown));
        let ran = policy(&["check", "-o", "json"]);
        let report: Value = serde_json::from_str(&ran.out).expect("json");
        assert_eq!((ran.code, &report["success"]), (1, &json!(false)), "{}", pretty(&report));
        let isolates = check(&report, "", "policy.isolates");
        assert_eq!(isolates["result"], "fail", "{}", pretty(&report));
        assert!(isolates["seen"].to_string().contains("missing: grants: tag:gn-a-client -> "), "{isolates}");

        // Beside a rule of others only when told to; what is not told changes nothing.
        policy(&["apply"]).refused(6, &["--merge"]);
        assert_eq!(held(&fleet), theirs);
        let ran = policy(&["diff", "--merge"]);
        assert_eq!(ran.code, 1, "{ran:#?}");
        assert!(ran.out.lines().any(|l| l.starts_with('+') && l.contains("tag:gn-a-client")), "{}", ran.out);
        assert!(!ran.out.lines().any(|l| l.starts_with('-') && l.contains("tag:ops")), "{}", ran.out);
        policy(&["apply", "--merge"]).ok();
        let merged = held(&fleet).to_string();
        assert!(merged.contains("tag:ops") && merged.contains("tag:gn-a-client"), "{merged}");
        assert_eq!(policy(&["diff", "--merge"]).ok(), "");
        policy(&["check"]).ok();
        fleet.passes_again();

        // Taken back: the very document from before; and not over the head of somebody who wrote since.
        policy(&["rollback"]).ok();
        assert_eq!(held(&fleet), theirs);
        policy(&["apply", "--merge"]).ok();
        let mut later = held(&fleet);
        later["tagOwners"]["tag:later"] = json!([]);
        write(&fleet, &later);
        policy(&["rollback"]).refused(6, &["--discard-changes"]);
        assert_eq!(held(&fleet), later);
    }));
    write(&fleet, &before);
    fleet.passes_again();
    outcome.unwrap_or_else(|why| std::panic::resume_unwind(why));
}

#[test]
fn a_policy_in_a_file_is_answered_with_what_to_put_there() {
    Own::with("policy-file", (18133, 8447, 3482), |own| {
        let fleet = &own.fleet;
        own.run(&["headscale", "up"]).ok();
        own.run(&["headscale", "down"]).ok();
        // The same server, run by hand with its policy in a file.
        let folder = fleet.home.join("headscale");
        let (file, config) = (folder.join("policy.hujson"), folder.join("by-hand.yaml"));
        let text = fs::read_to_string(folder.join("config.yaml")).expect("written by up");
        let in_file = text.replace("mode: database", &format!("mode: file\n  path: {}", file.display()));
        assert_ne!(in_file, text, "no policy mode in\n{text}");
        fs::write(&config, in_file).expect("written");
        fs::write(&file, "{\n  // nothing yet\n}\n").expect("written");
        for made in [&file, &config] {
            give_to_person(fleet, made);
        }
        let command = |args: &[&str]| {
            let mut command = fleet.as_person(fleet.lab.program("headscale", "headscale"));
            command.args(args).arg("--config").arg(&config).current_dir(&folder);
            command
        };
        let log = fs::File::create(folder.join("by-hand.log")).expect("made");
        let mut server =
            command(&["serve"]).stdout(log.try_clone().expect("a handle")).stderr(log).spawn().expect("it runs");
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let mut key = String::new();
            eventually("a key is made", Duration::from_secs(20), || {
                let ran = finish(command(&["apikeys", "create"]), b"", Duration::from_secs(10));
                key = ran.out.trim().to_owned();
                ran.code == 0
            });
            let key_file = fleet.home.join("by-hand.key");
            fs::write(&key_file, &key).expect("written");
            give_to_person(fleet, &key_file);
            let (url, ca) = (format!("https://{}:{}", own.address(), own.port), folder.join("headscale-ca.crt"));
            let named = [key_file.display().to_string(), ca.display().to_string()];
            let policy = |args: &[&str]| {
                let server =
                    ["--headscale-url", &url, "--headscale-api-key-file", &named[0], "--headscale-ca", &named[1]];
                fleet.run(&[&["headscale", "policy"], args, &server].concat())
            };
            let ran = policy(&["show"]);
            assert!(ran.err.contains("in a file"), "{ran:#?}");
            let cluster = "x=10.96.0.0/16,10.244.0.0/16@7";
            // Users that the policy does not name need none; nothing is written anywhere.
            policy(&["apply", "--cluster", cluster]).refused(8, &["policy.path", "policy show --compiled"]);
            let document = policy(&["show", "--compiled", "--cluster", cluster]).ok();
            assert!(document.contains("tag:gn-x-router"), "{document}");
            fs::write(&file, document).expect("written");
            // Read again, as the hint says.
            let told = Command::new("kill").args(["-HUP", &server.id().to_string()]).status().expect("kill runs");
            assert!(told.success());
            eventually("the file is what is wanted", Duration::from_secs(10), || {
                let ran = policy(&["diff", "--cluster", cluster]);
                ran.code == 0 && ran.out.is_empty()
            });
        }));
        let stopped = Command::new("kill").arg(server.id().to_string()).status();
        let ended = server.wait();
        if outcome.is_err() {
            crate::managed::show(Path::new(&folder.join("by-hand.log")));
        }
        assert!(stopped.is_ok_and(|s| s.success()) && ended.is_ok());
        outcome.unwrap_or_else(|why| std::panic::resume_unwind(why));
    });
}
